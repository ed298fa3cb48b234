"""Interventions of several analyses at an inner layer, run at once: the same numbers by fewer passes."""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_layers import layer_of

from mammosae_plugin.activations import cache_layer_outputs
from mammosae_plugin.analysis.intervention import intervene, single_ablations, sweep
from mammosae_plugin.analysis.probing import class_mean_latents, rank_latents
from mammosae_plugin.datasets.splits import sampled_patients
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import encode_latents
from mammosae_plugin.latents.kept_passes import AskedMasks, KeptPasses
from mammosae_plugin.latents.masked_passes import MaskedPasses
from mammosae_plugin.study.layer_passes import PassesLeft, permit

CONCEPTS = ("Mass", "Suspicious_Calcification")


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    """A table of two classifiers on one encoder, and what makes their passes."""
    folder = tmp_path_factory.mktemp("cnn")
    with layer_of("torch_cnn", folder) as layer:
        torch.manual_seed(1)
        heads = {concept: torch.nn.Linear(layer.head.in_features, 1) for concept in CONCEPTS}
        table = encode_latents(layer.model, layer.sae, layer.dataset, folder / "table", heads=heads, batch_size=2)
        outputs = cache_layer_outputs(layer.model, layer.dataset, folder / "cache", hook_name=layer.hook_name)
        yield table, partial(MaskedPasses, layer.model, layer.sae, outputs, heads, masks_at_once=3)


def analyses_of(table):
    """What is asked of passes, by name: sweeps with and without the error term, and latents removed one by one."""
    found = {}
    for concept in CONCEPTS:
        ranking = rank_latents(class_mean_latents(table, concept, split="test"))
        for error_term in (False, True):
            found[concept, error_term] = partial(
                sweep, table, ranking, concept=concept, ks=(0, 2, 5, 48), n_controls=2, n_bootstrap=5,
                error_term=error_term,
            )  # fmt: skip
        latents = ranking.indices[1, :4]
        found[concept, "removed"] = partial(
            single_ablations, table, latents, head=concept, image_rows=np.arange(6), n_controls=3
        )
    return found


def asked_of(table):
    asked = AskedMasks(table)
    for analysis in analyses_of(table).values():
        asked.by(lambda passes, analysis=analysis: analysis(passes=passes))
    return asked


def as_frame(answer):
    return answer if isinstance(answer, pd.DataFrame) else answer.to_frame()


def test_masks_of_all_concepts_and_both_error_terms_are_run_once_and_give_the_numbers_of_passes_of_their_own(
    cnn, tmp_path
):
    table, passes = cnn
    alone, n_alone = {}, 0
    for name, analysis in analyses_of(table).items():
        own = passes()
        alone[name] = as_frame(analysis(passes=own))
        n_alone += own.n_passes
    asked = asked_of(table)
    left = KeptPasses.left(tmp_path / "kept", asked)
    expected = asked.estimate(left)
    kept = KeptPasses(tmp_path / "kept", asked, passes)
    for name, analysis in analyses_of(table).items():
        pd.testing.assert_frame_equal(as_frame(analysis(passes=kept)), alone[name], rtol=1e-5, atol=1e-6)
    assert 0 < kept.n_passes < n_alone
    # What is told beforehand, from the table alone, is what is run, but for the one pass with nothing left.
    assert 0 <= kept.n_passes - expected <= 1
    assert left == asked.image_rows
    assert KeptPasses.left(tmp_path / "kept", asked) == []
    assert asked.n_masks < asked.n_asked


def test_answers_are_kept_and_a_killed_run_goes_on_where_it_stopped(cnn, tmp_path, monkeypatch):
    table, passes = cnn
    monkeypatch.setattr("mammosae_plugin.latents.kept_passes._PASSES_PER_SHARD", 1)  # an image each
    whole = KeptPasses(tmp_path / "whole", asked_of(table), passes)
    run, images = MaskedPasses.logits_of_heads, []

    def dies(self, table, edits, image_rows, heads):
        images.extend(image_rows)
        if len(images) == 3:
            raise KeyboardInterrupt
        return run(self, table, edits, image_rows, heads)

    monkeypatch.setattr(MaskedPasses, "logits_of_heads", dies)
    with pytest.raises(KeyboardInterrupt):
        KeptPasses(tmp_path / "broken", asked_of(table), passes)
    assert KeptPasses.left(tmp_path / "broken", asked_of(table)) == images[2:] + [3, 4, 5]
    again = KeptPasses(tmp_path / "broken", asked_of(table), passes)
    assert len(images) < 3 + 6  # not all of the six once more
    for analysis in analyses_of(table).values():
        pd.testing.assert_frame_equal(as_frame(analysis(passes=again)), as_frame(analysis(passes=whole)))
    nothing = KeptPasses(tmp_path / "broken", asked_of(table), lambda: pytest.fail("the network is needed no more"))
    analyses_of(table)["Mass", True](passes=nothing)
    assert nothing.n_passes == 0


def test_what_was_not_asked_ahead_is_run_when_it_is_asked(cnn, tmp_path):
    table, passes = cnn
    kept = KeptPasses(tmp_path / "kept", asked_of(table), passes)
    before = kept.n_passes
    for settings in ({"mode": "deactivate"}, {"mode": "activate", "alpha": 0.5, "error_term": True}):
        group = np.array([1, 7, 11])
        found = intervene(table, group, head="Mass", passes=kept, **settings)
        np.testing.assert_array_equal(found, intervene(table, group, head="Mass", passes=passes(), **settings))
    assert kept.n_passes > before


def test_a_pass_is_timed_without_being_counted(cnn):
    table, passes = cnn
    asked, network = asked_of(table), passes()
    edits, _ = asked.edits(asked.heads_at(0))
    assert network.seconds_of_a_pass(table, edits, 0) > 0
    assert network.n_passes == 0


def test_hours_are_those_of_all_layers_and_encoders_together():
    one = PassesLeft("layer_6", "a", 10, 20, 100, 50, 1000, 3600.0)
    more = replace(one, layer="layer_8", seconds=7200.0)
    permit([], 0.1)
    permit([one, more], 3.0)
    with pytest.raises(InputError, match=r"at layer_6: 10 masks \(20 were .* allows 0\.5 h: set .* to 25 or fewer"):
        permit([one], 0.5)
    with pytest.raises(InputError, match=r"about 2,000 passes .* 3\.0 h .* at layer_8.* allows 2 h: .* to 33 or fewer"):
        permit([one, more], 2.0)


def test_images_without_a_label_of_a_concept_are_not_run_for_it(cnn, tmp_path):
    table, passes = cnn
    kept = np.zeros((48, 2), dtype=np.bool_)
    kept[:5, 0] = kept[7, 1] = True
    asks = {"Mass": np.array([0, 2, 3]), "Suspicious_Calcification": np.array([2, 4])}
    asked = AskedMasks(table)
    for head, rows in asks.items():
        asked.by(lambda p, head=head, rows=rows: p.logits(table, kept, head=head, error_term=True, image_rows=rows))
    found = KeptPasses(tmp_path / "kept", asked, passes)
    n_run = found.n_passes
    assert n_run <= 4 * 2
    for head, rows in asks.items():
        settings = {"head": head, "error_term": True, "image_rows": rows}
        np.testing.assert_allclose(
            found.logits(table, kept, **settings), passes().logits(table, kept, **settings), rtol=1e-5, atol=1e-6
        )
    assert found.n_passes == n_run
    other = found.logits(table, kept, head="Mass", error_term=True, image_rows=np.array([4]))  # run for the other head
    assert np.isfinite(other).all()
    assert found.n_passes > n_run


def test_sampled_patients_have_the_classes_of_all_as_often():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"patient_id": np.repeat(np.arange(400), 2)})
    frame["Mass"] = np.repeat(rng.random(400) < 0.3, 2) * (np.arange(800) % 2)  # one image of two
    frame["Cyst"] = np.repeat(rng.random(400) < 0.1, 2)
    of_patients = frame.groupby("patient_id").max()
    chosen = sampled_patients(frame, ["Mass", "Cyst"], 100, seed=3)
    assert len(set(chosen)) == 100
    own = of_patients.loc[[int(name) for name in chosen]]
    assert abs(own["Mass"].sum() - of_patients["Mass"].sum() / 4) <= 1
    assert abs(own["Cyst"].sum() - of_patients["Cyst"].sum() / 4) <= 2
    assert sampled_patients(frame, ["Mass", "Cyst"], 100, seed=3) == chosen
    assert sampled_patients(frame, ["Mass", "Cyst"], 100, seed=4) != chosen
    assert len(sampled_patients(frame, ["Mass"], 1000)) == 400
