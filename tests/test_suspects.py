"""Screening that compares pixels and annotations."""

import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_datasets import CORNERS, publish_boxes
from helpers_study import small_phantoms, study_settings, write_study
from PIL import Image

from mammosae_plugin.config import load_config
from mammosae_plugin.datasets import DatasetError, VinDrMammo, make_phantoms, read_suspects, screen_images
from mammosae_plugin.datasets import phantoms as drawing
from mammosae_plugin.datasets.suspects import breast_of, tissue_of
from mammosae_plugin.files import read_json
from mammosae_plugin.study import Study

SIZE = (96, 64)
TURNS = {
    "mirrored left to right": np.fliplr,
    "turned upside down": np.flipud,
    "turned by 180 degrees": lambda pixels: np.flipud(np.fliplr(pixels)),
}


@pytest.fixture
def data(tmp_path) -> VinDrMammo:
    return VinDrMammo(small_phantoms(tmp_path / "data", n_patients=30), image_size=SIZE)


def change(data: VinDrMammo, rows, turn) -> list[str]:
    """Write other pixels to the images of these rows; returns their ids."""
    for row in rows:
        pixels = np.ascontiguousarray(turn(data.gray(row)))
        Image.fromarray(pixels).save(data.path(row))
    return [str(data.images["image_id"][row]) for row in rows]


def listed(data: VinDrMammo, folder, **options) -> pd.DataFrame:
    screen_images(data, folder / "bad.csv", suspects_file=folder / "suspects.csv", **options)
    return read_suspects(folder / "suspects.csv")


def test_of_images_that_fit_their_annotations_none_is_suspect(data, tmp_path):
    assert listed(data, tmp_path, max_suspect_share=0).empty
    assert (tmp_path / "suspects.csv").read_text() == "image_id,suspicion,detail\n"


@pytest.mark.parametrize("depth", ["gray", "colour"])
def test_images_of_inverted_polarity_are_listed_kept_and_told(data, tmp_path, caplog, depth):
    ids = change(data, range(0, 60, 3), lambda g: 255 - (g if depth == "gray" else np.stack([g] * 3, axis=2)))
    with caplog.at_level(logging.WARNING):
        found = listed(data, tmp_path)
    assert found["image_id"].tolist() == ids
    assert set(found["suspicion"]) == {"inverted polarity"}
    assert "20 of 60 images are suspect (inverted polarity; all are listed in" in caplog.text


def test_too_many_suspects_stop_the_run_and_are_listed_all_the_same(data, tmp_path):
    change(data, range(0, 60, 2), lambda pixels: 255 - pixels)
    with pytest.raises(
        DatasetError, match=r"30 of 60 images are suspect \(inverted polarity; .*more than 40%"
    ) as caught:
        listed(data, tmp_path)
    assert "\n" not in str(caught.value)
    assert len(read_suspects(tmp_path / "suspects.csv")) == 30


@pytest.mark.parametrize("how", list(TURNS))
def test_images_that_were_turned_without_their_boxes_are_refused(data, tmp_path, how):
    change(data, range(60), TURNS[how])
    with pytest.raises(DatasetError, match=f"boxes.* fit the images better when {how} .* in the same way"):
        listed(data, tmp_path)
    assert not (tmp_path / "bad.csv").exists()  # so that the next run finds it again


def test_right_breasts_that_alone_were_mirrored_are_refused(data, tmp_path):
    change(data, np.flatnonzero(data.images["laterality"] == "R"), np.fliplr)
    with pytest.raises(DatasetError, match="boxes of right breasts fit the images better when mirrored left to right"):
        listed(data, tmp_path)


def test_images_that_were_mirrored_among_others_are_listed(data, tmp_path):
    ids = change(data, range(1, 60, 6), np.fliplr)
    found = listed(data, tmp_path).query("suspicion == 'breast on the other side'")
    assert found["image_id"].tolist() == ids


def test_boxes_on_the_background_are_listed(data, tmp_path):
    rows = data.findings.query("Mass == 1").index[:2]
    file = tmp_path / "data" / "vindr_detection_v1_folds.csv"
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    left = data.images.set_index("image_id")["laterality"][data.findings["image_id"][rows]] == "L"
    for row, is_left in zip(rows, left, strict=True):
        xmin, xmax = (56, 63) if is_left else (1, 8)
        corners = ["xmin", "ymin", "xmax", "ymax"]
        table.loc[row, [f"resized_{corner}" for corner in corners]] = [str(xmin), "1", str(xmax), "8"]
        table.loc[row, corners] = [str(2 * xmin), "2", str(2 * xmax), "16"]
    table.to_csv(file, index=False)
    found = listed(VinDrMammo(tmp_path / "data", image_size=SIZE), tmp_path)
    assert found["image_id"].tolist() == data.findings["image_id"][rows].tolist()
    assert set(found["suspicion"]) == {"box on the background"}


def test_an_image_under_two_ids_is_listed(data, tmp_path):
    data.path(9).write_bytes(data.path(8).read_bytes())
    found = listed(data, tmp_path)
    assert found.loc[:, ["image_id", "suspicion"]].to_numpy().tolist() == [
        [data.images["image_id"][9], "pixels of another image"]
    ]
    assert data.images["image_id"][8] in found["detail"][0]


def test_a_bright_frame_of_a_scanned_film_and_noise_are_no_suspects(data, tmp_path):
    def framed(pixels):
        pixels = pixels.copy()
        pixels[[0, -1]], pixels[:, [0, -1]] = 255, 255
        return pixels

    without = [row for row in range(60) if not data._labels_and_boxes(row)[1]["Mass"].numel()]
    change(data, without[:3], framed)
    rng = np.random.default_rng(0)
    change(data, without[3:6], lambda pixels: rng.integers(0, 255, pixels.shape, dtype=np.uint8))
    assert listed(data, tmp_path).empty


def test_a_study_tells_its_suspects_in_every_run_and_in_its_results(tmp_path, caplog):
    root = small_phantoms(tmp_path / "data")
    change(VinDrMammo(root, image_size=SIZE), range(0, 48, 6), lambda pixels: 255 - pixels)
    file = write_study(tmp_path, study_settings(tmp_path, root))
    for _ in range(2):  # the second run finds the first one's list
        caplog.clear()
        study = Study(load_config(file))
        assert len(study.dataset) == 48
        assert study.suspects["suspicion"].value_counts().to_dict() == {"inverted polarity": 8}
        assert "8 of 48 images are suspect" in caplog.text
        with pytest.raises(DatasetError, match="8 of 48 images are suspect"):
            _ = Study(load_config(file, ["data.max_suspect_share=0.1"])).dataset


# -- boxes that were written in another way ----------------------------------------------------------------------------

SIDES = np.array([64.0, 96.0] * 2)
RESIZED = [f"resized_{corner}" for corner in CORNERS]


def sizes(b):
    return np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1)


def centers(b):
    return np.concatenate([(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]], axis=1)


def flipped(b, *axes):
    turned = b.copy()
    for axis in axes:
        turned[:, [axis, 2 + axis]] = SIDES[axis] - b[:, [2 + axis, axis]]
    return turned


WRITTEN = {
    "half size": (lambda b: b / 2, r"another resize \(images about 0.5 times as wide and 0.5 times as high"),
    "three quarters": (lambda b: b * 0.75, r"another resize \(images about 0.75 times"),
    "nine tenths": (lambda b: b * 0.9, r"another resize \(images about 0.91 times"),
    "another aspect": (lambda b: b * [1, 0.5, 1, 0.5], r"another resize \(images about 1 times as wide and 0.5"),
    "percent": (lambda b: 100 * b / SIDES, "read as percent of the image"),
    "shares of sizes": (lambda b: sizes(b) / SIDES, "read as xmin, ymin, width, height in shares of the image"),
    "sizes": (sizes, "read as xmin, ymin, width, height"),
    "centers": (centers, "read as center x, center y, width, height"),
    "x exchanged": (lambda b: b[:, [2, 1, 0, 3]], "read as corners in another order"),
    "y exchanged": (lambda b: b[:, [0, 3, 2, 1]], "read as corners in another order"),
    "rows first": (lambda b: b[:, [1, 0, 3, 2]], r"read as ymin, xmin, ymax, xmax \(x and y exchanged\)"),
    "axis by axis": (lambda b: b[:, [0, 2, 1, 3]], "read as xmin, xmax, ymin, ymax"),
    "mirrored": (lambda b: flipped(b, 0), "when mirrored left to right .*prepare both in the same way"),
    "upside down": (lambda b: flipped(b, 1), "when turned upside down .*prepare both in the same way"),
    "turned": (lambda b: flipped(b, 0, 1), "when turned by 180 degrees .*prepare both in the same way"),
    "upside down, smaller": (lambda b: flipped(b, 1) * 0.75, "images about 0.75 .*, when turned upside down"),
    "moved": (lambda b: b + [0, 19.2, 0, 19.2], "when moved up by 20% of the image"),
    "whole": (lambda b: 0 * b + [0, 0, 64, 96], "cover the whole 96 x 64 image"),
    "nearly whole": (lambda b: 0 * b + [1.5, 2, 62, 95], "cover the whole 96 x 64 image"),
    "one box": (lambda b: 0 * b + b[0], "boxes are the same .* leave the cells empty"),
    "negative": (lambda b: -b, "boxes all are negative"),
    "points": (lambda b: b[:, [0, 1, 0, 1]], r"boxes are inverted or have no area \(such as"),
}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    return small_phantoms(tmp_path_factory.mktemp("phantoms"))


def written(phantoms: Path, root: Path, change, *, published: bool = False, original: bool = False) -> Path:
    """The folder with the same images and changed boxes."""
    root.mkdir()
    (root / "images_png").symlink_to(phantoms / "images_png")
    file = root / "vindr_detection_v1_folds.csv"
    file.write_bytes((phantoms / file.name).read_bytes())
    if published:
        publish_boxes(root, SIZE)
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    has_box = table["resized_xmin"] != ""
    table.loc[has_box, RESIZED] = change(table.loc[has_box, RESIZED].astype(float).to_numpy()).astype(str)
    if not (original or published):
        table = table.drop(columns=[*CORNERS, "height", "width"])
    table.to_csv(file, index=False)
    return root


@pytest.mark.parametrize("how", list(WRITTEN))
def test_boxes_written_in_another_way_are_refused_with_that_way_as_the_cause(phantoms, tmp_path, how):
    change, cause = WRITTEN[how]
    root = written(phantoms, tmp_path / "data", change)
    with pytest.raises(DatasetError, match=cause) as caught:
        listed(VinDrMammo(root, image_size=SIZE), tmp_path)
    assert "\n" not in str(caught.value)
    assert " breasts" not in str(caught.value)
    assert not re.search("read as|resize|when", cause) or "fit" in str(caught.value)


@pytest.mark.parametrize("how", ["mirrored", "upside down", "three quarters", "upside down, smaller", "centers"])
def test_so_are_those_of_a_file_with_the_authors_defect_before_anything_is_mended(phantoms, tmp_path, caplog, how):
    change, cause = WRITTEN[how]
    with pytest.raises(DatasetError, match=f"boxes fit better .*{cause.split(' .*prepare')[0]}"):
        VinDrMammo(written(phantoms, tmp_path / "data", change, published=True), image_size=SIZE)
    assert "mended" not in caplog.text


@pytest.mark.parametrize("how", ["mirrored", "nine tenths", "axis by axis", "sizes"])
def test_three_boxes_are_enough_where_the_original_boxes_stand_beside_them(tmp_path, how):
    root = small_phantoms(tmp_path / "few", n_patients=2)
    change, cause = WRITTEN[how]
    with pytest.raises(DatasetError, match=cause.split(" .*prepare")[0]):
        VinDrMammo(written(root, tmp_path / "data", change, original=True), image_size=SIZE)


def test_boxes_of_other_images_are_warned_about(phantoms, tmp_path, caplog):
    root = written(phantoms, tmp_path / "data", np.random.default_rng(1).permutation)
    with caplog.at_level(logging.WARNING):
        listed(VinDrMammo(root, image_size=SIZE), tmp_path)
    assert "no better than those of other images" in caplog.text


@pytest.mark.parametrize(("n_patients", "size", "seed"), [(24, (96, 64), 7), (5, (96, 64), 4), (5, (380, 228), 3)])
def test_right_boxes_raise_no_alarm_in_small_and_large_sets(tmp_path, caplog, n_patients, size, seed):
    root = small_phantoms(tmp_path / "data", n_patients=n_patients, image_size=size, seed=seed)
    with caplog.at_level(logging.WARNING):
        assert listed(VinDrMammo(root, image_size=size), tmp_path, max_suspect_share=0).empty
    assert not caplog.records


def test_sloppy_boxes_raise_no_alarm(phantoms, tmp_path, caplog):
    def sloppy(b):
        by = np.random.default_rng(0).uniform(-0.35, 0.35, (len(b), 2)) * (b[:, 2:] - b[:, :2])
        return (b + np.tile(by, 2)).clip(0, SIDES)

    with caplog.at_level(logging.WARNING):
        found = listed(VinDrMammo(written(phantoms, tmp_path / "data", sloppy), image_size=SIZE), tmp_path)
    assert len(found) <= 2
    assert not re.search("may be wrong|no better", caplog.text)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        (["30", "30", "10", "10"], "inverted or without area"),
        (["0", "0", "0", "0"], "inverted or without area"),
        (["30", "30", "200", "200"], "more than 10% of a side beyond the image"),
        (["0.1", "0.1", "0.3", "0.3"], "shares of the image instead of pixels"),
        (["", "3", "5", "5"], "without all corners"),
        (["", "", "", ""], "lost beside an original box"),
        (["x", "3", "5", "5"], "no numbers"),
        (["0", "0", "64", "96"], "box over the whole image"),
    ],
)
def test_one_odd_box_of_58_stops_nothing_and_is_listed(phantoms, tmp_path, box, reason):
    root = written(phantoms, tmp_path / "data", lambda b: b, original=True)
    file = root / "vindr_detection_v1_folds.csv"
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    row = table.index[table["Mass"] == "1"][2]
    table.loc[row, RESIZED] = box
    table.to_csv(file, index=False)
    data = VinDrMammo(root, image_size=SIZE)
    found = listed(data, tmp_path)
    changes = data.box_changes
    assert [*changes["reason"], *found["suspicion"]] == [reason]
    assert [*changes["line"]] in ([], [row + 2])
    assert data.findings.loc[row, "Mass"] == 1
    if found.empty:
        with pytest.raises(DatasetError, match="1 (box|row|resized_xmin value)\\b"):
            VinDrMammo(root, image_size=SIZE, unmendable_boxes="refuse")


# -- images that are no mammograms, or lie on another side -------------------------------------------------------------


def resized(pixels):
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((64, 96)))


@pytest.mark.parametrize(
    ("turn", "suspicion", "detail"),
    [
        (lambda g: resized(np.rot90(g)), "turned by 90 degrees", "upper or lower edge"),
        (lambda g: resized(np.rot90(g, 3)), "turned by 90 degrees", "upper or lower edge"),
        (lambda g: resized(g.T), "turned by 90 degrees", "upper or lower edge"),
        (lambda g: (255 * (g > 40)).astype(np.uint8), "no mammogram", "only 2 gray levels"),
        (lambda g: g // 16, "no mammogram", "gray levels"),
        (lambda g: np.dstack([g, 0 * g, 0 * g]), "no mammogram", "colours"),
        (lambda g: np.pad(g[:6, :6] // 2 + 9, ((0, 90), (0, 58))) + g % 2, "no mammogram", "hardly anything"),
    ],
)
def test_images_that_are_no_upright_mammograms_are_listed(data, tmp_path, turn, suspicion, detail):
    ids = change(data, range(0, 60, 9), turn)
    found = listed(data, tmp_path).query("suspicion == @suspicion")
    assert found["image_id"].tolist() == ids
    assert found["detail"].str.contains(detail).all()


def test_turned_images_are_named_as_the_cause_and_not_their_boxes(data, tmp_path):
    change(data, np.flatnonzero(data.images["laterality"] == "R"), lambda g: resized(np.rot90(g)))
    with pytest.raises(DatasetError, match="turned by 90 degrees"):
        listed(data, tmp_path)


@pytest.mark.parametrize("spell", [lambda letter: "L", lambda letter: {"L": "R", "R": "L"}[letter]])
def test_a_laterality_that_disagrees_with_the_pixels_is_told(phantoms, tmp_path, caplog, spell):
    root = written(phantoms, tmp_path / "data", lambda b: b)
    file = root / "vindr_detection_v1_folds.csv"
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    table["laterality"] = table["laterality"].map(spell)
    table.to_csv(file, index=False)
    data = VinDrMammo(root, image_size=SIZE)
    if data.images["laterality"].nunique() == 1:
        with pytest.raises(DatasetError, match="breast on the other side"):
            listed(data, tmp_path)
    else:
        listed(data, tmp_path)
        assert "is laterality exchanged, or were all images mirrored?" in caplog.text


def test_the_breast_is_what_phantoms_drew_and_no_letter(tmp_path):
    make_phantoms(tmp_path, n_patients=4, image_size=(192, 128), marker="letter", marker_share=1.0, seed=5)
    images, made = VinDrMammo(tmp_path, image_size=(192, 128)), read_json(tmp_path / "phantoms.json")
    drawn = {one.image_id: one for number in range(4) for one in drawing._phantoms_of(made, number)}
    letters = 0
    for row, image_id in enumerate(images.images["image_id"]):
        inside = drawn[image_id].outline.inside
        truth = inside if drawn[image_id].view.laterality == "L" else inside[:, ::-1]
        breast = breast_of(images.gray(row))
        assert (breast & truth).sum() > 0.9 * (breast | truth).sum(), image_id
        letters += int((tissue_of(images.gray(row)) & ~truth).sum()) - int((breast & ~truth).sum())
    assert letters > 0  # the letters are tissue, but not the breast
    assert breast_of(np.full((64, 64), 90, dtype=np.uint8)) is None
