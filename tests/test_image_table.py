"""Images and a table of any form, said by a mapping."""

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from mammosae_plugin.adapters.preprocessing import MAMMO_CLIP
from mammosae_plugin.datasets import DatasetError, load_images, open_dataset
from mammosae_plugin.datasets.annotations import read_annotations
from mammosae_plugin.datasets.mapping import load_mapping
from mammosae_plugin.datasets.registry import of_its_kind
from mammosae_plugin.errors import InputError

PLAIN = {"table": "images.csv", "image": "images/{image_id}.png", "labels": {"Mass": "mass"}}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": {"Mass": {"contain": "x"}}}, "did you mean 'contains'?"),
        ({"labels": {"Mass": {"contains": "x", "positive": "y"}}}, "contains and positive: give one of them"),
        ({"labels": {"split": "x"}}, "split cannot be the name"),
        ({"boxes": {"form": "xyxy"}}, "give the columns of the boxes, or the column `json`"),
        ({"split": {"column": "a", "file": "b"}}, "one of column, file and make"),
        ({"reader": "x"}, "the file of the table, or the name of a reader"),
        ({"at_skin": ["Mas"]}, "Mas is no label (nearest: Mass)"),
    ],
)
def test_what_is_wrong_in_a_mapping_is_told_with_its_place(tmp_path, changes, told):
    with pytest.raises(InputError, match="the mapping: ") as error:
        load_mapping(PLAIN, tmp_path, changes)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_mapping_without_a_folder_and_an_unknown_preset_are_refused(tmp_path):
    with pytest.raises(InputError, match="give root"):
        load_mapping(PLAIN)
    with pytest.raises(InputError, match="is no preset"):
        load_mapping("vindrr", tmp_path)
    with pytest.raises(InputError, match=r"holds no mapping\.yaml"):
        load_mapping(tmp_path)


TABLE = """pid,image,side,split,findings,density,cancer,xmin,ymin,xmax,ymax,age
007,a,LEFT,train,"['Mass', 'Calc']",DENSITY A,1,2,10,12,45,50
007,a,LEFT,train,['Calc'],DENSITY A,0,3,4,10,12,50
007,b,R,train,[],,,,,,,
008,c,R,test,['No'],B,0,,,,,51
"""
CLINIC = {
    "table": "images.csv",
    "image": "{image_id}.png",
    "image_id": "image",
    "patient_id": "pid",
    "laterality": "side",
    "labels": {
        "Mass": {"column": "findings", "contains": "Mass"},
        "Calc": {"column": "findings", "contains": "Calc"},
        "density": {"kind": "graded", "classes": ["A", "B", "C", "D"], "values": {"DENSITY A": "A"}},
        "cancer": {"located": False, "rows": "highest"},
        "any": {"any_of": ["Mass", "Calc"]},
    },
    "boxes": {"columns": ["xmin", "ymin", "xmax", "ymax"], "origin": 1},
    "covariates": {"age": "number"},
}


def clinic(root, text=TABLE, **changes):
    (root / "images.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return read_annotations(*load_mapping(CLINIC, root, changes))


def test_a_table_becomes_images_and_findings_with_missing_labels_missing(tmp_path):
    found = clinic(tmp_path)
    images = found.images.set_index("image_id")
    assert images.loc["a", ["patient_id", "split", "laterality", "file"]].tolist() == ["007", "training", "L", "a.png"]
    labels = images[["Mass", "Calc", "density", "cancer", "any"]]
    assert labels.to_numpy().tolist() == [[1, 1, 0, 1, 1], [0, 0, -1, -1, 0], [0, 0, 1, 0, 0]]
    assert found.missing == {"Mass": 0, "Calc": 0, "density": 1, "cancer": 1, "any": 0}
    assert images["age"].tolist()[::2] == [50, 51] and np.isnan(images.loc["b", "age"])
    boxes = found.findings.dropna(subset=["xmin"])
    assert boxes[["xmin", "ymin", "xmax", "ymax"]].to_numpy().tolist() == [[1, 9, 11, 44], [2, 3, 9, 11]]
    assert boxes["Mass"].tolist() == [1, 0] and boxes["Calc"].tolist() == [1, 1]
    # Cancer has no place: it is told by a row of its own, and the rows with a box leave it open.
    assert found.findings["cancer"].tolist() == [-1, 1, 0, -1, 0]
    assert [one.boxes for one in found.concepts] == [True, True, False, False, True]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + TABLE,
        TABLE.replace("\n", "\r\n"),
        TABLE.replace("'Mass', 'Calc'", "'Mass'| 'Calc'").replace(",", ";").replace("|", ","),
        TABLE.replace("'Mass', 'Calc'", "'Mass'| 'Calc'").replace(",", "\t").replace("|", ","),
    ],
    ids=["byte order mark", "CRLF", "semicolons", "tabs"],
)
def test_how_a_csv_was_saved_changes_nothing(tmp_path, text):
    (tmp_path / "plain").mkdir()
    plain, other = clinic(tmp_path / "plain"), clinic(tmp_path, text)
    pd.testing.assert_frame_equal(plain.images, other.images)
    pd.testing.assert_frame_equal(plain.findings, other.findings)


def test_every_problem_of_a_table_is_told_at_once_with_its_lines(tmp_path):
    text = (
        TABLE.replace("008,c,R,test", "007,c,R,test").replace("DENSITY A,0", "B,0").replace("R,train,[]", "R,trian,7[")
    )
    text = text.replace(",2,10,12,45,", ",2,x,12,,").replace(",51", ",old")
    with pytest.raises(DatasetError) as error:
        clinic(tmp_path, text)
    for told in (
        "1 patient is in more than one split (such as 007)",
        "1 image has rows with different density (such as a)",
        "'trian' in line 4",
        "1 ymin value is no number",
        "1 row has a box with missing corners (such as line 2)",
        "'old' in line 5",
    ):
        assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"exam_id": "stud", "labels": {"Mass": "findngs"}},
            "2 columns are missing that the mapping names: stud (exam_id)",
        ),
        ({"labels": {"Mass": "findngs"}}, "findngs (labels.Mass) (nearest: findings)"),
        ({"keep": {"side": "X"}}, "no row is left that `keep` keeps"),
        ({"split": {"make": {"held_out": {"site": ["x"]}}}}, "split.make names 'site', which the table lacks"),
    ],
)
def test_columns_that_are_missing_are_told_with_the_nearest(tmp_path, changes, told):
    with pytest.raises(DatasetError) as error:
        clinic(tmp_path, **changes)
    assert told in str(error.value)


def test_a_split_that_is_not_there_is_told_with_the_way_to_draw_one(tmp_path):
    with pytest.raises(DatasetError) as error:
        clinic(tmp_path, TABLE.replace(",split,", ",group,"))
    assert "split (split)" in str(error.value) and "let it be drawn: split: {make: {}}" in str(error.value)


def test_one_image_in_rows_that_disagree_is_refused_where_rows_are_no_findings(tmp_path):
    labels = {"cancer": {}}
    with pytest.raises(DatasetError, match="different cancer"):
        clinic(tmp_path, boxes=None, labels=labels)
    assert clinic(tmp_path, labels=labels).images["cancer"].tolist() == [1, -1, 0]


def pictures(root, names, deep=False):
    rng = np.random.default_rng(0)
    for name in names:
        pixels = rng.integers(0, 60000 if deep else 255, (32, 24), dtype=np.uint16 if deep else np.uint8)
        Image.fromarray(pixels).save(root / f"{name}.png")


@pytest.mark.parametrize("deep", [False, True])
def test_items_are_as_those_of_vindr_with_covariates_and_missing_labels(tmp_path, deep):
    pictures(tmp_path, "abc", deep)
    (tmp_path / "images.csv").write_text(TABLE.replace("12,45", "12,30"))
    data = load_images(CLINIC, tmp_path, image_size=(32, 24))
    item = data[0]
    assert item["labels"] == {"Mass": 1, "Calc": 1, "density": 0, "cancer": 1, "any": 1}
    assert item["boxes"]["Mass"].tolist() == [[1, 9, 11, 29]] and item["boxes"]["cancer"].shape == (0, 4)
    assert item["covariates"] == {"laterality": "L", "age": 50}
    assert data[1]["labels"]["cancer"] == -1 and data.missing["cancer"] == 1
    with Image.open(tmp_path / "a.png") as file:
        pixels = np.asarray(file).astype(np.float32)
    shown = (pixels - pixels.min()) / (pixels.max() - pixels.min())
    expected = (shown - MAMMO_CLIP.mean) / MAMMO_CLIP.std
    np.testing.assert_allclose(item["image"][0].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert data.gray(0).dtype == np.uint8
    assert len(data.select(split="training")) == 2


def test_boxes_follow_from_the_connected_parts_of_masks(tmp_path):
    pictures(tmp_path, "abc")
    (tmp_path / "images.csv").write_text("image,pid,split,Mass\na,1,training,1\nb,2,training,0\nc,3,test,1\n")
    mask = np.zeros((32, 24), np.uint8)
    mask[2:5, 3:7] = mask[20:24, 10:12] = 255
    Image.fromarray(mask).save(tmp_path / "a_mask.png")
    labels = {"Mass": {}}
    data = load_images(
        {
            **CLINIC,
            "laterality": None,
            "boxes": None,
            "covariates": {},
            "labels": labels,
            "masks": "{image_id}_mask*.png",
        },
        tmp_path,
        image_size=(32, 24),
    )
    assert data[0]["boxes"]["Mass"].tolist() == [[3, 2, 7, 5], [10, 20, 12, 24]]
    assert data.vocabulary["Mass"].masks and (data.masks(0)["Mass"] == (mask > 0)).all() and data.masks(2) == {}


def test_a_study_opens_images_by_the_mapping_in_their_folder(tmp_path):
    pictures(tmp_path, "abc")
    (tmp_path / "images.csv").write_text(TABLE.replace("12,45", "12,30"))
    mapping = {**CLINIC, "name": "clinic", "title": "Our clinic", "image_size": [32, 24]}
    (tmp_path / "mapping.yaml").write_text(yaml.safe_dump(mapping))
    settings = of_its_kind({"root": str(tmp_path)})
    assert settings.kind == "images" and settings.image_size == (32, 24) and settings.about.title == "Our clinic"
    data = open_dataset(settings)
    assert data.fingerprint == load_images(tmp_path).fingerprint and data.name == "clinic"
    other = of_its_kind({"root": str(tmp_path), "mapping": {"title": "Another"}})
    assert other.about.title == "Another"
