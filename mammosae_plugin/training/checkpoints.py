"""The state of a running SAE training as one safetensors file, from which it continues bit for bit.

SAELens's own checkpoint is a pickle beside four other files. This one holds the same values, read and set through
public attributes of its trainer: tensors as tensors, and everything else as JSON in the file's metadata.
"""

__all__ = ["COUNTERS", "load_state", "read_state", "save_state", "TENSORS", "write_state"]

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sae_lens.training.sae_trainer import SAETrainer
from safetensors import SafetensorError, safe_open

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sha256_of_json, write_safetensors
from mammosae_plugin.provenance import tensors_fingerprint

COUNTERS = ("n_training_steps", "n_training_samples", "n_frac_active_samples", "started_fine_tuning")
_SEAL = "mammosae_sha256"
TENSORS = ("act_freq_scores", "n_forward_passes_since_fired")


def save_state(trainer: SAETrainer[Any, Any], file: Path, *, extra: dict[str, Any]) -> None:
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
    write_state(file, tensors, {"state": json.dumps(rest)})


def load_state(trainer: SAETrainer[Any, Any], file: Path) -> dict[str, Any]:
    """Give a fresh trainer of the same settings the state that `save_state` wrote.

    Returns:
        What was given as `extra`.

    Raises:
        InputError: The file is damaged, or belongs to an SAE of another shape.
    """
    tensors, said = read_state(file)  # on the CPU; Adam puts them where it keeps them
    try:
        rest = json.loads(said["state"])
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
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _damaged(file) from error
    extra: dict[str, Any] = rest["extra"]
    return extra


def write_state(file: Path, tensors: Mapping[str, torch.Tensor], said: Mapping[str, str]) -> None:
    """Write the state of a running training, with a checksum over everything in it."""
    write_safetensors(file, tensors, {**said, _SEAL: _checksum(tensors, said)})


def read_state(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a state, on the CPU, and what it says beside them; those of earlier versions have no checksum.

    Raises:
        InputError: The file is damaged, down to a single bit.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
            said = dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _damaged(file) from error
    if (seal := said.pop(_SEAL, None)) is not None and seal != _checksum(tensors, said):
        raise _damaged(file)
    return tensors, said


def _checksum(tensors: Mapping[str, torch.Tensor], said: Mapping[str, str]) -> str:
    return sha256_of_json([tensors_fingerprint(tensors), dict(said)])


def _damaged(file: Path) -> InputError:
    return InputError(f"{file} is damaged; delete it, and the training starts anew")


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
