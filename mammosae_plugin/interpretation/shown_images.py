"""Which images and which other names a judge of names is shown: one image of each group, every choice seeded."""

__all__ = [
    "distractors",
    "diverse",
    "fires_and_rests",
    "other_text",
    "plain_text",
    "REST",
    "Shown",
    "shown_images",
    "spread",
]

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mammosae_plugin.arguments import numbers

REST = 0.25
"""The least share of images in which a latent is 0, or its weakest images in place of them."""


@dataclass(frozen=True)
class Shown:
    """Images that are shown for one latent, each of another group; none where there are too few.

    Attributes:
        firing: (m,) rows where it fires, weakest first, spread over the range of its activation.
        hard: rows where it does not, though their dense vectors are nearest to those of firing ones.
        random: rows where it does not, at random; m together with `hard`.
    """

    firing: NDArray[np.int64]
    hard: NDArray[np.int64]
    random: NDArray[np.int64]

    @property
    def others(self) -> NDArray[np.int64]:
        """Those where it does not fire, hard ones first."""
        return np.concatenate([self.hard, self.random])


def plain_text(name: str) -> str:
    """A name without case, signs and spaces that do not tell it from another."""
    return " ".join(re.sub(r"(?<!\d)\.|\.(?!\d)|[^\w=<>.]|_", " ", name.casefold()).split())


def spread(values: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """(n,) places in the middle of n equal parts of the values in rising order, so that all of their range is there."""
    order = np.argsort(values, kind="stable")
    return order[((np.arange(n) + 0.5) * len(values) / n).astype(np.int64)]


def diverse(vectors: ArrayLike, n: int) -> NDArray[np.int64]:
    """Places of n vectors that are unlike: the first, then whichever lies farthest from the nearest that was chosen.

    Args:
        vectors: (m, d); the distance is 1 - cosine, and a vector of zeros is at distance 1 of all others.
        n: how many; all in their order of choice where there are fewer.
    """
    rows = numbers(vectors, "vectors")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(lengths > 0, lengths, 1)
    distance = 1 - unit @ unit.T
    chosen: list[int] = [0] if len(rows) else []
    while len(chosen) < min(n, len(rows)):
        nearest = distance[:, chosen].min(axis=1)
        nearest[chosen] = -np.inf
        chosen.append(int(np.argmax(nearest)))
    return np.array(chosen, dtype=np.int64)


def distractors(names: Mapping[int, str], latent: int, n: int, seed: int | str, *, without: str = "") -> list[int]:
    """Latents (n) at random whose names are shown beside that of a latent: each with another text.

    Args:
        names: by latent, what it is called; of latents with one text the first stands for all.
        latent: whose name is true.
        n: how many; none where fewer have another text.
        seed: of the choice, which is that of Python's `random.Random(seed).sample` from them in rising order.
        without: a text more that none may have.
    """
    taken = {plain_text(names[latent]), plain_text(without)}
    eligible = []
    for other in sorted(names):
        if other != latent and (words := plain_text(names[other])) not in taken:
            taken.add(words)
            eligible.append(other)
    return random.Random(seed).sample(eligible, n) if len(eligible) >= n else []


def other_text(names: Mapping[int, str], latent: int, seed: int | str) -> str:
    """The name of a latent at random that is called otherwise; empty where none is."""
    own = plain_text(names[latent])
    eligible = [name for _, name in sorted(names.items()) if plain_text(name) != own]
    return random.Random(seed).choice(eligible) if eligible else ""


def fires_and_rests(values: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(N,) in which images a latent with activations (N,) fires, and in which it does not.

    It fires above 0. Of maps over many positions the maximum of a latent may be above 0 in nearly every image: one that
    is 0 in less than a quarter of the images fires in those above their median, and does not in its weakest quarter.
    """
    if np.mean(values <= 0) >= REST:
        return values > 0, values <= 0
    rests = values <= np.quantile(values, REST)
    return (values > np.median(values)) & ~rests, rests


def shown_images(
    values: NDArray[np.float64],
    groups: NDArray[np.int64],
    dense: NDArray[np.float32] | None,
    n: int,
    generator: np.random.Generator,
) -> Shown:
    """Images where a latent fires and as many where it does not, each of another group.

    A group stands for where the latent fires by its strongest image. Of these groups n are taken in the middle of n
    equal parts of their activations. Hard negatives are chosen one after the other: of the firing images, taken evenly,
    each has its nearest by cosine among images where the latent does not fire, of groups that have none among the
    chosen yet. The rest are images at random of other groups.

    Args:
        values: (N,) activation of the latent (`fires_and_rests`).
        groups: (N,) as `as_groups` numbers them.
        dense: (N, d), each of length 1 or 0, for half of the others to be hard negatives; None: all are at random.
        n: how many of either kind; fewer where there are not enough groups.
        generator: of chance.
    """
    fires, rests = fires_and_rests(values)
    order = np.lexsort((-values, groups))
    best = order[np.unique(groups[order], return_index=True)[1]]
    best = best[fires[best]]
    with_firing, with_others = groups[best], np.unique(groups[rests])
    n = min(n, len(best), len(with_others), len(np.union1d(with_firing, with_others)) // 2)
    both = np.intersect1d(with_firing, with_others)
    n_reserved = max(0, n - (len(with_others) - len(both)))
    reserved = generator.choice(both, n_reserved, replace=False)
    best = best[~np.isin(with_firing, reserved)]
    firing = best[spread(values[best], n)]
    free = rests & ~np.isin(groups, groups[firing])
    hard: list[int] = []
    if dense is not None and n > 1:
        taken = firing[((np.arange(n // 2) + 0.5) * n / (n // 2)).astype(np.int64)]
        for cosines in dense[taken] @ dense.T:
            hard.append(int(np.argmax(np.where(free, cosines, -np.inf))))
            free &= groups != groups[hard[-1]]
    left = np.flatnonzero(free)
    chosen = generator.choice(np.unique(groups[left]), n - len(hard), replace=False)
    at_random = [generator.choice(left[groups[left] == group]) for group in chosen]
    return Shown(firing, np.array(hard, dtype=np.int64), np.array(at_random, dtype=np.int64))
