"""Running only what lies behind a hook point: the modules before it are skipped, its output is given.

An intervention at an inner layer changes nothing before the layer, so its output is computed once per image, and each
intervention costs the rest of the network alone.
"""

__all__ = ["noise_for", "RestOfNetwork", "Rooted", "Sized"]

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, Protocol, cast

import torch
from torch import nn

from mammosae_plugin.adapters.hook_names import module_path
from mammosae_plugin.adapters.layouts import HookLayout
from mammosae_plugin.adapters.recording import Call, Recording, evaluation, seen_by_hooks, tensors_in, with_first
from mammosae_plugin.errors import InputError

_AGREEMENT = 1e-4  # relative, of the rest of the network with the whole on an image of noise
# Relative error up to which what the classifier reads is the mean over positions: float32 sums differ by 1e-6.
_LINEAR = 1e-4


class Sized(Protocol):
    """A network and the channels of its images."""

    model: nn.Module
    n_channels: int
    n_views: int


class Rooted(Sized, Protocol):
    """What is needed of a `HookedVisionModel`, whose documentation says what these are."""

    hook_shapes: dict[str, tuple[int, ...]]
    hook_layouts: dict[str, HookLayout]
    passed_by: frozenset[str]
    head_path: str | None

    def head_input(self) -> AbstractContextManager[list[torch.Tensor]]:
        """Notes what the head reads."""

    def __call__(self, images: torch.Tensor) -> Any:
        """One pass."""


class RestOfNetwork:
    """The network from one hook point on.

    The model's own forward runs, so this works for any control flow, but every module that ended before the hook point
    gives a placeholder full of NaN instead of computing anything. If the output is finite all the same, nothing but the
    given activation has reached it; that is checked once, against the whole network on noise. Hooks and SAEs at the
    hook point and behind it act as always; those before it do not run.

    Made by `HookedVisionModel.rest_from`. Not thread-safe; the model must not be changed in between.

    Attributes:
        hook_name: the full hook name.
        image_size: (H, W) of the images.
        readout: "linear" where what the model's linear classifier reads is the mean of the value over positions, found
            by trying it; else "network". None where the output does not come from a linear classifier.
        reaches_head: whether what the classifier reads changes with the value; None as above.
        n_features: how many numbers the classifier reads, 0 where there is none.
    """

    def __init__(self, root: Rooted, hook_name: str, image_size: tuple[int, int], recording: Recording):
        """Find the modules to skip, and compare with the whole network.

        Args:
            root: the hooked model.
            hook_name: the full hook name.
            image_size: (H, W).
            recording: a pass over `noise_for(root, image_size)` that kept the output of the module at the hook point.

        Raises:
            InputError: other values than the activation flow to the output.
        """
        self.hook_name, self.image_size = hook_name, image_size
        self._root = root
        self._path = module_path(hook_name)
        point = recording.of(self._path)[0]
        self._skipped = _calls_before(recording, point)
        self._passed_by = frozenset(
            name for name in root.hook_shapes if _ends_before(recording, module_path(name), point)
        )
        self._around = point.rest  # what the module gives beside a first tensor; its values must not reach the output
        self._expand = True  # placeholders take no memory, unless something writes into them
        self.readout: Literal["linear", "network"] | None = None
        self.reaches_head: bool | None = None
        self.n_features = 0
        with evaluation(root.model), torch.no_grad():
            self._check(point.output, recording.output)
            if root.head_path is not None:
                self._measure(point.output)

    def __call__(self, raw: torch.Tensor) -> Any:
        """What the model gives if the module at the hook point puts out `raw`, the first axis being the images."""
        images = raw.new_full((1, 1, 1, 1), float("nan")).expand(len(raw), self._root.n_channels, *self.image_size)
        with seen_by_hooks(cast(nn.Module, self._root)), self._placeholders(raw):
            return self._root(images)

    def head_input(self, raw: torch.Tensor) -> torch.Tensor:
        """What the model's linear classifier reads then, (B, d)."""
        with self._root.head_input() as seen:
            self(raw)
        return seen[0]

    def replace(self, raw: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The module's output with `value`, as shown at the hook point, in place of its own.

        Args:
            raw: the module's output (B, ...); its class and register tokens are kept where they are not shown.
            value: (B, h, w, C), (B, n, C) or (B, C).
        """
        return self._root.hook_layouts[self.hook_name].put_back(value, raw)

    def show(self, raw: torch.Tensor) -> torch.Tensor:
        """The value at the hook point for the module's output."""
        return self._root.hook_layouts[self.hook_name].show(raw, self.image_size)

    @contextmanager
    def _placeholders(self, raw: torch.Tensor) -> Iterator[None]:
        root, passed_by = self._root, self._root.passed_by
        stubs: dict[nn.Module, Callable[..., Any]] = {
            root.model.get_submodule(path): _Stub(root.model.get_submodule(path), calls, raw, expand=self._expand)
            for path, calls in self._skipped.items()
        }
        given = raw if self._around is None else with_first(_unknown(self._around, len(raw)), raw)
        stubs[root.model.get_submodule(self._path)] = lambda *_args, **_kwargs: given
        # A module may have a forward of its own already, such as nnsight's.
        own = {module: vars(module)["forward"] for module in stubs if "forward" in vars(module)}
        try:
            root.passed_by = passed_by | self._passed_by
            for module, stub in stubs.items():
                module.forward = stub
            yield
        finally:
            root.passed_by = passed_by
            for module in stubs:
                del module.forward
            for module, forward in own.items():
                module.forward = forward

    def _measure(self, raw: torch.Tensor) -> None:
        """Find out what the classifier reads of the value.

        The value is disturbed: behind a ReLU another ReLU does nothing to the network's own output, but it would cut a
        reconstruction.
        """
        own = self.show(raw)
        noise = torch.randn(own.shape, generator=torch.Generator().manual_seed(0)).to(own)
        value = own + own.std() * noise
        found = self.head_input(self.replace(raw, value)).double()
        self.n_features = int(found.shape[1])
        self.reaches_head = not torch.equal(found, self.head_input(raw).double())
        self.readout = "network"
        if value.dim() == 4:
            means = value.mean((1, 2), dtype=torch.float64)
            if found.shape == means.shape and (found - means).norm() <= _LINEAR * means.norm():
                self.readout = "linear"

    def _check(self, raw: torch.Tensor, expected: Any) -> None:
        try:
            found = self(raw)
        except RuntimeError:  # torch refuses to write in place into a tensor whose elements share memory
            self._expand = False
            found = self(raw)
        if not tensors_in(expected):
            raise InputError(
                f"the network cannot be continued from {self.hook_name!r}: it gives a {type(expected).__name__}, in "
                "which no tensor can be found to compare; wrap a model that gives tensors"
            )
        for one, other in zip(tensors_in(found), tensors_in(expected), strict=True):
            difference = (one - other).double().norm()
            if not difference <= _AGREEMENT * other.double().norm() + 1e-12:  # NaN is not less
                enclosing = self._path.rpartition(".")[0]
                instead = f"choose {enclosing!r}" if enclosing else "choose a layer that all of it passes through"
                raise InputError(
                    f"the network cannot be continued from {self.hook_name!r}: other values than its output flow "
                    f"around it to the end, such as a shortcut or another branch; {instead}"
                )


def noise_for(root: Sized, image_size: tuple[int, int]) -> torch.Tensor:
    """One image of noise (1, C, H, W), or all views of an exam, the same each time, where the model is."""
    parameter = next(root.model.parameters(), torch.zeros(()))
    noise = torch.randn(root.n_views, root.n_channels, *image_size, generator=torch.Generator().manual_seed(0))
    return noise.to(parameter.device, parameter.dtype)


class _Stub:
    """The forward of a module that is skipped: placeholders for its calls before the hook point, then its own."""

    def __init__(self, module: nn.Module, calls: list[Call], raw: torch.Tensor, *, expand: bool):
        self.module, self.calls, self.raw, self.expand = module, list(calls), raw, expand

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.calls:  # a module that also runs behind the hook point
            return type(self.module).forward(self.module, *args, **kwargs)
        call = self.calls.pop(0)
        assert call.shape is not None
        shape = (call.shape[0] * len(self.raw), *call.shape[1:])
        nan = torch.full((1,) * len(shape), float("nan"), dtype=call.dtype, device=self.raw.device).expand(shape)
        return nan if self.expand else nan.clone()


def _calls_before(recording: Recording, point: Call) -> dict[str, list[Call]]:
    """The outermost calls that ended before the module at the hook point began, by module.

    A module whose output is not a tensor alone is left to run, on placeholders.
    """
    around = set()
    parent = point.parent
    while parent is not None:
        around.add(id(parent))
        parent = parent.parent
    found: dict[str, list[Call]] = {}
    for call in recording.calls:
        if 0 <= call.end < point.start and id(call.parent) in around and call.shape is not None and not call.in_tuple:
            found.setdefault(call.path, []).append(call)
    return found


def _unknown(output: Any, n_images: int) -> Any:
    """A tuple of one image's values as one of `n_images`, with NaN in the place of every tensor."""
    return type(output)(
        value.new_full((len(value) * n_images, *value.shape[1:]), float("nan"))
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for value in output
    )


def _ends_before(recording: Recording, path: str, point: Call) -> bool:
    return all(call.end < point.start for call in recording.of(path))
