"""What may leave this machine: the guard, its rules, and the search for what identifies a patient."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
