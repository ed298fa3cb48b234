"""Sparse autoencoders on image models of medicine, as a plugin for SAELens, TransformerLens and nnsight.

The rooms, in the order in which data passes through them: `datasets`, `adapters`, `activations`, `training`, `latents`,
`analysis`, `findings`, then `visualization`, `report` and `hub`, and `study`, which runs them all. The main names are
here too: `import mammosae_plugin as mp` imports no room, and each name is imported when it is asked for.
"""

import lazy_loader

from mammosae_plugin.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
