"""Findings as a dataset: every number is the study's own, recomputed here from its tables, layers and networks."""

import json
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers_study import layered_settings, write_study
from helpers_tables import make_table
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mammosae_plugin import study_layer
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.config import load_config
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import write_json
from mammosae_plugin.hub.findings import Findings
from mammosae_plugin.hub.findings_schema import SCHEMAS, columns_of, parquet_path
from mammosae_plugin.hub.findings_tables import Groups
from mammosae_plugin.hub.guard import COLUMNS
from mammosae_plugin.study import Study
from mammosae_plugin.study_folder import Encoder, StudyFolder

CONCEPTS = ("Mass", "Suspicious_Calcification")


def draw_quickly(_results, _class_means, _panels, folder):
    """Stands in for the figures, which take most of a small study's time: names as they are, and a text inside."""
    names = ["figure_2_Mass.png", "figure_3_pretrained_Mass.png", "figure_4_pretrained_Mass.png", "layers.png"]
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    texts = PngInfo()
    texts.add_text("Author", "somebody")
    for name in names:
        Image.new("RGB", (60, 40), "white").save(folder / "figures" / name, pnginfo=texts)
    return [folder / "figures" / name for name in names]


@pytest.fixture(scope="module")
def study(tmp_path_factory, phantom_root):
    """A study of an inner layer and the final map."""
    folder = tmp_path_factory.mktemp("study")
    settings = layered_settings(folder, phantom_root)
    settings["analysis"] |= {"inner_controls": 1}
    study = Study(load_config(write_study(folder, settings)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_layer, "write_figures", draw_quickly)
        patch.setattr(study_layer, "write_tables", lambda *_: [])
        patch.setattr(study_layer, "write_report", lambda folder: folder)
        study.run()
    return study


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
    assert told["config"]["analysis"] == results["config"]["analysis"]
    assert "root" not in told["config"]["data"] and "output" not in told["config"]
    assert told["sae"]["layer_10"]["sha256"] == results["sae"]["sha256"]
    assert {row["readout"] for row in told["models"] if row["layer"] == "layer_6"} == {"network"}
    assert str(study.output.parent) not in json.dumps(told)


def test_the_columns_are_those_that_the_guard_lets_through():
    for config, schema in SCHEMAS.items():
        nested = {name.partition(".")[0] for name in columns_of(config) if "." in name}
        assert {name for name in columns_of(config) if name not in nested} == COLUMNS[config], config
        assert schema.metadata is None


def test_without_the_tables_that_the_results_name_the_study_is_asked_for_again(study, tmp_path):
    results = json.loads((study.output / "results" / "results.json").read_text())
    results.pop("tables")
    write_json(tmp_path / "results" / "results.json", {**results, "layers": []})
    with pytest.raises(InputError, match="run `mammosae report` with its configuration once more"):
        Findings.of_study(tmp_path)
    with pytest.raises(InputError, match="holds no finished study"):
        Findings.of_study(tmp_path / "nowhere")


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
        for number in (0, 1):
            is_small = patients[concept, "training"][number] < least
            assert rows.loc[rows["class"] == number, ["class_mean", "n_images"]].isna().all(axis=None) == is_small
        # What is left of a centred score would give the other class away.
        assert rows[["score", "rank"]].isna().all(axis=None)
        assert found.localization.query("concept == @concept").empty
    assert all(pair.partition("/")[2] not in small for of in found.study["named_latents"].values() for pair in of)
    for concept in CONCEPTS:
        if min(patients[concept, "test"]) < least:
            for frame in (found.reconstruction, found.interventions):
                rows = frame[frame["concept"] == concept]
                assert len(rows) and rows[["auroc", "average_precision", "f1_low"]].isna().all(axis=None)
            assert found.reconstruction.loc[found.reconstruction["concept"] == concept, "n_positive"].isna().all()
    assert found.study["min_group"] == least


def test_the_maximum_of_a_latent_that_fires_in_few_patients_is_suppressed(study):
    encoder = next(iter(StudyFolder(study.output).layer("layer_6").encoders.values()))
    images = encoder.table.images
    test = np.flatnonzero(images["split"] == "test")
    fires = encoder.table.max_latents.toarray()[test] != 0
    patients = images["patient_id"].to_numpy()[test]
    counts = np.array([len(set(patients[column])) for column in fires.T])
    for least in (1, 2, 4, int(counts.max()) + 1):
        own = Findings.of_study(study.output, min_group=least).latents.query("layer == 'layer_6'")
        assert own["max_activation"].isna().tolist() == (counts < least).tolist()


# At full width


class FakeLayer:
    """A layer of a study whose tables are in memory."""

    def __init__(self, table, n_concepts):
        self.name, self.hook_name, self.folder = "layer_39", "bn2.hook_out", None
        concepts = [f"concept_{number}" for number in range(n_concepts)]
        encoder = Encoder("finetuned", "finetuned", tuple(concepts), Path())
        encoder.__dict__["table"] = table
        self.encoders = {"finetuned": encoder}
        self.results = {
            "data": {"unit": "image"},
            "config": {"analysis": {"score": "centered_mean"}},
            "localization": [],
        }


def test_sixteen_thousand_latents_of_four_concepts_are_staged_in_seconds(tmp_path):
    from mammosae_plugin.hub.findings import _write  # the step behind the network's and the card's
    from mammosae_plugin.hub.findings_tables import _latents

    table = make_table(d_sae=16384, n_patients=12)
    for number in range(4):
        table.images[f"concept_{number}"] = np.random.default_rng(number).integers(2, size=len(table.images))
        table.head_weight[f"concept_{number}"] = table.head_weight["Mass"]
        table.head_bias[f"concept_{number}"] = table.head_bias["Mass"]
    table.classes = lambda concept: (0, 1)
    layer = FakeLayer(table, 4)
    groups = {
        ("layer_39", "finetuned", concept): Groups(np.array([20, 20]), np.array([9, 9]), np.array([9, 9]), 9)
        for concept in layer.encoders["finetuned"].concepts
    }
    start = time.perf_counter()
    latents = _latents(layer, layer.encoders["finetuned"], groups, [], 5)
    _write(tmp_path / parquet_path("latents"), latents)
    assert time.perf_counter() - start < 10
    back = pq.read_table(tmp_path / parquet_path("latents"))
    assert back.num_rows == 16384 and back.schema.metadata is None
    last = back["concepts"][16383].as_py()
    assert [one["concept"] for one in last] == [f"concept_{number}" for number in range(4)]
    labels = table.images["concept_3"].to_numpy()[table.images["split"] == "training"]
    mean = table.mean_latents.toarray()[table.images["split"] == "training"][labels == 1, 16383].astype(float).mean()
    assert last[3]["class_means"][1] == pytest.approx(mean, rel=1e-12)
