"""Opening staged files for the privacy guard: their own bytes, taken apart as far as their format goes.

Nothing here trusts a name or a claim. What cannot be read is a flaw, and a flaw stops the upload.
"""

__all__ = ["ARROW_SCHEMA", "Opened", "Passage", "strings"]

import json
import math
import mmap
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from mammosae_plugin.files import parse_yaml
from mammosae_plugin.privacy.search import Buffer

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_ASSIGNMENT = re.compile(r"\A\s*(?:(?:const|var|let)\s+)?[\w.$\[\]\"'/-]+\s*=\s*(.*?);?\s*\Z", re.DOTALL)
_COLUMN = re.compile(r"(?:(?:-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|null),){16,}")
_NO_IDS = re.compile(rb"(?<![\w.+-])(?:(?:-?\d{1,6}(?:\.\d+(?:[eE][-+]\d+)?)?|-?\d[eE][-+]\d+|null),){16,}")
ARROW_SCHEMA = "metadata ARROW:schema"
_LONG = 1e6  # so large a whole number may be an id
_JSON_LIKE = re.compile(r"\A\s*[\[{]")


@dataclass(frozen=True)
class Passage:
    """A piece of text in a staged file.

    Attributes:
        where: its place in the file, for messages; never the text itself.
        text: the text.
        whole: whether the text is all that stands there (a value), and not a page.
        names: whose it is, as (word, name), where that helps to find it: ("by", "reader A"). They may be private.
        is_free: whether a person wrote it in their own words: a note, a title.
    """

    where: str
    text: str
    whole: bool = True
    names: tuple[tuple[str, str], ...] = ()
    is_free: bool = False


@dataclass
class Opened:
    """A staged file.

    Attributes:
        path: its path in the folder, with forward slashes.
        file: where it lies.
        flaws: what is wrong with its format.
    """

    path: str
    file: Path
    flaws: list[str] = field(default_factory=list)

    @property
    def suffix(self) -> str:
        return self.file.suffix.lower()

    @cached_property
    def data(self) -> memoryview:
        """Every byte."""
        with self.file.open("rb") as file:
            if not self.file.stat().st_size:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    @cached_property
    def searched(self) -> Buffer:
        """The bytes where an id could stand: all but the columns of decimals and short numbers of a Space's data.

        No id is found in a decimal, nor is one as short as a whole number there; longer numbers stay. Coded pixels hold
        any short id by chance: of pictures, the rule about them asks that there is nothing else.
        """
        if self.suffix == ".webp":
            return b""
        return _NO_IDS.sub(b" ", self.data) if self.suffix == ".js" else self.data

    @cached_property
    def text(self) -> str:
        """The text of a text file; empty for others and for what is no UTF-8."""
        if self.suffix in (".png", ".webp", ".parquet", ".safetensors"):
            return ""
        try:
            text = bytes(self.data).decode("utf-8")
        except UnicodeDecodeError:
            self.flaws.append("is not UTF-8 text")
            return ""
        if re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", text):
            self.flaws.append("is text with control characters in it")
        return text

    @cached_property
    def values(self) -> list[tuple[str, Any]]:
        """(place, JSON value) of JSON, JSON lines, YAML, front matter, JavaScript data, tensors' headers, tables."""
        text = self.text
        try:
            match self.suffix:
                case ".json":
                    return [("", _strict_json(text))]
                case ".jsonl":
                    return [(f"line {n}", _strict_json(line)) for n, line in enumerate(text.splitlines(), 1) if line]
                case ".yaml" | ".yml":
                    return [("", _strict_yaml(text))]
                case ".md":
                    found = _FRONT_MATTER.match(text)
                    return [("front matter", _strict_yaml(found[1]))] if found else []
                case ".js" if self.path.startswith("data/"):
                    found = _ASSIGNMENT.match(text)
                    if found is None:
                        raise ValueError("it is not `name = JSON;`")
                    return [("", _strict_json(found[1]))]
                case ".safetensors":
                    return [("header", self.tensors)]
                case ".parquet":
                    return self.json_columns
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            self.flaws.append(f"cannot be read as {self.suffix[1:]} ({type(error).__name__})")
        return []

    @cached_property
    def passages(self) -> list[Passage]:
        """All text in the file: itself, every string value and key, names and metadata."""
        found = [Passage("its name", self.path)]
        if self.text:
            # Columns of numbers, of which a Space's data have millions, say nothing in words.
            text = _COLUMN.sub(" ", self.text) if self.suffix == ".js" else self.text
            found.append(Passage("", text, whole=False))
        for place, value in self.values:
            found += [Passage(f"{place}{' ' if place else ''}{where}".strip(), text) for where, text in strings(value)]
        if self.table is not None:
            found += self._parquet_passages()
        return list({(passage.text, passage.whole): passage for passage in found}.values())

    # -- safetensors -------------------------------------------------------------------------------------------------

    @cached_property
    def tensors(self) -> dict[str, Any]:
        """The header: tensor -> dtype, shape, data_offsets; and `__metadata__`."""
        data = self.data
        if len(data) < 8:
            raise ValueError("it is too short")
        (size,) = struct.unpack("<Q", data[:8])
        if size > len(data) - 8:
            raise ValueError("its header is longer than the file")
        header = _strict_json(bytes(data[8 : 8 + size]).decode("utf-8"))
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        end = 0
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        for start, stop in sorted(tuple(entry["data_offsets"]) for entry in tensors):
            if start != end:
                raise ValueError("its tensors do not lie side by side")
            end = stop
        if 8 + size + end != len(data):
            raise ValueError("it does not end where its tensors end")
        return header

    # -- parquet -----------------------------------------------------------------------------------------------------

    @property
    def config(self) -> str:
        """The config of a findings file: the name of its folder."""
        return self.path.partition("/")[0]

    @cached_property
    def parquet(self) -> pq.ParquetFile | None:
        """The parquet file, its strings as dictionaries where the file has them so."""
        if self.suffix != ".parquet":
            return None
        try:
            plain = pq.ParquetFile(self.file)
            texts = [f.name for f in plain.schema_arrow if pa.types.is_string(f.type)]
            file = pq.ParquetFile(self.file, read_dictionary=texts)
            self.flaws += _hidden_bytes(file, self.data)
            return file
        except (OSError, ValueError, pa.ArrowException) as error:
            self.flaws.append(f"cannot be read as parquet ({type(error).__name__})")
            return None

    @cached_property
    def table(self) -> pa.Table | None:
        """Its rows."""
        try:
            return self.parquet.read() if self.parquet is not None else None
        except (OSError, ValueError, pa.ArrowException) as error:
            self.flaws.append(f"cannot be read as parquet ({type(error).__name__})")
            return None

    @cached_property
    def leaves(self) -> dict[str, list[pa.Array]]:
        """Dotted column -> its innermost values, dictionaries and values under nulls included."""
        found: dict[str, list[pa.Array]] = {}
        if self.table is not None:
            for name, column in zip(self.table.column_names, self.table.columns, strict=True):
                for chunk in column.chunks:
                    for path, array in _innermost(name, chunk):
                        found.setdefault(path, []).append(array)
        return found

    @cached_property
    def metadata(self) -> dict[str, str]:
        """Place -> text of everything in a parquet file that is no value: key-value metadata of file and columns."""
        if self.parquet is None:
            return {}
        found = {
            f"metadata {_text(key)}": _text(value) for key, value in (self.parquet.metadata.metadata or {}).items()
        }
        schema = self.parquet.schema_arrow
        for key, value in (schema.metadata or {}).items():
            found[f"metadata {_text(key)}"] = _text(value)
        for name, one in _fields(schema):
            for key, value in (one.metadata or {}).items():
                if _text(key) != "PARQUET:field_id":
                    found[f"metadata {_text(key)} of column {name}"] = _text(value)
        return found

    @cached_property
    def json_columns(self) -> list[tuple[str, Any]]:
        """Strings of a parquet file that hold JSON: (place, value)."""
        found = []
        for path, arrays in self.leaves.items():
            for array in arrays:
                if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
                    for text in array.drop_null().unique().to_pylist():
                        if _JSON_LIKE.match(text):
                            try:
                                found.append((f"column {path}", _strict_json(text)))
                            except ValueError:
                                continue  # a note may begin with a bracket; it is looked at as text
        for place, text in self.metadata.items():
            if _JSON_LIKE.match(text):
                found.append((place, _strict_json(text)))
        return found

    def _parquet_passages(self) -> Iterator[Passage]:
        for path, arrays in self.leaves.items():
            yield Passage("a column's name", path)
            for array in arrays:
                yield from (Passage(f"column {path}", text) for text in _texts_of(array))
        for place, text in self.metadata.items():
            if place == ARROW_SCHEMA:
                continue  # the names and metadata in it are looked at as such
            yield Passage("the name of an entry of its metadata", place.removeprefix("metadata "))
            yield Passage("its metadata", text, whole=False)
        if self.parquet is not None:
            yield Passage("its creator", self.parquet.metadata.created_by or "")
        yield from self._passages_of_notes()  # last: of passages with the same text the last one stays

    def _passages_of_notes(self) -> Iterator[Passage]:
        """Texts of readers' notes, placed by layer, latent and author, so that whoever publishes finds them."""
        columns = ("layer", "latent", "notes")
        if self.table is None or not set(columns) <= set(self.table.column_names):
            return
        table = self.table.select(columns)
        if not pa.types.is_list(table.schema.field("notes").type):
            return
        for row in table.filter(pc.greater(pc.list_value_length(table["notes"]), 0)).to_pylist():
            for note in row["notes"]:
                for name, text in note.items() if isinstance(note, dict) else ():
                    if isinstance(text, str):
                        names = (("of layer", str(row["layer"])), ("by", str(note.get("author") or "")))
                        where = f"the {name} of a note on latent {row['latent']}"
                        yield Passage(where, text, names=names, is_free=name != "created")


def strings(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(place, text) of every string and key in a JSON value; whole numbers of 7 digits and more as text too."""
    if isinstance(value, (int, float)):
        if text := _long_number(value):
            yield where, text
    elif isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield "a key", str(key)
            yield from strings(item, f"key {key}" if str(key).isidentifier() else "a key")
    elif isinstance(value, Sequence):
        for item in value:
            if not isinstance(item, (int, float)) or abs(item) >= _LONG:  # of numbers there are millions
                yield from strings(item, where)


def _long_number(value: float) -> str:
    whole = math.isfinite(value) and value == int(value) and abs(value) >= _LONG
    return str(abs(int(value))) if whole else ""


def _strict_json(text: str) -> Any:
    """JSON without NaN, and without a key twice (of which readers show only the last)."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, object_pairs_hook=once, parse_constant=no_constant)


def _strict_yaml(text: str) -> Any:
    """YAML of plain values without a key twice; tags of other languages' objects are refused by the safe loader."""
    return parse_yaml(text, where="it")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _fields(schema: Any, prefix: str = "") -> Iterator[tuple[str, pa.Field]]:
    for one in schema:
        yield f"{prefix}{one.name}", one
        yield from _inner_fields(one.type, f"{prefix}{one.name}.")


def _inner_fields(kind: pa.DataType, prefix: str) -> Iterator[tuple[str, pa.Field]]:
    if pa.types.is_struct(kind):
        yield from _fields([kind.field(i) for i in range(kind.num_fields)], prefix)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield f"{prefix}item", kind.value_field
        yield from _inner_fields(kind.value_type, prefix)


def _innermost(path: str, array: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    kind = array.type
    if pa.types.is_struct(kind):
        for i in range(kind.num_fields):
            yield from _innermost(f"{path}.{kind.field(i).name}", array.field(i))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _innermost(path, array.values)
    elif pa.types.is_dictionary(kind):
        yield path, array.dictionary
    elif isinstance(array, pa.ExtensionArray):
        yield from _innermost(path, array.storage)
    else:
        yield path, array


def _texts_of(array: pa.Array) -> Iterator[str]:
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield from array.drop_null().unique().to_pylist()
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        yield from (value.decode("latin-1") for value in array.drop_null().to_pylist())
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        yield from filter(None, map(_long_number, array.drop_null().unique().to_pylist()))
    elif not (pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        yield from map(str, array.drop_null().to_pylist())


def _hidden_bytes(file: pq.ParquetFile, data: memoryview) -> list[str]:
    """Bytes of a parquet file that belong neither to a column nor to the footer: nobody would see them."""
    metadata = file.metadata
    (footer,) = struct.unpack("<I", data[-8:-4])
    end = 4
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            if start != end:
                return ["has bytes between its columns"]
            end = start + chunk.total_compressed_size
    return [] if end == len(data) - 8 - footer else ["has bytes between its columns and its footer"]
