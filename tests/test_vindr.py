import gzip
import io
import logging
import re
import zipfile
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_datasets import SIZE, good_rows, row, write_dataset
from torch.utils.data import DataLoader

from mammosae_plugin.datasets import CONCEPTS, BadImageError, DatasetError, VinDrMammo, collate
from mammosae_plugin.errors import InputError


def load(root, **options: Any) -> VinDrMammo:
    return VinDrMammo(root, image_size=SIZE, **options)


def refusal(root, rows: list[dict[str, Any]]) -> str:
    """The message with which the rows are refused, which must be one line."""
    with pytest.raises(DatasetError) as caught:
        load(write_dataset(root, rows))
    message = str(caught.value)
    assert "\n" not in message
    return message


def with_last(**changed: Any) -> list[dict[str, Any]]:
    """The good rows, with cells of the last one (line 7 of the file) changed."""
    rows = good_rows()
    rows[-1] |= changed
    return rows


# -- what a good folder gives ------------------------------------------------------------------------------------------


def test_tables_hold_one_row_per_image_and_one_per_finding(tmp_path):
    data = load(write_dataset(tmp_path, good_rows()))
    assert data.concepts == CONCEPTS
    assert data.images["image_id"].tolist() == ["a1.png", "a2.png", "b1.png", "c1.png"]
    expected = ["image_id", "patient_id", "split", "laterality", "view", "density", "birads", *CONCEPTS]
    assert list(data.images.columns) == expected
    assert data.images["patient_id"].tolist() == ["00012e34", "00012e34", "bb", "cc"]
    assert data.images["density"].tolist() == [2, 2, 2, 0]
    assert data.images["birads"].tolist() == [0, 0, 3, 4]
    assert data.images["Mass"].tolist() == [0, 1, 1, 0]
    assert data.images["Suspicious_Calcification"].tolist() == [0, 0, 1, 1]
    assert list(data.findings.columns) == ["image_id", "density", "birads", *CONCEPTS, "xmin", "ymin", "xmax", "ymax"]
    assert data.findings["image_id"].tolist() == ["a1.png", "a2.png", "b1.png", "b1.png", "b1.png", "c1.png"]
    assert data.findings["Mass"].tolist() == [0, 1, 1, 0, 1, 0]
    assert np.isnan(data.findings.loc[0, ["xmin", "ymin", "xmax", "ymax"]].to_numpy(dtype=float)).all()
    assert data.findings.loc[5, ["xmin", "ymin", "xmax", "ymax"]].tolist() == [8, 8, 20, 30]


def test_an_item_holds_the_image_and_all_labels_and_boxes_of_the_image(tmp_path):
    data = load(write_dataset(tmp_path, good_rows()))
    assert len(data) == 4
    item = data[2]
    assert item["image"].shape == (3, *SIZE)
    assert item["image"].dtype == torch.float32
    assert (item["image_id"], item["patient_id"], item["split"]) == ("b1.png", "bb", "training")
    present = {"Mass", "Suspicious_Calcification", "Skin_Thickening"}
    assert item["labels"] == {name: int(name in present) for name in CONCEPTS} | {"density": 2, "birads": 3}
    assert item["boxes"]["Mass"].tolist() == [[4, 5, 14, 20], [10, 10, 24, 30]]
    assert item["boxes"]["Suspicious_Calcification"].tolist() == [[1, 2, 6, 9]]
    assert item["boxes"]["Skin_Thickening"].tolist() == [[10, 10, 24, 30]]
    assert item["boxes"]["Asymmetry"].shape == (0, 4)
    assert all(boxes.dtype == torch.float32 for boxes in item["boxes"].values())


def test_unit_finding_row_counts_an_image_once_per_row_with_the_labels_of_that_row(tmp_path):
    data = load(write_dataset(tmp_path, good_rows()), unit="finding_row")
    assert len(data) == 6
    items = [data[index] for index in (2, 3, 4)]
    assert {item["image_id"] for item in items} == {"b1.png"}
    assert [item["labels"]["Mass"] for item in items] == [1, 0, 1]
    assert [item["labels"]["Suspicious_Calcification"] for item in items] == [0, 1, 0]
    assert [len(item["boxes"]["Mass"]) for item in items] == [1, 0, 1]
    assert data.path(5) == tmp_path / "images_png" / "cc" / "c1.png"


def test_boxes_that_overhang_a_little_are_clipped_and_counted(tmp_path):
    data = load(write_dataset(tmp_path, good_rows()))
    assert data.n_clipped_boxes == 2  # xmin -0.6, and xmax 24.4 of 24
    assert data[1]["boxes"]["Mass"].tolist() == [[0, 5, 14, 20]]
    assert data.select(image_ids=["a2.png"]).n_clipped_boxes == 1
    assert data.select(split="test").n_clipped_boxes == 0


def test_boxes_are_the_resized_columns_and_not_the_original_ones(tmp_path):
    rows = with_last(xmin=800, ymin=900, xmax=1800, ymax=3000)
    assert load(write_dataset(tmp_path, rows))[3]["boxes"]["Suspicious_Calcification"].tolist() == [[8, 8, 20, 30]]


def test_a_finding_without_any_box_is_allowed_and_counted(tmp_path):
    rows = [*good_rows(), row("dd", "d1.png", "Global_Asymmetry", box=("", "", "", ""))]
    data = load(write_dataset(tmp_path, rows))
    assert data.n_findings_without_box == 1
    item = data[4]
    assert item["labels"]["Global_Asymmetry"] == 1
    assert item["boxes"]["Global_Asymmetry"].shape == (0, 4)


def test_what_a_row_without_a_finding_holds_as_box_is_ignored(tmp_path):
    rows = good_rows()
    rows[0] |= {"resized_xmin": 0, "resized_ymin": 0, "resized_xmax": 0, "resized_ymax": 0}
    assert load(write_dataset(tmp_path, rows)).findings["xmin"].isna().tolist() == [True] + [False] * 5


def test_a_split_can_be_loaded_when_only_its_images_are_there(tmp_path):
    write_dataset(tmp_path, good_rows())
    (tmp_path / "images_png" / "bb" / "b1.png").unlink()
    data = load(tmp_path, split="test")
    assert data.images["image_id"].tolist() == ["c1.png"]
    with pytest.raises(DatasetError, match=r"1 image file is missing .*bb/b1\.png"):
        load(tmp_path, split="training")


def test_row_numbers_of_another_program_and_a_byte_order_mark_do_no_harm(tmp_path):
    write_dataset(tmp_path, good_rows())
    table = pd.DataFrame(good_rows())
    table.to_csv(tmp_path / "other.csv", encoding="utf-8-sig")
    assert len(load(tmp_path, annotations="other.csv")) == 4
    assert len(load(tmp_path, annotations=tmp_path / "other.csv")) == 4
    pd.concat([table, table[:1]], ignore_index=True).to_csv(tmp_path / "other.csv")
    with pytest.raises(DatasetError, match="1 row repeats an earlier row exactly"):
        load(tmp_path, annotations="other.csv")


def test_a_dataloader_with_collate_gives_stacked_images_and_lists(tmp_path):
    data = load(write_dataset(tmp_path, good_rows()))
    batch = next(iter(DataLoader(data, batch_size=3, collate_fn=collate)))
    assert batch["image"].shape == (3, 3, *SIZE)
    assert [len(boxes["Mass"]) for boxes in batch["boxes"]] == [0, 1, 2]


def test_gray_gives_the_stored_pixels(tmp_path):
    data = load(write_dataset(tmp_path, good_rows()))
    image = data.gray(1)
    assert image.shape == SIZE
    assert image.dtype == np.uint8
    values = image.astype(np.float64) - image.min()
    expected = (values / values.max() - 0.3089279) / 0.25053555408335154
    np.testing.assert_allclose(data[1]["image"][0].numpy(), expected, atol=1e-5)


# -- selection and fingerprint -----------------------------------------------------------------------------------------


def test_select_keeps_images_and_their_rows_together(tmp_path):
    data = load(write_dataset(tmp_path, good_rows()))
    assert data[2]["image_id"] == "b1.png"  # fills what the dataset remembers, which the selection must not inherit
    part = data.select(split="training", exclude=["a1.png"])
    assert type(part) is VinDrMammo
    assert part.images["image_id"].tolist() == ["a2.png", "b1.png"]
    assert part.images.index.tolist() == [0, 1]
    assert part.findings["image_id"].tolist() == ["a2.png", "b1.png", "b1.png", "b1.png"]
    assert part[1]["image_id"] == "b1.png"
    assert len(part[1]["boxes"]["Mass"]) == 2
    assert part.path(0).name == "a2.png"
    assert len(data) == 4


def test_select_of_unknown_or_no_images_is_refused(tmp_path):
    data = load(write_dataset(tmp_path, good_rows()))
    with pytest.raises(InputError, match=r"'zz\.png'"):
        data.select(image_ids=["a1.png", "zz.png"])
    with pytest.raises(InputError, match="no image has split 'validation'"):
        data.select(split="validation")
    with pytest.raises(InputError, match="leaves no image"):
        data.select(image_ids=["a1.png"], exclude=["a1.png"])


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    first = load(write_dataset(tmp_path / "one", good_rows()))
    second = load(write_dataset(tmp_path / "two", good_rows()), unit="finding_row")
    assert first.fingerprint == second.fingerprint
    assert re.fullmatch(r"[0-9a-f]{64}", first.fingerprint)
    moved = good_rows()
    moved[3] |= {"resized_xmin": 2}
    assert load(write_dataset(tmp_path / "three", moved)).fingerprint != first.fingerprint
    assert first.select(split="test").fingerprint != first.fingerprint


def test_a_changed_image_file_changes_the_fingerprint(tmp_path):
    write_dataset(tmp_path, good_rows())
    before = load(tmp_path).fingerprint
    path = tmp_path / "images_png" / "cc" / "c1.png"
    path.write_bytes(path.read_bytes() + b"\0")
    assert load(tmp_path).fingerprint != before


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"Mass": 2}, r"1 Mass value is not 0\.\.1 \(such as '2' in line 7\)"),
        ({"Mass": "yes"}, r"1 Mass value is not 0\.\.1 \(such as 'yes' in line 7\): write 1 and 0"),
        ({"density": 4}, r"density value is not 0\.\.3 \(such as '4'"),
        ({"density": ""}, r"density value is not 0\.\.3 \(such as ''"),
        ({"breast_birads": "BI-RADS 7"}, r"breast_birads value is not 1\.\.5 \(such as 'BI-RADS 7'"),
        ({"split": "val"}, r"split other than training, test \(such as 'val' in line 7\): write training or test"),
        ({"laterality": "left"}, "laterality other than L, R"),
        ({"view": "AP"}, "view other than CC, MLO"),
        ({"resized_xmin": 20, "resized_xmax": 8}, r"1 box is inverted or has no area \(such as line 7\)"),
        ({"resized_ymin": 30}, "1 box is inverted or has no area"),
        ({"resized_xmax": 27}, r"1 box reaches more than 10% .* 40 x 24 image .*line 7: 8, 8, 27, 30"),
        ({"resized_ymin": -5}, "1 box reaches more than 10%"),
        ({"resized_xmin": "8,5"}, r"write 12\.5 where a spreadsheet wrote 12,5 \(such as '8,5' in line 7\)"),
        ({"patient_id": "1E+18"}, "row has a patient_id that a spreadsheet made a number"),
        ({"patient_id": "1.2E+35"}, "row has a patient_id that a spreadsheet made a number"),
        ({"resized_xmin": "eight"}, r"resized_xmin value is no number \(such as 'eight' in line 7\)"),
        ({"resized_xmin": "inf"}, r"resized_xmin value is no number \(such as 'inf' in line 7\)"),
        ({"resized_xmin": ""}, "1 row has a box with missing corners"),
        (dict.fromkeys(("resized_xmin", "resized_ymin", "resized_xmax", "resized_ymax"), ""), "no resized box"),
        ({"finding_categories": "['Mass']"}, r"disagrees with the 0/1 columns \(such as line 7\)"),
        ({"finding_categories": "['Cyst']"}, "no printed list of known findings"),
        ({"finding_categories": "Suspicious Calcification"}, "no printed list of known findings"),
        ({"No_Finding": 1}, "1 row has No_Finding together with a finding"),
        ({"Suspicious_Calcification": 0}, "1 row has neither a finding nor No_Finding"),
        ({"patient_id": "../cc"}, "patient_id that is no plain file name"),
        (
            {"image_id": "images_png\\cc\\c1.png"},
            r"no plain file name \(such as .* in line 7\): write the last part of the",
        ),
        ({"patient_id": ""}, "row has no patient_id"),
    ],
)
def test_a_wrong_cell_is_refused_with_its_place(tmp_path, changed, expected):
    assert re.search(expected, refusal(tmp_path, with_last(**changed)))


def test_a_patient_in_both_splits_is_refused(tmp_path):
    rows = [*good_rows(), row("cc", "c2.png", split="training")]
    assert "1 patient is in both splits (such as cc): give all rows of a patient the same split" in refusal(
        tmp_path, rows
    )


def test_an_image_id_under_two_patients_is_refused(tmp_path):
    rows = [*good_rows(), row("dd", "a1.png")]
    assert "1 image id stands under more than one patient (such as a1.png)" in refusal(tmp_path, rows)


def test_rows_of_one_image_that_contradict_each_other_are_refused(tmp_path):
    rows = [*good_rows(), row("bb", "b1.png", "Asymmetry", density=1, birads=2)]
    message = refusal(tmp_path, rows)
    assert "image has rows with different breast_birads (such as b1.png)" in message
    assert "image has rows with different density (such as b1.png)" in message


def test_a_no_finding_row_beside_a_finding_row_of_the_same_image_is_refused(tmp_path):
    rows = [*good_rows(), row("bb", "b1.png", birads=4)]
    assert "1 image has a No_Finding row beside a finding row (such as b1.png)" in refusal(tmp_path, rows)


def test_repeated_rows_are_refused(tmp_path):
    rows = good_rows()
    assert "2 rows repeat an earlier row exactly (such as line 8, line 9)" in refusal(
        tmp_path, [*rows, rows[0], rows[2]]
    )


def test_missing_images_are_counted_and_the_first_three_named(tmp_path):
    write_dataset(tmp_path, good_rows())
    for patient, image in (("00012e34", "a1"), ("00012e34", "a2"), ("bb", "b1"), ("cc", "c1")):
        (tmp_path / "images_png" / patient / f"{image}.png").unlink()
    with pytest.raises(DatasetError, match=r"4 image files are missing .*00012e34/a1\.png.*a2\.png, bb/b1\.png\)$"):
        load(tmp_path)


def renamed_images(root, name) -> None:
    for image in list((root / "images_png").rglob("*.png")):
        image.rename(image.parent / name(image.name))


def with_column(root, column, change) -> None:
    file = root / "vindr_detection_v1_folds.csv"
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    table[column] = table[column].map(change)
    table.to_csv(file, index=False)


@pytest.mark.parametrize(
    ("column", "change", "cause"),
    [
        ("image_id", lambda name: name[:-4], r"files have the ending \.png, which image_id"),
        (None, lambda name: name[:-4], r"image_id has the ending \.png, which the files lack"),
        (None, lambda name: name[:-4] + ".dicom", r"the files end in \.dicom, image_id in \.png"),
        (None, lambda name: f"{name[:-4]}.PNG", "differ in upper and lower case"),
        (None, lambda name: f"../{name}", "the images lie directly in that folder"),
        ("patient_id", lambda name: name.lstrip("0"), "leading zeros that patient_id lacks"),
        ("patient_id", lambda name: f"{name}.0", r"lack the \.0 that patient_id ends in"),
        ("patient_id", lambda name: f'="{name}"', "lack the quotation marks or equals signs of patient_id"),
        ("image_id", lambda name: name.replace(".png", ".0"), r"image_id ends in \.0 as numbers of a spreadsheet"),
        (None, lambda name: f"00{name}", "files' names have leading zeros that image_id lacks"),
        (None, lambda name: f" {name}", "differ in blanks"),
        ("patient_id", str.upper, "differ in upper and lower case"),
        ("patient_id", lambda name: f"study-{name}", "no folders of these patient_id"),
    ],
)
def test_missing_images_are_refused_with_the_cause_that_the_folder_shows(tmp_path, column, change, cause):
    write_dataset(tmp_path, good_rows())
    if column is None:
        renamed_images(tmp_path, change)
    else:
        with_column(tmp_path, column, change)
    for folder in (tmp_path / "images_png").iterdir():
        if folder.is_dir() and not list(folder.iterdir()):
            folder.rmdir()
    with pytest.raises(DatasetError, match=f"image files are missing under .*{cause}") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_few_missing_images_are_allowed_on_request(tmp_path, caplog):
    write_dataset(tmp_path, good_rows())
    (tmp_path / "images_png" / "bb" / "b1.png").unlink()
    with caplog.at_level(logging.WARNING):
        data = load(tmp_path, max_missing_share=0.25)
    assert "1 of 4 image files are missing" in caplog.text
    assert len(data) == 4
    with pytest.raises(BadImageError, match=r"b1\.png: the file does not exist"):
        data[2]
    with pytest.raises(DatasetError, match="1 image file is missing"):
        load(tmp_path, max_missing_share=0.24)


def test_missing_columns_are_all_named_with_their_nearest(tmp_path):
    rows = [
        {{"Mass": "Masses", "density": "Density"}.get(name, name): value for name, value in values.items()}
        for values in good_rows()
    ]
    message = refusal(tmp_path, rows)
    assert "2 columns are missing" in message
    assert re.search(r"Mass \(nearest: Masses", message)
    assert re.search(r"density \(nearest: Density", message)


def test_original_boxes_alone_are_refused_with_the_reason(tmp_path):
    rows = [{k: v for k, v in values.items() if not k.startswith("resized")} for values in good_rows()]
    assert "not guessed from the original boxes" in refusal(tmp_path, rows)


def test_everything_wrong_is_said_at_once(tmp_path):
    rows = with_last(Mass="x", split="val", resized_xmin=90, resized_xmax=99, density=9)
    write_dataset(tmp_path, rows)
    (tmp_path / "images_png" / "bb" / "b1.png").unlink()
    with pytest.raises(DatasetError) as caught:
        load(tmp_path)
    message = str(caught.value)
    for part in ("Mass value", "split other", "box reaches", "density value", "image file is missing"):
        assert part in message
    assert message.count("; ") >= 4


def test_images_of_another_size_are_refused_with_both_sizes(tmp_path):
    write_dataset(tmp_path, good_rows(), size=(80, 48))
    with pytest.raises(DatasetError, match=r"images are 80 x 48 pixels .*image_size is 40 x 24"):
        load(tmp_path)


def test_a_missing_folder_file_or_image_folder_is_one_clear_line(tmp_path):
    with pytest.raises(DatasetError, match="data folder .* does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="annotation file .* does not exist"):
        load(tmp_path)
    write_dataset(tmp_path, good_rows())
    (tmp_path / "images_png").rename(tmp_path / "pictures")
    with pytest.raises(DatasetError, match="image folder .* does not exist"):
        load(tmp_path)


def zipped(*names: str) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name in names:
            file.writestr(name, "content")
    return archive.getvalue()


GOOD = pd.DataFrame(good_rows()).to_csv(index=False)
HEADER, ROWS = GOOD.partition("\n")[0].encode() + b"\n", GOOD.partition("\n")[2]


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "is a PNG image, not a CSV"),
        (b"patient_id,image_id\n", "the file has no rows"),
        (GOOD.replace(",", ";").encode(), r"has semicolons \(';'\) as separators"),
        (GOOD.partition("\n")[2].encode(), "line 1 is no header"),
        (b"# made by me\n" + GOOD.encode(), "line 1 is no header"),
        (GOOD.replace(",", "\t").encode(), r"has tabs \('\\t'\) as separators"),
        (GOOD.replace(",", "|").encode(), "has vertical bars"),
        (b"sep=;\r\n" + GOOD.replace(",", ";").encode(), "begins with the line 'sep=;' of a spreadsheet"),
        (GOOD.encode("utf-16"), "is UTF-16 text"),
        (GOOD.encode("utf-16-le"), "is UTF-16 text"),
        (GOOD.replace("DENSITY C", "DENSITÉ C").encode("latin-1"), r"is no UTF-8 text \(line 2\)"),
        (zipped("[Content_Types].xml", "xl/workbook.xml"), "is an Excel workbook"),
        (zipped("mimetype", "content.xml"), "is an OpenDocument file"),
        (zipped("annotations.csv"), "is a zip archive"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "is an old Excel or Word document"),
        (gzip.compress(GOOD.encode()), "is a gzip archive"),
        (b"PAR1" + bytes(80), "is a parquet table"),
        (b"<!DOCTYPE html>\n<html><body>Log in</body></html>", "is an HTML page"),
        (b'[{"patient_id": "a"}]', "is a JSON file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS"),
        (GOOD.encode() + b"00012e34,s,a9.png", "line 8 has 3 cells, the header 33"),
        (GOOD.replace("DENSITY A", '"DENSITY A').encode(), "is the file cut off, or a quotation mark missing"),
        (GOOD.replace("DENSITY C", "DENSITY\0C").encode(), "holds zero bytes"),
        (GOOD.encode("utf-32"), "is UTF-32 text"),
        ((GOOD + GOOD).encode(), "line 8 repeats the header; were two files put together"),
        (
            HEADER + ROWS.replace(",", ";").encode(),
            r"header has commas between its names, line 2 has semicolons \(';'\)",
        ),
        (HEADER + ROWS.replace(",", "\t").replace("7", "7,5").encode(), "header has commas .*, line 2 has tabs"),
        (
            HEADER.replace(b",", b";") + ROWS.encode(),
            r"header has semicolons \(';'\) between its names, the rows have commas",
        ),
        (GOOD.replace("\n", ",\n").replace(",\n", "\n", 1).encode(), "every row has 34 cells, the header 33"),
        (pd.DataFrame(good_rows()).map("'{}'".format).to_csv(index=False).encode(), "single quotation marks"),
        (
            "\n".join('"' + line.replace('"', '""') + '"' for line in GOOD.splitlines()).encode(),
            "each line stands in quotation marks as a whole",
        ),
    ],
)
def test_a_file_that_is_no_annotation_table_is_refused_with_what_it_is(tmp_path, content, cause):
    tmp_path.joinpath("vindr_detection_v1_folds.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=cause) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    assert not re.search("pandas|tokeniz|codec|expected", str(caught.value), flags=re.IGNORECASE)


@pytest.mark.parametrize("name", ["Mass", " Mass", "patient_id", "comment"])
def test_columns_named_twice_are_refused_with_their_places(tmp_path, name):
    table = pd.DataFrame(good_rows()).assign(comment="")
    table.insert(3, "again", 0)
    places = [4, list(table.columns).index(name.strip()) + 1]
    write_dataset(tmp_path, good_rows())
    table.rename(columns={"again": name}).to_csv(tmp_path / "vindr_detection_v1_folds.csv", index=False)
    first, second = sorted(places)
    with pytest.raises(DatasetError, match=rf"named twice: {name.strip()} \(columns {first}, {second}\)"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["mass", "MASS", "Mass.1", "mass.2", "Mass (2)", "Mass_copy", "M a s s", "Mass\u200b"])
def test_a_column_that_a_program_renamed_because_it_was_there_is_refused(tmp_path, name):
    table = pd.DataFrame(good_rows())
    table.insert(3, name, 0)
    table.to_csv(tmp_path / "vindr_detection_v1_folds.csv", index=False)
    with pytest.raises(DatasetError, match=r"columns are named twice: Mass \(columns 4, \d+"):
        load(tmp_path)


def test_columns_that_only_look_like_others_do_no_harm(tmp_path):
    write_dataset(tmp_path, good_rows())
    others = {"comment": "a", "comment.1": "b", "Mass_score": 0, "v1.1": 1, "v1.2": 2, "Unnamed: 0.1": 7}
    pd.DataFrame(good_rows()).assign(**others).to_csv(tmp_path / "vindr_detection_v1_folds.csv", index=False)
    assert len(load(tmp_path)) == 4


def test_what_spreadsheets_do_to_a_csv_is_read_all_the_same(tmp_path):
    write_dataset(tmp_path, good_rows())
    commas = "," * 32 + "\r\n"
    header, rows = GOOD.replace("\n", "\r\n").split("\r\n", 1)
    text = "\ufeff\ufeff" + header.replace("Mass", "Mass\u00a0") + "\r\n" + commas + rows + commas + "\r\n\x1a"
    tmp_path.joinpath("vindr_detection_v1_folds.csv").write_bytes(text.encode())
    assert load(tmp_path).fingerprint == load(write_dataset(tmp_path / "other", good_rows())).fingerprint


def test_a_row_that_is_repeated_with_another_number_or_spelling_is_refused(tmp_path):
    rows = [*good_rows(), good_rows()[-1] | {"resized_xmin": "8.00"}]
    rows = [values | {"number": at} for at, values in enumerate(rows)]
    assert "1 row repeats an earlier row exactly (such as line 8)" in refusal(tmp_path, rows)


def test_columns_in_another_spelling_are_named_as_such(tmp_path):
    pd.DataFrame(good_rows()).rename(columns=str.upper).to_csv(tmp_path / "vindr_detection_v1_folds.csv", index=False)
    with pytest.raises(DatasetError, match=r"Mass \(nearest: MASS\).* 22 are there in another spelling .*rename them"):
        load(tmp_path)


def test_a_split_of_another_name_is_not_told_as_a_patient_in_both(tmp_path):
    assert "both splits" not in refusal(tmp_path, [*good_rows(), row("cc", "c2.png", split="validation")])


def test_a_table_without_rows_is_refused(tmp_path):
    header = ",".join(good_rows()[0])
    tmp_path.joinpath("vindr_detection_v1_folds.csv").write_text(header + "\n")
    with pytest.raises(DatasetError, match="no rows"):
        load(tmp_path)


def test_wrong_arguments_are_refused(tmp_path):
    write_dataset(tmp_path, good_rows())
    with pytest.raises(InputError, match="split is 'train'"):
        load(tmp_path, split="train")
    with pytest.raises(InputError, match="unit is 'row'"):
        load(tmp_path, unit="row")


def test_a_density_that_disagrees_with_its_letter_is_warned_about(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load(write_dataset(tmp_path, with_last(breast_density="DENSITY D")))
    assert "1 rows have a density that disagrees" in caplog.text


def test_an_item_whose_image_is_bad_raises_with_its_name(tmp_path):
    data = load(write_dataset(tmp_path, good_rows()))
    data.path(3).write_bytes(b"")
    with pytest.raises(BadImageError, match=r"c1\.png: the file is empty"):
        data[3]


def test_number_of_classes_and_nearest_names_of_concepts(phantoms):
    named = phantoms.vocabulary.named
    assert [named(name).n_classes for name in ("Mass", "density", "birads")] == [2, 4, 5]
    assert [named(name).n_outputs for name in ("Mass", "density", "birads")] == [1, 4, 5]
    with pytest.raises(InputError, match=r"'mas' .*nearest: Mass"):
        named("mas")
    with pytest.raises(InputError, match="nearest: Suspicious_Calcification"):
        named("Suspicious Calcifications")


@pytest.mark.slow
def test_a_table_of_the_real_size_is_read(tmp_path):
    rows = [
        row(f"p{image // 4}", f"i{image}.png", *found, split="test" if image // 4 % 5 == 0 else "training")
        for image in range(20_000)
        for found in ((("Mass",), ("Asymmetry",)) if image % 10 == 0 else ((),))
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "vindr_detection_v1_folds.csv", index=False)
    for patient in range(5_000):
        folder = tmp_path / "images_png" / f"p{patient}"
        folder.mkdir(parents=True)
        for image in range(4 * patient, 4 * patient + 4):
            (folder / f"i{image}.png").touch()
    data = load(tmp_path)
    assert (len(data.images), len(data.findings)) == (20_000, 22_000)
