"""SAEs of OpenAI's sparse_autoencoder (openai/sparse_autoencoder): a state dict that says what its activation is.

With E (m, d) and D (d, m), or E^T where they are tied, and x normalised to mean 0 and deviation 1 over its channels
where the activation is TopK (in the reconstruction back again),

    z = f(E (x - pre_bias) + latent_bias),   x' = D z + pre_bias

SAELens's `layer_norm` is the same normalisation, to the constant in the denominator.
"""

__all__ = ["OpenAI"]

from collections.abc import Mapping
from typing import Any

import torch

from mammosae_plugin.adapters.checkpoints import check_keys
from mammosae_plugin.adapters.sae_formats.parts import Opened, Parts, SAEFormat, refused, required_k, shape_of
from mammosae_plugin.adapters.sae_formats.signed_topk import SIGNED_TOPK


class OpenAI(SAEFormat):
    """One file of a state dict."""

    name = "openai"
    title = "an SAE as OpenAI's sparse_autoencoder saves it"
    library = "sparse_autoencoder"

    def recognises(self, opened: Opened) -> bool:
        return {"pre_bias", "latent_bias", "encoder.weight"} <= opened.tensors.keys()

    def read(self, opened: Opened) -> Parts:
        found = opened.tensors
        d_sae, d_in = shape_of(opened, self.title, found, "encoder.weight")
        tied = "decoder.weight" not in found
        decoder = "decoder.linear.weight" if tied else "decoder.weight"
        shapes = {"pre_bias": (d_in,), "latent_bias": (d_sae,), "encoder.weight": (d_sae, d_in)}
        shapes[decoder] = (d_sae, d_in) if tied else (d_in, d_sae)
        held = {name: value for name, value in found.items() if name in shapes}
        check_keys(held, shapes, where=str(opened.file), what=f"{self.title}, {d_in} x {d_sae}")
        state: dict[str, torch.Tensor] = {
            "W_enc": held["encoder.weight"].T,
            "b_enc": held["latent_bias"],
            "W_dec": held[decoder] if tied else held[decoder].T,
            "b_dec": held["pre_bias"],
        }
        settings: dict[str, Any] = {"apply_b_dec_to_input": True}
        activation = str(found.get("activation", "ReLU"))  # as its own reader takes it
        if activation == "ReLU":
            return Parts("standard", state, settings)
        said = found.get("activation_state_dict")
        said = said if isinstance(said, Mapping) else {}
        if activation != "TopK":
            raise refused(opened, f"has the activation {activation}, with which it is no sparse autoencoder of SAELens")
        then = said.get("postact_fn")
        k = required_k(opened, said.get("k"), d_sae, "write the number into its activation_state_dict")
        if then not in ("ReLU", "Identity"):
            raise refused(opened, f"is a TopK SAE with the postact_fn {then!r}, which no SAE of SAELens has")
        settings |= {"k": k, "normalize_activations": "layer_norm"}
        return Parts("topk" if then == "ReLU" else SIGNED_TOPK, state, settings)
