"""DICOM files for tests: any picture in the transfer syntaxes that can be encoded here, JPEG lossless by ourselves."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
)

SYNTAXES = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "JPEG lossless": JPEGLosslessSV1,
    "JPEG 2000": JPEG2000Lossless,
    "RLE": RLELossless,
}
MAMMOGRAPHY = "1.2.840.10008.5.1.4.1.1.1.2"
TOMOSYNTHESIS = "1.2.840.10008.5.1.4.1.1.13.1.3"


def dicom_file(
    path: Path,
    pixels: np.ndarray | None,
    *,
    syntax: str = "explicit",
    bits: int | None = None,
    inverted: bool = False,
    **tags: Any,
) -> Path:
    """Write whole numbers (H, W), or (frames, H, W), as they are.

    Args:
        path: Where to.
        pixels: uint8, uint16 or int16; None: a file without pixels.
        syntax: A name in `SYNTAXES`.
        bits: Bits stored; by default all.
        inverted: Whether the file says MONOCHROME1.
        tags: Further elements by keyword.
    """
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = SYNTAXES[syntax]
    data.SOPClassUID, data.SOPInstanceUID = MAMMOGRAPHY, "1.2.3.4"
    data.PatientName, data.PatientID, data.StudyDate = "Doe^Jane", "SECRET-7", "20011122"
    data.Modality, data.PresentationIntentType = "MG", "FOR PRESENTATION"
    if pixels is not None:
        data.Rows, data.Columns = pixels.shape[-2:]
        if pixels.ndim == 3:
            data.NumberOfFrames = len(pixels)
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, f"MONOCHROME{1 if inverted else 2}"
        data.BitsAllocated = 8 * pixels.dtype.itemsize
        data.BitsStored = bits or data.BitsAllocated
        data.HighBit = data.BitsStored - 1
        data.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    for keyword, value in tags.items():
        setattr(data, keyword, value)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    if pixels is not None and syntax in ("JPEG 2000", "RLE"):
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.PixelData = pixels.tobytes()
        data.compress(SYNTAXES[syntax])
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    elif pixels is not None and syntax == "JPEG lossless":
        frames = pixels[None] if pixels.ndim == 2 else pixels
        data.PixelData = encapsulate([jpeg_lossless(frame) for frame in frames])
        data["PixelData"].is_undefined_length = True
    elif pixels is not None:
        big = syntax == "big endian"
        data.PixelData = (pixels.astype(pixels.dtype.newbyteorder(">")) if big else pixels).tobytes()
        data["PixelData"].VR = "OW" if data.BitsAllocated > 8 else "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


def jpeg_lossless(pixels: np.ndarray) -> bytes:
    """JPEG, process 14, selection value 1: each pixel less the one at its left, by a code of five bits per length.

    Args:
        pixels: uint8 or uint16 (H, W).
    """
    precision = 8 * pixels.dtype.itemsize
    values = pixels.astype(np.int64)
    guess = np.empty_like(values)
    guess[:, 1:], guess[1:, 0], guess[0, 0] = values[:, :-1], values[:-1, 0], 1 << (precision - 1)
    steps = (values - guess).ravel()
    steps = (steps + (1 << 15)) % (1 << 16) - (1 << 15)
    size = np.zeros(len(steps), dtype=np.int64)
    left = np.abs(steps)
    while left.any():
        size, left = size + (left > 0), left >> 1
    size = np.where(steps == -(1 << 15), 16, size)
    extra = np.where(size == 16, 0, size)
    rest = np.where(steps < 0, steps - 1, steps) & ((1 << extra) - 1)
    codes, lengths = (size << extra) | rest, extra + 5
    starts = np.cumsum(lengths) - lengths
    bits = np.ones(-(-int(lengths.sum()) // 8) * 8, dtype=np.uint8)  # filled up with ones
    for bit in range(int(lengths.max())):
        some = lengths > bit
        bits[starts[some] + bit] = (codes[some] >> (lengths[some] - 1 - bit)) & 1
    scan = np.packbits(bits).tobytes().replace(b"\xff", b"\xff\x00")

    def part(marker: int, content: bytes) -> bytes:
        return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content

    height, width = (side.to_bytes(2, "big") for side in pixels.shape)
    frame = part(0xC3, bytes([precision]) + height + width + bytes([1, 1, 0x11, 0]))
    table = part(0xC4, bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)]))
    return b"\xff\xd8" + frame + table + part(0xDA, bytes([1, 1, 0, 1, 0, 0])) + scan + b"\xff\xd9"


def breast(height: int = 120, width: int = 90, *, seed: int = 0, top: int = 4000, right: bool = False) -> np.ndarray:
    """uint16 (H, W): a half-ellipse of noise at the left edge (or the right one) on black, 12 bit."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    inside = (x / (0.7 * width)) ** 2 + ((y - 0.48 * height) / (0.38 * height)) ** 2 < 1
    tissue = rng.integers(top // 3, top, size=(height, width))
    pixels = np.where(inside, tissue, rng.integers(0, 40, size=(height, width))).astype(np.uint16)
    return np.ascontiguousarray(pixels[:, ::-1]) if right else pixels
