"""Codes of images under several SAEs from one pass over stored rows: of vectors, or of the positions of maps.

What is kept of an image is each latent's maximum over its stored positions. A latents table holds more, and is made of
images, or of rows of one vector per image; this needs neither, so that a dozen controls cost one reading of the rows.
"""

__all__ = ["encode_images", "ImageCodes", "ImageRows", "MAP_IMAGES"]

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sae_lens import SAE
from safetensors import SafetensorError
from safetensors.numpy import load_file
from scipy import sparse

from mammosae_plugin.adapters.input_normalization import normalized, rescaled
from mammosae_plugin.adapters.levels import levels_of
from mammosae_plugin.adapters.recording import evaluation
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import write_safetensors
from mammosae_plugin.latents.decoding import Decoder
from mammosae_plugin.latents.encoding import rows_at_once
from mammosae_plugin.measures.reconstruction import explained_variance
from mammosae_plugin.progress import progress_bar

ImageRows = tuple[torch.Tensor, npt.NDArray[np.int64]]
"""Rows (n, d) of whole images in order, and the number of the image of each (n,), not falling."""

MAP_IMAGES, _MAP_LATENTS = 32, 16
"""Of so many images, where none are named, the maps of so many of their strongest latents are kept."""


@dataclass(frozen=True)
class ImageCodes:
    """What an SAE says of images.

    Attributes:
        codes: (n_images, d_sae) float32: each latent's maximum over the image's rows, 0 where it is below.
        explained_variance: Of all rows; None where they do not vary.
        l0: Latents that fire per row.
        dead_share: Share of the latents that fire at no row.
        n_rows: How many rows there were.
        maps: (n, h, w) of strong latents of some images; None where rows are no whole maps.
        map_images: (n,) the number of the image of each map.
        directions: (d_sae, d_in) the decoder's rows; None where they are not known. Not written.
        levels: Of a nested SAE the numbers of latents of its levels, rising. Not written.
    """

    codes: sparse.csr_array
    explained_variance: float | None
    l0: float
    dead_share: float
    n_rows: int
    maps: npt.NDArray[np.float32] | None = None
    map_images: npt.NDArray[np.int64] | None = None
    directions: npt.NDArray[np.float32] | None = None
    levels: tuple[int, ...] = ()

    def of(self, sae: SAE[Any]) -> "ImageCodes":
        """With what is the SAE's own: directions and levels."""
        directions = sae.W_dec.detach().float().cpu().numpy()
        return replace(self, directions=directions, levels=levels_of(sae))

    def write(self, path: Path) -> None:
        """Write them to one file."""
        found = sparse.csr_array(self.codes)
        numbers = [
            float("nan") if self.explained_variance is None else self.explained_variance, self.l0, self.dead_share
        ]  # fmt: skip
        tensors = {
            "indptr": found.indptr.astype(np.int64),
            "indices": found.indices.astype(np.int32),
            "values": found.data.astype(np.float32),
            "shape": np.array([*found.shape, self.n_rows], dtype=np.int64),
            "numbers": np.array(numbers, dtype=np.float64),
            **({} if self.maps is None else {"maps": np.ascontiguousarray(self.maps)}),
            **({} if self.map_images is None else {"map_images": self.map_images.astype(np.int64)}),
        }
        write_safetensors(path, {name: torch.from_numpy(value) for name, value in tensors.items()})

    @classmethod
    def read(cls, path: Path) -> "ImageCodes":
        """Read what `write` wrote.

        Raises:
            InputError: it is damaged.
        """
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path} is damaged ({error}); delete it and run again") from error
        n_images, d_sae, n_rows = tensors["shape"].tolist()
        parts = (tensors["values"], tensors["indices"], tensors["indptr"])
        explained, l0, dead = tensors["numbers"].tolist()
        return cls(
            sparse.csr_array(parts, shape=(n_images, d_sae)),
            None if explained != explained else explained,
            l0,
            dead,
            n_rows,
            tensors.get("maps"),
            tensors.get("map_images"),
        )


def encode_images(
    rows: Callable[[], Iterator[ImageRows]],
    saes: Mapping[str, SAE[Any]],
    n_images: int,
    *,
    grid: tuple[int, int] | None = None,
    map_images: Collection[int] | None = None,
    device: str = "cpu",
) -> dict[str, ImageCodes]:
    """Encode the rows of images with several SAEs, reading them once.

    Args:
        rows: Gives the rows, in blocks of whole images.
        saes: By name, SAELens SAEs of the rows' width.
        n_images: Number of images.
        grid: (h, w) where the rows of an image are all positions of its map in reading order.
        map_images: The images of which maps are kept; by default the first `MAP_IMAGES`.
        device: Where the SAEs run.

    Raises:
        InputError: An image's rows are in two blocks, or an image has none.
    """
    seen = np.zeros(n_images, dtype=bool)
    mapped = frozenset(range(MAP_IMAGES) if map_images is None else map_images) if grid not in (None, (1, 1)) else ()
    with ExitStack() as stack:
        for sae in saes.values():
            stack.enter_context(evaluation(sae, device=device))
        encoders = {name: _Encoder(sae, n_images, grid, mapped) for name, sae in saes.items()}
        bar = stack.enter_context(progress_bar(total=n_images, description="encode", unit="image"))
        for block, image in rows():
            there = np.unique(image)
            if seen[there].any():
                raise InputError("the rows of an image lie apart in the store, so that its maximum cannot be taken")
            seen[there] = True
            for encoder in encoders.values():
                encoder.add(block, image)
            bar.update(len(there))
    if not seen.all():
        raise InputError(f"{int((~seen).sum())} of {n_images} images have no row in the store; leave them out")
    return {name: encoder.result() for name, encoder in encoders.items()}


class _Encoder:
    """Sums and maxima of one SAE."""

    def __init__(self, sae: SAE[Any], n_images: int, grid: tuple[int, int] | None, mapped: Collection[int]) -> None:
        self.sae, self.n_images, self.grid, self.mapped = sae, n_images, grid, mapped
        self.decode = Decoder(sae)
        d_in, self.d_sae = int(sae.cfg.d_in), int(sae.cfg.d_sae)
        self.n_rows = self.n_fired = 0
        self.sums = {name: np.zeros(d_in) for name in ("sse", "sum", "sum_sq")}
        self.fired = np.zeros(self.d_sae, dtype=bool)
        self.pieces: list[tuple[npt.NDArray[Any], ...]] = []
        self.maps: list[npt.NDArray[np.float32]] = []
        self.map_images: list[int] = []

    @torch.inference_mode()
    def add(self, rows: torch.Tensor, image: npt.NDArray[np.int64]) -> None:
        """Encode rows (n, d) of whole images."""
        first = np.flatnonzero(np.diff(image, prepend=-1))
        ends = np.append(first[1:], len(image))
        start, step = 0, max(1, rows_at_once(self.sae))
        while start < len(first):
            # As many images as fit, and at least one.
            stop = max(start + 1, int(np.searchsorted(ends, first[start] + step, side="right")))
            span = slice(int(first[start]), int(ends[stop - 1]))
            self._add(rows[span], image[span], first[start:stop] - first[start])
            start = stop

    def _add(self, rows: torch.Tensor, image: npt.NDArray[np.int64], first: npt.NDArray[np.int64]) -> None:
        rows = rows.float()
        given, lengths = normalized(self.sae, rows.to(self.sae.device, self.sae.dtype))
        latents = self.sae.encode(given)
        output = rescaled(self.decode(latents), lengths).float().cpu().numpy()
        found = latents.float().cpu().numpy()
        own = rows.numpy()
        self.n_rows += len(own)
        self.n_fired += int(np.count_nonzero(found))
        self.fired |= (found != 0).any(axis=0)
        self.sums["sse"] += np.square(output - own).sum(axis=0, dtype=np.float64)
        self.sums["sum"] += own.sum(axis=0, dtype=np.float64)
        self.sums["sum_sq"] += np.square(own.astype(np.float64)).sum(axis=0)
        largest = np.maximum(np.maximum.reduceat(found, first, axis=0), 0)
        row, column = np.nonzero(largest)
        self.pieces.append((image[first][row], column, largest[row, column]))
        for place, begin in enumerate(first):
            if self.grid is not None and int(image[begin]) in self.mapped:
                chosen = np.argsort(-largest[place], kind="stable")[:_MAP_LATENTS]
                chosen = chosen[largest[place, chosen] > 0]
                own_map = found[begin : begin + self.grid[0] * self.grid[1], chosen]
                self.maps.append(np.maximum(own_map.T.reshape(-1, *self.grid), 0))
                self.map_images += [int(image[begin])] * len(chosen)

    def result(self) -> ImageCodes:
        row, column, values = (np.concatenate(parts) for parts in zip(*self.pieces, strict=True))
        placed: Any = (values.astype(np.float32), (row, column))
        shape: Any = (self.n_images, self.d_sae)
        codes: Any = sparse.csr_array(placed, shape=shape)
        variation = float((self.sums["sum_sq"] - np.square(self.sums["sum"]) / self.n_rows).sum())
        return ImageCodes(
            codes=codes,
            explained_variance=explained_variance(float(self.sums["sse"].sum()), variation),
            l0=self.n_fired / self.n_rows,
            dead_share=float((~self.fired).mean()),
            n_rows=self.n_rows,
            maps=np.concatenate(self.maps).astype(np.float32) if self.maps else None,
            map_images=np.array(self.map_images, dtype=np.int64) if self.maps else None,
        ).of(self.sae)
