"""Figures that are drawn only when what they show, or what draws them, has changed."""

__all__ = ["Drawings"]

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mammosae_plugin.analysis import localization, map_boxes, regions
from mammosae_plugin.files import sha256_of_file, sha256_of_json
from mammosae_plugin.provenance import plain
from mammosae_plugin.schema.names import FIGURES_FOLDER
from mammosae_plugin.visualization.style import save_figure

Record = dict[str, dict[str, str]]
"""By name of a figure `drawn_from`, the digest of what it shows and of what draws it, and `sha256` of its file."""


class Drawings:
    """The figures of a results folder, each drawn when it has to be and else taken from an earlier run.

    Attributes:
        folder: Where figures go.
        record: Of those that are there by now; what `known` is for the next run.
    """

    def __init__(
        self, results_folder: Path, *, earlier: Path | None = None, known: Mapping[str, Mapping[str, str]] | None = None
    ) -> None:
        """Of a results folder that may be staged.

        Args:
            results_folder: Where the folder of figures is made.
            earlier: The results folder of an earlier run, whose figures are taken where nothing has changed.
            known: The record of that run.
        """
        self.folder = results_folder / FIGURES_FOLDER
        self.record: Record = {}
        self._earlier = earlier and earlier / FIGURES_FOLDER
        self._known = known or {}

    def draw(self, name: str, plot: Callable[..., Figure], /, *shown: Any, dpi: int = 200, **settings: Any) -> Path:
        """A figure's file, drawn by `plot(*shown, **settings)` unless an earlier run drew the same with the same code.

        Args:
            name: Of the file.
            plot: A function of this room; all that it shows are its arguments.
            shown: Numbers, text, arrays, frames, and lists and mappings of these.
            dpi: Dots per inch.
            settings: Further arguments.
        """
        path = self.folder / name
        digest = sha256_of_json([plot.__qualname__, _code(), dpi, _told(shown), _told(settings)])
        known = self._known.get(name, {})
        before = self._earlier / name if self._earlier else None
        if before and known.get("drawn_from") == digest and before.is_file():
            sha256 = sha256_of_file(before)
            if sha256 == known.get("sha256"):
                self.folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(before, path)
                self.record[name] = {"drawn_from": digest, "sha256": sha256}
                return path
        save_figure(plot(*shown, **settings), path, dpi=dpi)
        self.record[name] = {"drawn_from": digest, "sha256": sha256_of_file(path)}
        return path


@cache
def _code() -> str:
    """A digest of what draws: this room, the boxes that it draws round maps, and matplotlib."""
    of_boxes = [Path(str(module.__file__)) for module in (localization, map_boxes, regions)]
    files = [*sorted(Path(__file__).parent.glob("*.py")), *of_boxes]
    return sha256_of_json([version("matplotlib"), *map(sha256_of_file, files)])


def _told(value: Any) -> Any:
    """What a figure shows as JSON, arrays by a digest."""
    if isinstance(value, pd.DataFrame):
        return [[str(name), _told(value[name].to_numpy())] for name in value]
    if isinstance(value, np.ndarray) and value.dtype != object:
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _told(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return [[str(key), _told(one)] for key, one in value.items()]
    if isinstance(value, list | tuple | np.ndarray):
        return [_told(one) for one in value]
    return plain(value)
