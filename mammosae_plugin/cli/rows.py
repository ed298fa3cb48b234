"""`mammosae encode --rows`: a latents table of stored vectors, without a study."""

__all__ = ["encode_stored"]

from collections.abc import Sequence
from pathlib import Path

import typer

from mammosae_plugin import distributed
from mammosae_plugin.adapters import load_sae
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import LatentTable, encode_rows


def encode_stored(
    rows: Sequence[Path],
    sae: str | None,
    output: Path | None,
    *,
    concepts: Sequence[str] | None,
    column: str | None,
    split: str,
    device: str,
) -> None:
    """Encode rows and print what the table holds; the arguments are those of `encode_rows`.

    Raises:
        InputError: As `load_sae` and `encode_rows`, or there is no SAE or no folder to write to.
    """
    if sae is None or output is None:
        raise InputError(f"--rows needs {'--sae, the SAE' if sae is None else '-o, the folder for the table'}")
    distributed.start()
    table = encode_rows(
        rows[0] if len(rows) == 1 else rows,
        load_sae(sae),
        output,
        concepts=concepts or None,
        column=column,
        split=split,
        device=device,
    )
    if distributed.is_main():
        typer.echo(_summary(table))
    distributed.stop()


def _summary(table: LatentTable) -> str:
    labels = ", ".join(table.vocabulary) or "no labels"
    lines = [f"{table.folder}: {len(table.images)} rows, {table.d_sae} latents; {labels}"]
    for split in table.splits:
        active = (f"{sums['l0'] / sums['n_positions']:.1f} of {n}" for n, sums in table.level_sums(split).items())
        n_rows = int((table.images["split"] == split).sum())
        lines.append(f"{split}: {n_rows} rows, latents active per row {', '.join(active)}")
    return "\n".join(lines)
