"""Mammo-CLIP's image encoder and classifiers as a timm EfficientNet, to float rounding.

Mammo-CLIP (Ghosh et al., MICCAI 2024; weights CC BY-NC-SA 4.0) trained its encoder with another EfficientNet
implementation than timm's. Two things differ: the names of the parameters, and the padding of the convolutions with
stride 2, which that implementation computes once for the variant's native resolution (456 for B5, 260 for B2) and timm
for the image at hand. At Mammo-CLIP's 1520 x 912 this shifts maps by a pixel and is no detail: the final map of
timm's own padding differs from the original's by more than its norm. Hence `static_padding`.
"""

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional

from mammosae_plugin.adapters.checkpoints import (
    CheckpointFormatError,
    check_keys,
    is_safetensors,
    read_torch_checkpoint,
    unwrapped,
    without_prefix,
)
from mammosae_plugin.adapters.sources import Source, find_source, is_on_hub
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sha256_of_file, write_safetensors, write_text

Padding = tuple[int, int, int, int]
"""(left, right, top, bottom) in pixels of the convolution's input."""

_FORMAT_VERSION = 1
_HEADER_KEY = "mammosae_classifier"
CLASSIFIER_FILES = ("config.json", "model.safetensors")
"""What makes up a classifier's folder, the form in which it lies on the Hub: the header as JSON, and the tensors."""
_HEAD_PREFIX = "classifier.classification_head."


@dataclass(frozen=True)
class _Variant:
    """One of Mammo-CLIP's two image encoders."""

    name: str
    architecture: str
    static_padding: Mapping[str, Padding]


_VARIANTS = {
    "b5": _Variant(
        name="b5",
        architecture="tf_efficientnet_b5",
        static_padding={
            "conv_stem": (0, 1, 0, 1),
            "blocks.1.0.conv_dw": (0, 1, 0, 1),
            "blocks.2.0.conv_dw": (1, 2, 1, 2),
            "blocks.3.0.conv_dw": (1, 1, 1, 1),
            "blocks.5.0.conv_dw": (2, 2, 2, 2),
        },
    ),
    "b2": _Variant(
        name="b2",
        architecture="tf_efficientnet_b2",
        static_padding={
            "conv_stem": (0, 1, 0, 1),
            "blocks.1.0.conv_dw": (0, 1, 0, 1),
            "blocks.2.0.conv_dw": (2, 2, 2, 2),
            "blocks.3.0.conv_dw": (1, 1, 1, 1),
            "blocks.5.0.conv_dw": (2, 2, 2, 2),
        },
    ),
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


class StaticPadConv2d(nn.Conv2d):
    """A convolution that pads by fixed amounts, which may differ between the sides.

    Its state dict is that of the convolution it stands for.
    """

    static_padding: Padding

    def __init__(self, conv: nn.Conv2d, static_padding: Padding):
        """Take over weight and settings of `conv`, and pad by `static_padding` instead of what it did."""
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            (conv.kernel_size[0], conv.kernel_size[1]),
            stride=(conv.stride[0], conv.stride[1]),
            dilation=(conv.dilation[0], conv.dilation[1]),
            groups=conv.groups,
            bias=conv.bias is not None,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.static_padding = static_padding

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C', h, w)."""
        return super().forward(functional.pad(images, self.static_padding))


class MammoClipClassifier(nn.Module):
    """An EfficientNet with a linear head, with timm's module and parameter names.

    `forward(images)` is `forward_head(forward_features(images))`. Convolution weights and images are kept in
    channels-last memory, which is faster on CPUs and changes no shape.

    Attributes:
        architecture: timm's name.
        num_features: channels of the final map.
        n_class: outputs of the head; 0 means that there is no head and `forward` gives pooled features.
        layer_aliases: the Mammo-SAE release's layer names to module paths: `layer_0` ... are the blocks in order, the
            last one (`layer_39` for B5) is the final map, `bn2` (after conv_head, batch norm and swish).
        static_padding: (left, right, top, bottom) of the convolutions that do not pad as timm does, by module path.
        source: where the weights come from: kind, variant, files (names only; in a repo their path) and their SHA-256;
            and, where a file comes from the Hub, `hub`: per file its repo, revision as asked and commit, or None.
        default_cfg: timm's description of the architecture (its `input_size` is timm's, not a mammogram's).
        feature_info: timm's list of stages.
    """

    conv_stem: nn.Module
    bn1: nn.Module
    blocks: nn.Sequential
    conv_head: nn.Module
    bn2: nn.Module
    global_pool: nn.Module
    classifier: nn.Module

    def __init__(
        self,
        network: nn.Module,
        *,
        architecture: str,
        static_padding: Mapping[str, Padding] | None = None,
        source: Mapping[str, Any] | None = None,
    ):
        """Adopt the children of a timm EfficientNet, which must not be used afterwards.

        Args:
            network: what `timm.create_model` made.
            architecture: the name it was made by.
            static_padding: convolutions to pad by fixed amounts.
            source: goes into the attribute `source`.
        """
        super().__init__()
        for name, child in network.named_children():
            self.add_module(name, child)
        self.architecture = architecture
        self.num_features = int(network.num_features)  # type: ignore[arg-type]
        self.n_class = int(network.num_classes)  # type: ignore[arg-type]
        self.drop_rate = float(network.drop_rate)  # type: ignore[arg-type]
        self.default_cfg: dict[str, Any] = dict(network.default_cfg)  # type: ignore[arg-type]
        self.feature_info: Any = network.feature_info
        self.source: dict[str, Any] = dict(source or {})
        self.static_padding: dict[str, Padding] = {}
        for path, padding in (static_padding or {}).items():
            self._pad_statically(path, padding)
        layers = [*(path for path, _ in _blocks(self.blocks)), "bn2"]
        self.layer_aliases = {f"layer_{number}": path for number, path in enumerate(layers)}
        self.to(memory_format=torch.channels_last)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """The final map, after conv_head, batch norm and activation: images (B, 3, H, W) -> (B, C, h, w)."""
        x = images.contiguous(memory_format=torch.channels_last)
        x = self.bn1(self.conv_stem(x))
        return self.bn2(self.conv_head(self.blocks(x)))  # type: ignore[no-any-return]

    def forward_head(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Global average pool, dropout (in training only), linear layer.

        The final map (B, C, h, w) -> logits (B, n_class), or pooled features (B, C) without head.
        """
        pooled = functional.dropout(self.global_pool(feature_map), self.drop_rate, training=self.training)
        return self.classifier(pooled)  # type: ignore[no-any-return]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) -> logits (B, n_class), or pooled features (B, C) without head."""
        return self.forward_head(self.forward_features(images))

    def _pad_statically(self, path: str, padding: Padding) -> None:
        conv = self.get_submodule(path)
        if not isinstance(conv, nn.Conv2d):
            raise InputError(f"static padding for {path!r}, which is a {type(conv).__name__} and no convolution")
        parent, _, leaf = path.rpartition(".")
        setattr(self.get_submodule(parent), leaf, StaticPadConv2d(conv, padding))
        self.static_padding[path] = padding


def load_mammo_clip(
    checkpoint: str | os.PathLike[str],
    classifier: str | os.PathLike[str] | None = None,
    *,
    filename: str | None = None,
    classifier_filename: str | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
) -> MammoClipClassifier:
    """Load a Mammo-CLIP (or Mammo-FM) image encoder, with or without a classifier, in evaluation mode.

    The variant, EfficientNet-B5 or B2, is told by the file. At Mammo-CLIP's input of 1520 x 912 (height x width) the
    final map is (2048, 48, 29) for B5 and (1408, 48, 29) for B2. Mammo-FM's text tower is another one; it is not read.

    Args:
        checkpoint: a pretraining checkpoint (`b5-model-best-epoch-7.tar`), a downstream classifier file, which holds
            the encoder too, a `.safetensors` that `save_classifier` wrote, or the folder of a published classifier. A
            local file or such a folder; a Hub repo ("owner/name") or local folder with `filename`; or
            "hub://owner/name[@revision]/path/in/repo", of a published classifier with its id as the path.
        classifier: a downstream classifier file for a pretraining checkpoint; its encoder, if it has one, and its head
            replace the checkpoint's. Named like `checkpoint`.
        filename: the checkpoint's name inside the repo or folder.
        classifier_filename: the classifier's; without `classifier`, inside the checkpoint's repo or folder.
        revision: branch, tag or commit, for the files that come from the Hub. Name a commit where results must be
            reproducible; the commit that was read is recorded in any case.
        device: where to put the model.

    Returns:
        The model; `n_class` is 0 when no file has a head.

    Raises:
        UnsafeCheckpointError: a file asks for code; none of it was run.
        CheckpointFormatError: a file is damaged, has another architecture, or missing, unexpected or misshapen keys.
        InputError: a path, repo, revision or file that cannot be read, or a combination of them that means nothing.
    """
    named = [(checkpoint, filename)]
    if classifier is not None or classifier_filename is not None:
        named.append((checkpoint if classifier is None else classifier, classifier_filename))
    if revision is not None and not any(is_on_hub(place) for place, _ in named):
        raise InputError(f"revision {revision!r} means nothing for local files; leave it out")
    files = [
        find_source(place, name, revision=revision if is_on_hub(place) else None, folder_files=CLASSIFIER_FILES)
        for place, name in named
    ]
    whole = [file for file in files if is_classifier_folder(file.path) or is_safetensors(file.path)]
    if whole and len(files) > 1:
        other = files[0] if whole[0] is files[1] else files[1]
        raise InputError(f"{whole[0].path} is a whole classifier already; give it alone, without {other.path}")
    model = read_saved_classifier(whole[0]) if whole else _read_mammo_clip(*files)
    return model.eval().to(device)


def new_classifier(architecture: str, n_class: int, *, seed: int) -> MammoClipClassifier:
    """A classifier with random weights, for phantoms and tests; it pads as timm does.

    Args:
        architecture: timm's name of an EfficientNet, such as "tinynet_e" or "efficientnet_b0".
        n_class: outputs of the head, 0 for none.
        seed: the same seed, the same weights; the global random state is left alone.

    Raises:
        InputError: timm has no such model, or it is no EfficientNet; or `n_class` is negative.
    """
    if n_class < 0:
        raise InputError(f"n_class must be 0 or more, not {n_class}")
    network = _create(architecture, n_class, seed=seed)
    return MammoClipClassifier(network, architecture=architecture, source={"kind": "random", "seed": seed}).eval()


def is_classifier_folder(path: Path) -> bool:
    """Whether `save_classifier_folder` wrote a folder."""
    return all((path / name).is_file() for name in CLASSIFIER_FILES)


def save_classifier_folder(
    model: MammoClipClassifier,
    folder: str | os.PathLike[str],
    *,
    source: Mapping[str, Any],
    metadata: Mapping[str, Any],
) -> None:
    """Write a classifier as a folder of `CLASSIFIER_FILES`, to be read by `load_mammo_clip`.

    The tensors are the model's state dict, without metadata; what `save_classifier` has in its header is `config.json`.

    Args:
        model: the classifier.
        folder: where to write.
        source: as the model's `source`, as far as it is to be told.
        metadata: as for `save_classifier`.

    Raises:
        InputError: `metadata` is not plain JSON.
    """
    config, weights = (Path(folder) / name for name in CLASSIFIER_FILES)
    write_text(config, json.dumps(_header(model, source, metadata), indent=1) + "\n")
    write_safetensors(weights, _tensors(model))


def save_classifier(model: MammoClipClassifier, path: str | os.PathLike[str], *, metadata: Mapping[str, Any]) -> None:
    """Write a classifier as safetensors, to be read by `load_mammo_clip`.

    The tensors are the model's state dict under timm's names. The header's only metadata entry, `mammosae_classifier`,
    is a JSON object: format_version, architecture, n_class, static_padding, source, and `metadata` as given.

    Args:
        model: the classifier, in whatever mode.
        path: where to write; a killed process leaves the old file or the new one.
        metadata: plain JSON that says what the classifier is: concept, classes, preprocessing, ...; it comes back as
            `source["metadata"]`.

    Raises:
        InputError: `metadata` is not plain JSON.
    """
    write_safetensors(path, _tensors(model), {_HEADER_KEY: json.dumps(_header(model, model.source, metadata))})


def _tensors(model: MammoClipClassifier) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}


def _header(model: MammoClipClassifier, source: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    header = {
        "format_version": _FORMAT_VERSION,
        "architecture": model.architecture,
        "n_class": model.n_class,
        "static_padding": {name: list(padding) for name, padding in model.static_padding.items()},
        "source": dict(source),
        "metadata": dict(metadata),
    }
    try:
        json.dumps(header, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the classifier's metadata is not plain JSON: {error}") from error
    return header


def _create(architecture: str, n_class: int, *, seed: int = 0) -> nn.Module:
    """timm's network with random weights; the global random state is left alone."""
    entrypoints = timm.list_models(module="efficientnet")
    if architecture.split(".")[0] not in entrypoints:
        near = difflib.get_close_matches(architecture, entrypoints, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"{architecture!r} is not an EfficientNet that timm {timm.__version__} has{hint}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=n_class)
    return network


def saved_classifier_header(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """What `save_classifier` says in a safetensors file's metadata; None for a file that it did not write.

    A damaged header is an empty one.
    """
    text = metadata.get(_HEADER_KEY)
    if text is None:
        return None
    try:
        header = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return header if isinstance(header, dict) else {}


def read_saved_classifier(source: Source, *, device: str = "cpu") -> MammoClipClassifier:
    """The classifier in a file that `save_classifier`, or a folder that `save_classifier_folder` wrote.

    Args:
        source: the file or folder.
        device: "meta" checks all that loading checks, and gives a network without weights.

    Raises:
        CheckpointFormatError: the file is another or a damaged one.
        InputError: timm has no network of the file's architecture.
    """
    path = source.path
    config = path / CLASSIFIER_FILES[0] if path.is_dir() else None
    try:
        with safe_open(classifier_weights(path), framework="pt") as file:
            header_text = config.read_text(encoding="utf-8") if config else (file.metadata() or {}).get(_HEADER_KEY)
            state_dict = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise CheckpointFormatError(f"{path} is damaged or no safetensors file: {error}") from error
    if header_text is None:
        raise CheckpointFormatError(f"{path} is a safetensors file, but not one that save_classifier wrote")
    try:
        header = json.loads(header_text)
        if header["format_version"] != _FORMAT_VERSION:
            raise CheckpointFormatError(
                f"{path} has format version {header['format_version']}; this release reads {_FORMAT_VERSION}, update it"
            )
        with torch.device(device):
            model = MammoClipClassifier(
                _create(header["architecture"], header["n_class"]),
                architecture=header["architecture"],
                static_padding={name: (p[0], p[1], p[2], p[3]) for name, p in header["static_padding"].items()},
                source={
                    "kind": "saved_classifier",
                    **_origin([source]),
                    "metadata": header["metadata"],
                    "trained_from": header["source"],
                },
            )
    except (KeyError, TypeError, IndexError, AttributeError, json.JSONDecodeError) as error:
        raise CheckpointFormatError(
            f"{path} has a damaged header at {config.name if config else _HEADER_KEY}: {type(error).__name__}: {error}"
        ) from error
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    check_keys(state_dict, expected, where=str(path), what=f"a {header['architecture']} classifier")
    model.load_state_dict(state_dict)
    return model


def classifier_weights(path: Path) -> Path:
    """The file that holds the weights of a classifier."""
    return path / CLASSIFIER_FILES[1] if path.is_dir() else path


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
        model = MammoClipClassifier(_create(variant.architecture, n_class), architecture=variant.architecture)
    _to_timm_names(model, file, variant)
    _check_head(file, model, variant)
    return variant.name, variant.architecture, n_class


def _read_mammo_clip(*sources: Source) -> MammoClipClassifier:
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
        _create(variant.architecture, n_class),
        architecture=variant.architecture,
        static_padding=variant.static_padding,
        source={
            "kind": "classifier" if last.head else "pretraining",
            "variant": variant.name,
            **_origin(sources),
        },
    )
    state_dict = _to_timm_names(model, encoders[-1], variant)
    _check_head(last, model, variant)
    model.load_state_dict(state_dict | {f"classifier.{name}": tensor for name, tensor in last.head.items()})
    return model


def _check_head(file: MammoClipFile, model: MammoClipClassifier, variant: _Variant) -> None:
    if file.head:
        shapes = {"weight": (model.n_class, model.num_features), "bias": (model.n_class,)}
        check_keys(file.head, shapes, where=str(file.path), what=f"a classifier for EfficientNet {variant.name}")


def _origin(sources: Sequence[Source]) -> dict[str, Any]:
    """The part of `source` that says which files were read: plain JSON."""
    origin: dict[str, Any] = {
        "files": [source.name for source in sources],
        "sha256": [sha256_of_file(classifier_weights(source.path)) for source in sources],
    }
    if any(source.repo for source in sources):
        origin["hub"] = [source.hub_record() for source in sources]
    return origin


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


def _original_names(model: MammoClipClassifier) -> dict[str, str]:
    """timm's parameter names -> the original encoder's: blocks.1.0.conv_pw.weight -> _blocks.3._expand_conv.weight."""
    modules = dict(_OUTER_NAMES)
    for number, (path, block) in enumerate(_blocks(model.blocks)):
        names = _EXPANDING_BLOCK_NAMES if hasattr(block, "conv_pwl") else _PLAIN_BLOCK_NAMES
        modules |= {f"{path}.{timm_name}": f"_blocks.{number}.{original}" for timm_name, original in names.items()}
    originals = {}
    for name in model.state_dict():
        module, _, leaf = name.rpartition(".")
        if module in modules and leaf != _COUNTER:
            originals[name] = f"{modules[module]}.{leaf}"
    return originals


def _blocks(blocks: nn.Sequential) -> list[tuple[str, nn.Module]]:
    """(module path, block) of every block in order; timm groups them by stage."""
    return [
        (f"blocks.{stage_name}.{name}", block)
        for stage_name, stage in blocks.named_children()
        for name, block in stage.named_children()
    ]
