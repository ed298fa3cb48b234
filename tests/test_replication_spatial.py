"""Replication of latents and where they lie in the image: against plain definitions and planted truth."""

import itertools

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import entropy

from mammosae_plugin.analysis import (
    energy_share_of,
    moran_of,
    position_entropy_of,
    replication,
    replication_of,
)
from mammosae_plugin.errors import InputError


@pytest.fixture(scope="module")
def codes():
    rng = np.random.default_rng(0)
    return rng.normal(size=(80, 6)) * (rng.random((80, 6)) < 0.5)


# Replication


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_a_permuted_copy_replicates_wholly(codes, form):
    order = np.array([3, 0, 5, 1, 4, 2])
    found = replication_of(form(codes), form(2.5 * codes[:, order]))
    assert found.share == 1
    assert found.mean == pytest.approx(1)
    assert (order[found.pairs["latent_b"]] == found.pairs["latent_a"]).all()
    assert found.chance_share == 0
    assert found.chance_mean < 0.3
    assert "6 latents matched" in str(found)


def test_the_matching_is_the_best_of_all(codes):
    other = np.random.default_rng(1).normal(size=(80, 7)) + np.pad(codes, ((0, 0), (0, 1)))
    found = replication_of(codes, other, n_draws=0)
    correlations = np.corrcoef(codes.T, other.T)[:6, 6:]
    best = max(sum(correlations[range(6), chosen]) for chosen in itertools.permutations(range(7), 6))
    assert found.pairs["correlation"].sum() == pytest.approx(best)
    assert found.to_frame()["correlation"].is_monotonic_decreasing
    assert np.isnan(found.chance_share)


def test_unrelated_latents_replicate_as_by_chance(codes):
    other = np.random.default_rng(2).normal(size=(80, 6))
    found = replication_of(codes, other, n_draws=20)
    assert found.mean == pytest.approx(found.chance_mean, abs=0.1)
    assert found.share == 0


def test_dead_and_constant_latents_are_left_out(codes):
    padded = np.column_stack([np.zeros(80), codes, np.full(80, 3.0)])
    found = replication_of(padded, codes)
    assert (found.n_a, found.n_b) == (6, 6)
    assert (found.pairs["latent_a"] - 1 == found.pairs["latent_b"]).all()
    nothing = replication_of(np.zeros((5, 2)), np.ones((5, 2)))
    assert np.isnan(nothing.share)
    assert np.isnan(nothing.mean)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"codes_b": np.ones((3, 2))}, "codes are of 4 and 3 images"),
        ({"codes_a": np.ones((2, 2)), "codes_b": np.ones((2, 2))}, "too few"),
        ({"threshold": 2}, "threshold is 2"),
        ({"n_draws": -1}, "n_draws is -1"),
    ],
    ids=["images", "few", "threshold", "draws"],
)
def test_impossible_replications_are_refused(changed, words):
    with pytest.raises(InputError, match=words):
        replication_of(**{"codes_a": np.eye(4), "codes_b": np.eye(4), **changed})


def test_a_table_replicates_itself(encoded):
    for statistic in ("mean", "max"):
        found = replication(encoded, encoded, split="training", statistic=statistic, n_draws=1)
        assert found.share == 1
        assert found.chance_share < 0.5
    with pytest.raises(InputError, match="no split 'tset'"):
        replication(encoded, encoded, split="tset")


# Where latents lie


def test_morans_i_is_its_formula():
    maps = np.random.default_rng(3).random((4, 5, 3))
    places = np.array(list(itertools.product(range(5), range(3))))
    near = (np.abs(places[:, None] - places[None]).max(axis=2) == 1).astype(float)
    found, p = moran_of(maps, n_permutations=50)
    for one, value in zip(maps, found, strict=True):
        z = one.ravel() - one.mean()
        assert value == pytest.approx(15 / near.sum() * (z @ near @ z) / (z @ z), abs=1e-12)
    assert ((p > 1 / 51) | (found > 0)).all()


def test_a_blob_is_clustered_and_noise_is_not():
    blob = np.zeros((1, 8, 8))
    blob[0, 2:5, 2:5] = 1
    noise = np.random.default_rng(4).random((200, 8, 8))
    (clustered,), (p,) = moran_of(blob)
    assert clustered > 0.5
    assert p == 1 / 200
    by_chance, p_noise = moran_of(noise, n_permutations=60)
    assert by_chance.mean() == pytest.approx(-1 / 63, abs=0.02)  # the spread of one is about 0.06
    assert (p_noise <= 0.05).mean() < 0.12
    assert np.isnan(moran_of(np.ones((1, 3, 3)))).all()


def test_entropy_over_positions():
    maps = np.zeros((3, 2, 4))
    maps[0, 1, 2], maps[1] = 5, 1
    np.testing.assert_allclose(position_entropy_of(maps), [0, np.log(8), np.nan], atol=1e-12)
    random = np.random.default_rng(5).random((1, 2, 4))
    assert position_entropy_of(random)[0] == pytest.approx(entropy(random.ravel()))


def test_energy_in_a_region_beside_its_area():
    maps = np.zeros((3, 2, 2))
    maps[0], maps[1, 0, 0] = 2, 7
    half = np.array([[1, 0.5], [0.5, 0]])
    share, area = energy_share_of(maps, half)
    np.testing.assert_allclose(share, [0.5, 1, np.nan])
    np.testing.assert_allclose(area, 0.5)
    np.testing.assert_array_equal(energy_share_of(maps, np.stack([half] * 3))[0], share)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: moran_of(np.ones((2, 1, 1))), "single position"),
        (lambda: moran_of(np.ones((2, 2))), "maps have shape"),
        (lambda: moran_of(np.full((1, 2, 2), np.nan)), "not finite"),
        (lambda: position_entropy_of(-np.ones((1, 2, 2))), "0 or more"),
        (lambda: energy_share_of(np.ones((1, 2, 2)), np.ones((3, 2))), "region has shape"),
        (lambda: energy_share_of(np.ones((1, 2, 2)), 2 * np.ones((2, 2))), "outside 0 to 1"),
    ],
    ids=["one position", "two axes", "nan", "negative", "region's shape", "region's values"],
)
def test_impossible_maps_are_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
