"""Presets of public collections, each on a small made-up copy of its layout, against what is known of the copy."""

import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_collections import IMAGE, WRITERS, write_embed, write_rsna
from helpers_datasets import SIZE, good_rows, row, write_dataset

from mammosae_plugin.datasets import DatasetError, VinDrMammo, load_images
from mammosae_plugin.datasets.about import KNOWN
from mammosae_plugin.datasets.mapping import load_mapping, preset_names
from mammosae_plugin.datasets.prepared_folder import prepare_dicom
from mammosae_plugin.errors import InputError

LAYOUTS = {**WRITERS, "rsna with folds": partial(write_rsna, folds=True)}
TWICE = (2 * IMAGE[0], 2 * IMAGE[1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_preset_gives_the_labels_boxes_and_covariates_of_the_copy(tmp_path, layout):
    """DICOM is fitted into twice its size, boxes and masks with it; PNG stay as they are."""
    truth = LAYOUTS[layout](tmp_path)
    scale, size = (1, IMAGE) if layout == "rsna with folds" else (2, TWICE)
    data = load_images(layout.split()[0], tmp_path, image_size=size)
    assert sorted(data.images["image_id"]) == sorted(truth)
    for index, found in data.images.iterrows():
        known, item = truth[found["image_id"]], data[index]
        assert item["image"].shape == (3, *size) and item["patient_id"] == known.patient_id
        assert (found["laterality"], found["view"]) == (known.laterality, known.view)
        assert known.split in (None, item["split"])
        assert item["labels"] == {name: -1 if label is None else label for name, label in known.labels.items()}
        for name, value in known.covariates.items():
            assert item["covariates"][name] == (pytest.approx(np.nan, nan_ok=True) if value is None else value)
        for name in data.concepts:
            boxes = scale * np.array(sorted(known.boxes.get(name, []))).reshape(-1, 4)
            np.testing.assert_allclose(np.array(sorted(item["boxes"][name].tolist())).reshape(-1, 4), boxes, atol=1e-4)


@pytest.mark.parametrize("layout", WRITERS)
def test_a_preset_prepared_is_what_it_is_without(tmp_path, layout):
    WRITERS[layout](tmp_path / "in")
    direct = load_images(layout, tmp_path / "in", image_size=TWICE)
    prepare_dicom(layout, tmp_path / "in", tmp_path / "out", preparation="letterbox", image_size=TWICE)
    prepared = load_images(tmp_path / "out")
    assert prepared.about == direct.about and prepared.covariates[: len(direct.covariates)] == direct.covariates
    for index in range(len(direct)):
        mine, other = direct[index], prepared[index]
        assert torch.equal(mine["image"], other["image"])
        for name in ("image_id", "patient_id", "split", "labels"):
            assert mine[name] == other[name]
        for name, boxes in mine["boxes"].items():
            assert sorted(boxes.tolist()) == sorted(other["boxes"][name].tolist())


def test_vindr_as_mammo_clip_prepares_it_is_what_its_own_reader_gives(tmp_path):
    """Cut, overhanging and unmendable boxes too; `test_boxes` has a file of the real shape."""
    rows = good_rows() + [row(f"p{n}", f"i{n}.png", "Mass", box=(2, 2, 9, 9)) for n in range(6)]
    rows[-1] |= {"resized_xmax": 1}
    root = write_dataset(tmp_path, rows)
    own, preset = VinDrMammo(root, image_size=SIZE), load_images("vindr-mammo-clip", root, image_size=SIZE)
    assert (own.n_dropped_boxes, own.about, [*own.vocabulary]) == (1, preset.about, [*preset.vocabulary])
    pd.testing.assert_frame_equal(own.images, preset.images[own.images.columns], check_dtype=False)
    pd.testing.assert_frame_equal(own.findings, preset.findings[own.findings.columns], check_dtype=False)
    listed = [data.box_changes.query("change == 'dropped'").reset_index(drop=True) for data in (own, preset)]
    pd.testing.assert_frame_equal(*listed, check_dtype=False)
    for index in range(len(own)):
        mine, other = own[index], preset[index]
        assert torch.equal(mine["image"], other["image"]) and mine["labels"] == other["labels"]
        assert {name: box.tolist() for name, box in mine["boxes"].items()} == {
            name: box.tolist() for name, box in other["boxes"].items()
        }


def test_every_preset_has_the_terms_of_its_collection_and_an_unknown_one_is_told_its_nearest(tmp_path):
    for name in preset_names():
        mapping, _ = load_mapping(name, tmp_path)
        assert mapping.about is KNOWN[mapping.name] and mapping.about.restricted and mapping.files
    with pytest.raises(InputError, match=r"nearest: vindr.*presets: cbis-ddsm, cmmd, csaw-cc, embed, inbreast, rsna"):
        load_mapping("vindrr", tmp_path)


@pytest.mark.parametrize("layout", WRITERS)
def test_a_missing_column_is_named_with_its_nearest_name_and_a_missing_table_too(tmp_path, layout):
    WRITERS[layout](tmp_path)
    tables = sorted((*tmp_path.rglob("*.csv"), *tmp_path.rglob("*.xlsx")))
    table = next(path for path in tables if path.name not in ("breast-level_annotations.csv", "metadata.csv"))
    if table.suffix == ".csv":
        text = table.read_text(encoding="utf-8-sig")
        separator = ";" if layout == "inbreast" else ","
        first = text.split("\n")[0].split(separator)[0 if layout == "csaw-cc" else 3]
        table.write_text(text.replace(first, f"{first}_", 1), encoding="utf-8")
        with pytest.raises(DatasetError, match=rf"missing: .*{first} \(nearest: .*{first}_"):
            load_images(layout, tmp_path)
    table.unlink()
    with pytest.raises(InputError, match=rf"{table.stem}.* does not exist"):
        load_images(layout, tmp_path)


def test_findings_of_embed_stay_on_their_side_and_regions_without_columns_of_their_own_are_read_too(tmp_path):
    write_embed(tmp_path)
    file = tmp_path / "tables" / "EMBED_OpenData_metadata.csv"
    text = file.read_text().replace("DCM_ROI_coords", "other")
    file.write_text(text.replace("Rows", "rows").replace("Columns", "columns"))  # sizes are then the headers'
    data = load_images("embed", tmp_path, image_size=IMAGE)
    healthy = data.images.query("exam_id == 'e1' and laterality == 'R'").iloc[0]
    assert (healthy["Mass"], healthy["Finding"]) == (0, 0)
    sick = int(data.images.query("exam_id == 'e1' and view == 'CC' and laterality == 'L'").index[0])
    assert data[sick]["boxes"]["Mass"].tolist() == [[IMAGE[1] - 20.0, 12.0, IMAGE[1] - 8.0, 30.0]]


def test_csaw_cc_without_the_sides_of_cancers_knows_those_with_a_mask(tmp_path, caplog):
    truth = WRITERS["csaw-cc"](tmp_path)
    file = next(tmp_path.glob("*.csv"))
    file.write_text(file.read_text().replace("x_cancer_laterality", "other"))
    data = load_images("csaw-cc", tmp_path, image_size=IMAGE)
    assert "says nothing under x_cancer_laterality" in caplog.text
    for index, name in enumerate(data.images["image_id"]):
        masked = bool(truth[name].boxes)
        assert len(data[index]["boxes"]["cancer"]) == masked
        assert data[index]["labels"]["cancer"] == (1 if masked else -1 if truth[name].patient_id != "00001" else 0)


def test_masks_of_cbis_ddsm_are_found_where_the_archive_renames_its_folders(tmp_path):
    """The NBIA Data Retriever names what lies below a case's folder otherwise than the tables do."""
    truth = WRITERS["cbis-ddsm"](tmp_path)
    (tmp_path / "CBIS-DDSM").mkdir()
    for case in [path for path in tmp_path.iterdir() if "_P_" in path.name]:
        for number, file in enumerate(sorted(case.rglob("*.dcm"))):
            (tmp_path / "CBIS-DDSM" / case.name / "07-20-2016-DDSM").mkdir(parents=True, exist_ok=True)
            shutil.move(file, tmp_path / "CBIS-DDSM" / case.name / "07-20-2016-DDSM" / f"1-{number + 1}.dcm")
        shutil.rmtree(case)
    data = load_images("cbis-ddsm", tmp_path, image_size=IMAGE)
    for index, name in enumerate(data.images["image_id"]):
        boxes = {one: sorted(found.tolist()) for one, found in data[index]["boxes"].items() if len(found)}
        assert boxes == {one: sorted(found) for one, found in truth[name].boxes.items()}
