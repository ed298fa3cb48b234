"""Settings of a study's explained images."""

__all__ = ["ExplainSettings"]

from pydantic import Field

from mammosae_plugin.validation import Settings


class ExplainSettings(Settings):
    """Test images whose logit is taken apart, latent by latent, where it is a sum over latents (at the final map).

    Which they are is a rule and no choice: in turn the image with the finding and the one without it that have the
    highest logit, the most confident hit and the most confident false alarm, each of another patient than the one
    before.
    """

    images: int = Field(2, ge=1, le=24, description="How many images of each classifier.")
    top: int = Field(3, ge=1, le=12, description="Latents shown that speak for the finding, and as many against it.")
