"""What pages show of latents, as far as it may be told: histograms, neighbours, the map of latents.

In a histogram every count, and every difference between two counts that can be told from each other, is of no patient
or of at least `min_group`: of each class of each concept, of all whose class is known, and of all test images. Bins are
joined until that holds, for all classes and concepts of a latent alike.
"""

__all__ = ["joined_bins", "told_histograms", "told_map", "told_neighbours"]

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from mammosae_plugin.findings.kept import TEST, Kept
from mammosae_plugin.findings.study_folder import LayerResults
from mammosae_plugin.privacy.small_groups import Mask, is_few
from mammosae_plugin.schema.findings import SCHEMAS
from mammosae_plugin.schema.pages import N_BINS

_LATENTS = 256  # whose counts are compared together
_CELLS = ("n_both", "n_only", "n_other", "n_neither")


class _Classes(Protocol):
    def are_small(self, split: str, min_group: int) -> bool:
        """Whether a class has too few patients."""


class Told(Protocol):
    """What may be told of an encoder: `findings.tables.Tellable`."""

    @property
    def kept(self) -> Kept:
        """What the study kept."""

    @property
    def groups(self) -> Mapping[str, Any]:
        """By concept, its classes."""

    @property
    def activity(self) -> Mask:
        """(d_sae,) of which nothing about the test images is told."""


def told_histograms(layer: LayerResults, encoder: str, told: Told, min_group: int) -> pa.Table:
    """The config `histograms` of one encoder at one layer."""
    concepts = list(layer.encoders[encoder].concepts)
    shown, members = _sets(told, concepts, min_group)
    largest = told.kept.latents["max_activation"].to_numpy().astype(np.float64)
    frame = told.kept.histograms.to_pandas()
    tellable = ~told.activity & (np.nan_to_num(largest) > 0)
    frame = frame[tellable[frame["latent"]]]
    tables = [pa.Table.from_pylist([], schema=SCHEMAS["histograms"])]
    for _, block in frame.groupby(frame["latent"] // _LATENTS) if shown else ():
        tables += list(_of_block(block, largest, shown, members, min_group, (layer.name, encoder)))
    found = pa.concat_tables(tables)
    place = pd.Series(range(len(concepts)), index=concepts)
    order = np.lexsort(
        (found["class"].to_numpy(), place[found["concept"].to_pylist()].to_numpy(), found["latent"].to_numpy())
    ) if len(found) else np.zeros(0, dtype=np.int64)  # fmt: skip
    return found.take(pa.array(order))


Shown = tuple[str, int, int]
"""A concept, a class of it, and the number of the set of images that have it."""


def _sets(told: Told, concepts: Sequence[str], min_group: int) -> tuple[list[Shown], NDArray[np.bool_]]:
    """The classes that are told of, and the sets of signs (n_sets, n_signs) whose counts can be told from these.

    The first set is of all test images. A concept is left out if a class is small, or a set of it differs from another
    that is told by a few patients: it is the later one of the two.
    """
    classes = np.stack(told.kept.signs["classes"].to_numpy())
    patients, images = (told.kept.signs[name].to_numpy() for name in ("n_patients", "n_images"))
    sets: list[NDArray[np.bool_]] = [np.ones(len(classes), dtype=np.bool_)]
    shown: list[Shown] = []
    for column, concept in enumerate(concepts):
        if told.groups[concept].are_small(TEST, min_group):
            continue
        n_class = len(told.kept.by_class[concept, TEST]["n_images"])
        own = [classes[:, column] == label for label in range(n_class)]
        new = [*own, classes[:, column] >= 0]
        differences = [one ^ other for one, other in combinations([np.zeros_like(sets[0]), *sets, *new], 2)]
        if any(images[one].sum() > 0 and patients[one].sum() < min_group for one in differences):
            continue
        shown += [(concept, label, len(sets) + label) for label in range(n_class)]
        sets += new
    return shown, np.array(sets)


def joined_bins(
    images: NDArray[np.int64], patients: NDArray[np.int64], min_group: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Join bins until each holds nobody or at least `min_group` patients of every set.

    Args:
        images: (n_latents, n_bins, n_sets) images there; bin 0 is of those in which the latent does not fire.
        patients: the same of patients; such that of several bins, but for bin 0, they add up to no more than there are.
        min_group: the fewest patients.

    Returns:
        The images, all of joined bins in the lowest of them; and (n_latents, n_bins) whether a bin begins there. A
        latent of which one bin is left tells nothing.
    """
    images, patients = images.copy(), patients.copy()
    n_latents, n_bins = images.shape[:2]
    begins = np.ones((n_latents, n_bins), dtype=np.bool_)
    while True:
        few = ((images > 0) & (patients < min_group)).any(axis=2) & begins
        open_ = np.flatnonzero(few.any(axis=1) & (begins.sum(axis=1) > 1))
        if not len(open_):
            return images, begins
        wrong = n_bins - 1 - np.argmax(few[open_][:, ::-1], axis=1)  # the highest
        below = np.where(begins[open_] & (np.arange(n_bins) < wrong[:, None]), np.arange(n_bins), -1).max(axis=1)
        above = np.where(begins[open_] & (np.arange(n_bins) > wrong[:, None]), np.arange(n_bins), n_bins).min(axis=1)
        low = np.where(below >= 0, below, wrong)
        high = np.where(below >= 0, wrong, above)
        both = patients[open_, low] + patients[open_, high]
        with_silent = np.maximum(patients[open_, low], patients[open_, high])
        patients[open_, low] = np.where((low == 0)[:, None], with_silent, both)
        images[open_, low] += images[open_, high]
        images[open_, high] = patients[open_, high] = 0
        begins[open_, high] = False


def _of_block(
    block: pd.DataFrame,
    largest: NDArray[np.float64],
    shown: Sequence[Shown],
    members: NDArray[np.bool_],
    min_group: int,
    of: tuple[str, str],
) -> Iterator[pa.Table]:
    """The rows of some latents."""
    latents, place = np.unique(block["latent"].to_numpy(), return_inverse=True)
    shape = (len(latents), N_BINS + 1, members.shape[1])
    cell = np.ravel_multi_index((place, block["bin"].to_numpy(), block["sign"].to_numpy()), shape)
    n_images, n_patients = (
        np.bincount(cell, weights=block[name], minlength=int(np.prod(shape))).astype(np.int64).reshape(shape)
        for name in ("n_images", "n_patients")
    )
    both = [np.zeros(members.shape[1], dtype=np.bool_), *members]
    differences = np.unique([one ^ other for one, other in combinations(both, 2)], axis=0).T.astype(np.float32)
    of_both = [(counts.astype(np.float32) @ differences).astype(np.int64) for counts in (n_images, n_patients)]
    _, begins = joined_bins(of_both[0], of_both[1], min_group)  # products of floats are exact, and ten times as fast
    told = begins.sum(axis=1) > 1
    latents, begins = latents[told], begins[told]
    if not len(latents):
        return
    silent_apart = begins[:, 1]
    fired = begins.copy()
    fired[:, 1] |= begins[:, 0]  # silent images that are joined stand in the first bin
    fired = fired[:, 1:]
    n_edges = fired.sum(axis=1) + 1
    steps = np.concatenate([fired, np.ones((len(fired), 1), dtype=np.bool_)], axis=1)
    edges = pa.array((np.arange(N_BINS + 1) / N_BINS * largest[latents, None])[steps])
    layer, encoder = of
    for concept, label, number in shown:
        own = n_images[told] @ members[number].astype(np.int64)
        groups = np.cumsum(begins, axis=1) - 1
        summed = np.zeros_like(own)
        np.add.at(summed, (np.arange(len(own))[:, None], groups), own)
        at_begin = np.take_along_axis(summed, groups, axis=1)  # the sum of the group that each bin belongs to
        in_bins = at_begin[:, 1:][fired]
        columns = {
            "layer": pa.repeat(layer, len(latents)),
            "encoder": pa.repeat(encoder, len(latents)),
            "concept": pa.repeat(concept, len(latents)),
            "class": pa.repeat(pa.scalar(label, pa.int64()), len(latents)),
            "latent": pa.array(latents.astype(np.int64)),
            "edges": _lists(edges, n_edges),
            "n_images": _lists(pa.array(in_bins), n_edges - 1),
            "n_silent": pa.array(own[:, 0], mask=~silent_apart),
            "n": pa.array(own.sum(axis=1)),
        }
        yield pa.table(columns, schema=SCHEMAS["histograms"])


def _lists(values: pa.Array, lengths: NDArray[np.int64]) -> pa.ListArray:
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), values)


def told_neighbours(kept: pa.Table, told: Mapping[tuple[str, str], Told], min_group: int) -> pa.Table:
    """The config `neighbours`: of latents that are told of; a correlation that tells of few patients is null.

    With how often both fire, a correlation says in how many images only one of them does.
    """
    frame = kept.to_pandas()
    frames = []
    for (layer, encoder), one in told.items():
        own, hidden = frame[(frame["layer"] == layer) & (frame["encoder"] == encoder)], one.activity
        own = own[~hidden[own["latent"]] & ~hidden[own["neighbour"]]].copy()
        few = np.any([is_few(own[name], min_group) for name in _CELLS], axis=0)
        own.loc[few, "value"] = np.nan
        own["last"] = few
        own = own.sort_values(["latent", "kind", "last", "rank"], ascending=[True, False, True, True], kind="stable")
        own["rank"] = own.groupby(["latent", "kind"], sort=False).cumcount() + 1
        frames.append(own)
    found = pd.concat(frames, ignore_index=True) if frames else frame
    return pa.Table.from_pandas(found, schema=SCHEMAS["neighbours"], preserve_index=False)


def told_map(kept: pa.Table, told: Mapping[tuple[str, str], Told]) -> pa.Table:
    """The config `latent_map`: of latents that are told of under some encoder of the layer."""
    frame = kept.to_pandas()
    shown = np.zeros(len(frame), dtype=np.bool_)
    for (layer, _), one in told.items():
        own = (frame["layer"] == layer).to_numpy()
        shown[own] |= ~one.activity[frame.loc[own, "latent"]]
    return pa.Table.from_pandas(frame[shown], schema=SCHEMAS["latent_map"], preserve_index=False)
