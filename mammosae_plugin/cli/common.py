"""What commands of `mammosae` have alike: the flag --debug, the options of publishing, and how errors are shown."""

__all__ = [
    "clear_errors", "Commands", "Debug", "numbers_of_latents", "OfConcept", "OfModel", "StudySettings", "UsageError",
]  # fmt: skip

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    pass

UsageError: Any = typer.BadParameter.__base__
"""Every wrong use of a command; typer has no public name for it."""

Debug = Annotated[bool, typer.Option("--debug", help="On an error, show the whole traceback.")]
OfModel = Annotated[str | None, typer.Option(help="A model of the study, where it has several.", show_default=False)]
OfConcept = Annotated[
    str | None, typer.Option(help="The classifier's concept, where there are several.", show_default=False)
]
StudySettings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting of the study.", show_default=False),
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


def numbers_of_latents(given: Sequence[str]) -> list[int]:
    """What --latents names: numbers with commas between them.

    Raises:
        InputError: something that is no number.
    """
    from mammosae_plugin.errors import InputError

    numbers = [one.strip() for some in given for one in some.split(",")]
    if wrong := [one for one in numbers if not (one.isascii() and one.isdecimal())]:
        raise InputError(f"--latents has {wrong[0]!r}: give numbers of latents, such as 3,17")
    return [int(one) for one in numbers]


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
    if not debug:  # it tells of every try, twice; the line at the end says what failed
        logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)
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
