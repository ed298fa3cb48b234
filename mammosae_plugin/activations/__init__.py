"""From images to activations: reading through hook points, the stores on disk, the shuffled stream of rows."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
