"""What of the names of latents may be told: with their scores, of latents of which nothing has to be hidden."""

__all__ = ["Hides", "names_table", "told_names"]

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from mammosae_plugin.findings.study_folder import LayerResults
from mammosae_plugin.privacy.small_groups import Mask, is_few
from mammosae_plugin.schema.findings import SCHEMAS
from mammosae_plugin.schema.names_of_latents import BY_LABELS, surest

Row = dict[str, Any]
_CHECK = ("check_auroc", "check_low", "check_high")


class Hides(Protocol):
    """Of which latents of an encoder something is not told: (d_sae,) each."""

    @property
    def activity(self) -> Mask:
        """Of which the activity is not told."""

    @property
    def class_means(self) -> Mapping[str, Mask]:
        """By concept, of which the class means are not told."""


def names_table(layers: Sequence[LayerResults], told: Mapping[tuple[str, str], Hides], min_group: int) -> pa.Table:
    """The names of a study's latents that may be told, as the config `names` of its findings, of each encoder the
    surest first.

    Args:
        layers: its layers.
        told: by layer and encoder what is hidden.
        min_group: nothing is told of fewer patients.
    """
    rows: list[Row] = []
    for layer in layers:
        share = (layer.results["config"]["analysis"].get("names") or {}).get("share", ())
        names = layer.results.get("names", [])
        for encoder in layer.encoders:
            own = surest(row for row in names if row["encoder"] == encoder)
            rows += [
                {"layer": layer.name, **row} for row in told_names(own, told[layer.name, encoder], share, min_group)
            ]
    schema = SCHEMAS["names"]
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)


def told_names(rows: Iterable[Mapping[str, Any]], hides: Hides, share: Sequence[str], min_group: int) -> Iterator[Row]:
    """The names of an encoder's latents that may be told, with the numbers that may.

    Args:
        rows: of `schema.names_of_latents.KEPT_NAMES`.
        hides: what is not told of its latents. A name after a concept says how the latent's strongest images are
            labelled, and is hidden with its class means.
        share: columns by whose values names are told; those by labels are, and those by texts and models.
        min_group: nothing is told of fewer patients.
    """
    for row in rows:
        if not row["name"] or hides.activity[row["latent"]] or is_few(row["n"], min_group):
            continue
        if row["method"] == BY_LABELS and not _may_leave(row, hides, share, min_group):
            continue
        few_in_check = (row.get("check_fewest") or 0) < min_group
        yield {**row, **(dict.fromkeys(_CHECK) if few_in_check else {})}


def _may_leave(row: Mapping[str, Any], hides: Hides, share: Sequence[str], min_group: int) -> bool:
    """Whether a name by labels may be told."""
    column = row.get("column")
    of_concept = hides.class_means.get(str(row["name"]).partition("=")[0])
    return (
        column is not None  # what a file does not say may be of a site
        and (not column or column in share)
        and (row.get("n_fewest") or 0) >= min_group
        and (of_concept is None or not of_concept[row["latent"]])
    )
