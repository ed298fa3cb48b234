"""captum's layer attributions on the latents of a hooked model are those of autograd, in double precision."""

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers_backbones import FAMILIES
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata

from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.captum import channels_first
from mammosae_plugin.errors import InputError

needs_captum = pytest.mark.skipif(importlib.util.find_spec("captum") is None, reason="the extra [gradcam] is absent")
D_SAE = 24
ACTS = "hook_sae_acts_post"


def build(family: str, place: str = "last", **arguments: Any) -> tuple[HookedVisionModel, torch.Tensor, str]:
    """A hooked model in double precision with an SAE without error term, two images, and the name of its latents."""
    network, size, inner, last = FAMILIES[family]()
    path = inner if place == "inner" else last
    model = HookedVisionModel(network.double(), [path], **arguments)
    width = model.hook_shapes[f"{path}.hook_out"][-1]
    generator = torch.Generator().manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=width, d_sae=D_SAE, dtype="float64", metadata=SAEMetadata(hook_name=path)))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.add_sae(sae)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)).double()
    return model, images, f"{path}.hook_out.{ACTS}"


def logit_of(model: HookedVisionModel, images: torch.Tensor, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The first logit of each image as a function of the values at a hook point."""
    return lambda value: model.run_with_hooks(images, fwd_hooks=[(name, lambda _, hook: value)])[:, 0]


def value_and_gradient(model: HookedVisionModel, images: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        value = model.run_with_cache(images)[1][name].clone()
    value.requires_grad_()
    (gradient,) = torch.autograd.grad(logit_of(model, images, name)(value).sum(), value)
    return value.detach(), gradient


@needs_captum
@pytest.mark.parametrize(
    ("family", "place", "arguments"),
    [
        ("torch_cnn", "inner", {}),
        ("convnext", "last", {}),
        ("vit", "inner", {}),
        ("vit", "last", {"prefix_tokens": "keep"}),
    ],
)
def test_grad_cam_of_latents_is_its_formula(family: str, place: str, arguments: dict[str, Any]) -> None:
    from captum.attr import LayerGradCam

    model, images, name = build(family, place, **arguments)
    value, gradient = value_and_gradient(model, images, name)
    positions = tuple(range(1, value.dim() - 1))
    per_latent = gradient.mean(positions, keepdim=True) * value
    before = model(images)
    with channels_first(model, name) as layer:
        cam = LayerGradCam(model, layer)
        torch.testing.assert_close(cam.attribute(images, target=0).squeeze(1), per_latent.sum(-1))
        each = cam.attribute(images, target=0, attr_dim_summation=False)
        assert torch.equal(model(images), before)
    torch.testing.assert_close(each.movedim(1, -1), per_latent)
    assert value.abs().mean() > 0.05, "of activations of ordinary size"
    assert per_latent.abs().max() > 1e-5
    point = model.get_submodule(name)
    wrong = LayerGradCam(model, point).attribute(images, target=0)
    assert wrong.shape[1] == 1, "captum has changed: it sums over the second axis, whatever that is"
    assert wrong.shape[2:] != each.shape[2:], "at the hook point itself captum averages over latents"


@needs_captum
@pytest.mark.parametrize("place", ["inner", "last"])
def test_integrated_gradients_of_latents_are_complete(place: str) -> None:
    from captum.attr import IntegratedGradients, LayerIntegratedGradients

    model, images, name = build("torch_cnn", place)
    value, _ = value_and_gradient(model, images, name)
    black = torch.zeros_like(images)
    with torch.no_grad():
        logit, of_black, of_zero = model(images)[:, 0], model(black)[:, 0], logit_of(model, images, name)(0 * value)

    # captum's layer method goes from the latents of another image to those of this one.
    layer = LayerIntegratedGradients(model, model.get_submodule(name))
    found, delta = layer.attribute(images, black, target=0, n_steps=100, return_convergence_delta=True)
    assert found.shape == value.shape
    torch.testing.assert_close(found.flatten(1).sum(1), logit - of_black, rtol=1e-2, atol=1e-3)
    assert delta.abs().max() < 2e-3

    # From no latents at all: the same of the function behind them.
    def from_latents(latents: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return model.run_with_hooks(images, fwd_hooks=[(name, lambda _, hook: latents)])

    found = IntegratedGradients(from_latents).attribute(
        value, torch.zeros_like(value), target=0, additional_forward_args=images, n_steps=100
    )
    torch.testing.assert_close(found.flatten(1).sum(1), logit - of_zero, rtol=1e-2, atol=1e-3)
    assert (logit - of_zero).abs().min() > 0.01
    assert not found[value == 0].any()


@needs_captum
def test_with_the_error_term_the_layer_method_holds_the_images_error_fixed() -> None:
    from captum.attr import LayerIntegratedGradients

    model, images, name = build("torch_cnn")
    (sae,) = model.acts_to_saes.values()
    model.add_sae(sae, use_error_term=True)
    black = torch.zeros_like(images)
    with torch.no_grad():
        of_black = model.run_with_cache(black)[1][name]
        expected = (model(images)[:, 0] - logit_of(model, images, name)(of_black)).detach()
        otherwise = (model(images) - model(black))[:, 0]
    layer = LayerIntegratedGradients(model, model.get_submodule(name))
    found = layer.attribute(images, black, target=0, n_steps=100).flatten(1).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    assert (expected - otherwise).abs().max() > 0.01


def test_channels_first_leaves_the_model_as_it_was_and_refuses_what_hooks_refuse() -> None:
    model, images, name = build("torch_cnn")
    seen = []
    with torch.no_grad(), channels_first(model, "top.hook_sae_acts_post") as layer:
        layer.register_forward_hook(lambda _module, _args, output: seen.append(output))
        model(images)
        layer.register_forward_hook(lambda _module, _args, output: output * 0)
        silenced = model(images)
    with torch.no_grad():
        (sae,) = model.acts_to_saes.values()
        torch.testing.assert_close(silenced, model.model.fc(sae.b_dec).expand(2, 2))
        assert torch.equal(seen[0].movedim(1, -1), model.run_with_cache(images)[1][name])
    assert not model.get_submodule(name).has_hooks()
    with pytest.raises(InputError, match=r"use top\.hook_out\.hook_sae_input"), channels_first(model, "top"):
        pass
    with channels_first(model, "top.hook_out.hook_sae_input"), channels_first(model, "top.hook_out.hook_sae_output"):
        model(images)
    with pytest.raises(InputError, match="no hook point"), channels_first(model, "bottom"):
        pass
