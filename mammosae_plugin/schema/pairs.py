"""What a study says of its counterfactual pairs: the columns of a row per encoder and attribute.

Nothing of it is published (docs/counterfactuals.md says why), so all columns of numbers stay on this machine.
"""

__all__ = ["CHANCES", "PAIRS"]

from collections.abc import Iterator

import pyarrow as pa

from mammosae_plugin.schema.columns import Column

_TEXT, _WHOLE, _REAL = pa.string(), pa.int64(), pa.float64()
_SHARE = "0 to 1"
CHANCES = {
    "mixed": "the mean of that for random mixtures of the latents",
    "permuted": "the mean of that where attributes are exchanged among the pairs",
    "untrained": "the mean of that for two untrained SAEs",
}
"""What stands beside a number of the pairs, by the end of its name."""


def _real(name: str, meaning: str, unit: str = "") -> Column:
    return Column(name, _REAL, meaning, unit, "secret")


def _whole(name: str, meaning: str, unit: str) -> Column:
    return Column(name, _WHOLE, meaning, unit, "secret")


def _with_chances(name: str, meaning: str, unit: str, *, score: str = "") -> Iterator[Column]:
    yield _real(name, meaning, unit)
    if score:
        yield _real("concept_score", score, unit)
    for end, chance in CHANCES.items():
        yield _real(f"{name}_{end}", chance, unit)


def _with_interval(name: str, meaning: str, unit: str) -> Iterator[Column]:
    for end in ("", "_low", "_high"):
        yield _real(f"{name}{end}", f"{meaning}, with its 95 % interval over patients (`_low`, `_high`)", unit)


_SCORE = "how much of the way from chance, of mixtures or of untrained SAEs, to 1 that is"
PAIRS = (
    Column("encoder", _TEXT, "the model, or `model/finding` where each classifier has its own encoder"),
    Column("attribute", _TEXT, "in what the two images of a pair differ", privacy="secret"),
    _whole("n_pairs", "pairs", "pairs"),
    _whole("n_patients", "their patients", "patients"),
    _whole("n_responding", "latents whose change has a q of at most 0.05", "latents"),
    *_with_chances("n_selective", "latents that answer to it, and to nothing else half as much", "latents"),
    _whole("best_latent", "of the latents that respond, the most selective", ""),
    *_with_interval("response", "its mean change from the first to the second image", "the SAE's"),
    _real("share_changed", "patients in whose pairs it changes", _SHARE),
    _real("q", "that it does not: signed ranks, after Benjamini and Hochberg over all latents and attributes", _SHARE),
    _whole("sign", "1 or -1, in which direction; 0 where q is above 0.05", ""),
    *_with_interval("selectivity", "how much more it answers than to any other attribute", "-1 to 1"),
    *_with_interval("inside", "share of the change of its map in the cells that the box of the change touches", _SHARE),
    _real("inside_chance", "these cells' share of the map", _SHARE),
    _whole("n_inside", "pairs by which that is known", "pairs"),
    *_with_chances("best_selectivity", "lower end of the best latent's selectivity, at least 0", _SHARE, score=_SCORE),
    _real("concept_score_untrained", "the concept score of an untrained SAE, for which another is chance", _SHARE),
    *_with_chances("share", "share of all attributes that have a selective latent", _SHARE),
)
"""A row per encoder and attribute."""
