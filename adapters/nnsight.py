"""nnsight over a hookable model: hook points and the latents of attached SAEs inside `trace`.

nnsight is the extra `mammosae-plugin[nnsight]`, and is imported at the first wrapping: importing it gives every Python
object a method `save` and changes `Tensor.backward`. Used of it are NNsight, trace, edit, and the two methods that its
documentation has subclasses define so that several invokes run as one batch, `_batch_size` and `_batch`; and `envoys=`,
by which a kind of module gets a class of its own.
"""

__all__ = ["Hookable", "Rename", "StaleWrappingError", "wrap_for_nnsight"]

import difflib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import nn

from mammosae_plugin.adapters.hook_names import HookNode
from mammosae_plugin.errors import InputError
from mammosae_plugin.hub_requests import first_sentence

Rename = Mapping[str | type, str | list[str]]


class Hookable(Protocol):
    """What wrapping needs of a `HookedVisionModel`, which is also an `nn.Module`."""

    @property
    def attachment_count(self) -> int:
        """How often SAEs have been attached or detached."""

    @property
    def model(self) -> Any:
        """The wrapped network, which may have `layer_aliases`: alias -> module path."""

    def require_open(self) -> None:
        """Raise `RuntimeError` once the model is closed."""

    def resolve_hook_name(self, name: str) -> str:
        """The full hook name for a full name, a module path or an alias."""


class StaleWrappingError(RuntimeError):
    """The model's modules are no longer those that nnsight wrapped: an SAE was attached or detached since."""


def wrap_for_nnsight(model: Hookable, rename: Rename | None = None) -> Any:
    """Wrap a hookable model, with the SAEs that are attached now, for nnsight.

    ```python
    hooked.add_sae(sae, use_error_term=True)
    n = wrap_for_nnsight(hooked)  # or hooked.nnsight()
    with torch.no_grad(), n.trace(images):
        latents = n.bn2.hook_out.hook_sae_acts_post.output.save()  # (B, h, w, d_sae)
        n.bn2.hook_out.hook_sae_acts_post.output[..., 7] = 0
        logits = n.output.save()
    ```

    Values are those of TransformerLens's hooks: channels last at `<module path>.hook_out`, the network's own layout
    at `n.model.<module path>`, which is the value before an SAE. Ask for them in the order in which they are computed.
    The model's aliases are attributes: `n.layer_39.hook_out` is `n.bn2.hook_out`.

    Several invokes run as one batch, of which each sees its own rows:

    ```python
    with torch.no_grad(), n.trace() as tracer:
        with tracer.invoke(images):  # (B1, C, H, W)
            latents = n.bn2.hook_out.hook_sae_acts_post.output.save()  # (B1, h, w, d_sae)
        with tracer.invoke(others):  # (B2, C, H, W)
            logits = n.output.save()  # (B2, n_outputs)
    ```

    Args:
        model: the hookable model; its mode, hooks and SAEs stay as they are.
        rename: nnsight's own: module path or class -> further names. A path may also be an alias or a full hook name
            of the model.

    Returns:
        an `nnsight.NNsight`, whose `trace` and `edit` raise `StaleWrappingError` once an SAE has been attached or
        detached, and `RuntimeError` once the model is closed. A trace raises `InputError` for invokes that make no
        batch.

    Raises:
        InputError: nnsight is not installed.
        RuntimeError: the model is closed.
    """
    model.require_open()
    return _checked_wrapping()(model, rename)


@functools.cache
def _checked_wrapping() -> type:
    try:
        from nnsight import Envoy, NNsight
    except ImportError as error:
        raise InputError("nnsight is not installed; run: pip install 'mammosae-plugin[nnsight]'") from error

    class Place(Envoy):  # type: ignore[misc]
        """A node of the wrapper's tree above hook points, which runs nothing: nnsight would say that it ran already."""

        @property
        def output(self) -> Any:
            """Refused, with where the values are."""
            raise _no_values(self.path)

        input = inputs = output

    class CheckedNNsight(NNsight):  # type: ignore[misc]
        """`NNsight` that batches images, knows a model's aliases, and refuses to trace what it no longer mirrors."""

        def __init__(self, hooked: Hookable, rename: Rename | None):
            places = None if rename is None else _with_places(hooked, rename)
            try:
                super().__init__(hooked, rename=places, envoys={HookNode: Place})
            except ValueError as error:  # nnsight's own, of a name that is taken
                raise InputError(f"rename: {first_sentence(error)}; choose another name") from error
            # Past nnsight's own __setattr__, which takes a module for a new part of the network.
            object.__setattr__(self, "_hooked", hooked)
            object.__setattr__(self, "_attachments", hooked.attachment_count)
            for alias in getattr(hooked.model, "layer_aliases", None) or ():
                place = _place(hooked, alias)
                if place is not None and not hasattr(self, alias):
                    object.__setattr__(self, alias, self.get(place))

        def trace(self, *args: Any, **kwargs: Any) -> Any:
            """`NNsight.trace`, unless the wrapping is stale."""
            self._check()
            return super().trace(*args, **kwargs)

        def edit(self, *args: Any, **kwargs: Any) -> Any:
            """`NNsight.edit`, unless the wrapping is stale."""
            self._check()
            return super().edit(*args, **kwargs)

        def _check(self) -> None:
            self._hooked.require_open()
            if self._hooked.attachment_count != self._attachments:
                raise StaleWrappingError(
                    "an SAE was attached or detached after the model was wrapped; wrap it again with model.nnsight()"
                )

        def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
            """How many rows an invoke has: images, or 1 of what has no tensor."""
            first = next(_tensors((inputs, kwargs)), None)
            if first is not None and not len(first):  # nnsight would take it for one without input
                raise InputError("an invoke of a trace has no images; to see those of the others, give it no input")
            return int(bool(inputs)) if first is None else len(first)

        def _batch(self, invokes: list[tuple[Any, Any]], fn: Any) -> Any:
            """The inputs of all invokes as those of one call."""
            if not invokes:
                raise InputError("no invoke of the trace has images; give one of them its own: tracer.invoke(images)")
            return super()._batch(invokes, fn) if len(invokes) < 2 else _joined(invokes, self.device)

    return CheckedNNsight


def _no_values(path: str) -> InputError:
    """The error of a node of the wrapper's tree that is asked for a value; `path` begins with nnsight's "model."."""
    name = path.partition(".")[2]
    return InputError(
        f"{name!r} is the name of a place with hook points and runs nothing; ask for .hook_out.output behind it, or "
        f"for the module's own output, n.get({f'model.{name}'!r}).output"
    )


def _place(hooked: Hookable, name: str) -> str | None:
    """Where in the wrapper's tree what goes by this name lies: a path without `hook_out` gives one without it."""
    try:
        full = hooked.resolve_hook_name(name)
    except InputError:
        return None
    node, _, leaf = full.rpartition(".")
    return full if name.endswith(leaf) else node


def _with_places(hooked: Hookable, rename: Rename) -> Rename:
    """`rename`, whose keys may be any names of hook points, with these points' places in the wrapper's tree beside.

    Raises:
        InputError: it is no mapping, or names what is not there, or something by what is no name of an attribute.
    """
    if not isinstance(rename, Mapping):
        raise InputError(
            f"rename is a {type(rename).__name__}: give a mapping of module paths to names, {{'bn2': 'map'}}"
        )
    paths = [path for path, _ in cast(nn.Module, hooked).named_modules()]
    for key, names in rename.items():
        if isinstance(key, str) and _place(hooked, key) is None and not any(f".{p}".endswith(f".{key}") for p in paths):
            near = difflib.get_close_matches(key, paths, n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise InputError(f"rename: there is no module or hook point {key!r}{hint}")
        for name in [names] if isinstance(names, str) else names:
            if not name.isidentifier():
                raise InputError(f"rename: {name!r} for {key!r} is no name of an attribute; take letters, digits and _")
    places = {key: _place(hooked, key) for key in rename if isinstance(key, str)}
    return {**rename, **{place: rename[key] for key, place in places.items() if place is not None}}


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.dim():
            yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def _joined(parts: Sequence[Any], device: torch.device | None) -> Any:
    """The inputs of several invokes joined along the axis of images; what is no tensor must be the same in all."""
    first = parts[0]
    if all(isinstance(part, torch.Tensor) and part.dim() for part in parts):
        if len({(part.dtype, part.shape[1:]) for part in parts}) > 1:
            told = ", ".join(f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}" for part in parts)
            raise InputError(f"the invokes of a trace run as one batch, but have {told}; trace sizes and types apart")
        return torch.cat([part if device is None else part.to(device) for part in parts])
    if all(isinstance(part, Mapping) and part.keys() == first.keys() for part in parts):
        return {key: _joined([part[key] for part in parts], device) for key in first}
    if all(isinstance(part, list | tuple) and len(part) == len(first) for part in parts):
        return tuple(_joined(each, device) for each in zip(*parts, strict=True))
    if any(isinstance(part, torch.Tensor | Mapping | list | tuple) or part != first for part in parts):
        raise InputError(
            "the invokes of a trace run as one batch, but are given different arguments; give each the same ones, and "
            "what is no tensor the same value"
        )
    return first
