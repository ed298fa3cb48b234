"""What this package shares with the Hugging Face Hub: SAEs, findings, and pages to browse them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
