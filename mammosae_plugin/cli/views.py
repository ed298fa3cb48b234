"""The command `mammosae views`: which latents agree between the views of a breast, and between the breasts."""

__all__ = ["add_views_command", "views_command"]

from pathlib import Path
from typing import Annotated

import typer

from mammosae_plugin.cli.common import Debug, clear_errors
from mammosae_plugin.cli.options import Statistic


def add_views_command(app: typer.Typer) -> None:
    """Add `views` to `mammosae`."""
    app.command("views")(views_command)


def views_command(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE",
            help="A latents table, as `mammosae encode` writes it, whose images have laterality and view; or a study's "
            "output folder, whose tables are named if there are several.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write all latents to this CSV file.", show_default=False),
    ] = None,
    split: Annotated[str, typer.Option(help="The images that are paired.")] = "test",
    views: Annotated[
        tuple[str, str], typer.Option(help="The two views, as the column view has them.", metavar="VIEW VIEW")
    ] = ("CC", "MLO"),
    statistic: Statistic = "max",
    draws: Annotated[int, typer.Option(min=1, help="Draws of other patients, for chance.")] = 1000,
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples of patients, for intervals.")] = 1000,
    min_patients: Annotated[int, typer.Option(min=1, help="Patients in whose pairs a latent must fire.")] = 10,
    top: Annotated[int, typer.Option(min=0, help="Latents that are printed.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of draws and resamples.")] = 0,
    debug: Debug = False,
) -> None:
    """Tell which latents read the same in both views of a breast, and in both breasts; needs no label.

    mammosae views study/work/latents/a -o agreement.csv

    Chance is what images of other patients give, of the same side and view (docs/scores.md).
    """
    with clear_errors(debug):
        from mammosae_plugin.study.views_command import tell_view_agreement

        typer.echo(
            tell_view_agreement(
                table,
                split=split,
                statistic=statistic,
                views=views,
                n_draws=draws,
                n_bootstrap=bootstrap,
                min_patients=min_patients,
                seed=seed,
                top=top,
                output=output,
            )
        )
