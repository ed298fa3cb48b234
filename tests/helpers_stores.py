"""Builders for activation stores of rows that say themselves where they come from."""

from pathlib import Path
from typing import Any

import torch

from mammosae_plugin.activations import ActivationStore, write_store
from mammosae_plugin.activations.reservoir import BlockReader


def labelled_rows(n_images: int, n_positions: int, d_in: int = 4) -> torch.Tensor:
    """(n_images * n_positions, d_in) float32: row (image, position) begins with these two numbers, exact in float16."""
    image = torch.arange(n_images).repeat_interleave(n_positions)
    position = torch.arange(n_positions).repeat(n_images)
    rest = torch.arange(2, d_in).expand(len(image), -1)
    return torch.cat([torch.stack([image, position], dim=1), rest], dim=1).float()


def labelled_store(
    folder: Path,
    *,
    n_images: int = 12,
    n_positions: int = 10,
    d_in: int = 4,
    images_per_shard: int = 4,
    dtype: torch.dtype = torch.float32,
    rows: torch.Tensor | None = None,
    first_id: int = 0,
    **described: Any,
) -> ActivationStore:
    """A store of `labelled_rows`; two images of each patient in turn."""
    rows = labelled_rows(n_images, n_positions, d_in) if rows is None else rows
    image = torch.arange(n_images).repeat_interleave(n_positions)
    position = torch.arange(n_positions).repeat(n_images)
    size = images_per_shard * n_positions
    parts = zip(rows.to(dtype).split(size), image.split(size), position.split(size), strict=True)
    manifest = {
        "model": "toy",
        "hook_name": "layer.hook_out",
        "layout": {"kind": "map", "grid": [1, n_positions], "prefix_tokens": 0},
        "image_size": [96, 64],
        "image_ids": [f"{first_id + number:03d}.png" for number in range(n_images)],
        "patients": [(first_id + number) // 2 for number in range(n_images)],
        "splits": ["training"],
        "dataset": f"toy {first_id}",
        "dataset_name": "toy",
        "architecture": "toy",
        "source": {},
    }
    return write_store(folder, list(parts), manifest | described)


def numbered_blocks(lengths: list[int], *, width: int = 1) -> tuple[BlockReader, list[int]]:
    """Blocks whose rows hold 0, 1, 2, ... in order, and a list that notes every block that is read."""
    values = torch.arange(sum(lengths)).float()[:, None].expand(-1, width).split(lengths)
    reads: list[int] = []

    def read(block: int) -> torch.Tensor:
        reads.append(block)
        return values[block]

    return BlockReader(torch.tensor(lengths).numpy(), read, width, torch.float32), reads
