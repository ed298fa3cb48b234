"""Files of one vector per image with what is known of the image: SAIL's parquet files, any with a list, `.npy` and CSV.

SAIL writes one parquet file per split: columns of metadata, and a vector as raw little-endian bytes in `embedding`
(or `sparse_features`) beside `<name>_shape`, the text of a tuple, and `<name>_dtype`. Everything here streams: memory
holds a thousand vectors, whatever the size of the file or of its row groups.
"""

__all__ = ["EmbeddingFile", "read_csv_of_images", "read_sparse_features", "write_vectors"]

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from mammosae_plugin.arguments import shown
from mammosae_plugin.datasets.csv_files import read_csv
from mammosae_plugin.datasets.splits import split_word
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import atomic_path, local_path, sha256_of_file, sha256_of_json

VECTOR_COLUMNS = ("embedding", "sparse_features")
ROWS_AT_ONCE = 1024
_BUFFER = 2**20
_DTYPES = {name: np.dtype(name).newbyteorder("<") for name in ("float16", "float32", "float64")}

Vectors = npt.NDArray[np.float32]


class EmbeddingFile:
    """One file of vectors; only its schema and its first vector are read before more is asked for.

    Args:
        path: A parquet file, or an array (n, d) in `.npy` with a CSV of n rows of the same name beside it.
        column: The column with the vectors; by default `embedding`, `sparse_features`, or the only one with lists.

    Attributes:
        n_rows: Number of rows.
        width: Numbers in a vector.
        split: The split that its name says, such as "validation" for `x_val.parquet` and `x_valid.parquet`, or None.

    Raises:
        InputError: The file cannot be read, is empty, or has no such column.
    """

    def __init__(self, path: str | os.PathLike[str], column: str | None = None) -> None:
        """Look at the file."""
        self.path = local_path(path)
        self.split = _split_of(self.path)
        if not self.path.is_file():
            raise InputError(f"{self.path} does not exist; name a .parquet file of embeddings, or a .npy beside a .csv")
        self._array: Any = None
        if self.path.suffix == ".npy":
            self._array = self._open_array()
            self.n_rows, self.width = self._array.shape
            self.column, self.names = column or VECTOR_COLUMNS[0], []
        else:
            self._parquet = self._open_parquet()
            self.n_rows = self._parquet.metadata.num_rows
            self.column = self._column(column)
            beside = {f"{self.column}_shape", f"{self.column}_dtype"}
            names = self._parquet.schema_arrow.names
            self._read_with = [name for name in names if name == self.column or name in beside]
            self.names = [name for name in names if name not in self._read_with]
        if self.n_rows == 0:
            raise InputError(f"{self.path} holds no row; give a file with embeddings")
        if self._array is None:
            self.width = 0  # the first vector tells it
            self.width = next(iter(self.blocks(np.zeros(1, dtype=np.int64)))).shape[1]
        if self.width == 0:
            raise InputError(f"{self.path} has empty vectors in {self.column}; give embeddings of one width")

    def _open_parquet(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(
                self.path, buffer_size=_BUFFER, pre_buffer=False
            )  # or a whole row group would be in memory
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path} is no parquet file, or is damaged; give embeddings as parquet") from error

    def _open_array(self) -> npt.NDArray[Any]:
        try:
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path} is no array of numbers, or is damaged; save it with numpy.save") from error
        if array.ndim != 2 or array.dtype.kind != "f":
            raise InputError(
                f"{self.path} is {array.dtype} of shape {array.shape}; give floating-point numbers (n, d), one row for "
                "each image"
            )
        return array  # type: ignore[no-any-return]

    def _column(self, column: str | None) -> str:
        """The name of the column with vectors, of a type that can hold them."""
        schema = self._parquet.schema_arrow
        fits = {field.name for field in schema if _holds_vectors(field.type)}
        if column is None:
            known = [name for name in VECTOR_COLUMNS if name in fits]
            found = known or sorted(fits)
            if len(found) == 1:
                return found[0]
            what = f"several ({', '.join(found)}); name one" if found else f"none (it has {_some(schema.names)})"
            raise InputError(f"{self.path}: of columns with vectors there are {what}")
        if column not in fits:
            why = "holds no vectors" if column in schema.names else f"is missing (there are {_some(schema.names)})"
            raise InputError(f"{self.path}: the column {column!r} {why}; name the one with the embeddings")
        return column

    def metadata(self) -> pd.DataFrame:
        """All other columns, one row per vector; whole numbers in the smallest type that holds them."""
        if self._array is not None:
            beside = self.path.with_suffix(".csv")
            if not beside.is_file():
                raise InputError(f"{beside} does not exist; {self.path.name} needs a table of its rows beside it")
            frame = read_csv_of_images(beside)
            if len(frame) != self.n_rows:
                raise InputError(f"{beside} has {len(frame)} rows, but {self.path.name} has {self.n_rows}")
            return frame
        # Column by column: the hundred columns of a file of SAIL's at once are larger than its vectors.
        columns = {name: _small(self._parquet.read(columns=[name]).column(0).to_pandas()) for name in self.names}
        return pd.DataFrame(columns, index=pd.RangeIndex(self.n_rows))

    def blocks(self, rows: npt.NDArray[np.int64]) -> Iterator[Vectors]:
        """The vectors (n, width) float32 of rows (in rising order), a block at a time, in that order.

        Raises:
            InputError: A vector of another width, one that is missing or not finite, or of a type that is not known.
        """
        if self._array is not None:
            for start in range(0, len(rows), ROWS_AT_ONCE):
                chosen = rows[start : start + ROWS_AT_ONCE]
                yield self._checked(np.asarray(self._array[chosen], dtype=np.float32), chosen)
            return
        firsts = np.cumsum([0, *(self._parquet.metadata.row_group(n).num_rows for n in range(self._n_groups))])
        groups = np.unique(np.searchsorted(firsts, rows, side="right") - 1)
        for group in groups.tolist():
            first = int(firsts[group])
            last = rows[np.searchsorted(rows, firsts[group + 1]) - 1]
            for batch in self._parquet.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=self._read_with):
                low, high = np.searchsorted(rows, [first, first + len(batch)])
                if high > low:
                    kept = rows[low:high]
                    if len(kept) < len(batch):
                        batch = batch.take(pa.array(kept - first))
                    yield self._checked(self._vectors(batch, kept), kept)
                first += len(batch)
                if first > last:
                    break

    @property
    def _n_groups(self) -> int:
        return int(self._parquet.metadata.num_row_groups)

    def _vectors(self, batch: pa.RecordBatch, rows: npt.NDArray[np.int64]) -> Vectors:
        """(n, width) of a batch of rows."""
        column = batch.column(self.column)
        if column.null_count:
            missing = int(np.flatnonzero(np.asarray(column.is_null()))[0])
            raise InputError(f"{self._row(rows, missing)} has no {self.column}; leave the row out")
        if pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type) or _is_large_list(column.type):
            lengths = np.asarray(column.value_lengths())
            values = column.flatten()
            if values.null_count:
                at = int(np.flatnonzero(np.asarray(values.is_null()))[0])
                self._refuse_not_finite(rows, int(np.searchsorted(np.cumsum(lengths), at, side="right")))
            flat = np.asarray(values, dtype=np.float32)
        else:
            dtype = self._dtype(batch, rows)
            lengths = np.asarray(pa.compute.binary_length(column))
            if (uneven := np.flatnonzero(lengths % dtype.itemsize)).size:
                raise InputError(
                    f"{self._row(rows, uneven[0])} has {lengths[uneven[0]]} bytes of {dtype.name}, which are no whole "
                    "numbers; write the file again"
                )
            lengths = lengths // dtype.itemsize
            flat = np.frombuffer(b"".join(column.to_pylist()), dtype=dtype).astype(np.float32, copy=False)
        width = self.width or int(lengths[0])
        if (other := np.flatnonzero(lengths != width)).size:
            raise InputError(
                f"{self._row(rows, other[0])} has a vector of {lengths[other[0]]} numbers, those before it have "
                f"{width}; the vectors of one file are of one model"
            )
        self._refuse_other_shape(batch, rows, width)
        return flat.reshape(len(rows), width)

    def _dtype(self, batch: pa.RecordBatch, rows: npt.NDArray[np.int64]) -> np.dtype[Any]:
        """What the raw bytes are numbers of; float32 where the file does not say."""
        name = f"{self.column}_dtype"
        said = np.array(batch.column(name).to_pylist() if name in batch.schema.names else ["float32"], dtype=object)
        if (other := np.flatnonzero(said != said[0])).size or said[0] not in _DTYPES:
            at = int(other[0]) if other.size else 0
            raise InputError(
                f"{self._row(rows, at)} says {name} {said[at]!r}; read are {', '.join(_DTYPES)}, one a file"
            )
        return _DTYPES[said[0]]

    def _refuse_other_shape(self, batch: pa.RecordBatch, rows: npt.NDArray[np.int64], width: int) -> None:
        name = f"{self.column}_shape"
        for at, said in enumerate(batch.column(name).to_pylist() if name in batch.schema.names else ()):
            if re.sub(r"[\s,\[\]()]+", " ", str(said)).split() != [str(width)]:
                raise InputError(f"{self._row(rows, at)} says {name} {shown(said)}, but has {width} numbers")

    def _checked(self, vectors: Vectors, rows: npt.NDArray[np.int64]) -> Vectors:
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            self._refuse_not_finite(rows, int(np.flatnonzero(~finite)[0]))
        return vectors

    def _refuse_not_finite(self, rows: npt.NDArray[np.int64], at: int) -> None:
        raise InputError(f"{self._row(rows, at)} has a value that is not finite (NaN); leave the row out")

    def _row(self, rows: npt.NDArray[np.int64], at: int) -> str:
        return f"{self.path}, row {rows[at]},"

    def fingerprint(self) -> str:
        """SHA-256 of the file's content, of its table too."""
        digests = [sha256_of_file(self.path)]
        if self._array is not None:
            digests.append(sha256_of_file(self.path.with_suffix(".csv")))
        return sha256_of_json(digests)


def read_csv_of_images(file: Path) -> pd.DataFrame:
    """A CSV file with a row per image, columns of numbers as such; ids stay text.

    Raises:
        InputError: It is missing, or no such file.
    """
    frame = read_csv(file, ("image_id",)).reset_index(drop=True)
    return pd.DataFrame({name: _small(_numbers(frame[name])) for name in frame.columns})


def _split_of(path: Path) -> str | None:
    try:
        return split_word(re.split(r"[_.\-]", path.stem)[-1])
    except InputError:
        return None


def _is_large_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_large_list(kind))


def _holds_vectors(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or _is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return bool(pa.types.is_floating(kind.value_type))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _numbers(cells: "pd.Series[Any]") -> "pd.Series[Any]":
    """A column of text as numbers, if it holds nothing else and is no id."""
    given = cells.mask(cells == "")
    found = pd.to_numeric(given, errors="coerce")
    is_id = str(cells.name).endswith("_id")
    return given.astype(object) if is_id or (found.isna() & given.notna()).any() else found


def _small(values: "pd.Series[Any]") -> "pd.Series[Any]":
    return pd.to_numeric(values, downcast="integer") if values.dtype.kind in "iu" else values


def write_vectors(
    path: str | os.PathLike[str],
    metadata: pd.DataFrame,
    blocks: Iterable[Vectors],
    *,
    column: str = VECTOR_COLUMNS[0],
) -> None:
    """Write vectors with what is known of each as SAIL's parquet files have them, whole or not at all.

    Args:
        path: The file; SAIL's end in `_train`, `_valid` (embeddings) or `_val` (sparse features), `_test`.
        metadata: One row per vector.
        blocks: The vectors, (n_i, d) each, in the order of the rows. One block is in memory at a time.
        column: What the vectors' column is called.

    Raises:
        InputError: Vectors of several widths, or another number of them than of rows.
    """
    schema = _schema(metadata, column)
    known = pa.schema(list(schema)[: -len(_KINDS)])
    start, width = 0, None
    with atomic_path(path) as temporary:
        with pq.ParquetWriter(temporary, schema) as writer:
            for block in blocks:
                vectors = np.ascontiguousarray(block, dtype="<f4")
                width = width or vectors.shape[1]
                if vectors.shape[1] != width or start + len(vectors) > len(metadata):
                    break
                rows = metadata.iloc[start : start + len(vectors)]
                columns = pa.Table.from_pandas(rows, schema=known, preserve_index=False).columns
                raw = [row.tobytes() for row in vectors]
                said = [[f"({width},)"] * len(raw), ["float32"] * len(raw)]
                writer.write_table(pa.table([*columns, *map(pa.array, (raw, *said))], schema=schema))
                start += len(vectors)
        if start != len(metadata) or width is None:
            raise InputError(
                f"{path} needs one vector of one width for each of {len(metadata)} rows; after {start} rows that ended"
            )


_KINDS = (("", pa.binary()), ("_shape", pa.string()), ("_dtype", pa.string()))


def _schema(metadata: pd.DataFrame, column: str) -> pa.Schema:
    """The file's columns; from all rows, because the first ones may all lack a value."""
    known = pa.Schema.from_pandas(metadata, preserve_index=False).remove_metadata()
    for ending, kind in _KINDS:
        known = known.append(pa.field(f"{column}{ending}", kind))
    return known


def read_sparse_features(
    path: str | os.PathLike[str], column: str = VECTOR_COLUMNS[1]
) -> tuple[pd.DataFrame, sparse.csr_array]:
    """The codes of a file of SAIL's sparse features, (n, d_sae) float32, with what is known of each row.

    Only what is not zero is kept in memory, which for codes of 160 of 8,192 latents is a 50th of the file's numbers.

    Args:
        path: The file, such as `total_seg_sparse_features_val.parquet`.
        column: The column with the codes.

    Raises:
        InputError: As `EmbeddingFile`.
    """
    file = EmbeddingFile(path, column)
    pieces = [sparse.csr_array(block) for block in file.blocks(np.arange(file.n_rows))]
    codes: sparse.csr_array = sparse.vstack(pieces, format="csr")
    return file.metadata(), codes
