"""What decides, beside its weights, which latents an SAE gives."""

__all__ = ["sae_settings"]

from typing import Any

from sae_lens import SAE

from mammosae_plugin.adapters.input_normalization import INPUT_NORMALIZATION, input_normalization
from mammosae_plugin.provenance import plain

_WITHOUT_EFFECT = {"metadata", "device", "dtype"}  # what the metadata say of rows is added; the weights have a dtype


def sae_settings(sae: SAE[Any]) -> dict[str, Any]:
    """The settings of an SAE that its latents depend on, as JSON values: two SAEs of equal weights may differ in k."""
    settings = {name: value for name, value in sae.cfg.to_dict().items() if name not in _WITHOUT_EFFECT}
    found: dict[str, Any] = plain({**settings, INPUT_NORMALIZATION: input_normalization(sae)})
    return found
