"""SAEs of other libraries as SAELens's: one module and one object for each form, and the one place that knows them."""

from mammosae_plugin.adapters.sae_formats.loading import disk_converter, huggingface_converter, load_sae
from mammosae_plugin.adapters.sae_formats.table import FORMATS

__all__ = ["FORMATS", "disk_converter", "huggingface_converter", "load_sae"]
