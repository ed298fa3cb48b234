"""Checkpoints that others wrote in forms which this package does not read: what they are, and the way out.

They are told by their keys and by the names of their files; nothing of them is loaded.
"""

__all__ = ["peers_sae", "peers_sae_folder", "safetensors_sae", "wrapped_network"]

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError, safe_open

from mammosae_plugin.adapters.checkpoints import is_safetensors, unwrapped_key

_AS_SAELENS = (
    "which this package does not read; load it there, copy its weights into sae-lens's StandardSAE (another "
    "architecture: its class), and give the folder that save_sae writes of that"
)
_PEERS = (  # keys that tell; the first that are all there count
    ("an SAE as OpenAI's sparse_autoencoder saves it", {"pre_bias", "latent_bias"}),
    ("a gated SAE as dictionary_learning saves it", {"decoder_bias", "encoder.weight", "decoder.weight"}),
    ("an SAE as sparsify saves it", {"encoder.weight", "encoder.bias", "W_dec", "b_dec"}),
    ("a top-k SAE as dictionary_learning saves it", {"encoder.weight", "decoder.weight", "b_dec"}),
    ("a ReLU SAE as dictionary_learning saves it", {"encoder.weight", "decoder.weight", "bias"}),
)
_SAELENS = {"W_enc", "b_enc", "W_dec", "b_dec"}
_OF_PEERS = {
    "dictionary_learning": ("config.json", ("ae.pt", "ae.safetensors")),
    "sparsify": ("cfg.json", ("sae.safetensors",)),
}
_EMA = ("ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema")


def peers_sae(content: Any) -> str | None:
    """Which library's SAE a checkpoint holds, and what to do; None where its keys do not tell.

    Args:
        content: what `read_torch_checkpoint` gave, or the names of tensors.
    """
    if not isinstance(content, Iterable) or isinstance(content, (str, torch.Tensor)):
        return None
    keys = {unwrapped_key(str(key)) for key in content}
    for inner in (content.get("state_dict"), content.get("model")) if _is_mapping(content) else ():
        keys |= {unwrapped_key(str(key)) for key in inner} if _is_mapping(inner) else set()
    for kind, telling in _PEERS:
        if telling <= keys:
            return f"{kind}, {_AS_SAELENS}"
    if any(key.startswith(("dictionary.", "encoder.final_block.")) for key in keys):
        return f"an SAE as overcomplete saves it, {_AS_SAELENS}"
    if keys >= _SAELENS:
        jumps = "; with a threshold it is a JumpReLUSAE" if "threshold" in keys else ""
        return (
            "the bare weights of an SAE under SAELens's names, without the config that says how they are used; load "
            f"them into sae-lens's StandardSAE{jumps}, and give the folder that save_sae writes of that"
        )
    return None


def peers_sae_folder(folder: Path) -> str | None:
    """The same of a folder, by the names of its files."""
    for library, (config, weights) in _OF_PEERS.items():
        if (folder / config).is_file() and any((folder / name).is_file() for name in weights):
            return f"an SAE as {library} saves it ({config} and {_there(folder, weights)}), {_AS_SAELENS}"
    return None


def safetensors_sae(path: Path) -> str | None:
    """The same of a file of tensors; None for another file, or one whose names do not tell."""
    if not is_safetensors(path):
        return None
    try:
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
    except (SafetensorError, OSError):
        return None
    if keys >= _SAELENS and (path.parent / "cfg.json").is_file():
        return "the weights alone of an SAE that SAELens saved; give the folder, which holds its cfg.json too"
    return peers_sae(keys)


def wrapped_network(content: Any) -> str | None:
    """How a Mammo-CLIP network was saved that does not lie under `model`, and how to make it so; None for others.

    Args:
        content: what `read_torch_checkpoint` gave.
    """
    if not _is_mapping(content) or _is_mapping(content.get("model")):
        return None
    key: str | None
    ema = next((key for key in _EMA if _is_mapping(content.get(key))), None)
    if _is_mapping(content.get("state_dict")):
        key, kind = "state_dict", "a Lightning checkpoint" if _of_lightning(content) else "a state dict in an entry"
    elif ema is not None:
        key, kind = ema, "the moving average (EMA) of a training's weights"
    elif _is_mapping(content.get("module")):
        key, kind = "module", "a DeepSpeed checkpoint"
    else:
        key, kind = None, "a bare state dict"
    weights = content if key is None else content[key]
    named = [str(name) for name in weights if "image_encoder." in str(name)]
    if not named:
        return None
    prefix = named[0].partition("image_encoder.")[0]
    prefix = "" if unwrapped_key(prefix + "image_encoder.x") == "image_encoder.x" else prefix  # is taken off anyway
    names = f"k.removeprefix({prefix!r}): v for k, v in " if prefix else ""
    held = f"read[{key!r}]" if key else "read"
    model = f"{{{names}{held}.items()}}" if prefix else held
    return (
        f"{kind} of Mammo-CLIP's network{f', under {key!r}' if key else ''}, where the original has it under 'model'; "
        f"convert it: read = torch.load(old, weights_only=True); torch.save({{'model': {model}}}, new)"
    )


def _of_lightning(content: Mapping[Any, Any]) -> bool:
    return any("lightning" in str(key) for key in content) or "hyper_parameters" in content


def _is_mapping(value: Any) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(value, Mapping)


def _there(folder: Path, names: Iterable[str]) -> str:
    return next(name for name in names if (folder / name).is_file())
