"""One contract for every family of backbones: the columns of the table in docs/adapters/backbones.md."""

import copy
import dataclasses
import pickle
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import timm
import torch
from helpers_backbones import FAMILIES
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from torch import nn

from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.layers import describe_layers, layers_table
from mammosae_plugin.errors import InputError

N_PREFIX = {"vit": 1, "vit_registers": 5}


class Case(NamedTuple):
    family: str
    network: nn.Module
    plain: nn.Module  # a copy that is never wrapped
    hooked: HookedVisionModel
    images: torch.Tensor
    inner: str
    final: str


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    network, size, inner, final = FAMILIES[request.param]()
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(5))
    plain = copy.deepcopy(network.requires_grad_(False))
    with HookedVisionModel(network, [inner, final], example_input=images[:1]) as hooked:
        yield Case(request.param, network, plain, hooked, images, inner, final)


def output_of(network: nn.Module, path: str, images: torch.Tensor) -> torch.Tensor:
    """What a module of an unwrapped network gives."""
    outputs: list[torch.Tensor] = []
    handle = network.get_submodule(path).register_forward_hook(lambda _module, _args, output: outputs.append(output))
    network(images)
    handle.remove()
    return outputs[0].detach()


def shown(case: Case, path: str, images: torch.Tensor) -> torch.Tensor:
    """What the hook point should show: the slow way, from the family's own layout."""
    output = output_of(case.plain, path, images)
    if output.dim() == 3:
        patches = output[:, N_PREFIX[case.family] :]
        side = round(patches.shape[1] ** 0.5)
        return torch.stack([patches[:, row * side : (row + 1) * side] for row in range(side)], dim=1)
    return output if case.family == "swin" else torch.movedim(output, 1, -1)


def with_value(case: Case, path: str, images: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The unwrapped network's output when a module's patches or map are replaced, by a hook written out by hand."""

    def replace(_module: nn.Module, _args: object, output: torch.Tensor) -> torch.Tensor:
        if output.dim() == 3:
            changed = output.clone()
            changed[:, N_PREFIX[case.family] :] = value.reshape(len(value), -1, value.shape[-1])
            return changed
        return value if case.family == "swin" else torch.movedim(value, -1, 1)

    handle = case.plain.get_submodule(path).register_forward_hook(replace)
    result: torch.Tensor = case.plain(images)
    handle.remove()
    return result


def random_sae(hooked: HookedVisionModel, path: str, *, seed: int = 0) -> StandardSAE:
    d_in = hooked.hook_shapes[hooked.resolve_hook_name(path)][-1]
    metadata = SAEMetadata(hook_name=f"{path}.hook_out", layout="channels_last")
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=24, apply_b_dec_to_input=True, metadata=metadata))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / d_in**0.5)
    return sae


# -- the table's columns -----------------------------------------------------------------------------------------------


def test_wrapping_leaves_the_logits_bit_identical_and_closing_leaves_no_hook(case: Case) -> None:
    assert torch.equal(case.hooked(case.images), case.plain(case.images))
    again = copy.deepcopy(case.plain)
    before = {path: len(module._forward_hooks) for path, module in again.named_modules()}
    HookedVisionModel(again, [case.inner], example_input=case.images[:1]).close()
    assert {path: len(module._forward_hooks) for path, module in again.named_modules()} == before
    assert not any(module._forward_pre_hooks for module in again.modules())


def test_the_cache_holds_the_modules_output_channels_last(case: Case) -> None:
    logits, cache = case.hooked.run_with_cache(case.images)
    assert torch.equal(logits, case.plain(case.images))
    for path in (case.inner, case.final):
        value = cache[f"{path}.hook_out"]
        assert value.shape[1:] == case.hooked.hook_shapes[f"{path}.hook_out"]
        assert torch.equal(value, shown(case, path, case.images))


@pytest.mark.parametrize("place", ["inner", "final"])
def test_an_sae_splices_as_written_out_by_hand_and_with_its_error_term_changes_nothing(case: Case, place: str) -> None:
    path = getattr(case, place)
    sae = random_sae(case.hooked, path)
    value = shown(case, path, case.images)
    expected = with_value(case, path, case.images, sae.decode(sae.encode(value)))
    plain = case.plain(case.images)
    assert torch.allclose(case.hooked.run_with_saes(case.images, saes=sae), expected, atol=1e-5)
    reads_patches = (case.family, place) not in {("vit", "final"), ("vit_registers", "final")}
    assert ((expected - plain).abs().max() > 1e-3) == reads_patches  # of the last block the head reads the class token
    no_op = case.hooked.run_with_saes(case.images, saes=sae, use_error_term=True)
    assert torch.allclose(no_op, plain, atol=1e-5)


def test_saes_at_two_layers_at_once_act_one_after_the_other(case: Case) -> None:
    first, second = random_sae(case.hooked, case.inner), random_sae(case.hooked, case.final, seed=1)
    _, cache = case.hooked.run_with_cache_with_saes(case.images, saes=[first, second])
    alone = case.hooked.run_with_cache_with_saes(case.images, saes=[first])[1]
    assert torch.equal(cache[f"{case.final}.hook_out.hook_sae_input"], alone[f"{case.final}.hook_out"])
    assert not torch.equal(alone[f"{case.final}.hook_out"], shown(case, case.final, case.images))
    assert case.hooked.acts_to_saes == {}


def test_the_rest_of_the_network_continues_from_the_layers_output(case: Case) -> None:
    size = (case.images.shape[-2], case.images.shape[-1])
    for path in (case.inner, case.final):
        rest, reading = case.hooked.rest_from(path, size), case.hooked.read(case.images, path)
        assert torch.allclose(rest(reading.raw), case.plain(case.images), atol=1e-5)
        assert torch.allclose(rest.head_input(reading.raw[1:]), reading.head_input[1:], atol=1e-5)
        edited = 2 * reading.value + 1
        expected = with_value(case, path, case.images, edited)
        assert torch.allclose(rest(rest.replace(reading.raw, edited)), expected, atol=1e-4)
        twice = torch.cat([reading.raw, reading.raw])
        assert torch.allclose(rest(twice)[3:], case.plain(case.images), atol=1e-5)  # another batch size


def test_heatmaps_lie_where_the_image_was_changed(case: Case) -> None:
    """A change of the image in one corner changes the layer most in that corner's cells: the grid is not transposed."""
    height, width = case.images.shape[-2:]
    changed = case.images.clone()
    changed[:, :, : height // 8, -width // 8 :] += 3.0
    hook_name = f"{case.inner}.hook_out"
    difference = (
        case.hooked.run_with_cache(changed)[1][hook_name] - case.hooked.run_with_cache(case.images)[1][hook_name]
    )
    grid = case.hooked.grid(case.inner, (height, width))
    assert difference.shape[1:3] == grid
    strength = difference.norm(dim=-1).mean(0)
    row, column = divmod(int(strength.argmax()), grid[1])
    assert row < grid[0] / 3 and column >= grid[1] * 2 / 3


# -- layouts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vit", "vit_registers"])
def test_class_and_register_tokens_are_shown_when_they_are_kept(family: str) -> None:
    network, size, inner, _ = FAMILIES[family]()
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = output_of(network, inner, images)
    with HookedVisionModel(network, [inner], example_input=images, prefix_tokens="keep") as model, torch.no_grad():
        _, cache = model.run_with_cache(images)
        assert torch.equal(cache[f"{inner}.hook_out"], expected)
        sae = random_sae(model, inner)
        n = N_PREFIX[family]
        everywhere = model.run_with_cache_with_saes(images, saes=sae)[1]
        without = model.run_with_cache_with_saes(images, saes=sae, exclude_special_tokens=True)[1]
        after = f"{inner}.hook_out.hook_sae_output"
        assert not torch.allclose(everywhere[after][:, :n], expected[:, :n])
        assert torch.equal(without[after][:, :n], expected[:, :n])
        assert torch.allclose(without[after][:, n:], everywhere[after][:, n:], atol=1e-5)
    with HookedVisionModel(network, [inner], example_input=images) as model, torch.no_grad():
        patches_only = model.run_with_saes(images, saes=sae)
    with HookedVisionModel(network, [inner], example_input=images, prefix_tokens="keep") as model, torch.no_grad():
        excluded = model.run_with_saes(images, saes=sae, exclude_special_tokens=True)
        assert torch.allclose(excluded, patches_only, atol=1e-5)
        with pytest.raises(InputError, match="token numbers"):
            model.add_sae(sae, exclude_special_tokens=[0])


def test_a_transformer_built_for_other_sizes_knows_its_grid() -> None:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    network = VisionTransformer(
        img_size=64, patch_size=16, embed_dim=32, depth=1, num_heads=2, num_classes=1, dynamic_img_size=True
    ).eval()
    with HookedVisionModel(network, ["blocks.0"]) as model, torch.no_grad():
        assert model.hook_shapes["blocks.0.hook_out"] == (4, 4, 32)
        _, cache = model.run_with_cache(torch.randn(1, 3, 32, 128))  # 2 x 8 positions, as many as 4 x 4
        assert cache["blocks.0.hook_out"].shape == (1, 2, 8, 32)
        assert model.grid("blocks.0", (32, 128)) == (2, 8)


class TransposedMap(nn.Module):
    """Gives a map that is channels last although nothing says so, and takes one image size only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix, self.head = nn.Conv2d(3, 8, 4, stride=8), nn.Identity(), nn.Linear(8, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[-2:] != (64, 64):
            raise ValueError("64 x 64 only")
        return self.head(self.mix(self.conv(images).permute(0, 2, 3, 1)).mean((1, 2)))


def test_a_layout_that_cannot_be_recognised_is_asked_for() -> None:
    network = TransposedMap().eval()  # 8 x 8 positions of 8 channels: every axis could be the channels
    with pytest.raises(InputError, match=r"layouts=\{'mix': 'channels_first'\}"):
        HookedVisionModel(network, ["mix"])
    with HookedVisionModel(network, ["mix", "conv"], layouts={"mix": "channels_last"}) as model:
        _, cache = model.run_with_cache(torch.randn(1, 3, 64, 64))
        assert torch.equal(cache["mix.hook_out"], cache["conv.hook_out"])  # a convolution's is channels first


def test_tokens_that_do_not_lie_in_rows_have_no_grid() -> None:
    """Hiera keeps its tokens unit by unit until the last stage, so that their number alone would lie about places."""
    torch.manual_seed(0)
    network = timm.create_model(
        "hiera_tiny_224", img_size=(64, 64), embed_dim=16, num_heads=1, stages=(1, 1, 1, 1), num_classes=1
    )
    model = HookedVisionModel(network.eval(), example_input=torch.zeros(1, 3, 64, 64))
    assert model.hook_shapes["blocks.0.hook_out"] == (256, 16)  # a sequence, although it would fill 16 x 16
    with pytest.raises(InputError, match="no grid of positions"):
        model.grid("blocks.0", (64, 64))


def test_patches_before_the_class_token_is_added_are_all_shown() -> None:
    network, size, _, _ = FAMILIES["vit_registers"]()
    with HookedVisionModel(network, ["patch_embed", "blocks.0"], example_input=torch.zeros(1, 3, *size)) as model:
        assert model.hook_shapes["patch_embed.hook_out"] == model.hook_shapes["blocks.0.hook_out"] == (4, 4, 32)


def test_images_given_by_keyword_set_the_grid_too() -> None:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    network = VisionTransformer(
        img_size=64, patch_size=16, embed_dim=32, depth=1, num_heads=2, num_classes=1, dynamic_img_size=True
    ).eval()
    with HookedVisionModel(network, ["blocks.0"]) as model:
        model(torch.randn(1, 3, 32, 128))
        assert model.run_with_cache(x=torch.randn(1, 3, 128, 32))[1]["blocks.0.hook_out"].shape == (1, 8, 2, 32)


class Rows(nn.Module):
    """A map (B, 8, 4, 4) that is channels last, of images of 64 x 32 only: as many channels as columns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.turned, self.head = nn.Conv2d(3, 4, 8, stride=8), nn.Identity(), nn.Linear(128, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.turned(self.conv(images).permute(0, 2, 3, 1)).flatten(1))


def test_the_proportions_of_the_image_tell_the_axes_of_a_map() -> None:
    model = HookedVisionModel(Rows().eval(), ["turned"], example_input=torch.zeros(1, 3, 64, 32))
    assert not model.hook_layouts["turned.hook_out"].channels_first
    assert model.grid("turned", (64, 32)) == (8, 4)


@pytest.mark.parametrize("size", [(96, 96), (64, 64), (33, 70), (128, 96)])
def test_images_of_any_size_can_be_probed(size: tuple[int, int]) -> None:
    network, _, _, final = FAMILIES["torch_cnn"]()
    with HookedVisionModel(network, [final], example_input=torch.zeros(1, 3, *size)) as model:
        assert model.hook_layouts["top.hook_out"].channels_first


def test_images_of_one_channel_work_throughout() -> None:
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", in_chans=1, num_classes=2).eval()
    images = torch.randn(2, 1, 64, 96)
    with HookedVisionModel(network, ["layer2"]) as model, torch.no_grad():
        assert model.grid("layer2", (64, 96)) == (8, 12)
        rest = model.rest_from("layer2", (64, 96))
        assert torch.allclose(rest(model.read(images, "layer2").raw), model(images), atol=1e-5)
    assert describe_layers(network, image_size=(64, 96))[0].shape[:2] == (32, 48)


def test_a_wrapper_that_is_lost_is_found_through_the_model() -> None:
    network, size, inner, _ = FAMILIES["torch_cnn"]()
    images = torch.zeros(1, 3, *size)
    HookedVisionModel(network, [inner], example_input=images)
    twin = copy.deepcopy(network)
    for model in (network, twin):
        with pytest.raises(InputError, match="wrapper_of"):
            HookedVisionModel(model, [inner], example_input=images)
        wrapper = HookedVisionModel.wrapper_of(model)
        assert wrapper is not None
        wrapper.close()
        assert HookedVisionModel.wrapper_of(model) is None
        HookedVisionModel(model, [inner], example_input=images).close()


def test_what_is_set_on_the_model_object_stays() -> None:
    network, size, _, _ = FAMILIES["resnet"]()
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    plain = network.forward_features
    network.forward_features = lambda x: plain(x) * 0 + 1
    expected = network(images)
    HookedVisionModel(network, ["layer2"], example_input=images).close()
    assert torch.equal(network(images), expected)


def test_things_that_are_no_network_sae_or_layout_are_refused_by_name() -> None:
    network, size, inner, _ = FAMILIES["torch_cnn"]()
    images = torch.zeros(1, 3, *size)
    with pytest.raises(InputError, match="a str and no torch.nn.Module"):
        HookedVisionModel("resnet18")
    with pytest.raises(InputError, match=r"layouts\['middle'\] is 'nchw'"):
        HookedVisionModel(network, [inner], example_input=images, layouts={"middle": "nchw"})
    with pytest.raises(InputError, match="'top', which is not among"):
        HookedVisionModel(network, [inner], example_input=images, layouts={"top": "channels_last"})
    model = HookedVisionModel(network, [inner], example_input=images)
    with pytest.raises(InputError, match="a Linear is no SAE"):
        model.add_sae(nn.Linear(3, 3))
    sae = random_sae(model, inner)
    model.close()
    with pytest.raises(RuntimeError, match="closed"):
        model.add_sae(sae)
    with pytest.raises(InputError, match="wrap its .model"):
        HookedVisionModel(model)


def test_windows_are_no_images_and_cannot_be_hooked() -> None:
    network, size, _, _ = FAMILIES["swin"]()
    with pytest.raises(InputError, match="no axis for the images"):
        HookedVisionModel(network, ["layers.0.blocks.0.attn"], example_input=torch.zeros(1, 3, *size))


def test_an_overwritten_output_is_refused_or_cloned() -> None:
    network, size, _, _ = FAMILIES["resnet"]()
    images = torch.randn(1, 3, *size)
    logits = network(images)
    with pytest.raises(InputError, match="overwrites its output in place.*overwritten='clone'"):
        HookedVisionModel(network, ["bn1"])
    with HookedVisionModel(network, ["bn1"], overwritten="clone") as model:
        out, cache = model.run_with_cache(images)
        assert torch.equal(out, logits)
        assert cache["bn1.hook_out"].min() < 0  # the ReLU behind it has not touched it


# -- the rest of a network ---------------------------------------------------------------------------------------------


def test_a_point_with_a_shortcut_around_it_is_refused() -> None:
    network, size, _, _ = FAMILIES["resnet"]()
    model = HookedVisionModel(network, ["layer2.0.conv1"], example_input=torch.zeros(1, 3, *size))
    with pytest.raises(InputError, match="shortcut or another branch; choose 'layer2.0'"):
        model.rest_from("layer2.0.conv1", size)


@dataclasses.dataclass
class Output:
    logits: torch.Tensor


class WithShortcut(nn.Module):
    """Gives an object of its own, whose logits do not come from the layer alone."""

    def __init__(self) -> None:
        super().__init__()
        self.network = FAMILIES["torch_cnn"]()[0]

    def forward(self, images: torch.Tensor) -> Output:
        return Output(self.network(images) + images.mean())


def test_outputs_inside_an_object_are_compared_too() -> None:
    model = HookedVisionModel(WithShortcut().eval(), ["network.top"])
    with pytest.raises(InputError, match="cannot be continued"):
        model.rest_from("network.top", (64, 64))


def test_the_rest_of_a_network_runs_nothing_before_its_start_and_keeps_hooks_behind_it() -> None:
    network, size, _, _ = FAMILIES["torch_cnn"]()
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with HookedVisionModel(network, ["stem", "middle", "top"], example_input=images) as model, torch.no_grad():
        rest, raw = model.rest_from("middle", size), model.read(images, "middle").raw
        ran: list[str] = []
        for path in ("stem.0", "middle.0", "top.0"):
            network.get_submodule(path).register_forward_hook(lambda *_args, path=path: ran.append(path))
        model.add_sae(random_sae(model, "stem"))  # before the start: would turn NaN into NaN if it ran
        sae = random_sae(model, "top")
        expected = model.run_with_saes(images, saes=sae)
        model.reset_saes()
        ran.clear()
        model.add_sae(random_sae(model, "stem"))
        model.add_sae(sae)
        assert torch.isfinite(rest(raw)).all() and ran == ["top.0"]
        model.reset_saes("stem")
        with model.saes(sae):
            behind = rest(raw)
        assert not torch.equal(behind, expected)  # that one had the SAE at the stem too
        assert torch.allclose(behind, model.run_with_saes(images, saes=sae), atol=1e-5)
        assert all("forward" not in vars(module) for module in network.modules())


def test_gradients_reach_the_layers_output_through_the_rest_of_the_network() -> None:
    network, size, inner, _ = FAMILIES["convnext"]()
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with HookedVisionModel(network, [inner], example_input=images) as model:
        whole = model.read(images, inner).value
        whole.retain_grad()
        logits = model(images)
        seen: list[torch.Tensor] = []
        with model.hooks(fwd_hooks=[(inner, lambda value, hook: seen.append(value))]):
            logits = model(images)
        (expected,) = torch.autograd.grad(logits[0, 1], seen[0])
        raw = model.read(images, inner).raw.detach().requires_grad_()
        (found,) = torch.autograd.grad(model.rest_from(inner, size)(raw)[0, 1], raw)
        assert torch.allclose(found.permute(0, 2, 3, 1), expected, rtol=1e-4, atol=1e-7)


# -- life --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["efficientnet", "vit"])
def test_a_wrapper_with_an_sae_survives_deepcopy_and_pickle(family: str) -> None:
    network, size, inner, _ = FAMILIES[family]()
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    model = HookedVisionModel(network, [inner], example_input=images)
    plain = model(images)
    model.add_sae(random_sae(model, inner))
    with_sae = model(images)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(images), with_sae)
        twin.reset_saes()
        assert torch.equal(twin(images), plain)  # the twin's SAE is its own
    assert torch.equal(model(images), with_sae)
    model.close()


def test_an_attached_sae_follows_the_model_to_another_device_and_keeps_its_dtype() -> None:
    network, size, inner, _ = FAMILIES["torch_cnn"]()
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with HookedVisionModel(network, [inner], example_input=images) as model, torch.no_grad():
        sae = random_sae(model, inner)
        model.add_sae(sae, use_error_term=True)
        model.to(torch.bfloat16)
        logits, cache = model.run_with_cache(images.to(torch.bfloat16))
        assert logits.dtype == torch.bfloat16
        assert sae.W_enc.dtype == cache["middle.hook_out.hook_sae_acts_post"].dtype == torch.float32
        model.to(device="meta")
        assert sae.W_enc.device.type == "meta"
        assert model(images.to("meta", torch.bfloat16)).shape == (1, 2)


def test_the_unwrapped_model_compiles_and_a_compiled_one_is_refused() -> None:
    network, size, inner, _ = FAMILIES["torch_cnn"]()
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = network(images)
    HookedVisionModel(network, [inner], example_input=images).close()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(images), expected, atol=1e-5)
    with pytest.raises(InputError, match=r"compiled.*wrap the model itself, and compile it then"):
        HookedVisionModel(compiled, [inner])


def test_logits_have_gradients_with_respect_to_latents() -> None:
    network, size, inner, _ = FAMILIES["vit"]()
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with HookedVisionModel(network, [inner], example_input=images) as model:
        sae = random_sae(model, inner)
        name = f"{inner}.hook_out.hook_sae_acts_post"
        latents: list[torch.Tensor] = []

        def nudge(step: float) -> torch.Tensor:
            def hook(value: torch.Tensor, hook: object) -> torch.Tensor:
                latents.append(value)
                moved = value.clone()
                moved[0, 1, 2, 3] += step
                return moved

            return model.run_with_hooks_with_saes(images.double(), saes=sae, fwd_hooks=[(name, hook)])[0, 0]

        model.to(torch.float64)
        sae.to(torch.float64)
        logit = nudge(0.0)
        (gradient,) = torch.autograd.grad(logit, latents[0])
        slope = float((nudge(1e-4) - nudge(-1e-4)).detach()) / 2e-4
        assert gradient[0, 1, 2, 3] == pytest.approx(slope, rel=1e-4) and abs(slope) > 1e-6


# -- lists of layers ---------------------------------------------------------------------------------------------------


def test_the_default_layers_of_torchvision_models_are_their_stages() -> None:
    import torchvision

    torch.manual_seed(0)
    images = torch.zeros(1, 3, 96, 64)
    resnet = HookedVisionModel(torchvision.models.resnet18(weights=None), example_input=images)
    assert [name.removesuffix(".hook_out") for name in resnet.hook_shapes][-4:] == [f"layer{n}" for n in (1, 2, 3, 4)]
    assert resnet.final_hook == "layer4.hook_out" and resnet.head_path == "fc"
    swin = HookedVisionModel(torchvision.models.SwinTransformer([4, 4], 12, [1, 1], [1, 1], [4, 4], num_classes=1))
    assert swin.hook_shapes["features.1.hook_out"] == (16, 16, 12)
    assert swin.final_hook == "permute.hook_out"


def test_the_final_hook_is_the_last_map_and_no_earlier_one() -> None:
    network, size, _, _ = FAMILIES["torch_cnn"]()
    images = torch.zeros(1, 3, *size)
    for paths, final in ((["stem", "middle"], None), (["middle", "top"], "top"), (["top.2"], "top.2")):
        with HookedVisionModel(network, paths, example_input=images) as model:
            assert model.final_hook == (None if final is None else f"{final}.hook_out")


def test_the_layers_table_names_hook_points_aliases_shapes_and_problems() -> None:
    from mammosae_plugin.adapters import new_classifier

    text = layers_table(describe_layers(new_classifier("tinynet_e", 1, seed=0), image_size=(96, 64)))
    lines = text.splitlines()
    assert lines[1].split() == ["blocks.0.0.hook_out", "layer_0", "map", "48", "x", "32", "x", "8", "2"]
    assert lines[-1].split()[0] == "bn2.hook_out" and "3 x 2 x 1280" in lines[-1]
    network, size, _, _ = FAMILIES["resnet"]()
    every = {layer.hook_name: layer for layer in describe_layers(network, image_size=size, every=True)}
    assert "overwritten in place" in every["bn1.hook_out"].problem
    assert every["layer2.hook_out"].shape == (12, 8, 128) and every["layer2.hook_out"].stride == (8, 8)
    assert every["fc.hook_out"].kind == "vector"
