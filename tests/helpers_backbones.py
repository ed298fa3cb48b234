"""Tiny backbones of every family with random weights, for tests over families.

`FAMILIES[name]()` gives (model in evaluation mode, image size (H, W), path of an inner module, path of the last module
whose output still has positions). All weights are seeded; batch norms know their inputs, so that no map is nearly zero.
"""

from collections.abc import Callable

import timm
import torch
from helpers_adapters import calibrated_classifier
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

Backbone = tuple[nn.Module, tuple[int, int], str, str]


class TorchCNN(nn.Module):
    """A plain network that knows nothing of timm: three convolutions with ReLU, average over positions, linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.top = nn.Sequential(nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, 2)."""
        features = self.top(self.middle(self.stem(images)))
        return self.fc(self.pool(features).flatten(1))


def five_outputs() -> nn.Module:
    """The same with five outputs."""
    torch.manual_seed(1)
    network = TorchCNN()
    network.fc = nn.Linear(16, 5)
    return _ready(network, (96, 64))


def _ready(model: nn.Module, image_size: tuple[int, int]) -> nn.Module:
    """Weights large enough to matter after the transformers' small initialisation, and batch norms that fit them."""
    generator = torch.Generator().manual_seed(2)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1.5 / fan_in) ** 0.5)
            elif name.endswith("gamma"):  # ConvNeXt's layer scale starts at 1e-6, which switches its blocks off
                parameter.fill_(0.5)
            elif name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
        for norm in norms:
            norm.momentum = 1.0
            norm.weight.fill_(1.0)  # timm's ResNets start the last one of every block at 0
        model.train()(torch.randn(8, 3, *image_size, generator=generator))
        for norm in norms:
            norm.momentum = 0.1
    return model.eval()


def _efficientnet() -> Backbone:
    return calibrated_classifier(1), (96, 64), "blocks.3.0", "bn2"


def _resnet() -> Backbone:
    torch.manual_seed(0)
    return _ready(timm.create_model("resnet10t", num_classes=2), (96, 64)), (96, 64), "layer2", "layer4"


def _convnext() -> Backbone:
    torch.manual_seed(0)
    model = timm.create_model("convnext_atto", num_classes=2, depths=(1, 1, 2, 1), dims=(16, 24, 32, 48))
    return _ready(model, (96, 64)), (96, 64), "stages.1", "stages.3"


def _swin() -> Backbone:
    torch.manual_seed(0)
    model = SwinTransformer(
        img_size=64, patch_size=4, window_size=4, embed_dim=16, depths=(2, 2, 2), num_heads=(2, 4, 8), num_classes=2
    )
    return _ready(model, (64, 64)), (64, 64), "layers.1", "norm"


def _vit(reg_tokens: int = 0) -> Backbone:
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=64, patch_size=16, embed_dim=32, depth=3, num_heads=2, num_classes=2, reg_tokens=reg_tokens
    )
    return _ready(model, (64, 64)), (64, 64), "blocks.1", "blocks.2"


def _torch_cnn() -> Backbone:
    torch.manual_seed(0)
    return _ready(TorchCNN(), (96, 64)), (96, 64), "middle", "top"


FAMILIES: dict[str, Callable[[], Backbone]] = {
    "efficientnet": _efficientnet,
    "resnet": _resnet,
    "convnext": _convnext,
    "swin": _swin,
    "vit": _vit,
    "vit_registers": lambda: _vit(reg_tokens=4),
    "torch_cnn": _torch_cnn,
}
