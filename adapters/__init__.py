"""Foreign things made standard.

Checkpoints are read safely, Mammo-CLIP becomes a timm EfficientNet, an image model becomes hookable as language models
are in TransformerLens, and a Mammo-SAE file becomes a SAELens SAE.
"""

from mammosae_plugin.adapters.checkpoints import CheckpointFormatError, UnsafeCheckpointError
from mammosae_plugin.adapters.mammo_clip import MammoClipClassifier, load_mammo_clip, new_classifier, save_classifier

__all__ = [
    "CheckpointFormatError",
    "MammoClipClassifier",
    "UnsafeCheckpointError",
    "load_mammo_clip",
    "new_classifier",
    "save_classifier",
]
