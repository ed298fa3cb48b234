"""A long job over many items, as a folder of shards: killed at any moment, it continues where it stopped.

The folder holds `plan.json` (what the job is), `shard-00000.safetensors`, ... (each whole or absent, each depending
only on the plan and its own items) and, written last, `done.json` (the SHA-256 of every shard). Running the same plan
again compares the digests and does only what is missing or damaged; another plan is refused.
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json, sha256_of_file, write_json, write_safetensors

logger = logging.getLogger(__name__)

PLAN, DONE = "plan.json", "done.json"


def shard_name(number: int) -> str:
    """The file name of shard `number`."""
    return f"shard-{number:05d}.safetensors"


def is_done(folder: Path) -> bool:
    """Whether every shard of the folder's plan has been written."""
    return (folder / DONE).exists()


def run_shards(
    folder: Path,
    plan: Mapping[str, Any],
    n_items: int,
    shard_size: int,
    compute: Callable[[range], Mapping[str, torch.Tensor]],
    *,
    description: str,
) -> None:
    """Compute shards of `shard_size` consecutive items that the folder lacks, then seal the folder.

    Args:
        folder: Where the shards go; made if absent.
        plan: A JSON value that says everything on which the shards depend.
        n_items: How many items there are; shard s holds items [s * shard_size, (s + 1) * shard_size).
        shard_size: Items per shard.
        compute: Gives the tensors of one range of items. It must not depend on what was computed before.
        description: For the progress bar.

    Raises:
        InputError: The folder holds the shards of another plan.
    """
    plan_file = folder / PLAN
    plan = {**plan, "n_items": n_items, "shard_size": shard_size}
    if plan_file.exists():
        if read_json(plan_file) != plan:
            raise InputError(f"{folder} holds the result of other settings; name another folder or delete this one")
        if is_done(folder) and not _unseal_if_damaged(folder):
            return
    else:
        write_json(plan_file, plan)
    ranges = [range(start, min(start + shard_size, n_items)) for start in range(0, n_items, shard_size)]
    with tqdm(total=n_items, desc=description, unit="image", dynamic_ncols=True) as bar:
        for number, items in enumerate(ranges):
            path = folder / shard_name(number)
            if not path.exists():
                write_safetensors(path, compute(items))
            bar.update(len(items))
    shards = {shard_name(number): sha256_of_file(folder / shard_name(number)) for number in range(len(ranges))}
    write_json(folder / DONE, {"shards": shards})


def _unseal_if_damaged(folder: Path) -> bool:
    """Remove shards that differ from their recorded SHA-256, and then the seal, so that they are made anew."""
    recorded = _recorded(folder)
    damaged = [name for name, digest in recorded.items() if not _is_whole(folder / name, digest)]
    if recorded and not damaged:
        return False
    logger.warning("%s has %d damaged or missing shards; they are computed again", folder, len(damaged))
    (folder / DONE).unlink()
    for name in damaged:
        (folder / name).unlink(missing_ok=True)
    return True


def _is_whole(path: Path, digest: str) -> bool:
    return path.exists() and sha256_of_file(path) == digest


def _recorded(folder: Path) -> dict[str, str]:
    """The SHA-256 of every shard by file name; empty when the seal itself is damaged."""
    sealed = read_json(folder / DONE)
    shards = sealed.get("shards", {}) if isinstance(sealed, dict) else {}
    return dict(shards) if isinstance(shards, dict) else {}


def shard_paths(folder: Path) -> list[Path]:
    """The shards of a sealed folder, in order.

    Raises:
        InputError: The folder is not sealed, or a shard that it lists is missing.
    """
    if not is_done(folder):
        raise InputError(f"{folder} is not complete; run the step that writes it again, it continues where it stopped")
    names = sorted(_recorded(folder), key=lambda name: int(re.findall(r"\d+", name)[0]))
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise InputError(
            f"{folder} lacks {missing[0]} ({len(missing)} missing); delete the folder and run the step again"
        )
    return [folder / name for name in names]


def verify_shards(folder: Path) -> None:
    """Compare every shard with its recorded SHA-256.

    Raises:
        InputError: A shard is missing or its bytes have changed.
    """
    recorded = _recorded(folder)
    for path in shard_paths(folder):
        if not _is_whole(path, recorded[path.name]):
            raise InputError(
                f"{path} is damaged (its SHA-256 is not the recorded one); delete the folder and run again"
            )
