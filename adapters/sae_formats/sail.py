"""Checkpoints of SAIL (arXiv 2603.23794), Matryoshka SAEs on one vector per image, as SAELens's `standard` SAEs.

Its file is one of Lightning's: weights under `state_dict`, beside them the optimiser's state and paths of the machine
that it was made on, of which nothing is taken. With W (m, d), biases b (d,) and c (m,), and the threshold theta, which
is the mean over the training's batches of the smallest value kept, SAIL computes in use, on rows x of length 1,

    z = max(W (x - b) + c - theta, 0),   x' = W^T z + b          (untied: a decoder D (d, m) in the place of W^T)

so W_enc = W^T, b_enc = c - theta, W_dec = W (D^T), b_dec = b with `apply_b_dec_to_input`. Level l is the first m_l
latents.
"""

__all__ = ["is_sail", "parse_sail", "SAIL"]

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch

from mammosae_plugin.adapters.checkpoints import CheckpointFormatError, check_keys, unwrapped
from mammosae_plugin.adapters.input_normalization import UNIT_L2
from mammosae_plugin.adapters.sae_formats.parts import Opened, Parts, SAEFormat, widened

_SUM, _COUNT = "model._threshold_sum", "model._threshold_count"


class SAIL(SAEFormat):
    """A Lightning checkpoint of SAIL."""

    name = "sail"
    title = "a SAIL checkpoint"
    library = "SAIL"
    loads_with = "load_vision_sae"

    def recognises(self, opened: Opened) -> bool:
        return is_sail(opened.content)

    def read(self, opened: Opened) -> Parts:
        state, metadata = parse_sail(opened.content, opened.file)
        return Parts("standard", state, metadata=metadata)


def is_sail(content: Any) -> bool:
    """Whether what a checkpoint holds are SAIL's weights."""
    weights = content.get("state_dict") if isinstance(content, Mapping) else None
    return isinstance(weights, Mapping) and any("_threshold" in str(key) for key in weights)


def parse_sail(content: Mapping[str, Any], path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """SAELens's state dict of a SAIL checkpoint, of views where possible, and what the metadata say of it.

    Args:
        content: What `read_torch_checkpoint` gave.
        path: The file, for messages.

    Returns:
        W_enc (d_in, d_sae), b_enc, W_dec (d_sae, d_in), b_dec; and `input_normalization`, with `levels` (the numbers
        of latents of the nested SAEs) and `k` (their budgets in training) where the file tells them.

    Raises:
        CheckpointFormatError: A tensor is missing, of another shape or unknown, no batch has set the threshold, or the
            levels do not fit the weights.
    """
    weights = widened(unwrapped(content["state_dict"], where=str(path)))
    encoder = weights.get("model.encoder.weight")
    if not isinstance(encoder, torch.Tensor) or encoder.dim() != 2:
        raise CheckpointFormatError(f"{path} is not a SAIL checkpoint: it has no model.encoder.weight with 2 axes")
    d_sae, d_in = encoder.shape
    shapes: dict[str, tuple[int, ...]] = {
        "model.bias": (d_in,),
        "model.encoder.weight": (d_sae, d_in),
        "model.encoder.bias": (d_sae,),
        **dict.fromkeys(("model.inference_threshold", _SUM, _COUNT), ()),
    }
    if "model.decoder.weight" in weights:
        shapes["model.decoder.weight"] = (d_in, d_sae)
    check_keys(weights, shapes, where=str(path), what=f"a SAIL checkpoint of {d_in} x {d_sae}")
    total, count = float(weights[_SUM]), int(weights[_COUNT])
    if count <= 0 or not math.isfinite(total):
        raise CheckpointFormatError(
            f"{path} has no threshold ({count} batches, sum {total:g}), without which a SAIL SAE cannot be used; take "
            "a checkpoint of a training that has come further"
        )
    state_dict = {
        "W_enc": encoder.T,
        "b_enc": weights["model.encoder.bias"] - total / count,
        "W_dec": weights["model.decoder.weight"].T if "model.decoder.weight" in weights else encoder,
        "b_dec": weights["model.bias"],
    }
    return state_dict, {"input_normalization": UNIT_L2, **_levels(content, path, d_in, d_sae)}


def _levels(content: Mapping[str, Any], path: Path, d_in: int, d_sae: int) -> dict[str, list[int]]:
    """The levels and their budgets, which are not in the weights."""
    if "hyper_parameters" not in content:
        return {}
    said = content["hyper_parameters"]
    said = said if isinstance(said, Mapping) else {}
    levels, k = said.get("dictionary_sizes"), said.get("k_values")
    if not _are_counts(levels) or levels != sorted(set(levels)):
        raise CheckpointFormatError(f"{path} is not a SAIL checkpoint: its dictionary_sizes are {levels!r}")
    if said.get("input_dim", d_in) != d_in or levels[-1] != d_sae:
        raise CheckpointFormatError(
            f"{path} has weights of {d_in} x {d_sae}, but hyper_parameters of input_dim {said.get('input_dim')} and "
            f"levels {levels}: they are of two SAEs"
        )
    if k is None:
        k = [max(1, level // 20) for level in levels]  # SAIL's default
    if not _are_counts(k) or len(k) != len(levels):
        raise CheckpointFormatError(f"{path} is not a SAIL checkpoint: its k_values are {k!r} for levels {levels}")
    return {"levels": list(levels), "k": list(k)}


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and bool(values) and all(type(value) is int and value > 0 for value in values)
