"""Training: sparse autoencoders on activation rows, and the classifiers whose features they explain."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
