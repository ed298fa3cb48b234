"""From images to activations: reading through hook points, the stores on disk, the shuffled stream of rows."""

from mammosae_plugin.activations.embedding import embed, store_embeddings
from mammosae_plugin.activations.extraction import (
    capture,
    extract_activations,
    extract_together,
    image_batches,
    patient_number,
)
from mammosae_plugin.activations.layer_outputs import LayerOutputs, cache_layer_outputs, layer_output_nbytes
from mammosae_plugin.activations.saelens_format import read_saelens_dataset, write_saelens_dataset
from mammosae_plugin.activations.store import ActivationStore, merge_stores, write_store

__all__ = [
    "ActivationStore",
    "LayerOutputs",
    "cache_layer_outputs",
    "capture",
    "embed",
    "extract_activations",
    "extract_together",
    "image_batches",
    "layer_output_nbytes",
    "merge_stores",
    "patient_number",
    "read_saelens_dataset",
    "store_embeddings",
    "write_saelens_dataset",
    "write_store",
]
