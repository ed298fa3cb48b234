"""Names from texts: which words are likelier in a latent's strongest images than in images in general."""

__all__ = ["check_layer", "name_by_texts", "name_by_texts_of", "TextScore"]

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from mammosae_plugin.adapters.text_towers import TextTower, unit_rows
from mammosae_plugin.analysis.codes import as_codes, as_groups, strongest_rows
from mammosae_plugin.analysis.dense_rows import Embeddings, dense_rows
from mammosae_plugin.analysis.table_arrays import image_groups, image_statistic, split_rows, which_table
from mammosae_plugin.arguments import between, indices, numbers, one_of, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.interpretation.best_terms import Scored, best_terms, family_p
from mammosae_plugin.interpretation.names import CALLED, LatentNames
from mammosae_plugin.interpretation.terms import Terms, load_terms
from mammosae_plugin.measures.statistics import interval

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

TextScore = Literal["soft_wpmi", "mean_difference"]
_LEAST: dict[str, float] = {"soft_wpmi": 0.1, "mean_difference": 0.5}
_UNITS = {"soft_wpmi": " nats", "mean_difference": " standard deviations"}
_RESAMPLES = 200


def name_by_texts_of(
    codes: Any,
    similarity: ArrayLike,
    terms: Terms,
    groups: ArrayLike,
    *,
    score: TextScore = "soft_wpmi",
    n: int = 20,
    scale: float = 10.0,
    lam: float = 1.0,
    min_excess: float | None = None,
    alpha: float = CALLED,
    top_k: int = 3,
    min_groups: int = 10,
    n_draws: int = 2000,
    seed: int = 0,
) -> LatentNames:
    """Name latents after the texts that their strongest images are nearest to, beside images drawn at random.

    Of a latent's images with activation above 0, strongest first and one of each group, the first n are looked at.

    - *soft_wpmi* (after CLIP-Dissect, arXiv 2204.10965): log of the mean of p(t | image) over them, weighted by
      rank, less lam times log p(t), in nats. p(t | image) is the softmax over terms of scale times the similarity,
      p(t) its mean over groups, and the weights fall linearly from the strongest image to the n-th.
    - *mean_difference*: the mean similarity over them less that over groups, in standard deviations over images.

    Chance are n groups drawn at random, one image of each. Every term's score is put into standard deviations of its
    own chance, the highest is the best, and p is the share of draws whose highest term is as high: it holds for all
    terms together. q is p after Benjamini and Hochberg over latents. There is no name if q is above alpha, the score
    less than `min_excess` above chance, or a distractor the best.

    Args:
        codes: (N, D) array or scipy.sparse; only values above 0 count.
        similarity: (N, T) cosine of every image with every text, in the order of `terms.names`.
        terms: the vocabulary.
        groups: (N,) which images belong together.
        score: "soft_wpmi" or "mean_difference".
        n: how many images.
        scale: what similarities are multiplied by before the softmax; 10 is CLIP-Dissect's.
        lam: how much a term's frequency counts against it.
        min_excess: as above; None: 0.1 nats, or 0.5 standard deviations.
        alpha: false discovery rate of names.
        top_k: how many candidates are listed.
        min_groups: latents that fire in fewer groups have no name.
        n_draws: draws of chance; p is no smaller than 1 / (n_draws + 1).
        seed: of draws and resamples.

    Returns:
        `LatentNames` of all D latents; the interval is that of the best term under 200 resamples of the images that
        were looked at, each of another group. Only the best candidate has a q.

    Raises:
        InputError: arrays that do not fit, or settings out of range.
    """
    found = as_codes(codes)
    of_row = as_groups(groups, found.shape[0])
    values = numbers(similarity, "similarity")
    if values.shape != (found.shape[0], len(terms.names)) or not np.isfinite(values).all():
        raise InputError(
            f"similarity has shape {values.shape}: expected ({found.shape[0]}, {len(terms.names)}), finite, an image's "
            "with every term and distractor"
        )
    one_of(score, "score", tuple(_LEAST))
    n, top_k, min_groups = (
        whole(n, "n", least=2),
        whole(top_k, "top_k", least=1),
        whole(min_groups, "min_groups", least=2),
    )
    n_draws, seed = whole(n_draws, "n_draws", least=1), whole(seed, "seed", least=0)
    scale, alpha = between(scale, "scale", 0, np.inf, with_low=False), between(alpha, "alpha", 0, 1)
    lam = between(lam, "lam", 0, np.inf)
    least = _LEAST[score] if min_excess is None else between(min_excess, "min_excess", 0, np.inf)
    top, n_groups = strongest_rows(found, of_row, n)
    m = (top >= 0).sum(axis=1)
    statistic = _Statistic(values, of_row, score, scale, lam)
    generator = np.random.default_rng(seed)
    shape = (found.shape[1], values.shape[1])
    scores, chance, z, p = (np.full(shape, np.nan) for _ in range(4))
    for size in np.unique(m[m >= min(min_groups, n)]).tolist():
        at = np.flatnonzero((m == size) & (n_groups >= min_groups))
        drawn = statistic.of(statistic.random_rows(size, n_draws, generator))
        middle, spread = drawn.mean(axis=0), drawn.std(axis=0)
        spread = np.where(spread > 1e-12, spread, np.inf)  # a term that every image is as near to tells nothing
        scores[at], chance[at] = statistic.of(top[at, :size]), middle
        z[at] = (scores[at] - middle) / spread
        p[at] = family_p(z[at], ((drawn - middle) / spread).max(axis=1))
    few = [
        f"fires in too few groups; in {count}, fewer than {min_groups}" if count < min_groups else ""
        for count in n_groups
    ]
    about = {
        "score": score, "n": n, "scale": scale, "lam": lam, "n_draws": n_draws, "seed": seed, "min_groups": min_groups,
        "n_images": found.shape[0], "n_groups": int(of_row.max(initial=-1)) + 1,
    }  # fmt: skip
    scored = Scored(scores, chance, z, p, np.where(n_groups >= min_groups, m, 0), np.array(few, dtype=object))
    names = best_terms(
        f"texts, {score}", scored, terms, min_excess=least, alpha=alpha, top_k=top_k, unit=_UNITS[score], about=about
    )
    best = names.candidates[names.candidates["rank"] == 1]
    column = {name: number for number, name in enumerate(terms.names)}
    for latent, name in zip(best["latent"].tolist(), best["name"].tolist(), strict=True):
        samples = statistic.resampled(top[latent, : m[latent]], column[name], generator)
        names.latents.loc[latent, "low"], names.latents.loc[latent, "high"] = interval(samples)
    return names


class _Statistic:
    """The score of sets of images, strongest first."""

    def __init__(
        self, similarity: NDArray[np.float64], groups: NDArray[np.int64], score: TextScore, scale: float, lam: float
    ) -> None:
        self._is_mean, self._lam = score == "mean_difference", lam
        self._values = similarity if self._is_mean else softmax(scale * similarity, axis=1)
        self._order = np.argsort(groups, kind="stable")
        self._counts = np.bincount(groups)
        self._starts = np.cumsum(self._counts) - self._counts
        sums = np.add.reduceat(self._values[self._order], self._starts, axis=0)
        self._middle = (sums / self._counts[:, None]).mean(axis=0)
        spread = self._values.std(axis=0)
        self._spread = np.where(spread > 1e-12, spread, np.inf)

    def random_rows(self, size: int, n_draws: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """(n_draws, size) images, each of another group."""
        n_groups = len(self._counts)
        chosen = np.stack([generator.choice(n_groups, size, replace=False) for _ in range(n_draws)])
        return np.asarray(self._order[self._starts[chosen] + generator.integers(0, self._counts[chosen])])

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores (m, T) of images (m, size)."""
        weights = self._weights(rows.shape[1])
        means = [weights @ self._values[row] for row in rows]
        return self._score(np.array(means).reshape(-1, self._values.shape[1]), slice(None))

    def resampled(self, rows: NDArray[np.int64], column: int, generator: np.random.Generator) -> NDArray[np.float64]:
        """Scores of one term in resamples of images, each with the weight of its rank."""
        chosen = generator.integers(0, len(rows), (_RESAMPLES, len(rows)))
        weights = self._weights(len(rows))[chosen]
        own = self._values[rows, column][chosen]
        return self._score((own * weights).sum(axis=1) / weights.sum(axis=1), column)

    def _weights(self, size: int) -> NDArray[np.float64]:
        weights = np.ones(size) if self._is_mean else 1 - np.arange(size) / size
        return np.asarray(weights / weights.sum())

    def _score(self, means: NDArray[np.float64], columns: Any) -> NDArray[np.float64]:
        if self._is_mean:
            found = (means - self._middle[columns]) / self._spread[columns]
        else:
            found = np.log(means) - self._lam * np.log(self._middle[columns])
        return np.asarray(found)


def name_by_texts(
    table: "LatentTable",
    tower: TextTower,
    terms: Terms | None = None,
    *,
    embeddings: Embeddings = None,
    latents: ArrayLike | None = None,
    split: str = "training",
    statistic: str = "max",
    group: str | ArrayLike = "patient_id",
    score: TextScore = "soft_wpmi",
    n: int = 20,
    scale: float = 10.0,
    lam: float = 1.0,
    min_excess: float | None = None,
    alpha: float = CALLED,
    top_k: int = 3,
    min_groups: int = 10,
    n_draws: int = 2000,
    seed: int = 0,
) -> LatentNames:
    """Name a table's latents by a text encoder that shares a space with the images (`name_by_texts_of` has the rule).

    Args:
        table: a latents table.
        tower: the text encoder, such as `load_mammo_clip_text` gives.
        terms: the vocabulary; None: what mammograms show (`load_terms()`).
        embeddings: the image features that the tower projects: an array (n_images, d) in the order of `table.images`, a
            store or files of embeddings. None: the means of the layer's channels, which a table of maps keeps; at
            Mammo-CLIP's final map these are what its projection reads.
        latents: some latents; None: those that fire in the split.
        split: whose images are looked at.
        statistic: "max" or "mean" of a latent over positions.
        group: the column of `table.images` that says which images belong together, or this for each image.
        score: as for `name_by_texts_of`, as is all that follows.
        n: images of a latent.
        scale: of the softmax.
        lam: of a term's frequency.
        min_excess: over chance.
        alpha: false discovery rate.
        top_k: candidates.
        min_groups: groups in which a latent must fire.
        n_draws: of chance.
        seed: of draws and resamples.

    Raises:
        InputError: as `name_by_texts_of`, or features that the tower does not read.

    Example:
        >>> text = load_mammo_clip_text("b5-model-best-epoch-7.tar")   # doctest: +SKIP
        >>> name_by_texts(table, text).told(3)   # doctest: +SKIP
    """
    if embeddings is None:
        check_layer(table)
    words = load_terms() if terms is None else terms
    rows = split_rows(table, split)
    chosen = table.live_latents(split)
    if latents is not None:
        chosen = indices(latents, "the latents", table.d_sae, distinct=True)
    images = unit_rows(tower.project(dense_rows(table, embeddings, rows).whole()), "image embeddings")
    found = name_by_texts_of(
        image_statistic(table, statistic)[:, chosen][rows],
        images @ tower.embed_texts(words.texts).astype(np.float64).T,
        words,
        image_groups(table, group)[rows],
        score=score,
        n=n,
        scale=scale,
        lam=lam,
        min_excess=min_excess,
        alpha=alpha,
        top_k=top_k,
        min_groups=min_groups,
        n_draws=n_draws,
        seed=seed,
    )
    return found.of_latents(chosen, {**which_table(table), "split": split, "statistic": statistic})


def check_layer(table: "LatentTable") -> None:
    """See that a table is not of an inner layer, which no image projection reads.

    Raises:
        InputError: more of the network lies between its layer and the pooled features.
    """
    if table.readout_kind == "network":
        raise InputError(
            f"{table.folder} was made at {table.hook_name}, an inner layer, and image projections read the final map: "
            "name the latents of a table of that, or by labels"
        )
