"""The state of a running SAE training as one safetensors file, from which it continues bit for bit.

SAELens's own checkpoint is a pickle beside four other files. This one holds the same values, read and set through
public attributes of its trainer: tensors as tensors, and everything else as JSON in the file's metadata.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import write_safetensors

COUNTERS = ("n_training_steps", "n_training_samples", "n_frac_active_samples", "started_fine_tuning")
TENSORS = ("act_freq_scores", "n_forward_passes_since_fired")


def save_state(trainer: Any, file: Path, *, extra: dict[str, Any]) -> None:
    """Write the state of a SAELens `SAETrainer` and of its SAE, whole or not at all.

    Args:
        trainer: The trainer, between two steps.
        file: Where the state goes; an older one is replaced.
        extra: Plain JSON to keep with it.
    """
    optimizer = trainer.optimizer.state_dict()
    tensors = {f"sae.{name}": tensor for name, tensor in trainer.sae.state_dict().items()}
    tensors |= {f"trainer.{name}": getattr(trainer, name) for name in TENSORS}
    for number, moments in optimizer["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    rest = {
        "counters": {name: getattr(trainer, name) for name in COUNTERS},
        "param_groups": optimizer["param_groups"],
        "lr_scheduler": trainer.lr_scheduler.state_dict(),
        "coefficient_schedulers": {n: each.state_dict() for n, each in trainer.coefficient_schedulers.items()},
        "scaling_factor": trainer.activation_scaler.scaling_factor,
        "extra": extra,
    }
    write_safetensors(file, tensors, {"state": json.dumps(rest)})


def load_state(trainer: Any, file: Path) -> dict[str, Any]:
    """Give a fresh trainer of the same settings the state that `save_state` wrote.

    Returns:
        What was given as `extra`.

    Raises:
        InputError: The file is damaged, or belongs to an SAE of another shape.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            rest = json.loads(opened.metadata()["state"])
        tensors = load_file(file)  # on the CPU, where Adam keeps its count of steps
        trainer.sae.load_state_dict(_below("sae.", tensors))
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in _below("optimizer.", tensors).items():
            number, field = name.split(".", 1)
            moments.setdefault(int(number), {})[field] = tensor
        trainer.optimizer.load_state_dict({"state": moments, "param_groups": rest["param_groups"]})
        trainer.lr_scheduler.load_state_dict(rest["lr_scheduler"])
        for name, state in rest["coefficient_schedulers"].items():
            trainer.coefficient_schedulers[name].load_state_dict(state)
        for name in COUNTERS:
            setattr(trainer, name, rest["counters"][name])
        for name in TENSORS:
            setattr(trainer, name, tensors[f"trainer.{name}"].to(trainer.cfg.device))
        trainer.activation_scaler.scaling_factor = rest["scaling_factor"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{file} is damaged; delete it, and the training starts anew") from error
    extra: dict[str, Any] = rest["extra"]
    return extra


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
