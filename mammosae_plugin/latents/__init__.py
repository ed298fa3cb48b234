"""The latents table: what an SAE says about every image, and everything that makes or extends one."""

from mammosae_plugin.latents.encoding import encode_latents
from mammosae_plugin.latents.table import EvaluationRows, LatentTable, Readout

__all__ = ["EvaluationRows", "LatentTable", "Readout", "encode_latents"]
