"""SAEs of PatchSAE (dynamical-inference/patchsae), and of what it grew from (HugoFry/mats_sae_training_for_ViTs).

A file holds `cfg` (or `config`), an object of the settings, and `state_dict`. All are

    z = max((x - b_dec) W_enc + b_enc, 0),   x' = z W_dec + b_dec

on the class and patch tokens behind a block of CLIP's vision tower in transformers.
"""

__all__ = ["PatchSAE"]

from collections.abc import Mapping
from typing import Any

from mammosae_plugin.adapters.checkpoints import StoredSettings, check_keys
from mammosae_plugin.adapters.sae_formats.parts import Opened, Parts, SAEFormat, refused, shape_of

_BLOCKS = {"clip-vit-base": 12, "clip-vit-large": 24}  # of OpenAI's towers; the settings may count from the last


class PatchSAE(SAEFormat):
    """One file with settings and weights."""

    name = "patchsae"
    title = "an SAE as PatchSAE saves it"
    library = "PatchSAE"

    def recognises(self, opened: Opened) -> bool:
        return "block_layer" in _settings(opened) and "W_enc" in opened.tensors

    def read(self, opened: Opened) -> Parts:
        said, tensors = _settings(opened), opened.tensors
        if said.get("gated_sae") or "r_mag" in tensors:
            raise refused(opened, "is a gated SAE of PatchSAE, whose code computes nothing with one")
        d_in, d_sae = shape_of(opened, self.title, tensors, "W_enc")
        shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
        check_keys(tensors, shapes, where=str(opened.file), what=f"{self.title}, {d_in} x {d_sae}")
        metadata: dict[str, Any] = {"trained_on": "class_token_and_patches" if said.get("class_token") else "patches"}
        if isinstance(said.get("model_name"), str):
            metadata["model_name"] = said["model_name"]
        if isinstance(layer := said.get("block_layer"), int):
            blocks = next((n for size, n in _BLOCKS.items() if size in str(said.get("model_name"))), 0)
            metadata["source_layer"] = layer + blocks if -blocks <= layer < 0 else layer
        return Parts("standard", tensors, {"apply_b_dec_to_input": True}, metadata)


def _settings(opened: Opened) -> Mapping[str, Any]:
    content = opened.content if isinstance(opened.content, Mapping) else {}
    said = content.get("cfg", content.get("config"))
    said = vars(said) if isinstance(said, StoredSettings) else said
    return said if isinstance(said, Mapping) else {}
