"""Mammo-CLIP's and Mammo-FM's own files: pretraining checkpoints and downstream classifiers, under original names."""

__all__ = ["check_mammo_clip", "MammoClipFile", "parse_mammo_clip", "read_mammo_clip", "save_mammo_clip"]

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mammosae_plugin.adapters.checkpoints import (
    CheckpointFormatError,
    check_keys,
    read_torch_checkpoint,
    unwrapped,
    without_prefix,
)
from mammosae_plugin.adapters.latent_edits import edits_of
from mammosae_plugin.adapters.mammo_clip import MammoClipClassifier, Padding, blocks_of, create_efficientnet
from mammosae_plugin.adapters.other_forms import wrapped_network
from mammosae_plugin.adapters.preprocessing import MAMMO_CLIP
from mammosae_plugin.adapters.sources import Source, origin_of
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import atomic_path

_HEAD_PREFIX = "classifier.classification_head."


@dataclass(frozen=True)
class _Variant:
    """One of Mammo-CLIP's two image encoders."""

    name: str
    architecture: str
    static_padding: Mapping[str, Padding]


def _padding(third_stage: Padding) -> dict[str, Padding]:
    return {
        "conv_stem": (0, 1, 0, 1),
        "blocks.1.0.conv_dw": (0, 1, 0, 1),
        "blocks.2.0.conv_dw": third_stage,
        "blocks.3.0.conv_dw": (1, 1, 1, 1),
        "blocks.5.0.conv_dw": (2, 2, 2, 2),
    }


_VARIANTS = {
    "b5": _Variant("b5", "tf_efficientnet_b5", _padding((1, 2, 1, 2))),
    "b2": _Variant("b2", "tf_efficientnet_b2", _padding((2, 2, 2, 2))),
}
# The names that Mammo-CLIP's configuration files give their encoders; the second one is no EfficientNetV2.
_CONFIG_NAMES = {"tf_efficientnet_b5_ns-detect": "b5", "tf_efficientnetv2-detect": "b2"}
# (stem width, head width) of the EfficientNet family, to say which one a file holds.
_FAMILY_WIDTHS = {
    (32, 1280): "b0 or b1",
    (32, 1408): "b2",
    (40, 1536): "b3",
    (48, 1792): "b4",
    (48, 2048): "b5",
    (56, 2304): "b6",
    (64, 2560): "b7",
    (72, 2816): "b8",
}
_COUNTER = "num_batches_tracked"
# Module names, timm's -> the original encoder's. Its blocks are numbered through; a block without expansion (the first
# stage) has one batch norm less, and they are numbered from 1.
_OUTER_NAMES = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
_SQUEEZE_NAMES = {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
_EXPANDING_BLOCK_NAMES = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
} | _SQUEEZE_NAMES
_PLAIN_BLOCK_NAMES = {
    "conv_dw": "_depthwise_conv",
    "bn1": "_bn1",
    "conv_pw": "_project_conv",
    "bn2": "_bn2",
} | _SQUEEZE_NAMES


@dataclass(frozen=True)
class MammoClipFile:
    """The parts of a Mammo-CLIP file that matter here, under the original's names.

    Attributes:
        path: the file.
        weights: everything of the file's model, without the prefix of DataParallel.
        encoder: the image encoder's part, without `image_encoder.`; empty if there is none.
        head: the linear head's part (`weight`, `bias`), without its prefix; empty if there is none.
        config_name: what the file's configuration calls the image encoder, None if it has none.
    """

    path: Path
    weights: Mapping[str, Any]
    encoder: Mapping[str, Any]
    head: Mapping[str, Any]
    config_name: str | None


def parse_mammo_clip(content: Any, path: Path) -> MammoClipFile:
    """Take a Mammo-CLIP file apart: pretraining checkpoint or downstream classifier, of whatever variant.

    Args:
        content: what `read_torch_checkpoint` gave.
        path: the file, for messages.

    Raises:
        CheckpointFormatError: it has no model, no image encoder and no head, or a classifier of another form.
    """
    weights = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping):
        if (form := wrapped_network(content)) is not None:
            raise CheckpointFormatError(f"{path} is {form}")
        held = ", ".join(map(str, list(content)[:4])) if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise CheckpointFormatError(f"{path} is no Mammo-CLIP checkpoint: it has no entry 'model', it holds {held}")
    weights = unwrapped(weights, where=str(path))
    encoder, head = without_prefix(weights, "image_encoder."), without_prefix(weights, _HEAD_PREFIX)
    if not encoder and not head:
        held = ", ".join(sorted({key.split(".")[0] for key in weights})[:5]) or "nothing"
        raise CheckpointFormatError(f"{path} has no image encoder (image_encoder.*): its model holds {held}")
    if head:
        others = [key for key in weights if not key.startswith(("image_encoder.", _HEAD_PREFIX))]
        if others:
            raise CheckpointFormatError(
                f"{path} is not a Mammo-CLIP classifier: {len(others)} unexpected keys ({', '.join(others[:3])})"
            )
    return MammoClipFile(
        path=path, weights=weights, encoder=encoder, head=head, config_name=_config_name(content.get("config"))
    )


def check_mammo_clip(file: MammoClipFile) -> tuple[str, str, int]:
    """Check all that loading checks, without memory for the weights.

    Returns:
        Variant ("b5"), timm's architecture, and the number of outputs (0 without head).

    Raises:
        CheckpointFormatError: another architecture; missing, unexpected or misshapen keys; a head without encoder.
    """
    if not file.encoder:
        raise CheckpointFormatError(f"{file.path} has a head but no image encoder; give the pretraining checkpoint too")
    variant, n_class = _variant_of(file), _n_class(file)
    with torch.device("meta"):
        model = MammoClipClassifier(
            create_efficientnet(variant.architecture, n_class), architecture=variant.architecture
        )
    _to_timm_names(model, file, variant)
    _check_head(file, model, variant)
    return variant.name, variant.architecture, n_class


def read_mammo_clip(*sources: Source) -> MammoClipClassifier:
    """The model of one file, or of a pretraining checkpoint and a classifier."""
    files = [parse_mammo_clip(read_torch_checkpoint(source.path), source.path) for source in sources]
    encoders = [file for file in files if file.encoder]
    first, last = files[0], files[-1]
    if not encoders:
        raise CheckpointFormatError(
            f"{first.path} has a head but no image encoder; give the pretraining checkpoint too"
        )
    variants = [_variant_of(file) for file in encoders]
    if variants[0] != variants[-1]:
        raise CheckpointFormatError(
            f"{first.path} is an EfficientNet {variants[0].name} and {last.path} an EfficientNet {variants[-1].name}; "
            "give two files of one variant"
        )
    variant = variants[0]
    if len(files) > 1 and not last.head:
        raise CheckpointFormatError(f"{last.path} has no {_HEAD_PREFIX}weight; give a downstream classifier file")
    n_class = _n_class(last)
    model = MammoClipClassifier(
        create_efficientnet(variant.architecture, n_class),
        architecture=variant.architecture,
        static_padding=variant.static_padding,
        source={
            "kind": "classifier" if last.head else "pretraining",
            "variant": variant.name,
            **origin_of(sources),
        },
    )
    state_dict = _to_timm_names(model, encoders[-1], variant)
    _check_head(last, model, variant)
    model.load_state_dict(state_dict | {f"classifier.{name}": tensor for name, tensor in last.head.items()})
    return model


def save_mammo_clip(model: Any, path: str | Path) -> None:
    """Write a network as Mammo-CLIP's own downstream classifiers are written, for whoever runs Mammo-CLIP's own code.

    A torch pickle of tensors and plain values: `model` (image_encoder.*, classifier.classification_head.*) and `epoch`.

    Raises:
        InputError: it is no EfficientNet B5 or B2 as Mammo-CLIP runs them, has no head, or holds more than they do.
    """
    variant = next((one for one in _VARIANTS.values() if _is_of(model, one)), None)
    if variant is None or model.n_class == 0 or edits_of(model):
        raise InputError(
            f"{Path(path).name} is a file of Mammo-CLIP's own form, which holds its classifiers on EfficientNet B5 and "
            "B2 alone; name a .safetensors"
        )
    originals = _original_names(model, counters=True)
    state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    weights = {f"image_encoder.{key}": state[name] for name, key in originals.items()}
    weights |= {f"{_HEAD_PREFIX}{leaf}": state[f"classifier.{leaf}"] for leaf in ("weight", "bias")}
    with atomic_path(path) as temporary:
        torch.save({"model": weights, "epoch": 0}, temporary)


def _is_of(model: Any, variant: _Variant) -> bool:
    return (
        isinstance(model, MammoClipClassifier)
        and model.architecture == variant.architecture
        and model.static_padding == dict(variant.static_padding)
        and model.preprocessing == MAMMO_CLIP
    )


def _check_head(file: MammoClipFile, model: MammoClipClassifier, variant: _Variant) -> None:
    if file.head:
        shapes = {"weight": (model.n_class, model.num_features), "bias": (model.n_class,)}
        check_keys(file.head, shapes, where=str(file.path), what=f"a classifier for EfficientNet {variant.name}")


def _n_class(file: MammoClipFile) -> int:
    if not file.head:
        return 0
    weight = file.head.get("weight")
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        raise CheckpointFormatError(
            f"{file.path} has no matrix at {_HEAD_PREFIX}weight; its head is not a linear layer"
        )
    return len(weight)


def _config_name(config: Any) -> str | None:
    """`config["model"]["image_encoder"]["name"]`, where there is one."""
    for key in ("model", "image_encoder", "name"):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config if isinstance(config, str) else None


def _variant_of(file: MammoClipFile) -> _Variant:
    """B5 or B2, from the widths of the encoder and from the configuration, which must agree."""
    stem, head = file.encoder.get("_conv_stem.weight"), file.encoder.get("_conv_head.weight")
    named = f", which its configuration calls {file.config_name!r}" if file.config_name else ""
    if not all(isinstance(weight, torch.Tensor) and weight.dim() == 4 for weight in (stem, head)):
        raise CheckpointFormatError(
            f"{file.path} holds an image encoder of another architecture than Mammo-CLIP's EfficientNet{named}: "
            f"its keys begin with {', '.join(list(file.encoder)[:3])}"
        )
    widths = (len(file.encoder["_conv_stem.weight"]), len(file.encoder["_conv_head.weight"]))
    seen = _FAMILY_WIDTHS.get(widths, f"of unknown kind (stem width {widths[0]}, head width {widths[1]})")
    if seen not in _VARIANTS:
        raise CheckpointFormatError(
            f"{file.path} holds an EfficientNet {seen}{named}; Mammo-CLIP's image encoders are EfficientNet b5 and b2"
        )
    said = _CONFIG_NAMES.get(file.config_name or "")
    if said is None and (match := re.search(r"efficientnet[-_]?(b\d)", file.config_name or "")):
        said = match[1]
    if said is not None and said != seen:
        raise CheckpointFormatError(
            f"{file.path} contradicts itself: its weights are an EfficientNet {seen}, its configuration says {said} "
            f"({file.config_name!r})"
        )
    return _VARIANTS[seen]


def _to_timm_names(model: MammoClipClassifier, file: MammoClipFile, variant: _Variant) -> dict[str, torch.Tensor]:
    """The model's state dict with the file's encoder in it; the rest (head, batch-norm counters) stays the model's own.

    The counters are not read because files may lack them and evaluation does not use them.
    """
    state_dict: dict[str, torch.Tensor] = model.state_dict()
    originals = _original_names(model)
    expected = {originals[name]: tensor.shape for name, tensor in state_dict.items() if name in originals}
    found = {key: value for key, value in file.encoder.items() if not key.endswith(_COUNTER)}
    what = f"a Mammo-CLIP EfficientNet {variant.name} image encoder"
    check_keys(found, expected, where=str(file.path), what=what)
    return state_dict | {name: found[key] for name, key in originals.items()}


def _original_names(model: MammoClipClassifier, *, counters: bool = False) -> dict[str, str]:
    """timm's parameter names -> the original encoder's: blocks.1.0.conv_pw.weight -> _blocks.3._expand_conv.weight."""
    modules = dict(_OUTER_NAMES)
    for number, (path, block) in enumerate(blocks_of(model.blocks)):
        names = _EXPANDING_BLOCK_NAMES if hasattr(block, "conv_pwl") else _PLAIN_BLOCK_NAMES
        modules |= {f"{path}.{timm_name}": f"_blocks.{number}.{original}" for timm_name, original in names.items()}
    originals = {}
    for name in model.state_dict():
        module, _, leaf = name.rpartition(".")
        if module in modules and (counters or leaf != _COUNTER):
            originals[name] = f"{modules[module]}.{leaf}"
    return originals
