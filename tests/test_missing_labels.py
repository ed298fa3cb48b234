"""A study of images of which labels are missing: its numbers are those of the images that have one, told beside it."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_results import read_report
from helpers_study import study_settings, write_study
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from mammosae_plugin.adapters import new_backbone_classifier
from mammosae_plugin.analysis import best_single_latent, monosemanticity_of
from mammosae_plugin.config import load_config
from mammosae_plugin.datasets import VinDrMammo, load_images
from mammosae_plugin.errors import InputError
from mammosae_plugin.findings.study_folder import StudyFolder
from mammosae_plugin.findings.tables import examples_table, findings_tables
from mammosae_plugin.study import Study, layer_report
from mammosae_plugin.study import embedding_analyses as of_embeddings
from mammosae_plugin.training import ClassifierTraining, train_classifier

SIZE = (96, 64)
CNN = "helpers_backbones:TorchCNN"
CONCEPTS = ["Mass", "Suspicious_Calcification", "density"]
OUTPUTS = {"Mass": 4, "Suspicious_Calcification": 0, "density": [None, ["A", "B"], None, ["C", "D"], None]}
BOX = ["xmin", "ymin", "xmax", "ymax"]


def own_table(phantoms: VinDrMammo, file, *, lacking: str = "") -> pd.DataFrame:
    """The phantoms in a table of one's own, a row per finding, a sixth of labels empty; by image what it says."""
    rng = np.random.default_rng(16)
    images = phantoms.images.copy()
    images.loc[images["patient_id"] == images.loc[images["split"] == "training", "patient_id"].iloc[0], "split"] = "val"
    names = ["image_id", "patient_id", "split"]
    truth = images[[*names, *CONCEPTS]].set_index("image_id").astype(dict.fromkeys(CONCEPTS, object))
    empty = pd.DataFrame(rng.random((len(truth), 3)) < 0.17, columns=CONCEPTS, index=truth.index)
    of_masses = truth.index[(truth["Mass"] == 1) & (truth["split"] == "test")]
    empty.loc[of_masses[0], CONCEPTS] = [False, True, True]  # a box of a mass, and else nothing known
    if lacking:
        empty.loc[truth["split"] == "test", lacking] = True
    truth[CONCEPTS] = truth[CONCEPTS].mask(empty, "")
    rows = phantoms.findings[["image_id", *CONCEPTS[:2], *BOX]].astype(object)
    rows = rows.merge(truth[["patient_id", "split", "density"]], left_on="image_id", right_index=True)
    rows["density"] = [cell if cell == "" else "ABCD"[cell] for cell in rows["density"]]
    for name in CONCEPTS[:2]:
        rows[name] = rows[name].mask(empty[name].loc[rows["image_id"]].to_numpy(), "")
    rows["file"] = "images_png/" + rows["patient_id"] + "/" + rows["image_id"]
    rows.fillna("").to_csv(file, index=False)
    return truth.reset_index()


def mapping(file) -> dict:
    return {
        "table": str(file),
        "image": "file",
        "labels": {**dict.fromkeys(CONCEPTS[:2]), "density": {"kind": "graded", "classes": list("ABCD")}},
        "boxes": {"columns": BOX, "pixels": "prepared"},
        "phantom": True,
    }


def settings(folder, phantom_root) -> dict:
    data = {"root": str(phantom_root), "mapping": mapping(folder / "own.csv"), "image_size": list(SIZE)}
    training = {"d_sae": 32, "epochs": 1, "batch_size": 32}
    return study_settings(folder, phantom_root) | {
        "data": {**data, "kind": "images", "phantom": True},
        "concepts": CONCEPTS,
        "models": [{"name": "net", "function": "helpers_backbones:five_outputs", "outputs": OUTPUTS}],
        "sae": {"train": {"model": "net", "concept": "Mass", "training": training}},
        "analysis": {"n_bootstrap": 100, "ks": [0, 4, 32], "top": 2, "error_term": False},
    }


@pytest.fixture(scope="module")
def studied(phantoms, phantom_root, tmp_path_factory):
    """A finished study without its figures, and what its own table says by image: "" where a label is missing."""
    folder = tmp_path_factory.mktemp("missing")
    truth = own_table(phantoms, folder / "own.csv")
    study = Study(load_config(write_study(folder, settings(folder, phantom_root))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_report, "write_figures", lambda *_, **__: [])
        study.run()
    return study, truth.set_index("image_id")


def known_of(truth, images, concept, split):
    """Rows of a table's images of a split that have a label, and the labels, by the file alone."""
    said = truth[concept].loc[images["image_id"]].to_numpy()
    rows = np.flatnonzero((images["split"] == split).to_numpy() & (said != ""))
    labels = said[rows].astype(int)
    return rows, (labels >= 2).astype(int) if concept == "density" else labels


def of(rows, **where):
    (found,) = (row for row in rows if all(row[name] == value for name, value in where.items()))
    return found


@pytest.mark.parametrize("concept", CONCEPTS)
def test_numbers_of_a_study_are_those_of_the_images_that_have_a_label(studied, concept):
    study, truth = studied
    found = json.loads((study.results_folder / "results.json").read_text())
    table = study.primary.tables[study.pairs[0]]
    test, labels = known_of(truth, table.images, concept, "test")
    training, of_training = known_of(truth, table.images, concept, "training")
    assert len(test) < (truth["split"] == "test").sum() and len(training) < (truth["split"] == "training").sum()

    plain = of(found["reconstruction"], concept=concept, variant="without_sae")
    assert plain["auroc"] == pytest.approx(roc_auc_score(labels, table.logits(concept)[test, 0]), abs=1e-9)
    assert (plain["n_rows"], plain["n_positive"]) == (len(test), labels.sum())

    means = table.mean_latents.toarray().astype(np.float64)
    chosen = set()
    for label in (0, 1):
        centered = means[training][of_training == label].mean(0) - means[training].mean(0)
        ranked = of(found["rankings"], concept=concept, **{"class": label})
        assert ranked["scores"] == pytest.approx(np.sort(centered)[::-1][: len(ranked["scores"])], abs=1e-9)
        chosen |= set(ranked["latents"][:4])
    left = means.copy()
    left[:, sorted(chosen)] = 0
    readout = table.readout(concept)
    edited = (readout.offset + left[test] @ readout.weight.astype(np.float64))[:, 0]
    deactivated = of(found["interventions"], concept=concept, mode="deactivate", k=4, error_term=False)
    assert deactivated["auroc"] == pytest.approx(roc_auc_score(labels, edited), abs=1e-9)

    single = best_single_latent(table, concept, n_bootstrap=0)
    own = [roc_auc_score(of_training, table.max_latents[training][:, [one]].toarray()) for one in range(32)]
    assert single.auroc_training == pytest.approx(max(own), abs=1e-6)


def test_missing_labels_are_counted_in_results_report_and_findings(studied):
    study, truth = studied
    found = json.loads((study.results_folder / "results.json").read_text())
    table = study.primary.tables[study.pairs[0]]
    page = read_report(study.results_folder)
    findings = findings_tables(StudyFolder(study.output), min_group=1)
    (shared,) = findings["study"].to_pylist()
    for rows in (found["data"]["concepts"], json.loads(shared["data"])["concepts"]):
        for row in rows:
            _, labels = known_of(truth, table.images, row["concept"], row["split"])
            n_images = int((truth["split"] == row["split"]).sum())
            assert (row["n_images"], row["n_positive"], row["n_missing"]) == (
                n_images,
                labels.sum(),
                n_images - len(labels),
            )
            assert row["n_missing"] > 0
    assert "no label" in page.lower()
    assert found["data"]["n_not_used"] == 2 and "2 images are of the split validation and took no part" in page
    assert "mapping" not in json.loads(shared["config"])["data"] and str(study.output.parent) not in json.dumps(found)
    told = examples_table(StudyFolder(study.output), lambda ids: list(ids), min_group=1).to_pandas()
    assert set(told["label"].dropna()) == {0, 1}
    for (image, concept), rows in told.groupby(["image", "concept"]):
        assert rows["label"].isna().all() == (truth.at[image, concept] == "")
    assert told["label"].isna().any()


def test_boxes_stand_without_the_labels_that_their_image_lacks(studied):
    study, truth = studied
    found = json.loads((study.results_folder / "results.json").read_text())
    boxes = study.all_images.findings
    assert (boxes[list(BOX)].notna().all(axis=1) <= (boxes[CONCEPTS[:2]] == 1).any(axis=1)).all()
    assert {row["concept"] for row in found["localization"]} == set(CONCEPTS[:2])  # density, of two groups, is nowhere
    assert {row["n_boxes"] for row in found["data"]["concepts"] if row["concept"] == "density"} == {0}
    for row in found["localization"]:
        positive = truth[(truth["split"] == "test") & (truth[row["concept"]] == 1)].index
        own = boxes[boxes["image_id"].isin(positive) & (boxes[row["concept"]] == 1) & boxes["xmin"].notna()]
        assert (row["n_images"], row["n_boxes"]) == (own["image_id"].nunique(), len(own))


def test_scores_of_label_sets_leave_out_images_that_lack_one(studied, caplog):
    study, truth = studied
    table = study.primary.tables[study.pairs[0]]
    words = {name: table.vocabulary[name] for name in CONCEPTS[:2]}
    got = of_embeddings.monosemanticity(table, words, "training", (5,))
    said = truth[CONCEPTS[:2]].loc[table.images["image_id"]]
    rows = np.flatnonzero((table.images["split"] == "training").to_numpy() & (said != "").all(axis=1).to_numpy())
    expected = monosemanticity_of(
        table.codes()[rows], said.iloc[rows].to_numpy(dtype=bool), table.images["patient_id"].iloc[rows], n=(5,)
    )
    assert got["coherence"].tolist() == expected["coherence_5"].tolist() and len(got)
    assert f"{32 - len(rows)} of 32 images of the split training lack a label" in caplog.text


@pytest.mark.parametrize("concept", ["Mass", "density"])
def test_classifiers_learn_from_the_images_that_have_a_label(concept, phantoms, phantom_root, tmp_path):
    truth = own_table(phantoms, tmp_path / "own.csv").set_index("image_id")
    images = load_images(mapping(tmp_path / "own.csv"), phantom_root, image_size=SIZE).select(split="training")
    start = new_backbone_classifier("function", CNN, 0, image_size=SIZE)
    file = tmp_path / "head.safetensors"
    trained = train_classifier(start, images, concept, file, ClassifierTraining(kind="pretrained", l2=0.5))
    rows, labels = known_of(truth, images.images, concept, "training")
    if concept == "density":
        labels = truth[concept].loc[images.images["image_id"]].to_numpy()[rows].astype(int)
    prepared = images.with_preprocessing(trained.preprocessing)
    with torch.no_grad():
        features = start.features(torch.stack([prepared[int(row)]["image"] for row in rows])).double().numpy()
    scaler = StandardScaler().fit(features)
    fitted = LogisticRegression(C=2, class_weight="balanced", max_iter=2000).fit(scaler.transform(features), labels)
    weight = trained.network.get_submodule(trained.head_path).weight.detach().numpy()
    np.testing.assert_allclose(weight, fitted.coef_ / scaler.scale_, rtol=1e-2, atol=1e-3)
    outcome = trained.source["metadata"]["outcome"]
    assert (outcome["n_images"]["training"], outcome["n_unlabelled"]) == (len(rows), len(images) - len(rows))


def test_a_concept_that_a_whole_split_lacks_is_one_line(phantoms, phantom_root, tmp_path):
    own_table(phantoms, tmp_path / "own.csv", lacking="Mass")
    study = Study(load_config(write_study(tmp_path, settings(tmp_path, phantom_root))))
    with pytest.raises(InputError, match="no image of the test split has a label of Mass, .* in all 14; remove") as one:
        study.classify()
    assert "\n" not in str(one.value)
    images = load_images(mapping(tmp_path / "own.csv"), phantom_root, image_size=SIZE).select(split="test")
    start = new_backbone_classifier("function", CNN, 0, image_size=SIZE)
    with pytest.raises(InputError, match="no training image has a label of Mass: all 14 lack one"):
        train_classifier(start, images, "Mass", tmp_path / "a.safetensors")
