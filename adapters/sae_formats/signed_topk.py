"""An architecture of SAELens for SAEs whose top-k keeps negative values too, as saev's does.

SAELens's `topk` sets a negative value among the k largest to zero. Where all k are positive, which is nearly always so
with many more latents than k, both are the same. Importing this module registers it with SAELens under `signed_topk`;
a process that reads such an SAE after `save_model` must import it, or mammosae_plugin.adapters.
"""

__all__ = ["SIGNED_TOPK", "SignedTopKSAE", "SignedTopKSAEConfig"]

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sae_lens import TopKSAE, TopKSAEConfig, register_sae_class
from sae_lens.registry import SAE_CLASS_REGISTRY

SIGNED_TOPK = "signed_topk"


@dataclass
class SignedTopKSAEConfig(TopKSAEConfig):
    """Configuration of a `SignedTopKSAE`, as of a `TopKSAE`."""

    @classmethod
    def architecture(cls) -> str:
        return SIGNED_TOPK


class SignedTopKSAE(TopKSAE):
    """z = the k largest of x W_enc + b_enc, whatever their signs, and 0 elsewhere."""

    def get_activation_fn(self) -> Callable[[torch.Tensor], torch.Tensor]:
        k = min(self.cfg.k, self.cfg.d_sae)

        def keep_largest(values: torch.Tensor) -> torch.Tensor:
            kept, places = torch.topk(values, k, dim=-1, sorted=False)
            return torch.zeros_like(values).scatter(-1, places, kept)

        return keep_largest


if SIGNED_TOPK not in SAE_CLASS_REGISTRY:
    register_sae_class(SIGNED_TOPK, SignedTopKSAE, SignedTopKSAEConfig)
