"""How a model takes its inputs: images alone, several views of an exam at once, and inputs beside the images.

Inside the package a batch is always images (N, C, H, W). A model of exams takes (B, V, C, H, W), or V arguments
(B, C, H, W), and maybe more, such as an age: a forward pre-hook lays the images out so, image-major, N = B x V with the
views of an exam one after the other. At hook points, which lie in what runs on single views, values are (B x V, ...).

Where a model flattens views into the batch itself, nothing more is needed. Where it runs a module once per view, in a
loop, that module runs on all views at its first call and gives a view's share at each: in evaluation mode the same up
to float rounding, since no image of a batch depends on another.
"""

__all__ = [
    "by_view",
    "common_views",
    "ModelExample",
    "ModelInputs",
    "require_columns",
    "undone_on_failure",
    "whole_exams",
]

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any, TypeVar, cast

import pandas as pd
import torch
from torch import nn

from mammosae_plugin.adapters.hook_points import require_images
from mammosae_plugin.adapters.recording import Recording, record
from mammosae_plugin.arguments import shown
from mammosae_plugin.errors import InputError

_LOOP = "_mammosae_loop"
_Init = TypeVar("_Init", bound=Callable[..., None])
Key = int | str
"""Of an argument: its name in `forward`, or its place where it has none."""
ModelExample = torch.Tensor | tuple[Any, ...] | Mapping[str, Any] | None


def by_view(value: torch.Tensor, n_views: int) -> torch.Tensor:
    """A value at a hook point by exam and view: (B x V, ...) as (B, V, ...).

    Args:
        value: What a hook or cache shows, image-major: row b x V + v is view v of exam b.
        n_views: V, `HookedVisionModel.n_views`.

    Raises:
        InputError: The rows are no whole exams.
    """
    if n_views < 1 or len(value) % n_views:
        raise InputError(f"{len(value)} rows are no whole exams of {n_views} views")
    return value.reshape(-1, n_views, *value.shape[1:])


def undone_on_failure(init: _Init) -> _Init:
    """An `__init__` that takes what `ModelInputs` put into a model out again where it fails."""

    @wraps(init)
    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except BaseException:
            for handle in getattr(getattr(self, "inputs", None), "handles", ()):
                handle.remove()
            raise

    return cast(_Init, made)


def common_views(numbers: Sequence[int]) -> int:
    """The number of views that models take that are given the same images.

    Raises:
        InputError: They differ.
    """
    n_views, *others = dict.fromkeys(numbers)
    if others:
        raise InputError(f"the models take {n_views} and {others[0]} views of an exam; run one after the other")
    return n_views


def require_columns(models: Iterable[Any], images: pd.DataFrame) -> None:
    """See that a dataset says what hooked models take beside its images, before anything is written.

    Raises:
        InputError: As `ModelInputs.of_rows`.
    """
    for model in models:
        with model.inputs.of_rows(images):
            pass


def whole_exams(n_images: int, n_views: int) -> int:
    """The next number of images that is a multiple of an exam's."""
    return -(-n_images // n_views) * n_views


class ModelInputs:
    """What a model's forward takes, read off an example, and how a batch of images becomes that.

    Attributes:
        n_views: Images of an exam that pass together; 1 of a model of single images.
        images: (B x V, C, H, W): those of the example; None without one.
        columns: By the name of an input beside the images the column of `dataset.images` that it is taken from, at
            first the one of its own name.
    """

    def __init__(self, model: nn.Module, example: ModelExample = None):
        """Read the example, and find what runs once per view.

        Args:
            model: The model.
            example: Images, (B, C, H, W) or (B, V, C, H, W); or all arguments of `forward`: a tuple, or a dict by name.

        Raises:
            InputError: No or several inputs are images, the extra ones are no tensors with a row per exam, or the model
                cannot run on them.
        """
        self.n_views, self.images = 1, None
        self.columns: dict[str, str] = {}
        self._by_name, self._is_stack = isinstance(example, Mapping), False
        self._keys: list[Key] = []
        self._order: list[Key] = []
        self._extras: dict[Key, torch.Tensor] = {}
        self._rows: dict[Key, torch.Tensor] | None = None
        self._looped: dict[str, nn.Module] = {}
        self._needed: set[str] = set()
        self._sources: list[torch.Tensor] = []
        self._versions: list[int] = []
        self._results: dict[tuple[str, int], Any] = {}
        self._calls: Counter[str] = Counter()
        self.handles: list[Any] = []
        if isinstance(example, torch.Tensor) and example.dim() != 5:
            self.images = example
        elif example is not None:
            self._read(model, example)
            self.handles = [
                model.register_forward_pre_hook(self._before, with_kwargs=True),
                model.register_forward_hook(self._after, always_call=True),
            ]
            if self.n_views > 1:
                self.handles.append(self)
                try:
                    self._find_loops(model)
                except BaseException:
                    for handle in self.handles:
                        handle.remove()
                    raise

    @property
    def is_plain(self) -> bool:
        """Whether the model takes one batch of images and nothing else."""
        return not self._order

    @property
    def settings(self) -> dict[str, Any]:
        """What settings of stores and tables say of it; nothing of a model that takes images alone."""
        return {} if self.is_plain else {"views": self.n_views, "inputs": dict(self.columns)}

    def _read(self, model: nn.Module, example: Any) -> None:
        given = (example,) if isinstance(example, torch.Tensor) else example
        if not isinstance(given, (tuple, list, Mapping)):
            raise InputError(
                f"example_input is a {type(example).__name__}: give images, a tuple of forward's arguments, or a dict "
                "of them by name"
            )
        named = _named(model, *(((), dict(given)) if isinstance(given, Mapping) else (tuple(given), {})))
        self._order = list(named)
        tensors = {key: value for key, value in named.items() if isinstance(value, torch.Tensor)}
        exams = [key for key, value in tensors.items() if value.dim() == 5 and value.is_floating_point()]
        single = [key for key, value in tensors.items() if value.dim() == 4 and value.is_floating_point()]
        self._keys = exams or [key for key in single if tensors[key].shape == tensors[single[0]].shape]
        if not self._keys or len(exams) > 1:
            raise InputError(
                f"the example has {len(exams) or 'no'} inputs that are images of exams: give one (B, views, C, H, W), "
                "or (B, C, H, W) for each view"
            )
        self._is_stack = bool(exams)
        stack = self._stacked(named)
        self.n_views, self.images = int(stack.shape[1]), stack.flatten(0, 1)
        for key in self._order:
            if key in self._keys:
                continue
            value = named[key]
            if not isinstance(value, torch.Tensor) or value.dim() == 0 or len(value) != len(stack):
                raise InputError(
                    f"the input {key!r} of the example is {shown(value)}: give a tensor with a row for each of the "
                    f"{len(stack)} exams"
                )
            self._extras[key] = value
            self.columns[str(key)] = str(key)

    def _stacked(self, named: Mapping[Key, Any]) -> torch.Tensor:
        """(B, V, C, H, W) of a call's arguments."""
        first = named[self._keys[0]]
        if len(self._keys) == 1:
            stack: torch.Tensor = first if first.dim() == 5 else first[:, None]
            return stack
        return torch.stack([named[key] for key in self._keys], 1)

    # -- one pass ------------------------------------------------------------------------------------------------------

    def laid_out(self, images: torch.Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the model's forward for images (N, C, H, W), N = B x V."""
        if len(images) % self.n_views:
            raise InputError(
                f"{len(images)} images are no whole exams: give the {self.n_views} views of each, in order"
            )
        exams = by_view(images, self.n_views)
        if len(self._keys) > 1:
            given: dict[Key, torch.Tensor] = dict(zip(self._keys, exams.unbind(1), strict=True))
        else:
            given = {self._keys[0]: exams if self._is_stack else images}
        for key, example in self._extras.items():
            rows = None if self._rows is None else self._rows[key]
            value = example[:1].expand(len(exams), *example.shape[1:]) if rows is None else rows
            given[key] = value.to(images.device)
        if self._by_name:
            return (), {str(key): given[key] for key in self._order}
        return tuple(given[key] for key in self._order), {}

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._forget()
        alone = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor) and args[0].dim() == 4
        if alone and (self._is_stack or self.n_views > 1 or self._extras):
            args, kwargs = self.laid_out(args[0])
        if self._looped:
            named = _named(model, args, kwargs)
            if all(isinstance(named.get(key), torch.Tensor) for key in self._keys):
                stack = self._stacked(named)
                if stack.dim() == 5 and stack.shape[1] != self.n_views:
                    raise InputError(
                        f"the exams have {stack.shape[1]} views, and the network was hooked for {self.n_views}: give "
                        f"images (B, {self.n_views}, C, H, W), or hook it with an example_input of {stack.shape[1]}"
                    )
                self._note(stack)
        return args, kwargs

    def _after(self, *_: Any) -> None:
        self._forget()

    def _forget(self) -> None:
        self._sources, self._versions, self._results = [], [], {}
        self._calls.clear()

    def _note(self, value: torch.Tensor) -> None:
        """Take (B, V, ...) for something of which modules may be given a view."""
        self._sources.append(value)
        self._versions.append(0 if value.is_inference() else value._version)

    def require(self, args: Sequence[Any], kwargs: Mapping[str, Any], n_channels: int) -> None:
        """Refuse what the model is not to be called with, in a line of ours.

        Raises:
            InputError: No images; or images alone, where it takes more.
        """
        alone = len(args) == 1 and not kwargs and getattr(args[0], "ndim", None) == 4
        if args and (self.is_plain or alone):
            require_images(args[0], n_channels)
        if alone and self._extras and self._rows is None:
            raise InputError(f"the model takes {', '.join(map(str, self._extras))} beside the images: give that too")

    @contextmanager
    def of_rows(self, images: pd.DataFrame) -> Iterator[None]:
        """Within the block the inputs beside the images are those of these rows of a dataset's table, one per image.

        Raises:
            InputError: A column is not there, says nothing of an exam, or two things of its views.
        """
        before = self._rows
        self._rows = {key: self._column(key, example, images) for key, example in self._extras.items()} or None
        try:
            yield
        finally:
            self._rows = before

    def _column(self, key: Key, example: torch.Tensor, images: pd.DataFrame) -> torch.Tensor:
        column = self.columns[str(key)]
        hint = f"name its column, model.inputs.columns[{str(key)!r}] = '...'"
        if column not in images:
            raise InputError(f"the model takes {key!r}, and the images have no column {column!r}: {hint}")
        if example[0].numel() != 1:
            raise InputError(f"the input {key!r} has {example[0].numel()} values for each exam, and a column has one")
        values = pd.to_numeric(images[column], errors="coerce").to_numpy(dtype="float64")
        found = torch.tensor(values).reshape(-1, self.n_views)
        for bad, why in ((found.isnan(), "no number"), (found != found[:, :1], "several values")):
            if bool(bad.any()):
                which = images["image_id"].iloc[int(bad.flatten().nonzero()[0])]
                raise InputError(
                    f"the model takes {key!r}, and {column} of image {which} has {why}; leave its exam out"
                )
        return found[:, 0].to(example.dtype).reshape(-1, *example.shape[1:])

    # -- what runs once per view ---------------------------------------------------------------------------------------

    def _find_loops(self, model: nn.Module) -> None:
        assert self.images is not None
        noise = torch.randn(self.images.shape, generator=torch.Generator().manual_seed(0))
        noise = noise.to(self.images.device, self.images.dtype)
        n_exams = len(noise) // self.n_views
        recording = record(model, noise)
        times = Counter(call.path for call in recording.calls)
        for call in recording.calls:
            is_outermost = call.parent is not None and times[call.parent.path] == 1
            if times[call.path] == self.n_views and is_outermost and (call.shape or (0,))[0] == n_exams:
                self._looped.setdefault(call.path, model.get_submodule(call.path))
        for path, module in self._looped.items():
            vars(module)[_LOOP] = _Loop(self, path)
            kind: Any = type(module)
            module.__class__ = _looped(kind)
        # What runs once per view all the same, on something else than views, is left alone.
        times = Counter(call.path for call in record(model, noise).calls)
        for path in [path for path in self._looped if times[path] != 1]:
            _restore(self._looped.pop(path))

    def require_once(self, paths: Sequence[str], recording: Recording) -> None:
        """Refuse to hook what runs once per view on something else than the views.

        Raises:
            InputError: It does.
        """
        for path in paths:
            if self.n_views > 1 and len(recording.of(path)) == self.n_views:
                raise _other_input(path)
            self._needed |= {looped for looped in self._looped if path == looped or path.startswith(f"{looped}.")}

    def in_loop(self, path: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One of a module's calls, a view's share of the one that it makes on all of them."""
        number = self._calls[path]
        self._calls[path] += 1
        found = None
        if len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor):
            found = self._view_of(args[0], number)
        if found is None:
            if path in self._needed and self._sources:
                raise _other_input(path)
            return call(*args, **kwargs)
        source, view = found
        if (path, source) not in self._results:
            output = call(self._sources[source].flatten(0, 1).clone())  # it may write into what it is given
            shared = _mapped(output, lambda tensor: by_view(tensor, self.n_views))
            self._results[path, source] = shared
            _mapped(shared, self._note)
        return _mapped(self._results[path, source], lambda tensor: tensor[:, view])

    def _view_of(self, value: torch.Tensor, number: int) -> tuple[int, int] | None:
        """Of what is known by view the number, and which view of it a module is given."""
        order = [(number + step) % self.n_views for step in range(self.n_views)]
        for same in (_is_the_same, _is_equal):
            for place, source in enumerate(self._sources):
                if not source.is_inference() and source._version != self._versions[place]:
                    continue  # somebody wrote into a view, and the others are as they were
                for view in order:
                    if source[:, view].shape == value.shape and same(source[:, view], value):
                        return place, view
        return None

    def remove(self) -> None:
        """Give the modules that run once per view their own calls back."""
        for module in self._looped.values():
            _restore(module)
        self._looped.clear()


class _Loop:
    """Where a module that runs once per view finds the rest of the pass."""

    def __init__(self, inputs: ModelInputs, path: str):
        self.inputs, self.path = inputs, path


@cache
def _looped(kind: Any) -> type[nn.Module]:
    """A module's class whose calls are those of one pass over all views; its hooks run once."""

    class Looped(kind):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            loop: _Loop = vars(self)[_LOOP]
            return loop.inputs.in_loop(loop.path, super().__call__, args, kwargs)

        def __reduce_ex__(self, _protocol: Any) -> Any:
            return _again, (kind,), self.__dict__

    Looped.__name__, Looped.__qualname__, Looped.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    return Looped


def _restore(module: nn.Module) -> None:
    if vars(module).pop(_LOOP, None) is not None:
        module.__class__ = type(module).__mro__[1]


def _again(kind: Any) -> nn.Module:
    looped: Any = _looped(kind)
    made: nn.Module = object.__new__(looped)
    return made


def _named(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[Key, Any]:
    """A call's arguments by name, or by place where forward has no names for them."""
    by_place: dict[Key, Any] = dict(enumerate(args))
    by_place.update(kwargs)
    try:
        parameters = inspect.signature(model.forward).parameters.values()
        bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return by_place
    if any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) and one.name in bound for one in parameters):
        return by_place
    by_name: dict[Key, Any] = {}
    by_name.update(bound)
    return by_name


def _mapped(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """The same tensor, tuple, list or dict with every tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(one, change) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(one, change) for one in value)
    return value


def _is_the_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.stride() == other.stride()


def _is_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one, other)


def _other_input(path: str) -> InputError:
    return InputError(
        f"{path!r} runs once per view on something else than the plain views, so it cannot run on all at once: hook a "
        "module that is given the views themselves, or let forward flatten them, x.flatten(0, 1)"
    )
