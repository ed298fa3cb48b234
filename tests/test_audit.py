"""The audit of an SAE: its controls, what tells a trained SAE from them, and the score card that says so."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers_kills import killed_at
from helpers_training import ARCHITECTURES, small_training, store_of
from huggingface_hub import ModelCard
from sae_lens.saes.sae import SAEMetadata
from typer.testing import CliRunner

from mammosae_plugin.activations import ActivationStore
from mammosae_plugin.adapters.input_normalization import normalized
from mammosae_plugin.analysis import audit
from mammosae_plugin.analysis.probes import probe_of
from mammosae_plugin.analysis.retrieval_quality import retrieval_scores_of
from mammosae_plugin.analysis.score_card import AuditSettings, audit_of
from mammosae_plugin.cli import app
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sha256_of_file, write_json
from mammosae_plugin.hub.cards import render_sae_card
from mammosae_plugin.hub.guard import PrivacyContext, check_staged
from mammosae_plugin.hub.saes import origin_of, stage_saes
from mammosae_plugin.hub.score_cards import score_cards_of
from mammosae_plugin.latents import encode_rows
from mammosae_plugin.latents.image_codes import ImageCodes, encode_images
from mammosae_plugin.measures.reconstruction import explained_variance
from mammosae_plugin.provenance import seed_everything
from mammosae_plugin.schema.score_card import (
    SCORE_CARD,
    SCORES,
    Member,
    ScoreCard,
    compare_cards,
    read_score_card,
    scored_alike,
)
from mammosae_plugin.study import audit as study_audit
from mammosae_plugin.study.audit import audit_sae
from mammosae_plugin.study.audit_data import ImagePlaces
from mammosae_plugin.training import SAETraining, train_sae
from mammosae_plugin.training.controls import (
    frozen,
    measured_l0,
    pca_sae,
    permuted_encoder,
    training_of,
    untrained_sae,
)
from mammosae_plugin.training.new_sae import new_training_sae
from mammosae_plugin.training.saving import save_sae

N_IMAGES, ROWS, D_IN, N_LABELS = 120, 6, 16, 4
TRAINING = SAETraining(
    architecture="batchtopk", k=3, d_sae=32, epochs=50, batch_size=128, lr=5e-3, dead_feature_window=50,
    normalize_activations="expected_average_only_in",
)  # fmt: skip
QUICK = AuditSettings(most_labels=3, n_queries=8)
MENTIONED = (
    "monosemanticity", "latent_auroc", "probe_1", "probe_5", "probe_20", "probe_all",
    "retrieval_map", "retrieval_bm25", "retrieval_fingerprint",
)  # fmt: skip
"""Scores that go by labels."""


def table_of(labels: np.ndarray) -> pd.DataFrame:
    n_images = len(labels)
    known = {"image_id": [f"image-{number}" for number in range(n_images)], "split": "training"}
    known["patient_id"] = [f"patient-{number // 2}" for number in range(n_images)]
    return pd.DataFrame({**known, **{f"label {number}": labels[:, number] for number in range(labels.shape[1])}})


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[ActivationStore, pd.DataFrame]:
    """Rows that are sums of few of 24 directions; labels say which of the first are in any row of an image."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(24, D_IN, generator=generator), dim=1)
    there = torch.rand(N_IMAGES * ROWS, 24, generator=generator) < 0.08
    rows = 5 * (there * (0.5 + torch.rand(there.shape, generator=generator))) @ directions
    rows += 0.05 * torch.randn(rows.shape, generator=generator)
    labels = there.reshape(N_IMAGES, ROWS, 24).any(dim=1)[:, :N_LABELS].int().numpy()
    labels = np.column_stack([labels, labels[:, 0] * (np.arange(N_IMAGES) % 2)])  # the last lies in label 0
    folder = tmp_path_factory.mktemp("planted")
    layout = {"kind": "map", "grid": [2, 3], "prefix_tokens": 0}
    return store_of(rows, folder, rows_per_image=ROWS, layout=layout), table_of(labels)


@pytest.fixture(scope="module")
def trained(planted: tuple[ActivationStore, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "sae"
    train_sae(planted[0], folder, TRAINING)
    return folder


@pytest.fixture(scope="module")
def audited(
    planted: tuple[ActivationStore, pd.DataFrame], trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ScoreCard]:
    store, images = planted
    folder = tmp_path_factory.mktemp("audited") / "audit"
    return folder, audit_sae(loaded(trained), store, folder, images=images, settings=QUICK, places=places_of(store))


def places_of(store: ActivationStore) -> ImagePlaces:
    """A box in every second image; the lower half of every image is background."""
    boxes = [[image_id, 0.0, 0.0, 5.0, 8.0] for image_id in store.image_ids[::2]]
    boxes += [[image_id, *[np.nan] * 4] for image_id in store.image_ids[1::2]]
    gray = np.zeros((16, 16), dtype=np.uint8)
    gray[:8] = 100 + np.arange(16)
    findings = pd.DataFrame(boxes, columns=["image_id", "xmin", "ymin", "xmax", "ymax"])
    return ImagePlaces(findings, (16, 16), lambda _: gray)


def loaded(folder: Path) -> Any:
    from mammosae_plugin.adapters import load_vision_sae

    return load_vision_sae(folder)


# Controls


@pytest.mark.parametrize("architecture", ["standard", "gated", "topk", "batchtopk", "jumprelu"])
def test_controls_fire_as_often_as_the_sae_where_their_architecture_lets_them(architecture, tmp_path):
    torch.manual_seed(0)
    rows = torch.randn(400, D_IN) + 1
    settings = small_training(**ARCHITECTURES[architecture], architecture=architecture)
    sae = untrained_sae(settings, rows, seed=5, like=_like(), l0=4.0)
    assert sae.cfg.d_sae == settings.d_sae_for(D_IN)
    assert measured_l0(sae, rows) == pytest.approx(4.0, abs=0.02)
    permuted = permuted_encoder(sae, rows, seed=1, l0=4.0)
    assert measured_l0(permuted, rows) == pytest.approx(4.0, abs=0.02)
    assert torch.equal(permuted.W_dec, sae.W_dec) and not torch.equal(permuted.W_enc, sae.W_enc)
    assert torch.equal(permuted.W_enc.sort(dim=0).values, sae.W_enc.sort(dim=0).values)


def _like() -> Any:
    from sae_lens import StandardSAE, StandardSAEConfig

    return StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=32))


def test_principal_components_as_an_sae_keep_the_largest_of_each_row():
    rows = torch.randn(300, D_IN, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 0.1, D_IN)
    sae = pca_sae(rows, like=_like(), l0=5.2)
    centred = rows - rows.mean(0)
    components = torch.linalg.svd(centred, full_matrices=False).Vh
    scores = centred @ components.T
    kept = torch.zeros_like(scores).scatter(1, scores.abs().topk(5, dim=1).indices, 1.0) * scores
    assert sae.cfg.d_sae == 2 * D_IN and measured_l0(sae, rows) == pytest.approx(5, abs=0.01)
    torch.testing.assert_close(sae(rows), kept @ components + rows.mean(0), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_independent"])
def test_a_frozen_decoder_keeps_its_directions_and_the_rest_is_trained(planted, tmp_path, architecture):
    own = {"architecture_settings": {"tied_weights": True}} if architecture == "matryoshka_independent" else {}
    settings = small_training(**ARCHITECTURES[architecture], architecture=architecture, **own)
    sae = train_sae(planted[0], tmp_path / "sae", frozen(settings))
    seed_everything(settings.seed)
    start = new_training_sae(frozen(settings), D_IN, metadata=SAEMetadata(), device="cpu")
    unit = [torch.nn.functional.normalize(one.W_dec.detach(), dim=1) for one in (sae, start)]
    torch.testing.assert_close(unit[0], unit[1], atol=1e-5, rtol=0)
    assert not torch.allclose(sae.W_enc, start.W_enc, atol=1e-2)
    assert "frozen_decoder" not in settings.model_dump()  # plans of before are those of the same SAEs
    with pytest.raises(ValueError, match="resampling changes them"):
        SAETraining(frozen_decoder=True, resample_every=2000)


def test_seeds_are_trained_as_the_sae_was_and_shorter_in_proportion(trained):
    sae = loaded(trained)
    planned = training_of(sae, N_IMAGES * ROWS, l0=3.0, most_rows=10**9)
    assert planned.known and planned.settings.k == 3 and planned.settings.batch_size == 128
    assert planned.rows_seen == 50 * N_IMAGES * ROWS // 128 * 128
    half = training_of(sae, N_IMAGES * ROWS, l0=3.0, most_rows=128 * 140)  # of 281 steps
    assert half.rows_seen == 128 * 140 and half.settings.dead_feature_window == 24
    sae.cfg.metadata["training"] = None
    few = training_of(loaded(trained), 720, l0=3.0, most_rows=2000)
    assert few.own_batch_size == 128 and few.settings.batch_size == 40 and half.own_batch_size is None
    card = ScoreCard({}, {"n_images": 9, "n_groups": 9}, [], training={"rows_seen": 2000, "own_batch_size": 128})
    card.training["settings"] = {"batch_size": 40}
    assert "rows each in batches of 40, not 128 as the SAE, for want of rows" in card.described()
    other = training_of(sae, N_IMAGES * ROWS, l0=3.21, most_rows=10**4)
    assert not other.known and other.settings.architecture == "batchtopk" and other.settings.k == 3.21
    assert other.settings.d_sae == 32 and other.rows_seen <= 10**4


# Codes


def test_codes_of_images_are_the_maxima_over_their_rows(planted, trained):
    store, _ = planted
    sae = loaded(trained)
    rows = store.rows_of(range(N_IMAGES))
    with torch.no_grad():
        latents = sae.encode(normalized(sae, rows)[0])
        error = (sae.decode(latents) - rows).double().square().sum()
    images = np.repeat(np.arange(N_IMAGES), ROWS)

    def blocks() -> Any:
        yield rows[: 40 * ROWS], images[: 40 * ROWS]
        yield rows[40 * ROWS :], images[40 * ROWS :]

    found = encode_images(blocks, {"own": sae}, N_IMAGES, grid=(2, 3))["own"]
    np.testing.assert_allclose(found.codes.toarray(), latents.reshape(N_IMAGES, ROWS, -1).amax(1), rtol=1e-5)
    assert found.l0 == pytest.approx(float((latents != 0).sum(1).double().mean()))
    variation = float((rows.double() - rows.double().mean(0)).square().sum())
    assert found.explained_variance == pytest.approx(explained_variance(float(error), variation), abs=1e-5)
    assert found.maps is not None and found.maps.shape[1:] == (2, 3)
    with pytest.raises(InputError, match="lie apart"):
        encode_images(lambda: iter([(rows, images), (rows[:1], images[:1])]), {"own": sae}, N_IMAGES)


# The score card


def card_of(**values: Sequence[float]) -> ScoreCard:
    members = [
        Member(kind.replace("_", " "), number + 1, {**dict.fromkeys(SCORES), "probe_all": value})
        for kind, several in values.items()
        for number, value in enumerate(several)
    ]
    return ScoreCard(sae={}, rows={"n_images": 9, "n_groups": 9}, members=members)


def test_d_is_the_difference_over_the_pooled_deviation():
    card = card_of(sae=[0.9], trained=[0.8, 0.9, 1.0], untrained=[0.5, 0.7, 0.6], pca=[0.75])
    untrained, pca = card.comparisons()
    assert untrained.sd == pytest.approx(0.1) and untrained.d == pytest.approx(3.0) and untrained.separates
    assert pca.sd == pytest.approx(0.1) and pca.d == pytest.approx(1.5) and pca.separates is False
    said = card.sentences()
    assert said[0].startswith("Untrained: the trained SAE separates from it in 1 of 1")
    assert said[1] == (
        "PCA: the trained SAE separates from it in 0 of 1 scores; does not separate from it in probe on all latents, "
        "AUROC (d 1.5)."
    )


def test_d_says_worse_no_spread_and_that_the_sae_itself_falls_short():
    worse = card_of(sae=[0.5], trained=[0.5, 0.6], untrained=[0.8, 0.9])
    assert "is worse than it" in worse.sentences()[0]
    same = card_of(sae=[0.5], trained=[0.5, 0.5], untrained=[0.4, 0.4]).comparisons()[0]
    assert same.d is None and same.separates
    equal = card_of(sae=[0.5], trained=[0.5, 0.5], untrained=[0.5, 0.5]).comparisons()[0]
    assert equal.d is None and equal.separates is False
    short = card_of(sae=[0.5], trained=[0.9, 1.0], untrained=[0.5, 0.6])
    assert "this SAE itself does not separate" in short.sentences()[1]
    alone = card_of(sae=[0.5], trained=[0.9], pca=[0.5]).comparisons()[0]
    assert alone.separates is None


def test_a_trained_sae_separates_from_its_controls_on_planted_rows(audited):
    folder, card = audited
    assert card.kinds == ["sae", "trained", "untrained", "frozen decoder", "permuted encoder", "pca"]
    assert set(card.scored) == set(SCORES) - {"splitting"}  # of an SAE without levels, and the card says so
    assert list(card.reasons) == ["splitting"] and "Not scored: splitting, because the SAE has no" in card.as_text()
    assert all(card.values(score, kind) for score in card.scored for kind in card.kinds if score != "replication")
    separates = {(one.control, one.score): one.separates for one in card.comparisons()}
    for control in ("untrained", "frozen decoder", "permuted encoder"):
        for score in ("explained_variance", "replication"):
            assert separates[control, score], (control, score)
        for score in ("probe_1", "latent_auroc"):  # by 0.16 or more, but three seeds can lie far apart
            assert np.mean(card.values(score, "trained")) > np.mean(card.values(score, control)) + 0.05, (
                control,
                score,
            )
    for name in ("score_card.png", "score_card.csv"):
        assert (folder / name).stat().st_size > 0
    own = card.values("l0", "sae")[0]
    for control in ("untrained", "permuted encoder"):
        assert np.mean(card.values("l0", control)) == pytest.approx(own, rel=0.1)


def test_probes_and_retrieval_of_a_card_are_those_of_their_functions(audited, planted):
    folder, card = audited
    store, images = planted
    codes = ImageCodes.read(next((folder / "work" / "codes").glob("sae-1-*"))).codes.astype(np.float64)
    labels = {name: images[name].to_numpy() for name in card.rows["concepts"]}
    groups = images["patient_id"].to_numpy()
    rows = store.rows_of(range(N_IMAGES)).numpy().reshape(N_IMAGES, ROWS, D_IN).astype(np.float64)

    def probed(features: Any, **more: Any) -> pd.DataFrame:
        own = {"ks": (1, 5, 20, None), "n_folds": 3, "strengths": (0.1,), "permute": False, **more}
        return (
            pd.concat([probe_of(features, given, groups, **own) for given in labels.values()])
            .groupby("k")
            .mean(numeric_only=True)
        )

    of_codes = probed(codes, n_bootstrap=0)
    for name, column, k in (
        ("probe_5", "auroc", 5),
        ("slope_20", "calibration_slope", 20),
        ("slope_all", "calibration_slope", 32),
    ):
        assert card.values(name, "sae") == [pytest.approx(of_codes.loc[k, column])], name
    arms = {"dense": (rows.mean(1), "features"), "channels": (rows.max(1), "features"), "pca": (rows.mean(1), "pca")}
    for arm, (features, basis) in {**arms, "kmeans": (rows.mean(1), "kmeans")}.items():
        found = probed(features, basis=basis, n_clusters=32, n_bootstrap=200).iloc[-1]  # all features
        said = card.references[arm]
        assert said["probe_all"] == pytest.approx(found["auroc"]) and said["probe_5"] is not None, arm
        assert [said["probe_all_low"], said["probe_all_high"]] == pytest.approx(
            found[["auroc_low", "auroc_high"]].tolist()
        )
        assert said["slope_all"] == pytest.approx(found["calibration_slope"]), arm
    ranked = retrieval_scores_of(codes, labels, groups, n_queries=QUICK.n_queries, n_bootstrap=0, n_draws=0)
    for method, name in (("cosine", "map"), ("bm25", "bm25"), ("fingerprint", "fingerprint"), ("random", None)):
        mean = ranked.loc[ranked["method"] == method, "average_precision"].mean()
        assert (card.values(f"retrieval_{name}", "sae") if name else [card.references["random"]["retrieval_map"]]) == [
            pytest.approx(mean)
        ]


def test_what_no_sae_changes_is_said_once_with_its_interval(audited):
    card = audited[1]
    heads, rows = card.reference_table()
    assert heads == ["score", "the rows", "raw channels", "components", "clusters", "random images"]
    told = {row[0]: row[1:] for row in rows}
    assert set(told) == {SCORES[name].title for name in SCORES if name.split("_")[0] in ("probe", "slope")} | {
        "retrieval, mAP", "retrieval by 5 latents, mAP",
    }  # fmt: skip
    assert "[" in told["probe on 5 latents, AUROC"][1] and "[" not in told["retrieval, mAP"][4]  # 8 queries are few
    assert told["retrieval, mAP"][1:4] == ["–"] * 3 and "[" not in told["calibration slope, 20 latents"][0]
    assert "Without any SAE" in card.as_text()
    before = replace(
        card, references={"dense": {"probe_all": 0.9, "retrieval_map": 0.5}, "random": {"retrieval_map": 0.2}}
    )
    assert before.reference_table()[1] == [
        ["probe on all latents, AUROC", "0.900", "–"],
        ["retrieval, mAP", "0.500", "0.200"],
    ]
    assert "Without any SAE" not in replace(card, references={}).as_text()


def test_on_noise_it_does_not_separate_and_the_card_says_so(tmp_path):
    generator = torch.Generator().manual_seed(1)
    store = store_of(torch.randn(N_IMAGES * ROWS, D_IN, generator=generator), tmp_path / "store", rows_per_image=ROWS)
    labels = np.random.default_rng(0).integers(0, 2, (N_IMAGES, 3))
    sae = train_sae(store, tmp_path / "sae", TRAINING.model_copy(update={"epochs": 20.0}))
    card = audit_sae(sae, store, tmp_path / "audit", images=table_of(labels), settings=QUICK)
    compared = [one for one in card.comparisons() if one.score in MENTIONED and one.separates is not None]
    assert len(compared) > 20 and np.mean([bool(one.separates) for one in compared]) < 0.25
    assert all("does not separate from it in" in sentence for sentence in card.sentences() if ":" in sentence)
    assert card.values("moran", "sae") == []  # the store does not say that its rows are maps
    assert "whole maps" in card.reasons["moran"] and "lies in another" in card.reasons["absorption"]


def test_an_audit_that_is_killed_continues_and_ends_with_the_same_card(
    planted, trained, audited, tmp_path, monkeypatch
):
    store, images = planted
    before = sha256_of_file(audited[0] / SCORE_CARD)

    def work() -> None:
        audit_sae(loaded(trained), store, tmp_path / "audit", images=images, settings=QUICK, places=places_of(store))

    assert killed_at(60, work, [])
    work()
    assert sha256_of_file(tmp_path / "audit" / SCORE_CARD) == before
    for name in ("encode_images", "member_scores", "replications", "untrained_sae"):  # what is there is read
        monkeypatch.setattr(study_audit, name, lambda *_, **__: pytest.fail("made again"))
    work()
    codes = next((tmp_path / "audit" / "work" / "codes").iterdir())
    kept = codes.read_bytes()
    codes.write_bytes(kept[:-9])
    with pytest.raises(InputError, match="is damaged"):
        work()
    codes.write_bytes(kept)
    of_none = images.assign(patient_id=images["patient_id"].where(images.index > 3))
    with pytest.raises(InputError, match="no patient_id for 4 images"):
        audit_sae(loaded(trained), store, tmp_path / "audit", images=of_none, settings=QUICK)
    other = loaded(trained)
    with torch.no_grad():
        other.b_dec += 1
    with pytest.raises(InputError, match="holds another audit"):
        audit_sae(other, store, tmp_path / "audit", images=images, settings=QUICK)


def test_without_labels_the_scores_that_need_none_are_left(audited):
    codes = ImageCodes.read(next((audited[0] / "work" / "codes").glob("sae-1-*")))
    members = {"sae": [codes], "trained": [codes, codes], "untrained": [codes, codes]}
    groups = np.arange(N_IMAGES)
    none = audit_of(members, {}, groups, vectors=np.ones((N_IMAGES, 3)))
    assert none.values("probe_all", "sae") == [] and none.reasons["probe_all"] == "there are no labels"
    assert none.values("activation_similarity", "sae") == [pytest.approx(0, abs=1e-9)]
    rare = {"rare": np.arange(N_IMAGES) < 3, "other": np.full(N_IMAGES, np.nan)}
    assert "5 groups" in audit_of(members, rare, groups).reasons["retrieval_map"]
    one = audit_of(members, {"half": np.arange(N_IMAGES) % 2}, groups)
    assert one.reasons["monosemanticity"] == "a single label has no entropy" and one.values("probe_1", "sae")
    silent = replace(codes, codes=codes.codes * 0)
    assert audit_of({"sae": [silent]}, {"half": np.arange(N_IMAGES) % 2}, groups).values("probe_1", "sae") == [0.5]
    with pytest.raises(InputError, match="no kind of control"):
        audit_of({**members, "random": [codes]}, {}, groups)


def test_tables_are_audited_as_rows_are(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, D_IN)).astype(np.float32)
    frame = pd.DataFrame({"image_id": [f"i{n}" for n in range(60)], "odd": np.arange(60) % 2, "split": "test"})
    frame["embedding"] = [row.tolist() for row in rows]
    frame.to_parquet(tmp_path / "rows_test.parquet")
    saes = {}
    for name, seed in (("own", 0), ("seed 1", 1), ("seed 2", 2), ("other", 3)):
        settings = small_training(architecture="topk", k=4)
        saes[name] = untrained_sae(settings, torch.from_numpy(rows), seed=seed, like=_like(), l0=4)
    tables = {name: encode_rows(tmp_path / "rows_test.parquet", sae, tmp_path / name) for name, sae in saes.items()}
    card = audit(tables["own"], [tables["seed 1"], tables["seed 2"]], {"untrained": [tables["other"]]}, vectors=rows)
    assert card.rows["split"] == "test" and card.rows["concepts"] == ["odd"]
    assert card.values("l0", "sae") == [4.0] and len(card.values("probe_all", "trained")) == 2
    with pytest.raises(InputError, match="no split"):
        audit(tables["own"], [], {}, split="nowhere")


def test_the_file_of_a_score_card_is_read_as_it_was_written(audited, tmp_path):
    folder, card = audited
    assert read_score_card(folder).to_json() == json.loads((folder / SCORE_CARD).read_text())
    assert read_score_card(folder / SCORE_CARD).sentences() == card.sentences()
    said = card.to_json()
    old = ("explained_variance", "l0", "probe_all", "moran")  # a card of before there were more scores
    members = [{**one, "scores": {name: one["scores"][name] for name in old}} for one in said["members"]]
    references = {"dense": {"probe_all": 0.9}, "random": {"retrieval_map": 0.1}}  # without intervals
    write_json(tmp_path / SCORE_CARD, {**said, "members": members, "reasons": {}, "references": references})
    before = read_score_card(tmp_path)
    assert "0.900" in before.as_text()
    assert before.scored == list(old) and compare_cards(before, card)["score"].tolist() == list(old)
    for wrong, message in (
        ({}, "no score card"),
        ({**said, "format_version": 9}, "format 9"),
        ({**said, "members": [{"kind": "sae"}]}, "damaged"),
        ({**said, "members": [{"kind": "sae", "number": 1, "scores": {"l0": "x"}}]}, "'x' is no score"),
    ):
        write_json(tmp_path / SCORE_CARD, wrong)
        with pytest.raises(InputError, match=message):
            read_score_card(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_score_card(tmp_path / "nothing")


# The command, the Hub, comparison


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments])


def test_the_command_says_what_is_missing_in_one_line(audited, planted, trained, tmp_path):
    rows, sae = str(planted[0].folder), str(trained)
    for arguments, message in (
        ([], "give the SAE and its --rows, or --config"),
        ([sae], "say where the SAE's rows are"),
        ([sae, "--rows", rows, "-o", str(tmp_path / "a"), "--layer", "x"], "--layer goes with --config"),
        (["-c", "study.yaml", "--rows", rows], "--rows does not go with --config"),
        ([sae, "--rows", rows, "-o", str(tmp_path / "a"), "--labels", str(tmp_path / "no.csv")], "does not exist"),
        ([sae, "--rows", rows, "-o", str(tmp_path / "a"), "--group", "clinic"], "no column 'clinic'"),
        ([sae, "--rows", rows, "-o", str(tmp_path / "a"), "--split", "test"], "no image is of split 'test'"),
        ([sae, "--rows", rows, "-o", str(audited[0]), "--seeds", "4"], "holds another audit"),
    ):
        result = run("audit", *arguments)
        assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1, arguments


def test_the_command_prints_the_card(planted, trained, audited, tmp_path):
    store, images = planted
    images.to_csv(tmp_path / "labels.csv", index=False)
    shutil.copytree(audited[0], tmp_path / "out")  # its SAEs and codes serve again
    result = run(
        *("audit", str(trained), "--rows", str(store.folder), "-o", str(tmp_path / "out")),
        *("--labels", str(tmp_path / "labels.csv"), "--label", "label 0", "--label", "label 1"),
    )
    assert result.exit_code == 0, result.output
    assert "Scored on 120 images of 60 groups, 2 labels; 3 seeds trained over 35,968 rows each." in result.stdout
    assert "Untrained: the trained SAE separates from it in" in result.stdout
    same = run("compare", str(tmp_path / "out"), str(tmp_path / "out" / SCORE_CARD))
    assert same.exit_code == 0 and "explained variance" in same.stdout and "do not compare" not in same.stdout
    other = run("compare", str(tmp_path / "out"), str(audited[0]))
    assert other.exit_code == 0 and "do not compare" in other.stdout
    assert run("compare", str(tmp_path / "out"), str(tmp_path)).exit_code == 2


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of vectors, one per split, in which a label is to be seen."""
    folder = tmp_path_factory.mktemp("embeddings")
    rng = np.random.default_rng(0)
    for name, n in (("train", 64), ("test", 40)):
        frame = pd.DataFrame({"image_id": [f"{name}-{number}" for number in range(n)], "odd": np.arange(n) % 2})
        frame["embedding"] = [row.tolist() for row in rng.normal(size=(n, D_IN)) + np.arange(n)[:, None] % 2]
        frame.to_parquet(folder / f"x_{name}.parquet")
    return folder


def test_files_of_embeddings_are_audited_as_a_store_is(embeddings, tmp_path):
    settings = small_training(architecture="topk", k=4, batch_size=16, lr=3e-3)
    rows = torch.randn(50, D_IN, generator=torch.Generator().manual_seed(0))
    sae = untrained_sae(settings, rows, seed=0, like=_like(), l0=4)
    card = audit_sae(sae, embeddings, tmp_path / "audit", seeds=2, training_rows=640, settings=QUICK)
    assert card.rows["split"] == "test" and card.rows["n_images"] == 40 and card.rows["concepts"] == ["odd"]
    assert "in batches of" not in card.described()  # the SAE says none of its own
    assert card.training["settings_known"] is False and card.training["rows_seen"] <= 640
    assert card.values("l0", "pca") == [4.0] and "settings of ours" in card.described()


def test_labels_patients_and_splits_come_from_a_latents_table(embeddings, tmp_path):
    settings = small_training(architecture="topk", k=4, batch_size=16)
    rows = torch.randn(50, D_IN, generator=torch.Generator().manual_seed(0))
    sae = untrained_sae(settings, rows, seed=0, like=_like(), l0=4)
    known = pd.concat([pd.read_parquet(path) for path in sorted(embeddings.glob("*.parquet"), reverse=True)])
    known.drop(columns="odd").to_parquet(tmp_path / "rows.parquet")  # of one split, without a label
    table = encode_rows(embeddings, sae, tmp_path / "table")
    place = str(save_sae(sae, tmp_path / "sae"))
    audited = ("audit", place, "--rows", str(tmp_path / "rows.parquet"), "-o", str(tmp_path / "audit"), "--seeds", "2")
    result = run(*audited, "--training-rows", "640", "--table", str(table.folder))
    assert result.exit_code == 0, result.output
    card = read_score_card(tmp_path / "audit")
    assert card.rows["split"] == "test" and card.rows["n_images"] == 40 and card.rows["concepts"] == ["odd"]
    for more, message in (
        (("--table", str(table.folder), "--labels", "x.csv"), "given twice"),
        (("--table", str(table.folder), "--label", "even"), "even"),
        (("--table", str(tmp_path)), "is not a complete latents table"),
    ):
        wrong = run(*audited, *more)
        assert wrong.exit_code == 2 and message in wrong.stderr and wrong.stderr.count("\n") == 1, more


def test_boxes_of_a_latents_table_are_those_of_its_images():
    findings = pd.DataFrame([["a", 1.0, 2, 3, 4], ["b", *[np.nan] * 4], ["a", 5.0, 6, 7, 8]])
    findings.columns = ["image_id", "xmin", "ymin", "xmax", "ymax"]
    table = SimpleNamespace(is_of_rows=False, findings=findings, image_size=(9, 9))
    places = ImagePlaces.of_table(table)
    assert {name: boxes.tolist() for name, boxes in places.boxes.items()} == {"a": [[1, 2, 3, 4], [5, 6, 7, 8]]}


def test_an_audit_gets_a_folder_of_its_own(planted, trained, audited, tmp_path):
    for folder, what in ((trained, "an SAE"), (planted[0].folder, "activations")):
        result = run("audit", str(trained), "--rows", str(planted[0].folder), "-o", str(folder))
        assert result.exit_code == 2 and f"holds {what}" in result.stderr and result.stderr.count("\n") == 1
    result = run("compare", str(audited[0]), str(tmp_path / "nope"))
    assert result.exit_code == 2 and "nope does not exist" in result.stderr


def test_the_sae_of_a_study_of_embeddings_is_audited(embeddings, tmp_path):
    train = {"architecture": "topk", "k": 4, "d_sae": 32, "epochs": 10, "batch_size": 16, "dead_feature_window": 20}
    study = {"kind": "embeddings", "output": str(tmp_path / "out"), "concepts": ["odd"], "sae": {"train": train}}
    study["models"] = [{"name": "own", "embeddings": str(embeddings)}]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    result = run("audit", "--config", str(tmp_path / "study.yaml"), "--seeds", "2")
    assert result.exit_code == 0, result.output
    (card,) = (tmp_path / "out" / "audit").rglob(SCORE_CARD)
    assert read_score_card(card).training["settings_known"] and "40 images of 40 groups" in result.stdout
    wrong = run("audit", "--config", str(tmp_path / "study.yaml"), "--layer", "no")
    assert wrong.exit_code == 2 and "has no layer 'no'" in wrong.stderr


def test_two_cards_are_compared_by_the_spread_between_their_seeds(audited):
    _, card = audited
    better = card_of(sae=[0.9], trained=[0.8, 0.9, 1.0], untrained=[0.5, 0.6])
    worse = card_of(sae=[0.7], trained=[0.6, 0.7, 0.8], untrained=[0.5, 0.6])
    compared = compare_cards(better, worse).set_index("score").loc["probe_all"]
    assert compared["d"] == pytest.approx(2.0) and compared["a"] == 0.9 and compared["untrained_b"] < 2
    assert scored_alike(card, card) and not scored_alike(card, better)


def test_a_published_sae_has_its_score_card_on_its_page(audited, trained, tmp_path):
    folder, card = audited
    origin = replace(origin_of(trained), score_card=card)
    facts = stage_saes({"layer": origin}, tmp_path / "staged", licence="mit", datasets=["toy"])
    page = render_sae_card({"repo_id": "someone/saes", "saes": facts, "licence": "mit"})
    (tmp_path / "staged" / "README.md").write_text(page)
    assert "### Score card" in page and "explained variance" in page and "layer/score_card.png" in page
    results = {one.metric_type: one for one in ModelCard(page).data.eval_results}
    assert set(results) >= {"clarity", "absorption", "code_redundancy", "decoder_redundancy", "dense_share"}
    assert set(results) >= {"position_entropy", "breast_energy", "box_energy"} and not {
        "median_density",
        "slope_all",
    } & set(results)
    assert "retrieval_bm25" in results and "Without any SAE" in page and "| clusters |" in page
    assert results["monosemanticity"].metric_value == pytest.approx(card.values("monosemanticity", "sae")[0])
    assert "d against untrained" in results["monosemanticity"].metric_name
    said = (tmp_path / "staged" / "layer" / SCORE_CARD).read_text()
    assert json.loads(said)["format_version"] == 1 and "image-" not in said
    ids = frozenset([*(f"patient-{n}" for n in range(60)), *(f"image-{n}" for n in range(N_IMAGES))])
    files = check_staged(tmp_path / "staged", "sae", PrivacyContext(ids, datasets=("toy",)))
    assert {"layer/score_card.json", "layer/score_card.png"} <= {file.path for file in files}


def test_a_score_card_is_of_the_sae_beside_which_it_is_published(audited, trained, tmp_path):
    folder, card = audited
    own, nothing = {"layer": card.sae["tensors"]}, {"layer": None}
    assert score_cards_of(own, folder, nothing, min_group=5)["layer"].sentences() == card.sentences()
    shutil.copytree(folder, tmp_path / "sae" / "audit", ignore=shutil.ignore_patterns("work"))
    assert "layer" in score_cards_of(own, None, {"layer": tmp_path / "sae"}, min_group=5)
    assert score_cards_of(own, None, nothing, min_group=5) == {}
    for tensors, given, min_group, message in (
        (own, folder, 61, "61 are the fewest"),
        ({"layer": "0"}, folder, 5, "another SAE"),
        ({**own, "b": "0"}, folder, 5, "say which"),
        (own, {"x": folder}, 5, "score cards are of x"),
    ):
        with pytest.raises(InputError, match=message):
            score_cards_of(tensors, given, nothing, min_group=min_group)
