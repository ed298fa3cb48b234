"""The training step of SAELens's top-k family through the latents that fire alone: the same gradients, less work.

SAELens multiplies a batch with the decoder through all latents, and backwards through all again, though all but k per
row are zero: six products of the size of the encoder's. Of these only the encoder's own is needed. Its values at the
places where latents fire go through the decoder (`sparse_products`), and gradients come back to these places alone. The
auxiliary loss, by which dead latents learn the error, is computed over the dead latents alone.

Nothing else changes: which latents fire, counters and schedules are SAELens's own code, and what it returns hangs in
the same graph, so that a loss that uses latents in another way has the right gradient too, only slower. Where an
assumption does not hold (autocast, hooks, rows with gradients) the step is SAELens's.

Of SAELens it is assumed, and tested one by one in tests/test_sparse_step.py, that its step encodes once with
`encode_with_hidden_pre` and decodes that very tensor with `decode`; that latents that fire are pre-activations, times
the norms of the decoder's rows if they are rescaled; and what the two auxiliary losses and the inner losses of its
Matryoshka SAE are, which stand here anew.

Where activations are rescaled by the decoder's norms these cancel in the product of a latent and its row, for which
SAELens's gradient has two terms whose sum is rounding.
"""

__all__ = ["over_places"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from sae_lens import BatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAE, TopKTrainingSAE, TrainingSAE
from sae_lens.saes.abstopk_sae import AbsTopKTrainingSAE
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch.autograd.function import once_differentiable

from mammosae_plugin.sparse_products import Places
from mammosae_plugin.training.matryoshka import MatryoshkaIndependentTrainingSAE

# Of other classes nothing is known about how they encode.
_FAMILY = (
    TopKTrainingSAE, AbsTopKTrainingSAE, BatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaIndependentTrainingSAE,
)  # fmt: skip


def over_places(kind: type[TrainingSAE[Any]], known: type[TrainingSAE[Any]]) -> type[TrainingSAE[Any]]:
    """The class of a training SAE whose step goes through the latents that fire.

    Args:
        kind: The class, or one that `parallel.over_processes` made of it.
        known: The class as SAELens's registry has it; of other than the top-k family `kind` is returned.
    """
    return _sparse(kind) if known in _FAMILY else kind


@cache
def _sparse(kind: type[TrainingSAE[Any]]) -> type[TrainingSAE[Any]]:
    return type(f"Sparse{kind.__name__}", (_SparseStep, kind), {"__doc__": kind.__doc__})


@dataclass(frozen=True)
class _Encoded:
    """A batch in a step: rows as the encoder sees them (b, d_in), and the latents that fire (b, d_sae)."""

    inputs: torch.Tensor
    latents: torch.Tensor


class _SparseStep:
    """What replaces the decoder's and the auxiliary loss's products in a SAELens training SAE of the top-k family."""

    cfg: Any
    W_enc: torch.Tensor
    W_dec: torch.Tensor
    b_enc: torch.Tensor
    b_dec: torch.Tensor
    _is_stepping = False
    _encoded: _Encoded | None = None

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """As SAELens's."""
        self._is_stepping = self._may(step_input.sae_in)
        sae: Any = self
        try:
            if self._is_stepping and isinstance(sae, MatryoshkaBatchTopKTrainingSAE):
                return self._with_inner_losses(BatchTopKTrainingSAE.training_forward_pass(sae, step_input))
            output: TrainStepOutput = super().training_forward_pass(step_input)  # type: ignore[misc]
            return output
        finally:
            self._is_stepping, self._encoded = False, None

    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As SAELens's; in a step what was encoded is kept."""
        latents, hidden = super().encode_with_hidden_pre(x)  # type: ignore[misc]
        if self._is_stepping:
            with torch.no_grad():
                inputs = self.process_sae_in(x)  # type: ignore[attr-defined]
            self._encoded = _Encoded(inputs, latents)
        return latents, hidden

    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        """As SAELens's; in a step through the latents that fire."""
        if self._encoded is not None and feature_acts is self._encoded.latents:
            return self._reconstructions([feature_acts])[0]
        decoded: torch.Tensor = super().decode(feature_acts)  # type: ignore[misc]
        return decoded

    def decode_levels(self, latents: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Those of `MatryoshkaIndependentTrainingSAE`."""
        if self._encoded is not None:
            return self._reconstructions(latents)
        decoded: list[torch.Tensor] = super().decode_levels(latents)  # type: ignore[misc]
        return decoded

    def calculate_topk_aux_loss(
        self,
        sae_in: torch.Tensor,
        sae_out: torch.Tensor,
        hidden_pre: torch.Tensor,
        dead_neuron_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """As SAELens's."""
        if self._encoded is None:
            loss: torch.Tensor = super().calculate_topk_aux_loss(  # type: ignore[misc]
                sae_in=sae_in, sae_out=sae_out, hidden_pre=hidden_pre, dead_neuron_mask=dead_neuron_mask
            )
            return loss
        return self._loss_of_dead(sae_in - sae_out, hidden_pre, dead_neuron_mask, lambda hidden: hidden)

    def calculate_abstopk_aux_loss(
        self,
        sae_in: torch.Tensor,
        sae_out: torch.Tensor,
        hidden_pre: torch.Tensor,
        dead_neuron_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """As SAELens's."""
        if self._encoded is None:
            loss: torch.Tensor = super().calculate_abstopk_aux_loss(  # type: ignore[misc]
                sae_in=sae_in, sae_out=sae_out, hidden_pre=hidden_pre, dead_neuron_mask=dead_neuron_mask
            )
            return loss
        return self._loss_of_dead(sae_in - sae_out, hidden_pre, dead_neuron_mask, torch.abs)

    def _loss_of_dead(
        self,
        error: torch.Tensor,
        hidden: torch.Tensor,
        dead: torch.Tensor | None,
        key: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """The squared error of the error's reconstruction by its d_in / 2 largest dead latents (Gao et al., A.2)."""
        if dead is None or not self.cfg.aux_loss_coefficient or not (n_dead := int(dead.sum())):
            return error.new_tensor(0.0)
        assert self._encoded is not None
        numbers = dead.nonzero(as_tuple=True)[0]
        hidden = hidden.detach().index_select(1, numbers)
        k = min(half := error.shape[-1] // 2, n_dead)
        chosen = key(hidden).topk(k, sorted=False).indices
        latents = _OfLatents.apply(*self._encoder_of(self._encoded.inputs), self._unscaled(hidden, numbers), numbers)
        kept = torch.zeros_like(hidden).scatter(1, chosen, latents.gather(1, chosen))
        squared = (kept @ self.W_dec.index_select(0, numbers) - error.detach()).square()
        loss: torch.Tensor = self.cfg.aux_loss_coefficient * min(n_dead / half, 1.0) * squared.sum(-1).mean()
        return loss

    def _with_inner_losses(self, output: TrainStepOutput) -> TrainStepOutput:
        """Those of SAELens's `MatryoshkaBatchTopKTrainingSAE`: of each prefix that is not the whole."""
        widths = self.cfg.matryoshka_widths[:-1]
        levels = self._reconstructions([output.feature_acts[:, :width] for width in widths])
        for width, decoded in zip(widths, levels, strict=True):
            loss = (decoded - output.sae_in).square().sum(-1).mean()
            output.losses[f"inner_mse_loss_{width}"] = loss
            output.loss = output.loss + loss
        return output

    def _reconstructions(self, latents: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """(b, d_in) of each of several choices of this batch's latents (b, up to d_sae), all in one product."""
        if not latents:
            return []
        assert self._encoded is not None
        inputs, n_rows = self._encoded.inputs, len(self._encoded.inputs)
        found = [Places.of(each) for each in latents]
        rows = torch.cat([each.rows + number * n_rows for number, each in enumerate(found)])
        places = Places(rows, torch.cat([each.latents for each in found]), (len(found) * n_rows, len(self.W_dec)))
        values = torch.cat([each.detach()[at.rows, at.latents] for each, at in zip(latents, found, strict=True)])
        values = self._unscaled(values, places.latents)
        values = _AtPlaces.apply(*self._encoder_of(inputs.repeat(len(found), 1)), values, places)
        decoded = _Decoded.apply(values, self.W_dec, places) + self.b_dec
        return list(decoded.unflatten(0, (len(found), n_rows)))

    def _unscaled(self, hidden: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Without the norms of the decoder's rows by which they were chosen."""
        if not self.cfg.rescale_acts_by_decoder_norm:
            return hidden
        norms: torch.Tensor = self.W_dec.detach().norm(dim=-1)
        return hidden / norms[latents]

    def _encoder_of(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        encoder = self.W_dec.T if getattr(self, "is_tied", False) else self.W_enc
        return inputs, encoder, self.b_enc, self.b_dec if self.cfg.apply_b_dec_to_input else None

    def _may(self, rows: torch.Tensor) -> bool:
        """Whether everything is as this class assumes."""
        points: Any = self.hook_dict.values()  # type: ignore[attr-defined]
        return (
            rows.ndim == 2
            and not rows.requires_grad
            and torch.is_grad_enabled()
            and not torch.is_autocast_enabled(rows.device.type)
            and self.W_enc.dtype in (torch.float32, torch.float64)
            and self.cfg.normalize_activations in ("none", "expected_average_only_in")
            and self.cfg.reshape_activations == "none"
            and not getattr(self.cfg, "use_sparse_activations", False)
            and not any(point._forward_hooks or point._backward_hooks for point in points)
        )


class _AtPlaces(torch.autograd.Function):
    """Values (n,) of what the encoder gives at places, through which gradients reach its weights."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        encoder: torch.Tensor,
        b_enc: torch.Tensor,  # noqa: ARG004 (its gradient is given)
        b_dec: torch.Tensor | None,
        values: torch.Tensor,
        places: Places,
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, encoder)
        ctx.places, ctx.has_b_dec = places, b_dec is not None
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, encoder = ctx.saved_tensors
        places: Places = ctx.places
        bias = places.transposed_times(gradient, gradient.new_ones(len(inputs), 1))[:, 0]
        of_encoder = places.transposed_times(gradient, inputs, columns=True) if ctx.needs_input_grad[1] else None
        return None, of_encoder, bias, -(encoder @ bias) if ctx.has_b_dec else None, None, None


class _OfLatents(torch.autograd.Function):
    """Values (b, m) of what the encoder gives at some latents, through which gradients reach its weights."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        encoder: torch.Tensor,
        b_enc: torch.Tensor,  # noqa: ARG004 (its gradient is given)
        b_dec: torch.Tensor | None,
        values: torch.Tensor,
        latents: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, encoder, latents)
        ctx.has_b_dec = b_dec is not None
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, encoder, latents = ctx.saved_tensors
        bias = gradient.new_zeros(encoder.shape[1]).index_copy_(0, latents, gradient.sum(0))
        of_encoder = None
        if ctx.needs_input_grad[1]:
            of_encoder = encoder.new_zeros(encoder.shape).index_copy_(1, latents, inputs.T @ gradient)
        return None, of_encoder, bias, -(encoder @ bias) if ctx.has_b_dec else None, None, None


class _Decoded(torch.autograd.Function):
    """Latents' values (n,) at places times the decoder's rows: (b, d_in)."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, decoder: torch.Tensor, places: Places) -> torch.Tensor:
        ctx.save_for_backward(values, decoder)
        ctx.places = places
        return places.times(values, decoder)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        values, decoder = ctx.saved_tensors
        places: Places = ctx.places
        gradient = gradient.contiguous()
        of_decoder = places.transposed_times(values, gradient) if ctx.needs_input_grad[1] else None
        return places.dots(gradient, decoder), of_decoder, None
