"""`mammosae export`: an SAE as another library's files."""

__all__ = ["add_export_command"]

from pathlib import Path
from typing import Annotated

import typer

from mammosae_plugin.cli.common import Debug, clear_errors


def add_export_command(app: typer.Typer) -> None:
    """Add the command to `mammosae`."""
    app.command("export")(export_command)


def export_command(
    sae: Annotated[
        str,
        typer.Argument(
            metavar="SAE",
            help="The SAE: a folder or file that loads here, or hub://owner/name@revision/path/in/repo.",
            show_default=False,
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the files go; made.", show_default=False)],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="Whose files: dictionary_learning (standard, gated, top-k, JumpReLU), saev (standard, JumpReLU of one "
            "threshold), saev-0.1 (the same library's first release; standard) or sparsify (top-k).",
            show_default=False,
        ),
    ],
    debug: Debug = False,
) -> None:
    """Write an SAE as another library's files, which its own code loads, with the same latents and reconstruction.

    What a format cannot hold is refused, and which can is said. A folder that holds something is left alone.
    """
    with clear_errors(debug):
        from mammosae_plugin.adapters import export_sae, load_sae

        written = export_sae(load_sae(sae), folder, format=format)
        typer.echo(f"{written}: {', '.join(sorted(file.name for file in written.iterdir()))}, for {format}")
