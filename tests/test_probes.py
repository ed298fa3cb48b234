"""Linear probes: held against scikit-learn by hand, on planted truth and on random labels."""

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mammosae_plugin.analysis import latent_aurocs, latent_aurocs_of, linear_probes, probe_of, probes
from mammosae_plugin.analysis.probes import BASES, Problem
from mammosae_plugin.errors import InputError

GROUPS = np.repeat(np.arange(60), 2)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)[GROUPS]
    codes = rng.normal(size=(120, 40)) * (rng.random((120, 40)) < 0.3)
    codes[:, 7] += np.where(labels, rng.random(120), 0)  # negative and positive values, and ties at 0
    return codes, labels


def test_aurocs_of_single_latents_are_scikit_learns(problem):
    codes, labels = problem
    found = latent_aurocs_of(sparse.csr_array(codes), labels, GROUPS)
    expected = [roc_auc_score(labels, column) for column in codes.T]
    np.testing.assert_allclose(found["auroc"], expected, atol=1e-12)
    assert found.sort_values("p")["latent"].iloc[0] == 7
    assert found["p"][7] < 0.05 and (found["q"] < 0.05).sum() <= 3  # of 40, 39 of which tell nothing


def test_constant_and_dead_latents_are_not_scored():
    codes = np.zeros((20, 3))
    codes[:, 1], codes[::2, 2] = 4.0, 1.0
    found = latent_aurocs_of(codes, np.tile([0, 1], 10), np.arange(20))
    assert found["latent"].tolist() == [2]
    assert found["auroc"].tolist() == [0.0]


def test_a_single_group_gives_no_chance():
    codes = np.random.default_rng(5).random((20, 3))
    silent = latent_aurocs_of(codes * 0, np.tile([0, 1], 10), np.arange(20))
    assert silent["auroc"].isna().all() and silent["reason"].str.startswith("it is the same in every row").all()
    one = latent_aurocs_of(codes, np.tile([0, 1], 10), np.zeros(20))
    assert list(silent) == list(one) and len(silent) == codes.shape[1]
    assert np.isfinite(one["auroc"]).all()
    assert one[["p", "q", "p_family", "best_by_chance"]].isna().all(axis=None)
    assert one["reason"].unique().tolist() == ["all rows are of one group, so that chance is not known"]
    few = latent_aurocs_of(codes, np.arange(20) < 1, np.arange(20))
    assert few["reason"].unique().tolist() == [""] and few["p"].notna().all()


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array], ids=["array", "sparse"])
def test_latents_that_never_fire_tell_nothing_and_the_row_says_so(form):
    found = probe_of(form(np.zeros((40, 3))), np.tile([0, 1], 20), np.arange(40), ks=(1, None), n_bootstrap=20)
    assert found["auroc"].tolist() == [0.5, 0.5]
    assert found[["auroc_low", "auroc_high", "calibration_slope"]].isna().all(axis=None)
    assert found["reason"].str.startswith("no feature varies").all()


def test_rows_without_a_label_count_for_nothing(problem):
    codes, labels = problem
    known = np.arange(120) % 5 != 0
    missing = np.where(known, labels, np.nan)
    for score in (latent_aurocs_of, lambda *given: probe_of(*given, ks=(3,), n_bootstrap=20)):
        found, expected = score(codes, missing, GROUPS), score(codes[known], labels[known], GROUPS[known])
        assert found.equals(expected)


def test_random_labels_give_chance():
    """Few latents are called, at every number of features, also where there are many more features than images."""
    called, aurocs, best = [], [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        codes = sparse.random_array((300, 5000), density=0.02, rng=rng, format="csr")
        groups = np.repeat(np.arange(150), 2)
        labels = rng.integers(0, 2, 150)[groups]
        single = latent_aurocs_of(codes, labels, groups, n_permutations=100)
        called.append((single["q"] < 0.05).sum())
        best.append((np.abs(single["auroc"] - 0.5).max() + 0.5) / single["best_by_chance"].iloc[0])
        aurocs.append(probe_of(codes, labels, groups, ks=(5, 100), n_bootstrap=0, strengths=(0.1,))["auroc"])
    assert sum(called) <= 1
    assert np.median(best) < 1
    # The spread of an AUROC of 300 rows is 0.033, so that of the mean of four is 0.017.
    assert np.abs(np.mean(aurocs, axis=0) - 0.5).max() < 0.07


def test_the_best_of_many_latents_is_as_rare_by_chance_as_it_is_said_to_be():
    """Where only the permuted labels have a part in the spread, two to nine times too many fall below 0.05."""
    groups, least = np.arange(200), []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        codes = sparse.random_array((200, 2000), density=0.1, rng=rng, format="csr")
        found = latent_aurocs_of(codes, rng.random(200) < 0.3, groups, n_permutations=30, seed=seed)
        least.append(found["p_family"].min())
        assert found["q"].min() > 0.005  # normal tails of a spread of 30 would give less
    assert 0.3 < np.mean(least) < 0.7 and np.sum(np.array(least) < 0.1) <= 5


def test_intervals_hold_chance_about_as_often_as_they_say():
    """By the folds' own spread 15 of these 20 would hold 0.5."""
    groups, held = np.repeat(np.arange(100), 2), []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, 100)[groups]
        codes = rng.normal(size=(200, 10))
        found = probe_of(codes, labels, groups, ks=(None,), n_bootstrap=100, strengths=(1.0,)).iloc[0]
        held.append(found["auroc_low"] < 0.5 < found["auroc_high"])
    assert sum(held) >= 17


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_a_probe_is_the_pipeline_of_scikit_learn(problem, form):
    codes, labels = problem
    tried = Problem(form(codes), labels, GROUPS, 4, [0.1], BASES["features"], 3)
    sizes, scores = tried.scores([5])
    assert sizes == [5]
    for training, held_out in tried.folds:
        assert not set(GROUPS[training]) & set(GROUPS[held_out])
        one, rest = codes[training][labels[training] == 1], codes[training][labels[training] == 0]
        difference = np.abs(one.mean(0) - rest.mean(0)) / np.sqrt((one.var(0) + rest.var(0)) / 2)
        chosen = np.argsort(-difference)[:5]
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1)).fit(
            codes[training][:, chosen], labels[training]
        )
        expected = model.decision_function(codes[held_out][:, chosen])
        np.testing.assert_allclose(scores[0][held_out], expected, atol=2e-3)  # where the solver stops
    assert np.sort(np.concatenate([rows for _, rows in tried.folds])).tolist() == list(range(120))


def test_what_is_told_by_two_latents_together_needs_two(problem):
    _, labels = problem
    rng = np.random.default_rng(1)
    common = rng.normal(size=120)
    codes = np.column_stack([common + 0.8 * labels, common, rng.normal(size=(120, 20))])
    found = probe_of(codes, labels, GROUPS, ks=(1, None), strengths=(100.0,))
    assert found["k"].tolist() == [1, 22]
    assert found["auroc"].iloc[1] > found["auroc_high"].iloc[0]
    assert ((found["auroc_low"] < found["auroc"]) & (found["auroc"] <= found["auroc_high"])).all()
    assert (np.abs(found["auroc_permuted"] - 0.5) < 0.2).all()


def test_the_slope_says_how_far_logits_overstate():
    rng = np.random.default_rng(2)
    groups = np.arange(2000)
    truth = rng.normal(size=2000)
    labels = (rng.random(2000) < 1 / (1 + np.exp(-2 * truth))).astype(int)
    weak = probe_of(truth[:, None], labels, groups, ks=(None,), strengths=(1.0,), n_folds=2, n_bootstrap=0)
    assert weak["calibration_slope"].iloc[0] == pytest.approx(1, abs=0.05)
    noise = np.column_stack([truth, rng.normal(size=(2000, 60))])[:120]
    strong = probe_of(noise, labels[:120], groups[:120], ks=(None,), strengths=(100.0,), n_folds=3, n_bootstrap=0)
    assert strong["calibration_slope"].iloc[0] < 0.5
    chosen = probe_of(noise, labels[:120], groups[:120], ks=(None,), n_folds=3, n_bootstrap=0)
    assert chosen["calibration_slope"].iloc[0] > strong["calibration_slope"].iloc[0]


@pytest.mark.parametrize("basis", ["pca", "kmeans"])
def test_other_bases_find_what_lies_in_the_main_direction(basis):
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], 100)
    codes = rng.normal(size=(200, 12)) + 3 * labels[:, None]
    found = probe_of(codes, labels, np.arange(200), ks=(1, 4), basis=basis, n_bootstrap=0)
    assert (found["auroc"] > (0.95 if basis == "pca" else 0.6)).all()


def test_few_positives_are_said():
    labels = np.zeros(40)
    labels[:3] = 1
    codes = np.random.default_rng(4).normal(size=(40, 5))
    three = probe_of(codes, labels, np.arange(40), ks=(2,), n_bootstrap=50)
    assert np.isfinite(three["auroc"].iloc[0])
    assert three[["auroc_low", "auroc_high"]].isna().all(axis=None)
    assert three["n_positive_groups"].iloc[0] == 3
    assert three["reason"].tolist() == ["intervals need 10 groups of either class"]
    labels[1:3] = 0
    one = probe_of(codes, labels, np.arange(40), ks=(2, None))
    assert one["auroc"].isna().all()
    assert one["reason"].tolist() == ["a class has a single group, so that it cannot both teach and test"] * 2


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"labels": np.full(120, 0.4)}, "something else than 0, 1 and NaN"),
        ({"labels": np.ones(120)}, "one class only"),
        ({"labels": np.ones(7)}, "labels have shape (7,)"),
        ({"groups": np.arange(7)}, "groups have shape (7,)"),
        ({"features": np.full((120, 2), np.inf)}, "not finite"),
        ({"features": np.zeros(120)}, "features have shape (120,)"),
        ({"ks": (0,)}, "ks is 0"),
        ({"ks": ()}, "at least one k"),
        ({"strengths": (-1.0,)}, "strength above 0"),
        ({"strengths": [[1.0]]}, "strengths is [[1.0]]: give a list of numbers"),
        ({"basis": "ica"}, "basis is 'ica'"),
        ({"n_folds": 1}, "n_folds is 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_impossible_arguments_are_refused(problem, changed, words):
    codes, labels = problem
    given = {"features": codes, "labels": labels, "groups": GROUPS, **changed}
    with pytest.raises(InputError) as caught:
        probe_of(**given)
    assert words in str(caught.value)


# Of a table


def test_probes_of_a_table(encoded):
    found = linear_probes(encoded, ["Mass", "density"], split="training", ks=(1, 3), n_folds=2, n_bootstrap=0)
    arms = ["max_latents", "mean_latents", "channels", "pca", "kmeans"]
    mass = found[found["concept"] == "Mass"]
    assert mass["arm"].unique().tolist() == arms
    assert (mass["label"] == 1).all()
    density = found[found["concept"] == "density"]
    assert density["label"].unique().tolist() == list(range(len(encoded.classes("density"))))
    assert (density.loc[density["auroc"].isna(), "reason"] != "").all()


def test_single_latents_of_a_table(encoded):
    found = latent_aurocs(encoded, "Mass", split="training", n_permutations=20)
    rows = encoded.rows("Mass", split="training")
    for statistic, values in (("max", encoded.max_latents), ("mean", encoded.mean_latents)):
        scores = found[found["statistic"] == statistic].set_index("latent")["auroc"]
        dense = values[rows.image_rows].toarray()
        assert scores.index.tolist() == np.flatnonzero(np.ptp(dense, axis=0)).tolist()
        latent = scores.index[0]
        ranks = rankdata(dense[:, latent])
        positive = rows.labels == 1
        n = positive.sum()
        auroc = (ranks[positive].sum() - n * (n + 1) / 2) / (n * (~positive).sum())
        assert scores[latent] == pytest.approx(auroc, abs=0.02)  # rounding ties in one of them


def test_groups_that_cannot_be_cut_into_folds_are_a_reason_and_no_error(monkeypatch):
    def cannot(*_: object) -> None:
        raise InputError("the groups cannot be cut")

    monkeypatch.setattr(probes, "_cut", cannot)
    labels = np.repeat([0, 1], 5)
    found = probe_of(np.eye(10), labels, np.arange(10), ks=(1, 2), n_bootstrap=0)
    assert found["auroc"].isna().all() and set(found["reason"]) == {"the groups cannot be cut"}
