"""The public place of `analysis.intervention`."""

from mammosae_plugin.analysis.intervention import (
    DEFAULT_KS,
    Mode,
    Passes,
    intervene,
    latent_group,
    single_ablations,
    sweep,
    sweep_controls,
)

__all__ = [
    "DEFAULT_KS",
    "Mode",
    "Passes",
    "intervene",
    "latent_group",
    "single_ablations",
    "sweep",
    "sweep_controls",
]
