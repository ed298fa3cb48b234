"""The commands of `mammosae` about findings: publish them, note what latents show, compare two studies."""

__all__ = ["add_findings_commands", "compare", "note", "publish_findings_command", "StudyFolder"]

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mammosae_plugin.cli.common import Debug, clear_errors
from mammosae_plugin.cli.publishing import Allow, DataOf, MinGroup, Repo, Upload, publishes

if TYPE_CHECKING:
    from mammosae_plugin.hub.publishing import Publication

StudyFolder = Annotated[Path, typer.Argument(metavar="STUDY", help="The study's output folder.", show_default=False)]


def add_findings_commands(app: typer.Typer, publish: typer.Typer) -> None:
    """Add `note` and `compare` to `mammosae`, and `findings` to `mammosae publish`."""
    publish.command("findings")(publish_findings_command)
    app.command("note")(note)
    app.command("compare")(compare)


@publishes("findings")
def publish_findings_command(
    study: StudyFolder,
    repo: Repo,
    licence: Annotated[str, typer.Option(help="The licence of the findings, such as cc-by-4.0.", show_default=False)],
    folder: Annotated[
        Path | None,
        typer.Option(help="Write what would go out here. Default: `findings` in STUDY.", show_default=False),
    ] = None,
    examples: Annotated[
        bool,
        typer.Option(
            "--examples",
            help="Add heatmaps of single images, under hashed ids; with --data also pictures, of phantoms or data "
            "whose owner allows it.",
        ),
    ] = False,
    data: DataOf = None,
    min_group: MinGroup = 5,
    data_licence: Annotated[
        str | None,
        typer.Option(
            help="With --examples: the licence that lets them out of a restricted dataset.", show_default=False
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="The file of the key that ids are hashed with. Default: in STUDY.", show_default=False),
    ] = None,
    *,
    upload: Upload,
) -> "Publication":
    """Publish what a study found as a dataset: which latents mean what, and readers' notes on them.

    Aggregates only: class means, scores, ranks and average precision of every latent, the interventions, the
    reconstruction, the localization, and the study's configuration without paths. No id; without --examples no image
    and no row per image; statistics of small groups are left out. `datasets.load_dataset(REPO, "latents")` reads it.

    By default nothing is sent: the folder is written, checked by the privacy guard, and what would go out is listed.
    """
    from mammosae_plugin.hub.findings import prepare_findings

    return prepare_findings(
        study,
        repo,
        licence=licence,
        folder=folder,
        examples=examples,
        images=data,
        min_group=min_group,
        data_licence=data_licence,
        key_file=key,
        about=upload.about,
        **upload.settings,
    )


def note(
    latent: Annotated[int | None, typer.Argument(help="The latent's number.", show_default=False)] = None,
    text: Annotated[str, typer.Argument(help="What it shows, in a sentence.", show_default=False)] = "",
    study: Annotated[Path, typer.Option(help="The study's output folder.")] = Path("study"),
    author: Annotated[str, typer.Option(help="Who says it; it is published with the findings.")] = "",
    label: Annotated[
        str | None, typer.Option(help="A label that readers share, such as Mass, artefact, none.", show_default=False)
    ] = None,
    layer: Annotated[str | None, typer.Option(help="The layer. Default: the primary one.", show_default=False)] = None,
    encoder: Annotated[
        str | None, typer.Option(help="The model on whose images it was seen. Default: all.", show_default=False)
    ] = None,
    concept: Annotated[str | None, typer.Option(help="The concept that it is about.", show_default=False)] = None,
    confidence: Annotated[int | None, typer.Option(help="From 1, a guess, to 5, certain.", show_default=False)] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="TABLE",
            help="Add the notes of a CSV, parquet or xlsx file: columns latent, text, author, label, layer, encoder, "
            "concept, confidence, as far as needed.",
            show_default=False,
        ),
    ] = None,
    merge: Annotated[
        list[Path] | None,
        typer.Option(help="Add the notes of another copy of the study. May be repeated.", show_default=False),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="List all notes and how far the readers agree.")] = False,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Withdraw the author's notes on the latent; they are never published.")
    ] = False,
    allow: Allow = None,
    debug: Debug = False,
) -> None:
    """Note what a latent shows: `mammosae note 13867 "calcifications" --author AB --label calcification`.

    Notes lie in the study's folder, one file per author, are only ever added, and travel with the published findings.
    Of a reader's labels for a latent the last counts; --withdraw takes back what an author said of it. With labels of
    two readers or more, --list ends with their agreement: Cohen's kappa for two, Fleiss' for more.
    """
    with clear_errors(debug):
        from mammosae_plugin.errors import InputError
        from mammosae_plugin.findings.notes import add_note, agreement, merge_notes, read_notes, withdraw_notes

        if latent is None and table is None and not merge and not show and not withdraw:
            raise InputError("give a latent and a text, or --from a table, or --merge a folder, or --list the notes")
        if table is not None:
            from mammosae_plugin.findings.note_tables import add_notes

            if latent is not None or withdraw or label or layer or encoder or concept or confidence is not None:
                raise InputError("--from reads what notes say from the table; beside it give at most --author")
            typer.echo(f"{len(add_notes(study, table, author=author, allow=allow or ()))} notes added")
        if withdraw:
            if latent is None or text or label or concept or confidence is not None:
                raise InputError("to withdraw notes give the latent and --author, at most a layer and an encoder")
            n = withdraw_notes(study, latent, author=author, layer=layer, encoder=encoder)
            typer.echo(f"withdrawn: {n} note{'s' if n > 1 else ''} of {author} on latent {latent}")
        elif latent is not None:
            added = add_note(
                study, latent, text,
                author=author, label=label, layer=layer, encoder=encoder, concept=concept, confidence=confidence,
                allow=allow or (),
            )  # fmt: skip
            typer.echo(f"noted on latent {added.latent} of layer {added.layer}, by {added.author}")
        if merge:
            typer.echo(f"{merge_notes(study, merge)} notes added")
        if show:
            notes = read_notes(study)
            for one in notes:
                typer.echo(one.as_text())
            typer.echo(agreement(notes).as_text() if notes else "no notes yet")


def compare(
    a: Annotated[
        str,
        typer.Argument(
            help="Findings: owner/name, or owner/name@revision, on the Hub, their folder, or a study's. Or a score "
            "card: what `mammosae audit` wrote."
        ),
    ],
    b: Annotated[str, typer.Argument(help="The findings, or the score card, to compare with.")],
    top: Annotated[int, typer.Option(help="How many of the best latents of each class to compare.")] = 10,
    sae_a: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LAYER=]PLACE", help="For studies on different SAEs: the SAE of A, of a layer.", show_default=False
        ),
    ] = None,
    sae_b: Annotated[
        list[str] | None, typer.Option(metavar="[LAYER=]PLACE", help="The same of B.", show_default=False)
    ] = None,
    debug: Debug = False,
) -> None:
    """Compare two studies: rank correlation of their latents, the best that they share, and how well these localize.

    Latent numbers mean the same only where both studies used the same SAE. For others give both SAEs: their latents are
    then matched by their decoder directions. Where the SAEs of both were audited, their score cards stand side by side.
    """
    with clear_errors(debug):
        from mammosae_plugin.errors import InputError
        from mammosae_plugin.hub.findings import compare_findings
        from mammosae_plugin.schema.score_card import (
            SCORE_CARD,
            compare_cards,
            comparison_text,
            read_score_card,
            scored_alike,
        )

        cards = [place for place in map(Path, (a, b)) if place.name == SCORE_CARD or (place / SCORE_CARD).is_file()]
        if cards and len(cards) < 2:
            other = b if cards[0] == Path(a) else a
            if not Path(other).exists():
                raise InputError(f"{other} does not exist; {cards[0]} is a score card: compare it with another one")
            raise InputError(f"{cards[0]} is a score card, the other is not; compare two score cards, or two studies")
        if cards:
            both = [read_score_card(place) for place in cards]
            typer.echo(f"a: {a}\nb: {b}\n")
            typer.echo(comparison_text(compare_cards(*both), alike=scored_alike(*both)))
            return
        if bool(sae_a) != bool(sae_b):
            raise InputError("give the SAEs of both studies (--sae-a and --sae-b), or of neither")
        if sae_a and sae_b:
            saes = _by_layer(sae_a), _by_layer(sae_b)
            typer.echo(compare_findings(a, b, top=top, match="decoder", saes=saes).as_text())
        else:
            typer.echo(compare_findings(a, b, top=top).as_text())


def _by_layer(places: list[str]) -> Any:
    """One place for all layers, or places by layer."""
    if len(places) == 1 and "=" not in places[0]:
        return places[0]
    from mammosae_plugin.errors import InputError

    if not all("=" in place for place in places):
        raise InputError("with several SAEs of a study say which layer each is of: --sae-a layer_6=PLACE")
    return dict(place.split("=", 1) for place in places)
