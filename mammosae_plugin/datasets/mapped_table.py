"""A table with every cell as text, and what a mapping says of its columns."""

__all__ = ["MappedTable"]

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from mammosae_plugin.datasets.base import describe
from mammosae_plugin.datasets.mapping import ImageMapping, columns_of, filled
from mammosae_plugin.datasets.table_checks import MISSING_TEXT, TableChecks

_SAME = "give them the same"


class MappedTable(TableChecks):
    """The rows of a table, the mapping that they are read by, and what is wrong with them.

    Args:
        table: every cell as text; the index is the number of each row's line.
        mapping: how it is read.
        files: the file of each row, where there are several.
    """

    def __init__(self, table: pd.DataFrame, mapping: ImageMapping, files: Sequence[str]) -> None:
        super().__init__(table)
        self.mapping = mapping
        self.files = files if len(set(files)) > 1 else ()

    def line(self, row: int) -> str:
        """How a row is named; of several files also in which it is."""
        return super().line(row) + (f" of {self.files[row]}" if self.files else "")

    def cells(self, pattern: str, table: pd.DataFrame | None = None) -> "pd.Series[str]":
        """A column, or what a pattern of columns makes of every row."""
        source = self.table if table is None else table
        if "{" not in pattern:
            return source[pattern]
        rows = source[list(dict.fromkeys(columns_of(pattern)))].to_dict("records")
        return pd.Series([filled(pattern, row) for row in rows], index=source.index, dtype=object)  # type: ignore[arg-type]

    def meanings(
        self, text: "pd.Series[str]", values: Mapping[str, str | None], named: Iterable[str] = ()
    ) -> "pd.Series[str]":
        """Cells as what they mean; "" where they say nothing. What the mapping names, such as a class none, says it."""
        translated = text.map(lambda cell: (values[cell] or "") if cell in values else cell)
        nothing = {*MISSING_TEXT, *(word.lower() for word in self.mapping.missing)}
        said = text.isin([cell for cell, meaning in values.items() if meaning]) | translated.isin(list(named))
        said |= ~translated.str.lower().isin(nothing)
        return translated.where(said, "")

    def alike(self, image_ids: "pd.Series[str]", values: "pd.Series[Any]", name: str) -> None:
        """Note the images whose rows have several of these values; rows without one have none."""
        self.apart(image_ids, values, f"images have rows with different {name}", _SAME)

    def apart(self, keys: "pd.Series[str]", values: "pd.Series[Any]", what: str, advice: str) -> None:
        """Note the keys (n_rows,) whose rows have several of these values, each with two such rows; "" is no value."""
        pairs = pd.DataFrame({"key": keys.to_numpy(), "value": values.to_numpy()})
        pairs = pairs[(pairs["value"] != "").to_numpy()].drop_duplicates()
        if len(again := pairs[pairs["key"].duplicated()].drop_duplicates("key")):
            first = pairs.drop_duplicates("key").reset_index(names="row").set_index("key")["row"]
            shown = again["key"].head(3)
            told = [
                f"{key} in {self.line(int(first[key]))} and {self.line(row)}"
                for row, key in zip(shown.index.tolist(), shown.tolist(), strict=True)
            ]
            self.problems.append(describe(len(again), what, told, advice))
