"""The report's section on what latents are called, and a latent's name wherever else it is shown."""

__all__ = ["names_section"]

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mammosae_plugin.report.views import TableView, encoder_title, table_view, typeset, without_empty
from mammosae_plugin.schema.names import counted, readable
from mammosae_plugin.schema.names_of_latents import BY_LABELS, surest
from mammosae_plugin.schema.results import Row, number
from mammosae_plugin.visualization.tables import Estimate, PValue, estimate

_SHOWN = 10
_JUDGED = {"detection": "detection (chance 0.5)", "intruder": "intruder (chance 0.2)"}
_OPTIONAL = ("AUROC in the other split", *_JUDGED.values(), "judge")


def names_section(
    rows: Sequence[Row], config: Mapping[str, Any], whose: Sequence[str], *, split: str, where: str
) -> dict[str, Any] | None:
    """What the template shows of names; None where the study asked for none, as those of earlier versions.

    Args:
        rows: of `schema.names_of_latents.KEPT_NAMES`, behind the columns `whose`.
        config: the study's configuration.
        whose: the columns that tell tables apart.
        split: on which names by labels were checked.
        where: the file that has all of them.

    Returns:
        said: of each table and method how many latents have a name, and why others have none; table: the surest, or
        None; settings (n, min_groups, ...) of names by labels, or None; judged: whether some were judged;
        n: how many latents.
    """
    if not rows:
        return None
    return {
        "said": _counts(rows, whose),
        "table": _table(rows, whose),
        "settings": (config.get("analysis", {}).get("names") or {}).get("by_labels"),
        "by_labels": any(row["method"] == BY_LABELS for row in rows),
        "others": any(row["method"] != BY_LABELS and row["name"] for row in rows),
        "judged": any(row.get("judge") for row in rows),
        "shown": _SHOWN,
        "n": counted(len({(*(str(row[name]) for name in whose), row["latent"]) for row in rows}), "latent"),
        "split": split,
        "where": where,
    }


def _counts(rows: Sequence[Row], whose: Sequence[str]) -> list[str]:
    """Sentences: how many latents of each table have a name by each method, and why the others have none."""
    of: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        of.setdefault((*(str(row[name]) for name in whose), row["method"]), []).append(row)
    said = []
    for (*place, method), own in of.items():
        reasons = Counter(str(row["reason"]).split(";")[0] for row in own if not row["name"])
        why = ", ".join(f"{typeset(reason)} ({n:,})" for reason, n in reasons.most_common())
        n_named = len(own) - reasons.total()
        title = " ".join(map(encoder_title, place))
        words = f"{title}, by {method}: {n_named:,} of {counted(len(own), 'latent')} have a name."
        said.append(f"{words}{f' Why the others have none: {why}.' if why else ''}")
    return said


def _table(rows: Sequence[Row], whose: Sequence[str]) -> TableView | None:
    """The surest names of all tables, each beside what chance gives."""
    told = [
        {
            **{name: encoder_title(row[name]) for name in whose},
            "latent": row["latent"],
            "name": readable(str(row["name"])),
            "method": row["method"],
            "score": _between(row, "score", "low", "high"),
            "by chance": Estimate(number(row.get("chance"))),
            "q": PValue(number(row.get("q"))),
            "images": row["n"] or None,
            "AUROC in the other split": _between(row, "check_auroc", "check_low", "check_high"),
            **{words: estimate(dict(row), name) for name, words in _JUDGED.items()},
            "judge": row.get("judge") or None,
        }
        for row in surest(rows)[:_SHOWN]
    ]
    return table_view(without_empty(pd.DataFrame(told, dtype=object), _OPTIONAL)) if told else None


def _between(row: Mapping[str, Any], name: str, low: str, high: str) -> Estimate:
    return Estimate(number(row.get(name)), number(row.get(low)), number(row.get(high)))
