"""Sending the metrics of a training to wandb or TensorBoard, for those who ask for it."""

__all__ = ["new_tracker", "Tracker", "TrackerName"]

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from mammosae_plugin.errors import InputError

TrackerName = Literal["wandb", "tensorboard"]


class Tracker(Protocol):
    """Where metrics go beside `metrics.jsonl`."""

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """Send a row of metrics."""

    def close(self) -> None:
        """Send what is left."""


def new_tracker(name: TrackerName | None, folder: Path, settings: Mapping[str, Any]) -> Tracker | None:
    """A tracker by name; None for none.

    Args:
        name: "wandb" (a run of the project "mammosae", under the folder's name) or "tensorboard" (events in the folder
            `tensorboard` of `folder`).
        folder: The SAE's folder.
        settings: The settings of the training.

    Raises:
        InputError: An unknown name, or the package is missing.
    """
    if name is None:
        return None
    if name not in ("wandb", "tensorboard"):
        raise InputError(f"there is no tracker {name!r}; choose 'wandb' or 'tensorboard', or None")
    try:
        if name == "wandb":
            return _Wandb(importlib.import_module("wandb"), folder, settings)
        return _TensorBoard(importlib.import_module("torch.utils.tensorboard"), folder)
    except ImportError as error:
        raise InputError(f"metrics cannot go to {name}, which is not installed: pip install {name}") from error


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by name, those of each level of a nested SAE under the level's width."""
    prefix = str(row.get("of", ""))
    parts = {prefix: row} | {f"{prefix}/level_{level['width']}": level for level in row.get("levels") or ()}
    return {
        f"{part}/{name}": float(value)
        for part, values in parts.items()
        for name, value in values.items()
        if isinstance(value, (int, float)) and name not in ("step", "width")
    }


class _Wandb:
    def __init__(self, wandb: Any, folder: Path, settings: Mapping[str, Any]) -> None:
        self._run = wandb.init(
            project="mammosae", name=folder.name, dir=str(folder), config=dict(settings), reinit="create_new"
        )

    def log(self, row: Mapping[str, Any], step: int) -> None:
        self._run.log(_numbers(row), step=step)

    def close(self) -> None:
        self._run.finish()


class _TensorBoard:
    def __init__(self, module: Any, folder: Path) -> None:
        self._writer = module.SummaryWriter(str(folder / "tensorboard"))

    def log(self, row: Mapping[str, Any], step: int) -> None:
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
