"""What commands of `mammosae` have alike: the flag --debug, the options of publishing, and how errors are shown."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from mammosae_plugin.findings.about import About
    from mammosae_plugin.hub.publishing import Publication

UsageError: Any = typer.BadParameter.__base__
"""Every wrong use of a command; typer has no public name for it."""

Debug = Annotated[bool, typer.Option("--debug", help="On an error, show the whole traceback.")]
Repo = Annotated[str, typer.Argument(metavar="REPO", help="The Hub's repository, owner/name.", show_default=False)]
Tag = Annotated[str | None, typer.Option(help="Name the published state so, such as v1.", show_default=False)]
Public = Annotated[bool, typer.Option("--public", help="Make a new repository public; by default it is private.")]
Replace = Annotated[
    bool,
    typer.Option("--replace", help="Overwrite what the repository has otherwise, but what people wrote into its card."),
]
ForcePoor = Annotated[
    bool,
    typer.Option(
        "--force-poor",
        help="Publish although an SAE explains less than nothing of the variance, or fires far from as many latents as "
        "it was trained for; without it that is refused.",
    ),
]
Author = Annotated[
    list[str] | None,
    typer.Option("--author", help="An author, as the card is to name them; may be repeated.", show_default=False),
]
Description = Annotated[str | None, typer.Option(help="A few sentences for the card.", show_default=False)]
Link = Annotated[
    list[str] | None,
    typer.Option("--link", metavar="NAME=URL", help="A link for the card, such as paper=https://...; may be repeated."),
]
SAERepo = Annotated[
    str | None,
    typer.Option("--sae-repo", metavar="REPO", help="Where the study's SAEs are published, if not from its folder."),
]
ModelRepo = Annotated[
    str | None, typer.Option("--model-repo", metavar="REPO", help="The same of its classifiers.", show_default=False)
]
FindingsRepo = Annotated[
    str | None, typer.Option("--findings-repo", metavar="REPO", help="The same of its findings.", show_default=False)
]
SpaceRepo = Annotated[
    str | None, typer.Option("--space-repo", metavar="REPO", help="The same of its Space.", show_default=False)
]
WeightsLicence = Annotated[
    str | None,
    typer.Option("--licence", help="Of the weights, such as mit or cc-by-nc-sa-4.0; required.", show_default=False),
]
TrainedOn = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset", help="A dataset that it was trained on, such as vindr; may be repeated.", show_default=False
    ),
]
IdsOf = Annotated[
    Path | None,
    typer.Option("--study", help="The study whose ids of patients and images must not get out.", show_default=False),
]
MinGroup = Annotated[int, typer.Option(min=1, help="Leave out statistics of fewer patients than this.")]
Confirm = Annotated[
    bool, typer.Option("--confirm/--dry-run", help="Send it; by default only print exactly what would go out.")
]

Allow = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="Let this text out, though it looks private (an id, a date, a number to call, a path, a token): you have "
        "seen it where the refusal says. May be repeated.",
        show_default=False,
    ),
]


class Commands(TyperGroup):
    """Commands of which a wrong use, too, ends with one line of our own words and exit code 2."""

    def main(self, args: Sequence[str] | None = None, *given: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command, and end the process unless `standalone_mode` is false."""
        extra["standalone_mode"] = False
        if not standalone_mode:
            return super().main(args, *given, **extra)
        try:
            code = super().main(args, *given, **extra)
        except UsageError as error:
            _refuse(error)
            sys.exit(2)
        except typer.Abort:
            sys.exit(1)
        sys.exit(code if isinstance(code, int) else 0)


def _refuse(error: UsageError) -> None:
    if type(error).__name__ == "NoArgsIsHelpError":  # nothing was said: the help is the answer
        error.show()
        return
    said = error.format_message()
    cause = error.__cause__
    if cause is not None and hasattr(cause, "errors"):  # what pydantic says of a value, which typer passes on
        from mammosae_plugin.validation import explain

        said = said.replace(error.message, explain(cause, None))
    command = error.ctx.command_path if error.ctx is not None else "mammosae"
    said = " ".join(said.split()).rstrip(".")
    typer.secho(f"mammosae: {said[:1].lower()}{said[1:]}; see `{command} --help`", err=True, fg="red")


@contextmanager
def clear_errors(debug: bool) -> Iterator[None]:
    """End with one line, exit code 2 for bad input and 1 for a failure of our own; with `debug`, with the traceback."""
    from mammosae_plugin.errors import InputError

    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        yield
    except (InputError, OSError) as error:
        if debug:
            raise
        message = " ".join(str(error).split())
        if isinstance(error, OSError) and error.filename:
            message = f"{error.filename}: {error.strerror}"
        raise typer.Exit(_tell(message, 2)) from error
    except Exception as error:
        if debug:
            raise
        message = " ".join(str(error).split())
        raise typer.Exit(_tell(f"unexpected {type(error).__name__}: {message} (--debug shows where)", 1)) from error


def _tell(message: str, exit_code: int) -> int:
    """Print an error; of several processes one does. Returns the exit code that they end with."""
    distributed = sys.modules.get("mammosae_plugin.distributed")  # not loaded, not several: it would load torch
    tells, exit_code = (True, exit_code) if distributed is None else distributed.ending(exit_code)
    if tells:
        typer.secho(f"mammosae: {message}", err=True, fg="red")
    return exit_code


def show_and_send(publication: "Publication", confirm: bool) -> None:
    """Print exactly what would go out; with `confirm`, send it and print where it is."""
    typer.echo(publication.describe())
    typer.echo(publication.send().as_text() if confirm else "Nothing was sent (dry run); --confirm sends it.")


def about_of(
    author: list[str] | None, description: str | None, link: list[str] | None, **repositories: str | None
) -> "About":
    """What the options of publishing say for the card; repositories by part: sae, model, findings, space."""
    from mammosae_plugin.findings.about import About, parse_links

    return About(tuple(author or ()), description, parse_links(link or ()), **repositories)
