"""A program that runs processes of torch.distributed.elastic, kills some, and leaves what they make in a folder.

    python program_distributed.py FOLDER PHANTOMS

torchrun starts fresh interpreters, each of which imports for many seconds. Here its agent, with the same membership and
the same restarts, takes processes from a server that has imported everything.
"""

import importlib
import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

JOBS = "helpers_distributed"


def work(name: str, arguments: tuple[Any, ...]) -> None:
    getattr(importlib.import_module(JOBS), name)(*arguments)


def launch(n_processes: int, name: str, *arguments: Any, max_restarts: int = 0) -> list[int]:
    """Do a job in several processes; returns the exit codes of those that failed when no restart was left."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=n_processes,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=max_restarts,
        monitor_interval=0.1,
        start_method="forkserver",
    )
    sys.stderr.write(f"== {n_processes} {name} {arguments[2:]}\n")
    try:
        elastic_launch(config, work)(name, arguments)
    except ChildFailedError as error:
        return sorted(failure.exitcode for failure in error.failures.values())
    return []


def main() -> None:
    multiprocessing.set_forkserver_preload([JOBS])
    paths = Path(sys.argv[1]), Path(sys.argv[2])
    codes = {"one": launch(1, "make", *paths, "one")}
    # Four processes, of which one is killed and none restarted; then two take over, and torchrun restarts them once.
    codes["four, one killed"] = launch(4, "make", *paths, "taken over", (("extracting", 3),))
    codes["two take over"] = launch(2, "make", *paths, "taken over", (("training", 1),), max_restarts=1)
    # Two processes, restarted once, of which the one that writes is killed at last; then one goes on.
    deaths = (("extracting", 1), ("training", 0))
    codes["restarted"] = launch(2, "make", *paths, "restarted", deaths, max_restarts=1)
    checkpoints = sorted(path.parent.name for path in paths[0].glob("restarted/saes/*/checkpoint.safetensors"))
    codes["one goes on"] = launch(1, "make", *paths, "restarted")
    codes["two, undisturbed"] = launch(2, "train", paths[0], "two")
    codes["bad input"] = launch(2, "meet_bad_input", *paths)
    codes["one looks"] = launch(1, "look", *paths, "look-1")
    codes["two look"] = launch(2, "look", *paths, "look-2")
    codes["no config"] = launch(2, "command", "extract", "--config", "missing.yaml")
    (paths[0] / "codes.json").write_text(json.dumps({"codes": codes, "checkpoints": checkpoints}))


if __name__ == "__main__":
    main()
