"""Names of latents as a part of a study: by labels, kept under their digest, and those that `mammosae name` wrote."""

__all__ = ["check_names", "name_lines", "names_of_layer", "names_of_table", "require_tables"]

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mammosae_plugin.config.names import NameSettings
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_parquet, write_parquet
from mammosae_plugin.interpretation import name_by_labels, read_names
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.progress import progress
from mammosae_plugin.schema.names import counted
from mammosae_plugin.schema.names_of_latents import KEPT_NAMES, surest, told_name
from mammosae_plugin.study import plans
from mammosae_plugin.study.images import TEST, TRAINING
from mammosae_plugin.study.layer import LayerStudy

COLUMNS = [column.name for column in KEPT_NAMES]
_TOLD = 10


def check_names(settings: NameSettings | None, columns: Collection[str]) -> None:
    """See, before anything is trained, that names can be made by what the settings say.

    Args:
        settings: the study's `analysis.names`.
        columns: what is known of its images.

    Raises:
        InputError: labels, metadata or columns to share that the data have not, or a folder without names.
    """
    if settings is None:
        return
    by = settings.by_labels
    asked = {
        "by_labels.labels": (by and by.labels) or (),
        "by_labels.metadata": (by and by.metadata) or (),
        "share": settings.share,
    }
    for key, names in asked.items():
        if missing := [name for name in names if name not in columns]:
            there = ", ".join(map(str, columns))
            raise InputError(f"analysis.names.{key} names {missing[0]!r}, no column of the images; they have {there}")
    for folder in settings.files:
        read_names(folder)


def require_tables(settings: NameSettings | None, tables: Iterable[LatentTable]) -> None:
    """See that every folder of names is of one of a study's tables.

    Raises:
        InputError: It is of another.
    """
    there = [table.folder.name for table in tables]
    for folder in settings.files if settings is not None else ():
        of = read_names(folder).about.get("table")
        if of not in there:
            raise InputError(
                f"analysis.names.files: {folder} has names of the table {of or 'of another file'}, none of this "
                f"study's ({', '.join(there)}); run mammosae name on one of these in work/latents, or leave it out"
            )


def names_of_table(table: LatentTable, settings: NameSettings, work: Path, model: str, judged: str) -> pd.DataFrame:
    """The names of a table's latents, and why others have none: the columns of `schema.names_of_latents.KEPT_NAMES`.

    Names by labels are found in the training split, where there is one, and checked in the split that the study judges
    on; else they are found in that and not checked.

    Args:
        table: the latents table.
        settings: the study's `analysis.names`.
        work: its work folder, where names by labels are kept.
        model: whose table it is, for the file's name.
        judged: the split that the study judges on.

    Raises:
        InputError: a file of names of latents that the table has not.
    """
    found = []
    if (by := settings.by_labels) is not None:
        first = TRAINING if TRAINING in table.splits else judged
        asked: dict[str, Any] = {**by.model_dump(), "split": first, "check": judged if first != judged else "none"}
        plan = plans.of_analysis("names", table=table.folder.name, model=model, concept="", settings=asked)
        path = plans.keep(plan, work / "analyses" / f"names-{model}-{plans.digest(plan)}.parquet")
        if not path.exists():
            write_parquet(path, name_by_labels(table, **asked).latents)
        found.append(read_parquet(path))
    for folder in settings.files:
        names = read_names(folder)
        if names.about.get("table") == table.folder.name:
            if len(names.latents) and int(names.latents["latent"].max()) >= table.d_sae:
                raise InputError(f"{folder} names latents that {table.folder.name} has not; name its latents again")
            found.append(names.latents)
    frames = [frame.reindex(columns=COLUMNS) for frame in found if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)


def names_of_layer(layer: LayerStudy) -> pd.DataFrame:
    """The names of all encoders' latents at a layer, behind encoder; empty where the study asks for none."""
    settings = layer.config.analysis.names
    if settings is None:
        return pd.DataFrame()
    frames = []
    groups, to = layer.study.encoder_groups, layer.work / "analyses"
    for group in progress(groups, description="names", unit="encoder", to=to, delay=2, leave=False):
        table = layer.tables[next(iter(group.heads))]
        frame = names_of_table(table, settings, layer.work, group.model, TEST)
        frame.insert(0, "encoder", layer.study.name_of(group))
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def name_lines(names: pd.DataFrame, whose: Sequence[str], n: int = _TOLD) -> list[str]:
    """The surest names, for a terminal: a line that counts them, and one that lists them.

    Args:
        names: rows of `KEPT_NAMES` behind the columns `whose`.
        whose: columns that tell tables apart.
        n: how many.
    """
    if not len(names):
        return []
    rows = [{str(key): value for key, value in row.items()} for row in names.to_dict("records")]
    best = surest(rows)
    lines = [f"names: {counted(len(best), 'latent')} of {len(rows)} have one (docs/naming.md)"]
    return [
        *lines,
        *(f"  {' '.join(str(row[one]) for one in whose)} latent {row['latent']}: {told_name(row)}" for row in best[:n]),
    ]
