"""`load_sae`: any published SAE as one of SAELens, and the same as SAELens's converters."""

__all__ = [
    "convert", "disk_converter", "find_sae", "huggingface_config", "huggingface_converter", "load_found", "load_sae",
    "opened_sae", "weights_of",
]  # fmt: skip

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import sae_lens
import torch
from sae_lens import SAE

from mammosae_plugin.adapters.checkpoints import refuse_unpacked
from mammosae_plugin.adapters.sae_formats.mammo_sae import DEFAULT_FILENAME
from mammosae_plugin.adapters.sae_formats.parts import Opened, Parts
from mammosae_plugin.adapters.sae_formats.table import LAYOUTS, format_named, recognised
from mammosae_plugin.adapters.sources import HUB_SCHEME, Source, find_beside, find_source
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sha256_of_file
from mammosae_plugin.version import __version__

State = dict[str, torch.Tensor]


class DiskConverter(Protocol):
    """SAELens's converter of a path, for `SAE.load_from_disk(path, converter=)`."""

    def __call__(
        self, path: str | Path, device: str = ..., cfg_overrides: dict[str, Any] | None = ...
    ) -> tuple[dict[str, Any], State]: ...


class HubConverter(Protocol):
    """SAELens's converter of a repo, for `SAE.from_pretrained(repo, file_or_folder, converter=)`."""

    def __call__(
        self,
        repo_id: str,
        folder_name: str,
        device: str = ...,
        force_download: bool = ...,
        cfg_overrides: dict[str, Any] | None = ...,
    ) -> tuple[dict[str, Any], State, None]: ...


def load_sae(
    path_or_repo: str | os.PathLike[str],
    format: str | None = None,
    *,
    filename: str | None = None,
    revision: str | None = None,
) -> SAE[Any]:
    """Load an SAE that any of the known libraries saved, as a SAELens SAE on the CPU, with the same latents.

    Args:
        path_or_repo: a file or a folder; where no such path exists, a Hugging Face repo ("owner/name"); or
            "hub://owner/name[@revision]/path/in/repo", of a file or of a folder.
        format: what the place must hold, by its name in the docs' table of formats; by default it is told by what lies
            there. Where a file cannot say how its weights are used, naming the format takes that format's defaults.
        filename: the file's or folder's name inside a folder or repo. Left out, it is `sparse_autoencoder_final.pt`,
            the name in Mammo-SAE's repo, where a folder has it, and in a repo; in a folder of no known layout the only
            file of weights.
        revision: branch, tag or commit of the repo; only for the Hub. Name a commit where results must be reproducible.

    Returns:
        An SAE with float32 weights whose metadata says where it came from: `source_format`, `source_file`,
        `source_sha256`, of the Hub `source_repo`, `source_revision` and `source_commit`; and what the form tells of
        layer and network (`hook_name`, `model_name`), of levels, and of rows that must be normalised first
        (`input_normalization`). One that SAELens saved keeps the metadata and the type that it was saved with, and what
        they say of an earlier source; of a checkpoint of a training that is under way it is the form for use, with the
        scale of its rows folded in.

    Raises:
        UnsafeCheckpointError: the file asks for code; none of it was run.
        CheckpointFormatError: the place holds no SAE of a known form, or of another than was asked for, or one that
            SAELens's architectures cannot express; the message says why.
        InputError: neither a path nor a repo that can be read, or a `revision` for a local path.

    Examples:
        >>> sae = load_sae("trainer_0")                                             # doctest: +SKIP
        >>> sae.cfg.metadata.source_format                                          # doctest: +SKIP
        'dictionary_learning'
    """
    source = find_sae(path_or_repo, filename=filename, revision=revision)
    if not source.path.exists():
        raise InputError(f"{source.path} does not exist; give a checkpoint, a folder with an SAE, or a Hub repo")
    return load_found(source, format)


def load_found(source: Source, format: str | None = None) -> SAE[Any]:
    """The SAE at a place that `find_sae` or `find_source` found, with the files beside it on the Hub; as `load_sae`."""
    opened = opened_sae(source, format)
    found = recognised(opened)
    parts = found.parts(opened)
    if parts.sae is not None:
        if parts.sae.cfg.metadata.source_sha256 is None:  # else it was converted from another form before
            for name, value in _origin(found.name, opened, source).items():
                setattr(parts.sae.cfg.metadata, name, value)
        return parts.sae

    def converter(
        path: str | Path,  # noqa: ARG001  # SAELens names it
        device: str,
        cfg_overrides: dict[str, Any] | None,
    ) -> tuple[dict[str, Any], State]:
        return _config(parts, found.name, opened, source, device, cfg_overrides), _copies(parts)

    sae: SAE[Any] = SAE.load_from_disk(source.path, converter=converter)
    return sae


def disk_converter(format: str | None = None) -> DiskConverter:
    """For `SAE.load_from_disk(path, converter=disk_converter())`: config and state dict of an SAE of any form.

    Args:
        format: as in `load_sae`.

    Raises:
        InputError: there is no such format. What it returns raises as `load_sae`.
    """
    _ = format and format_named(format)

    def converter(
        path: str | Path, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], State]:
        return convert(find_sae(Path(path)), format, device, cfg_overrides)

    return converter


def huggingface_converter(format: str | None = None, *, revision: str | None = None) -> HubConverter:
    """For `SAE.from_pretrained(repo, file_or_folder, converter=huggingface_converter())`, of an SAE of any form.

    Args:
        format: as in `load_sae`.
        revision: branch, tag or commit, which SAELens itself does not pass.

    Raises:
        InputError: there is no such format. What it returns raises as `load_sae`.
    """
    _ = format and format_named(format)

    def converter(
        repo_id: str,
        folder_name: str,
        device: str = "cpu",
        force_download: bool = False,
        cfg_overrides: dict[str, Any] | None = None,
    ) -> tuple[dict[str, Any], State, None]:
        source = find_sae(HUB_SCHEME + repo_id, filename=folder_name, revision=revision, force_download=force_download)
        return *convert(source, format, device, cfg_overrides), None

    return converter


def huggingface_config(
    repo_id: str,
    folder_name: str,
    device: str | None = None,
    force_download: bool = False,
    cfg_overrides: dict[str, Any] | None = None,
    *,
    revision: str | None = None,
) -> dict[str, Any]:
    """The config alone of `huggingface_converter()`, in the form of SAELens's config getters.

    The file is downloaded, because the shapes are in it; nothing of it is copied into memory.
    """
    source = find_sae(HUB_SCHEME + repo_id, filename=folder_name, revision=revision, force_download=force_download)
    opened = opened_sae(source)
    found = recognised(opened)
    return _config(found.parts(opened), found.name, opened, source, device or "cpu", cfg_overrides)


def find_sae(
    place: str | os.PathLike[str],
    *,
    filename: str | None = None,
    revision: str | None = None,
    force_download: bool = False,
) -> Source:
    """Where an SAE lies, downloaded first where that is on the Hub: a file, or a folder of one of the layouts.

    Raises:
        InputError: as `find_source`.
    """
    return find_source(
        place,
        filename,
        revision=revision,
        default=DEFAULT_FILENAME,
        layouts=LAYOUTS,
        force_download=force_download,
    )


def opened_sae(source: Source, format: str | None = None) -> Opened:
    """What lies at a place that `find_sae` found.

    Raises:
        CheckpointFormatError: a folder that was a checkpoint before it was unpacked.
        InputError: a folder that holds none of the layouts.
    """
    refuse_unpacked(source.path)
    beside = None if source.repo is None else lambda name: find_beside(source, name)
    opened = Opened(source.path, LAYOUTS, asked=format, beside=beside)
    if source.path.is_dir() and opened.layout is None:
        within = sorted(
            path.name for path in source.path.iterdir() if path.is_dir() and Opened(path, LAYOUTS).layout is not None
        )
        if within:
            more = f" and {len(within) - 5} more" if len(within) > 5 else ""
            raise InputError(
                f"{source.path} holds no SAE itself but {len(within)} in folders: {', '.join(within[:5])}{more}; name "
                "one as filename=, or give its folder"
            )
        known = ", nor ".join(" and ".join(layout) for layout in LAYOUTS)
        raise InputError(
            f"{source.path} holds no SAE: neither {DEFAULT_FILENAME} nor {known}; name a file in it with filename="
        )
    return opened


def weights_of(place: Path) -> Path:
    """The file that holds the weights of an SAE at a place that `load_sae` reads."""
    return Opened(place, LAYOUTS).file


def convert(
    source: Source, format: str | None, device: str, cfg_overrides: Mapping[str, Any] | None
) -> tuple[dict[str, Any], State]:
    """Config and state dict as SAELens's converters give them.

    Raises:
        UnsafeCheckpointError, CheckpointFormatError, InputError: as `load_sae`.
    """
    opened = opened_sae(source, format)
    found = recognised(opened)
    parts = found.parts(opened)
    return _config(parts, found.name, opened, source, device, cfg_overrides), _copies(parts)


def _copies(parts: Parts) -> State:
    """Copies, because tensors are mapped from the file and SAELens adopts what it is given."""
    return {
        name: tensor.detach().to(torch.float32).clone(memory_format=torch.contiguous_format)
        for name, tensor in parts.state.items()
    }


def _config(
    parts: Parts,
    format: str,
    opened: Opened,
    source: Source,
    device: str,
    cfg_overrides: Mapping[str, Any] | None,
) -> dict[str, Any]:
    if parts.sae is not None:
        saved = parts.sae.cfg.to_dict()
        origin = {} if saved["metadata"].get("source_sha256") else _origin(format, opened, source)
        saved["metadata"] = {"sae_lens_version": sae_lens.__version__, **saved["metadata"], **origin}
        return {**saved, "architecture": parts.architecture, "device": device, **(cfg_overrides or {})}
    d_in, d_sae = parts.state["W_enc"].shape
    return {
        "architecture": parts.architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": device,
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        **parts.settings,
        "metadata": {
            # Without its version here SAELens takes the config for one of before 6.0 and drops our metadata.
            "sae_lens_version": sae_lens.__version__,
            "mammosae_plugin_version": __version__,
            **parts.metadata,
            **_origin(format, opened, source),
        },
        **(cfg_overrides or {}),
    }


def _origin(format: str, opened: Opened, source: Source) -> dict[str, Any]:
    """Where an SAE came from, for its metadata."""
    return {
        "source_format": format,
        "source_file": source.name,
        "source_sha256": sha256_of_file(opened.file),
        **{f"source_{key}": value for key, value in (source.hub_record() or {}).items()},
    }
