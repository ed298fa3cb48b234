"""nnsight over a hookable model: latents are read and edited inside a trace, and a stale wrapping says so."""

import copy
import importlib.util
import pickle
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_adapters import calibrated_classifier
from helpers_backbones import FAMILIES
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata

from mammosae_plugin.adapters import HookedVisionModel, StaleWrappingError
from mammosae_plugin.errors import InputError

needs_nnsight = pytest.mark.skipif(importlib.util.find_spec("nnsight") is None, reason="the extra [nnsight] is absent")
CHANGED = "upstream changed: "
D_SAE = 24


def build_sae(model: HookedVisionModel, hook_name: str) -> StandardSAE:
    """A random SAE that fits the hook point; its latents are partly active."""
    name = model.resolve_hook_name(hook_name)
    metadata = SAEMetadata(hook_name=name)
    sae = StandardSAE(StandardSAEConfig(d_in=model.hook_shapes[name][-1], d_sae=D_SAE, metadata=metadata))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return sae


def build(family: str = "torch_cnn", **arguments: Any) -> tuple[HookedVisionModel, torch.Tensor, str, str]:
    """A hooked model, two images for it, and the paths of its two hook points."""
    model, size, inner, last = FAMILIES[family]()
    hooked = HookedVisionModel(model, [inner, last], example_input=torch.zeros(1, 3, *size), **arguments)
    return hooked, torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)), inner, last


def halve_even(acts: torch.Tensor, hook: Any = None) -> torch.Tensor:
    return torch.where(torch.arange(D_SAE) % 2 == 0, acts / 2, acts)


# -- reading and editing -----------------------------------------------------------------------------------------------


@needs_nnsight
@pytest.mark.parametrize("place", ["inner", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_latents_are_read_and_edited_inside_a_trace_as_by_a_hook(family: str, place: str) -> None:
    # Of a ViT's last block only the class token reaches the logits: there it is shown too.
    hooked, images, inner, last = build(family, prefix_tokens="drop" if place == "inner" else "keep")
    path = inner if place == "inner" else last
    hooked.add_sae(build_sae(hooked, path), use_error_term=True)
    acts = f"{path}.hook_out.hook_sae_acts_post"
    n = hooked.nnsight()
    with torch.no_grad():
        plain, cache = hooked.run_with_cache(images)
        expected = hooked.run_with_hooks(images, fwd_hooks=[(acts, halve_even)])
        point = n.get(acts)
        with n.trace(images):
            latents = point.output.save()
            point.output = halve_even(point.output)
            edited = n.output.save()
        with n.trace(images):
            untouched = n.output.save()
    assert torch.equal(latents, cache[acts])
    assert torch.equal(edited, expected)
    assert torch.equal(untouched, plain)
    assert (edited - plain).abs().max() > 1e-3


@needs_nnsight
def test_writing_in_place_reaches_the_output() -> None:
    hooked, images, *_ = build()
    hooked.add_sae(build_sae(hooked, "middle"))
    n = hooked.nnsight()
    with torch.no_grad():
        expected = hooked.run_with_hooks(
            images, fwd_hooks=[("middle.hook_out.hook_sae_acts_post", lambda acts, hook: acts * (torch.arange(24) > 9))]
        )
        with n.trace(images):
            n.middle.hook_out.hook_sae_acts_post.output[..., :10] = 0
            logits = n.output.save()
        assert not torch.allclose(logits, hooked(images), atol=1e-3)
    torch.testing.assert_close(logits, expected)


@needs_nnsight
def test_several_saes_are_edited_in_one_trace_in_the_order_of_the_network() -> None:
    hooked, images, *_ = build()
    hooked.add_sae(build_sae(hooked, "middle"), use_error_term=True)
    hooked.add_sae(build_sae(hooked, "top"))
    names = [f"{path}.hook_out.hook_sae_acts_post" for path in ("middle", "top")]
    n = hooked.nnsight()
    with torch.no_grad():
        expected = hooked.run_with_hooks(images, fwd_hooks=[(name, halve_even) for name in names])
        with n.trace(images):
            n.middle.hook_out.hook_sae_acts_post.output = halve_even(n.middle.hook_out.hook_sae_acts_post.output)
            n.top.hook_out.hook_sae_acts_post.output = halve_even(n.top.hook_out.hook_sae_acts_post.output)
            logits = n.output.save()
    assert torch.equal(logits, expected)


@needs_nnsight
def test_hook_points_are_channels_last_and_the_network_inside_keeps_its_layout() -> None:
    hooked, images, *_ = build()
    sae = build_sae(hooked, "middle")
    with torch.no_grad():
        feature_map = hooked.model.middle(hooked.model.stem(images))
        n = hooked.nnsight()
        with n.trace(images):
            before = n.model.stem.output.save()
            at_point = n.middle.hook_out.output.save()
        hooked.add_sae(sae)
        n = hooked.nnsight()
        with n.trace(images):
            reconstruction = n.middle.hook_out.output.save()
        expected = sae(feature_map.permute(0, 2, 3, 1))
    assert before.shape[1] == 8
    assert torch.equal(at_point, feature_map.permute(0, 2, 3, 1))
    torch.testing.assert_close(reconstruction, expected)


@needs_nnsight
def test_gradients_of_latents_are_those_of_autograd() -> None:
    hooked, images, *_ = build()
    hooked.add_sae(build_sae(hooked, "middle"), use_error_term=True)
    kept: dict[str, torch.Tensor] = {}

    def keep(acts: torch.Tensor, hook: Any) -> None:
        acts.retain_grad()
        kept["acts"] = acts

    hooked.run_with_hooks(images, fwd_hooks=[("middle.hook_out.hook_sae_acts_post", keep)])[:, 1].sum().backward()
    n = hooked.nnsight()
    with n.trace(images):
        latents = n.middle.hook_out.hook_sae_acts_post.output
        loss = n.output[:, 1].sum()
        with loss.backward():
            grad = latents.grad.save()
    assert kept["acts"].grad is not None
    torch.testing.assert_close(grad, kept["acts"].grad)
    assert grad.abs().max() > 0


@needs_nnsight
def test_a_stored_edit_acts_in_every_later_trace_of_the_edited_copy() -> None:
    hooked, images, *_ = build()
    hooked.add_sae(build_sae(hooked, "top"))
    n = hooked.nnsight()
    with torch.no_grad():
        expected = hooked.run_with_hooks(images, fwd_hooks=[("top.hook_out.hook_sae_acts_post", halve_even)])
        with n.edit() as (_, edited):
            edited.top.hook_out.hook_sae_acts_post.output = halve_even(edited.top.hook_out.hook_sae_acts_post.output)
        with edited.trace(images):
            found = edited.output.save()
        with n.trace(images):
            plain = n.output.save()
        assert torch.equal(plain, hooked(images))
    assert torch.equal(found, expected)
    hooked.reset_saes()
    with pytest.raises(StaleWrappingError):
        edited.trace(images)


# -- several invokes, names --------------------------------------------------------------------------------------------


@needs_nnsight
@pytest.mark.parametrize("family", FAMILIES)
def test_each_of_several_invokes_sees_and_edits_its_own_rows(family: str) -> None:
    hooked, images, inner, _ = build(family)
    others = torch.randn(3, *images.shape[1:], generator=torch.Generator().manual_seed(2))
    hooked.add_sae(build_sae(hooked, inner), use_error_term=True)
    acts = f"{inner}.hook_out.hook_sae_acts_post"
    n = hooked.nnsight()
    point = n.get(acts)
    with torch.no_grad():
        with n.trace() as tracer:
            with tracer.invoke(images):
                first = point.output.save()
                plain = n.output.save()
            with tracer.invoke(others):
                second = point.output.save()
                point.output = halve_even(point.output)
                edited = n.output.save()
            with tracer.invoke():
                whole = n.output.save()
        for found, batch, hooks in ((plain, images, []), (edited, others, [(acts, halve_even)])):
            torch.testing.assert_close(found, hooked.run_with_hooks(batch, fwd_hooks=hooks), rtol=1e-4, atol=1e-5)
        for found, batch in ((first, images), (second, others)):
            torch.testing.assert_close(found, hooked.run_with_cache(batch)[1][acts], rtol=1e-4, atol=1e-5)
    assert torch.equal(whole, torch.cat([plain, edited]))


@needs_nnsight
def test_latents_of_one_invoke_are_put_into_another() -> None:
    hooked, images, *_ = build()
    hooked.add_sae(build_sae(hooked, "middle"))
    n = hooked.nnsight()
    with torch.no_grad(), n.trace() as tracer:
        meet = tracer.barrier(2)
        with tracer.invoke(images[:1]):
            latents = n.middle.hook_out.hook_sae_acts_post.output
            meet()
            source = n.output.save()
        with tracer.invoke(images[1:]):
            meet()
            n.middle.hook_out.hook_sae_acts_post.output = latents
            patched = n.output.save()
    torch.testing.assert_close(patched, source)
    with torch.no_grad():
        assert not torch.allclose(patched, hooked(images[1:]), atol=1e-3)


@needs_nnsight
def test_gradients_stay_with_the_invoke_whose_output_they_are_of() -> None:
    hooked, images, *_ = build()
    hooked.add_sae(build_sae(hooked, "middle"))
    n = hooked.nnsight()
    with n.trace(images[1:]):
        latents = n.middle.hook_out.hook_sae_acts_post.output
        with n.output[:, 1].sum().backward():
            alone = latents.grad.save()
    with n.trace() as tracer:
        with tracer.invoke(images[:1]):
            n.output.save()
        with tracer.invoke(images[1:]):
            latents = n.middle.hook_out.hook_sae_acts_post.output
            with n.output[:, 1].sum().backward():
                together = latents.grad.save()
    torch.testing.assert_close(together, alone)
    assert alone.abs().max() > 0


class TwoInputs(torch.nn.Module):
    """Images and something else that has a row per image, and a switch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.fc = torch.nn.Linear(4, 2)

    def forward(self, images: torch.Tensor, age: torch.Tensor | None = None, scale: float = 1.0) -> dict[str, Any]:
        """{"logits": (B, 2), "scale": a number}."""
        features = self.conv(images).mean((2, 3))
        logits = self.fc(features if age is None else features + age[:, None])
        return {"logits": logits * scale, "scale": scale}


@needs_nnsight
def test_invokes_with_further_inputs_and_outputs_that_are_no_tensor() -> None:
    hooked = HookedVisionModel(TwoInputs(), ["conv"])
    images, age = torch.randn(3, 3, 8, 8), torch.tensor([1.0, 2.0, 3.0])
    n = hooked.nnsight()
    with torch.no_grad():
        with n.trace() as tracer:
            with tracer.invoke(images[:1], age=age[:1], scale=2.0):
                first = n.output.save()
            with tracer.invoke(images[1:], age=age[1:], scale=2.0):
                second = n.output.save()
        expected = hooked(images, age=age, scale=2.0)
        with n.trace(scale=2.0) as tracer:  # for all of them, outside
            with tracer.invoke(images[:1], age=age[:1]):
                outside = n.output.save()
            with tracer.invoke(images[1:], age=age[1:]):
                n.output.save()
    torch.testing.assert_close(torch.cat([first["logits"], second["logits"]]), expected["logits"])
    assert second["scale"] == 2.0
    torch.testing.assert_close(outside["logits"], expected["logits"][:1])


@needs_nnsight
@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"args": (torch.zeros(1, 3, 10, 8),)}, r"float32 \(1, 3, 8, 8\), float32 \(1, 3, 10, 8\)"),
        ({"args": (torch.zeros(1, 3, 8, 8).double(),)}, "float64"),
        ({"kwargs": {"images": torch.zeros(1, 3, 8, 8)}}, "different arguments"),
        ({"args": (torch.zeros(1, 3, 8, 8),), "kwargs": {"scale": 2.0}}, "different arguments"),
        ({"args": ("one",)}, "different arguments"),
        ({"args": (torch.zeros(0, 3, 8, 8),)}, "no images; .* give it no input"),
    ],
)
def test_invokes_that_are_no_batch_are_refused_and_run_as_the_refusal_says(
    second: dict[str, Any], message: str
) -> None:
    model = TwoInputs()
    n = HookedVisionModel(model, ["conv"]).nnsight()
    images, args, kwargs = torch.zeros(1, 3, 8, 8), second.get("args", ()), second.get("kwargs", {})
    with pytest.raises(InputError, match=message) as refused, n.trace() as tracer:
        with tracer.invoke(images):
            n.output.save()
        with tracer.invoke(*args, **kwargs):
            n.output.save()
    if "trace sizes and types apart" in str(refused.value):
        for each in (images, args[0]):
            model.to(each.dtype)
            with torch.no_grad(), n.trace(each):
                logits = n.output["logits"].save()
            assert torch.equal(logits, model(each)["logits"])
    elif "give it no input" in str(refused.value):
        with torch.no_grad(), n.trace() as tracer:
            with tracer.invoke(images):
                n.output.save()
            with tracer.invoke():
                logits = n.output["logits"].save()
        assert torch.equal(logits, model(images)["logits"])
    else:  # "give each the same ones"
        with torch.no_grad(), n.trace() as tracer:
            with tracer.invoke(images, scale=2.0):
                n.output.save()
            with tracer.invoke(images + 1, scale=2.0):
                logits = n.output["logits"].save()
        torch.testing.assert_close(logits, model(images + 1, scale=2.0)["logits"])


@needs_nnsight
def test_a_place_that_runs_nothing_and_a_trace_without_images_are_one_clear_line() -> None:
    hooked, images, *_ = build("vit")
    n = hooked.nnsight(rename={"blocks.1": "second"})
    for node in (n.second, n.blocks.get("1")):
        said = r"ask for \.hook_out\.output .* n\.get\('model\.blocks\.1'\)\.output"
        with pytest.raises(InputError, match=said), n.trace(images):
            node.output.save()
    with torch.no_grad(), n.trace(images):  # what it says, in the order of the network
        whole = n.get("model.blocks.1").output.save()
        patches = n.second.hook_out.output.save()
    assert torch.equal(whole[:, -patches.shape[1] * patches.shape[2] :], patches.flatten(1, 2))
    said = r"give one of them its own: tracer\.invoke\(images\)"
    with pytest.raises(InputError, match=said), n.trace() as tracer:  # noqa: SIM117  # nnsight reads the inner block
        with tracer.invoke():
            n.output.save()
    with torch.no_grad(), n.trace() as tracer:
        with tracer.invoke():
            seen = n.output.save()
        with tracer.invoke(images):  # what it says
            logits = n.output.save()
    assert torch.equal(seen, logits)


@needs_nnsight
def test_aliases_and_new_names_lead_to_the_hook_points() -> None:
    hooked = HookedVisionModel(calibrated_classifier(1))
    images = torch.randn(1, 3, 96, 64)
    alias = next(alias for alias, path in hooked.model.layer_aliases.items() if path == "bn2")
    hooked.add_sae(build_sae(hooked, alias))
    acts = f"{alias}.hook_sae_acts_post"
    n = hooked.nnsight(rename={"blocks.3": "fourth", alias: ["final", "last"], acts: "latents"})
    assert getattr(n, alias) is n.bn2 is n.final is n.last
    assert n.fourth is n.blocks.get("3")
    assert n.model.fourth.path.endswith("model.blocks.3"), "nnsight binds a name wherever its path leads somewhere"
    with torch.no_grad(), n.trace(images):
        found = n.latents.output.save()
    with torch.no_grad():
        assert torch.equal(found, hooked.run_with_cache(images)[1]["bn2.hook_out.hook_sae_acts_post"])
    with pytest.raises(ValueError, match="would shadow"):
        hooked.nnsight(rename={"bn2": "output"})
    assert hooked.nnsight(rename={"bn2": alias}).get(alias).path.endswith("bn2")
    layers = HookedVisionModel(calibrated_classifier(1), ["bn2"]).nnsight()
    assert not hasattr(layers, "layer_0"), "of aliases only those that are hooked"


class Framework(torch.nn.Module):
    """A network in a module whose name the wrapper has itself, as training frameworks have it."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.model = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, 2)."""
        return self.model(images)


@needs_nnsight
def test_names_that_the_wrapper_has_itself_are_renamed_and_batched_too() -> None:
    network, size, inner, _ = FAMILIES["vit"]()
    hooked = HookedVisionModel(Framework(network), [f"model.{inner}"], example_input=torch.zeros(1, 3, *size))
    images = torch.randn(2, 3, *size)
    hooked.add_sae(build_sae(hooked, f"model.{inner}"))
    place = hooked.resolve_hook_name(f"model.{inner}").removesuffix(".hook_out")
    assert place != f"model.{inner}"
    n = hooked.nnsight(rename={f"model.{inner}": "block", place + ".hook_out": "point"})
    assert n.block is n.get(place)
    assert n.point is n.get(place).hook_out
    assert n.model.block.path.endswith(f"model.{inner}"), "the network's own module, one level further in"
    with torch.no_grad(), n.trace() as tracer:
        with tracer.invoke(images[:1]):
            first = n.block.hook_out.hook_sae_acts_post.output.save()
        with tracer.invoke(images[1:]):
            second = n.point.hook_sae_acts_post.output.save()
    with torch.no_grad():
        expected = hooked.run_with_cache(images)[1][f"{place}.hook_out.hook_sae_acts_post"]
    torch.testing.assert_close(torch.cat([first, second]), expected, rtol=1e-4, atol=1e-5)


@needs_nnsight
@pytest.mark.parametrize(
    ("rename", "said", "followed"),
    [
        ({"nope": "z"}, "there is no module or hook point 'nope'", {"blocks.1": "z"}),
        ({"head": "z"}, None, {}),  # a module without a hook point
        ({"bloks.1": "z"}, "did you mean .*blocks.1", {"blocks.1": "z"}),
        ({"blocks.1": "last map"}, "'last map' for 'blocks.1' is no name of an attribute", {"blocks.1": "last_map"}),
        ({"blocks.1": ["first", "a.b"]}, "'a.b' for 'blocks.1' is no name", {"blocks.1": ["first", "a_b"]}),
        ({"blocks.1": "output"}, "choose another name", {"blocks.1": "out"}),
        (["blocks.1"], "rename is a list: give a mapping of module paths to names", {"blocks.1": "map"}),
    ],
)
def test_names_that_cannot_be_given_are_refused_and_near_ones_proposed(
    rename: Any, said: str | None, followed: dict[str, Any]
) -> None:
    hooked, *_ = build("vit")
    if said is None:
        assert hooked.nnsight(rename=rename).model.z
        return
    with pytest.raises(InputError, match=said):
        hooked.nnsight(rename=rename)
    n, (path, names) = hooked.nnsight(rename=followed), next(iter(followed.items()))
    for name in [names] if isinstance(names, str) else names:
        assert n.get(name) is n.get(path)


# -- stale wrappings ---------------------------------------------------------------------------------------------------


@needs_nnsight
@pytest.mark.parametrize("change", ["attach", "detach", "replace", "run"])
def test_a_wrapping_older_than_an_attachment_says_to_wrap_again(change: str) -> None:
    hooked, images, *_ = build()
    if change in ("detach", "replace"):
        hooked.add_sae(build_sae(hooked, "middle"))
    n = hooked.nnsight()
    if change == "detach":
        hooked.reset_saes()
    elif change == "run":  # attached and detached again: nnsight's tree holds a hook point that is gone
        hooked.run_with_saes(images, saes=build_sae(hooked, "middle"))
    else:
        hooked.add_sae(build_sae(hooked, "middle"))
    with pytest.raises(StaleWrappingError, match=r"wrap it again with model\.nnsight\(\)"), n.trace(images):
        n.output.save()
    with pytest.raises(StaleWrappingError), n.edit() as (_, edited):
        edited.output = edited.output * 0
    fresh = hooked.nnsight()
    with torch.no_grad(), fresh.trace(images):
        logits = fresh.output.save()
    with torch.no_grad():
        assert torch.equal(logits, hooked(images))


@needs_nnsight
def test_running_the_rest_of_the_network_leaves_a_wrapping_in_order() -> None:
    hooked, images, *_ = build()
    n = hooked.nnsight()
    rest = hooked.rest_from("middle", (96, 64))
    with torch.no_grad():
        expected = rest(hooked.read(images, "middle").raw)
        with n.trace(images):
            n.model.stem.output  # noqa: B018 (asked for, so that nnsight must see the module run)
            n.middle.hook_out.output = n.middle.hook_out.output * 1
            logits = n.output.save()
    torch.testing.assert_close(logits, expected)


@needs_nnsight
def test_hooks_and_caches_do_not_make_a_wrapping_stale() -> None:
    hooked, images, *_ = build()
    hooked.add_sae(build_sae(hooked, "middle"))
    n = hooked.nnsight()
    hooked.run_with_cache(images)
    hooked.reset_saes("top")  # none is attached there
    with torch.no_grad(), n.trace(images):
        latents = n.middle.hook_out.hook_sae_acts_post.output.save()
    assert latents.shape[-1] == D_SAE


@needs_nnsight
def test_a_closed_model_is_neither_wrapped_nor_traced() -> None:
    hooked, images, *_ = build()
    n = hooked.nnsight()
    hooked.close()
    with pytest.raises(RuntimeError, match="closed"):
        n.trace(images)
    with pytest.raises(RuntimeError, match="closed"):
        hooked.nnsight()


@needs_nnsight
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_of_a_wrapped_model_is_wrapped_and_traced_on_its_own(how: str) -> None:
    hooked, images, *_ = build()
    hooked.add_sae(build_sae(hooked, "top"))
    first = hooked.nnsight()
    clone = copy.deepcopy(hooked) if how == "deepcopy" else pickle.loads(pickle.dumps(hooked))
    with torch.no_grad():
        expected = hooked(images)
        n = clone.nnsight()
        with n.trace(images):
            n.top.hook_out.hook_sae_acts_post.output[:] = 0
            silenced = n.output.save()
        with first.trace(images):
            logits = first.output.save()
        sae = clone.acts_to_saes["top.hook_out"]
        torch.testing.assert_close(silenced, clone.model.fc(sae.b_dec).expand(2, 2))
    assert sae is not hooked.acts_to_saes["top.hook_out"]
    assert torch.equal(logits, expected)


@needs_nnsight
def test_wrapping_leaves_the_model_as_it_was() -> None:
    hooked, images, *_ = build()
    hooked.add_sae(build_sae(hooked, "middle"))
    modules, keys, modes = (
        [name for name, _ in hooked.named_modules()],
        list(hooked.state_dict()),
        [module.training for module in hooked.modules()],
    )
    with torch.no_grad():
        expected = hooked(images)
        hooked.nnsight()
        assert torch.equal(hooked(images), expected)
    assert [name for name, _ in hooked.named_modules()] == modules
    assert list(hooked.state_dict()) == keys
    assert [module.training for module in hooked.modules()] == modes


# -- without nnsight ---------------------------------------------------------------------------------------------------


def test_without_nnsight_everything_else_works_and_wrapping_says_what_to_install(tmp_path: Path) -> None:
    script = """
import sys
import torch
from torch import nn
import mammosae_plugin.adapters as adapters
assert "nnsight" not in sys.modules, "importing the adapters imported nnsight"
sys.modules["nnsight"] = None  # as if it were not installed
network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
hooked = adapters.HookedVisionModel(network, ["1"])
assert hooked(torch.zeros(1, 3, 8, 8)).shape == (1, 4, 6, 6)
assert issubclass(adapters.StaleWrappingError, RuntimeError)
try:
    hooked.nnsight()
except adapters.CheckpointFormatError:
    raise
except ValueError as error:
    print(type(error).__name__, error)
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "InputError nnsight is not installed; run: pip install 'mammosae-plugin[nnsight]'\n"


# -- the example -------------------------------------------------------------------------------------------------------


@needs_nnsight
def test_the_example_ablates_ten_latents_and_finds_the_tables_logit(capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).parent.parent / "examples" / "ablate_with_nnsight.py"
    runpy.run_path(str(example), run_name="__main__")
    lines = dict(line.split(":") for line in capsys.readouterr().out.splitlines())
    ten = [int(latent) for latent in lines["latents set to zero"].split(",")]
    assert len(set(ten)) == 10
    from_table, from_trace = (float(lines[f"without the ten, {place}"]) for place in ("from the table", "in the trace"))
    assert from_trace == pytest.approx(from_table, abs=1e-4)
    assert abs(from_table - float(lines["logit with the SAE, all latents"])) > 1e-3


# -- what we take for granted about nnsight 0.8 ------------------------------------------------------------------------


@needs_nnsight
def test_nnsight_itself_does_not_notice_modules_that_are_put_in_later() -> None:
    from nnsight import NNsight

    hooked, images, *_ = build()
    n = NNsight(hooked)
    hooked.add_sae(build_sae(hooked, "middle"))
    with pytest.raises(Exception, match="already ran past it"), torch.no_grad(), n.trace(images):
        n.middle.hook_out.output.save()
    with pytest.raises(Exception, match="hook_sae_acts_post"), torch.no_grad(), n.trace(images):
        n.middle.hook_out.hook_sae_acts_post.output.save()


@needs_nnsight
def test_nnsight_reads_the_callers_block_when_it_is_entered_and_not_when_trace_is_called() -> None:
    from nnsight import NNsight

    class Delayed(NNsight):
        def trace(self, *args: Any, **kwargs: Any) -> Any:
            return super().trace(*args, **kwargs)

    n = Delayed(torch.nn.Linear(2, 2))
    tracer = n.trace(torch.zeros(1, 2))
    with torch.no_grad(), tracer:
        found = n.output.save()
    assert found.shape == (1, 2), CHANGED + "trace cannot be overridden by a method any more"


@needs_nnsight
def test_nnsight_keeps_the_class_of_an_edited_copy() -> None:
    from nnsight import NNsight

    class Marked(NNsight):
        pass

    n = Marked(torch.nn.Linear(2, 2))
    with n.edit() as (_, edited):
        edited.output = edited.output * 0
    assert type(edited) is Marked, CHANGED + "edit() copies to another class, which would not check for staleness"


@needs_nnsight
def test_nnsight_leaves_it_to_subclasses_how_invokes_are_joined() -> None:
    from nnsight import NNsight

    for name in ("_batch_size", "_batch"):
        assert hasattr(NNsight, name), CHANGED + f"{name} is not what a subclass defines to batch invokes any more"
    n = NNsight(torch.nn.Linear(2, 2))
    with pytest.raises(NotImplementedError, match="batching multiple invokes"), n.trace() as tracer:
        with tracer.invoke(torch.zeros(1, 2)):
            n.output.save()
        with tracer.invoke(torch.zeros(1, 2)):
            n.output.save()


@needs_nnsight
def test_nnsight_wants_values_in_the_order_of_the_network() -> None:
    hooked, images, *_ = build()
    n = hooked.nnsight()
    with pytest.raises(Exception, match="already ran past it"), torch.no_grad(), n.trace(images):
        n.top.hook_out.output.save()
        n.middle.hook_out.output.save()


@needs_nnsight
def test_nnsight_mounts_save_on_every_object() -> None:
    import nnsight

    assert nnsight.NNsight is not None
    assert hasattr(3, "save"), CHANGED + "importing nnsight no longer mounts .save: the lazy import could be dropped"
