"""Names of hook points: numbered parts by number, and networks whose modules bear the wrapper's own names."""

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers_backbones import FAMILIES, TorchCNN
from monai.networks.nets import UNet
from pytorch_lightning import LightningModule
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.analysis.hooked_sae_transformer import get_deep_attr
from sae_lens.saes.sae import SAEMetadata
from torch import nn
from transformer_lens.hook_points import HookPoint
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.hook_names import PREFIX, hook_name_of, module_path
from mammosae_plugin.adapters.layers import describe_layers
from mammosae_plugin.errors import InputError


def build_sae(model: HookedVisionModel, hook_name: str) -> StandardSAE:
    """A random SAE for a hook point, far from reconstructing; its metadata says the name as it is given."""
    width = model.hook_shapes[model.resolve_hook_name(hook_name)][-1]
    sae = StandardSAE(StandardSAEConfig(d_in=width, d_sae=24, metadata=SAEMetadata(hook_name=hook_name)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return sae


class Lightning(LightningModule):
    """A training framework's module around a network."""

    def __init__(self) -> None:
        super().__init__()
        self.model = TorchCNN()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, 2)."""
        return self.model(images)


class Named(nn.Module):
    """Parts that bear other names of the wrapper, one of them its prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.grid, self.hooked, self.close, self.fc = (
            nn.Conv2d(3, 8, 4, 4),
            nn.Conv2d(8, 6, 3),
            TorchCNN(),
            nn.Linear(6, 2),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, 2)."""
        return self.fc(self.hooked(self.grid(images)).mean((2, 3))) + self.close(images)


def dinov3() -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return DINOv3ViTModel(DINOv3ViTConfig(**sizes, image_size=32, patch_size=8))


def monai_unet() -> nn.Module:
    return UNet(spatial_dims=2, in_channels=3, out_channels=2, channels=(4, 8, 12), strides=(2, 2))


COLLIDING: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "transformers' DINOv3": (dinov3, ["model.layer.0", "model.layer.1"]),
    "MONAI's UNet": (monai_unet, ["model.0", "model.1.submodule.0"]),
    "a LightningModule": (Lightning, ["model.middle", "model.top"]),
    "a module called model": (lambda: nn.ModuleDict(), ["model.middle", "model.top"]),
    "other names": (Named, ["grid", "hooked", "close.middle"]),
}


def build(family: str) -> tuple[nn.Module, list[str]]:
    torch.manual_seed(0)
    make, paths = COLLIDING[family]
    if family == "a module called model":

        class Wrapped(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = TorchCNN()

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return self.model(images)

        return Wrapped().eval(), paths
    return make().eval(), paths


def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def main_tensor(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.last_hidden_state


@pytest.mark.parametrize("family", COLLIDING)
def test_modules_that_bear_the_wrappers_names_are_hooked_under_a_prefix(family: str) -> None:
    network, paths = build(family)
    with torch.no_grad():
        expected = main_tensor(network(images()))
        outputs: dict[str, torch.Tensor] = {}
        for path in paths:
            network.get_submodule(path).register_forward_hook(
                lambda _module, _args, output, path=path: outputs.update({path: output})
            )
        model = HookedVisionModel(network, paths, example_input=images()[:1])
        assert list(model.hook_shapes) == [f"{PREFIX}.{path}.hook_out" for path in paths]
        output, cache = model.run_with_cache(images())
        assert torch.equal(main_tensor(output), expected)
        for path in paths:
            name = f"{PREFIX}.{path}.hook_out"
            for spelling in (path, f"{path}.hook_out", name, f"{PREFIX}.{path}"):
                assert model.resolve_hook_name(spelling) == name
            assert torch.equal(model.hook_layouts[name].show(outputs[path], (32, 32)), cache[name])
            assert isinstance(get_deep_attr(model, name), HookPoint)
        assert list(model.state_dict()) == [f"model.{name}" for name in network.state_dict()]

        sae = build_sae(model, paths[0])
        spliced = main_tensor(model.run_with_saes(images(), saes=sae))
        assert (spliced - expected).abs().max() > 1e-4
        exact, cache = model.run_with_cache_with_saes(images(), saes=sae, use_error_term=True)
        torch.testing.assert_close(main_tensor(exact), expected, rtol=1e-4, atol=1e-5)
        assert f"{PREFIX}.{paths[0]}.hook_out.hook_sae_acts_post" in cache

        clone = copy.deepcopy(model)
        clone.add_sae(build_sae(clone, paths[0]))
        torch.testing.assert_close(main_tensor(clone(images())), spliced)
        assert torch.equal(main_tensor(model(images())), expected)
        model.close()
    assert torch.equal(main_tensor(network(images())), expected)


def test_colliding_layers_are_listed_and_taken_by_default() -> None:
    network, _ = build("other names")
    names = [layer.hook_name for layer in describe_layers(network, image_size=(32, 32))]
    assert {f"{PREFIX}.grid.hook_out", f"{PREFIX}.hooked.hook_out"} <= set(names)
    with HookedVisionModel(network, example_input=images()[:1]) as model:
        assert set(model.hook_shapes) == set(names)


def test_the_network_runs_on_from_a_hook_point_under_the_prefix() -> None:
    network, _ = build("a LightningModule")
    with HookedVisionModel(network, ["model.middle", "model.top"], example_input=images()[:1]) as model:
        rest = model.rest_from("model.middle", (32, 32))
        assert rest.reaches_head
        assert model.head_path == "model.fc"
        assert model.final_hook == f"{PREFIX}.model.top.hook_out"
        with torch.no_grad():
            torch.testing.assert_close(rest(model.read(images(), "model.middle").raw), model(images()))


@pytest.mark.skipif(importlib.util.find_spec("nnsight") is None, reason="the extra [nnsight] is absent")
def test_the_prefix_is_part_of_the_path_in_nnsight() -> None:
    network, paths = build("MONAI's UNet")
    with HookedVisionModel(network, paths, example_input=images()[:1]) as model, torch.no_grad():
        _, cache = model.run_with_cache(images())
        n = model.nnsight()
        with n.trace(images()):
            value = n.hooked.model[0].hook_out.output.save()
    assert torch.equal(value, cache["hooked.model.0.hook_out"])


def test_the_list_of_the_wrappers_own_names_is_whole() -> None:
    """Otherwise a network's module of that name would take the wrapper's own attribute away."""
    model = HookedVisionModel(build("a LightningModule")[0], ["model.top"], example_input=images()[:1])
    own = {
        name for name in dir(model) if name not in dir(nn.Module) and name not in model._modules and name[:2] != "__"
    }
    assert {name for name in own if not hook_name_of(name).startswith(f"{PREFIX}.")} == set()


def test_ordinary_paths_keep_their_names() -> None:
    for path in ("bn2", "blocks.3", "_blocks.3.model", "layer4", "features.0", "0", "encoder.hooked"):
        assert hook_name_of(path) == f"{path}.hook_out"
        assert module_path(f"{path}.hook_out") == path
    assert hook_name_of("model.layer.0") == f"{PREFIX}.model.layer.0.hook_out"
    assert module_path(f"{PREFIX}.model.layer.0.hook_out") == "model.layer.0"


# -- numbered parts ----------------------------------------------------------------------------------------------------


def test_numbered_parts_are_had_by_number_as_upstream_does() -> None:
    network, _, inner, last = FAMILIES["vit"]()
    model = HookedVisionModel(network, ["blocks[1]", last, "norm"])
    assert list(model.hook_shapes) == ["blocks.1.hook_out", "blocks.2.hook_out", "norm.hook_out"]
    assert inner == "blocks.1"
    assert model.blocks[1].hook_out is model.hook_dict["blocks.1.hook_out"]
    assert [part.hook_out.name for part in model.blocks] == ["blocks.1.hook_out", "blocks.2.hook_out"]
    for name in ("blocks.1", "blocks[1]", "blocks[1].hook_out", "blocks.1.hook_out"):
        assert model.resolve_hook_name(name) == "blocks.1.hook_out"
    model.add_sae(build_sae(model, "blocks[1].hook_out"))
    assert model.resolve_hook_name("blocks[1].hook_sae_acts_post") == "blocks.1.hook_out.hook_sae_acts_post"
    assert get_deep_attr(model, "blocks.1.hook_out.hook_sae_acts_post") is model.blocks[1].hook_out.hook_sae_acts_post
    for number in (0, -1):
        with pytest.raises(IndexError, match="hook points are in 1, 2"):
            model.blocks[number]
    with pytest.raises(InputError, match=r"no hook point 'blocks\[7\]'"):
        model.resolve_hook_name("blocks[7]")


def test_a_sequence_is_subscripted_at_its_root() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    model = HookedVisionModel(network, ["0", "2"], example_input=images()[:1])
    assert get_deep_attr(model, "2.hook_out") is model[2].hook_out
    assert model.hook_shapes["2.hook_out"] == (6, 6, 4)
    with pytest.raises(IndexError, match="hook points are in 0, 2"):
        model[1]
