"""What is wrong with pictures in a staged folder: whether they may be there is the context's word, and the study's."""

__all__ = ["digest_of_picture", "flaw_of_picture", "is_permitted", "PICTURE", "problems_of_pictures"]

import hashlib
import re
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mammosae_plugin.files import sha256_of_file
from mammosae_plugin.privacy.reading import Opened
from mammosae_plugin.privacy.search import Buffer
from mammosae_plugin.schema.pages import PICTURE_FILE

PICTURE = re.compile(PICTURE_FILE)
_SUFFIX = ".webp"
_HEADER = 20  # bytes before the coded pixels: RIFF, a size, WEBP, the name of the chunk, its size


def digest_of_picture(data: Buffer) -> str:
    """What a picture is called: of its own bytes, so that its name says nothing of whose it is."""
    return hashlib.sha256(data).hexdigest()[:32]


def flaw_of_picture(data: Buffer) -> str | None:
    """What a WebP file has beside coded pixels; None where it has nothing.

    The simple form of the format is one chunk of pixels: metadata, colour profiles and frames need the extended one.
    """
    if len(data) < _HEADER or bytes(data[:4]) != b"RIFF" or bytes(data[8:12]) != b"WEBP":
        return "is no WebP file"
    if bytes(data[12:16]) not in (b"VP8 ", b"VP8L"):
        return "has metadata or other parts beside its pixels"
    (whole,), (size,) = struct.unpack("<I", data[4:8]), struct.unpack("<I", data[16:20])
    if whole + 8 != len(data) or _HEADER + size + size % 2 != len(data):
        return "has bytes behind its pixels"
    return None


def is_permitted(study: Any) -> bool:
    """Whether a JSON value about a study's data says that pictures may be shown."""
    told = study.get("pictures") if isinstance(study, Mapping) else None
    return isinstance(told, Mapping) and told.get("shown") is True


def problems_of_pictures(
    files: Sequence[Opened], why_not: str | None, drawn: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Paths and what is wrong there.

    Args:
        files: all that is staged.
        why_not: why pictures may not leave, None where they may.
        drawn: SHA-256 of what this process drew or copied from findings.
    """
    pictures = {file.path: file for file in files if file.suffix == _SUFFIX}
    listing = {
        passage.text: file.path
        for file in files
        for passage in file.passages
        if passage.whole and passage.where != "its name" and PICTURE.fullmatch(passage.text)
    }
    permitted = any(is_permitted(one) for file in files for one in _data_of_studies(file))
    for path, file in pictures.items():
        if why_not is not None:
            yield path, f"it shows a single image, and {why_not}; leave the pictures out"
        elif not permitted:
            yield path, "it shows a single image, and the study does not say that this is permitted; stage it again"
        elif path not in listing:
            yield path, "no row lists this picture; take it out"
        elif flaw := flaw_of_picture(file.data):
            yield path, f"the picture {flaw}; stage it again"
        elif path != f"pictures/{digest_of_picture(file.data)}.webp" or sha256_of_file(file.file) not in drawn:
            yield path, "the picture was not drawn by this package; leave it out"
    for lost in sorted(listing.keys() - pictures.keys()):
        yield listing[lost], "it lists a picture that is not there; stage it again"


def _data_of_studies(file: Opened) -> Iterator[Any]:
    """What a file says of the data of studies: findings in a column, a Space in its index."""
    for place, value in file.values:
        if file.config == "study" and place == "column data":
            yield value
        elif file.path == "data/index.js" and isinstance(value, Mapping):
            yield from (one.get("data") for one in value.get("studies") or [] if isinstance(one, Mapping))
