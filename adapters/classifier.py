"""What training and studies need of a network: a protocol, whatever the network is."""

__all__ = ["Classifier", "encoder_state", "head_of", "library_of"]

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from typing_extensions import Self

from mammosae_plugin.adapters.preprocessing import Preprocessing
from mammosae_plugin.shapes import Images


@runtime_checkable
class Classifier(Protocol):
    """An image network with a linear head, or without one, and with a preprocessing of its own.

    `MammoClipClassifier` and `BackboneClassifier` are such; `save_classifier` writes any, `load_classifier` reads it.

    Attributes:
        source: where the weights come from, in plain JSON.
        preprocessing: how images become its input.
    """

    source: dict[str, Any]
    preprocessing: Preprocessing

    @property
    def network(self) -> nn.Module:
        """The torch module: hook points are named by its module paths, and its state dict is what is saved."""

    @property
    def architecture(self) -> str:
        """Its name in the library that it is of."""

    @property
    def n_class(self) -> int:
        """Outputs of the head; 0 where there is none."""

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) of the only images that it takes; None where any size will do."""

    @property
    def head_path(self) -> str:
        """Module path in `network` of the linear head, or of what stands in its place."""

    @property
    def final_module(self) -> str:
        """Module path in `network` of the last map, or patch tokens, that the head's input depends on."""

    def __call__(self, images: Images) -> torch.Tensor:
        """Images (B, 3, H, W) -> logits (B, n_class), or what a head would read."""

    def fingerprint(self, *, with_head: bool = True) -> str:
        """SHA-256 that changes with what decides the logits, or without the head with what decides what it reads."""

    def features(self, images: Images) -> torch.Tensor:
        """What the head reads: images (B, 3, H, W) -> (B, d)."""

    def with_head(self, n_class: int) -> Self:
        """A copy with a fresh linear head, drawn from torch's global random state."""

    def regularise(self, *, dropout: float, drop_connect: float) -> None:
        """Put dropout before the head and stochastic depth into the network, for training; not into its state dict."""

    def description(self) -> dict[str, Any]:
        """What the network is but its weights, in plain JSON: from it and the weights `load_classifier` makes it."""


def library_of(said: Mapping[str, Any], source: Mapping[str, Any]) -> str:
    """Whose architecture a network is: a library's name, "function", or "mammo_clip" of the files of Mammo-CLIP.

    Args:
        said: its description, or the header of its file; empty where only its source is known.
        source: where its weights come from.
    """
    if "kind" in said:
        return str(said.get("library", said["kind"]))
    while isinstance(source.get("trained_from"), Mapping):
        source = source["trained_from"]
    kind = source.get("kind")
    return "timm" if kind == "random" else str(kind) if kind in _LIBRARIES else "mammo_clip"


_LIBRARIES = ("timm", "torchvision", "transformers", "open_clip", "function")


def head_of(classifier: Classifier) -> nn.Linear | None:
    """The linear head; None where there is none."""
    head = classifier.network.get_submodule(classifier.head_path)
    return head if isinstance(head, nn.Linear) else None


def encoder_state(classifier: Classifier) -> dict[str, torch.Tensor]:
    """The state dict of the network without its head."""
    head = f"{classifier.head_path}."
    return {name: tensor for name, tensor in classifier.network.state_dict().items() if not name.startswith(head)}
