"""Builders for tests at a layer of any backbone: a few noise images, a random SAE there, the model's own head."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from helpers_backbones import FAMILIES
from helpers_datasets import row, write_dataset
from helpers_study import random_sae
from sae_lens import StandardSAE
from torch import nn

from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.datasets import VinDrMammo
from mammosae_plugin.latents import LatentTable, encode_latents


@dataclass(frozen=True)
class Layer:
    """A hooked backbone with an SAE at one of its layers."""

    model: HookedVisionModel
    hook_name: str
    sae: StandardSAE
    dataset: VinDrMammo
    head: nn.Linear

    @property
    def images(self) -> torch.Tensor:
        """(n, 3, H, W)."""
        return torch.stack([self.dataset[number]["image"] for number in range(len(self.dataset))])

    def encode(self, folder: Path, **settings: object) -> LatentTable:
        """The latents table of all images, with the model's own head as that of masses."""
        return encode_latents(
            self.model, self.sae, self.dataset, folder, heads={"Mass": self.head}, batch_size=2, **settings
        )


def noise_images(folder: Path, image_size: tuple[int, int]) -> VinDrMammo:
    """Six images of noise; in both splits some have a mass with a box."""
    rows = [
        row("pa", "a1.png"),
        row("pa", "a2.png", "Mass"),
        row("pb", "b1.png", "Mass"),
        row("pc", "c1.png", "Mass", split="test"),
        row("pc", "c2.png", split="test"),
        row("pd", "d1.png", "Suspicious_Calcification", split="test"),
    ]
    return VinDrMammo(write_dataset(folder, rows, size=image_size), image_size=image_size)


@contextmanager
def layer_of(family: str, folder: Path, *, final: bool = False, d_sae: int = 48) -> Iterator[Layer]:
    """A layer of `FAMILIES[family]`: the inner one, or the final one."""
    network, image_size, inner, last = FAMILIES[family]()
    path = last if final else inner
    example = torch.zeros(1, 3, *image_size)
    with HookedVisionModel(network, [inner, last], example_input=example) as model:
        hook_name = model.resolve_hook_name(path)
        sae = random_sae(model.hook_shapes[hook_name][-1], d_sae, hook_name=hook_name)
        head = network.get_submodule(model.head_path)
        yield Layer(model, hook_name, sae, noise_images(folder / "images", image_size), head)
