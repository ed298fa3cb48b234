"""A long job over many items, as a folder of shards: killed at any moment, it continues where it stopped.

The folder holds `plan.json` (what the job is), `shard-00000.safetensors`, ... (each whole or absent, each depending
only on the plan and its own items, each with its own name, the plan's SHA-256 and that of its tensors in its header)
and, written last, `done.json` (the SHA-256 of the plan, of every file, of every file's tensors, and of itself). Running
the same plan again compares the digests and does only what is missing or damaged; another plan is refused.

Under torchrun every process calls the same, and each computes its share of the missing shards: the folder ends with the
same bytes.
"""

__all__ = [
    "DONE", "is_done", "is_intact", "PLAN", "recorded_digests", "remove_shards", "require_plan",
    "require_room", "run_shards", "run_shards_together", "shard_name", "shard_paths", "ShardTask",
    "STALE_SECONDS", "Tensors", "verify_shards",
]  # fmt: skip

import json
import logging
import re
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from mammosae_plugin import distributed
from mammosae_plugin.checked_files import changed_files
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import (
    differences,
    is_sealed,
    read_json,
    remove_temporaries,
    sealed,
    sha256_of_file,
    sha256_of_json,
    write_json,
    write_safetensors,
)
from mammosae_plugin.locks import only_run
from mammosae_plugin.own_files import put_aside
from mammosae_plugin.progress import progress_bar
from mammosae_plugin.provenance import tensors_fingerprint

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

PLAN, DONE = "plan.json", "done.json"
STALE_SECONDS = 600.0  # nobody writes one shard for so long: a temporary file of that age is a killed writer's

_HEADER = "mammosae_shard"  # one entry: safetensors writes several in no fixed order
_AGAIN = "run the step that writes it again with the same settings, which replaces what is missing or damaged"

Tensors = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True)
class ShardTask:
    """One range of items whose shard is missing in some of the folders.

    Attributes:
        items: The items of the shard.
        names: The folders (by the names that `run_shards_together` was given) that lack it.
    """

    items: range
    names: frozenset[str]


def shard_name(number: int) -> str:
    """The file name of shard `number`."""
    return f"shard-{number:05d}.safetensors"


def is_done(folder: Path) -> bool:
    """Whether every shard of the folder's plan has been written."""
    return (folder / DONE).exists()


def require_room(folder: Path, n_items: int, shard_size: int, nbytes: int, what: str, instead: str) -> None:
    """Refuse before the first item, and not after hours, shards for which the disk has no room.

    Args:
        folder: Where the shards are or will be.
        n_items: Number of items, such as images.
        shard_size: Items of a shard.
        nbytes: Bytes of an item.
        what: What is written, in words.
        instead: What takes less, in words, besides fewer items.

    Raises:
        InputError: Those that are missing need more than is free.
    """
    there = sum((folder / shard_name(number)).exists() for number in range(-(-n_items // shard_size)))
    n_missing = max(0, n_items - shard_size * there)
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    wanted, free = n_missing * nbytes, shutil.disk_usage(existing).free
    logger.info("%s for %d images take %.2f GB in %s", what, n_items, n_items * nbytes / 1e9, folder)
    if wanted > free:
        raise InputError(
            f"{what} for {n_missing} images need {wanted / 1e6:,.0f} MB in {folder}, where {free / 1e6:,.0f} MB are "
            f"free; write to another disk, or choose {instead} or fewer images"
        )


def run_shards(
    folder: Path,
    plan: Mapping[str, Any],
    n_items: int,
    shard_size: int,
    compute: Callable[[range], Tensors],
    *,
    description: str,
    unit: str = "image",
) -> None:
    """Compute shards of `shard_size` consecutive items that the folder lacks, then seal the folder.

    Args:
        folder: Where the shards go; made if absent.
        plan: A JSON value that says everything on which the shards depend.
        n_items: How many items there are; shard s holds items [s * shard_size, (s + 1) * shard_size).
        shard_size: Items per shard.
        compute: Gives the tensors of one range of items. It must not depend on what was computed before.
        description: For the progress bar.
        unit: What an item is, for the progress bar.

    Raises:
        InputError: The folder holds the shards of another plan.
        OSError: A file cannot be written; what was written before stays and the job can be continued.
    """

    def stream(tasks: Sequence[ShardTask]) -> Generator[Mapping[str, Tensors], None, None]:
        for task in tasks:
            yield {"": compute(task.items)}

    run_shards_together({"": (folder, plan)}, n_items, shard_size, stream, description=description, unit=unit)


def run_shards_together(
    jobs: Mapping[str, tuple[Path, Mapping[str, Any]]],
    n_items: int,
    shard_size: int,
    stream: Callable[[Sequence[ShardTask]], Generator[Mapping[str, Tensors], None, None]],
    *,
    description: str,
    unit: str = "image",
) -> None:
    """`run_shards` for several folders over the same items, for what one pass over the items gives at once.

    Args:
        jobs: A folder and its plan by name.
        n_items: How many items there are.
        shard_size: Items per shard.
        stream: Gets all missing shards at once, so that it can read ahead; yields, for each in order, the tensors by
            name for at least the names that lack it.
        description: For the progress bar.
        unit: What an item is, for the progress bar.

    Raises:
        InputError: A folder holds the shards of another plan, or another run is at work in it.
        OSError: A file cannot be written; what was written before stays and the job can be continued.
    """
    distributed.start()
    plans = {name: {**plan, "n_items": n_items, "shard_size": shard_size} for name, (_, plan) in jobs.items()}
    folders = {name: folder for name, (folder, _) in jobs.items()}
    # Folders that are whole are only read, so that any number of runs may use them.
    whole = distributed.on_main(lambda: [name for name, folder in folders.items() if _is_whole(folder, plans[name])])
    left = {name: folder for name, folder in folders.items() if name not in whole}
    if left:
        with only_run(*left.values()):
            _compute({name: (folder, plans[name]) for name, folder in left.items()}, stream, description, unit)


def _compute(
    jobs: Mapping[str, tuple[Path, Mapping[str, Any]]],
    stream: Callable[[Sequence[ShardTask]], Generator[Mapping[str, Tensors], None, None]],
    description: str,
    unit: str,
) -> None:
    """Compute what folders lack, by the sizes in their plans, and seal them."""
    plan = next(iter(jobs.values()))[1]
    n_items, shard_size = plan["n_items"], plan["shard_size"]
    numbers = range(-(-n_items // shard_size))
    plan_digests = {name: sha256_of_json(plan) for name, (_, plan) in jobs.items()}
    missing = distributed.on_main(
        lambda: {name: _missing(folder, plan, numbers) for name, (folder, plan) in jobs.items()}
    )
    if all(found is None for found in missing.values()):
        return
    ranges = [range(start, min(start + shard_size, n_items)) for start in range(0, n_items, shard_size)]
    needed = {
        number: frozenset(name for name, found in missing.items() if number in (found or ())) for number in numbers
    }
    tasks = {number: ShardTask(ranges[number], names) for number, names in needed.items() if names}
    n_there = n_items - sum(len(task.items) for task in tasks.values())
    tasks = dict(distributed.share(list(tasks.items())))
    n_mine = sum(len(task.items) for task in tasks.values())

    def write(number: int, names: frozenset[str], tensors: Mapping[str, Tensors]) -> None:
        for name in sorted(names):
            _write_shard(jobs[name][0] / shard_name(number), tensors[name], plan_digests[name])

    with (
        distributed.together(),
        progress_bar(
            total=n_there + n_mine,
            done=n_there,
            description=description,
            unit=unit,
            to=[folder for folder, _ in jobs.values()],
            shown=distributed.is_main(),
        ) as bar,
        closing(stream(list(tasks.values()))) as results,
        ThreadPoolExecutor(1) as writer,  # a shard is written while the next one is computed
    ):
        writing: Future[None] | None = None
        for number, task in tasks.items():
            distributed.check()
            tensors = next(results)
            if writing is not None:
                writing.result()
            writing = writer.submit(write, number, task.names, tensors)
            del tensors
            bar.update(len(task.items))
        if writing is not None:
            writing.result()

    def seal() -> None:
        for name, (folder, _) in jobs.items():
            if missing[name] is not None:
                _seal(folder, plan_digests[name], numbers)

    distributed.on_main(seal)


def _is_whole(folder: Path, plan: Mapping[str, Any]) -> bool:
    """Whether a folder holds the whole result of a plan, by its digests; changes nothing.

    Raises:
        InputError: It holds that of another plan, or its plan is damaged and not known to be this one.
    """
    there, seal = _plan_in(folder), _read_seal(folder) if is_done(folder) else {}
    differing = differences(there, plan)
    is_its_own = there is not None and seal.get("plan") in (None, sha256_of_json(there))
    if is_its_own and not differing:
        return is_done(folder) and not _damaged(folder)
    if not (seal and is_its_own):
        written = [_header(path).get("plan_sha256") for path in sorted(folder.glob("shard-*.safetensors"))]
        if sha256_of_json(plan) in (seal.get("plan"), *written) or (there is None and not written):
            return False  # what is damaged is the plan, or the seal
    if is_its_own:
        raise InputError(
            f"{folder} holds the result of other settings ({differing}); name another folder or delete this one"
        )
    raise InputError(
        f"{folder / PLAN} is missing or damaged, and these are not the settings that the shards there were made with; "
        "give those, which writes it again, or name another folder"
    )


def _missing(folder: Path, plan: Mapping[str, Any], numbers: range) -> set[int] | None:
    """The shards that a folder lacks, after damaged ones are removed; None for a sealed folder that is whole."""
    if _is_whole(folder, plan):
        return None
    if differences(_plan_in(folder), plan):
        if (folder / PLAN).exists():
            has_begun = is_done(folder) or any(folder.glob("shard-*.safetensors"))
            kept = "" if has_begun else f" (somebody's file of that name is kept as {put_aside(folder / PLAN).name})"
            logger.warning("%s is damaged; it is written again%s", folder / PLAN, kept)
        write_json(folder / PLAN, plan)
        if _is_whole(folder, plan):
            return None
    remove_temporaries(folder, older_than=STALE_SECONDS)
    if is_done(folder):
        _unseal(folder)
    # A shard may have been damaged between its writing and now, and sealing it would make that for ever right.
    for number in numbers:
        path = folder / shard_name(number)
        if path.exists() and not is_intact(path, sha256_of_json(plan)):
            logger.warning("%s is damaged or not the shard of its name; it is computed again", path)
            path.unlink()
    return {number for number in numbers if not (folder / shard_name(number)).exists()}


def _seal(folder: Path, plan_digest: str, numbers: range) -> None:
    paths = [folder / shard_name(number) for number in numbers]
    remove_temporaries(folder, older_than=0)
    seal = {
        "plan": plan_digest,
        "shards": {path.name: sha256_of_file(path) for path in paths},
        "tensors": {path.name: _header(path).get("tensors_sha256") for path in paths},
    }
    write_json(folder / DONE, sealed(seal))


def _write_shard(path: Path, tensors: Tensors, plan_digest: str) -> None:
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    header = _place(path, plan_digest, tensors_fingerprint(whole))
    write_safetensors(path, whole, {_HEADER: json.dumps(header)})


def _place(path: Path, plan_digest: str, tensors_digest: str) -> dict[str, str]:
    """What the header of a shard says: its name, and the SHA-256 of its plan and of its tensors."""
    return {"name": path.name, "plan_sha256": plan_digest, "tensors_sha256": tensors_digest}


def _header(path: Path) -> dict[str, str]:
    """What a shard's header says beside its tensors; empty where it cannot be read."""
    try:
        with safe_open(path, framework="np") as file:  # of which no tensor is asked, so that torch is not needed
            return _said(file)
    except (SafetensorError, OSError):
        return {}


def _said(file: Any) -> dict[str, str]:
    try:
        said = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
    except json.JSONDecodeError:
        return {}
    return said if isinstance(said, dict) else {}


def is_intact(path: Path, plan_digest: str) -> bool:
    """Whether a shard is the one of its name in this plan, and its tensors have the SHA-256 that its header gives."""
    try:
        with safe_open(path, framework="pt") as file:
            header = _said(file)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a file, not a dict
    except (SafetensorError, OSError):
        return False
    return header == _place(path, plan_digest, tensors_fingerprint(tensors))


def _damaged(folder: Path) -> list[str]:
    """The shards of a sealed folder that differ from their recorded SHA-256, or the seal where that is damaged."""
    recorded = recorded_digests(folder)
    return changed_files(folder, recorded) if recorded else [DONE]


def _unseal(folder: Path) -> None:
    """Remove damaged shards and the seal, so that they are made anew."""
    damaged = _damaged(folder)
    logger.warning("%s has %d damaged or missing shards; they are computed again", folder, len(damaged))
    for name in [DONE, *damaged]:
        (folder / name).unlink(missing_ok=True)


def recorded_digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every shard by file name; empty when the seal itself is damaged."""
    return dict(_read_seal(folder).get("shards", {}))


def _read_seal(folder: Path) -> dict[str, Any]:
    """`done.json`; empty when it is not what was written. Of earlier versions it held `shards` alone."""
    seal = read_json(folder / DONE)
    if isinstance(seal, dict) and (is_sealed(seal) or (seal.keys() == {"shards"} and isinstance(seal["shards"], dict))):
        return seal
    return {}


def _plan_in(folder: Path) -> Any:
    """`plan.json`; None where it is missing or no JSON."""
    try:
        return read_json(folder / PLAN)
    except InputError:
        return None


def require_plan(folder: Path) -> None:
    """Compare the plan of a sealed folder with the SHA-256 in its seal, which those of earlier versions lack.

    Raises:
        InputError: The plan is missing or was changed.
    """
    digest = _read_seal(folder).get("plan")
    if digest is not None and sha256_of_json(_plan_in(folder)) != digest:
        raise InputError(f"{folder / PLAN} is missing or was changed (it is not the plan that {DONE} names); {_AGAIN}")


def remove_shards(folder: Path) -> None:
    """Remove a job's files, and the folder itself if nothing else is in it."""
    if not (folder / PLAN).exists():
        return
    for path in [*folder.glob("shard-*.safetensors"), folder / DONE, folder / PLAN]:
        path.unlink(missing_ok=True)
    remove_temporaries(folder)
    if not any(folder.iterdir()):
        folder.rmdir()


def shard_paths(folder: Path) -> list[Path]:
    """The shards of a sealed folder, in order; their headers are read and say that each stands in its place.

    Raises:
        InputError: The folder is not sealed, its seal was changed, or a shard that it lists is missing, or is another
            one: exchanged, copied over, or of another job.
    """
    if not is_done(folder):
        raise InputError(f"{folder} is not complete; run the step that writes it again, it continues where it stopped")
    seal = _read_seal(folder)
    if not seal:
        raise InputError(f"{folder / DONE} is damaged or was changed; {_AGAIN}")
    names = sorted(seal["shards"], key=lambda name: int(re.findall(r"\d+", name)[0]))
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise InputError(f"{folder} lacks {missing[0]} ({len(missing)} missing); {_AGAIN}")
    for name, tensors in seal.get("tensors", {}).items():
        header = _header(folder / name)
        if header.get("name", name) != name:
            raise InputError(f"{folder / name} holds what {header['name']} should: shards were exchanged; {_AGAIN}")
        if header != _place(folder / name, seal["plan"], tensors):
            raise InputError(f"{folder / name} is damaged or the shard of another job; {_AGAIN}")
    return [folder / name for name in names]


def verify_shards(folder: Path) -> None:
    """Compare the plan and every shard with their recorded SHA-256.

    Raises:
        InputError: The plan or a shard is missing, is another one, or was changed.
    """
    shard_paths(folder)
    for name in changed_files(folder, recorded_digests(folder)):
        raise InputError(f"{folder / name} is damaged (its SHA-256 is not the recorded one); {_AGAIN}")
    require_plan(folder)
