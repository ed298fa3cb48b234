"""Which images show what a latent stands for: its strongest, others over the range of its activation, healthy ones."""

__all__ = ["choose_examples", "Example", "example_maps", "ExampleKind"]

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from mammosae_plugin.arguments import checked_arguments, index, indices, shown, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents.table import ELEMENTS, PEAKS

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

ExampleKind = Literal["strongest", "range", "healthy"]


@dataclass(frozen=True)
class Example:
    """One image that is shown for a latent.

    Attributes:
        image: Its row in `table.images`.
        kind: Why it is shown: "strongest", "range" (over the range of activations) or "healthy" (strongest of those
            in which every finding is absent).
        rank: Its place among those of its kind, from 1.
        activation: The latent's maximum over the positions of the image; of a table of rows its value.
        quantile: The share of the split's images in which the latent fires that fire no more than this one.
        classes: Its class of each concept, None where the label is missing.
    """

    image: int
    kind: ExampleKind
    rank: int
    activation: float
    quantile: float
    classes: Mapping[str, int | None]


@checked_arguments
def choose_examples(
    table: "LatentTable",
    latent: int,
    *,
    split: str = "test",
    n_strongest: int = 8,
    n_range: int = 6,
    n_healthy: int = 4,
    concepts: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Example]:
    """Images to show for a latent, each of another patient within its kind; none in which it does not fire.

    The strongest are those of the highest maximum. Those over the range are of patients who are not among them: their
    activations lie nearest to the middles of `n_range` equal parts of all activations above 0, in rising order. The
    healthy ones are the strongest in which every finding is known to be absent. Where fewer images fire there are
    fewer examples; equal activations are ordered at random.

    Args:
        table: a latents table.
        latent: its number.
        split: whose images.
        n_strongest: how many of the strongest, at most.
        n_range: how many over the range, at most.
        n_healthy: how many healthy ones, at most.
        concepts: what `classes` tells of, and which of them a healthy image lacks: those with two classes. None: all of
            the table. Without any that has two classes no image is known to be healthy.
        seed: of the order of equals.

    Raises:
        InputError: no such latent, split or concept.

    Example:
        >>> for one in choose_examples(table, 812, n_range=0, n_healthy=0):
        ...     print(one.rank, table.images["image_id"][one.image], one.activation)
    """
    latent = index(latent, "latent", table.d_sae)
    n_strongest, n_range, n_healthy = (
        whole(value, name, least=0)
        for value, name in ((n_strongest, "n_strongest"), (n_range, "n_range"), (n_healthy, "n_healthy"))
    )
    told = list(table.vocabulary) if concepts is None else list(concepts)
    if unknown := [name for name in told if name not in table.vocabulary]:
        raise InputError(f"the table has no concept {shown(unknown[0])}; it has {', '.join(table.vocabulary)}")
    in_split = (table.images["split"] == split).to_numpy()
    if not in_split.any():
        splits = ", ".join(map(str, table.images["split"].unique()))
        raise InputError(f"the table has no images of split {split!r}; it has {splits}")
    rows, values = _firing(table, latent)
    rows, values = rows[in_split[rows]], values[in_split[rows]]
    at_random = np.random.default_rng([whole(seed, "seed", least=0), latent]).permutation(len(rows))
    order = at_random[np.argsort(-values[at_random], kind="stable")]
    rows, values = rows[order], values[order]  # the strongest first
    labels = {name: table.images[name].to_numpy(dtype=np.float64, na_value=np.nan)[rows] for name in told}
    quantiles = np.searchsorted(values[::-1], values, side="right") / max(len(values), 1)
    patients = np.unique(table.images["patient_id"].to_numpy(dtype=object)[rows].astype(str), return_inverse=True)[1]

    strongest = _of_each_patient(np.arange(len(rows)), patients)[:n_strongest]
    left = np.flatnonzero(~np.isin(patients, patients[strongest]))
    findings = [labels[name] == 0 for name in told if table.vocabulary[name].is_binary]
    healthy = np.flatnonzero(np.all(findings, axis=0)) if findings else np.zeros(0, dtype=np.int64)
    chosen: dict[ExampleKind, Iterable[int]] = {
        "strongest": strongest,
        "range": _over_range(values, left, patients, n_range),
        "healthy": _of_each_patient(healthy, patients)[:n_healthy],
    }
    return [
        Example(
            image=int(rows[place]),
            kind=kind,
            rank=rank,
            activation=float(values[place]),
            quantile=float(quantiles[place]),
            classes={name: int(own[place]) if own[place] >= 0 else None for name, own in labels.items()},
        )
        for kind, places in chosen.items()
        for rank, place in enumerate(places, start=1)
    ]


def _firing(table: "LatentTable", latent: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows of images in which a latent is above 0, and its maximum there."""
    codes = table.max_latents
    found = np.flatnonzero(codes.indices == latent)
    found = found[codes.data[found] > 0]
    rows = np.searchsorted(codes.indptr, found, side="right") - 1
    return rows.astype(np.int64), codes.data[found]


def _of_each_patient(places: NDArray[np.int64], patients: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first of the places of each patient, in their order."""
    return places[np.sort(np.unique(patients[places], return_index=True)[1])]


def _over_range(values: NDArray[np.float32], left: NDArray[np.int64], patients: NDArray[np.int64], n: int) -> list[int]:
    """Of the places that are left those nearest to even quantiles of all values, which fall; the weakest first."""
    chosen: list[int] = []
    for part in range(n):
        if not len(left):
            break
        target = (1 - (part + 0.5) / n) * len(values) - 0.5
        chosen.append(int(left[np.argmin(np.abs(left - target))]))
        left = left[patients[left] != patients[chosen[-1]]]
    return sorted(chosen, reverse=True)


def example_maps(
    table: "LatentTable", latent: int, images: Iterable[int], *, split: str = "test"
) -> dict[int, tuple[NDArray[np.float32], bool]]:
    """Where a latent fires in images: its map, or, where the table kept none for an image, its peaks alone.

    Args:
        table: a latents table.
        latent: its number.
        images: rows of `table.images`, all of the split.
        split: theirs.

    Returns:
        By row the map (h, w), and whether it is the whole map; a map of peaks is 0 elsewhere. Rows of which neither is
        known are left out: all of a table of one vector per image.

    Raises:
        InputError: no such latent or image.
    """
    latent = index(latent, "latent", table.d_sae)
    wanted = np.unique(indices(list(images), "images", len(table.images)))
    if table.is_of_rows:
        return {}
    found: dict[int, tuple[NDArray[np.float32], bool]] = {
        row: (table.maps([latent], row)[0], True) for row in wanted.tolist() if latent in table.map_latents(row)
    }
    without = wanted[~np.isin(wanted, list(found))]
    if len(without) and table.elements.get(PEAKS) == ELEMENTS[PEAKS]:
        peaks = table.peaks([latent], split=split, images=without)
        for row in np.intersect1d(without, peaks.image_rows).tolist():
            own = peaks.image_rows == row
            map_of_peaks = np.zeros(table.grid, dtype=np.float32)
            map_of_peaks.flat[peaks.cells[own]] = peaks.values[own]
            found[row] = (map_of_peaks, False)
    return found
