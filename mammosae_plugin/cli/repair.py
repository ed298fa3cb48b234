"""The command `mammosae repair`: a classifier that no longer uses some of its latents, as a file."""

__all__ = ["add_repair_command", "repair_command"]

from pathlib import Path
from typing import Annotated, Literal

import typer

from mammosae_plugin.cli.common import Debug, OfConcept, OfModel, StudySettings, clear_errors, numbers_of_latents


def add_repair_command(app: typer.Typer) -> None:
    """Add `repair` to `mammosae`."""
    app.command("repair")(repair_command)


def repair_command(
    study: Annotated[
        Path | None,
        typer.Argument(metavar="[STUDY.YAML]", help="The YAML file of a finished study of maps.", show_default=False),
    ] = None,
    latents: Annotated[
        list[str] | None,
        typer.Option(
            "--latents", "-l", help="The latents, such as 3,17,201; may be repeated.", metavar="N,N", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The classifier's file: .safetensors, or of a linear repair of Mammo-CLIP's networks .pth. A page "
            "(.html) and numbers (.json) are written beside it.",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[float, typer.Option(help="What the latents are multiplied by: 0 removes them.")] = 0.0,
    kind: Annotated[
        Literal["exact", "linear"],
        typer.Option(
            help="exact: the SAE's part is folded into the network. linear: the latents' directions are scaled in the "
            "head, an approximation that any code can load."
        ),
    ] = "exact",
    model: OfModel = None,
    concept: OfConcept = None,
    layer: Annotated[
        str | None, typer.Option(help="A layer of the study.", show_default="the final map, or the last")
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Tell performance by group too: a column of the images, such as laterality, machine or age; may be "
            "repeated.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="The images that it is measured on.")] = "test",
    froc: Annotated[
        bool,
        typer.Option(
            "--froc",
            help="Tell too which lesions the logit's map finds, beside other patients' lesions as chance; both "
            "networks are run on all images.",
        ),
    ] = False,
    settings: StudySettings = None,
    debug: Debug = False,
) -> None:
    """Remove latents from a study's classifier for good, or scale them, and measure it before and after.

    mammosae repair study.yaml --concept Mass --latents 3,17 --group laterality -o repaired.safetensors

    The file loads as any other (load_mammo_clip, load_classifier, a study's classifiers). AUROC by group, calibration
    and what the repair changed are printed, and written as a page and JSON beside it (docs/repair.md).
    """
    with clear_errors(debug):
        from mammosae_plugin.errors import InputError
        from mammosae_plugin.study.repair_command import repair_study

        if study is None and not settings:
            raise InputError("name the study: mammosae repair study.yaml --latents 3,17 -o repaired.safetensors")
        if not latents:
            raise InputError("name the latents to remove or scale, such as --latents 3,17")
        if output is None:
            raise InputError("name the file to write, such as -o repaired.safetensors")
        typer.echo(
            repair_study(
                study,
                numbers_of_latents(latents),
                output,
                settings=settings or (),
                scale=scale,
                kind=kind,
                model=model,
                concept=concept,
                layer=layer,
                group=group or (),
                split=split,
                froc=froc,
            )
        )
