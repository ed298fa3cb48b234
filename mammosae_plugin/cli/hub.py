"""The commands of `mammosae` about the Hugging Face Hub: `publish ...`, `pull`, and `releases`, which asks nobody.

What publishes is dry by default: it prints what would go out, and only `--confirm` sends it.
"""

__all__ = [
    "add_hub_commands", "publish", "publish_model_command", "publish_sae_command", "pull_command", "releases_command",
]  # fmt: skip

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mammosae_plugin.cli.common import Debug, clear_errors
from mammosae_plugin.cli.publishing import IdsOf, MinGroup, Repo, TrainedOn, Upload, WeightsLicence, publishes

if TYPE_CHECKING:
    from mammosae_plugin.hub.publishing import Publication

publish = typer.Typer(
    no_args_is_help=True,
    help="Publish on the Hugging Face Hub (docs/hub.md). Nothing is sent without --confirm.",
)


@publish.command("sae")
@publishes("sae")
def publish_sae_command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A folder that `mammosae train` or SAELens wrote, a Mammo-SAE file, or a study's output folder, whose "
            "SAEs go out under the names of their layers.",
            show_default=False,
        ),
    ],
    repo: Repo,
    sae_id: Annotated[
        str | None,
        typer.Option("--id", help="What to call the SAE in the repository; by default its layer.", show_default=False),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option("--also", metavar="ID=SOURCE", help="Another SAE for the same repository; may be repeated."),
    ] = None,
    licence: WeightsLicence = None,
    base_model: Annotated[
        str | None, typer.Option(help="The Hub's name of the model that the SAE reads.", show_default=False)
    ] = None,
    dataset: TrainedOn = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(help="JSON file with measures for the card; by id where there are several.", show_default=False),
    ] = None,
    score_card: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[ID=]PLACE",
            help="What `mammosae audit` wrote, for the card; by default what lies in the SAE's folder or the study's. "
            "May be repeated, with ids.",
            show_default=False,
        ),
    ] = None,
    study: IdsOf = None,
    min_group: MinGroup = 5,
    *,
    upload: Upload,
) -> "Publication":
    """Publish SAEs, so that `SAE.from_pretrained(REPO, ID)` loads them with nothing but SAELens.

    They are staged with a card, their evaluation, training settings and provenance, checked by the privacy guard, and
    loaded by a process that imports sae_lens alone. Without --confirm, that is all: what would go out is printed.
    """
    from mammosae_plugin.errors import InputError
    from mammosae_plugin.files import read_json
    from mammosae_plugin.hub.saes import prepare_sae
    from mammosae_plugin.privacy.context import PrivacyContext

    saes: Path | dict[str, Path] = source
    if also:
        if sae_id is None:
            raise InputError("with --also, say with --id what the first SAE is called")
        pairs = [item.partition("=") for item in also]
        wrong = [name for name, equals, path in pairs if not (name and equals and path)]
        if wrong:
            raise InputError(f"--also {wrong[0]!r} is not of the form ID=SOURCE")
        saes = {sae_id: source, **{name: Path(path) for name, _, path in pairs}}
    return prepare_sae(
        saes,
        repo,
        sae_id=None if also else sae_id,
        licence=licence,
        base_model=base_model,
        datasets=dataset or (),
        evaluation=read_json(evaluation) if evaluation is not None else None,
        score_card=_by_id(score_card) if score_card else None,
        context=PrivacyContext.of_study(study, min_group=min_group) if study is not None else None,
        min_group=min_group,
        about=upload.about,
        **upload.settings,
    )


def _by_id(places: list[str]) -> "str | dict[str, str]":
    """One place of a score card, or places by id."""
    if len(places) == 1 and ("=" not in places[0] or Path(places[0]).exists()):
        return places[0]
    from mammosae_plugin.errors import InputError

    if not all("=" in place for place in places):
        raise InputError("with several score cards say which SAE each is of: --score-card ID=PLACE")
    return dict(place.split("=", 1) for place in places)


@publish.command("model")
@publishes("model", poor=False)
def publish_model_command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A study's output folder, whose trained classifiers go out as MODEL-CONCEPT, or a classifier's file.",
            show_default=False,
        ),
    ],
    repo: Repo,
    model_id: Annotated[
        str | None,
        typer.Option(
            "--id", help="Of a study, the only one to publish; of a file, what to call it.", show_default=False
        ),
    ] = None,
    licence: WeightsLicence = None,
    base_model: Annotated[
        str | None, typer.Option(help="The Hub's name of the encoder that it started from.", show_default=False)
    ] = None,
    dataset: TrainedOn = None,
    function: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PACKAGE.MODULE:NAME",
            help="A function that may be imported and called to make a classifier's network, where its file says so; "
            "may be repeated.",
            show_default=False,
        ),
    ] = None,
    study: IdsOf = None,
    min_group: MinGroup = 5,
    *,
    upload: Upload,
) -> "Publication":
    """Publish the classifiers whose features SAEs read, so that others can run these on images of their own.

    `load_classifier("hub://REPO/ID")` loads one, and so does a study's configuration. They are staged as safetensors
    and JSON with a card, checked by the privacy guard, read back and compared. Without --confirm, that is all.
    """
    from mammosae_plugin.hub.models import prepare_model
    from mammosae_plugin.privacy.context import PrivacyContext

    return prepare_model(
        source,
        repo,
        model_id=model_id,
        licence=licence,
        base_model=base_model,
        datasets=dataset or (),
        functions=function or (),
        context=PrivacyContext.of_study(study, min_group=min_group) if study is not None else None,
        min_group=min_group,
        about=upload.about,
        **upload.settings,
    )


def pull_command(
    repo: Annotated[
        str,
        typer.Argument(
            metavar="REPO",
            help="owner/name, or owner/name@revision, or hub://owner/name@revision/sae_id for one SAE.",
            show_default=False,
        ),
    ],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.", show_default=False)] = None,
    kind: Annotated[
        Literal["model", "dataset"] | None,
        typer.Option(help="SAEs (model) or findings (dataset); by default whichever exists.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Copy the files there too.", show_default=False)
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use what was pulled before; ask nobody.")] = False,
    debug: Debug = False,
) -> None:
    """Download SAEs or findings from the Hub, and check every file against its checksum.

    Prints the folder, and for SAEs what to write in a study's configuration (sae.path). What was pulled before is not
    downloaded again, and serves where the Hub cannot be reached.
    """
    with clear_errors(debug):
        from mammosae_plugin.hub.pulling import pull, saes_in

        folder = pull(repo, revision=revision, kind=kind, folder=output, offline=offline)
        typer.echo(folder)
        for sae_id in saes_in(folder):
            typer.echo(f"sae.path: {folder / sae_id}")


def releases_command(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One of the releases, with its SAEs.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all that is known as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """List public SAEs of images that load by name: repository, file, layer, network (docs/adapters/vision-saes.md).

    After `register_releases()`, `SAE.from_pretrained(RELEASE, SAE)` loads one. Nothing is downloaded here.
    """
    with clear_errors(debug):
        import json
        from dataclasses import asdict

        from mammosae_plugin.hub.releases import RELEASES, describe_releases

        text = describe_releases(name)
        found = [asdict(release) for release in RELEASES if name in (None, release.name)]
        typer.echo(json.dumps(found, indent=1) if as_json else text)


def add_hub_commands(app: typer.Typer) -> None:
    """Add the commands of this module to `mammosae`."""
    from mammosae_plugin.cli.findings import add_findings_commands
    from mammosae_plugin.cli.space import add_space_command

    app.add_typer(publish, name="publish")
    app.command("pull")(pull_command)
    app.command("releases")(releases_command)
    add_findings_commands(app, publish)
    add_space_command(publish)
