"""The public place of `analysis.probing`."""

from mammosae_plugin.analysis.probing import (
    RankedLatents,
    Score,
    best_single_latent,
    class_mean_latents,
    rank_channels,
    rank_latents,
)

__all__ = [
    "RankedLatents",
    "Score",
    "best_single_latent",
    "class_mean_latents",
    "rank_channels",
    "rank_latents",
]
