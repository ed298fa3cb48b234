"""What a study's folder holds: the steps that are done, and which results the last whole run used."""

__all__ = ["clean", "Kept", "record_step", "status", "StudyStatus", "STEPS"]

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, read_json, write_json
from mammosae_plugin.locks import only_run
from mammosae_plugin.provenance import plain
from mammosae_plugin.study.in_use import in_use
from mammosae_plugin.version import __version__

STEPS = ("classify", "extract", "train", "encode", "probe", "intervene", "localize", "evidence", "report")
WORK, DONE, TIMINGS = "work", "done.json", "timings.json"
_PLAN = ".plan.json"
_NO_MATTER = {"output", "device", "num_workers"}  # settings that change no number
_STEM = re.compile(r"(?:.*-)?[0-9a-f]{12}")  # of what bears its plan's digest


@dataclass(frozen=True)
class Kept:
    """One result in the folder `work`: a file or folder with its plan and what else bears its name.

    Attributes:
        name: such as latents/finetuned-1a3241e28180.
        paths: all that belongs to it.
        nbytes: on the disk.
        in_use: whether the last whole run, or a step since, asked for it.
    """

    name: str
    paths: tuple[Path, ...]
    nbytes: int
    in_use: bool


@dataclass(frozen=True)
class StudyStatus:
    """What is done of a study.

    Attributes:
        folder: its output folder.
        seconds: what each step took in all runs; of steps that have never ended none.
        done: the steps that ended with the settings and data of the last run.
        changed: settings that are other now than in the last run, `place: before -> now`; a line of its own for data.
        whole: whether a whole run has ended, so that it is known what is in use.
        kept: the results in `work`.
        results_nbytes: on the disk, of `results`.
    """

    folder: Path
    seconds: Mapping[str, float]
    done: Sequence[str]
    changed: Sequence[str]
    whole: bool
    kept: Sequence[Kept]
    results_nbytes: int

    @property
    def unused(self) -> list[Kept]:
        """What nothing of the study uses any more; none where that is not known."""
        return [one for one in self.kept if not one.in_use] if self.whole else []

    def as_text(self) -> str:
        """For the terminal."""
        lines = [f"study in {self.folder}", ""]
        for step in STEPS:
            took = f", {_minutes(self.seconds[step])} in all runs" if step in self.seconds else ""
            lines.append(f"{step:11}{'done' if step in self.done else 'not done'}{took}")
        rooms: dict[str, list[int]] = {}
        for one in self.kept:
            sums = rooms.setdefault(one.name.partition("/")[0], [0, 0])
            sums[0] += one.nbytes
            sums[1] += 0 if one.in_use else one.nbytes
        lines += ["", f"results    {_size(self.results_nbytes)}"]
        for room, (all_of_it, unused) in sorted(rooms.items()):
            left = f", {_size(unused)} of it needed no more" if unused and self.whole else ""
            lines.append(f"{WORK}/{room:18}{_size(all_of_it)}{left}")
        return "\n".join([*lines, "", *self._next()])

    def _next(self) -> Iterator[str]:
        if self.changed:
            yield "changed since the last run:"
            yield from (f"  {one}" for one in self.changed)
            yield "running it again makes anew what depends on that, and keeps the rest"
        elif left := [step for step in STEPS if step not in self.done]:
            yield f"running it again goes on with {left[0]}: what is whole is kept"
        else:
            yield "running it again does nothing: everything is done"
        if unused := self.unused:
            total = sum(one.nbytes for one in unused)
            yield f"{len(unused)} results ({_size(total)}) are needed no more: mammosae clean removes them"


def record_step(folder: Path, step: str, settings: Mapping[str, Any], data: str) -> None:
    """Note that a step has ended; with the last one, that what this process asked for is all that is in use."""
    work = folder / WORK
    before = _recorded(folder)
    now = {"settings": plain(settings), "data": data, "version": __version__}
    same = all(before.get(name) == value for name, value in now.items())
    done = [one for one in STEPS if one == step or (same and one in before.get("done", ()))]
    used = {path.relative_to(work).as_posix() for path in in_use(work)}
    is_last = step == STEPS[-1]
    used |= set() if is_last else {*before.get("used", ())}
    whole = is_last or bool(before.get("whole"))
    told = {**now, "done": done, "whole": whole, "used": sorted(used)}
    if told != before:
        write_json(work / DONE, told)


def status(folder: str | Path, settings: Mapping[str, Any] | None = None, data: str | None = None) -> StudyStatus:
    """What is done of a study, what has changed since, and what lies on the disk.

    Args:
        folder: the study's output folder.
        settings: its configuration now (`portable_config`); None is that of the last run.
        data: the state of its images now; None likewise.

    Raises:
        InputError: the folder is none of a study.
    """
    place = local_path(folder)
    if not (place / WORK).is_dir():
        raise InputError(f"{place} holds no study (no folder {WORK} in it); name a study's file or its output folder")
    before = _recorded(place)
    timings = read_json(place / TIMINGS) if (place / TIMINGS).exists() else {}
    changed: list[str] = []
    if before:
        if settings is not None:
            changed += _differences(before["settings"], plain(settings))
        if data is not None and data != before["data"]:
            changed.append("data: files of images or annotations")
        if before["version"] != __version__:
            changed.append(f"mammosae-plugin: {before['version']} -> {__version__}")
    return StudyStatus(
        place,
        {step: float(timings[step]) for step in STEPS if step in timings},
        before.get("done", []),
        changed,
        bool(before.get("whole")),
        list(_kept(place / WORK, before.get("used", ()))),
        _nbytes(place / "results"),
    )


def clean(folder: str | Path, confirm: Callable[[Sequence[Kept]], bool]) -> list[Kept]:
    """Remove the results that a study no longer uses, which can be made again.

    They are those of earlier settings and data, and what was only needed on the way to others that are there.

    Args:
        folder: the study's output folder.
        confirm: is told what would go, and says whether it may.

    Returns:
        What was removed.

    Raises:
        InputError: the folder is none of a study, or no whole run of it has ended; or another run works in it.
    """
    place = local_path(folder)
    found = status(place)
    with only_run(place):
        found = status(place)
        if not found.whole:
            raise InputError(f"what {place} uses is not known before a whole run of it has ended; run the study first")
        unused = found.unused
        if not unused or not confirm(unused):
            return []
        for one in unused:
            # The plan goes last: what is left of a killed removal is still known as a result.
            for path in sorted(one.paths, key=lambda path: path.name.endswith(_PLAN)):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return unused


def _kept(work: Path, used: Sequence[str]) -> Iterator[Kept]:
    stems = {(Path(one).parent.as_posix(), found[0]) for one in used if (found := _STEM.match(Path(one).name))}
    for plan in sorted(work.glob(f"*/*{_PLAN}")):
        room, found = plan.parent, _STEM.match(plan.name)
        if found is None:
            continue
        paths = tuple(sorted(path for path in room.iterdir() if _is_of(path.name, found[0])))
        name = f"{room.name}/{found[0]}"
        yield Kept(name, paths, sum(map(_nbytes, paths)), (room.name, found[0]) in stems)


def _is_of(name: str, stem: str) -> bool:
    return name.startswith(stem) and (len(name) == len(stem) or name[len(stem)] == ".")


def _recorded(folder: Path) -> dict[str, Any]:
    file = folder / WORK / DONE
    found = read_json(file) if file.exists() else {}
    return found if isinstance(found, dict) and "settings" in found else {}


def _differences(before: Any, now: Any, place: str = "") -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*before, *now]):
            if not place and key in _NO_MATTER:
                continue
            yield from _differences(before.get(key), now.get(key), f"{place}.{key}" if place else str(key))
    elif before != now:
        yield f"{place}: {_short(before)} -> {_short(now)}"


def _short(value: Any) -> str:
    told = "none" if value is None else str(value)
    return told if len(told) <= 60 else f"{told[:57]}..."


def _nbytes(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(map(_nbytes, path.iterdir()))
    return path.lstat().st_size if path.exists() else 0


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
