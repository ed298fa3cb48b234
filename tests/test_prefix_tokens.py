"""Tokens in front of patches: counted by changing pixels, and asked for where that tells nothing."""

import pytest
import torch
import transformers
from helpers_families import made
from torch import nn

from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.hook_names import module_path
from mammosae_plugin.errors import InputError


class Overlapping(nn.Module):
    """Patches that overlap and attention without a norm in front of it; nothing says that three tokens lead."""

    def __init__(self, n_prefix: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 32, stride=16, padding=8)
        self.queries = nn.Parameter(torch.randn(1, n_prefix, 16))
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, 16)."""
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.queries.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.mean(1)


@pytest.mark.parametrize(
    ("family", "n"),
    [
        ("transformers DINOv3ViTModel", 5),
        ("transformers Dinov2WithRegistersModel", 5),
        ("transformers DeiTModel", 2),
        ("transformers SiglipVisionModel", 0),
        ("MONAI ViT", 1),
    ],
)
def test_a_wrong_number_is_refused_with_the_right_one(family, n):
    network = made(family)
    with HookedVisionModel(network) as model:
        assert {layout.n_prefix for layout in model.hook_layouts.values()} == {n}
        names = [module_path(name) for name in model.hook_shapes]
    with pytest.raises(InputError, match=f"shows that {n} tokens lead the patches") as refused:
        HookedVisionModel(network, names, n_prefix_tokens=n + 3)
    assert str(refused.value).endswith(f"give {n}, or nothing")
    with HookedVisionModel(network, names, n_prefix_tokens=n) as model:  # what it says
        assert {layout.n_prefix for layout in model.hook_layouts.values()} == {n}


def test_a_number_that_cannot_be_told_is_asked_for():
    torch.manual_seed(0)
    network = Overlapping(1).eval()
    with pytest.raises(InputError, match="cannot be told; give n_prefix_tokens") as refused:
        HookedVisionModel(network, ["blocks.0"])
    assert "'blocks.0'" in str(refused.value)
    with HookedVisionModel(network, ["blocks.0"], n_prefix_tokens=1) as model:  # what it says
        assert model.hook_shapes == {"blocks.0.hook_out": (4, 4, 16)}


def test_a_block_that_gives_a_tuple_is_hooked_at_its_first_tensor():
    network = made("blocks that give tuples")
    images = torch.randn(2, 3, 64, 64)
    with HookedVisionModel(network) as model, torch.no_grad():
        plain = model(images)["pooled"]
        raised = model.run_with_hooks(images, fwd_hooks=[("blocks.0", lambda value, hook: value + 1)])["pooled"]
        assert not torch.allclose(raised, plain)
        rest = model.rest_from("blocks.0", (64, 64))
        raw = model.read(images, "blocks.0").raw
        torch.testing.assert_close(rest(raw)["pooled"], plain)
        torch.testing.assert_close(rest(raw + 1)["pooled"], raised)


@pytest.mark.parametrize("share", [0.75, 0.0])
def test_patches_that_are_drawn_anew_in_every_pass_have_no_grid(share):
    settings = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTMAEConfig(**settings, image_size=64, patch_size=16, mask_ratio=share)
    with HookedVisionModel(transformers.ViTMAEModel(config).eval()) as model:
        for name in model.hook_dict:
            with pytest.raises(InputError, match="no grid of positions"):
                model.grid(name, (64, 64))
