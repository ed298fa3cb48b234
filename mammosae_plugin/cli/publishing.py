"""What the commands of `mammosae publish` have alike: their options, and that nothing is sent unless confirmed."""

__all__ = [
    "Allow", "Author", "Confirm", "DataOf", "Description", "FindingsRepo", "ForcePoor", "IdsOf", "Link", "MinGroup",
    "ModelRepo", "Prepare", "Public", "publishes", "Replace", "Repo", "SAERepo", "SpaceRepo", "Tag", "TrainedOn",
    "Upload", "WeightsLicence",
]  # fmt: skip

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mammosae_plugin.cli.common import Debug, clear_errors

if TYPE_CHECKING:
    from mammosae_plugin.findings.about import About
    from mammosae_plugin.hub.publishing import Publication

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
DataOf = Annotated[
    Path | None,
    typer.Option(
        metavar="YAML",
        help="With --examples: the study's YAML file, which says where the images lie that pictures are drawn of.",
        show_default=False,
    ),
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

_REPOSITORIES = {"sae": SAERepo, "model": ModelRepo, "findings": FindingsRepo, "space": SpaceRepo}
_SETTINGS = {"tag": Tag, "public": Public, "replace": Replace, "force_poor": ForcePoor, "allow": Allow}
_DEFAULTS = dict.fromkeys(("public", "replace", "force_poor", "confirm", "debug"), False)


@dataclass(frozen=True)
class Upload:
    """What the options say that all commands of `mammosae publish` have.

    Attributes:
        about: What the card says beside what was measured.
        settings: The arguments of `prepare_*` that they are: tag, private, replace, allow and, where an SAE's quality
            counts, force_poor.
        confirm: Whether it is to be sent.
    """

    about: "About"
    settings: dict[str, Any]
    confirm: bool


Prepare = Callable[..., "Publication | None"]


def publishes(part: str, *, poor: bool = True) -> Callable[[Prepare], Callable[..., None]]:
    """Make a command of what prepares an upload: with the common options, which it gets as `upload`.

    The command prints exactly what would go out and, with --confirm, sends it.

    Args:
        part: What is published; the others of sae, model, findings and space may be named by their repositories.
        poor: Whether SAEs that do poorly are refused, unless --force-poor is given.
    """
    repositories = {f"{one}_repo": option for one, option in _REPOSITORIES.items() if one != part}
    settings = {name: option for name, option in _SETTINGS.items() if poor or name != "force_poor"}
    options: dict[str, Any] = {"author": Author, "description": Description, "link": Link, **repositories}
    options |= {**settings, "confirm": Confirm, "debug": Debug}

    def make(prepare: Prepare) -> Callable[..., None]:
        def command(**given: Any) -> None:
            common = {name: given.pop(name) for name in options}
            with clear_errors(common["debug"]):
                upload = Upload(
                    about=_about(common, tuple(repositories)),
                    settings={
                        **{name: common[name] for name in settings if name not in ("public", "allow")},
                        "private": not common["public"],
                        "allow": common["allow"] or (),
                    },
                    confirm=common["confirm"],
                )
                publication = prepare(**given, upload=upload)
                if publication is not None:
                    _show_and_send(publication, upload.confirm)

        own = [one for one in inspect.signature(prepare).parameters.values() if one.name != "upload"]
        shared = [
            inspect.Parameter(
                name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=_DEFAULTS.get(name), annotation=option
            )
            for name, option in options.items()
        ]
        functools.update_wrapper(command, prepare)
        told = cast("Any", command)  # typer reads both
        told.__signature__ = inspect.Signature([*own, *shared])
        told.__annotations__ = {one.name: one.annotation for one in (*own, *shared)}
        return command

    return make


def _about(common: dict[str, Any], repositories: tuple[str, ...]) -> "About":
    from mammosae_plugin.findings.about import About, parse_links

    places = {name.removesuffix("_repo"): common[name] for name in repositories}
    return About(tuple(common["author"] or ()), common["description"], parse_links(common["link"] or ()), **places)


def _show_and_send(publication: "Publication", confirm: bool) -> None:
    """Print exactly what would go out; with `confirm`, send it and print where it is."""
    typer.echo(publication.describe())
    typer.echo(publication.send().as_text() if confirm else "Nothing was sent (dry run); --confirm sends it.")
