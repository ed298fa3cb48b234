"""What a study found, as it lies on disk or was published: tables, readers' notes, and reading both back."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
