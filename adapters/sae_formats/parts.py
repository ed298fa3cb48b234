"""What every format of SAEs is made of: what lies at a place, and what a format makes of it."""

__all__ = ["Opened", "Parts", "refused", "required_k", "SAEFormat", "shape_of", "widened"]

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from sae_lens import SAE
from safetensors import SafetensorError, safe_open

from mammosae_plugin.adapters.checkpoints import (
    CheckpointFormatError,
    is_safetensors,
    read_torch_checkpoint,
    refuse_not_finite,
    refuse_what_was_never_a_checkpoint,
    unwrapped,
)
from mammosae_plugin.files import read_json

Layout = tuple[str, str]
"""The two files of a folder: the settings and the weights."""

_LONGEST_LINE = 1 << 20
_NARROW = (torch.float16, torch.bfloat16)
_WRAPPED = ("state_dict", "model", "ae")


@dataclass(frozen=True)
class Parts:
    """An SAE of another format as SAELens's.

    Attributes:
        architecture: SAELens's name of it.
        state: its tensors under SAELens's names: W_enc (d_in, d_sae), W_dec (d_sae, d_in), b_dec, ...
        settings: entries of its config besides the widths, such as `k` and `apply_b_dec_to_input` (by default true).
        metadata: what the file says of it besides, as plain JSON.
        sae: the SAE itself where it was in SAELens's format and is complete, its metadata too.
    """

    architecture: str
    state: Mapping[str, torch.Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    sae: SAE[Any] | None = None


class Opened:
    """A place on this machine where an SAE may lie; each part of it is read once, when a format asks for it.

    Args:
        place: a file, or a folder.
        layouts: the files by which folders are told, in the order of asking.
        asked: the format that was asked for by name.
        beside: gives a file beside the weights by its name, such as "config.json" or "../config.json", None where there
            is none; by default on this machine.

    Attributes:
        layout: the files of a folder (settings, weights), None for a file or a folder that holds none of the layouts.
        file: the file of weights; the folder itself where it holds none of the layouts.
    """

    def __init__(
        self,
        place: Path,
        layouts: Sequence[Layout] = (),
        *,
        asked: str | None = None,
        beside: Callable[[str], Path | None] | None = None,
    ) -> None:
        self.place, self.asked = place, asked
        there = (layout for layout in layouts if all((place / name).is_file() for name in layout))
        self.layout: Layout | None = next(there, None) if place.is_dir() else None
        self.file = place if self.layout is None else place / self.layout[1]
        self._beside = beside

    def beside(self, name: str) -> Path | None:
        """The file of this name beside the weights, relative to their folder; None where there is none."""
        path = self.file.parent / name
        if path.is_file() or self._beside is None:
            return path if path.is_file() else None
        return self._beside(name)

    def beside_json(self, name: str) -> dict[str, Any]:
        """What a file of JSON beside the weights says; empty where there is none.

        Raises:
            InputError: It is no JSON.
        """
        path = self.beside(name)
        found = None if path is None else read_json(path)
        return found if isinstance(found, dict) else {}

    @cached_property
    def json_line(self) -> dict[str, Any] | None:
        """The line of JSON with which the file begins, behind which there is something else; None without one."""
        try:
            with self.file.open("rb") as file:
                line, behind = file.readline(_LONGEST_LINE), file.read(4)
        except OSError:  # whoever reads the file says why
            return None
        try:
            found = json.loads(line) if line.startswith(b"{") and line.endswith(b"\n") else None
        except ValueError:
            return None
        return found if isinstance(found, dict) and behind.startswith((b"PK\x03\x04", b"\x80")) else None

    @cached_property
    def header(self) -> dict[str, str]:
        """What a safetensors file says of itself; empty for another file."""
        return self._safetensors[0]

    @cached_property
    def content(self) -> Any:
        """What the file holds: of a safetensors file its tensors by name, else what `read_torch_checkpoint` gives, of a
        file that begins with a line of JSON what lies behind it.

        Raises:
            UnsafeCheckpointError, CheckpointFormatError, InputError: As `read_torch_checkpoint`.
        """
        if is_safetensors(self.file):
            return self._safetensors[1]
        return read_torch_checkpoint(self.file, behind_line=self.json_line is not None)

    @cached_property
    def tensors(self) -> dict[str, Any]:
        """The state dict in the file, from under `state_dict`, `model` or `ae` too, without the names of wrappers, and
        with float32 for float16 and bfloat16, in which nothing may be computed."""
        content = self.content
        if not isinstance(content, Mapping):
            return {}
        inner = next((content[key] for key in _WRAPPED if isinstance(content.get(key), Mapping)), content)
        return widened(unwrapped(inner, where=str(self.file)))

    @cached_property
    def _safetensors(self) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
        if not is_safetensors(self.file):
            return {}, {}
        refuse_what_was_never_a_checkpoint(self.file)
        try:
            with safe_open(self.file, framework="pt") as file:
                return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointFormatError(f"{self.file} is a damaged or truncated safetensors file: {error}") from error


class SAEFormat(ABC):
    """A form in which others save SAEs.

    Attributes:
        name: what `load_sae(format=)` and the metadata call it.
        title: what messages call a file of it: "an SAE as ... saves it".
        library: the package or repository that writes it.
        layouts: the files of its folders (settings, weights), where it has any.
        loads_with: which function of `mammosae_plugin.adapters` is named for it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    library: ClassVar[str]
    layouts: ClassVar[tuple[Layout, ...]] = ()
    loads_with: ClassVar[str] = "load_sae"

    @abstractmethod
    def recognises(self, opened: Opened) -> bool:
        """Whether a place holds an SAE of this form, told by names alone."""

    @abstractmethod
    def read(self, opened: Opened) -> Parts:
        """What is there, as SAELens has it: views where possible, since whoever calls makes copies.

        Raises:
            CheckpointFormatError: Something is missing or of another shape, or cannot be expressed in SAELens.
        """

    def parts(self, opened: Opened) -> Parts:
        """What `read` gives, looked at before, for tensors that nothing can be computed with, and after.

        Raises:
            CheckpointFormatError: As `read`; or weights that are integers, complex, sparse or without values, or what
                comes of them is not finite.
        """
        for name, value in ({} if is_safetensors(opened.file) else opened.tensors).items():
            if not isinstance(value, torch.Tensor) or value.is_quantized:  # the latter `check_keys` refuses
                continue
            plain = value.layout == torch.strided and not value.is_meta
            if not plain or (value.dim() > 1 and not value.is_floating_point()):
                kind = "no values (meta)" if value.is_meta else f"{value.dtype}, {value.layout}"
                raise refused(opened, f"holds {name} as {kind}; save it as a dense tensor of floats")
        parts = self.read(opened)
        if parts.sae is None:
            refuse_not_finite(parts.state, where=str(opened.file))
        return parts

    def facts(self, opened: Opened) -> dict[str, Any]:  # noqa: ARG002
        """What `inspect_checkpoint` tells of it before, or without, reading it: fields of its report."""
        return {}

    def kind(self, opened: Opened) -> str:  # noqa: ARG002
        """What `inspect_checkpoint` calls it."""
        return self.name


def widened(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights with float32 for float16 and bfloat16, which a threshold or a scale would be rounded to."""
    return {
        name: value.float() if isinstance(value, torch.Tensor) and value.dtype in _NARROW else value
        for name, value in weights.items()
    }


def shape_of(opened: Opened, title: str, weights: Any, name: str) -> tuple[int, int]:
    """The lengths of a matrix among the weights, from which those of all others follow.

    Raises:
        CheckpointFormatError: It is not there, or no matrix.
    """
    found = weights.get(name) if isinstance(weights, Mapping) else None
    if not isinstance(found, torch.Tensor) or found.dim() != 2:
        raise refused(opened, f"is not {title}: it has no {name} with 2 axes")
    return found.shape[0], found.shape[1]


def required_k(opened: Opened, k: Any, d_sae: int, way_out: str, *, name: str = "k") -> int:
    """The number of latents that fire, as a file says it.

    Raises:
        CheckpointFormatError: It is no whole number of 1 to `d_sae`.
    """
    if type(k) is not int or not 0 < k <= d_sae:
        raise refused(opened, f"has {name} {k!r} for {d_sae} latents; {way_out}")
    return k


def refused(opened: Opened, reason: str) -> CheckpointFormatError:
    """The error of a file that is of a form but cannot be expressed in SAELens, or is not whole."""
    return CheckpointFormatError(f"{opened.place} {reason}")
