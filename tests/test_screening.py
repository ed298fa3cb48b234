import csv
from pathlib import Path

import numpy as np
import pytest
from helpers_datasets import SIZE, row, write_dataset
from PIL import Image

from mammosae_plugin.datasets import DatasetError, VinDrMammo, base, screen_images
from mammosae_plugin.errors import InputError


@pytest.fixture
def data(tmp_path):
    """Ten images in five patients, of which the third also has a finding."""
    rows = [row(f"p{index // 2}", f"i{index}.png", *(("Mass",) if index == 2 else ())) for index in range(10)]
    return VinDrMammo(write_dataset(tmp_path / "data", rows), image_size=SIZE)


def spoil(data: VinDrMammo) -> None:
    """Make images 7, 2 and 4 bad, each in another way."""
    data.path(7).write_bytes(data.path(7).read_bytes()[:200])
    Image.fromarray(np.full(SIZE, 9, dtype=np.uint8)).save(data.path(2))
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(data.path(4))


def lines(path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_nothing_bad_leaves_a_header_and_the_dataset_itself(data, tmp_path):
    assert screen_images(data, tmp_path / "bad.csv") is data
    assert (tmp_path / "bad.csv").read_text() == "image_id,reason\n"


@pytest.mark.parametrize("num_workers", [0, 3])
def test_bad_images_are_listed_in_order_with_reasons_and_left_out(data, tmp_path, num_workers):
    spoil(data)
    good = screen_images(data, tmp_path / "bad.csv", max_bad_share=0.3, num_workers=num_workers)
    header, *listed = lines(tmp_path / "bad.csv")
    assert header == ["image_id", "reason"]
    assert [image_id for image_id, _ in listed] == ["i2.png", "i4.png", "i7.png"]
    assert listed[0][1] == "is constant (every value is 9)"
    assert listed[1][1] == "is 8 x 8 pixels, expected 40 x 24 (height x width)"
    assert "truncated" in listed[2][1]
    assert good.images["image_id"].tolist() == [f"i{index}.png" for index in (0, 1, 3, 5, 6, 8, 9)]
    assert good.findings["Mass"].sum() == 0
    assert all(good[index]["image"].isfinite().all() for index in range(len(good)))


def test_too_many_bad_images_stop_the_run_and_are_listed_all_the_same(data, tmp_path):
    spoil(data)
    with pytest.raises(DatasetError, match=r"3 of 10 images \(30\.0%\) are bad, more than the 29\.0% allowed"):
        screen_images(data, tmp_path / "bad.csv", max_bad_share=0.29)
    assert len(lines(tmp_path / "bad.csv")) == 4


def test_each_image_is_read_once_whatever_the_unit(data, tmp_path, monkeypatch):
    rows = VinDrMammo(data.path(0).parents[2], image_size=SIZE, unit="finding_row")
    seen = []
    original = base.read_png

    def read(path, size, **how):
        seen.append(Path(path).name)
        return original(path, size, **how)

    monkeypatch.setattr(base, "read_png", read)
    screen_images(rows, tmp_path / "bad.csv")
    assert seen == [f"i{index}.png" for index in range(10)]


@pytest.mark.parametrize("options", [{"max_bad_share": 1.5}, {"max_bad_share": -0.1}, {"num_workers": -1}])
def test_arguments_out_of_range_are_refused(data, tmp_path, options):
    with pytest.raises(InputError, match="must"):
        screen_images(data, tmp_path / "bad.csv", **options)


def test_a_file_of_the_users_is_not_written_over(data, tmp_path):
    mine = tmp_path / "mine.csv"
    mine.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"mine\.csv is there, and is no list of image_id and reason; name another"):
        screen_images(data, mine)
    with pytest.raises(InputError, match=r"mine\.csv is there, and is no list of image_id and suspicion"):
        screen_images(data, tmp_path / "quarantine.csv", suspects_file=mine)
    assert mine.read_text() == "a,b\n1,2\n"
