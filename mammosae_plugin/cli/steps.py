"""The `mammosae` command: one thin function per command; the rooms are imported when a command needs them."""

__all__ = [
    "app", "ConfigFile", "demo", "Device", "embed", "encode", "evidence", "extract", "inspect", "layers", "main",
    "Output", "Settings", "study", "StudyFile",
]  # fmt: skip

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mammosae_plugin.cli.activations import add_activations_commands
from mammosae_plugin.cli.audit import add_audit_command
from mammosae_plugin.cli.common import Commands, Debug, clear_errors
from mammosae_plugin.cli.data import add_data_commands
from mammosae_plugin.cli.explain import add_explain_command
from mammosae_plugin.cli.export import add_export_command
from mammosae_plugin.cli.housekeeping import add_housekeeping_commands
from mammosae_plugin.cli.hub import add_hub_commands
from mammosae_plugin.cli.names import add_name_command
from mammosae_plugin.cli.pairs import add_pairs_command
from mammosae_plugin.cli.prepare import add_prepare_command
from mammosae_plugin.cli.repair import add_repair_command
from mammosae_plugin.cli.retrieve import add_retrieve_command
from mammosae_plugin.cli.view import add_view_command
from mammosae_plugin.cli.views import add_views_command
from mammosae_plugin.memory import keep_freed_memory
from mammosae_plugin.version import __version__

if TYPE_CHECKING:
    from mammosae_plugin.config import AnyStudy

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Sparse autoencoders on mammography models: which latents stand for which finding, and where they look.",
    epilog="Start with `mammosae demo`, which needs no data. On your own data: `mammosae study --help`.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mammosae-plugin {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[  # noqa: ARG001 - its callback prints it
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="The study's YAML file.", show_default=False)]
StudyFile = Annotated[
    Path | None, typer.Argument(metavar="[STUDY.YAML]", help="The same as --config.", show_default=False)
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Write to this folder instead of the configured one.", show_default=False),
]
Device = Annotated[str | None, typer.Option(help="Run networks here instead (cpu, cuda, cuda:1).", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace one setting, e.g. --set analysis.n_bootstrap=200 or --set models.0.train.epochs=3. "
        "Lists and sections as in YAML, --set 'analysis.ks=[0, 10]'; a name with dots in quotes, "
        "--set 'sae.paths.\"blocks.3\"=a.pt'. May be repeated, and can say everything without a file.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class _Study:
    """Where a command's settings are from."""

    argument: Path | None
    config: Path | None
    output: Path | None
    device: str | None
    settings: list[str] | None


def _config(study: _Study) -> "AnyStudy":
    from mammosae_plugin.config import load_config
    from mammosae_plugin.errors import InputError
    from mammosae_plugin.files import local_path

    if study.argument is not None and study.config is not None:
        raise InputError(f"{study.argument} and --config {study.config} both name the study; give one")
    file, settings, output = study.argument or study.config, study.settings, study.output
    if file is None and not settings:
        raise InputError(
            "name the study as study.yaml or --config study.yaml (mammosae study --settings lists what it can hold)"
        )
    replace = {"output": output and local_path(output).absolute(), "device": study.device}
    return load_config(
        file, settings or (), replace={key: value for key, value in replace.items() if value is not None}
    )


def _run_until(step: str, source: _Study, debug: bool, **told: Any) -> None:
    with clear_errors(debug):
        from mammosae_plugin import distributed
        from mammosae_plugin.study import open_study

        distributed.start()
        study = open_study(_config(source))
        study.run(until=step)
        if distributed.is_main():
            with distributed.alone():
                typer.echo(
                    study.evidence_summary(**told)
                    if hasattr(study, "evidence_summary") and told
                    else study.summary(step)
                )
        distributed.stop()


@app.command()
def study(
    file: StudyFile = None,
    config: ConfigFile = None,
    output: Output = None,
    device: Device = None,
    settings: Settings = None,
    show_settings: Annotated[
        bool, typer.Option("--settings", help="List every setting with its meaning and default, and stop.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Run a whole study: images, classifiers and an SAE in; Tables 1 and 2, Figures 2 to 5 and report.html out.

    The configuration names a folder in VinDr-Mammo's format (images_png/<patient_id>/<image_id> and
    vindr_detection_v1_folds.csv), images and a table of any form (data.kind: images, with a mapping that says how the
    table is read, a preset of a public collection, or what `mammosae prepare` wrote; docs/data.md), or a folder with
    images.csv (data.kind: csv), one or more models with a classifier per concept (Mammo-CLIP checkpoints, or `train` to
    make them here) and a sparse autoencoder (a Mammo-SAE file, a SAELens folder, or `train`) for the final feature map,
    or for each of several `layers`, which are then compared. examples/study.yaml in the repository is a commented one
    for VinDr-Mammo.

    With kind: embeddings it is a study of one vector per image, of networks or of files that are there: SAEs on these,
    and what their latents tell (docs/embeddings.md, examples/study_embeddings.yaml).

    Everything is written to the output folder. A study that is stopped or killed is run again with the same command and
    continues. Its steps are also commands of their own: classify, extract, train, encode, probe, intervene, localize,
    evidence, report.

    torchrun runs extract, train and encode in several processes, on one machine or on many that share the output folder
    (docs/scaling.md): torchrun --nproc-per-node 2 -m mammosae_plugin encode --config study.yaml
    """
    if show_settings:
        from mammosae_plugin.config import describe_settings

        typer.echo(describe_settings())
        return
    _run_until("report", _Study(file, config, output, device, settings), debug)


def _add_step(step: str, explanation: str) -> None:
    def command(
        file: StudyFile = None,
        config: ConfigFile = None,
        output: Output = None,
        device: Device = None,
        settings: Settings = None,
        debug: Debug = False,
    ) -> None:
        _run_until(step, _Study(file, config, output, device, settings), debug)

    longer = f"{explanation}\n\nSteps before it that are not done yet are done first. See `mammosae study --help`."
    app.command(step, help=longer, short_help=explanation)(command)


_add_step("classify", "Train the study's classifiers, or check the given ones against its images and concepts.")


@app.command()
def extract(
    file: StudyFile = None,
    config: ConfigFile = None,
    output: Output = None,
    device: Device = None,
    settings: Settings = None,
    limit: Annotated[
        int | None, typer.Option(help="The first so many training images only (sae.train.limit).", show_default=False)
    ] = None,
    augmentation: Annotated[
        str | None,
        typer.Option(
            help="Change the images first: none, flips, affine or mammo_clip (sae.train.augmentation).",
            show_default=False,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the activations on which the study's sparse autoencoders are trained.

    The released Mammo-SAE was trained on the first 4,000 training images, augmented, and on a random 25 % of each
    batch's positions: --limit 4000 --augmentation mammo_clip --set sae.train.sample_from=batch

    `train` and what follows need the same options, which are settings of the study. Steps before it that are not done
    yet are done first. See `mammosae study --help`.
    """
    given = {"limit": limit, "augmentation": augmentation}
    extra = [f"sae.train.{name}={value}" for name, value in given.items() if value is not None]
    _run_until("extract", _Study(file, config, output, device, [*(settings or ()), *extra]), debug)


@app.command()
def embed(
    model: Annotated[
        str,
        typer.Argument(
            help="timm's name of an architecture (vit_large_patch16_dinov3.lvd1689m, resnet50) or hf-hub:OWNER/NAME, "
            "OWNER/NAME of a model of transformers or its folder, open_clip:NAME/WEIGHTS, torchvision:NAME, or a "
            "checkpoint: Mammo-CLIP's, or one of ours.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the vectors.", show_default=False)],
    data: Annotated[
        Path | None, typer.Option(help="The folder of the images (data.root of a study).", show_default=False)
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="How they lie there: vindr, csv, total-segmentator or volumes (data.kind).", show_default=False
        ),
    ] = None,
    image_size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Height and width of the images (data.image_size).", show_default=False),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="A study's YAML file instead; its section `data`.", show_default=False),
    ] = None,
    settings: Settings = None,
    split: Annotated[str | None, typer.Option(help="The images of this split only.", show_default=False)] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many images.", show_default=False)] = None,
    pooling: Annotated[
        Literal["model", "class_token", "mean_of_patches", "projected"],
        typer.Option(
            help="The vector: model (the network's own), class_token, mean_of_patches, or projected (Mammo-CLIP's)."
        ),
    ] = "model",
    weights: Annotated[
        str | None,
        typer.Option(
            help="random: the same network with random weights, as a control. pretrained, or a file of weights, for "
            "timm's. By default the model's own.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of random weights.")] = 0,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="Type of the stored rows.")
    ] = "float32",
    autocast: Annotated[
        Literal["bfloat16", "float16"] | None,
        typer.Option(help="Run the network under autocast to this type.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 0,
    device: Annotated[str, typer.Option(help="Where the network runs (cpu, cuda, cuda:1).")] = "cpu",
    debug: Debug = False,
) -> None:
    """Write one vector per image, its embedding, of any network; SAEs are then trained on these (docs/embeddings.md).

    mammosae embed resnet50 --config study.yaml -o embeddings
    mammosae embed resnet50 --data vindr --image-size 1520 912 --pooling mean_of_patches -o embeddings

    The folder is an activation store with one row per image, beside which lies what is known of the images. A run that
    is stopped or killed is made again with the same command and continues. torchrun runs it in several processes:
    torchrun --nproc-per-node 2 -m mammosae_plugin embed ...
    """
    with clear_errors(debug):
        from mammosae_plugin import distributed
        from mammosae_plugin.activations import embed as run
        from mammosae_plugin.config import load_data
        from mammosae_plugin.datasets import open_dataset

        flags = {"root": data and data.expanduser().absolute(), "kind": kind, "image_size": image_size}
        given = {name: value for name, value in flags.items() if value is not None}
        distributed.start()
        images = open_dataset(load_data(config, settings or (), replace=given))
        store = run(
            model,
            images if split is None else images.select(split=split),
            output,
            pooling=pooling,
            weights=weights,
            seed=seed,
            dtype=dtype,
            limit=limit,
            autocast=autocast,
            batch_size=batch_size,
            num_workers=workers,
            device=device,
        )
        if distributed.is_main():
            typer.echo(store.summary())
        distributed.stop()


_add_step("train", "Train the study's sparse autoencoders with SAELens.")


@app.command()
def encode(
    file: StudyFile = None,
    config: ConfigFile = None,
    output: Output = None,
    device: Device = None,
    settings: Settings = None,
    rows: Annotated[
        list[Path] | None,
        typer.Option(
            help="Instead of a study: stored vectors, one per image. A folder that `embed` wrote, a parquet or .npy "
            "file (docs/embeddings.md), or a folder with such files. May be repeated, for files of several splits.",
            show_default=False,
        ),
    ] = None,
    sae: Annotated[
        str | None,
        typer.Option(
            help="With --rows: the SAE; a file of SAIL's or Mammo-SAE, a folder that SAELens wrote, or "
            "hub://owner/name/path.",
            show_default=False,
        ),
    ] = None,
    concepts: Annotated[
        list[str] | None,
        typer.Option(
            help="With --rows: a column of the rows' table that is a label; may be repeated. By default those that "
            "hold 0 and 1 alone.",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(help="With --rows: the column with the vectors, where there are several.", show_default=False),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="With --rows: the split of rows of which neither a file's name nor its table says one (training).",
            show_default=False,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Make the latents tables: one pass over the images, after which no analysis needs a network.

    mammosae encode --config study.yaml
    mammosae encode --rows embeddings --sae dinov3_sae.ckpt -o codes

    The first is a step of a study; steps before it that are not done yet are done first (see `mammosae study --help`).
    The second needs no study, no image and no network: it writes the latents table of stored vectors, one per image,
    under one SAE, which every analysis reads that needs no map (docs/embeddings.md). Memory holds a few thousand rows,
    whatever their number.

    A run that is stopped or killed is made again with the same command and continues.
    """
    study = _Study(file, config, output, device, settings)
    of_rows = {"--sae": sae, "--concepts": concepts, "--column": column, "--split": split}
    if not rows:
        with clear_errors(debug):
            _refuse(of_rows, "goes with --rows; a study says these things itself")
        _run_until("encode", study, debug)
        return
    with clear_errors(debug):
        _refuse({"STUDY.YAML": file, "--config": config, "--set": settings}, "is of a study, and --rows needs none")
        from mammosae_plugin.cli.rows import encode_stored

        encode_stored(
            rows, sae, output, concepts=concepts, column=column, split=split or "training", device=device or "cpu"
        )


def _refuse(options: Mapping[str, object], why: str) -> None:
    from mammosae_plugin.errors import InputError

    if given := [name for name, value in options.items() if value]:
        raise InputError(f"{given[0]} {why}; leave one out")


_add_step("probe", "Table 1, the class means of every latent and their ranking (Eq. 2).")
_add_step("intervene", "Figure 2: keep or remove each class's best latents, beside random groups (Eq. 3 and 4).")
_add_step(
    "localize",
    "Table 2: how well the best latents' heatmaps find the radiologists' boxes. FROC: which lesions, and how many "
    "false positives on all images.",
)


@app.command()
def evidence(
    file: StudyFile = None,
    config: ConfigFile = None,
    output: Output = None,
    device: Device = None,
    settings: Settings = None,
    sort: Annotated[
        str, typer.Option(help="Column to sort latents by; of effect and reliance the size counts.")
    ] = "reliance",
    top: Annotated[int, typer.Option(min=1, help="Latents printed of each classifier; all are kept.")] = 20,
    debug: Debug = False,
) -> None:
    """Every latent that fires: what it tells, what the classifier makes of it, where it lies, what it stands for.

    Prints the verdicts (concept, context, shortcut, unclear), the first latents by a column, and the groups of images
    that are told worst; also how far views and sides agree (docs/scores.md). Settings: analysis.evidence,
    analysis.confounders and analysis.views. How each number is made, and the rule: docs/evidence.md.

    Steps before it that are not done yet are done first. See `mammosae study --help`.
    """
    with clear_errors(debug):
        from mammosae_plugin.study.study import check_evidence_column

        check_evidence_column(sort)
    _run_until("evidence", _Study(file, config, output, device, settings), debug, sort=sort, top=top)


_add_step("report", "Write figures, tables, results.json, report.html and a page per concept.")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("demo"),
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A small version that only shows that everything runs; its results mean little."),
    ] = False,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of the first weights and the order of training; phantoms stay.")
    ] = 0,
    debug: Debug = False,
) -> None:
    """Run the whole study on generated mammograms: no data, no checkpoint and no network needed.

    Makes phantom mammograms with masses and calcifications in VinDr-Mammo's format, trains a small EfficientNet on
    them, sparse autoencoders at an inner layer and at its final feature map, and writes the same reports as
    `mammosae study`; then a second study, on one vector per image of the network that the first fine-tuned. Takes 12 to
    25 minutes on two free cores. Can be killed and run again.
    """
    with clear_errors(debug):
        from mammosae_plugin.study.demo import run_demo

        typer.echo(run_demo(output, quick=quick, seed=seed))


@app.command()
def inspect(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A checkpoint, a folder that SAELens wrote, or hub://owner/name@revision/path/in/repo.",
            show_default=False,
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Tell what a checkpoint is, without running anything in it.

    Knows Mammo-CLIP and Mammo-FM pretraining checkpoints, downstream classifiers, SAEs in SAELens's format and in
    those of other libraries (docs/adapters/vision-saes.md) and the classifiers that this package saves: kind, variant,
    outputs, keys, numbers, size and SHA-256.
    """
    with clear_errors(debug):
        import json

        from mammosae_plugin.adapters.inspection import inspect_checkpoint

        report = inspect_checkpoint(checkpoint)
        typer.echo(json.dumps(report.as_dict(), indent=1) if as_json else report.as_text())


@app.command()
def layers(
    model: Annotated[
        str,
        typer.Argument(
            help="A checkpoint (a path, or hub://owner/name/file), OWNER/NAME of a model of transformers or its "
            "folder, timm's name of an architecture or hf-hub:OWNER/NAME, open_clip:NAME, torchvision:NAME, or "
            "function:PACKAGE.MODULE:FUNCTION."
        ),
    ],
    image_size: Annotated[
        tuple[int, int] | None,
        typer.Option(
            help="Height and width of the images. By default 1520 912 for Mammo-CLIP's checkpoints, else what the "
            "architecture wants.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every module, and why some cannot be hooked, instead of the useful ones.")
    ] = False,
    random: Annotated[
        bool,
        typer.Option(
            "--random",
            help="Random weights: a repository's config is read, from the cache where there is no connection, and no "
            "weights. An architecture that is named alone has them in any case.",
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """List the layers of a model that can carry an SAE: hook names, aliases, shapes, pixels per position.

    Any name in the list can be given as a study's layer, to `HookedVisionModel`, or in an SAE's metadata. Shapes are of
    one image, channels last: h x w x C for a map or a transformer's patches, C for a vector.
    """
    with clear_errors(debug):
        from mammosae_plugin.adapters.layers import describe_layers, layers_table, open_model

        network = open_model(model, weights="random" if random else None)
        found = describe_layers(network, image_size=image_size, every=every)
        typer.echo(layers_table(found))


add_activations_commands(app)
add_prepare_command(app)
add_audit_command(app)
add_data_commands(app)
add_retrieve_command(app)
add_views_command(app)
add_name_command(app)
add_explain_command(app)
add_view_command(app)
add_housekeeping_commands(app)
add_repair_command(app)
add_pairs_command(app)
add_export_command(app)
add_hub_commands(app)


def main() -> None:
    """Entry point of the `mammosae` command."""
    keep_freed_memory()
    app(prog_name="mammosae")
