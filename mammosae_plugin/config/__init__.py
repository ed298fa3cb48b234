"""The configuration of a study: every setting, its meaning and its default, checked before anything runs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
