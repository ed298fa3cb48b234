"""Images and a table of any form, said by a mapping."""

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from mammosae_plugin.adapters.preprocessing import MAMMO_CLIP, BadImageError
from mammosae_plugin.datasets import DatasetError, load_images, open_dataset
from mammosae_plugin.datasets.annotations import read_annotations
from mammosae_plugin.datasets.mapping import load_mapping
from mammosae_plugin.datasets.mask_files import boxes_of_mask, read_mask
from mammosae_plugin.datasets.registry import of_its_kind
from mammosae_plugin.datasets.splits import read_split
from mammosae_plugin.errors import InputError

PLAIN = {"table": "images.csv", "image": "images/{image_id}.png", "labels": {"Mass": "mass"}}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": [{"a": "b"}]}, "in the list is no name"),
        ({"labels": {"a": {"positive": [True]}}}, "are truth values to YAML; write the cell's text in quotes"),
        ({"labels": {"a": {"values": {True: "0"}}}}, "are truth values to YAML; write the cell's text in quotes"),
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
        "1 patient is in more than one split (such as 007 in line 2 and line 5)",
        "1 image has rows with different density (such as a in line 2 and line 3)",
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


ROWS = """image_id,patient_id,split,Mass,xmin,ymin,xmax,ymax,roi
a,007,train,1,2,2,8,9,
a,007,train,1,12,12,18,19,
b,007,train,0,,,,,
c,08,test,1,3,3,9,9,
"""
SMALL = {
    "table": "images.csv",
    "image": "{image_id}.png",
    "labels": ["Mass"],
    "boxes": {"columns": ["xmin", "ymin", "xmax", "ymax"]},
    "image_size": [32, 24],
}
BY_ROI = {"boxes": None, "masks": "roi"}


def small(root, text=ROWS, **changes):
    pictures(root, "abc")
    (root / "images.csv").write_text(text)
    return load_images(load_mapping(SMALL, root, changes)[0], root)


@pytest.mark.parametrize(
    ("text", "changes", "told"),
    [
        (ROWS.replace("3,3,9,9", "30,3,60,9"), {}, "more than 10% of a side beyond the 32 x 24 image (such as line 5)"),
        (ROWS.replace("3,3,9,9", "9,3,3,9"), {}, "1 box is inverted or has no area (such as line 5): are boxes.form"),
        (ROWS.replace("3,3,9,9", "3,,9,9"), {}, "1 row has a box with missing corners (such as line 5)"),
        (
            ROWS.replace("a,007,train,1,12", "a,70,train,1,12"),
            {},
            "stands under more than one patient (such as a in li",
        ),
        (ROWS.replace("a,007,train,1,12", "a,007,test,1,12"), {}, "different split (such as a in line 2 and line 3)"),
        (
            ROWS.replace("b,007,train,0", "b,007,train,maybe"),
            {},
            "1 Mass value is no class (such as 'maybe' in line 4)",
        ),
        (ROWS.replace("c,08", "d,08"), {}, "1 image file is missing under"),
        (ROWS, {"image": "png/{image_id}.png"}, "the images lie directly in that folder, not in a folder for each `im"),
        (ROWS, {"image_size": [33, 24]}, "the images are 32 x 24 pixels (height x width) but image_size is 33 x 24"),
        (ROWS.replace("9,9,", "9,9,gone.png"), BY_ROI, "1 mask file is missing under"),
        (ROWS.replace("9,9,", "9,9,bad.png"), BY_ROI, "(such as bad.png: cannot be read as an image)"),
        (ROWS.replace("9,9,", "9,9,low.png"), BY_ROI, "low.png: is 9 x 24 pixels, its image 32 x 24 (height x width)"),
        (ROWS.replace("9,9,", "9,9,none.png"), BY_ROI, "(such as none.png: shows nothing)"),
    ],
)
def test_what_is_wrong_with_boxes_files_and_masks_is_one_line(text, changes, told, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    Image.fromarray(np.ones((9, 24), np.uint8)).save(tmp_path / "low.png")
    Image.fromarray(np.zeros((32, 24), np.uint8)).save(tmp_path / "none.png")
    with pytest.raises(DatasetError) as error:
        small(tmp_path, text, **changes)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_ids_and_typed_cells_of_parquet_and_workbooks_stay_what_they_are(tmp_path):
    pictures(tmp_path, "abc")
    rows = pd.DataFrame(
        {"image_id": list("abc"), "patient_id": ["007", "07", "1e3"], "split": ["train", "train", "test"]}
    )
    rows["Mass"] = [True, None, False]
    rows["age"] = [50, None, 51.5]
    rows["number"] = [7, 7, 7]
    rows.to_parquet(tmp_path / "t.parquet")
    rows.to_excel(tmp_path / "t.xlsx", index=False)
    changes = {"boxes": None, "covariates": {"age": "number", "number": "category"}}
    for table in ("t.parquet", "t.xlsx"):
        images = load_images(load_mapping(SMALL, tmp_path, {**changes, "table": table})[0], tmp_path).images
        assert images["patient_id"].tolist() == ["007", "07", "1e3"] and images["Mass"].tolist() == [1, -1, 0]
        assert images["age"].tolist()[::2] == [50, 51.5] and images["number"].tolist() == ["7"] * 3


def test_one_split_by_a_column_a_file_and_a_draw_is_the_same(tmp_path):
    ids = [f"{number:02d}" for number in range(40)]
    rows = pd.DataFrame({"image_id": ids, "patient_id": [f"p{number // 2}" for number in range(40)]})
    rows["site"] = np.where(np.arange(40) < 8, "north", "south")
    rows["Mass"] = (np.arange(40) // 2) % 3 == 0
    rows.to_csv(tmp_path / "images.csv", index=False)
    plain = {**SMALL, "boxes": None}

    def images_of(**split):
        return read_annotations(*load_mapping(plain, tmp_path, {"split": split})).images

    for make in (
        {"seed": 3},
        {"stratify": ["Mass"], "shares": {"train": 0.5, "val": 0.25, "test": 0.25}},
        {"held_out": {"site": "north"}},
        {"by": ["patient_id", "site"], "stratify": "site", "seed": 7},
    ):
        drawn = images_of(make=make)
        assert drawn.groupby("patient_id")["split"].nunique().max() == 1
        pd.testing.assert_frame_equal(images_of(make=make), drawn)
        drawn.drop_duplicates("patient_id")[["patient_id", "split"]].to_csv(tmp_path / "split.csv", index=False)
        pd.testing.assert_frame_equal(images_of(file="split.csv"), drawn)
        rows.assign(part=drawn["split"].str[:2]).to_csv(tmp_path / "with.csv", index=False)
        words = {"training": "tr", "validation": "va", "test": "te"}
        given = load_mapping(plain, tmp_path, {"table": "with.csv", "split": {"column": "part", "values": words}})
        pd.testing.assert_frame_equal(read_annotations(*given).images, drawn)
    assert images_of(make={"held_out": {"site": "north"}})["split"].tolist() == ["test"] * 8 + ["training"] * 32
    halves = images_of(make={"stratify": ["Mass"], "shares": {"train": 0.5, "test": 0.5}})
    counts = halves.groupby("split")["Mass"].sum()
    assert abs(counts["training"] - counts["test"]) <= 2


def test_phantoms_as_a_table_of_ones_own_with_masks_are_those_of_vindr(phantoms, phantom_root, tmp_path):
    names = list(phantoms.vocabulary)
    rows = phantoms.findings.copy()
    rows["roi"] = ""
    for number, (x0, y0, x1, y1) in enumerate(rows[["xmin", "ymin", "xmax", "ymax"]].round().to_numpy()):
        if not np.isnan(x0):
            mask = np.zeros((96, 64), np.uint8)
            mask[int(y0) : int(y1), int(x0) : int(x1)] = 255
            rows.loc[number, "roi"] = str(tmp_path / f"{number}.png")
            Image.fromarray(mask).save(tmp_path / f"{number}.png")
    about = phantoms.images[["image_id", "patient_id", "split", "laterality", "view"]]
    rows = rows.drop(columns=["xmin", "ymin", "xmax", "ymax"]).merge(about, on="image_id")
    for name in ("density", "birads"):  # of the image, as VinDrMammo has it
        rows[name] = rows["image_id"].map(phantoms.images.set_index("image_id")[name])
    rows["file"] = "images_png/" + rows["patient_id"] + "/" + rows["image_id"]
    rows.to_csv(tmp_path / "own.csv", index=False, sep=";")
    graded = {
        name: {"kind": "graded", "classes": list(phantoms.vocabulary[name].classes)} for name in ("density", "birads")
    }
    graded["birads"]["values"] = {str(number): name for number, name in enumerate(graded["birads"]["classes"])}
    own = load_images(
        {
            "table": str(tmp_path / "own.csv"),
            "image": "file",
            "laterality": "laterality",
            "view": "view",
            "labels": {name: graded.get(name) for name in names},
            "masks": "roi",
            "phantom": True,
        },
        phantom_root,
        image_size=(96, 64),
    )
    assert own.vocabulary.keys() == phantoms.vocabulary.keys() and own.about == phantoms.about
    assert len(own) == len(phantoms) > 40 and len(phantoms.findings["xmin"].dropna()) > 30
    for mine, theirs in zip(own, phantoms, strict=True):
        assert {name: mine[name] for name in ("image_id", "patient_id", "split", "labels")} == {
            name: theirs[name] for name in ("image_id", "patient_id", "split", "labels")
        }
        assert bool((mine["image"] == theirs["image"]).all())
        for name in phantoms.concepts:
            boxes = sorted(theirs["boxes"][name].tolist())
            np.testing.assert_allclose(sorted(mine["boxes"][name].tolist()), boxes, atol=0.5)


def test_a_split_file_is_read_as_a_table_is(tmp_path):
    (tmp_path / "a.csv").write_text("image_id;split\n007;train\n008;test\n", encoding="utf-8-sig")
    pd.read_csv(tmp_path / "a.csv", sep=";", dtype=str).to_excel(tmp_path / "b.xlsx", index=False)
    for name in ("a.csv", "b.xlsx"):
        assert read_split(tmp_path / name).to_numpy().tolist() == [["007", "training"], ["008", "test"]]


def test_a_list_as_numpy_prints_it_is_read_and_masks_that_fit_nothing_are_told(tmp_path, caplog):
    text = "image_id,patient_id,split,found\n1,a,train,['Mass' 'Cyst']\n2,b,train,\"['Cyst'\n 'x']\"\n3,c,train,[]\n"
    (tmp_path / "images.csv").write_text(text)
    labels = {"Mass": {"column": "found", "contains": "Mass"}, "Cyst": {"column": "found", "contains": "Cyst"}}
    mapping = {"table": "images.csv", "image": "{image_id}.png", "labels": labels, "masks": "mask/{image_id}_*.png"}
    images = read_annotations(*load_mapping(mapping, tmp_path)).images
    assert images[["Mass", "Cyst"]].to_numpy().tolist() == [[1, 1], [0, 1], [0, 0]]
    assert "fits mask/{image_id}_*.png, so no finding has a mask" in caplog.text


def test_numbers_with_commas_are_told_where_nothing_says_what_they_are(tmp_path, caplog):
    (tmp_path / "images.csv").write_text("image_id;patient_id;split;x;age\n1;a;train;1;50,5\n2;b;train;0;51\n")
    mapping = {"table": "images.csv", "image": "{image_id}.png", "labels": ["x"], "covariates": ["age"]}
    assert read_annotations(*load_mapping(mapping, tmp_path)).images["age"].tolist() == ["50,5", "51"]
    assert "taken as a category" in caplog.text and "write 12.5 where" in caplog.text


def test_a_mask_is_what_is_painted_and_sharp(tmp_path):
    pixels = np.full((8, 6, 4), (255, 255, 255, 0), dtype=np.uint8)
    pixels[2:4, 1:3] = (255, 0, 0, 128)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert boxes_of_mask(read_mask(tmp_path / "a.png")).tolist() == [[1, 2, 3, 4]]
    Image.fromarray(pixels[..., 3]).save(tmp_path / "b.jpg")
    with pytest.raises(BadImageError, match="is JPEG, which smears the edges of masks"):
        read_mask(tmp_path / "b.jpg")
