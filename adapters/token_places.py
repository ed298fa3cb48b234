"""How many tokens lead a sequence of patches, and where the patches lie, seen from what changes with single pixels."""

__all__ = ["Changes", "changes_with_pixels", "Places", "tilings"]

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from mammosae_plugin.adapters.recording import Call, record

_LARGEST_STRIDE = 128
_PROBES = ((0.0, 0.0), (0.3, 0.8), (0.8, 0.3), (0.6, 0.6))  # shares of height and width; no two mirror each other
_CHANGE = 3.0  # standard deviations of the noise in the image
_SEPARATE = 1e-3  # share of the largest change below which a token has not changed: rounding is 1e-6


class Places(NamedTuple):
    """Where the tokens of a sequence lie.

    Attributes:
        n_prefix: tokens in front of the patches.
        grid: (h, w) of the patches, row by row.
        stride: pixels per patch.
    """

    n_prefix: int
    grid: tuple[int, int]
    stride: float


def tilings(n_tokens: int, image_size: tuple[int, int]) -> list[Places]:
    """How square patches may tile the image with tokens left over, those first that leave the fewest pixels over."""
    found = []
    for stride in range(1, _LARGEST_STRIDE + 1):
        grid = (image_size[0] // stride, image_size[1] // stride)
        if 0 < grid[0] * grid[1] <= n_tokens:
            found.append(Places(n_tokens - grid[0] * grid[1], grid, float(stride)))
    return sorted(found, key=lambda places: sum(length % int(places.stride) for length in image_size))


@dataclass(frozen=True)
class Changes:
    """Which token changed most with each of a few pixels.

    Attributes:
        image_size: (H, W) of the image.
        pixels: (y, x) of each.
        n_tokens: the length of the sequence.
        tokens: the number of the token; None where none changed.
        is_separate: whether no other token changed. Else patches overlap, or attention has mixed them.
    """

    image_size: tuple[int, int]
    pixels: list[tuple[int, int]]
    n_tokens: int
    tokens: list[int | None]
    is_separate: bool

    def places(self) -> list[Places]:
        """How the tokens may lie, best first; empty where not row by row behind others."""
        return [places for places in tilings(self.n_tokens, self.image_size) if self._agree(places)]

    def _agree(self, places: Places) -> bool:
        (height, width), stride = places.grid, int(places.stride)
        n_elsewhere = 0
        for (y, x), token in zip(self.pixels, self.tokens, strict=True):
            row, column = y // stride, x // stride
            is_covered = row < height and column < width  # else patches leave the pixel over
            n_elsewhere += token != (places.n_prefix + row * width + column if is_covered else None)
        return n_elsewhere <= (0 if self.is_separate else 1)  # where patches overlap, a neighbour may change more


def changes_with_pixels(model: nn.Module, images: torch.Tensor, paths: Collection[str]) -> dict[str, Changes | None]:
    """For each module that gives tokens (B, n, C): which of them change with single pixels.

    Changes are looked for in the module itself and those before it that give as many tokens, last first: attention
    spreads a change over all tokens, but in front of the first attention only the pixel's own token changes.

    Args:
        model: the model, in whatever mode.
        images: (B, C, H, W) of the size to look at.
        paths: the modules.

    Returns:
        Module path -> what changed; None where nothing did, or the module gave no tokens. Under "" that of the last
        module of all in which tokens are separate.
    """
    size = height, width = int(images.shape[-2]), int(images.shape[-1])
    noise = torch.randn(1, *images.shape[1:], generator=torch.Generator().manual_seed(0)).to(images)
    pixels = [(int(y * height), int(x * width)) for y, x in _PROBES]
    changed = noise.repeat(1 + len(pixels), 1, 1, 1)
    for number, (y, x) in enumerate(pixels, start=1):
        changed[number, :, y, x] += _CHANGE

    def note(output: torch.Tensor) -> torch.Tensor | None:
        if output.dim() != 3 or len(output) != len(changed) or not output.is_floating_point():
            return None
        changes: torch.Tensor = (output[1:].double() - output[:1].double()).norm(dim=-1)
        return changes

    recording = record(model, changed, note=note)
    seen = [(call, _changes(call, size, pixels)) for call in sorted(recording.calls, key=lambda call: -call.end)]
    known = [(call, changes) for call, changes in seen if changes is not None]
    found = {path: _of(recording.of(path)[0], known) for path in paths}
    return {"": next((changes for _, changes in known if changes.is_separate), None), **found}


def _of(at: Call, known: Sequence[tuple[Call, Changes]]) -> Changes | None:
    """At the last call up to this one in which tokens are separate; without any, at the first with as many."""
    assert at.shape is not None
    at_length = at.shape[1]
    of_length = [
        changes
        for call, changes in known
        if call.end <= at.end and call.shape is not None and call.shape[1] == at_length
    ]
    return next((changes for changes in of_length if changes.is_separate), of_length[-1] if of_length else None)


def _changes(call: Call, size: tuple[int, int], pixels: list[tuple[int, int]]) -> Changes | None:
    if call.noted is None or not call.noted.any():
        return None
    changed = call.noted > _SEPARATE * call.noted.max()
    most = call.noted.argmax(1).tolist()
    tokens = [token if is_changed else None for token, is_changed in zip(most, changed.any(1), strict=True)]
    return Changes(size, pixels, int(call.noted.shape[1]), tokens, is_separate=int(changed.sum(1).max()) == 1)
