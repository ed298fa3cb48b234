"""Image encoders that others published as a file of weights: MedCLIP's two, GLoRIA's, and Mirai's exported one.

Each is a known architecture of a library under names of its own. The text side of the first three is not read.
"""

__all__ = ["load_published_encoder", "published_encoder", "PublishedEncoder"]

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mammosae_plugin.adapters.architectures import new_backbone_classifier
from mammosae_plugin.adapters.backbone_classifier import BackboneClassifier
from mammosae_plugin.adapters.checkpoints import (
    CheckpointFormatError,
    check_keys,
    is_safetensors,
    read_torch_checkpoint,
    unwrapped,
    unwrapped_key,
    without_prefix,
)
from mammosae_plugin.adapters.plain_weights import entry_with_weights, with_counters
from mammosae_plugin.adapters.sources import Source, origin_of
from mammosae_plugin.adapters.timm_classifier import new_timm_classifier

State = dict[str, torch.Tensor]

_MEDCLIP = {"mean": 0.5862785803043838, "std": 0.27950088968644304, "size": (224, 224)}
_GLORIA = {"mean": 0.5, "std": 0.5, "size": (224, 224)}
_MIRAI = {"mean": 7047.99 / 65535, "std": 12005.5 / 65535}  # of 16-bit pixels, as its configuration has them
_MIRAI_SIZE = (2048, 1664)
_SWIN_TINY = {"model_type": "swin", "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}


@dataclass(frozen=True)
class PublishedEncoder:
    """A form in which an image encoder was published.

    Attributes:
        kind: what `inspect_checkpoint` calls it.
        title: what it is, for messages.
        telling: a pattern of the name of a tensor that tells it, without wrappers' prefixes.
        prefix: what stands before the names of the encoder's tensors, a pattern.
        make: the network with random weights, of the encoder's own tensors.
        renamed: its tensors under the names of the network that `make` gives.
        projection: the name of the layer into the space that images and texts share.
    """

    kind: str
    title: str
    telling: str
    prefix: str
    make: Callable[[State], BackboneClassifier]
    renamed: Callable[[State, BackboneClassifier], State]
    projection: str = ""

    def encoder_in(self, weights: Mapping[str, Any]) -> State:
        """The encoder's tensors, under its own names."""
        found = (re.match(self.prefix, name) for name in weights)
        return {one.string[one.end() :]: weights[one.string] for one in found if one is not None}

    def projection_in(self, weights: Mapping[str, Any], where: str) -> nn.Linear | None:
        """The layer from the pooled vector (B, d) into the shared space; None where the form has none.

        Raises:
            CheckpointFormatError: its weight is missing.
        """
        if not self.projection:
            return None
        weight, bias = (weights.get(f"{self.projection}.{part}") for part in ("weight", "bias"))
        if not isinstance(weight, torch.Tensor) or weight.dim() != 2:
            raise CheckpointFormatError(f"{where} has no {self.projection}.weight with 2 axes")
        layer = nn.Linear(weight.shape[1], len(weight), bias=bias is not None)
        layer.load_state_dict({"weight": weight.float(), **({} if bias is None else {"bias": bias.float()})})
        return layer


def _resnet(preprocessing: Mapping[str, Any], **arguments: Any) -> Callable[[State], BackboneClassifier]:
    def make(state: State) -> BackboneClassifier:
        architecture = "resnet50" if "layer1.0.conv3.weight" in state else "resnet18"
        return new_backbone_classifier(
            "torchvision", architecture, 0, weights="random", arguments=arguments, preprocessing=preprocessing
        )

    return make


def _without_head(state: State, made: BackboneClassifier) -> State:
    inside = "backbone." if made.arguments.get("upsample_to") else ""
    return {f"{inside}{name}": tensor for name, tensor in state.items() if not name.startswith("fc.")}


def _swin(_state: State) -> BackboneClassifier:
    name = "microsoft/swin-tiny-patch4-window7-224"
    arguments = {"config": _SWIN_TINY}
    return new_backbone_classifier(
        "transformers", name, 0, weights="random", arguments=arguments, preprocessing=_MEDCLIP
    )


def _of_swin(state: State, made: BackboneClassifier) -> State:
    """The tensors as transformers names them today: it knows itself what they were called."""
    own: Any = made.network.get_submodule("backbone.swin")
    read, said = type(own).from_pretrained(None, config=own.config, state_dict=dict(state), output_loading_info=True)
    lacking, extra = sorted(said["missing_keys"]), sorted(said["unexpected_keys"])
    renamed = {f"backbone.swin.{name}": tensor for name, tensor in read.state_dict().items()}
    for name in lacking:
        del renamed[f"backbone.swin.{name}"]
    return renamed | {name: state[name] for name in extra if name in state}


def _mirai(_state: State) -> BackboneClassifier:
    pooled = {"global_pool": "max"}
    made = new_timm_classifier("resnet18", 0, weights="random", arguments=pooled, preprocessing=_MIRAI)
    made.preprocessing = replace(made.preprocessing, size=_MIRAI_SIZE)
    return made


def _of_mirai(state: State, _made: BackboneClassifier) -> State:
    """The body's tensors: blocks are called layer1_0; pools, risk factors and hazards behind it are left out."""
    body = {name.removeprefix("downsampler."): tensor for name, tensor in state.items()}
    body = {re.sub(r"^layer(\d)_(\d+)\.", r"layer\1.\2.", name): tensor for name, tensor in body.items()}
    return {name: tensor for name, tensor in body.items() if re.match(r"(conv1|bn1|layer\d)\.", name)}


PUBLISHED = (
    PublishedEncoder(
        "medclip resnet",
        "MedCLIP's ResNet-50",
        r"vision_model\.model\.layer1\.0\.",
        r"vision_model\.model\.",
        _resnet(_MEDCLIP),
        _without_head,
        "vision_model.model.fc",
    ),
    PublishedEncoder(
        "medclip swin",
        "MedCLIP's Swin",
        r"vision_model\.model\.encoder\.layers\.0\.",
        r"vision_model\.model\.",
        _swin,
        _of_swin,
        "vision_model.projection_head",
    ),
    PublishedEncoder(
        "gloria",
        "GLoRIA's ResNet",
        r"gloria\.img_encoder\.model\.layer1\.0\.",
        r"gloria\.img_encoder\.model\.",
        _resnet(_GLORIA, upsample_to=[299, 299]),
        _without_head,
        "gloria.img_encoder.global_embedder",
    ),
    PublishedEncoder(
        "mirai",
        "Mirai's ResNet-18",
        r"(image_encoder\.)?_model\.layer1_0\.conv1\.",
        r"(image_encoder\.)?_model\.",
        _mirai,
        _of_mirai,
    ),
)


def published_encoder(content: Any, where: str = "") -> tuple[PublishedEncoder, dict[str, Any]] | None:
    """Which published form a file has, and its weights without wrappers' prefixes; None where it has none.

    Args:
        content: what `read_torch_checkpoint` gave.
        where: the file, for messages.
    """
    if not isinstance(content, Mapping):
        return None
    inner = entry_with_weights(content)
    names = [unwrapped_key(str(name)) for name in inner]
    for form in PUBLISHED:
        for wrapper in ("", "model."):  # the latter of a Lightning module that has the network
            if any(re.match(re.escape(wrapper) + form.telling, name) for name in names):
                weights = unwrapped(inner, where=where)
                return form, without_prefix(weights, wrapper)
    return None


def load_published_encoder(source: Source) -> tuple[BackboneClassifier, nn.Linear | None] | None:
    """The encoder in a file of a published form and its projection, where it has one; None of another file.

    Raises:
        CheckpointFormatError: tensors are missing, unexpected or of another shape.
        UnsafeCheckpointError: the file asks for code; none of it was run.
    """
    path = Path(source.path)
    if path.is_dir() or is_safetensors(path):
        return None
    found = published_encoder(read_torch_checkpoint(path), str(path))
    if found is None:
        return None
    form, weights = found
    state = form.encoder_in(weights)
    made = form.make(state)
    own = made.network.state_dict()
    renamed = with_counters(form.renamed(state, made), own)
    check_keys(renamed, {name: tensor.shape for name, tensor in own.items()}, where=str(path), what=form.title)
    integers = [name for name, tensor in renamed.items() if tensor.is_floating_point() != own[name].is_floating_point()]
    if integers:
        raise CheckpointFormatError(
            f"{path} holds {integers[0]} as {renamed[integers[0]].dtype}; save {form.title} as floats"
        )
    made.network.load_state_dict(renamed)
    made.network.eval()
    made.source = {"kind": form.kind.split()[0], "variant": made.architecture, **origin_of([source])}
    return made, form.projection_in(weights, str(path))
