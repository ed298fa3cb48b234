"""Whether latents' maps find lesions, in all images and lesion by lesion, beside what finds them without an SAE."""

__all__ = ["froc", "froc_of_stages", "LesionLocalization", "SENSITIVITIES"]

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import false_discovery_control

from mammosae_plugin.analysis.free_response import FPPI
from mammosae_plugin.analysis.lesion_froc import Detections, Operating, pointing_hits, sensitivities
from mammosae_plugin.analysis.lesion_truth import Lesions, Masks, lenders
from mammosae_plugin.analysis.localization import localize_baselines, localize_thresholds
from mammosae_plugin.arguments import between, checked_arguments, entries, flag, indices, shown, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.statistics import (
    MIN_PATIENTS,
    NETWORK_ERROR,
    patient_bootstrap,
    settled,
    spread_interval,
)

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable
    from mammosae_plugin.latents.peaks import Peaks

SENSITIVITIES = ("all", "healthy", "breast")
"""Of lesions with false positives counted in all images, or in the healthy ones; and of breasts, in all images."""

_MOST_LENDERS = 50  # images whose lesions an image borrows for the null
_MAPS_AT_ONCE = 128  # whose peaks are held as arrays: 4,000 images x 128 maps x 5 peaks take 20 MB

Row = dict[str, Any]


@dataclass(frozen=True)
class LesionLocalization:
    """How well maps find the lesions of a concept in a split.

    Attributes:
        concept: the finding.
        split: the split.
        fppi: false positives per image at which sensitivities are read.
        counts: n_images (looked at), n_healthy, n_unlocated (left out: the finding without a box), n_patients,
            n_lesions, n_lesion_images, n_lesion_patients, n_breasts (with a lesion; NaN where sides are not known) and
            n_reachable (lesions in which the centre of a cell lies; no peak finds the others).
        rows: one row per map, see `froc`.
    """

    concept: str
    split: str
    fppi: tuple[float, ...]
    counts: dict[str, float]
    rows: pd.DataFrame = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """The rows, each with the counts."""
        return self.rows.assign(**self.counts)

    def curves(self) -> pd.DataFrame:
        """The curves: a row per map, kind (`SENSITIVITIES`) and fppi: sensitivity, low, high and chance."""
        found = []
        for row in self.rows.to_dict("records"):
            for kind in SENSITIVITIES:
                for place, fppi in enumerate(self.fppi):
                    ends = {end: row[f"{kind}_sensitivity_{end}"][place] for end in ("low", "high")}
                    chance = row[f"{kind}_sensitivity_chance"][place]
                    one = {"sensitivity": row[f"{kind}_sensitivity"][place], **ends, "chance": chance}
                    found.append({"method": row["method"], "latent": row["latent"], "kind": kind, "fppi": fppi, **one})
        return pd.DataFrame.from_records(found)


@checked_arguments
def froc(
    table: "LatentTable",
    latents: Sequence[int] | NDArray[np.int64],
    concept: str,
    *,
    split: str = "test",
    channels: Sequence[int] | NDArray[np.int64] = (),
    groups: Sequence[str] = (),
    gradcam: bool = True,
    masks: Masks | None = None,
    average_precision: bool = False,
    fppi: Sequence[float] = FPPI,
    n_bootstrap: int = 1000,
    n_null: int = 999,
    seed: int = 0,
    min_patients: int = MIN_PATIENTS,
) -> LesionLocalization:
    """Which lesions the peaks of maps find, against how many false peaks (free-response ROC), lesion by lesion.

    All images of the split with a known label count, healthy ones too. A peak (the centre of its cell) finds every
    lesion that it lies in; outside every lesion it is false; further peaks in a lesion that is found are neither. The
    sensitivity at f false positives per image is the best that any threshold reaches with at most f of them, as in
    `froc_of`; a map has as many peaks as its table keeps, so that no curve goes on for ever. Images with the finding
    but without a box of it are left out, since nobody knows which of their peaks are false.

    Chance is what the same peaks at the same thresholds find of the lesions of other patients' images of the same side
    and view (up to 50 of them for each image), as if each image had these; of a breast, what is found in any of its
    images where each borrows by itself. p is a permutation test of that: of `n_null`
    draws, each of which gives every image the lesions of one of these images or its own, the share with as high a CPM,
    the real one counted too. `p_adjusted` is by Benjamini and Hochberg over all rows.

    Args:
        table: a latents table with peaks.
        latents: latent indices, best first.
        concept: a finding with boxes.
        split: the split.
        channels: channels of the layer beside them, best first; the table must have their peaks.
        groups: names of weighted sums of latents (`map_groups`), beside them.
        gradcam: whether Grad-CAM is judged too, where the table has it of the concept.
        masks: image id -> mask (H, W) in pixels of the model's input that is not 0 in the concept's lesions, or None.
            Its parts, those that touch at corners as one, are the image's lesions instead of its boxes.
        average_precision: whether the boxes of `localize` are judged too, by IoU, where maps are kept (slow).
        fppi: false positives per image, 0 or more.
        n_bootstrap: resamples of patients for intervals, of images with lesions and without; 0 gives none.
        n_null: draws of other patients' lesions.
        seed: of resamples and draws.
        min_patients: patients with lesions, and among those whose images false positives are counted in, from which
            on there are intervals.

    Returns:
        Of every map: method ("latent", "channel", "grad_cam", "group"), rank among those given, latent (the number of
        the latent or channel; -1 of Grad-CAM and groups), name (of a group), n_latents (in a group, else 1);

        - for each kind of `SENSITIVITIES`: <kind>_sensitivity (a list over `fppi`), its mean <kind>_cpm, both with
          _low and _high (95 % intervals over patients) and _chance; p, p_adjusted, of all_cpm;
        - pointing: share of the images with lesions whose highest peak lies in one (pointing game, Zhang et al. 2018),
          with interval and chance; an image without a peak is a miss;
        - energy: mean share of the positive part of the map that lies in the image's lesions, with interval, chance
          and energy_n_images; NaN where maps were not kept for all images with lesions;
        - average_precision, by `localize`'s defaults, where asked for;
        - of a group: best_member (of its latents among those given, by all_cpm; else -1) and gain, its all_cpm less
          that member's, with an interval. The member is chosen in these very images, which favours it.

    Raises:
        InputError: a table without peaks, or without those asked for; no finding with boxes, or none in the split; an
            argument out of range.

    Example:
        >>> found = froc(table, ranking.indices[1, :10], "Mass")  # doctest: +SKIP
        >>> found.to_frame()[["method", "latent", "all_cpm", "all_cpm_low", "all_cpm_chance"]]  # doctest: +SKIP
    """
    limits = np.array([between(one, "fppi", 0, np.inf) for one in entries(fppi, "fppi")], dtype=np.float64)
    if not len(limits):
        raise InputError("fppi is empty: give false positives per image, such as (1/8, 1, 4)")
    chosen = indices(latents, "the latents", table.d_sae, distinct=True)
    baselines = indices(channels, "the channels", table.d_in, distinct=True)
    n_bootstrap, n_null = whole(n_bootstrap, "n_bootstrap", least=0), whole(n_null, "n_null", least=0)
    seed, min_patients = whole(seed, "seed", least=0), whole(min_patients, "min_patients", least=1)
    flag(gradcam, "gradcam")
    flag(average_precision, "average_precision")
    table.need("peaks")
    weights = table.map_groups(split)
    for name in entries(groups, "groups"):
        if name not in weights:
            raise InputError(
                f"the table has no group {shown(name)} in split {split}; it has {', '.join(weights) or 'none'}; encode "
                "with it in map_groups"
            )
    lesions = Lesions.read(table, concept, split, masks)
    judge = _Judge(lesions, table, limits, n_bootstrap, n_null, seed, min_patients)
    frames = []
    for source in _sources(table, concept, split, chosen, baselines, groups, gradcam=gradcam):
        frames += judge.rows(source)
    rows = pd.DataFrame.from_records(frames)
    if len(rows):
        known = rows["p"].notna()
        rows["p_adjusted"] = np.nan
        rows.loc[known, "p_adjusted"] = false_discovery_control(rows.loc[known, "p"]) if known.any() else []
        rows["average_precision"] = (
            _average_precision(table, rows, concept, split) if average_precision else np.full(len(rows), np.nan)
        )
        _add_gains(rows, judge, weights)
    return LesionLocalization(concept, split, tuple(limits.tolist()), judge.counts(), rows)


def froc_of_stages(
    table: "LatentTable",
    concept: str,
    stages: Mapping[str, "Peaks"],
    *,
    split: str = "test",
    fppi: Sequence[float] = FPPI,
    n_bootstrap: int = 1000,
    n_null: int = 999,
    seed: int = 0,
    min_patients: int = MIN_PATIENTS,
) -> pd.DataFrame:
    """FROC of peaks that came from elsewhere than a table, such as before and after a change, beside chance.

    Args:
        table: a latents table, whose boxes and images count.
        concept: as for `froc`.
        stages: by name the peaks of one map in each image; the first is what the others are held against.
        split: as for `froc`.
        fppi: as for `froc`.
        n_bootstrap: as for `froc`; all stages have the same resamples.
        n_null: as for `froc`; all stages have the same draws.
        seed: as for `froc`.
        min_patients: as for `froc`.

    Returns:
        One row per stage and fppi: stage, fppi; sensitivity with _low, _high and _chance, cpm likewise, p, as
        `all_sensitivity`, `all_cpm` and p of `froc`; cpm_change with _low and _high, the CPM less the first stage's
        (NaN of the first); n_images, n_lesions, n_lesion_patients.

    Raises:
        InputError: as `froc`.
    """
    lesions = Lesions.read(table, concept, split)
    judge = _Judge(lesions, table, np.array(fppi, dtype=np.float64), n_bootstrap, n_null, seed, min_patients)
    counts, found, none = judge.counts(), [], np.zeros(0, dtype=np.int64)
    for number, (stage, peaks) in enumerate(stages.items()):
        source = _Source("stage", np.zeros(1, np.int64), lambda _, own=peaks: own, table.maps, lambda _: none)  # type: ignore[misc]
        (row,) = judge.rows(source)
        change = judge.gain(number, 0) if number else (np.nan, np.nan, np.nan)
        about = {name: row[f"all_{name}"] for name in ("cpm", "cpm_low", "cpm_high", "cpm_chance")} | {"p": row["p"]}
        about |= dict(zip(("cpm_change", "cpm_change_low", "cpm_change_high"), change, strict=True))
        about |= {name: counts[name] for name in ("n_images", "n_lesions", "n_lesion_patients")}
        of_fppi = {end: row[f"all_{end}"] for end in (f"sensitivity{end}" for end in ("", "_low", "_high", "_chance"))}
        found.append(pd.DataFrame({"stage": stage, "fppi": list(fppi), **of_fppi, **about}))
    return pd.concat(found, ignore_index=True)


@dataclass(frozen=True)
class _Source:
    """Maps of one kind.

    Attributes:
        method: the column `method`.
        numbers: (n,) the column `latent`.
        peaks: the peaks of some of them, by their places.
        maps: image row -> (m, h, w) of those whose maps are kept for an image, by their places; None where none are.
        kept: places of those whose maps are kept for every image with lesions.
        name: of a group.
        n_latents: in a group.
    """

    method: str
    numbers: NDArray[np.int64]
    peaks: Callable[[NDArray[np.int64]], "Peaks"]
    maps: Callable[[NDArray[np.int64], int], NDArray[np.float32]]
    kept: Callable[[int], NDArray[np.int64]]
    name: str = ""
    n_latents: int = 1


def _sources(
    table: "LatentTable",
    concept: str,
    split: str,
    latents: NDArray[np.int64],
    channels: NDArray[np.int64],
    groups: Sequence[str],
    *,
    gradcam: bool,
) -> Iterator[_Source]:
    """What is judged; of latents and channels some at a time."""
    for start in range(0, len(latents), _MAPS_AT_ONCE):
        yield _Source("latent", latents[start : start + _MAPS_AT_ONCE], partial(table.peaks, split=split),
                      table.maps, table.map_latents)  # fmt: skip
    for start in range(0, len(channels), _MAPS_AT_ONCE):
        yield _Source("channel", channels[start : start + _MAPS_AT_ONCE], partial(table.channel_peaks, split=split),
                      table.channel_maps, table.map_channels)  # fmt: skip
    one = np.full(1, -1)
    if gradcam and concept in table.gradcam_heads:
        yield _Source(
            "grad_cam",
            one,
            lambda _: table.gradcam_peaks(concept, split=split),
            lambda _, row: table.gradcam(concept, row)[None],
            lambda _: one,
        )
    for name in groups:
        members = table.map_groups(split)[name]
        of, weight = np.array(list(members), dtype=np.int64), np.array(list(members.values()))

        def summed(_: NDArray[np.int64], row: int, of: Any = of, weight: Any = weight) -> NDArray[np.float32]:
            found: NDArray[np.float32] = np.einsum("k,khw->hw", weight, table.maps(of, row))[None].astype(np.float32)
            return found

        def kept(row: int, of: Any = of) -> NDArray[np.int64]:
            return one if set(of.tolist()) <= set(table.map_latents(row).tolist()) else one[:0]

        yield _Source(
            "group",
            one,
            lambda _, name=name: table.group_peaks(name, split=split),  # type: ignore[misc]
            summed,
            kept,
            name,
            len(of),
        )


class _Judge:
    """Judges maps against the lesions of a split, all by the same resamples and the same borrowed lesions."""

    def __init__(
        self,
        lesions: Lesions,
        table: "LatentTable",
        limits: NDArray[np.float64],
        n_bootstrap: int,
        n_null: int,
        seed: int,
        min_patients: int,
    ) -> None:
        self.lesions, self.limits, self.min_patients = lesions, limits, min_patients
        names, self.patient = np.unique(lesions.patients.astype(str), return_inverse=True)
        draws = patient_bootstrap(names, n_bootstrap, seed).astype(np.float32)
        self.draws = np.concatenate([np.ones((1, len(names)), dtype=np.float32), draws])  # the sample itself first
        everywhere = np.ones(len(self.patient), dtype=np.bool_)
        self.operating = {
            "all": Operating(self.patient, everywhere, limits),
            "healthy": Operating(self.patient, lesions.is_healthy, limits),
        }
        self.boxed = lesions.boxed
        self.boxed_rows = lesions.image_rows[self.boxed]
        n_lesions = np.bincount(lesions.image, minlength=len(self.patient))[self.boxed]
        alike = lenders(table.images.iloc[self.boxed_rows], lesions.patients[self.boxed])
        generator = np.random.default_rng(seed)
        self.lent = [_some(np.flatnonzero(row), generator) for row in alike]
        # Whether lesions lie where they lie by chance is told by draws from their own places and those of others.
        self.candidates = [np.append(place, own) for place, own in enumerate(self.lent)]
        self.n_lesions = n_lesions
        self.null = _draws(self.candidates, n_null if any(map(len, self.lent)) else 0, generator)
        self.cpm_samples: list[NDArray[np.float64]] = []

    def counts(self) -> dict[str, float]:
        """What stands behind the numbers."""
        lesions = self.lesions
        return {
            "n_images": len(lesions.image_rows),
            "n_healthy": int(lesions.is_healthy.sum()),
            "n_unlocated": lesions.n_unlocated,
            "n_patients": len(set(self.patient.tolist())),
            "n_lesions": len(lesions.image),
            "n_lesion_images": len(self.boxed),
            "n_lesion_patients": len(set(self.patient[self.boxed].tolist())),
            "n_breasts": len(set(lesions.breast.tolist())) if len(lesions.breast) else np.nan,
            "n_reachable": int(lesions.inside.any(axis=1).sum()),
        }

    def rows(self, source: _Source) -> list[Row]:
        """A row per map of a source."""
        lesions, numbers = self.lesions, source.numbers
        found = Detections.of(source.peaks(numbers), lesions.image_rows, len(numbers))
        found = Detections(found.cells, _settled(found.values))
        false_values, best = found.false_values(lesions), found.best(lesions)
        thresholds = {
            kind: np.stack([one.thresholds(false_values[:, column]) for column in range(len(numbers))], axis=1)
            for kind, one in self.operating.items()
        }
        chance, drawn = self._chance(found, thresholds)
        hits = np.stack([pointing_hits(found, i, self._union(i)[None])[0] for i in self.boxed])
        hits_lent = self._over_lenders(lambda i, inside: pointing_hits(found, i, inside))
        energy, energy_lent = self._energy(source)
        rows = []
        for column, number in enumerate(numbers.tolist()):
            row: Row = {"method": source.method, "rank": 0, "latent": number, "name": source.name}
            row |= {"n_latents": source.n_latents}
            row |= self._sensitivities(best[:, column], false_values[:, column])
            for kind in SENSITIVITIES:
                row[f"{kind}_sensitivity_chance"] = chance[kind][:, column].tolist()
                row[f"{kind}_cpm_chance"] = float(chance[kind][:, column].mean())
            row["p"] = _p_value(row["all_cpm"], drawn[:, column])
            row |= self._share("pointing", hits[:, column].astype(np.float64), hits_lent[:, column])
            row |= self._share("energy", energy[:, column], energy_lent[:, column])
            row["energy_n_images"] = int(np.isfinite(energy[:, column]).sum())
            rows.append(row)
        return rows

    def _sensitivities(self, best: NDArray[np.float32], false_values: NDArray[np.float32]) -> Row:
        lesions, row = self.lesions, Row()
        patient = self.patient[lesions.image]
        for kind in SENSITIVITIES:
            targets, patient_of_target = best, patient
            if kind == "breast":
                n_breasts = int(lesions.breast.max(initial=-1)) + 1
                targets = np.full(n_breasts, -np.inf, dtype=np.float32)
                np.maximum.at(targets, lesions.breast, best[: len(lesions.breast)])
                patient_of_target = np.zeros(n_breasts, dtype=np.int64)
                patient_of_target[lesions.breast] = patient[: len(lesions.breast)]
            operating = self.operating["healthy" if kind == "healthy" else "all"]
            sampled = sensitivities(targets, false_values, patient_of_target, operating, self.draws)
            cpm = sampled.mean(axis=1)
            if kind == "all":
                self.cpm_samples.append(cpm)
            n_patients = int((operating.n_images_of_patient > 0).sum())
            ends = [self._ends(column[1:], n_patients) for column in (*sampled.T, cpm)]
            lows, highs = (list(side) for side in zip(*ends, strict=True))
            row |= {
                f"{kind}_sensitivity": sampled[0].tolist(),
                f"{kind}_sensitivity_low": lows[:-1],
                f"{kind}_sensitivity_high": highs[:-1],
                f"{kind}_cpm": float(cpm[0]),
                f"{kind}_cpm_low": lows[-1],
                f"{kind}_cpm_high": highs[-1],
            }
        return row

    def _ends(self, sampled: NDArray[np.float64], n_patients: int | None = None) -> tuple[float, float]:
        """An interval; NaN twice of too few patients, or where no resample differs."""
        n_with = len(set(self.patient[self.boxed].tolist()))
        if min(n_with, n_with if n_patients is None else n_patients) < self.min_patients or not len(sampled):
            return float("nan"), float("nan")
        return spread_interval(sampled)

    def _union(self, image: int) -> NDArray[np.bool_]:
        return np.asarray(np.any(self.lesions.inside[self.lesions.of_image(image)], axis=0))

    def _chance(
        self, found: Detections, thresholds: Mapping[str, NDArray[np.float32]]
    ) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
        """(n_limits, n_maps) of each kind the sensitivity to borrowed lesions, and (n_null, n_maps) CPMs of draws."""
        # Of each image and candidate: how many of its lesions are found, (n_limits, n_maps), and whether any is.
        hits: dict[str, list[NDArray[np.float64]]] = {kind: [] for kind in SENSITIVITIES}
        for image, candidates in zip(self.boxed, self.candidates, strict=True):
            for candidate in candidates:
                inside = self.lesions.inside[self.lesions.of_image(self.boxed[candidate])]
                best = found.best_in(image, inside)
                for kind, levels in thresholds.items():
                    hits[kind].append((best[None] > levels[:, None]).sum(axis=1).astype(np.float64))
                hits["breast"].append((hits["all"][-1] > 0).astype(np.float64))
        of_pairs, sizes = np.stack(hits["all"]), self.n_lesions[np.concatenate(self.candidates)]
        drawn = self.null @ of_pairs.mean(axis=1) / (self.null @ sizes)[:, None]
        # For chance every image counts as many lesions as it has itself, and its own are left out.
        n_candidates = np.array([len(own) for own in self.candidates])
        n_lent = np.maximum(n_candidates - 1, 1)
        starts = np.cumsum(n_candidates) - n_candidates
        weight = np.repeat(self.n_lesions / n_lent, n_candidates) / sizes
        weight[starts] = 0
        n_lent_to = int(self.n_lesions[n_candidates > 1].sum())
        nothing = np.full(next(iter(thresholds.values())).shape, np.nan)
        chance = {
            kind: np.einsum("p,pfm->fm", weight, np.stack(hits[kind])) / n_lent_to if n_lent_to else nothing
            for kind in thresholds
        }
        lent = np.ones(len(weight))
        lent[starts] = 0
        missed = 1 - np.add.reduceat(np.stack(hits["breast"]) * lent[:, None, None], starts) / n_lent[:, None, None]
        return {**chance, "breast": self._by_breast(missed, n_candidates > 1, nothing)}, drawn

    def _by_breast(
        self, missed: NDArray[np.float64], borrows: NDArray[np.bool_], nothing: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The share of breasts found where each image borrows by itself, of how often each (n_boxed, ...) is missed."""
        if not len(self.lesions.breast):
            return nothing
        of_image = self.lesions.breast[np.searchsorted(self.lesions.image, self.boxed)]
        by_breast = [of_image == breast for breast in np.unique(of_image)]
        found = [1 - missed[own].prod(axis=0) for own in by_breast if borrows[own].all()]
        return np.mean(found, axis=0) if found else nothing

    def _over_lenders(self, judged: Callable[[int, NDArray[np.bool_]], NDArray[np.generic]]) -> NDArray[np.float64]:
        """(n_boxed, n_maps) the mean over lenders of what is judged against the union of an image's lesions."""
        found = []
        unions = np.stack([self._union(image) for image in self.boxed])
        for image, lent in zip(self.boxed, self.lent, strict=True):
            values = judged(int(image), unions[lent]).astype(np.float64)
            found.append(values.mean(axis=0) if len(lent) else np.full(values.shape[1], np.nan))
        return np.stack(found)

    def _energy(self, source: _Source) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(n_boxed, n_maps) twice: the share of the map in the image's lesions, and in those of others."""
        numbers = source.numbers
        own, lent = (np.full((len(self.boxed), len(numbers)), np.nan) for _ in range(2))
        kept = [source.kept(int(row)) for row in self.boxed_rows]
        places = np.array([i for i, number in enumerate(numbers) if all(number in one for one in kept)], dtype=np.int64)
        if not len(places):
            return own, lent
        shares = np.stack(
            [np.clip(self.lesions.shares[self.lesions.of_image(i)].sum(axis=0), 0, 1) for i in self.boxed]
        )
        for image, row in enumerate(self.boxed_rows.tolist()):
            maps = np.clip(source.maps(numbers[places], row), 0, None).reshape(len(places), -1).astype(np.float64)
            mass = maps.sum(axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):
                own[image, places] = maps @ shares[image] / mass
                if len(self.lent[image]):
                    lent[image, places] = (maps @ shares[self.lent[image]].T).mean(axis=1) / mass
        return own, lent

    def _share(self, name: str, own: NDArray[np.float64], lent: NDArray[np.float64]) -> Row:
        """The mean over images with lesions of a share, with its interval, and that of the lesions of others."""
        known, comparable = np.isfinite(own), np.isfinite(own) & np.isfinite(lent)
        draws = self.draws[:, self.patient[self.boxed]][:, known].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            sampled = draws @ own[known] / draws.sum(axis=1)
        low, high = self._ends(sampled[1:]) if known.any() else (float("nan"), float("nan"))
        chance = float(lent[comparable].mean()) if comparable.any() else float("nan")
        return {name: float(sampled[0]), f"{name}_low": low, f"{name}_high": high, f"{name}_chance": chance}

    def gain(self, group: int, member: int) -> tuple[float, float, float]:
        """The CPM of a row less that of another, with its interval over the same resamples."""
        difference = self.cpm_samples[group] - self.cpm_samples[member]
        return float(difference[0]), *self._ends(difference[1:])


def _some(lent: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    return np.sort(generator.choice(lent, _MOST_LENDERS, replace=False)) if len(lent) > _MOST_LENDERS else lent


def _draws(candidates: Sequence[NDArray[np.int64]], n: int, generator: np.random.Generator) -> sparse.csr_array:
    """(n, n_pairs) whose lesions each image has in each draw; pairs are images and their candidates in order."""
    sizes = np.array([len(own) for own in candidates], dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    picked = starts + (generator.random((n, len(sizes))) * sizes).astype(np.int64)
    indptr = np.arange(n + 1) * picked.shape[1]
    return sparse.csr_array((np.ones(picked.size), picked.ravel(), indptr), shape=(n, int(sizes.sum())))


def _p_value(own: float, drawn: NDArray[np.float64]) -> float:
    return float((1 + (drawn >= own - 1e-12).sum()) / (1 + len(drawn))) if len(drawn) else float("nan")


def _settled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values (n_images, n_maps, n), those of each map settled among themselves."""
    found = values.copy()
    for column in range(values.shape[1]):
        own = values[:, column]
        real = own > -np.inf
        error = NETWORK_ERROR * float(own[real].max(initial=0))
        found[:, column][real] = settled(own[real], error)
    return found


def _average_precision(table: "LatentTable", rows: pd.DataFrame, concept: str, split: str) -> NDArray[np.float64]:
    """(n_rows,) of the boxes of `localize`, NaN where maps are not kept."""
    found = np.full(len(rows), np.nan)
    judged = table.rows(concept, split=split)
    boxed = [int(row) for row in judged.image_rows[judged.labels == 1] if len(table.boxes(int(row), concept))]

    def kept(method: str, of: Callable[[int], NDArray[np.int64]]) -> list[int]:
        wanted = rows.loc[rows["method"] == method, "latent"].tolist()
        return [number for number in wanted if all(number in of(row) for row in boxed)]

    latents, channels = kept("latent", table.map_latents), kept("channel", table.map_channels)
    frames = [localize_baselines(table, concept, channels=channels, split=split).rows]
    if latents:
        frames.append(localize_thresholds(table, latents, concept, split=split).rows.assign(method="latent"))
    for row in pd.concat(frames).to_dict("records"):
        own = (rows["method"] == row["method"]) & (rows["latent"] == row["latent"])
        found[own.to_numpy()] = row["average_precision"]
    return found


def _add_gains(rows: pd.DataFrame, judge: _Judge, weights: dict[str, dict[int, float]]) -> None:
    """Number the rows of each method, and hold every group against its best member."""
    rows["rank"] = rows.groupby("method").cumcount() + 1
    rows["best_member"] = -1
    rows[["gain", "gain_low", "gain_high"]] = np.nan
    latents = rows[rows["method"] == "latent"]
    for place in np.flatnonzero(rows["method"] == "group").tolist():
        members = latents[latents["latent"].isin(list(weights[rows["name"][place]]))]
        if len(members):
            best = int(members.index[int(members["all_cpm"].to_numpy().argmax())])
            rows.loc[place, "best_member"] = rows["latent"][best]
            for name, value in zip(("gain", "gain_low", "gain_high"), judge.gain(place, best), strict=True):
                rows.loc[place, name] = value
