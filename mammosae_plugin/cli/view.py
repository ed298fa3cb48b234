"""The command `mammosae view`: a study's pages with its images, on this machine alone."""

__all__ = ["add_view_command", "view_command"]

from pathlib import Path
from typing import Annotated

import typer

from mammosae_plugin.cli.common import Debug, StudySettings, clear_errors


def add_view_command(app: typer.Typer) -> None:
    """Add `view` to `mammosae`."""
    app.command("view")(view_command)


def view_command(
    study: Annotated[
        Path | None,
        typer.Argument(
            metavar="[STUDY]",
            help="A finished study's YAML file; or its output folder, which does not say where images lie.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[Path | None, typer.Option("--study", "-c", help="The same, by name.", show_default=False)] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Where.", show_default="the first free one from 8765 on")
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
    layer: Annotated[
        str | None, typer.Option(help="Begin with the latents of this layer.", show_default="the final map")
    ] = None,
    settings: StudySettings = None,
    debug: Debug = False,
) -> None:
    """Look at a finished study's latents with its images, and at images of your own: in a browser, offline.

    mammosae view study.yaml

    The pages are those of a Space; here they also show images, what each latent adds to an image's logit, and what
    becomes of the logit without it, and keep notes. Only this machine can open them; nothing is sent anywhere. Ctrl-C
    ends it (docs/view.md).
    """
    with clear_errors(debug):
        import webbrowser
        from urllib.parse import urlencode

        from mammosae_plugin.errors import InputError
        from mammosae_plugin.study.viewing import open_viewer

        if study is not None and file is not None:
            raise InputError("the study is named twice; name it once")
        if study is None and file is None and not settings:
            raise InputError("name the study: mammosae view study.yaml")
        server = open_viewer(study or file, settings=settings or (), port=port, layer=layer, told=typer.echo)
        try:
            begin = f"{server.address}#/" + (f"?{urlencode({'layer': layer})}" if layer is not None else "")
            typer.echo(f"{begin}\nOnly this machine can open it; Ctrl-C ends it.")
            if not no_browser:
                webbrowser.open(begin)
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("\nended")
        finally:
            server.server_close()
