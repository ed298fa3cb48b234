"""What latents are called, and what each name is worth: a name never stands without its score."""

__all__ = ["ABSTAINED", "CALLED", "COLUMNS", "LatentNames", "NOT_JUDGED"]

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mammosae_plugin.arguments import index
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, write_json, write_text
from mammosae_plugin.schema.names_of_latents import COMMON, KEPT_NAMES

CALLED = 0.05
"""False discovery rate below which a name is given."""
ABSTAINED = "no name"
NOT_JUDGED = "not judged yet"
"""Why what a model wrote is no name so far."""
COLUMNS: Mapping[str, str] = {column.name: column.meaning for column in COMMON}
"""The columns that the latents have whatever the method, and what they hold (`schema.names_of_latents`)."""


@dataclass(frozen=True)
class LatentNames:
    """Names of latents by one method.

    Attributes:
        method: how they were named.
        latents: one row per latent, with the columns of `COLUMNS` and what else the method tells. Where the method
            abstains the numbers are those of the best candidate, which `candidates` names.
        candidates: the best few for each latent, named or not: latent, rank (from 1), name, score, chance, p, q (NaN
            where the method tests the best alone).
        about: what was asked and tried, in plain JSON.
    """

    method: str
    latents: pd.DataFrame
    candidates: pd.DataFrame
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_named(self) -> int:
        """How many latents have a name."""
        return int((~self.latents["abstained"]).sum())

    def told(self, latent: int) -> str:
        """A latent's name with its score beside chance, or why it has none.

        Raises:
            InputError: the latent is not among them.
        """
        rows = self.latents[self.latents["latent"] == index(latent, "latent", 2**31)]
        if rows.empty:
            raise InputError(f"latent {latent} was not asked for a name; there are {len(self.latents)} that were")
        row = rows.iloc[0]
        if row["abstained"]:
            return f"{ABSTAINED}: {row['reason']}"
        ends = f", {row['low']:.2f} to {row['high']:.2f}" if pd.notna(row["low"]) else ""
        judged = ""
        if pd.notna(row.get("detection")) and row["detection"] != row["score"]:
            judged = f"; judged by {row['judge']}: {row['detection']:.2f}, by chance 0.50"
        return f"{row['name']} ({row['score']:.2f}{ends}; by chance {row['chance']:.2f}; q {row['q']:.2g}{judged})"

    def of_latents(self, latents: NDArray[np.int64], about: Mapping[str, Any]) -> "LatentNames":
        """The same names, of latents that were numbered 0, 1, ... and are these."""
        named, listed = (
            frame.assign(latent=latents[frame["latent"].to_numpy(dtype=np.int64)])
            for frame in (self.latents, self.candidates)
        )
        return replace(self, latents=named, candidates=listed, about={**about, **self.about})

    def to_frame(self) -> pd.DataFrame:
        """The latents."""
        return self.latents

    def write(self, folder: str | Path) -> None:
        """Write names.csv (one row per latent), candidates.csv and names.json to a folder that exists."""
        place = local_path(folder)
        write_text(place / "names.csv", self.latents.to_csv(index=False))
        write_text(place / "candidates.csv", self.candidates.to_csv(index=False))
        columns = {one.name: one.meaning for one in KEPT_NAMES if one.name in self.latents}
        found = {"method": self.method, "about": dict(self.about), "columns": columns}
        write_json(
            place / "names.json", {**found, "latents": plain(self.latents), "candidates": plain(self.candidates)}
        )


def plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them; what is missing is None."""
    values = frame.astype(object).where(frame.notna(), None)
    return [
        {str(key): value.item() if hasattr(value, "item") else value for key, value in row.items()}
        for row in values.to_dict("records")
    ]
