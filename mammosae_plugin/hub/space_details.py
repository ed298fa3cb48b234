"""What a Space holds of single latents beside their row in its tables: histograms, neighbours, maps, pictures."""

__all__ = ["CHUNK", "details_of", "maps_of", "pictures_in", "Row", "rows_of", "values_of"]

import math
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd

from mammosae_plugin.findings.published import Findings

Row = dict[str, Any]

CHUNK = 256
"""Latents of one file, so that a page reads little more than it shows."""

_COUNTED = ("concept", "class", "n_images", "n_silent", "n")
_BESIDE = ("neighbour", "value", "chance", "n")
_PICTURE = ("kind", "rank", "activation", "quantile", "classes", "boxes", "whole", "crop")


def details_of(findings: Findings, layer: str, encoder: str) -> Iterator[tuple[int, Row]]:
    """What is known of single latents of one table, by hundreds of them.

    Yields:
        The number of the chunk, `latent // CHUNK`, and its `latents`, one object each: `latent`; `edges` of its
        bins, which all classes share; `histograms`, one object per concept and class; `neighbours`, lists by kind.
        Chunks of which nothing is known are left out, and so are all of findings of earlier versions.
    """
    histograms = dict(_by_latent(findings.histograms, layer, encoder, (*_COUNTED, "edges")))
    neighbours = dict(_by_latent(findings.neighbours, layer, encoder, ("kind", "rank", *_BESIDE)))
    chunks: dict[int, Row] = {}
    for latent in sorted({*histograms, *neighbours}):
        bins, beside = histograms.get(latent, []), neighbours.get(latent, [])
        of_kind: dict[str, Row] = {}
        for row in sorted(beside, key=lambda row: int(row["rank"])):
            lists = of_kind.setdefault(row["kind"], {name: [] for name in _BESIDE})
            for name in _BESIDE:
                lists[name].append(row[name])
        own = {
            "latent": latent,
            "edges": bins[0]["edges"] if bins else None,
            "histograms": [{name: row[name] for name in _COUNTED} for row in bins],
            "neighbours": of_kind,
        }
        chunks.setdefault(latent // CHUNK, {"latents": []})["latents"].append(own)
    yield from chunks.items()


def maps_of(findings: Findings) -> dict[str, tuple[Row, Row]]:
    """The map of every layer that the findings hold one of: what it is worth, and lists `latent`, `x` and `y`.

    Of its worth what the study says: `trustworthiness`, `trustworthiness_by_chance`, `n_mapped`, `n_latents`.
    """
    if findings.latent_map is None:
        return {}
    return {
        str(layer): (
            dict(findings.study["sae"][layer].get("latent_map") or {}),
            {name: values_of(own[name]) for name in ("latent", "x", "y")},
        )
        for layer, own in findings.latent_map.groupby("layer", sort=False)
    }


def pictures_in(findings: Findings, layer: str, encoder: str) -> Iterator[tuple[int, Row]]:
    """The pictures of one table, as `details_of`: of each latent a list of its rows in their order."""
    chunks: dict[int, Row] = {}
    for latent, rows in _by_latent(findings.pictures, layer, encoder, _PICTURE):
        own = [row | {name: _plain_rows(row[name]) for name in ("classes", "boxes")} for row in rows]
        for row in own:
            del row["latent"]
        chunks.setdefault(latent // CHUNK, {"latents": []})["latents"].append({"latent": latent, "pictures": own})
    yield from chunks.items()


def _plain_rows(values: Any) -> list[Any]:
    """What a cell of lists or structs holds, as JSON values."""
    return [
        {name: _plain(item) for name, item in one.items()} if isinstance(one, dict) else [float(item) for item in one]
        for one in values
    ]


def _by_latent(
    frame: pd.DataFrame | None, layer: str, encoder: str, columns: tuple[str, ...]
) -> Iterator[tuple[int, list[Row]]]:
    if frame is None:
        return
    own = frame[(frame["layer"] == layer) & (frame["encoder"] == encoder)].sort_values("latent", kind="stable")
    for latent, rows in groupby(rows_of(own, ("latent", *columns)), key=itemgetter("latent")):
        yield int(latent), list(rows)


def values_of(column: "pd.Series[Any]") -> list[Any]:
    """A column as JSON values, None for what is missing; every number reads back as exactly the column's."""
    if column.dtype == np.float32:  # the shortest decimals that mean the number, not those of its double
        return [float(str(value)) if math.isfinite(value) else None for value in column.to_numpy()]
    values = column.astype(object).where(column.notna(), None).tolist()
    return [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.tolist() if isinstance(value, np.ndarray) else value


def rows_of(frame: pd.DataFrame, columns: Iterable[str]) -> list[Row]:
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*(values_of(frame[name]) for name in names), strict=True)]
