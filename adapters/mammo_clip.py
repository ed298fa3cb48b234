"""Mammo-CLIP's image encoder and classifiers as a timm EfficientNet, to float rounding.

Mammo-CLIP (Ghosh et al., MICCAI 2024; weights CC BY-NC-SA 4.0) trained its encoder with another EfficientNet
implementation than timm's. Two things differ: the names of the parameters, which `mammo_clip_files` translates, and the
padding of the convolutions with stride 2, which that implementation computes once for the variant's native resolution
(456 for B5, 260 for B2) and timm for the image at hand. At Mammo-CLIP's 1520 x 912 this shifts maps by a pixel and is
no detail: the final map of timm's own padding differs from the original's by more than its norm. Hence
`static_padding`.
"""

__all__ = ["blocks_of", "create_efficientnet", "MammoClipClassifier", "new_classifier", "Padding", "StaticPadConv2d"]

import copy
import difflib
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers.drop import DropPath
from torch import nn
from torch.nn import functional
from typing_extensions import Self

from mammosae_plugin.adapters.classifier import encoder_state
from mammosae_plugin.adapters.preprocessing import MAMMO_CLIP, Preprocessing
from mammosae_plugin.arguments import whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.provenance import tensors_fingerprint
from mammosae_plugin.shapes import FeatureMap, Images

Padding = tuple[int, int, int, int]
"""(left, right, top, bottom) in pixels of the convolution's input."""


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
        preprocessing: how images become its input.
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
        preprocessing: Preprocessing = MAMMO_CLIP,
    ):
        """Adopt the children of a timm EfficientNet, which must not be used afterwards.

        Args:
            network: what `timm.create_model` made.
            architecture: the name it was made by.
            static_padding: convolutions to pad by fixed amounts.
            source: goes into the attribute `source`.
            preprocessing: how images become its input.
        """
        super().__init__()
        self.preprocessing = preprocessing
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
        layers = [*(path for path, _ in blocks_of(self.blocks)), "bn2"]
        self.layer_aliases = {f"layer_{number}": path for number, path in enumerate(layers)}
        self.to(memory_format=torch.channels_last)

    @classmethod
    def described(cls, said: Mapping[str, Any], source: Mapping[str, Any]) -> Self:
        """The network of a `description`, with random weights."""
        preprocessing = Preprocessing.described(said["preprocessing"]) if "preprocessing" in said else MAMMO_CLIP
        return cls(
            create_efficientnet(said["architecture"], said["n_class"]),
            architecture=said["architecture"],
            static_padding={name: (p[0], p[1], p[2], p[3]) for name, p in said["static_padding"].items()},
            source=source,
            preprocessing=preprocessing,
        )

    def description(self) -> dict[str, Any]:
        """What the network is but its weights, in plain JSON."""
        own = self.preprocessing != MAMMO_CLIP
        return {
            "architecture": self.architecture,
            "n_class": self.n_class,
            "static_padding": {name: list(padding) for name, padding in self.static_padding.items()},
            **({"preprocessing": self.preprocessing.describe()} if own else {}),
        }

    @property
    def network(self) -> nn.Module:
        """The torch module, which is this."""
        return self

    @property
    def image_size(self) -> tuple[int, int] | None:
        """None: it takes images of any size."""
        return None

    @property
    def head_path(self) -> str:
        """Module path of the linear head."""
        return "classifier"

    @property
    def final_module(self) -> str:
        """Module path of the final map."""
        return list(self.layer_aliases.values())[-1]

    def fingerprint(self, *, with_head: bool = True) -> str:
        """SHA-256 of the weights, or of those that decide what the head reads."""
        return tensors_fingerprint(self.state_dict() if with_head else encoder_state(self))

    def features(self, images: Images) -> torch.Tensor:
        """What the head reads: images (B, 3, H, W) -> (B, C)."""
        return self.forward_features(images).mean(dim=(2, 3))

    def with_head(self, n_class: int) -> Self:
        """A copy with a fresh linear head of `n_class` outputs, drawn from torch's global random state."""
        model = copy.deepcopy(self)
        model.classifier = nn.Linear(self.num_features, n_class)
        model.n_class = n_class
        return model

    def regularise(self, *, dropout: float, drop_connect: float) -> None:
        """Put dropout and drop-connect into the network, for training; neither is in the state dict.

        Drop-connect falls in a line from the last block to 0 at the first (Huang et al., ECCV 2016, as in
        EfficientNet).
        """
        self.drop_rate = dropout
        blocks = [block for _, block in blocks_of(self.blocks)]
        for number, block in enumerate(blocks):
            if drop_connect and hasattr(block, "drop_path"):
                block.drop_path = DropPath(drop_connect * number / len(blocks))

    def forward_features(self, images: Images) -> FeatureMap:
        """The final map, after conv_head, batch norm and activation: images (B, 3, H, W) -> (B, C, h, w)."""
        x = images.contiguous(memory_format=torch.channels_last)
        x = self.bn1(self.conv_stem(x))
        return self.bn2(self.conv_head(self.blocks(x)))  # type: ignore[no-any-return]

    def forward_head(self, feature_map: FeatureMap) -> torch.Tensor:
        """Global average pool, dropout (in training only), linear layer.

        The final map (B, C, h, w) -> logits (B, n_class), or pooled features (B, C) without head.
        """
        pooled = functional.dropout(self.global_pool(feature_map), self.drop_rate, training=self.training)
        return self.classifier(pooled)  # type: ignore[no-any-return]

    def forward(self, images: Images) -> torch.Tensor:
        """Images (B, 3, H, W) -> logits (B, n_class), or pooled features (B, C) without head."""
        return self.forward_head(self.forward_features(images))

    def _pad_statically(self, path: str, padding: Padding) -> None:
        conv = self.get_submodule(path)
        if not isinstance(conv, nn.Conv2d):
            raise InputError(f"static padding for {path!r}, which is a {type(conv).__name__} and no convolution")
        parent, _, leaf = path.rpartition(".")
        setattr(self.get_submodule(parent), leaf, StaticPadConv2d(conv, padding))
        self.static_padding[path] = padding


def new_classifier(architecture: str, n_class: int, *, seed: int) -> MammoClipClassifier:
    """A classifier with random weights, for phantoms and tests; it pads as timm does.

    Args:
        architecture: timm's name of an EfficientNet, such as "tinynet_e" or "efficientnet_b0".
        n_class: outputs of the head, 0 for none.
        seed: the same seed, the same weights; the global random state is left alone.

    Raises:
        InputError: timm has no such model, or it is no EfficientNet; or `n_class` is negative.
    """
    n_class, seed = whole(n_class, "n_class", least=0), whole(seed, "seed", least=0)
    network = create_efficientnet(architecture, n_class, seed=seed)
    return MammoClipClassifier(network, architecture=architecture, source={"kind": "random", "seed": seed}).eval()


def create_efficientnet(architecture: str, n_class: int, *, seed: int = 0) -> nn.Module:
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


def blocks_of(blocks: nn.Sequential) -> list[tuple[str, nn.Module]]:
    """(module path, block) of every block in order; timm groups them by stage."""
    return [
        (f"blocks.{stage_name}.{name}", block)
        for stage_name, stage in blocks.named_children()
        for name, block in stage.named_children()
    ]
