"""The command `mammosae retrieve`: images that are like one, and how well that finds labels."""

__all__ = ["add_retrieve_command", "retrieve_command"]

from pathlib import Path
from typing import Annotated, Literal

import typer

from mammosae_plugin.cli.common import Debug, clear_errors
from mammosae_plugin.cli.options import FigureConfig, FigureSettings, OneSplit, Statistic, Table
from mammosae_plugin.cli.search import search_command


def add_retrieve_command(app: typer.Typer) -> None:
    """Add `retrieve`, which is asked by an image, and `search`, by a text, to `mammosae`."""
    app.command("retrieve")(retrieve_command)
    app.command("search")(search_command)


def retrieve_command(
    table: Table,
    image_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[IMAGE_ID]",
            help="The image: its id; how the id begins, or parts of it (s0012/x/31 of ct/s0012/x/0031), if no other "
            "has these; or row:17.",
            show_default=False,
        ),
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", min=1, help="How many images to give, or to judge by. [5, or 10 to judge]")
    ] = None,
    method: Annotated[
        Literal["fingerprint", "cosine", "bm25", "dense"] | None,
        typer.Option(
            help="What makes images alike: fingerprint (the image's K strongest latents), cosine (all latents), bm25 "
            "(latents as words), dense (the vectors that the SAE read, without it).",
            show_default="fingerprint",
        ),
    ] = None,
    k: Annotated[
        list[int] | None,
        typer.Option("-k", min=1, help="Latents in a fingerprint; may be repeated to judge. [5, or 1 2 5 10 20 50]"),
    ] = None,
    split: OneSplit = None,
    statistic: Statistic = "max",
    rows: Annotated[
        Path | None,
        typer.Option(
            metavar="STORE", help="The dense vectors: what a table of embeddings was made of.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Also write CSV and JSON, and figures, to this folder.", show_default=False
        ),
    ] = None,
    figure: Annotated[
        bool, typer.Option("--figure", help="Draw the image's strongest latents beside the hits': hits.png in OUTPUT.")
    ] = False,
    config: FigureConfig = None,
    settings: FigureSettings = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Judge instead: how often images of the same label are found.")
    ] = False,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="Judge by this label only: a concept, or a column such as view; may be repeated.", show_default=False
        ),
    ] = None,
    group: Annotated[
        str, typer.Option(help="Judge: the column that says which images belong together.")
    ] = "patient_id",
    untrained: Annotated[
        Path | None,
        typer.Option(metavar="TABLE", help="Judge: the table of an untrained SAE beside it.", show_default=False),
    ] = None,
    queries: Annotated[int, typer.Option(min=1, help="Judge: queries of each label, at the most.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Judge: of queries, random images and intervals.")] = 0,
    debug: Debug = False,
) -> None:
    """Find the images that are like one, and see which latents they share; needs no network (docs/retrieval.md).

    mammosae retrieve codes ct/s0012/x/0031 -n 10
    mammosae retrieve study/work/latents/a 8269f597 --method cosine -o like --figure --config study.yaml
    mammosae retrieve codes --evaluate -o judged

    Images of the image's own patient or volume are left out, and of another one only the best is given. Nothing leaves
    this machine; what is written names images, and with --config shows them.

    With --evaluate every way to search is judged by labels: precision, recall, mAP and nDCG for several K, beside
    random images, the dense vectors and an untrained SAE. It prints the table, and with -o writes it and the figure
    k_sweep.png.
    """
    with clear_errors(debug):
        from mammosae_plugin.errors import InputError
        from mammosae_plugin.study.retrieval import Asked, Judging, find_images, judge_retrieval

        if evaluate and image_id is not None:
            raise InputError(f"--evaluate asks for many images by itself; leave out {image_id}")
        if not evaluate and image_id is None:
            raise InputError("name the image that is asked for, or judge the search with --evaluate")
        if evaluate:
            if method is not None:
                raise InputError("--evaluate judges every way to search; leave out --method")
            if figure or config or settings:
                raise InputError(
                    "--figure, --config and --set are for one image; --evaluate -o OUTPUT draws the K sweep"
                )
            chosen = Judging(
                labels=label or (),
                group=group,
                n=n or 10,
                split=split,
                statistic=statistic,
                n_queries=queries,
                seed=seed,
                rows=rows,
                untrained=untrained,
                **({"ks": k} if k else {}),
            )
            typer.echo(judge_retrieval(table, chosen, output=output))
            return
        if label or untrained:
            raise InputError("--label and --untrained are for --evaluate; leave them out, or judge the search with it")
        if k and len(k) > 1:
            raise InputError("one image is asked for with one -k; several are for --evaluate")
        asked = Asked(
            method=method or "fingerprint",
            k=k[0] if k else 5,
            n=n or 5,
            split=split or "all",
            statistic=statistic,
            rows=rows,
        )
        typer.echo(
            find_images(
                table, str(image_id), asked, output=output, figure=figure, config=config, settings=settings or ()
            )
        )
