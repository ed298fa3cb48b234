"""DICOM files read: every transfer syntax, polarity, windows, and one clear line for what cannot be used."""

import importlib
import warnings

import numpy as np
import pytest
from helpers_dicom import SYNTAXES, TOMOSYNTHESIS, breast, dicom_file
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from mammosae_plugin.adapters.preprocessing import MAMMO_CLIP, BadImageError
from mammosae_plugin.datasets.dicom import read_dicom, read_picture, read_tags
from mammosae_plugin.datasets.preparation import prepare_picture
from mammosae_plugin.errors import InputError

PICTURE = breast()


def network_input(path, **settings):
    picture = read_picture(path, rescale=False, **settings)
    return MAMMO_CLIP(prepare_picture(picture, "mammo-clip", (64, 40)).pixels)


@pytest.fixture(scope="module")
def as_png(tmp_path_factory):
    path = tmp_path_factory.mktemp("png") / "picture.png"
    Image.fromarray(PICTURE).save(path)
    return network_input(path)


@pytest.mark.parametrize("inverted", [False, True], ids=["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_same_picture_gives_the_same_network_input_in_every_form(syntax, inverted, as_png, tmp_path):
    stored = (4095 - PICTURE).astype(np.uint16) if inverted else PICTURE
    path = dicom_file(tmp_path / "picture.dcm", stored, syntax=syntax, bits=12, inverted=inverted)
    pixels, info = read_dicom(path)
    assert (pixels == PICTURE).all() and info.inverted == inverted and info.bits == 12
    assert (network_input(path) == as_png).all()


@pytest.mark.parametrize("syntax", ["explicit", "big endian", "JPEG lossless", "JPEG 2000", "RLE"])
def test_all_sixteen_bits_and_signed_pixels_are_read(syntax, tmp_path):
    whole = np.random.default_rng(1).integers(0, 1 << 16, size=(71, 66)).astype(np.uint16)
    assert (read_dicom(dicom_file(tmp_path / "a.dcm", whole, syntax=syntax))[0] == whole).all()
    if syntax != "JPEG lossless":
        signed = (whole.astype(np.int32) - (1 << 15)).astype(np.int16)
        path = dicom_file(tmp_path / "b.dcm", signed, syntax=syntax, RescaleSlope=2, RescaleIntercept=-5)
        assert (read_dicom(path)[0] == signed * 2.0 - 5).all()
        falling = dicom_file(tmp_path / "c.dcm", signed, syntax=syntax, RescaleSlope=-1, RescaleIntercept=0)
        codes, values = read_picture(falling, rescale=False).rising()
        assert (np.argsort(values[codes], axis=None) == np.argsort(-signed.astype(int), axis=None)).all()


def test_files_of_others_are_read():
    """Those that pydicom tests itself with: of one picture in several transfer syntaxes, and of one that none here
    can encode."""
    for plain, others in {
        "MR_small.dcm": "implicit bigendian expb RLE jp2klossless jpeg_ls_lossless padded",
        "emri_small.dcm": "RLE big_endian jpeg_2k_lossless jpeg_ls_lossless",
    }.items():
        expected, _ = read_dicom(get_testdata_file(plain), multi_frame="middle")
        for other in others.split():
            path = get_testdata_file(plain.replace(".dcm", f"_{other}.dcm"))
            assert (read_dicom(path, multi_frame="middle")[0] == expected).all(), other
    for one, other, near in (("693_UNCR", "693_J2KR", 0), ("RG3_UNCR", "RG3_J2KR", 0), ("RG3_UNCR", "RG3_J2KI", 40)):
        a, b = (read_dicom(get_testdata_file(f"{name}.dcm"))[0] for name in (one, other))
        assert np.abs(a - b).max() <= near * (a.max() - a.min()) / 255
    assert read_dicom(get_testdata_file("RG1_UNCR.dcm"))[1].inverted
    assert read_dicom(get_testdata_file("JPGLosslessP14SV1_1s_1f_8b.dcm"))[0].std() > 1
    assert read_dicom(get_testdata_file("image_dfl.dcm"))[0].shape == (512, 512)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # those of pydicom say nothing that a user can act on
        for name in ("mlut_18", "vlut_04"):
            assert read_dicom(get_testdata_file(f"{name}.dcm"), voi="auto")[0].max() == 65535


# -- contrast ----------------------------------------------------------------------------------------------------------


def test_windows_are_those_of_pydicom(tmp_path):
    from pydicom.pixels import apply_windowing

    for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        path = dicom_file(
            tmp_path / "a.dcm", PICTURE, WindowCenter=[1800, 50], WindowWidth=[900, 10], VOILUTFunction=function
        )
        data = dcmread(path)
        expected = apply_windowing(data.pixel_array, data)
        found, _ = read_dicom(path, voi="window")
        assert np.allclose(found, (expected - expected.min()) / np.ptp(expected) * np.ptp(found) + found.min())
        assert (read_dicom(path)[0] == PICTURE).all()  # none unless it is asked for


def with_lut(path, entries, descriptor, *, as_bytes):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", descriptor)
    item.add_new("LUTData", "OW" if as_bytes else "US", entries.tobytes() if as_bytes else entries.tolist())
    return dicom_file(path, PICTURE, VOILUTSequence=[item])


@pytest.mark.parametrize("as_bytes", [False, True], ids=["numbers", "bytes"])
def test_a_lut_whose_descriptor_and_data_disagree_is_taken_by_its_data(as_bytes, tmp_path):
    from pydicom.pixels import apply_voi_lut

    entries = (np.arange(4096) ** 2 // 4096).astype("<u2")
    right = with_lut(tmp_path / "right.dcm", entries, [4096, 0, 12], as_bytes=as_bytes)
    data = dcmread(right)
    expected, _ = read_dicom(right, voi="lut")
    assert (expected == apply_voi_lut(data.pixel_array, data)).all() and (expected != PICTURE).any()
    for n_said in (5000, 0, 4097):  # 0 is 65,536; with bytes pydicom cannot unpack these
        wrong = with_lut(tmp_path / "wrong.dcm", entries, [n_said, 0, 12], as_bytes=as_bytes)
        assert (read_dicom(wrong, voi="auto")[0] == expected).all()
    short = with_lut(tmp_path / "short.dcm", entries[:1000], [4096, 200, 12], as_bytes=as_bytes)
    assert (read_dicom(short, voi="lut")[0] == entries[np.clip(PICTURE.astype(int) - 200, 0, 999)]).all()


@pytest.mark.parametrize("inverted", [False, True])
def test_padding_is_black_and_counts_for_no_contrast(inverted, tmp_path):
    picture = (PICTURE // 2 + 50).astype(np.uint16)
    padded, plain = picture.copy(), picture.copy()
    padded[:, 70:] = 0 if inverted else 4095  # bright, where it means anything
    plain[:, 70:] = picture[:, :70].max() if inverted else picture[:, :70].min()
    a = dicom_file(tmp_path / "a.dcm", padded, inverted=inverted, bits=12, PixelPaddingValue=int(padded[0, -1]))
    b = dicom_file(tmp_path / "b.dcm", plain, inverted=inverted, bits=12)
    for preparation in ("mammo-clip", "letterbox"):
        x, y = (prepare_picture(read_picture(p), preparation, (60, 45)).pixels for p in (a, b))
        assert (x == y).all()


# -- several pictures, flags, tags -------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", ["explicit", "JPEG lossless", "RLE"])
def test_files_of_several_pictures_are_refused_or_one_is_taken(syntax, tmp_path):
    frames = np.stack([breast(seed=seed) for seed in range(3)])
    path = dicom_file(tmp_path / "a.dcm", frames, syntax=syntax, SOPClassUID=TOMOSYNTHESIS)
    with pytest.raises(BadImageError, match="tomosynthesis of 3 frames"):
        read_dicom(path)
    for choice, expected in {"first": frames[0], "middle": frames[1], "brightest": frames.max(axis=0)}.items():
        pixels, info = read_dicom(path, multi_frame=choice)
        assert (pixels == expected).all() and info.n_frames == 3


def test_implants_and_spot_views_are_told(tmp_path):
    spot = Dataset()
    spot.CodeValue, spot.CodingSchemeDesignator = "R-102D6", "SRT"
    view = Dataset()
    view.ViewModifierCodeSequence = [spot]
    _, plain = read_dicom(dicom_file(tmp_path / "a.dcm", PICTURE))
    _, told = read_dicom(dicom_file(tmp_path / "b.dcm", PICTURE, BreastImplantPresent="YES", ViewCodeSequence=[view]))
    assert (plain.implant, plain.spot_view) == (False, False) and (told.implant, told.spot_view) == (True, True)


def test_tags_are_read_without_pixels(tmp_path):
    view = Dataset()
    view.CodeMeaning = "cranio-caudal"
    path = dicom_file(tmp_path / "a.dcm", PICTURE, ViewPosition="MLO", ViewCodeSequence=[view], ImageType=["A", "B"])
    asked = ["ViewPosition", "ViewCodeSequence.CodeMeaning", "ImageType", "Rows", "PatientAge", "PatientName"]
    assert [*read_tags(path, asked).values()] == ["MLO", "cranio-caudal", "A\\B", "120", "", "Doe^Jane"]
    with pytest.raises(InputError, match="'ViewPositon' is no keyword"):
        read_tags(path, ["ViewPositon"])


# -- what cannot be used -----------------------------------------------------------------------------------------------


def refused(path, **settings):
    with pytest.raises(BadImageError) as error:
        read_dicom(path, **settings)
    said = str(error.value)
    assert "\n" not in said and "SECRET" not in said and "Doe" not in said and str(path.parent) not in said
    return error.value.reason


def test_what_cannot_be_used_is_told_in_a_line(tmp_path):
    file = tmp_path / "a.dcm"
    assert "DICOM without pixels" in refused(dicom_file(file, None))
    assert "FOR PROCESSING" in refused(dicom_file(file, PICTURE, PresentationIntentType="FOR PROCESSING"))
    assert "colours" in refused(dicom_file(file, PICTURE, PhotometricInterpretation="PALETTE COLOR"))
    file.write_bytes(b"")
    assert "empty" in refused(file)
    file.write_bytes(b"no picture at all, " * 40)
    assert "no DICOM" in refused(file)
    file.write_text("<!doctype html><html>")
    assert "HTML page" in refused(file)
    Image.fromarray(PICTURE).save(file, format="PNG")
    assert "PNG image, not a DICOM file" in refused(file)
    assert (read_picture(file).pixels == PICTURE).all()  # where either may lie
    assert "does not exist" in refused(tmp_path / "none.dcm")


def test_a_dicom_file_that_is_named_png_is_read(tmp_path):
    path = dicom_file(tmp_path / "a.png", PICTURE)
    assert (read_picture(path).pixels == PICTURE).all() and read_picture(path).info.is_dicom


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("share", [0.2, 0.6, 0.97])
def test_a_truncated_file_is_refused(syntax, share, tmp_path):
    path = dicom_file(tmp_path / "a.dcm", PICTURE, syntax=syntax, bits=12)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert refused(path)


def test_a_transfer_syntax_without_decoder_names_what_to_install(tmp_path, monkeypatch):
    path = dicom_file(tmp_path / "a.dcm", PICTURE, syntax="JPEG 2000")
    from pydicom.pixels import get_decoder

    decoder = get_decoder(SYNTAXES["JPEG 2000"])
    monkeypatch.setattr(type(decoder), "is_available", property(lambda self: False))
    assert "pylibjpeg-openjpeg" in refused(path) and "mammosae-plugin[dicom]" in refused(path)
    path = dicom_file(tmp_path / "b.dcm", PICTURE)
    content = path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.100"[:20])
    path.write_bytes(content)
    assert refused(path)


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    path = dicom_file(tmp_path / "a.dcm", PICTURE)
    monkeypatch.setitem(importlib.import_module("sys").modules, "pydicom", None)
    with pytest.raises(InputError, match=r"mammosae-plugin\[dicom\]"):
        read_dicom(path)


def test_what_lacks_its_pixels_or_its_lut_says_so(tmp_path):
    file = dicom_file(tmp_path / "a.dcm", breast(), syntax="RLE")
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(BadImageError, match="is truncated"):
        read_dicom(file)
    empty = dicom_file(tmp_path / "b.dcm", breast())
    data = dcmread(empty)
    data.PixelData = b""
    data.save_as(empty)
    with pytest.raises(BadImageError, match="without the pixels that its header tells of"):
        read_dicom(empty)
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [16, 0, 12], b""
    with pytest.raises(BadImageError, match="its LUT has no descriptor or no entries"):
        read_dicom(dicom_file(tmp_path / "c.dcm", breast(), VOILUTSequence=[table]), voi="lut")
