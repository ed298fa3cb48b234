"""Whether what stands at a hook point can change a network's output at all."""

__all__ = ["advice_where_unread", "Reached"]

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn

from mammosae_plugin.adapters.layouts import HookLayout
from mammosae_plugin.adapters.recording import record, tensors_in
from mammosae_plugin.adapters.rest_of_network import noise_for
from mammosae_plugin.errors import InputError


class Reached(Protocol):
    """What is needed of a `HookedVisionModel`, whose documentation says what these are."""

    model: nn.Module
    n_channels: int
    n_views: int
    probe_size: tuple[int, int]
    hook_shapes: dict[str, tuple[int, ...]]
    hook_layouts: dict[str, HookLayout]
    passed_by: frozenset[str]
    head_path: str | None

    def head_input(self) -> AbstractContextManager[list[torch.Tensor]]:
        """Notes what the head reads."""

    def hooks(self, fwd_hooks: Any) -> AbstractContextManager[Any]:
        """Temporary hooks."""


def advice_where_unread(root: Any, place: str, n_special: int) -> str | None:
    """What to do about an SAE at a hook point whose value nothing behind it reads; None where the output changes.

    The value is disturbed in an image of noise, and the output, or what the linear classifier reads, must change. Two
    passes through the network alone, without the SAEs elsewhere.

    Args:
        root: the hooked model; no SAE and no hook is at `place`.
        place: the full hook name.
        n_special: how many tokens in front of the sequence shown stay as they are.
    """
    if _is_read(root, place, n_special):
        return None
    layout: HookLayout = root.hook_layouts[place]
    aside = n_special or (layout.n_prefix if layout.drop_prefix else 0)
    if not (aside and _is_read(root, place, 0, layout.without_grid())):
        return "nothing behind it reads what its module gives; choose another hook point"
    kept = "exclude_special_tokens=False" if n_special else "prefix_tokens='keep'"
    return (
        "what comes behind reads the class or register tokens alone, which pass by the SAE; attach it at the block "
        f"before, or use {kept}"
    )


def _is_read(root: Reached, place: str, n_special: int, layout: HookLayout | None = None) -> bool:
    generator = torch.Generator().manual_seed(1)

    def disturb(value: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001
        noise = torch.randn(value.shape, generator=generator).to(value)
        changed = value + (1 + value.abs().mean()) * noise
        return torch.cat([value[:, :n_special], changed[:, n_special:]], dim=1) if n_special else changed

    passed_by, own = root.passed_by, root.hook_layouts[place]
    root.passed_by = frozenset(set(root.hook_shapes) - {place})
    root.hook_layouts[place] = layout or own
    try:
        before = _end(root)
        with root.hooks(fwd_hooks=[(place, disturb)]):
            after = _end(root)
    except InputError:  # images of noise are not all that this network wants: it cannot be told
        return True
    finally:
        root.passed_by, root.hook_layouts[place] = passed_by, own
    return any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def _end(root: Reached) -> list[torch.Tensor]:
    """The output, and what the linear classifier reads, whose weights may be zero."""
    seen: list[torch.Tensor] = []
    with nullcontext(seen) if root.head_path is None else root.head_input() as seen:
        output = record(root.model, noise_for(root, root.probe_size)).output
    return [*seen, *tensors_in(output)]
