"""The command `mammosae name`: what latents are called, with the score of every name."""

__all__ = ["add_name_command", "name_command"]

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    by: Annotated[
        Literal["labels", "texts", "direction"],
        typer.Option(
            help="labels: what the strongest images share; texts: which terms they are nearest to; direction: which "
            "term the decoder row points to, without images."
        ),
    ] = "labels",
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="labels: this concept or column of 0 and 1; may be repeated. (All concepts.)", show_default=False
        ),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            help="labels: this column of what is known of images, such as view; may be repeated. (All columns.)",
            show_default=False,
        ),
    ] = None,
    no_metadata: Annotated[bool, typer.Option("--no-metadata", help="labels: no column beside the labels.")] = False,
    check: Annotated[
        str | None,
        typer.Option(help="labels: whose images names are checked in, or none. (test)", show_default=False),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="texts, direction: Mammo-CLIP's pretraining checkpoint, a file or a place on the Hub.",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="texts, direction: a folder with its tokenizer, or a repository. (Bio_ClinicalBERT on the Hub.)",
            show_default=False,
        ),
    ] = None,
    terms: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="texts, direction: the terms, a YAML file or one in each line. (What mammograms show.)",
            show_default=False,
        ),
    ] = None,
    score: Annotated[
        Literal["soft_wpmi", "mean_difference"] | None, typer.Option(help="texts: the score. (soft_wpmi)")
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            metavar="STORE",
            help="texts: the vectors that a table of embeddings was made of, which the image projection reads.",
            show_default=False,
        ),
    ] = None,
    sae: Annotated[
        str | None,
        typer.Option(help="direction: the SAE that the table was made with, a file or folder.", show_default=False),
    ] = None,
    split: Annotated[str, typer.Option(help="Whose images are looked at.")] = "training",
    statistic: Annotated[Literal["max", "mean"], typer.Option(help="What of a latent counts, over positions.")] = "max",
    group: Annotated[str, typer.Option(help="The column that says which images belong together.")] = "patient_id",
    n: Annotated[int, typer.Option("-n", min=2, help="Strongest images of a latent, one of each group.")] = 20,
    min_excess: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="What a score must lie above chance for a name. (By labels 0.5, where 1 is every image.)",
            show_default=False,
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(min=0, max=1, help="False discovery rate of names.")] = 0.05,
    min_groups: Annotated[int, typer.Option(min=2, help="Groups that a latent must fire in.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="texts, direction: of chance.")] = 0,
    top: Annotated[int, typer.Option(min=0, help="Names that are printed.")] = 10,
    debug: Debug = False,
) -> None:
    """Name latents: each name with its score, chance and q, or no name and why.

    mammosae name study/work/latents/a -o named
    mammosae name study/work/latents/a --by texts --text b5-model-best-epoch-7.tar --tokenizer Bio_ClinicalBERT

    By labels and metadata no network and no image is needed, and names are checked in another split.

    By texts needs Mammo-CLIP's checkpoint and a table of its final map; by direction the SAE too. Nothing leaves this
    machine (docs/naming.md).
    """
    with clear_errors(debug):
        from mammosae_plugin.errors import InputError
        from mammosae_plugin.study.retrieval import open_table, written_files

        own: dict[str, dict[str, Any]] = {
            "labels": {"--label": label, "--metadata": metadata, "--no-metadata": no_metadata, "--check": check},
            "texts": {"--score": score, "--rows": rows},
            "direction": {"--sae": sae},
        }
        of_text = {"--text": text, "--tokenizer": tokenizer, "--terms": terms}
        for method, options in own.items():
            for name, value in options.items():
                if value and method != by:
                    raise InputError(f"{name} is for --by {method}; leave it out, or say so")
        if no_metadata and metadata:
            raise InputError("--no-metadata leaves out what --metadata names; give one of them")
        if by == "labels" and (given := [name for name, value in of_text.items() if value]):
            raise InputError(f"{given[0]} is for --by texts or direction; leave it out, or say so")
        if by != "labels" and text is None:
            raise InputError(f"--by {by} needs a text encoder: name Mammo-CLIP's pretraining checkpoint with --text")
        if by == "direction" and sae is None:
            raise InputError("--by direction needs the decoder: name the SAE with --sae")
        asked: dict[str, Any] = {"alpha": alpha} | ({} if min_excess is None else {"min_excess": min_excess})
        images: dict[str, Any] = {
            "split": split,
            "statistic": statistic,
            "group": group,
            "n": n,
            "min_groups": min_groups,
        }
        opened = open_table(table)
        if by == "labels":
            from mammosae_plugin.interpretation import name_by_labels

            chosen = [] if no_metadata else metadata or None
            names = name_by_labels(opened, label or None, chosen, check=check, **images, **asked)
        else:
            from mammosae_plugin.adapters import load_mammo_clip_text, load_sae
            from mammosae_plugin.adapters.mammo_clip_text import BIO_CLINICAL_BERT
            from mammosae_plugin.interpretation import load_terms, name_by_directions, name_by_texts
            from mammosae_plugin.interpretation.by_texts import check_layer

            words = load_terms(terms)
            tower = load_mammo_clip_text(str(text), tokenizer=tokenizer or BIO_CLINICAL_BERT)
            if by == "texts":
                asked |= {"score": score or "soft_wpmi", "seed": seed}
                names = name_by_texts(opened, tower, words, embeddings=rows, **images, **asked)
            else:
                check_layer(opened)
                decoder = load_sae(str(sae)).W_dec.detach()
                if len(decoder) != opened.d_sae:
                    raise InputError(
                        f"{sae} has {len(decoder)} latents and {table} {opened.d_sae}; name the table's SAE"
                    )
                names = name_by_directions(
                    decoder, tower, words, latents=opened.live_latents(split), seed=seed, **asked
                )
        if output is not None:
            with written_files(output, "names") as staged:
                names.write(staged)
        typer.echo(_summary(names, top, output))


def _summary(names: "LatentNames", top: int, output: Path | None) -> str:
    about, latents = names.about, names.latents
    tried = (
        f"{len(about['tried'])} attributes"
        if "tried" in about
        else f"{about['n_terms']} terms and {about['n_distractors']} distractors"
    )
    where = (
        f" in {about['n_images']} images of {about['n_groups']} groups of split {about['split']}"
        if "n_images" in about
        else ""
    )
    lines = [f"{names.n_named} of {len(latents)} latents have a name; tried were {tried}{where}"]
    best = latents[~latents["abstained"]].sort_values(["q", "score"], ascending=[True, False]).head(top)
    for _, row in best.iterrows():
        auroc = row.get("check_auroc", math.nan)
        checked = "" if math.isnan(auroc) else f"; AUROC {auroc:.2f} in split {about['check']}"
        lines.append(f"latent {row['latent']}: {names.told(row['latent'])}{checked}")
    lines += [f"not tried: {name} ({why})" for name, why in about.get("left_out", {}).items()]
    if about.get("n_distractors"):
        share = about["n_distractors"] / (about["n_terms"] + about["n_distractors"])
        lines.append(
            f"{about['n_best_is_distractor']} latents stand out by a distractor, beside {names.n_named} by a term; if "
            f"texts meant nothing it would be {share:.0%} of them"
        )
    return "\n".join(lines if output is None else [*lines, f"written to {output}"])
