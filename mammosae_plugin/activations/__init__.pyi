# What the package offers; each name is imported when it is asked for, because torch, SAELens and datasets take seconds.
from .embedding import embed as embed
from .embedding import store_embeddings as store_embeddings
from .extraction import capture as capture
from .extraction import extract_activations as extract_activations
from .extraction import extract_together as extract_together
from .extraction import image_batches as image_batches
from .layer_outputs import LayerOutputs as LayerOutputs
from .layer_outputs import cache_layer_outputs as cache_layer_outputs
from .layer_outputs import layer_output_nbytes as layer_output_nbytes
from .saelens_format import read_saelens_dataset as read_saelens_dataset
from .saelens_format import write_saelens_dataset as write_saelens_dataset
from .store import ActivationStore as ActivationStore
from .store import merge_stores as merge_stores
from .store import write_store as write_store
from .stored_shards import patient_number as patient_number
