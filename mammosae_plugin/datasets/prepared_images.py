"""One image prepared: read, transformed, written as PNG without any metadata, and what is kept of it."""

__all__ = [
    "How",
    "ImageJob",
    "MaskJob",
    "prepare_one",
    "Record",
    "sources_of",
    "targets_of",
    "write_png",
    "version_of",
    "written_size",
    "unprepared",
]

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from mammosae_plugin.adapters.preprocessing import BadImageError
from mammosae_plugin.datasets.dicom import MultiFrame, Voi, read_picture
from mammosae_plugin.datasets.mask_files import largest_part, read_mask
from mammosae_plugin.datasets.preparation import Bits, Flip, Orientation, prepare_picture
from mammosae_plugin.files import atomic_path

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2  # the filter that takes off the row above


@dataclass(frozen=True)
class How:
    """How all images of a folder are prepared; see `prepare_picture` and `read_picture`."""

    preparation: str
    image_size: tuple[int, int]
    bits: Bits
    voi: Voi
    multi_frame: MultiFrame
    flip: Flip
    orientation: Orientation


@dataclass(frozen=True)
class MaskJob:
    """A mask over an original, and where the prepared one goes."""

    source: str
    target: str


@dataclass(frozen=True)
class ImageJob:
    """An original, and where the prepared image and its masks go."""

    image_id: str
    source: str
    target: str
    laterality: str | None = None
    masks: tuple[MaskJob, ...] = ()


class Record(TypedDict):
    """What is kept of one image.

    `reason` says why it could not be prepared; then there is no transform. `sources` tells the versions of its original
    files, `bytes` the sizes of the prepared ones; those of masks follow those of the image. `marked` has of each
    prepared mask the pixels of its largest connected part, 0 where nothing is left.
    """

    image_id: str
    reason: str | None
    transform: dict[str, Any] | None
    sources: list[list[int]]
    bytes: list[int]
    marked: list[int]
    is_dicom: bool
    implant: bool
    spot_view: bool
    lies: bool


def unprepared(job: ImageJob, reason: str | None = None) -> Record:
    """The record of an image of which nothing is known but its files and, where there is one, why it has none."""
    return Record(
        image_id=job.image_id,
        reason=reason,
        transform=None,
        sources=[version_of(source) for source in sources_of(job)],
        bytes=[],
        marked=[],
        is_dicom=False,
        implant=False,
        spot_view=False,
        lies=False,
    )


def prepare_one(job: ImageJob, how: How) -> Record:
    """Prepare an image and its masks, and write them; what cannot be used is a reason in the record.

    Raises:
        OSError: A file cannot be written.
    """
    record = unprepared(job)
    at = "image"
    try:
        picture = read_picture(job.source, voi=how.voi, multi_frame=how.multi_frame, rescale=False)
        prepared = prepare_picture(
            picture,
            how.preparation,
            how.image_size,
            bits=how.bits,
            flip=how.flip,
            orientation=how.orientation,
            laterality=job.laterality,
        )
        masks = []
        for mask in job.masks:
            at = "mask"
            marked = prepared.transform.mask(read_mask(Path(mask.source)))
            masks.append(np.where(marked, np.uint8(255), np.uint8(0)))
    except BadImageError as error:
        return {**record, "reason": error.reason if at == "image" else f"its mask {error.reason}"}
    targets = targets_of(job)
    for target, pixels in zip(targets, [prepared.pixels, *masks], strict=True):
        write_png(target, pixels)
    info = picture.info
    return {
        **record,
        "transform": prepared.transform.to_json(),
        "bytes": [written_size(target) for target in targets],
        "marked": [largest_part(mask) for mask in masks],
        "is_dicom": info.is_dicom,
        "implant": info.implant,
        "spot_view": info.spot_view,
        "lies": info.is_dicom == (Path(job.source).suffix.lower() == ".png"),
    }


def sources_of(job: ImageJob) -> list[str]:
    """The files of an original: its image, then its masks."""
    return [job.source, *(mask.source for mask in job.masks)]


def targets_of(job: ImageJob) -> list[str]:
    """Where they go, in the same order."""
    return [job.target, *(mask.target for mask in job.masks)]


def version_of(path: str | os.PathLike[str]) -> list[int]:
    """A file's size and the time of its last change (ns), which tell that it is another one; empty of none."""
    try:
        found = os.stat(path)
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def written_size(path: str | os.PathLike[str]) -> int:
    """How many bytes a file has; -1 where there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def write_png(path: str | os.PathLike[str], pixels: npt.NDArray[Any]) -> None:
    """Write a gray image of 8 or 16 bit, whole or not at all; the file holds nothing but its pixels.

    Each row less the one above, and runs of equal bytes: a third of the time of a general encoder, and smaller files.

    Args:
        path: Where to.
        pixels: uint8 or uint16 (H, W).
    """
    height, width = pixels.shape
    rows = pixels.astype(">u2").view(np.uint8) if pixels.dtype == np.uint16 else pixels
    filtered = np.empty((height, 1 + rows.shape[1]), dtype=np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    packer = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    packed = packer.compress(filtered.data) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.dtype.itemsize, 0, 0, 0, 0)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(_SIGNATURE)
        for name, content in ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b"")):
            file.write(struct.pack(">I", len(content)) + name + content)
            file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(name))))
