"""A folder of images and a table of labels: what it reads, what it refuses, and a whole study on it."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_datasets import csv_folder
from helpers_findings import whole_study
from helpers_hub import LoopbackHub, run_on_hub
from helpers_results import read_report
from helpers_study import results_of, save_random_sae

from mammosae_plugin import hub_cards
from mammosae_plugin.adapters import new_classifier, save_classifier
from mammosae_plugin.config import StudyConfig, describe_settings, load_config
from mammosae_plugin.datasets import (
    Concept,
    CsvFolder,
    DatasetAbout,
    DatasetError,
    DatasetKind,
    DataSettings,
    LabelSettings,
    VinDrMammo,
    open_dataset,
    register_dataset,
    require_study_dataset,
    screen_images,
)
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.study import Study

SIZE = (96, 64)
GRADES = ["low", "middle", "high"]
LABELS = {"Cancer": "binary", "Grade": LabelSettings(kind="graded", classes=GRADES)}


@pytest.fixture(scope="module")
def folder(phantom_root, tmp_path_factory):
    root = tmp_path_factory.mktemp("csv")
    csv_folder(root, phantom_root)
    return root


def changed(folder, tmp_path, change):
    table = pd.read_csv(folder / "images.csv", dtype=str)
    table = change(table)
    table.to_csv(tmp_path / "changed.csv", index=False)
    return tmp_path / "changed.csv"


def test_labels_and_covariates_are_read_without_anything_of_vindr(folder, phantoms):
    data = CsvFolder(folder, LABELS, image_size=SIZE)
    assert data.vocabulary["Grade"] == Concept("Grade", "graded", tuple(GRADES))
    assert data.concepts == ("Cancer",) and not data.vocabulary["Cancer"].boxes
    assert list(data.images.columns) == ["image_id", "patient_id", "split", "age", "Cancer", "Grade"]
    assert data.images["age"].dtype == np.int64
    assert data.images["Cancer"].tolist() == phantoms.images["Mass"].tolist()
    assert data[0]["labels"] == {"Cancer": data.images["Cancer"][0], "Grade": data.images["Grade"][0]}
    assert torch.equal(data[0]["image"], phantoms[0]["image"])
    assert data.about.restricted and data.name == "images"
    require_study_dataset(data)


def test_boxes_are_of_the_labels_that_are_present_in_their_row(phantom_root, phantoms, tmp_path):
    csv_folder(tmp_path, phantom_root, boxes=True)
    data = CsvFolder(tmp_path, LABELS, image_size=SIZE)
    assert data.vocabulary["Cancer"].boxes
    for index in range(len(data)):
        own, same = data[index]["boxes"]["Cancer"], phantoms[index]["boxes"]["Mass"]
        assert np.allclose(sorted(own.tolist()), sorted(same.tolist()), atol=1e-3)
    assert len(screen_images(data, tmp_path / "bad.csv", suspects_file=tmp_path / "suspects.csv")) == len(data)


def test_other_labels_make_another_fingerprint(folder, tmp_path):
    def fingerprint(**settings):
        return CsvFolder(folder, settings.pop("labels", LABELS), image_size=SIZE, **settings).fingerprint

    renamed = LABELS | {"Grade": LabelSettings(kind="multiclass", classes=GRADES)}
    other = changed(folder, tmp_path, lambda table: table.assign(Cancer=table["Cancer"].map({"0": "1", "1": "0"})))
    prints = [fingerprint(), fingerprint(labels=renamed), fingerprint(labels=["Cancer"]), fingerprint(table=other)]
    assert len(set(prints)) == 4 and fingerprint() == prints[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="Cancer"), "1 columns are missing: Cancer"),
        (lambda t: t.rename(columns={"patient_id": "patient"}), r"patient_id \(nearest: patient"),
        (lambda t: t.assign(Cancer=["", *t["Cancer"][1:]]), r"1 row has no Cancer \(such as line 2\): fill it in"),
        (lambda t: t.assign(Cancer=["2", *t["Cancer"][1:]]), r"not 0..1 \(such as '2' in line 2\): write 1 and 0"),
        (lambda t: t.assign(Grade=["lo", *t["Grade"][1:]]), r"no class .*'lo' in line 2\): write low, middle or high"),
        (lambda t: t.assign(split="train"), "split other than training, test"),
        (lambda t: t.assign(patient_id="p"), "1 patient is in both splits"),
        (lambda t: pd.concat([t, t[:1]]), "1 row repeats an earlier row exactly|repeat an earlier row exactly"),
        (lambda t: t.assign(image_id=["x", *t["image_id"][1:]]), "1 image file is missing|image files are missing"),
        (lambda t: t.assign(xmin="1"), r"3 columns are missing: ymin .*xmax .*ymax"),
        (lambda t: t.assign(xmin="9", ymin="9", xmax="3", ymax="30"), "inverted or have no area"),
        (lambda t: t.assign(xmin="9", ymin="9", xmax="99", ymax="30"), "beyond the 96 x 64 image"),
        (
            lambda t: t.assign(xmin=["0.1"] + [""] * (len(t) - 1)).assign(ymin=lambda t: t.xmin, xmax=0.5, ymax=0.5),
            "box is in shares of the image",
        ),
        (lambda t: t.assign(xmin="9", ymin="9", xmax="20", ymax=""), "have a box with missing corners"),
        (lambda t: t.assign(xmin="9", ymin="9", xmax="20", ymax="3O"), "ymax values are no numbers"),
        (lambda t: t.assign(xmin="9", ymin="9", xmax="20", ymax="30"), "have a box but no label that is 1"),
    ],
)
def test_what_is_wrong_with_a_table_is_told_in_one_line(folder, tmp_path, change, message):
    with pytest.raises(DatasetError, match=message) as error:
        CsvFolder(folder, LABELS, table=changed(folder, tmp_path, change), image_size=SIZE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "labels"),
        ({"Cancer": "binry"}, r"labels.Cancer: must be one of .*did you mean 'binary'"),
        ({"Grade": "multiclass"}, "needs the names of its `classes`"),
        ({"Grade": ["low"]}, "labels.Grade: .*needs three or more classes, not 1"),
        ({"split": "binary"}, "split cannot be a label"),
    ],
)
def test_labels_that_say_nothing_are_refused(folder, labels, message):
    with pytest.raises(InputError, match=message) as error:
        CsvFolder(folder, labels, image_size=SIZE)
    assert "\n" not in str(error.value)


def settings_of(folder, output, **data):
    return {
        "output": str(output),
        "data": {"kind": "csv", "root": str(folder), "image_size": list(SIZE), "labels": ["Cancer"], **data},
        "concepts": ["Cancer"],
        "models": [{"name": "a", "encoder": "encoder.safetensors", "train": {"kind": "pretrained"}}],
        "sae": {"path": "sae"},
    }


def test_a_study_names_its_kind_of_dataset_and_the_kind_checks_its_own_settings(folder, phantom_root, tmp_path):
    config = StudyConfig(**settings_of(folder, tmp_path, name="clinic", title="A clinic", licence="none"))
    assert isinstance(data := open_dataset(config.data), CsvFolder)
    assert (data.about.title, data.about.licence, data.name) == ("A clinic", "none", "clinic")
    assert StudyConfig(**config.model_dump()) == config
    vindr = settings_of(phantom_root, tmp_path)
    vindr["data"] = {"root": str(phantom_root), "image_size": list(SIZE)}
    assert isinstance(open_dataset(StudyConfig(**vindr).data), VinDrMammo)
    for section, message in [
        ({"kind": "cvs"}, r"data: kind must be one of .*'cvs' \(did you mean 'csv'\?\)"),
        ({"tabel": "a.csv"}, r"unknown setting 'data.tabel' \(did you mean 'table'\?\)"),
        ({"boxes": "mended"}, "unknown setting 'data.boxes'"),
        ({"labels": {}}, "data.labels: needs at least 1 entry"),
        ({"name": "a b"}, "data: a dataset's name is 'a b'"),
        ({"name": "phantom"}, "name: phantom is for generated images"),
        ({"root": None}, "data.root: is empty"),
    ]:
        with pytest.raises(InputError, match=message) as error:
            StudyConfig(**settings_of(folder, tmp_path, **section))
        assert "\n" not in str(error.value)
    told = describe_settings()
    assert "data.labels: " in told and "data.annotations: " in told and told.count("data.root: ") == 1


def test_a_kind_of_dataset_can_be_added(monkeypatch, folder):
    monkeypatch.setattr("mammosae_plugin.datasets.registry._ADDED", {})

    class OwnSettings(DataSettings):
        kind: str = "own"
        depth: int = 3

        @property
        def described(self):
            return DatasetAbout(name="own", title="Own images", restricted=False)

    kind = DatasetKind("own", OwnSettings, lambda given: CsvFolder(given.root, ["Cancer"], image_size=given.image_size))
    assert register_dataset(register_dataset(kind)) is kind
    config = StudyConfig(**{**settings_of(folder, "out"), "data": {"kind": "own", "root": str(folder), "depth": 5}})
    assert config.data.about.title == "Own images" and config.model_dump()["data"]["depth"] == 5
    with pytest.raises(InputError, match="named 'own' already"):
        register_dataset(DatasetKind("own", OwnSettings, CsvFolder))
    with pytest.raises(InputError, match="must have kind: str = 'other'"):
        register_dataset(DatasetKind("other", OwnSettings, CsvFolder))
    with pytest.raises(InputError, match="the dataset is a list: give images"):
        require_study_dataset([])


@pytest.fixture(scope="module")
def study(folder, tmp_path_factory):
    """A study of a finding without boxes and a grade, run here."""
    place = tmp_path_factory.mktemp("study")
    save_classifier(new_classifier("tinynet_e", 0, seed=0), place / "encoder.safetensors", metadata={})
    save_random_sae(place / "sae")
    settings = settings_of(folder, place / "out", labels={"Cancer": "binary", "Grade": GRADES})
    settings["data"] |= {"name": "clinic", "title": "Images of a clinic", "citation": "Somebody, 2026"}
    settings["concepts"] = ["Cancer", "Grade"]
    settings["models"][0]["encoder"], settings["sae"] = str(place / "encoder.safetensors"), {"path": str(place / "sae")}
    settings |= {"analysis": {"n_bootstrap": 100, "ks": [0, 1, 64], "top": 3}, "batch_size": 8}
    done = Study(load_config(None, replace=settings))
    done.run()
    return done


@pytest.mark.slow
def test_a_study_of_cancer_without_density_birads_laterality_and_view(study):
    results = results_of(study.output)
    assert results["data_kind"] == "clinic" and results["data"]["about"]["restricted"]
    assert [one["classes"] for one in results["data"]["vocabulary"]] == [["absent", "present"], GRADES]
    assert results["localization"] == [] and {row["n_boxes"] for row in results["data"]["concepts"]} == {0}
    table = LatentTable(next((study.output / "work" / "latents").glob("a-*[0-9a-f]")))
    assert table.classes("Grade") == (0, 1, 2) and "density" not in table.images
    with pytest.raises(InputError, match="no labels for 'density'"):
        table.rows("density", split="test")
    page = read_report(study.output / "results")
    for text in ("Images of a clinic", "Somebody, 2026", "Latent, middle"):
        assert text in page
    assert "VinDr" not in page


STAGE = """
import sys
from mammosae_plugin.hub import prepare_findings, prepare_model, prepare_sae, prepare_space

study, out = sys.argv[1:]
staged = {
    "findings": prepare_findings(study, "someone/findings", licence="mit", min_group=2, folder=out + "/findings"),
    "saes": prepare_sae(study, "someone/saes", licence="mit", staging=out + "/saes"),
    "nets": prepare_model(study, "someone/nets", licence="mit"),
    "space": prepare_space(study, "someone/space", min_group=2, folder=out + "/space"),
}
texts = {}
for name, one in staged.items():
    files = [path for path in one.folder.rglob("*") if path.is_file()]
    assert files and "README.md" in {path.name for path in files}, name
    texts[name] = {path.relative_to(one.folder).as_posix(): path.read_bytes().decode("latin-1") for path in files}
again = dict(licence="mit", examples=True, folder=out + "/examples")
seen = {"texts": texts, "examples": attempt(lambda: prepare_findings(study, "someone/more", **again))}
"""


@pytest.mark.slow
def test_what_a_study_of_such_a_folder_publishes_is_of_its_dataset_alone(study, tmp_path):
    copy = whole_study(study, tmp_path / "study")
    with LoopbackHub() as hub:
        seen = run_on_hub(hub, tmp_path / "home", STAGE, copy, tmp_path / "staged", timeout=1800)
    own_code = {path.name for path in (Path(hub_cards.__file__).parent / "space").iterdir()}
    for part, files in seen["texts"].items():
        for name, text in files.items():
            if part != "space" or name not in own_code:
                assert not re.search("vindr|nguyen|bi-?rads|mammograms", text, re.I), (part, name)
        assert part == "space" or "clinic" in files["README.md"], part
    assert "Images of a clinic is not part of this repository" in seen["texts"]["findings"]["README.md"]
    for part in ("findings", "saes", "nets", "space"):
        assert "To be cited for the data: Somebody, 2026." in seen["texts"][part]["README.md"], part
    assert seen["examples"]["error"] == "PrivacyError"
    assert "Images of a clinic" in seen["examples"]["message"] and "licence" in seen["examples"]["message"]
