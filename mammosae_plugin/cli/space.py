"""The command `mammosae publish space`: findings as pages to browse, on the Hub or in a local folder."""

__all__ = ["add_space_command", "publish_space_command"]

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mammosae_plugin.cli.publishing import DataOf, MinGroup, Upload, publishes

if TYPE_CHECKING:
    from mammosae_plugin.hub.publishing import Publication


def add_space_command(publish: typer.Typer) -> None:
    """Add `space` to the commands of `mammosae publish`."""
    publish.command("space")(publish_space_command)


@publishes("space")
def publish_space_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FINDINGS",
            help="A dataset of findings on the Hub (owner/name, or owner/name@revision), a folder of findings, or a "
            "study's folder.",
            show_default=False,
        ),
    ],
    repo: Annotated[
        str | None,
        typer.Argument(
            metavar="[REPO]",
            help="The Space on the Hub, owner/name; leave it out to build the pages in --folder only.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="Findings of another study, to show beside these.", show_default=False)
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where to build; open its index.html to look at the pages.", show_default=False),
    ] = None,
    title: Annotated[
        str | None,
        typer.Option(
            help="What the page is called; by default as the study, or with --replace as before.", show_default=False
        ),
    ] = None,
    min_group: MinGroup = 5,
    examples: Annotated[
        bool,
        typer.Option(
            "--examples",
            help="Show pictures of single images, of phantoms or data whose owner allows it: those of the findings, or "
            "of a study's folder those drawn from --data.",
        ),
    ] = False,
    data: DataOf = None,
    *,
    upload: Upload,
) -> "Publication | None":
    """Publish a static Space to browse findings: a table of latents, a page per latent, two studies side by side.

    Without REPO the pages are built in --folder and nothing leaves this machine; they open from there without a server.
    Without --confirm what would go out is printed and nothing is sent.
    """
    from mammosae_plugin.errors import InputError
    from mammosae_plugin.hub.space import build_space, prepare_space, read_findings, read_for_pages

    if repo is None:
        if folder is None:
            raise InputError("name a Space on the Hub (owner/name) or, to look at the pages here, --folder DIR")
        if upload.confirm:
            raise InputError("--confirm sends to the Hub, but no Space is named; add owner/name or leave it out")
        other = None if compare is None else read_findings(compare, min_group=min_group)
        with read_for_pages(source, min_group=min_group, examples=examples, images=data) as (findings, _):
            pages = build_space(findings, folder, compare=other, title=title, about=upload.about, examples=examples)
        typer.echo(pages / "index.html")
        return None
    return prepare_space(
        source,
        repo,
        compare=compare,
        folder=folder,
        title=title,
        min_group=min_group,
        examples=examples,
        images=data,
        about=upload.about,
        **upload.settings,
    )
