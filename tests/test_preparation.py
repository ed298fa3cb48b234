"""From originals to prepared images and back: Mammo-CLIP's recipe beside a slow one, boxes, masks, mirrors."""

import json

import numpy as np
import pytest
from helpers_dicom import breast, dicom_file
from PIL import Image

from mammosae_plugin.adapters.preprocessing import BadImageError
from mammosae_plugin.datasets.dicom import read_picture
from mammosae_plugin.datasets.preparation import (
    PREPARATIONS,
    Transform,
    area_resized,
    prepare_picture,
)
from mammosae_plugin.datasets.prepared_images import write_png
from mammosae_plugin.errors import InputError


def slow_area(pixels, size):
    """The mean over the area of every new pixel, one by one."""
    found = np.zeros(size)
    for row in range(size[0]):
        for column in range(size[1]):
            top, bottom = row * pixels.shape[0] / size[0], (row + 1) * pixels.shape[0] / size[0]
            left, right = column * pixels.shape[1] / size[1], (column + 1) * pixels.shape[1] / size[1]
            for y in range(int(top), int(np.ceil(bottom))):
                for x in range(int(left), int(np.ceil(right))):
                    if y < pixels.shape[0] and x < pixels.shape[1]:
                        share = (min(bottom, y + 1) - max(top, y)) * (min(right, x + 1) - max(left, x))
                        found[row, column] += max(share, 0) * float(pixels[y, x])
    return found / (pixels.shape[0] / size[0] * pixels.shape[1] / size[1])


def slow_recipe(stored, size, *, inverted):
    """REFERENCE's description of Mammo-CLIP's code, line by line; the image and the crop."""
    data = stored.astype(np.int64)[5:-5, 5:-5]
    if inverted:
        data = data.max() - data
    data = data - data.min()
    data = (data / data.max() * 255).astype(np.uint8)
    black = np.where(data <= 40, 0, data)

    def longest(lines):
        best, start = (0, 0), None
        for at, line in enumerate([*lines, [0, 0]]):
            varies = len(set(np.asarray(line).tolist())) > 1
            if varies and start is None:
                start = at
            elif not varies and start is not None:
                best, start = max(best, (start, at), key=lambda run: run[1] - run[0]), None
        return best

    height = black.shape[0]
    left, right = longest(black[height // 2 - int(height * 0.4) : height // 2 + int(height * 0.4)].T)
    black = black[:, left:right]
    width = black.shape[1]
    top, bottom = longest(black[:, width // 2 - int(width * 0.4) : width // 2 + int(width * 0.4)])
    crop = (5 + left, 5 + top, 5 + right, 5 + bottom)
    return slow_area(data[top:bottom, left:right], size), crop


@pytest.mark.parametrize("seed", range(4))
def test_the_recipe_is_that_of_mammo_clip(seed, tmp_path):
    rng = np.random.default_rng(seed)
    stored = breast(int(rng.integers(80, 140)), int(rng.integers(60, 100)), seed=seed, right=seed % 2 == 1)
    stored[8:14, -20:-12] = 3000  # a letter beside the breast
    inverted = seed > 1
    if inverted:
        stored = (4095 - stored).astype(np.uint16)
    size = (int(rng.integers(20, 60)), int(rng.integers(15, 40)))
    picture = read_picture(dicom_file(tmp_path / "a.dcm", stored, bits=12, inverted=inverted), rescale=False)
    prepared = prepare_picture(picture, "mammo-clip", size)
    expected, crop = slow_recipe(stored, size, inverted=inverted)
    assert prepared.transform.crop == crop
    assert np.abs(prepared.pixels - expected).max() <= 0.5 + 1e-3  # rounded, and computed in float32


def test_resizing_is_the_mean_over_areas():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, size=(60, 45)).astype(np.uint8)
    for size in ((60, 45), (23, 17), (30, 15), (7, 44), (90, 61), (1, 1)):
        assert np.abs(area_resized(pixels, size) - slow_area(pixels, size)).max() <= 0.5 + 1e-3, size
    whole = np.asarray(Image.fromarray(pixels).resize((15, 20), Image.Resampling.BOX))  # where it takes whole pixels
    assert np.abs(area_resized(pixels, (20, 15)).astype(int) - whole).max() <= 1
    deep = rng.integers(0, 1 << 16, size=(64, 48)).astype(np.uint16)
    assert np.abs(area_resized(deep, (25, 19)) - slow_area(deep, (25, 19))).max() <= 0.51


@pytest.mark.parametrize("seed", range(60))
def test_boxes_survive_the_way_there_and_back(seed, tmp_path):
    """For all preparations, sides, mirrors and turns, at any size: to half a pixel, and here much nearer."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(40, 300, size=2))
    pixels = breast(height, width, seed=seed, right=bool(rng.integers(2)))
    across = str(rng.choice(["A", "P"]))
    down = str(rng.choice(["F", "H", "FL", "HR"]))
    directions = [across, down] if rng.integers(2) else [down, across]
    path = dicom_file(tmp_path / "a.dcm", pixels, bits=12, PatientOrientation=directions)
    size = (int(rng.integers(30, 400)), int(rng.integers(30, 400)))
    transform = prepare_picture(
        read_picture(path, rescale=False),
        PREPARATIONS[seed % 2],
        size,
        flip=str(rng.choice(["none", "laterality", "content"])),
        orientation=str(rng.choice(["stored", "upright"])),
        laterality=str(rng.choice(["L", "R"])),
    ).transform
    low = rng.uniform(0, 0.8, size=(20, 2)) * (width, height)
    boxes = np.concatenate([low, low + rng.uniform(1, 30, size=(20, 2))], axis=1)
    there = transform.boxes(boxes)
    assert (there[:, 2:] > there[:, :2]).all()
    assert np.abs(transform.boxes_back(there) - boxes).max() < 1e-6
    again = Transform.from_json(json.loads(json.dumps(transform.to_json())))
    assert again == transform
    as_stored = transform.boxes_back(np.round(there, 3))  # as a table keeps them
    assert np.abs(as_stored - boxes).max() < 0.5


@pytest.mark.parametrize("seed", range(24))
def test_boxes_and_masks_lie_where_the_pixels_went(seed, tmp_path):
    """A bright block of the original is found in the prepared image within its box, and drawn back over itself."""
    rng = np.random.default_rng(seed)
    pixels = breast(150, 110, seed=seed, top=2000, right=bool(seed & 1))
    left, top = (60 if seed & 1 else 20) + int(rng.integers(10)), 50 + int(rng.integers(20))
    mask = np.zeros(pixels.shape, dtype=bool)
    mask[top : top + 24, left : left + 18] = True
    pixels[mask] = 4095
    directions = [["P", "F"], ["A", "H"], ["H", "P"], ["F", "A"]][seed % 4]
    picture = read_picture(dicom_file(tmp_path / "a.dcm", pixels, bits=12, PatientOrientation=directions))
    prepared = prepare_picture(
        picture,
        PREPARATIONS[seed // 2 % 2],
        (110, 90),
        flip=["none", "laterality", "content"][seed % 3],
        orientation=["stored", "upright"][seed // 4 % 2],
        laterality="R",
    )
    rows, columns = np.nonzero(prepared.pixels > 250)
    box = prepared.transform.boxes([left, top, left + 18, top + 24])[0]
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(found - box).max() <= 1
    assert (prepared.transform.mask(mask) ^ (prepared.pixels > 200)).sum() <= 0.02 * mask.sum() + 60
    back = prepared.transform.heatmap_back(prepared.transform.mask(mask).astype(float))
    assert back.shape == pixels.shape and ((back > 0) & mask).sum() / ((back > 0) | mask).sum() > 0.85
    half = prepared.transform.mask(mask[::2, ::2])  # a mask of another size than its image
    assert (half & prepared.transform.mask(mask)).sum() > 0.75 * (half | prepared.transform.mask(mask)).sum()


def test_mirrors_put_the_chest_wall_at_the_left():
    from mammosae_plugin.datasets.dicom import DicomInfo, Picture

    values = np.arange(65536, dtype=float)
    left, right = (Picture(breast(right=one), values, None, DicomInfo()) for one in (False, True))
    for preparation in PREPARATIONS:
        a = prepare_picture(left, preparation, (60, 45), flip="content")
        b = prepare_picture(right, preparation, (60, 45), flip="laterality", laterality="R")
        c = prepare_picture(right, preparation, (60, 45), flip="content")
        plain = prepare_picture(right, preparation, (60, 45))
        assert [one.transform.mirrored for one in (a, b, c, plain)] == [False, True, True, False]
        assert (a.pixels == c.pixels).all() and (b.pixels == c.pixels).all()
        assert (plain.pixels[:, ::-1] == c.pixels).all()
    with pytest.raises(BadImageError, match="laterality is not known"):
        prepare_picture(left, flip="laterality")


def test_a_letterboxed_image_is_whole_and_keeps_its_aspect(tmp_path):
    Image.fromarray(breast(100, 50)).save(tmp_path / "a.png")
    prepared = prepare_picture(read_picture(tmp_path / "a.png"), "letterbox", (50, 60), bits=16)
    assert prepared.transform.inner == (50, 25) and prepared.transform.offset == (17, 0)
    assert prepared.pixels.dtype == np.uint16 and prepared.pixels[:, 17:42].any()
    assert not prepared.pixels[:, :17].any() and not prepared.pixels[:, 42:].any()
    same = prepare_picture(read_picture(tmp_path / "a.png"), "letterbox", (100, 50)).transform
    assert (same.matrix == [[1, 0, 0], [0, 1, 0]]).all()


def test_pictures_without_content_are_refused(tmp_path):
    for pixels, why in ((np.full((40, 30), 7, np.uint16), "constant"), (np.zeros((10, 30), np.uint16), "too small")):
        Image.fromarray(pixels).save(tmp_path / "a.png")
        with pytest.raises(BadImageError, match=why):
            prepare_picture(read_picture(tmp_path / "a.png"))
    with pytest.raises(InputError, match="no preparation 'mammoclip'"):
        prepare_picture(read_picture(tmp_path / "a.png"), "mammoclip")
    with pytest.raises(InputError, match="no transform"):
        Transform.from_json({"crop": [1, 2]})


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_written_is_a_png_of_the_same_pixels_and_nothing_else(dtype, tmp_path):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, size=(37, 23)).astype(dtype)
    write_png(tmp_path / "a.png", pixels)
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert image.format == "PNG" and (np.asarray(image) == pixels).all() and not image.info
