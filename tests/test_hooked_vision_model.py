"""An image model with hook points behaves as itself; SAEs and hooks change it exactly where and while they should."""

import copy
import functools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers_adapters import calibrated_classifier
from sae_lens import HookedSAETransformer, StandardSAE, StandardSAEConfig, Transcoder, TranscoderConfig
from sae_lens.saes.sae import SAEMetadata
from torch import nn
from transformer_lens import HookedTransformerConfig

from mammosae_plugin.adapters import HookedVisionModel, MammoClipClassifier, load_vision_sae
from mammosae_plugin.errors import InputError

HOOK = "bn2.hook_out"
N_FEATURES = 1280


@functools.cache
def calibrated_model() -> MammoClipClassifier:
    return calibrated_classifier(2, images=build_images(8))


def build_model() -> MammoClipClassifier:
    return copy.deepcopy(calibrated_model())


def build_images(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, 96, 64, generator=torch.Generator().manual_seed(1))


def build_sae(d_in: int = N_FEATURES, *, hook_name: str | None = HOOK, d_sae: int = 24, **metadata: Any) -> StandardSAE:
    """An SAE whose reconstruction is far from its input and whose latents are partly active."""
    cfg = StandardSAEConfig(d_in=d_in, d_sae=d_sae, metadata=SAEMetadata(hook_name=hook_name, **metadata))
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return StandardSAE(cfg)


def build_transcoder() -> Transcoder:
    metadata = SAEMetadata(hook_name=HOOK, hook_name_out="blocks.3.hook_out")
    return Transcoder(
        TranscoderConfig(d_in=N_FEATURES, d_sae=8, d_out=40, apply_b_dec_to_input=False, metadata=metadata)
    )


def plain_logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images)


@pytest.fixture
def hooked() -> HookedVisionModel:
    return HookedVisionModel(build_model(), ["bn2", "blocks.3", "conv_stem"])


# -- without SAEs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", ["ours", "timm", "plain"])
def test_without_an_sae_the_output_is_bit_identical_to_the_models(wrapped: str) -> None:
    torch.manual_seed(0)
    if wrapped == "ours":
        model: nn.Module = build_model()
        names = None
    elif wrapped == "timm":
        model, names = timm.create_model("tinynet_e", num_classes=3).eval(), None
    else:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(1), nn.LazyLinear(2)).eval()
        model(torch.zeros(1, 3, 96, 64))
        names = ["0", "2"]
    images = build_images()
    expected = plain_logits(model, images)
    example = torch.zeros(1, 3, 96, 64)
    with HookedVisionModel(model, names, example_input=example) as hooked, torch.no_grad():
        assert torch.equal(hooked(images), expected)
        logits, cache = hooked.run_with_cache(images)
        assert torch.equal(logits, expected)
        assert set(cache) == set(hooked.hook_shapes)
    assert torch.equal(plain_logits(model, images), expected)


def test_activations_at_hook_points_are_the_modules_outputs_channels_last() -> None:
    model, images = build_model(), build_images()
    hooked = HookedVisionModel(model, ["bn2", "global_pool"])
    with torch.no_grad():
        _, cache = hooked.run_with_cache(images)
        feature_map = model.forward_features(images)
    assert torch.equal(cache["bn2.hook_out"], feature_map.permute(0, 2, 3, 1))
    assert cache["bn2.hook_out"].shape == (2, 3, 2, N_FEATURES)
    assert torch.equal(cache["global_pool.hook_out"], feature_map.mean((2, 3)))


def test_hook_shapes_are_those_of_the_probe_without_batch() -> None:
    hooked = HookedVisionModel(
        build_model(), ["bn2", "blocks.3", "global_pool"], example_input=torch.zeros(2, 3, 128, 64)
    )
    assert hooked.hook_shapes == {
        "bn2.hook_out": (4, 2, N_FEATURES),
        "blocks.3.hook_out": (8, 4, 40),
        "global_pool.hook_out": (N_FEATURES,),
    }


def test_default_hooks_are_the_aliased_layers_or_timms_stages_and_the_final_map() -> None:
    model = build_model()
    assert list(HookedVisionModel(model).hook_shapes) == [f"{path}.hook_out" for path in model.layer_aliases.values()]
    network = timm.create_model("tinynet_e").eval()
    stages = [entry["module"] for entry in network.feature_info]
    assert list(HookedVisionModel(network).hook_shapes) == [f"{path}.hook_out" for path in [*stages, "bn2"]]
    with pytest.raises(InputError, match="give hook_names"):
        HookedVisionModel(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4)))


def test_the_state_dict_is_the_models_under_a_prefix_even_with_an_sae(hooked: HookedVisionModel) -> None:
    hooked.add_sae(build_sae())
    assert list(hooked.state_dict()) == [f"model.{name}" for name in hooked.model.state_dict()]


def test_the_probe_leaves_training_modes_and_batch_norm_statistics_alone() -> None:
    model = build_model().train()
    model.blocks.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    HookedVisionModel(model, ["bn2"])
    assert model.training
    assert not model.blocks.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_can_be_hooked_inside_inference_mode() -> None:
    with torch.inference_mode():
        hooked = HookedVisionModel(build_model(), ["bn2"])
        assert hooked(build_images()).shape == (2, 2)


def test_hooks_edit_the_activation_and_go_away_afterwards(hooked: HookedVisionModel) -> None:
    images = build_images()
    expected = plain_logits(hooked.model, images)

    def zero(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        assert hook.name == HOOK
        return torch.zeros_like(activation)

    with torch.no_grad():
        edited = hooked.run_with_hooks(images, fwd_hooks=[(HOOK, zero)])
        torch.testing.assert_close(edited, hooked.model.classifier.bias.expand(2, 2))
        assert torch.equal(hooked(images), expected)


def test_aliases_and_module_paths_work_wherever_a_hook_name_does() -> None:
    model, images = build_model(), build_images()
    last = f"layer_{len(model.layer_aliases) - 1}"
    hooked = HookedVisionModel(model, [last, "layer_0"])
    assert list(hooked.hook_shapes) == [HOOK, "blocks.0.0.hook_out"]
    for name in (last, "bn2", HOOK, f"{last}.hook_out"):
        assert hooked.resolve_hook_name(name) == HOOK
        _, cache = hooked.run_with_cache(images, names_filter=name)
        assert list(cache) == [HOOK]
    _, cache = hooked.run_with_cache(images, names_filter=(last, "layer_0"))
    assert set(cache) == {HOOK, "blocks.0.0.hook_out"}
    seen = []
    hooked.run_with_hooks(images, fwd_hooks=[(last, lambda _, hook: seen.append(hook.name))])
    hooked.add_hook(last, lambda _, hook: seen.append(hook.name))
    hooked(images)
    hooked.reset_hooks()
    assert seen == [HOOK, HOOK]
    hooked.add_sae(build_sae(hook_name=last))
    assert list(hooked.acts_to_saes) == [HOOK]
    acts = f"{last}.hook_sae_acts_post"
    assert list(hooked.run_with_cache(images, names_filter=acts)[1]) == [f"{HOOK}.hook_sae_acts_post"]
    hooked.reset_saes(last)
    assert hooked.acts_to_saes == {}


def test_predicates_on_names_still_work(hooked: HookedVisionModel) -> None:
    _, cache = hooked.run_with_cache(build_images(), names_filter=lambda name: name.startswith("blocks"))
    assert list(cache) == ["blocks.3.hook_out"]


def test_unknown_names_raise_with_the_nearest_ones(hooked: HookedVisionModel) -> None:
    images = build_images()
    with pytest.raises(InputError, match=r"no module 'blocks\.33' to hook; did you mean .*blocks\.3"):
        HookedVisionModel(build_model(), ["blocks.33"])
    for use in (
        lambda: hooked.resolve_hook_name("bn3.hook_out"),
        lambda: hooked.run_with_cache(images, names_filter="bn3.hook_out"),
        lambda: hooked.run_with_hooks(images, fwd_hooks=[("bn3.hook_out", print)]),
        lambda: hooked.add_sae(build_sae(hook_name="bn3.hook_out")),
        lambda: hooked.reset_saes("bn3.hook_out"),
    ):
        with pytest.raises(InputError, match=r"no hook point 'bn3\.hook_out'; did you mean .*bn2\.hook_out"):
            use()


# -- modules that cannot be hooked -------------------------------------------------------------------------------------


def test_an_output_that_is_overwritten_in_place_is_refused() -> None:
    model = build_model()
    for path in ("bn1.drop", "blocks.1.0.se.conv_reduce"):
        with pytest.raises(InputError, match="overwrites its output in place; hook the output of the enclosing"):
            HookedVisionModel(model, ["bn2", path])
    HookedVisionModel(
        model, ["bn1", "blocks.1.0.se"]
    ).close()  # the advice is good, and the refusal left nothing behind


class Named(nn.Module):
    """Gives a dict."""

    def forward(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"values": values}


class Odd(nn.Module):
    """Modules that give no tensor, never run, or run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.unused, self.twice, self.deep = (
            Named(),
            nn.Identity(),
            nn.Identity(),
            nn.Unflatten(1, (1, 1, 3)),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.deep(images)
        return self.pair(self.twice(self.twice(images)).mean((1, 2))[:, :4])["values"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("pair", "gives a dict and not a tensor"),
        ("unused", "ran 0 times"),
        ("twice", "ran 2 times"),
        ("deep", "has 6 dimensions"),
    ],
)
def test_modules_that_do_not_give_one_tensor_once_are_refused(path: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        HookedVisionModel(Odd(), [path])


def test_examples_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="cannot run on images of shape"):
        HookedVisionModel(build_model(), ["bn2"], example_input=torch.zeros(1, 1, 64, 64))
    with pytest.raises(InputError, match="hook_names is empty"):
        HookedVisionModel(build_model(), [])


# -- wrapping twice, closing, copying ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 3, 64, 64), np.float32), "images are a ndarray: give a tensor"),
        (torch.zeros(3, 64, 64), r"float32 of shape \(3, 64, 64\): give a tensor \(B, 3, H, W\).*with \[None\]"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "uint8 of shape .*: give a tensor .* of floating-point numbers"),
        (torch.zeros(1, 1, 64, 64), r"float32 of shape \(1, 1, 64, 64\): give a tensor \(B, 3, H, W\)"),
    ],
    ids=["array", "one image", "integers", "channels"],
)
def test_what_is_no_batch_of_images_is_refused_in_one_line(
    hooked: HookedVisionModel, images: Any, message: str
) -> None:
    for run in (hooked, hooked.run_with_cache, lambda images: hooked.run_with_hooks(images, fwd_hooks=[])):
        with pytest.raises(InputError, match=message) as error:
            run(images)
        assert "\n" not in str(error.value)


def test_a_model_is_hooked_once_at_a_time() -> None:
    model = build_model()
    first = HookedVisionModel(model, ["bn2"])
    for again in (model, first, nn.Sequential(model)):
        with pytest.raises(InputError, match="hooked already"):
            HookedVisionModel(again, ["blocks.3"])
    first.close()
    first.close()
    second = HookedVisionModel(model, ["bn2"])
    calls = []
    second.run_with_hooks(build_images(), fwd_hooks=[("bn2", lambda _, hook: calls.append(hook.name))])
    assert calls == [HOOK]


def test_closing_takes_saes_and_hooks_out_of_the_model() -> None:
    model, images = build_model(), build_images()
    expected = plain_logits(model, images)
    with HookedVisionModel(model, ["bn2"]) as hooked:
        hooked.add_sae(build_sae())
        assert not torch.equal(plain_logits(model, images), expected)
    assert torch.equal(plain_logits(model, images), expected)
    with pytest.raises(RuntimeError, match="closed"):
        hooked(images)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_has_its_own_hooks_and_saes(how: str, hooked: HookedVisionModel) -> None:
    images = build_images()
    clone = copy.deepcopy(hooked) if how == "deepcopy" else pickle.loads(pickle.dumps(hooked))
    expected = plain_logits(hooked, images)
    assert torch.equal(plain_logits(clone, images), expected)
    clone.add_sae(build_sae())
    assert not torch.equal(plain_logits(clone, images), expected)
    assert torch.equal(plain_logits(hooked, images), expected)
    clone.close()
    hooked.add_sae(build_sae())  # the original's hooks are still there
    assert not torch.equal(plain_logits(hooked, images), expected)
    assert torch.equal(plain_logits(clone.model, images), expected)


def test_a_deep_copy_takes_an_attached_sae_along(hooked: HookedVisionModel) -> None:
    images = build_images()
    hooked.add_sae(build_sae())
    expected = plain_logits(hooked, images)
    clone = copy.deepcopy(hooked)
    with torch.no_grad():
        clone.acts_to_saes[HOOK].b_dec += 1
        assert torch.equal(hooked(images), expected)
        assert not torch.equal(clone(images), expected)


# -- with SAEs ---------------------------------------------------------------------------------------------------------


def test_an_sae_replaces_the_map_by_its_reconstruction(hooked: HookedVisionModel) -> None:
    images, sae = build_images(), build_sae()
    with torch.no_grad():
        feature_map = hooked.model.forward_features(images)
        reconstruction = sae(feature_map.permute(0, 2, 3, 1))
        expected = hooked.model.forward_head(reconstruction.permute(0, 3, 1, 2))
        torch.testing.assert_close(hooked.run_with_saes(images, saes=[sae]), expected)
        assert (expected - hooked(images)).abs().min() > 0.01


def test_with_error_term_and_no_edit_logits_equal_the_models_to_float_rounding(hooked: HookedVisionModel) -> None:
    images = build_images()
    expected = plain_logits(hooked, images)
    with torch.no_grad():
        logits = hooked.run_with_saes(
            images, saes=[build_sae(), build_sae(40, hook_name="blocks.3")], use_error_term=True
        )
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_an_edit_of_latents_passes_through_the_error_term(hooked: HookedVisionModel) -> None:
    images, sae = build_images(), build_sae()

    def ablate(acts: torch.Tensor, hook: Any) -> torch.Tensor:
        acts = acts.clone()
        acts[..., 3] = 0
        return acts

    with torch.no_grad():
        logits = hooked(images)
        acts = sae.encode(hooked.model.forward_features(images).permute(0, 2, 3, 1))
        effect = -acts[..., 3].mean((1, 2))[:, None] * (hooked.model.classifier.weight @ sae.W_dec[3])
        assert effect.abs().min() > 1e-3
        edited = hooked.run_with_hooks_with_saes(
            images, saes=sae, use_error_term=True, fwd_hooks=[(f"{HOOK}.hook_sae_acts_post", ablate)]
        )
    torch.testing.assert_close(edited, logits + effect, rtol=1e-4, atol=1e-4)


def test_gradients_reach_latents_and_go_through_the_saes_path_only() -> None:
    model = HookedVisionModel(build_model(), ["bn2"])
    sae = build_sae()
    seen: dict[str, torch.Tensor] = {}

    def keep(acts: torch.Tensor, hook: Any) -> None:
        acts.retain_grad()
        seen["acts"] = acts

    model.add_sae(sae, use_error_term=True)
    with model.hooks(fwd_hooks=[(f"{HOOK}.hook_sae_acts_post", keep)]):
        model(build_images())[:, 0].sum().backward()
    expected = model.model.classifier.weight[0] @ sae.W_dec.T / 6  # 3 x 2 positions
    torch.testing.assert_close(seen["acts"].grad[0, 0, 0], expected)
    grad = model.model.conv_stem.weight.grad.clone()
    model.zero_grad()
    model.run_with_saes(build_images(), saes=sae, use_error_term=False)[:, 0].sum().backward()
    torch.testing.assert_close(model.model.conv_stem.weight.grad, grad, rtol=1e-3, atol=1e-4)


def test_removal_restores_bit_identity_and_the_saes_own_names(hooked: HookedVisionModel) -> None:
    images, sae = build_images(), build_sae()
    expected = plain_logits(hooked, images)
    hooked.add_sae(sae)
    assert not torch.equal(plain_logits(hooked, images), expected)
    hooked.reset_saes()
    hooked.reset_saes(HOOK)  # nothing attached: nothing to do
    assert torch.equal(plain_logits(hooked, images), expected)
    assert set(sae.run_with_cache(torch.zeros(1, N_FEATURES))[1]) == set(
        build_sae().run_with_cache(torch.zeros(1, N_FEATURES))[1]
    )
    assert list(hooked.hook_dict) == list(HookedVisionModel(build_model(), list(hooked.hook_shapes)).hook_dict)


def test_cache_keys_with_an_sae_are_those_of_saelens(hooked: HookedVisionModel) -> None:
    _, cache = hooked.run_with_cache_with_saes(build_images(), saes=[build_sae()], use_error_term=True)
    names = {"input", "acts_pre", "acts_post", "recons", "error", "output"}
    assert {key for key in cache if key.startswith(HOOK)} == {f"{HOOK}.hook_sae_{name}" for name in names}
    assert cache[f"{HOOK}.hook_sae_acts_post"].shape == (2, 3, 2, 24)


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_sae_hook_names_and_their_order_of_firing_equal_hooked_sae_transformers(hooked: HookedVisionModel) -> None:
    config = HookedTransformerConfig(
        n_layers=1, d_model=8, n_ctx=4, d_head=4, n_heads=2, d_vocab=11, act_fn="relu", seed=0
    )
    transformer = HookedSAETransformer(config)
    upstream_point = "blocks.0.hook_resid_post"
    transformer.add_sae(build_sae(8, hook_name=upstream_point), use_error_term=True)
    hooked.add_sae(build_sae(), use_error_term=True)
    fired: list[list[str]] = []
    for model, point, model_input in (
        (transformer, upstream_point, torch.tensor([[1, 2]])),
        (hooked, HOOK, build_images()),
    ):
        names: list[str] = []
        points = [name for name in model.hook_dict if name.startswith(point)]
        model.run_with_hooks(
            model_input, fwd_hooks=[(name, lambda _, hook, to=names: to.append(hook.name)) for name in points]
        )
        fired.append([name.removeprefix(point) for name in names])
    assert fired[0] == fired[1]
    assert len(fired[0]) == 6
    assert set(transformer.acts_to_saes) == {upstream_point}


def test_nested_saes_are_restored_in_order(hooked: HookedVisionModel) -> None:
    images, outer, inner = build_images(), build_sae(), build_sae(d_sae=8)
    expected = plain_logits(hooked, images)
    with hooked.saes(outer, use_error_term=False):
        with_outer = plain_logits(hooked, images)
        with hooked.saes([inner, build_sae(40, hook_name="blocks.3")], use_error_term=True):
            assert set(hooked.acts_to_saes) == {HOOK, "blocks.3.hook_out"}
            assert hooked.acts_to_saes[HOOK] is inner
        assert hooked.acts_to_saes == {HOOK: outer}
        assert torch.equal(plain_logits(hooked, images), with_outer)
    assert hooked.acts_to_saes == {}
    assert torch.equal(plain_logits(hooked, images), expected)


def test_saes_may_be_left_attached(hooked: HookedVisionModel) -> None:
    sae = build_sae()
    hooked.run_with_saes(build_images(), saes=[sae], reset_saes_end=False)
    assert hooked.acts_to_saes == {HOOK: sae}


def test_an_exception_inside_restores_what_was_there(hooked: HookedVisionModel) -> None:
    images, outer = build_images(), build_sae()
    hooked.add_sae(outer)
    expected = plain_logits(hooked, images)

    def fail(acts: torch.Tensor, hook: Any) -> None:
        raise KeyError("from a hook")

    with pytest.raises(KeyError, match="from a hook"):
        hooked.run_with_hooks_with_saes(
            images, saes=build_sae(d_sae=8), fwd_hooks=[(f"{HOOK}.hook_sae_acts_post", fail)], use_error_term=True
        )
    with pytest.raises(InputError, match="d_in"), hooked.saes([build_sae(40, hook_name="blocks.3"), build_sae(7)]):
        pass
    assert hooked.acts_to_saes == {HOOK: outer}
    assert torch.equal(plain_logits(hooked, images), expected)


def test_adding_a_second_sae_at_a_point_replaces_the_first(hooked: HookedVisionModel) -> None:
    first, second = build_sae(), build_sae(d_sae=8)
    hooked.add_sae(first)
    hooked.add_sae(second)
    assert hooked.acts_to_saes == {HOOK: second}
    assert HOOK not in {point.name.rpartition(".")[0] for point in first.hook_points()}


def test_an_sae_that_does_not_fit_is_refused_before_any_forward_pass(hooked: HookedVisionModel, tmp_path: Path) -> None:
    for sae, reason in (
        (build_sae(64), "d_in 64, but 'bn2.hook_out' has 1280 channels"),
        (build_sae(hook_name=None), "no hook_name"),
        (build_sae(layout="channels_first"), "wants the layout 'channels_first'"),
        (build_transcoder(), "the second must come later and have the same positions"),
    ):
        with pytest.raises(InputError, match=reason):
            hooked.add_sae(sae)
    build_sae().save_model(tmp_path)
    with pytest.raises(InputError, match=r"no SAE of SAELens; give a sae_lens\.SAE"):
        hooked.add_sae(tmp_path)  # type: ignore[arg-type]
    hooked.add_sae(load_vision_sae(tmp_path))
    hooked.add_sae(build_sae(layout="channels_last"))
    with pytest.raises(InputError, match="inside an attached SAE"):
        hooked.add_sae(build_sae(24, hook_name=f"{HOOK}.hook_sae_acts_post"))


def test_a_width_that_happens_to_equal_the_maps_width_is_refused() -> None:
    hooked = HookedVisionModel(build_model(), ["blocks.3"], example_input=torch.zeros(1, 3, 64, 16 * 10))
    assert hooked.hook_shapes["blocks.3.hook_out"] == (4, 10, 40)
    with pytest.raises(InputError, match="d_in 10"):
        hooked.add_sae(build_sae(10, hook_name="blocks.3.hook_out"))


def test_one_sae_object_stands_at_one_point() -> None:
    hooked = HookedVisionModel(build_model(), ["bn2", "bn2.act"])
    sae = build_sae()
    hooked.add_sae(sae)
    sae.cfg.metadata.hook_name = "bn2.act.hook_out"
    with pytest.raises(InputError, match="attached at 'bn2.hook_out' already; attach a copy at 'bn2.act.hook_out'"):
        hooked.add_sae(sae)
    hooked.add_sae(copy.deepcopy(sae))  # as it says
    assert list(hooked.acts_to_saes) == ["bn2.hook_out", "bn2.act.hook_out"]
    assert hooked(build_images()).shape == (2, 2)


def test_hooks_that_an_sae_would_displace_and_hooks_on_a_displaced_point_are_refused(hooked: HookedVisionModel) -> None:
    hooked.add_hook(HOOK, lambda activation, hook: activation + float(hook.name == HOOK))
    with pytest.raises(InputError, match="would be lost"):
        hooked.add_sae(build_sae())
    hooked.reset_hooks()
    hooked.add_sae(build_sae())
    with pytest.raises(InputError, match=r"use bn2\.hook_out\.hook_sae_input"):
        hooked.run_with_cache(build_images(), names_filter=HOOK)
    with torch.no_grad():
        before = hooked(build_images())
        hooked.add_hook(f"{HOOK}.hook_sae_input", lambda activation, hook: activation + float(hook.name != HOOK))
        assert not torch.equal(hooked(build_images()), before)


def test_a_bfloat16_model_with_a_float32_sae_stays_bfloat16() -> None:
    hooked = HookedVisionModel(build_model().to(torch.bfloat16), ["bn2"])
    images = build_images().to(torch.bfloat16)
    expected = plain_logits(hooked, images)
    with torch.no_grad():
        logits = hooked.run_with_saes(images, saes=[build_sae()], use_error_term=True)
        assert hooked.run_with_saes(images, saes=[build_sae()]).dtype == torch.bfloat16
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits, expected)
