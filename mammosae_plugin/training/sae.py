"""Training a SAELens `standard` SAE on stored activation rows, with the objective of the paper.

The paper and the released code minimise, over rows x with reconstruction x' and latents z,

    mean over features (x - x')^2  +  lambda * sum_i |z_i|          (decoder rows at unit norm)

SAELens sums the squared error over the d features and weighs each latent by its decoder row's norm, which is the same
penalty without the constraint. Multiplying the objective by d gives its coefficient: l1_coefficient = lambda * d (3e-5
* 2048 = 0.06144). After training the norms are folded into the latents, so that the decoder rows of the saved SAE have
unit norm.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field
from sae_lens import SAE, StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens import __version__ as sae_lens_version
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from safetensors import SafetensorError
from tqdm.auto import tqdm

from mammosae_plugin import __version__
from mammosae_plugin.activations import ActivationStore
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json, sha256_of_json, write_json, write_text
from mammosae_plugin.provenance import plain, seed_everything
from mammosae_plugin.training.saving import CFG, save_sae

logger = logging.getLogger(__name__)

PLAN, CHECKPOINTS, LOG = "training.json", "checkpoints", "training_log.jsonl"
LOG_EVERY = 20  # steps


class SAETraining(BaseModel):
    """How an SAE is trained. The defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    d_sae: int | None = Field(None, gt=0, description="Number of latents; None means expansion_factor times the width.")
    expansion_factor: int = Field(8, gt=0, description="Latents per feature of the map, where d_sae is not given.")
    epochs: float = Field(200.0, gt=0, description="Passes over the stored rows.")
    lr: float = Field(3e-4, gt=0, description="Adam's learning rate (the released scripts used 5e-4).")
    lr_warm_up_steps: int = Field(0, ge=0, description="Steps of linear warm-up of the learning rate.")
    lr_decay_steps: int = Field(0, ge=0, description="Steps of linear decay to lr / 10 at the end.")
    sparsity: float = Field(
        3e-5, ge=0, description="The paper's lambda; SAELens's l1_coefficient is lambda times the width."
    )
    sparsity_warm_up_steps: int = Field(0, ge=0, description="Steps over which lambda rises from 0.")
    batch_size: int = Field(4096, gt=0, description="Rows per step.")
    normalize_activations: Literal["none", "expected_average_only_in"] = Field(
        "none",
        description="Scale rows to a mean norm of sqrt(width) while training; folded into the weights afterwards.",
    )
    dead_feature_window: int = Field(
        1000, gt=0, description="Steps without firing after which a latent counts as dead."
    )
    checkpoint_every: int = Field(500, gt=0, description="Steps between checkpoints from which a killed run continues.")
    autocast: bool = Field(False, description="Run the step under bfloat16 autocast.")
    seed: int = Field(0, ge=0, description="Seeds the initial weights and the order of the rows.")


def train_sae(
    store: ActivationStore,
    folder: str | Path,
    config: SAETraining | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Any:
    """Train a SAELens `standard` SAE on the rows of a store and save it in SAELens's format.

    The run can be killed at any moment and made again: it continues from its last checkpoint and ends with the same
    weights. The folder then holds `cfg.json` and `sae_weights.safetensors` (plain SAELens loads them), the training log
    and a card.

    Args:
        store: The rows, (n, d) float32.
        folder: Where the SAE goes.
        config: How to train.
        metadata: What else the SAE's metadata should say (preprocessing, concept, ...); plain JSON values.
        device: Where training runs.

    Returns:
        The `sae_lens.StandardSAE` as a user loads it from the folder.

    Raises:
        InputError: The folder holds an SAE of other settings, or the rows are fewer than one batch.
    """
    config, folder = config or SAETraining(), Path(folder)
    steps = int(store.n_rows * config.epochs // config.batch_size)
    if steps < 1:
        raise InputError(
            f"{store.folder} holds {store.n_rows} rows, which is not one batch of {config.batch_size} in "
            f"{config.epochs:g} epochs; lower batch_size or keep more positions"
        )
    plan = {"config": config.model_dump(), "activations": store.manifest, "metadata": plain(metadata or {})}
    plan_hash = sha256_of_json(plan)
    if (folder / PLAN).exists():
        if read_json(folder / PLAN)["plan_sha256"] != plan_hash:
            raise InputError(f"{folder} holds an SAE of other settings; name another folder or delete this one")
    else:
        write_json(folder / PLAN, {"plan_sha256": plan_hash, "config": plan["config"], "steps": steps})
    if not (folder / CFG).exists():
        seed_everything(config.seed)
        trainer = _make_trainer(store, config, steps, metadata or {}, device)
        log = _resume(trainer, folder / CHECKPOINTS)
        _run(trainer, store, config, steps, folder / CHECKPOINTS, log)
        _save(trainer, folder, log, plan)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    try:
        return SAE.load_from_disk(str(folder), device=device)
    except (SafetensorError, RuntimeError, OSError, KeyError, ValueError) as error:
        raise InputError(f"the SAE in {folder} is damaged; delete the folder and run again") from error


def _make_trainer(
    store: ActivationStore, config: SAETraining, steps: int, metadata: Mapping[str, Any], device: str
) -> Any:
    d_in = store.d_in
    manifest = store.manifest
    described = {
        "model_name": manifest["architecture"],
        "hook_name": manifest["hook_name"],
        "layout": "channels_last",
        "image_size": manifest["image_size"],
        "dataset_path": manifest["dataset_name"],
        "dataset_fingerprint": manifest["dataset"],
        "splits": manifest["splits"],
        "model_fingerprint": manifest["model"],
        "model_source": manifest["source"],
        "seed": config.seed,
        "training": config.model_dump(),
        "mammosae_version": __version__,
        "sae_lens_version": sae_lens_version,
        **plain(metadata),
    }
    json.dumps(described)  # SAELens would find out only after the weights are written
    sae = StandardTrainingSAE(
        StandardTrainingSAEConfig(
            d_in=d_in,
            d_sae=config.d_sae or config.expansion_factor * d_in,
            l1_coefficient=config.sparsity * d_in,
            l1_warm_up_steps=config.sparsity_warm_up_steps,
            normalize_activations=config.normalize_activations,
            apply_b_dec_to_input=True,
            device=device,
            metadata=SAEMetadata(**described),
        )
    )
    trainer_config = SAETrainerConfig(
        total_training_samples=steps * config.batch_size,
        train_batch_size_samples=config.batch_size,
        lr=config.lr,
        lr_end=config.lr / 10,
        lr_warm_up_steps=config.lr_warm_up_steps,
        lr_decay_steps=config.lr_decay_steps,
        device=device,
        autocast=config.autocast,
        dead_feature_window=config.dead_feature_window,
    )
    trainer: Any = SAETrainer(trainer_config, sae, iter(()))
    if config.normalize_activations == "expected_average_only_in":
        n_batches = max(1, min(100, store.n_rows // config.batch_size))
        rows = store.batches(config.batch_size, seed=config.seed)
        trainer.activation_scaler.estimate_scaling_factor(d_in, rows, n_batches)
    return trainer


def _run(
    trainer: Any, store: ActivationStore, config: SAETraining, steps: int, checkpoints: Path, log: list[dict[str, Any]]
) -> None:
    """The loop over SAELens's public `step`: its own `fit` cannot continue a run or show progress to a logger."""
    done: int = trainer.n_training_steps
    batches = store.batches(config.batch_size, seed=config.seed, start=done)
    with tqdm(total=steps, initial=done, desc="train SAE", unit="step", dynamic_ncols=True) as bar:
        for batch in batches:
            if done >= steps:
                break
            trainer.maybe_reset_sparsity()
            output = trainer.step(batch)
            trainer.n_training_steps += 1
            done = trainer.n_training_steps
            if done % LOG_EVERY == 0 or done == steps:
                row = trainer.build_train_step_log_dict(output=output, n_training_samples=trainer.n_training_samples)
                if not torch.isfinite(torch.tensor(row["losses/overall_loss"])):
                    raise InputError(
                        f"SAE training diverged at step {done}: the loss is not finite; lower lr or scale the rows"
                    )
                log.append({"step": done, **plain(row)})
                bar.set_postfix(loss=f"{row['losses/overall_loss']:.4g}", l0=f"{row['metrics/l0']:.1f}")
            bar.update()
            if done % config.checkpoint_every == 0 and done < steps:
                _checkpoint(trainer, checkpoints, log)


def _checkpoint(trainer: Any, checkpoints: Path, log: list[dict[str, Any]]) -> None:
    # The optimiser's state is in SAELens's own format, the one that its documented resume reads; it is deleted at the
    # end.
    temporary, final = checkpoints / ".tmp", checkpoints / f"step-{trainer.n_training_steps:08d}"
    shutil.rmtree(temporary, ignore_errors=True)
    trainer.save_checkpoint(temporary.name, base_path=checkpoints)
    write_json(temporary / "log.json", log)
    os.replace(temporary, final)
    for older in checkpoints.glob("step-*"):
        if older != final:
            shutil.rmtree(older)


def _resume(trainer: Any, checkpoints: Path) -> list[dict[str, Any]]:
    found = sorted(checkpoints.glob("step-*"))
    if not found:
        return []
    trainer.load_trainer_state(found[-1])
    trainer.sae.load_weights_from_checkpoint(found[-1])
    logger.info("continuing SAE training at step %d", trainer.n_training_steps)
    log: list[dict[str, Any]] = read_json(found[-1] / "log.json")
    return log


def _save(trainer: Any, folder: Path, log: list[dict[str, Any]], plan: Mapping[str, Any]) -> None:
    sae = trainer.sae
    if trainer.activation_scaler.scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
        trainer.activation_scaler.scaling_factor = None
    trainer.set_final_sae_metadata()
    sae.cfg.metadata.dead_feature_window = trainer.cfg.dead_feature_window
    write_text(folder / LOG, "".join(json.dumps(row) + "\n" for row in log))
    cards = Environment(
        loader=PackageLoader("mammosae_plugin", "hub_cards"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )  # Markdown: nothing to escape
    cfg = sae.cfg.get_inference_sae_cfg_dict()
    write_text(
        folder / "README.md", cards.get_template("sae.md.j2").render(cfg=cfg, config=plan["config"], last=log[-1])
    )
    save_sae(sae, folder)  # last: with its cfg.json the folder is complete
