"""What was understood of a dataset, counted: images, patients, splits, concepts, boxes, covariates, missing files."""

__all__ = ["Overview", "overview", "various_images"]

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mammosae_plugin.datasets.about import DatasetAbout
from mammosae_plugin.datasets.base import BOX_COLUMNS, describe
from mammosae_plugin.datasets.concepts import Concept, Vocabulary

_IDS = ("image_id", "patient_id", "exam_id", "split", "file")
_ALIKE = ("laterality", "view")
_MANY = 8
_NO_BOX = "-"


@dataclass(frozen=True)
class Overview:
    """A dataset, counted.

    Attributes:
        title: Whose images these are.
        counts: Of images, patients, exams (where these are known) and rows of annotations.
        splits: Columns split, images, patients.
        concepts: A row per concept: concept, kind, images of each class (in words), missing, boxes, masks, and no place
            (rows that name it but say not where).
        covariates: A row per covariate: covariate, type, values (in words), missing.
        problems: What is wrong, a line each.
    """

    title: str
    counts: Mapping[str, int]
    splits: pd.DataFrame
    concepts: pd.DataFrame
    covariates: pd.DataFrame
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The whole as text."""
        counted = ", ".join(f"{count:,} {name}" for name, count in self.counts.items())
        parts = [f"{self.title}: {counted}"]
        parts += [_aligned(table) for table in (self.splits, self.concepts, self.covariates) if len(table)]
        return "\n\n".join(parts)


def overview(
    images: pd.DataFrame,
    findings: pd.DataFrame,
    vocabulary: Vocabulary,
    about: DatasetAbout,
    files: Sequence[str | os.PathLike[str]],
    max_missing_share: float = 0.0,
) -> Overview:
    """Count what the tables of a dataset hold, and look whether its files are there.

    Args:
        images: A row per image: image_id, patient_id, split, the class number of every concept (-1: missing), and
            exam_id, laterality, view and covariates where they are known.
        findings: A row per annotation: image_id, class numbers, boxes (NaN where there is none).
        vocabulary: The concepts.
        about: What the images are.
        files: The image files, one per row of `images`; they are not opened.
        max_missing_share: The share of them that may be missing; more are a problem.
    """
    counts = {"images": len(images), "patients": images["patient_id"].nunique()}
    if "exam_id" in images:
        counts["exams"] = images["exam_id"].nunique()
    counts["rows of annotations"] = len(findings)
    by_split = images.groupby("split", sort=False)
    splits = pd.DataFrame({"images": by_split.size(), "patients": by_split["patient_id"].nunique()}).reset_index()
    has_box = findings[BOX_COLUMNS[0]].notna().to_numpy()
    kept = [name for name in images.columns if name not in (*_IDS, *vocabulary)]
    missing = [file for file in files if not os.path.exists(file)]
    problems = []
    if missing:
        counts["missing image files"] = len(missing)
    if len(missing) > max_missing_share * len(files):
        problems.append(describe(len(missing), f"image files of {len(files)} are missing", map(str, missing)))
    return Overview(
        title=about.title,
        counts=counts,
        splits=splits,
        concepts=pd.DataFrame([_concept(one, images, findings, has_box) for one in vocabulary.values()]),
        covariates=pd.DataFrame([_covariate(name, images[name]) for name in kept]),
        problems=tuple(problems),
    )


def various_images(
    images: pd.DataFrame, findings: pd.DataFrame, vocabulary: Vocabulary, n: int
) -> npt.NDArray[np.intp]:
    """Rows of `images` (at most n) that together show as much as can be: every concept in turn, those with boxes first.

    Of each concept the image is taken that shows most that is not shown yet: patients, sides, views, other concepts.
    What is left of `n` goes to images that show nothing of them, and to others.
    """
    binary = [name for name in vocabulary.binary if name in images]
    placed = findings[findings[BOX_COLUMNS[0]].notna()]
    located = {name: set(placed.loc[placed[name] == 1, "image_id"]) for name in binary}
    ids = images["image_id"].to_numpy()
    wanted = [np.isin(ids, list(located[name])) for name in binary if located[name]]
    wanted += [(images[name] == 1).to_numpy() for name in binary if not located[name]]
    wanted.append(~(images[binary] == 1).any(axis=1).to_numpy())
    graded = [name for name in vocabulary if name not in binary and name in images]
    wanted += [(images[name] == number).to_numpy() for name in graded for number in range(vocabulary[name].n_classes)]
    traits = [name for name in (*_ALIKE, "split", *graded, *binary) if name in images]
    values = images[traits].astype(str).to_numpy()
    patients = images["patient_id"].astype(str).to_numpy()
    chosen: list[int] = []
    seen: set[tuple[int, str]] = set()
    drawn: set[str] = set()
    while len(chosen) < min(n, len(images)):
        before = len(chosen)
        for marks in [*wanted, np.ones(len(images), dtype=bool)]:
            left = [row for row in np.flatnonzero(marks).tolist() if row not in chosen]
            if not left or len(chosen) >= n:
                continue
            news = [sum((at, value) not in seen for at, value in enumerate(values[row])) for row in left]
            best = max(range(len(left)), key=lambda at: (patients[left[at]] not in drawn, news[at], -left[at]))
            chosen.append(left[best])
            drawn.add(patients[left[best]])
            seen.update(enumerate(values[left[best]]))
        if len(chosen) == before:
            break
    return np.array(chosen[:n], dtype=np.intp)


def _none(table: pd.DataFrame) -> npt.NDArray[np.bool_]:
    return np.zeros(len(table), dtype=bool)


def _concept(
    concept: Concept,
    images: pd.DataFrame,
    findings: pd.DataFrame,
    has_box: npt.NDArray[np.bool_],
) -> dict[str, object]:
    found = images[concept.name].to_numpy()
    counts = [int((found == number).sum()) for number in range(concept.n_classes)]
    named = dict(zip(concept.classes, counts, strict=True))
    row: dict[str, object] = {
        "concept": concept.name,
        "kind": concept.kind,
        "images": ", ".join(f"{name}: {count}" for name, count in named.items()),
        "missing": int((found < 0).sum()),
    }
    present = (findings[concept.name] == 1).to_numpy() if concept.is_binary else _none(findings)
    boxes, nowhere = int((present & has_box).sum()), int((present & ~has_box).sum())
    return row | {
        "boxes": boxes if boxes else _NO_BOX,
        "masks": "yes" if concept.masks else _NO_BOX,
        "no place": nowhere if boxes else _NO_BOX,
    }


def _covariate(name: str, values: "pd.Series[Any]") -> dict[str, object]:
    known = values[values.notna() & (values.astype(str) != "")]
    if pd.api.types.is_numeric_dtype(values) and len(known):
        numbers = pd.to_numeric(known)
        said = f"{numbers.min():g} to {numbers.max():g}, median {numbers.median():g}"
    else:
        counts = known.astype(str).value_counts()
        said = ", ".join(f"{value}: {count}" for value, count in counts.head(_MANY).items())
        said += f", and {len(counts) - _MANY} others" if len(counts) > _MANY else ""
    kind = "number" if pd.api.types.is_numeric_dtype(values) else "category"
    return {"covariate": name, "type": kind, "values": said or _NO_BOX, "missing": len(values) - len(known)}


def _aligned(table: pd.DataFrame) -> str:
    """The table with columns side by side: words to the left, numbers to the right."""
    cells = [[str(name) for name in table.columns], *(list(map(str, row)) for row in table.itertuples(index=False))]
    widths = [max(len(row[at]) for row in cells) for at in range(len(table.columns))]
    words = [
        not all(value == _NO_BOX or value.replace(",", "").isdecimal() for value in column)
        for column in _columns(cells)
    ]
    lines = [
        "  ".join(
            cell.ljust(width) if word else cell.rjust(width)
            for cell, width, word in zip(row, widths, words, strict=True)
        )
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def _columns(cells: Sequence[Sequence[str]]) -> list[list[str]]:
    return [list(column) for column in zip(*cells[1:], strict=True)]
