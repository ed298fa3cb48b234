"""The forward hooks in a wrapped network, which send what its modules give through hook points.

Objects and not closures, so that deepcopy and pickle carry them over to the copy: a closure would go on feeding the
original's hook points.
"""

__all__ = ["Mark", "MARK", "NoteImageSize", "Root", "Route"]

from typing import Any, Protocol

import torch
from torch import nn

from mammosae_plugin.adapters.attached_sae import AttachedSAE
from mammosae_plugin.adapters.layouts import HookLayout
from mammosae_plugin.adapters.recording import first_tensor, with_first

MARK = "_mammosae_hooked"


class Root(Protocol):
    """What the hooks need of a `HookedVisionModel`, whose documentation says what these are."""

    image_size: tuple[int, int] | None
    passed_by: frozenset[str]
    is_closed: bool
    hook_layouts: dict[str, HookLayout]
    readers: dict[str, AttachedSAE]

    def get_submodule(self, target: str) -> nn.Module:
        """The hook point of that name, or what stands in its place."""


class Mark:
    """Says of a hooked module which wrapper hooks it. Its own class, because a module would become a submodule."""

    def __init__(self, root: Root):
        self.root = root


class Route:
    """A forward hook that sends a module's output through the hook point of the same path, channels last."""

    def __init__(self, root: Root, hook_name: str, *, clone: bool):
        self.root = root
        self.hook_name = hook_name
        self.clone = clone

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # compiled code would not see what is hooked later
    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        root = self.root
        if root.is_closed or self.hook_name in root.passed_by:
            return output
        layout = root.hook_layouts[self.hook_name]
        point = root.get_submodule(self.hook_name)  # looked up each time: an SAE may stand there
        first = first_tensor(output)
        assert first is not None  # the wrapper has seen that it gives a tensor
        shown = layout.show(first, root.image_size)
        value = point(shown)
        if self.hook_name in root.readers:
            root.readers[self.hook_name].given = value
        # An untouched value need not be put back, unless a gradient with respect to it may be asked for.
        result = first if value is shown and not value.requires_grad else layout.put_back(value, first)
        result = result.clone() if self.clone else result  # the network overwrites the clone, not what the hooks saw
        return output if result is first else with_first(output, result)


class NoteImageSize:
    """A forward pre-hook on the wrapped model: the grid of tokens follows from the size of the images."""

    def __init__(self, root: Root):
        self.root = root

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        images = [value for value in given if value.dim() in (4, 5)]
        self.root.image_size = (int(images[0].shape[-2]), int(images[0].shape[-1])) if images else None
