"""The command `mammosae publish space`: findings as pages to browse, on the Hub or in a local folder."""

from pathlib import Path
from typing import Annotated

import typer

from mammosae_plugin.cli.common import (
    Allow,
    Author,
    Confirm,
    Debug,
    Description,
    FindingsRepo,
    ForcePoor,
    Link,
    MinGroup,
    ModelRepo,
    Public,
    Replace,
    SAERepo,
    Tag,
    clear_errors,
)


def add_space_command(publish: typer.Typer) -> None:
    """Add `space` to the commands of `mammosae publish`."""
    publish.command("space")(publish_space_command)


def publish_space_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FINDINGS",
            help="A dataset of findings on the Hub (owner/name[@revision]), a folder of findings, or a study's folder.",
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
        str | None, typer.Option(help="What the page is called; by default as the study.", show_default=False)
    ] = None,
    min_group: MinGroup = 5,
    author: Author = None,
    description: Description = None,
    link: Link = None,
    sae_repo: SAERepo = None,
    model_repo: ModelRepo = None,
    findings_repo: FindingsRepo = None,
    tag: Tag = None,
    public: Public = False,
    replace: Replace = False,
    force_poor: ForcePoor = False,
    allow: Allow = None,
    confirm: Confirm = False,
    debug: Debug = False,
) -> None:
    """Publish a static Space to browse findings: a table of latents, a page per latent, two studies side by side.

    Without REPO the pages are built in --folder and nothing leaves this machine; they open from there without a server.
    Without --confirm what would go out is printed and nothing is sent.
    """
    with clear_errors(debug):
        from mammosae_plugin.cli.common import about_of, show_and_send
        from mammosae_plugin.errors import InputError
        from mammosae_plugin.hub.space import build_space, prepare_space, read_findings

        about = about_of(author, description, link, sae=sae_repo, model=model_repo, findings=findings_repo)
        if repo is None:
            if folder is None:
                raise InputError("name a Space on the Hub (owner/name) or, to look at the pages here, --folder DIR")
            if confirm:
                raise InputError("--confirm sends to the Hub, but no Space is named; add owner/name or leave it out")
            findings, other = (
                None if one is None else read_findings(one, min_group=min_group) for one in (source, compare)
            )
            assert findings is not None
            typer.echo(build_space(findings, folder, compare=other, title=title, about=about) / "index.html")
            return

        publication = prepare_space(
            source,
            repo,
            compare=compare,
            folder=folder,
            title=title,
            min_group=min_group,
            private=not public,
            tag=tag,
            replace=replace,
            force_poor=force_poor,
            allow=allow or (),
            about=about,
        )
        show_and_send(publication, confirm)
