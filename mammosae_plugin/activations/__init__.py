"""From images to activations: reading through hook points, the stores on disk, the shuffled stream of rows."""

from mammosae_plugin.activations.extraction import capture, extract_activations, image_batches
from mammosae_plugin.activations.layer_outputs import LayerOutputs, cache_layer_outputs, layer_output_nbytes
from mammosae_plugin.activations.store import ActivationStore

__all__ = [
    "ActivationStore",
    "LayerOutputs",
    "cache_layer_outputs",
    "capture",
    "extract_activations",
    "image_batches",
    "layer_output_nbytes",
]
