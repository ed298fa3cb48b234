"""Whether a latent says the same of the two views of a breast, and of the two breasts of a patient; needs no label."""

__all__ = ["COMPARISONS", "view_agreement"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import rankdata

from mammosae_plugin.analysis.codes import as_codes, settled_codes
from mammosae_plugin.analysis.coherence import benjamini_hochberg
from mammosae_plugin.analysis.table_arrays import image_statistic, split_rows
from mammosae_plugin.arguments import checked_arguments, entries, indices, resampling, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.statistics import MIN_PATIENTS, patient_bootstrap, spread_interval
from mammosae_plugin.progress import progress
from mammosae_plugin.schema.names import counted

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

COMPARISONS = ("views", "sides", "crossed")
"""CC against MLO of one breast; left against right in one view; CC of one breast against MLO of the other."""

_SIDES = ("L", "R")
_BLOCK = 256  # latents at once
_TIE = 1e-9  # of correlations, by rounding


@dataclass(frozen=True)
class _Pairs:
    """What is held together: for each pair the images of either part, as weights of their mean.

    Attributes:
        one: (n_pairs, n_images) weights.
        other: likewise.
        patient: (n_pairs,) whose pair it is, a number.
        slot: (n_pairs,) which of the patient's pairs: its side, or its view.
    """

    one: Any
    other: Any
    patient: NDArray[np.int64]
    slot: NDArray[np.int64]

    def exchanges(self) -> list[NDArray[np.int64]]:
        """Pairs (n_patients, n_slots) of the patients who have the same slots, who can stand for each other."""
        frame = pd.DataFrame({"patient": self.patient, "slot": self.slot, "pair": np.arange(len(self.patient))})
        frame = frame.sort_values(["patient", "slot"])
        slots = frame.groupby("patient")["slot"].agg(tuple)
        pattern = frame["patient"].map(slots)
        return [
            group["pair"].to_numpy().reshape(-1, len(of_slots))
            for of_slots, group in frame.groupby(pattern, sort=False)
        ]


@checked_arguments
def view_agreement(
    table: "LatentTable",
    *,
    latents: Sequence[int] | NDArray[Any] | None = None,
    statistic: str = "max",
    split: str = "test",
    views: Sequence[str] = ("CC", "MLO"),
    n_draws: int = 1000,
    n_bootstrap: int = 1000,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
) -> pd.DataFrame:
    """Of every latent, how far images of one patient agree on it: the views of a breast, and the two breasts.

    Agreement is Spearman's rank correlation over pairs of images: `views`, CC against MLO of one breast; `sides`, left
    against right in the same view; `crossed`, CC of one breast against MLO of the other. A latent that reads a lesion
    agrees between the views of its breast and not beyond: `own_breast` is views minus crossed. One that reads the
    patient, her exam or its device (density, a marker burnt in) agrees in all three, and one that reads noise, or what
    one view alone shows, in none. Agreement says that something is read again, not what it is.

    Several images of one view and side count as their mean, and a patient's exams (column `exam_id`, where it is
    filled) are paired each by itself and then averaged. Chance is what other patients give: the second image of each
    pair comes from another patient, of the same side and view, all pairs of a patient together, so that what a latent
    says of a side or view alone counts as chance. Intervals resample patients, with the ranks of all of them.

    Args:
        table: a latents table, of maps or of rows, whose images have `laterality` (L, R) and `view`.
        latents: which; by default all that fire in the split.
        statistic: "max" or "mean" of a latent over positions.
        split: the split whose images are used.
        views: the two views, as the column `view` has them.
        n_draws: draws of other patients.
        n_bootstrap: resamples of patients; 0 gives no intervals.
        min_patients: patients that a comparison needs, and in whose pairs a latent must fire, to be scored.
        seed: of draws and resamples.

    Returns:
        One row per latent: latent, and for each comparison c of `COMPARISONS` c (the correlation), c_low and c_high
        (95 %), c_chance and c_chance_high (mean and 95th percentile of the draws), c_p (share of draws that agree as
        much, one-sided, at least 1 / (n_draws + 1)), c_q (Benjamini-Hochberg over these latents), c_pairs,
        c_patients, c_firing (patients in whose pairs it fires); own_breast, own_breast_low and _high; and reason, why
        a value is NaN, else empty.

    Raises:
        InputError: the table knows no view or laterality, or has no such pairs; an unknown split, statistic or latent.

    Example:
        >>> found = view_agreement(table)   # doctest: +SKIP
        >>> found[found["views_q"] < 0.05].nlargest(10, "own_breast")   # doctest: +SKIP
    """
    n_draws = whole(n_draws, "n_draws", least=1)
    n_bootstrap, min_patients, seed = resampling(n_bootstrap, min_patients, seed)
    pairs, n_patients = _pairs(table, split_rows(table, split), views, split)
    codes = settled_codes(as_codes(image_statistic(table, statistic)))
    used = np.unique(np.concatenate([part.indices for each in pairs.values() for part in (each.one, each.other)]))
    fires = np.bincount(sparse.csr_array(codes)[used].indices, minlength=table.d_sae) > 0
    chosen = np.flatnonzero(fires) if latents is None else indices(latents, "latents", table.d_sae, distinct=True)
    weights = patient_bootstrap(np.arange(n_patients), n_bootstrap, seed)
    columns: dict[str, NDArray[Any]] = {"latent": chosen}
    reasons: list[list[str]] = [[] for _ in chosen]
    samples: dict[str, NDArray[np.float64]] = {}
    for number, (name, own) in enumerate(pairs.items()):
        found, samples[name] = _agreement(own, codes[:, chosen], weights, n_draws, min_patients, (seed, number))
        columns |= {f"{name}{end}": values for end, values in found.items()}
        for said, firing, value in zip(reasons, found["_firing"], found[""], strict=True):
            if own_patients := _too_few(name, len(np.unique(own.patient)), min_patients):
                said.append(own_patients)
            elif firing < min_patients:
                said.append(f"{name}: fires in pairs of {counted(int(firing), 'patient')}, fewer than {min_patients}")
            elif np.isnan(value):
                said.append(f"{name}: the same in all images of a part")
    columns["own_breast"] = columns["views"] - columns["crossed"]
    ends = [spread_interval(column) for column in (samples["views"] - samples["crossed"]).T]
    columns["own_breast_low"], columns["own_breast_high"] = np.array(ends).reshape(-1, 2).T
    return pd.DataFrame({**columns, "reason": ["; ".join(said) for said in reasons]})


def _too_few(name: str, n_patients: int, min_patients: int) -> str:
    few = n_patients < min_patients
    return f"{name}: {counted(n_patients, 'patient')} with such pairs, fewer than {min_patients}" if few else ""


def _agreement(
    pairs: _Pairs,
    codes: Any,
    weights: NDArray[np.integer],
    n_draws: int,
    min_patients: int,
    seed: tuple[int, int],
) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64]]:
    """Columns of one comparison, and its resamples (n_bootstrap, n_latents)."""
    n_latents, n_patients = codes.shape[1], len(np.unique(pairs.patient))
    multiplicities = weights[:, pairs.patient].astype(np.float64)
    orders = _orders(pairs.exchanges(), len(pairs.patient), n_draws, np.random.default_rng(seed))
    values, means, highs, p = (np.full(n_latents, np.nan) for _ in range(4))
    firing = np.zeros(n_latents, dtype=np.int64)
    samples = np.full((len(weights), n_latents), np.nan)
    starts = range(0, n_latents, _BLOCK)
    for start in progress(starts, description="views and sides", unit="block", delay=2, leave=False):
        block = slice(start, start + _BLOCK)
        one, other = (np.asarray((part @ codes[:, block]).todense()) for part in (pairs.one, pairs.other))
        in_pair = (one != 0) | (other != 0)
        firing[block] = [len(np.unique(pairs.patient[column])) for column in in_pair.T]
        x, y = _ranked(one), _ranked(other)
        scored = (firing[block] >= min_patients) & (x.any(axis=0)) & (y.any(axis=0)) & (n_patients >= min_patients)
        places = start + np.flatnonzero(scored)
        x, y = x[:, scored], y[:, scored]
        values[places] = (x * y).sum(axis=0)
        drawn = _of_other_patients(x, y, orders)
        means[places], highs[places] = drawn.mean(axis=0), np.quantile(drawn, 0.95, axis=0)
        p[places] = (1 + (drawn >= values[places] - _TIE).sum(axis=0)) / (1 + n_draws)
        samples[:, places] = _weighted_correlation(x, y, multiplicities)
    ends = np.array([spread_interval(column) for column in samples.T]).reshape(-1, 2)
    found = {
        "": values,
        "_low": ends[:, 0],
        "_high": ends[:, 1],
        "_chance": means,
        "_chance_high": highs,
        "_p": p,
        "_q": benjamini_hochberg(p),
        "_pairs": np.full(n_latents, len(pairs.patient)),
        "_patients": np.full(n_latents, n_patients),
        "_firing": firing,
    }
    return found, samples


def _orders(
    exchanges: list[NDArray[np.int64]], n_pairs: int, n_draws: int, generator: np.random.Generator
) -> NDArray[np.int32]:
    """Which pair's second part stands with each first one, (n_pairs, n_draws)."""
    orders = np.empty((n_pairs, n_draws), dtype=np.int32)
    for draw in range(n_draws):
        for group in exchanges:
            orders[group, draw] = group[generator.permutation(len(group))]
    return orders


def _of_other_patients(
    x: NDArray[np.float64], y: NDArray[np.float64], orders: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Correlations (n_draws, m) of columns (n, m) of `_ranked`, in every order of y."""
    drawn = np.empty((orders.shape[1], x.shape[1]))
    for column in range(x.shape[1]):
        values, counts = np.unique(x[:, column], return_counts=True)
        less = x[:, column] - values[counts.argmax()]  # as y sums to 0, the commonest value, silence, counts nothing
        rows = np.flatnonzero(less)
        drawn[:, column] = less[rows] @ y[:, column].take(orders[rows])
    return drawn


def _ranked(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean ranks of every column (n, m), centred and of length 1; zeros where all values are equal."""
    if not len(values):
        return values
    ranks = rankdata(values, axis=0)
    ranks -= ranks.mean(axis=0)
    lengths = np.linalg.norm(ranks, axis=0)
    ranked: NDArray[np.float64] = np.divide(ranks, lengths, out=np.zeros_like(ranks), where=lengths > _TIE)
    return ranked


def _weighted_correlation(
    x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Pearson's (n_bootstrap, m) of columns (n, m), row i counted weights[:, i] times; NaN where a part is constant."""
    total = weights.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_x, mean_y = weights @ x / total, weights @ y / total
        spread = [weights @ (z * z) / total - mean**2 for z, mean in ((x, mean_x), (y, mean_y))]
        together = weights @ (x * y) / total - mean_x * mean_y
        scale = np.sqrt(np.maximum(spread[0], 0) * np.maximum(spread[1], 0))
        floor = _TIE / max(len(x), 1)
        return np.where(scale > floor, together / scale, np.nan)


def _pairs(
    table: "LatentTable", rows: NDArray[np.int64], views: Sequence[str], split: str
) -> tuple[dict[str, _Pairs], int]:
    """The pairs of each comparison, and the number of patients.

    Raises:
        InputError: it is not known which images are pairs, or there are none.
    """
    named = [str(view) for view in entries(views, "views")]
    if len(named) != 2 or named[0] == named[1]:
        raise InputError(f"views is {views!r}: give the two views that are held together, such as ('CC', 'MLO')")
    images = table.images.iloc[rows]
    for column in ("laterality", "view"):
        if column not in images or images[column].fillna("").astype(str).str.strip().eq("").all():
            raise InputError(
                f"{table.folder} knows no {column} of its images, by which they are paired; encode data whose table "
                "has laterality and view"
            )
    has_exam = "exam_id" in images and not images["exam_id"].fillna("").astype(str).str.strip().eq("").any()
    frame = pd.DataFrame(
        {
            "row": rows,
            "patient": images["patient_id"].to_numpy(),
            "exam": images["exam_id"].astype(str).to_numpy() if has_exam else "",
            "side": images["laterality"].astype(str).str.strip().to_numpy(),
            "view": images["view"].astype(str).str.strip().to_numpy(),
        }
    )
    used = frame[frame["side"].isin(_SIDES) & frame["view"].isin(named)].copy()
    used["patient"] = used.groupby("patient").ngroup()
    used["side"], used["view"] = (used["side"] == "R").astype(int), (used["view"] == named[1]).astype(int)
    cells = {key: group["row"].to_numpy() for key, group in used.groupby(["patient", "exam", "side", "view"])}
    found = {name: _paired(name, cells, len(table.images)) for name in COMPARISONS}
    if not any(len(each.patient) for each in found.values()):
        there = sorted(set(frame["view"])), sorted(set(frame["side"]))
        raise InputError(
            f"{table.folder} has no patient with two images of split {split!r} to hold together, by views "
            f"{' and '.join(named)} and sides L and R; it has the views {', '.join(there[0])} and the sides "
            f"{', '.join(there[1])}"
        )
    return found, int(used["patient"].max()) + 1


def _paired(name: str, cells: dict[Any, NDArray[np.int64]], n_images: int) -> _Pairs:
    """The pairs of one comparison, from the images of every (patient, exam, side, view)."""
    of_pair: dict[tuple[int, int], list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = {}
    for (patient, exam, side, view), images in cells.items():
        if name == "sides":
            partner, first, slot = (patient, exam, 1, view), side == 0, view
        else:
            partner, first, slot = (patient, exam, side if name == "views" else 1 - side, 1), view == 0, side
        if first and partner in cells:
            of_pair.setdefault((patient, slot), []).append((images, cells[partner]))
    parts: list[Any] = []
    for part in (0, 1):
        weighted = [
            (pair, row, 1 / (len(exams) * len(exam[part])))
            for pair, exams in enumerate(of_pair.values())
            for exam in exams
            for row in exam[part]
        ]
        pair, row, weight = np.array(weighted, dtype=np.float64).reshape(-1, 3).T
        places: Any = (weight, (pair.astype(np.int64), row.astype(np.int64)))
        parts.append(sparse.csr_array(places, shape=(len(of_pair), n_images)))
    patient, slot = np.array(list(of_pair), dtype=np.int64).reshape(-1, 2).T
    return _Pairs(parts[0], parts[1], patient, slot)
