"""Training, validation and test: by group, stratified, with whole sites held out, in a file that all models share."""

__all__ = [
    "age_bins", "checked_split", "make_split", "read_split", "sampled_patients", "split_word", "SPLITS", "TEST",
    "TRAINING", "VALIDATION", "VOLUME", "write_split",
]  # fmt: skip

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import StratifiedShuffleSplit

from mammosae_plugin.arguments import between, entries, numbers, shown, whole
from mammosae_plugin.datasets.base import DatasetError, describe
from mammosae_plugin.datasets.concepts import nearest_names
from mammosae_plugin.datasets.table_files import read_table
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, read_parquet, write_parquet, write_text

logger = logging.getLogger(__name__)

TRAINING, VALIDATION, TEST = SPLITS = ("training", "validation", "test")
VOLUME = ("image_id", "modality")
_WORDS = {
    **dict.fromkeys(("training", "train"), TRAINING),
    **dict.fromkeys(("validation", "valid", "val", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
_SEVERAL = 3


def split_word(word: Any) -> str:
    """ "training", "validation" or "test" for any of the ways in which it is written, such as "train", "valid", "val".

    Raises:
        InputError: it is none of them.
    """
    found = _WORDS.get(word.strip().lower()) if isinstance(word, str) else None
    if found is None:
        raise InputError(f"{shown(word)} is no split: write {', '.join(SPLITS)} (or train, valid, val)")
    return found


def age_bins(ages: Any, edges: Sequence[float] = (40, 60, 80), *, closed: str = "left") -> "pd.Series[Any]":
    """The bin of every age, such as "<40", "40-60", "60-80", ">=80"; empty where the age is.

    Args:
        ages: numbers (n,), missing ones NaN.
        edges: where bins begin, rising.
        closed: "left": 40 belongs to "40-60", as the names say; "right": to "<40", as SAIL's released code has it.

    Raises:
        InputError: edges that do not rise, or an age that is negative or no number.
    """
    limits = numbers(edges, "edges")
    if limits.ndim != 1 or not len(limits) or not (np.diff(limits) > 0).all():
        raise InputError(f"edges are {shown(edges)}: give rising numbers")
    if closed not in ("left", "right"):
        raise InputError(f"closed is {shown(closed)}: choose left or right")
    values = pd.Series(ages)
    years = pd.to_numeric(values, errors="coerce")
    if (wrong := values[(values.notna() & years.isna()) | (years < 0)]).size:
        raise InputError(describe(len(wrong), "values are no age", map(shown, wrong.head(_SEVERAL))))
    names = [
        f"<{limits[0]:g}",
        *(f"{low:g}-{high:g}" for low, high in zip(limits, limits[1:], strict=False)),
        f">={limits[-1]:g}",
    ]
    places = np.searchsorted(limits, years.fillna(0), side="right" if closed == "left" else "left")
    return pd.Series(np.array(names, dtype=object)[places], index=values.index).where(years.notna(), None)


def make_split(
    table: pd.DataFrame,
    *,
    by: Sequence[str] = VOLUME,
    stratify: Sequence[str] = (),
    held_out: Mapping[str, Sequence[Any]] | None = None,
    shares: Mapping[str, float] | None = None,
    seed: int = 42,
) -> pd.DataFrame:
    """Put every group into training, validation or test, whole.

    Groups of held-out sites are test. Of the rest, those whose strata are known are cut so that each stratum has its
    share in each part; those that lack a value, or whose stratum is too small to be cut, are cut by shuffling alone.
    With the defaults, the columns modality, gender and a column of `age_bins`, and institutes A, D and E held out, this
    is SAIL's split (its bins excepted).

    ```python
    volumes = data.volumes.assign(age_bin=age_bins(data.volumes["age"]))
    split = make_split(volumes, stratify=["modality", "gender", "age_bin"], held_out={"institute": ["A", "D", "E"]})
    write_split("split.csv", split)
    ```

    Args:
        table: one row per group, or several that agree: `VolumeSlices.volumes`, or any table of images.
        by: the columns that make up the group; the order of groups, and so the draw, follows from them.
        stratify: columns whose values together are the stratum.
        held_out: by column, the values whose groups are test.
        shares: the share of each part among the groups that are not held out, which add up to 1; 0.8 training and 0.2
            validation unless told otherwise.
        seed: of the draw.

    Returns:
        The columns `by` and split, sorted by `by`.

    Raises:
        InputError: columns are missing, a group's rows disagree, or the shares do not add up.
    """
    keys, strata = _columns(table, by, "by"), _columns(table, stratify, "stratify") if len(stratify) else []
    sites = {column: entries(values, f"held_out[{column!r}]") for column, values in (held_out or {}).items()}
    if not keys:
        raise InputError("by is empty: name the columns that make up a group")
    _columns(table, list(sites), "held_out")
    parts = _shares(shares)
    whole(seed, "seed", least=0, most=2**32 - 1)
    if not len(table):
        raise InputError("the table has no rows to split")
    groups = _one_row_each(table, keys, [*strata, *sites])
    found = np.full(len(groups), "", dtype=object)
    for column, values in sites.items():
        if unknown := [value for value in values if not (groups[column] == value).any()]:
            raise InputError(f"held_out names {shown(unknown[0])}, which no row of {column} has")
        found[groups[column].isin(values).to_numpy()] = TEST
    left = np.flatnonzero(found == "")
    labels = groups[strata].astype(object)
    known = labels.notna().all(axis=1).to_numpy() & bool(strata)
    stratum = np.array(["-".join(map(str, row)) for row in labels.itertuples(index=False)], dtype=object)
    stratified = left[known[left]]
    stratified = stratified[_common(stratum[stratified], len(parts))]
    if n_small := int(known[left].sum()) - len(stratified):
        logger.info("%d groups are alone in their stratum and are split by shuffling", n_small)
    for rows, cut in ((stratified, _cut_by_stratum), (np.setdiff1d(left, stratified), _cut_by_shuffling)):
        cut(rows, stratum, parts, seed, found)
    return groups[keys].assign(split=found)


def sampled_patients(images: pd.DataFrame, concepts: Sequence[str], n: int, seed: int = 0) -> list[str]:
    """Some patients, in whom concepts are about as frequent as in all; each patient is as likely as any other.

    Patients with the same classes stand together in random order, and every so manieth is taken.

    Args:
        images: a row per image: patient_id, and a column of class numbers for each concept, of which a patient has the
            highest.
        concepts: the concepts, of which the first are met most exactly.
        n: how many patients; all of them where there are no more.
        seed: of the order and of the first that is taken.

    Raises:
        InputError: n is not a number above 0, or a column is not there.
    """
    n, columns = whole(n, "n", least=1), _columns(images, concepts, "concepts")
    of_patients = images.groupby(images["patient_id"].astype(str))[columns].max().sort_index()
    if n >= len(of_patients):
        return of_patients.index.tolist()
    generator = np.random.default_rng(seed)
    of_patients = of_patients.iloc[generator.permutation(len(of_patients))].sort_values(columns, kind="stable")
    taken = ((np.arange(n) + generator.random()) * len(of_patients) / n).astype(int)
    return sorted(of_patients.index[taken])


def _cut_by_stratum(
    rows: npt.NDArray[np.intp], stratum: npt.NDArray[Any], parts: Sequence[tuple[str, float]], seed: int, found: Any
) -> None:
    """Cut off one part after the other, the first with its share of what is left."""
    left = 1.0
    for name, share in parts[:-1]:
        classes = np.unique(stratum[rows]).size
        n_first = int(np.floor(len(rows) * share / left + 1e-9))  # as scikit-learn counts
        if not rows.size or min(n_first, len(rows) - n_first) < classes or not _common(stratum[rows], 2).all():
            _cut_by_shuffling(rows, stratum, [(name, share), *parts[parts.index((name, share)) + 1 :]], seed, found)
            return
        cut = StratifiedShuffleSplit(n_splits=1, train_size=share / left, random_state=seed)
        first, others = next(cut.split(np.zeros(len(rows)), stratum[rows]))
        found[rows[first]] = name
        rows, left = np.sort(rows[others]), left - share
    found[rows] = parts[-1][0]


def _cut_by_shuffling(
    rows: npt.NDArray[np.intp], _stratum: Any, parts: Sequence[tuple[str, float]], seed: int, found: Any
) -> None:
    order = rows.copy()
    np.random.default_rng(seed).shuffle(order)
    total, reached, start = sum(share for _, share in parts), 0.0, 0
    for name, share in parts:
        reached += share
        end = len(order) if (name, share) == parts[-1] else int(reached / total * len(order) + 1e-9)
        found[order[start:end]] = name
        start = end


def _common(stratum: npt.NDArray[Any], least: int) -> npt.NDArray[np.bool_]:
    """Which groups have a stratum of at least so many."""
    names, numbers_of, counts = np.unique(stratum.astype(str), return_inverse=True, return_counts=True)
    return np.asarray(counts[numbers_of] >= least) if len(names) else np.zeros(0, dtype=bool)


def _shares(shares: Mapping[str, float] | None) -> list[tuple[str, float]]:
    given = {TRAINING: 0.8, VALIDATION: 0.2} if shares is None else dict(shares)
    parts = [
        (split_word(name), between(share, f"the share of {name}", 0, 1, with_low=False))
        for name, share in given.items()
    ]
    if not parts or len(dict(parts)) < len(parts) or abs(sum(share for _, share in parts) - 1) > 1e-6:
        raise InputError(f"shares are {shown(given)}: give one for each part, which add up to 1")
    return parts


def _columns(table: pd.DataFrame, names: Sequence[str], what: str) -> list[str]:
    wanted = [str(name) for name in entries(names, what)]
    for name in wanted:
        if name not in table.columns:
            raise InputError(
                f"{what} names {name!r}, which the table lacks{nearest_names(name, map(str, table.columns))}"
            )
    return wanted


def _one_row_each(table: pd.DataFrame, keys: Sequence[str], others: Sequence[str]) -> pd.DataFrame:
    """One row per group, sorted; refused where a group's rows disagree."""
    if table[list(keys)].isna().any(axis=None):
        raise InputError(f"some rows have no {' or '.join(keys)}, so their group is not known: fill it in")
    groups = table[list(dict.fromkeys([*keys, *others]))].drop_duplicates()
    if (twice := groups.duplicated(list(keys))).any():
        first = groups[groups[list(keys)].eq(groups.loc[twice, list(keys)].iloc[0]).all(axis=1)]
        apart = [name for name in others if first[name].nunique(dropna=False) > 1]
        name = "/".join(map(str, first[list(keys)].iloc[0]))
        raise InputError(f"the rows of {name} differ in {', '.join(apart)}: a group is split as one; give it one value")
    return groups.sort_values(list(keys), kind="stable").reset_index(drop=True)


def write_split(file: str | os.PathLike[str], split: pd.DataFrame) -> None:
    """Write a split as CSV (or parquet, by the name), whole or not at all.

    Raises:
        InputError: it is no split (see `read_split`).
    """
    by = [name for name in split.columns if name != "split"]
    table = checked_split(split, by)
    if local_path(file).suffix == ".parquet":
        write_parquet(file, table)
    else:
        write_text(file, table.to_csv(index=False, lineterminator="\n"))


def read_split(file: str | os.PathLike[str]) -> pd.DataFrame:
    """A split file (CSV, parquet, xlsx): columns that name groups, and split, as in SAIL's `totalseg_split_index.csv`.

    Returns:
        The same columns, ids as text, split in the words training, validation, test.

    Raises:
        InputError: it is missing or damaged, lacks a column, has other words, or puts a group into two parts.
    """
    path = local_path(file)
    if path.suffix == ".parquet":
        table = read_parquet(path)
    else:
        if not path.exists():
            raise InputError(f"the split file {path} does not exist")
        try:
            table = read_table(path, ())
        except DatasetError as error:
            raise InputError(f"the split file {path} cannot be read: {error}") from error
    unnamed = [name for name in table.columns if str(name).startswith(("Unnamed:", "__index_level"))]
    table = table.drop(columns=unnamed)  # row numbers of another program
    if "split" not in table.columns or len(table.columns) < 2:
        raise InputError(f"the split file {path} must have the column split and those that name groups")
    try:
        return checked_split(table, [name for name in table.columns if name != "split"])
    except InputError as error:
        raise InputError(f"the split file {path}: {error}") from error


def checked_split(split: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """One row per group with the columns `by`, as text, and split, in our words; groups without a split are left out.

    Raises:
        InputError: a column is missing, a word is no split, or a group is in two parts.
    """
    _columns(split, [*by, "split"], "the split")
    table = split[[*by, "split"]].copy()
    told = table["split"].notna() & (table["split"].astype(str).str.strip() != "")
    table = table[told].reset_index(drop=True)
    for name in by:
        table[name] = table[name].astype(str).str.strip()
    table["split"] = [split_word(word) for word in table["split"]]
    table = table.drop_duplicates().reset_index(drop=True)
    twice = table[table.duplicated(list(by))]
    if len(twice):
        names = ["/".join(row) for row in twice[list(by)].itertuples(index=False)]
        raise DatasetError(f"{describe(len(twice), 'groups are in two splits', names)}: each belongs to one")
    if not len(table):
        raise InputError("the split names no group")
    return table
