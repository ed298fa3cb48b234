"""The rules of the privacy guard: each looks at a staged folder and says what must not get out.

A rule names file and place, never what it found. To add one, write a function from `Staged` to problems and put it into
`RULES`; tests/test_guard.py then asks for a planted secret that only this rule finds.
"""

__all__ = ["DRAWN_HERE", "HASH_DIGITS", "is_small", "Problem", "Rule", "RULES", "shown", "Staged"]

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mammosae_plugin.datasets.about import DatasetAbout
from mammosae_plugin.files import sha256_of_file
from mammosae_plugin.privacy.context import PrivacyContext
from mammosae_plugin.privacy.machine import live_secrets, names_of_this_machine, ordinary_words
from mammosae_plugin.privacy.metadata import are_labels
from mammosae_plugin.privacy.numbers import lists_numbers, too_many_numbers
from mammosae_plugin.privacy.pictures import problems_of_pictures
from mammosae_plugin.privacy.policy import Policy
from mammosae_plugin.privacy.reading import ARROW_SCHEMA, Opened, Passage
from mammosae_plugin.privacy.search import Needles, readings
from mammosae_plugin.privacy.text import FINDERS, bare_dates, looks_private
from mammosae_plugin.schema.columns import Column

logger = logging.getLogger(__name__)

DRAWN_HERE: set[str] = set()
"""SHA-256 of the images of aggregates that this process drew, or re-encoded, as they were staged: see `let_out`."""

HASH_DIGITS = 32
_HASH = re.compile(rf"[0-9a-f]{{{HASH_DIGITS}}}")

_CLASSES = 16
"""How long a list in a column may be that is none of ours, and in a field of a struct: the classes of a concept."""

_IMAGE_KEYS = frozenset(
    {
        *("patient", "patientid", "patientids", "image", "imageid", "imageids", "imagepath", "imagepaths", "studyid"),
        *("studyinstanceuid", "seriesid", "seriesinstanceuid", "sopinstanceuid", "accession", "accessionnumber", "mrn"),
        *("cwd", "argv", "commandline", "user", "username", "login", "host", "hostname", "nodename", "machine", "home"),
        *("email", "phone", "address", "token", "password", "secret", "apikey"),
        *("birthdate", "dateofbirth", "age", "sex"),
        *("pixels", "thumbnail", "heatmap", "dicom", "exif", "institution", "hospital", "radiologist", "operator"),
    }
)
"""Keys (without case and punctuation) under which something stands about one image, patient, person or machine."""
_COUNT_KEYS = ("n_images", "n_patients", "n_positive", "n_negative", "n_rows")


@dataclass(frozen=True)
class Problem:
    """What a rule objects to: the file, and a clause that says what and what to do, without the secret.

    `text` is what looks private, where a person may see it and let it out.
    """

    path: str
    message: str
    text: str | None = None


@dataclass(frozen=True)
class Rule:
    """One rule of the guard.

    Attributes:
        name: its name in messages and in docs/privacy.md.
        what: what it is for.
        check: gives the problems in a staged folder.
    """

    name: str
    what: str
    check: Callable[["Staged"], Iterable[Problem]]


@dataclass
class Staged:
    """A staged folder as the rules see it."""

    folder: Path
    policy: Policy
    context: PrivacyContext
    files: tuple[Opened, ...]
    repo_id: str | None = None
    said: Mapping[str, str] = field(default_factory=dict)
    related: tuple[str, ...] = ()

    @cached_property
    def needles(self) -> Needles:
        words = {
            v for v in self.context.private_values if v.isalpha() and v.lower() in ordinary_words(self.context.concepts)
        }
        if words:
            logger.warning("%d ids are ordinary words here and are not looked for in what is published", len(words))
        return _needles(self.context.private_values - words)

    @cached_property
    def texts(self) -> list[tuple[Opened, Passage, tuple[str, ...]]]:
        """Every passage of every file in every reading; code that is the package's own word for word is left out."""
        return [
            (file, passage, tuple(dict.fromkeys(readings(self._without_repo(passage.text)))))
            for file in self.files
            for passage in file.passages
            if passage.where == "its name" or not self.is_own_code(file)
        ] + [  # without files, what is said is what a reader writes
            (
                Opened(what, self.folder),
                Passage("", text, is_free=not self.files),
                tuple(dict.fromkeys(readings(self._without_repo(text)))),
            )
            for what, text in self.said.items()
        ]

    def _without_repo(self, text: str) -> str:
        """The names of repositories are public, though they may hold the user's name."""
        for name in sorted({self.repo_id or "", *self.related} - {""}, key=len, reverse=True):
            text = text.replace(name, "owner/name")
        return text

    def place(self, passage: Passage) -> str:
        """A passage's place for a message, with the names that belong to it where they may be said."""
        names = [f" {word} {name}" for word, name in passage.names if self.may_be_said(name)]
        return f"{passage.where or 'it'}{''.join(names)}"

    def may_be_said(self, name: str) -> bool:
        """Whether a name that stands in a file may stand in a message: it is short and holds nothing private."""
        if not re.fullmatch(r"[^\W\d][\w .'/-]{0,79}", name) or re.search(r"\d{4}", name):
            return False
        names = [_whole_word(one) for _, one in names_of_this_machine(self.context.concepts)]
        return not any(
            self.needles.in_text(text) or looks_private(text) or any(word.search(text) for word in names)
            for text in readings(name)
        )

    def is_own_code(self, file: Opened) -> bool:
        """Whether a file is a page that comes with this package, byte for byte."""
        if self.policy.pages is None or file.suffix not in _CODE or "/" in file.path:
            return False
        own = self.policy.pages / file.path
        return own.is_file() and own.read_bytes() == bytes(file.data)

    def of(self, suffix: str) -> Iterator[Opened]:
        """The files of one ending."""
        return (file for file in self.files if file.suffix == suffix)


@lru_cache(maxsize=2)
def _needles(values: frozenset[str]) -> Needles:
    """Staging, publishing and every note of a reader look for the same ids."""
    return Needles(values)


def shown(name: str, staged: Staged) -> str:
    """A name for a message: digits that may be an id are left out, and all of it where it holds a secret."""
    secret = any(staged.needles.in_text(reading) for reading in readings(name))
    if secret or next(FINDERS["secrets"](name), None) is not None:
        return "a file whose name is itself private"
    if staged.policy.allows(name):
        return name
    return re.sub(r"(?=[0-9a-fA-F]*\d)[0-9a-fA-F]{6,}|\d{4,}", "…", name)


# -- rules: files and formats ------------------------------------------------------------------------------------------


def _file_names(staged: Staged) -> Iterator[Problem]:
    for file in staged.files:
        if not staged.policy.allows(file.path):
            yield Problem(file.path, "no such file belongs into this upload; take it out")


def _formats(staged: Staged) -> Iterator[Problem]:
    for file in staged.files:
        _ = file.passages, file.values
        for flaw in dict.fromkeys(file.flaws):
            yield Problem(file.path, f"the file {flaw}; write it anew")


def _figures(staged: Staged) -> Iterator[Problem]:
    for file in staged.of(".png"):
        if "figure_3" in file.path:
            yield Problem(file.path, "Figure 3 shows heatmaps over mammograms; leave it out")
        elif sha256_of_file(file.file) not in DRAWN_HERE:
            yield Problem(file.path, "the image was not drawn by this package; leave it out")


def _pictures(staged: Staged) -> Iterator[Problem]:
    for path, message in problems_of_pictures(staged.files, staged.context.why_no_pictures, DRAWN_HERE):
        yield Problem(path, message)


# -- rules: tables, tensors, JSON --------------------------------------------------------------------------------------


def _columns(staged: Staged) -> Iterator[Problem]:
    for file in staged.of(".parquet"):
        allowed = staged.policy.leaves.get(file.config, {})
        if file.parquet is None:
            continue
        for column, kind in _types(file.parquet.schema_arrow):
            if column not in allowed:
                name = column if re.fullmatch(r"[A-Za-z_.]{1,40}", column) else "whose name is not shown here"
                yield Problem(file.path, f"the config {file.config} has no column {name}; drop it")
            elif allowed[column].holds_text and not pa.types.is_string(kind):
                yield Problem(file.path, f"the column {column} is {kind} and must be plain text; write it so")
            elif not allowed[column].holds_text and not (
                pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
            ):
                yield Problem(file.path, f"the column {column} is {kind} and must hold numbers; write it so")


def _types(schema: Any) -> Iterator[tuple[str, pa.DataType]]:
    """Dotted column -> the type of its innermost values; a dictionary's type is itself."""
    for one in schema:
        yield from _inner_types(one.name, one.type)


def _inner_types(name: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        for i in range(kind.num_fields):
            yield from _inner_types(f"{name}.{kind.field(i).name}", kind.field(i).type)
    elif pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type):
        yield name, kind.value_type  # read so on purpose: see Opened.parquet
    else:
        yield name, kind


def _parquet_metadata(staged: Staged) -> Iterator[Problem]:
    for file in staged.of(".parquet"):
        if file.parquet is None:
            continue
        if any(place != ARROW_SCHEMA for place in file.metadata):
            yield Problem(
                file.path,
                "it has metadata beside its columns, as pandas writes it; write the table with pyarrow after "
                "table.replace_schema_metadata(None)",
            )
        if not re.fullmatch(r"parquet-cpp-arrow version [\d.]+", file.parquet.metadata.created_by or ""):
            yield Problem(file.path, "it does not come from pyarrow; write it with pyarrow")


def _tensors(staged: Staged) -> Iterator[Problem]:
    for file in staged.of(".safetensors"):
        if staged.policy.tensors is None:
            yield Problem(file.path, "no tensors belong into this upload; take them out")
        else:
            yield from (Problem(file.path, message) for message in staged.policy.tensors(file))


def _json_keys(staged: Staged) -> Iterator[Problem]:
    for file, place, value in _json_values(staged):
        for key in _keys(value):
            if re.sub(r"[^a-z0-9]", "", str(key).lower()) in _IMAGE_KEYS:
                yield Problem(file.path, f"{place or 'it'} has an entry {key!r}, which is about one image or person")


def _entries(staged: Staged) -> Iterator[Problem]:
    for file, place, value in _json_values(staged):
        allowed = staged.policy.entries_of(file.path, place)
        for key in dict.fromkeys(allowed.unknown(value)) if allowed is not None else ():
            name = repr(key) if staged.may_be_said(key) else "whose name is not shown here"
            yield Problem(file.path, f"{place or 'it'} has an entry {name}, which is not known to be harmless; drop it")


def _numbers(staged: Staged) -> Iterator[Problem]:
    for file, place, value in _json_values(staged):
        if file.suffix in (".js", ".safetensors"):
            continue  # pages hold whole tables; `pixels` looks at them
        if (what := too_many_numbers(value)) is not None:
            yield Problem(file.path, f"{place or 'it'} has {what}, which may be an image or a row per image; drop it")
    for file, passage, _ in staged.texts:
        if passage.whole and file.suffix not in (".json", ".jsonl") and lists_numbers(passage.text):
            yield Problem(file.path, f"{staged.place(passage)} lists numbers, which may be an image; leave them out")


def _pixels(staged: Staged) -> Iterator[Problem]:
    for file in staged.of(".parquet"):
        longest = {column.name: column.longest for column in staged.policy.columns.get(file.config, ())}
        for name, column in zip(*_top_columns(file), strict=True):
            most = longest.get(name, _CLASSES)
            if any(_longest(chunk, most) > most for chunk in column.chunks):
                yield Problem(file.path, f"a list in the column {name} is longer than {most}: it may be an image")
    for file, place, value in _json_values(staged):
        if _holds_pixels(value):
            yield Problem(file.path, f"{place or 'it'} has numbers that lie as the pixels of an image do; drop them")
    for file, passage, texts in staged.texts:
        if any(_BLOCK.search(text) for text in texts):
            yield Problem(
                file.path, f"{staged.place(passage)} has a block of encoded data, such as an image; take it out"
            )


_BLOCK = re.compile(r"data:[\w.+/-]*;base64,|[A-Za-z0-9+/_-]{200,}")


def _top_columns(file: Opened) -> tuple[list[str], list[Any]]:
    return ([], []) if file.table is None else (file.table.column_names, file.table.columns)


def _longest(array: Any, most: int) -> int:
    """The longest list in an array, at any depth; more than `most` where one in a struct is longer than classes."""
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        own = pc.max(pc.list_value_length(array)).as_py() or 0
        return max(own, _longest(array.flatten(), most))
    if pa.types.is_struct(kind):
        inner = [_longest(array.field(i), _CLASSES) for i in range(kind.num_fields)]
        return most + 1 if any(length > _CLASSES for length in inner) else 0
    return 0


def _holds_pixels(value: Any) -> bool:
    """Whether numbers lie in a rectangle of 12 x 12 or more, or 256 or more of them are bytes that repeat."""
    if isinstance(value, Mapping):
        return any(_holds_pixels(item) for item in value.values())
    if not isinstance(value, list):
        return False
    rows = [item for item in value if isinstance(item, list)]
    if len(rows) >= 12 and len({len(row) for row in rows}) == 1 and len(rows[0]) >= 12:
        return all(isinstance(cell, (int, float)) for row in rows for cell in row)
    if len(value) >= 256 and all(isinstance(cell, int) and 0 <= cell <= 255 for cell in value):
        return 16 < len(set(value)) <= len(value) / 2
    return any(_holds_pixels(item) for item in value if isinstance(item, (dict, list)))


def _json_values(staged: Staged) -> Iterator[tuple[Opened, str, Any]]:
    return ((file, place, value) for file in staged.files for place, value in file.values)


def _keys(value: Any) -> Iterator[str]:
    for item in _objects(value):
        yield from item


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in a JSON value."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(item, (dict, list)):  # of other values there are millions
            yield from _objects(item)


# -- rules: text -------------------------------------------------------------------------------------------------------


def _private_values(staged: Staged) -> Iterator[Problem]:
    advice = "an id of a patient, an image or a study; leave it out, or hash it with hash_ids"
    for file in staged.files:
        if staged.needles.in_bytes(file.searched) is not None:
            yield Problem(file.path, f"its bytes hold {advice}")
    for file, passage, texts in staged.texts:
        if any(staged.needles.in_text(text) for text in texts):
            yield Problem(file.path, f"{staged.place(passage)} holds {advice}")


def _this_machine(staged: Staged) -> Iterator[Problem]:
    for what, name in names_of_this_machine(staged.context.concepts):
        pattern = _whole_word(name)
        for file, passage, texts in staged.texts:
            if any(pattern.search(text) for text in texts) and not staged.context.allows(name):
                yield Problem(
                    file.path,
                    f"{staged.place(passage)} holds the name of this computer's {what} ({len(name)} letters); take it "
                    "out, or say it otherwise if it is an ordinary word there",
                )


def _whole_word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", re.IGNORECASE)


def _secrets(staged: Staged) -> Iterator[Problem]:
    yield from _tokens(staged)
    live = Needles(live_secrets(), separated=False)
    advice = "a token or password of this computer; take it out"
    for file in staged.files:
        if live.in_bytes(file.searched) is not None:
            yield Problem(file.path, f"its bytes hold {advice}")
    for file, passage, texts in staged.texts:
        if any(live.in_text(text) for text in texts):
            yield Problem(file.path, f"{staged.place(passage)} holds {advice}")


def _free_text(name: str, advice: str) -> Callable[[Staged], Iterator[Problem]]:
    """The rule by which what looks private in a text needs a person's word."""

    def check(staged: Staged) -> Iterator[Problem]:
        for file, passage, texts in staged.texts:
            finders = [FINDERS[name], *((bare_dates,) if name == "clinical" and passage.is_free else ())]
            for what, found in dict.fromkeys(one for text in texts for find in finders for one in find(text)):
                if not staged.context.allows(found):
                    yield Problem(file.path, f"{staged.place(passage)} holds {what}; {advice}", found)

    return check


_paths = _free_text("paths", "leave out all but the file's name")
_clinical = _free_text("clinical", "leave it out")
_contacts = _free_text("contacts", "take it out")
_tokens = _free_text("secrets", "take it out, and revoke it if it ever left this machine")


def _parts_of_ids(staged: Staged) -> Iterator[Problem]:
    for file, passage, texts in staged.texts:
        for found in dict.fromkeys(one for text in texts for one in staged.needles.parts_in(text)):
            if not staged.context.allows(found):
                what = "the beginning or end of an id of a patient, an image or a study; leave it out"
                yield Problem(file.path, f"{staged.place(passage)} holds {what}", found)


# -- rules: rows, groups, code -----------------------------------------------------------------------------------------


def _keyed_hashes(staged: Staged) -> Iterator[Problem]:
    """`private values` finds unkeyed digests of known ids; here, what cannot be a keyed hash at all."""
    for file in staged.of(".parquet"):
        own = staged.policy.leaves.get(file.config, {}).items()
        for column in [name for name, one in own if one.privacy == "image" and one.holds_text]:
            for array in file.leaves.get(column, []):
                texts = array.drop_null().to_pylist() if pa.types.is_string(array.type) else []
                if not all(map(_HASH.fullmatch, texts)):
                    yield Problem(file.path, f"the column {column} must hold ids hashed under a key: use hash_ids")


def _per_image_rows(staged: Staged) -> Iterator[Problem]:
    for file in staged.of(".parquet"):
        if not staged.policy.names(file.config, "image"):
            continue
        if not staged.context.datasets:
            yield Problem(file.path, "it has a row per image, and whose images they are is not known; name the dataset")
        for dataset in staged.context.restricted:
            if not _names_licence(staged.context.licence, dataset):
                where = f" ({dataset.url})" if dataset.url else ""
                yield Problem(
                    file.path,
                    f"it has a row per image of {dataset.title}: {dataset.why or 'its owner has not allowed that'}. "
                    "Leave the examples out, or, if you have the right, say "
                    f"licence='{dataset.licence or '...'}'{where}",
                )


def _names_licence(licence: str | None, dataset: DatasetAbout) -> bool:
    return licence is not None and all(word in licence.lower() for word in dataset.licence_words)


def _small_groups(staged: Staged) -> Iterator[Problem]:
    least = staged.context.min_group
    message = f"it has a statistic of fewer than {least} images or patients; set it to null"
    groups: dict[tuple[Any, ...], bool] = {}
    statistics, counts = (
        {config: staged.policy.names(config, privacy) for config in staged.policy.columns}
        for privacy in ("group", "count")
    )

    def tells(config: str, row: Mapping[str, Any]) -> bool:
        return any(row.get(name) is not None for name in statistics.get(config, ()))

    for file in staged.of(".parquet"):
        rows = file.table.to_pylist() if file.table is not None and counts.get(file.config) else []
        if file.config == "reconstruction":
            groups = {_group(row): _small_row(row, least) for row in rows}
        if any(_small_row(row, least) and tells(file.config, row) for row in rows):
            yield Problem(file.path, message)
        if any(_small_class(staged.policy.columns[file.config], row, least) for row in rows):
            yield Problem(file.path, message)
        if file.config == "histograms" and file.table is not None and _small_bins(file.table, least):
            yield Problem(file.path, message.replace("set it to null", "join it with its neighbour"))
        if file.config == "names" and any(row.get("n") is None or 0 < row["n"] < least for row in rows):
            yield Problem(file.path, message.replace("set it to null", "leave the name out"))
    for file in staged.of(".parquet"):
        if file.config == "interventions" and file.table is not None:
            known = {"layer", "model", "concept"} <= set(file.table.column_names)
            rows = file.table.to_pylist() if known else []
            if any(groups.get(_group(row), True) and tells(file.config, row) for row in rows):
                yield Problem(file.path, f"{message}, as in the table of reconstruction")
    for file, _, value in _json_values(staged):
        if file.suffix != ".parquet" and any(_small_row(one, least) and _has_statistic(one) for one in _objects(value)):
            yield Problem(file.path, message)


def _small_bins(table: pa.Table, least: int) -> bool:
    """Whether a bin of a histogram holds few images; so few are of few patients too."""
    counts = [table[name].combine_chunks() for name in ("n_images", "n_silent") if name in table.column_names]
    flat = [one.flatten() if pa.types.is_list(one.type) else one for one in counts]
    return any(bool(pc.any(pc.and_(pc.greater(one, 0), pc.less(one, least))).as_py()) for one in flat)


def _group(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("layer", "model", "concept"))


def _small_row(row: Mapping[str, Any], least: int) -> bool:
    """Whether one of a row's counts is too small, or is not told."""
    counts = [row[key] for key in _COUNT_KEYS if key in row and isinstance(row[key], (int, float, type(None)))]
    if isinstance(row.get("n_rows"), int) and isinstance(row.get("n_positive"), int):
        counts.append(row["n_rows"] - row["n_positive"])
    return any(is_small(count, least) for count in counts)


def _has_statistic(row: Mapping[str, Any]) -> bool:
    """Whether an object of JSON, whose entries no schema declares, has one."""
    return any(isinstance(value, float) and math.isfinite(value) and key not in _SETTINGS for key, value in row.items())


_SETTINGS = ("iou_threshold", "threshold", "percentile", "share")


def is_small(count: Any, min_group: int) -> bool:
    """Whether a group is too small; one of unknown size is."""
    return count is None or not count >= min_group


def _small_class(columns: Sequence[Column], row: Mapping[str, Any], least: int) -> bool:
    """Whether lists over classes, in a column of structs, tell something of a class that is too small."""
    for column in columns:
        counts, told = (
            [one.name for one in column.fields if one.privacy == privacy and pa.types.is_list(one.dtype)]
            for privacy in ("count", "group")
        )
        for entry in (row.get(column.name) or []) if counts else []:
            small = {n for name in counts for n, one in enumerate(entry.get(name) or []) if is_small(one, least)}
            if any(one is not None and n in small for name in told for n, one in enumerate(entry.get(name) or [])):
                return True
    return False


def _names_of_metadata(staged: Staged) -> Iterator[Problem]:
    said = {(file.config, place): value for file, place, value in _json_values(staged) if file.suffix == ".parquet"}
    for file in staged.of(".parquet"):
        rows = file.table.to_pylist() if file.table is not None and file.config == "names" else []
        if not are_labels(rows, said.get(("study", "column config")), said.get(("study", "column data"))):
            yield Problem(
                file.path,
                "a latent is named after something that is no label of the data, such as a site or a machine; leave it "
                "out, or allow its column by analysis.names.share of the study's configuration",
            )


_CODE = (".html", ".css", ".js")


def _own_code(staged: Staged) -> Iterator[Problem]:
    for file in staged.files:
        if file.suffix in _CODE and not file.path.startswith("data/") and not staged.is_own_code(file):
            yield Problem(file.path, "it is not the page that comes with this package; build the Space again")


RULES: tuple[Rule, ...] = (
    Rule("file names", "only files that belong into such an upload", _file_names),
    Rule("formats", "a file is what its ending says, and nothing stands behind or between", _formats),
    Rule("figures", "images are those that the stager drew, or re-encoded from a study's own", _figures),
    Rule("pictures", "images of patients only where their owner allows it and they were asked for", _pictures),
    Rule("columns", "only the columns that are declared, of their kind", _columns),
    Rule(
        "table metadata", "tables have no metadata: indexes, attributes and schemas of pandas stay", _parquet_metadata
    ),
    Rule("tensors", "only the tensors of an SAE, of the shapes in its cfg.json, without metadata", _tensors),
    Rule("keys", "no JSON or YAML entry about one image, person or machine", _json_keys),
    Rule("entries", "only the JSON and YAML entries that this package and SAELens write", _entries),
    Rule("numbers", "no more numbers together in JSON, YAML or a text than settings and aggregates have", _numbers),
    Rule("pixels", "no list of numbers or encoded block that can be an image", _pixels),
    Rule("private values", "no id of a patient, image or study, in any encoding or unkeyed hash", _private_values),
    Rule("this machine", "no name of this computer's user or host", _this_machine),
    Rule("parts of ids", "no first or last 8 digits of an id", _parts_of_ids),
    Rule("paths", "no path of a file", _paths),
    Rule("clinical", "nothing of a DICOM header, no labelled id, no date of birth or of an examination", _clinical),
    Rule("secrets", "no token, key or password", _secrets),
    Rule("contacts", "no e-mail address, phone number, local network address or host", _contacts),
    Rule("keyed hashes", "images and patients of `examples` only as hashes under a key", _keyed_hashes),
    Rule("per-image rows", "no row per image of a restricted dataset without its licence named", _per_image_rows),
    Rule("small groups", "no statistic of fewer images or patients than `min_group`", _small_groups),
    Rule(
        "names of metadata", "no latent named after what is no label, such as a site or a machine", _names_of_metadata
    ),
    Rule("own code", "pages run no code but this package's", _own_code),
)
"""Every rule, in the order in which they are held against a folder."""
