"""What else is known of images, and which latents go with it: age, density, view, side, machine, site, anything.

What an image is apart from the concept is a covariate. Numbers are compared by rank, words level against the rest.
"""

__all__ = [
    "covariate_associations", "covariate_columns", "Covariates", "design_matrix", "images_of_units", "KINDS",
    "known_values", "NEVER", "PATIENT", "strongest_associations",
]  # fmt: skip

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import rankdata
from scipy.stats import t as student

from mammosae_plugin.analysis.codes import as_codes, as_groups, mean_ranks, settled_codes
from mammosae_plugin.analysis.coherence import benjamini_hochberg
from mammosae_plugin.analysis.table_arrays import image_statistic
from mammosae_plugin.arguments import checked_arguments, entries, indices, one_of, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.permutations import permuted_labels

if TYPE_CHECKING:
    from mammosae_plugin.latents import EvaluationRows, LatentTable

KINDS = ("patient", "acquisition")
"""What a covariate is of: the patient (her tissue, her age), or how the image was made."""
PATIENT = ("age", "density", "implant")
"""Covariates of the patient; all others are of the acquisition, unless a caller says otherwise."""
NEVER = ("image_id", "patient_id", "exam_id", "series_id", "study_id", "split", "fold", "birads", "level", "image_row")
"""Columns that are no covariate: ids, splits, and what a label is read from."""
_MOST_LEVELS = 12
_FEWEST_ROWS = 10  # of a level that is looked at by itself

Covariates = Sequence[str] | Mapping[str, str] | None
"""Names of columns of `table.images`, by name the kind of each (`KINDS`), or None: all there are."""


def covariate_columns(table: "LatentTable", concept: str, covariates: Covariates = None) -> dict[str, str]:
    """The covariates of a table with their kinds.

    By default every column of `table.images` that is no id, split, label or BI-RADS, that differs between images, and
    that is a number or has up to 12 words; density is one, also where it is a label.

    Args:
        table: the latents table.
        concept: what is examined, which is no covariate of itself.
        covariates: as for `confounders`.

    Raises:
        InputError: a column that there is not, the concept itself, or another kind.
    """
    images = table.images
    if covariates is None:
        labels = {*table.vocabulary} - {"density"} if hasattr(table, "vocabulary") else {*table.concepts}
        names = [str(one) for one in images.columns if one not in labels and one not in NEVER and one != concept]
        return {name: _kind(name) for name in names if _differs(images[name], name)}
    kinds = dict(covariates) if isinstance(covariates, Mapping) else {}
    chosen = {str(name): kinds.get(name, _kind(str(name))) for name in entries([*covariates], "covariates")}
    for name, kind in chosen.items():
        one_of(kind, f"the kind of covariate {name}", KINDS)
        if name in NEVER:
            raise InputError(f"column {name!r} says which image or patient it is, or its label or split: no covariate")
        if name not in images.columns or name == concept:
            there = ", ".join(covariate_columns(table, concept)) or "none"
            raise InputError(f"the table has no covariate {name!r} of {concept}; it has {there}")
    return chosen


def _kind(name: str) -> str:
    return "patient" if name in PATIENT else "acquisition"


def known_values(values: pd.Series) -> pd.Series:
    """Values in which what is missing (NaN, no text, a label of -1) is missing."""
    if pd.api.types.is_numeric_dtype(values):
        found = pd.to_numeric(values).astype(np.float64)
        return found.where(found != -1) if values.name == "density" else found
    words = values.astype(object)
    return words.where(words.notna() & (words.astype(str).str.strip() != ""))


def _differs(values: pd.Series, name: str) -> bool:
    if isinstance(next(iter(values.dropna()), None), (list, dict, tuple, np.ndarray)):
        return False
    known = known_values(values).dropna()
    n = known.nunique()
    as_number = pd.api.types.is_numeric_dtype(values) and not name.endswith("_id")
    return bool(n > 1 and (as_number or n <= _MOST_LEVELS))


def images_of_units(table: "LatentTable", rows: "EvaluationRows") -> pd.DataFrame:
    """What is known of the first image of every unit of `rows`, in their order."""
    first = rows.image_rows if rows.unit_of_row is None else rows.image_rows[np.unique(rows.unit_of_row, True)[1]]
    return table.images.iloc[first].reset_index(drop=True)


def design_matrix(images: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Covariates (n_images, m) as columns of a regression.

    Numbers are standardized; where one is missing it is the mean, and a column says so. Of words every level but the
    most frequent has a column of 0 and 1, missing ones are a level; levels of fewer than 10 images are one. Columns
    that are the same everywhere, or linear in others before them, are left out.
    """
    columns: dict[str, NDArray[np.float64]] = {}
    for name in names:
        values = known_values(images[name])
        if pd.api.types.is_numeric_dtype(values):
            spread, missing = float(values.std(ddof=0)), values.isna()
            if spread > 0:
                columns[name] = ((values - values.mean()) / spread).fillna(0).to_numpy(dtype=np.float64)
            columns[f"{name} missing"] = np.asarray(missing, dtype=np.float64)
            continue
        words = values.astype(object).where(values.notna(), "missing").astype(str)
        counts = words.value_counts()
        words = words.where(words.map(counts) >= _FEWEST_ROWS, "other")
        for level in words.value_counts().index[1:]:
            columns[f"{name}={level}"] = np.asarray(words == level, dtype=np.float64)
    kept: dict[str, NDArray[np.float64]] = {}
    basis = np.ones((len(images), 1))
    for name, column in columns.items():
        wider = np.column_stack([basis, column])
        if np.linalg.matrix_rank(wider) == wider.shape[1]:
            kept[name], basis = column, wider
    return pd.DataFrame(kept, index=range(len(images)))


def _levels(values: pd.Series) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.float64]]]:
    """Which images have a value, and of those what is correlated with ranks of latents: a number, or each level."""
    known = known_values(values)
    there = known.notna().to_numpy()
    own = known[there]
    if pd.api.types.is_numeric_dtype(known):
        return there, {"": rankdata(own.to_numpy(dtype=np.float64))} if own.nunique() > 1 else {}
    words = own.astype(str)
    counts = words.value_counts()
    levels = [str(level) for level in sorted(counts.index) if counts[level] >= _FEWEST_ROWS]
    levels = levels[1:] if len(counts) == 2 and len(levels) == 2 else levels
    shorter = [level for level in levels if counts[level] < len(words)]
    return there, {level: np.asarray(words == level, dtype=np.float64) for level in shorter}


@dataclass(frozen=True)
class _Standard:
    """Ranks of latents, ready to be correlated: scaled columns less what their mean is."""

    scaled: sparse.csc_array
    shift: NDArray[np.float64]

    @classmethod
    def of(cls, codes: sparse.csc_array) -> "_Standard":
        """Of codes (n, m)."""
        n = codes.shape[0]
        ranks, base, _ = mean_ranks(codes)
        squares = np.asarray(ranks.multiply(ranks).sum(axis=0)).ravel()
        shift = (n + 1) / 2 - base  # what the ranks' mean lies above that of zeros
        spread = np.sqrt(np.maximum(squares - n * shift**2, 0))
        inverse = np.divide(1, spread, out=np.full(len(spread), np.nan), where=spread > 1e-9)
        return cls(sparse.csc_array(ranks @ sparse.diags_array(np.nan_to_num(inverse))), inverse)

    def correlations(self, targets: NDArray[np.float64]) -> NDArray[np.float64]:
        """(m, B) of targets (n, B)."""
        centered = targets - targets.mean(axis=0)
        length = np.sqrt(np.square(centered).sum(axis=0))
        found: NDArray[np.float64] = np.asarray(self.scaled.T @ (centered / np.where(length > 0, length, np.nan)))
        found[np.isnan(self.shift)] = np.nan
        return found


@checked_arguments
def covariate_associations(
    table: "LatentTable",
    concept: str,
    *,
    covariates: Covariates = None,
    latents: Any = None,
    split: str = "test",
    unit: str = "image",
    statistic: str = "mean",
    n_permutations: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Which latents go with what else is known of images.

    The association is the correlation of the latent's rank with the rank of a number, or, of words, with that level
    which it goes with most, which is told. A correlation r with a level that a share s of the images has is an AUROC of
    about 0.5 + r / sqrt(12 s (1 - s)).

    Args:
        table: the latents table.
        concept: whose images are looked at: those with a label of it.
        covariates: as for `confounders`.
        latents: some latents; None: those that fire in the split.
        split: the split whose images are looked at.
        unit: as for `LatentTable.rows`; a unit has the covariates of its first image.
        statistic: "mean" or "max" of a latent over positions.
        n_permutations: how often covariates are permuted between patients.
        seed: of the permutations.

    Returns:
        One row per latent and covariate: latent, covariate, kind, level (of words), r, p (two-sided, by Student's t of
        the spread under permutations, times the levels that were tried), q (Benjamini and Hochberg over all rows),
        n_rows with a value and n_patients (of a level those with it, or without, whichever are
        fewer). A covariate that is the same in all these images has no rows.

    Raises:
        InputError: an unknown concept, split, unit or covariate.
    """
    named = covariate_columns(table, concept, covariates)
    rows = table.rows(concept, split=split, unit=unit)
    chosen = table.live_latents(split) if latents is None else indices(latents, "the latents", table.d_sae)
    codes = settled_codes(as_codes(rows.values(image_statistic(table, statistic)[:, chosen])))
    images, groups = images_of_units(table, rows), as_groups(rows.patient_ids, len(rows.labels))
    n_permutations, seed = whole(n_permutations, "n_permutations", least=1), whole(seed, "seed", least=0)
    found = []
    for name, kind in named.items():
        there, levels = _levels(images[name])
        if not levels:
            continue
        standard = _Standard.of(sparse.csc_array(codes.tocsr()[np.flatnonzero(there)]))
        best, p = np.full((2, len(chosen)), np.nan)
        words = np.full(len(chosen), "", dtype=object)
        for level, target in levels.items():
            orders = permuted_labels(target, groups[there], n_permutations=n_permutations, seed=seed)
            r = standard.correlations(orders)
            spread = np.sqrt(np.square(r[:, 1:]).mean(axis=1))
            own = 2 * student.sf(
                np.divide(np.abs(r[:, 0]), spread, out=np.full(len(r), np.nan), where=spread > 0), n_permutations
            )
            stronger = np.isnan(p) | (own < p) | ((own == p) & (np.abs(r[:, 0]) > np.abs(best)))
            best[stronger], p[stronger], words[stronger] = r[stronger, 0], own[stronger], level
        about = {"latent": chosen, "covariate": name, "kind": kind, "level": words, "r": best}
        fewest = {level: _fewest_groups(target, groups[there]) for level, target in levels.items()}
        counts = {"n_rows": int(there.sum()), "n_patients": [fewest.get(word, 0) for word in words]}
        found.append(pd.DataFrame({**about, "p": np.minimum(p * len(levels), 1), **counts}))
    columns = ["latent", "covariate", "kind", "level", "r", "p", "n_rows", "n_patients"]
    frame = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)
    frame.insert(6, "q", benjamini_hochberg(frame["p"].to_numpy(dtype=np.float64)))
    return frame


def _fewest_groups(target: NDArray[np.float64], groups: NDArray[np.int64]) -> int:
    """Groups behind a number, or, of a level of 0 and 1, with it or without it, whichever are fewer."""
    values = np.unique(target)
    parts = [target == value for value in values] if len(values) == 2 else [np.ones(len(target), dtype=bool)]
    return min(len(np.unique(groups[part])) for part in parts)


def strongest_associations(associations: pd.DataFrame, latents: NDArray[np.int64]) -> pd.DataFrame:
    """Of each latent the covariate that it goes with most: covariate, covariate_level, _r, _q, _patients.

    Those are the smallest q, and of equal ones the largest correlation.
    """
    ordered = associations.assign(size=-associations["r"].astype(float).abs()).sort_values(["latent", "q", "size"])
    best = ordered.dropna(subset=["q"]).drop_duplicates("latent").set_index("latent").reindex(latents)
    texts = {
        name: best[column].fillna("") for name, column in (("covariate", "covariate"), ("covariate_level", "level"))
    }
    numbers = {"r": "covariate_r", "q": "covariate_q", "n_patients": "covariate_patients"}
    found = pd.DataFrame({**texts, **{column: best[name].astype(float) for name, column in numbers.items()}})
    return found.reset_index(drop=True)
