"""Queries whose right answers are known: a text, and the labels that an image has which it asks for."""

__all__ = ["label_values", "load_queries", "Queries", "Query"]

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mammosae_plugin.arguments import shown, text
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, parse_yaml

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

_KEYS, _OF_QUERY = {"meanings", "queries"}, {"text", "labels"}
_COMPARED: Mapping[str, Callable[[Any, float], Any]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_COMPARISON = re.compile(r"(<=|>=|<|>)\s*(-?[0-9]+(?:\.[0-9]+)?)")


@dataclass(frozen=True)
class Query:
    """What is asked for, and how a right image is known.

    Attributes:
        text: the query.
        labels: by column of the table what an image has there: a class of a concept (C), 1 or 0, a word, a number, a
            comparison (">= 60"), or a list of which any will do. An image is right if it has them all.

    Raises:
        InputError: no text, no label, or a label that is none of these.
    """

    text: str
    labels: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Check the parts."""
        text(self.text.strip() if isinstance(self.text, str) else self.text, "the text of a query")
        if not isinstance(self.labels, Mapping) or not self.labels:
            raise InputError(f"the query {shown(self.text)} has no labels; say what a right image has, such as Mass: 1")
        for column, wanted in self.labels.items():
            text(column, f"a label of {shown(self.text)}")
            any_of = wanted if isinstance(wanted, list) else [wanted]
            if not any_of or any(not isinstance(one, (str, int, float)) or one == "" for one in any_of):
                raise InputError(f"{column} of {shown(self.text)} is {shown(wanted)}: give a word, a number or a list")

    def told(self, column: str) -> str:
        """One label in words: `density: C or D`."""
        wanted = self.labels[column]
        return f"{column}: {' or '.join(map(str, wanted)) if isinstance(wanted, list) else wanted}"


@dataclass(frozen=True)
class Queries:
    """Queries and what names mean.

    Attributes:
        queries: the queries.
        meanings: by name of a latent what it means in words, where the name does not say it (`view=MLO`).
    """

    queries: tuple[Query, ...]
    meanings: Mapping[str, str] = field(default_factory=dict)


def load_queries(file: str | Path, *, need_queries: bool = True) -> Queries:
    """Read queries.

    Args:
        file: a YAML file with `queries`, a list of `text` and `labels`, and perhaps `meanings`.
        need_queries: whether a file with meanings alone is refused.

    Raises:
        InputError: a file that cannot be read or is of another form.

    Example:
        >>> load_queries("examples/queries_mammography.yaml").queries[0].text   # doctest: +SKIP
    """
    place = local_path(file)
    try:
        found: Any = parse_yaml(place.read_text(encoding="utf-8"), where=str(place))
    except UnicodeDecodeError as error:
        raise InputError(f"{place} is no UTF-8 text; save the queries as UTF-8") from error
    except OSError as error:
        raise InputError(f"{place} cannot be read ({error.strerror}); name a YAML file of queries") from error
    if not isinstance(found, Mapping) or not found or found.keys() - _KEYS:
        raise InputError(f"{place} is no file of queries: it has `queries` and perhaps `meanings`, and nothing else")
    given, meanings = found.get("queries") or [], found.get("meanings") or {}
    if not isinstance(given, list) or (need_queries and not given):
        raise InputError(f"{place} has no list of queries; each needs a text and labels")
    if not isinstance(meanings, Mapping) or not all(isinstance(one, str) and one for one in meanings.values()):
        raise InputError(f"{place} has meanings that are no text; write `name: what it means`")
    queries = []
    for number, one in enumerate(given, start=1):
        if not isinstance(one, Mapping) or one.keys() != _OF_QUERY:
            raise InputError(f"query {number} of {place} needs `text` and `labels`, and nothing else")
        queries.append(Query(one["text"], one["labels"]))
    texts = [query.text for query in queries]
    if twice := next((one for one in texts if texts.count(one) > 1), None):
        raise InputError(f"{place} asks {shown(twice)} twice; give each query once")
    return Queries(tuple(queries), {str(name): meaning for name, meaning in meanings.items()})


def label_values(table: "LatentTable", column: str, wanted: Any) -> tuple[NDArray[np.float64], str]:
    """Whether every image has a label: (n_images,) 1 or 0, NaN where it is not known; and why it cannot be judged.

    Args:
        table: the latents table.
        column: a column of its images.
        wanted: as in `Query.labels`.
    """
    nothing = np.full(len(table.images), np.nan)
    if column not in table.images.columns:
        return nothing, f"the table has no column {column}"
    values, any_of = table.images[column], wanted if isinstance(wanted, list) else [wanted]
    concept = table.vocabulary.get(column)
    known = values.notna().to_numpy()
    if concept is not None:
        known = known & (pd.to_numeric(values, errors="coerce").fillna(-1).to_numpy() >= 0)
    found = np.zeros(len(values), dtype=bool)
    for one in any_of:
        if concept is not None and str(one) in concept.classes:
            found |= (values == concept.classes.index(str(one))).fillna(False).to_numpy(dtype=bool)
        elif concept is not None and not concept.is_binary:
            return nothing, f"{column} has no class {one}; it has {', '.join(concept.classes)}"
        elif isinstance(one, str) and (compared := _COMPARISON.fullmatch(one.strip())):
            numbered = pd.to_numeric(values, errors="coerce")
            if numbered.notna().sum() < known.sum():
                return nothing, f"{column} holds words, which are not {one}"
            found |= _COMPARED[compared[1]](numbered, float(compared[2])).fillna(False).to_numpy(dtype=bool)
        elif isinstance(one, str) and one.strip()[:1] in ("<", ">", "="):
            return nothing, f"{column}: {one} is no comparison; write one of {', '.join(_COMPARED)} and a number"
        elif isinstance(one, str):
            found |= (values.astype(str) == one).to_numpy(dtype=bool)
        else:
            found |= (pd.to_numeric(values, errors="coerce") == one).fillna(False).to_numpy(dtype=bool)
    if not known.any():
        return nothing, f"{column} is not known of any image"
    return np.where(known, found.astype(np.float64), np.nan), ""
