"""State dicts as training scripts leave them: inside other entries, behind prefixes, part of a larger model."""

__all__ = ["entry_with_weights", "prefix_hint", "state_in", "with_counters"]

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from safetensors.torch import load_file

from mammosae_plugin.adapters.checkpoints import (
    CheckpointFormatError,
    is_safetensors,
    read_torch_checkpoint,
    without_prefix,
)

_WRAPPED_AS = ("state_dict_ema", "model_ema", "state_dict", "model", "checkpoint")  # by training scripts
_COUNTER = "num_batches_tracked"  # which no evaluation reads, and files of old versions of torch lack
_PREFIXES = ("module.", "_orig_mod.")


def state_in(path: os.PathLike[str], prefix: str = "") -> dict[str, Any]:
    """The state dict in a file.

    Args:
        path: the file.
        prefix: what stands before the names of the network's tensors, where the file is of a larger model; it is taken
            off, and the other tensors are left out.

    Raises:
        CheckpointFormatError: there is none, or nothing has the prefix.
        UnsafeCheckpointError: the file asks for code; none of it was run.
    """
    content = entry_with_weights(load_file(path) if is_safetensors(path) else read_torch_checkpoint(path))
    whole = {str(name): value for name, value in content.items()} if isinstance(content, Mapping) else {}
    named = whole
    for wrapper in _PREFIXES:
        named = {name.removeprefix(wrapper): value for name, value in named.items()}
    if prefix:
        taken = without_prefix(whole, prefix) or without_prefix(named, prefix)
        if whole and not taken:
            first = sorted({f"{name.partition('.')[0]}." for name in named})
            raise CheckpointFormatError(
                f"{path} has no tensor that begins with {prefix!r}; its names begin with "
                f"{', '.join(map(repr, first[:5]))}{', ...' if len(first) > 5 else ''}"
            )
        named = taken
    if not named or not all(isinstance(value, torch.Tensor) for value in named.values()):
        raise CheckpointFormatError(f"{path} holds no state dict of a network; give a file of weights alone")
    return named


def entry_with_weights(content: Any) -> Any:
    """The entry in which training scripts leave the weights, in entries of entries too; `content` without any."""
    while isinstance(content, Mapping):
        inner = next((content[name] for name in _WRAPPED_AS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    return content


def with_counters(state: Mapping[str, Any], own: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The tensors, and the network's own counts of batches where a file has none."""
    return {name: tensor for name, tensor in own.items() if name.rpartition(".")[2] == _COUNTER} | dict(state)


def prefix_hint(names: Iterable[str], expected: Iterable[str]) -> str:
    """The prefix under which most of the expected names are there, to be told; empty where there is none."""
    wanted = set(expected)
    found = Counter(
        name[: -len(inside)]
        for name in names
        for inside in (name[place + 1 :] for place, letter in enumerate(name) if letter == ".")
        if inside in wanted
    )
    prefix, count = next(iter(found.most_common(1)), ("", 0))
    return prefix if count > len(wanted) / 2 else ""
