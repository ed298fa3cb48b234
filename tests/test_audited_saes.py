"""Audits of whole SAEs from end to end: a nested one, and one whose images are known by a latents table of maps."""

from pathlib import Path

import numpy as np
import pytest
from helpers_backbones import FAMILIES
from helpers_study import random_sae
from helpers_training import rows_store
from typer.testing import CliRunner

from mammosae_plugin.activations import extract_activations
from mammosae_plugin.activations.row_sources import images_of
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.levels import levels_of
from mammosae_plugin.analysis.score_card import AuditSettings
from mammosae_plugin.analysis.widths import splitting_of
from mammosae_plugin.cli import app
from mammosae_plugin.datasets import VinDrMammo
from mammosae_plugin.latents import encode_latents
from mammosae_plugin.latents.image_codes import ImageCodes
from mammosae_plugin.schema.score_card import SCORE_CARD, read_score_card
from mammosae_plugin.study.audit import audit_sae
from mammosae_plugin.training import SAETraining, train_sae
from mammosae_plugin.training.saving import save_sae

WIDTHS = (12, 48)


def test_a_nested_sae_is_audited_with_the_splitting_of_its_levels(tmp_path):
    store = rows_store(tmp_path / "rows", n_images=60)
    images = images_of(store)[0].assign(odd=np.arange(60) // 2 % 2)
    settings = SAETraining(
        architecture="matryoshka_batchtopk", k=4, d_sae=48, matryoshka_widths=WIDTHS, epochs=20, batch_size=64, lr=3e-3,
        dead_feature_window=50,
    )  # fmt: skip
    sae = train_sae(store, tmp_path / "sae", settings)
    quick = AuditSettings(most_labels=1, n_queries=4)
    card = audit_sae(sae, store, tmp_path / "audit", images=images, seeds=2, training_rows=6400, settings=quick)
    assert levels_of(sae) == WIDTHS and card.training["settings"]["architecture"] == "matryoshka_batchtopk"
    kinds = {kind: len(card.values("splitting", kind)) for kind in card.kinds}
    assert kinds == {"sae": 1, "trained": 2, "untrained": 2, "frozen decoder": 2, "permuted encoder": 2, "pca": 0}
    codes = ImageCodes.read(next((tmp_path / "audit" / "work" / "codes").glob("sae-1-*"))).codes.astype(np.float64)
    groups = images["patient_id"].to_numpy()
    own = splitting_of(codes[:, :12], codes[:, 12:], groups, n_draws=1, n_bootstrap=0)
    assert card.values("splitting", "sae") == [pytest.approx(own.share("split") - own.chance_split)]
    assert "splitting" not in card.reasons
    heads, rows = card.table()
    told = dict(zip(heads, next(row for row in rows if row[0] == "splitting"), strict=True))
    assert told["PCA"] == "–" and "±" in told["untrained"]  # components have no levels
    assert {one.control: one.separates is None for one in card.comparisons() if one.score == "splitting"}["pca"]


def test_labels_patients_and_boxes_come_from_a_latents_table_of_maps(phantoms: VinDrMammo, tmp_path: Path):
    network, _, _, final = FAMILIES["torch_cnn"]()
    with HookedVisionModel(network, [final]) as model:
        store = extract_activations(model, phantoms, tmp_path / "rows", hook_name=final, batch_size=8)
        sae = random_sae(store.d_in, hook_name=store.hook_name)
        table = encode_latents(model, sae, phantoms, tmp_path / "table", heads={}, batch_size=8)
    save_sae(sae, tmp_path / "sae")
    result = CliRunner().invoke(
        app,
        [
            *("audit", str(tmp_path / "sae"), "--rows", str(tmp_path / "rows"), "--table", str(tmp_path / "table")),
            *("-o", str(tmp_path / "audit"), "--seeds", "2", "--training-rows", "640"),
            *("--split", "training"),
        ],
    )
    assert result.exit_code == 0, result.output
    card = read_score_card(tmp_path / "audit" / SCORE_CARD)
    assert card.rows["n_images"] == int((table.images["split"] == "training").sum())
    assert card.rows["grid"] == list(table.grid)
    assert set(card.rows["concepts"]) >= {"Mass", "Suspicious_Calcification"}
    for score in ("box_energy", "moran", "probe_all", "retrieval_map"):
        assert all(card.values(score, kind) for kind in card.kinds), score
    assert "the images themselves are not known" in card.reasons["breast_energy"]  # a table holds none
