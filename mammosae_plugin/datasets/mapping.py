"""A mapping says, in YAML, how a table and image files become a dataset; presets are the mappings that ship with us."""

__all__ = [
    "BoxMapping", "CovariateMapping", "describe_presets", "ImageMapping", "LabelMapping", "load_mapping", "MadeSplit",
    "MAPPING_FILE", "MaskMapping", "preset_names", "read_mapping", "Reader", "reader", "register_reader",
    "SplitMapping", "TextColumn",
]  # fmt: skip

import os
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BeforeValidator, Field, field_validator, model_validator
from typing_extensions import Self

from mammosae_plugin.arguments import shown
from mammosae_plugin.datasets.about import KNOWN, PHANTOMS, DatasetAbout
from mammosae_plugin.datasets.concepts import ABSENT, PRESENT, Concept, Kind, nearest_names
from mammosae_plugin.datasets.splits import split_word
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, parse_yaml
from mammosae_plugin.validation import Settings

MAPPING_FILE = "mapping.yaml"
PRESETS = Path(__file__).parent / "presets"
RESERVED = ("image_id", "patient_id", "split", "exam_id", "laterality", "view")
_OF_BOXES = ("xmin", "ymin", "xmax", "ymax", "mask", "line", "file", "image_row")
_IN_BRACES = re.compile(r"\{([^{}]+)\}")


def _text(value: Any) -> Any:
    """A cell as YAML may have it: numbers are what the cell's text is.

    Raises:
        ValueError: it is a truth value, of which nobody knows whether true, True, yes or on was written.
    """
    if isinstance(value, bool):
        raise ValueError("yes, no, on, off, true and false are truth values to YAML; write the cell's text in quotes")
    return str(value) if isinstance(value, (int, float)) else value


def _texts(values: Any) -> Any:
    if isinstance(values, (str, int, float)):
        values = [values]
    return [_text(value) for value in values] if isinstance(values, (list, tuple)) else values


def _cells(values: Any) -> Any:
    if not isinstance(values, Mapping):
        return values
    return {_text(key): _text(value) for key, value in values.items()}


Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]
"""One text or a list of them."""
Meanings = Annotated[dict[str, str | None], BeforeValidator(_cells)]
"""By the cell's text what it means; nothing (null) where it means that the value is missing."""


class TextColumn(Settings):
    """A column of text, or a pattern of columns."""

    column: str = Field(description="A column, or a pattern of columns in braces such as {patient}_{side}.")
    values: Meanings = Field(
        {}, description="By cell what it means, such as {LEFT: L}; null where it says nothing. Others stay."
    )


def _as_column(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


Column = Annotated[TextColumn, BeforeValidator(_as_column)]


class MadeSplit(Settings):
    """A split that is drawn (`make_split`): groups stay whole."""

    by: Texts = Field(("patient_id",), description="What is kept together: names of columns, or of what they became.")
    stratify: Texts = Field((), description="Columns or labels of which each part has its share.")
    held_out: dict[str, Texts] = Field({}, description="By column, the values whose groups are all test (sites).")
    shares: dict[str, float] | None = Field(
        None,
        description="The share of each part; 0.8 training and 0.2 test, or all training where sites are held out.",
    )
    seed: int = Field(42, ge=0, description="Of the draw.")

    @field_validator("shares")
    @classmethod
    def _parts(cls, shares: dict[str, float] | None) -> dict[str, float] | None:
        for name in shares or {}:
            split_word(name)
        return shares


class SplitMapping(Settings):
    """Which images are training and test: a column, a file, or drawn here; one of the three."""

    column: str | None = Field(None, description="A column with the split of every row.")
    values: dict[str, Texts] = Field(
        {},
        description="By part the cells that mean it, such as {training: [train, val], test: [test]}; without them "
        "train, val, test and their longer forms.",
    )
    file: str | None = Field(
        None,
        description="A CSV, parquet or xlsx file, relative to root, with the column split and those that name images, "
        "patients or exams; images that it does not name are left out.",
    )
    make: MadeSplit | None = Field(None, description="Draw it here: by, stratify, held_out, shares, seed.")

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        if sum(one is not None for one in (self.column, self.file, self.make)) != 1:
            raise ValueError("give one of column, file and make")
        if self.values and self.column is None:
            raise ValueError("values are of a column")
        for name in self.values:
            split_word(name)
        return self


class LabelMapping(Settings):
    """What the cells of a column say of one concept. A label that they do not tell is missing, neither 0 nor 1.

    A label of two classes is told by 0 and 1 (true, false, yes, no), by the names of its `classes`, by `contains` or by
    `positive`.
    """

    column: str | None = Field(None, description="The column (or pattern); by default the label's own name.")
    kind: Kind | None = Field(
        None, description="binary, graded (classes in an order) or multiclass; by default what the classes suggest."
    )
    classes: Texts | None = Field(
        None,
        description="The names of the classes in the order of their numbers. Without them a graded label is whole "
        "numbers from 0, a multiclass one has what its cells hold.",
    )
    values: Meanings = Field(
        {}, description="By cell the class that it means, such as {DENSITY A: A}; null where it is missing."
    )
    contains: Texts | None = Field(
        None, description="The label is 1 where the cell, a printed list or one name, has one of these."
    )
    positive: Texts | None = Field(None, description="The label is 1 where the cell is one of these, else 0.")
    negative: Texts | None = Field(
        None, description="With positive: the cells that are 0; what is in neither list is then refused."
    )
    any_of: Texts | None = Field(
        None, description="Other labels of two classes, or columns of 0 and 1, of which one must be 1."
    )
    empty: Annotated[str | None, BeforeValidator(_text)] = Field(
        None, description="The class that an empty cell means, such as absent or 0; by default it is missing."
    )
    rows: Literal["same", "highest"] | None = Field(
        None,
        description="Several rows of one image: same refuses different values, highest takes the highest class (1 "
        "where any row has it). By default highest for findings (binary labels, where rows are findings), else same.",
    )
    located: bool = Field(True, description="Whether boxes and masks in a row with this label (binary) are its own.")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        how = [name for name in ("contains", "positive", "any_of", "classes") if getattr(self, name) is not None]
        if len(how) > 1:
            raise ValueError(f"{' and '.join(how)}: give one of them")
        if self.any_of is not None and (self.column is not None or self.values or self.empty is not None):
            raise ValueError("any_of is of other labels and takes no column, values or empty")
        if self.negative is not None and self.positive is None:
            raise ValueError("negative goes with positive")
        if how and how != ["classes"] and self.concept_kind != "binary":
            raise ValueError(f"{how[0]} makes a label of two classes, not one that is {self.kind}")
        if self.classes is not None:
            _ = self.concept("label", self.classes)
        if self.empty is not None and self.concept_kind == "binary":
            self.class_number(self.empty)
        return self

    @property
    def concept_kind(self) -> Kind:
        """binary, graded or multiclass."""
        if self.kind is not None:
            return self.kind
        return "multiclass" if self.classes is not None and len(self.classes) > 2 else "binary"

    def concept(self, name: str, classes: tuple[str, ...] = (ABSENT, PRESENT), **places: bool) -> Concept:
        """The concept of this name."""
        return Concept(name, self.concept_kind, classes, **places)

    def class_number(self, word: str) -> int:
        """Of a binary label: 0 or 1 for the name of a class, or for 0 and 1."""
        names = self.classes or (ABSENT, PRESENT)
        if word in names or word in ("0", "1"):
            return names.index(word) if word in names else int(word)
        raise ValueError(f"empty: {shown(word)} is no class; write {names[0]} or {names[1]}")


def _as_label(label: Any) -> Any:
    """The section that a column, a kind, or the names of the classes stand for."""
    if isinstance(label, str):
        return {"kind": label} if label in ("binary", "graded", "multiclass") else {"column": label}
    if isinstance(label, (list, tuple)):
        return {"classes": label}
    return {} if label is None else label


def _by_name(labels: Any) -> Any:
    if not isinstance(labels, (list, tuple)):
        return labels
    for one in labels:
        if not isinstance(one, str):
            raise ValueError(f"{shown(one)} in the list is no name; a list has names alone, else write name: ... each")
    return {name: {} for name in labels}


Labels = Annotated[
    dict[str, Annotated[LabelMapping, BeforeValidator(_as_label)]], BeforeValidator(_by_name), Field(min_length=1)
]


class BoxMapping(Settings):
    """Where boxes stand, and in which form. A box is of the located labels that are 1 in its row."""

    columns: tuple[str, str, str, str] | None = Field(None, description="Four columns, in the order of `form`.")
    json_column: str | None = Field(
        None,
        alias="json",
        description="A column that holds one box or a list of boxes as JSON or as Python prints it: four numbers in "
        "the order of `form`, or {xmin, ymin, xmax, ymax} or {x, y, width, height}.",
    )
    form: Literal["xyxy", "xywh", "yxyx"] = Field(
        "xyxy", description="xyxy: xmin, ymin, xmax, ymax; xywh: xmin, ymin, width, height; yxyx: y before x."
    )
    pixels: Literal["original", "prepared", "shares"] = Field(
        "original",
        description="original: pixels of the image before it is prepared (cropped, resized), which are those of the "
        "image files where these are not prepared any more; prepared: pixels of the prepared image; shares (0 to 1) "
        "of the image's width and height.",
    )
    origin: Literal[0, 1] = Field(0, description="The number of the first pixel.")
    size: tuple[str, str] | None = Field(
        None, description="The columns of the original image's height and width, by which boxes are checked."
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.columns is None) == (self.json_column is None):
            raise ValueError("give the columns of the boxes, or the column `json`")
        if self.pixels == "shares" and self.origin:
            raise ValueError("shares of the image have no first pixel; leave origin out")
        return self


class MaskMapping(Settings):
    """Where masks lie; boxes follow from their connected parts. A mask is of the located labels of its row."""

    image: str = Field(
        description="A column with a file, or a pattern such as masks/{image_id}*.png, relative to root; with {label} "
        "a mask is of that label. Several files may fit. PNG or DICOM; what is not 0 belongs to the finding."
    )
    min_area: int = Field(1, ge=1, description="Connected parts of fewer pixels make no box.")


Masks = Annotated[MaskMapping, BeforeValidator(lambda one: {"image": one} if isinstance(one, str) else one)]


class CovariateMapping(Settings):
    """One thing that is known of images beside labels."""

    column: str | None = Field(None, description="The column (or pattern); by default the covariate's own name.")
    kind: Literal["number", "category"] | None = Field(
        None, description="number or category; by default number where every cell that says something is one."
    )
    values: Meanings = Field({}, description="By cell what it means; null where it is missing. Others stay.")


def _as_covariate(value: Any) -> Any:
    if isinstance(value, str):
        return {"kind": value} if value in ("number", "category") else {"column": value}
    return {} if value is None else value


Covariates = Annotated[
    dict[str, Annotated[CovariateMapping, BeforeValidator(_as_covariate)]], BeforeValidator(_by_name)
]


class DicomMapping(Settings):
    """What the headers of DICOM files add to the table, as columns of text. Nothing else of a header is read."""

    columns: dict[str, str] = Field(
        min_length=1,
        description="By column a keyword (ImageLaterality, ViewCodeSequence.CodeMeaning) or tag (0020,0062) of DICOM's "
        "dictionary. Ages are given in years.",
    )
    files: str | None = Field(
        None,
        description="A pattern such as archive/**/*.dcm, relative to root, where the table names no image files: they "
        "are found by the columns that the table has too, such as an accession number, and stand in the column "
        "dicom_file. By default the headers are those of the image files.",
    )


def _as_columns(value: Any) -> Any:
    return {"columns": value} if isinstance(value, Mapping) and not {"columns", "files"} & {*value} else value


class ImageMapping(Settings):
    """How a table and image files become a dataset. Columns are named as the table has them."""

    name: str = Field(
        "images", description="The data's short name, for metadata; that of a known collection stands for its terms."
    )
    title: str = Field("images of one's own", description="The data's name for readers.")
    citation: str | None = Field(None, description="How to cite the data.")
    licence: str | None = Field(None, description="The images' licence.")
    url: str | None = Field(None, description="Where the data's terms are.")
    restricted: bool = Field(True, description="Whether images and rows per image may not be passed on.")
    phantom: bool = Field(False, description="True for generated images.")
    files: str = Field("", description="Which files the data are, and where they come from, for readers.")

    table: Texts = Field(
        (),
        description="A CSV file (commas, semicolons or tabs), parquet or xlsx, relative to root; or a list of files, "
        "which are put together.",
    )
    reader: str | None = Field(
        None, description="A function known by this name, in place of table: from root to the table."
    )
    keep: dict[str, Texts] = Field({}, description="By column the cells of the rows that are read; else all are.")
    missing: Texts = Field(
        (), description="Cells that say that a value is missing, beside empty ones, nan, none, null and na."
    )
    image: str = Field(description="A column with the image's file, or a pattern such as images/{image_id}.png.")
    image_id: str = Field("image_id", description="The column, or pattern of columns, that names the image.")
    patient_id: str = Field("patient_id", description="The column of patients.")
    exam_id: str | None = Field(None, description="The column of exams, if any.")
    laterality: Column | None = Field(None, description="The column of the side; left and right become L and R.")
    view: Column | None = Field(None, description="The column of the view, such as CC and MLO.")
    split: Annotated[SplitMapping, BeforeValidator(_as_column)] = Field(
        SplitMapping(column="split"), description="A column, or {column, values}, {file} or {make}."
    )
    labels: Labels = Field(description="By name, what images are labelled with.")
    boxes: BoxMapping | None = Field(None, description="Where boxes stand.")
    masks: Masks | None = Field(None, description="Where masks lie.")
    covariates: Covariates | Literal["all"] = Field(
        {},
        description="What else is kept, by name: number, category, or {column, kind, values}; a list of columns; or "
        "all: every other column that is the same in all rows of an image.",
    )
    dicom: Annotated[DicomMapping, BeforeValidator(_as_columns)] | None = Field(
        None,
        description="Columns that are read from DICOM headers, by name a keyword or tag such as {side: "
        "ImageLaterality}; the rest of the mapping names them as if the table had them. Or {columns, files}.",
    )
    preparation: Literal["letterbox"] | None = Field(
        None,
        description="letterbox: PNG files of any size are fitted into image_size, aspect kept, whenever they are read. "
        "By default they must have that size. DICOM files are always letterboxed; mammosae prepare does it once.",
    )
    at_skin: Texts = Field((), description="Labels whose boxes lie half outside of the breast, by rights.")
    image_size: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] = Field(
        (1520, 912), description="Height and width of the prepared images in pixels."
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if bool(self.table) == (self.reader is not None):
            raise ValueError("give the file of the table, or the name of a reader")
        names = [*self.labels, *(() if self.covariates == "all" else self.covariates)]
        taken = {*RESERVED, *_OF_BOXES}
        for name in names:
            if name in taken:
                raise ValueError(f"{name} cannot be the name of another label or covariate; choose another")
            taken.add(name)
        for name, label in self.labels.items():
            for other in label.any_of or ():
                there = self.labels.get(other)
                if there is not None and (there.concept_kind != "binary" or there.any_of is not None):
                    raise ValueError(f"labels.{name}.any_of: {other} must be of two classes and no any_of itself")
        if unknown := [name for name in self.at_skin if name not in self.labels]:
            raise ValueError(f"at_skin: {unknown[0]} is no label{nearest_names(unknown[0], self.labels)}")
        if self.name == PHANTOMS.name and not self.phantom:
            raise ValueError(f"name: {PHANTOMS.name} is for generated images; set phantom: true if these are")
        _ = self.about
        return self

    @property
    def about(self) -> DatasetAbout:
        """What the images are, for reports, cards and the rules of privacy; of `KNOWN` collections their terms."""
        if self.phantom:
            return PHANTOMS
        if self.name in KNOWN:
            return KNOWN[self.name]
        return DatasetAbout(
            name=self.name,
            title=self.title,
            citation=self.citation,
            licence=self.licence,
            url=self.url or "",
            restricted=self.restricted,
            why="they are of patients, and a row per image is data" if self.restricted else "",
        )

    def columns(self) -> dict[str, str]:
        """The columns that the table must have, each with the place of the mapping that names it first."""
        found: dict[str, str] = {}
        for place, pattern in self._patterns():
            for column in columns_of(pattern):
                found.setdefault(column, place)
        return found

    def _patterns(self) -> Iterator[tuple[str, str]]:
        yield "image_id", self.image_id
        yield "patient_id", self.patient_id
        if self.exam_id is not None:
            yield "exam_id", self.exam_id
        for place in ("laterality", "view"):
            if (text := getattr(self, place)) is not None:
                yield place, text.column
        if self.split.column is not None:
            yield "split", self.split.column
        known = {name for name in RESERVED if getattr(self, name) is not None}
        for place, pattern, own in (
            ("image", self.image, known),
            ("masks", self.masks.image if self.masks else "{image_id}", known | {"label"}),
        ):
            if "{" not in pattern:
                yield place, pattern
            for column in columns_of(pattern):
                if column not in own:
                    yield place, column
        for name, label in self.labels.items():
            if label.any_of is None:
                yield f"labels.{name}", label.column or name
            for other in label.any_of or ():
                if other not in self.labels:
                    yield f"labels.{name}.any_of", other
        for column in self.keep:
            yield "keep", column
        if self.boxes is not None:
            for column in (*(self.boxes.columns or (self.boxes.json_column or "",)), *(self.boxes.size or ())):
                yield "boxes", column
        if self.covariates != "all":
            for name, covariate in self.covariates.items():
                yield f"covariates.{name}", covariate.column or name


def columns_of(pattern: str) -> list[str]:
    """The columns that a pattern names in braces; without braces it is a column's name."""
    return _IN_BRACES.findall(pattern) if "{" in pattern else [pattern]


def filled(pattern: str, cells: Mapping[str, str]) -> str:
    """The pattern with what stands in its columns."""
    return _IN_BRACES.sub(lambda match: cells[match[1]], pattern)


# -- readers: what YAML cannot say ------------------------------------------------------------------------------------

Reader = Callable[[Path], pd.DataFrame]
"""From the data's root to a table with every cell as text ("" where nothing stands), one row per annotation; the index
is the number of each row's line where it has one. It raises `DatasetError`, in one line, for what is wrong."""

_READERS: dict[str, Reader] = {}
_WITH_READERS = ("collections", "vindr")  # modules of ours that register some, imported when a reader is asked for


def register_reader(name: str) -> Callable[[Reader], Reader]:
    """Let mappings name a function as their `reader`: `@register_reader("cbis-ddsm")`."""

    def register(function: Reader) -> Reader:
        if not function.__module__.startswith(f"{__package__}."):
            _import_ours()
        if _READERS.get(name, function) is not function:
            raise InputError(f"there is a reader named {name!r} already; choose another name")
        _READERS[name] = function
        return function

    return register


def _import_ours() -> None:
    for module in _WITH_READERS:
        import_module(f"{__package__}.{module}")


def reader(name: str) -> Reader:
    """The reader of this name.

    Raises:
        InputError: there is none.
    """
    _import_ours()
    if name not in _READERS:
        known = f"; known are {', '.join(sorted(_READERS))}" if _READERS else ""
        raise InputError(f"reader: there is no reader {name!r}{nearest_names(name, _READERS)}{known}")
    return _READERS[name]


# -- mappings and presets -----------------------------------------------------------------------------------------


def preset_names() -> list[str]:
    """The names of the presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def describe_presets() -> str:
    """Every preset: what it reads, which files these are, where they come from, and under which terms."""
    parts = []
    for name in preset_names():
        mapping = ImageMapping.checked(
            parse_yaml((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"), where=name), where=name
        )
        about = mapping.about
        parts.append(f"{name}: {about.title}\n  files: {mapping.files}\n  from:  {about.url}\n  terms: {about.licence}")
    return "\n\n".join(parts)


def load_mapping(
    source: "str | os.PathLike[str] | Mapping[str, Any] | ImageMapping",
    root: str | os.PathLike[str] | None = None,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[ImageMapping, Path]:
    """A mapping, and the folder that it is about.

    Args:
        source: the name of a preset, the path of a YAML file, a folder that holds `mapping.yaml` (as `mammosae prepare`
            writes it), a dict, or an `ImageMapping`.
        root: the data's folder; by default the folder of the file. A preset and a dict need it.
        changes: fields that stand in place of the source's.

    Raises:
        InputError: there is no such preset or file, something in it is wrong (all of it is named), or root is missing.
    """
    mapping, where, folder = read_mapping(source, changes)
    place = folder if root is None else local_path(root)
    if place is None:
        raise InputError(f"{where} does not say where the data lie: give root, their folder")
    if not place.is_dir():
        raise InputError(f"the data folder {place} does not exist or is no folder")
    return mapping, place


def read_mapping(
    source: "str | os.PathLike[str] | Mapping[str, Any] | ImageMapping",
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[ImageMapping, str, Path | None]:
    """A mapping as `load_mapping` takes it, what messages call it, and the folder of its file, if it has one.

    Raises:
        InputError: as `load_mapping`, but for the root.
    """
    folder: Path | None = None
    if isinstance(source, ImageMapping):
        values: Any = source.model_dump(by_alias=True, exclude_unset=True)
        where = f"the mapping {source.name}"
    elif isinstance(source, Mapping):
        values, where = dict(source), "the mapping"
    else:
        values, where, folder = _from_file(source)
    if not isinstance(values, Mapping):
        raise InputError(f"{where} holds no settings (name: value); see docs/data.md")
    return ImageMapping.checked({**values, **changes}, where=where), where, folder


def _from_file(source: str | os.PathLike[str]) -> tuple[Any, str, Path | None]:
    name = os.fspath(source)
    if name in preset_names():
        file = PRESETS / f"{name}.yaml"
        return parse_yaml(file.read_text(encoding="utf-8"), where=f"the preset {name}"), f"the preset {name}", None
    path = local_path(source)
    if path.is_dir():
        if not (path / MAPPING_FILE).is_file():
            raise InputError(f"the folder {path} holds no {MAPPING_FILE}: it is not prepared; give a mapping for it")
        path = path / MAPPING_FILE
    if not path.is_file():
        presets = ", ".join(preset_names()) or "none"
        raise InputError(
            f"{name!r} is no preset{nearest_names(name, preset_names())}, file or folder that is there (presets: "
            f"{presets})"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the mapping {path} cannot be read as text: write it as YAML") from error
    return parse_yaml(text, where=str(path)), str(path), path.parent
