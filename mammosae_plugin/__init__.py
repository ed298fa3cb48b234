"""Sparse autoencoders on mammography image models, as a plugin for SAELens and TransformerLens.

The rooms, in the order in which data passes through them: `datasets`, `adapters`, `activations`, `training`, `latents`,
then the analyses `probing`, `intervention`, `localization`, `reconstruction`, and `study`, which runs them all.
Importing this module imports none of them.
"""

__version__ = "0.1.0"
