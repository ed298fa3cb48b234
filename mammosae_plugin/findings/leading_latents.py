"""How the leading latents of each classifier fire, for the study's own report: by class, and beside others."""

__all__ = ["Strengths", "strengths", "with_neighbours"]

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mammosae_plugin.findings.kept import Kept, read_kept, read_page
from mammosae_plugin.findings.study_folder import LayerResults
from mammosae_plugin.schema.pages import N_BINS
from mammosae_plugin.schema.results import Results, Row, leading_latents

_TOLD = ("latent", "kind", "rank", "neighbour", "value", "chance")


@dataclass(frozen=True)
class Strengths:
    """In how many test images of each class a classifier's leading latents fire how strongly.

    Attributes:
        model: The model's name.
        concept: The concept.
        latents: Those that fire in test images, best first.
        largest: (n_latents,) the largest activation of each, where its last bin ends.
        counts: (n_latents, n_class, 1 + `N_BINS`) images; first those in which it does not fire, then by equal parts of
            its range from 0.
    """

    model: str
    concept: str
    latents: list[int]
    largest: NDArray[np.float64]
    counts: NDArray[np.int64]


def strengths(found: LayerResults) -> Iterator[Strengths]:
    """Of every classifier of a layer, from what the study kept; none of one whose leading latents are all silent."""
    for encoder in found.encoders.values():
        kept = read_kept(found.study_folder, encoder)
        for place, concept in enumerate(encoder.concepts):
            own = _strengths(kept, place, leading_latents(found.results, encoder.model, concept))
            if own[0]:
                yield Strengths(encoder.model, concept, *own)


def with_neighbours(results: Results, found: LayerResults) -> Results:
    """The results with `neighbours`: of the leading latents of each classifier, by the columns of `schema.pages`."""
    kept = read_page(found.study_folder, "neighbours")
    if kept is None:
        return results
    of_layer = kept.filter(pc.equal(kept["layer"], found.name))
    rows: list[Row] = []
    for encoder in found.encoders.values():
        of_encoder = of_layer.filter(pc.equal(of_layer["encoder"], encoder.name))
        for concept in encoder.concepts:
            leading = leading_latents(results, encoder.model, concept)
            own = of_encoder.filter(pc.is_in(of_encoder["latent"], value_set=pa.array(leading, type=pa.int64())))
            own = sorted(own.to_pylist(), key=lambda row: (leading.index(row["latent"]), row["kind"], row["rank"]))
            rows += [{"model": encoder.model, "concept": concept, **{key: row[key] for key in _TOLD}} for row in own]
    return cast(Results, {**results, "neighbours": rows})


def _strengths(kept: Kept, place: int, leading: list[int]) -> tuple[list[int], NDArray[np.float64], NDArray[np.int64]]:
    largest = np.nan_to_num(kept.latents["max_activation"].to_numpy().astype(np.float64))
    latents = [latent for latent in leading if largest[latent] > 0]
    signs = kept.signs.to_pandas()
    signs["class"] = np.stack(signs["classes"].to_numpy())[:, place]
    frame = kept.histograms.filter(pc.is_in(kept.histograms["latent"], value_set=pa.array(latents, type=pa.int32())))
    cells = frame.to_pandas().merge(signs[["sign", "class"]], on="sign").query("`class` >= 0")
    counts = np.zeros((len(latents), int(signs["class"].max()) + 1, 1 + N_BINS), dtype=np.int64)
    number_of = pd.Series(range(len(latents)), index=latents, dtype=np.int64)
    np.add.at(counts, (number_of[cells["latent"]].to_numpy(), cells["class"], cells["bin"]), cells["n_images"])
    return latents, largest[latents], counts
