"""Images for a text: those in which the latents are active whose names say what the text asks for."""

__all__ = ["Likeness", "ranked_rows", "search_images", "ScaledLatents", "TextSearch"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from mammosae_plugin.analysis.codes import as_codes, as_groups, settled_codes
from mammosae_plugin.analysis.retrieval import ALL, first_of_each, rows_of_split
from mammosae_plugin.analysis.table_arrays import image_groups, image_statistic
from mammosae_plugin.arguments import checked_arguments, one_of, whole
from mammosae_plugin.interpretation.name_matching import Matcher, match_names, named_latents
from mammosae_plugin.interpretation.names import LatentNames
from mammosae_plugin.measures.statistics import settled

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

Likeness = Literal["strength", "cosine"]
_SHARP = 10.0
_HITS = ("image_id", "patient_id", "split", "score", "activations", "contributions", "row")


@dataclass(frozen=True)
class TextSearch:
    """What a text finds.

    Attributes:
        query: the text.
        by: how names were matched.
        latents: the matched latents, as `match_names` gives them, with `weight`, how much each can add to a score.
        hits: a row for each image, best first: image_id, patient_id, split, score, row (in the table), and lists in
            the order of `latents`: activations, and contributions, which sum up to the score.
        about: what was asked, in plain JSON; with `notes`, what of the query was not understood.
    """

    query: str
    by: str
    latents: pd.DataFrame
    hits: pd.DataFrame
    about: Mapping[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """The images."""
        return self.hits


class ScaledLatents:
    """Latents of images on a common scale, of which scores are made.

    - "strength": log(1 + 10 a / m) / log(11), where a is the latent's activation in an image and m its median over the
      searched images in which it is above 0: 0 where it is silent, 1 where it is as active as usual, and little more
      where it is very active, so that an image with all that is asked for comes before one with much of one thing. A
      score is the mean over names of the mean over the latents of each.
    - "cosine" (as SAIL ranks): the activations themselves. A score is the cosine of an image's activations of the
      matched latents with a vector of equal entries; of one latent alone, its activation over the highest.

    Args:
        codes: (N, D) array or scipy.sparse; only values above 0 count.
        likeness: which of them.

    Attributes:
        n_active: (D,) in how many images each latent is above 0.
    """

    def __init__(self, codes: Any, likeness: Likeness = "strength") -> None:
        one_of(likeness, "likeness", ("strength", "cosine"))
        found = as_codes(codes)
        found.data = np.maximum(found.data, 0)
        found.eliminate_zeros()
        self._is_cosine = likeness == "cosine"
        self.n_active: NDArray[np.int64] = np.diff(found.indptr).astype(np.int64)
        self._values = found if self._is_cosine else _as_strengths(settled_codes(found))

    def contributions(self, latents: NDArray[np.int64], weights: NDArray[np.float64]) -> sparse.csr_array:
        """(N, m) what each of m latents adds to the score of each image.

        Args:
            latents: (m,) columns.
            weights: (m,) of "strength".
        """
        chosen = sparse.csr_array(self._values[:, latents])
        if not self._is_cosine:
            chosen.data = chosen.data * weights[chosen.indices]
            return chosen
        if len(latents) == 1:
            chosen.data = chosen.data / chosen.data.max(initial=1e-300)
            return chosen
        lengths = np.sqrt(np.asarray((chosen * chosen).sum(axis=1)).ravel() * len(latents))
        chosen.data = chosen.data / np.repeat(lengths, np.diff(chosen.indptr))
        return chosen

    def scores(self, latents: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) the score of every image."""
        return _sums(self.contributions(latents, weights))


def _sums(contributions: sparse.csr_array) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.asarray(contributions.sum(axis=1), dtype=np.float64).ravel()
    return found


def _as_strengths(codes: sparse.csc_array) -> sparse.csc_array:
    columns = np.split(codes.data, codes.indptr[1:-1])
    medians = np.array([np.median(column) if len(column) else 1.0 for column in columns])
    values = np.log1p(_SHARP * codes.data / np.repeat(medians, np.diff(codes.indptr))) / np.log1p(_SHARP)
    return sparse.csc_array((values, codes.indices, codes.indptr), shape=codes.shape)


def part_weights(matched: pd.DataFrame) -> NDArray[np.float64]:
    """(m,) one over the number of names times that of each one's latents."""
    sizes = matched.groupby("part")["latent"].transform("size").to_numpy(dtype=np.float64)
    weights: NDArray[np.float64] = 1 / (sizes * matched["part"].nunique())
    return weights


def ranked_rows(scores: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.int64]:
    """(N,) rows by falling score, equal ones in a random order.

    In the order of a table images of one kind often lie together, and would be found by their place.
    """
    order = generator.permutation(len(scores))
    return order[np.argsort(-settled(scores)[order], kind="stable")]


@checked_arguments
def search_images(
    table: "LatentTable",
    query: str,
    names: LatentNames | Sequence[LatentNames],
    by: Matcher,
    *,
    n: int = 10,
    split: str = ALL,
    statistic: str = "max",
    likeness: Likeness = "strength",
    group: str | ArrayLike = "patient_id",
    n_names: int = 4,
    per_name: int = 3,
    meanings: Mapping[str, str] | None = None,
    seed: int = 0,
) -> TextSearch:
    """The images that a text asks for, by the names of latents.

    The names that match are found as `match_names` says; images are ranked by how active their latents are there, as
    `ScaledLatents` says, and of each group the best image is given. Images where none of the latents is above 0 are
    not given.

    Args:
        table: the latents table.
        query: what is asked for.
        names: names of its latents, by one or more methods.
        by: how names are matched: `ByText()`, `ByWords()` or `ByModel(model)`.
        n: images at the most.
        split: whose images are searched, or "all".
        statistic: "max" or "mean" of a latent over positions.
        likeness: "strength" or "cosine".
        group: the column of `table.images` that says which images belong together, or this for each image.
        n_names: as for `match_names`.
        per_name: as for `match_names`.
        meanings: as for `named_latents`.
        seed: of the order of images that are equally good.

    Returns:
        `TextSearch`; without latents and hits where no named latent matches.

    Raises:
        InputError: an empty query, no named latent, an unknown split or column, or what the matcher refuses.

    Example:
        >>> found = search_images(table, "a mass in a dense breast", names, ByText())   # doctest: +SKIP
        >>> found.latents, found.hits   # doctest: +SKIP
    """
    n, seed = whole(n, "n", least=1), whole(seed, "seed", least=0)
    one_of(likeness, "likeness", ("strength", "cosine"))
    rows = rows_of_split(table, split)
    groups = as_groups(image_groups(table, group)[rows], len(rows))
    codes = image_statistic(table, statistic)
    named = named_latents(names, meanings)
    matched = match_names(query, named, by, n_names=n_names, per_name=per_name, meanings=meanings)
    about = {
        "query": query, "by": by.name, "likeness": likeness, "split": split, "statistic": statistic, "n": n,
        "n_names": n_names, "per_name": per_name, "n_named": int(named["latent"].nunique()),
        "n_images": len(rows), "n_groups": int(groups.max(initial=-1)) + 1, "notes": list(matched.attrs["notes"]),
    }  # fmt: skip
    latents = matched["latent"].to_numpy(dtype=np.int64)
    if not len(latents):
        hits = pd.DataFrame(columns=[*_HITS, *table.vocabulary])
        return TextSearch(query, by.name, matched.assign(weight=np.zeros(0)), hits, about)
    weights = part_weights(matched)
    chosen = as_codes(codes[rows][:, latents])
    shares = ScaledLatents(chosen, likeness).contributions(np.arange(len(latents)), weights)
    scores = _sums(shares)
    order = ranked_rows(scores, np.random.default_rng(seed))
    order = order[scores[order] > 0]
    best = order[first_of_each(groups[order], int(groups.max(initial=-1)) + 1)][:n]
    images = table.images.loc[rows[best]]
    hits = images[["image_id", "patient_id", "split"]].assign(
        score=scores[best],
        activations=np.asarray(chosen.tocsr()[best].toarray()).tolist(),
        contributions=np.asarray(shares[best].toarray()).tolist(),
        row=rows[best],
    )
    hits = pd.concat([hits, images[list(table.vocabulary)]], axis=1).reset_index(drop=True)
    return TextSearch(query, by.name, matched.assign(weight=weights), hits, about)
