"""Checks of annotation tables that every reader makes: each problem is noted with its lines; all are told at once."""

__all__ = ["any_of", "Marks", "MISSING_TEXT", "SPLITS", "TableChecks"]

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from mammosae_plugin.datasets.base import describe

SPLITS = ("training", "test")
MISSING_TEXT = ("", "nan", "none", "null", "na")
Marks = npt.NDArray[np.bool_]


class TableChecks:
    """A table with every cell as text, as `read_csv` gives it, and what is wrong with it.

    Args:
        table: the index is the number of each row's line in the file.

    Attributes:
        problems: what is wrong, in the order in which it was found.
        table: the same rows, numbered from 0.
        lines: (n,) the rows' lines in the file.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self.problems: list[str] = []
        self.lines = table.index.to_numpy(dtype=np.int64)
        self.table = table.reset_index(drop=True)

    def report(self, wrong: Marks, what: str, example: Callable[[int], str] | None = None, advice: str = "") -> None:
        """Note `what` with the number of `wrong` rows; examples are line numbers unless `example` is given."""
        rows = np.flatnonzero(wrong)
        if len(rows):
            self.problems.append(describe(len(rows), what, map(example or self.line, rows[:3].tolist()), advice))

    def line(self, row: int) -> str:
        """How a row is named."""
        return f"line {self.lines[row]}"

    def cell(self, column: str) -> Callable[[int], str]:
        """What names the cell of a row in this column."""
        return lambda row: f"{self.table[column].iloc[row]!r} in {self.line(row)}"

    def check_ids(self) -> None:
        """Note patient and image ids that are missing, spoilt or no file names, and those that do not go together."""
        for column in ("patient_id", "image_id"):
            text = self.table[column]
            self.report((text == "").to_numpy(), f"rows have no {column}", advice="fill it in, or delete the rows")
            spoilt = text.str.fullmatch(r"\d([.,]\d+)?E\+\d+")
            self.report(
                spoilt.to_numpy(),
                f"rows have a {column} that a spreadsheet made a number",
                self.cell(column),
                "export the column as text from where it is whole",
            )
            unsafe = text.str.contains(r"[/\\]", regex=True) | text.isin([".", ".."])
            self.report(
                unsafe.to_numpy(),
                f"rows have a {column} that is no plain file name",
                self.cell(column),
                "write the last part of the path alone, without folders, / and \\",
            )

    def check_values(self, column: str, allowed: Sequence[str]) -> None:
        """Note the rows whose cell of this column is none of these."""
        self.report(
            (~self.table[column].isin(allowed)).to_numpy(),
            f"rows have a {column} other than {', '.join(allowed)}",
            self.cell(column),
            f"write {' or '.join(allowed)}",
        )

    def check_patients(self) -> None:
        """Note patients in both splits and images of several patients."""
        one_split = "give all rows of a patient the same split"
        self.check_groups("patient_id", "split", "patients are in both splits", one_split, among=SPLITS)
        one_patient = "give every image an id of its own"
        self.check_groups("image_id", "patient_id", "image ids stand under more than one patient", one_patient)

    def check_groups(self, key: str, column: str, what: str, advice: str, among: Sequence[str] | None = None) -> None:
        """Note the keys whose rows disagree about `column`, of values other than these in no way."""
        pairs = self.table[[key, column]].drop_duplicates()
        if among is not None:
            pairs = pairs[pairs[column].isin(among)]
        repeated = pairs.loc[pairs[key].duplicated(), key].unique()
        if len(repeated):
            self.problems.append(describe(len(repeated), what, repeated, advice))

    def whole_numbers(
        self, text: "pd.Series[str]", column: str, allowed: range, advice: str | None = None
    ) -> npt.NDArray[np.int64]:
        """The column as int64; cells that are no allowed whole number are noted and become the smallest allowed one."""
        values = pd.to_numeric(text, errors="coerce").to_numpy(dtype=np.float64)
        wrong = ~np.isin(values, np.asarray(allowed))
        usual = "write 1 and 0" if len(allowed) == 2 else f"write {allowed[0]} to {allowed[-1]}"
        self.report(wrong, f"{column} values are not {allowed[0]}..{allowed[-1]}", self.cell(column), advice or usual)
        return np.where(wrong, allowed[0], values).astype(np.int64)

    def numbers(self, columns: Sequence[str], needed: Marks) -> tuple[npt.NDArray[np.float64], Marks, Marks]:
        """The columns as floats (n, n_columns), NaN where not finite; which cells are empty, and which are no numbers.

        The last of `needed` rows only.
        """
        text = self.table[list(columns)]
        empty = text.apply(lambda column: column.str.lower().isin(MISSING_TEXT)).to_numpy(dtype=bool)
        values = text.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
        values = np.where(np.isfinite(values), values, np.nan)
        return values, empty, needed[:, None] & ~empty & np.isnan(values)

    def report_no_numbers(self, columns: Sequence[str], no_numbers: Marks) -> None:
        """Note the cells (n, n_columns) that are no numbers."""
        for at, column in enumerate(columns):
            commas = self.table[column][no_numbers[:, at]].str.fullmatch(r"-?\d*,\d+").any()
            hint = "; write 12.5 where a spreadsheet wrote 12,5" if commas else ""
            self.report(no_numbers[:, at], f"{column} values are no numbers{hint}", self.cell(column))


def any_of(marks: Marks) -> Marks:
    """(n, m) -> (n,): whether any mark of the row is set."""
    return np.asarray(marks.any(axis=1), dtype=bool)
