"""The command `mammosae pairs`: images that differ in one thing, and what latents answer to."""

__all__ = ["add_pairs_command", "pairs_command"]

from pathlib import Path
from typing import Annotated

import typer

from mammosae_plugin.cli.common import Debug, clear_errors
from mammosae_plugin.cli.options import Statistic


def add_pairs_command(app: typer.Typer) -> None:
    """Add `pairs` to `mammosae`."""
    app.command("pairs")(pairs_command)


def pairs_command(
    table: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TABLE]", help="A latents table that holds the images of the pairs.", show_default=False
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PAIRS.CSV]",
            help="The pairs: image_id_a, image_id_b, attribute, and xmin, ymin, xmax, ymax where they have a box.",
            show_default=False,
        ),
    ] = None,
    make: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Draw pairs of phantoms to this folder instead.", show_default=False),
    ] = None,
    n_pairs: Annotated[int, typer.Option("-n", min=1, help="With --make: pairs of each attribute.")] = 20,
    attribute: Annotated[
        list[str] | None,
        typer.Option(help="With --make: in what they differ; may be repeated.", show_default="all"),
    ] = None,
    image_size: Annotated[tuple[int, int], typer.Option(help="With --make: height and width of the images.")] = (
        1520,
        912,
    ),
    untrained: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="TABLE",
            help="The same images under an untrained SAE, which is chance; may be repeated.",
            show_default=False,
        ),
    ] = None,
    statistic: Statistic = "max",
    min_patients: Annotated[
        int, typer.Option(min=2, help="Patients of an attribute below which nothing is told of it.")
    ] = 10,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Also write CSV and JSON to this folder.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the phantoms, or of intervals and controls.")] = 0,
    debug: Debug = False,
) -> None:
    """What each latent answers to: how it changes between images that differ in one thing (docs/counterfactuals.md).

    mammosae pairs --make pairs -n 20 --image-size 256 160
    mammosae pairs table pairs/pairs.csv -o answers

    The first draws mammograms in pairs that differ in a finding, a marker, density or the machine alone. The second
    reads a latents table of such images, or of pairs of your own, and prints for each attribute how many latents answer
    to it, and to nothing else as much, beside chance. In between the images are encoded (encode_latents, see the page).
    A study does all of it by itself where its configuration has `analysis.pairs`.
    """
    with clear_errors(debug):
        from mammosae_plugin.errors import InputError

        if make is not None:
            if table is not None or untrained or output is not None:
                raise InputError("--make draws pairs and scores none; leave the table, --untrained and --output out")
            from mammosae_plugin.datasets import PAIR_ATTRIBUTES, make_phantom_pairs

            typer.echo(
                make_phantom_pairs(
                    make, n_pairs=n_pairs, attributes=attribute or PAIR_ATTRIBUTES, image_size=image_size, seed=seed
                )
            )
            return
        if table is None or pairs is None:
            raise InputError("name a latents table and a CSV of pairs, or draw pairs of phantoms with --make FOLDER")
        if attribute:
            raise InputError("--attribute is for --make; a table is scored by all attributes there are; leave it out")
        from mammosae_plugin.study.pair_command import score_pairs

        scored = score_pairs(
            table,
            pairs,
            untrained=untrained or (),
            statistic=statistic,
            min_patients=min_patients,
            seed=seed,
            output=output,
        )
        typer.echo(scored)
