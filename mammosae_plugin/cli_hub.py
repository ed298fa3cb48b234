"""The commands of `mammosae` that speak with the Hugging Face Hub: `publish ...` and `pull`.

What publishes is dry by default: it prints what would go out, and only `--confirm` sends it.
"""

from typing import Annotated

import typer

publish = typer.Typer(
    no_args_is_help=True,
    help="Publish on the Hugging Face Hub (docs/hub.md). Nothing is sent without --confirm.",
)

Repo = Annotated[str, typer.Argument(metavar="REPO", help="The Hub's repository, owner/name.", show_default=False)]
Tag = Annotated[str | None, typer.Option(help="Name the published state so, such as v1.", show_default=False)]
Public = Annotated[bool, typer.Option("--public", help="Make a new repository public; by default it is private.")]
Replace = Annotated[bool, typer.Option("--replace", help="Overwrite files that the repository has otherwise.")]
Confirm = Annotated[
    bool, typer.Option("--confirm/--dry-run", help="Send it; by default only print exactly what would go out.")
]


def add_hub_commands(app: typer.Typer) -> None:
    """Add the commands of this module to `mammosae`."""
    app.add_typer(publish, name="publish")
