"""The cells of the matrix of families in docs/compatibility.md, each made by running it."""

__all__ = ["block", "COLUMNS", "row"]

from collections.abc import Callable

import torch
from helpers_families import FAMILIES, made
from helpers_study import random_sae
from torch import nn

from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.hook_points import default_images
from mammosae_plugin.adapters.recording import tensors_in


class Tried:
    """One family's network and its wrapper, shared by the cells of its row."""

    def __init__(self, family: str) -> None:
        self.network: nn.Module = made(family)
        self.images = torch.randn(2, *default_images(self.network).shape[1:])
        self.hooked = HookedVisionModel(self.network)
        self.names = list(self.hooked.hook_shapes)


def _layers(tried: Tried) -> str:
    paths = [name.removesuffix(".hook_out") for name in tried.names]
    return f"{len(paths)}: `{paths[0]}` ... `{paths[-1]}`"


@torch.no_grad()
def _splice(tried: Tried) -> str:
    expected = tensors_in(tried.network(tried.images))[0]
    for name in tried.names:
        sae = random_sae(tried.hooked.hook_shapes[name][-1], 16, hook_name=name)
        found = tensors_in(tried.hooked.run_with_saes(tried.images, saes=sae, use_error_term=True))[0]
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
            return f"no: {name}"
    return "yes"


COLUMNS: dict[str, Callable[[Tried], str]] = {"default layers": _layers, "splice no-op": _splice}


def row(family: str) -> str:
    """One row of the table: every cell made anew."""
    tried = Tried(family)
    return f"| {' | '.join([family, *(cell(tried) for cell in COLUMNS.values())])} |"


def block() -> str:
    """The table as markdown."""
    head = [f"| family | {' | '.join(COLUMNS)} |", f"|{'---|' * (len(COLUMNS) + 1)}"]
    return "\n".join([*head, *(row(family) for family in FAMILIES)])
