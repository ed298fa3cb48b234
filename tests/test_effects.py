"""Effect sizes and how they agree: held against scipy and plain definitions; matching of decoders against SAELens."""

import numpy as np
import pytest
import torch
from sae_lens.synthetic.evals import mean_correlation_coefficient
from scipy import sparse
from scipy.stats import linregress

from mammosae_plugin.analysis import (
    decoder_replication_of,
    effect_agreement,
    effect_agreement_of,
    effect_sizes_of,
    replication,
)
from mammosae_plugin.errors import InputError


@pytest.fixture(scope="module")
def codes():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 5)) * (rng.random((60, 5)) < 0.6)


LABELS = np.arange(60) % 3 == 0


def cohens_d(values, positive):
    one, other = values[positive], values[~positive]
    pooled = ((len(one) - 1) * one.var(ddof=1) + (len(other) - 1) * other.var(ddof=1)) / (len(values) - 2)
    return (one.mean() - other.mean()) / np.sqrt(pooled)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_effect_sizes_are_cohens_d_also_of_resamples(codes, form):
    np.testing.assert_allclose(effect_sizes_of(form(codes), LABELS), [cohens_d(one, LABELS) for one in codes.T])
    weights = np.random.default_rng(1).integers(0, 3, size=(60, 2))
    drawn = [np.repeat(np.arange(60), of_row) for of_row in weights.T]
    expected = [[cohens_d(one[rows], LABELS[rows]) for one in codes.T] for rows in drawn]
    np.testing.assert_allclose(effect_sizes_of(form(codes), LABELS, weights=weights), expected)


def test_images_without_a_label_and_latents_without_spread_have_no_effect(codes):
    missing = np.where(np.arange(60) % 4 == 1, np.nan, LABELS)
    known = ~np.isnan(missing)
    np.testing.assert_array_equal(effect_sizes_of(codes, missing), effect_sizes_of(codes[known], missing[known]))
    assert np.isnan(effect_sizes_of(np.column_stack([np.zeros(60), np.full(60, 0.1)]), LABELS)).all()


def test_slope_and_r_are_those_of_scipy():
    rng = np.random.default_rng(2)
    a = rng.normal(size=80)
    b = 0.5 * a + 0.3 * rng.normal(size=80)
    a[3] = np.nan
    found, expected = effect_agreement_of(a, b), linregress(np.delete(a, 3), np.delete(b, 3))
    assert (found.n_latents, found.slope, found.r) == (
        79,
        pytest.approx(expected.slope),
        pytest.approx(expected.rvalue),
    )
    assert found.slope_low < 0.5 < found.slope_high
    assert found.slope_high - found.slope_low == pytest.approx(3.92 * expected.stderr, rel=0.25)
    assert found.r_low < found.r < found.r_high < 1
    assert found.p == pytest.approx(1 / 1001)
    assert found.to_frame()["n_latents"].tolist() == [79]


def test_unrelated_effects_do_not_agree_and_intervals_say_so():
    held, called = 0, 0
    for seed in range(20):
        a, b = np.random.default_rng(seed).normal(size=(2, 60))
        found = effect_agreement_of(a, b, n_bootstrap=300, n_permutations=99)
        held += found.r_low < 0 < found.r_high and found.slope_low < 0 < found.slope_high
        called += found.p <= 0.02
    assert held >= 16
    assert called <= 2


def test_too_few_or_equal_effects_give_nothing():
    for a, b in (([0, 1], [0, 1]), ([1, 1, 1, 1], [1, 2, 3, 4]), ([1, 2, 3, 4], [0.1] * 4), ([np.nan] * 5, [1] * 5)):
        found = effect_agreement_of(a, b)
        assert np.isnan([found.slope, found.r, found.r_low, found.p]).all()
    with pytest.raises(InputError, match="effects have shapes"):
        effect_agreement_of([1, 2, 3], [1, 2])


def test_a_table_agrees_with_itself_and_with_its_matches(encoded):
    found = effect_agreement(encoded, encoded, "Mass", split="training", min_patients=3, n_bootstrap=30).iloc[0]
    assert (found["slope"], found["r"]) == (pytest.approx(1), pytest.approx(1))
    assert found["r_low"] < 1 and found["r_high"] == 1  # of other patients in either
    pairs = replication(encoded, encoded, split="training", n_draws=0).pairs[["latent_a", "latent_b"]]
    matched = effect_agreement(encoded, encoded, "Mass", pairs=pairs, split="training", n_bootstrap=0)
    assert matched["r"].iloc[0] == pytest.approx(1)
    shuffled = pairs.assign(latent_b=np.random.default_rng(3).permutation(pairs["latent_b"]))
    wrong = effect_agreement(encoded, encoded, "Mass", pairs=shuffled, split="training", n_bootstrap=0)
    assert abs(wrong["r"].iloc[0]) < 0.5
    graded = effect_agreement(encoded, encoded, "density", split="training", n_bootstrap=0)
    assert len(graded) == len(encoded.classes("density"))
    with pytest.raises(InputError, match="pairs have shape"):
        effect_agreement(encoded, encoded, "Mass", pairs=[1, 2])


# Decoders


def test_decoders_are_matched_as_by_saelens():
    rng = np.random.default_rng(4)
    one, other = np.abs(rng.normal(size=(2, 20, 6)))  # of positive numbers no cosine is below 0
    found = decoder_replication_of(one, other)
    assert found.mean == pytest.approx(mean_correlation_coefficient(torch.tensor(one), torch.tensor(other)), abs=1e-6)


def test_a_permuted_decoder_replicates_wholly_and_a_random_one_does_not():
    rng = np.random.default_rng(5)
    one = rng.normal(size=(30, 40))
    one[4] = 0
    order = rng.permutation(30)
    found = decoder_replication_of(one, 3 * one[order])
    assert (found.share, found.n_a, found.n_b) == (1, 29, 29)
    assert (order[found.pairs["latent_b"]] == found.pairs["latent_a"]).all()
    assert found.chance_share == 0
    other = decoder_replication_of(one, rng.normal(size=(30, 40)))
    assert other.share == 0
    assert other.mean == pytest.approx(other.chance_mean, abs=0.05)
    with pytest.raises(InputError, match="decoders have shapes"):
        decoder_replication_of(one, np.ones((3, 4)))
    with pytest.raises(InputError, match="not finite"):
        decoder_replication_of(one, np.full((3, 40), np.inf))
