"""Names for latents: from labels of their strongest images, and from texts in the space that they share with images."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
