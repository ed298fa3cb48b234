"""What a file really is, whatever its name says: for errors that name the cause."""

__all__ = ["CHECKPOINT_SUFFIXES", "kind_of"]

import os
import re
import zipfile

CHECKPOINT_SUFFIXES = {".bin", ".ckpt", ".pt", ".pth", ".safetensors", ".tar"}
"""How the names of files of weights end."""

_DICOM_MARK = 128  # where DICOM's "DICM" stands
_NIFTI_MARK = 344
_HEAD = 4096

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n": "a JPEG 2000 image",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image",
    b"\xff\x0a": "a JPEG XL image",
    b"II*\x00": "a TIFF image",
    b"MM\x00*": "a TIFF image",
    b"II+\x00": "a TIFF image",
    b"MM\x00+": "a TIFF image",
    b"GIF8": "a GIF image",
    b"8BPS": "a Photoshop image",
    b"P5\n": "a PGM image",
    b"P6\n": "a PPM image",
    b"NRRD000": "an NRRD image",
    b"%PDF-": "a PDF document",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Excel or Word document",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstandard archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"PAR1": "a parquet table",
    b"ARROW1": "an Arrow table",
    b"SQLite format 3\x00": "an SQLite database",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF file",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"version https://git-lfs.github.com/spec/": "a pointer of Git LFS, whose file was never downloaded (git lfs pull)",
    b"/annex/objects/": "a pointer of git-annex, whose file was never downloaded (git annex get)",
    b"%!PS": "a PostScript document",
    b"{\\rtf": "an RTF document",
}
_IN_ZIP = {
    "xl/": "an Excel workbook",
    "word/": "a Word document",
    "content.xml": "an OpenDocument file (LibreOffice)",
    "data.pkl": "a PyTorch checkpoint",
}


def kind_of(path: str | os.PathLike[str]) -> str | None:
    """What the file's content says that it is, as "a JPEG image"; None where it says nothing known.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    # DICOM and NIfTI first: what stands before their marks is free, and may look like another format.
    if head[_DICOM_MARK : _DICOM_MARK + 4] == b"DICM":
        return "a DICOM file"
    if head[:4] in (b"\x08\x00\x05\x00", b"\x08\x00\x00\x00"):  # its first element, (0008,0005) or (0008,0000)
        return "a DICOM file (without preamble)"
    if head[_NIFTI_MARK : _NIFTI_MARK + 4] in (b"n+1\x00", b"ni1\x00") or head[4:8] in (b"n+2\x00", b"ni2\x00"):
        return "a NIfTI volume"
    if head[:2] == b"PK":
        return _kind_of_zip(path)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a WebP image"
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return "a BMP image"
    if head[4:8] == b"ftyp":
        return "an AVIF or HEIF image"
    named = next((kind for signature, kind in _SIGNATURES.items() if head.startswith(signature)), None)
    return named or _kind_of_text(head)


def _kind_of_zip(path: str | os.PathLike[str]) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return "a zip archive (damaged)"
    found = (
        kind for mark, kind in _IN_ZIP.items() if any(name.startswith(mark) or f"/{mark}" in name for name in names)
    )
    return next(found, "a zip archive")


def _kind_of_text(head: bytes) -> str | None:
    if head[:4] in (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff"):
        return "UTF-32 text"
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or _is_utf_16(head[0:64:2], head[1:64:2]):
        return "UTF-16 text"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<!doctype html") or b"<html" in text[:500]:
        return "an HTML page (a log-in, or an error of the server that it was downloaded from)"
    if re.match(rb"<[?!a-z]", text):
        return "an XML file"
    return "a JSON file" if re.match(rb"[{\[]\s*[\"{\[]", text) else None


def _is_utf_16(even: bytes, odd: bytes) -> bool:
    """Whether one half of the bytes are zeros and the other half plain letters."""
    return any(
        len(zeros) > 1 and not any(zeros) and other.isascii() and all(other)
        for zeros, other in ((even, odd), (odd, even))
    )
