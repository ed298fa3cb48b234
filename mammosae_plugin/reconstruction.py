"""The public place of `analysis.reconstruction`."""

from mammosae_plugin.analysis.reconstruction import auroc_cost, reconstruction_metrics, reconstruction_quality

__all__ = ["auroc_cost", "reconstruction_metrics", "reconstruction_quality"]
