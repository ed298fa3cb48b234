"""Options that several commands over a latents table have alike, each declared once."""

__all__ = [
    "BY_A_MODEL", "Endpoint", "FigureConfig", "FigureSettings", "Group", "KeyFrom", "LocalModel", "ModelName",
    "OneSplit", "Statistic", "Table",
]  # fmt: skip

from pathlib import Path
from typing import Annotated, Literal

import typer

BY_A_MODEL = "By a model"
"""The panel of the help that tells how a language model is reached."""

Table = Annotated[
    Path,
    typer.Argument(
        metavar="TABLE",
        help="A latents table of any kind, as `mammosae encode` writes it; or a study's output folder, whose tables "
        "are listed if there are several.",
        show_default=False,
    ),
]
Statistic = Annotated[Literal["max", "mean"], typer.Option(help="What of a latent counts, over positions.")]
Group = Annotated[str, typer.Option(help="The column that says which images belong together.")]
OneSplit = Annotated[
    str | None,
    typer.Option(help="Search the images of this split only, such as test.", show_default="all; to judge, test"),
]
FigureConfig = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="A study's YAML file, to draw its images in the figure.", show_default=False),
]
FigureSettings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting of it, data.root=...", show_default=False),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The model, as its server calls it; with --local as the Hub does.",
        rich_help_panel=BY_A_MODEL,
        show_default=False,
    ),
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The server, which speaks OpenAI's chat completions: http://127.0.0.1:8000/v1.",
        rich_help_panel=BY_A_MODEL,
        show_default=False,
    ),
]
LocalModel = Annotated[
    bool, typer.Option("--local", help="No server: a transformers pipeline.", rich_help_panel=BY_A_MODEL)
]
KeyFrom = Annotated[
    str | None,
    typer.Option(
        metavar="VARIABLE",
        help="The environment variable with the server's key. (Of OpenAI OPENAI_API_KEY; on this machine none.)",
        rich_help_panel=BY_A_MODEL,
        show_default=False,
    ),
]
