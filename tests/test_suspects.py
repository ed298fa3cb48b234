"""Screening that compares pixels and annotations."""

import logging

import numpy as np
import pandas as pd
import pytest
from helpers_study import small_phantoms, study_settings, write_study
from PIL import Image

from mammosae_plugin.config import load_config
from mammosae_plugin.datasets import DatasetError, VinDrMammo, read_suspects, screen_images
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
