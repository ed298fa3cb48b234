"""NIfTI volumes, their masks and table on disk. nibabel is the extra `[volumes]`, imported at the first volume."""

__all__ = ["find_volumes", "read_table", "read_volume", "require_nibabel", "VolumeFiles"]

import csv
import io
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd

from mammosae_plugin.adapters.preprocessing import BadImageError
from mammosae_plugin.arguments import shown
from mammosae_plugin.datasets.base import DatasetError, describe
from mammosae_plugin.datasets.concepts import nearest_names
from mammosae_plugin.datasets.slices import Volume
from mammosae_plugin.errors import InputError
from mammosae_plugin.file_kinds import kind_of

_BROKEN = (OSError, EOFError, ValueError, TypeError, KeyError, MemoryError, zlib.error)
_SEPARATORS = (";", ",", "\t")


def require_nibabel() -> None:
    """Raise `InputError` unless nibabel is installed, without importing it."""
    if find_spec("nibabel") is None:
        raise InputError("volumes need nibabel, the extra [volumes]: pip install 'mammosae-plugin[volumes]'")


@dataclass(frozen=True)
class VolumeFiles:
    """The files of one volume.

    Attributes:
        modality: Such as "ct".
        image_id: Its name, unique within the modality.
        image: The volume.
        masks: The mask of every label.
    """

    modality: str
    image_id: str
    image: Path
    masks: Mapping[str, Path] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The volume's name, unique in a dataset."""
        return f"{self.modality}/{self.image_id}"


def find_volumes(root: Path, modality: str, image: str, masks: str | None) -> list[VolumeFiles]:
    """The volumes under a folder, by name.

    Args:
        root: the folder.
        modality: what they are.
        image: where a volume lies in it, such as "{id}/ct.nii.gz".
        masks: where a mask lies in it, such as "{id}/segmentations/{label}.nii.gz"; None where there are none. What
            has masks and no volume is among the volumes, so that it can be told.

    Raises:
        InputError: a pattern lacks a part.
        DatasetError: there is no folder, or no volume in it.
    """
    for pattern, name, parts in ((image, "image", ("{id}",)), (masks, "masks", ("{id}", "{label}"))):
        if pattern is not None and not (isinstance(pattern, str) and all(pattern.count(part) == 1 for part in parts)):
            raise InputError(f"{name} is {shown(pattern)}: give a path under the folder with {' and '.join(parts)}")
        if pattern is not None and (PurePath(pattern).is_absolute() or ".." in PurePath(pattern).parts):
            raise InputError(
                f"{name} is {shown(pattern)}: give it from the folder of the volumes, such as {parts[0]}.nii.gz"
            )
    if not root.is_dir():
        raise DatasetError(f"the folder of volumes {root} does not exist or is no folder")
    by_id: dict[str, dict[str, Path]] = {}
    of_masks = set()
    for found, path in _matches(root, masks) if masks is not None else ():
        by_id.setdefault(found["id"], {})[found["label"]] = path
        of_masks.add(path)
    images = {found["id"]: path for found, path in _matches(root, image) if path not in of_masks}
    if not images:
        raise DatasetError(f"there is no volume {image} under {root}")
    return [
        VolumeFiles(modality, name, images.get(name, root / image.replace("{id}", name)), by_id.get(name, {}))
        for name in sorted({*images, *by_id})
    ]


def _matches(root: Path, pattern: str) -> Iterable[tuple[dict[str, str], Path]]:
    parts = re.split(r"(\{id\}|\{label\})", pattern)
    wild = "".join("*" if part in ("{id}", "{label}") else re.sub(r"([*?[])", r"[\1]", part) for part in parts)
    regex = "".join(f"(?P<{part[1:-1]}>[^/]+)" if part in ("{id}", "{label}") else re.escape(part) for part in parts)
    for path in sorted(root.glob(wild)):
        found = re.fullmatch(regex, path.relative_to(root).as_posix())
        if found and not path.name.startswith("."):
            yield found.groupdict(), path


def read_volume(path: Path, *, canonical: bool = False) -> tuple[Volume, tuple[float, float, float]]:
    """A NIfTI volume: its values (X, Y, Z), scaled as its header says, and the edges of a voxel in mm.

    Raises:
        BadImageError: it is missing, damaged, or no volume of numbers; the reason names no path.
        InputError: nibabel is not installed.
    """
    require_nibabel()
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError, SpatialImage

    def bad(reason: str) -> BadImageError:
        return BadImageError(f"{path.name} cannot be used: {reason}", reason)

    try:
        image = nibabel.load(path)
        if not isinstance(image, SpatialImage):
            raise bad(f"{path.name} is no volume")
        shape = image.shape
        if len([size for size in shape[3:] if size != 1]) or len(shape) < 3 or 0 in shape:
            raise bad(f"{path.name} has shape {' x '.join(map(str, shape))}, where one volume is expected")
        if canonical:
            image = nibabel.as_closest_canonical(image)  # type: ignore[no-untyped-call]
        values = np.asanyarray(image.dataobj)
        edges = [float(edge) for edge in image.header.get_zooms()[:3]]
    except FileNotFoundError as error:
        raise bad(f"{path.name} does not exist") from error
    except BadImageError:
        raise
    except (ImageFileError, HeaderDataError, *_BROKEN) as error:
        kind = kind_of(path) if path.is_file() else None
        what = f"it is {kind}" if kind and "gzip" not in kind else " ".join(str(error).replace(str(path), "it").split())
        raise bad(f"{path.name} cannot be read ({what or type(error).__name__})") from error
    if values.dtype.kind not in "biuf":
        raise bad(f"{path.name} holds {values.dtype}, where numbers are expected")
    return values.reshape(values.shape[:3], order="F"), (edges[0], edges[1], edges[2])


def read_table(file: Path, id_column: str, text_columns: Sequence[str] = ()) -> pd.DataFrame:
    """A CSV with a row per volume, its cells separated by semicolons, commas or tabs.

    Returns:
        Its columns, numbers where all cells are numbers, but for `text_columns`; indexed by the ids as text.

    Raises:
        DatasetError: it is missing, is no such table, or names a volume or column twice.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DatasetError(f"the table of volumes {file} does not exist") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"the table of volumes {file} is no UTF-8 text: save it as CSV in UTF-8") from error
    except OSError as error:
        raise DatasetError(f"the table of volumes {file} cannot be read: {error.strerror or error}") from error
    first = text.split("\n", 1)[0]
    separator = max(_SEPARATORS, key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DatasetError(f"{file.name} is no CSV ({error}): save it as CSV in UTF-8") from error
    if len(rows) < 2 or "\0" in text:
        raise DatasetError(f"{file.name} has no rows of volumes: give a CSV with a header")
    header = [name.strip() for name in rows[0][1]]
    if id_column not in header:
        raise DatasetError(f"{file.name} has no column {id_column!r}{nearest_names(id_column, header)}")
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise DatasetError(f"{file.name} names columns twice: {', '.join(twice)}; remove or rename all but one of each")
    for line, row in rows:
        if len(row) != len(header):
            raise DatasetError(f"{file.name}: line {line} has {len(row)} cells, the header {len(header)}")
    as_text = dict.fromkeys((id_column, *text_columns), str)
    table = pd.read_csv(
        io.StringIO(text), sep=separator, names=header, header=0, dtype=as_text, low_memory=False
    )  # in one piece: else a column may be numbers here and text there
    ids: list[Any] = [name.strip() if isinstance(name, str) else "" for name in table[id_column]]
    if "" in ids:
        raise DatasetError(f"{file.name}: line {ids.index('') + 2} has no {id_column}")
    if twice := sorted({name for name in ids if ids.count(name) > 1}) if len(set(ids)) < len(ids) else []:
        raise DatasetError(f"{file.name}: " + describe(len(twice), "image ids stand in several rows", twice))
    return table.set_index(pd.Index(ids, name=id_column)).drop(columns=id_column)
