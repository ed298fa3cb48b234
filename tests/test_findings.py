"""Findings as a dataset: every number is the study's own, recomputed here from its tables, layers and networks."""

import hmac
import json
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers_hub import LoopbackHub, run_on_hub
from helpers_results import edit_study, findings_of, synthetic_results, write_study
from helpers_tables import PLANTED, make_table
from PIL import Image
from typer.testing import CliRunner

from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.cli import app
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sha256_of_file
from mammosae_plugin.findings.kept import Kept, read_page, write_findings
from mammosae_plugin.findings.layers import read_layers, write_layers
from mammosae_plugin.findings.notes import Note, add_note, agreement, withdraw_notes
from mammosae_plugin.findings.study_folder import Encoder, StudyFolder
from mammosae_plugin.findings.tables import Groups, Tellable, latents_table, rows_table, tellable
from mammosae_plugin.hub.findings import (
    Findings,
    _write,
    compare_findings,
    load_findings,
    publish_findings,
    stage_findings,
)
from mammosae_plugin.privacy.guard import PrivacyContext, PrivacyError
from mammosae_plugin.schema.findings import KEPT, LAYERS, SCHEMAS, parquet_path
from mammosae_plugin.schema.pages import KEPT_PAGES

CONCEPTS = ("Mass", "Suspicious_Calcification")
STAGED = {name: schema for name, schema in SCHEMAS.items() if name != "pictures"}  # of these: test_space_pictures.py


@pytest.fixture(scope="module")
def study(finished_study):
    return finished_study


@pytest.fixture(scope="module")
def findings(study):
    return Findings.of_study(study.output, min_group=1)


def concept_rows(findings, **equal):
    frame = findings.concepts
    for name, value in equal.items():
        frame = frame[frame[name] == value]
    return frame


def per_class(findings, column, **equal):
    """(n_class, d_sae) of one encoder and concept."""
    return concept_rows(findings, **equal).pivot(index="class", columns="latent", values=column).to_numpy()


def test_every_latent_of_every_layer_and_encoder_has_a_row(study, findings):
    encoders = {(layer.name, name) for layer in StudyFolder(study.output).layers for name in layer.encoders}
    counted = findings.latents.groupby(["layer", "encoder"])["latent"].agg(["size", "nunique", "max"])
    assert set(counted.index) == encoders
    assert {layer for layer, _ in encoders} == {"layer_6", "layer_10"}
    assert (counted == [64, 64, 63]).all(axis=None)
    hooks = findings.latents.groupby("layer")["hook_name"].unique().str.join(",").to_dict()
    assert hooks == {"layer_6": "blocks.4.1.hook_out", "layer_10": "bn2.hook_out"}


def test_class_means_scores_and_ranks_are_those_of_the_tables(study, findings):
    for layer in StudyFolder(study.output).layers:
        for name, encoder in layer.encoders.items():
            table = encoder.table
            training = (table.images["split"] == "training").to_numpy()
            means = table.mean_latents.toarray().astype(np.float64)[training]
            for concept in encoder.concepts:
                labels = table.images[concept].to_numpy()[training]
                where = {"layer": layer.name, "encoder": name, "concept": concept}
                expected = np.stack([means[labels == number].mean(axis=0) for number in (0, 1)])
                np.testing.assert_allclose(per_class(findings, "class_mean", **where), expected, rtol=1e-12)
                scores = expected - means.mean(axis=0)
                np.testing.assert_allclose(per_class(findings, "score", **where), scores, atol=1e-12)
                ranks = per_class(findings, "rank", **where).astype(int)
                own = per_class(findings, "score", **where)
                for number in (0, 1):
                    assert sorted(ranks[number]) == list(range(1, 65))
                    best_first = own[number][np.argsort(ranks[number])]
                    assert (np.diff(best_first) <= 0).all()
                n_images = concept_rows(findings, **where, latent=3)["n_images"].tolist()
                assert n_images == [int((labels == number).sum()) for number in (0, 1)]


def test_ranks_are_those_of_the_studys_own_ranking(study, findings):
    for layer in StudyFolder(study.output).layers:
        encoder_of = {(e.model, c): e.name for e in layer.encoders.values() for c in e.concepts}
        for row in layer.results["rankings"]:
            own = concept_rows(
                findings,
                layer=layer.name,
                encoder=encoder_of[row["model"], row["concept"]],
                **{"concept": row["concept"], "class": row["class"]},
            ).set_index("rank")
            assert own.loc[range(1, len(row["latents"]) + 1), "latent"].tolist() == row["latents"]
            assert own.loc[range(1, len(row["scores"]) + 1), "score"].tolist() == row["scores"]


def test_activity_is_that_of_the_test_images(study, findings):
    for layer in StudyFolder(study.output).layers:
        for encoder in layer.encoders.values():
            table = encoder.table
            test = (table.images["split"] == "test").to_numpy()
            maxima, means = (values.toarray()[test] for values in (table.max_latents, table.mean_latents))
            own = findings.latents.query("layer == @layer.name and encoder == @encoder.name")
            np.testing.assert_array_equal(own["firing_rate"], (maxima != 0).mean(axis=0))
            np.testing.assert_allclose(own["mean_activation"], means.astype(np.float64).mean(axis=0), rtol=1e-12)
            fires = (maxima != 0).any(axis=0)
            assert own["max_activation"].dtype == np.float32
            np.testing.assert_array_equal(own["max_activation"].to_numpy()[fires], maxima.max(axis=0)[fires])
            assert own["max_activation"].isna().tolist() == (~fires).tolist()
            assert 0 < fires.sum() < 64


def test_the_effect_of_an_ablation_is_that_of_a_forward_pass_without_the_latent(study, findings):
    layer = next(one for one in study.layers if one.name == "layer_10")
    pair = study.pairs[0]
    images = study.split("test")
    present = [i for i, label in enumerate(images.images[pair.concept]) if label == 1]
    batch = torch.stack([images[i]["image"] for i in present])
    classifier = study.classifier(pair)
    own = concept_rows(findings, layer="layer_10", concept=pair.concept, **{"class": 1}).set_index("latent")
    fires = own.index[own["ablation_effect"].abs() > 0]
    assert len(fires) > 10
    with torch.no_grad(), HookedVisionModel(classifier, [layer.module]) as model:
        value = model.read(batch, layer.hook_name).value
        latents = layer.sae.encode(value)

        def logit(latents):
            features = layer.sae.decode(latents).double().mean((1, 2))
            return features @ classifier.classifier.weight.double().T + classifier.classifier.bias.double()

        for latent in [*fires[:4], *own.index[own["ablation_effect"] == 0][:1]]:
            without = latents.clone()
            without[..., latent] = 0
            change = float((logit(without) - logit(latents)).mean())
            assert own.loc[latent, "ablation_effect"] == pytest.approx(change, rel=1e-3, abs=1e-6)


def test_an_inner_layer_has_no_ablation_effect(findings):
    assert concept_rows(findings, layer="layer_6")["ablation_effect"].isna().all()
    assert concept_rows(findings, layer="layer_10")["ablation_effect"].notna().all()


def test_average_precision_is_that_of_table_2(study, findings):
    known = findings.concepts.query("`class` == 1").dropna(subset=["average_precision"])
    found = {(row.layer, row.concept, row.latent): row.average_precision for row in known.itertuples()}
    expected = {}
    for layer in StudyFolder(study.output).layers:
        rows = layer.results["localization"]
        first = [row for row in rows if row["threshold"] == rows[0]["threshold"]]
        expected |= {(layer.name, row["concept"], row["latent"]): row["average_precision"] for row in first}
    assert found == expected
    assert len(expected) > 6


def test_the_other_tables_are_the_rows_of_the_results(study, findings):
    layers = StudyFolder(study.output).layers
    for name in ("interventions", "reconstruction"):
        frame = getattr(findings, name)
        rows = [{"layer": layer.name, **row} for layer in layers for row in layer.results[name]]
        assert len(frame) == len(rows)
        for row, own in zip(rows, frame.astype(object).where(frame.notna(), None).to_dict("records"), strict=True):
            assert {key: value for key, value in row.items() if key in own} == own
    expected = {
        (layer.name, row.get("method", "latent"), row["model"], row["concept"], row["threshold"], row["rank"]): (
            *(row["latent"], row["average_precision"], row["n_boxes"]),
        )
        for layer in layers
        for row in [*layer.results["localization"], *layer.results["baselines"]]
    }
    own = findings.localization
    keys = own[["layer", "method", "model", "concept", "threshold", "rank"]].itertuples(index=False, name=None)
    values = own[["latent", "average_precision", "n_boxes"]].itertuples(index=False, name=None)
    assert dict(zip(keys, values, strict=True)) == expected


def test_the_study_says_what_made_the_rows_and_nothing_of_the_machine(study, findings):
    told = findings.study
    results = StudyFolder(study.output).results
    assert (told["title"], told["created"], told["data_kind"]) == (results["title"], results["created"], "phantom")
    assert told["layers"] == ["layer_6", "layer_10"] and told["concepts"] == list(CONCEPTS)
    assert told["provenance"] == results["provenance"]
    names = {**results["config"]["analysis"]["names"], "files": []}  # what lies on this machine
    assert told["config"]["analysis"] == {**results["config"]["analysis"], "names": names}
    assert "root" not in told["config"]["data"] and "output" not in told["config"]
    assert told["sae"]["layer_10"]["sha256"] == results["sae"]["sha256"]
    assert {row["readout"] for row in told["models"] if row["layer"] == "layer_6"} == {"network"}
    assert str(study.output.parent) not in json.dumps(told)


def test_a_study_of_a_version_that_wrote_no_findings_is_asked_to_run_again(study, tmp_path):
    (tmp_path / "results").mkdir()
    shutil.copy(study.results_folder / "results.json", tmp_path / "results")
    with pytest.raises(InputError, match="earlier version.*run `mammosae study` with its configuration again"):
        Findings.of_study(tmp_path)
    with pytest.raises(InputError, match="holds no finished study"):
        Findings.of_study(tmp_path / "nowhere")


def test_publishing_reads_no_latents_table_and_a_rerun_writes_what_an_earlier_version_did_not_keep(study, tmp_path):
    """All but the weights and the maps of single images is in the results; of what is kept nothing is made twice."""
    folder = shutil.copytree(study.output, tmp_path / "study", ignore=shutil.ignore_patterns("work", "results.json"))
    whole, found = (Findings.of_study(one, min_group=3) for one in (study.output, folder))
    for name in ("latents", "concepts", "interventions", "reconstruction", "localization"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(whole, name))
    assert {**found.study} == {**whole.study}
    kept = folder / "results" / "findings"
    before = {path.relative_to(kept): path.read_bytes() for path in kept.rglob("*.parquet")}
    assert len(before) == len(LAYERS) - 1 + len(KEPT_PAGES) + len(KEPT) * 2  # no pairs; at two layers one encoder
    pages = {name: read_page(folder, name).to_pandas() for name in KEPT_PAGES}
    (folder / "work").symlink_to(study.output / "work")
    files = sorted(kept.rglob("latents.parquet"))
    (kept / "mine.txt").write_text("a user's")
    files[0].unlink()
    with pytest.raises(InputError, match="does not hold the findings.*run `mammosae study`"):
        Findings.of_study(folder)
    times = files[1].stat().st_mtime_ns
    write_findings(folder, read_layers(kept), pages)
    assert {path.relative_to(kept): path.read_bytes() for path in kept.rglob("*.parquet")} == before
    assert files[1].stat().st_mtime_ns == times and (kept / "mine.txt").exists()
    plan = files[0].with_name("plan.json")
    written = json.loads(plan.read_text())
    plan.write_text(json.dumps({name: value for name, value in written.items() if name != "sums"}))
    with pytest.raises(InputError, match="compared fewer sums.*run `mammosae study`"):
        Findings.of_study(folder)
    write_findings(folder, read_layers(kept), pages)
    assert json.loads(plan.read_text()) == written


# Small groups


def test_small_groups_are_suppressed(study):
    """The test split has 7 patients or so: with 5 as the least, some groups are too small."""
    study_folder = StudyFolder(study.output)
    tables = {layer.name: next(iter(layer.encoders.values())).table for layer in study_folder.layers}
    table = tables["layer_10"]
    patients = {}
    for concept in CONCEPTS:
        for split in ("training", "test"):
            own = table.images[table.images["split"] == split]
            patients[concept, split] = [own.loc[own[concept] == n, "patient_id"].nunique() for n in (0, 1)]
    least = min(min(patients[concept, "training"]) for concept in CONCEPTS) + 1
    small = [concept for concept in CONCEPTS if min(patients[concept, "training"]) < least]
    found = Findings.of_study(study.output, min_group=least)
    for concept in small:
        rows = concept_rows(found, concept=concept)
        # What is left of the other class would, by the totals, give the small one away.
        assert rows[["class_mean", "n_images", "score", "rank"]].isna().all(axis=None)
        assert found.localization.query("concept == @concept").empty
    assert all(pair.partition("/")[2] not in small for of in found.study["named_latents"].values() for pair in of)
    for concept in CONCEPTS:
        if min(patients[concept, "test"]) < least:
            for frame in (found.reconstruction, found.interventions):
                rows = frame[frame["concept"] == concept]
                assert len(rows) and rows[["auroc", "average_precision", "f1_low"]].isna().all(axis=None)
            assert found.reconstruction.loc[found.reconstruction["concept"] == concept, "n_positive"].isna().all()
    assert found.study["min_group"] == least


def test_of_interventions_on_a_sample_nothing_is_told_that_rests_on_a_few_of_its_patients(study, tmp_path):
    folder = shutil.copytree(study.output, tmp_path / "study", ignore=shutil.ignore_patterns("work"))
    whole = Findings.of_study(folder, min_group=2)

    def draw(results):
        results["config"]["analysis"]["inner_patients"] = 2
        for row in results["interventions"] if results["models"][0]["readout"] == "network" else ():
            row |= {"n_patients": 4, "fewest_patients": 1 if row["concept"] == "Mass" else 2}

    edit_study(folder, draw)
    found = Findings.of_study(folder, min_group=2)
    rows, before = found.interventions, whole.interventions
    few = (rows["layer"] == "layer_6") & (rows["concept"] == "Mass")
    assert few.any()
    assert rows.loc[few, ["auroc", "f1_low", "random_auroc_mean"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(rows[~few], before[~few])
    inner = found.evidence["layer"] == "layer_6"
    effects = ["effect", "effect_with", "effect_share", "reliance", "verdict"]
    assert whole.evidence.loc[inner, effects].notna().any(axis=None)
    assert found.evidence.loc[inner, effects].isna().all(axis=None)
    pd.testing.assert_frame_equal(found.evidence[~inner], whole.evidence[~inner])
    told = [one for of in found.study["named_latents"]["layer_6"].values() for one in of]
    assert told
    for one in told:
        assert one["role"] == "unclear"
        assert [one.get(name) for name in ("ablation", "ablation_low", "ablation_random")] == [None, None, None]
    assert found.study["named_latents"]["layer_10"] == whole.study["named_latents"]["layer_10"]


def test_what_the_test_split_says_of_few_patients_is_suppressed(study):
    found, whole = Findings.of_study(study.output, min_group=5), Findings.of_study(study.output, min_group=1)
    table = StudyFolder(study.output).layer("layer_10").encoders["pretrained"].table
    seen = set()
    for concept in CONCEPTS:
        test = table.images[table.images["split"] == "test"]
        present = test.loc[test[concept] == 1, "patient_id"].nunique()
        boxed = table.findings[(table.findings[concept] == 1) & table.findings["xmin"].notna()]
        boxed = test.loc[test.index.intersection(boxed["image_row"]), "patient_id"].nunique()
        own = concept_rows(found, concept=concept, layer="layer_10")
        assert own["class_mean"].notna().any()  # the training split is large enough
        assert own["ablation_effect"].isna().all() == (present < 5)
        of_table_2 = found.localization.query("concept == @concept")
        assert 0 < len(of_table_2) <= len(whole.localization.query("concept == @concept"))
        for values in (own["average_precision"], of_table_2["average_precision"]):
            assert values.isna().all() == (boxed < 5)
        seen |= {present < 5, boxed < 5}
    assert True in seen


@pytest.mark.parametrize(("in_test", "boxed", "suppressed"), [([9, 9], 4, True), ([4, 9], 9, True), ([9, 9], 9, False)])
def test_localization_is_told_of_enough_patients_with_boxes_whose_number_may_be_told(study, in_test, boxed, suppressed):
    folder, nine = StudyFolder(study.output), np.array([9, 9])
    told = {
        place: replace(one, min_group=5, groups=dict.fromkeys(one.groups, Groups(nine, np.array(in_test), boxed)))
        for place, one in tellable(folder.layers, 1).items()
    }
    table = rows_table("localization", folder, told)
    assert len(table) > 0
    for column in ("average_precision", "n_predictions", "n_images", "n_boxes"):
        assert table[column].null_count == (len(table) if suppressed else 0), column


def test_the_activity_of_a_latent_that_fires_in_few_patients_is_suppressed(study):
    encoder = next(iter(StudyFolder(study.output).layer("layer_6").encoders.values()))
    images = encoder.table.images
    test = np.flatnonzero(images["split"] == "test")
    fires = encoder.table.max_latents.toarray()[test] != 0
    patients = images["patient_id"].to_numpy()[test]
    counts = np.array([len(set(patients[column])) for column in fires.T])
    for least in (1, 2, 4, int(counts.max()) + 1):
        own = Findings.of_study(study.output, min_group=least).latents.query("layer == 'layer_6'")
        few = (counts > 0) & (counts < least)
        assert own["max_activation"].isna().tolist() == (few | (counts == 0)).tolist()
        assert own["mean_activation"].isna().tolist() == few.tolist()
        assert own.loc[few, "firing_rate"].isna().all()


def test_what_two_concepts_say_of_the_test_images_gives_away_no_few_patients_who_have_neither():
    """The mean without a mass, which a role states, less the mean with a calcification, which is an effect."""
    table = make_table(n_patients=40)
    images, names = table.images, ["Mass", "Suspicious_Calcification"]
    images["split"] = ["test" if number % 2 else "training" for number in pd.factorize(images["patient_id"])[0]]
    images.loc[images["split"] == "test", names] = 0
    test = images.loc[images["split"] == "test", "patient_id"].unique()
    parts = {"Mass": test[:6], "Suspicious_Calcification": test[6:12], "neither": test[12:14]}
    for name in names:
        images.loc[images["patient_id"].isin(parts[name]), name] = 1
    table.latents[:] = 0
    for latent, firing in enumerate((("Mass", "Suspicious_Calcification", "neither"), names)):
        table.latents[images["patient_id"].isin(np.concatenate([parts[one] for one in firing])), :, :, latent] = 1.0
    effects = told_of(FakeLayer(table, names), 5).effects
    assert [effects[name][:2].tolist() for name in names] == [[False, False], [True, False]]


# At full width, and with more than two classes


class FakeLayer:
    """A layer of a study whose tables are in memory."""

    def __init__(self, table, concepts, unit="image"):
        self.name, self.hook_name, self.folder = "layer_39", "bn2.hook_out", None
        encoder = Encoder("finetuned", "finetuned", tuple(concepts), Path())
        encoder.__dict__["table"] = table
        self.encoders = {"finetuned": encoder}
        self.results = {
            "data": {"unit": unit},
            "config": {"analysis": {"score": "centered_mean"}},
            "localization": [],
        }


def told_of(layer, min_group):
    encoder = layer.encoders["finetuned"]
    return Tellable.of(Kept.of(layer, encoder), encoder.concepts, min_group)


def test_concepts_of_two_and_four_classes_lie_side_by_side():
    table, concepts = make_table(), ("Mass", "density", "Suspicious_Calcification")
    layer = FakeLayer(table, concepts, unit="finding_row")
    rows = latents_table(layer, layer.encoders["finetuned"], told_of(layer, 1), []).to_pylist()
    own = table.rows("density", split="training", unit="finding_row")
    image_of = table.mean_latents.toarray().astype(np.float64)[own.image_rows]
    for latent in (0, 7, 39):
        mass, density, calcification = rows[latent]["concepts"]
        assert (mass["concept"], density["concept"], calcification["concept"]) == concepts
        assert [len(one["ranks"]) for one in (mass, density, calcification)] == [2, 4, 2]
        expected = [image_of[own.labels == number, latent].mean() for number in range(4)]
        assert density["class_means"] == pytest.approx(expected, rel=1e-12)
        assert density["scores"] == pytest.approx(np.array(expected) - image_of[:, latent].mean(), abs=1e-12)
        counts = [len(set(own.image_rows[own.labels == number])) for number in range(4)]
        assert density["n_images"] == counts
        assert density["ablation_effect"] is None and mass["ablation_effect"] is not None
    best = sorted(rows, key=lambda row: row["concepts"][0]["ranks"][1])[0]
    assert best["latent"] == PLANTED["Mass"]


def test_what_is_kept_by_breast_counts_the_images_of_breasts_and_tells_means_over_them():
    table, unit = make_table(), "breast"
    table.images["laterality"] = np.where(np.arange(len(table.images)) % 4 < 2, "L", "R")
    layer = FakeLayer(table, ["Suspicious_Calcification"], unit=unit)
    rows = latents_table(layer, layer.encoders["finetuned"], told_of(layer, 1), []).to_pylist()
    images, means = table.images, table.mean_latents.toarray().astype(np.float64)
    weight = table.readout("Suspicious_Calcification").weight[:, 0]

    def by_class(split):
        own = images[images["split"] == split]
        keys = [own["patient_id"].to_numpy(), own["laterality"].to_numpy()]
        labels = own["Suspicious_Calcification"].groupby(keys, sort=False).max().to_numpy()
        latents = pd.DataFrame(means[own.index]).groupby(keys, sort=False).mean().to_numpy()
        return [latents[labels == number] for number in (0, 1)]

    training, test = by_class("training"), by_class("test")
    for latent in (0, PLANTED["Suspicious_Calcification"]):
        kept = rows[latent]["concepts"][0]
        assert kept["n_images"] == [2 * len(one) for one in training]
        assert kept["class_means"] == pytest.approx([one[:, latent].mean() for one in training], rel=1e-9)
        assert kept["ablation_effect"] == pytest.approx(-test[1][:, latent].mean() * weight[latent], rel=1e-6)


def test_a_note_stands_with_the_encoder_and_layer_that_it_names():
    table = make_table()
    layer = FakeLayer(table, ["Mass"])
    made = {
        "author": "AB",
        "latent": 7,
        "concept": None,
        "label": None,
        "confidence": None,
        "created": "now",
        "sae": "",
    }
    places = {"all": ("layer_39", None), "own": ("layer_39", "finetuned"), "other": ("layer_39", "pretrained")}
    notes = [Note(text=text, layer=on, encoder=of, **made) for text, (on, of) in places.items()]
    notes.append(Note(text="elsewhere", layer="layer_6", encoder=None, **made))
    rows = latents_table(layer, layer.encoders["finetuned"], told_of(layer, 1), notes).to_pylist()
    assert [note["text"] for note in rows[7]["notes"]] == ["all", "own"]
    assert not any(row["notes"] for row in rows if row["latent"] != 7)


def known(value):
    """The value without what is None."""
    if isinstance(value, dict):
        return {key: known(one) for key, one in value.items() if one is not None}
    return [known(one) for one in value] if isinstance(value, list) else value


def test_what_was_found_is_read_back_as_it_was_written(tmp_path):
    late = synthetic_results(baselines=True, layers=("early", "late"))
    early = {**synthetic_results(seed=1), "layer": {"name": "early", "primary": "late"}, "layers": late["layers"]}
    found = read_layers(findings_of(write_study(early, tmp_path, late)))
    assert list(found) == ["early", "late"]
    assert known(found["late"]) == known(late)
    assert known(found["early"]) == known({**early, "baselines": []})
    (tmp_path / "again").mkdir()
    write_layers(found, tmp_path / "again")
    for file in findings_of(tmp_path).iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_a_column_that_the_schema_does_not_declare_is_not_dropped_in_silence(tmp_path):
    results = synthetic_results()
    results["interventions"][2]["half_of_it"] = 0.5
    with pytest.raises(ValueError, match="declares no column half_of_it of interventions"):
        write_study(results, tmp_path)


@pytest.mark.parametrize("damage", ["missing", "cut short", "of another version"])
@pytest.mark.parametrize("name", ["study", "localization"])
def test_damaged_findings_are_refused_in_one_line_that_says_what_to_do(tmp_path, name, damage):
    file = findings_of(write_study(synthetic_results(), tmp_path)) / f"{name}.parquet"
    if damage == "of another version":
        pq.write_table(pq.read_table(file).drop_columns(["layer"]), file)
    elif damage == "cut short":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        file.unlink()
    with pytest.raises(InputError, match="run `mammosae study` with its configuration again") as caught:
        StudyFolder(tmp_path)
    assert "\n" not in str(caught.value)


def test_classifiers_that_share_a_table_are_one_encoder(tmp_path):
    results = synthetic_results()
    tables = {
        ("pretrained", "Mass"): "pretrained-1",
        ("pretrained", "Suspicious_Calcification"): "pretrained-1",
        ("finetuned", "Mass"): "finetuned-1",
        ("finetuned", "Suspicious_Calcification"): "finetuned-2",
    }
    results["tables"] = [{"model": model, "concept": of, "table": table} for (model, of), table in tables.items()]
    study = StudyFolder(write_study(results, tmp_path))
    (layer,) = study.layers
    assert layer.name == "bn2"  # a study of the final map alone does not name it
    assert {name: (one.model, one.concepts) for name, one in layer.encoders.items()} == {
        "pretrained": ("pretrained", CONCEPTS),
        "finetuned/Mass": ("finetuned", CONCEPTS[:1]),
        "finetuned/Suspicious_Calcification": ("finetuned", CONCEPTS[1:]),
    }
    assert layer.encoders["pretrained"].table_folder == tmp_path / "work" / "latents" / "pretrained-1"


def test_sixteen_thousand_latents_of_four_concepts_are_staged(tmp_path):
    table = make_table(d_sae=16384, n_patients=12)
    for number in range(4):
        table.images[f"concept_{number}"] = np.random.default_rng(number).integers(2, size=len(table.images))
        table.head_weight[f"concept_{number}"] = table.head_weight["Mass"]
        table.head_bias[f"concept_{number}"] = table.head_bias["Mass"]
    table.classes = lambda concept: (0, 1)
    layer = FakeLayer(table, [f"concept_{number}" for number in range(4)])
    told = told_of(layer, 5)
    nine = np.array([9, 9])
    told = replace(told, groups=dict.fromkeys(told.groups, Groups(nine, nine, 9)))
    latents = latents_table(layer, layer.encoders["finetuned"], told, [])
    _write(tmp_path / parquet_path("latents"), latents)
    back = pq.read_table(tmp_path / parquet_path("latents"))
    assert back.num_rows == 16384 and back.schema.metadata is None
    last = back["concepts"][16383].as_py()
    assert [one["concept"] for one in last] == [f"concept_{number}" for number in range(4)]
    labels = table.images["concept_3"].to_numpy()[table.images["split"] == "training"]
    mean = table.mean_latents.toarray()[table.images["split"] == "training"][labels == 1, 16383].astype(float).mean()
    assert last[3]["class_means"][1] == pytest.approx(mean, rel=1e-12)


# Staging


@pytest.fixture(scope="module")
def noted(study, tmp_path_factory):
    """A copy of the study with readers' notes."""
    folder = shutil.copytree(study.output, tmp_path_factory.mktemp("noted") / "study")
    add_note(folder, 5, "round and bright", author="AB", label="Mass", confidence=4, concept="Mass")
    add_note(folder, 5, "", author="CD", label="artefact")
    add_note(folder, 9, "edge of the breast", author="CD", layer="layer_6", label="none")
    return folder


@pytest.fixture(scope="module")
def staged(noted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("staged") / "findings"
    settings = {"repo_id": "someone/findings", "licence": "cc-by-4.0", "min_group": 2}
    return stage_findings(noted, folder, **settings, examples=True)


def test_a_refused_note_is_named_and_once_withdrawn_it_stops_nothing_and_is_not_published(noted, tmp_path):
    folder = shutil.copytree(noted, tmp_path / "study")
    file = folder / "notes" / "AB.jsonl"
    (line,) = file.read_text().splitlines()
    # as an earlier version wrote it, which refused no note
    file.write_text(line + "\n" + line.replace("round and bright", "call 617-555-0199") + "\n")
    named = "the text of a note on latent 5 of layer layer_10 by AB holds a phone number"
    with pytest.raises(PrivacyError, match=named):
        stage_findings(folder, tmp_path / "staged", licence="cc-by-4.0", min_group=2)
    assert withdraw_notes(folder, 5, author="AB") == 2
    staged = stage_findings(folder, tmp_path / "staged", licence="cc-by-4.0", min_group=2)
    assert set(Findings.load(staged).notes["author"]) == {"CD"}
    assert "617" not in str(pq.read_table(staged / parquet_path("latents"))["notes"].to_pylist())


def test_a_staged_folder_holds_a_card_aggregate_figures_and_a_table_per_config(staged):
    names = {path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file()}
    figures = {name for name in names if name.startswith("figures/")}
    assert names - figures == {"README.md", *map(parquet_path, STAGED)}
    assert figures == {
        f"figures/{name}"
        for name in ("figure_2_Mass.png", "layers.png", *(f"figure_4_pretrained_{of}.png" for of in CONCEPTS))
    }
    for name in figures:
        with Image.open(staged / name) as image:
            assert set(image.info) <= {"dpi"} and image.mode in ("RGB", "RGBA")


def test_the_tables_have_the_schema_and_nothing_beside_it(staged):
    for config, schema in STAGED.items():
        file = pq.ParquetFile(staged / parquet_path(config))
        assert file.schema_arrow.names == schema.names
        assert file.metadata.metadata is None
        assert pq.read_table(staged / parquet_path(config)).cast(schema).schema == schema


def test_a_staged_folder_is_read_back_bit_by_bit(noted, staged):
    own, read = Findings.of_study(noted, min_group=2), Findings.load(staged)
    for name in ("latents", "concepts", "interventions", "reconstruction", "localization", "notes"):
        pd.testing.assert_frame_equal(getattr(own, name), getattr(read, name), check_exact=True)
    told = read.study["data"].pop("pictures")
    assert read.study == own.study and not told["shown"] and "--data" in told["reason"]
    assert load_findings(staged).study["data"]["pictures"] == told
    assert load_findings(noted).study["min_group"] == 5


def test_notes_travel_with_their_latents(staged):
    notes = Findings.load(staged).notes
    encoders = Findings.load(staged).latents.query("layer == 'layer_10'")["encoder"].unique()
    own = notes[(notes["layer"] == "layer_10") & (notes["latent"] == 5)]
    assert sorted(own["encoder"]) == sorted([*encoders, *encoders])  # not of one encoder: of all
    first = own.query("author == 'AB'").iloc[0]
    assert (first["text"], first["label"], first["concept"], first["confidence"]) == (
        "round and bright",
        "Mass",
        "Mass",
        4,
    )
    assert set(notes.query("layer == 'layer_6'")["latent"]) == {9}
    assert agreement(notes).n_items == 1


def hashed(key, one):
    return hmac.new(key, str(one).encode(), "sha256").hexdigest()[:32]


def test_examples_are_the_maps_of_the_tables_under_hashed_ids(noted, staged):
    examples = Findings.load(staged).examples
    key = bytes.fromhex((noted / "publishing.key").read_text().strip())
    layer = StudyFolder(noted).layer("layer_6")
    (encoder,) = [one for one in layer.encoders.values() if "Mass" in one.concepts]
    table = encoder.table
    own = examples.query("layer == 'layer_6' and concept == 'Mass'")
    (best,) = [r["latents"][:3] for r in layer.results["rankings"] if (r["concept"], r["class"]) == ("Mass", 1)]
    assert set(own["latent"]) == set(best)
    image_rows = [row for row in range(len(table.images)) if len(table.map_latents(row))]
    images = {hashed(key, table.images["image_id"][row]) for row in image_rows}
    assert set(own["image"]) <= images and len(own) == 3 * own["image"].nunique() > 0
    image_rows = [row for row in image_rows if hashed(key, table.images["image_id"][row]) in set(own["image"])]
    for row in image_rows[:3]:
        image, patient = (hashed(key, table.images[name][row]) for name in ("image_id", "patient_id"))
        one = own[(own["image"] == image) & (own["latent"] == best[1])].iloc[0]
        assert one["patient"] == patient and one["label"] == table.images["Mass"][row]
        np.testing.assert_array_equal(np.stack(one["heatmap"]), table.maps([best[1]], row)[0])


def test_the_key_and_the_ids_stay_here(noted, staged):
    key = (noted / "publishing.key").read_bytes().strip()
    images = next(iter(StudyFolder(noted).layers[0].encoders.values())).table.images
    ids = [str(value).encode() for name in ("image_id", "patient_id") for value in images[name].unique()]
    for path in staged.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(value in content for value in [key, *ids]), path.name


def test_staging_twice_gives_the_same_bytes_and_without_examples_none_stay(noted, staged, tmp_path):
    folder = tmp_path / "findings"
    shutil.copytree(staged, folder)
    settings = {"repo_id": "someone/findings", "licence": "cc-by-4.0", "min_group": 2}
    stage_findings(noted, folder, **settings, examples=True)
    for path in staged.rglob("*"):
        if path.is_file():
            assert (folder / path.relative_to(staged)).read_bytes() == path.read_bytes(), path.name
    stage_findings(noted, folder, **settings)
    assert (
        not (folder / "examples").exists() and "examples" not in (folder / "README.md").read_text().partition("\n# ")[0]
    )
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_folder_with_something_else_in_it_is_left_alone(noted, tmp_path):
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(InputError, match="holds other files than findings staged earlier"):
        stage_findings(noted, tmp_path, licence="cc-by-4.0")
    assert (tmp_path / "thesis.docx").read_text() == "years of work"


def test_examples_of_a_restricted_dataset_are_refused_and_nothing_is_left(noted, tmp_path, monkeypatch):
    of_study = PrivacyContext.of_study
    monkeypatch.setattr(
        PrivacyContext, "of_study", lambda *args, **kw: replace(of_study(*args, **kw), datasets=("vindr",))
    )
    with pytest.raises(PrivacyError, match="VinDr-Mammo"):
        stage_findings(noted, tmp_path / "findings", licence="cc-by-4.0", examples=True)
    assert list(tmp_path.iterdir()) == []
    stage_findings(noted, tmp_path / "findings", licence="cc-by-4.0")
    assert (tmp_path / "findings" / "README.md").exists()


def test_a_note_with_a_patients_id_is_stopped(study, tmp_path):
    folder = shutil.copytree(study.output, tmp_path / "study")
    patient = next(iter(StudyFolder(folder).layers[0].encoders.values())).table.images["patient_id"][0]
    add_note(folder, 5, "as in the first", author="AB")
    (file,) = (folder / "notes").glob("*.jsonl")
    file.write_text(file.read_text().replace("the first", patient))  # past the checks of add_note
    with pytest.raises(PrivacyError, match="latents/train-00000-of-00001.parquet"):
        stage_findings(folder, tmp_path / "findings", licence="cc-by-4.0")


def test_figures_of_a_concept_in_which_something_is_suppressed_stay_here(noted, tmp_path):
    folder = stage_findings(noted, tmp_path / "findings", licence="cc-by-4.0", min_group=100)
    assert not (folder / "figures").exists()


@pytest.mark.parametrize("damage", ["missing", "column", "bytes", "newer"])
def test_damaged_findings_are_refused_in_one_line(staged, tmp_path, damage):
    folder = shutil.copytree(staged, tmp_path / "findings")
    file = folder / parquet_path("latents")
    if damage == "missing":
        file.unlink()
    elif damage == "column":
        pq.write_table(pq.read_table(file).drop_columns(["notes"]), file)
    elif damage == "bytes":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        file = folder / parquet_path("study")
        table = pq.read_table(file)
        pq.write_table(table.set_column(0, "format_version", pa.array([2])), file)
    expected = {
        "missing": "holds no findings",
        "column": "lacks the column notes",
        "bytes": "is damaged",
        "newer": "has findings of format 2",
    }
    with pytest.raises(InputError, match=expected[damage]) as error:
        Findings.load(folder)
    assert "\n" not in str(error.value)


def test_findings_of_this_machine_are_called_by_their_folder(noted, staged, tmp_path, monkeypatch):
    names = {str(place): load_findings(place) for place in (noted, staged)}
    for place, loaded in names.items():
        assert (loaded.origin, loaded.repo_id) == (Path(place).name, None)
    monkeypatch.chdir(noted)
    assert load_findings(".").origin == noted.name
    other = shutil.copytree(staged, tmp_path / "elsewhere" / staged.name)
    same_name = compare_findings(staged, other)
    assert (same_name.a, same_name.b) == (str(staged), str(other))
    different = compare_findings(str(staged), noted)
    assert (different.a, different.b) == (staged.name, noted.name)


def test_a_study_folder_keeps_to_the_least_group_that_is_asked_for(noted):
    hidden = [load_findings(noted, min_group=size).concepts["score"].isna().mean() for size in (2, 100)]
    assert hidden[0] < 0.1 and hidden[1] == 1


def test_a_figure_that_is_not_as_the_study_drew_it_stops_the_publication(noted, tmp_path):
    folder = shutil.copytree(noted, tmp_path / "study")
    figure = folder / "results" / "figures" / "figure_2_Mass.png"
    with Image.open(figure) as image:
        image.save(figure, icc_profile=b"of the clinic's screen")
    with pytest.raises(InputError, match="figure_2_Mass.png is not a figure as a study drew it"):
        stage_findings(folder, tmp_path / "findings", licence="cc-by-4.0", min_group=2)
    assert not (tmp_path / "findings").exists()


def test_what_the_guard_stops_is_not_staged_by_publishing_either(noted, tmp_path, monkeypatch):
    of_study = PrivacyContext.of_study
    monkeypatch.setattr(
        PrivacyContext, "of_study", lambda *args, **kw: replace(of_study(*args, **kw), datasets=("vindr",))
    )
    with pytest.raises(PrivacyError, match="VinDr-Mammo"):
        publish_findings(noted, "someone/findings", licence="mit", folder=tmp_path / "findings", examples=True)
    assert list(tmp_path.iterdir()) == []


def test_what_is_neither_a_folder_nor_a_repository_is_refused(tmp_path):
    with pytest.raises(InputError, match="neither a folder nor the name of a dataset"):
        load_findings(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a folder, which has no revision 'v1'"):
        load_findings(tmp_path, revision="v1")
    with pytest.raises(InputError, match="names the revision v1, but revision v2 is given too"):
        load_findings("someone/findings@v1", revision="v2")
    with pytest.raises(InputError, match="findings are a whole one"):
        load_findings("hub://someone/findings@v1/latents")


# On the Hub

PUBLISH = """
import sys
from typer.testing import CliRunner
from mammosae_plugin.cli import app
from mammosae_plugin.hub import compare_findings, load_findings, publish_findings
from mammosae_plugin.privacy import guard

study, repo, folder = sys.argv[1:]

def command(*arguments):
    settings = ["--folder", folder, "--examples", "--tag", "v1", "--min-group", "2"]
    done = CliRunner().invoke(app, ["publish", "findings", study, repo, *settings, *arguments])
    return [done.exit_code, done.output, "dataset " + repo in hub()["repos"]]

looks = []
checked = guard.check_staged
guard.check_staged = lambda *given, **named: looks.append(str(given[0])) or checked(*given, **named)
poor = [*("--licence", "mit"), "--force-poor"]  # the study's SAE is a random one
commands = [command(), command("--licence", "mit"), command(*poor), command(*poor, "--confirm")]
looks_of_commands = len(looks)
again = publish_findings(study, repo, licence="mit", folder=folder, examples=True, tag="v1", min_group=2)
loaded = load_findings(repo, revision="v1")
compared = compare_findings(repo, study)
both = CliRunner().invoke(app, ["compare", repo + "@v1", repo])
seen = {
    "looks": looks_of_commands, "compare": [both.exit_code, both.output], "repo_id": loaded.repo_id,
    "commands": commands, "changed": again.changed,
    "origin": loaded.origin, "n": len(loaded.latents), "means": loaded.concepts["class_mean"].sum(),
    "rho": compared.latents["rank_correlation"].min(), "readers": sorted(loaded.notes["author"].unique()),
}
"""

ONLY_DATASETS = """
import sys
from datasets import get_dataset_config_names, load_dataset

repo = sys.argv[1]
seen = {"configs": get_dataset_config_names(repo), "default": load_dataset(repo, split="train").column_names}
for config in seen["configs"]:
    loaded = load_dataset(repo, config, revision="v1", split="train")
    loaded.to_parquet(sys.argv[2] + "/" + config + ".parquet")
seen["modules"] = [name for name in ("mammosae_plugin", "sae_lens", "torch") if name in sys.modules]
"""


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def published(hub, noted, tmp_path_factory):
    home = tmp_path_factory.mktemp("publisher")
    folder = tmp_path_factory.mktemp("sent") / "findings"
    return folder, run_on_hub(hub, home, PUBLISH, noted, "someone/findings", folder)


def test_what_is_published_is_what_was_staged_in_one_commit(hub, published):
    folder, seen = published
    state = hub.repos["dataset", "someone/findings"].state()
    staged = {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in folder.rglob("*") if path.is_file()}
    there = {path: digest for path, digest in state["files"].items() if path != ".gitattributes"}
    assert there == staged
    assert state["private"] and state["n_commits"] == 2 and list(state["tags"]) == ["v1"]
    assert seen["changed"] is False  # the same once more


def test_published_findings_are_loaded_and_compared_from_the_hub(published, noted):
    _, seen = published
    own = Findings.of_study(noted, min_group=2)
    assert (seen["origin"], seen["n"], seen["readers"]) == ("someone/findings@v1", len(own.latents), ["AB", "CD"])
    assert seen["repo_id"] == "someone/findings"
    assert seen["means"] == own.concepts["class_mean"].sum()
    assert seen["rho"] == pytest.approx(1)


def test_two_revisions_of_a_dataset_are_compared_by_the_command(published):
    code, text = published[1]["compare"]
    assert code == 0, text
    assert text.startswith("a: someone/findings@v1\nb: someone/findings (the same SAE)")


def test_the_guard_looks_once_at_what_is_sent(published):
    assert published[1]["looks"] == 2  # of the four commands two are refused: no licence, a poor SAE


def test_a_process_with_only_datasets_loads_every_config(hub, published, tmp_path):
    folder, _ = published
    seen = run_on_hub(hub, tmp_path, ONLY_DATASETS, "someone/findings", tmp_path)
    assert seen["configs"] == list(STAGED) and seen["modules"] == []
    assert seen["default"] == SCHEMAS["latents"].names
    for config, schema in STAGED.items():
        loaded = pq.read_table(tmp_path / f"{config}.parquet").replace_schema_metadata(None).cast(schema)
        assert loaded.equals(pq.read_table(folder / parquet_path(config)).cast(schema)), config


def test_a_staged_folder_is_a_dataset_for_datasets(staged, tmp_path):
    loaded = datasets.load_dataset(str(staged), "latents", split="train", cache_dir=str(tmp_path))
    assert loaded.column_names == SCHEMAS["latents"].names
    assert loaded[5]["concepts"][0]["concept"] == "Mass"
    assert datasets.load_dataset(str(staged), "study", split="train", cache_dir=str(tmp_path))[0]["min_group"] == 2


def test_the_command_sends_nothing_unless_it_is_told_to_and_says_exactly_what(published):
    folder, seen = published
    (refused, poor, dry, sent) = seen["commands"]
    assert poor[0] == 2 and "explained variance −" in poor[1] and "--force-poor" in poor[1] and not poor[2]
    assert len(poor[1].splitlines()) == 1
    assert refused[0] == 2 and "--licence" in refused[1] and not refused[2]
    assert dry[0] == 0 and "Nothing was sent" in dry[1] and not dry[2]
    for path in folder.rglob("*"):
        if path.is_file():
            assert path.relative_to(folder).as_posix() in dry[1] and sha256_of_file(path) in dry[1]
    assert sent[0] == 0 and sent[2]


def test_the_command_compares_and_says_what_it_needs(study, noted, staged):
    done = CliRunner().invoke(app, ["compare", str(staged), str(noted), "--top", "3"])
    assert done.exit_code == 0, done.output
    assert "the same SAE" in done.output and "layer_6" in done.output and "Suspicious_Calcification" in done.output
    places = [f"{layer}={place}" for layer, place in study.config.sae.paths.items()]
    given = [part for side in ("--sae-a", "--sae-b") for place in places for part in (side, place)]
    done = CliRunner().invoke(app, ["compare", str(staged), str(noted), *given])
    assert done.exit_code == 0, done.output
    assert "matched by decoder directions" in done.output
    refused = CliRunner().invoke(app, ["compare", str(staged), str(noted), "--sae-a", places[0]])
    assert refused.exit_code == 2 and "give the SAEs of both studies" in refused.output
