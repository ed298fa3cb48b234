"""How a module lays out its output, and the channels-last view of it that hook points, SAEs and heatmaps share."""

__all__ = ["HookLayout", "is_proportional", "Kind", "layout_of", "MapLayout", "PrefixTokens", "settle_grids"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from mammosae_plugin.adapters.recording import record
from mammosae_plugin.adapters.token_places import Changes, Places, changes_with_pixels, tilings
from mammosae_plugin.errors import InputError

Kind = Literal["map", "tokens", "vector"]
PrefixTokens = Literal["drop", "keep"]
MapLayout = Literal["channels_first", "channels_last"]

_PADDING = 1.5  # positions
_SQUARE = 1.25  # largest ratio of the vertical to the horizontal stride that padding explains
_PLACES = 3  # in which a grid is looked at
_RANDOM = 0.1  # share of a change that the same image, given twice, stays below
_RANK = 0.9  # share of positions that should change less than those of the changed place
_MUCH_MORE, _FAR_MORE = 2.0, 10.0
_MANY_PLACES = 16  # of a second look, at tokens of which pixels do not say where they lie
_BACKGROUND = 0.1  # of the mean change, below which a token counts as hardly changing at all
_CLEARLY = 2.0  # times as much as at the place, of what the changed places on average do to a position
_MANY, _MOST = 0.6, 0.75  # share of those places that must be seen elsewhere, or there
_AT_ONCE = 4  # images
# Modules that take channels first, whatever the model around them does.
_CHANNELS_FIRST_TYPES = (
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.BatchNorm2d,
    nn.GroupNorm,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Upsample,
)


@dataclass(frozen=True)
class HookLayout:
    """The layout of one module's output and of the value that is shown at its hook point.

    | kind | the module gives | shown |
    |---|---|---|
    | map | (B, C, h, w) or (B, h, w, C) | (B, h, w, C) |
    | tokens | (B, n_prefix + n, C) | (B, h, w, C); whole, where prefix tokens are kept or no grid is known |
    | vector | (B, C) | (B, C) |

    Attributes:
        kind: "map", "tokens" or "vector".
        channels_first: whether a map has its channels in the second axis.
        n_prefix: class and register tokens in front of a sequence of patches.
        drop_prefix: prefix tokens go around the hook point instead of through it.
        grid: (h, w) of positions at the size of the probe's images; None for vectors, and for tokens that do not
            tile the image.
        stride: pixels per position, (vertical, horizontal), where the grid is known.
    """

    kind: Kind
    channels_first: bool = False
    n_prefix: int = 0
    drop_prefix: bool = True
    grid: tuple[int, int] | None = None
    stride: tuple[float, float] | None = None

    @property
    def shows_grid(self) -> bool:
        """Whether the value at the hook point is (B, h, w, C), position by position of the image."""
        return self.grid is not None and (self.kind == "map" or (self.kind == "tokens" and self.drop_prefix))

    @property
    def is_doubtful(self) -> bool:
        """Whether the grid rests on counting positions alone; `settle_grids` then looks where they lie."""
        if self.grid is None or self.stride is None:
            return False
        return self.kind == "tokens" or max(self.stride) > _SQUARE * min(self.stride)

    def without_grid(self) -> "HookLayout":
        """The same without a grid: what it shows has no known place in the image."""
        return HookLayout(self.kind, self.channels_first, self.n_prefix, drop_prefix=False)

    @property
    def n_shown_prefix(self) -> int:
        """Prefix tokens in the value that is shown."""
        return 0 if self.drop_prefix else self.n_prefix

    def show(self, output: torch.Tensor, image_size: tuple[int, int] | None = None) -> torch.Tensor:
        """The value at the hook point, a view of the module's output.

        Args:
            output: what the module gave.
            image_size: (H, W) of the images, to know the grid of tokens at another size than the probe's.
        """
        if self.kind == "map":
            return output.permute(0, 2, 3, 1) if self.channels_first else output
        if self.kind == "vector":
            return output
        patches = output[:, self.n_prefix :] if self.drop_prefix else output
        if not self.shows_grid:
            return patches
        height, width = self._grid_of(patches.shape[1], image_size)
        return patches.view(len(patches), height, width, -1)

    def put_back(self, value: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The module's output with `value` in place of what `show` gave; prefix tokens that were dropped stay."""
        if self.kind == "map":
            return value.permute(0, 3, 1, 2) if self.channels_first else value
        if self.kind == "vector":
            return value
        patches = value.flatten(1, 2) if self.shows_grid else value
        if not (self.drop_prefix and self.n_prefix):
            return patches
        return torch.cat([output[:, : self.n_prefix].to(patches.dtype), patches], dim=1)

    def grid_at(self, image_size: tuple[int, int]) -> tuple[int, int] | None:
        """(h, w) of a tokens' grid for images of another size, by the stride."""
        if self.stride is None:
            return None
        return int(image_size[0] // self.stride[0]), int(image_size[1] // self.stride[1])

    def _grid_of(self, n_patches: int, image_size: tuple[int, int] | None) -> tuple[int, int]:
        for grid in (None if image_size is None else self.grid_at(image_size), self.grid):
            if grid is not None and grid[0] * grid[1] == n_patches:
                return grid
        raise InputError(
            f"{n_patches} tokens do not tile images of {image_size} with a stride of {self.stride}; give images whose "
            "size is a multiple of the patch size"
        )


def settle_grids(
    model: nn.Module,
    layouts: dict[str, HookLayout],
    images: torch.Tensor,
    *,
    other_size: tuple[int, int] | None = None,
    prefix_tokens: PrefixTokens = "drop",
    n_prefix: int | None = None,
    is_said: bool = False,
) -> None:
    """Look where positions lie: count the tokens in front of patches, and take a grid away that does not hold.

    Single pixels are changed first: in front of the first attention the token of the pixel's patch changes and no
    other, which says how many tokens lead the sequence and whether patches lie row by row, at the model's own size and
    at `other_size`.

    In an image of noise the pixels of one position are changed, at three places for every grid. No position elsewhere
    must then change much more, while those of the place are not among the most changed. That happens where a network
    keeps its tokens in another order (Hiera), or where what looks like a map are windows or attention. Nor may the same
    image, given twice, change as much: that is a network that draws which patches it reads (masked autoencoders). More
    places are changed where single pixels did not say where tokens lie.

    Args:
        model: the model, in whatever mode.
        layouts: module path -> layout; entries are replaced.
        images: (B, C, H, W) of the size to look at.
        other_size: (H, W) of another size that the model takes.
        prefix_tokens: whether class and register tokens are dropped or kept.
        n_prefix: how many there are, as the model or the user says.
        is_said: whether the user says so.

    Raises:
        InputError: how many tokens lead the sequence cannot be told, or is not what the user says.
    """
    overlapping, unsure = _count_tokens(
        model, layouts, images, other_size, prefix_tokens == "drop", n_prefix, is_said=is_said
    )
    doubtful = {path: layout for path, layout in layouts.items() if layout.is_doubtful}
    grids = list(dict.fromkeys(layout.grid for layout in doubtful.values() if layout.grid is not None))
    if not grids:
        return
    noise = torch.randn(1, *images.shape[1:], generator=torch.Generator().manual_seed(0)).to(images)
    cells = {grid: _cells(grid) for grid in grids}
    changed = [noise, noise, *(_brighter(noise, grid, cell) for grid in grids for cell in cells[grid])]
    values = _patches(model, doubtful, torch.cat(changed))
    for path, layout in doubtful.items():
        value = values[path]
        assert layout.grid is not None
        first = 2 + grids.index(layout.grid) * _PLACES
        fields = (value[first : first + _PLACES] - value[:1]).norm(dim=-1)
        unchanged = float((value[1] - value[0]).norm(dim=-1).max())
        if unchanged > _RANDOM * float(fields.max()) or any(
            _is_elsewhere(field, *cell) for field, cell in zip(fields, cells[layout.grid], strict=True)
        ):
            layouts[path] = layout.without_grid()
    for path, places in overlapping.items():
        if layouts[path].grid is None:
            continue
        seen = _seen(model, path, layouts[path], noise)
        if seen.elsewhere >= _MANY and not places:
            layouts[path] = layouts[path].without_grid()
        elif path in unsure and seen.there < _MOST:
            raise InputError(
                f"how many class and register tokens lead the patches of {path!r} cannot be told; give n_prefix_tokens "
                "(0 without any)"
            )


def _brighter(image: torch.Tensor, grid: tuple[int, int], cell: tuple[int, int]) -> torch.Tensor:
    """An image (1, C, H, W) with other pixels at one position of a grid."""
    (rows, columns), (row, column), (height, width) = grid, cell, image.shape[-2:]
    changed = image.clone()
    top, bottom = row * height // rows, -(-(row + 1) * height // rows)
    left, right = column * width // columns, -(-(column + 1) * width // columns)
    changed[..., top:bottom, left:right] += 3
    return changed


def _patches(model: nn.Module, layouts: Mapping[str, HookLayout], images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What modules with a grid give, (B, h, w, C) in float32."""
    recording = record(model, images, keep=layouts)
    found = {}
    for path, layout in layouts.items():
        output = recording.of(path)[0].output
        assert layout.grid is not None
        patches = output[:, layout.n_prefix :] if layout.kind == "tokens" else layout.show(output)
        found[path] = patches.reshape(len(output), *layout.grid, -1).float()
    return found


class _Seen(NamedTuple):
    """Shares of changed positions: where the token of that place changed most, and where another clearly did."""

    there: float
    elsewhere: float


def _seen(model: nn.Module, path: str, layout: HookLayout, noise: torch.Tensor) -> _Seen:
    """Whether tokens lie row by row, where patches overlap or attention has mixed them.

    Single pixels do not say so there, and a token that changes with every pixel hides those that change with one. Many
    positions are changed here, one after the other, and each token's change is taken relative to its mean over them.
    """
    grid = layout.grid
    assert grid is not None
    n = grid[0] * grid[1]
    places = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:_MANY_PLACES]
    changed = [noise, *(_brighter(noise, grid, divmod(place, grid[1])) for place in places.tolist())]
    parts = [changed[start : start + _AT_ONCE] for start in range(0, len(changed), _AT_ONCE)]
    value = torch.cat([_patches(model, {path: layout}, torch.cat(part))[path].flatten(1, 2) for part in parts])
    fields = (value[1:] - value[:1]).norm(dim=-1)
    shares = fields / (fields.mean(0) + _BACKGROUND * fields.mean()).clamp_min(torch.finfo(fields.dtype).tiny)
    there, most = shares.gather(1, places[:, None].to(shares.device))[:, 0], shares.amax(1)
    return _Seen(float((there == most).float().mean()), float((most > _CLEARLY * there).float().mean()))


def _count_tokens(
    model: nn.Module,
    layouts: dict[str, HookLayout],
    images: torch.Tensor,
    other_size: tuple[int, int] | None,
    drop: bool,
    n_prefix: int | None,
    *,
    is_said: bool,
) -> tuple[dict[str, list[Places]], set[str]]:
    """Count the tokens in front of patches.

    Returns:
        The modules of which single pixels do not say exactly where patches lie -> how they may lie; those of them where
        the count rests on the number of tokens alone.
    """
    paths = [path for path, layout in layouts.items() if layout.kind == "tokens"]
    if not paths:
        return {}, set()
    size = (int(images.shape[-2]), int(images.shape[-1]))
    own = changes_with_pixels(model, images[:1], paths)
    elsewhere: dict[str, Changes | None] = {}
    if other_size not in (None, size):
        elsewhere = changes_with_pixels(model, images.new_zeros(1, images.shape[1], *other_size), paths)
    of_model = own[""].places() if own[""] is not None else []
    if n_prefix is None and of_model:
        n_prefix = of_model[0].n_prefix
    overlapping: dict[str, list[Places]] = {}
    unsure = set()
    for path in paths:
        layout, changes, other = layouts[path], own[path], elsewhere.get(path)
        if changes is None:
            layouts[path] = layout.without_grid()
            continue
        possible = changes.places()
        if not changes.is_separate:
            overlapping[path] = possible
            if n_prefix is None and {places.n_prefix for places in possible} != {layout.n_prefix}:
                unsure.add(path)
            continue
        if other is not None and other.is_separate:
            there = [(places.n_prefix, places.stride) for places in other.places()]
            possible = [places for places in possible if (places.n_prefix, places.stride) in there]
        if not possible:
            layouts[path] = layout.without_grid()
            continue
        n, grid, stride = possible[0]
        if is_said and n_prefix not in (n, of_model[0].n_prefix if of_model else n):
            raise InputError(
                f"n_prefix_tokens is {n_prefix}, but a change in one pixel of the image shows that {n} tokens lead the "
                f"patches of {path!r}; give {n}, or nothing"
            )
        layouts[path] = HookLayout("tokens", n_prefix=n, drop_prefix=drop or n == 0, grid=grid, stride=(stride, stride))
    return overlapping, unsure


def _cells(grid: tuple[int, int]) -> list[tuple[int, int]]:
    """Three positions, none the mirror image of another or in the middle."""
    rows, columns = grid
    places = [(1, columns - 2), (rows - 2, 1), (rows // 2 + 1, columns // 3)]
    return [(min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)) for row, column in places]


def _is_elsewhere(field: torch.Tensor, row: int, column: int) -> bool:
    """Whether the changes (h, w) lie elsewhere than around one position.

    Attention spreads a change over all positions, which says nothing; what counts is a change that is elsewhere.
    """
    there = field[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].max()
    ratio = float(field.max() / there.clamp_min(torch.finfo(field.dtype).tiny))
    is_common = float((field < there).float().mean()) < _RANK * (1 - 1 / field.numel())
    return ratio > _FAR_MORE or (ratio > _MUCH_MORE and is_common)


def layout_of(
    module: nn.Module,
    path: str,
    shape: Sequence[int],
    other_shape: Sequence[int] | None,
    image_size: tuple[int, int],
    other_size: tuple[int, int] | None,
    *,
    said: str | None,
    n_prefix: int | None,
    prefix_tokens: PrefixTokens,
    model_format: Any,
) -> HookLayout:
    """Recognise the layout of a module's output.

    Args:
        module: the module.
        path: its path, for messages.
        shape: of its output for images of `image_size`.
        other_shape: of its output for images of another height and width, where the model takes them: the axis that
            stays is the channels'.
        image_size: (H, W).
        other_size: (H, W) of the images of `other_shape`.
        said: "channels_first" or "channels_last" where the user says so.
        n_prefix: class and register tokens, where the model says so.
        prefix_tokens: whether they are dropped or kept.
        model_format: timm's `output_fmt` of the model.

    Raises:
        InputError: the channels' axis cannot be told.
    """
    if len(shape) == 2:
        return HookLayout("vector")
    if len(shape) == 3:
        drop = prefix_tokens == "drop"
        if other_shape is not None and other_size != image_size and other_shape[1] == shape[1]:
            return HookLayout("tokens", drop_prefix=False)  # a fixed number of queries, or channels: no positions
        # A module before the prefix tokens are added gives none of them.
        candidates = (0, 1) if n_prefix is None else (n_prefix, 0)
        possible = [places for places in tilings(shape[1], image_size) if places.n_prefix in candidates]
        if not possible:
            return HookLayout("tokens", drop_prefix=False)
        n, grid, stride = possible[0]
        return HookLayout("tokens", n_prefix=n, drop_prefix=drop or n == 0, grid=grid, stride=(stride, stride))
    first = _channels_first(module, shape, other_shape, image_size, said, model_format)
    if first is None:
        raise InputError(
            f"{path!r} gives {tuple(shape)}, which may be channels first or last; say which with "
            f"layouts={{{path!r}: 'channels_first'}} (or 'channels_last')"
        )
    height, width = shape[2:] if first else shape[1:3]
    stride_of_map = (image_size[0] / height, image_size[1] / width)
    return HookLayout("map", channels_first=first, grid=(height, width), stride=stride_of_map)


def _channels_first(
    module: nn.Module,
    shape: Sequence[int],
    other: Sequence[int] | None,
    image_size: tuple[int, int],
    said: str | None,
    model_format: Any,
) -> bool | None:
    if said is not None:
        return said == "channels_first"
    if isinstance(module, _CHANNELS_FIRST_TYPES):
        return True
    if other is not None and (shape[1] == other[1]) != (shape[3] == other[3]):
        return shape[1] == other[1]
    if model_format in ("NCHW", "NHWC"):
        return bool(model_format == "NCHW")
    # One size only: the two axes that keep the image's proportions are its height and width.
    fits_first, fits_last = is_proportional(shape[2:], image_size), is_proportional(shape[1:3], image_size)
    return fits_first if fits_first != fits_last else None


def is_proportional(grid: Sequence[int], image_size: tuple[int, int]) -> bool:
    """Whether a map of (h, w) positions has the image's proportions, up to a position lost or added by padding."""
    stride = max(image_size) / max(grid)
    return all(abs(length - pixels / stride) <= _PADDING for length, pixels in zip(grid, image_size, strict=True))
