"""The same network, faster: batch norms folded into the convolutions before them, parts compiled.

In evaluation mode a batch norm is y = (x - m) / sqrt(v + eps) * g + b per channel, which a convolution before it can
do itself: weight * g / sqrt(v + eps), bias (c - m) * g / sqrt(v + eps) + b. That saves one pass over every map.
"""

__all__ = ["compiled", "fold_batch_norms", "FoldedNorm"]

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mammosae_plugin.adapters.hook_names import module_path
from mammosae_plugin.adapters.hooked_vision_model import HookedVisionModel
from mammosae_plugin.adapters.recording import evaluation
from mammosae_plugin.errors import InputError

_ROUNDINGS = 1e4  # of its number format that a deep network may add up to


class FoldedNorm(nn.Module):
    """What is left of a timm norm-and-activation module when its batch norm has moved into the convolution.

    It has the module's place and name, so that hook names stay.
    """

    def __init__(self, norm: nn.BatchNorm2d):
        """Take over dropout and activation of `norm`, where it has them."""
        super().__init__()
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return self.act(self.drop(x))  # type: ignore[no-any-return]


def fold_batch_norms(model: nn.Module, example_input: torch.Tensor) -> tuple[nn.Module, float]:
    """A copy of a network in evaluation mode whose batch norms are folded into the convolutions before them.

    Batch norms that do not read the output of exactly one convolution stay. Wrap the copy, not the original:
    `HookedVisionModel(fold_batch_norms(network, images)[0], ["bn2"])`; the outputs of convolutions are not what they
    were, those of norms and everything behind are.

    Args:
        model: an image model that is not wrapped.
        example_input: images (B, 3, H, W) on which the two are compared.

    Returns:
        The copy, and the relative error of its output on the example: the L2 norm of the difference over that of the
        original's output. Folding changes the order of roundings only, so it is about 1e-6 in float32.

    Raises:
        InputError: the model has forward hooks (close its `HookedVisionModel` first), gives no tensor, or gives another
            one afterwards.
    """
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        raise InputError("the model has hooks, which a copy would share; close() its HookedVisionModel first")
    folded = copy.deepcopy(model).eval()
    for conv_path, norm_path in _pairs(folded, example_input):
        _fold(folded, conv_path, norm_path)
    with evaluation(model), torch.no_grad():
        expected, found = model(example_input), folded(example_input)
    if not isinstance(expected, torch.Tensor):
        raise InputError(f"{type(model).__name__} gives a {type(expected).__name__} and not a tensor")
    error = _relative_error(found, expected)
    if not error <= _ROUNDINGS * torch.finfo(expected.dtype).eps:
        raise InputError(
            f"folding the batch norms of {type(model).__name__} changes its output by {error:.1e}, more than rounding: "
            "something else reads the output of a convolution before a batch norm; use the network as it is"
        )
    return folded, error


@contextmanager
def compiled(
    model: HookedVisionModel, example_input: torch.Tensor, *, backend: str | Callable[..., Any] = "inductor"
) -> Iterator[dict[str, float]]:
    """Within the block, the parts of a hooked network between its hook points run under torch.compile.

    Hook points, what hangs there, and modules without children stay eager, so every verb works as before. Each size of
    batch is compiled by itself (minutes for a large network), so that values do not depend on the sizes seen earlier.

    Args:
        model: the hooked network, in evaluation mode.
        example_input: images (B, 3, H, W) on which compiled and eager network are compared.
        backend: torch.compile's. Its default needs a C++ compiler on the CPU.

    Yields:
        By hook name the relative error of the values on the example: the L2 norm of the difference over that of the
        eager value. Compiling changes the order of roundings only, so it is about 1e-6 in float32.

    Raises:
        InputError: the network is in training mode or compiled already; torch.compile cannot compile it here, or
            changes these values or the output by more than rounding.
    """
    if model.compiled:
        raise InputError("the network is compiled already; leave that block first")
    if any(module.training for module in model.model.modules()):
        raise InputError("the network is in training mode, in which every pass changes it; call model.eval() first")
    names = list(model.hook_shapes)
    example_input = example_input.to(next(model.model.parameters()).device)
    parts = _parts_between(model.model, {module_path(name) for name in names})
    with torch.inference_mode():
        expected = model.run_with_cache(example_input, names_filter=names, return_cache_object=False)
    own = {part: vars(part)["forward"] for part in parts if "forward" in vars(part)}  # as nnsight leaves one
    limit = max(len(parts), 1) * torch._dynamo.config.recompile_limit  # it counts per class, parts share classes
    with torch._dynamo.config.patch(recompile_limit=limit):
        try:
            model.compiled = True
            try:
                for part in parts:
                    part.forward = torch.compile(part.forward, backend=backend, dynamic=False)
            except RuntimeError as failure:
                raise _cannot_compile(failure) from failure
            yield _compiling_errors(model, names, expected, example_input)
        finally:
            model.compiled = False
            for part in parts:
                vars(part).pop("forward", None)
                if part in own:
                    part.forward = own[part]


def _parts_between(root: nn.Module, hooked: set[str]) -> list[nn.Module]:
    """The outermost modules with children inside which nothing is hooked; they may be hooked themselves."""
    parts = []

    def walk(module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            inner = f"{path}{name}"
            if any(one.startswith(f"{inner}.") for one in hooked) or type(child).forward is nn.Module.forward:
                walk(child, f"{inner}.")
            elif next(child.children(), None) is not None:
                parts.append(child)

    walk(root, "")
    return list(dict.fromkeys(parts))


def _relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The L2 norm of the difference over that of the expected tensor, of one shape."""
    return float((found - expected).double().norm() / expected.double().norm().clamp_min(1e-30))


def _cannot_compile(failure: Exception) -> InputError:
    reason = " ".join(str(failure).split("\n\n")[0].split()) or type(failure).__name__
    return InputError(f"torch.compile cannot compile the network here; run it without ({reason})")


def _compiling_errors(
    model: HookedVisionModel, names: list[str], expected: tuple[Any, Any], example_input: torch.Tensor
) -> dict[str, float]:
    try:
        with torch.inference_mode():
            output, cache = model.run_with_cache(example_input, names_filter=names, return_cache_object=False)
    except RuntimeError as failure:
        raise _cannot_compile(failure) from failure
    pairs = {name: (cache[name], expected[1][name]) for name in names}
    if isinstance(output, torch.Tensor):
        pairs["the output"] = (output, expected[0])
    errors = {}
    for name, (found, value) in pairs.items():
        error = _relative_error(found, value)
        if not error <= _ROUNDINGS * torch.finfo(value.dtype).eps:
            raise InputError(
                f"torch.compile changes {name} by {error:.1e}, more than rounding; run the network without"
            )
        errors[name] = error
    return {name: errors[name] for name in names}


def _pairs(model: nn.Module, images: torch.Tensor) -> list[tuple[str, str]]:
    """(convolution, batch norm) by path, where the norm reads what the convolution gave and nothing else does."""
    made_by: dict[int, str] = {}
    kept: list[torch.Tensor] = []  # alive, so that no other tensor gets the same identity
    readers: dict[str, list[str]] = {}
    runs: dict[str, int] = {}

    def before(path: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            for argument in args:
                if isinstance(argument, torch.Tensor) and id(argument) in made_by:
                    readers[made_by[id(argument)]].append(path)

        return hook

    def after(path: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
            made_by[id(output)] = path
            readers.setdefault(path, [])
            runs[path] = runs.get(path, 0) + 1
            kept.append(output)

        return hook

    modules = dict(model.named_modules())
    leaves = {path: module for path, module in modules.items() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))}
    handles = []
    for path, module in leaves.items():
        handles.append(module.register_forward_pre_hook(before(path)))
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after(path)))
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return [
        (conv, found[0])
        for conv, found in readers.items()
        if runs[conv] == 1 and len(found) == 1 and isinstance(leaves[found[0]], nn.BatchNorm2d)
    ]


@torch.no_grad()
def _fold(model: nn.Module, conv_path: str, norm_path: str) -> None:
    conv, norm = model.get_submodule(conv_path), model.get_submodule(norm_path)
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    # In float64, so that folding itself rounds only once.
    parts = [conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias]
    weight, bias, mean, variance, scale, shift = (None if part is None else part.detach().double() for part in parts)
    assert weight is not None and mean is not None and variance is not None
    folded_weight, folded_bias = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)
    kept_order = torch.channels_last if conv.weight.is_contiguous(memory_format=torch.channels_last) else None
    new_weight = folded_weight.to(conv.weight.dtype)
    conv.weight = nn.Parameter(
        new_weight.contiguous(memory_format=kept_order) if kept_order is not None else new_weight, requires_grad=False
    )
    conv.bias = nn.Parameter(folded_bias.to(conv.weight.dtype), requires_grad=False)
    parent, _, leaf = norm_path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, FoldedNorm(norm))
