"""The command `mammosae search`: images for a text, by the names of latents, and how well that finds them."""

__all__ = ["search_command"]

from pathlib import Path
from typing import Annotated, Literal

import typer

from mammosae_plugin.cli.common import Debug, clear_errors
from mammosae_plugin.cli.options import (
    BY_A_MODEL,
    Endpoint,
    FigureConfig,
    FigureSettings,
    KeyFrom,
    LocalModel,
    ModelName,
    OneSplit,
    Statistic,
)


def search_command(
    query: Annotated[
        str | None,
        typer.Argument(
            metavar="[QUERY]",
            help='What is looked for, in quotation marks: "a mass in a dense breast". Left out with --evaluate.',
            show_default=False,
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Argument(
            metavar="TABLE",
            help="A latents table of any kind, as `mammosae encode` writes it; or a study's output folder, whose "
            "tables are named if there are several.",
            show_default=False,
        ),
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(
            help="In place of TABLE a study's YAML file or output folder; the file's images are drawn in the figure.",
            show_default=False,
        ),
    ] = None,
    names: Annotated[
        list[Path] | None,
        typer.Option(
            "--names",
            metavar="FOLDER",
            help="What `mammosae name TABLE -o FOLDER` wrote; may be repeated, for names by several methods.",
            show_default="the names that the table's study keeps",
        ),
    ] = None,
    by: Annotated[
        Literal["text", "words", "model", "clip"],
        typer.Option(
            help="How names are matched: text (a small text embedding that comes with wordllama), words (names that "
            "share a word: BM25), model (a language model is asked), clip (the text encoder of --text)."
        ),
    ] = "text",
    n: Annotated[int, typer.Option("-n", min=1, help="How many images to give, or to judge by.")] = 10,
    n_names: Annotated[int, typer.Option("--n-names", min=1, help="Different names of a query, at the most.")] = 4,
    per_name: Annotated[
        int, typer.Option("--per-name", min=1, help="Latents of each name, at the most: those with the surest name.")
    ] = 3,
    meanings: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A YAML file that says under `meanings` what names mean, such as density=D: extremely dense breast; "
            "those of a file of queries are used by themselves with --evaluate.",
            show_default=False,
        ),
    ] = None,
    alpha: Annotated[
        float,
        typer.Option(
            min=0.001, max=1, help="text, clip: a name matches if random words are as near with no more than this p."
        ),
    ] = 0.02,
    split: OneSplit = None,
    statistic: Statistic = "max",
    likeness: Annotated[
        Literal["strength", "cosine"],
        typer.Option(help="How images are ranked by the matched latents (docs/search.md); cosine is SAIL's."),
    ] = "strength",
    group: Annotated[
        str, typer.Option(help="The column that says which images belong together; of each only the best is given.")
    ] = "patient_id",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Also write CSV and JSON, and the figure, there.", show_default=False),
    ] = None,
    figure: Annotated[
        bool, typer.Option("--figure", help="Draw what each latent adds to each image's score: found.png in OUTPUT.")
    ] = False,
    config: FigureConfig = None,
    settings: FigureSettings = None,
    evaluate: Annotated[
        Path | None,
        typer.Option(
            "--evaluate",
            metavar="QUERIES",
            help="Judge instead: a YAML file of queries with the labels that right images have.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Mammo-CLIP's pretraining checkpoint, a file or a place on the Hub: its text encoder matches names "
            "(--by clip), or ranks images by itself beside the latents (--evaluate).",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Of --text, a folder with its tokenizer, or a repository. (Bio_ClinicalBERT on the Hub.)",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            metavar="STORE",
            help="--evaluate --text: the vectors that a table of embeddings was made of.",
            show_default=False,
        ),
    ] = None,
    model: ModelName = None,
    endpoint: Endpoint = None,
    local: LocalModel = False,
    key_from: KeyFrom = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep its answers here, and ask nothing twice.",
            rich_help_panel=BY_A_MODEL,
            show_default=False,
        ),
    ] = None,
    share: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Names after this column of metadata, such as view, may go to a model on another machine too; may be "
            "repeated.",
            rich_help_panel=BY_A_MODEL,
            show_default=False,
        ),
    ] = None,
    n_draws: Annotated[int, typer.Option("--n-draws", min=1, help="Judge: draws of everything random.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn, and of the order of equal images.")] = 0,
    debug: Debug = False,
) -> None:
    """Find images by what latents are called, for a text; needs names first (docs/search.md).

    mammosae name codes -o named
    mammosae search "a mass in a dense breast" codes --names named
    mammosae search "a mass in a dense breast" codes --names named -o found --figure --config study.yaml
    mammosae search "a mass in a dense breast" --study study.yaml
    mammosae search codes --names named --evaluate queries.yaml -o judged

    It shows the latents that match, each with its name's score and chance and how near the query it is, then the images
    with what each latent adds. A text that no name says finds nothing. Nothing leaves this machine, but query and names
    with --by model; what is written names images, and with --config shows them.

    With --evaluate queries are judged by labels: precision of the first images and mAP, for each label and for whole
    queries, beside random latents, shuffled names, random images, and with --text the network's own text encoder.
    """
    with clear_errors(debug):
        from mammosae_plugin.errors import InputError
        from mammosae_plugin.study.images import TEST
        from mammosae_plugin.study.retrieval import open_table
        from mammosae_plugin.study.searching import MatchedBy, Wanted, judge_search, search_table, study_table

        of_model = {"--model": model, "--endpoint": endpoint, "--local": local or None, "--key-from": key_from}
        for name, value in {**of_model, "--journal": journal, "--share": share}.items():
            if value is not None and by != "model":
                raise InputError(f"{name} is for --by model; leave it out, or say so")
        if by == "model" and (model is None or (endpoint is None) != local):
            raise InputError("--by model needs --model NAME, and either the server's --endpoint URL or --local")
        if text is not None and by != "clip" and evaluate is None:
            raise InputError("--text is for --by clip, or for --evaluate; leave it out, or say so")
        if tokenizer is not None and text is None:
            raise InputError("--tokenizer is for --text; name the checkpoint too")
        if evaluate is not None and study is None:
            if table is not None:
                raise InputError(f"--evaluate asks its own queries; leave out {query!r}")
            query, table = None, None if query is None else Path(query)
        if study is not None:
            if table is not None:
                raise InputError("--study names the table; leave out TABLE, or --study")
            table = study_table(study)
            config = study if figure and config is None and study.is_file() else config
        if evaluate is not None:
            if query is not None:
                raise InputError(f"--evaluate asks its own queries; leave out {query!r}")
            if table is None:
                raise InputError("name the latents table whose search is judged")
            if figure or config or settings:
                raise InputError("--figure, --config and --set are for one query; leave them out")
            if split is None and TEST in open_table(table).splits:
                split = TEST
        elif query is None:
            raise InputError('say what is looked for, as in `mammosae search "a mass in a dense breast" TABLE`')
        elif table is None:
            raise InputError(f"name the latents table that is searched for {query!r}, behind it, or a --study")
        elif rows is not None or n_draws != 200:
            raise InputError("--rows and --n-draws are for --evaluate; leave them out, or judge the search with it")
        wanted = Wanted(
            names=names or (),
            meanings=meanings,
            by=MatchedBy(by, alpha, text, tokenizer, model, endpoint, key_from, journal, share or (), seed),
            n=n,
            n_names=n_names,
            per_name=per_name,
            split=split or "all",
            statistic=statistic,
            likeness=likeness,
            group=group,
            rows=rows,
            seed=seed,
        )
        if evaluate is not None:
            typer.echo(judge_search(table, evaluate, wanted, n_draws=n_draws, output=output))
            return
        typer.echo(
            search_table(
                table, str(query), wanted, output=output, figure=figure, config=config, settings=settings or ()
            )
        )
