import gzip
import io
import json
import struct
import zipfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_datasets import SIZE, good_rows, write_dataset
from PIL import Image

from mammosae_plugin.adapters.preprocessing import MAMMO_CLIP, Preprocessing
from mammosae_plugin.datasets import (
    PREPROCESSING,
    BadImageError,
    VinDrMammo,
    preprocess,
)
from mammosae_plugin.datasets.preprocessing import read_png
from mammosae_plugin.errors import InputError
from mammosae_plugin.training import Augmentation

RNG = np.random.default_rng(0)


def formula(array: np.ndarray) -> np.ndarray:
    """The preprocessing in float64, step by step, channels last."""
    values = array.astype(np.float64)
    if values.ndim == 2:
        values = np.stack([values] * 3, axis=-1)
    values = values - values.min()
    values = values / values.max()
    return (values - 0.3089279) / 0.25053555408335154


@pytest.mark.parametrize("shape", [(31, 17), (31, 17, 3)])
def test_preprocessing_follows_the_formula(shape):
    array = RNG.integers(30, 200, shape, dtype=np.uint8)
    image = preprocess(array)
    assert image.dtype == torch.float32
    assert image.shape == (3, 31, 17)
    assert image.is_contiguous()
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), formula(array), atol=2e-6)


def test_the_minimum_and_maximum_are_those_of_all_channels_together():
    array = np.zeros((2, 2, 3), dtype=np.uint8)
    array[..., 1] = 100
    array[0, 0, 2] = 200
    np.testing.assert_allclose(preprocess(array).permute(1, 2, 0).numpy(), formula(array), atol=2e-6)


def test_preprocessing_leaves_its_input_alone():
    array = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
    before = array.copy()
    preprocess(array)
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_constant_image_is_a_bad_image(value):
    with pytest.raises(BadImageError, match=f"x.png: is constant .every value is {value}"):
        preprocess(np.full((4, 4), value, dtype=np.uint8), "x.png")


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros(4, np.uint8)])
def test_an_array_of_another_type_or_shape_is_a_programming_error(array):
    with pytest.raises(TypeError, match="expected a uint8 array"):
        preprocess(array)


def test_the_description_gives_the_constants_in_plain_json():
    assert (PREPROCESSING["mean"], PREPROCESSING["std"]) == (0.3089279, 0.25053555408335154)


def test_gray_and_rgb_files_are_read_as_stored(tmp_path):
    gray = RNG.integers(0, 256, (9, 5), dtype=np.uint8)
    rgb = RNG.integers(0, 256, (9, 5, 3), dtype=np.uint8)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(read_png(tmp_path / "gray.png", (9, 5)), gray)
    np.testing.assert_array_equal(read_png(tmp_path / "rgb.png"), rgb)


def test_a_gray_file_gives_what_reading_it_as_rgb_gives(tmp_path):
    Image.fromarray(RNG.integers(0, 256, (9, 5), dtype=np.uint8)).save(tmp_path / "gray.png")
    as_rgb = np.asarray(Image.open(tmp_path / "gray.png").convert("RGB"))
    assert torch.equal(preprocess(read_png(tmp_path / "gray.png")), preprocess(as_rgb))


def bad_reason(path, size=(64, 48)) -> str:
    with pytest.raises(BadImageError) as caught:
        read_png(path, size)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"image {path.name}: ")
    assert str(path.parent) not in str(caught.value)
    return caught.value.reason


def test_a_wrongly_sized_file_is_refused_with_both_sizes(tmp_path):
    Image.fromarray(np.zeros((48, 64), dtype=np.uint8)).save(tmp_path / "x.png")
    assert bad_reason(tmp_path / "x.png") == "is 48 x 64 pixels, expected 64 x 48 (height x width)"


def test_an_empty_a_missing_and_a_foreign_file_are_refused(tmp_path):
    (tmp_path / "empty.png").touch()
    assert bad_reason(tmp_path / "empty.png") == "the file is empty (0 bytes)"
    assert bad_reason(tmp_path / "none.png") == "the file does not exist"
    (tmp_path / "text.png").write_text("not an image")
    assert "cannot be read" in bad_reason(tmp_path / "text.png")
    (tmp_path / "folder.png").mkdir()
    assert "cannot be read" in bad_reason(tmp_path / "folder.png")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97, 0.999])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, share):
    path = tmp_path / "x.png"
    Image.fromarray(RNG.integers(0, 256, (64, 48), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "cannot be read" in bad_reason(path)


def test_damaged_pixel_data_are_refused(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(RNG.integers(0, 256, (64, 48), dtype=np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    start = content.index(b"IDAT") + 4
    length = struct.unpack(">I", content[start - 8 : start - 4])[0]
    content[start + length // 2] ^= 0xFF
    checksum = zlib.crc32(content[start - 4 : start + length])
    path.write_bytes(content[: start + length] + struct.pack(">I", checksum) + content[start + length + 4 :])
    assert "cannot be read" in bad_reason(path)


def test_sixteen_bit_and_transparent_files_are_refused(tmp_path):
    Image.fromarray(RNG.integers(0, 65536, (64, 48), dtype=np.uint16)).save(tmp_path / "deep.png")
    assert "pixel mode I;16" in bad_reason(tmp_path / "deep.png")
    Image.fromarray(RNG.integers(0, 256, (64, 48, 4), dtype=np.uint8)).save(tmp_path / "alpha.png")
    assert "pixel mode RGBA" in bad_reason(tmp_path / "alpha.png")


def test_a_bad_image_error_can_be_rebuilt_from_its_text_as_dataloader_workers_do():
    error = BadImageError("image x.png: is constant", "is constant")
    assert type(error)(str(error)).reason == "image x.png: is constant"


def saved(format: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 48), dtype=np.uint8)).save(content, format=format)
    return content.getvalue()


def zipped(name: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, "content")
    return content.getvalue()


OTHER_FORMATS = {
    "a DICOM file": bytes(128) + b"DICM" + bytes(400),
    "a DICOM file (without preamble)": b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100" + bytes(400),
    "a NIfTI volume": b"\x5c\x01\x00\x00" + bytes(340) + b"n+1\x00" + bytes(80),
    "a gzip archive": gzip.compress(b"volume"),
    "a JPEG image": saved("JPEG"),
    "a TIFF image": saved("TIFF"),
    "a BMP image": saved("BMP"),
    "a GIF image": saved("GIF"),
    "a WebP image": saved("WEBP"),
    "a PGM image": saved("PPM"),
    "a JPEG 2000 image": b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(50),
    "an HTML page": b"\n<!DOCTYPE html><html><head><title>403</title></head></html>",
    "an XML file": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "a JSON file": b'{"message": "not found"}',
    "a zip archive": zipped("a.png"),
    "an Excel workbook": zipped("xl/workbook.xml"),
    "a PDF document": b"%PDF-1.7\n",
    "a NumPy array": b"\x93NUMPY\x01\x00",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
}


@pytest.mark.parametrize("kind", list(OTHER_FORMATS))
def test_another_format_named_png_is_refused_with_its_name(tmp_path, kind):
    (tmp_path / "x.png").write_bytes(OTHER_FORMATS[kind])
    reason = bad_reason(tmp_path / "x.png")
    assert reason.startswith(f"is {kind}")
    is_none = kind in ("a gzip archive", "an HTML page", "a JSON file", "a zip archive", "a PDF document")
    is_none |= kind == "a pointer of Git LFS"
    assert f"not a PNG: {'put the image itself in its place' if is_none else 'convert it to 8-bit PNG'}" in reason


def test_an_image_that_is_no_png_and_does_not_say_so_is_read(tmp_path):
    (tmp_path / "x.bmp").write_bytes(saved("BMP"))
    assert read_png(tmp_path / "x.bmp", (64, 48)).shape == (64, 48)
    (tmp_path / "x.jpg").write_bytes(OTHER_FORMATS["an HTML page"])
    assert "is an HTML page" in bad_reason(tmp_path / "x.jpg")


RGB = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), scale="full_range")
OTHERS = [replace(MAMMO_CLIP, mean=0.4), replace(MAMMO_CLIP, std=0.4), replace(MAMMO_CLIP, scale="full_range"), RGB]


@pytest.mark.parametrize("other", OTHERS, ids=["mean", "std", "scale", "timm's"])
def test_the_fingerprints_of_preprocessing_and_data_follow_every_setting(tmp_path, other):
    data = VinDrMammo(write_dataset(tmp_path, good_rows()), image_size=SIZE)
    same, changed = data.with_preprocessing(replace(MAMMO_CLIP)), data.with_preprocessing(other)
    assert (same.preprocessing.fingerprint, same.fingerprint) == (MAMMO_CLIP.fingerprint, data.fingerprint)
    assert other.fingerprint != MAMMO_CLIP.fingerprint
    assert changed.fingerprint != data.fingerprint
    assert changed.select(split="training").preprocessing == other
    assert Preprocessing.described(json.loads(json.dumps(other.describe()))) == other


def test_the_fingerprint_is_that_of_files_made_so_far():
    assert MAMMO_CLIP.fingerprint == "23bb3a02075b4b02170b2a47203bc6b0323531fa38d4245eb983e3b195ba93fc"
    with pytest.raises(InputError, match="none that this release knows"):
        Preprocessing.described(MAMMO_CLIP.describe() | {"resize": 5})


@pytest.mark.parametrize("shape", [(31, 17), (31, 17, 3)])
def test_a_network_of_timms_gets_shares_of_the_full_range_per_channel(shape):
    array = RNG.integers(30, 200, shape, dtype=np.uint8)
    image = RGB(array)
    values = (np.stack([array] * 3, axis=-1) if array.ndim == 2 else array) / 255
    expected = (values - np.array(RGB.mean)) / np.array(RGB.std)
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), expected, atol=2e-6)
    assert image.is_contiguous()


@pytest.mark.parametrize("kind", ["affine", "mammo_clip"])
def test_what_enters_an_augmented_image_is_the_background_of_every_channel(kind):
    array = np.zeros((64, 48), dtype=np.uint8)
    array[20:44, 16:30] = RNG.integers(60, 200, (24, 14), dtype=np.uint8)
    background = RGB(array)[:, :1, :1]
    augment = Augmentation(kind, elastic_affine=0).for_preprocessing(RGB)
    for seed in range(4):
        image = augment(RGB(array), np.random.default_rng(seed))
        assert torch.allclose(image.amin((1, 2), keepdim=True), background, atol=1e-6)
        assert torch.allclose(image[:, 0, :2], background[:, 0].expand(3, 2), atol=1e-6)
        assert image.amax() <= RGB(array).amax() + 1e-6  # and its range is not stretched, as Mammo-CLIP's is
