"""Latents beside a latent: those that fire in the same images, those whose directions are near, a map of all."""

__all__ = ["decoder_neighbours", "firing_neighbours", "LatentMap", "map_latents", "N_NEIGHBOURS"]

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from mammosae_plugin.analysis.table_arrays import split_rows
from mammosae_plugin.arguments import checked_arguments, indices, numbers, whole
from mammosae_plugin.errors import InputError

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

N_NEIGHBOURS = 5
_LEAST = 10
"""Images in which a latent must fire, and must not, for its correlation with others to be told."""
_BLOCK = 1024  # latents whose products with as many others are made together
_DRAWS = 512  # of chance
_STRATA = 8  # of latents by how often they fire, each with its own chance
_PERCENTILE = 95
_DIMENSIONS = 50  # of the principal components that the map is made of
_NEAREST = 5  # mapped latents between which one beyond the cap is put
_JUDGED = 2000  # latents of which trustworthiness is measured

Units = NDArray[np.float32]
Columns = tuple[NDArray[np.int64], NDArray[np.float32]]


def _top_products(left: "Blocks", right: "Blocks", n: int, *, own: NDArray[np.int64]) -> Columns:
    """Of every vector of the left the n of the right with the largest products, and these; never itself.

    Args:
        left: vectors of length 1.
        right: likewise.
        n: how many.
        own: (n_left,) which of the right each of the left is.
    """
    best = np.full((left.n, n), -1, dtype=np.int64)
    values = np.full((left.n, n), -np.inf, dtype=np.float32)
    for at, block in left.each():
        for start, other in right.each():
            products = block @ other.T
            rows, columns = np.arange(len(block)), own[at : at + len(block)] - start
            inside = (columns >= 0) & (columns < len(other))
            products[rows[inside], columns[inside]] = -np.inf
            k = min(n, products.shape[1])
            places = np.argpartition(-products, k - 1, axis=1)[:, :k]
            all_values = np.concatenate([values[at : at + len(block)], np.take_along_axis(products, places, 1)], axis=1)
            all_places = np.concatenate([best[at : at + len(block)], places + start], axis=1)
            order = np.argsort(-all_values, axis=1, kind="stable")[:, :n]
            values[at : at + len(block)] = np.take_along_axis(all_values, order, 1)
            best[at : at + len(block)] = np.take_along_axis(all_places, order, 1)
    return best, values


class Blocks:
    """Vectors of length 1 as dense float32 blocks, each made when it is asked for, so that memory is bounded."""

    def __init__(self, of: Any, scale: NDArray[np.float64], shift: NDArray[np.float64]) -> None:
        """Take vectors as the columns of a sparse (m, n) or the rows of a dense (n, m), and what is done to each."""
        self._of, self._scale, self._shift = of, scale, shift
        self.n = len(scale)

    def each(self) -> Iterator[tuple[int, Units]]:
        """(first, block (n, m)) of all vectors in order."""
        for start in range(0, self.n, _BLOCK):
            own = slice(start, start + _BLOCK)
            dense = self._of[own] if isinstance(self._of, np.ndarray) else self._of[:, own].toarray().T
            scaled = (dense - self._shift[own, None]) * self._scale[own, None]
            yield start, np.ascontiguousarray(scaled, dtype=np.float32)


@checked_arguments
def firing_neighbours(
    table: "LatentTable", *, split: str = "test", n: int = N_NEIGHBOURS, seed: int = 0
) -> pd.DataFrame:
    """For every latent those whose firing goes with its own: the phi coefficient over images.

    Chance is what the neighbour of the same rank reaches where a latent's firing is dealt anew: patients change places,
    and their images with them. It is the 95th percentile of such draws among latents that fire about as often (eighths
    of the latents by how often they fire, 64 draws each). Latents that fire in fewer than 10 images of the split, or
    do not in fewer than 10, are left out.

    Args:
        table: a latents table.
        split: whose images.
        n: neighbours of each latent.
        seed: of the draws.

    Returns:
        A row per latent and rank: latent, rank, neighbour, value, chance, n (images), and of patients n_both, n_only,
        n_other and n_neither: with an image in which both fire, the latent alone, the neighbour alone, neither.

    Raises:
        InputError: no such split.
    """
    rows, n = split_rows(table, split), whole(n, "n", least=1)
    codes = sparse.csc_array(table.max_latents[rows])
    n_images, counts = len(rows), np.diff(codes.indptr)
    latents = np.flatnonzero((counts >= _LEAST) & (n_images - counts >= _LEAST))
    columns = ["latent", "rank", "neighbour", "value", "chance", "n", *_CELLS]
    if len(latents) < 2:
        return pd.DataFrame(columns=columns)
    fires = codes[:, latents]
    fires = sparse.csc_array((np.ones(fires.nnz, dtype=np.float32), fires.indices, fires.indptr), shape=fires.shape)
    share = counts[latents] / n_images
    scale = 1 / np.sqrt(share * (1 - share) * n_images)
    n = min(n, len(latents) - 1)
    blocks = Blocks(fires, scale, share)
    best, values = _top_products(blocks, blocks, n, own=np.arange(len(latents)))

    patients = pd.factorize(table.images["patient_id"].to_numpy(dtype=object)[rows].astype(str))[0]
    generator = np.random.default_rng(seed)
    strata = np.argsort(np.argsort(share, kind="stable"), kind="stable") * _STRATA // len(latents)
    drawn = np.concatenate(
        [generator.choice(np.flatnonzero(strata == one), _DRAWS // _STRATA) for one in np.unique(strata)]
    )
    dealt = fires[:, drawn].toarray()
    by_patient = np.argsort(patients, kind="stable")
    for column in range(len(drawn)):
        places = generator.permutation(int(patients.max()) + 1)
        dealt[by_patient, column] = dealt[np.argsort(places[patients], kind="stable"), column]
    shuffled = Blocks(dealt.T, scale[drawn], share[drawn])
    by_chance = _top_products(shuffled, blocks, n, own=drawn)[1]
    limits = np.zeros((_STRATA, n))
    for one in np.unique(strata):
        limits[one] = np.percentile(by_chance[strata[drawn] == one], _PERCENTILE, axis=0)
    found = {
        "latent": np.repeat(latents, n),
        "rank": np.tile(np.arange(1, n + 1), len(latents)),
        "neighbour": latents[best.ravel()],
        "value": np.clip(values.ravel().astype(np.float64), -1, 1),
        "chance": limits[strata].ravel(),
        "n": n_images,
    }
    return pd.DataFrame(found | _patients_of_pairs(fires, best, patients))[columns]


_CELLS = ("n_both", "n_only", "n_other", "n_neither")


def _patients_of_pairs(fires: Any, best: NDArray[np.int64], patients: NDArray[Any]) -> dict[str, NDArray[np.int64]]:
    """Patients with an image in which both of a pair fire, the one alone, the other alone, neither."""
    of_patient = sparse.csr_array((np.ones(len(patients), np.float32), (patients, np.arange(len(patients)))))
    found: dict[str, list[NDArray[np.int64]]] = {name: [] for name in _CELLS}
    step = max(1, 256 // best.shape[1])
    for start in range(0, len(best), step):
        own = np.arange(start, min(start + step, len(best)))
        one = np.repeat(fires[:, own].toarray(), best.shape[1], axis=1)
        other = fires[:, best[own].ravel()].toarray()
        cells = (one * other, one * (1 - other), (1 - one) * other, (1 - one) * (1 - other))
        for name, cell in zip(_CELLS, cells, strict=True):
            found[name].append(((of_patient @ cell) > 0).sum(axis=0))
    return {name: np.concatenate(parts).astype(np.int64) for name, parts in found.items()}


def decoder_neighbours(
    directions: ArrayLike, latents: ArrayLike | None = None, *, n: int = N_NEIGHBOURS, seed: int = 0
) -> pd.DataFrame:
    """For every latent those whose directions are nearest, by cosine.

    Chance is the 95th percentile, over 512 draws, of the cosine of the neighbour of the same rank of a direction whose
    entries are shuffled.

    Args:
        directions: (d_sae, d_in) the rows of the decoder.
        latents: among which; all where None.
        n: neighbours of each.
        seed: of the draws.

    Returns:
        A row per latent and rank: latent, rank, neighbour, value, chance.

    Raises:
        InputError: directions that are not (d_sae, d_in), or latents that are not among them.
    """
    chosen, unit = _directions(directions, latents)
    columns = ["latent", "rank", "neighbour", "value", "chance"]
    n = min(whole(n, "n", least=1), len(chosen) - 1)
    if n < 1:
        return pd.DataFrame(columns=columns)
    plain = np.ones(len(unit)), np.zeros(len(unit))
    best, values = _top_products(Blocks(unit, *plain), Blocks(unit, *plain), n, own=np.arange(len(unit)))
    generator = np.random.default_rng(seed)
    drawn = generator.choice(len(unit), _DRAWS)
    shuffled = Blocks(generator.permuted(unit[drawn], axis=1), np.ones(_DRAWS), np.zeros(_DRAWS))
    by_chance = _top_products(shuffled, Blocks(unit, *plain), n, own=drawn)[1]
    return pd.DataFrame(
        {
            "latent": np.repeat(chosen, n),
            "rank": np.tile(np.arange(1, n + 1), len(chosen)),
            "neighbour": chosen[best.ravel()],
            "value": np.clip(values.ravel().astype(np.float64), -1, 1),
            "chance": np.tile(np.percentile(by_chance, _PERCENTILE, axis=0), len(chosen)),
        }
    )


def _directions(directions: ArrayLike, latents: ArrayLike | None) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The chosen latents (n,) and their directions (n, d_in) of length 1."""
    rows = numbers(directions, "directions")
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise InputError(f"directions have shape {rows.shape}: give finite rows of a decoder, (d_sae, d_in)")
    chosen = np.arange(len(rows)) if latents is None else indices(latents, "latents", len(rows), distinct=True)
    chosen = chosen[np.linalg.norm(rows[chosen], axis=1) > 0]
    return chosen, (rows[chosen] / np.linalg.norm(rows[chosen], axis=1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class LatentMap:
    """Places of latents in a plane in which near ones have near directions.

    Attributes:
        places: a row per latent: latent, x, y; the mean is 0, and the root of the mean squared distance from it 1.
        trustworthiness: how far neighbours on the map are neighbours by direction (Venna and Kaski), from 0 to 1.
        by_chance: the same of the map of directions whose entries are shuffled.
        n_mapped: latents that t-SNE placed; the others lie between their nearest among these.
    """

    places: pd.DataFrame
    trustworthiness: float
    by_chance: float
    n_mapped: int

    def facts(self) -> dict[str, Any]:
        """What is told beside the places."""
        return {
            "trustworthiness": self.trustworthiness,
            "trustworthiness_by_chance": self.by_chance,
            "n_mapped": self.n_mapped,
            "n_latents": len(self.places),
        }


def map_latents(
    directions: ArrayLike, latents: ArrayLike | None = None, *, most: int = 5000, seed: int = 0
) -> LatentMap | None:
    """A map of latents by their directions: 50 principal components, then t-SNE of their cosines, from a seed.

    Args:
        directions: (d_sae, d_in) the rows of the decoder.
        latents: which, those first that are to have a place of their own; all where None.
        most: how many t-SNE places; each of the others is put between the five of these with the nearest directions,
            weighted by their cosines.
        seed: of t-SNE.

    Returns:
        The map; None for fewer than 10 latents.

    Raises:
        InputError: as `decoder_neighbours`.
    """
    chosen, unit = _directions(directions, latents)
    if len(chosen) < _LEAST:
        return None
    first = unit[: whole(most, "most", least=_LEAST)]
    placed, trust = _placed(first, seed)
    generator = np.random.default_rng(seed)
    judged = first[np.sort(generator.permutation(len(first))[:_JUDGED])]
    by_chance = _placed(generator.permuted(judged, axis=1), seed)[1]
    others = unit[len(first) :]
    parts = [placed]
    for start in range(0, len(others), _BLOCK):
        cosines = others[start : start + _BLOCK] @ first.T
        near = np.argpartition(-cosines, _NEAREST - 1, axis=1)[:, :_NEAREST]
        weights = np.maximum(np.take_along_axis(cosines, near, 1), 1e-3)
        parts.append((weights[..., None] * placed[near]).sum(axis=1) / weights.sum(axis=1, keepdims=True))
    places = np.concatenate(parts)
    places = places - places.mean(axis=0)
    places /= np.sqrt(np.square(places).sum(axis=1).mean()) or 1.0
    frame = pd.DataFrame({"latent": chosen, "x": places[:, 0], "y": places[:, 1]})
    return LatentMap(frame.sort_values("latent", ignore_index=True), trust, by_chance, len(first))


def _placed(unit: NDArray[np.float32], seed: int) -> tuple[NDArray[np.float64], float]:
    """The places (n, 2) of directions (n, d) of length 1, and how trustworthy they are."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE, trustworthiness

    reduced = PCA(min(_DIMENSIONS, *unit.shape), random_state=seed).fit_transform(unit)
    perplexity = min(30.0, (len(unit) - 1) / 3)
    placed = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(reduced)
    places = placed.astype(np.float64)
    judged = np.sort(np.random.default_rng(seed).permutation(len(unit))[:_JUDGED])
    k = max(1, min(5, (len(judged) - 1) // 2))
    return places, float(trustworthiness(unit[judged], places[judged], n_neighbors=k))
