"""What latents answer to: how they change between two images that differ in one thing.

A pair tells what no label does, because nothing but the attribute changes: a latent that changes is moved by it. What
a latent stands for takes more: that nothing else moves it as much (selectivity), and that it changes where the
attribute is.
"""

__all__ = ["beside_untrained", "check_places", "pair_places", "pair_responses", "pair_responses_of", "PairResponses"]

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.stats import wilcoxon

from mammosae_plugin.analysis.coherence import benjamini_hochberg
from mammosae_plugin.analysis.spatial import box_region, cell_shares
from mammosae_plugin.analysis.table_arrays import image_statistic
from mammosae_plugin.arguments import as_array, between, checked_arguments, indices, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.statistics import MIN_PATIENTS, NETWORK_ERROR, patient_bootstrap
from mammosae_plugin.progress import progress

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

LEAST_SELECTIVITY = 1 / 3
"""From which a latent may be called selective: it answers at least twice as much to its attribute as to any other."""
_MOST_EXACT = 50  # patients up to which the signed-rank test counts all signs
_CHANCE_RESAMPLES = 200  # of patients, for what is only averaged
_NUMBERS_AT_ONCE = 2**23
_PLACES = ("xmin", "ymin", "xmax", "ymax")
Rows = NDArray[np.int64]
_KEYS = ["image_id_a", "image_id_b", "attribute"]
_BEST = ("best_selectivity", "best_selectivity_mixed")


@dataclass(frozen=True)
class PairResponses:
    """What latents answer to.

    Attributes:
        latents: a row per attribute and latent that changes in any pair: attribute, latent, n_pairs, n_patients,
            response (mean change from the first to the second image, over patients; in units of the activation) with
            response_low and response_high (95 %, resampled patients), share_changed (of the patients), p (signed-rank
            test over patients), q (Benjamini-Hochberg, over all rows), sign (1, -1; 0 where q is above alpha),
            selectivity with its interval, selective. Of tables of maps, where the pairs have boxes and the maps of a
            latent were kept, inside (the share of the absolute change in the cells that the box touches) with its
            interval, inside_chance (these cells' share of the map) and n_inside (pairs); else NaN.
        attributes: a row per attribute: n_pairs, n_patients, n_responding (latents with q at most alpha), n_selective,
            best_latent (of those that respond, the most selective), best_selectivity (the lower end of its interval; 0
            where that is lower or none responds), and concept_score: how much of the way from chance to 1 that is,
            (best - chance) / (1 - chance), at least 0. Chance is the mean of random mixtures of the latents, or that
            of untrained SAEs, if they are given, whichever is higher: the best of many latents that fire now and then
            answers to one thing alone more often than a mixture does. Both are NaN where there are fewer than
            `min_patients` patients, or nothing else that the latents could answer to. Beside them the means of
            n_selective and best_selectivity for mixtures (`_mixed`), where attributes are exchanged among the pairs
            (`_permuted`), and of untrained SAEs (`_untrained`), with the mean concept_score of each of these, for which
            the others are chance (NaN of one alone).
        share: the share of the attributes with so many patients that have a selective latent; NaN without any such.
        share_mixed: the mean of that for random mixtures of the latents.
        share_permuted: the mean of that where attributes are exchanged among the pairs.
        share_untrained: the mean of that for untrained SAEs; NaN where there is none.
        alpha: of q.
        n_permutations: how often latents were mixed and attributes exchanged.
    """

    latents: pd.DataFrame
    attributes: pd.DataFrame
    share: float
    share_mixed: float
    share_permuted: float
    share_untrained: float
    alpha: float
    n_permutations: int

    def to_frame(self) -> pd.DataFrame:
        """`attributes`."""
        return self.attributes


def pair_responses_of(
    changes: ArrayLike,
    attributes: Sequence[str] | ArrayLike,
    groups: ArrayLike,
    *,
    alpha: float = 0.05,
    least_selectivity: float = LEAST_SELECTIVITY,
    n_bootstrap: int = 1000,
    n_permutations: int = 20,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
) -> PairResponses:
    """How much, how surely and how selectively every latent answers to every attribute.

    With r the response to an attribute and m the largest absolute response to another one, selectivity is
    (|r| - m) / (|r| + m): 1 where nothing else moves the latent, 0 where something else moves it as much, below 0 where
    something moves it more. A latent is selective where q is at most alpha, the selectivity at least
    `least_selectivity` and its interval above 0.

    Args:
        changes: (n_pairs, D) a latent in the second image less the same in the first; an array or a sparse one.
        attributes: (n_pairs,) in what the images of each pair differ.
        groups: (n_pairs,) the patient of each pair.
        alpha: of q.
        least_selectivity: from which a latent is selective.
        n_bootstrap: resamples of patients; 0 gives no intervals, and no latent is selective.
        n_permutations: how often latents are mixed, and attributes exchanged among the pairs, for chance.
        min_patients: of an attribute, below which its latents have no interval and no p.
        seed: of resamples and exchanges.

    Raises:
        InputError: shapes that do not fit, changes that are not finite, or settings out of range.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> changes = 0.1 * rng.normal(size=(40, 3))
        >>> changes[:20, 0] += 1  # the first latent answers to masses
        >>> found = pair_responses_of(changes, ["mass"] * 20 + ["clip"] * 20, [*range(20), *range(20)])
        >>> found.attributes[["attribute", "n_selective", "best_latent"]].to_numpy()[0].tolist()
        ['mass', 1, 0]
    """
    values: Any = sparse.csr_array(changes) if sparse.issparse(changes) else as_array(changes, "changes")
    if values.ndim != 2 or values.shape[0] == 0:
        raise InputError(f"changes have shape {values.shape}: expected (n_pairs, n_latents), one pair at least")
    names, patients = (as_array(each, name) for each, name in ((attributes, "attributes"), (groups, "groups")))
    for array, name in ((names, "attributes"), (patients, "groups")):
        if array.shape != (values.shape[0],):
            raise InputError(f"{name} have shape {array.shape}: expected ({values.shape[0]},), one for each pair")
        if pd.isna(array).any():
            raise InputError(f"{name} hold a missing value: give one for each pair")
    n_bootstrap, seed = whole(n_bootstrap, "n_bootstrap", least=0), whole(seed, "seed", least=0)
    n_permutations = whole(n_permutations, "n_permutations", least=0)
    min_patients = whole(min_patients, "min_patients", least=2)
    alpha = between(alpha, "alpha", 0, 1)
    least = between(least_selectivity, "least_selectivity", 0, 1)
    live = np.flatnonzero(np.asarray(abs(values).sum(axis=0)).ravel() != 0)
    chosen: Any = values[:, live]
    dense = np.asarray(chosen.todense() if hasattr(chosen, "todense") else chosen, dtype=np.float64)
    if not np.isfinite(dense).all():
        raise InputError("changes hold a value that is not finite")
    codes, order = pd.factorize(pd.Series(names).astype(str))
    _, patient = np.unique(patients.astype(str), return_inverse=True)
    settings = (alpha, least, min_patients, seed)
    found = _Scored(dense, patient, n_bootstrap, *settings).of(codes, len(order))
    found.insert(0, "attribute", order.to_numpy(dtype=object)[found["attribute_number"]])
    found.insert(1, "latent", live[found["column"]])
    of_attribute = _by_attribute(found, order, alpha)
    of_pair = pd.DataFrame({"code": codes, "patient": patient}).groupby("code")["patient"]
    of_attribute.insert(1, "n_pairs", of_pair.size().to_numpy())
    of_attribute.insert(2, "n_patients", of_pair.nunique().to_numpy())
    scored = (of_attribute["n_patients"] >= min_patients).to_numpy() & (len(order) > 1)

    def share(n_selective: NDArray[np.float64]) -> float:
        return float((n_selective[scored] > 0).mean()) if scored.any() else float("nan")

    generator = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    spread = np.sqrt(np.square(dense).mean(axis=0)) if len(live) else np.ones(0)
    few = min(n_bootstrap, _CHANCE_RESAMPLES)
    chance: dict[str, list[NDArray[np.float64]]] = {"mixed": [], "permuted": []}
    for _ in progress(range(n_permutations), description="chance of answers", unit="draw", delay=2, leave=False):
        mixture = (dense / spread) @ generator.normal(size=(len(live), len(live)))
        mixed = _Scored(mixture, patient, few, *settings).of(codes, len(order))
        permuted = _Scored(dense, patient, few, *settings).of(generator.permutation(codes), len(order))
        for name, frame in (("mixed", mixed), ("permuted", permuted)):
            frame = frame.assign(
                attribute=order.to_numpy(dtype=object)[frame["attribute_number"]], latent=frame["column"]
            )
            chance[name].append(_by_attribute(frame, order, alpha)[["n_selective", "best_selectivity"]].to_numpy())
    shares = {}
    for name, draws in chance.items():
        means = np.mean(draws, axis=0) if draws else np.full((len(order), 2), np.nan)
        of_attribute[[f"n_selective_{name}", f"best_selectivity_{name}"]] = means
        shares[name] = float(np.mean([share(each[:, 0]) for each in draws])) if draws else float("nan")
    best, by_mixing = (of_attribute[name].to_numpy(dtype=np.float64) for name in _BEST)
    score = _concept_score(best, by_mixing)
    of_attribute.insert(list(of_attribute).index("best_selectivity") + 1, "concept_score", score)
    for column in ("concept_score", *(f"best_selectivity{end}" for end in ("", "_mixed", "_permuted"))):
        of_attribute[column] = of_attribute[column].where(scored)
    return PairResponses(
        latents=found.drop(columns=["attribute_number", "column"]),
        attributes=of_attribute,
        share=share(of_attribute["n_selective"].to_numpy()),
        share_mixed=shares["mixed"],
        share_permuted=shares["permuted"],
        share_untrained=float("nan"),
        alpha=alpha,
        n_permutations=n_permutations,
    )


@dataclass
class _Scored:
    """Responses of live latents (n_pairs, J), by any assignment of attributes to pairs."""

    changes: NDArray[np.float64]
    patient: NDArray[np.int64]
    n_bootstrap: int
    alpha: float
    least: float
    min_patients: int
    seed: int

    def __post_init__(self) -> None:
        n_patients = int(self.patient.max()) + 1
        self.weights = patient_bootstrap(np.arange(n_patients), self.n_bootstrap, self.seed).astype(np.float64)

    def of(self, codes: NDArray[np.int64], n_attributes: int) -> pd.DataFrame:
        """A row per attribute and latent."""
        n_patients, n_latents = self.weights.shape[1], self.changes.shape[1]
        means = np.zeros((n_attributes, n_patients, n_latents))
        counts = np.zeros((n_attributes, n_patients))
        for number in range(n_attributes):
            own = np.flatnonzero(codes == number)
            sums = sparse.csr_array(
                (np.ones(len(own)), (self.patient[own], np.arange(len(own)))), shape=(n_patients, len(own))
            )
            counts[number] = np.asarray(sums.sum(axis=1)).ravel()
            means[number] = (sums @ self.changes[own]) / np.maximum(counts[number], 1)[:, None]
        has = counts > 0
        response = means.sum(axis=1) / np.maximum(has.sum(axis=1), 1)[:, None]
        low, high, select_low, select_high = (np.full_like(response, np.nan) for _ in range(4))
        enough = has.sum(axis=1) >= self.min_patients
        if self.n_bootstrap and enough.any():
            totals = self.weights @ has.T  # (B, attributes)
            step = max(1, _NUMBERS_AT_ONCE // (self.n_bootstrap * n_attributes))
            for start in range(0, n_latents, step):
                part = slice(start, start + step)
                drawn = np.einsum("bp,apj->abj", self.weights, means[:, :, part], optimize=True)
                with np.errstate(invalid="ignore", divide="ignore"):
                    drawn /= totals.T[:, :, None]
                    of_draws = np.nanquantile if np.isnan(drawn).any() else np.quantile
                    ends = of_draws(drawn[enough], [0.025, 0.975], axis=1)
                    choice = np.quantile(_selectivity(np.nan_to_num(drawn))[enough], [0.025, 0.975], axis=1)
                low[enough, part], high[enough, part] = ends
                select_low[enough, part], select_high[enough, part] = choice
        p = np.full_like(response, np.nan)
        for number in np.flatnonzero(enough).tolist():
            p[number] = _signed_rank(means[number][has[number]])
        numbers, columns = np.divmod(np.arange(n_attributes * n_latents), max(n_latents, 1))
        q = benjamini_hochberg(p.ravel())
        selectivity = _selectivity(response[:, None])[:, 0]
        moved = np.stack([(means[number][has[number]] != 0).mean(axis=0) for number in range(n_attributes)])
        frame = pd.DataFrame(
            {
                "attribute_number": numbers,
                "column": columns,
                "n_pairs": np.repeat(counts.sum(axis=1).astype(np.int64), n_latents),
                "n_patients": np.repeat(has.sum(axis=1), n_latents),
                "response": response.ravel(),
                "response_low": low.ravel(),
                "response_high": high.ravel(),
                "share_changed": moved.ravel(),
                "p": p.ravel(),
                "q": q,
                "sign": np.where(q <= self.alpha, np.sign(response.ravel()), 0).astype(np.int64),
                "selectivity": selectivity.ravel(),
                "selectivity_low": select_low.ravel(),
                "selectivity_high": select_high.ravel(),
            }
        )
        frame["selective"] = (
            (frame["q"] <= self.alpha) & (frame["selectivity"] >= self.least) & (frame["selectivity_low"] > 0)
        )
        return frame


def _selectivity(responses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of responses (attributes, ..., latents): how much larger each is than the largest to another attribute."""
    size = np.abs(responses)
    if len(size) < 2:
        return np.full_like(size, np.nan)
    two = np.partition(size, -2, axis=0)[-2:]
    others = np.where(size == two[1], two[0], two[1])  # where two are the largest, either is the other's
    total = size + others
    found: NDArray[np.float64] = np.divide(size - others, total, out=np.full_like(total, np.nan), where=total > 0)
    return found


def _signed_rank(changes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two-sided p-values (J,) of Wilcoxon's signed-rank test over patients (n, J); 1 where nothing changes."""
    method: Any = "exact" if len(changes) <= _MOST_EXACT else "asymptotic"
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        p = wilcoxon(changes, axis=0, method=method, keepdims=True).pvalue[0]  # zeros count for nothing
    return np.nan_to_num(np.asarray(p, dtype=np.float64), nan=1.0)


def _by_attribute(found: pd.DataFrame, attributes: pd.Index, alpha: float) -> pd.DataFrame:
    rows = []
    of_one = dict(list(found.groupby("attribute", sort=False)))
    for name in attributes:
        own = of_one.get(name, found.iloc[:0])
        responding = own[own["q"] <= alpha]
        ranked = responding.dropna(subset=["selectivity_low"]).sort_values("selectivity_low", ascending=False)
        rows.append(
            {
                "attribute": name,
                "n_responding": len(responding),
                "n_selective": int(own["selective"].sum()),
                "best_latent": int(ranked["latent"].iloc[0]) if len(ranked) else pd.NA,
                "best_selectivity": max(0.0, float(ranked["selectivity_low"].iloc[0])) if len(ranked) else 0.0,
            }
        )
    return pd.DataFrame(rows).astype({"best_latent": "Int64"})


@checked_arguments
def pair_responses(
    table: "LatentTable",
    pairs: pd.DataFrame,
    *,
    statistic: str = "max",
    map_latents: ArrayLike | None = None,
    untrained: "LatentTable | Sequence[LatentTable] | None" = None,
    alpha: float = 0.05,
    least_selectivity: float = LEAST_SELECTIVITY,
    n_bootstrap: int = 1000,
    n_permutations: int = 20,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
) -> PairResponses:
    """What every latent of a table answers to, by pairs of its images; `pair_responses_of` says how it is measured.

    Patients whose images form a pair count as one. A latent that changes by less than the rounding of a network does
    not change.

    Args:
        table: the latents table, which holds both images of every pair.
        pairs: a row for each pair: image_id_a, image_id_b and attribute, and if they are there the box xmin, ymin,
            xmax, ymax in pixels of the network's input; as `datasets.read_pairs` gives it.
        statistic: "max" or "mean" of a latent over positions.
        map_latents: latents of which it is said how much of their change lies in the box; None means all whose maps
            the table keeps for both images (`encode_latents(map_latents=..., map_images="all")`).
        untrained: the table of the same images under an untrained SAE, or one of each of several, which are scored
            beside.
        alpha: as for `pair_responses_of`; the others likewise.

    Raises:
        InputError: the table lacks an image, there is no pair, or as `pair_responses_of`.
    """
    missing = [name for name in _KEYS if name not in pairs.columns]
    if missing or not len(pairs):
        raise InputError(
            f"the pairs have no {missing[0]}: give image_id_a, image_id_b and attribute"
            if missing
            else "there is no pair: give a row for each"
        )
    settings: dict[str, Any] = {
        "alpha": alpha,
        "least_selectivity": least_selectivity,
        "n_bootstrap": n_bootstrap,
        "n_permutations": n_permutations,
        "min_patients": min_patients,
        "seed": seed,
    }
    attributes = pairs["attribute"].astype(str).to_numpy()
    first, second, changes = _changes(table, pairs, statistic)
    found = pair_responses_of(changes, attributes, _groups(table, first, second), **settings)
    places = pair_places(
        table, pairs, map_latents=map_latents, n_bootstrap=n_bootstrap, min_patients=min_patients, seed=seed
    )
    latents = found.latents.merge(places, on=["attribute", "latent"], how="left")
    latents["n_inside"] = latents["n_inside"].fillna(0).astype(np.int64)
    others = []
    for one in () if untrained is None else untrained if isinstance(untrained, Sequence) else (untrained,):
        first, second, changes = _changes(one, pairs, statistic)
        others.append(pair_responses_of(changes, attributes, _groups(one, first, second), **settings))
    return beside_untrained(replace(found, latents=latents), others)


def beside_untrained(found: PairResponses, untrained: Sequence[PairResponses]) -> PairResponses:
    """The same with untrained SAEs as the chance of `concept_score`, and their numbers beside, as `pair_responses`.

    Args:
        found: of an SAE.
        untrained: of untrained SAEs, by the same pairs; of none nothing is changed.
    """
    if not untrained:
        return found
    best, mixed = (
        np.stack([one.attributes[name].to_numpy(dtype=np.float64) for one in (found, *untrained)]) for name in _BEST
    )
    scores = [
        _concept_score(best[number], mixed[number], np.delete(best[1:], number - 1, axis=0) if number else best[1:])
        for number in range(len(best))
    ]
    own = np.mean(scores[1:], axis=0) if len(untrained) > 1 else np.full(best.shape[1], np.nan)
    beside = found.attributes.assign(
        concept_score=scores[0],
        n_selective_untrained=np.mean([one.attributes["n_selective"] for one in untrained], axis=0),
        best_selectivity_untrained=best[1:].mean(axis=0),
        concept_score_untrained=own,
    )
    return replace(found, attributes=beside, share_untrained=float(np.mean([one.share for one in untrained])))


def _concept_score(
    best: NDArray[np.float64], mixed: NDArray[np.float64], untrained: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """How much of the way from chance to 1 selectivities (attributes,) are; of untrained SAEs (n, attributes)."""
    chance = mixed if untrained is None or not len(untrained) else np.fmax(mixed, untrained.mean(axis=0))
    room = 1 - chance
    return np.clip(np.divide(best - chance, room, out=np.where(np.isnan(room), np.nan, 0.0), where=room > 0), 0, None)


def _sides(table: "LatentTable", pairs: pd.DataFrame) -> tuple[Rows, Rows]:
    """The rows of the first and of the second images in a table."""
    row_of = pd.Series(np.arange(len(table.images)), index=table.images["image_id"].astype(str))
    sides: list[Rows] = []
    for name in _KEYS[:2]:
        ids = pairs[name].astype(str)
        if (unknown := ~ids.isin(row_of.index)).any():
            raise InputError(
                f"{table.folder} has no image {ids[unknown].iloc[0]!r}, which a pair names ({int(unknown.sum())} such "
                "pairs): encode the images of the pairs, or leave these out"
            )
        sides.append(row_of.loc[ids].to_numpy(dtype=np.int64))
    first, second = sides
    if (same := first == second).any():
        raise InputError(f"a pair has the image {pairs.loc[same, 'image_id_a'].iloc[0]!r} twice: give two images")
    return first, second


def _changes(table: "LatentTable", pairs: pd.DataFrame, statistic: str) -> tuple[Rows, Rows, Any]:
    """The rows of both images of every pair in a table, and the change of every latent (n_pairs, d_sae)."""
    first, second = _sides(table, pairs)
    values = image_statistic(table, statistic)
    one, other = (sparse.csr_array(values[rows]).astype(np.float64) for rows in (first, second))
    changes = sparse.csr_array(other - one)
    rounding = NETWORK_ERROR * sparse.csr_array(abs(one).maximum(abs(other)))
    return first, second, changes.multiply(abs(changes) > rounding)


def _groups(table: "LatentTable", first: Rows, second: Rows) -> Rows:
    """(n_pairs,) a number for each patient, or for the patients whose images form pairs with each other."""
    codes, names = pd.factorize(table.images["patient_id"].astype(str))
    links = sparse.coo_array((np.ones(len(first)), (codes[first], codes[second])), shape=(len(names), len(names)))
    _, together = connected_components(links.tocsr(), directed=False)
    found: NDArray[np.int64] = np.asarray(together, dtype=np.int64)[codes[first]]
    return found


def check_places(pairs: pd.DataFrame, image_size: tuple[int, int], where: str) -> None:
    """See that every box of what changed touches the image.

    Args:
        pairs: as for `pair_responses`.
        image_size: (H, W) of the images that the boxes are in.
        where: what the message begins with.

    Raises:
        InputError: a box lies outside.
    """
    height, width = image_size
    boxes = pairs[list(_PLACES)].apply(pd.to_numeric, errors="coerce")
    outside = (boxes["xmin"] >= width) | (boxes["ymin"] >= height) | (boxes["xmax"] <= 0) | (boxes["ymax"] <= 0)
    if outside.any():
        first = pairs[outside].iloc[0]
        said = ", ".join(f"{name} {value:g}" for name, value in boxes[outside].iloc[0].items())
        raise InputError(
            f"{where}: the box of {first['image_id_a']} and {first['image_id_b']} ({said}) lies outside the image of "
            f"{height} x {width} pixels ({int(outside.sum())} such pairs): give it in pixels of the network's input"
        )


def pair_places(
    table: "LatentTable",
    pairs: pd.DataFrame,
    *,
    map_latents: ArrayLike | None = None,
    n_bootstrap: int = 1000,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
) -> pd.DataFrame:
    """Which share of the change of a latent's map lies in the box of what changed.

    Args:
        table: the latents table, with maps of both images of the pairs.
        pairs: as for `pair_responses`, which gives the same numbers; of a table of rows, and of pairs without boxes
            nothing is known.
        map_latents: as there; the others likewise.

    Returns:
        A row per attribute and latent: attribute, latent, inside with its interval (`_low`, `_high`), inside_chance,
        n_inside, as in `PairResponses.latents`.

    Raises:
        InputError: the table lacks an image, a pair has an image twice, or a box lies outside the image.
    """
    columns = ["attribute", "latent", "inside", "inside_low", "inside_high", "inside_chance", "n_inside"]
    has_boxes = all(name in pairs.columns for name in _PLACES) and not getattr(table, "is_of_rows", False)
    if not has_boxes or not len(pairs):
        return pd.DataFrame(columns=columns).astype({"attribute": object, "latent": np.int64, "n_inside": np.int64})
    check_places(pairs, table.image_size, "the pairs")
    first, second = _sides(table, pairs)
    groups = _groups(table, first, second)
    boxes = pairs[list(_PLACES)].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    wanted = None if map_latents is None else set(indices(map_latents, "map_latents", table.d_sae).tolist())
    rows = []
    for at in np.flatnonzero(~np.isnan(boxes).any(axis=1)):
        kept = set(table.map_latents(first[at]).tolist()) & set(table.map_latents(second[at]).tolist())
        latents = sorted(kept if wanted is None else kept & wanted)
        if not latents:
            continue
        change = np.abs(table.maps(latents, second[at]).astype(np.float64) - table.maps(latents, first[at]))
        region = cell_shares(box_region(boxes[[at]], table.image_size), table.grid) > 0
        totals = change.sum(axis=(1, 2))
        share = np.divide(
            (change * region).sum(axis=(1, 2)), totals, out=np.full(len(totals), np.nan), where=totals > 0
        )
        for latent, value in zip(latents, share, strict=True):
            rows.append((str(pairs["attribute"].iloc[at]), latent, groups[at], value, region.mean()))
    frame = pd.DataFrame(rows, columns=["attribute", "latent", "group", "inside", "chance"]).dropna()
    found = []
    for (attribute, latent), own in frame.groupby(["attribute", "latent"], sort=False):
        of_patient = own.groupby("group")[["inside", "chance"]].mean()
        ends = (np.nan, np.nan)
        if n_bootstrap and len(of_patient) >= min_patients:
            weights = patient_bootstrap(of_patient.index.to_numpy(), n_bootstrap, seed)
            drawn = weights @ of_patient["inside"].to_numpy() / weights.sum(axis=1)
            ends = tuple(np.quantile(drawn, [0.025, 0.975]))
        found.append((attribute, latent, of_patient["inside"].mean(), *ends, of_patient["chance"].mean(), len(own)))
    return pd.DataFrame(found, columns=columns).astype({"attribute": object, "latent": np.int64, "n_inside": np.int64})
