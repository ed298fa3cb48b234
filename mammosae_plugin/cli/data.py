"""`mammosae data`: what lies in a folder of images and annotations, before a study is made of it."""

__all__ = ["add_data_commands"]

from pathlib import Path
from typing import Annotated

import typer

from mammosae_plugin.cli.common import Debug, clear_errors

_data = typer.Typer(no_args_is_help=True, help="Look at images and annotations before a study: check, presets.")


def add_data_commands(app: typer.Typer) -> None:
    """Add `data` to `mammosae`."""
    app.add_typer(_data, name="data")


@_data.command()
def check(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="A study's YAML file: check its section `data`.", show_default=False),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Instead, a public collection as it is distributed, in --root; `mammosae data presets` lists them.",
            show_default=False,
        ),
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(
            help="Instead, a mapping (YAML) of your own table and images, or a folder that `mammosae prepare` wrote.",
            show_default=False,
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="The folder of the data; of a mapping by default its own.", show_default=False),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for contact_sheet.png and data_check.txt.")
    ] = Path("data_check"),
    images: Annotated[int, typer.Option(min=1, help="How many images are drawn, the most various ones.")] = 24,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="With --config, replace one setting.", show_default=False),
    ] = None,
    debug: Debug = False,
) -> None:
    """Tell what is understood of images and annotations, and draw some images with their boxes, for the eye.

    mammosae data check --config study.yaml
    mammosae data check --preset cbis-ddsm --root CBIS-DDSM
    mammosae data check --mapping clinic.yaml --root clinic

    It prints images, patients, splits, classes and missing labels of every concept, boxes, masks and covariates, and
    says which files are missing. Opened are the images that are drawn, as a network would see them, and all masks.
    contact_sheet.png shows images of patients: keep it where the data are. Ends with exit code 2, and all problems
    named, where something is wrong.
    """
    with clear_errors(debug):
        from mammosae_plugin.errors import InputError
        from mammosae_plugin.study.data_check import check_data

        if preset is not None and mapping is not None:
            raise InputError("--preset and --mapping both say how the data lie; give one")
        source = mapping if preset is None else preset
        found = check_data(output, config=config, source=source, root=root, settings=settings or (), n_images=images)
        typer.echo(f"{found.found}\n\n{found.sheet}: look whether the boxes are where they should be")
        if found.problems:
            raise InputError("; ".join(found.problems))


@_data.command()
def presets(debug: Debug = False) -> None:
    """List the public collections that can be read as they are distributed: their files, and where these are from."""
    with clear_errors(debug):
        from mammosae_plugin.datasets.mapping import describe_presets

        typer.echo(describe_presets())
