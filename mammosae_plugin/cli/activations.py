"""The commands `mammosae activations ...`: stores of rows looked at, checked and put together."""

__all__ = ["activations_info", "activations_merge", "activations_verify", "add_activations_commands"]

from pathlib import Path
from typing import Annotated

import typer

from mammosae_plugin.cli.common import Debug, clear_errors

activations = typer.Typer(
    no_args_is_help=True,
    help="Look at, check and put together the activation rows on which SAEs are trained (docs/activations.md).",
)
StoreFolder = Annotated[Path, typer.Argument(metavar="STORE", help="A folder that `mammosae extract` wrote.")]


@activations.command("info")
def activations_info(
    folder: StoreFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole manifest.")] = False,
    debug: Debug = False,
) -> None:
    """Tell what the rows of a store are: layer, model, images, type, size. Reads no row."""
    with clear_errors(debug):
        import json

        from mammosae_plugin.activations.store_facts import StoreFacts

        store = StoreFacts(folder)
        typer.echo(json.dumps(store.manifest, indent=1) if as_json else store.summary())


@activations.command("verify")
def activations_verify(folder: StoreFolder, debug: Debug = False) -> None:
    """Read a whole store and compare it with its checksums; exit code 2 and the first damaged file if they differ."""
    with clear_errors(debug):
        from mammosae_plugin.activations import ActivationStore

        store = ActivationStore(folder)
        store.verify()
        typer.echo(f"{folder}: {store.n_rows} rows in {len(store.manifest['shards'])} shards, all as recorded")


@activations.command("merge")
def activations_merge(
    folders: Annotated[list[Path], typer.Argument(metavar="STORE...", help="The stores, of different images.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the merged store.", show_default=False)],
    debug: Debug = False,
) -> None:
    """Put the rows of several stores into one: other images, the same layer of the same model. Can be run again."""
    with clear_errors(debug):
        from mammosae_plugin.activations import merge_stores

        typer.echo(merge_stores(folders, output).summary())


def add_activations_commands(app: typer.Typer) -> None:
    """Add `activations` to `mammosae`."""
    app.add_typer(activations, name="activations")
