"""Scores of an audit that judge latents as a set, in the image, as findings within findings: the truth is planted."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from mammosae_plugin.analysis.score_card import audit_of
from mammosae_plugin.analysis.spatial import box_region, cell_shares
from mammosae_plugin.analysis.structure_scores import AuditImages, structure_scores
from mammosae_plugin.latents.image_codes import ImageCodes

N, D = 240, 12
GROUPS = np.arange(N) // 2
RNG = np.random.default_rng(0)
KINDS = RNG.integers(0, 6, N)
ONE_EACH = np.eye(6)[KINDS]
FINER, COARSER = KINDS == 0, KINDS < 3
NESTED = {"mass": COARSER.astype(float), "spiculated": FINER.astype(float)}
RANDOM = RNG.random((N, D)) * (RNG.random((N, D)) < 0.2)
VECTORS = ONE_EACH @ RNG.normal(size=(6, 8)) + 0.1 * RNG.normal(size=(N, 8))


def scores_of(codes: Any, *, images: AuditImages | None = None, **more: Any) -> dict[str, float | None]:
    matrix = sparse.csr_array(np.asarray(codes, dtype=np.float64))
    member = replace(ImageCodes(matrix, 0.5, 1.0, 0.0, N), **more)
    known = images or AuditImages(GROUPS, nested=NESTED, vectors=VECTORS)
    return structure_scores(member, matrix, known, most_latents=50, seed=0)


def test_latents_that_fire_nearly_always_are_dense():
    dense = np.concatenate([RANDOM, np.ones((N, 4))], axis=1)
    assert scores_of(dense)["dense_share"] == pytest.approx(4 / 16) and scores_of(RANDOM)["dense_share"] == 0
    assert scores_of(RANDOM)["median_density"] == pytest.approx(np.log10(0.2), abs=0.1)


def test_latents_that_say_the_same_are_redundant():
    twice = np.concatenate([RANDOM, RANDOM * 2], axis=1)
    assert scores_of(twice)["code_redundancy"] > scores_of(RANDOM)["code_redundancy"] + 0.5
    directions = np.eye(D, dtype=np.float32)
    assert scores_of(RANDOM, directions=directions)["decoder_redundancy"] == pytest.approx(0)
    assert scores_of(twice, directions=np.concatenate([directions] * 2))["decoder_redundancy"] == pytest.approx(1)


def test_latents_whose_images_are_alike_are_clear():
    assert scores_of(ONE_EACH * RNG.uniform(0.5, 1, (N, 6)))["clarity"] > 0.5 > abs(scores_of(RANDOM)["clarity"])


def test_a_coarse_latent_that_leaves_out_the_finer_finding_is_absorbed():
    absorbed = np.column_stack([COARSER & ~FINER, FINER]).astype(float)
    both = np.column_stack([COARSER, FINER]).astype(float)
    assert scores_of(absorbed)["absorption"] == pytest.approx(1) and scores_of(both)["absorption"] == pytest.approx(0)


def test_a_level_whose_latents_the_next_has_in_parts_is_split():
    first = np.column_stack([ONE_EACH[:, :3].any(axis=1), ONE_EACH[:, 3:].any(axis=1)]).astype(float)
    split = np.concatenate([first, ONE_EACH], axis=1)
    kept = np.concatenate([first, first, RANDOM], axis=1)
    assert scores_of(split, levels=(2, 8))["splitting"] == pytest.approx(1)
    assert scores_of(kept, levels=(2, 4, 16))["splitting"] == pytest.approx(0)
    assert "splitting" not in scores_of(split)


def test_energy_is_counted_inside_a_region_less_its_share_of_the_area():
    maps = np.zeros((3, 2, 4), dtype=np.float32)
    maps[0, 0, 0], maps[1, 1], maps[2] = 1, 1, 1
    left = cell_shares(box_region([[0, 0, 4, 8]], (8, 8)), (2, 4))
    images = AuditImages(GROUPS, regions={"box_energy": {0: left, 2: left}})
    found = scores_of(RANDOM, images=images, maps=maps, map_images=np.array([0, 1, 2]))
    assert found["box_energy"] == pytest.approx((0.5 + 0) / 2) and "breast_energy" not in found
    assert found["position_entropy"] == pytest.approx((0 + np.log(4) + np.log(8)) / 3)
    np.testing.assert_allclose(cell_shares(np.eye(6), (3, 2)), [[1 / 3, 0], [1 / 6, 1 / 6], [0, 1 / 3]])


def test_what_was_not_scored_has_a_reason():
    labels = {"mass": COARSER, "odd": np.arange(N) % 2}
    codes = ImageCodes(sparse.csr_array(RANDOM.astype(np.float32)), 0.5, 1.0, 0.0, N, levels=(4, 12))
    card = audit_of({"sae": [codes]}, labels, GROUPS)
    nothing = {name for name, value in card.members[0].scores.items() if value is None}
    assert set(card.reasons) == nothing >= {"clarity", "absorption", "decoder_redundancy", "moran", "replication"}
    assert card.values("splitting", "sae") and "no label lies in another" in card.reasons["absorption"]
    silent = audit_of({"sae": [replace(codes, codes=codes.codes * 0)]}, labels, GROUPS, nested=NESTED, vectors=VECTORS)
    assert silent.reasons["clarity"] == silent.reasons["absorption"] == "no latent of any SAE could be judged by it"
