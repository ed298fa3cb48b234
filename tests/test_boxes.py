"""The defect of the published annotation file: height and width exchanged where boxes were clipped."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers_datasets import CORNERS, SIZE, author_box, good_rows, publish_boxes, row, write_dataset
from helpers_results import read_report
from helpers_study import mammosae, results_of, small_phantoms, study_settings, write_study

from mammosae_plugin.config import load_config
from mammosae_plugin.datasets import DatasetError, VinDrMammo, load_images
from mammosae_plugin.errors import InputError
from mammosae_plugin.study import Study

PREPARED = (1520, 912)
N_INVERTED, N_CUT, N_WHOLE = 12, 49, 90


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    """A folder of real shape: 12 inverted boxes, 49 cut ones, one that overhangs by 5.2 %; and the true boxes."""
    root, rng = tmp_path_factory.mktemp("published"), np.random.default_rng(3)
    rows, true = [], []
    for number in range(N_INVERTED + N_CUT + N_WHOLE):
        height, width = int(rng.integers(3300, 3600)), int(rng.integers(2600, 2900))
        left, top = int(rng.integers(0, 300)), int(rng.integers(0, 200))
        sx, sy = 912 / (width - 10 - left - rng.integers(0, 900)), 1520 / (height - 10 - top - rng.integers(0, 100))
        if number < N_INVERTED:
            low, high = width + rng.uniform(10, 150), width + rng.uniform(200, 400)
        elif number < N_INVERTED + N_CUT:
            low, high = width - rng.uniform(60, 900), width + rng.uniform(2, 350)
        else:
            low, high = rng.uniform(210, 1000), rng.uniform(1100, width - 20)
        original = [left + 5 + 40 / sx, low, left + 5 + 400 / sx, high]
        if number == N_INVERTED + N_CUT:
            original[2] = left + 5 + 959.65 / sx
        box = author_box(original, (height, width), (left, top), (sx, sy))
        true.append(
            [(value - 5 - off) * s for value, off, s in zip(original, (left, top) * 2, (sx, sy) * 2, strict=True)]
        )
        changed: dict[str, Any] = dict(zip(CORNERS, original, strict=True)) | {"height": height, "width": width}
        rows.append(row(f"p{number}", f"i{number}.png", "Mass", box=box, **changed))
    write_dataset(root, rows)
    for image in root.rglob("*.png"):
        image.write_bytes(b"")  # not looked at when the file is read
    return root, pd.DataFrame(true, columns=CORNERS)


def boxes_of(data: VinDrMammo) -> pd.DataFrame:
    return data.findings[list(CORNERS)]


def test_every_box_that_the_authors_code_cut_is_mended_counted_and_told(published, caplog):
    root, true = published
    with caplog.at_level(logging.WARNING):
        data = VinDrMammo(root)
    assert (data.n_mended_boxes, data.n_inverted_boxes, data.n_dropped_boxes) == (61, 12, 0)
    assert "61 boxes mended, which the annotation file has inverted (12) or cut at an edge (49)" in caplog.text
    np.testing.assert_allclose(boxes_of(data), true.clip(0, [912, 1520, 912, 1520], axis=1), atol=1e-6)
    changes = data.box_changes
    assert changes["change"].value_counts()["mended"] == 61
    assert changes.loc[changes["change"] == "mended", "line"].tolist() == list(range(2, 63))
    assert (changes["file_ymax"] <= changes["file_ymin"]).sum() == 12


def test_the_preset_mends_and_clips_the_same_boxes(published):
    own, preset = VinDrMammo(published[0]), load_images("vindr-mammo-clip", published[0])
    np.testing.assert_array_equal(boxes_of(own), boxes_of(preset))
    pd.testing.assert_frame_equal(own.images, preset.images[own.images.columns], check_dtype=False)


def test_a_box_that_reaches_five_percent_over_the_edge_is_clipped(published):
    root, _ = published
    data = VinDrMammo(root)
    assert boxes_of(data)["xmax"].max() == 912
    with pytest.raises(DatasetError, match=r"1 box reaches more than 5% .*959\.65"):
        VinDrMammo(root, box_tolerance=0.05, unmendable_boxes="refuse")
    dropped = VinDrMammo(root, box_tolerance=0.05, unmendable_boxes="drop_and_list")
    assert (dropped.n_mended_boxes, dropped.n_dropped_boxes, dropped.n_findings_without_box) == (61, 1, 1)
    assert dropped.images["Mass"].all()


def test_as_published_gives_the_files_own_numbers_and_drops_the_inverted(published, caplog):
    root, _ = published
    file = pd.read_csv(root / "vindr_detection_v1_folds.csv")[[f"resized_{corner}" for corner in CORNERS]].to_numpy()
    with caplog.at_level(logging.WARNING):
        data = VinDrMammo(root, boxes="as_published")
    assert (data.n_mended_boxes, data.n_clipped_boxes, data.n_dropped_boxes) == (0, 0, 12)
    assert "12 boxes dropped: 12 inverted or without area" in caplog.text
    np.testing.assert_array_equal(boxes_of(data)[N_INVERTED:], file[N_INVERTED:])
    assert boxes_of(data)[:N_INVERTED].isna().all(axis=None)
    assert data.box_changes["line"].tolist() == list(range(2, 14))
    assert data.fingerprint != VinDrMammo(root).fingerprint


def test_counts_follow_a_selection(published):
    data = VinDrMammo(published[0]).select(image_ids=[f"i{number}.png" for number in range(10, 20)])
    assert (data.n_mended_boxes, data.n_inverted_boxes) == (10, 2)
    assert data.box_changes["image_id"].tolist() == [f"i{number}.png" for number in range(10, 20)]


@pytest.mark.parametrize("crop", [(0, 0, 3000, 2400), (60, 200, 2800, 2100)])
def test_boxes_of_a_file_that_was_prepared_rightly_stay(tmp_path, crop):
    """Many lower edges lie beyond the image's width, but none was cut there."""
    left, top, bottom, right = crop[1], crop[0], crop[2], crop[3]
    sx, sy = 24 / (right - left), 40 / (bottom - top)
    rng, rows = np.random.default_rng(0), []
    for number in range(40):
        low = rng.uniform(top + 50, bottom - 400)
        original = (left + 100, low, right - 300, rng.uniform(low + 200, bottom - 50))
        box = tuple((value - off) * s for value, off, s in zip(original, (left, top) * 2, (sx, sy) * 2, strict=True))
        changed: dict[str, Any] = dict(zip(CORNERS, original, strict=True)) | {"height": 3000, "width": 2400}
        rows.append(row(f"p{number}", f"i{number}.png", "Mass", box=box, **changed))
    assert sum(values["ymax"] - 5 > 2390 for values in rows) >= 8
    data = VinDrMammo(write_dataset(tmp_path, rows), image_size=SIZE)
    assert data.n_mended_boxes == 0
    np.testing.assert_allclose(boxes_of(data)["ymax"], [float(values["resized_ymax"]) for values in rows])


def test_the_right_edge_of_a_wide_image_is_mended_too(tmp_path):
    original, shape = (900.0, 100.0, 1500.0, 500.0), (1000, 2000)
    scale = (24 / 1990, 40 / 990)
    rows = [
        row("p", "i.png", "Mass", box=author_box(original, shape, (0, 0), scale))
        | dict(zip(CORNERS, original, strict=True))
        | {"height": 1000, "width": 2000}
    ]
    data = VinDrMammo(write_dataset(tmp_path, rows), image_size=SIZE)
    assert data.n_mended_boxes == 1
    np.testing.assert_allclose(boxes_of(data).loc[0], [895 * scale[0], 95 * scale[1], 1495 * scale[0], 495 * scale[1]])


def test_an_inverted_box_without_the_columns_that_mend_it_is_refused_or_dropped(tmp_path):
    rows = good_rows()
    rows[-1] |= {"resized_xmin": 20, "resized_xmax": 8}
    root = write_dataset(tmp_path, rows)
    with pytest.raises(
        DatasetError, match=r"1 box is inverted or has no area \(such as line 7\); mend it .*drop_and_list"
    ):
        VinDrMammo(root, image_size=SIZE)
    data = VinDrMammo(root, image_size=SIZE, unmendable_boxes="drop_and_list")
    assert data.n_dropped_boxes == 1
    assert data.box_changes.query("change == 'dropped'")["reason"].tolist() == ["inverted or without area"]
    assert len(data[3]["boxes"]["Suspicious_Calcification"]) == 0
    assert data[3]["labels"]["Suspicious_Calcification"] == 1


def test_one_bad_box_of_eight_is_dropped_and_two_are_refused_with_a_way_out(tmp_path):
    rows = [row(f"p{number}", f"i{number}.png", "Mass", box=(2, 2, 9, 9)) for number in range(8)]
    rows[3] |= {"resized_xmax": 1}
    data = VinDrMammo(write_dataset(tmp_path / "one", rows), image_size=SIZE)
    assert data.n_dropped_boxes == 1
    rows[5] |= {"resized_ymax": 90}
    with pytest.raises(
        DatasetError, match="1 box is inverted or .*1 box reaches .*without 2 of 8 boxes by data.unmend"
    ):
        VinDrMammo(write_dataset(tmp_path / "two", rows), image_size=SIZE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boxes": "repaired"}, "boxes is 'repaired'; it must be mended or as_published"),
        ({"unmendable_boxes": "drop"}, "unmendable_boxes is 'drop'; it must be drop_few or refuse or drop_and_list"),
        ({"box_tolerance": -0.1}, "box_tolerance is -0.1: give a number from 0 to 1"),
        ({"max_missing_share": 2}, "max_missing_share is 2: give a number from 0 to 1"),
        ({"image_size": "96x64"}, r"image_size is '96x64': give \(height, width\)"),
        ({"image_size": 96}, "image_size is 96: give"),
        ({"image_size": (96, 64.5)}, "the width is 64.5: give a whole number"),
        ({"image_size": (-96, 64)}, "the height is -96: give a whole number"),
    ],
)
def test_impossible_arguments_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        VinDrMammo(write_dataset(tmp_path, good_rows()), **{"image_size": SIZE, **options})


# -- boxes that are no pixels of the prepared images -------------------------------------------------------------------


def moved(root: Path, *, original: bool = True, **change: Any) -> Path:
    """The phantoms' annotation file with every resized box changed, and without the original ones on request."""
    file = root / "vindr_detection_v1_folds.csv"
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    has_box = table["resized_xmin"] != ""
    names = [f"resized_{corner}" for corner in CORNERS]
    boxes = table.loc[has_box, names].astype(float).to_numpy()
    boxes = boxes * (change.get("scale", (1, 1)) * 2)
    if "order" in change:
        boxes = boxes[:, change["order"]]
    if change.get("mirror"):
        boxes[:, [0, 2]] = 64 - boxes[:, [2, 0]]
    if change.get("sizes"):
        boxes[:, 2:] -= boxes[:, :2]
    table.loc[has_box, names] = boxes.astype(str)
    if not original:
        table = table.drop(columns=[*CORNERS, "height", "width"])
    table.to_csv(file, index=False)
    return root


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": (1 / 64, 1 / 96)}, r"boxes are shares of the image \(0 to 1\): multiply x by 64 and y by 96"),
        ({"scale": (1 / 64, 1 / 96), "original": False}, "boxes are shares of the image"),
        ({"scale": (0.5, 0.5)}, "boxes cannot be the original boxes in 96 x 64 images"),
        ({"scale": (0.8, 0.7)}, "cannot be the original boxes"),
        ({"scale": (0.25, 0.25), "original": False}, "all lie in the upper left ninth of the 96 x 64 images"),
        ({"scale": (2, 2)}, "repeat the boxes of the original images"),
        ({"scale": (3, 3)}, "boxes reach more than 10% of a side beyond"),
        ({"sizes": True}, "the boxes fit better read as xmin, ymin, width, height"),
        ({"order": [1, 0, 3, 2]}, "fit better read as ymin, xmin, ymax, xmax"),
        ({"mirror": True}, "fit better when mirrored left to right"),
    ],
)
def test_boxes_that_cannot_be_pixels_of_the_prepared_images_are_refused(tmp_path, change, message):
    root = moved(small_phantoms(tmp_path), **change)
    with pytest.raises(DatasetError, match=message) as caught:
        VinDrMammo(root, image_size=(96, 64), unmendable_boxes="refuse")
    assert "\n" not in str(caught.value)


def test_exchanged_columns_of_width_and_height_are_named(tmp_path):
    root = small_phantoms(tmp_path, n_patients=4)
    file = root / "vindr_detection_v1_folds.csv"
    pd.read_csv(file).rename(columns={"width": "height", "height": "width"}).to_csv(file, index=False)
    with pytest.raises(DatasetError, match="only if the columns width and height are exchanged"):
        VinDrMammo(root, image_size=(96, 64))


# -- causes that are named in a file with the author's defect ----------------------------------------------------------


@pytest.fixture(scope="module")
def with_defect(tmp_path_factory) -> Path:
    """Phantoms whose annotation file has the author's defect, images cropped."""
    root = small_phantoms(tmp_path_factory.mktemp("defect"))
    assert (publish_boxes(root, (96, 64))["defect"] != "").sum() >= 8
    return root


def rewritten(source: Path, root: Path, change) -> Path:
    """The same images beside a changed annotation file."""
    root.mkdir(exist_ok=True)
    (root / "images_png").symlink_to(source / "images_png")
    file = root / "vindr_detection_v1_folds.csv"
    table = pd.read_csv(source / file.name, dtype=str, keep_default_na=False)
    boxes = table.loc[table["resized_xmin"] != "", [f"resized_{corner}" for corner in CORNERS]].astype(float)
    changed, boxes = change(table, boxes)
    if boxes is not None:
        changed.loc[boxes.index, boxes.columns] = boxes.astype(str)
    changed.to_csv(file, index=False)
    return root


def upside_down(table, boxes):
    low = 96 - boxes["resized_ymax"]
    return table.drop(columns=["height", "width"]), boxes.assign(
        resized_ymax=96 - boxes["resized_ymin"], resized_ymin=low
    )


@pytest.mark.parametrize("lacking", [["height", "width"], list(CORNERS), ["height", "width", *CORNERS]], ids="-".join)
def test_the_authors_defect_is_named_where_the_columns_that_mend_it_are_lacking(with_defect, tmp_path, lacking):
    root = rewritten(with_defect, tmp_path, lambda table, _: (table.drop(columns=lacking), None))
    with pytest.raises(
        DatasetError, match="exchange of height and width by the author's code.*: as_published"
    ) as caught:
        VinDrMammo(root, image_size=(96, 64))
    assert "fit better" not in str(caught.value)
    assert VinDrMammo(root, image_size=(96, 64), boxes="as_published").n_mended_boxes == 0


def test_boxes_that_are_wrong_in_another_way_are_not_called_cut_by_the_author(tmp_path):
    root = rewritten(small_phantoms(tmp_path / "right"), tmp_path / "wrong", upside_down)
    with pytest.raises(DatasetError, match="turned upside down") as caught:
        VinDrMammo(root, image_size=(96, 64))
    assert "author" not in str(caught.value)


@pytest.mark.parametrize("wanted", ["mended", "as_published"])
def test_exchanged_columns_are_named_in_a_file_with_the_authors_defect_too(with_defect, tmp_path, wanted):
    turned = {"width": "height", "height": "width"}
    root = rewritten(with_defect, tmp_path, lambda table, _: (table.rename(columns=turned), None))
    with pytest.raises(DatasetError, match="only if the columns width and height are exchanged") as caught:
        VinDrMammo(root, image_size=(96, 64), boxes=wanted)
    assert "fit better" not in str(caught.value)


def tenth_as_shares(table, boxes):
    boxes.iloc[::10] /= np.array([64, 96, 64, 96])
    return table, boxes


def test_boxes_as_shares_of_the_image_are_left_out_as_the_setting_says(with_defect, tmp_path):
    root = rewritten(with_defect, tmp_path, tenth_as_shares)
    with pytest.raises(DatasetError, match=r"are shares of the image \(0 to 1\): multiply .* or go on without"):
        VinDrMammo(root, image_size=(96, 64))
    data = VinDrMammo(root, image_size=(96, 64), unmendable_boxes="drop_and_list")
    reasons = data.box_changes.query("change == 'dropped'")["reason"].value_counts()
    assert reasons["shares of the image instead of pixels"] == 6


@pytest.mark.parametrize("seed", range(3))
def test_boxes_that_fit_no_image_get_no_hint(with_defect, tmp_path, seed):
    def nowhere(table, boxes):
        rng = np.random.default_rng(seed)
        low, size = rng.uniform([20, 40], [45, 75], (len(boxes), 2)), rng.uniform(5, 20, (len(boxes), 2))
        size[::6] *= -1  # inverted, so that the file is refused
        boxes[:] = np.concatenate([low, low + size], axis=1)
        return table.drop(columns=[*CORNERS, "height", "width"]), boxes

    with pytest.raises(DatasetError, match="inverted or have no area") as caught:
        VinDrMammo(rewritten(with_defect, tmp_path, nowhere), image_size=(96, 64))
    assert "fit better" not in str(caught.value)


# -- a whole study -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published_study(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    """The configuration of a study on phantoms with a file made by the author's formula; and the true boxes."""
    folder = tmp_path_factory.mktemp("study")
    root = small_phantoms(folder / "data")
    true = publish_boxes(root, (96, 64))
    settings = study_settings(folder, root)
    settings["models"] = settings["models"][:1]
    settings["analysis"] |= {"ks": [0, 64], "top": 3, "error_term": False}
    return write_study(folder, settings), true


def test_a_study_on_such_a_file_runs_to_its_report_and_says_what_was_mended(published_study, tmp_path):
    file, true = published_study
    n_inverted, n_cut = ((true["defect"] == defect).sum() for defect in ("inverted", "cut"))
    assert n_inverted >= 3 and n_cut >= 5
    done = mammosae("study", "--config", file, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    data = results_of(tmp_path)["data"]
    assert data["boxes"] == "mended"
    assert (data["n_mended_boxes"], data["n_inverted_boxes"], data["n_dropped_boxes"]) == (
        n_inverted + n_cut,
        n_inverted,
        0,
    )
    said = f"{n_inverted + n_cut} boxes mended, which the annotation file has inverted ({n_inverted}) or cut"
    assert said in read_report(tmp_path / "results")
    (listed,) = (tmp_path / "work").glob("boxes-*.csv")
    changes = pd.read_csv(listed)
    assert (
        changes.loc[changes["change"] == "mended", "line"].tolist() == true.loc[true["defect"] != "", "line"].tolist()
    )


def test_the_boxes_of_such_a_study_are_the_true_ones_or_those_of_the_file(published_study):
    file, true = published_study
    mended = Study(load_config(file)).dataset
    used = mended.findings.dropna(subset=list(CORNERS))[list(CORNERS)]
    np.testing.assert_allclose(used, true[list(CORNERS)], atol=1e-6)
    study = Study(load_config(file, ["data.boxes=as_published"]))
    assert study.boxes["n_mended_boxes"] == 0
    assert study.boxes["n_dropped_boxes"] == (true["defect"] == "inverted").sum()
    assert study.content != Study(load_config(file)).content
