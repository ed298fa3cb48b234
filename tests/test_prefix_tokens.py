"""Tokens in front of patches: counted by changing pixels, and asked for where that tells nothing."""

import pytest
import torch
import transformers
from helpers_families import made
from helpers_study import random_sae
from torch import nn

from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.hook_names import module_path
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import encode_latents


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


# -- tokens in another order, and networks that take no images ---------------------------------------------------------


def _hiera(size: int) -> nn.Module:
    config = transformers.HieraConfig(
        image_size=[size, size], embed_dim=16, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2]
    )
    return transformers.HieraModel(config)


class Shuffled(nn.Module):
    """Overlapping patches whose tokens are put into another order before the first block."""

    def __init__(self, ordered: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 16, stride=8, padding=4)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.ordered = ordered

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, 16)."""
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        if not self.ordered:
            tokens = tokens[:, torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(1))]
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.mean(1)


def _pvt(model: str, config: str) -> nn.Module:
    widths = {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 1, 1]}
    return getattr(transformers, model)(getattr(transformers, config)(image_size=64, **widths))


def _swin(model: str, config: str) -> nn.Module:
    settings = {"image_size": 64, "embed_dim": 12, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4}
    return getattr(transformers, model)(getattr(transformers, config)(**settings))


ORDERS = {  # network -> whether each of its default layers shows a grid
    "Hiera, 64": (lambda: _hiera(64), [False, False, False, True]),
    "Hiera, 96": (lambda: _hiera(96), [False, False, False, True]),
    "Hiera, 128": (lambda: _hiera(128), [False, False, False, True]),
    "shuffled": (Shuffled, [False, False]),
    "not shuffled": (lambda: Shuffled(ordered=True), [True, True]),
    "PVTv2": (lambda: _pvt("PvtV2Model", "PvtV2Config"), [True] * 5),
    "Swin": (lambda: _swin("SwinModel", "SwinConfig"), [True] * 3),
    "Donut": (lambda: _swin("DonutSwinModel", "DonutSwinConfig"), [True] * 2),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ORDERS)
@torch.no_grad()
def test_a_grid_is_shown_only_where_each_patch_changes_its_own_row(name, seed):
    make, expected = ORDERS[name]
    torch.manual_seed(seed)
    asked = seed == 1 or name == "not shuffled"
    with HookedVisionModel(make().eval(), n_prefix_tokens=0 if asked else None) as model:
        shows = [layout.shows_grid for layout in model.hook_layouts.values()]
        assert shows == expected
        for hook_name, layout in model.hook_layouts.items():
            if not layout.shows_grid:
                continue
            rows, columns = model.grid(hook_name, model.probe_size)
            (height, width), n = model.probe_size, rows * columns
            images = torch.randn(1, 3, height, width).repeat(1 + n, 1, 1, 1)
            for cell in range(n):
                top, left = cell // columns * height // rows, cell % columns * width // columns
                images[1 + cell, :, top : top + height // rows, left : left + width // columns] += 3
            value = model.run_with_cache(images, names_filter=[hook_name])[1][hook_name].flatten(1, 2)
            fields = (value[1:] - value[:1]).norm(dim=-1)
            place = (fields / fields.mean(0)).argmax(1)
            away = torch.stack(
                [place // columns - torch.arange(n) // columns, place % columns - torch.arange(n) % columns]
            )
            assert (away.abs().amax(0) <= 1).float().mean() > 0.9, hook_name  # where patches overlap, a neighbour may


def test_tokens_behind_the_patches_have_no_map_and_the_refusal_names_what_has(tmp_path):
    settings = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.YolosConfig(**settings, image_size=[64, 64], num_detection_tokens=5)
    network = transformers.YolosModel(config).eval()
    patches = "embeddings.patch_embeddings"
    images = torch.randn(2, 3, 64, 64)
    with HookedVisionModel(network, [patches, "encoder.layer.1"]) as model:
        assert model.hook_shapes["encoder.layer.1.hook_out"] == (1 + 16 + 5, 16)
        with pytest.raises(
            InputError, match="choose a hook point that does, such as embeddings.patch_embeddings"
        ) as no:
            encode_latents(model, random_sae(16, 8, hook_name="encoder.layer.1"), images, tmp_path / "a", heads={})
        assert "prefix_tokens" not in str(no.value)
        sae = random_sae(16, 8, hook_name=patches)  # what it says
        assert encode_latents(model, sae, images, tmp_path / "b", heads={}).grid == (4, 4)


class _Patches(nn.Module):
    """Siglip2 of images: it takes patches, row by row, their pixels' channels last."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, d)."""
        n, (rows, columns) = len(images), (images.shape[2] // 16, images.shape[3] // 16)
        patches = images.reshape(n, 3, rows, 16, columns, 16).permute(0, 2, 4, 3, 5, 1).reshape(n, rows * columns, -1)
        shapes = torch.tensor([[rows, columns]]).repeat(n, 1)
        return self.network(patches, torch.ones(n, rows * columns), shapes).pooler_output


def test_a_network_of_patches_is_hooked_in_a_module_that_makes_them():
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    network = transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**settings, num_patches=16)).eval()
    with pytest.raises(InputError, match="hook a module that makes them of images and calls it"):
        HookedVisionModel(network)
    with HookedVisionModel(_Patches(network)) as model:  # what it says
        assert {layout.grid for layout in model.hook_layouts.values()} == {(4, 4)}
        assert model.grid(list(model.hook_shapes)[0], (96, 64)) == (6, 4)
        images = torch.randn(1, 3, 96, 64).repeat(2, 1, 1, 1)
        images[1, :, 80:96, 16:32] += 3
        name = list(model.hook_shapes)[0]
        value = model.run_with_cache(images, names_filter=[name])[1][name]
    assert divmod(int((value[1] - value[0]).norm(dim=-1).argmax()), 4) == (5, 1)


def test_the_default_layers_of_a_pyramid_are_its_stages_and_the_number_it_asks_for_helps():
    settings = {"hidden_sizes": [16, 24, 32], "depths": [2, 2, 2], "num_attention_heads": [1, 1, 1]}
    torch.manual_seed(0)
    network = transformers.LevitModel(transformers.LevitConfig(image_size=128, key_dim=[8, 8, 8], **settings)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, (1.5 / parameter[0].numel()) ** 0.5)
    with pytest.raises(InputError, match=r"cannot be told; give n_prefix_tokens \(0 without any\)"):
        HookedVisionModel(network)
    with HookedVisionModel(network, n_prefix_tokens=0) as model:  # what it says
        assert list(model.hook_shapes) == [f"encoder.stages.{stage}.hook_out" for stage in range(3)]
        assert [layout.grid for layout in model.hook_layouts.values()] == [(4, 4), (2, 2), (2, 2)]
