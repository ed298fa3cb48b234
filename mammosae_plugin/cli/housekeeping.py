"""The commands `mammosae status`, `verify` and `clean`: what a study's folder holds, is whole, and may lose."""

__all__ = ["add_housekeeping_commands", "clean_command", "status_command", "verify_command"]

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mammosae_plugin.cli.common import Debug, clear_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mammosae_plugin.study.done import Kept

_SHOWN = 20  # results that are listed
_Study = Annotated[
    Path, typer.Argument(metavar="STUDY", help="The study's YAML file, or its output folder.", show_default=False)
]
_Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting of the file, as for a run.", show_default=False),
]


def add_housekeeping_commands(app: typer.Typer) -> None:
    """Add `status`, `verify` and `clean` to `mammosae`."""
    app.command("status")(status_command)
    app.command("verify")(verify_command)
    app.command("clean")(clean_command)


def status_command(study: _Study, settings: _Settings = None, debug: Debug = False) -> None:
    """Tell what is done of a study, what a rerun would do and why, and the disk that it uses.

    mammosae status study.yaml

    With the YAML file it also tells which settings, and whether images or annotations, are other than in the last run.
    Of an output folder alone it tells the rest. Nothing is computed or changed.
    """
    with clear_errors(debug):
        from mammosae_plugin.errors import InputError
        from mammosae_plugin.study.done import status

        if study.is_dir():
            if settings:
                raise InputError("--set replaces settings of a file; name the study's YAML file")
            typer.echo(status(study).as_text())
            return
        from mammosae_plugin.config import load_config
        from mammosae_plugin.study import open_study

        opened = open_study(load_config(study, settings or ()))
        typer.echo(status(opened.output, *opened.state).as_text())


def verify_command(
    folder: Annotated[
        Path,
        typer.Argument(help="A study's output folder, or a store, latents table or SAE alone.", show_default=False),
    ],
    debug: Debug = False,
) -> None:
    """Read every stored row, latents table and trained SAE whole, and compare with the checksums; changes none of them.

    mammosae verify study

    Other commands read a file whole only where its size or times have changed since it was last found whole. Ends with
    exit code 2 where a file is damaged, and names all of them; the study's next run makes them anew.
    """
    with clear_errors(debug):
        from mammosae_plugin.errors import InputError
        from mammosae_plugin.study.verifying import verify

        found = verify(folder)
        for path in found.damaged:
            typer.echo(f"damaged or missing: {path}", err=True)
        if found.damaged:
            raise InputError(
                f"{len(found.damaged)} of {found.n_files} files below {folder} are not what was written; run the step "
                "that writes them again with the same settings, which replaces them (of an SAE delete its folder first)"
            )
        typer.echo(f"{folder}: {found.n_files} files, {found.nbytes / 1e6:,.1f} MB, all as recorded")


def clean_command(
    study: _Study,
    settings: _Settings = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
    debug: Debug = False,
) -> None:
    """Remove what a study no longer uses and can make again: of earlier settings and data, or needed on the way only.

    mammosae clean study.yaml

    It lists them with their sizes and asks first. What the last whole run used stays, as does everything that is no
    result of a step: reports, notes, your own files.
    """
    with clear_errors(debug):
        from mammosae_plugin.config import load_config
        from mammosae_plugin.errors import InputError
        from mammosae_plugin.study.done import clean

        if study.is_dir() and settings:
            raise InputError("--set replaces settings of a file; name the study's YAML file")
        folder = study if study.is_dir() else load_config(study, settings or ()).output

        def confirm(unused: "Sequence[Kept]") -> bool:
            for one in unused[:_SHOWN]:
                typer.echo(f"{one.nbytes / 1e6:10.1f} MB  work/{one.name}")
            if len(unused) > _SHOWN:
                typer.echo(f"... and {len(unused) - _SHOWN} more")
            typer.echo(f"{sum(one.nbytes for one in unused) / 1e6:10.1f} MB in {len(unused)} results")
            if dry_run or yes:
                return yes and not dry_run
            try:
                return typer.confirm("Remove them?")
            except typer.Abort as error:
                raise InputError("nobody answers whether they may go; add --yes") from error

        removed = clean(folder, confirm)
        typer.echo(f"{len(removed)} results removed" if removed else "nothing removed")
