"""Foreign things made standard.

Checkpoints are read safely, Mammo-CLIP becomes a timm EfficientNet, an image model becomes hookable as language models
are in TransformerLens, and a Mammo-SAE file becomes a SAELens SAE.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
