"""Checkpoints that others wrote in forms which this package does not read: what they are, and the way out.

They are told by their keys and by the names of their files; nothing of them is loaded.
"""

__all__ = ["wrapped_network"]

from collections.abc import Mapping
from typing import Any, TypeGuard

from mammosae_plugin.adapters.checkpoints import unwrapped_key

_EMA = ("ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema")


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
    named = [str(name) for name in weights if "image_encoder._" in str(name)]  # as EfficientNet's parts are called
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
