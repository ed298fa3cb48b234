"""What a checkpoint is, told without running anything in it and without building its network in memory."""

__all__ = ["CheckpointReport", "FileFacts", "inspect_checkpoint", "OUTPUT_HINTS"]

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from mammosae_plugin.adapters.checkpoints import (
    CheckpointFormatError,
    is_safetensors,
    unwrapped_key,
)
from mammosae_plugin.adapters.other_forms import wrapped_network
from mammosae_plugin.adapters.plain_weights import entry_with_weights
from mammosae_plugin.adapters.sources import Source, find_source, is_on_hub
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, sha256_of_file

if TYPE_CHECKING:  # each of these brings timm or SAELens, and a file of one kind does not need those of another
    from mammosae_plugin.adapters.published_encoders import PublishedEncoder
    from mammosae_plugin.adapters.sae_formats.parts import Opened

OUTPUT_HINTS = {1: "a binary concept, one logit", 3: "BI-RADS has 3 classes", 4: "density has 4 classes"}


@dataclass(frozen=True)
class FileFacts:
    """One file of a checkpoint: its name, its size in bytes, its SHA-256 as 64 hexadecimal digits."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class CheckpointReport:
    """What `inspect_checkpoint` found; what does not apply is None or empty.

    Attributes:
        source: the path or name that was inspected.
        kind: "mammo-clip pretraining", "downstream classifier", "text encoder only", "mammo-sae", "sail",
            "saelens folder", "saelens weights", "saved classifier" (written by `save_classifier`), "medclip resnet",
            "medclip swin", "gloria", "mirai", the name of another of the SAEs' formats (docs/adapters/vision-saes.md),
            or "unknown".
        loads_with: the function of `mammosae_plugin.adapters` that reads it; None where none does.
        problem: why no function reads a file of this kind, or what `loads_with` needs besides, in one line.
        library: who writes SAEs of this form.
        variant: "b5" or "b2", of Mammo-CLIP's image encoders.
        architecture: timm's name of the network, or SAELens's of the SAE.
        n_class: outputs of the classifier's head; 0 for an encoder without head.
        outputs_hint: which concept of Mammo-CLIP's releases has that many outputs.
        training: "linear probe" or "fine-tuned", as the file's name says it.
        image_encoder_name: what the file's configuration calls the image encoder.
        text_tower: what it calls the text encoder, or the architecture that its keys have.
        family: "Mammo-CLIP" or "Mammo-FM", told by the text tower.
        d_in: width of the SAE's input.
        d_sae: the SAE's number of latents.
        component_axis: whether a Mammo-SAE file has the leading axis of length 1.
        hook_name: where the SAE belongs, as its metadata says.
        data_parallel: whether the keys carry DataParallel's prefix.
        n_tensors: tensors among the weights (an optimiser's state is not counted).
        n_parameters: numbers in them, running statistics included.
        top_level: the names at the top of the file, at most 20.
        groups: the keys of the weights by their first part, with counts.
        numbers: plain numbers at the top of the file, such as epoch and auroc.
        files: the files, with size and SHA-256.
        repo: the Hub's repo, for a file from there.
        revision: branch, tag or commit that was asked for.
        commit: the commit that this was.
    """

    source: str
    kind: str
    loads_with: str | None = None
    problem: str | None = None
    library: str | None = None
    variant: str | None = None
    architecture: str | None = None
    n_class: int | None = None
    outputs_hint: str | None = None
    training: str | None = None
    image_encoder_name: str | None = None
    text_tower: str | None = None
    family: str | None = None
    d_in: int | None = None
    d_sae: int | None = None
    component_axis: bool | None = None
    hook_name: str | None = None
    data_parallel: bool = False
    n_tensors: int = 0
    n_parameters: int = 0
    top_level: tuple[str, ...] = ()
    groups: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    files: tuple[FileFacts, ...] = ()
    repo: str | None = None
    revision: str | None = None
    commit: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return plain

    def as_text(self) -> str:
        """The report for reading: one line per fact that is known."""
        outputs = None
        if self.n_class is not None:
            outputs = "none (an encoder without head)" if self.n_class == 0 else str(self.n_class)
            outputs += f" ({self.outputs_hint})" if self.outputs_hint else ""
        at = self.commit or self.revision
        facts = {
            "checkpoint": self.source,
            "kind": self.kind + (" (keys with DataParallel's prefix)" if self.data_parallel else ""),
            "loads with": self.loads_with and f"mammosae_plugin.adapters.{self.loads_with}",
            "problem": self.problem,
            "library": self.library,
            "variant": self.variant and f"EfficientNet {self.variant}",
            "architecture": self.architecture,
            "image encoder": self.image_encoder_name and f"called {self.image_encoder_name}",
            "text tower": self.text_tower and self.text_tower + (f" ({self.family}'s)" if self.family else ""),
            "outputs": outputs,
            "training": self.training and f"{self.training}, by the file's name",
            "width, latents": self.d_in and f"{self.d_in}, {self.d_sae}",
            "component axis": None if self.component_axis is None else "yes" if self.component_axis else "no",
            "hook point": self.hook_name,
            "weights": f"{self.n_tensors:,} tensors, {self.n_parameters:,} numbers",
            "top level": ", ".join(self.top_level),
            "keys": ", ".join(f"{name} {count}" for name, count in self.groups.items()),
            "numbers": ", ".join(f"{name} {value:g}" for name, value in self.numbers.items()),
            "repo": self.repo and self.repo + (f" at {at}" if at else ""),
            **{f"file {file.name}": f"{_readable_size(file.size)}, sha256 {file.sha256}" for file in self.files},
        }
        known = {name: value for name, value in facts.items() if value}
        width = max(len(name) for name in known)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in known.items())


def inspect_checkpoint(
    source: str | os.PathLike[str], *, filename: str | None = None, revision: str | None = None
) -> CheckpointReport:
    """Tell what a checkpoint is. Pickles are read without being run, weights are mapped from the file.

    Args:
        source: a file; a folder with an SAE; a Hub repo with `filename`; or
            "hub://owner/name[@revision]/path/in/repo", of a file or of such a folder.
        filename: the file's name inside a folder or repo.
        revision: branch, tag or commit; only for the Hub.

    Returns:
        The report. A file that can be read but is of no known kind has kind "unknown" and its keys; one of a known
        kind that does not load has a problem.

    Raises:
        UnsafeCheckpointError: the file asks for code, which is named; none of it was run.
        CheckpointFormatError: the file is empty, truncated, damaged, or text, a web page or a Git LFS pointer.
        InputError: the path, repo or file does not exist or cannot be read.
    """
    found = _found(source, filename, revision)
    if found.path.is_dir():
        from mammosae_plugin.adapters.sae_formats.loading import opened_sae

        opened = opened_sae(found)
        assert opened.layout is not None
        facts, files = _folder(opened), [found.path / name for name in opened.layout]
    else:
        facts = _safetensors_file(found) if is_safetensors(found.path) else _torch_file(found)
        files = [found.path]
    facts |= found.hub_record() or {}
    facts["files"] = tuple(FileFacts(file.name, file.stat().st_size, sha256_of_file(file)) for file in files)
    return CheckpointReport(source=str(source), **facts)


def _found(source: str | os.PathLike[str], filename: str | None, revision: str | None) -> Source:
    if filename is None and not is_on_hub(source) and local_path(source).is_file():
        return find_source(source, revision=revision)
    from mammosae_plugin.adapters.sae_formats.table import LAYOUTS

    return find_source(source, filename, revision=revision, layouts=LAYOUTS)


def _torch_file(source: Source) -> dict[str, Any]:
    from mammosae_plugin.adapters.published_encoders import published_encoder
    from mammosae_plugin.adapters.sae_formats.loading import opened_sae

    path, opened = source.path, opened_sae(source)
    content = opened.content
    facts: dict[str, Any] = {"kind": "unknown"}
    weights: Mapping[Any, Any] = {}
    if isinstance(content, Mapping):
        weights = entry_with_weights(content)
        facts["top_level"] = tuple(str(key) for key in content)[:20]
        facts["numbers"] = _numbers(content)
    elif isinstance(content, torch.Tensor):
        weights = {"": content}
    facts |= _weights_facts({name: tuple(value.shape) for name, value in _tensors(weights).items()})
    if (sae := _sae(opened)) is not None:
        return facts | sae
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        facts |= _mammo_clip(content, path)
    if (published := published_encoder(content, str(path))) is not None:
        return facts | _published(published[0], path)
    form = wrapped_network(content) if facts["kind"] == "unknown" else None
    return facts | ({"problem": f"{path} is {form}"} if form else {})


def _published(form: "PublishedEncoder", path: Path) -> dict[str, Any]:
    from mammosae_plugin.adapters.published_encoders import load_published_encoder

    facts: dict[str, Any] = {"kind": form.kind, "n_class": 0}
    try:
        made = load_published_encoder(Source(path, path.name))
        assert made is not None  # its form was recognised
        facts |= {"architecture": made[0].architecture, "loads_with": "load_classifier"}
    except InputError as error:
        facts["problem"] = str(error)
    return facts


def _mammo_clip(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A Mammo-CLIP file, a part of one, or something else with an entry `model`."""
    from mammosae_plugin.adapters.mammo_clip_files import check_mammo_clip, parse_mammo_clip

    keys = [unwrapped_key(str(key)) for key in content["model"]]
    has_text = any(key.startswith("text_encoder.") for key in keys)
    has_encoder = any(key.startswith("image_encoder.") for key in keys)
    has_head = any(key.startswith("classifier.") for key in keys)
    if has_head:
        kind = "downstream classifier"
    elif has_encoder:
        kind = "mammo-clip pretraining"
    elif has_text:
        kind = "text encoder only"
    else:
        return {"kind": "unknown"}
    facts: dict[str, Any] = {"kind": kind}
    facts["image_encoder_name"] = _name_in_config(content, "image_encoder")
    if has_text:
        facts |= _text_tower(keys, _name_in_config(content, "text_encoder"))
    if has_head and (marker := re.search(r"[_-](lp|ft)(?=[_.-])", path.name)):
        facts["training"] = {"lp": "linear probe", "ft": "fine-tuned"}[marker[1]]
    try:
        file = parse_mammo_clip(content, path)
        if file.head and isinstance(weight := file.head.get("weight"), torch.Tensor) and weight.dim() == 2:
            facts |= {"n_class": len(weight), "outputs_hint": OUTPUT_HINTS.get(len(weight))}
        if not file.encoder and "n_class" in facts:
            problem = (
                "a head without image encoder; give load_mammo_clip the pretraining checkpoint too, before this file"
            )
            return facts | {"loads_with": "load_mammo_clip", "problem": problem}
        variant, architecture, n_class = check_mammo_clip(file)
        facts |= {"variant": variant, "architecture": architecture, "n_class": n_class}
        facts["loads_with"] = "load_mammo_clip"
    except InputError as error:
        facts["problem"] = str(error)
    return facts


def _text_tower(keys: list[str], name: str | None) -> dict[str, Any]:
    """Mammo-CLIP's text tower is a BERT (Bio_ClinicalBERT), Mammo-FM's a ModernBERT, which has other keys."""
    told_by = f"{name or ''} {'modernbert' if any('.attn.Wqkv.' in key for key in keys) else ''}".lower()
    if "modernbert" in told_by:
        return {"text_tower": name or "a ModernBERT", "family": "Mammo-FM"}
    if "clinicalbert" in told_by:
        return {"text_tower": name, "family": "Mammo-CLIP"}
    is_bert = any(".attention.self.query." in key for key in keys)
    return {"text_tower": name or ("a BERT" if is_bert else "unnamed")}


def _name_in_config(content: Mapping[str, Any], part: str) -> str | None:
    config: Any = content.get("config")
    for key in ("model", part, "name"):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config if isinstance(config, str) else None


def _sae(opened: "Opened") -> dict[str, Any] | None:
    """What is told of an SAE of a known form; None for something else."""
    from mammosae_plugin.adapters.sae_formats.table import FORMATS

    found = next((one for one in FORMATS if one.recognises(opened)), None)
    if found is None:
        return None
    facts = {"kind": found.kind(opened), "library": found.library, **found.facts(opened)}
    try:
        parts = found.parts(opened)
    except InputError as error:
        return facts | {"problem": str(error)}
    d_in, d_sae = parts.state["W_enc"].shape
    hook_name = facts.get("hook_name") or parts.metadata.get("hook_name")
    architecture = facts.get("architecture") or parts.architecture
    facts |= {"d_in": d_in, "d_sae": d_sae, "architecture": architecture, "hook_name": hook_name}
    return facts | {"loads_with": found.loads_with}


def _folder(opened: "Opened") -> dict[str, Any]:
    facts = _sae(opened)
    if facts is None:
        raise CheckpointFormatError(f"{opened.place} holds no SAE of a known form")
    if facts.get("problem"):
        return facts
    return facts | _weights_facts({name: tuple(value.shape) for name, value in _tensors(opened.tensors).items()})


def _tensors(weights: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    return {str(key): value for key, value in weights.items() if isinstance(value, torch.Tensor)}


def _safetensors_file(source: Source) -> dict[str, Any]:
    from mammosae_plugin.adapters.saved_classifiers import read_saved_classifier, saved_classifier_header

    try:
        with safe_open(source.path, framework="pt") as file:
            metadata = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointFormatError(f"{source.path} is a damaged or truncated safetensors file: {error}") from error
    facts = _weights_facts(shapes)
    if (header := saved_classifier_header(metadata)) is not None:
        n_class = header.get("n_class")
        facts |= {
            "kind": "saved classifier",
            "architecture": header.get("architecture"),
            "n_class": n_class,
            "outputs_hint": OUTPUT_HINTS.get(n_class) if isinstance(n_class, int) else None,
        }
        from mammosae_plugin.adapters.mammo_clip import MammoClipClassifier

        try:
            found = read_saved_classifier(source, device="meta")
            facts["loads_with"] = "load_mammo_clip" if isinstance(found, MammoClipClassifier) else "load_classifier"
        except InputError as error:
            facts["problem"] = str(error)
        return facts
    from mammosae_plugin.adapters.sae_formats.loading import opened_sae

    if (sae := _sae(opened_sae(source))) is not None:
        return facts | sae
    return facts | {"kind": "unknown"}


def _weights_facts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    groups = Counter(unwrapped_key(name).split(".")[0] for name in shapes)
    return {
        "n_tensors": len(shapes),
        "n_parameters": sum(math.prod(shape) for shape in shapes.values()),
        "groups": dict(groups),
        "data_parallel": bool(shapes) and all(name.startswith("module.") for name in shapes),
    }


def _numbers(content: Mapping[Any, Any]) -> dict[str, float]:
    """Finite plain numbers within the range of floats, of Python or of numpy."""
    numbers = {}
    for key, value in content.items():
        if isinstance(value, np.number):
            value = value.item()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value):
            numbers[str(key)] = value
    return numbers


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False


def _readable_size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"
