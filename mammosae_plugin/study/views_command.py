"""`mammosae views`: which latents of a table say the same of the two views of a breast, and of the two breasts."""

__all__ = ["tell_view_agreement"]

import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mammosae_plugin.analysis.views import COMPARISONS, view_agreement
from mammosae_plugin.files import local_path, write_text
from mammosae_plugin.own_files import empty_staging, replace_files, require_own
from mammosae_plugin.schema.names import counted
from mammosae_plugin.study.images import TEST
from mammosae_plugin.study.retrieval import open_table

_CALLED = 0.05  # false discovery rate
_WORDS = {
    "views": "CC and MLO of one breast",
    "sides": "left and right in one view",
    "crossed": "one view of a breast, the other of the other breast",
}


def tell_view_agreement(
    folder: Path,
    *,
    split: str = TEST,
    statistic: str = "max",
    views: Sequence[str] = ("CC", "MLO"),
    n_draws: int = 1000,
    n_bootstrap: int = 1000,
    min_patients: int = 10,
    seed: int = 0,
    top: int = 10,
    output: Path | None = None,
) -> str:
    """View agreement of a table's latents, as text for the terminal; other arguments as for `view_agreement`.

    Args:
        folder: a latents table, or a folder with one.
        top: latents that are printed, those that are most of their own breast first.
        output: a CSV file of all latents; what an earlier run wrote there is replaced.

    Raises:
        InputError: as `view_agreement`; something of another's lies at `output`.
    """
    if output is not None:
        place = local_path(output)
        record = place.with_name(f".{place.name}.mammosae-views.json")
        require_own([place], record)
    table = open_table(folder)
    found = view_agreement(
        table,
        statistic=statistic,
        split=split,
        views=views,
        n_draws=n_draws,
        n_bootstrap=n_bootstrap,
        min_patients=min_patients,
        seed=seed,
    )
    lines = [f"{counted(len(found), 'latent')} fire in images of split {split} that are paired"]
    for name in COMPARISONS:
        words = " and ".join(views) + " of one breast" if name == "views" else _WORDS[name]
        lines.append(_summary(found, name, words))
    best = found[found["views_q"] < _CALLED].nlargest(top, "own_breast")
    if len(best):
        shown = ["latent", "views", "views_low", "views_high", "views_chance", "views_q", "sides", "crossed"]
        shown += ["own_breast", "own_breast_low", "own_breast_high"]
        lines += ["", "most of their own breast (views less crossed), of those with views_q below 0.05:"]
        lines.append(best[shown].to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    if output is not None:
        staged = empty_staging(place.parent)
        try:
            write_text(staged / place.name, found.to_csv(index=False))
            replace_files(staged, place.parent, record=record)
        finally:
            shutil.rmtree(staged)
        lines.append(f"written: {output}")
    return "\n".join(lines)


def _summary(found: pd.DataFrame, name: str, words: str) -> str:
    scored = found[found[name].notna()]
    if scored.empty:
        reason = next((one for one in "; ".join(found["reason"]).split("; ") if one.startswith(name)), "nothing fires")
        return f"{words}: none can be told ({reason.removeprefix(f'{name}: ')})"
    called = int((scored[f"{name}_q"] < _CALLED).sum())
    return (
        f"{words}: {called} of {len(scored)} latents agree more than other patients do (q below 0.05); median "
        f"correlation {scored[name].median():.3f}, by chance {scored[f'{name}_chance'].median():.3f}; "
        f"{counted(int(scored[f'{name}_patients'].max()), 'patient')}"
    )
