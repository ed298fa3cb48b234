"""The command `mammosae explain`: why a study's classifier gives one image its logit."""

__all__ = ["add_explain_command", "explain_command"]

from pathlib import Path
from typing import Annotated, Literal

import typer

from mammosae_plugin.cli.common import Debug, OfConcept, OfModel, StudySettings, clear_errors


def add_explain_command(app: typer.Typer) -> None:
    """Add `explain` to `mammosae`."""
    app.command("explain")(explain_command)


def explain_command(
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE",
            help="A PNG or DICOM file, the id of an image of the study, or the rule by which its report names one "
            "(with_finding:1, without_finding:1).",
            show_default=False,
        ),
    ],
    study: Annotated[
        Path | None,
        typer.Option("--study", "-c", help="The YAML file of a finished study of maps.", show_default=False),
    ] = None,
    model: OfModel = None,
    concept: OfConcept = None,
    layer: Annotated[str | None, typer.Option(help="The study's name of the final map.", show_default=False)] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Also write explanation.html, .png and .json (and original.png of an image that was prepared here) to "
            "this folder. They show the image.",
            show_default=False,
        ),
    ] = None,
    preparation: Annotated[
        Literal["mammo-clip", "letterbox"] | None,
        typer.Option(
            help="How a DICOM file, or a PNG of another size than the study's, becomes the network's input.",
            show_default="the study's, else mammo-clip",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=12, help="Latents shown for, and as many against.")] = 4,
    n: Annotated[int, typer.Option("-n", min=0, help="Training images with the same latents; ids only.")] = 5,
    target: Annotated[
        int | None,
        typer.Option(
            "--class", min=0, help="Of several classes the one that is explained.", show_default="the likeliest"
        ),
    ] = None,
    settings: StudySettings = None,
    debug: Debug = False,
) -> None:
    """Tell why a study's classifier gives one image its logit: an exact sum over latents, with maps.

    mammosae explain exam.dcm --study study.yaml --concept Mass -o explained

    What the SAE does not reconstruct and the bias are rows of their own, and the sum is checked against the network.
    Names, readers' notes and verdicts are those of the study; of other patients only ids are given (docs/explain.md).
    """
    with clear_errors(debug):
        from mammosae_plugin.errors import InputError
        from mammosae_plugin.study.explain_command import explain_image

        if study is None and not settings:
            raise InputError("name the study: mammosae explain IMAGE --study study.yaml")
        typer.echo(
            explain_image(
                image,
                study,
                settings=settings or (),
                model=model,
                concept=concept,
                layer=layer,
                output=output,
                preparation=preparation,
                top=top,
                n=n,
                target=target,
            )
        )
