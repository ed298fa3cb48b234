"""Originals, DICOM or PNG of any size, read without being prepared: as prepared ones, letterboxed, are."""

import shutil

import numpy as np
import pytest
import yaml
from PIL import Image
from test_prepare import MAPPING, SIZE, write_collection

from mammosae_plugin.adapters.preprocessing import BadImageError
from mammosae_plugin.datasets import DatasetError, load_images, open_dataset, screen_images
from mammosae_plugin.datasets.prepared_folder import prepare_dicom
from mammosae_plugin.datasets.registry import of_its_kind
from mammosae_plugin.errors import InputError


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return write_collection(tmp_path_factory.mktemp("dicom") / "in")


def same(one, other):
    assert len(one) == len(other)
    for at in range(len(one)):
        a, b = one[at], other[at]
        assert {name: a[name] for name in ("image_id", "patient_id", "split", "labels")} == {
            name: b[name] for name in ("image_id", "patient_id", "split", "labels")
        }
        assert (a["image"] == b["image"]).all()
        for name, boxes in a["boxes"].items():
            np.testing.assert_allclose(boxes, b["boxes"][name], atol=1e-4)
        for name, mask in one.masks(at).items():
            assert (mask == other.masks(at)[name]).all()
        for name, value in a["covariates"].items():
            np.testing.assert_equal(value, b["covariates"][name])


def test_dicom_read_as_it_is_gives_what_it_gives_letterboxed(collection, tmp_path):
    direct = load_images(MAPPING, collection, image_size=SIZE)
    prepared = load_images(
        prepare_dicom(MAPPING, collection, tmp_path / "out", preparation="letterbox", image_size=SIZE)
    )
    same(direct, prepared)
    assert any(len(item["boxes"]["Mass"]) for item in direct) and direct.masks(5)
    assert direct.fingerprint != prepared.fingerprint
    assert direct.select(split="test")[0]["image_id"] == "001" and direct.gray(0).shape == SIZE
    assert screen_images(direct, tmp_path / "bad.csv", max_suspect_share=1) is direct


def test_png_of_any_size_is_letterboxed_where_the_mapping_says_so_else_refused(tmp_path):
    rows = ["image,patient_id,split,Mass,x,y,w,h"]
    for at, (height, width) in enumerate([(40, 30), (20, 30), (80, 60)]):
        pixels = np.add.outer(np.arange(height), np.arange(width)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{at}.png")
        rows.append(f"{at},p{at},training,1,{width // 3},{height // 4},{width // 3},{height // 2}")
    (tmp_path / "images.csv").write_text("\n".join(rows))
    mapping = {
        "table": "images.csv",
        "image": "{image_id}.png",
        "image_id": "image",
        "labels": ["Mass"],
        "boxes": {"columns": list("xywh"), "form": "xywh"},
        "image_size": [40, 30],
    }
    data = load_images({**mapping, "preparation": "letterbox"}, tmp_path)
    assert [item["boxes"]["Mass"].tolist() for item in data] == [
        [[10, 10, 20, 30]], [[10, 15, 20, 25]], [[10, 10, 20, 30]],
    ]  # fmt: skip
    assert len(load_images({**mapping, "preparation": "letterbox"}, tmp_path, image_size=(50, 50))) == 3
    assert (data.gray(1)[:10] == 0).all() and (data.gray(1)[10:30, 1:] > 0).all()
    with pytest.raises(BadImageError, match="20 x 30"):
        load_images({**mapping, "boxes": None}, tmp_path)[1]
    with pytest.raises(DatasetError, match=r"have several sizes, such as 20 x 30.*mammosae prepare"):
        load_images({**mapping, "boxes": None}, tmp_path, image_size=(50, 30))
    (tmp_path / "mapping.yaml").write_text(yaml.safe_dump({**mapping, "preparation": "letterbox"}))
    assert open_dataset(of_its_kind({"root": str(tmp_path)})).fingerprint == data.fingerprint


def test_originals_that_cannot_be_used_are_told(collection, tmp_path):
    write_collection(tmp_path)
    (tmp_path / "dcm" / "000.dcm").write_bytes(b"no image")
    (tmp_path / "masks" / "005_1.png").write_bytes(b"no mask")
    with pytest.raises(
        DatasetError, match=r"2 files of images or masks cannot be used \(such as 000\.dcm: .*005_1\.png"
    ):
        load_images(MAPPING, tmp_path, image_size=SIZE)
    table = (tmp_path / "images.csv").read_text().replace(",16,41,", ",160,41,")
    (collection.parent / "images.csv").write_text(table)
    with pytest.raises(DatasetError, match=r"beyond the \(such as 120 x 90\) image"):
        load_images({**MAPPING, "table": "../images.csv"}, collection, image_size=SIZE)


def test_sizes_that_the_table_exchanges_and_shares_that_it_hides_are_told(tmp_path):
    pixels = np.add.outer(np.arange(40), np.arange(20)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    (tmp_path / "images.csv").write_text(
        "image_id,patient_id,split,Mass,h,w,a,b,c,d\n1,p,training,1,40,20,.1,.2,.5,.6\n"
    )
    mapping = {"table": "images.csv", "image": "{image_id}.png", "labels": ["Mass"], "preparation": "letterbox"}
    boxes = {"columns": list("abcd"), "pixels": "shares"}
    load_images({**mapping, "boxes": {**boxes, "size": ["h", "w"]}}, tmp_path, image_size=(20, 20))
    with pytest.raises(DatasetError, match=r"boxes.size: line 2 says 20 x 40 \(height x width\), 1.png has 40 x 20"):
        load_images({**mapping, "boxes": {**boxes, "size": ["w", "h"]}}, tmp_path, image_size=(20, 20))
    hidden = {**mapping, "boxes": {"columns": list("abcd")}}
    with pytest.raises(DatasetError, match="shares of the image .* set boxes.pixels to shares"):
        load_images(hidden, tmp_path, image_size=(20, 20))
    with pytest.raises(DatasetError, match="1 of 1 boxes are shares of the image"):
        prepare_dicom(hidden, tmp_path, tmp_path / "out", image_size=(20, 20))


def test_boxes_in_pixels_of_the_letterboxed_image_are_so_when_prepared_too(tmp_path):
    Image.fromarray(np.add.outer(np.arange(40), np.arange(20)).astype(np.uint8)).save(tmp_path / "1.png")
    (tmp_path / "images.csv").write_text("image_id,patient_id,split,Mass,a,b,c,d\n1,p,training,1,7,2,12,15\n")
    mapping = {
        "table": "images.csv", "image": "{image_id}.png", "labels": ["Mass"], "preparation": "letterbox",
        "boxes": {"columns": list("abcd"), "pixels": "prepared"}, "image_size": [20, 20],
    }  # fmt: skip
    assert load_images(mapping, tmp_path)[0]["boxes"]["Mass"].tolist() == [[7, 2, 12, 15]]
    out = prepare_dicom(mapping, tmp_path, tmp_path / "out", preparation="letterbox", image_size=(40, 20))
    assert load_images(out)[0]["boxes"]["Mass"].tolist() == [[4, 4, 14, 30]]


def test_a_category_named_none_stays_and_a_folder_without_its_work_is_not_prepared_otherwise(tmp_path):
    Image.fromarray(np.add.outer(np.arange(40), np.arange(20)).astype(np.uint8)).save(tmp_path / "1.png")
    (tmp_path / "images.csv").write_text("image_id,patient_id,split,Mass,implant\n1,p,training,1,NA\n")
    implant = {"values": {"NA": "none"}}
    mapping = {"table": "images.csv", "image": "{image_id}.png", "labels": ["Mass"], "covariates": {"implant": implant}}
    out = prepare_dicom(mapping, tmp_path, tmp_path / "out", image_size=(40, 20))
    assert load_images(out)[0]["covariates"]["implant"] == "none"
    shutil.rmtree(out / "work")
    with pytest.raises(InputError, match="prepared otherwise .bits is 8 there and 16 here"):
        prepare_dicom(mapping, tmp_path, out, image_size=(40, 20), bits=16)
    prepare_dicom(mapping, tmp_path, out, image_size=(40, 20))
