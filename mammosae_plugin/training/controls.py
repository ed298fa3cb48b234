"""What a trained SAE is held against: the same without training, without learnt directions, without its encoder, PCA.

Each control is a SAELens SAE of the same rows. An untrained SAE fires at half of its latents and one with a permuted
encoder as it comes; so that their L0 is that of the SAE, one number is added to all thresholds (to all biases of the
encoder, where there are no thresholds). Architectures that fix the number of latents per row need none of that.
"""

__all__ = [
    "frozen", "match_l0", "measured_l0", "pca_sae", "permuted_encoder", "PlannedTraining", "training_of",
    "untrained_like", "untrained_sae",
]  # fmt: skip

import contextlib
import copy
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

from mammosae_plugin.adapters.input_normalization import (
    INPUT_NORMALIZATION,
    UNIT_L2,
    input_normalization,
    normalized,
)
from mammosae_plugin.adapters.levels import levels_of
from mammosae_plugin.errors import InputError
from mammosae_plugin.provenance import seed_everything, torch_generator
from mammosae_plugin.training.new_sae import new_training_sae
from mammosae_plugin.training.resampling import geometric_median
from mammosae_plugin.training.saving import save_sae
from mammosae_plugin.training.settings import SAETraining

_CHUNK = 1024
_PERMUTATION = 3  # its random stream
_KEPT = ("model_name", "hook_name", "layout", "image_size", INPUT_NORMALIZATION)
_STEPS = ("lr_warm_up_steps", "lr_decay_steps", "sparsity_warm_up_steps", "dead_feature_window", "resample_every")
_LEAST_STEPS = 50


@dataclass(frozen=True)
class PlannedTraining:
    """How seeds of an SAE are trained.

    Attributes:
        settings: Of the first; the others differ in their seed.
        known: Whether they are the SAE's own, which its metadata say, and not chosen here.
        rows_seen: Rows that each is trained over, counted every time that they are read.
        own_batch_size: Of the SAE itself, where its batches were larger than there are rows for; else None.
    """

    settings: SAETraining
    known: bool
    rows_seen: int
    own_batch_size: int | None = None


def training_of(sae: SAE[Any], n_rows: int, *, l0: float, most_rows: int) -> PlannedTraining:
    """How to train seeds of an SAE on rows: as it was trained itself, over `most_rows` rows at the most.

    Where it must be shorter, schedules that count steps are shortened in proportion. An SAE that does not say how it
    was trained gets a batch top-k SAE of its size and its L0, nested where it has levels.

    Args:
        sae: The SAE.
        n_rows: Rows to train on.
        l0: Latents of the SAE that fire per row.
        most_rows: Rows to train over, counted every time that they are read.

    Raises:
        InputError: The settings in its metadata cannot be read.
    """
    said: Any = sae.cfg.metadata.training
    if isinstance(said, dict):
        try:
            own = SAETraining(**said)
        except ValueError as error:
            raise InputError(
                f"the SAE's metadata say how it was trained, but this version cannot: {' '.join(str(error).split())}"
            ) from error
    else:
        levels: dict[str, Any] = {"matryoshka_widths": tuple(levels_of(sae))} if levels_of(sae) else {}
        own = SAETraining(
            architecture="matryoshka_batchtopk" if levels else "batchtopk",
            **levels,
            k=max(1.0, round(l0, 2)),
            epochs=max(1.0, most_rows / n_rows),
            batch_size=1024,
            lr=1e-3,
            dead_feature_window=100,
            normalize_activations=UNIT_L2 if input_normalization(sae) else "expected_average_only_in",
        )
    whole = own.epochs * n_rows
    seen = min(whole, most_rows)
    batch_size = max(1, min(own.batch_size, n_rows, int(seen / _LEAST_STEPS)))
    steps = int(seen // batch_size)
    ratio = min(1.0, steps / max(1.0, whole // own.batch_size))
    values = {
        **own.model_dump(),
        "d_sae": int(sae.cfg.d_sae),
        "epochs": (steps + 0.5) * batch_size / n_rows,
        "batch_size": batch_size,
        "validation_share": 0.0,
        "evaluate_every": 10**9,
        "row_seed": own.order,
        **({"normalize_activations": UNIT_L2} if input_normalization(sae) else {}),
    }
    for name in _STEPS:
        if values[name]:
            values[name] = max(1, int(values[name] * ratio))
    values["dead_feature_window"] = min(values["dead_feature_window"], max(1, steps - 1))
    known = isinstance(said, dict)
    smaller = own.batch_size if known and batch_size < own.batch_size else None
    return PlannedTraining(SAETraining(**values), known, steps * batch_size, smaller)


def frozen(settings: SAETraining) -> SAETraining:
    """The same training with the latents' directions left at random.

    A tied encoder is set free, or nothing would learn; dead latents are not resampled, which changes directions.
    """
    further = {name: value for name, value in (settings.architecture_settings or {}).items() if name != "tied_weights"}
    own = {"frozen_decoder": True, "init": "random", "resample_every": None, "resample_epochs": None}
    return SAETraining(**{**settings.model_dump(), **own, "architecture_settings": further or None})


@torch.no_grad()
def measured_l0(sae: SAE[Any], rows: torch.Tensor) -> float:
    """Latents of an SAE that fire per row of (n, d_in), on average."""
    fired = sum(int(torch.count_nonzero(sae.encode(normalized(sae, part)[0]))) for part in torch.split(rows, _CHUNK))
    return fired / len(rows)


def untrained_sae(settings: SAETraining, rows: torch.Tensor, *, seed: int, like: SAE[Any], l0: float) -> SAE[Any]:
    """The SAE that training starts from: SAELens's random weights, the bias at the median where training starts there.

    Args:
        settings: Of the training that it is not given.
        rows: (n, d_in), by which bias and L0 are set.
        seed: Of the weights.
        like: The SAE whose input and layer it shares.
        l0: Latents that shall fire per row.
    """
    seed_everything(seed)
    sae = new_training_sae(settings, int(like.cfg.d_in), metadata=_metadata(like), device="cpu")
    given = normalized(like, rows)[0]
    scaled = settings.normalize_activations == "expected_average_only_in"
    scale = given.shape[1] ** 0.5 / float(given.norm(dim=1).mean()) if scaled else 1.0
    if settings.starts_at_median:
        with torch.no_grad():
            sae.b_dec.copy_(geometric_median(given * scale))
    if scaled:
        sae.fold_activation_norm_scaling_factor(scale)
    with TemporaryDirectory() as folder:  # SAELens makes the form in which an SAE is used when it saves one
        used: SAE[Any] = SAE.load_from_disk(save_sae(sae, folder))
    match_l0(used, given, l0)
    return used


def untrained_like(sae: SAE[Any], rows: torch.Tensor, *, seed: int) -> SAE[Any]:
    """An untrained SAE of an SAE's own architecture and size, of whose latents as many fire on rows.

    It is what the training that the SAE's metadata tell of started from, or, where they tell of none, what a training
    of its architecture starts from; where SAELens trains none of that, a batch top-k SAE's.

    Args:
        sae: A SAELens SAE.
        rows: (n, d_in), by which bias and L0 are set.
        seed: Of the weights.
    """
    l0, n = measured_l0(sae, rows), int(sae.cfg.d_sae)
    said: Any = sae.cfg.metadata.training
    k = min(float(n), max(1.0, float(getattr(sae.cfg, "k", 0) or round(l0))))
    own = {"architecture": sae.cfg.architecture()}
    told = [said] if isinstance(said, dict) else []
    for values in (*told, own, {**own, "k": k}, {"architecture": "batchtopk", "k": k}):
        with contextlib.suppress(ValueError):
            return untrained_sae(SAETraining(**{**values, "d_sae": n}), rows, seed=seed, like=sae, l0=l0)
    raise InputError(f"no untrained SAE can be made of the architecture {sae.cfg.architecture()!r} and {n} latents")


@torch.no_grad()
def permuted_encoder(sae: SAE[Any], rows: torch.Tensor, *, seed: int, l0: float) -> SAE[Any]:
    """The SAE with each latent's encoder weights in a random order over the input's dimensions; the rest is as it was.

    Args:
        sae: A SAELens SAE.
        rows: (n, d_in), by which L0 is set.
        seed: Of the orders, one of each latent.
        l0: Latents that shall fire per row.

    Raises:
        InputError: It has no encoder of its own.
    """
    if "W_enc" not in dict(sae.named_parameters()):
        raise InputError(f"the architecture {sae.cfg.architecture()!r} has no encoder that could be permuted")
    changed = copy.deepcopy(sae).to("cpu")
    weights = changed.W_enc
    order = torch.rand(weights.shape, generator=torch_generator(seed, _PERMUTATION)).argsort(dim=0)
    weights.copy_(torch.gather(weights, 0, order))
    match_l0(changed, normalized(changed, rows)[0], l0)
    return changed


def pca_sae(rows: torch.Tensor, *, like: SAE[Any], l0: float) -> SAE[Any]:
    """Principal components as an SAE: positive and negative part of each a latent, the largest of each row kept.

    Half as many components as the SAE has latents, at most as many as the rows have dimensions; the mean is the bias.

    Args:
        rows: (n, d_in).
        like: The SAE whose input, layer and number of latents it shares.
        l0: Latents that fire per row, rounded.
    """
    given = normalized(like, rows)[0].double()
    mean = given.mean(0)
    _, vectors = torch.linalg.eigh((given - mean).T @ (given - mean))
    n = max(1, min(int(like.cfg.d_sae) // 2, given.shape[1], len(given)))
    components = vectors.flip(1)[:, :n].T
    # The sign of a component is the eigensolver's own affair: its largest weight is positive.
    largest = components.abs().argmax(dim=1)
    components = components * torch.sign(components[torch.arange(n), largest])[:, None]
    k = max(1, min(n, round(l0)))
    config = TopKSAEConfig(
        d_in=int(like.cfg.d_in), d_sae=2 * n, k=k, device="cpu", apply_b_dec_to_input=True, metadata=_metadata(like)
    )
    sae = TopKSAE(config)
    both = torch.cat([components, -components]).float()
    with torch.no_grad():
        sae.W_dec.copy_(both)
        sae.W_enc.copy_(both.T)
        sae.b_enc.zero_()
        sae.b_dec.copy_(mean.float())
    return sae


@torch.no_grad()
def match_l0(sae: SAE[Any], rows: torch.Tensor, l0: float) -> None:
    """Add one number to all thresholds, or to all biases of the encoder, so that `l0` latents per row fire.

    Thresholds stay at 0 or above. Of an architecture that has neither, or fixes the number itself, nothing is changed.

    Args:
        sae: A SAELens SAE in the form in which it is used.
        rows: (n, d_in) as the SAE wants them.
        l0: Latents that shall fire per row, on average.
    """
    architecture = sae.cfg.architecture()
    if architecture not in ("standard", "jumprelu", "gated"):
        return
    weights: Any = sae
    n_kept = int(round(l0 * len(rows)))
    largest = torch.empty(0)
    for part in torch.split(rows, _CHUNK):
        given = sae.process_sae_in(part.to(sae.dtype)) @ weights.W_enc
        if architecture == "gated":
            margins = given + weights.b_gate
        else:
            margins = given + weights.b_enc - (weights.threshold if architecture == "jumprelu" else 0)
        largest = torch.cat([largest, margins.flatten().float()])
        largest = largest.topk(min(n_kept + 1, len(largest))).values
    if not 0 < n_kept < len(largest):
        return
    least = (largest[n_kept - 1] + largest[n_kept]) / 2  # half between the last that fires and the first that does not
    if architecture == "jumprelu":
        weights.threshold.copy_((weights.threshold + least).clamp_min(0))
    elif architecture == "gated":
        weights.b_gate.sub_(least)
    else:
        weights.b_enc.sub_(least)


def _metadata(like: SAE[Any]) -> SAEMetadata:
    said = like.cfg.metadata.to_dict()
    return SAEMetadata(**{name: said[name] for name in _KEPT if said.get(name) is not None})
