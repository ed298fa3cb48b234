"""Foreign things made standard.

Checkpoints are read safely, Mammo-CLIP becomes a timm EfficientNet, an image model becomes hookable as language models
are in TransformerLens, and a Mammo-SAE file becomes a SAELens SAE.
"""

from mammosae_plugin.adapters.architectures import new_backbone_classifier
from mammosae_plugin.adapters.backbone_classifier import BackboneClassifier
from mammosae_plugin.adapters.checkpoints import CheckpointFormatError, UnsafeCheckpointError
from mammosae_plugin.adapters.classifier import Classifier
from mammosae_plugin.adapters.hooked_vision_model import HookedVisionModel
from mammosae_plugin.adapters.inspection import CheckpointReport, inspect_checkpoint
from mammosae_plugin.adapters.loading import load_classifier, load_mammo_clip
from mammosae_plugin.adapters.mammo_clip import MammoClipClassifier, new_classifier
from mammosae_plugin.adapters.mammo_clip_text import MammoClipText, load_mammo_clip_text
from mammosae_plugin.adapters.nnsight import StaleWrappingError, wrap_for_nnsight
from mammosae_plugin.adapters.preprocessing import Preprocessing
from mammosae_plugin.adapters.sae_export import export_sae
from mammosae_plugin.adapters.sae_formats import load_sae
from mammosae_plugin.adapters.saved_classifiers import save_classifier
from mammosae_plugin.adapters.text_towers import TextTower, text_tower
from mammosae_plugin.adapters.timm_classifier import TimmClassifier, new_timm_classifier
from mammosae_plugin.adapters.vision_sae import (
    load_vision_sae,
    vision_sae_disk_loader,
    vision_sae_huggingface_loader,
)

__all__ = [
    "BackboneClassifier",
    "CheckpointFormatError",
    "CheckpointReport",
    "Classifier",
    "HookedVisionModel",
    "MammoClipClassifier",
    "MammoClipText",
    "Preprocessing",
    "StaleWrappingError",
    "TextTower",
    "TimmClassifier",
    "UnsafeCheckpointError",
    "export_sae",
    "inspect_checkpoint",
    "load_classifier",
    "load_mammo_clip",
    "load_mammo_clip_text",
    "load_sae",
    "load_vision_sae",
    "new_backbone_classifier",
    "new_classifier",
    "new_timm_classifier",
    "save_classifier",
    "text_tower",
    "vision_sae_disk_loader",
    "vision_sae_huggingface_loader",
    "wrap_for_nnsight",
]
