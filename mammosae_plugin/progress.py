"""How far long work is: what is done, about how many minutes remain, and where it writes."""

__all__ = ["progress", "progress_bar", "time_left"]

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")
Place: TypeAlias = str | os.PathLike[str]

_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} {unit}s, {left}{postfix}"


def time_left(seconds: float) -> str:
    """A time to wait in words: "under a minute", "about 12 min" or "about 2 h 5 min"."""
    minutes = math.ceil(seconds / 60)
    if seconds < 60:
        return "under a minute"
    return f"about {minutes} min" if minutes < 100 else f"about {minutes // 60} h {minutes % 60} min"


class _Bar(tqdm):  # type: ignore[type-arg]  # it takes none when it runs
    """A bar of tqdm that says minutes, and before it first appears where the work is written."""

    def __init__(self, *given: Any, to: str | None, clock: Callable[[], float], **options: Any) -> None:
        self._to, self._clock, self._began = to, clock, clock()
        super().__init__(*given, **options)

    @property
    def format_dict(self) -> Any:
        found = super().format_dict
        found["left"] = self._left()
        return found

    def _left(self) -> str:
        """By the mean pace so far, which a pause or a quick start changes less than the latest."""
        if self.disable or self.total is None or self.n == self.initial:
            return "? min left"
        if self.n >= self.total:
            return "done"
        pace = (self._clock() - self._began) / (self.n - self.initial)
        return f"{time_left(pace * (self.total - self.n))} left"

    def display(self, *given: Any, **options: Any) -> Any:
        """Show it; the first time behind a line that says where the work is written."""
        if self._to is not None:
            to, self._to = self._to, None
            self.write(f"{self.desc.removesuffix(': ')}: written to {to}", file=self.fp)
        return super().display(*given, **options)


def progress(items: Iterable[T], **how: Any) -> "tqdm[T]":
    """Things that are worked on one after the other, with a bar; `how` is as for `progress_bar`.

    Example:
        >>> for image in progress(images, description="encode", unit="image", to="work/latents"): ...
        encode: written to work/latents
        encode:  42%|####      | 12/28 images, about 3 min left
    """
    return progress_bar(items, **how)


def progress_bar(
    items: Iterable[Any] | None = None,
    *,
    description: str,
    unit: str,
    total: int | None = None,
    done: int = 0,
    to: Place | Sequence[Place] | None = None,
    shown: bool = True,
    leave: bool = True,
    delay: float = 0,
    clock: Callable[[], float] = time.monotonic,
) -> "tqdm[Any]":
    """A bar on stderr, to `update` in a `with`: the one way in which long work says how far it is.

    Args:
        items: What the bar goes over when it is iterated, which `progress` does.
        description: What is done.
        unit: What an item is, in the singular.
        total: How many items there are, where `items` does not tell.
        done: How many of them an earlier run has done, which the pace does not count.
        to: The file or folder that is written, or several, told once.
        shown: False shows nothing, and costs nothing.
        leave: Whether the bar stays when the work is done.
        delay: Seconds before anything is shown: what is done by then needs no bar.
        clock: Gives seconds.
    """
    return _Bar(
        items,
        to=_told(to),
        clock=clock,
        desc=description,
        unit=unit,
        total=total,
        initial=done,
        leave=leave,
        delay=delay,
        bar_format=_FORMAT,
        dynamic_ncols=True,
        disable=not shown,
        file=sys.stderr,
    )


def _told(to: Place | Sequence[Place] | None) -> str | None:
    places = [to] if isinstance(to, (str, os.PathLike)) else list(to or ())
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return f"{os.fspath(places[0])}{more}" if places else None
