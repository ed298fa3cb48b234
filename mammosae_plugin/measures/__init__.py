"""The one definition of every measure: AUROC and intervals over patients, precision of boxes, reconstruction."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
