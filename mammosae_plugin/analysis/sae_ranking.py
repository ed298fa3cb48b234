"""The SAEs of a grid in order: by what their latents mean and by how few of them recover what the dense layer tells.

SAIL's published table follows another rule than its released code, and six of its tables lack targets (SAIL, arXiv
2603.23794, and its files). Both rules are here to rebuild them; ours compares SAEs on the same targets only.
"""

__all__ = ["rank_saes", "RULES", "Rule", "SaeScores"]

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from mammosae_plugin.analysis.meaning import LatentScores
from mammosae_plugin.analysis.sparse_recovery import LEAST_DENSE, THRESHOLDS, Recovery, recovery_thresholds
from mammosae_plugin.arguments import entries, flag, one_of
from mammosae_plugin.errors import InputError

Rule = Literal["corrected", "published", "released"]
RULES = ("corrected", "published", "released")
_SAIL_KS = (1, 2, 3, 5, 10, 20, 30, 50, 75, 100)
_SAIL_DENSE = 0.6  # AUROC of the dense probe above which SAIL counts a target
_TARGET = ("split", "rows", "n_rows", "n_positive")  # what says that two SAEs were asked the same
_NEEDED = ("label", "k", "auroc", "dense_auroc")


@dataclass(frozen=True)
class SaeScores:
    """What an SAE is ranked by.

    Attributes:
        name: of the SAE.
        monosemanticity: number of best latents -> their mean monosemanticity; SAIL's rules need 10 and 50, of the 10
            strongest images.
        curves: one row per label and k, as `Recovery.curves`: label, k, auroc, dense_auroc and, if they are known,
            split, rows, n_rows, n_positive and counts.
        explained_variance: of its reconstruction; shown beside the ranks, and on no rank.
        l0: active latents per row; likewise.
        seed_of: the configuration that it is a seed of; SAEs of one configuration are ranked by their means.

    Raises:
        InputError: no monosemanticity, or curves without their columns.
    """

    name: str
    monosemanticity: Mapping[int, float]
    curves: pd.DataFrame
    explained_variance: float = float("nan")
    l0: float = float("nan")
    seed_of: str | None = None

    def __post_init__(self) -> None:
        """Check that the parts are there."""
        missing = [name for name in _NEEDED if name not in self.curves.columns]
        if missing or not len(self.curves):
            raise InputError(
                f"the curves of {self.name!r} have no {', '.join(missing) or 'rows'}: give Recovery.curves"
            )
        if not self.monosemanticity:
            raise InputError(
                f"{self.name!r} has no monosemanticity: give that of its best latents for an N, {{10: 0.3}}"
            )

    @classmethod
    def of(
        cls,
        name: str,
        monosemanticity: LatentScores,
        recovery: Recovery,
        *,
        explained_variance: float = float("nan"),
        l0: float = float("nan"),
        seed_of: str | None = None,
    ) -> "SaeScores":
        """Those of what `monosemanticity` and `recovery` returned; of several N the smallest."""
        told = dict(zip(monosemanticity.summary["measure"], monosemanticity.summary["value"], strict=True))
        found = [re.fullmatch(r"best(\d+)_(\d+)", str(measure)) for measure in told]
        best = [(int(match[2]), int(match[1]), float(told[match[0]])) for match in found if match]
        values = {most: value for size, most, value in best if size == min(best)[0]}
        return cls(name, values, recovery.curves, explained_variance, l0, seed_of)


def rank_saes(saes: Sequence[SaeScores], *, rule: Rule = "corrected", same_targets: bool = True) -> pd.DataFrame:
    """The SAEs of a grid in order: the mean of their rank by monosemanticity and their rank by recovery.

    - "corrected": monosemanticity of the fewest best latents that all tell, 10 by default; recovery is the mean over
      the k that all have of the chance-corrected share, over the labels whose dense probe tells them. SAEs that are
      seeds of one configuration are ranked by their mean.
    - "published": SAIL's table. Monosemanticity of the 50 best; the mean over k of the rank of the mean AUROC, over
      targets with a dense AUROC above 0.6.
    - "released": SAIL's code. Monosemanticity of the 10 best; the mean number of latents that reach six shares of the
      dense AUROC, where what is not reached counts as one more than the most that this SAE needs elsewhere, or 100:
      this favours SAEs that reach nothing.

    Ranks start at 1; equal values share the lower rank.

    Args:
        saes: the SAEs, of one layer of one network.
        rule: how they are ranked.
        same_targets: refuse SAEs that were asked different things. Only SAIL's rules can do without.

    Returns:
        One row per configuration, best first: name, monosemanticity, recovery (of the rule), n_targets, rank_mono,
        rank_perf, rank_combined, final_rank, explained_variance, l0; by the corrected rule also n_seeds,
        monosemanticity_sd and recovery_sd over seeds, on_front (no other is better or equal in explained variance, L0,
        monosemanticity and recovery, of those that are known, and better in one) and separates (whether the best one
        has it beaten in monosemanticity or recovery by 2 pooled standard deviations over seeds; missing without).

    Raises:
        InputError: names that occur twice; targets, rows, split or dense probe that differ between SAEs; nothing to
            rank by.

    Example:
        >>> curves = pd.DataFrame({"label": "Mass", "k": [1, 5], "auroc": [0.6, 0.8], "dense_auroc": 0.9})
        >>> saes = [SaeScores("small", {10: 0.2}, curves), SaeScores("large", {10: 0.3}, curves.assign(auroc=0.85))]
        >>> rank_saes(saes)["name"].tolist()
        ['large', 'small']
    """
    one_of(rule, "rule", RULES)
    flag(same_targets, "same_targets")
    given = entries(saes, "saes")
    if not given or not all(isinstance(sae, SaeScores) for sae in given):
        raise InputError("saes hold something else than SaeScores: give at least one, SaeScores.of(...)")
    names = [sae.name for sae in given]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two SAEs are named {twice!r}: give each its own name")
    if not same_targets and rule == "corrected":
        raise InputError("the corrected rule compares SAEs on the same targets: leave same_targets as it is")
    if same_targets:
        _same_targets(given)
    recovered = {"corrected": _mean_recovered, "published": _mean_ranks, "released": _mean_numbers}[rule]
    frame = pd.DataFrame(
        {
            "name": names,
            "monosemanticity": _monosemanticity(given, rule),
            "recovery": recovered(given),
            "n_targets": [_counted(sae, rule)["label"].nunique() for sae in given],
            "explained_variance": [sae.explained_variance for sae in given],
            "l0": [sae.l0 for sae in given],
        }
    )
    if rule == "corrected":
        frame["name"] = [sae.seed_of or sae.name for sae in given]
        frame = _over_seeds(frame)
    # Of SAIL's measures of recovery, numbers of latents and ranks, the lowest is the best.
    frame["rank_mono"] = frame["monosemanticity"].rank(ascending=False, method="min", na_option="bottom")
    frame["rank_perf"] = frame["recovery"].rank(ascending=rule != "corrected", method="min", na_option="bottom")
    frame["rank_combined"] = (frame["rank_mono"] + frame["rank_perf"]) / 2
    frame["final_rank"] = frame["rank_combined"].rank(method="min")
    frame = frame.sort_values("final_rank", kind="stable", ignore_index=True)
    if rule == "corrected":
        frame["on_front"] = _on_front(frame)
        frame["separates"] = _separates(frame)
    return frame


def _same_targets(saes: Sequence[SaeScores]) -> None:
    first = saes[0]
    for sae in saes[1:]:
        ours, theirs = (_targets(each) for each in (first, sae))
        for one, other, a, b in ((first, sae, ours, theirs), (sae, first, theirs, ours)):
            lacking = [label for label in a.index if label not in b.index]
            if lacking:
                raise InputError(
                    f"{other.name!r} lacks {len(lacking)} of the {len(a)} targets of {one.name!r} (first "
                    f"{lacking[0]!r}): score every SAE on the same targets"
                )
        for column in (*_TARGET, "dense_auroc"):
            if column not in ours or column not in theirs:
                continue
            for label in ours.index:
                mine, other_one = ours[column].to_dict()[label], theirs[column].to_dict()[label]
                if mine != other_one and not _close(mine, other_one):
                    told = {"rows": "images or labels", "dense_auroc": "dense AUROC"}.get(column, column)
                    raise InputError(
                        f"the target {label!r} has {told} {_said(mine)} in {first.name!r}, but {_said(other_one)} in "
                        f"{sae.name!r}: score SAEs of one layer of one network on the same images and labels"
                    )


def _targets(sae: SaeScores) -> pd.DataFrame:
    groups = sae.curves.groupby("label", sort=False)
    return groups[[*(name for name in _TARGET if name in sae.curves), "dense_auroc"]].first()


def _close(one: Any, other: Any) -> bool:
    if not isinstance(one, (float, np.floating)):
        return False
    return bool(np.isclose(one, other, rtol=0, atol=1e-6, equal_nan=True))  # two runs of a solver


def _said(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (float, np.floating)) else str(value)


def _monosemanticity(saes: Sequence[SaeScores], rule: str) -> list[float]:
    wanted = {"published": 50, "released": 10}.get(rule)
    if wanted is None:
        shared = set.intersection(*(set(sae.monosemanticity) for sae in saes))
        if not shared:
            raise InputError("the SAEs tell the monosemanticity of no one number of best latents: score all alike")
        wanted = min(shared)
    for sae in saes:
        if wanted not in sae.monosemanticity:
            raise InputError(
                f"{sae.name!r} has no monosemanticity of its {wanted} best latents, which this rule ranks by"
            )
    return [float(sae.monosemanticity[wanted]) for sae in saes]


def _counted(sae: SaeScores, rule: str) -> pd.DataFrame:
    curves = sae.curves
    if rule != "corrected":
        return curves[curves["dense_auroc"] > _SAIL_DENSE]
    if "counts" in curves:
        return curves[curves["counts"].astype(bool)]
    return curves[curves["dense_auroc"] > LEAST_DENSE]


def _mean_recovered(saes: Sequence[SaeScores]) -> list[float]:
    counted = [_counted(sae, "corrected") for sae in saes]
    shared = set.intersection(*(set(curves["k"]) for curves in counted))
    if not shared:
        raise InputError(
            "there is no target whose dense probe tells it, or no k that all SAEs have: nothing to rank by"
        )
    values = []
    for curves in counted:
        own = curves[curves["k"].isin(shared)]
        values.append(float(((own["auroc"] - 0.5) / (own["dense_auroc"] - 0.5)).mean()))
    return values


def _mean_ranks(saes: Sequence[SaeScores]) -> "pd.Series[float]":
    means = []
    for sae in saes:
        curves = _counted(sae, "published")
        means.append(curves[curves["k"].isin(_SAIL_KS)].groupby("k")["auroc"].mean())
    return pd.DataFrame(means).rank(ascending=False, method="min").mean(axis=1).reset_index(drop=True)


def _mean_numbers(saes: Sequence[SaeScores]) -> list[float]:
    values = []
    for sae in saes:
        numbers = pd.DataFrame(
            [
                recovery_thresholds(
                    own["k"], own["auroc"], float(own["dense_auroc"].iloc[0]), thresholds=THRESHOLDS,
                    chance_corrected=False,
                )
                for _, own in _counted(sae, "released").groupby("label", sort=False)
            ],
            dtype=float,
        )  # fmt: skip
        filled = numbers.fillna({share: n.max() + 1 if n.notna().any() else 100 for share, n in numbers.items()})
        values.append(float(filled.to_numpy().mean()) if len(filled) else float("nan"))
    return values


def _over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    groups = frame.groupby("name", sort=False)
    means = groups[["monosemanticity", "recovery", "n_targets", "explained_variance", "l0"]].mean()
    means["n_targets"] = means["n_targets"].astype(int)
    means["n_seeds"] = groups.size()
    means["monosemanticity_sd"] = groups["monosemanticity"].std()
    means["recovery_sd"] = groups["recovery"].std()
    return means.reset_index()


def _on_front(frame: pd.DataFrame) -> list[bool]:
    """Whether no other is at least as good in all that is known of both, and better in one."""
    good = frame[["explained_variance", "monosemanticity", "recovery"]].assign(sparsity=-frame["l0"]).to_numpy()
    found = []
    for own in good:
        known = np.isfinite(good) & np.isfinite(own)
        as_good = ((good >= own) | ~known).all(axis=1) & known.any(axis=1)
        found.append(not (as_good & ((good > own) & known).any(axis=1)).any())
    return found


def _separates(frame: pd.DataFrame) -> "pd.Series[Any]":
    """Whether the first row is 2 pooled standard deviations ahead in either part; missing for it, and without seeds."""
    ahead = []
    for part in ("monosemanticity", "recovery"):
        spread = np.square(frame[f"{part}_sd"])
        ahead.append((frame[part].iloc[0] - frame[part]) / np.sqrt((spread.iloc[0] + spread) / 2))
    most = pd.concat(ahead, axis=1).replace([np.inf, -np.inf], np.nan).max(axis=1)
    found: pd.Series[Any] = (most >= 2).astype("boolean").mask(most.isna() | (np.arange(len(most)) == 0))
    return found
