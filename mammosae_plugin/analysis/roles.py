"""What a study may say a latent is: of the concept, of the background, or unclear, with the numbers that decide it.

A name is earned on test images, by all of the evidence that there is; latents are chosen on training images. Where one
part is missing, or does not speak for the same thing, the role is `unclear`.
"""

__all__ = [
    "FEWEST_CONTROLS", "FEWEST_PATIENTS", "FOLLOWS", "latent_roles", "LEAST_EXPLAINED", "MATTERS", "places_of",
    "SEPARATES", "Weights",
]  # fmt: skip

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mammosae_plugin.analysis.intervention import Passes, single_ablations
from mammosae_plugin.analysis.lesion_truth import covered, lenders
from mammosae_plugin.analysis.probing import RankedLatents, class_mean_latents
from mammosae_plugin.analysis.reconstruction import reconstruction_quality
from mammosae_plugin.arguments import checked_arguments, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents.table import logit_error
from mammosae_plugin.measures.statistics import (
    MIN_PATIENTS,
    Resamples,
    patient_bootstrap,
    ranking_metrics,
    settled,
    settled_columns,
    spread_interval,
)
from mammosae_plugin.schema.names import counted
from mammosae_plugin.schema.results import BACKGROUND, CONCEPT, ROLE_NUMBERS, UNCLEAR, WEAK

if TYPE_CHECKING:
    from mammosae_plugin.latents import EvaluationRows, LatentTable

SEPARATES = WEAK
"""AUROC from which a latent, or a classifier, tells the classes; between 1 minus it and it, it hardly does."""
FOLLOWS = 1.5
"""How many times as much of a latent must lie in an image's own boxes as in other patients' boxes."""
MATTERS = 0.01
"""Share of the classifier's distance between the classes that must go with a latent of the concept."""
FEWEST_PATIENTS = MIN_PATIENTS
"""Patients of each class, and with boxes, below which nothing is said."""
FEWEST_CONTROLS = 19
"""Random groups below which even the largest of them does not bound 95 % of chance."""
LEAST_EXPLAINED = 0.5
"""Explained variance on test images below which the latents are not those of the network."""

_MAPS_PER_BLOCK = 128  # latents of 100 images of 48 x 29 cells are 71 MB

Weights = NDArray[np.float64]


def _measured(name: str, value: float, ends: tuple[float, float]) -> dict[str, float]:
    """A value with its 95 % interval over patients."""
    return {name: float(value), f"{name}_low": ends[0], f"{name}_high": ends[1]}


@checked_arguments
def latent_roles(
    table: "LatentTable",
    ranking: RankedLatents,
    concept: str,
    *,
    split: str = "test",
    unit: str = "image",
    top: int = 10,
    n_controls: int = 99,
    n_bootstrap: int = 1000,
    seed: int = 0,
    passes: Passes | None = None,
    min_patients: int = MIN_PATIENTS,
    patients: Collection[str] | None = None,
) -> pd.DataFrame:
    """The roles of the best latents of class 1, and the evidence.

    All four are measured on `split`, with 95 % intervals from resampled patients:

    - *separation*: AUROC of the latent's mean over positions, images with the finding against images without;
    - *both classes*: its mean, and the share of images in which it fires, in either class;
    - *ablation*: how much nearer the two classes' mean logits come when it alone is zeroed in the network (error term
      kept), beside random groups of other live latents of the same mean activation;
    - *place*, where there are boxes: the share of its activation inside the image's boxes, divided by the share inside
      the boxes of other patients' images of the same side and view. 1 is chance.

    `concept`: the AUROC is at least 0.6 and its interval above 0.5, the mean is higher with the finding in the training
    split too, the ablation effect is above 0, at least 1 % of the classifier's distance between the classes, and above
    that of 95 % of at least 19 random groups, and the place (where the concept has boxes) is at least 1.5 with its
    interval above 1. `background`: the interval of the AUROC lies between 0.4 and 0.6, it fires in at least half of the
    images of either class, its ablation effect is one that random groups have too, and its place is not the boxes'.
    Everything else is `unclear`; and so are all latents where the classifier itself does not tell the classes (AUROC
    below 0.6, or its interval not above 0.5), where the SAE explains less than half of the variance, and where fewer
    than 10 patients, or `min_patients`, are in a class.

    Args:
        table: the latents table.
        ranking: the ranking (from the training split) whose best latents of class 1 are named.
        concept: a finding that has a head.
        split: the split that gives the evidence.
        unit: as for `LatentTable.rows`. Of a breast, exam or patient a latent's mean, or maximum, over the images is
            looked at, and the mean of what an ablation takes from their logits; the place is always that in images.
        top: how many latents are named; those that never fire in training images of class 1 are left out.
        n_controls: random groups beside every latent.
        n_bootstrap: resamples of patients; 0 leaves all roles unclear.
        seed: seed of resamples and controls.
        passes: as for `intervention.intervene`; with `n_controls` more masks per latent.
        min_patients: patients that either class, or those with boxes, must have for an interval; with fewer its ends
            are NaN.
        patients: those of the split's patients on whose images latents are ablated, such as a sample where passes are
            dear; None means all. Everything else is measured on all patients.

    Returns:
        One row per latent, in the ranking's order: latent, role, reason (a line), and the numbers `ROLE_NUMBERS`.

    Raises:
        InputError: a concept that has not two classes, a ranking of another width, or as `intervene`.
    """
    if len(table.classes(concept)) != 2 or ranking.n_class != 2:
        raise InputError(f"'{concept}' has {len(table.classes(concept))} classes: roles are for a finding, which has 2")
    if ranking.d_sae != table.d_sae:
        raise InputError(f"the ranking has {ranking.d_sae} latents, but the table has {table.d_sae}: rank this table")
    top = whole(top, "top", least=1)
    before = class_mean_latents(table, concept, split="training", unit=unit)
    latents = np.array([i for i in ranking.indices[1, :top] if before[1, i] != 0], dtype=np.int64)
    rows = table.rows(concept, split=split, unit=unit)
    resamples = Resamples(rows.labels, rows.patient_ids, n_bootstrap=n_bootstrap, seed=seed, min_patients=min_patients)
    fewest = max(FEWEST_PATIENTS, resamples.min_patients)
    evidence = _evidence(table, latents, concept, rows, n_controls, resamples, seed, passes, patients)
    place = places_of(table, latents, concept, split, n_bootstrap, seed, fewest)
    obstacle = _obstacle(table, concept, split, rows, resamples, fewest)
    obstacle = obstacle or _too_few(rows.of_patients(patients), fewest, " whose images were run without latents")
    rises = before[1, latents] > before[0, latents]
    records = []
    for latent, rose, numbers, where in zip(latents, rises, evidence, place, strict=True):
        row = {"latent": int(latent), **numbers, **where}
        role, reason = (UNCLEAR, obstacle) if obstacle else _role(row, bool(rose))
        records.append({**row, "role": role, "reason": reason})
    return pd.DataFrame.from_records(records, columns=["latent", "role", "reason", *ROLE_NUMBERS])


def _obstacle(
    table: "LatentTable", concept: str, split: str, rows: "EvaluationRows", resamples: Resamples, fewest: int
) -> str:
    """Why no latent of this classifier can be given a role; empty where nothing stands in the way."""
    if few := _too_few(rows, fewest):
        return few
    explained = reconstruction_quality(table, split).explained_variance
    if not explained >= LEAST_EXPLAINED:
        return f"the SAE explains {explained:.3f} of the variance, less than {LEAST_EXPLAINED:g}"
    if not len(resamples.multiplicities):
        return "no interval over patients was asked for (n_bootstrap is 0)"
    logits = settled(rows.logits(table.logits(concept)), logit_error(table, concept))
    auroc = ranking_metrics(logits, rows.labels).auroc
    if not (auroc >= SEPARATES and resamples.interval(resamples.metrics(logits)["auroc"], auroc=True)[0] > 0.5):
        return f"the classifier does not tell the classes on test images (AUROC {auroc:.3f})"
    return ""


def _too_few(rows: "EvaluationRows", fewest: int, which: str = "") -> str:
    for label, words in ((1, "with"), (0, "without")):
        n = len(set(rows.patient_ids[rows.labels == label]))
        if n < fewest:
            return f"only {counted(n, 'test patient')} {words} the finding{which}, fewer than {fewest}"
    return ""


def _role(row: dict[str, Any], rose: bool) -> tuple[str, str]:
    """Role and reason from the numbers of a latent."""
    n_controls, boxed = row["n_random"], row["n_patients_boxed"]
    beyond_random = row["ablation"] > row["ablation_random"]
    if n_controls < FEWEST_CONTROLS:
        return UNCLEAR, f"only {counted(n_controls, 'random group')} beside it, fewer than {FEWEST_CONTROLS}"
    if not np.isfinite(row["auroc_low"]):
        return UNCLEAR, "no interval over patients"
    if boxed and not (np.isfinite(row["place_low"]) or row["place"] < FOLLOWS):
        return UNCLEAR, f"its place is not known: it fires in too few images of the {boxed} test patients with boxes"
    follows = boxed > 0 and row["place"] >= FOLLOWS and row["place_low"] > 1
    if row["auroc_low"] > 0.5 and row["auroc"] >= SEPARATES:
        if not (rose and row["mean_with"] > row["mean_without"]):
            return UNCLEAR, "its class mean is not higher with the finding in both splits"
        if not (row["ablation_low"] > 0 and beyond_random and row["ablation_share"] >= MATTERS):
            return (
                UNCLEAR,
                "it goes with the finding, but the classifier rests on it no more than on random groups, or too little",
            )
        if boxed and not follows:
            return UNCLEAR, "it goes with the finding, but not enough of it lies in the boxes"
        return CONCEPT, "goes with the finding, the classifier rests on it, " + (
            "and it fires in the boxes" if boxed else "no boxes: its place was not examined"
        )
    if row["auroc_low"] > 1 - SEPARATES and row["auroc_high"] < SEPARATES:
        if min(row["fires_with"], row["fires_without"]) < 0.5:
            return UNCLEAR, "as active in both classes, but it fires in few images"
        if beyond_random and row["ablation_low"] > 0:
            return UNCLEAR, "as active in both classes, but the classifier rests on it"
        if follows:
            return UNCLEAR, "as active in both classes, but it fires in the boxes"
        return BACKGROUND, "fires in both classes alike, and the classifier rests on it no more than on random groups"
    return UNCLEAR, "whether it goes with the finding is not certain"


def _evidence(
    table: "LatentTable",
    latents: NDArray[np.int64],
    concept: str,
    rows: "EvaluationRows",
    n_controls: int,
    resamples: Resamples,
    seed: int,
    passes: Passes | None,
    patients: Collection[str] | None,
) -> list[dict[str, Any]]:
    """Separation, both classes and ablation of every latent."""
    if not len(latents) or len(np.unique(rows.labels)) < 2:
        return [dict.fromkeys(ROLE_NUMBERS, np.nan) | {"n_random": 0} for _ in latents]
    effect, sampled, random, whole = _ablations(
        table, latents, concept, rows.of_patients(patients), n_controls, resamples, seed, passes
    )
    n_random = n_controls if len(np.setdiff1d(table.live_latents("training"), latents)) else 0
    activity = rows.values(table.mean_latents.tocsc()[:, latents].toarray()).astype(np.float64)
    present = rows.labels == 1
    found = []
    for column in range(len(latents)):
        values = activity[:, [column]]
        scores = settled_columns(values)
        separated = resamples.interval(resamples.metrics(scores)["auroc"], auroc=True)
        fires = values[:, 0] != 0
        record: dict[str, Any] = {"n_random": n_random, "undefined_share": resamples.undefined_share}
        for name, own in (("with", present), ("without", ~present)):
            record |= {
                f"n_patients_{name}": len(set(rows.patient_ids[own])),
                f"n_firing_{name}": len(set(rows.patient_ids[own & fires])),
                f"mean_{name}": float(values[own, 0].mean()),
                f"fires_{name}": float(fires[own].mean()),
            }
        record |= _measured("auroc", ranking_metrics(scores, rows.labels).auroc, separated)
        record |= _measured("ablation", effect[column], sampled[column])
        record["ablation_random"] = (
            float(np.quantile(random[column], 0.95, method="higher")) if n_random else float("nan")
        )
        record["ablation_share"] = float(effect[column]) / whole if whole else float("nan")
        found.append(record)
    return found


def _ablations(
    table: "LatentTable",
    latents: NDArray[np.int64],
    concept: str,
    rows: "EvaluationRows",
    n_controls: int,
    resamples: Resamples,
    seed: int,
    passes: Passes | None,
) -> tuple[NDArray[np.float64], list[tuple[float, float]], NDArray[np.float64], float]:
    """The ablation effect (n_latents,), its intervals, that of random groups (n_latents, n_controls), the distance."""
    present = rows.labels == 1
    images, image_of_row = np.unique(rows.image_rows, return_inverse=True)
    ablated = single_ablations(
        table, latents, head=concept, image_rows=images, n_controls=n_controls, seed=seed, passes=passes
    )
    if len(rows.labels) != len(resamples.labels):
        n_bootstrap, fewest = len(resamples.multiplicities), resamples.min_patients
        resamples = Resamples(rows.labels, rows.patient_ids, n_bootstrap=n_bootstrap, seed=seed, min_patients=fewest)
    losses = rows.mean(ablated.losses[image_of_row])
    sampled = _gap(losses, present, resamples.multiplicities)
    control_losses = rows.mean(ablated.control_losses[image_of_row]).reshape(len(present), -1)
    random = _gap(control_losses, present).reshape(len(latents), n_controls)
    whole = float(_gap(rows.mean(table.logits(concept)[rows.image_rows]), present)[0])
    return _gap(losses, present), [resamples.interval(column) for column in sampled.T], random, whole


def _gap(
    values: NDArray[np.float64], present: NDArray[np.bool_], resamples: NDArray[np.integer] | None = None
) -> NDArray[np.float64]:
    """Mean of rows with the finding minus mean of the others, of values (n, m): (m,), or (n_bootstrap, m)."""
    weights = np.ones((1, len(values))) if resamples is None else np.asarray(resamples, dtype=np.float64)
    means = []
    for own in (present, ~present):
        counts = weights[:, own].sum(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            means.append(weights[:, own] @ values[own] / np.where(counts > 0, counts, np.nan))
    gaps: NDArray[np.float64] = means[0] - means[1]
    return gaps[0] if resamples is None else gaps


def places_of(
    table: "LatentTable", latents: NDArray[np.int64], concept: str, split: str, n_bootstrap: int, seed: int, fewest: int
) -> list[dict[str, Any]]:
    """Where every latent fires, beside the boxes: what is known of it, or why nothing is, in `place_reason`.

    Args:
        table: the latents table.
        latents: the latents; of those without maps nothing is known.
        concept: whose boxes.
        split: of which split.
        n_bootstrap: resamples of patients.
        seed: of these.
        fewest: patients with boxes below which nothing is said.
    """
    numbers = ("place", "place_low", "place_high", "place_undefined_share", "inside", "inside_chance")
    unknown = dict.fromkeys(numbers, np.nan)

    def nowhere(why: str, n_boxed: int) -> list[dict[str, Any]]:
        return [unknown | {"n_patients_boxed": n_boxed, "place_reason": why} for _ in latents]

    if table.grid == (1, 1):
        return nowhere("one vector per image has no place", 0)
    images = _boxed_images(table, concept, split)
    patients = table.images["patient_id"].to_numpy(dtype=object)[images]
    n_boxed = len(set(patients))
    boxed = {"n_patients_boxed": n_boxed, "place_reason": ""}
    if n_boxed < fewest:
        return nowhere(f"fewer than {fewest} patients have boxes", n_boxed)
    kept = set.intersection(*(set(table.map_latents(int(row)).tolist()) for row in images))
    in_boxes = np.stack([covered(table.boxes(int(row), concept), table.grid, table.image_size) for row in images])
    others = lenders(table.images.iloc[images], patients)
    usable = others.sum(axis=1) > 0
    found: list[dict[str, Any]] = nowhere("its map was not kept", n_boxed)
    mapped = [place for place, latent in enumerate(latents.tolist()) if latent in kept]
    for start in range(0, len(mapped), _MAPS_PER_BLOCK):
        block = mapped[start : start + _MAPS_PER_BLOCK]
        maps = np.stack([table.maps(latents[block], int(row)) for row in images]).reshape(len(images), len(block), -1)
        maps = np.clip(maps, 0, None)
        for column, place in enumerate(block):
            own_maps = maps[:, column].astype(np.float64)
            mass = own_maps.sum(axis=1)
            used = usable & (mass > 0)
            if len(set(patients[used])) < fewest:
                found[place] = (
                    unknown | boxed | {"place_reason": f"it fires in boxes' images of fewer than {fewest} patients"}
                )
                continue
            inside = own_maps[used] @ in_boxes.T / mass[used, None]  # of each image, in the boxes of each
            own = inside[np.arange(used.sum()), np.flatnonzero(used)]
            chance = (inside * others[used]).sum(axis=1) / others[used].sum(axis=1)
            resamples = patient_bootstrap(patients[used], n_bootstrap, seed)
            sampled = _times(resamples @ own, resamples @ chance)
            undefined = float(np.isnan(sampled).mean()) if len(sampled) else np.nan
            ratio = _measured("place", float(_times(own.sum(), chance.sum())), spread_interval(sampled))
            share = {"inside": float(own.mean()), "inside_chance": float(chance.mean())}
            found[place] = ratio | boxed | share | {"place_undefined_share": undefined}
    return found


def _times(own: Any, chance: Any) -> Any:
    """`own` over `chance`; 0 where both are, NaN where only `chance` is."""
    nowhere = np.where(np.asarray(own) > 0, np.nan, 0.0)
    return np.divide(own, chance, out=nowhere, where=np.asarray(chance) > 0)


def _boxed_images(table: "LatentTable", concept: str, split: str) -> NDArray[np.int64]:
    if concept not in table.concepts:
        return np.zeros(0, dtype=np.int64)
    rows = table.rows(concept, split=split)
    found = [int(row) for row in rows.image_rows[rows.labels == 1] if len(table.boxes(int(row), concept))]
    return np.array(found, dtype=np.int64)
