"""Whether two SAEs have the same latents: matched by how their codes of shared images go together."""

__all__ = ["decoder_replication_of", "Replication", "replication", "replication_of", "shared_images"]

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from mammosae_plugin.analysis.codes import as_codes
from mammosae_plugin.analysis.dictionaries import alike_at_random
from mammosae_plugin.arguments import between, checked_arguments, numbers, one_of, whole
from mammosae_plugin.errors import InputError

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable


@dataclass(frozen=True)
class Replication:
    """Latents of A matched one to one with latents of B.

    Attributes:
        pairs: one row per match, best first: latent_a, latent_b, correlation.
        n_a: latents of A that vary over the images; only such are matched.
        n_b: latents of B that do.
        threshold: the correlation above which a latent counts as replicated.
        chance_mean: `mean` with the images of B in random order, its mean over the draws; NaN without draws.
        chance_share: `share` likewise.
    """

    pairs: pd.DataFrame
    n_a: int
    n_b: int
    threshold: float
    chance_mean: float
    chance_share: float

    @property
    def mean(self) -> float:
        """Mean correlation of the matches; NaN without any."""
        return float(self.pairs["correlation"].mean())

    @property
    def share(self) -> float:
        """Matches above the threshold, of the latents of the SAE that has fewer; NaN without any."""
        few = min(self.n_a, self.n_b)
        return float((self.pairs["correlation"] > self.threshold).sum() / few) if few else float("nan")

    def to_frame(self) -> pd.DataFrame:
        """The matches."""
        return self.pairs

    def __str__(self) -> str:
        return (
            f"{len(self.pairs)} latents matched ({self.n_a} and {self.n_b} vary): mean correlation {self.mean:.3f} "
            f"(by chance {self.chance_mean:.3f}), {self.share:.1%} above {self.threshold:g} (by chance "
            f"{self.chance_share:.1%})"
        )


def replication_of(
    codes_a: Any, codes_b: Any, *, threshold: float = 0.7, n_draws: int = 3, seed: int = 0
) -> Replication:
    """Match latents of two SAEs by the correlation of their codes on the same images.

    The matching is the one to one assignment of largest total correlation (scipy's `linear_sum_assignment`). As it may
    choose among many latents, correlations of chance are well above 0: they stand beside, from images of B in random
    order. What an untrained SAE of the same shape reaches is the harder control: match with it too.

    Args:
        codes_a: (N, D) array or scipy.sparse, of one network's images.
        codes_b: (N, E) of the same images in the same order, under any SAE, layer or network.
        threshold: the correlation above which a latent counts as replicated.
        n_draws: random orders for chance; each costs as much as the matching itself.
        seed: of these orders.

    Raises:
        InputError: arrays that do not fit, or fewer than 3 images.

    Example:
        >>> import numpy as np
        >>> codes = np.random.default_rng(0).random((50, 4))
        >>> replication_of(codes, codes[:, ::-1]).share
        1.0
    """
    first, second = as_codes(codes_a, "codes_a"), as_codes(codes_b, "codes_b")
    if first.shape[0] != second.shape[0]:
        raise InputError(f"codes are of {first.shape[0]} and {second.shape[0]} images: give those of shared images")
    if first.shape[0] < 3:
        raise InputError(f"{first.shape[0]} images are too few for a correlation: give 3 or more")
    threshold = between(threshold, "threshold", -1, 1)
    n_draws, seed = whole(n_draws, "n_draws", least=0), whole(seed, "seed", least=0)
    live_a, live_b = _varying(first), _varying(second)
    one, other = sparse.csc_array(first[:, live_a]), sparse.csc_array(second[:, live_b])
    generator = np.random.default_rng(seed)
    matched = _matched(_correlations(one, other))
    drawn = [_matched(_correlations(one, _reordered(other, generator)))[2] for _ in range(n_draws)]
    return _replication(live_a, live_b, matched, drawn, threshold)


def decoder_replication_of(
    decoder_a: ArrayLike, decoder_b: ArrayLike, *, threshold: float = 0.7, n_draws: int = 1, seed: int = 0
) -> Replication:
    """Match latents of two SAEs of one layer by the cosine of their decoder rows, one to one; no image is needed.

    The mean is that of SAELens's `mean_correlation_coefficient` for latents that only point one way: it takes the
    amount of the cosine, this the cosine.

    Args:
        decoder_a: (D, d), a latent's direction per row, of any length; rows of zeros are left out.
        decoder_b: (E, d).
        threshold: the cosine above which a latent counts as replicated.
        n_draws: for chance, draws of random directions with the second moments of B's rows.
        seed: of the draws.

    Returns:
        `Replication`, whose `correlation` is the cosine.

    Raises:
        InputError: no (D, d) and (E, d) arrays, or not finite.
    """
    one, other = numbers(decoder_a, "decoder_a"), numbers(decoder_b, "decoder_b")
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise InputError(
            f"decoders have shapes {one.shape} and {other.shape}: expected (D, d) and (E, d), of one layer"
        )
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise InputError("a decoder holds a value that is not finite")
    threshold = between(threshold, "threshold", -1, 1)
    n_draws, seed = whole(n_draws, "n_draws", least=0), whole(seed, "seed", least=0)
    live_a, live_b = (np.flatnonzero((rows != 0).any(axis=1)) for rows in (one, other))
    first, second = (
        rows[live] / np.linalg.norm(rows[live], axis=1, keepdims=True)
        for rows, live in ((one, live_a), (other, live_b))
    )
    matched = _matched(np.clip(first @ second.T, -1, 1))
    some = len(live_a) and len(live_b)
    drawn = [
        _matched(first @ alike_at_random(second, seed=(seed, number)).T)[2] for number in range(n_draws if some else 0)
    ]
    return _replication(live_a, live_b, matched, drawn, threshold)


def _replication(
    live_a: NDArray[np.int64],
    live_b: NDArray[np.int64],
    matched: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]],
    drawn: list[NDArray[np.float64]],
    threshold: float,
) -> Replication:
    rows, columns, found = matched
    pairs = pd.DataFrame({"latent_a": live_a[rows], "latent_b": live_b[columns], "correlation": found})
    pairs = pairs.sort_values(["correlation", "latent_a"], ascending=[False, True], ignore_index=True)
    known = bool(drawn) and len(pairs) > 0
    return Replication(
        pairs,
        len(live_a),
        len(live_b),
        threshold,
        chance_mean=float(np.mean(drawn)) if known else float("nan"),
        chance_share=float(np.mean(np.array(drawn) > threshold)) if known else float("nan"),
    )


def _reordered(codes: sparse.csc_array, generator: np.random.Generator) -> sparse.csc_array:
    return sparse.csc_array(codes[generator.permutation(codes.shape[0])])


def _varying(codes: sparse.csc_array) -> NDArray[np.int64]:
    """Latents that are not the same in every row."""
    low, high = (np.asarray(extreme.todense()).ravel() for extreme in (codes.min(axis=0), codes.max(axis=0)))
    return np.flatnonzero(high > low)


def _correlations(one: sparse.csc_array, other: sparse.csc_array) -> NDArray[np.float64]:
    """Pearson's, (D, E), by sparse products: the codes are never made dense."""
    n = one.shape[0]
    sums = [np.asarray(codes.sum(axis=0)).ravel() for codes in (one, other)]
    squares = [np.asarray((codes * codes).sum(axis=0)).ravel() for codes in (one, other)]
    spreads = [np.sqrt(np.maximum(square - total**2 / n, 0)) for square, total in zip(squares, sums, strict=True)]
    covariances = np.asarray((one.T @ other).todense()) - np.outer(sums[0], sums[1]) / n
    scale = np.outer(spreads[0], spreads[1])
    found: NDArray[np.float64] = np.divide(covariances, scale, out=np.zeros_like(covariances), where=scale > 0)
    return np.clip(found, -1, 1)


def _matched(
    likeness: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    rows, columns = linear_sum_assignment(likeness, maximize=True)
    return rows, columns, likeness[rows, columns]


@checked_arguments
def replication(
    table_a: "LatentTable",
    table_b: "LatentTable",
    *,
    split: str = "test",
    statistic: str = "mean",
    threshold: float = 0.7,
    n_draws: int = 3,
    seed: int = 0,
) -> Replication:
    """Which latents of one table are found again in another: another seed, width, layer or network.

    Args:
        table_a: a latents table.
        table_b: another of the same images, or some of them; images are matched by their ids.
        split: the split whose images are used.
        statistic: "mean" or "max" over positions.
        threshold: as for `replication_of`.
        n_draws: as for `replication_of`.
        seed: as for `replication_of`.

    Raises:
        InputError: tables that share fewer than 3 images of the split, an unknown split or statistic.
    """
    one_of(statistic, "statistic", ("mean", "max"))
    rows = shared_images(table_a, table_b, split)
    codes = [
        (table.mean_latents if statistic == "mean" else table.max_latents)[row]
        for table, row in zip((table_a, table_b), rows, strict=True)
    ]
    return replication_of(codes[0], codes[1], threshold=threshold, n_draws=n_draws, seed=seed)


def shared_images(
    table_a: "LatentTable", table_b: "LatentTable", split: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of both tables that hold the same images of a split, in one order.

    Raises:
        InputError: an unknown split, or fewer than 3 images in both.
    """
    rows = []
    for table in (table_a, table_b):
        if split not in table.splits:
            raise InputError(f"{table.folder} has no split {split!r}; it has {', '.join(table.splits)}")
        images = table.images
        rows.append(pd.Series(images.index, index=images["image_id"])[(images["split"] == split).to_numpy()])
    shared = rows[0].index.intersection(rows[1].index)
    if len(shared) < 3:
        raise InputError(
            f"{table_a.folder} and {table_b.folder} share {len(shared)} images of split {split!r}: they are "
            "held together on shared images; encode the same images with both"
        )
    first, second = (row.loc[shared].to_numpy() for row in rows)
    return first, second
