"""Training SAELens SAEs on stored activation rows, by default with the objective of the paper.

The paper and the released code minimise, over rows x with reconstruction x' and latents z,

    mean over features (x - x')^2  +  lambda * sum_i |z_i|          (decoder rows at unit norm)

SAELens sums the squared error over the d features and weighs each latent by its decoder row's norm, which is the same
penalty without the constraint. Multiplying the objective by d gives its coefficient: l1_coefficient = lambda * d (3e-5
* 2048 = 0.06144). After training the norms are folded into the latents, so that the decoder rows of the saved SAE have
unit norm.

The loop is our own, over the public seams of SAELens's trainer: its `fit` cannot continue a run, and judges nothing.

Under torchrun every process makes the same call and takes its part of each batch (`parallel`); the first writes.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from sae_lens import SAE
from sae_lens import __version__ as sae_lens_version
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from safetensors import SafetensorError

from mammosae_plugin import distributed
from mammosae_plugin.activations import ActivationStore
from mammosae_plugin.activations.saelens_format import NOT_KNOWN
from mammosae_plugin.activations.store import MANIFEST
from mammosae_plugin.adapters.input_normalization import INPUT_NORMALIZATION, UNIT_L2
from mammosae_plugin.adapters.levels import LEVELS, decode_level, levels_of
from mammosae_plugin.adapters.sae_formats.saelens import DIGESTS, TRAINING, unregistered
from mammosae_plugin.checked_files import changed_files
from mammosae_plugin.datasets.about import PHANTOM_ID, images_called
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import (
    differences,
    local_path,
    read_json,
    remove_temporaries,
    sha256_of_file,
    sha256_of_json,
    write_json,
    write_text,
)
from mammosae_plugin.locks import only_run
from mammosae_plugin.measures.reconstruction import Levels, dead_share, measure
from mammosae_plugin.own_files import require_unclaimed
from mammosae_plugin.progress import progress_bar
from mammosae_plugin.provenance import plain, seed_everything, torch_generator
from mammosae_plugin.training.checkpoints import load_state, save_state
from mammosae_plugin.training.metrics import (
    MetricsFile,
    Row,
    draw_metrics,
    problems_of,
    read_metrics,
    step_row,
)
from mammosae_plugin.training.new_sae import new_training_sae
from mammosae_plugin.training.parallel import ParallelStep, check_batch_size
from mammosae_plugin.training.resampling import (
    SAMPLE_ROWS,
    resample_dead,
    sample_of,
    start_at_data_points,
    start_bias_at_median,
)
from mammosae_plugin.training.rows import TrainingRows, images_of_held_out_patients
from mammosae_plugin.training.saving import CFG, WEIGHTS, save_sae
from mammosae_plugin.training.settings import SAETraining
from mammosae_plugin.training.sparsity import hold_l0, set_l0
from mammosae_plugin.training.trackers import TrackerName, new_tracker
from mammosae_plugin.version import __version__

__all__ = ["SAETraining", "train_sae", "train_saes"]

logger = logging.getLogger(__name__)

PLAN = TRAINING
CHECKPOINT, METRICS, FIGURE, CARD = "checkpoint.safetensors", "metrics.jsonl", "metrics.png", "README.md"
_NORM_BATCHES, _CALIBRATION_ROWS = 100, 8192
_INIT, _RESAMPLING = 1, 2  # their random streams


def train_sae(
    store: ActivationStore,
    folder: str | Path,
    config: SAETraining | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    device: str = "cpu",
    validation_images: Sequence[int] = (),
    final_metrics: Callable[[SAE[Any]], Mapping[str, float]] | None = None,
    tracker: TrackerName | None = None,
) -> SAE[Any]:
    """Train a SAELens SAE on the rows of a store and save it in SAELens's format.

    The run can be killed at any moment and made again: it continues from its last checkpoint and ends with the same
    weights. The folder then holds `cfg.json` and `sae_weights.safetensors` (plain SAELens loads them), `metrics.jsonl`
    and its figure, and a card.

    Under torchrun all processes make the same call and step together, each on its part of every batch. The SAE has the
    loss curve and quality of one process's, though not its bits, since sums are formed in another order; the number of
    processes may change from run to run.

    Args:
        store: The rows, (n, d) float32.
        folder: Where the SAE goes.
        config: How to train.
        metadata: What else the SAE's metadata should say (preprocessing, concept, ...); plain JSON values.
        device: Where training runs; under torchrun "cuda" is each process's own GPU.
        validation_images: Numbers of images (in the store's manifest) whose rows are held out, where
            `config.validation_share` does not choose them.
        final_metrics: Gives further measures of the finished SAE for the last line of `metrics.jsonl`, such as its cost
            in AUROC.
        tracker: Send the metrics to "wandb" or "tensorboard" too.

    Returns:
        The SAELens SAE as a user loads it from the folder: batch top-k ones as JumpReLU SAEs, others as they are.

    Raises:
        InputError: Settings that cannot work on these rows, an SAE of other settings or another run in the folder,
            rows fewer than one batch or not of the length that the metadata say, or a loss that is not finite.
    """
    device = distributed.place(device)
    job = _Job(local_path(folder), config or SAETraining(), metadata or {}, device, final_metrics, tracker)
    return _train(store, [job], validation_images)[0]


def train_saes(
    store: ActivationStore,
    folder: str | Path,
    settings: Mapping[str, SAETraining],
    *,
    metadata: Mapping[str, Any] | None = None,
    device: str = "cpu",
    validation_images: Sequence[int] = (),
    final_metrics: Callable[[SAE[Any]], Mapping[str, float]] | None = None,
    tracker: TrackerName | None = None,
) -> dict[str, SAE[Any]]:
    """Train several SAEs in one pass over the rows; each becomes what `train_sae` makes of the same settings alone.

    All of them, with Adam's two moments each, are in memory at once. Whichever are finished or further than others
    when a killed run is made again wait until the rows have reached them.

    Args:
        store: The rows, (n, d) float32.
        folder: Where the SAEs go, each into the folder of its name.
        settings: How to train each, by name (see `grid`). They share batch size, order of the rows (`row_seed`, or else
            `seed`) and held-out patients.
        metadata: As for `train_sae`.
        device: As for `train_sae`.
        validation_images: As for `train_sae`.
        final_metrics: As for `train_sae`.
        tracker: As for `train_sae`.

    Returns:
        The SAEs by name.

    Raises:
        InputError: As for `train_sae`; or the settings need different batches, or a name is no folder's name.
    """
    if not settings:
        raise InputError("there is no SAE to train; give settings by name")
    for name in settings:
        if not name or name in (".", "..") or Path(name).name != name:
            raise InputError(f"{name!r} cannot be the name of a folder; name the SAE otherwise")
    device = distributed.place(device)
    jobs = [
        _Job(local_path(folder) / name, config, metadata or {}, device, final_metrics, tracker)
        for name, config in settings.items()
    ]
    return dict(zip(settings, _train(store, jobs, validation_images), strict=True))


@dataclass(frozen=True)
class _Job:
    """What one SAE is trained with."""

    folder: Path
    config: SAETraining
    metadata: Mapping[str, Any]
    device: str
    final_metrics: Callable[[SAE[Any]], Mapping[str, float]] | None
    tracker: TrackerName | None

    def rows_of(self, rows: TrainingRows) -> TrainingRows:
        """Rows as this SAE is to see them."""
        return rows.divided() if self.config.normalize_activations == UNIT_L2 else rows

    @property
    def is_trained(self) -> bool:
        return (self.folder / CFG).exists()

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to write, so that any number of runs may read the SAE."""
        return self.is_trained and (self.folder / CARD).exists() and not (self.folder / CHECKPOINT).exists()


def _train(store: ActivationStore, jobs: Sequence[_Job], validation_images: Sequence[int]) -> list[SAE[Any]]:
    first = jobs[0].config
    for job in jobs[1:]:
        _require_same_batches(first, job.config)
    if first.validation_share and validation_images:
        raise InputError("give validation_share or validation_images, not both")
    check_batch_size(first.batch_size)
    held_out = validation_images or images_of_held_out_patients(store, first.validation_share, first.order)
    rows = TrainingRows(store, first.batch_size, first.order, held_out)
    plans = [_make_plan(job, rows) for job in jobs]
    with only_run(*[job.folder for job in jobs if not job.is_finished]):
        return _train_rest(jobs, plans, rows)


def _train_rest(jobs: Sequence[_Job], plans: Sequence[Mapping[str, Any]], rows: TrainingRows) -> list[SAE[Any]]:
    def claim() -> list[bool]:
        for job, plan in zip(jobs, plans, strict=True):
            _claim(job.folder, plan)
        return [job.is_trained for job in jobs]

    trained = distributed.on_main(claim)
    _run([_Run(job, plan, rows) for job, plan, done in zip(jobs, plans, trained, strict=True) if not done], rows)
    return [_finish(job, plan, rows) for job, plan in zip(jobs, plans, strict=True)]


def _require_same_batches(one: SAETraining, other: SAETraining) -> None:
    for name in ("batch_size", "validation_share"):
        if getattr(one, name) != getattr(other, name):
            raise InputError(f"SAEs trained in one pass share {name}; train those with another in a pass of its own")
    if one.order != other.order:
        raise InputError("SAEs trained in one pass read the rows in one order; give them the same row_seed")


def _make_plan(job: _Job, rows: TrainingRows) -> dict[str, Any]:
    """All that decides the SAE, and the length of the run, checked."""
    store, config = rows.store, job.config
    steps = config.check_run(store.d_in, rows.n_rows, f"{store.folder} holds")
    said = job.metadata.get(INPUT_NORMALIZATION)
    if config.normalize_activations != UNIT_L2 and said is not None:
        rows.require_unit_length()
    elif config.normalize_activations == UNIT_L2 and said not in (None, UNIT_L2):
        raise InputError(f"the metadata say {INPUT_NORMALIZATION} {said!r}, the settings {UNIT_L2!r}; leave one out")
    return {
        "config": config.model_dump(),
        "activations": store.manifest,
        "metadata": plain(job.metadata),
        "validation_images": rows.validation_images,
        "steps": steps,
    }


def _claim(folder: Path, plan: Mapping[str, Any]) -> None:
    told = {"config": plan["config"], "steps": plan["steps"]}
    said = {"plan_sha256": sha256_of_json(plan), **told}
    if not (folder / PLAN).exists():
        require_unclaimed(folder, (), (CHECKPOINT, METRICS, FIGURE, CARD, CFG, WEIGHTS, MANIFEST))
        write_json(folder / PLAN, said)
    elif (there := read_json(folder / PLAN)).get("plan_sha256") != said["plan_sha256"]:
        same = "the same settings on other rows, or with other metadata"
        differing = differences({key: there.get(key) for key in told}, told) or same
        raise InputError(
            f"{folder} holds an SAE of other settings ({differing}); name another folder or delete this one"
        )


def _run(runs: list["_Run"], rows: TrainingRows) -> None:
    """Give every batch to all runs that have come to it, and save each SAE as soon as it is trained."""
    if not runs:
        return
    first, steps = min(run.done for run in runs), max(run.steps for run in runs)
    batches = rows.batches(first, part=(distributed.rank(), distributed.world_size()))
    try:
        with progress_bar(
            total=steps,
            done=first,
            description="train SAE",
            unit="step",
            to=[run.job.folder for run in runs],
            shown=distributed.is_main(),
        ) as bar:
            for number in range(first, steps):
                batch = next(batches).to(runs[0].job.device)
                for run in [run for run in runs if run.done == number]:
                    run.step(batch)
                    if run.done == run.steps:
                        run.save()
                        runs.remove(run)  # its memory is free for the others
                bar.set_postfix(runs[0].progress if runs else {}, refresh=False)
                bar.update()
    finally:
        for run in runs:
            run.close()


class _Run:
    """One SAE in training."""

    def __init__(self, job: _Job, plan: Mapping[str, Any], rows: TrainingRows) -> None:
        self.job, self.config, self.rows = job, job.config, job.rows_of(rows)
        self.steps: int = plan["steps"]
        self.resample_steps = job.config.resample_steps(rows.n_rows / job.config.batch_size)
        self.progress: dict[str, str] = {}
        seed_everything(job.config.seed)
        self.trainer = _make_trainer(rows.store, job.config, self.steps, job.metadata, job.device)
        checkpoint = job.folder / CHECKPOINT
        size = 0
        with distributed.together():
            if checkpoint.exists():
                size = load_state(self.trainer, checkpoint)["metrics_size"]
                logger.info("continuing %s at step %d of %d", job.folder, self.done, self.steps)
        distributed.require_same(self.done, f"processes find other checkpoints in {job.folder}")
        if not self.done:
            self.trainer.activation_scaler.scaling_factor = distributed.on_main(self._start)
        self.step_together = ParallelStep(self.trainer)
        self.metrics, self.tracker = None, None
        if distributed.is_main():
            remove_temporaries(job.folder)
            self.metrics = MetricsFile(job.folder / METRICS, size)
            self.tracker = new_tracker(job.tracker, job.folder, plan["config"])

    @property
    def done(self) -> int:
        steps: int = self.trainer.n_training_steps
        return steps

    def _start(self) -> float | None:
        """Set what depends on the rows before the first step: bias, directions, and the scale, which is returned."""
        trainer, config, rows = self.trainer, self.config, self.rows
        rows.require_variation()
        if config.normalize_activations == "expected_average_only_in":
            n_batches = max(1, min(_NORM_BATCHES, rows.n_rows // config.batch_size))
            trainer.activation_scaler.estimate_scaling_factor(rows.store.d_in, rows.batches(), n_batches)
        scale: float | None = trainer.activation_scaler.scaling_factor
        if config.init == "random" and not config.starts_at_median:
            return scale
        sample = sample_of(rows.batches(), min(rows.n_rows, max(SAMPLE_ROWS, trainer.sae.cfg.d_sae)))
        if config.starts_at_median:
            start_bias_at_median(trainer, sample)
        if config.init == "data_points":
            start_at_data_points(trainer, sample, torch_generator(config.seed, _INIT))
        return scale

    def step(self, batch: torch.Tensor) -> None:
        trainer, config = self.trainer, self.config
        trainer.maybe_reset_sparsity()
        output = self.step_together(self.rows.prepared(batch))
        if config.held_l0 is not None:
            hold_l0(trainer.sae, output.feature_acts, config.held_l0)
        trainer.n_training_steps += 1
        done, last = self.done, self.done == self.steps
        is_checkpoint = done % config.checkpoint_every == 0 and not last
        if done % config.log_every == 0 or is_checkpoint or last:
            self._require_finite(output.loss)
        if done % config.log_every == 0 or last:
            self._note({"of": "batch", **(row := step_row(trainer, output))})
            self.progress = {"loss": f"{row['loss']:.4g}", "l0": f"{row['l0']:.1f}"}
        del output
        if self.resample_steps and done % self.resample_steps == 0 and done + self.resample_steps <= self.steps:
            sample = sample_of(self.rows.batches(done), max(SAMPLE_ROWS // 2, trainer.sae.cfg.d_sae))
            n_dead = resample_dead(trainer, sample, torch_generator(config.seed, _RESAMPLING, done))
            self._note({"of": "resampling", "n_dead": n_dead})
        if done % config.evaluate_every == 0 and not last:
            self._note({"of": self.rows.kind, **self._evaluate()})
        if is_checkpoint and self.metrics is not None:
            save_state(trainer, self.job.folder / CHECKPOINT, extra={"metrics_size": self.metrics.size()})

    def _require_finite(self, loss: torch.Tensor) -> None:
        if not torch.isfinite(distributed.mean(loss)):
            raise InputError(
                f"SAE training diverged at step {self.done}: the loss is not finite; lower lr or scale the rows"
            )

    def _evaluate(self) -> Row:
        sae, scaler = self.trainer.sae, self.trainer.activation_scaler

        def function(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            latents = sae.encode(scaler(batch))
            return latents, scaler.unscale(sae.decode(latents))

        def decoded(latents: torch.Tensor) -> torch.Tensor:
            return scaler.unscale(decode_level(sae, latents))

        levels = Levels(widths, decoded) if (widths := levels_of(sae)) else None
        return measure(function, self.rows.evaluation(), sae.cfg.d_in, sae.cfg.d_sae, self.job.device, levels)

    def _note(self, row: Row) -> None:
        if self.metrics is not None:
            self.metrics.write({"step": self.done, **row})
        if self.tracker is not None:
            self.tracker.log(row, self.done)

    def save(self) -> None:
        """Save the trained SAE in the form in which it is used."""
        trainer = self.trainer
        self.step_together.close()
        if self.config.held_l0 is not None:
            sample = sample_of(self.rows.batches(), min(self.rows.n_rows, _CALIBRATION_ROWS))
            set_l0(trainer.sae, trainer.activation_scaler(sample), self.config.held_l0)
        if hasattr(trainer.sae, "topk_threshold"):  # a moving average from 0, which a short run leaves too small
            trainer.sae.topk_threshold /= 1 - (1 - self.config.threshold_lr) ** self.steps
        if trainer.activation_scaler.scaling_factor is not None:
            trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
            trainer.activation_scaler.scaling_factor = None
        trainer.set_final_sae_metadata()
        trainer.sae.cfg.metadata.dead_feature_window = trainer.cfg.dead_feature_window
        if self.metrics is not None:
            self.metrics.size()
            save_sae(trainer.sae, self.job.folder)
        self.close()

    def close(self) -> None:
        if self.metrics is not None:
            self.metrics.close()
        if self.tracker is not None:
            self.tracker.close()


def _make_trainer(
    store: ActivationStore, config: SAETraining, steps: int, metadata: Mapping[str, Any], device: str
) -> SAETrainer[Any, Any]:
    manifest = store.manifest
    trained_on = _datasets(manifest)
    described = {
        "model_name": manifest["architecture"],
        "hook_name": manifest["hook_name"],
        "layout": "channels_last",
        "image_size": manifest["image_size"],
        "dataset_path": " + ".join(trained_on) or manifest["dataset_name"],
        **({"trained_on": trained_on} if trained_on else {}),
        "dataset_fingerprint": manifest["dataset"],
        "splits": manifest["splits"],
        "model_fingerprint": manifest["model"],
        "model_source": manifest["source"],
        **({INPUT_NORMALIZATION: UNIT_L2} if config.normalize_activations == UNIT_L2 else {}),
        "seed": config.seed,
        "training": config.model_dump(mode="json"),
        "mammosae_version": __version__,
        "sae_lens_version": sae_lens_version,
        **plain(metadata),
    }
    json.dumps(described)  # SAELens would find out only after the weights are written
    sae = new_training_sae(config, store.d_in, metadata=SAEMetadata(**described), device=device)
    if levels := levels_of(sae):
        sae.cfg.metadata[LEVELS] = list(levels)
        if getattr(sae.cfg, "matryoshka_k", None):
            sae.cfg.metadata["k"] = list(sae.cfg.matryoshka_k)
    trainer_config = SAETrainerConfig(
        total_training_samples=steps * config.batch_size,
        train_batch_size_samples=config.batch_size,
        lr=config.lr,
        lr_end=config.lr / 10 if config.lr_end is None else config.lr_end,
        lr_scheduler_name={"constant": "constant", "cosine": "cosineannealing"}[config.lr_schedule],
        lr_warm_up_steps=config.warm_up_steps(steps),
        lr_decay_steps=config.lr_decay_steps,
        device=device,
        autocast=config.autocast,
        dead_feature_window=config.dead_feature_window,
    )
    trainer: SAETrainer[Any, Any] = SAETrainer(trainer_config, sae, iter(()))
    if torch.device(device).type in ("cpu", "cuda"):
        for group in trainer.optimizer.param_groups:
            group.update(fused=True, foreach=False)  # Adam in one pass over the weights
    return trainer


def _datasets(manifest: Mapping[str, Any]) -> list[str]:
    """Short names of the data behind a store; empty where the store does not know.

    In stores of earlier versions phantoms go by the name of VinDr's reader; their ids say that they were drawn.
    """
    drawn = [str(image_id).startswith(PHANTOM_ID) for image_id in manifest["image_ids"]]
    if drawn and all(drawn):
        return ["phantom"]
    names = [name for name in str(manifest["dataset_name"]).split(" + ") if name != NOT_KNOWN]
    return list(dict.fromkeys([*(["phantom"] if any(drawn) else []), *names]))


def _finish(job: _Job, plan: Mapping[str, Any], rows: TrainingRows) -> SAE[Any]:
    """Load a trained SAE; judge it in its final form, draw its course and write its card where that is not yet done."""
    folder = job.folder
    finished = distributed.on_main((folder / CARD).exists)  # which waits for the first process to have saved it
    distributed.on_main(partial(_require_as_written, folder))
    if (architecture := read_json(folder / CFG).get("architecture")) not in SAE_CLASS_REGISTRY:
        raise InputError(f"{folder}: {unregistered(architecture)}")
    try:
        sae: SAE[Any] = SAE.load_from_disk(str(folder), device=job.device)
    except (SafetensorError, RuntimeError, OSError, KeyError, ValueError) as error:
        raise InputError(f"the SAE in {folder} is damaged; delete it and run again") from error
    if not finished:
        rows = job.rows_of(rows)
        levels = Levels(widths, partial(decode_level, sae)) if (widths := levels_of(sae)) else None
        function = partial(_latents_and_reconstruction, sae)
        measured = measure(function, rows.evaluation(), sae.cfg.d_in, sae.cfg.d_sae, job.device, levels)
        n_rows, dead = dead_share(sae.encode, rows.training_sample(), sae.cfg.d_sae, job.device)
        measured |= {"dead_share_in_training": dead, "rows_in_training": n_rows}
        distributed.on_main(partial(_write_end, job, plan, rows.kind, sae, measured))
    distributed.on_main(partial(_tidy, folder))
    return sae


def _require_as_written(folder: Path) -> None:
    """Refuse an SAE that was changed since its training ended; those of earlier versions have no digests."""
    for name in changed_files(folder, read_json(folder / PLAN).get(DIGESTS, {})):
        raise InputError(
            f"{folder / name} is missing or was changed after the training wrote it; restore it, or delete "
            f"{folder} and train again"
        )


def _tidy(folder: Path) -> None:
    (folder / CHECKPOINT).unlink(missing_ok=True)
    remove_temporaries(folder)


def _write_end(job: _Job, plan: Mapping[str, Any], kind: str, sae: SAE[Any], measured: Row) -> None:
    """The last line of the metrics, their figure and the card of a trained SAE."""
    folder = job.folder
    course = [row for row in read_metrics(folder / METRICS) if not row.get("final")]
    last: Row = {
        "step": plan["steps"],
        "of": kind,
        "final": True,
        **measured,
        **plain((job.final_metrics(sae) if job.final_metrics is not None else None) or {}),
    }
    for problem in problems_of(job.config, last):
        logger.warning("%s: %s", folder, problem)
    write_text(folder / METRICS, "".join(json.dumps(row) + "\n" for row in [*course, last]))
    draw_metrics([*course, last], folder / FIGURE)
    cards = Environment(
        loader=PackageLoader("mammosae_plugin", "hub_cards"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )  # Markdown: nothing to escape
    digests = {name: sha256_of_file(folder / name) for name in (CFG, WEIGHTS)}
    write_json(folder / PLAN, {**read_json(folder / PLAN), DIGESTS: digests})
    cfg = {**sae.cfg.to_dict(), "metadata": sae.cfg.metadata.to_dict()}
    card = cards.get_template("training.md.j2")
    told = {"images": images_called(cfg["metadata"].get("trained_on") or []), "acting": job.config.acting()}
    write_text(folder / CARD, card.render(cfg=cfg, config=plan["config"], last=last, **told))


def _latents_and_reconstruction(sae: SAE[Any], batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    latents = sae.encode(batch)
    return latents, sae.decode(latents)
