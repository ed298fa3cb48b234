"""One file of activation rows: read by blocks that are checked, or row by row from the mapped file."""

__all__ = ["bytes_of", "damaged", "patient_number", "StoredShard"]

import hashlib
import json
import zlib
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mammosae_plugin.errors import InputError

_SAFETENSORS_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "I64": torch.int64,
}


class StoredShard:
    """One file of rows, read by blocks; every block that is read is compared with its checksum."""

    def __init__(self, path: Path, n_rows: int, d_in: int, dtype: torch.dtype, rows_per_block: int) -> None:
        self.path, self.n_rows = path, n_rows
        self.n_blocks = -(-n_rows // rows_per_block)
        self._rows_per_block = rows_per_block
        self._checked_blocks: set[int] = set()
        self._shapes = {
            "rows": (dtype, (n_rows, d_in)),
            "image": (torch.int32, (n_rows,)),
            "position": (torch.int32, (n_rows,)),
            "crc32": (torch.int64, (self.n_blocks, 3)),
        }

    def span(self, block: int) -> slice:
        """The rows of a block."""
        return slice(block * self._rows_per_block, min((block + 1) * self._rows_per_block, self.n_rows))

    def block(self, block: int) -> torch.Tensor:
        """(n, d_in): the rows of one block, as stored."""
        return self._checked("rows", 0, block)

    def rows(self, numbers: NDArray[np.int64]) -> torch.Tensor:
        """(len(numbers), d_in): rows of these numbers of the shard, in that order, from the file as it is mapped.

        A block is read whole and compared with its checksum when the first of its rows is asked for, and is not
        compared again by this object.
        """
        for block in np.unique(numbers // self._rows_per_block).tolist():
            if block not in self._checked_blocks:
                self.block(block)
                self._checked_blocks.add(block)
        taken = torch.from_numpy(self._mapped[numbers])
        return taken.view(self._shapes["rows"][0])

    @cached_property
    def _mapped(self) -> NDArray[Any]:
        dtype, shape = self._shapes["rows"]
        integers = np.int16 if dtype.itemsize == 2 else np.int32  # which NumPy knows, as it does not bfloat16
        try:
            return np.memmap(self.path, integers, "r", offset=self._places["rows"], shape=shape)
        except (ValueError, OSError) as error:
            raise damaged(self.path, "it is too short") from error

    def __getstate__(self) -> dict[str, Any]:
        """For pickle, as of workers of a DataLoader: each maps and checks the file itself."""
        state = {name: value for name, value in self.__dict__.items() if name != "_mapped"}
        return state | {"_checked_blocks": set()}

    def labels(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(n_rows,) image numbers and (n_rows,) positions."""
        columns = []
        for column, name in ((1, "image"), (2, "position")):
            values = [self._checked(name, column, block) for block in range(self.n_blocks)]
            columns.append(torch.cat(values).numpy() if values else np.zeros(0, np.int32))
        return columns[0], columns[1]

    def _checked(self, name: str, column: int, block: int) -> torch.Tensor:
        span = self.span(block)
        values = self._read(name, span)
        if zlib.crc32(bytes_of(values)) != int(self._checksums[block, column]):
            raise damaged(self.path, f"the checksum of {name} {span.start} to {span.stop - 1} is not the recorded one")
        return values

    @cached_property
    def _checksums(self) -> NDArray[np.int64]:
        return self._read("crc32", slice(0, self.n_blocks)).numpy()

    @cached_property
    def _places(self) -> dict[str, int]:
        """Where each tensor begins in the file, after its header is found to be what the manifest says."""
        try:
            with self.path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header: Any = json.loads(file.read(length)) if length < 2**20 else None
            places = {}
            for name, (dtype, shape) in self._shapes.items():
                entry = header[name]
                if (_SAFETENSORS_DTYPES[entry["dtype"]], tuple(entry["shape"])) != (dtype, shape):
                    raise damaged(self.path, f"{name} is {entry['dtype']} {entry['shape']}, not what the manifest says")
                places[name] = 8 + length + entry["data_offsets"][0]
        except FileNotFoundError as error:
            raise InputError(f"{self.path} is gone; extract again, which makes what is missing") from error
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise damaged(self.path, "its header cannot be read") from error
        return places

    def _read(self, name: str, span: slice) -> torch.Tensor:
        """Rows `span` of a tensor, without mapping the file: mapped pages would count as this process's memory."""
        dtype, shape = self._shapes[name]
        values = torch.empty(span.stop - span.start, *shape[1:], dtype=dtype)
        view = bytes_of(values)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self._places[name] + span.start * prod(shape[1:]) * dtype.itemsize)
                done = 0
                while done < len(view) and (n := file.readinto(view[done:])):
                    done += n
        except FileNotFoundError as error:
            raise InputError(f"{self.path} is gone; extract again, which makes what is missing") from error
        if done < len(view):
            raise damaged(self.path, "it is too short")
        return values


def bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.view(torch.uint8).numpy().data.cast("B") if tensor.numel() else memoryview(b"")


def damaged(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} is damaged ({what}); extract again with the settings that made it, which replaces damaged shards"
    )


def patient_number(patient_id: object) -> int:
    """A number of 52 bits for a patient: the same in every store, so that merged stores keep patients whole."""
    return int(hashlib.sha256(str(patient_id).encode()).hexdigest()[:13], 16)
