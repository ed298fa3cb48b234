"""The latents table: what an SAE says about every image, and everything that makes or extends one."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
