import itertools

import numpy as np
import pandas as pd
import pytest
from helpers_tables import make_table

from mammosae_plugin.analysis import intervention
from mammosae_plugin.analysis.intervention import DEFAULT_KS, intervene, latent_group, sweep, sweep_controls
from mammosae_plugin.analysis.probing import RankedLatents, class_mean_latents, rank_latents
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.statistics import (
    METRICS,
    bootstrap_metrics,
    classification_metrics,
    interval,
    patient_bootstrap,
)


def ranking_of(table, concept="Mass"):
    return rank_latents(class_mean_latents(table, concept, score="centered_mean"))


def spliced_logits(table, group, mode, head, error_term):
    """The network run with the SAE spliced in: mask the latents, decode, add the error, pool, read out."""
    mask = np.isin(np.arange(table.d_sae), group) == (mode == "activate")
    spliced = (table.latents * mask) @ table.decoder + table.bias
    if error_term:
        spliced = spliced + (table.features - (table.latents @ table.decoder + table.bias))
    return table.read_out(spliced, head)


def test_a_group_is_the_sorted_union_over_classes():
    ranking = rank_latents(np.array([[9.0, 8, 7, 0, 0], [0.0, 0, 7, 8, 9]]))
    assert latent_group(ranking, 0).tolist() == []
    assert latent_group(ranking, 1).tolist() == [0, 4]
    assert latent_group(ranking, 2).tolist() == [0, 1, 3, 4]
    assert latent_group(ranking, 3).tolist() == [0, 1, 2, 3, 4]
    assert latent_group(ranking, 5).tolist() == [0, 1, 2, 3, 4]
    assert latent_group(ranking, 1).dtype == np.int64
    for k in (-1, 6):
        with pytest.raises(InputError, match=f"k is {k}: give a whole number, 0 to 5"):
            latent_group(ranking, k)


@pytest.mark.parametrize("head", ["Mass", "density"])
@pytest.mark.parametrize("error_term", [False, True])
@pytest.mark.parametrize("mode", ["activate", "deactivate"])
def test_the_linear_form_equals_splicing_the_sae_into_the_network(mode, error_term, head):
    table = make_table()
    for k in (0, 1, 5, 20, 40):
        group = latent_group(ranking_of(table, head), k)
        expected = spliced_logits(table, group, mode, head, error_term)
        logits = intervene(table, group, mode=mode, head=head, error_term=error_term)
        assert logits.dtype == np.float64
        assert logits == pytest.approx(expected, abs=1e-5)


def test_an_edit_of_nothing_with_the_error_term_is_an_exact_no_op():
    table = make_table()
    everything, nothing = np.arange(table.d_sae), np.array([], dtype=np.int64)
    own = table.logits("Mass")
    assert np.array_equal(intervene(table, nothing, mode="deactivate", head="Mass", error_term=True), own)
    assert np.array_equal(intervene(table, everything, mode="activate", head="Mass", error_term=True), own)
    dead = np.setdiff1d(everything, np.flatnonzero(table.latents.any(axis=(0, 1, 2))))
    assert len(dead) >= 8
    assert np.array_equal(intervene(table, dead, mode="deactivate", head="Mass", error_term=True), own)


def test_keeping_everything_is_the_model_with_the_sae():
    table = make_table()
    kept = intervene(table, np.arange(table.d_sae), mode="activate", head="density")
    assert kept == pytest.approx(table.logits_with_sae("density"), abs=1e-5)


def test_images_left_with_the_same_latents_get_the_same_logit():
    """Rounding of "all minus the group" would rank images that the edited model cannot tell apart."""
    table = make_table()
    live = np.flatnonzero(table.latents.any(axis=(0, 1, 2)))
    assert len(np.unique(intervene(table, live, mode="deactivate", head="Mass"))) == 1


def test_rows_are_answered_in_the_order_given_with_repeats():
    table = make_table()
    group = latent_group(ranking_of(table), 3)
    rows = np.array([5, 2, 5, 90])
    everything = intervene(table, group, mode="activate", head="Mass")
    assert np.array_equal(intervene(table, group, mode="activate", head="Mass", image_rows=rows), everything[rows])


def test_blocks_do_not_change_the_logits(monkeypatch):
    table = make_table()
    kept = np.random.default_rng(0).random((table.d_sae, 9)) < 0.3
    arguments = {"head": "density", "error_term": False, "image_rows": np.arange(96)}
    whole = intervention._linear_logits(table, kept, **arguments)
    monkeypatch.setattr(intervention, "_IMAGES_PER_BLOCK", 7)
    monkeypatch.setattr(intervention, "_GROUPS_PER_BLOCK", 4)
    assert np.array_equal(intervention._linear_logits(table, kept, **arguments), whole)
    for column in range(9):
        alone = intervene(table, np.flatnonzero(kept[:, column]), mode="activate", head="density")
        assert whole[:, column] == pytest.approx(alone, abs=1e-12)


def test_unknown_modes_and_latents_are_errors():
    table = make_table()
    with pytest.raises(InputError, match="mode is 'remove': choose one of activate, deactivate"):
        intervene(table, np.array([1]), mode="remove", head="Mass")
    with pytest.raises(InputError, match="hold 40: give whole numbers from 0 to 39"):
        intervene(table, np.array([1, 40]), mode="activate", head="Mass")
    with pytest.raises(InputError, match="hold -1:"):
        intervene(table, np.array([-1, 4]), mode="activate", head="Mass")


@pytest.mark.parametrize("error_term", [False, True])
@pytest.mark.parametrize("unit", ["image", "finding_row"])
def test_a_sweep_row_holds_the_metrics_of_its_intervention(unit, error_term):
    table = make_table()
    ranking = ranking_of(table)
    results = sweep(
        table,
        ranking,
        concept="Mass",
        ks=(0, 2, 10),
        unit=unit,
        error_term=error_term,
        n_bootstrap=40,
        seed=3,
        min_patients=1,
    )
    assert list(zip(results["mode"], results["k"], strict=True)) == [
        *itertools.product(["activate", "deactivate"], [0, 2, 10])
    ]
    rows = table.rows("Mass", split="test", unit=unit)
    multiplicities = patient_bootstrap(rows.patient_ids, 40, 3)
    live = np.flatnonzero(table.latents[(table.images["split"] == "training").to_numpy()].any(axis=(0, 1, 2)))
    for _, row in results.iterrows():
        group = latent_group(ranking, row["k"])
        assert row["n_latents"] == len(group)
        assert row["n_live"] == len(set(group) & set(live))
        logits = spliced_logits(table, group, row["mode"], "Mass", error_term)[rows.image_rows]
        if row["k"] == 0 and row["mode"] == "activate" and not error_term:
            assert row["auroc"] == 0.5
        point = classification_metrics(logits, rows.labels)
        samples = bootstrap_metrics(logits, rows.labels, multiplicities)
        for name in METRICS:
            assert row[name] == pytest.approx(point[name], abs=1e-9)
            ends = interval(samples[name])
            if ends not in ((0.0, 0.0), (1.0, 1.0)):
                assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(ends, abs=1e-9)
            else:  # all resamples agree, which is no interval
                assert row[f"{name}_low"] != row[f"{name}_high"]


def test_a_sweep_works_for_several_classes():
    table = make_table()
    results = sweep(table, ranking_of(table, "density"), concept="density", ks=(0, 40), n_bootstrap=20)
    rows = table.rows("density", split="test")
    expected = classification_metrics(table.logits_with_sae("density")[rows.image_rows], rows.labels)
    last = results[(results["mode"] == "activate") & (results["k"] == 40)].iloc[0]
    assert {name: last[name] for name in METRICS} == pytest.approx(expected, abs=1e-6)


def test_sweep_summarises_its_controls_by_mean_and_range():
    table = make_table()
    keywords = {"concept": "Mass", "ks": (1, 4), "seed": 5}
    results = sweep(table, ranking_of(table), n_bootstrap=0, **keywords)
    controls = sweep_controls(table, ranking_of(table), **keywords)
    assert len(controls) == 2 * 2 * 2 * 20
    for _, row in results.iterrows():
        own = controls[(controls["mode"] == row["mode"]) & (controls["k"] == row["k"])]
        for kind in ("random", "mass"):
            for name in ("auroc", "average_precision"):
                values = own.loc[own["kind"] == kind, name].tolist()
                assert len(values) == 20
                expected = (np.mean(values), min(values), max(values))
                assert tuple(row[f"{kind}_{name}_{end}"] for end in ("mean", "low", "high")) == pytest.approx(expected)
        assert np.isnan(row["auroc_low"])


class SplicingPasses:
    """The slow reference as `passes`: every image and group one by one, and a record of what was asked."""

    def __init__(self):
        self.kept = []

    def logits(self, table, kept, *, head, error_term, image_rows):
        self.kept.append(kept)
        columns = [spliced_logits(table, np.flatnonzero(column), "activate", head, error_term) for column in kept.T]
        return np.stack(columns, axis=1)[image_rows]


@pytest.mark.parametrize("error_term", [False, True])
def test_a_sweep_with_passes_equals_the_linear_one_and_asks_for_all_groups_at_once(error_term):
    table = make_table()
    keywords = {"concept": "Mass", "ks": (0, 2), "n_controls": 3, "error_term": error_term, "unit": "finding_row"}
    passes = SplicingPasses()
    found = sweep(table, ranking_of(table), n_bootstrap=10, passes=passes, **keywords)
    expected = sweep(table, ranking_of(table), n_bootstrap=10, **keywords)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-6)
    assert [kept.shape for kept in passes.kept] == [(table.d_sae, 2 * 2 * (1 + 2 * 3))]
    controls = sweep_controls(table, ranking_of(table), passes=passes, **keywords)
    pd.testing.assert_frame_equal(controls, sweep_controls(table, ranking_of(table), **keywords), rtol=1e-6)
    group = latent_group(ranking_of(table), 2)
    assert intervene(table, group, mode="deactivate", head="Mass", passes=passes) == pytest.approx(
        spliced_logits(table, group, "deactivate", "Mass", False)
    )


def test_a_table_of_an_inner_layer_asks_for_passes():
    table = make_table()
    table.readout_kind, table.hook_name = "network", "blocks.3.hook_out"
    message = r"made at blocks\.3\.hook_out, behind which the network is not linear: give `passes`"
    with pytest.raises(InputError, match=message):
        intervene(table, np.array([1]), mode="activate", head="Mass")
    with pytest.raises(InputError, match=message):
        sweep(table, ranking_of(table), concept="Mass", ks=(1,))
    assert len(sweep(table, ranking_of(table), concept="Mass", ks=(1,), passes=SplicingPasses())) == 2


def test_control_metrics_are_those_of_the_drawn_groups():
    table = make_table()
    passes = SplicingPasses()
    controls = sweep_controls(table, ranking_of(table), concept="Mass", ks=(3,), n_controls=4, passes=passes)
    (kept,) = passes.kept
    rows = table.rows("Mass", split="test")
    assert len(controls) == kept.shape[1] == 2 * 2 * 4
    for column, control in controls.iterrows():
        left = kept[:, column]
        group = np.flatnonzero(left if control["mode"] == "activate" else ~left)
        assert control["n_latents"] == len(group) > 0
        logits = intervene(table, group, mode=control["mode"], head="Mass", image_rows=rows.image_rows)
        point = classification_metrics(logits, rows.labels)
        assert control["auroc"] == pytest.approx(point["auroc"], abs=1e-9)
        assert control["average_precision"] == pytest.approx(point["average_precision"], abs=1e-9)
    by_mode = [kept[:, (controls["mode"] == mode).to_numpy()] for mode in ("activate", "deactivate")]
    assert np.array_equal(by_mode[0], ~by_mode[1])  # both modes are measured on the same groups


def test_random_controls_are_live_and_as_many_as_the_groups_live_latents():
    table = make_table()
    live = table.live_latents("training")
    assert len(live) < table.d_sae - 4
    group = np.union1d(live[:3], [table.d_sae - 1, table.d_sae - 2])
    draws = [
        intervention._random_control(group, live, np.zeros(0), np.random.default_rng([0, seed])) for seed in range(50)
    ]
    for draw in draws:
        assert len(draw) == len(np.unique(draw)) == 3
        assert np.isin(draw, live).all()
    assert len(np.unique(np.concatenate(draws))) == len(live)


def test_mass_controls_stop_at_the_first_latent_that_reaches_the_mass_of_the_group():
    mass = np.array([5.0, 1, 2, 3, 0, 4, 0.5, 0])
    live = np.array([0, 1, 2, 3, 5, 6])
    group = np.array([0, 4])
    for seed in range(50):
        draw = intervention._mass_control(group, live, mass, np.random.default_rng(seed))
        assert len(np.unique(draw)) == len(draw)
        assert np.isin(draw, live).all()
        assert mass[draw].sum() >= 5
        assert mass[draw[:-1]].sum() < 5


def test_the_mass_control_of_nothing_is_nothing_and_of_everything_is_everything():
    rng = np.random.default_rng(0)
    mass = rng.random(1000) * np.exp(rng.normal(size=1000) * 5)
    live = np.arange(1000)
    assert len(intervention._mass_control(live[:0], live, mass, np.random.default_rng(1))) == 0
    for seed in range(20):
        draw = intervention._mass_control(live, live, mass, np.random.default_rng(seed))
        assert mass[np.setdiff1d(live, draw)].sum() <= 1e-11 * mass.sum()


def test_mass_is_the_mean_activation_of_the_training_split():
    table = make_table()
    training = (table.images["split"] == "training").to_numpy()
    expected = table.latents[training].mean(axis=(0, 1, 2))
    assert intervention._mean_activation(table, "training") == pytest.approx(expected, abs=1e-6)
    table.latents = -table.latents  # an architecture with negative latents: mass is an amount all the same
    assert intervention._mean_activation(table, "training") == pytest.approx(expected, abs=1e-6)
    table.images["split"] = "test"
    with pytest.raises(InputError, match="no image of split 'training', from which controls are drawn"):
        intervention._mean_activation(table, "training")


def test_a_row_of_a_sweep_does_not_depend_on_the_other_rows():
    table = make_table()
    keywords = {"concept": "Mass", "n_bootstrap": 30, "seed": 1}
    several = sweep(table, ranking_of(table), ks=(20, 1, 5), **keywords)
    alone = sweep(table, ranking_of(table), ks=(5,), modes=("deactivate",), **keywords)
    same = several[(several["k"] == 5) & (several["mode"] == "deactivate")].reset_index(drop=True)
    assert same.equals(alone)
    other_seed = sweep(table, ranking_of(table), ks=(5,), modes=("deactivate",), **{**keywords, "seed": 2})
    assert other_seed["auroc"].equals(alone["auroc"])
    assert not other_seed["random_auroc_mean"].equals(alone["random_auroc_mean"])


def test_the_paper_groups_are_the_default_and_those_above_d_sae_become_d_sae():
    assert DEFAULT_KS == (0, 1, 5, 10, 50, 100, 250, 500, 1000, 5000, 10000, 16384)
    assert intervention._kept_ks(DEFAULT_KS, 512) == [0, 1, 5, 10, 50, 100, 250, 500, 512]
    assert intervention._kept_ks(DEFAULT_KS, 16384) == list(DEFAULT_KS)
    assert intervention._kept_ks((1, 5), 512) == [1, 5]
    with pytest.raises(InputError, match="k is -3"):
        intervention._kept_ks((1, -3), 512)


def test_no_controls_leave_their_columns_empty():
    table = make_table()
    results = sweep(table, ranking_of(table), concept="Mass", ks=(1,), n_controls=0, n_bootstrap=0)
    assert results.filter(regex="^(random|mass)_").isna().all(axis=None)
    assert results.filter(regex="^(random|mass)_").shape == (2, 12)


def test_a_sweep_over_one_class_or_a_foreign_ranking_is_an_error():
    table = make_table()
    ranking = ranking_of(table)
    with pytest.raises(InputError, match="the ranking has 3 latents, but the table has 40"):
        sweep(table, rank_latents(np.zeros((2, 3))), concept="Mass")
    with pytest.raises(InputError, match="n_controls is -1"):
        sweep(table, ranking, concept="Mass", n_controls=-1)
    with pytest.raises(InputError, match="mode is 'keep'"):
        sweep(table, ranking, concept="Mass", modes=("keep",))
    table.images["Mass"] = 0
    with pytest.raises(InputError, match="split 'test' has no positive image for 'Mass' among 32 rows"):
        sweep(table, ranking, concept="Mass")


def test_the_best_latents_matter_more_than_random_ones():
    """The sweep's reason to be: on data made with a concept, ablating its latents costs more than ablating others."""
    table = make_table(n_patients=60)
    results = sweep(table, ranking_of(table), concept="Mass", ks=(1,), n_bootstrap=0).set_index("mode")
    rows = table.rows("Mass", split="test")
    with_sae = classification_metrics(table.logits_with_sae("Mass")[rows.image_rows], rows.labels)["auroc"]
    assert with_sae > 0.8
    assert results.loc["activate", "auroc"] > with_sae - 0.02
    assert results.loc["activate", "auroc"] > results.loc["activate", "random_auroc_mean"] + 0.1
    assert results.loc["deactivate", "auroc"] < results.loc["deactivate", "random_auroc_mean"] - 0.1


def test_a_sweep_reads_an_encoded_table(encoded):
    ranking = ranking_of(encoded)
    results = sweep(encoded, ranking, concept="Mass", ks=(0, 5, 64), n_bootstrap=50, n_controls=5, min_patients=1)
    results = results.set_index(["mode", "k"])
    rows = encoded.rows("Mass", split="test")
    whole = classification_metrics(encoded.logits_with_sae("Mass")[rows.image_rows], rows.labels)
    assert results.loc[("activate", 64), "auroc"] == pytest.approx(whole["auroc"], abs=1e-6)
    assert results.loc[("deactivate", 0), "auroc"] == results.loc[("activate", 64), "auroc"]
    assert results.loc[("activate", 0), "auroc"] == results.loc[("deactivate", 64), "auroc"] == 0.5
    assert results.loc[("activate", 64), "n_live"] == len(encoded.live_latents()) <= 56
    assert results.loc[("activate", 5), "auroc_low"] < results.loc[("activate", 5), "auroc_high"]


def spliced_logits_at(table, head, group, alpha, *, mode, error_term):
    """The SAE run in full with a group of its latents at one value, everywhere, and all others kept or zeroed."""
    latents = table.latents.copy() if mode == "deactivate" else np.zeros_like(table.latents)
    latents[..., group] = alpha
    spliced = latents @ table.decoder + table.bias
    if error_term:
        spliced = spliced + table.features - (table.latents @ table.decoder + table.bias)
    return table.read_out(spliced, head)


@pytest.mark.parametrize("head", ["Mass", "density"])
@pytest.mark.parametrize("error_term", [False, True])
@pytest.mark.parametrize("mode", ["activate", "deactivate"])
def test_latents_set_to_a_value_give_the_logits_of_the_network_run_in_full(mode, error_term, head):
    table = make_table()
    for alpha in (2.5, -1.0, 0.0):
        for group in (np.array([3, 30, 39]), np.arange(40), np.arange(0)):
            expected = spliced_logits_at(table, head, group, alpha, mode=mode, error_term=error_term)
            found = intervene(table, group, mode=mode, head=head, error_term=error_term, alpha=alpha)
            assert found == pytest.approx(expected, abs=1e-5)


def test_a_group_set_to_zero_is_deactivated():
    table = make_table()
    group = np.array([1, 3, 12])
    silenced = intervene(table, group, mode="deactivate", head="Mass")
    assert np.array_equal(intervene(table, group, mode="deactivate", head="Mass", alpha=0), silenced)


def test_a_sweep_sets_its_groups_and_its_controls_to_the_value():
    table = make_table()
    ranking = ranking_of(table)
    keywords = {"concept": "Mass", "ks": (0, 2), "error_term": True, "n_controls": 4, "alpha": 1.5}
    found = sweep(table, ranking, n_bootstrap=0, **keywords).set_index(["mode", "k"])
    rows = table.rows("Mass", split="test")
    for mode in ("activate", "deactivate"):
        group = latent_group(ranking, 2)
        logits = spliced_logits_at(table, "Mass", group, 1.5, mode=mode, error_term=True)[rows.image_rows]
        assert found.loc[(mode, 2), "auroc"] == pytest.approx(classification_metrics(logits, rows.labels)["auroc"])
    controls = sweep_controls(table, ranking, **keywords)
    plain = sweep_controls(table, ranking, **{**keywords, "alpha": None})
    assert not controls["auroc"].equals(plain["auroc"])
    band = controls.query("mode == 'deactivate' and k == 2 and kind == 'random'")["auroc"]
    assert found.loc[("deactivate", 2), "random_auroc_mean"] == pytest.approx(band.mean())


def test_activating_at_a_value_without_the_error_term_makes_all_images_alike():
    table = make_table()
    found = sweep(table, ranking_of(table), concept="Mass", ks=(3,), modes=("activate",), n_bootstrap=0, alpha=2.0)
    assert found["auroc"].tolist() == [0.5]


@pytest.mark.parametrize("alpha", [np.nan, np.inf, "much", [1.0, 2.0]])
def test_an_alpha_that_is_no_finite_number_is_an_error(alpha):
    table = make_table()
    with pytest.raises(InputError, match="alpha is"):
        intervene(table, np.array([1]), mode="activate", head="Mass", alpha=alpha)
    with pytest.raises(InputError, match="alpha is"):
        sweep(table, ranking_of(table), concept="Mass", ks=(1,), alpha=alpha)


def test_other_impossible_arguments_of_interventions_are_errors():
    table, ranking = make_table(), ranking_of(make_table())
    for group in ([1.5], [np.nan], [[1, 2]], ["a"], [True, False]):
        with pytest.raises(InputError, match="the group's latents"):
            intervene(table, np.array(group), mode="activate", head="Mass")
    for image_rows in ([-1], [len(table.images)], [0.5]):
        with pytest.raises(InputError, match="image_rows hold"):
            intervene(table, np.array([1]), mode="activate", head="Mass", image_rows=np.array(image_rows))
    for k in (-1, 41, 1.5, np.nan, True, "3", None):
        with pytest.raises(InputError, match="k is"):
            latent_group(ranking, k)
    for settings in (
        {"ks": (-1,)}, {"ks": (1.5,)}, {"ks": ()}, {"n_controls": -1}, {"n_controls": 2.5}, {"n_bootstrap": -1},
        {"n_bootstrap": np.nan}, {"seed": -1}, {"min_patients": 0}, {"modes": ("keep",)},
    ):  # fmt: skip
        with pytest.raises(InputError):
            sweep(table, ranking, **{"concept": "Mass", "ks": (1,), "n_bootstrap": 0, **settings})
    for indices, scores in (
        (np.zeros((2, 3), dtype=int), np.zeros((2, 3))),
        (np.array([[0, 1, 3]]), np.zeros((1, 3))),
        (np.array([[0, 1, 2]]), np.zeros((1, 2))),
        (np.arange(3), np.arange(3)),
    ):
        with pytest.raises(InputError, match="a ranking"):
            RankedLatents(indices, scores)
