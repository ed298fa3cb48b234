"""From images to rows of activations: reading through hook points, the store on disk, the shuffled iterator over its rows."""

from mammosae_plugin.activations.extraction import ImageDataset, capture, extract_activations, image_batches, images_only
from mammosae_plugin.activations.store import ActivationStore

__all__ = ["ActivationStore", "ImageDataset", "capture", "extract_activations", "image_batches", "images_only"]
