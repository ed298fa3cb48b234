"""The verbs of HookedVisionModel are HookedSAETransformer's: names, arguments, cache keys, and what they do.

The tests of behaviour run on both, a tiny language model of SAELens's and a tiny network of ours.
"""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from helpers_backbones import TorchCNN
from sae_lens import SAE, HookedSAETransformer, StandardSAE, StandardSAEConfig
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata
from torch import nn
from transformer_lens import ActivationCache, HookedTransformerConfig

from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")

VERBS = ("add_sae", "reset_saes", "saes", "run_with_saes", "run_with_cache_with_saes", "run_with_hooks_with_saes")
TRANSCODERS = [name for name in SAE_CLASS_REGISTRY if "transcoder" in name]
# A temporal SAE reads a text from left to right.
ARCHITECTURES = [name for name in SAE_CLASS_REGISTRY if name not in (*TRANSCODERS, "temporal")]
SETTINGS: dict[str, dict[str, Any]] = {"topk": {"k": 4}, "abstopk": {"k": 4}, "matching_pursuit": {"max_iterations": 3}}

D_IN = 12
POINT = "middle.hook_out"


@dataclass
class Case:
    """A model with the verbs, an input for it, and two hook points with their widths."""

    model: Any
    inputs: torch.Tensor
    point: str
    d_in: int
    other: str
    d_other: int

    def run(self) -> torch.Tensor:
        with torch.no_grad():
            return self.model(self.inputs)


@functools.cache
def transformer() -> HookedSAETransformer:
    config = HookedTransformerConfig(
        n_layers=1, d_model=8, n_ctx=4, d_head=4, n_heads=2, d_vocab=11, act_fn="relu", seed=0, device="cpu"
    )
    return HookedSAETransformer(config).eval()


def network() -> HookedVisionModel:
    torch.manual_seed(0)
    return HookedVisionModel(TorchCNN().eval(), ["middle", "top"], example_input=torch.zeros(1, 3, 96, 64))


def images() -> torch.Tensor:
    return torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["saelens", "ours"])
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == "ours":
        return Case(network(), images(), POINT, D_IN, "top.hook_out", 16)
    points = "blocks.0.hook_resid_pre", 8, "blocks.0.hook_mlp_out", 8
    return Case(copy.deepcopy(transformer()), torch.tensor([[1, 2, 3], [4, 5, 6]]), *points)


def build_sae(
    d_in: int = D_IN, hook_name: str | None = POINT, *, architecture: str = "standard", seed: int = 0, **settings: Any
) -> SAE[Any]:
    """An SAE of any architecture with random weights and partly active latents, far from reconstructing its input."""
    sae_class, config_class = SAE_CLASS_REGISTRY[architecture]
    metadata = SAEMetadata(hook_name=hook_name, **settings.pop("metadata", {}))
    config: Any = config_class(d_in=d_in, d_sae=24, metadata=metadata, **SETTINGS.get(architecture, {}), **settings)
    sae: SAE[Any] = sae_class(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            scale = 0.3 if name.startswith("W_") else 0.1
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if name == "threshold":
                parameter.abs_()
    return sae


def sae_for(case: Case, **settings: Any) -> SAE[Any]:
    return build_sae(case.d_in, case.point, **settings)


# -- names and arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [*VERBS, "run_with_cache", "run_with_hooks"])
def test_every_argument_of_saelens_is_there_in_its_order_with_its_default(verb: str) -> None:
    upstream, ours = (
        inspect.signature(getattr(owner, verb)).parameters for owner in (HookedSAETransformer, HookedVisionModel)
    )
    shared = [name for name in ours if name in upstream]
    # The catch-all may have another name; TransformerLens's own functions take it.
    named = [name for name, each in upstream.items() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    assert [name for name in shared if name in named] == named
    for name in named:
        assert ours[name].kind == upstream[name].kind, name
        defaults = [each[name].default for each in (upstream, ours)]
        if name in ("saes", "fwd_hooks", "bwd_hooks"):
            assert [list(default) for default in defaults] == [[], []], name  # theirs is a list, which could be changed
        else:
            assert defaults[0] == defaults[1], name
    assert any(each.kind is inspect.Parameter.VAR_KEYWORD for each in ours.values()) == (len(named) < len(upstream))


def test_acts_to_saes_is_a_property_from_names_to_saes(case: Case) -> None:
    sae = sae_for(case)
    case.model.add_sae(sae)
    assert case.model.acts_to_saes == {case.point: sae}
    assert isinstance(inspect.getattr_static(type(case.model), "acts_to_saes"), property)


# -- cache keys --------------------------------------------------------------------------------------------------------


def cached(case: Case, **arguments: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    with torch.no_grad():
        output, cache = case.model.run_with_cache_with_saes(case.inputs, **arguments)
    return output, {name.removeprefix(case.point): cache[name] for name in cache if name.startswith(case.point)}


@pytest.mark.parametrize("use_error_term", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cache_keys_and_their_order_are_saelens_own(architecture: str, use_error_term: bool) -> None:
    cases = (
        Case(copy.deepcopy(transformer()), torch.tensor([[1, 2, 3]]), "blocks.0.hook_resid_pre", 8, "", 0),
        Case(network(), images(), POINT, D_IN, "", 0),
    )
    theirs, ours = (
        list(cached(case, saes=sae_for(case, architecture=architecture), use_error_term=use_error_term)[1])
        for case in cases
    )
    assert (".hook_sae_error" in ours) == use_error_term
    if ".hook_sae_acts_post" not in theirs:
        theirs.insert(theirs.index(".hook_sae_recons"), ".hook_sae_acts_post")  # see the canary on matching pursuit
    assert ours == theirs


def test_what_the_cache_holds_follows_from_its_input(case: Case) -> None:
    sae = sae_for(case)
    _, cache = cached(case, saes=[sae])
    x = cache[".hook_sae_input"]
    with torch.no_grad():
        torch.testing.assert_close(cache[".hook_sae_acts_post"], sae.encode(x))
        torch.testing.assert_close(cache[".hook_sae_output"], sae.decode(sae.encode(x)))
        torch.testing.assert_close(cache[".hook_sae_recons"], cache[".hook_sae_output"])
        _, with_error = cached(case, saes=[sae], use_error_term=True)
    torch.testing.assert_close(with_error[".hook_sae_error"], x - cache[".hook_sae_output"])
    torch.testing.assert_close(with_error[".hook_sae_output"], x)
    assert not torch.allclose(x, cache[".hook_sae_output"], atol=1e-2)


def test_names_filters_reach_the_points_inside_an_sae(case: Case) -> None:
    name = f"{case.point}.hook_sae_acts_post"
    _, cache = case.model.run_with_cache_with_saes(case.inputs, saes=sae_for(case), names_filter=name)
    assert list(cache) == [name]


def test_remove_batch_dim_does_what_it_says(case: Case) -> None:
    name = f"{case.point}.hook_sae_acts_post"
    arguments = {"saes": sae_for(case), "return_cache_object": False}
    _, cache = case.model.run_with_cache_with_saes(case.inputs[:1], **arguments)
    _, squeezed = case.model.run_with_cache_with_saes(case.inputs[:1], **arguments, remove_batch_dim=True)
    assert isinstance(cache, dict)
    torch.testing.assert_close(squeezed[name], cache[name][0])


@pytest.mark.parametrize("verb", ["run_with_cache", "run_with_cache_with_saes"])
def test_an_activation_cache_is_given_unless_a_dict_is_asked_for(case: Case, verb: str) -> None:
    name = f"{case.point}.hook_sae_acts_post"
    case.model.add_sae(sae_for(case))
    run = getattr(case.model, verb)
    _, cache = run(case.inputs)
    _, plain = run(case.inputs, return_cache_object=False)
    assert isinstance(cache, ActivationCache)
    assert type(plain) is dict
    assert cache.has_batch_dim
    assert list(cache.keys()) == list(plain)
    assert cache[name].shape == (*cache[f"{case.point}.hook_sae_input"].shape[:-1], 24)
    _, squeezed = run(case.inputs[:1], remove_batch_dim=True)
    assert squeezed[name].shape == cache[name].shape[1:]
    assert not squeezed.has_batch_dim


def test_a_cache_finds_what_transformer_lens_calls_by_shorthand() -> None:
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, num_heads=2, depth=2).eval()
    with HookedVisionModel(network, ["blocks.0", "blocks.1", "blocks.1.mlp", "norm"]) as model, torch.no_grad():
        _, cache = model.run_with_cache(torch.rand(1, 3, 32, 32))
        _, last = model.run_with_cache(torch.rand(1, 3, 32, 32), names_filter="blocks.0.hook_out")
    for key, full in {
        ("out", 0): "blocks.0.hook_out",
        ("out", -1): "blocks.1.hook_out",
        ("out", 1, "mlp"): "blocks.1.mlp.hook_out",
        ("out", -1, "m"): "blocks.1.mlp.hook_out",
        "out0": "blocks.0.hook_out",
    }.items():
        assert key in cache
        assert cache[key] is cache.cache_dict[full]
    with pytest.raises(
        KeyError, match=r"\('out', 0, 'attn'\), which TransformerLens calls blocks.0.attn.hook_out, is not"
    ):
        cache["out", 0, "attn"]
    for key in (("out", -1), ("out", -3), ("out", "x"), (), (0,), ("a", 0, "b", 1), 0, None):
        with pytest.raises(KeyError, match="is not in the cache; it holds blocks.0.hook_out"):
            last[key]
    copied = copy.deepcopy(cache)
    copied["out", 0] = torch.zeros(1)
    assert copied["blocks.0"].shape == (1,)
    assert "('out'" not in str(list(copied))


# -- attaching and detaching -------------------------------------------------------------------------------------------


def test_an_sae_stays_until_it_is_reset(case: Case) -> None:
    plain = case.run()
    case.model.add_sae(sae_for(case))
    spliced = case.run()
    assert not torch.allclose(spliced, plain, atol=1e-3)
    assert torch.equal(case.run(), spliced)
    case.model.reset_saes()
    assert torch.equal(case.run(), plain)
    assert case.model.acts_to_saes == {}


@pytest.mark.parametrize("as_list", [False, True])
def test_one_of_two_saes_can_be_reset_by_name(case: Case, as_list: bool) -> None:
    first, second = sae_for(case), build_sae(case.d_other, case.other, seed=1)
    case.model.add_sae(first)
    with_first = case.run()
    case.model.add_sae(second)
    assert set(case.model.acts_to_saes) == {case.point, case.other}
    assert not torch.allclose(case.run(), with_first, atol=1e-3)
    case.model.reset_saes([case.other] if as_list else case.other)
    assert case.model.acts_to_saes == {case.point: first}
    assert torch.equal(case.run(), with_first)


def test_a_second_sae_at_a_point_replaces_the_first(case: Case) -> None:
    first, second = sae_for(case), sae_for(case, seed=1)
    case.model.add_sae(second)
    expected = case.run()
    case.model.reset_saes()
    case.model.add_sae(first)
    case.model.add_sae(second)
    assert case.model.acts_to_saes == {case.point: second}
    assert torch.equal(case.run(), expected)


def test_saes_may_be_nested_and_each_level_is_restored_with_its_error_term(case: Case) -> None:
    plain, outer, inner = case.run(), sae_for(case), sae_for(case, seed=1)
    with case.model.saes(outer, use_error_term=True):
        torch.testing.assert_close(case.run(), plain, rtol=1e-4, atol=1e-5)
        with case.model.saes([inner], use_error_term=False):
            assert case.model.acts_to_saes == {case.point: inner}
            assert not torch.allclose(case.run(), plain, atol=1e-3)
        assert case.model.acts_to_saes == {case.point: outer}
        torch.testing.assert_close(case.run(), plain, rtol=1e-4, atol=1e-5)
    assert torch.equal(case.run(), plain)


def test_an_exception_inside_a_run_restores_what_was_attached(case: Case) -> None:
    outer = sae_for(case)
    case.model.add_sae(outer)
    expected = case.run()

    def fail(_value: torch.Tensor, hook: Any) -> None:
        raise KeyError("from a hook")

    with pytest.raises(KeyError, match="from a hook"):
        case.model.run_with_hooks_with_saes(
            case.inputs, saes=sae_for(case, seed=1), fwd_hooks=[(f"{case.point}.hook_sae_acts_post", fail)]
        )
    with pytest.raises(ZeroDivisionError), case.model.saes([sae_for(case, seed=2)]):
        _ = 1 / 0
    assert case.model.acts_to_saes == {case.point: outer}
    assert torch.equal(case.run(), expected)


def test_reset_saes_end_false_leaves_them_attached(case: Case) -> None:
    sae = sae_for(case)
    with torch.no_grad():
        spliced = case.model.run_with_saes(case.inputs, saes=sae, reset_saes_end=False)
    assert case.model.acts_to_saes == {case.point: sae}
    assert torch.equal(case.run(), spliced)


def test_without_the_argument_the_sae_decides_on_the_error_term(case: Case) -> None:
    plain, sae = case.run(), sae_for(case)
    with pytest.warns(DeprecationWarning):
        sae.use_error_term = True
    with torch.no_grad():
        torch.testing.assert_close(case.model.run_with_saes(case.inputs, saes=sae), plain, rtol=1e-4, atol=1e-5)
        without = case.model.run_with_saes(case.inputs, saes=sae, use_error_term=False)
    assert not torch.allclose(without, plain, atol=1e-3)


def test_hooks_run_inside_the_sae_for_one_run_only(case: Case) -> None:
    sae, seen = sae_for(case), []

    def silence(acts: torch.Tensor, hook: Any) -> torch.Tensor:
        seen.append(hook.name)
        return torch.zeros_like(acts)

    hooks = [(f"{case.point}.hook_sae_acts_post", silence)]
    with torch.no_grad():
        silenced = case.model.run_with_hooks_with_saes(case.inputs, saes=sae, fwd_hooks=hooks)
        case.model.add_sae(sae)
        spliced = case.run()
        sae.W_dec.zero_()
        torch.testing.assert_close(case.run(), silenced)
    assert not torch.allclose(spliced, silenced, atol=1e-3)
    assert seen == [f"{case.point}.hook_sae_acts_post"]


# -- every architecture at a feature map -------------------------------------------------------------------------------


def reference(model: nn.Module, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The network by hand, with `function` on the channels of `middle`'s map."""
    with torch.no_grad():
        feature_map = model.middle(model.stem(images()))
        edited = function(feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return model.fc(model.pool(model.top(edited)).flatten(1))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_sae_at_a_map_works_position_by_position(architecture: str) -> None:
    hooked, sae = network(), build_sae(architecture=architecture)
    expected = reference(hooked.model, lambda x: sae.decode(sae.encode(x.reshape(-1, D_IN))).reshape(x.shape))
    plain = reference(hooked.model, lambda x: x)
    with torch.no_grad():
        torch.testing.assert_close(hooked.run_with_saes(images(), saes=sae), expected, rtol=1e-4, atol=1e-5)
        exact = hooked.run_with_saes(images(), saes=sae, use_error_term=True)
    torch.testing.assert_close(exact, plain, rtol=1e-5, atol=1e-5)
    assert (expected - plain).abs().min() > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_hook_edits_latents_of_every_architecture(architecture: str) -> None:
    hooked, sae = network(), build_sae(architecture=architecture)

    def double(acts: torch.Tensor, hook: Any = None) -> torch.Tensor:
        assert acts.shape[-1] == 24
        return torch.where(torch.arange(24) % 2 == 0, 2 * acts, acts)

    expected = reference(hooked.model, lambda x: sae.decode(double(sae.encode(x))))
    hooks = [(f"{POINT}.hook_sae_acts_post", double)]
    with torch.no_grad():
        found = hooked.run_with_hooks_with_saes(images(), saes=sae, fwd_hooks=hooks)
        unedited = hooked.run_with_saes(images(), saes=sae)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - unedited).abs().max() > 1e-3


def test_a_layer_norm_inside_the_sae_is_over_channels() -> None:
    hooked, sae = network(), build_sae(normalize_activations="layer_norm")
    expected = reference(hooked.model, lambda x: sae(x.reshape(-1, D_IN)).reshape(x.shape))
    with torch.no_grad():
        torch.testing.assert_close(hooked.run_with_saes(images(), saes=sae), expected, rtol=1e-4, atol=1e-5)


def test_matching_pursuit_shows_its_latents_to_hooks_where_saelens_does_not() -> None:
    """A canary: when SAELens fires the hook itself, ours would fire twice."""
    sae, fired = build_sae(architecture="matching_pursuit"), []
    hook = ("hook_sae_acts_post", lambda acts, hook: fired.append(acts.shape))
    sae.run_with_hooks(torch.randn(3, D_IN), fwd_hooks=[hook])
    assert fired == [], "upstream changed: MatchingPursuitSAE fires hook_sae_acts_post"
    _, cache = network().run_with_cache_with_saes(images(), saes=sae)
    assert cache[f"{POINT}.hook_sae_acts_post"].shape[-1] == 24


def test_an_sae_is_tried_where_its_weights_are_and_not_where_it_says() -> None:
    """`sae.cuda()` moves the weights, and SAELens's `sae.device` stays what it was."""
    hooked, sae = network(), build_sae()
    sae.device = torch.device("meta")
    with torch.no_grad():
        hooked.run_with_saes(images(), saes=sae)


# -- metadata that contradicts -----------------------------------------------------------------------------------------


def test_a_temporal_sae_is_refused_because_maps_have_no_before_and_after() -> None:
    sae = build_sae(architecture="temporal", n_heads=1, bottleneck_factor=2)
    with pytest.raises(InputError, match="temporal"):
        network().add_sae(sae)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"d_in": 24}, r"d_in 24, but 'middle\.hook_out' has 12 channels"),
        ({"hook_name": None}, "no hook_name"),
        ({"hook_name": "midle"}, r"no hook point 'midle'; did you mean .*middle"),
        ({"hook_name": "blocks.0.hook_resid_pre"}, r"no hook point 'blocks\.0\.hook_resid_pre'"),
        ({"metadata": {"layout": "channels_first"}}, "layout 'channels_first'"),
    ],
)
def test_metadata_that_contradicts_the_network_raises_one_line(settings: dict[str, Any], reason: str) -> None:
    hooked = network()
    with pytest.raises(InputError, match=reason) as raised:
        hooked.add_sae(build_sae(**settings))
    assert "\n" not in str(raised.value)
    assert hooked.acts_to_saes == {}


def test_an_sae_that_merges_attention_heads_is_refused() -> None:
    sae = build_sae(hook_name=None, reshape_activations="hook_z")
    sae.cfg.metadata.hook_name = POINT
    with pytest.raises(InputError, match="hook_z"):
        network().add_sae(sae)


def test_metadata_alone_says_where_an_sae_goes() -> None:
    for name in ("middle", POINT):
        hooked = network()
        hooked.add_sae(build_sae(hook_name=name, metadata={"layout": "channels_last"}))
        assert list(hooked.acts_to_saes) == [POINT]


def test_saelens_only_warns_of_an_unknown_hook_and_ours_raises() -> None:
    """A canary for the difference that the page on SAELens names."""
    model = copy.deepcopy(transformer())
    model.add_sae(build_sae(8, "no.such.hook"))
    assert model.acts_to_saes == {}, "upstream changed: add_sae no longer skips an unknown hook"
    with pytest.raises(InputError, match="no hook point"):
        network().add_sae(build_sae(hook_name="no.such.hook"))


def test_the_registry_still_maps_names_to_classes_and_configs() -> None:
    """A canary: the tests above run over it."""
    assert {"standard", "gated", "topk", "jumprelu", "matching_pursuit"} <= set(ARCHITECTURES)
    assert len(TRANSCODERS) >= 1
    assert SAE_CLASS_REGISTRY["standard"] == (StandardSAE, StandardSAEConfig)
    assert all(dataclasses.is_dataclass(config) for _, config in SAE_CLASS_REGISTRY.values())
