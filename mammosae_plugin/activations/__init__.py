"""From images to rows of activations: reading through hook points, the store on disk, the shuffled stream of rows."""

from mammosae_plugin.activations.extraction import capture, extract_activations, image_batches
from mammosae_plugin.activations.store import ActivationStore

__all__ = ["ActivationStore", "capture", "extract_activations", "image_batches"]
