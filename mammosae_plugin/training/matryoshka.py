"""SAIL's Matryoshka SAE as an architecture of SAELens: every level its own batch top-k over its own prefix.

SAELens's `matryoshka_batchtopk` (Bussmann et al., arXiv 2503.17547) chooses the latents of a batch once, and a level
has those of them that lie in its prefix. Here level l, the first m_l latents, chooses by itself the k_l * B largest of
its block of a batch of B rows (SAIL, arXiv 2603.23794), so that each level has the budget that it was given. The loss
is the mean over levels of the squared error. Unlike SAIL's code, values are made positive before they are chosen, and
gradients go through the decoder too.

In use it is a JumpReLU SAE with the threshold of the largest level, as SAELens's batch top-k SAEs are. Importing this
module registers it with SAELens, so that `TrainingSAE.from_dict` and SAELens's trainers know it by name.
"""

__all__ = [
    "level_budgets", "MATRYOSHKA_INDEPENDENT", "MatryoshkaIndependentTrainingSAE",
    "MatryoshkaIndependentTrainingSAEConfig",
]  # fmt: skip

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, register_sae_training_class
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import act_times_W_dec

MATRYOSHKA_INDEPENDENT = "matryoshka_independent"


def level_budgets(widths: Sequence[int], k: float, budgets: Sequence[float] | None) -> list[float]:
    """The latents per row of every level.

    Args:
        widths: Numbers of latents of the levels, rising.
        k: The budget of the last one.
        budgets: Those of all levels; None means k for each, but no more than its width.

    Raises:
        ValueError: There is not one for each level, one is larger than its level, or the last is not k.
    """
    if budgets is None:
        return [min(k, width) for width in widths]
    if len(budgets) != len(widths):
        raise ValueError(f"matryoshka_k has {len(budgets)} budgets, but there are {len(widths)} levels")
    for budget, width in zip(budgets, widths, strict=True):
        if not 0 < budget <= width:
            raise ValueError(f"matryoshka_k gives {budget:g} latents per row to a level of {width}")
    if budgets[-1] != k:
        raise ValueError(f"the last of matryoshka_k is {budgets[-1]:g}, but k is {k:g}; they are the same level's")
    return list(budgets)


@dataclass
class MatryoshkaIndependentTrainingSAEConfig(BatchTopKTrainingSAEConfig):
    """Configuration of a `MatryoshkaIndependentTrainingSAE`.

    Args:
        matryoshka_widths: Numbers of latents of the levels, rising; the last is d_sae.
        matryoshka_k: Latents per row of every level, of which the last is k; None means k for each, but no more than
            its width.
        tied_weights: Whether the encoder is the decoder's transpose, as in SAIL.
        rescale_acts_by_decoder_norm: As SAELens's; SAIL does not.

    Raises:
        ValueError: Widths or budgets that do not fit d_sae and k.
    """

    matryoshka_widths: list[int] = field(default_factory=list)
    matryoshka_k: list[float] | None = None
    tied_weights: bool = False
    rescale_acts_by_decoder_norm: bool = False

    @classmethod
    def architecture(cls) -> str:
        """SAELens's name of it."""
        return MATRYOSHKA_INDEPENDENT

    def __post_init__(self) -> None:
        """Check the levels."""
        widths = self.matryoshka_widths
        if not widths or widths[0] <= 0 or widths != sorted(set(widths)) or widths[-1] != self.d_sae:
            raise ValueError(f"matryoshka_widths {widths} must be positive, rise, and end with d_sae, {self.d_sae}")
        self.matryoshka_k = level_budgets(widths, self.k, self.matryoshka_k)
        super().__post_init__()  # type: ignore[no-untyped-call]


class MatryoshkaIndependentTrainingSAE(BatchTopKTrainingSAE):
    """A Matryoshka SAE in training whose levels choose their latents independently."""

    cfg: MatryoshkaIndependentTrainingSAEConfig

    def __init__(self, cfg: MatryoshkaIndependentTrainingSAEConfig, use_error_term: bool = False) -> None:
        """Draw the weights; of tied ones W_enc is not trained, and is set when the SAE is saved or folded."""
        super().__init__(cfg, use_error_term)
        self.is_tied = cfg.tied_weights
        self.W_enc.requires_grad_(not self.is_tied)

    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (b, d_in) to the latents of the largest level and what they were chosen from, (b, d_sae) each."""
        encoder = self.W_dec.T if self.is_tied else self.W_enc
        hidden = self.hook_sae_acts_pre(self.process_sae_in(x) @ encoder + self.b_enc)
        if self.cfg.rescale_acts_by_decoder_norm:
            hidden = hidden * self.W_dec.norm(dim=-1)
        return self.hook_sae_acts_post(self.activation_fn(hidden)), hidden

    def levels(self, hidden: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Latents (b, m_l) and reconstruction (b, d_in) of every level but the largest, from (b, d_sae)."""
        assert self.cfg.matryoshka_k is not None  # the configuration has set it
        batch_top_k: Any = type(self.activation_fn)  # under torchrun that which chooses among the rows of all processes
        inner = list(zip(self.cfg.matryoshka_widths, self.cfg.matryoshka_k, strict=True))[:-1]
        latents = [batch_top_k(k)(hidden[:, :width]) for width, k in inner]
        return list(zip(latents, self.decode_levels(latents), strict=True))

    def decode_levels(self, latents: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Latents (b, m_l) of some levels to their reconstructions, (b, d_in) each."""
        rescaled = self.cfg.rescale_acts_by_decoder_norm
        decoded = [act_times_W_dec(each, self.W_dec[: each.shape[1]], rescaled) + self.b_dec for each in latents]
        return [self.run_time_activation_norm_fn_out(each) for each in decoded]  # type: ignore[has-type]

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """The loss is the mean over levels of the squared error, summed over features, and the auxiliary loss."""
        output = super().training_forward_pass(step_input)
        auxiliary = [loss for name, loss in output.losses.items() if name != "mse_loss"]
        errors = [output.losses["mse_loss"]]
        for width, (_, reconstruction) in zip(self.cfg.matryoshka_widths, self.levels(output.hidden_pre), strict=False):
            error = self.mse_loss_fn(reconstruction, step_input.sae_in).sum(dim=-1).mean()
            output.losses[f"inner_mse_loss_{width}"] = error
            errors.append(error)
        output.loss = torch.stack(errors).mean() + sum(auxiliary)
        return output

    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        """Write the encoder that is used."""
        if self.is_tied:
            state_dict["W_enc"] = state_dict["W_dec"].T.clone(memory_format=torch.contiguous_format)

    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """As SAELens does it; tied weights are two matrices from here on."""
        self._untie()
        super().fold_activation_norm_scaling_factor(scaling_factor)

    def fold_W_dec_norm(self) -> None:
        """As SAELens does it; tied weights are two matrices from here on."""
        self._untie()
        super().fold_W_dec_norm()

    @torch.no_grad()
    def _untie(self) -> None:
        if self.is_tied:
            self.W_enc.copy_(self.W_dec.T)
            self.is_tied = False


if MATRYOSHKA_INDEPENDENT not in SAE_TRAINING_CLASS_REGISTRY:
    register_sae_training_class(
        MATRYOSHKA_INDEPENDENT, MatryoshkaIndependentTrainingSAE, MatryoshkaIndependentTrainingSAEConfig
    )
