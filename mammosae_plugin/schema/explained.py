"""The columns of what a study says of single images. None is published: rows are of patients. No id stands in them."""

__all__ = ["EXPLAINED", "RULES"]

import pyarrow as pa

from mammosae_plugin.schema.columns import Column

RULES = ("with_finding", "without_finding")
"""By which an image is chosen: of those with the finding, or without it, the one of the highest logit."""

_TEXT, _WHOLE, _REAL = pa.string(), pa.int64(), pa.float64()


def _secret(name: str, dtype: pa.DataType, meaning: str, unit: str = "") -> Column:
    return Column(name, dtype, meaning, unit, "secret")


_LATENTS = (
    _secret("latent", _WHOLE, "its number"),
    _secret("contribution", _REAL, "what it adds to the logit: its mean over positions times its weight", "logit"),
    _secret("usual", _REAL, "what it adds in the training images on average", "logit"),
    _secret("mean", _REAL, "its mean over positions", "the SAE's"),
    _secret("maximum", _REAL, "its largest value", "the SAE's"),
    _secret("role", _TEXT, "what the study's rule calls it; nothing where it is none of the leading latents"),
    _secret("verdict", _TEXT, "what it stands for, by its evidence"),
    _secret("reason", _TEXT, "why"),
)
EXPLAINED = (
    Column("layer", _TEXT, "the layer as the study names it"),
    Column("model", _TEXT, "the model"),
    Column("concept", _TEXT, "the finding"),
    _secret("rule", _TEXT, "by which it was chosen: with_finding or without_finding"),
    _secret("place", _WHOLE, "its place by that rule, each of another patient; 1 has the highest logit"),
    _secret("n_images", _WHOLE, "test images among which the rule chose", "images"),
    _secret("logit", _REAL, "what the network gives", "logit"),
    _secret("bias", _REAL, "what an image without any latent would get", "logit"),
    _secret("error", _REAL, "what the SAE does not reconstruct, through the classifier", "logit"),
    _secret("gap", _REAL, "the logit less bias, error and what all latents add: rounding, checked to 1e-4", "logit"),
    _secret("n_firing", _WHOLE, "latents that fire in it", "latents"),
    _secret("others", _REAL, "what the latents add that are not shown", "logit"),
    Column("latents", pa.null(), "the strongest for and against: a list of the fields below", "", "secret", _LATENTS),
)
