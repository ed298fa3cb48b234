"""The command `mammosae prepare`: DICOM or PNG originals and their annotations to a folder that a study reads."""

__all__ = ["add_prepare_command", "prepare_command"]

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from mammosae_plugin.cli.common import Debug, clear_errors


def add_prepare_command(app: typer.Typer) -> None:
    """Add `prepare` to `mammosae`."""
    app.command("prepare")(prepare_command)


def prepare_command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder to write; a study's data.root.", show_default=False)
    ],
    preset: Annotated[
        str | None,
        typer.Option(
            help="A public collection: vindr, rsna, cbis-ddsm, inbreast, embed, cmmd, csaw-cc.", show_default=False
        ),
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(
            help="A mapping in YAML, for a table and images of your own; see docs/data.md.", show_default=False
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="The folder of the originals.", show_default="that of --mapping"),
    ] = None,
    preparation: Annotated[
        Literal["mammo-clip", "letterbox"],
        typer.Option(
            help="mammo-clip: as Mammo-CLIP's code does it, cropped to the breast. letterbox: the whole image, its "
            "aspect kept."
        ),
    ] = "mammo-clip",
    image_size: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="HEIGHT WIDTH", help="Of the prepared images.", show_default="the mapping's, 1520 912", min=1
        ),
    ] = None,
    bits: Annotated[Literal["8", "16"], typer.Option(help="Per pixel of the prepared images.")] = "8",
    voi: Annotated[
        Literal["none", "window", "lut", "auto"],
        typer.Option(
            help="The contrast that a DICOM header asks for: its first window, its LUT, either (auto), or none, as "
            "Mammo-CLIP has it."
        ),
    ] = "none",
    multi_frame: Annotated[
        Literal["refuse", "first", "middle", "brightest"],
        typer.Option(
            help="Files of several frames, and tomosynthesis: refused, or one frame, or the brightest of all."
        ),
    ] = "refuse",
    flip: Annotated[
        Literal["none", "laterality", "content"],
        typer.Option(help="Mirror right breasts, by their label (laterality) or by the pixels (content)."),
    ] = "none",
    orientation: Annotated[
        Literal["stored", "upright"],
        typer.Option(help="upright turns images whose header says that the head is below, or at a side."),
    ] = "stored",
    max_bad_share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Stop when more than this share of the images cannot be used."),
    ] = 0.01,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes at once; 0: none beside this.", show_default="one per core")
    ] = None,
    share: Annotated[
        str | None,
        typer.Option(
            metavar="N/M",
            help="Only the share N of M (from 0), for jobs side by side, such as --share $SLURM_ARRAY_TASK_ID/16; the "
            "one that ends last writes the tables.",
            show_default=False,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Make of DICOM files (or PNG) and their annotations a folder that studies read.

    mammosae prepare --preset vindr --root physionet/vindr-mammo -o vindr-png

    The folder has PNG images, a table, a mapping and, of every image, the transform from the original and back: set
    data.root of a study to it. Labels, boxes, masks and covariates go along. Files that cannot be used are listed in
    quarantine.csv with their reasons. Killed, the same command continues. Text burnt into images is not looked for.
    """
    with clear_errors(debug):
        from mammosae_plugin.datasets.prepared_folder import prepare_dicom, prepared_summary
        from mammosae_plugin.errors import InputError

        if (preset is None) == (mapping is None):
            raise InputError("name the collection by --preset, or your own by --mapping; one of the two")
        prepare_dicom(
            mapping if mapping is not None else preset or "",
            root,
            output,
            preparation=preparation,
            image_size=image_size,
            bits=8 if bits == "8" else 16,
            voi=voi,
            multi_frame=multi_frame,
            flip=flip,
            orientation=orientation,
            max_bad_share=max_bad_share,
            share=share,
            workers=(os.cpu_count() or 1) if workers is None else workers,
        )
        typer.echo(prepared_summary(output))
