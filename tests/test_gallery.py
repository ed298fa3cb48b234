"""The gallery's page, its pictures and the script that draws them agree; drawing takes a demo and a browser."""

import importlib.util
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parent.parent / "docs"
_spec = importlib.util.spec_from_file_location("make_gallery", DOCS / "make_gallery.py")
make_gallery = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_gallery)


def test_the_page_and_the_pictures_are_those_of_the_script():
    assert (DOCS / "gallery.md").read_text() == make_gallery.gallery()
    files = {file.name for file in (DOCS / "gallery").iterdir()}
    assert files == {f"{picture.name}.webp" for picture in make_gallery.PICTURES}


def test_pictures_are_small_plain_and_as_wide_as_they_are_said_to_be():
    files = sorted((DOCS / "gallery").iterdir())
    assert sum(file.stat().st_size for file in files) < 600_000
    for picture in make_gallery.PICTURES:
        with Image.open(DOCS / "gallery" / f"{picture.name}.webp") as image:
            assert image.format == "WEBP"
            assert image.width <= picture.width
            assert not {"exif", "xmp", "icc_profile"} & set(image.info), picture.name
