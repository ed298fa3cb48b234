"""A whole study from one configuration: its data and networks, its steps at each layer, its results, the demo."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
