"""Absorption, splitting, redundancy, density and clarity: held against plain definitions, and what they refuse."""

import itertools

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import roc_auc_score, roc_curve

from mammosae_plugin.analysis import (
    absorption,
    absorption_of,
    clarity,
    clarity_of,
    code_redundancy_of,
    decoder_redundancy_of,
    firing_density,
    firing_density_of,
    implied_hierarchy,
    nested_labels,
    redundancy,
    splitting,
    splitting_of,
)
from mammosae_plugin.analysis.hierarchies import _best, _cut
from mammosae_plugin.errors import InputError

GROUPS = np.repeat(np.arange(40), 2)


@pytest.fixture(scope="module")
def codes():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(80, 7)) * (rng.random((80, 7)) < 0.4)
    values[:, 4] = 0
    return values


# Absorption


def test_latents_and_values_are_chosen_as_scikit_learn_would(codes):
    labels = np.random.default_rng(1).random((80, 3)) < 0.4
    aurocs = np.array([[roc_auc_score(label, column) for label in labels.T] for column in codes.T])
    aurocs[4] = -1  # never fires
    assert _best(sparse.csr_array(codes), labels, 2).tolist() == np.argsort(-aurocs, axis=0)[:2].tolist()
    for column in codes.T:
        false, true, _ = roc_curve(labels[:, 0], column)
        above = column > _cut(column, labels[:, 0])
        assert above[labels[:, 0]].mean() - above[~labels[:, 0]].mean() == pytest.approx((true - false).max())


def test_absorption_counts_images_where_the_finer_latent_fires_alone():
    """The coarse latent misses three quarters of the child's images and a tenth of the others."""
    parent, child = np.arange(240) < 120, np.arange(240) < 40
    fires = parent & ~(np.arange(240) < 30) & ~((np.arange(240) >= 40) & (np.arange(240) < 48))
    codes = np.column_stack([fires, child, np.zeros(240)]).astype(float)
    labels = {"coarse": parent, "fine": child.astype(float)}
    found = absorption_of(codes, labels, np.arange(240), n_permutations=50).iloc[0]
    assert found[["child", "parent", "main", "absorber"]].tolist() == ["fine", "coarse", 0, 1]
    assert found[["n_child", "n_rest", "n_child_groups", "n_rest_groups"]].tolist() == [40, 80, 40, 80]
    expected = {"miss_child": 0.75, "miss_rest": 0.1, "absorbed": 0.75, "chance": 0.1, "excess": 0.65}
    assert found[list(expected)].to_dict() == pytest.approx(expected)
    assert 0.4 < found["excess_low"] < 0.65 < found["excess_high"] < 0.9
    assert found["p"] == found["q"] == pytest.approx(1 / 51)
    both = absorption_of(codes, labels, np.arange(240), n_main=2, n_permutations=0, n_bootstrap=0).iloc[0]
    assert both["absorbed"] == 0  # the child's latent is one of the parent's own then
    assert np.isnan(both[["p", "excess_low"]].astype(float)).all()


def test_missing_labels_and_contradictions_are_left_out():
    rng = np.random.default_rng(2)
    parent, child = np.repeat([1.0, 0], 60), np.where(np.arange(120) < 30, 1.0, 0)
    codes = rng.random((120, 5)) + 0.5 * parent[:, None]
    missing = np.where(np.arange(120) % 7 == 0, np.nan, child)
    missing[100] = 1  # the child without its parent
    own = {"n_permutations": 5, "n_bootstrap": 20, "hierarchy": {"child": "parent"}}
    found = absorption_of(codes, {"parent": parent, "child": missing}, np.arange(120), **own)
    kept = ~np.isnan(missing) & (np.arange(120) != 100)
    expected = absorption_of(
        codes[kept], {"parent": parent[kept], "child": child[kept]}, np.arange(120)[kept], **own
    ).assign(n_left_out=1)
    assert found.equals(expected)


def test_too_few_groups_are_said():
    labels = {"parent": np.repeat([1.0, 0], 20), "child": np.where(np.arange(40) < 3, 1.0, 0)}
    one = absorption_of(np.eye(40), labels, np.repeat(np.arange(10), 4), {"child": "parent"})
    assert "fewer than two groups" in one["reason"].iloc[0]
    assert one[["excess", "p", "q", "main"]].isna().all(axis=None)
    silent = absorption_of(np.zeros((40, 4)), labels, np.arange(40), {"child": "parent"})
    assert silent["reason"].tolist() == ["no latent varies between these images"]
    assert silent[["absorbed", "chance", "p", "main"]].isna().all(axis=None)
    few = absorption_of(np.eye(40), labels, np.arange(40), {"child": "parent"}, n_permutations=3)
    assert few["reason"].iloc[0].startswith("no interval: the child") and "3 groups, not 10" in few["reason"].iloc[0]
    assert few[["excess_low", "excess_high"]].isna().all(axis=None)  # three groups give no interval


def test_the_nearest_label_that_is_implied_is_the_parent():
    at = np.arange(100)
    labels = {
        "all": at < 100,
        "lesion": at < 60,
        "mass": at < 40,
        "spiculated": at < 15,
        "other": at % 2,
        "rare": at < 2,
    }
    assert implied_hierarchy(labels) == {"mass": "lesion", "spiculated": "mass"}
    labels["spiculated"] = np.where(at == 99, 1, labels["spiculated"])
    assert implied_hierarchy(labels, min_share=0.9) == {"mass": "lesion", "spiculated": "mass"}
    assert implied_hierarchy(labels) == {"mass": "lesion"}


def test_a_table_gives_its_concepts_as_nested_labels(encoded):
    labels = nested_labels(encoded, split="training")
    graded = [name for name in labels if ">=" in name]
    assert graded
    for name, concept in encoded.vocabulary.items():
        if concept.kind == "graded":
            own = [labels[f"{name} >= {one}"].to_numpy() for one in concept.classes[1:]]
            assert (np.diff(own, axis=0) <= 0).all()
            assert (np.sum(own, axis=0) == encoded.rows(name, split="training").labels).all()
    parent, child = graded[0], graded[1]
    found = absorption(encoded, {child: parent}, split="training", n_permutations=3, n_bootstrap=0)
    assert found["child"].tolist() == [child]


# Splitting


def test_parts_of_a_latent_are_those_inside_it(codes):
    kinds = np.arange(80) % 8
    wide = np.eye(8)[kinds] * (1 + np.arange(80)[:, None] / 80)
    small = np.column_stack([wide[:, :4].sum(axis=1), wide[:, 4], np.zeros(80), codes[:, 0]])
    for form in (np.asarray, sparse.csr_array):
        found = splitting_of(form(small), form(wide), GROUPS)
        assert found.latents["latent"].tolist() == [0, 1, 3]
        assert found.latents["fate"].tolist() == ["split", "kept", "gone"]
        assert found.parts[["latent", "part"]].to_numpy().tolist()[:4] == [[0, 3], [0, 2], [0, 1], [0, 0]]
        assert found.latents["together"].iloc[0] == pytest.approx(1)
        assert found.latents["coverage"].iloc[:2].tolist() == [1, 1]
        assert found.latents["coverage_chance"].iloc[0] == 0.5
        assert (found.chance_split, found.chance_kept) == (0, 0)
    whole = np.corrcoef(small[:, 0], wide.T)[0, 1:]
    assert found.latents["correlation"].iloc[0] == pytest.approx(whole.max())
    assert found.share("kept") == pytest.approx(1 / 3)
    assert "33.3% split" in str(found)


def test_parts_cover_a_share_with_an_interval(codes):
    rng = np.random.default_rng(3)
    small = np.zeros((80, 1))
    small[:40, 0] = 1 + 0.1 * rng.random(40)
    wide = np.zeros((80, 2))
    wide[:16, 0], wide[16:32, 1] = 1, 1
    found = splitting_of(small, wide, GROUPS).latents.iloc[0]
    assert (found["n_parts"], found["coverage"], found["fate"]) == (2, 0.8, "split")
    assert found["coverage_low"] < 0.8 < found["coverage_high"]
    combined = np.corrcoef(small[:, 0], wide.sum(axis=1))[0, 1]
    assert found["together"] == pytest.approx(combined, abs=0.01)
    empty = splitting_of(np.zeros((5, 2)), np.ones((5, 2)), np.arange(5))
    assert len(empty.latents) == len(empty.parts) == 0 and np.isnan(empty.share("split"))
    alone = splitting_of(codes, np.ones((80, 2)), GROUPS)
    assert (alone.latents["fate"] == "gone").all() and alone.latents["nearest"].isna().all()


# Redundancy


def test_redundancy_of_codes_is_the_largest_correlation(codes, monkeypatch):
    codes = np.column_stack([codes, codes[:, 0] * 2])
    live = [0, 1, 2, 3, 5, 6, 7]
    expected = np.corrcoef(codes[:, live].T) - 2 * np.eye(7)
    whole = code_redundancy_of(codes, GROUPS)
    assert whole.latents["latent"].tolist() == live
    np.testing.assert_allclose(whole.latents["likeness"], expected.max(axis=1), atol=1e-12)
    assert whole.latents["nearest"].tolist() == [live[place] for place in expected.argmax(axis=1)]
    assert whole.share == pytest.approx(2 / 7)
    assert whole.chance_share == 0
    middle = whole.latents.iloc[1]
    assert middle["likeness_low"] < middle["likeness"] < middle["likeness_high"]
    monkeypatch.setattr("mammosae_plugin.analysis.dictionaries._BLOCK", 3)
    np.testing.assert_allclose(
        code_redundancy_of(codes, GROUPS).latents.to_numpy(), whole.latents.to_numpy(), atol=1e-12
    )
    nothing = code_redundancy_of(np.zeros((5, 2)), np.arange(5))
    assert len(nothing.latents) == 0 and np.isnan(nothing.share) and np.isnan(nothing.chance_mean)


def test_intervals_of_correlations_are_those_of_resampled_groups(codes):
    from mammosae_plugin.measures.statistics import patient_bootstrap

    found = code_redundancy_of(codes, GROUPS, n_bootstrap=50, seed=4).latents.iloc[0]
    one, other = codes[:, int(found["latent"])], codes[:, int(found["nearest"])]
    drawn = [np.repeat(np.arange(80), times) for times in patient_bootstrap(GROUPS, 50, 4)]
    expected = np.percentile([np.corrcoef(one[rows], other[rows])[0, 1] for rows in drawn], [2.5, 97.5])
    np.testing.assert_allclose(found[["likeness_low", "likeness_high"]].astype(float), expected, atol=1e-9)


def test_redundancy_of_decoders_is_semantic_lenss():
    rows = np.random.default_rng(5).normal(size=(30, 60))
    rows[3], rows[9] = 0, 5 * rows[2]
    unit = np.delete(rows, 3, axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    found = decoder_redundancy_of(rows, n_draws=3)
    assert found.mean == pytest.approx((unit @ unit.T - 2 * np.eye(29)).max(axis=1).mean(), abs=1e-6)
    assert found.latents.set_index("latent")["nearest"][[2, 9]].tolist() == [9, 2]
    assert found.share == pytest.approx(2 / 29)
    assert 3 not in found.latents["latent"].to_numpy()
    assert "by chance" in str(found)


def test_random_directions_are_as_redundant_as_chance_and_lie_as_the_rows_do():
    rng = np.random.default_rng(6)
    flat = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 40))  # in three dimensions everything has a near neighbour
    found = decoder_redundancy_of(flat)
    assert found.mean > 0.9
    assert found.mean == pytest.approx(found.chance_mean, abs=0.03)
    wide = decoder_redundancy_of(rng.normal(size=(20, 40)))  # fewer rows than dimensions
    assert wide.mean < 0.6 and wide.chance_mean < 0.9


# Density


def test_densities_are_counted(codes):
    found = firing_density_of(codes, GROUPS, dense_above=0.4)
    rates = (codes != 0).mean(axis=0)
    np.testing.assert_allclose(found.latents["rate"], rates)
    assert found.latents["kind"].tolist() == ["dead" if not rate else "dense" if rate > 0.4 else "" for rate in rates]
    assert found.dead_share == pytest.approx(1 / 7)
    assert found.chance_rate == pytest.approx(rates.mean())
    assert found.chance_dead_share == pytest.approx(np.prod(1 - (codes != 0).mean(axis=1)))
    assert found.histogram["never"] == 1 and sum(found.histogram["counts"]) == 6
    live = found.latents[found.latents["n_images"] > 0]
    assert ((live["rate_low"] < live["rate"]) & (live["rate"] < live["rate_high"])).all()
    assert found.latents[["rate_low", "log10_rate"]].iloc[4].isna().all()
    assert "14.3% never fire" in str(found)


# Clarity


def test_clarity_is_the_mean_cosine_of_all_pairs(codes):
    vectors = np.random.default_rng(7).normal(size=(80, 5))
    silent = clarity_of(np.zeros((80, 3)), vectors, np.arange(80), n=6)
    assert silent["clarity"].isna().all() and silent["reason"].tolist() == ["it fires in fewer than 6 groups"] * 3
    found = clarity_of(codes, vectors, np.arange(80), n=6)
    assert list(found) == list(silent) and not found["reason"].any()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for latent, clear, low, high in found[["latent", "clarity", "clarity_low", "clarity_high"]].to_numpy():
        top = np.argsort(-codes[:, int(latent)], kind="stable")[:6]
        pairs = [unit[i] @ unit[j] for i, j in itertools.combinations(top, 2)]
        left_out = [
            np.mean([unit[i] @ unit[j] for i, j in itertools.combinations(np.delete(top, k), 2)]) for k in range(6)
        ]
        assert clear == pytest.approx(np.mean(pairs))
        error = np.sqrt(5 / 6 * np.square(np.subtract(left_out, np.mean(left_out))).sum())
        assert (low, high) == pytest.approx((clear - 1.96 * error, clear + 1.96 * error))
    assert found["null"].iloc[0] == pytest.approx(0, abs=0.03)
    assert 4 not in found["latent"].to_numpy()


# Tables


def test_tables_are_scored_like_their_arrays(encoded, tmp_path):
    rows = np.flatnonzero((encoded.images["split"] == "training").to_numpy())
    patients = encoded.images["patient_id"].to_numpy()[rows]
    of_table = redundancy(encoded, split="training", n_bootstrap=0)
    assert of_table.latents.equals(code_redundancy_of(encoded.mean_latents[rows], patients, n_bootstrap=0).latents)
    assert firing_density(encoded, split="training").dead_share == pytest.approx(
        1 - len(encoded.live_latents("training")) / encoded.d_sae
    )
    assert (clarity(encoded, split="training", n=5)["clarity"] > 0).all()
    itself = splitting(encoded, encoded, split="training")
    assert itself.share("kept") == 1
    with pytest.raises(InputError, match="no level above 64 latents"):
        splitting(encoded)
    with pytest.raises(InputError, match="embeddings have shape"):
        clarity(encoded, np.ones((2, 3)))
    with pytest.raises(InputError, match="no split 'tset'"):
        redundancy(encoded, split="tset")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: absorption_of(np.eye(4), {"a": [0, 1, 0, 1]}, np.arange(4)), "none of the labels a implies"),
        (lambda: absorption_of(np.eye(4), {"a": [0, 1, 2, 1]}, np.arange(4)), "something else than 0, 1 and NaN"),
        (lambda: absorption_of(np.eye(4), {"a": [0, 1]}, np.arange(4)), r"labels of a have shape \(2,\)"),
        (lambda: absorption_of(np.eye(4), {"a": np.ones(4)}, np.arange(4), {"b": "a"}), "'b', which has no labels"),
        (lambda: absorption_of(np.eye(2), {"a": [0, 1], "b": [0, 1]}, [0, 1], {"a": "b", "b": "a"}), "in a circle"),
        (lambda: splitting_of(np.eye(4), np.eye(3), np.arange(4)), "codes are of 4 and 3 images"),
        (lambda: splitting_of(np.eye(2), np.eye(2), np.arange(2)), "too few"),
        (lambda: code_redundancy_of(np.eye(2), np.arange(2)), "too few"),
        (lambda: decoder_redundancy_of(np.ones(4)), r"decoder has shape \(4,\)"),
        (lambda: decoder_redundancy_of(np.full((2, 2), np.nan)), "finite"),
        (lambda: firing_density_of(np.zeros((0, 3)), []), "nothing that could fire"),
        (lambda: clarity_of(np.eye(4), np.ones((3, 2)), np.arange(4)), "embeddings have shape"),
        (lambda: clarity_of(np.eye(4), np.zeros((4, 2)), np.arange(4)), "an embedding is zero"),
        (lambda: clarity_of(np.eye(4), np.ones((4, 2)), np.arange(4)), "4 groups are fewer than n = 10"),
    ],
    ids=[
        *("no hierarchy", "labels", "labels' shape", "unknown", "circle", "images", "few to split", "few to correlate"),
        *("decoder", "decoder's nan", "no image", "embeddings", "zero", "few groups"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
