"""What SAELens's own tests ask of HookedSAETransformer, asked of HookedVisionModel: see docs/compatibility.md.

Upstream's four places in a transformer's block are looked for in a small ViT: what the heads give, the MLP's hidden
units, the MLP's output, the residual stream.
"""

import copy
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_backbones import FAMILIES, TorchCNN
from helpers_saelens_cells import ROWS, block
from helpers_study import random_sae
from sae_lens import SAE, StandardSAE, StandardSAEConfig
from sae_lens.analysis.hooked_sae_transformer import get_deep_attr
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata
from transformer_lens import ActivationCache
from transformer_lens.hook_points import HookPoint

from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.attached_sae import AttachedSAE
from mammosae_plugin.errors import InputError

SITES = ("blocks.0", "blocks.1.attn.norm", "blocks.1.mlp.act", "blocks.1.mlp")
NAMES = [f"{site}.hook_out" for site in SITES]
READS, WRITES = "blocks.1.norm2.hook_out", "blocks.1.mlp.hook_out"
MORE = ("blocks.1", "blocks.0.norm2", "blocks.0.mlp", "blocks.1.norm2", "blocks.2", "norm")
ACTS = ".hook_sae_acts_post"


@pytest.fixture(scope="module")
def shared() -> HookedVisionModel:
    network = FAMILIES["vit"]()[0]
    network.layer_aliases = {"first": "blocks.0"}
    return HookedVisionModel(network, [*SITES, *MORE])


@pytest.fixture
def model(shared: HookedVisionModel) -> Iterator[HookedVisionModel]:
    yield shared
    shared.reset_saes()
    assert shared.acts_to_saes == {}
    assert shared.list_hooks() == {}


@pytest.fixture(scope="module")
def plain(shared: HookedVisionModel) -> torch.Tensor:
    with torch.no_grad():
        return shared.model(images())


@pytest.fixture(params=NAMES)
def sae(request: pytest.FixtureRequest, shared: HookedVisionModel) -> SAE[Any]:
    return sae_at(shared, request.param)


def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def random(sae: SAE[Any], seed: int = 0) -> SAE[Any]:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            if parameter is getattr(sae, "threshold", None):
                parameter.abs_()
    return sae


def sae_at(model: HookedVisionModel, name: str, seed: int = 0, **settings: Any) -> SAE[Any]:
    width = model.hook_shapes[model.resolve_hook_name(name)][-1]
    config = StandardSAEConfig(d_in=width, d_sae=24, metadata=SAEMetadata(hook_name=name), **settings)
    return random(StandardSAE(config), seed)


def transcoder_from(
    reads: str = READS, writes: str | None = WRITES, architecture: str = "transcoder", d_in: int = 32, **more: Any
) -> SAE[Any]:
    sae_class, config_class = SAE_CLASS_REGISTRY[architecture]
    metadata = SAEMetadata(hook_name=reads, hook_name_out=writes, **more.pop("metadata", {}))
    config: Any = config_class(
        **{"d_in": d_in, "d_sae": 24, "d_out": 32, "apply_b_dec_to_input": False, "metadata": metadata, **more}
    )
    return random(sae_class(config))


def run(model: HookedVisionModel) -> torch.Tensor:
    with torch.no_grad():
        return model(images())


def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not torch.allclose(one, other, rtol=1e-3, atol=1e-3)


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def stands(model: HookedVisionModel, name: str) -> Any:
    """The SAE in the place of a hook point, found as upstream's tests do; None where it is a hook point."""
    found = get_deep_attr(model, name)
    assert isinstance(found, AttachedSAE | HookPoint)
    return found.sae if isinstance(found, AttachedSAE) else None


class Counter:
    count = 0

    def inc(self, *_args: Any, **_kwargs: Any) -> None:
        self.count += 1


# -- attaching and detaching -------------------------------------------------------------------------------------------


def test_without_saes_the_model_is_itself(model: HookedVisionModel, plain: torch.Tensor) -> None:
    assert model.acts_to_saes == {}
    assert torch.equal(run(model), plain)


def test_an_sae_stands_in_the_place_of_the_hook_point_and_goes(model: HookedVisionModel, sae: SAE[Any]) -> None:
    name = sae.cfg.metadata.hook_name
    model.add_sae(sae)
    assert model.acts_to_saes == {name: sae}
    assert stands(model, name) is sae
    model.reset_saes(name)
    assert model.acts_to_saes == {}
    assert stands(model, name) is None


def test_an_sae_without_error_term_changes_the_output(
    model: HookedVisionModel, sae: SAE[Any], plain: torch.Tensor
) -> None:
    model.add_sae(sae)
    by_default = run(model)
    model.add_sae(sae, use_error_term=False)
    assert torch.equal(run(model), by_default)
    assert differ(by_default, plain)
    model.reset_saes()
    with torch.no_grad():
        assert torch.equal(model.run_with_saes(images(), saes=[sae], use_error_term=False), by_default)
    assert torch.equal(run(model), plain)


def test_a_second_sae_at_a_hook_point_takes_the_place_of_the_first(model: HookedVisionModel, sae: SAE[Any]) -> None:
    name = sae.cfg.metadata.hook_name
    model.add_sae(sae)
    second = SAE.from_dict(sae.cfg.to_dict())
    model.add_sae(second)
    assert model.acts_to_saes == {name: second}
    assert stands(model, name) is second


@pytest.mark.parametrize("named", [None, NAMES[0], NAMES[1:3]])
def test_reset_saes_takes_all_saes_or_those_named(model: HookedVisionModel, named: Any) -> None:
    for name in NAMES:
        model.add_sae(sae_at(model, name))
    assert list(model.acts_to_saes) == NAMES
    model.reset_saes(named)
    gone = NAMES if named is None else [named] if isinstance(named, str) else named
    assert [name for name in NAMES if name not in model.acts_to_saes] == gone
    assert [name for name in NAMES if stands(model, name) is None] == gone


@pytest.mark.parametrize("verb", ["forward", "run_with_cache"])
@pytest.mark.parametrize("attached_before", [False, True])
def test_a_block_of_saes_leaves_what_was_there_before(
    model: HookedVisionModel, verb: str, attached_before: bool
) -> None:
    before = {name: sae_at(model, name) for name in NAMES} if attached_before else {}
    for each in before.values():
        model.add_sae(each)
    inside = [sae_at(model, name, seed=1) for name in NAMES]
    with model.saes(inside):
        assert list(model.acts_to_saes.values()) == inside
        assert [stands(model, name) for name in NAMES] == inside
        getattr(model, verb)(images())
    assert model.acts_to_saes == before
    assert [stands(model, name) for name in NAMES] == [before.get(name) for name in NAMES]


# -- runs --------------------------------------------------------------------------------------------------------------


def test_run_with_saes_attaches_for_one_run(model: HookedVisionModel, plain: torch.Tensor) -> None:
    with torch.no_grad():
        spliced = model.run_with_saes(images(), saes=[sae_at(model, name) for name in NAMES])
    assert differ(spliced, plain)
    assert [stands(model, name) for name in NAMES] == [None] * 4


@pytest.mark.parametrize("verb", ["run_with_cache", "run_with_cache_with_saes"])
def test_caches_are_activation_caches_with_the_latents(
    model: HookedVisionModel, plain: torch.Tensor, verb: str
) -> None:
    saes = [sae_at(model, name) for name in NAMES]
    arguments: dict[str, Any] = {"saes": saes} if verb == "run_with_cache_with_saes" else {}
    for each in saes if not arguments else ():
        model.add_sae(each)
    with torch.no_grad():
        spliced, cache = getattr(model, verb)(images(), **arguments)
    assert differ(spliced, plain)
    assert isinstance(cache, ActivationCache)
    assert all(f"{name}{ACTS}" in cache for name in NAMES)
    assert [stands(model, name) for name in NAMES] == ([None] * 4 if arguments else saes)


@pytest.mark.parametrize("verb", ["run_with_hooks", "run_with_hooks_with_saes"])
def test_hooks_on_latents_run_once_in_one_run(model: HookedVisionModel, plain: torch.Tensor, verb: str) -> None:
    counter, saes = Counter(), [sae_at(model, name) for name in NAMES]
    arguments: dict[str, Any] = {"saes": saes} if verb == "run_with_hooks_with_saes" else {}
    for each in saes if not arguments else ():
        model.add_sae(each)
    hooks = [(f"{name}{ACTS}", counter.inc) for name in NAMES]
    with torch.no_grad():
        assert differ(getattr(model, verb)(images(), fwd_hooks=hooks, **arguments), plain)
    run(model)
    assert counter.count == len(NAMES)
    assert [stands(model, name) for name in NAMES] == ([None] * 4 if arguments else saes)


# -- the error term ----------------------------------------------------------------------------------------------------


def test_with_the_error_term_the_output_is_the_models(
    model: HookedVisionModel, sae: SAE[Any], plain: torch.Tensor
) -> None:
    name, own = sae.cfg.metadata.hook_name, sae.use_error_term
    model.add_sae(sae, use_error_term=True)
    close(run(model), plain)
    model.reset_saes()
    with torch.no_grad():
        close(model.run_with_saes(images(), saes=[sae], use_error_term=True), plain)
        _, without = model.run_with_cache(images())
        output, cache = model.run_with_cache_with_saes(images(), saes=[sae], use_error_term=True)
    close(output, plain)
    assert f"{name}{ACTS}" in cache
    close(cache[f"{name}.hook_sae_output"], without[name])
    assert sae.use_error_term is own
    assert model.acts_to_saes == {}


def test_without_it_the_cache_holds_the_reconstruction(
    model: HookedVisionModel, sae: SAE[Any], plain: torch.Tensor
) -> None:
    name = sae.cfg.metadata.hook_name
    with torch.no_grad():
        _, without = model.run_with_cache(images())
        output, cache = model.run_with_cache_with_saes(images(), saes=[sae], use_error_term=False)
    assert differ(output, plain)
    assert differ(cache[f"{name}.hook_sae_output"], without[name])
    assert torch.equal(cache[f"{name}.hook_sae_input"], without[name])


@pytest.mark.parametrize("wanted", [True, False, None])
def test_the_error_term_is_a_matter_of_the_attachment(
    model: HookedVisionModel, sae: SAE[Any], wanted: bool | None
) -> None:
    name, own = sae.cfg.metadata.hook_name, sae.use_error_term
    model.add_sae(sae, use_error_term=wanted)
    assert get_deep_attr(model, name).use_error_term is bool(wanted)
    model.reset_saes()
    with pytest.raises(KeyError), model.saes(saes=[sae], use_error_term=wanted):
        assert get_deep_attr(model, name).use_error_term is bool(wanted)
        raise KeyError
    assert sae.use_error_term is own
    assert model.acts_to_saes == {}


# -- transcoders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["add_sae", "saes", "run_with_saes", "run_with_cache_with_saes"])
@pytest.mark.parametrize("use_error_term", [False, True])
def test_a_transcoder_stands_at_its_second_hook_point(
    model: HookedVisionModel, plain: torch.Tensor, how: str, use_error_term: bool
) -> None:
    transcoder = transcoder_from()
    with torch.no_grad():
        if how == "add_sae":
            model.add_sae(transcoder, use_error_term=use_error_term)
            assert model.acts_to_saes == {READS: transcoder}
            assert stands(model, WRITES) is transcoder
            output = model(images())
            model.reset_saes(READS)
        elif how == "saes":
            with model.saes(saes=[transcoder], use_error_term=use_error_term):
                assert list(model.acts_to_saes) == [READS]
                output = model(images())
        else:
            output = getattr(model, how)(images(), saes=[transcoder], use_error_term=use_error_term)
            if how == "run_with_cache_with_saes":
                output, cache = output
                assert isinstance(cache, ActivationCache)
                close(cache[f"{WRITES}{ACTS}"], transcoder.encode(cache[READS]))
    assert model.acts_to_saes == {}
    assert stands(model, READS) is None
    assert stands(model, WRITES) is None
    if use_error_term:
        close(output, plain)
    else:
        assert differ(output, plain)
    assert torch.equal(run(model), plain)


@pytest.mark.parametrize("architecture", [name for name in SAE_CLASS_REGISTRY if "transcoder" in name])
def test_a_transcoder_of_any_architecture_puts_out_what_it_makes_of_its_input(
    model: HookedVisionModel, architecture: str
) -> None:
    transcoder = transcoder_from(architecture=architecture)
    with torch.no_grad():
        _, before = model.run_with_cache(images())
        _, cache = model.run_with_cache_with_saes(images(), saes=transcoder)
        close(cache[f"{WRITES}.hook_sae_output"], transcoder(before[READS]))


def test_saelens_still_leaves_the_skip_connection_out_and_ours_does_not() -> None:
    """A canary for the difference that the page on SAELens names."""
    from sae_lens.analysis.hooked_sae_transformer import _SAEWrapper

    x = torch.randn(3, 32)
    with torch.no_grad():
        transcoder = transcoder_from(architecture="skip_transcoder")
        upstream = _SAEWrapper(transcoder)
        upstream.capture_input(x)
        assert differ(upstream(x), transcoder(x)), "upstream changed: HookedSAETransformer adds the skip connection"


def test_an_sae_and_a_transcoder_stand_side_by_side(model: HookedVisionModel, plain: torch.Tensor) -> None:
    transcoder, before, at_its_input = transcoder_from(), sae_at(model, NAMES[0]), sae_at(model, READS)
    model.add_sae(before)
    model.add_sae(transcoder)
    assert list(model.acts_to_saes) == [NAMES[0], READS]
    both = run(model)
    assert differ(both, plain)
    model.add_sae(at_its_input)  # upstream lists one SAE for a name, too
    assert model.acts_to_saes == {NAMES[0]: before, READS: at_its_input}
    assert stands(model, WRITES) is None
    with model.saes(transcoder):
        assert torch.equal(run(model), both)
        assert stands(model, READS) is None
    assert model.acts_to_saes == {NAMES[0]: before, READS: at_its_input}
    model.add_sae(sae_at(model, WRITES))
    model.add_sae(transcoder)
    model.reset_saes(WRITES)
    assert list(model.acts_to_saes) == [NAMES[0]]


def test_a_transcoder_reads_what_hooks_have_made_of_its_input(model: HookedVisionModel) -> None:
    transcoder = transcoder_from()
    with torch.no_grad(), model.saes(transcoder), model.hooks(fwd_hooks=[(READS, lambda value, hook: value * 0)]):
        _, cache = model.run_with_cache(images(), names_filter=f"{WRITES}{ACTS}")
    close(cache[f"{WRITES}{ACTS}"], transcoder.encode(torch.zeros(2, 4, 4, 32)))


@pytest.mark.parametrize("use_error_term", [False, True])
def test_gradients_reach_every_sae_and_transcoder(model: HookedVisionModel, use_error_term: bool) -> None:
    attached = [
        transcoder_from("blocks.0.norm2", "blocks.0.mlp"), transcoder_from(),
        sae_at(model, "blocks.0"), sae_at(model, "blocks.1.attn.norm"),
    ]  # fmt: skip
    with model.saes(attached, use_error_term=use_error_term):
        model(images()).sum().backward()
    model.zero_grad()
    for each in attached:
        assert all(weights.grad.abs().sum() > 0 for weights in (each.W_enc, each.W_dec))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_takes_a_transcoder_along(how: str) -> None:
    torch.manual_seed(0)
    model = HookedVisionModel(FAMILIES["vit"]()[0], ["blocks.1.norm2", "blocks.1.mlp"])
    model.add_sae(transcoder_from())
    clone = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    spliced = run(model)
    assert torch.equal(run(clone), spliced)
    model.reset_saes()
    assert torch.equal(run(clone), spliced)
    assert differ(run(model), spliced)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"writes": None}, "does not say to where; set sae.cfg.metadata.hook_name_out"),
        ({"reads": WRITES, "writes": READS}, "must come later and have the same positions"),
        ({"reads": "blocks.1.norm2", "writes": "head_drop"}, "must come later and have the same positions"),
        ({"d_in": 31}, "d_in 31, but 'blocks.1.norm2.hook_out' has 32 channels"),
        ({"d_out": 31}, "d_out 31, but 'blocks.1.mlp.hook_out' has 32 channels"),
        ({"writes": "nowhere"}, "no hook point 'nowhere'"),
        ({"metadata": {"input_normalization": "unit_l2"}}, "at length 1"),
    ],
)
def test_a_transcoder_that_fits_between_no_hook_points_is_refused_and_the_advice_works(
    changed: dict[str, Any], reason: str
) -> None:
    model = HookedVisionModel(FAMILIES["vit"]()[0], ["blocks.1.norm2", "blocks.1.mlp", "head_drop"])
    transcoder = transcoder_from(**changed)
    with pytest.raises(InputError, match=reason) as raised:
        model.add_sae(transcoder)
    assert "\n" not in str(raised.value)
    assert model.acts_to_saes == {}
    transcoder.cfg.metadata.hook_name, transcoder.cfg.metadata.hook_name_out = READS, WRITES
    transcoder.cfg.metadata.input_normalization = None
    if {"d_in", "d_out"} & set(changed):
        assert str(raised.value).endswith("none hooked has as many, or take an SAE that was trained there")
        transcoder = transcoder_from()
    model.add_sae(transcoder)


def test_an_sae_of_another_width_is_sent_to_a_hook_point_of_that_width() -> None:
    model = HookedVisionModel(FAMILIES["vit"]()[0], ["blocks.1.mlp.act", "blocks.1.mlp"])
    wide = model.hook_shapes["blocks.1.mlp.act.hook_out"][-1]
    sae = random_sae(wide, 8, hook_name="blocks.1.mlp")
    with pytest.raises(InputError, match=f"name one with {wide} channels, such as blocks.1.mlp.act.hook_out, or take"):
        model.add_sae(sae)
    sae.cfg.metadata.hook_name = "blocks.1.mlp.act.hook_out"  # what it says
    model.add_sae(sae)


def test_a_transcoder_whose_input_did_not_run_says_so(model: HookedVisionModel) -> None:
    first, between = (model.rest_from(name, (64, 64)) for name in ("blocks.0", "blocks.1"))
    start = model.read(images(), "blocks.0").raw
    with torch.no_grad(), model.saes(transcoder_from("blocks.0", "blocks.1")):
        close(first(start), run(model))
    with torch.no_grad(), model.saes(transcoder_from("blocks.0", "blocks.2")):
        model(images())
        with pytest.raises(InputError, match=r"reads 'blocks\.0\.hook_out', which did not run before it"):
            between(start)


# -- what images have otherwise ----------------------------------------------------------------------------------------


def test_what_heads_give_is_read_whole_and_not_reshaped(model: HookedVisionModel) -> None:
    of_heads = sae_at(model, SITES[1], reshape_activations="none")
    of_heads.cfg.reshape_activations = "hook_z"
    with pytest.raises(InputError, match="which is for attention heads; attach SAEs of whole channels only"):
        model.add_sae(of_heads)
    of_heads.cfg.reshape_activations = "none"
    model.add_sae(of_heads)


def test_the_input_of_an_mlp_is_the_output_of_the_norm_before_it(model: HookedVisionModel) -> None:
    seen: list[torch.Tensor] = []
    handle = model.model.blocks[1].mlp.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.no_grad():
        _, cache = model.run_with_cache(images())
    handle.remove()
    assert torch.equal(cache[READS].flatten(1, 2), seen[0][:, 1:])


@pytest.mark.parametrize("verb", ["add_sae", "saes", "run_with_saes"])
def test_lists_of_token_numbers_are_refused(model: HookedVisionModel, verb: str) -> None:
    sae, arguments = sae_at(model, NAMES[0]), {"exclude_special_tokens": [0, 2]}
    with pytest.raises(InputError, match="token numbers, which images do not have; give True or False"):
        if verb == "add_sae":
            model.add_sae(sae, **arguments)
        elif verb == "saes":
            with model.saes(sae, **arguments):
                pass
        else:
            model.run_with_saes(images(), saes=sae, **arguments)
    model.add_sae(sae, exclude_special_tokens=True)


# -- the cache and the list of hooks -----------------------------------------------------------------------------------


def test_a_cache_finds_aliases_paths_and_numbers_and_is_a_dict_too(model: HookedVisionModel) -> None:
    with torch.no_grad():
        _, cache = model.run_with_cache(images(), names_filter=["first", "norm"])
        _, inside = model.run_with_cache_with_saes(images(), saes=sae_at(model, "blocks.0"))
    for name in ("first", "blocks.0", "blocks[0]", "blocks[0].hook_out", "first.hook_out"):
        assert cache[name] is cache["blocks.0.hook_out"]
        assert name in cache
    assert inside["first.hook_sae_acts_post"] is inside[f"{NAMES[0]}{ACTS}"]
    assert list(cache) == list(dict(cache)) == list(cache.keys()) == ["blocks.0.hook_out", "norm.hook_out"]
    assert len(cache) == 2
    assert cache.get("blocks.9") is None
    assert "blocks.9" not in cache
    with pytest.raises(KeyError, match="'blocks.9' is not in the cache; it holds blocks.0.hook_out, norm.hook_out"):
        cache["blocks.9"]
    half = {name: value.half() for name, value in cache.items()}
    cache["first"] = half["blocks.0.hook_out"]
    assert cache.pop("norm").dtype == torch.float32
    assert {name: value.dtype for name, value in cache.items()} == {"blocks.0.hook_out": torch.float16}
    clone = pickle.loads(pickle.dumps(cache))
    assert clone.model is None
    assert torch.equal(clone["first"], cache["first"])


def test_methods_for_a_residual_stream_are_refused_and_the_others_work(model: HookedVisionModel) -> None:
    with torch.no_grad():
        _, cache = model.run_with_cache(images()[:1])
    for name in ("logit_attrs", "decompose_resid", "accumulated_resid", "stack_activation"):
        with pytest.raises(InputError, match=rf"{name} takes a language model's residual stream apart"):
            getattr(cache, name)("x")
    assert cache["first"].shape == (1, 4, 4, 32)
    assert cache.to("cpu").remove_batch_dim()["first"].shape == (4, 4, 32)


def test_hooks_are_listed_by_any_name(model: HookedVisionModel) -> None:
    model.add_hook("first", lambda value, hook: value)
    model.add_hook("norm", lambda value, hook: value, dir="bwd")
    assert list(model.list_hooks()) == ["blocks.0.hook_out", "norm.hook_out"]
    for name in ("first", "blocks[0]", ["blocks.0"], lambda name: name.startswith("blocks.0.hook")):
        assert list(model.list_hooks(name)) == ["blocks.0.hook_out"]
    assert list(model.list_hooks(dir="bwd")) == ["norm.hook_out"]
    assert model.list_hooks("blocks.1.mlp") == {}
    with pytest.raises(InputError, match="no hook point 'fist'; did you mean"):
        model.list_hooks("fist")
    model.reset_hooks()


# -- where an SAE can change nothing -----------------------------------------------------------------------------------


def warned(model: HookedVisionModel, name: str, caplog: pytest.LogCaptureFixture, **arguments: Any) -> list[str]:
    """What attaching says; and that it says so exactly where the output stays."""
    caplog.clear()
    with torch.no_grad(), caplog.at_level(logging.WARNING, "mammosae_plugin"):
        plain = model(images())
        model.add_sae(sae_at(model, name), **arguments)
        assert torch.equal(model(images()), plain) == bool(caplog.messages)
    model.reset_saes()
    return caplog.messages


def test_an_sae_that_only_the_class_token_would_read_warns_and_the_advice_works(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = FAMILIES["vit"]()[0]
    with HookedVisionModel(network, ["blocks.1", "blocks.2", "norm"]) as model:
        for name in ("blocks.2", "norm"):
            (message,) = warned(model, name, caplog)
            assert message.startswith(f"the SAE at '{name}.hook_out' cannot change the output: what comes behind reads")
            assert "attach it at the block before, or use prefix_tokens='keep'" in message
            assert "\n" not in message
            assert warned(model, name, caplog)  # again, from what is known by now
        assert warned(model, "blocks.1", caplog) == []
    with HookedVisionModel(network, ["blocks.1", "blocks.2", "norm"], prefix_tokens="keep") as model:
        for name in ("blocks.1", "blocks.2", "norm"):
            assert warned(model, name, caplog) == []
        (message,) = warned(model, "blocks.2", caplog, exclude_special_tokens=True)
        assert "attach it at the block before, or use exclude_special_tokens=False" in message
        assert warned(model, "blocks.1", caplog, exclude_special_tokens=True) == []


@pytest.mark.parametrize("family", [name for name in FAMILIES if not name.startswith("vit")])
def test_models_that_average_positions_do_not_warn(family: str, caplog: pytest.LogCaptureFixture) -> None:
    network, size, inner, last = FAMILIES[family]()
    model = HookedVisionModel(network, [inner, last], example_input=torch.zeros(1, 3, *size))
    with caplog.at_level(logging.WARNING, "mammosae_plugin"):
        for name in (inner, last):
            model.add_sae(sae_at(model, name))
    assert caplog.messages == []


class WithBranch(TorchCNN):
    """A convolution beside, whose output nothing reads, and a head of zeros, as torchvision's ViTs begin."""

    def __init__(self) -> None:
        super().__init__()
        self.side = torch.nn.Conv2d(16, 8, 1)
        torch.nn.init.zeros_(self.fc.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, 2)."""
        features = self.top(self.middle(self.stem(images)))
        self.side(features)
        return self.fc(self.pool(features).flatten(1))


def test_a_branch_that_nothing_reads_warns_and_a_head_of_zeros_does_not(caplog: pytest.LogCaptureFixture) -> None:
    with HookedVisionModel(WithBranch().eval(), ["top", "side"], example_input=images()[:1]) as model:
        (message,) = warned(model, "side", caplog)
        assert message.endswith("nothing behind it reads what its module gives; choose another hook point")
        caplog.clear()
        with caplog.at_level(logging.WARNING, "mammosae_plugin"):
            model.add_sae(sae_at(model, "top"))
        assert caplog.messages == []


# -- the page ----------------------------------------------------------------------------------------------------------


def test_every_test_that_the_page_names_is_there() -> None:
    root = Path(__file__).resolve().parents[1]
    page = (root / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert page.split("<!-- begin saelens -->\n", 1)[1].split("\n<!-- end saelens -->", 1)[0] == block()
    for row in ROWS:
        file, _, name = row.test.partition("::")
        assert f"def {name}(" in (root / "tests" / file).read_text(encoding="utf-8"), row.test
