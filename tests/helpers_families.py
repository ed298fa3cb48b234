"""A tiny network with random weights of every family that docs/compatibility.md has a row for.

`FAMILIES[name]()` gives the network in evaluation mode. They are small enough to be made and run in a moment; all
weights are seeded and large enough that a change in one patch is seen.
"""

__all__ = ["FAMILIES", "made"]

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

_VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_IMAGE = {"image_size": 64, "patch_size": 16}


def _transformers(model: str, config: str, **settings: Any) -> nn.Module:
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**settings))


def _timm(name: str, **settings: Any) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, **settings)


def _torchvision(name: str, **settings: Any) -> nn.Module:
    from torchvision import models

    return getattr(models, name)(weights=None, **settings)


def _torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(64, 16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3)


def _open_clip(kind: str) -> nn.Module:
    from open_clip.model import CLIP

    vision: dict[str, Any] = {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
    if kind == "resnet":
        vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    if kind == "timm":
        vision = {"image_size": 64, "timm_model_name": "resnet10t", "timm_pool": "", "timm_proj": "linear"}
    text = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 2, "layers": 1}
    return CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text).visual


def _monai(name: str, **settings: Any) -> nn.Module:
    import monai.networks.nets

    return getattr(monai.networks.nets, name)(spatial_dims=2, **settings)


def _xrv(**settings: Any) -> nn.Module:
    from torchxrayvision.models import DenseNet

    return DenseNet(**settings)


class _Wrapped(nn.Module):
    """A training framework's module around a network of timm."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _timm("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=16, num_heads=2, num_classes=0)
        self.head = nn.Linear(16, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, 3)."""
        return self.head(self.net(images))


class _Blocks(nn.Module):
    """Blocks that give tuples (values, nothing), and a dict as output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.blocks = nn.ModuleList([_TupleBlock(8) for _ in range(2)])
        self.norm = nn.BatchNorm2d(8)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) -> {"features": (B, 8, h, w), "pooled": (B, 8)}."""
        values = self.stem(images)
        for block in self.blocks:
            values = block(values)[0]
        values = self.norm(values)
        return {"features": values, "pooled": values.mean((2, 3))}


class _TupleBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, None]:
        return values + self.conv(values).relu(), None


_CLIP = {**_VIT, **_IMAGE}
_DINOV2 = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
_STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "image_size": 64}
_SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
_PYRAMID = {
    "image_size": 64,
    "hidden_sizes": [8, 16, 16, 16],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 1, 1],
}
_BASIC = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}

FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "timm ViT": partial(
        _timm,
        "vit_tiny_patch16_224",
        img_size=64,
        depth=2,
        embed_dim=16,
        num_heads=2,
        num_classes=3,
        dynamic_img_size=True,
    ),
    "timm ViT without head": partial(
        _timm, "vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=16, num_heads=2, num_classes=0
    ),
    "timm ViT with registers": partial(
        _timm, "vit_small_patch14_reg4_dinov2", img_size=56, depth=2, embed_dim=16, num_heads=2, num_classes=0
    ),
    "timm ResNet": partial(_timm, "resnet10t", num_classes=3),
    "timm EfficientNet": partial(_timm, "tinynet_e", num_classes=0),
    "timm ConvNeXt": partial(_timm, "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=0),
    "timm Swin": partial(
        _timm,
        "swin_tiny_patch4_window7_224",
        img_size=64,
        window_size=4,
        embed_dim=8,
        depths=(2, 2),
        num_heads=(2, 2),
        num_classes=0,
    ),
    "timm Hiera": partial(_timm, "hiera_tiny_224", img_size=(224, 224), embed_dim=8, num_heads=1, stages=(1, 1, 1, 1)),
    "transformers ViTModel": partial(_transformers, "ViTModel", "ViTConfig", **_VIT, **_IMAGE),
    "transformers ViTForImageClassification": partial(
        _transformers, "ViTForImageClassification", "ViTConfig", **_VIT, **_IMAGE, num_labels=3
    ),
    "transformers DeiTModel": partial(_transformers, "DeiTModel", "DeiTConfig", **_VIT, **_IMAGE),
    "transformers BeitModel": partial(_transformers, "BeitModel", "BeitConfig", **_VIT, **_IMAGE),
    "transformers Dinov2Model": partial(_transformers, "Dinov2Model", "Dinov2Config", **_DINOV2),
    "transformers Dinov2ForImageClassification": partial(
        _transformers,
        "Dinov2ForImageClassification",
        "Dinov2Config",
        **_DINOV2,
        num_labels=3,
    ),
    "transformers Dinov2WithRegistersModel": partial(
        _transformers,
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        **_DINOV2,
        num_register_tokens=4,
    ),
    "transformers DINOv3ViTModel": partial(
        _transformers, "DINOv3ViTModel", "DINOv3ViTConfig", **_VIT, **_IMAGE, num_register_tokens=4
    ),
    "transformers DINOv3ConvNextModel": partial(
        _transformers, "DINOv3ConvNextModel", "DINOv3ConvNextConfig", **_STAGES
    ),
    "transformers SiglipVisionModel": partial(_transformers, "SiglipVisionModel", "SiglipVisionConfig", **_CLIP),
    "transformers CLIPVisionModel": partial(_transformers, "CLIPVisionModel", "CLIPVisionConfig", **_CLIP),
    "transformers CLIPVisionModelWithProjection": partial(
        _transformers, "CLIPVisionModelWithProjection", "CLIPVisionConfig", **_CLIP, projection_dim=8
    ),
    "transformers ConvNextV2Model": partial(_transformers, "ConvNextV2Model", "ConvNextV2Config", **_STAGES),
    "transformers SwinModel": partial(_transformers, "SwinModel", "SwinConfig", **_SWIN),
    "transformers Swinv2Model": partial(_transformers, "Swinv2Model", "Swinv2Config", **_SWIN),
    "transformers ResNetModel": partial(_transformers, "ResNetModel", "ResNetConfig", **_BASIC, layer_type="basic"),
    "transformers PvtModel": partial(_transformers, "PvtModel", "PvtConfig", **_PYRAMID),
    "transformers PvtV2Model": partial(_transformers, "PvtV2Model", "PvtV2Config", **_PYRAMID),
    "transformers PoolFormerModel": partial(
        _transformers, "PoolFormerModel", "PoolFormerConfig", hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1]
    ),
    "transformers LevitModel": partial(
        _transformers,
        "LevitModel",
        "LevitConfig",
        image_size=64,
        hidden_sizes=[16, 24, 32],
        depths=[1, 1, 1],
        num_attention_heads=[1, 1, 1],
        key_dim=[8, 8, 8],
    ),
    "open_clip ViT .visual": partial(_open_clip, "vit"),
    "open_clip ResNet .visual": partial(_open_clip, "resnet"),
    "open_clip timm .visual": partial(_open_clip, "timm"),
    "torchvision ResNet": partial(_torchvision, "resnet18", num_classes=3),
    "torchvision DenseNet": lambda: _torchvision_densenet(),
    "torchvision ViT": _torchvision_vit,
    "torchvision Swin": lambda: _torchvision_swin(),
    "MONAI DenseNet": partial(
        _monai, "DenseNet", in_channels=1, out_channels=3, init_features=8, growth_rate=4, block_config=(2, 2)
    ),
    "MONAI ViT": partial(
        _monai,
        "ViT",
        in_channels=1,
        img_size=(64, 64),
        patch_size=(16, 16),
        hidden_size=24,
        mlp_dim=32,
        num_layers=2,
        num_heads=2,
        classification=True,
        num_classes=3,
    ),
    "MONAI UNet": partial(_monai, "UNet", in_channels=1, out_channels=2, channels=(4, 8, 16), strides=(2, 2)),
    "MONAI SwinUNETR": partial(
        _monai, "SwinUNETR", in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)
    ),
    "torchxrayvision DenseNet": partial(
        _xrv, num_classes=3, in_channels=1, growth_rate=4, block_config=(2, 2), num_init_features=8
    ),
    "a module around a network": _Wrapped,
    "blocks that give tuples": _Blocks,
}


def _torchvision_densenet() -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=3)


def _torchvision_swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=3)


def made(family: str) -> nn.Module:
    """The family's network, in evaluation mode, always with the same weights."""
    torch.manual_seed(0)
    network = FAMILIES[family]()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1:
                scale = (1.5 / parameter[0].numel()) ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            elif "gamma" in name or "lambda" in name or "scale" in name:  # layer scale, which starts near 0
                parameter.fill_(0.5)
            elif name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
    return network.eval()
