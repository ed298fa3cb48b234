"""Names without images: which text a latent's decoder row points to in the space that texts and images share."""

__all__ = ["name_by_directions"]

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mammosae_plugin.adapters.text_towers import TextTower, unit_rows
from mammosae_plugin.arguments import between, indices, numbers, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.interpretation.best_terms import Scored, best_terms, family_p
from mammosae_plugin.interpretation.names import CALLED, LatentNames
from mammosae_plugin.interpretation.terms import Terms, load_terms

METHOD = "direction"


def name_by_directions(
    decoder: ArrayLike,
    tower: TextTower,
    terms: Terms | None = None,
    *,
    latents: ArrayLike | None = None,
    min_excess: float = 0.05,
    alpha: float = CALLED,
    top_k: int = 3,
    n_draws: int = 2000,
    seed: int = 0,
) -> LatentNames:
    """Name latents after the text whose embedding their decoder row points to; it needs no image.

    This is exact where an image's embedding, before its length is made 1, is linear in what the SAE reads: at
    Mammo-CLIP's final map, whose mean over positions is projected, or of embeddings of a CLIP-like model. There latent
    i adds its activation times W_dec[i] W_proj^T. At other layers, which the tower cannot project, it means nothing.

    The score is the cosine. Chance are random mixtures of the decoder's rows, which spread as these do; every term's
    cosine is put into standard deviations of its own chance, the highest is the best, and p is the share of mixtures
    whose highest term is as high: it holds for all terms together. q is p after Benjamini and Hochberg over latents. No
    interval over patients can be had, as there are none.

    Args:
        decoder: (D, d) the SAE's W_dec.
        tower: the text encoder and the image side's projection.
        terms: the vocabulary; None: what mammograms show.
        latents: those that are named, and mixed; name the live ones, as dead rows are noise. None: all.
        min_excess: what the cosine must lie above chance for a name.
        alpha: false discovery rate.
        top_k: how many candidates are listed.
        n_draws: random mixtures.
        seed: of them.

    Raises:
        InputError: a decoder that the tower does not read, fewer than two latents, or settings out of range.
    """
    words = load_terms() if terms is None else terms
    rows: Any = numbers(decoder, "decoder")
    if rows.ndim != 2:
        raise InputError(f"decoder has shape {rows.shape}: expected (D, d), a row for each latent")
    chosen = np.arange(len(rows))
    if latents is not None:
        chosen = indices(latents, "the latents", len(rows), distinct=True)
    if len(chosen) < 2:
        raise InputError("chance is made of mixtures of decoder rows: name at least two latents")
    top_k, n_draws, seed = (
        whole(value, name, least=least)
        for value, name, least in ((top_k, "top_k", 1), (n_draws, "n_draws", 1), (seed, "seed", 0))
    )
    alpha, min_excess = between(alpha, "alpha", 0, 1), between(min_excess, "min_excess", 0, 1)
    directions = tower.project(rows[chosen]) - tower.project(np.zeros((1, rows.shape[1])))
    texts = tower.embed_texts(words.texts).astype(np.float64)
    cosines = unit_rows(directions, "directions of latents") @ texts.T
    mixtures = np.random.default_rng(seed).normal(size=(n_draws, len(chosen))) @ directions
    by_chance = unit_rows(mixtures, "mixtures of directions") @ texts.T
    middle, spread = by_chance.mean(axis=0), by_chance.std(axis=0)
    z = (cosines - middle) / spread
    scored = Scored(
        cosines,
        np.broadcast_to(middle, cosines.shape),
        z,
        family_p(z, ((by_chance - middle) / spread).max(axis=1)),
        np.zeros(len(chosen), dtype=np.int64),
        np.full(len(chosen), "", dtype=object),
    )
    about = {"n_draws": n_draws, "seed": seed}
    names = best_terms(
        METHOD, scored, words, min_excess=min_excess, alpha=alpha, top_k=top_k, unit="", about=about
    )  # fmt: skip
    return names.of_latents(chosen, {})
