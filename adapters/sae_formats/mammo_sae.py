"""Checkpoints of Mammo-SAE (Nakka, arXiv 2507.15227) as SAELens's `standard` SAEs.

The file is a state dict whose tensors may carry a leading component axis of length 1. Its formula, with a bias b that
is taken from the input and added to the output again,

    z = ReLU((x - b) E^T + c),   x' = z D^T + b

is SAELens's `standard` architecture with `apply_b_dec_to_input=True`: W_enc = E^T, b_enc = c, W_dec = D^T, b_dec = b.
"""

__all__ = ["DEFAULT_FILENAME", "HOOK_NAME", "MammoSAE", "parse_mammo_sae"]

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mammosae_plugin.adapters.checkpoints import CheckpointFormatError, check_keys, unwrapped, unwrapped_key
from mammosae_plugin.adapters.sae_formats.parts import Opened, Parts, SAEFormat

DEFAULT_FILENAME = "sparse_autoencoder_final.pt"
HOOK_NAME = "bn2.hook_out"

_BIASES = ("tied_bias", "pre_encoder_bias._bias_reference", "post_decoder_bias._bias_reference")
_TELLING = {"encoder._weight", "decoder._weight", *_BIASES}
_MODEL_NAMES = {2048: "mammo_clip_b5", 1408: "mammo_clip_b2"}


class MammoSAE(SAEFormat):
    """The file of the Mammo-SAE release."""

    name = "mammo-sae"
    title = "a Mammo-SAE checkpoint"
    library = "Mammo-SAE"
    loads_with = "load_vision_sae"

    def recognises(self, opened: Opened) -> bool:
        content = opened.content
        return isinstance(content, Mapping) and any(unwrapped_key(str(key)) in _TELLING for key in content)

    def read(self, opened: Opened) -> Parts:
        weights = parse_mammo_sae(opened.content, opened.file)
        state = {
            "W_enc": weights["encoder._weight"].T,
            "b_enc": weights["encoder._bias"],
            "W_dec": weights["decoder._weight"].T,
            "b_dec": weights["tied_bias"],
        }
        model = _MODEL_NAMES.get(len(state["W_enc"]), "mammo_clip")
        metadata = {"model_name": model, "hook_name": HOOK_NAME, "layout": "channels_last"}
        return Parts("standard", state, metadata=metadata)

    def facts(self, opened: Opened) -> dict[str, Any]:
        names = {unwrapped_key(str(key)): value for key, value in opened.content.items()}
        encoder = names.get("encoder._weight")
        if not isinstance(encoder, torch.Tensor) or encoder.dim() not in (2, 3):
            return {}
        return {"d_sae": encoder.shape[-2], "d_in": encoder.shape[-1], "component_axis": encoder.dim() == 3}


def parse_mammo_sae(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """The state dict without component axis, with consistent shapes and one bias.

    Args:
        content: what `read_torch_checkpoint` gave.
        path: the file, for messages.

    Raises:
        CheckpointFormatError: it is not a Mammo-SAE checkpoint, or holds more than one SAE.
    """
    content = unwrapped(content, where=str(path)) if isinstance(content, Mapping) else content
    encoder = content.get("encoder._weight") if isinstance(content, Mapping) else None
    if not isinstance(encoder, torch.Tensor) or encoder.dim() not in (2, 3):
        if encoder is not None:
            found = f"of shape {tuple(encoder.shape)}" if isinstance(encoder, torch.Tensor) else type(encoder).__name__
            raise CheckpointFormatError(
                f"{path} is not a Mammo-SAE checkpoint: its encoder._weight is {found}, not a tensor with 2 or 3 axes"
            )
        raise CheckpointFormatError(f"{path} is not a Mammo-SAE checkpoint: it has no encoder._weight")
    if encoder.dim() == 3 and len(encoder) != 1:
        raise CheckpointFormatError(
            f"{path} holds {len(encoder)} SAEs (component axis); only files with one can be loaded"
        )
    component = (1,) if encoder.dim() == 3 else ()
    d_sae, d_in = encoder.shape[-2:]
    shapes = {
        "encoder._weight": (*component, d_sae, d_in),
        "encoder._bias": (*component, d_sae),
        "decoder._weight": (*component, d_in, d_sae),
        **dict.fromkeys(_BIASES, (*component, d_in)),
    }
    check_keys(content, shapes, where=str(path), what=f"a Mammo-SAE checkpoint of {d_in} x {d_sae}")
    different = [bias for bias in _BIASES[1:] if not torch.equal(content[bias], content["tied_bias"])]
    if different:
        raise CheckpointFormatError(f"{path} has a bias {different[0]} that differs from tied_bias; it should be tied")
    return {key: content[key][0] if component else content[key] for key in shapes}
