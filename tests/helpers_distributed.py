"""What the processes of `program_distributed.py` do; imported once, and forked from there."""

import contextlib
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import torch
import typer
from helpers_study import random_sae
from helpers_training import ARCHITECTURES, rows_store, small_training

from mammosae_plugin import distributed, shards
from mammosae_plugin.activations import ActivationStore, extract_activations, extraction
from mammosae_plugin.adapters import HookedVisionModel, new_classifier
from mammosae_plugin.cli import app
from mammosae_plugin.cli.common import clear_errors
from mammosae_plugin.datasets import VinDrMammo, content, screening
from mammosae_plugin.datasets.registry import of_its_kind
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import encode_latents
from mammosae_plugin.study.images import StudyImages
from mammosae_plugin.training import sae as training
from mammosae_plugin.training import train_sae, train_saes

LAYERS = ("blocks.3.hook_out", "bn2.hook_out")
TRAININGS = {
    **{name: small_training(architecture=name, row_seed=0, dead_feature_window=2) for name in ARCHITECTURES},
    # One latent per row, so that many die and the loss that revives them acts.
    **{
        f"{name} with dead latents": small_training(
            architecture=name, row_seed=0, dead_feature_window=1, k=1, validation_share=0
        )
        for name in ("topk", "batchtopk", "matryoshka_batchtopk")
    },
    "resampled": small_training(row_seed=0, resample_every=6, dead_feature_window=3, lr=0.02, sparsity=0.1),
    "scaled": small_training(
        architecture="batchtopk", row_seed=0, normalize_activations="expected_average_only_in", lr_warm_up_steps=9
    ),
    "jumprelu held at k": small_training(architecture="jumprelu", row_seed=0, k=4, sparsity=1e-2),
    "from data points": small_training(row_seed=0, init="data_points", init_bias="geometric_median"),
}
KILLED_AT_STEP = 20  # of 30, behind a checkpoint

Die = tuple[str, int] | None
"""What a process does when it is killed ("extracting" or "training"), and which process it is."""


def make(out: Path, phantoms: Path, folder: str, deaths: tuple[Die, ...] = ()) -> None:
    """Extract at two layers, make a latents table and train SAEs; or be killed, at each start where `deaths` says."""
    _prepare()
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    die = deaths[attempt] if attempt < len(deaths) else None
    images = VinDrMammo(phantoms, image_size=(96, 64))
    network = new_classifier("tinynet_e", 1, seed=0)
    model = HookedVisionModel(network, ["blocks.3", "bn2"])
    with _death(die, out / "deaths" / folder):
        extract_activations(model, images, out / folder / "stores", hook_names=LAYERS, count=2, batch_size=2)
        encode_latents(
            model,
            random_sae(network.num_features),
            images,
            out / folder / "table",
            heads={"Mass": network.classifier},
            map_latents=lambda table: table.live_latents()[:3],
            batch_size=2,
            shard_size=4,
        )
        _train(out, folder)
    distributed.stop()


def train(out: Path, folder: str) -> None:
    """Train the SAEs alone, undisturbed."""
    _prepare()
    _train(out, folder)
    distributed.stop()


def _train(out: Path, folder: str) -> None:
    rows = distributed.on_main(lambda: rows_store(out / "rows").folder)
    train_saes(ActivationStore(rows), out / folder / "saes", TRAININGS)


def _prepare() -> None:
    torch.set_num_threads(1)
    extraction.IMAGES_PER_SHARD = 2
    training.draw_metrics = lambda rows, file: None


@contextlib.contextmanager
def _death(die: Die, marks: Path) -> Any:
    """Kill this process outright, while it writes its second shard or before a step, and leave a mark of that."""
    write, step = shards._write_shard, training._Run.step
    written: list[Path] = []

    def kill(what: str) -> None:
        marks.mkdir(parents=True, exist_ok=True)
        (marks / f"{what}-{distributed.rank()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    def dying_write(path: Path, tensors: Any, plan_digest: str) -> None:
        written.append(path)
        if die == ("extracting", distributed.rank()) and len(written) == 2:
            kill("extracting")
        write(path, tensors, plan_digest)

    def dying_step(run: Any, batch: torch.Tensor) -> None:
        if die == ("training", distributed.rank()) and run.done == KILLED_AT_STEP:
            kill("training")
        step(run, batch)

    shards._write_shard, training._Run.step = dying_write, dying_step
    try:
        yield
    finally:
        shards._write_shard, training._Run.step = write, step


def meet_bad_input(out: Path, phantoms: Path) -> None:
    """Errors that one process meets and both must end with; what each says goes to a file of its own."""
    _prepare()
    distributed.start()
    model = HookedVisionModel(new_classifier("tinynet_e", 1, seed=0), ["bn2"])
    said = {}
    images = VinDrMammo(phantoms, image_size=(96, 64))
    images = images.select(image_ids=images.images["image_id"][:8])
    broken = images.image_paths[5]  # of the third pair of images: the first process's
    content = broken.read_bytes()
    distributed.on_main(lambda: broken.write_bytes(content[:100]))
    try:
        extract_activations(model, images, out / "unread", hook_name="bn2")
    except InputError as error:
        said["one image"] = str(error)
    distributed.on_main(lambda: broken.write_bytes(content))
    try:
        with distributed.together():
            if distributed.rank() == 1:
                raise OSError(28, "No space left on device", "shard-00001.safetensors")
            while True:
                distributed.check()
                time.sleep(0.1)
    except InputError as error:
        said["a full disk"] = str(error)
    except OSError as error:
        said["a full disk"] = f"{error.filename}: {error.strerror}"
    try:
        train_sae(ActivationStore(out / "rows"), out / "odd", small_training(batch_size=33))
    except InputError as error:
        said["an odd batch"] = str(error)
    try:
        distributed.require_same(distributed.rank(), "processes find other things")
    except InputError as error:
        said["other folders"] = str(error)
    (out / f"said-{distributed.rank()}.json").write_text(json.dumps(said))
    try:
        with clear_errors(debug=False):  # an error of one process alone, while the other waits for it in a step
            if distributed.rank() == 1:
                raise InputError("only process 1 met this")
            distributed.mean(torch.ones(1))
    except typer.Exit as error:
        raise SystemExit(error.exit_code) from error


def look(out: Path, phantoms: Path, folder: str) -> None:
    """Screen and hash a study's images, one of which is cut off; what each process did and knows goes to a file."""
    _prepare()
    distributed.start()
    data = out / "looked at"

    def copy() -> None:
        if not data.exists():
            shutil.copytree(phantoms, data)
            image = VinDrMammo(data, image_size=(96, 64)).image_paths[5]
            image.write_bytes(image.read_bytes()[:100])

    distributed.on_main(copy)
    hashed, looked = [], []
    digest, check = content._digest, screening.check_contrast
    content._digest = lambda image: hashed.append(image.name) or digest(image)  # type: ignore[func-returns-value]
    screening.check_contrast = lambda pixels: looked.append(1) or check(pixels)  # type: ignore[func-returns-value]
    settings = {"root": str(data), "image_size": [96, 64], "phantom": True, "max_suspect_share": 1}
    found = StudyImages(of_its_kind(settings | {"max_bad_share": 0.05}), out / folder, 0)
    said = {"content": found.content, "kept": found.dataset.images["image_id"].tolist(), "hashed": hashed}
    said["looked"] = len(looked)
    try:
        _ = StudyImages(of_its_kind(settings | {"max_bad_share": 0}), out / f"{folder}-0", 0).dataset
    except InputError as error:
        said["error"] = str(error).split(";")[0]
    finally:
        content._digest, screening.check_contrast = digest, check
    again = StudyImages(found.data, out / folder, 0)
    said["again"] = [again.content, again.dataset.images["image_id"].tolist()]
    (out / folder / f"said-{distributed.rank()}.json").write_text(json.dumps(said))
    distributed.stop()


def command(*arguments: str) -> None:
    """The command line."""
    app(arguments, prog_name="mammosae")
