"""A convolutional image model with TransformerLens hook points and SAELens SAEs attached to them.

Verbs and argument names are those of SAELens's `HookedSAETransformer`. Only public names of both libraries are used:
the attachment is our own, because upstream's changes between minor releases and expects a transformer.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from sae_lens import SAE
from torch import nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from mammosae_plugin.errors import InputError

HOOK_SUFFIX = "hook_out"
_MARK = "_mammosae_hooked"
_DEFAULT_INPUT_SIZE = (3, 64, 64)

NamesFilter = Callable[[str], bool] | Sequence[str] | str | None
HookList = Sequence[tuple[str | Callable[[str], bool], Callable[..., Any]]]


class _Node(nn.Module):
    """Only a name: gives a hook point its dotted path in the module tree."""


class _Route:
    """A forward hook that sends a module's output through the hook point of the same path, channels last.

    An object and not a closure, so that deepcopy and pickle carry it over to the copy: a closure would go on feeding
    the original's hook points.
    """

    def __init__(self, root: "HookedVisionModel", hook_name: str):
        self.root = root
        self.hook_name = hook_name

    def __call__(self, _module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        point = self.root.get_submodule(self.hook_name)  # looked up each time: an SAE may stand there
        if output.dim() == 4:
            hooked: torch.Tensor = point(output.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            return hooked
        return point(output)  # type: ignore[no-any-return]


class AttachedSAE(nn.Module):
    """An SAE in the place of a hook point: x -> decode(encode(x)), plus the error term where wanted, in x's dtype.

    The SAE's own hook points are children, so their names are upstream's: `bn2.hook_out.hook_sae_acts_post`. The SAE
    itself is no submodule: its parameters stay out of the model's state dict, and the model's `.to()` does not move it.
    """

    sae: SAE[Any]

    def __init__(self, sae: SAE[Any], *, use_error_term: bool = False):
        super().__init__()
        object.__setattr__(self, "sae", sae)
        for name, point in sae.hook_dict.items():
            if name not in ("hook_sae_error", "hook_sae_output"):
                self.add_module(name, point)
        # These two belong to the attachment, which computes what flows through them.
        self.hook_sae_error = HookPoint()
        self.hook_sae_output = HookPoint()
        self.use_error_term = use_error_term

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d_in) -> (..., d_in)."""
        out = self.sae.decode(self.sae.encode(x))
        if self.use_error_term:
            with torch.no_grad():
                with _hooks_bypassed(self.sae):
                    clean = self.sae.decode(self.sae.encode(x))
                error = self.hook_sae_error(x - clean)
            out = out + error
        return self.hook_sae_output(out.to(x.dtype))  # type: ignore[no-any-return]


@contextmanager
def _hooks_bypassed(sae: SAE[Any]) -> Iterator[None]:
    """Run the SAE without its hooks, so that an edit of latents is not taken for error. Not thread-safe."""
    points = {name: getattr(sae, name) for name in sae.hook_dict}
    try:
        for name in points:
            setattr(sae, name, nn.Identity())
        yield
    finally:
        for name, point in points.items():
            setattr(sae, name, point)


class HookedVisionModel(HookedRootModule):  # type: ignore[misc]
    """A timm or plain torch image model with a hook point `<module path>.hook_out` after each chosen module.

    At hook points and in SAEs activations are channels last: the module's (B, C, H, W) is shown as (B, H, W, C) and
    turned back afterwards; outputs with two or three dimensions, (B, C) and (B, N, C), pass as they are. Without an SAE
    the output is bit-identical to the model's. The state dict is the model's under the prefix `model.`.

    ```python
    with HookedVisionModel(load_mammo_clip("b5.tar", "mass.pth"), ["layer_39"]) as model:
        logits, cache = model.run_with_cache(images)             # cache["bn2.hook_out"]: (B, h, w, 2048)
        logits = model.run_with_saes(images, saes=[sae], use_error_term=True)
    ```

    Wherever a hook name is wanted, the module path (`bn2`) or an alias (`layer_39`) does too; results always carry the
    full name. One model has one wrapper at a time: `close()` the first before wrapping again.

    Attributes:
        model: the wrapped model, in whose modules the hooks live.
        hook_shapes: full hook name -> shape (h, w, C), or (C,), at the probe's input size, without batch.
    """

    def __init__(
        self,
        model: nn.Module,
        hook_names: Sequence[str] | str | None = None,
        *,
        example_input: torch.Tensor | None = None,
    ):
        """Run the model once in evaluation mode to see that the modules can be hooked, then hook them.

        Args:
            model: the image model; it keeps its mode.
            hook_names: module paths, full hook names or aliases (`model.layer_aliases`). By default all layers that
                have an alias; else timm's `feature_info` and the final map; else they must be given.
            example_input: images (B, 3, H, W) for the probe; by default one black image of the size in
                `model.default_cfg`, or of 64 x 64. Every hooked output is held until the probe is over.

        Raises:
            InputError: unknown names; a module that does not run exactly once, that gives no tensor, or whose output is
                overwritten in place afterwards; a model that is hooked already or cannot run on the example.
        """
        super().__init__()
        if any(getattr(module, _MARK, False) for module in model.modules()):
            raise InputError("this model is hooked already; close() its HookedVisionModel first, or wrap a copy")
        if getattr(model, "output_fmt", "NCHW") != "NCHW":
            raise InputError(
                f"{type(model).__name__} has maps in the layout {model.output_fmt}; only NCHW can be hooked"
            )
        self.model = model
        self._attached: dict[str, AttachedSAE] = {}
        self._handles: list[Any] = []
        self._closed = False
        self._aliases: dict[str, str] = dict(getattr(model, "layer_aliases", None) or {})
        paths = self._module_paths(_default_hooks(model) if hook_names is None else hook_names)
        shapes = _probe(model, paths, _default_input(model) if example_input is None else example_input)
        self.hook_shapes = {f"{path}.{HOOK_SUFFIX}": shape for path, shape in shapes.items()}
        for path in paths:
            self._add_point(path)
        self.setup()

    # -- names ---------------------------------------------------------------------------------------------------------

    def resolve_hook_name(self, name: str) -> str:
        """The full hook name for a full name, a module path or an alias.

        `layer_39`, `bn2` and `bn2.hook_out` all give `bn2.hook_out`; while an SAE is attached there,
        `layer_39.hook_sae_acts_post` gives `bn2.hook_out.hook_sae_acts_post`.

        Raises:
            InputError: there is no such hook point; the message has the nearest names.
        """
        known = {**self.hook_shapes, **self.hook_dict}
        for path in (name, *self._without_alias(name)):
            head, _, leaf = path.rpartition(".")
            for candidate in (path, f"{path}.{HOOK_SUFFIX}", f"{head}.{HOOK_SUFFIX}.{leaf}"):
                if candidate in known:
                    return candidate
        near = difflib.get_close_matches(name, [*known, *self._aliases], n=3)
        hint = (
            f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(sorted(self.hook_shapes)[:5])}, ..."
        )
        raise InputError(f"no hook point {name!r}; {hint}")

    def _without_alias(self, name: str) -> list[str]:
        alias, dot, rest = name.partition(".")
        return [self._aliases[alias] + dot + rest] if alias in self._aliases else []

    def _module_paths(self, names: Sequence[str] | str) -> list[str]:
        modules = dict(self.model.named_modules())
        paths = []
        for name in [names] if isinstance(names, str) else names:
            path = next(iter(self._without_alias(name)), name).removesuffix(f".{HOOK_SUFFIX}")
            if not path or path not in modules:
                near = difflib.get_close_matches(path, [*modules, *self._aliases], n=3)
                hint = f"; did you mean {', '.join(near)}?" if near else ""
                raise InputError(f"{type(self.model).__name__} has no module {name!r} to hook{hint}")
            if hasattr(self, path.split(".")[0]):
                raise InputError(
                    f"{path!r} cannot be hooked: {path.split('.')[0]!r} is a name of HookedVisionModel itself"
                )
            paths.append(path)
        if not paths:
            raise InputError("hook_names is empty; name at least one module to hook")
        return list(dict.fromkeys(paths))

    # -- forward and hooks ---------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped model's forward, through the hook points and attached SAEs."""
        if self._closed:
            raise RuntimeError("this HookedVisionModel is closed; use the model itself, or wrap it again")
        return self.model(*args, **kwargs)

    @contextmanager
    def hooks(
        self,
        fwd_hooks: HookList = (),
        bwd_hooks: HookList = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator["HookedVisionModel"]:
        """TransformerLens's context manager for temporary hooks, which `run_with_hooks` and `run_with_cache` use.

        Raises:
            InputError: a name that does not exist, or under which an SAE stands.
        """
        forward, backward = (
            [(self._hook_target(name), hook) for name, hook in each] for each in (fwd_hooks, bwd_hooks)
        )
        with super().hooks(forward, backward, reset_hooks_end, clear_contexts):
            yield self

    def add_hook(self, name: str | Callable[[str], bool], hook: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """TransformerLens's `add_hook`; raises `InputError` as `hooks` does."""
        super().add_hook(self._hook_target(name), hook, *args, **kwargs)

    def add_caching_hooks(self, names_filter: NamesFilter = None, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """TransformerLens's `add_caching_hooks`; raises `InputError` as `hooks` does."""
        cache: dict[str, torch.Tensor] = super().add_caching_hooks(self._checked_filter(names_filter), *args, **kwargs)
        return cache

    def get_caching_hooks(
        self, names_filter: NamesFilter = None, *args: Any, **kwargs: Any
    ) -> tuple[dict[str, torch.Tensor], HookList, HookList]:
        """TransformerLens's `get_caching_hooks`, which `run_with_cache` uses; raises `InputError` as `hooks` does."""
        hooks: tuple[dict[str, torch.Tensor], HookList, HookList] = super().get_caching_hooks(
            self._checked_filter(names_filter), *args, **kwargs
        )
        return hooks

    def _checked_filter(self, names_filter: NamesFilter) -> NamesFilter:
        """Full names for names, so that a misspelt one raises, where TransformerLens gives a cache without it."""
        if names_filter is None or callable(names_filter):
            return names_filter
        return [self._hook_target(name) for name in ([names_filter] if isinstance(names_filter, str) else names_filter)]

    def _hook_target(self, name: Any) -> Any:
        """The name that TransformerLens knows; predicates pass."""
        if callable(name):
            return name
        full = self.resolve_hook_name(name)
        if full in self._attached:
            raise InputError(
                f"an SAE stands at {full!r}: use {full}.hook_sae_input (before it) or {full}.hook_sae_output (after it)"
            )
        return full

    # -- SAEs ----------------------------------------------------------------------------------------------------------

    @property
    def acts_to_saes(self) -> dict[str, SAE[Any]]:
        """The attached SAEs by full hook name."""
        return {name: attached.sae for name, attached in self._attached.items()}

    def add_sae(self, sae: SAE[Any], use_error_term: bool | None = None) -> None:
        """Attach an SAE at the hook point that its metadata names, until `reset_saes`; another SAE there is replaced.

        With the error term x - decode(encode(x)), computed without hooks, the output is x to float rounding as long as
        nothing is edited, and an edit of the latents changes it by the edit alone. The error is computed without
        gradient: gradients go through the SAE's path only.

        Args:
            sae: any SAELens SAE; `sae.cfg.metadata.hook_name` may be an alias.
            use_error_term: None means what the SAE itself says, which is usually False.

        Raises:
            InputError: no or unknown hook name; another width than the hook point's; metadata that names another layout
                than "channels_last"; a transcoder; an SAE that is attached elsewhere; hooks at the point that the SAE
                would displace.
        """
        metadata = sae.cfg.metadata
        if not metadata.hook_name:
            raise InputError("the SAE's metadata has no hook_name; set sae.cfg.metadata.hook_name")
        name = self.resolve_hook_name(metadata.hook_name)
        if name not in self.hook_shapes:
            raise InputError(
                f"{name!r} lies inside an attached SAE; an SAE can only stand at the model's own hook points"
            )
        if metadata.layout not in (None, "channels_last"):
            raise InputError(
                f"the SAE for {name!r} wants the layout {metadata.layout!r}; hook points are channels_last"
            )
        if metadata.hook_name_out not in (None, metadata.hook_name):
            raise InputError(
                f"the SAE for {name!r} is a transcoder (hook_name_out {metadata.hook_name_out!r}); attach SAEs only"
            )
        width = self.hook_shapes[name][-1]
        if sae.cfg.d_in != width:
            raise InputError(f"the SAE has d_in {sae.cfg.d_in}, but {name!r} has {width} channels")
        elsewhere = [other for other, attached in self._attached.items() if attached.sae is sae and other != name]
        if elsewhere:
            raise InputError(f"this SAE is attached at {elsewhere[0]!r} already; attach a copy at {name!r}")
        if name in self.hook_dict and self.hook_dict[name].has_hooks():
            raise InputError(
                f"hooks at {name!r} would be lost under the SAE; remove them, and hook {name}.hook_sae_input"
            )
        if name in self._attached:
            self._detach(name)
        self._attached[name] = AttachedSAE(
            sae, use_error_term=sae.use_error_term if use_error_term is None else use_error_term
        )
        self._put(name, self._attached[name])

    def reset_saes(self, act_names: str | Sequence[str] | None = None) -> None:
        """Detach the SAEs at these hook points, or all of them; where none is attached nothing happens.

        Raises:
            InputError: unknown hook name.
        """
        if act_names is None:
            names = list(self._attached)
        else:
            names = [
                self.resolve_hook_name(name) for name in ([act_names] if isinstance(act_names, str) else act_names)
            ]
        for name in names:
            if name in self._attached:
                self._detach(name)

    @contextmanager
    def saes(
        self,
        saes: SAE[Any] | Sequence[SAE[Any]] = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
    ) -> Iterator["HookedVisionModel"]:
        """Attach SAEs for the length of the block, then put back what was attached before; may be nested.

        Args:
            saes: one or several, as for `add_sae`.
            reset_saes_end: False leaves them attached.
            use_error_term: as for `add_sae`, for all of them.
        """
        before = dict(self._attached)
        try:
            for sae in [saes] if isinstance(saes, SAE) else saes:
                self.add_sae(sae, use_error_term)
            yield self
        finally:
            if reset_saes_end:
                for name in [name for name, attached in self._attached.items() if before.get(name) is not attached]:
                    self._detach(name)
                for name, attached in before.items():
                    if self._attached.get(name) is not attached:
                        self.add_sae(attached.sae, attached.use_error_term)

    def run_with_saes(
        self,
        *model_args: Any,
        saes: SAE[Any] | Sequence[SAE[Any]] = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """`forward` with the SAEs attached for this one run; arguments as for `saes`."""
        with self.saes(saes, reset_saes_end, use_error_term):
            return self(*model_args, **model_kwargs)

    def run_with_cache_with_saes(
        self,
        *model_args: Any,
        saes: SAE[Any] | Sequence[SAE[Any]] = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Any, dict[str, torch.Tensor]]:
        """`run_with_cache` with the SAEs attached for this one run; returns (output, dict of activations)."""
        with self.saes(saes, reset_saes_end, use_error_term):
            result: tuple[Any, dict[str, torch.Tensor]] = self.run_with_cache(*model_args, **kwargs)
            return result

    def run_with_hooks_with_saes(
        self,
        *model_args: Any,
        saes: SAE[Any] | Sequence[SAE[Any]] = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """`run_with_hooks` with the SAEs attached for this one run."""
        with self.saes(saes, reset_saes_end, use_error_term):
            return self.run_with_hooks(*model_args, **kwargs)

    def _detach(self, name: str) -> None:
        attached = self._attached.pop(name)
        self._put(name, HookPoint())
        attached.sae.setup()  # gives the SAE's hook points their own names back

    def _put(self, name: str, module: nn.Module) -> None:
        parent, _, leaf = name.rpartition(".")
        self.get_submodule(parent).add_module(leaf, module)
        self.setup()

    # -- life ----------------------------------------------------------------------------------------------------------

    def _add_point(self, path: str) -> None:
        node: nn.Module = self
        for part in path.split("."):
            child = dict(node.named_children()).get(part)
            if child is None:
                child = _Node()
                node.add_module(part, child)
            node = child
        node.add_module(HOOK_SUFFIX, HookPoint())
        module = self.model.get_submodule(path)
        setattr(module, _MARK, True)
        self._handles.append(module.register_forward_hook(_Route(self, f"{path}.{HOOK_SUFFIX}")))

    def close(self) -> None:
        """Detach all SAEs and take the hooks out of the model, which is then as it was; may be called twice."""
        self.reset_saes()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for name in () if self._closed else self.hook_shapes:
            delattr(self.model.get_submodule(name.removesuffix(f".{HOOK_SUFFIX}")), _MARK)
        self._closed = True

    def __enter__(self) -> "HookedVisionModel":
        """The wrapper itself; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def _default_hooks(model: nn.Module) -> list[str]:
    """The aliased layers, or timm's feature modules and the final map."""
    aliases: Mapping[str, str] | None = getattr(model, "layer_aliases", None)
    if aliases:
        return list(aliases.values())
    modules = dict(model.named_modules())
    info = getattr(model, "feature_info", None) or []
    names = [entry["module"] for entry in info if entry["module"] in modules]
    if names and "bn2" in modules and "conv_head" in modules:  # EfficientNets: the map that is pooled
        names.append("bn2")
    if not names:
        raise InputError(
            f"{type(model).__name__} does not say where its feature maps are; give hook_names (module paths)"
        )
    return names


def _default_input(model: nn.Module) -> torch.Tensor:
    config = getattr(model, "default_cfg", None) or {}
    size = config.get("input_size", _DEFAULT_INPUT_SIZE)
    parameter = next(model.parameters(), torch.zeros(()))
    return torch.zeros(1, *size, device=parameter.device, dtype=parameter.dtype)


def _probe(model: nn.Module, paths: Sequence[str], images: torch.Tensor) -> dict[str, tuple[int, ...]]:
    """Run the model once and return the channels-last shapes of the modules' outputs, without batch.

    An output that a later module overwrites in place cannot be hooked: what a hook sees, and what a cache holds, would
    turn into something else during the same forward pass. torch counts such writes in the tensor's version.
    """
    outputs: dict[str, list[tuple[Any, int]]] = {path: [] for path in paths}

    def recorder(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(_module: nn.Module, _args: Any, output: Any) -> None:
            outputs[path].append((output, output._version if isinstance(output, torch.Tensor) else 0))

        return record

    handles = [model.get_submodule(path).register_forward_hook(recorder(path)) for path in paths]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.inference_mode(False), torch.no_grad():  # inference tensors have no version
            model(images)
    except Exception as error:  # whatever a foreign model raises on an input it does not take
        shape = tuple(images.shape)
        raise InputError(f"the model cannot run on images of shape {shape}, give example_input: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return {path: _checked_shape(path, runs) for path, runs in outputs.items()}


def _checked_shape(path: str, runs: list[tuple[Any, int]]) -> tuple[int, ...]:
    if len(runs) != 1:
        raise InputError(f"{path!r} cannot be hooked: it ran {len(runs)} times in one forward pass, not once")
    output, version = runs[0]
    if not isinstance(output, torch.Tensor):
        raise InputError(f"{path!r} cannot be hooked: it gives a {type(output).__name__} and not a tensor")
    if output.dim() not in (2, 3, 4):
        raise InputError(f"{path!r} cannot be hooked: its output has {output.dim()} dimensions, not 2, 3 or 4")
    if output._version != version:
        instead = f"the enclosing {path.rpartition('.')[0]!r}" if "." in path else "a later module"
        raise InputError(
            f"{path!r} cannot be hooked: a later module overwrites its output in place; hook the output of {instead}"
        )
    channels_last = output.permute(0, 2, 3, 1) if output.dim() == 4 else output
    return tuple(channels_last.shape[1:])
