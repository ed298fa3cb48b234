"""Two studies side by side: do the same latents stand out, and do they localize as well? The base for replication."""

__all__ = ["compare", "Comparison", "Decoder", "Match", "match_latents", "Saes"]

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import hypergeom, spearmanr

from mammosae_plugin.analysis.dictionaries import alike_at_random
from mammosae_plugin.analysis.effects import EffectAgreement, effect_agreement_of
from mammosae_plugin.errors import InputError
from mammosae_plugin.findings.published import Findings
from mammosae_plugin.findings.study_folder import sae_tensors
from mammosae_plugin.schema.names import file_part
from mammosae_plugin.schema.score_card import compare_cards, comparison_text, scored_alike

Match = Literal["index", "decoder"]
Decoder = NDArray[Any]
Saes = Any  # a SAELens SAE, a place that `load_sae` reads, or either of them by layer

_KEY = ["layer", "model", "concept"]
# Rows of cosines at once: 1024 x 16384 float32 are 64 MB.
_ROWS = 1024


@dataclass(frozen=True)
class Comparison:
    """What two studies have in common.

    Attributes:
        a: The first study's origin; its place as it was given where both have the same origin.
        b: The second's.
        top: How many of the best latents per class were compared.
        match: "index" where both use the same SAE, "decoder" where latents were matched by their decoder directions.
        latents: One row per layer, model, concept and class: n_latents (those compared: matched, and firing in the
            training images of either study), rank_correlation (Spearman's, of the scores), shared_top (latents among
            the best of both), top (how many were looked at in each), expected_shared (mean of shared_top if the best
            were drawn at random), p_value (chance of at least shared_top then). Missing where scores are suppressed.
        localization: One row per layer, model and concept: best_latent_a, average_precision_a, best_latent_b,
            average_precision_b, by each study's own threshold; missing where nothing was localized.
        units: What a counts, and what b does (`measures.units.EvaluationUnit`): class means and AUROCs of different
            units are not of the same thing.
        matching: Where match is "decoder", one row per pair of latents: layer, latent_a, latent_b, cosine.
        effects: One row per layer, model, concept and class: n_latents, and slope and r of B's effect sizes on A's with
            95 % intervals and p (`analysis.EffectAgreement`). An effect size is the mean activation in images of the
            class less that in the others, of training images; where latents were matched by decoder directions it is
            times the length of the decoder row: how far the latent moves the layer. Missing where class means are
            suppressed.
        replication: Where match is "decoder", one row per layer: n_a and n_b (latents with a direction), n_matched,
            share (of the SAE that has fewer) and chance_share (of as many random directions in the place of B's, with
            their second moments).
        scores: By layer, where both SAEs were audited, what `schema.score_card.compare_cards` says of their score cards
            and whether they were scored alike.
    """

    a: str
    b: str
    top: int
    match: Match
    latents: pd.DataFrame
    localization: pd.DataFrame
    matching: pd.DataFrame | None = None
    units: tuple[str, str] = ("image", "image")
    effects: pd.DataFrame = field(default_factory=pd.DataFrame)
    replication: pd.DataFrame | None = None
    scores: Mapping[str, tuple[pd.DataFrame, bool]] = field(default_factory=dict)

    def as_text(self) -> str:
        """What a command prints."""
        how = "the same SAE" if self.match == "index" else "latents matched by decoder directions"
        replicated: list[str] = []
        if self.replication is not None:
            shares = self.replication.to_string(index=False, float_format=lambda value: f"{value:.3f}")
            replicated = ["Latents whose decoder directions are each other's nearest:", shares, ""]
        return "\n".join(
            [
                f"a: {self.a}",
                f"b: {self.b} ({how})",
                *([] if self.units[0] == self.units[1] else [_counted_otherwise(*self.units)]),
                "",
                *replicated,
                "Ranking of latents by score, and the best of each class:",
                self.latents.to_string(index=False, float_format=lambda value: f"{value:.3g}"),
                "",
                "Effect sizes (mean with the class less mean without) of b on those of a; intervals over latents:",
                self.effects.to_string(index=False, float_format=lambda value: f"{value:.3g}"),
                "",
                "The latent that localizes best:",
                self.localization.to_string(index=False, float_format=lambda value: f"{value:.3f}"),
                *(
                    f"\nScore cards at {layer}:\n{comparison_text(compared, alike=alike)}"
                    for layer, (compared, alike) in self.scores.items()
                ),
            ]
        )


def compare(
    a: Findings,
    b: Findings,
    *,
    top: int = 10,
    match: Match = "index",
    saes: tuple[Saes, Saes] | None = None,
    min_cosine: float = 0.7,
    models: Mapping[str, str] | None = None,
    places: tuple[str, str] | None = None,
) -> Comparison:
    """Compare the findings of two studies: `hub.compare_findings`, which says what is compared, of findings at hand.

    Args:
        a: Findings.
        b: Those of the other study.
        top: How many of the best latents per class to compare.
        match: "index" or "decoder".
        saes: For "decoder" the SAEs of a and of b: an SAE or its place, or a mapping of layer to either.
        min_cosine: For "decoder" the least cosine of a pair.
        models: Names of models in a -> their names in b, where they differ.
        places: What to call them where both have the same origin.

    Raises:
        InputError: Nothing in common; different scores; different SAEs with match "index"; SAEs that are missing or not
            those of the findings with match "decoder".
    """
    if top < 1:
        raise InputError(f"top is {top}; give a number of latents from 1")
    if match not in ("index", "decoder"):
        raise InputError(f"match is {match!r}; give 'index' or 'decoder'")
    common = _common_rows(a, b, models or {})
    _check_same_score(a, b)
    names = places if places is not None and a.origin == b.origin else (a.origin, b.origin)
    matching, replication, decoders = None, None, None
    if match == "index":
        _check_same_sae(a, b, common)
    else:
        decoders = _decoders(a, b, common, saes)
        matching, replication = _matching(decoders, min_cosine)
    return Comparison(
        a=names[0],
        b=names[1],
        top=top,
        match=match,
        latents=_compare_latents(a, b, common, matching, top),
        localization=_compare_localization(a, b, common),
        matching=matching,
        units=(_unit(a), _unit(b)),
        effects=_compare_effects(a, b, common, matching, decoders),
        replication=replication,
        scores=_compare_score_cards(a, b, common),
    )


def _compare_score_cards(a: Findings, b: Findings, common: "Sequence[_Row]") -> dict[str, tuple[pd.DataFrame, bool]]:
    found = {}
    for in_a, in_b in _layers(common):
        cards = [one.score_cards.get(file_part(layer)) for one, layer in ((a, in_a), (b, in_b))]
        if cards[0] is not None and cards[1] is not None:
            found[in_a] = compare_cards(cards[0], cards[1]), scored_alike(cards[0], cards[1])
    return found


@dataclass(frozen=True)
class _Row:
    """A layer, model and concept of both studies, as each names them."""

    concept: str
    layer: tuple[str, str]
    model: tuple[str, str]
    encoder: tuple[str, str]

    @property
    def key(self) -> dict[str, str]:
        """How results name it: as study a does."""
        return {"layer": self.layer[0], "model": self.model[0], "concept": self.concept}


def _common_rows(a: Findings, b: Findings, models: Mapping[str, str]) -> list[_Row]:
    theirs = {(row["hook_name"], row["name"], row["concept"]): row for row in b.study["models"]}
    found = []
    for row in a.study["models"]:
        other = theirs.get((row["hook_name"], models.get(row["name"], row["name"]), row["concept"]))
        if other is not None:
            pairs = ((row[key], other[key]) for key in ("layer", "name", "encoder"))
            found.append(_Row(row["concept"], *pairs))
    if not found:
        have = [
            ", ".join(f"{row['layer']}/{row['name']}/{row['concept']}" for row in one.study["models"]) for one in (a, b)
        ]
        raise InputError(
            f"{a.origin} and {b.origin} have no layer, model and concept in common: {have[0]} against {have[1]}; if "
            "models are only named differently, pair them (models={name in a: name in b})"
        )
    return found


def _layers(common: Sequence[_Row]) -> list[tuple[str, str]]:
    return list(dict.fromkeys(row.layer for row in common))


def _unit(findings: Findings) -> str:
    return str(findings.study.get("data", {}).get("unit", "image"))


def _counted_otherwise(a: str, b: str) -> str:
    return f"a counts by {a}, b by {b}, so that a part of every difference may be that"


def _check_same_score(a: Findings, b: Findings) -> None:
    scores = [one.study["config"]["analysis"]["score"] for one in (a, b)]
    if scores[0] != scores[1]:
        raise InputError(
            f"{a.origin} ranks latents by {scores[0]} and {b.origin} by {scores[1]}; make the reports of both with the "
            "same analysis.score"
        )


def _check_same_sae(a: Findings, b: Findings, common: Sequence[_Row]) -> None:
    for in_a, in_b in _layers(common):
        if sae_tensors(a.study["sae"][in_a]) != sae_tensors(b.study["sae"][in_b]):
            raise InputError(
                f"{a.origin} and {b.origin} use different SAEs at layer {in_a}, so that equal latent numbers mean "
                "different latents; compare with match='decoder' and both SAEs (saes=(a, b))"
            )


# Matching


def match_latents(decoder_a: Decoder, decoder_b: Decoder, *, min_cosine: float = 0.7) -> pd.DataFrame:
    """Pair the latents of two SAEs of one layer whose decoder directions are each other's nearest.

    Args:
        decoder_a: (n_a, d), a latent's direction per row.
        decoder_b: (n_b, d).
        min_cosine: Pairs of a smaller cosine are left out.

    Returns:
        One row per pair: latent_a, latent_b, cosine; by latent_a. No latent is in two pairs.

    Raises:
        InputError: Directions of different width.
    """
    directions_a, directions_b = (_unit_rows(decoder) for decoder in (decoder_a, decoder_b))
    if directions_a.shape[1] != directions_b.shape[1]:
        raise InputError(
            f"decoder directions of width {directions_a.shape[1]} and {directions_b.shape[1]} cannot be matched; "
            "both SAEs must be of the same layer"
        )
    nearest_b = np.empty(len(directions_a), dtype=np.int64)
    cosine = np.empty(len(directions_a))
    nearest_a = np.zeros(len(directions_b), dtype=np.int64)
    best_a = np.full(len(directions_b), -np.inf)
    for start in range(0, len(directions_a), _ROWS):
        cosines = directions_a[start : start + _ROWS] @ directions_b.T
        rows = slice(start, start + len(cosines))
        nearest_b[rows] = cosines.argmax(1)
        cosine[rows] = cosines.max(1)
        largest = cosines.max(0)
        better = largest > best_a
        nearest_a[better] = start + cosines.argmax(0)[better]
        best_a[better] = largest[better]
    latents = np.arange(len(directions_a))
    mutual = (nearest_a[nearest_b] == latents) & (cosine >= min_cosine)
    return pd.DataFrame({"latent_a": latents[mutual], "latent_b": nearest_b[mutual], "cosine": cosine[mutual]})


def _unit_rows(decoder: Decoder) -> NDArray[np.float32]:
    rows = np.asarray(decoder, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1), dtype=np.float32)


_Decoders = dict[str, tuple[Decoder, Decoder]]  # by A's name of the layer


def _decoders(a: Findings, b: Findings, common: Sequence[_Row], saes: tuple[Saes, Saes] | None) -> _Decoders:
    if saes is None:
        raise InputError("match='decoder' compares decoder directions; give the SAEs of both studies: saes=(a, b)")
    return {in_a: (_decoder(saes[0], in_a, a), _decoder(saes[1], in_b, b)) for in_a, in_b in _layers(common)}


def _matching(decoders: _Decoders, min_cosine: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    frames, records = [], []
    for layer, (one, other) in decoders.items():
        frame = match_latents(one, other, min_cosine=min_cosine)
        by_chance = match_latents(one, alike_at_random(other), min_cosine=min_cosine)
        n_a, n_b = (int(np.any(rows != 0, axis=1).sum()) for rows in (one, other))
        few = max(min(n_a, n_b), 1)
        shares = {"n_matched": len(frame), "share": len(frame) / few, "chance_share": len(by_chance) / few}
        records.append({"layer": layer, "n_a": n_a, "n_b": n_b, **shares})
        frame.insert(0, "layer", layer)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True), pd.DataFrame(records)


def _decoder(given: Saes, layer: str, findings: Findings) -> Decoder:
    from mammosae_plugin.adapters import load_sae
    from mammosae_plugin.provenance import tensors_fingerprint

    if isinstance(given, Mapping):
        if layer not in given:
            raise InputError(f"no SAE is given for layer {layer} of {findings.origin}; add it to its mapping")
        given = given[layer]
    sae = load_sae(given) if isinstance(given, str | Path) else given
    if tensors_fingerprint(sae.state_dict()) != sae_tensors(findings.study["sae"][layer]):
        raise InputError(f"the SAE given for layer {layer} is not the one that {findings.origin} used there")
    decoder: Decoder = sae.W_dec.detach().float().cpu().numpy()
    return decoder


# Comparing


def _compare_latents(
    a: Findings, b: Findings, common: Sequence[_Row], matching: pd.DataFrame | None, top: int
) -> pd.DataFrame:
    records = []
    for row, own, other in _matched_latents(a, b, common, matching):
        for number in own["score"].columns:
            compared = _compare_class(
                *(one[field][number].to_numpy(dtype=np.float64) for field in ("score", "rank") for one in (own, other)),
                top=top,
            )
            records.append({**row.key, "class": number, **compared})
    columns = ["n_latents", "rank_correlation", "shared_top", "top", "expected_shared", "p_value"]
    frame = pd.DataFrame(records, columns=[*_KEY, "class", *columns])
    return frame.astype({"shared_top": "Int64"})


def _matched_latents(
    a: Findings, b: Findings, common: Sequence[_Row], matching: pd.DataFrame | None
) -> Iterator[tuple[_Row, pd.DataFrame, pd.DataFrame]]:
    """For each row in common both studies' numbers of the latents that match, in one order, that fire in either."""
    of_a, of_b = (dict(iter(one.concepts.groupby(["layer", "encoder", "concept"]))) for one in (a, b))
    for row in common:
        tables = [
            rows[row.layer[i], row.encoder[i], row.concept]
            .astype({"rank": "float64", "n_images": "float64"})  # what is missing (suppressed) as NaN, like a score
            .pivot(index="latent", columns="class", values=["score", "rank", "class_mean", "n_images"])
            for i, rows in enumerate((of_a, of_b))
        ]
        if matching is None:
            latents = tables[0].index.intersection(tables[1].index).to_numpy()
            places = latents, latents
        else:
            pairs = matching[matching["layer"] == row.layer[0]]
            places = pairs["latent_a"].to_numpy(), pairs["latent_b"].to_numpy()
        own, other = (table.loc[place] for table, place in zip(tables, places, strict=True))
        fires = (own["class_mean"].to_numpy() != 0).any(1) | (other["class_mean"].to_numpy() != 0).any(1)
        yield row, own[fires], other[fires]


def _compare_effects(
    a: Findings,
    b: Findings,
    common: Sequence[_Row],
    matching: pd.DataFrame | None,
    decoders: _Decoders | None,
) -> pd.DataFrame:
    records = []
    for row, own, other in _matched_latents(a, b, common, matching):
        effects = [_effects(one) for one in (own, other)]
        if decoders is not None:
            for effect, table, decoder in zip(effects, (own, other), decoders[row.layer[0]], strict=True):
                effect *= np.linalg.norm(decoder[table.index.to_numpy()], axis=1)[:, None]
        classes = own["class_mean"].columns
        # Of two classes one effect is the other's with the sign turned.
        for place, number in list(enumerate(classes))[1 if len(classes) == 2 else 0 :]:
            found = asdict(effect_agreement_of(*(effect[:, place] for effect in effects)))
            records.append({**row.key, "class": number, **found})
    return pd.DataFrame(records, columns=[*_KEY, "class", *(one.name for one in fields(EffectAgreement))])


def _effects(table: pd.DataFrame) -> NDArray[np.float64]:
    """(n, n_class): the mean in images of each class less that in all others; NaN where one is suppressed."""
    means, n_images = (table[name].to_numpy(dtype=np.float64) for name in ("class_mean", "n_images"))
    sums, total = means * n_images, n_images.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: NDArray[np.float64] = means - (sums.sum(axis=1, keepdims=True) - sums) / (total - n_images)
    return found


def _compare_class(
    scores_a: NDArray[np.float64],
    scores_b: NDArray[np.float64],
    ranks_a: NDArray[np.float64],
    ranks_b: NDArray[np.float64],
    *,
    top: int,
) -> dict[str, Any]:
    """Of the latents of one class, in the same order for both studies; NaN where suppressed."""
    n = len(scores_a)
    if n < 2 or np.isnan([scores_a, scores_b]).any():
        missing = dict.fromkeys(("rank_correlation", "expected_shared", "p_value"), np.nan)
        return {"n_latents": n, "shared_top": None, "top": 0, **missing}
    k = min(top, n)
    constant = np.ptp(scores_a) == 0 or np.ptp(scores_b) == 0
    best_a, best_b = (set(np.argsort(ranks, kind="stable")[:k].tolist()) for ranks in (ranks_a, ranks_b))
    shared = len(best_a & best_b)
    return {
        "n_latents": n,
        "rank_correlation": np.nan if constant else float(spearmanr(scores_a, scores_b).statistic),
        "shared_top": shared,
        "top": k,
        "expected_shared": k * k / n,
        "p_value": float(hypergeom.sf(shared - 1, n, k, k)),
    }


def _compare_localization(a: Findings, b: Findings, common: Sequence[_Row]) -> pd.DataFrame:
    records = []
    for row in common:
        record: dict[str, Any] = dict(row.key)
        for i, (side, findings) in enumerate((("a", a), ("b", b))):
            latent, precision = _best(findings.localization, row.layer[i], row.model[i], row.concept)
            record |= {f"best_latent_{side}": latent, f"average_precision_{side}": precision}
        records.append(record)
    frame = pd.DataFrame(records)
    return frame.astype({f"best_latent_{side}": "Int64" for side in "ab"})


def _best(localization: pd.DataFrame, layer: str, model: str, concept: str) -> tuple[int | None, float]:
    """The latent of the highest average precision, the best-ranked of equal ones, by the first threshold and IoU."""
    own = localization[
        (localization[["layer", "model", "concept"]] == [layer, model, concept]).all(axis=1)
        & (localization["method"] == "latent")
    ]
    if own.empty:
        return None, float("nan")
    first = own.iloc[0]
    own = own[(own[["threshold", "iou_threshold"]] == first[["threshold", "iou_threshold"]]).all(axis=1)]
    own = own.dropna(subset=["average_precision"]).sort_values(
        ["average_precision", "rank"], ascending=[False, True], kind="stable"
    )
    return (None, float("nan")) if own.empty else (int(own["latent"].iloc[0]), float(own["average_precision"].iloc[0]))
