"""The example configurations, run on small made-up data of the layouts that they are written for."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers_collections import write_rsna
from helpers_results import read_report
from helpers_study import study_settings
from PIL import Image

from mammosae_plugin.config import load_config
from mammosae_plugin.datasets import ImageMapping, load_images, prepare_dicom
from mammosae_plugin.study import Study

EXAMPLES = Path(__file__).parent.parent / "examples"
QUICK = {"device": "cpu", "batch_size": 4, "num_workers": 0}
ANALYSIS = {"n_bootstrap": 100, "ks": [0, 3], "top": 3, "error_term": False}


def test_every_example_of_a_study_is_known_here():
    """study.yaml and study_embeddings.yaml are read in test_config.py; each other one is run below."""
    known = {"study.yaml", "study_embeddings.yaml", "study_own_csv.yaml", "study_rsna.yaml"}
    known |= {"queries_ct_mri.yaml", "queries_mammography.yaml"}  # test_search.py
    assert {path.name for path in EXAMPLES.glob("*.yaml")} == known


def example(name, **changes):
    """The example with sections in place of its own, as a study."""
    return Study(load_config(EXAMPLES / name, replace=QUICK | {"analysis": ANALYSIS} | changes))


def words_of(page):
    """What a reader sees of a report, by section."""
    sections = re.split(r'<section id="([\w-]+)">', page)
    texts = [re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", part))) for part in sections]
    words = {"whole": " ".join(texts)}
    for name, text in zip(texts[1::2], texts[2::2], strict=True):
        words[name] = f"{words.get(name, '')} {text}"
    return words


# A spreadsheet and a folder of PNGs


def write_clinic(root, phantoms):
    """The columns of the example, PNGs of two sizes, a mask of every mass; one histology is not known."""
    for folder in ("png", "masks"):
        (root / folder).mkdir(parents=True)
    rows = []
    for at, path in enumerate(phantoms.image_paths):
        image = phantoms.images.iloc[at]
        name, larger = path.stem, 1 + at % 2
        pixels = Image.open(path)
        pixels.resize((pixels.width * larger, pixels.height * larger)).save(root / "png" / f"{name}.png")
        mass, calcification = image["Mass"], image["Suspicious_Calcification"]
        for number, (left, top, right, bottom) in enumerate(phantoms[at]["boxes"]["Mass"].int().tolist()):
            mask = np.zeros((96, 64), np.uint8)
            mask[top:bottom, left:right] = 255
            Image.fromarray(np.kron(mask, np.ones((larger, larger), np.uint8))).save(
                root / "masks" / f"{name}_{number}.png"
            )
        row = {"image_id": name, "patient_id": image["patient_id"], "side": {"L": "left", "R": "right"}[name[14]]}
        row |= {"view": image["view"], "cancer": mass, "age": 40 + at % 30, "machine": f"M{at % 2}"}
        row["histology"] = "malignant" if mass else "benign" if calcification else "normal"
        rows.append(row | {"density": "ABCD"[image["density"]]})
    rows[0]["histology"] = ""
    pd.DataFrame(rows).to_csv(root / "images.csv", sep=";", index=False)


@pytest.mark.slow
def test_the_example_of_own_images_runs_with_a_resnet_50_and_three_classes(tmp_path, phantoms):
    write_clinic(tmp_path / "clinic", phantoms)
    data = load_config(EXAMPLES / "study_own_csv.yaml").data.model_dump(exclude_unset=True)
    data |= {"root": str(tmp_path / "clinic"), "image_size": (96, 64)}
    images = load_images(data["mapping"], data["root"], image_size=(96, 64))
    both = {image["image_id"]: image for image in images}
    for at, expected in enumerate(phantoms):
        found = both[phantoms.image_paths[at].stem]
        assert found["labels"]["cancer"] == expected["labels"]["Mass"]
        assert found["labels"]["density"] == expected["labels"]["density"]
        boxes = sorted(found["boxes"]["cancer"].tolist())
        assert np.allclose(boxes, sorted(expected["boxes"]["Mass"].tolist()))
    assert images.missing == {"cancer": 0, "histology": 1, "density": 0}

    study = example(
        "study_own_csv.yaml",
        output=tmp_path / "out",
        data=data,
        models=[
            {
                "name": "resnet50",
                "timm": {"architecture": "resnet50", "weights": "random"},
                "train": {"kind": "pretrained"},
            }
        ],
        sae={
            "train": {
                "model": "resnet50",
                "concept": "cancer",
                "training": {
                    "architecture": "topk",
                    "k": 4,
                    "d_sae": 64,
                    "epochs": 2,
                    "batch_size": 16,
                    "dead_feature_window": 1,
                },
            }
        },
    )
    study.run()
    page = words_of(read_report(study.results_folder))
    found = json.loads((study.results_folder / "results.json").read_text())
    assert found["models"][0]["architecture"] == "resnet50"
    kinds = {one["name"]: (one["kind"], one["classes"]) for one in found["data"]["vocabulary"]}
    assert kinds["histology"] == ("multiclass", ["normal", "benign", "malignant"])
    of_histology = [row for row in found["rankings"] if row["concept"] == "histology"]
    assert {row["class"] for row in of_histology} == {0, 1, 2}
    assert any(row["concept"] == "histology" for row in found["interventions"])
    assert {row["concept"] for row in found["localization"]} == {"cancer"}  # the masks are of it
    assert "Latent, malignant" in page["rankings"] and "Screening at our clinic" in page["whole"]
    assert "no label" in page["data"].lower()


# RSNA: no boxes


@pytest.fixture(scope="module")
def rsna(tmp_path_factory):
    base = tmp_path_factory.mktemp("rsna")
    write_rsna(base / "in", n_patients=12)
    return prepare_dicom("rsna", base / "in", base / "rsna", preparation="letterbox", image_size=(96, 64))


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["breast", "image"])
def test_the_example_of_rsna_runs_and_says_what_is_not_known_without_boxes(unit, rsna, tmp_path, phantom_root):
    files = study_settings(tmp_path, phantom_root)
    classifier = files["models"][1]["classifiers"]["Mass"]
    data = load_config(EXAMPLES / "study_rsna.yaml", [f"data.root={rsna}"]).data
    assert data.unit == "breast" and data.image_size == (96, 64)
    study = example(
        "study_rsna.yaml",
        output=tmp_path / "out",
        data={"root": str(rsna), "unit": unit},
        models=[{"name": "finetuned", "classifiers": {"cancer": classifier}}],
        sae=files["sae"],
    )
    study.run()
    page = words_of(read_report(study.results_folder))
    found = json.loads((study.results_folder / "results.json").read_text())
    row = next(row for row in found["data"]["concepts"] if row["split"] == "test")
    images = load_images(rsna).select(split="test").images
    units = images.groupby(["patient_id", "laterality"])["cancer"].max() if unit == "breast" else images["cancer"]
    assert (row["n_images"], row["n_positive"], row["n_boxes"]) == (len(units), units.sum(), 0)
    assert found["reconstruction"][0]["auroc"] is not None and found["localization"] == []
    for section, words in {
        "summary": "Whether latents fire where a finding is cannot be told",
        "data": "nothing here says where in an image a finding is",
        "rankings": "where it fires could not be examined, for want of boxes",
        "table-2": "There is no Table 2. It would say whether latents fire where a finding is",
        "figure-3": "There are no heatmaps, because no test image has an annotated box",
    }.items():
        assert words in page[section], section
    for word in ("In its boxes", "Boxes are compared image by image", "highest AP"):
        assert word not in page["whole"]
    assert "include_images: true" not in page["figure-3"]  # without boxes it would show nothing there


# docs/data.md


def test_every_mapping_of_the_page_reads_the_table_of_the_page(tmp_path, monkeypatch):
    text = (EXAMPLES.parent / "docs" / "data.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)[0], {})
    table = pd.read_csv("clinic/images.csv", sep=";", dtype=str)
    table.assign(xmin="", ymin="", xmax="", ymax="").to_csv("clinic/images.csv", sep=";", index=False)
    base = {"table": "images.csv", "image": "png/{image_id}.png", "labels": ["cancer"], "split": {"make": {}}}
    own, fields = text.split("## Presets")[0], set()
    for block in re.findall(r"^```yaml\n(.*?)^```$", own, flags=re.DOTALL | re.MULTILINE):
        section = yaml.safe_load(block)
        if "data" in section:
            continue
        images = load_images(base | section, "clinic", image_size=(96, 64))
        assert len(images) == len(table) and set(images.images["split"]) == {"training", "test"}
        fields |= section.keys()
    own_reading = {"reader", "files", "at_skin", "phantom", "url", "dicom"}
    assert set(ImageMapping.model_fields) - fields == own_reading
