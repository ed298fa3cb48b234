"""`mammosae audit`: does a trained SAE score better than one that was not trained?"""

__all__ = ["add_audit_command", "audit"]

from pathlib import Path
from typing import Annotated

import typer

from mammosae_plugin.cli.common import Debug, clear_errors


def audit(
    sae: Annotated[
        str | None,
        typer.Argument(
            metavar="[SAE]",
            help="The SAE: a folder that `mammosae train` or SAELens wrote, a file of Mammo-SAE or SAIL, or "
            "hub://owner/name/id. Left out with --config.",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[
        list[Path] | None,
        typer.Option(
            help="What the SAE reads: a folder that `mammosae extract` or `embed` wrote, or files of embeddings "
            "(.parquet, .npy with a .csv); may be repeated, one file per split.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the score card; with --config by default the study's.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", help="A study's YAML file instead: audit the SAE that it trains.", show_default=False
        ),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            help="With --config, the layer; by default the final map. Of embeddings MODEL/SAE.", show_default=False
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="With --config, replace one setting.", show_default=False),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="A table (.csv or .parquet) with image_id and a column for each label, and patient_id and split if "
            "the rows do not say them.",
            show_default=False,
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            help="A latents table of the images instead (`mammosae encode`), of any SAE: its labels, patients, splits "
            "and boxes are taken.",
            show_default=False,
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="A column that is a label; may be repeated. By default those of 0 and 1 alone, of --table all.",
            show_default=False,
        ),
    ] = None,
    group: Annotated[str, typer.Option(help="The column that says which images belong together.")] = "patient_id",
    split: Annotated[
        str | None,
        typer.Option(help="The split that is scored; by default test, or all where there is none.", show_default=False),
    ] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Seeds of the SAE, and of every control that is random.")] = 3,
    training_rows: Annotated[
        int,
        typer.Option(min=1, help="Train each over so many rows at the most, counted every time that they are read."),
    ] = 500_000,
    images: Annotated[int, typer.Option(min=10, help="Score so many images at the most, whole groups.")] = 2000,
    device: Annotated[str | None, typer.Option(help="Where SAEs run (cpu, cuda, cuda:1).", show_default=False)] = None,
    debug: Debug = False,
) -> None:
    """Tell whether an SAE's scores mean anything: score it beside seeds of itself and beside controls.

    mammosae audit sae --rows embeddings --labels labels.csv -o audit
    mammosae audit sae --rows activations --table table -o audit
    mammosae audit --config study.yaml

    Seeds of the SAE are trained on the rows as it was itself. Controls are the same without training, with directions
    that stay random, with a permuted encoder, and principal components. Reconstruction, monosemanticity, probes,
    retrieval and replication are scored of all. For every score and control the score card says d, the difference of
    means over the spread between seeds; below 2 the score does not separate the trained SAE from the control.

    Writes score_card.json, .png and .csv; `mammosae publish sae --score-card` puts the card on the SAE's page. A run
    that is stopped or killed is made again with the same command and continues.
    """
    with clear_errors(debug):
        from mammosae_plugin.errors import InputError

        if (config is None) == (sae is None):
            raise InputError("give the SAE and its --rows, or --config with a study that trains one; not both")
        if config is not None:
            given = {"--rows": rows, "--labels": labels, "--table": table, "--label": label, "--split": split}
            if wrong := [name for name, value in given.items() if value]:
                raise InputError(f"{wrong[0]} does not go with --config: the study knows its rows and labels")
        elif layer is not None or settings:
            raise InputError(f"{'--layer' if layer is not None else '--set'} goes with --config alone")
        elif not rows or output is None:
            raise InputError("say where the SAE's rows are (--rows) and where the score card goes (--output, -o)")
        from mammosae_plugin.study.audit import audit_from_files, audit_study

        if config is not None:
            from mammosae_plugin.config import load_config

            replace = {} if device is None else {"device": device}
            card = audit_study(
                load_config(config, settings or (), replace=replace),
                output,
                layer=layer,
                seeds=seeds,
                training_rows=training_rows,
                most_images=images,
            )
        else:
            assert sae is not None and rows and output is not None  # as was seen above
            card = audit_from_files(
                sae,
                rows,
                output,
                labels=labels,
                table=table,
                concepts=label,
                group=group,
                split=split,
                seeds=seeds,
                training_rows=training_rows,
                most_images=images,
                device=device or "cpu",
            )
        typer.echo(card.as_text())


def add_audit_command(app: typer.Typer) -> None:
    """Add `mammosae audit`."""
    app.command("audit")(audit)
