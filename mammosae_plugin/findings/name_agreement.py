"""Do names agree with what readers say of the same latents?"""

__all__ = ["agreement_with_notes", "FEWEST"]

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mammosae_plugin.arguments import whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.findings.notes import Note, cohen_kappa
from mammosae_plugin.interpretation.names import LatentNames
from mammosae_plugin.interpretation.shown_images import plain_text
from mammosae_plugin.measures.shares import wilson
from mammosae_plugin.measures.statistics import interval

FEWEST = 10
"""Latents with a name and a reader's word from which on agreement has an interval."""
_COLUMNS = (
    *("reader", "n", "n_unnamed", "equal", "equal_low", "equal_high", "chance"),
    *("kappa", "kappa_low", "kappa_high", "reason"),
)


def agreement_with_notes(
    names: LatentNames,
    notes: Sequence[Note],
    *,
    layer: str | None = None,
    same: Mapping[str, str] | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """How often a name says what a reader says of the same latent, beyond chance.

    What a reader says is the last label, or where there is none the concept of the last note. Words are equal but for
    case and signs, or by `same`: names are free text, and without it agreement is what the words agree.

    Args:
        names: of the latents of one layer; those without a name are counted and left out.
        notes: in force, oldest first, as `read_notes` gives them.
        layer: the layer that the names are of; None where all notes are of one.
        same: one word for several, such as {"a round opacity": "Mass", "lump": "Mass"}, of names and of labels.
        n_bootstrap: resamples of latents.
        seed: of them.

    Returns:
        One row per reader: n latents that have both; n_unnamed of which the reader speaks and that have no name;
        `equal`, the share that agrees, with Wilson's 95 % interval; `chance`, what the shares of the words alone give;
        Cohen's kappa with the interval of resampled latents; and why something is missing, such as too few latents.

    Raises:
        InputError: notes on several layers and no word which, or names without notes.
    """
    layers = sorted({note.layer for note in notes})
    if layer is None and len(layers) > 1:
        raise InputError(f"the notes are on the layers {', '.join(layers)}; name the one that the names are of")
    own = [note for note in notes if layer in (None, note.layer)]
    if not own:
        raise InputError("there is no note to hold the names against; write some with `mammosae note`")
    n_bootstrap, seed = whole(n_bootstrap, "n_bootstrap", least=1), whole(seed, "seed", least=0)
    words = {plain_text(one): plain_text(other) for one, other in (same or {}).items()}

    def said(text: str) -> str:
        return words.get(plain_text(text), plain_text(text))

    named = names.latents[~names.latents["abstained"]]
    called = {int(row["latent"]): said(row["name"]) for row in named.to_dict("records")}
    return pd.DataFrame(
        [
            _agreement(
                reader, {at: said(word) for at, word in _words_of(own, reader).items()}, called, n_bootstrap, seed
            )
            for reader in sorted({note.author for note in own})
        ],
        columns=list(_COLUMNS),
    )


def _words_of(notes: Sequence[Note], reader: str) -> dict[int, str]:
    """By latent the reader's last label, else the concept of the last note."""
    own = [note for note in notes if note.author == reader]
    concepts = {note.latent: note.concept for note in own if note.concept}
    return concepts | {note.latent: note.label for note in own if note.label}


def _agreement(
    reader: str, read: Mapping[int, str], called: Mapping[int, str], n_bootstrap: int, seed: int
) -> dict[str, Any]:
    both = sorted(read.keys() & called.keys())
    found: dict[str, Any] = {
        **dict.fromkeys(_COLUMNS, float("nan")), "reader": reader, "n": len(both),
        "n_unnamed": len(read.keys() - called.keys()), "reason": "",
    }  # fmt: skip
    if not both:
        return {**found, "reason": "no latent has a name and a word of this reader"}
    a, b = np.array([read[latent] for latent in both]), np.array([called[latent] for latent in both])
    equal = float(np.mean(a == b))
    found["equal"] = equal
    found["chance"] = float(sum(np.mean(a == word) * np.mean(b == word) for word in {*a.tolist()}))
    found["kappa"] = cohen_kappa(a.tolist(), b.tolist())
    if np.isnan(found["kappa"]):
        found["reason"] = "one word for everything, of which there is no kappa"
    if len(both) < FEWEST:
        return {**found, "reason": f"too few for an interval: {len(both)} latents, fewer than {FEWEST}"}
    found["equal_low"], found["equal_high"] = wilson(equal * len(both), len(both))
    drawn = np.random.default_rng(seed).integers(0, len(both), (n_bootstrap, len(both)))
    found["kappa_low"], found["kappa_high"] = interval(np.array([_kappa(a[one], b[one]) for one in drawn]))
    return found


def _kappa(a: NDArray[Any], b: NDArray[Any]) -> float:
    """`cohen_kappa`, fast enough for resamples."""
    words = np.unique(np.concatenate([a, b]))
    chance = float(sum(np.mean(a == word) * np.mean(b == word) for word in words))
    return float("nan") if chance == 1 else (float(np.mean(a == b)) - chance) / (1 - chance)
