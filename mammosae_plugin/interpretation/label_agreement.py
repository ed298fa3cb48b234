"""Do names agree with labels? Where a name is an attribute of images: does its latent fire where images have it?"""

__all__ = ["agreement_with_labels"]

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mammosae_plugin.analysis.codes import as_groups
from mammosae_plugin.analysis.table_arrays import image_groups, image_statistic, split_rows
from mammosae_plugin.arguments import resampling
from mammosae_plugin.errors import InputError
from mammosae_plugin.interpretation.attributes import attributes_of
from mammosae_plugin.interpretation.names import LatentNames
from mammosae_plugin.interpretation.shown_images import fires_and_rests, plain_text
from mammosae_plugin.measures.auroc_columns import delong_columns
from mammosae_plugin.measures.statistics import MIN_PATIENTS, patient_bootstrap, spread_interval

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

_COLUMNS = (
    *("latent", "name", "attribute", "n", "n_with", "groups_with", "groups_without"),
    *("auroc", "auroc_low", "auroc_high", "balanced_accuracy", "low", "high", "reason"),
)


def agreement_with_labels(
    names: LatentNames,
    table: "LatentTable",
    *,
    split: str = "test",
    labels: Sequence[str] | None = None,
    metadata: Sequence[str] | None = None,
    same: Mapping[str, str] | None = None,
    statistic: str = "max",
    group: str | ArrayLike = "patient_id",
    n_bootstrap: int = 500,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
) -> pd.DataFrame:
    """How well latents that have a name tell the images of a split that have it, for names that are attributes.

    Args:
        names: by any method; latents without a name are left out.
        table: the latents table.
        split: whose images; not those that the names were made in.
        labels: concepts, or columns of 0 and 1; None: all concepts.
        metadata: other columns of `table.images`; None: those that `confounders` takes for covariates; empty for none.
        same: which attribute a name stands for where their words differ, such as {"a round opacity": "Mass"}.
        statistic: "max" or "mean" of a latent over positions.
        group: the column of `table.images` that says which images belong together, or this for each image.
        n_bootstrap: resamples of groups.
        min_patients: groups that have an attribute, and that lack it, from which on there are intervals.
        seed: of the resamples.

    Returns:
        One row per named latent: its name; the attribute, empty where the name is none; n images of which it is known,
        n_with that have it, and the groups with and without; `auroc` of the activation for it (chance 0.5; DeLong's
        95 % interval over groups); `balanced_accuracy` of whether it fires (as `fires_and_rests` says; chance 0.5; 95 %
        of resampled groups); and why a figure or an interval is missing.

    Raises:
        InputError: the names were made in this split, or an unknown split, label, column or group.
    """
    if names.about.get("split") == split:
        raise InputError(f"the names were made in split {split}, where they fit whatever they say: give another")
    n_bootstrap, min_patients, seed = resampling(n_bootstrap, min_patients, seed)
    rows = split_rows(table, split)
    groups = as_groups(image_groups(table, group)[rows], len(rows))
    values = attributes_of(table, labels, metadata, names.about.get("split", split)).iloc[rows]
    named = names.latents[~names.latents["abstained"]]
    codes = image_statistic(table, statistic)[rows]
    by_text = {plain_text(str(name)): str(name) for name in values.columns}
    told_same = {plain_text(name): plain_text(attribute) for name, attribute in (same or {}).items()}
    resamples = patient_bootstrap(groups, n_bootstrap, seed)
    found: list[dict[str, Any]] = []
    for latent, name in zip(named["latent"].tolist(), named["name"].tolist(), strict=True):
        words = plain_text(name)
        attribute = by_text.get(told_same.get(words, words), "")
        row: dict[str, Any] = {**dict.fromkeys(_COLUMNS), "latent": latent, "name": name, "attribute": attribute}
        if attribute:
            activation = codes[:, [latent]].toarray()[:, 0].astype(np.float64)
            row |= _agreement(activation, values[attribute].to_numpy(np.float64), groups, resamples, min_patients)
        else:
            row["reason"] = "the name is no attribute of the images"
        found.append(row)
    frame = pd.DataFrame(found, columns=list(_COLUMNS))
    counts = ["n", "n_with", "groups_with", "groups_without"]
    figures = ["auroc", "auroc_low", "auroc_high", "balanced_accuracy", "low", "high"]
    return frame.assign(**{name: frame[name].fillna(0).astype(np.int64) for name in counts}).astype(
        dict.fromkeys(figures, np.float64)
    )


def _agreement(
    activation: NDArray[np.float64],
    has: NDArray[np.float64],
    groups: NDArray[np.int64],
    resamples: NDArray[np.int32],
    min_patients: int,
) -> dict[str, Any]:
    known = ~np.isnan(has)
    own = has[known] == 1
    fires, rests = fires_and_rests(activation[known])
    n_with, n_without = (len(np.unique(groups[known][one])) for one in (own, ~own))
    counts = {"n": int(known.sum()), "n_with": int(own.sum()), "groups_with": n_with, "groups_without": n_without}
    if not own.any() or own.all():
        return {**counts, "reason": f"{'no' if not own.any() else 'every'} image has it"}
    auroc = delong_columns(own.astype(np.int64), activation[known][:, None], groups[known])
    weights = np.concatenate([np.ones((1, len(own))), resamples[:, known]]) * (fires | rests)
    with np.errstate(invalid="ignore"):
        shares = [
            (weights[:, one] @ (fires[one] == right)) / weights[:, one].sum(1)
            for one, right in ((own, True), (~own, False))
        ]
    accuracy = np.mean(shares, axis=0)
    low, high = spread_interval(accuracy[1:])
    reason = "the balanced accuracy is the same in every resample" if np.isnan(low) else ""
    if (fewest := min(n_with, n_without)) < min_patients:
        low = high = auroc.low[0] = auroc.high[0] = np.nan
        reason = f"too few for an interval: {fewest} groups {'have' if n_with == fewest else 'lack'} it"
    return {
        **counts, "auroc": auroc.auc[0], "auroc_low": auroc.low[0], "auroc_high": auroc.high[0],
        "balanced_accuracy": accuracy[0], "low": low, "high": high, "reason": reason,
    }  # fmt: skip
