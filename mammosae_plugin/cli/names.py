"""The command `mammosae name`: what latents are called, with the score of every name."""

__all__ = ["add_name_command", "name_command"]

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mammosae_plugin.cli.common import Debug, clear_errors, numbers_of_latents
from mammosae_plugin.cli.options import BY_A_MODEL, Endpoint, Group, KeyFrom, LocalModel, ModelName, Statistic, Table

_JUDGE = "Is a name right?"
_OF_JUDGES = {
    "labels": ("--label", "--metadata", "--no-metadata"),
    "texts": ("--text", "--tokenizer", "--terms"),
    "model": ("--key-from", "--config", "--set", "--send-images-under", "--dry-run", "--price-in", "--price-out"),
}
"""What a judge takes beside its own options."""


def add_name_command(app: typer.Typer) -> None:
    """Add `name` to `mammosae`."""
    app.command("name")(name_command)


def name_command(
    table: Table,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write names.csv, candidates.csv and names.json to this folder.", show_default=False
        ),
    ] = None,
    by: Annotated[
        Literal["labels", "texts", "direction", "model"],
        typer.Option(
            help="labels: what the strongest images share; texts: which terms they are nearest to; direction: which "
            "term the decoder row points to, without images; model: what a vision-language model sees in them."
        ),
    ] = "labels",
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="labels: this concept or column of 0 and 1 (all concepts); model: this label is told beside the "
            "pictures (none). May be repeated.",
            show_default=False,
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
        typer.Option(
            help="labels: whose images names are checked in, or none. (test; with --judge one it does not see)",
            show_default=False,
        ),
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
    statistic: Statistic = "max",
    group: Group = "patient_id",
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
    seed: Annotated[int, typer.Option(min=0, help="texts, direction: of chance; model: of answers.")] = 0,
    latents: Annotated[
        list[str] | None,
        typer.Option(
            "--latents",
            "-l",
            metavar="N,N",
            help="Name these alone; may be repeated. (All that fire.)",
            show_default=False,
        ),
    ] = None,
    top_latents: Annotated[
        int | None,
        typer.Option(min=1, help="Name so many, those with the most activation in all.", show_default=False),
    ] = None,
    model: ModelName = None,
    endpoint: Endpoint = None,
    local: LocalModel = False,
    key_from: KeyFrom = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="A study's YAML file, whose images are shown.",
            rich_help_panel=BY_A_MODEL,
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Replace a setting of it, data.root=...",
            rich_help_panel=BY_A_MODEL,
            show_default=False,
        ),
    ] = None,
    send_images_under: Annotated[
        str | None,
        typer.Option(
            metavar="LICENCE",
            help="Send pictures to another machine, which this licence of the dataset allows.",
            rich_help_panel=BY_A_MODEL,
            show_default=False,
        ),
    ] = None,
    show: Annotated[
        int, typer.Option(min=1, help="Images shown of a latent, of the -n strongest.", rich_help_panel=BY_A_MODEL)
    ] = 5,
    longest: Annotated[
        int, typer.Option(min=16, help="Longest side of a picture in pixels.", rich_help_panel=BY_A_MODEL)
    ] = 896,
    votes: Annotated[
        int, typer.Option(min=1, help="Ask so often, and take the commonest name.", rich_help_panel=BY_A_MODEL)
    ] = 1,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="0: the likeliest answer.", rich_help_panel=BY_A_MODEL)
    ] = 0.0,
    timeout: Annotated[
        float,
        typer.Option(min=1, help="Seconds of silence after which a server is asked again.", rich_help_panel=BY_A_MODEL),
    ] = 120.0,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Ask one question, say what all would cost, and stop.", rich_help_panel=BY_A_MODEL
        ),
    ] = False,
    price_in: Annotated[
        float | None,
        typer.Option(min=0, help="Price of a million tokens of input.", rich_help_panel=BY_A_MODEL, show_default=False),
    ] = None,
    price_out: Annotated[
        float | None,
        typer.Option(min=0, help="The same of output.", rich_help_panel=BY_A_MODEL, show_default=False),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="WHO",
            help="Who, told the names alone, must tell where the latents fire; names that do not help are taken back. "
            "A model's name, with --judge-endpoint or --judge-local; or labels; or texts, with --text.",
            rich_help_panel=_JUDGE,
            show_default=False,
        ),
    ] = None,
    judge_endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="The judge's server. (--endpoint)", rich_help_panel=_JUDGE, show_default=False
        ),
    ] = None,
    judge_local: Annotated[
        bool, typer.Option("--judge-local", help="No server: a transformers pipeline.", rich_help_panel=_JUDGE)
    ] = False,
    judge_split: Annotated[
        str | None,
        typer.Option(
            help="Whose images the judge sees. (validation, else test; not --split.)",
            rich_help_panel=_JUDGE,
            show_default=False,
        ),
    ] = None,
    judge_images: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Images where a latent fires, and as many others. (10 of a model, which is asked; else 40.)",
            rich_help_panel=_JUDGE,
            show_default=False,
        ),
    ] = None,
    judge_set: Annotated[int, typer.Option(min=1, help="Images in one question.", rich_help_panel=_JUDGE)] = 5,
    same_judge: Annotated[
        bool, typer.Option("--same-judge", help="The judge may have made the names.", rich_help_panel=_JUDGE)
    ] = False,
    top: Annotated[int, typer.Option(min=0, help="Names that are printed.")] = 10,
    debug: Debug = False,
) -> None:
    """Name latents: each name with its score, chance and q, or no name and why.

    mammosae name study/work/latents/a -o named
    mammosae name study/work/latents/a --by model --model google/medgemma-4b-it --local --config study.yaml -o seen
    mammosae name study/work/latents/a --judge qwen --judge-endpoint http://127.0.0.1:8000/v1 -c study.yaml -o named
    mammosae name study/work/latents/a --by texts --text b5-model-best-epoch-7.tar --tokenizer Bio_ClinicalBERT

    By labels and metadata no network and no image is needed, and names are checked in another split.

    By texts needs Mammo-CLIP's checkpoint and a table of its final map; by direction the SAE too. By a model needs the
    images (--config, --set) and a server or --local; it keeps every answer in the folder, so that the same command goes
    on after a break. Nothing leaves this machine, but to the server that you name (docs/naming.md).

    With --judge names are scored in images of another split: detection, intruder and ranking, beside chance and the
    names of other latents. What a model wrote is a name only once it is judged.
    """
    with clear_errors(debug):
        from mammosae_plugin.errors import InputError
        from mammosae_plugin.study.naming import (
            AskedModel,
            Prices,
            chosen_latents,
            name_in_words,
            name_with_model,
            open_pictures,
            told_names,
        )
        from mammosae_plugin.study.retrieval import open_table, written_files

        own: dict[str, dict[str, Any]] = {
            "labels": {"--metadata": metadata, "--no-metadata": no_metadata, "--check": check},
            "texts": {"--score": score},
            "texts or with --judge": {"--rows": rows},
            "direction": {"--sae": sae},
            "model": {
                "--model": model, "--endpoint": endpoint, "--local": local, "--key-from": key_from,
                "--config": config, "--set": settings, "--send-images-under": send_images_under,
                "--dry-run": dry_run, "--price-in": price_in, "--price-out": price_out,
            },
            "labels or model": {"--label": label},
            "labels, texts or direction": {"--min-excess": min_excess},
            "texts or direction": {"--text": text, "--tokenizer": tokenizer, "--terms": terms},
        }  # fmt: skip
        kind = judge if judge in (None, "labels", "texts") else "model"
        of_judge = () if kind is None else ("--rows", *_OF_JUDGES[kind])
        for methods, options in own.items():
            for name, value in options.items():
                if value and by not in methods and name not in of_judge:
                    raise InputError(f"{name} is for --by {methods}; leave it out, or say so")
        asking = {"--judge-endpoint": judge_endpoint, "--judge-local": judge_local}
        if kind != "model" and (given := [name for name, value in asking.items() if value]):
            raise InputError(f"{given[0]} is for --judge NAME, a language model; name it, or leave the option out")
        if kind is None and (same_judge or judge_split):
            raise InputError("--same-judge and --judge-split are for --judge WHO; say who judges")
        if by == "model" and judge == model and not same_judge:  # before the names are paid for
            raise InputError(f"{judge} would judge its own names; name another judge, or say so with --same-judge")
        server = judge_endpoint or (None if judge_local else endpoint)
        if kind == "model" and (server is None) is not judge_local:
            raise InputError(f"--judge {judge} needs either its server's --judge-endpoint URL or --judge-local")
        if no_metadata and metadata:
            raise InputError("--no-metadata leaves out what --metadata names; give one of them")
        if by in ("texts", "direction") and text is None:
            raise InputError(f"--by {by} needs a text encoder: name Mammo-CLIP's pretraining checkpoint with --text")
        if by == "direction" and sae is None:
            raise InputError("--by direction needs the decoder: name the SAE with --sae")
        if by == "model" and (model is None or (endpoint is None) is not local):
            raise InputError("--by model needs --model NAME, and either the server's --endpoint URL or --local")
        asked: dict[str, Any] = {"alpha": alpha} | ({} if min_excess is None else {"min_excess": min_excess})
        images: dict[str, Any] = {
            "split": split,
            "statistic": statistic,
            "group": group,
            "min_groups": min_groups,
        }
        opened = open_table(table)
        prices = Prices(price_in, price_out)

        @cache
        def pictures() -> Any:
            return open_pictures(opened, config, settings or (), longest=longest)

        def say(line: str) -> None:
            typer.echo(line, err=not dry_run)

        numbers = None if latents is None else numbers_of_latents(latents)
        chosen = chosen_latents(opened, numbers, top_latents, split, statistic)
        if by == "labels":
            from mammosae_plugin.interpretation import name_by_labels
            from mammosae_plugin.interpretation.judging_plan import judging_split

            of_images = [] if no_metadata else metadata or None
            if judge is not None and check is None:  # what judges names has not chosen them
                taken = {split, judging_split(opened, split, judge_split)}
                check = next((name for name in ("test", "validation") if name in {*opened.splits} - taken), "none")
            names = name_by_labels(
                opened, label or None, of_images, latents=chosen, check=check, n=n, **images, **asked
            )
        elif by == "model":
            found = name_with_model(
                opened,
                AskedModel(str(model), endpoint, key_from, send_images_under, temperature, timeout),
                pictures(),
                output=output,
                say=say,
                latents=chosen,
                labels=label or (),
                n=show,
                of=n,
                votes=votes,
                seed=seed,
                prices=prices,
                dry_run=dry_run,
                **images,
            )
            if found is None:
                return
            names = found
        else:
            names = name_in_words(
                opened,
                by,
                text=str(text),
                tokenizer=tokenizer,
                terms=terms,
                sae=sae,
                rows=rows,
                score=score,
                latents=chosen,
                seed=seed,
                images={**images, "n": n},
                asked=asked,
            )
        lines = []
        if judge is not None:
            from mammosae_plugin.interpretation import told_scores
            from mammosae_plugin.study.name_judging import AskedJudge, judge_found

            from_labels = by == "labels" or kind == "labels" and by != "model"
            judged = judge_found(
                names,
                opened,
                AskedJudge(
                    judge,
                    AskedModel(judge, server, key_from, send_images_under, temperature, timeout)
                    if kind == "model"
                    else None,
                    labels=label or None if from_labels else None,
                    metadata=[] if no_metadata else metadata or None,
                    text=text,
                    tokenizer=tokenizer,
                    terms=terms,
                    rows=rows,
                    split=judge_split,
                    same=same_judge,
                ),
                pictures,
                output=output,
                say=say,
                prices=prices,
                dry_run=dry_run,
                seed=seed,
                alpha=alpha,
                statistic=statistic,
                group=group,
                n=judge_images or (10 if kind == "model" else 40),
                set_size=judge_set,
            )
            if judged is None:
                return
            names = judged
            lines = told_scores(names) if "judging" in names.about else []
        written = []
        if output is not None:
            with written_files(output, "names") as staged:
                names.write(staged)
            written = [f"written to {output}"]
        typer.echo("\n".join([*lines, *told_names(names, top), *written]))
