"""The steps of a study of either kind, one after the other in one folder, and how long each took."""

__all__ = ["dated", "Steps"]

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from mammosae_plugin import distributed
from mammosae_plugin.files import read_json, write_json
from mammosae_plugin.locks import only_run
from mammosae_plugin.schema.names import RESULTS_FILE
from mammosae_plugin.study.done import STEPS, record_step

_OF_ALL_PROCESSES = ("classify", "extract", "train", "encode")


class Steps(ABC):
    """What can be done step by step: a method for each of `STEPS`.

    Attributes:
        output: The folder that everything is written to.
        report_file: The report that the last step writes.
    """

    output: Path

    @property
    @abstractmethod
    def report_file(self) -> Path:
        """Where the report lies."""

    @property
    @abstractmethod
    def state(self) -> tuple[Mapping[str, Any], str]:
        """The settings, and what changes with the files of images and annotations (empty where there are none)."""

    @abstractmethod
    def summary(self, step: str) -> str:
        """What a command prints when its step is done: the main figures and where to find the rest."""

    def run(self, until: str = "report") -> None:
        """Do the steps up to and including `until`; each shows its progress and keeps its result.

        The seconds that each step took are added up over runs in `timings.json` in the output folder. Of several
        processes the first alone does what comes after `encode`.

        Raises:
            InputError: Anything that is wrong with the input, or another run writes to the output folder.
        """
        with only_run(self.output):
            for step in STEPS[: STEPS.index(until) + 1]:
                self._run(step)
                if distributed.is_main():
                    record_step(self.output, step, *self.state)

    def _run(self, step: str) -> None:
        file = self.output / "timings.json"
        start = time.perf_counter()
        if step in _OF_ALL_PROCESSES:
            getattr(self, step)()
        elif distributed.is_main():
            with distributed.alone():
                getattr(self, step)()
        if distributed.is_main():
            seconds = time.perf_counter() - start
            timings = _timings(file)
            write_json(file, {**timings, step: round(timings.get(step, 0.0) + seconds, 2)})


def dated(results: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The results with the date of the first run that had them: running again changes no byte."""
    file = folder / RESULTS_FILE
    before = read_json(file) if file.exists() else {}
    created = before.pop("created", None) if isinstance(before, dict) else None
    if isinstance(before, dict):
        before.pop("shortcuts", None)  # it follows from the rest
    return {**results, "created": created if before == results else date.today().isoformat()}


def _timings(file: Path) -> dict[str, float]:
    found = read_json(file) if file.exists() else {}
    return found if isinstance(found, dict) else {}
