import copy
import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_layers import layer_of
from helpers_study import random_sae
from sae_lens import (
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    MatchingPursuitSAE,
    MatchingPursuitSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
from sae_lens.saes.sae import SAEMetadata

from mammosae_plugin.activations import LayerOutputs, cache_layer_outputs
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.analysis.intervention import intervene, sweep, sweep_controls
from mammosae_plugin.analysis.probing import class_mean_latents, rank_latents
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import masked_passes
from mammosae_plugin.latents.masked_passes import MaskedPasses

FAMILIES = ("efficientnet", "resnet", "convnext", "swin", "vit", "vit_registers", "torch_cnn")


@pytest.fixture(scope="module", params=FAMILIES)
def any_layer(request, tmp_path_factory):
    """A layer of every family, its table, and the passes over its cached outputs."""
    folder = tmp_path_factory.mktemp(request.param)
    with layer_of(request.param, folder) as layer:
        table = layer.encode(folder / "table")
        outputs = cache_layer_outputs(layer.model, layer.dataset, folder / "cache", hook_name=layer.hook_name)
        yield layer, table, MaskedPasses(layer.model, layer.sae, outputs, {"Mass": layer.head}, masks_at_once=3)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cnn")
    with layer_of("torch_cnn", folder) as layer:
        table = layer.encode(folder / "table")
        outputs = cache_layer_outputs(layer.model, layer.dataset, folder / "cache", hook_name=layer.hook_name)
        yield layer, table, outputs


def passes_of(cnn, **settings):
    layer, _, outputs = cnn
    return MaskedPasses(layer.model, layer.sae, outputs, {"Mass": layer.head}, **settings)


def plain_full_pass(layer, group, mode, *, error_term, alpha=None):
    """The whole network with the SAE spliced in and its latents masked, or set to a value, by a hook."""
    mask = torch.full((layer.sae.cfg.d_sae,), float(mode == "deactivate"))
    mask[torch.from_numpy(group)] = float(mode == "activate")
    level = torch.zeros(layer.sae.cfg.d_sae)
    if alpha is not None:
        mask[torch.from_numpy(group)], level[torch.from_numpy(group)] = 0.0, alpha
    hook = (f"{layer.hook_name}.hook_sae_acts_post", lambda value, hook: value * mask + level)
    with torch.inference_mode():
        logits = layer.model.run_with_hooks_with_saes(
            layer.images, saes=layer.sae, use_error_term=error_term, fwd_hooks=[hook]
        )
    return logits.numpy()


def assert_close(found, expected):
    assert found == pytest.approx(expected, abs=1e-4 * max(1.0, float(np.abs(expected).max())))


GROUPS = [np.arange(0), np.array([3]), np.array([1, 2, 5, 11, 17, 23, 30, 41]), np.arange(48)]


@pytest.mark.parametrize("error_term", [False, True])
@pytest.mark.parametrize("mode", ["activate", "deactivate"])
def test_masked_passes_equal_the_plain_full_pass(any_layer, mode, error_term):
    layer, table, passes = any_layer
    assert table.readout_kind == "network"
    seen = []
    for group in GROUPS:
        expected = plain_full_pass(layer, group, mode, error_term=error_term)
        found = intervene(table, group, mode=mode, head="Mass", error_term=error_term, passes=passes)
        assert_close(found, expected)
        seen.append(expected)
    assert np.abs(seen[0] - seen[2]).max() > 1e-2  # the masks matter
    assert np.abs(seen[2] - seen[3]).max() > 1e-2


@pytest.mark.parametrize("error_term", [False, True])
@pytest.mark.parametrize("mode", ["activate", "deactivate"])
def test_latents_set_to_a_value_equal_the_plain_full_pass(any_layer, mode, error_term):
    layer, table, passes = any_layer
    seen = []
    for group, alpha in ((GROUPS[2], 1.5), (GROUPS[2], -0.5), (GROUPS[1], 1.5), (GROUPS[0], 1.5)):
        expected = plain_full_pass(layer, group, mode, error_term=error_term, alpha=alpha)
        options = {"mode": mode, "head": "Mass", "error_term": error_term, "passes": passes, "alpha": alpha}
        assert_close(intervene(table, group, **options), expected)
        seen.append(expected)
    assert np.abs(seen[0] - seen[1]).max() > 1e-3  # the value matters
    assert np.abs(seen[0] - seen[2]).max() > 1e-3


def test_masks_that_are_impossible_are_errors(cnn):
    passes, table = passes_of(cnn), cnn[1]
    keywords = {"head": "Mass", "error_term": False, "image_rows": np.arange(6)}
    none = np.zeros((48, 2), dtype=np.bool_)
    for kept, more in (
        (np.zeros((48, 2)), {}),
        (np.zeros((47, 2), dtype=np.bool_), {}),
        (np.zeros(48, dtype=np.bool_), {}),
        (none, {"set_latents": np.zeros((48, 3), dtype=np.bool_)}),
        (~none, {"set_latents": ~none, "alpha": 1.0}),
        (none, {"set_latents": ~none, "alpha": np.nan}),
        (none, {"image_rows": np.array([6])}),
    ):
        with pytest.raises(InputError):
            passes.logits(table, kept, **{**keywords, **more})


def test_an_edit_of_nothing_with_the_error_term_gives_the_models_own_logits(any_layer):
    layer, table, passes = any_layer
    nothing = intervene(table, np.arange(0), mode="deactivate", head="Mass", error_term=True, passes=passes)
    assert_close(nothing, table.logits("Mass"))
    with torch.inference_mode():
        assert_close(table.logits("Mass"), layer.model(layer.images).numpy())


def test_keeping_every_latent_gives_the_tables_logits_with_the_sae(any_layer):
    layer, table, passes = any_layer
    kept = intervene(table, np.arange(48), mode="activate", head="Mass", passes=passes)
    assert_close(kept, table.logits_with_sae("Mass"))
    with torch.inference_mode():
        assert_close(kept, layer.model.run_with_saes(layer.images, saes=layer.sae).numpy())


ARCHITECTURES = {
    "gated": lambda **common: GatedSAE(GatedSAEConfig(**common)),
    "topk": lambda **common: TopKSAE(TopKSAEConfig(k=5, **common)),
    "abstopk": lambda **common: AbsTopKSAE(AbsTopKSAEConfig(k=5, **common)),
    "jumprelu": lambda **common: JumpReLUSAE(JumpReLUSAEConfig(**common)),
    "matching_pursuit": lambda **common: MatchingPursuitSAE(MatchingPursuitSAEConfig(max_iterations=5, **common)),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_masked_passes_take_saes_of_every_architecture(architecture, cnn, tmp_path):
    layer, _, outputs = cnn
    metadata = SAEMetadata(hook_name=layer.hook_name)
    sae = ARCHITECTURES[architecture](d_in=layer.sae.cfg.d_in, d_sae=48, metadata=metadata)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name != "threshold":
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    layer = dataclasses.replace(layer, sae=sae)
    table = layer.encode(tmp_path / "table")
    passes = MaskedPasses(layer.model, sae, outputs, {"Mass": layer.head})
    for error_term in (False, True):
        expected = plain_full_pass(layer, GROUPS[2], "deactivate", error_term=error_term)
        found = intervene(table, GROUPS[2], mode="deactivate", head="Mass", error_term=error_term, passes=passes)
        assert_close(found, expected)
    assert np.abs(table.logits("Mass") - expected).max() > 1e-2
    if architecture == "abstopk":
        assert table.mean_latents.min() < 0


def test_at_the_final_map_the_passes_equal_the_linear_form(tmp_path):
    with layer_of("torch_cnn", tmp_path, final=True) as layer:
        table = layer.encode(tmp_path / "table")
        outputs = cache_layer_outputs(layer.model, layer.dataset, tmp_path / "cache", hook_name=layer.hook_name)
        passes = MaskedPasses(layer.model, layer.sae, outputs, {"Mass": layer.head})
        assert table.readout_kind == "linear"
        for mode in ("activate", "deactivate"):
            for error_term in (False, True):
                settings = {"mode": mode, "head": "Mass", "error_term": error_term}
                assert_close(
                    intervene(table, GROUPS[2], passes=passes, **settings), intervene(table, GROUPS[2], **settings)
                )


def test_rows_are_answered_in_the_order_given_and_each_image_is_run_once(cnn):
    _, table, _ = cnn
    passes = passes_of(cnn)
    everything = intervene(table, GROUPS[2], mode="activate", head="Mass", passes=passes)
    before = passes.n_passes
    rows = np.array([4, 1, 4])
    found = intervene(table, GROUPS[2], mode="activate", head="Mass", passes=passes, image_rows=rows)
    assert np.array_equal(found, everything[rows])
    assert before == 6
    assert passes.n_passes == before + 2


def test_masks_that_differ_only_in_latents_that_do_not_fire_are_run_once(cnn):
    _, table, _ = cnn
    dead = np.arange(0, 48, 8)  # the random SAE's latents that never fire
    assert not np.isin(dead, table.live_latents()).any()
    kept = np.zeros((48, 5), dtype=np.bool_)
    kept[[1, 2], :3] = True
    kept[dead[:2], 1] = kept[dead[3], 2] = True
    kept[5, 3] = True
    kept[dead, 4] = True
    passes = passes_of(cnn, masks_at_once=2)
    logits = passes.logits(table, kept, head="Mass", error_term=False, image_rows=np.arange(6))
    # Per image the masks {1, 2} and {5}; the mask that leaves nothing runs once for all of them.
    assert passes.n_passes == 6 * 2 + 1
    assert np.array_equal(logits[:, 0], logits[:, 1])
    assert np.array_equal(logits[:, 0], logits[:, 2])
    assert len(np.unique(logits[:, 4], axis=0)) == 1
    assert np.abs(logits[:, 0] - logits[:, 3]).max() > 1e-3


def test_tokens_that_go_around_the_layer_still_tell_images_apart_when_no_latent_is_left(tmp_path):
    with layer_of("vit", tmp_path) as layer:
        table = layer.encode(tmp_path / "table")
        outputs = cache_layer_outputs(layer.model, layer.dataset, tmp_path / "cache", hook_name=layer.hook_name)
        passes = MaskedPasses(layer.model, layer.sae, outputs, {"Mass": layer.head})
        empty = intervene(table, np.arange(0), mode="activate", head="Mass", passes=passes)
        assert len(np.unique(empty, axis=0)) == 6
        assert_close(empty, plain_full_pass(layer, np.arange(0), "activate", error_term=False))


@pytest.mark.parametrize("masks_at_once", [1, 7])
def test_the_number_of_masks_at_once_and_of_rows_at_once_change_nothing(cnn, masks_at_once, monkeypatch):
    _, table, _ = cnn
    kept = np.random.default_rng(0).random((48, 9)) < 0.4
    arguments = {"head": "Mass", "error_term": True, "image_rows": np.arange(6)}
    expected = passes_of(cnn).logits(table, kept, **arguments)
    monkeypatch.setattr(masked_passes, "rows_at_once", lambda sae: 11)
    found = passes_of(cnn, masks_at_once=masks_at_once).logits(table, kept, **arguments)
    assert found == pytest.approx(expected, abs=1e-5)


def test_an_image_in_which_nothing_fires_is_answered(cnn):
    layer, table, outputs = cnn
    silent = random_sae(layer.sae.cfg.d_in, 48, hook_name=layer.hook_name)
    with torch.no_grad():
        silent.b_enc.fill_(-1e4)
    passes = MaskedPasses(layer.model, silent, outputs, {"Mass": layer.head})
    table.provenance["inputs"]["sae"], before = passes._inputs["sae"], table.provenance["inputs"]["sae"]
    try:
        own = intervene(table, GROUPS[2], mode="activate", head="Mass", error_term=True, passes=passes)
        bias = intervene(table, GROUPS[2], mode="activate", head="Mass", passes=passes)
    finally:
        table.provenance["inputs"]["sae"] = before
    assert_close(own, table.logits("Mass"))
    assert len(np.unique(bias, axis=0)) == 1


def test_a_sweep_at_an_inner_layer_measures_what_the_network_gives(cnn):
    layer, table, _ = cnn
    ranking = rank_latents(class_mean_latents(table, "Mass"))
    keywords = {"concept": "Mass", "ks": (0, 4, 48), "n_controls": 2, "passes": passes_of(cnn)}
    results = sweep(table, ranking, n_bootstrap=5, **keywords).set_index(["mode", "k"])
    rows = table.rows("Mass", split="test")
    expected = plain_full_pass(layer, np.unique(ranking.indices[:, :4]), "activate", error_term=False)
    positive = expected[rows.image_rows][rows.labels == 1]
    negative = expected[rows.image_rows][rows.labels == 0]
    margin = [(a[1] - a[0]) - (b[1] - b[0]) for a in positive for b in negative]
    assert results.loc[("activate", 4), "auroc"] == np.mean(np.array(margin) > 0)
    assert results.loc[("activate", 0), "auroc"] == results.loc[("deactivate", 48), "auroc"] == 0.5
    controls = sweep_controls(table, ranking, **keywords)
    assert len(controls) == 2 * 3 * 2 * 2
    again = sweep_controls(table, ranking, **keywords)
    pd.testing.assert_frame_equal(controls, again)


def test_passes_of_something_else_than_the_table_are_refused(cnn):
    layer, table, outputs = cnn
    heads = {"Mass": layer.head}
    other = random_sae(layer.sae.cfg.d_in, 48, seed=1, hook_name=layer.hook_name)
    passes = MaskedPasses(layer.model, other, outputs, heads)
    with pytest.raises(InputError, match="was made with another sae than these passes run"):
        intervene(table, GROUPS[1], mode="activate", head="Mass", passes=passes)
    other = copy.deepcopy(layer.sae)
    other.cfg.apply_b_dec_to_input = not other.cfg.apply_b_dec_to_input
    passes = MaskedPasses(layer.model, other, outputs, heads)
    with pytest.raises(InputError, match="was made with another sae setting than these passes run"):
        intervene(table, GROUPS[1], mode="activate", head="Mass", passes=passes)
    outputs = LayerOutputs(outputs.folder)
    outputs.manifest = {**outputs.manifest, "preprocessing": "of other images"}
    passes = MaskedPasses(layer.model, layer.sae, outputs, heads)
    with pytest.raises(InputError, match="was made with another preprocessing than these passes run"):
        intervene(table, GROUPS[1], mode="activate", head="Mass", passes=passes)
    outputs = LayerOutputs(outputs.folder)
    passes = MaskedPasses(layer.model, layer.sae, outputs, {"Mass": torch.nn.Linear(16, 2)})
    with pytest.raises(InputError, match="was made with another head than these passes run"):
        intervene(table, GROUPS[1], mode="activate", head="Mass", passes=passes)
    with pytest.raises(InputError, match="no head for 'Cyst'; they have Mass"):
        intervene(table, GROUPS[1], mode="activate", head="Cyst", passes=passes)
    elsewhere = random_sae(layer.sae.cfg.d_in, 48, hook_name="top.hook_out")
    with pytest.raises(InputError, match=r"belongs to top\.hook_out, but .* holds outputs of middle\.hook_out"):
        MaskedPasses(layer.model, elsewhere, outputs, heads)
    with pytest.raises(InputError, match="masks_at_once is 0"):
        passes_of(cnn, masks_at_once=0)


def test_a_cache_of_other_weights_or_without_an_image_is_refused(cnn, tmp_path):
    layer, table, outputs = cnn
    test_only = cache_layer_outputs(
        layer.model, layer.dataset.select(split="test"), tmp_path / "test", hook_name=layer.hook_name
    )
    passes = MaskedPasses(layer.model, layer.sae, test_only, {"Mass": layer.head})
    with pytest.raises(InputError, match=r"has no output for image a1\.png; cache the images of that split"):
        intervene(table, GROUPS[1], mode="activate", head="Mass", passes=passes)
    with layer_of("torch_cnn", tmp_path / "other") as other:
        with torch.no_grad():
            next(other.model.parameters()).add_(1)
        with pytest.raises(InputError, match="holds outputs of a model with other weights"):
            MaskedPasses(other.model, layer.sae, outputs, {"Mass": other.head})


def test_an_sae_that_does_not_decode_linearly_is_refused(cnn):
    layer, _, outputs = cnn
    config = StandardSAEConfig.from_dict({**layer.sae.cfg.to_dict(), "normalize_activations": "layer_norm"})
    with pytest.raises(InputError, match=r"\(standard\) does not decode as latents @ W_dec"):
        MaskedPasses(layer.model, StandardSAE(config), outputs, {"Mass": layer.head})


def test_a_layer_that_a_shortcut_passes_by_is_refused(tmp_path):
    with layer_of("resnet", tmp_path) as whole:
        network, dataset = whole.model.model, whole.dataset
    with HookedVisionModel(network, ["layer2.0.conv2"], example_input=torch.zeros(1, 3, 96, 64)) as model:
        hook_name = "layer2.0.conv2.hook_out"
        outputs = cache_layer_outputs(model, dataset, tmp_path / "cache", hook_name=hook_name)
        sae = random_sae(model.hook_shapes[hook_name][-1], 16, hook_name=hook_name)
        with pytest.raises(InputError, match="flow around it to the end, such as a shortcut"):
            MaskedPasses(model, sae, outputs, {"Mass": network.fc})
