"""From our settings to SAELens's training SAEs.

Our coefficients belong to the mean of the squared error over the features of a row, SAELens's to its sum: a coefficient
there is ours times the width d_in.
"""

from typing import Any

from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatchingPursuitTrainingSAE,
    MatchingPursuitTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)

from mammosae_plugin import distributed
from mammosae_plugin.training.parallel import ParallelBatchTopKTrainingSAE, ParallelMatryoshkaBatchTopKTrainingSAE
from mammosae_plugin.training.settings import SAETraining

_CLASSES: dict[str, tuple[Any, Any]] = {
    "standard": (StandardTrainingSAE, StandardTrainingSAEConfig),
    "gated": (GatedTrainingSAE, GatedTrainingSAEConfig),
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    "jumprelu": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig),
    "matryoshka_batchtopk": (MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig),
    "matching_pursuit": (MatchingPursuitTrainingSAE, MatchingPursuitTrainingSAEConfig),
}

_OVER_PROCESSES: dict[str, Any] = {
    "batchtopk": ParallelBatchTopKTrainingSAE,
    "matryoshka_batchtopk": ParallelMatryoshkaBatchTopKTrainingSAE,
}


def new_training_sae(config: SAETraining, d_in: int, *, metadata: Any, device: str) -> Any:
    """A SAELens training SAE with fresh weights, drawn from torch's global generator.

    Args:
        config: The settings, whose k and widths fit the number of latents.
        d_in: Width of a row.
        metadata: A `SAEMetadata`.
        device: Where its weights lie.
    """
    kind, kind_of_config = _CLASSES[config.architecture]
    if distributed.world_size() > 1:
        kind = _OVER_PROCESSES.get(config.architecture, kind)
    d_sae = config.d_sae_for(d_in)
    return kind(
        kind_of_config(
            d_in=d_in,
            d_sae=d_sae,
            normalize_activations=config.normalize_activations,
            apply_b_dec_to_input=True,
            device=device,
            metadata=metadata,
            **_own_settings(config, d_in, d_sae),
        )
    )


def _own_settings(config: SAETraining, d_in: int, d_sae: int) -> dict[str, Any]:
    coefficient = config.sparsity * d_in
    match config.architecture:
        case "standard" | "gated":
            return {"l1_coefficient": coefficient, "l1_warm_up_steps": config.sparsity_warm_up_steps}
        case "jumprelu":
            return {
                "l0_coefficient": coefficient,
                "l0_warm_up_steps": config.sparsity_warm_up_steps,
                "jumprelu_init_threshold": config.jumprelu_threshold,
                "jumprelu_bandwidth": config.jumprelu_bandwidth,
                "jumprelu_sparsity_loss_mode": "step" if config.k is None else "quadratic",
                "target_l0": config.k,
                "pre_act_loss_coefficient": config.pre_act_loss,
            }
        case "matching_pursuit":
            return {
                "max_iterations": None if config.k is None else int(config.k),
                "residual_threshold": config.residual_threshold,
                "decoder_init_norm": 1.0,
            }
        case _:
            assert config.k is not None
            # Rows of norm 1: a step of Adam turns shorter ones far, and at SAELens's 0.1 half of the latents die early.
            own: dict[str, Any] = {"k": config.k, "aux_loss_coefficient": config.aux_loss, "decoder_init_norm": 1.0}
            if config.architecture == "topk":
                return {**own, "k": int(config.k)}
            own["topk_threshold_lr"] = config.threshold_lr
            if config.architecture == "matryoshka_batchtopk":
                nested = (d_sae // 8, d_sae // 4, d_sae // 2, d_sae)
                own["matryoshka_widths"] = list(config.matryoshka_widths or nested)
            return own
