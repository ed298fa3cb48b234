"""The command `mammosae name`: what latents are called, with the score of every name."""

__all__ = ["add_name_command", "name_command"]

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mammosae_plugin.cli.common import Debug, clear_errors

if TYPE_CHECKING:
    from mammosae_plugin.interpretation import LatentNames


def add_name_command(app: typer.Typer) -> None:
    """Add `name` to `mammosae`."""
    app.command("name")(name_command)


def name_command(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE",
            help="A latents table of any kind, as `mammosae encode` writes it; or a study's output folder, whose "
            "tables are listed if there are several.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write names.csv, candidates.csv and names.json to this folder.", show_default=False
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="Name by this concept or column of 0 and 1; may be repeated. [all concepts]", show_default=False
        ),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            help="Name by this column of what is known of images, such as view; may be repeated. [all]",
            show_default=False,
        ),
    ] = None,
    no_metadata: Annotated[bool, typer.Option("--no-metadata", help="Name by labels alone.")] = False,
    split: Annotated[str, typer.Option(help="Whose images names are found in.")] = "training",
    check: Annotated[
        str | None,
        typer.Option(help="Whose images names are checked in, or none. [test, if another]", show_default=False),
    ] = None,
    statistic: Annotated[Literal["max", "mean"], typer.Option(help="What of a latent counts, over positions.")] = "max",
    group: Annotated[str, typer.Option(help="The column that says which images belong together.")] = "patient_id",
    n: Annotated[int, typer.Option("-n", min=2, help="Strongest images of a latent, one of each group.")] = 20,
    min_excess: Annotated[
        float, typer.Option(min=0, max=1, help="Excess over chance that a name needs: 0 is chance, 1 every image.")
    ] = 0.5,
    alpha: Annotated[float, typer.Option(min=0, max=1, help="False discovery rate of names.")] = 0.05,
    min_groups: Annotated[int, typer.Option(min=2, help="Groups that a latent must fire in.")] = 10,
    top: Annotated[int, typer.Option(min=0, help="Names that are printed.")] = 10,
    debug: Debug = False,
) -> None:
    """Name latents after what their strongest images share more often than images do by chance.

    mammosae name study/work/latents/a -o named

    Each name stands with its share among these images, with what chance gives, q and, in images of another split, the
    latent's AUROC for it; a latent of which nothing stands out has no name, and the reason is told. Needs no network
    and no image; nothing leaves this machine (docs/naming.md).
    """
    with clear_errors(debug):
        from mammosae_plugin.errors import InputError
        from mammosae_plugin.interpretation import name_by_labels
        from mammosae_plugin.study.retrieval import open_table, written_files

        if no_metadata and metadata:
            raise InputError("--no-metadata leaves out what --metadata names; give one of them")
        names = name_by_labels(
            open_table(table),
            label or None,
            [] if no_metadata else metadata or None,
            split=split,
            check=check,
            statistic=statistic,
            group=group,
            n=n,
            min_excess=min_excess,
            alpha=alpha,
            min_groups=min_groups,
        )
        if output is not None:
            with written_files(output, "names") as staged:
                names.write(staged)
        typer.echo(_summary(names, top, output))


def _summary(names: "LatentNames", top: int, output: Path | None) -> str:
    about, latents = names.about, names.latents
    lines = [
        f"{names.n_named} of {len(latents)} latents have a name; tried were {len(about['tried'])} attributes in "
        f"{about['n_images']} images of {about['n_groups']} groups of split {about['split']}"
    ]
    best = latents[~latents["abstained"]].sort_values(["q", "score"], ascending=[True, False]).head(top)
    for latent, auroc in zip(best["latent"].tolist(), best["check_auroc"].tolist(), strict=True):
        checked = "" if math.isnan(auroc) else f"; AUROC {auroc:.2f} in split {about['check']}"
        lines.append(f"latent {latent}: {names.told(latent)}{checked}")
    lines += [f"not tried: {name} ({why})" for name, why in about["left_out"].items()]
    return "\n".join(lines if output is None else [*lines, f"written to {output}"])
