"""DICOM files of one gray picture: their pixels, polarity and windows, and why some cannot be used.

The stored whole numbers are kept as they are, and what a number means (rescale, VOI, polarity) is a table of at most
65,536 entries, so that an image of millions of pixels is passed over as seldom as can be. Needs the extra `dicom`.
"""

__all__ = [
    "DicomInfo", "is_dicom", "MultiFrame", "Picture", "read_dicom", "read_picture", "read_stored", "read_tags", "Voi",
]  # fmt: skip

import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from mammosae_plugin.adapters.preprocessing import BadImageError
from mammosae_plugin.errors import InputError
from mammosae_plugin.file_kinds import kind_of

Voi = Literal["none", "window", "lut", "auto"]
MultiFrame = Literal["refuse", "first", "middle", "brightest"]
Codes = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

_QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")  # in what pydicom says, where it may quote the header
_EXTRA = 'pip install "mammosae-plugin[dicom]"'
_PACKAGES = {
    "JPEG 2000": "pylibjpeg and pylibjpeg-openjpeg",
    "JPEG": "pylibjpeg and pylibjpeg-libjpeg",
    "RLE": "pylibjpeg and pylibjpeg-rle",
}
_TOMOSYNTHESIS = "1.2.840.10008.5.1.4.1.1.13.1.3"
_SPOT = {"R-102D6", "399055006", "R-102D7", "399163009"}  # spot compression, magnification: SNOMED's old codes and new
_TAG = re.compile(r"\(?([0-9a-fA-F]{4}),?\s*([0-9a-fA-F]{4})\)?")
_AGE, _PER_YEAR = re.compile(r"(\d+)([YMWD])"), {"Y": 1, "M": 12, "W": 52.18, "D": 365.25}
_LARGEST = 65535
_FOR_PROCESSING = (
    "is FOR PROCESSING: raw detector counts, whose contrast is not that of mammograms; give the image FOR PRESENTATION "
    "of the same view"
)


@dataclass(frozen=True)
class DicomInfo:
    """What is known of a picture beside its pixels; none of it names a patient.

    Attributes:
        is_dicom: Whether it is a DICOM file, whatever its name says.
        inverted: Whether low stored numbers are bright (MONOCHROME1).
        bits: Bits stored per pixel.
        n_frames: How many pictures the file holds.
        frame: Which of them was taken; None where all were put together.
        implant: Whether the header says that there is a breast implant.
        spot_view: Whether the header says that this is a spot or magnification view, or a part of the breast.
        orientation: The directions of rows and of columns ("A", "P", "L", "R", "H", "F" and pairs of them), if told.
    """

    is_dicom: bool = True
    inverted: bool = False
    bits: int = 16
    n_frames: int = 1
    frame: int | None = 0
    implant: bool = False
    spot_view: bool = False
    orientation: tuple[str, str] | None = None


@dataclass(frozen=True)
class Picture:
    """Stored numbers and what each means.

    Attributes:
        codes: uint8 or uint16 (H, W), what is stored, shifted to begin at 0.
        values: float64, one per code: how bright it is; larger is brighter.
        padding: (first, last) code that marks what lies outside of the picture, or None.
        info: What else is known.
    """

    codes: Codes
    values: npt.NDArray[np.float64]
    padding: tuple[int, int] | None
    info: DicomInfo

    def rising(self, *, padding_is_black: bool = False) -> tuple[Codes, npt.NDArray[np.float64]]:
        """Codes (H, W) in the order of their brightness, and the brightness of each, which never falls.

        Args:
            padding_is_black: Padding becomes as dark as the darkest of the rest; else only where it is brighter.
        """
        codes: npt.NDArray[Any] = self.codes
        values, outside = self.values, None
        if self.padding is not None:
            outside = (codes >= self.padding[0]) & (codes <= self.padding[1])
        steps = np.diff(values)
        if (steps < 0).all():  # MONOCHROME1, and nothing else: all bits turned over
            codes, values = ~codes, values[::-1]
        elif not (steps > 0).all():
            values, ranks = np.unique(values, return_inverse=True)
            codes = ranks.astype(codes.dtype)[codes]
        if outside is not None and outside.any() and not outside.all():
            darkest = codes.min(where=~outside, initial=np.iinfo(codes.dtype).max)
            if padding_is_black or codes[outside].max() > darkest:
                codes = np.where(outside, darkest, codes)
        return codes, values

    @property
    def pixels(self) -> npt.NDArray[np.float64]:
        """How bright every pixel is, float64 (H, W), padding included."""
        return self.values[self.codes]


def read_picture(
    path: str | os.PathLike[str], *, voi: Voi = "none", multi_frame: MultiFrame = "refuse", rescale: bool = True
) -> Picture:
    """One gray picture of a DICOM or PNG file, which of the two by its content, not its name.

    Args:
        path: The file; PNG of 8 or 16 bit, gray, or coloured with three equal channels.
        voi: What contrast the header asks for is applied: "window" (the first one), "lut", "auto" (a LUT, else a
            window) or "none"; where it asks for none, nothing is. A LUT whose descriptor and data disagree is taken by
            its data, and goes on at its ends.
        multi_frame: Of files with several pictures, and of tomosynthesis: "refuse" them, or take the "first", the
            "middle" or, of every pixel, the "brightest".
        rescale: Whether slope and intercept (or the modality LUT) are applied; where no VOI is, a rising line changes
            nothing but the scale.

    Raises:
        BadImageError: The file cannot be used; its `reason` says why, and names neither path nor patient.
        InputError: pydicom is not installed.
    """
    if _kind_of(path) == "a PNG image":
        return _png_picture(path)
    return _dicom_picture(path, voi, multi_frame, rescale)


def read_dicom(
    path: str | os.PathLike[str], *, voi: Voi = "none", multi_frame: MultiFrame = "refuse"
) -> tuple[npt.NDArray[np.float64], DicomInfo]:
    """The pixels of a DICOM file of one gray picture, and what is known of it.

    Bright is large: of MONOCHROME1 files the values are the largest possible one minus what is stored.

    Args:
        path: The file.
        voi: As for `read_picture`.
        multi_frame: As for `read_picture`.

    Returns:
        float64 (H, W), after rescale slope and intercept and the VOI that was asked for; and what is known.

    Raises:
        BadImageError: It is no DICOM file, or cannot be used.
        InputError: pydicom is not installed.

    Example:
        >>> pixels, info = read_dicom("exam/left_cc.dcm", voi="auto")  # doctest: +SKIP
    """
    if _kind_of(path) == "a PNG image":
        raise _bad(path, "is a PNG image, not a DICOM file: a new name is not enough")
    picture = _dicom_picture(path, voi, multi_frame, rescale=True)
    return picture.pixels, picture.info


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file's content says that it is DICOM, whatever its name says.

    Raises:
        BadImageError: It is empty, not there or cannot be read.
    """
    return (_kind_of(path) or "").startswith("a DICOM file")


def read_stored(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """What numbers a DICOM file stores (H, W), of several frames the largest: of masks, where 0 is what is not marked.

    Neither polarity, rescale nor windows count; whom the file is meant for does not either.

    Raises:
        BadImageError: It is no DICOM file, has no gray pixels or cannot be decoded.
        InputError: pydicom is not installed.
    """
    _pydicom()
    with _told(path):
        data = _opened(path)
        _require_pixels(path, data)
        pixels, _, _ = _decoded(path, data, "largest")
        return pixels


def read_tags(path: str | os.PathLike[str], keywords: Sequence[str]) -> dict[str, str]:
    """What the header of a DICOM file says under these keywords, as text; the pixels are not read.

    Args:
        path: The file.
        keywords: Names of DICOM's dictionary ("ViewPosition"), its tags ("0018,5101"), or elements of the first item of
            a sequence ("ViewCodeSequence.CodeMeaning").

    Returns:
        By keyword; "" where the header does not say it, values of several parts joined by a backslash, ages in years.

    Raises:
        BadImageError: It is no DICOM file.
        InputError: A keyword is not in DICOM's dictionary, or pydicom is not installed.
    """
    _pydicom()
    parts = {keyword: [_keyword(part) for part in keyword.split(".")] for keyword in keywords}
    first = [*(one[0] for one in parts.values()), "SOPClassUID", "Rows"]
    with _told(path):
        header = _opened(path, stop_before_pixels=True, specific_tags=first)
        return {keyword: _text(header, one) for keyword, one in parts.items()}


def _keyword(name: str) -> str:
    """The dictionary's keyword for a keyword or tag."""
    from pydicom.datadict import keyword_for_tag, tag_for_keyword

    name = name.strip()
    if found := _TAG.fullmatch(name):
        if keyword := keyword_for_tag(int(found[1] + found[2], 16)):
            return keyword
    elif tag_for_keyword(name) is not None:
        return name
    raise InputError(f"{name!r} is no keyword or tag of DICOM's dictionary; give one such as ViewPosition or 0018,5101")


def _text(header: Any, keywords: Sequence[str]) -> str:
    element = None
    for keyword in keywords:
        if header is None or keyword not in header:
            return ""
        element = header[keyword]
        header = element.value[0] if element.VR == "SQ" and len(element.value) else None
    if element is None or element.VR == "SQ" or element.value is None:
        return ""
    value = element.value
    if element.VR == "AS" and (age := _AGE.fullmatch(str(value).strip().upper())):
        return f"{int(age[1]) / _PER_YEAR[age[2]]:.4g}"
    is_list = not isinstance(value, str) and hasattr(value, "__iter__") and not hasattr(value, "components")
    return "\\".join(map(str, value)) if is_list else str(value).strip()


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise InputError(f"DICOM files need pydicom and its decoders; install them: {_EXTRA}") from error
    return pydicom


def _bad(path: str | os.PathLike[str], reason: str) -> BadImageError:
    return BadImageError(f"{Path(path).name}: {reason}", reason)


def _kind_of(path: str | os.PathLike[str]) -> str | None:
    try:
        if os.stat(path).st_size == 0:
            raise _bad(path, "the file is empty (0 bytes)")
        return kind_of(path)
    except FileNotFoundError as error:
        raise _bad(path, "the file does not exist") from error
    except OSError as error:
        raise _bad(path, f"cannot be read ({error.strerror or type(error).__name__})") from error


def _opened(path: str | os.PathLike[str], **settings: Any) -> Any:
    """What pydicom reads of DICOM, be it without preamble; anything else is refused."""
    kind = _kind_of(path)
    if kind is not None and not kind.startswith("a DICOM file"):
        raise _bad(path, f"is {kind}, not a DICOM file")
    data = _pydicom().dcmread(path, force=kind != "a DICOM file", **settings)
    if kind is None and "SOPClassUID" not in data and "Rows" not in data:
        raise _bad(path, "is no DICOM file")
    return data


@contextmanager
def _told(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of pydicom and of the decoders, which may be of any kind, as one of ours; their warnings are hushed."""
    logger, level = logging.getLogger("pydicom"), logging.getLogger("pydicom").level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        from pydicom.errors import InvalidDicomError

        if isinstance(error, InvalidDicomError):
            raise _bad(path, "is no DICOM file") from error
        if isinstance(error, EOFError):
            raise _bad(path, "is truncated: the file ends within its header or pixels") from error
        said = " ".join(_QUOTED.sub("...", str(error).replace(str(path), "the file")).split())
        what = "is truncated" if "less than expected" in said else "cannot be decoded"
        raise _bad(path, f"{what} ({said[:200] or type(error).__name__})") from error
    finally:
        logger.setLevel(level)


# -- PNG ---------------------------------------------------------------------------------------------------------------


def _png_picture(path: str | os.PathLike[str]) -> Picture:
    try:
        with Image.open(path) as image:
            pixels, mode = np.asarray(image), image.mode
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        said = " ".join(str(error).replace(str(path), "the file").split())
        raise _bad(path, f"cannot be read ({said or type(error).__name__})") from error
    if mode == "RGB" and (pixels == pixels[..., :1]).all():
        pixels, mode = pixels[..., 0], "L"
    if mode == "1":
        pixels, mode = pixels.astype(np.uint8) * 255, "L"
    if mode not in ("L", "I;16", "I;16B", "I"):
        raise _bad(path, f"has pixel mode {mode}: give gray pixels of 8 or 16 bit")
    if mode == "I" and (pixels.min() < 0 or pixels.max() > _LARGEST):
        raise _bad(path, "has more than 16 bit per pixel")
    codes = np.ascontiguousarray(pixels.astype(np.uint8 if mode == "L" else np.uint16))
    info = DicomInfo(is_dicom=False, bits=8 * codes.dtype.itemsize)
    return Picture(codes, np.arange(np.iinfo(codes.dtype).max + 1, dtype=np.float64), None, info)


# -- DICOM -------------------------------------------------------------------------------------------------------------


def _dicom_picture(path: str | os.PathLike[str], voi: Voi, multi_frame: MultiFrame, rescale: bool) -> Picture:
    _pydicom()
    with _told(path):
        data = _opened(path)
        _require_pixels(path, data)
        if str(data.get("PresentationIntentType", "")).upper() == "FOR PROCESSING":
            raise _bad(path, _FOR_PROCESSING)
        pixels, frame, n_frames = _decoded(path, data, multi_frame)
        codes, offset, step = _as_codes(pixels)
        stored = (np.arange(np.iinfo(codes.dtype).max + 1, dtype=np.float64) + offset) * step
        contrast = _contrast(data, frame or 0, voi)
        values = _rescaled(data, frame or 0, stored) if rescale or contrast is not None else _signed(data, stored)
        if contrast is not None:
            values = contrast(values)
        inverted = str(data.get("PhotometricInterpretation", "")) == "MONOCHROME1"
        info = _info(data, inverted, n_frames, frame)
        if inverted:
            top = values.max() if contrast is not None else _top(values, offset, info.bits)
            values = top - values
        return Picture(codes, values, _padding(data, offset, step, codes), info)


def _require_pixels(path: str | os.PathLike[str], data: Any) -> None:
    """Refuse what has no pixels, is no gray picture, or has no decoder here."""
    if not any(data.get(name) for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        if "Rows" in data:
            raise _bad(path, "is DICOM without the pixels that its header tells of: truncated, or taken out")
        if "SOPClassUID" not in data:  # pydicom gives nothing of a file that ends within compressed pixels
            raise _bad(path, "is truncated: the file ends within its header or pixels")
        what = getattr(data.get("SOPClassUID"), "name", "") or data.get("Modality", "")
        raise _bad(path, "is DICOM without pixels" + (f" ({what})" if what else ""))
    if data.get("SamplesPerPixel", 1) != 1 or data.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise _bad(path, f"has colours ({data.get('PhotometricInterpretation')}), and is no mammogram")
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    syntax = data.file_meta.get("TransferSyntaxUID")
    if syntax is None:  # of files without their first part, which are not compressed
        implicit, little = data.original_encoding
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = syntax
    if not syntax.is_encapsulated:
        return

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise _bad(path, f"has the transfer syntax {syntax.name}, for which pydicom has no decoder") from error
    if not decoder.is_available:
        packages = next((names for part, names in _PACKAGES.items() if part in syntax.name), "pylibjpeg")
        raise _bad(path, f"has the transfer syntax {syntax.name}, which needs {packages}: {_EXTRA}")


def _decoded(
    path: str | os.PathLike[str], data: Any, multi_frame: MultiFrame | Literal["largest"]
) -> tuple[npt.NDArray[Any], int | None, int]:
    """The pixels of one picture as stored, which one it is (None: all), and how many there are."""
    from pydicom.pixels.utils import pixel_array

    n_frames = int(data.get("NumberOfFrames") or 1)
    is_volume = data.get("SOPClassUID") == _TOMOSYNTHESIS
    if (n_frames > 1 or is_volume) and multi_frame == "refuse":
        what = "tomosynthesis" if is_volume else "a multi-frame object"
        raise _bad(
            path, f"is {what} of {n_frames} frames, and one picture is wanted: leave it out, or choose a frame of it"
        )
    one = {"middle": n_frames // 2, "brightest": None, "largest": None}
    frame = one.get(multi_frame, 0) if n_frames > 1 else 0
    if frame is not None:
        pixels = pixel_array(data, index=frame) if n_frames > 1 else pixel_array(data)
    else:
        pixels = pixel_array(data, index=0)
        darkest = multi_frame == "brightest" and data.get("PhotometricInterpretation") == "MONOCHROME1"
        for other in range(1, n_frames):
            pixels = (np.minimum if darkest else np.maximum)(pixels, pixel_array(data, index=other))
    if pixels.ndim != 2 or pixels.size == 0:
        raise _bad(path, f"has pixels of shape {pixels.shape}, and one gray picture is wanted")
    return pixels, frame, n_frames


def _as_codes(pixels: npt.NDArray[Any]) -> tuple[Codes, float, float]:
    """Pixels as uint8 or uint16 from 0; a stored value is (code + offset) * step."""
    if pixels.dtype in (np.uint8, np.uint16):
        return np.asarray(pixels), 0.0, 1.0
    if pixels.dtype in (np.int8, np.int16):
        unsigned: Any = np.dtype(f"u{pixels.dtype.itemsize}")
        half = 1 << (8 * pixels.dtype.itemsize - 1)
        return pixels.view(unsigned) ^ unsigned.type(half), -float(half), 1.0
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("the pixels are not finite numbers")
    whole = not np.issubdtype(pixels.dtype, np.floating) and high - low <= _LARGEST
    step = 1.0 if whole or high == low else (high - low) / _LARGEST
    return np.rint((pixels - low) / step).astype(np.uint16), low / step, step


def _functional(data: Any, frame: int, sequence: str) -> Any:
    """Where a multi-frame object keeps what others have at the top; the object itself where it does not."""
    for groups, at in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = data.get(groups)
        if items and at < len(items) and items[at].get(sequence):
            return items[at][sequence][0]
    return data


def _rescaled(data: Any, frame: int, stored: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What stored values stand for, by the modality LUT or a slope."""
    if data.get("ModalityLUTSequence"):
        return _looked_up(data, data.ModalityLUTSequence[0], stored)
    where = _functional(data, frame, "PixelValueTransformationSequence")
    slope, intercept = (float(where.get(name) or default) for name, default in _RESCALE)
    return stored * slope + intercept if slope else stored


_RESCALE = (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))


def _signed(data: Any, stored: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Stored values in the order of what they stand for: a rising line leaves them as they are, to the bit."""
    rescaled = _rescaled(data, 0, stored)
    if data.get("ModalityLUTSequence"):
        return rescaled
    return stored if rescaled[0] <= rescaled[-1] else -stored


def _top(values: npt.NDArray[np.float64], offset: float, bits: int) -> float:
    """The value of the largest number that the file's bits can hold."""
    low = int(-(1 << (bits - 1)) if offset < 0 else 0)
    at = np.clip(np.array([low, low + (1 << bits) - 1]) - int(offset), 0, len(values) - 1)
    return float(values[at].max())


def _looked_up(data: Any, table: Any, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Values by a LUT; where its descriptor names another length than its data have, the data are believed."""
    descriptor, entries = table.get("LUTDescriptor"), table.get("LUTData")
    if not descriptor or entries is None:
        raise ValueError("its LUT has no descriptor or no entries")
    n, first, bits = (int(number) for number in descriptor)
    n = n or 1 << 16
    if first > 32767 and data.get("PixelRepresentation") == 1:
        first -= 1 << 16
    if isinstance(entries, (bytes, bytearray)):
        little = data.original_encoding[1] is not False
        kind = "u1" if bits <= 8 and len(entries) in (n, n + 1) else "<u2" if little else ">u2"
        found = np.frombuffer(entries[: len(entries) - len(entries) % np.dtype(kind).itemsize], dtype=kind)
    else:
        found = np.atleast_1d(np.asarray(entries, dtype=np.int64)) & _LARGEST
    if bits <= 8 and len(found) < n <= 2 * len(found):  # two entries in a word, the lower one first
        found = np.stack([found & 255, found >> 8], axis=1).ravel()
    if len(found) == 0:
        raise ValueError("its LUT has no entries")
    at = np.clip(values - first, 0, min(n, len(found)) - 1).astype(np.int64)
    return found[at].astype(np.float64)


def _contrast(data: Any, frame: int, voi: Voi) -> Any:
    """The function from values to brightness that the header asks for, or None."""
    tables = data.get("VOILUTSequence")
    if voi in ("lut", "auto") and tables:
        return lambda values: _looked_up(data, tables[0], values)
    where = _functional(data, frame, "FrameVOILUTSequence")
    center, width = (_first(where.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if voi not in ("window", "auto") or center is None or width is None or width <= 0:
        return None
    form = str(where.get("VOILUTFunction", "LINEAR")).upper()
    if form == "SIGMOID":
        return lambda values: 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if form == "LINEAR_EXACT" or width <= 1:
        return lambda values: np.clip((values - center) / width + 0.5, 0, 1)
    return lambda values: np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value[0]) if hasattr(value, "__getitem__") and not isinstance(value, str) else float(value)


def _info(data: Any, inverted: bool, n_frames: int, frame: int | None) -> DicomInfo:
    codes = {str(item.get("CodeValue", "")) for item in _modifiers(data)}
    directions = [str(part) for part in data.get("PatientOrientation") or ()]
    return DicomInfo(
        inverted=inverted,
        bits=int(data.get("BitsStored") or 16),
        n_frames=n_frames,
        frame=frame,
        implant=str(data.get("BreastImplantPresent", "")).upper() == "YES",
        spot_view=bool(codes & _SPOT) or str(data.get("PartialView", "")).upper() == "YES",
        orientation=(directions[0], directions[1]) if len(directions) == 2 else None,
    )


def _modifiers(data: Any) -> Iterator[Any]:
    """The items that say in what a view differs from the plain one."""
    yield from data.get("ViewModifierCodeSequence") or ()
    for view in data.get("ViewCodeSequence") or ():
        yield from view.get("ViewModifierCodeSequence") or ()


def _padding(data: Any, offset: float, step: float, codes: Codes) -> tuple[int, int] | None:
    value = data.get("PixelPaddingValue")
    if not isinstance(value, int) or step != 1.0:
        return None
    limit = data.get("PixelPaddingRangeLimit")
    low, high = sorted((value, limit if isinstance(limit, int) else value))
    first, last = (
        number - (1 << 16) - int(offset) if offset < 0 and number > 32767 else number - int(offset)
        for number in (low, high)
    )
    top = int(np.iinfo(codes.dtype).max)
    return (max(first, 0), min(last, top)) if last >= 0 and first <= top else None
