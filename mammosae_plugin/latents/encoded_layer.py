"""The layer that a latents table is made at: whether an SAE and heads fit it, and how the heads read it."""

__all__ = ["decodes_linearly", "EncodedLayer", "weight_and_bias", "why_not_linear"]

from collections.abc import Mapping
from typing import Any

import torch
from sae_lens import SAE
from torch import nn

from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.attached_sae import refuse_what_no_map_fits
from mammosae_plugin.adapters.input_normalization import input_normalization
from mammosae_plugin.adapters.rest_of_network import RestOfNetwork
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents.decoding import Decoder, latents_times_decoder
from mammosae_plugin.latents.table import ReadoutKind


def decodes_linearly(sae: SAE[Any]) -> bool:
    """Whether the SAE decodes as latents @ W_dec + b_dec, found by trying it on noise.

    One whose input is normalised does not: what a latent adds to the layer changes with the row's length.
    """
    return input_normalization(sae) is None and latents_times_decoder(sae, 1e-3)


def why_not_linear(sae: SAE[Any]) -> str:
    """Of an SAE that does not decode linearly, what to do; for messages."""
    scaling = input_normalization(sae) or sae.cfg.normalize_activations
    if scaling != "none":
        return (
            f"it scales each row by itself ({scaling}), which no weights can hold; take an SAE that was trained without"
        )
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        return "fold the decoder's norms into its weights first (sae.fold_W_dec_norm())"
    return "take an SAE whose decoder is linear"


def weight_and_bias(head: nn.Linear, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(n_out, d) and (n_out,) float64 of a linear head."""
    weight = head.weight.detach().double().to(device)
    bias = weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach().double().to(device)
    return weight, bias


class EncodedLayer:
    """The layer that a table is made at, with the SAE and the heads that were checked against it.

    Attributes:
        rest: The network behind the layer; None without heads.
        readout_kind: Whether what the classifiers read is the mean of the layer over positions.
        decode: The SAE's decoder.
    """

    def __init__(
        self,
        model: HookedVisionModel,
        sae: SAE[Any],
        heads: Mapping[str, nn.Linear],
        image_size: tuple[int, int],
        device: str,
    ) -> None:
        self.model, self.sae, self.device = model, sae, device
        named = sae.cfg.metadata.hook_name or model.final_hook
        if named is None:
            raise InputError("neither the SAE's metadata nor the model names a layer; set sae.cfg.metadata.hook_name")
        self.hook_name = model.resolve_hook_name(named)
        refuse_what_no_map_fits(sae, self.hook_name)
        layout = model.hook_layouts.get(self.hook_name)
        if layout is None or not layout.shows_grid:
            kept = layout is not None and layout.grid is not None
            way_out = 'hook the model with prefix_tokens="drop"' if kept else "choose a hook point that does"
            maps = [name for name, other in model.hook_layouts.items() if other.shows_grid]
            said = f", such as {maps[-1]}" if maps and not kept else ""
            raise InputError(
                f"{self.hook_name} shows no map of positions, which the latents table needs; {way_out}{said}"
            )
        d_in = model.hook_shapes[self.hook_name][-1]
        if sae.cfg.d_in != d_in:
            raise InputError(
                f"the SAE takes vectors of width {sae.cfg.d_in}, but {self.hook_name} of this model has width {d_in}; "
                "use an SAE that was trained on this architecture"
            )
        self.rest: RestOfNetwork | None = None
        self.readout_kind: ReadoutKind = "none"
        if heads:
            model.require_head()
            self.rest = model.rest_from(self.hook_name, image_size)
            self.readout_kind = self.rest.readout or "none"
        self.grid = model.grid(self.hook_name, image_size)
        if self.readout_kind == "linear" and not decodes_linearly(sae):
            raise InputError(
                f"the SAE ({sae.cfg.architecture()}) does not decode as latents @ W_dec + b_dec, on which the table of "
                f"{self.hook_name} relies: {why_not_linear(sae)}, or leave the heads out (heads={{}})"
            )
        for concept, head in heads.items():
            assert self.rest is not None
            if head.in_features != self.rest.n_features:
                raise InputError(
                    f"the classifier for {concept} reads {head.in_features} features, but this model's own reads "
                    f"{self.rest.n_features}"
                )
        self.decode = Decoder(sae)
        self.heads = {concept: weight_and_bias(head, device) for concept, head in heads.items()}
