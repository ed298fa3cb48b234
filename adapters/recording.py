"""One pass through a network with every module call written down: what ran when, inside what, and what it gave."""

__all__ = [
    "any_size", "Call", "evaluation", "first_tensor", "is_compiled_in_place", "record", "Recording", "require_device",
    "seen_by_hooks", "tensors_in", "with_first",
]  # fmt: skip

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import nn

from mammosae_plugin.errors import InputError


@dataclass
class Call:
    """One call of one module.

    Attributes:
        path: the module's path in the model.
        start: when it began, counted over all beginnings and ends.
        end: when it ended.
        parent: the call that it ran in, None for the model itself.
        output: what it gave, where `record` was told to keep it; of a tuple its first tensor.
        rest: of a tuple, all of it, where its output is kept.
        noted: what `record`'s `note` made of the output.
        version: how often the output tensor had been written to when the call ended.
        shape: of an output that is a tensor or a tuple that begins with one, else None.
        in_tuple: whether it is such a tuple.
        kind: the output's type name.
        dtype: of such an output.
        address: of its memory; may belong to another tensor later.
        channels_last: whether a map lies in memory as torch's channels_last; one of a single channel or position does.
    """

    path: str
    start: int
    end: int = -1
    parent: "Call | None" = None
    output: Any = None
    rest: Any = None
    noted: Any = None
    version: int = 0
    shape: tuple[int, ...] | None = None
    in_tuple: bool = False
    kind: str = "nothing"
    dtype: torch.dtype | None = None
    address: int = 0
    channels_last: bool = False


@dataclass
class Recording:
    """The calls of one pass in the order of their beginnings, and what the model gave.

    Attributes:
        calls: every call of every module, the model's own first.
        output: the model's output.
        features: what the model's `forward_features` gave, where it has one and called it.
        features_end: when that was.
        image_size: (H, W) of the images.
        n_images: how many there were.
    """

    calls: list[Call] = field(default_factory=list)
    output: Any = None
    features: Any = None
    features_end: int = -1
    image_size: tuple[int, int] = (0, 0)
    n_images: int = 0

    def of(self, path: str) -> list[Call]:
        """The calls of one module."""
        return [call for call in self.calls if call.path == path]


def record(
    model: nn.Module,
    images: torch.Tensor,
    *,
    keep: Collection[str] = (),
    note: Callable[[torch.Tensor], Any] | None = None,
) -> Recording:
    """Run the model once in evaluation mode, without gradient, and write down every call.

    Args:
        model: any module; it keeps its mode.
        images: (B, 3, H, W).
        keep: paths of modules whose outputs are held in memory.
        note: what to write down of every output, where all of them would be too much to hold.

    Raises:
        InputError: the model cannot run on such images.
    """
    recording = Recording(image_size=(int(images.shape[-2]), int(images.shape[-1])), n_images=len(images))
    open_calls: list[Call] = []
    clock = count()

    def enter(path: str) -> Any:
        def hook(_module: nn.Module, _args: Any) -> None:
            call = Call(path, start=next(clock), parent=open_calls[-1] if open_calls else None)
            open_calls.append(call)
            recording.calls.append(call)

        return hook

    def leave(path: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            call = open_calls.pop()
            call.end, call.kind = next(clock), type(output).__name__
            value = first_tensor(output)
            if value is not None:
                call.shape, call.dtype, call.in_tuple = tuple(value.shape), value.dtype, value is not output
                call.version, call.address = value._version, value.data_ptr()
                call.channels_last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
                call.noted = note(value) if note is not None else None
            if path in keep:
                call.output, call.rest = value, output if call.in_tuple else None

        return hook

    handles = []
    for path, module in model.named_modules():
        handles += [module.register_forward_pre_hook(enter(path)), module.register_forward_hook(leave(path))]
    handles += any_size(model)
    try:
        with (
            evaluation(model),
            torch.inference_mode(False),  # inference tensors have no version
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),  # the hooks are none that can be compiled
            _features_noted(model, recording, clock),
            _numbers_kept(model),
        ):
            recording.output = model(images)
    except Exception as error:  # whatever a foreign model raises on an input that it does not take
        shape = tuple(images.shape)
        message = " ".join(str(error).split())
        way_out = "give others"
        if isinstance(error, TypeError) and " missing " in message:
            way_out = "give all its inputs as example_input, or hook a module that makes them of images and calls it"
        raise InputError(f"the model cannot run on images of shape {shape}; {way_out} ({message})") from error
    finally:
        for handle in handles:
            handle.remove()
    return recording


def first_tensor(output: Any) -> torch.Tensor | None:
    """What a module gave, or, of a tuple or list, its first entry; None where that is no tensor."""
    value = output[0] if isinstance(output, list | tuple) and output else output
    return value if isinstance(value, torch.Tensor) else None


def with_first(output: Any, value: torch.Tensor) -> Any:
    """What a module gave with another first tensor."""
    if isinstance(output, torch.Tensor):
        return value
    entries = (value, *output[1:])
    return type(output)(*entries) if hasattr(output, "_fields") else type(output)(entries)


def any_size(model: nn.Module) -> list[Any]:
    """Let networks of transformers take images of another size than their own, where they can.

    Many do so only when their forward is given `interpolate_pos_encoding=True`. For images of their own size nothing is
    passed, so that their output stays what it is.

    Returns:
        The handles of the hooks that do it.
    """
    handles: list[Any] = []
    inside = ""
    # What says its input's size is taken at its word, such as the networks of `new_backbone_classifier`.
    for path, module in [] if getattr(model, "default_cfg", None) else model.named_modules():
        size = getattr(getattr(module, "config", None), "image_size", None)
        if size is None or (inside and path.startswith(inside)) or _INTERPOLATE not in _arguments_of(module):
            continue
        inside = f"{path}." if path else ""
        handles.append(module.register_forward_pre_hook(_Interpolate(_pair(size)), with_kwargs=True))
        if not path:
            break
    return handles


_INTERPOLATE = "interpolate_pos_encoding"


class _Interpolate:
    """A forward pre-hook; an object, so that copies of the network can be pickled."""

    def __init__(self, size: tuple[int, int]):
        self.size = size

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        images = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)
        if images is None or tuple(images.shape[-2:]) == self.size or kwargs.get(_INTERPOLATE) is not None:
            return None
        return args, {**kwargs, _INTERPOLATE: True}


def _arguments_of(module: nn.Module) -> Collection[str]:
    return inspect.signature(module.forward).parameters


def _pair(size: Any) -> tuple[int, int]:
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


@contextmanager
def _numbers_kept(model: nn.Module) -> Iterator[None]:
    """Give every module its own numbers back: a Swin of transformers keeps the smaller windows of a small image."""
    kinds = (bool, int, float, tuple)
    kept = [(m, {name: v for name, v in vars(m).items() if isinstance(v, kinds)}) for m in model.modules()]
    try:
        yield
    finally:
        for module, numbers in kept:
            for name, value in numbers.items():
                if name != "training" and vars(module).get(name) is not value:
                    setattr(module, name, value)


def tensors_in(output: Any) -> list[torch.Tensor]:
    """The tensors in what a module gave, in its order: alone, or in tuples, lists, dicts and dataclasses."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        output = output.values()
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        output = vars(output).values()
    elif not isinstance(output, list | tuple):
        return []
    return [tensor for value in output for tensor in tensors_in(value)]


@contextmanager
def evaluation(*models: nn.Module, device: str | torch.device | None = None) -> Iterator[None]:
    """The models in evaluation mode, and on a device; afterwards they are as they were.

    Every module then has the mode that it had, every parameter and buffer lies where it lay and asks for gradients as
    it did: also where the modules of a model had different ones.

    Args:
        models: Networks or SAEs.
        device: Where they run; None leaves them where they are.

    Raises:
        InputError: The device is not there.
    """
    if device is not None:
        require_device(device)
    modules = list({id(module): module for model in models for module in model.modules()}.values())
    modes = [(module, module.training) for module in modules]
    asking = [(parameter, parameter.requires_grad) for model in models for parameter in model.parameters()]
    places = [(model, _places(model)) for model in models]
    try:
        for model in models:
            model.eval()
            if device is not None:
                model.to(device)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for model, devices in places:
            _move_back(model, devices)
        for parameter, asks in asking:
            parameter.requires_grad_(asks)


def require_device(device: str | torch.device) -> None:
    """Refuse a device that this machine lacks."""
    try:
        torch.zeros(1, device=device).item()
    # torch's own for an unknown device, for one without driver, and for "meta", which holds no values
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"{str(device)!r} is not available on this machine; use cpu") from error


_Places = list[tuple[nn.Module, str, torch.device]]


def _places(model: nn.Module) -> _Places:
    return [
        (module, name, tensor.device)
        for module in model.modules()
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]
        if tensor is not None
    ]


def _move_back(model: nn.Module, places: _Places) -> None:
    if all(getattr(module, name).device == device for module, name, device in places):
        return
    model.to(places[0][2])  # an SAE keeps its own note of where it is
    for module, name, device in places:
        tensor = getattr(module, name)
        if tensor.device == device:
            continue
        if isinstance(tensor, nn.Parameter):
            tensor.data = tensor.data.to(device)
        else:
            module._buffers[name] = tensor.to(device)


def is_compiled_in_place(model: nn.Module) -> bool:
    """Whether `compile()` was called on the model or on a module in it."""
    return any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())


def seen_by_hooks(model: nn.Module) -> AbstractContextManager[object]:
    """A block in which hooks that are put into the model for it run, also where it was compiled in place before."""
    return torch.compiler.set_stance("force_eager") if is_compiled_in_place(model) else nullcontext()


@contextmanager
def _features_noted(model: nn.Module, recording: Recording, clock: Iterator[int]) -> Iterator[None]:
    original = getattr(model, "forward_features", None)
    if not callable(original):
        yield
        return

    def noted(*args: Any, **kwargs: Any) -> Any:
        recording.features = original(*args, **kwargs)
        recording.features_end = next(clock)
        return recording.features

    own = vars(model).get("forward_features")  # somebody may have set one on this very object
    model.forward_features = noted  # type: ignore[assignment]
    try:
        yield
    finally:
        del model.forward_features
        if own is not None:
            model.forward_features = own
