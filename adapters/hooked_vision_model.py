"""An image model with TransformerLens hook points and SAELens SAEs attached to them.

Verbs and argument names are those of SAELens's `HookedSAETransformer`. Only public names of both libraries are used:
the attachment is our own, because upstream's changes between minor releases and expects a transformer.

The file is long because it is one class, whose verbs are those of another library: what it has of its own, finding and
describing what can be hooked, lies in `hook_points`, `layouts` and `recording`.
"""

__all__ = ["HookedVisionModel", "HookList", "NamesFilter", "Reading", "require_hooked"]

import difflib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any, Literal, NamedTuple, cast

import torch
from sae_lens import SAE
from torch import nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from mammosae_plugin.adapters.attached_sae import AttachedSAE, check_fit
from mammosae_plugin.adapters.hook_cache import HookCache
from mammosae_plugin.adapters.hook_names import HOOK_SUFFIX, HookNode, Numbered, hook_name_of, meanings, module_path
from mammosae_plugin.adapters.hook_points import (
    GET_A_HEAD,
    at_another_size,
    count_prefix_tokens,
    default_hooks,
    default_images,
    examine,
    final_path,
    find_head_path,
    overwritten_in_place,
    require_images,
    submodule,
)
from mammosae_plugin.adapters.hook_routes import MARK, Mark, NoteImageSize, Route
from mammosae_plugin.adapters.layouts import HookLayout, MapLayout, PrefixTokens, settle_grids
from mammosae_plugin.adapters.nnsight import Rename, wrap_for_nnsight
from mammosae_plugin.adapters.reach import advice_where_unread
from mammosae_plugin.adapters.recording import (
    Call,
    Recording,
    any_size,
    first_tensor,
    is_compiled_in_place,
    record,
    seen_by_hooks,
)
from mammosae_plugin.adapters.rest_of_network import RestOfNetwork, noise_for
from mammosae_plugin.adapters.views import ModelExample, ModelInputs, undone_on_failure
from mammosae_plugin.arguments import text
from mammosae_plugin.errors import InputError
from mammosae_plugin.shapes import Images

logger = logging.getLogger(__name__)

NamesFilter = Callable[[str], bool] | Sequence[str] | str | None
HookList = Sequence[tuple[str | Callable[[str], bool], Callable[..., Any]]]


class Reading(NamedTuple):
    """What one pass gave at one hook point.

    Attributes:
        value: as shown at the hook point, channels last: (B, h, w, C), (B, n, C) or (B, C).
        raw: the module's own output, of a tuple its first tensor, which `RestOfNetwork` starts from.
        head_input: (B, d), what the model's own classifier reads; None where it has none.
    """

    value: torch.Tensor
    raw: torch.Tensor
    head_input: torch.Tensor | None


class HookedVisionModel(Numbered, HookedRootModule):
    """A timm or plain torch image model with a hook point `<module path>.hook_out` after each chosen module.

    At hook points and in SAEs activations are channels last. A module's map, (B, C, h, w) or (B, h, w, C), is shown as
    (B, h, w, C). So are the patches of a transformer, (B, n_prefix + n, C): its class and register tokens go around the
    hook point, or with `prefix_tokens="keep"` the sequence is shown whole. Vectors (B, C) pass as they are. Without an
    SAE the output is bit-identical to the model's. The state dict is the model's under the prefix `model.`.

    ```python
    with HookedVisionModel(load_mammo_clip("b5.tar", "mass.pth"), ["layer_39"]) as model:
        logits, cache = model.run_with_cache(images)             # cache["bn2.hook_out"]: (B, h, w, 2048)
        logits = model.run_with_saes(images, saes=[sae], use_error_term=True)
    ```

    Wherever a hook name is wanted, the module path (`bn2`) or an alias (`layer_39`) does too; results always carry the
    full name. One model has one wrapper at a time: `close()` the first before wrapping again.

    Under torch.compile, of the wrapper or of the model in it, hook points stay outside the compiled code: what is
    hooked or attached later counts.

    Attributes:
        model: the wrapped model, in whose modules the hooks live.
        hook_shapes: full hook name -> shape of the value shown, without batch, at the probe's input size: (h, w, C),
            (n, C) or (C,).
        hook_layouts: full hook name -> how the module lays out its output.
        final_hook: the hook point of the last feature map or tokens before the head, None where it is not hooked.
        head_path: the module path of the linear classifier, None where the output does not come from one.
        n_views: images of an exam that a pass takes together, 1 of a model of single images; at hook points their rows
            are image-major, exam by exam (`views.by_view` gives them by exam and view).
        inputs: how the model takes its inputs, and from which columns of a dataset those beside the images.
        attachment_count: grows whenever an SAE is attached or detached.
        compiled: whether its parts run under torch.compile at the moment (`fast_inference.compiled`).
    """

    @undone_on_failure
    def __init__(
        self,
        model: nn.Module,
        hook_names: Sequence[str] | str | None = None,
        *,
        example_input: ModelExample = None,
        layouts: Mapping[str, MapLayout] | None = None,
        prefix_tokens: PrefixTokens = "drop",
        n_prefix_tokens: int | None = None,
        overwritten: Literal["refuse", "clone"] = "refuse",
    ):
        """Run the model in evaluation mode to see that the modules can be hooked and how they lay out, then hook them.

        Args:
            model: the image model; it keeps its mode.
            hook_names: module paths, full hook names or aliases (`model.layer_aliases`). By default all layers that
                have an alias; else timm's `feature_info` and the last map; else the outermost modules that give maps or
                tokens.
            example_input: images (B, 3, H, W) for the probe; by default one black image of the size in
                `model.default_cfg`, or of 64 x 64. Every hooked output is held until the probe is over. Of a model that
                takes exams, images (B, views, 3, H, W); of one with more inputs all of them, a tuple or dict.
            layouts: module path -> "channels_first" or "channels_last", for maps whose layout cannot be recognised.
            prefix_tokens: "drop" lets class and register tokens go around the hook points of transformers, "keep"
                shows them in front of the patches.
            n_prefix_tokens: how many class and register tokens lead the sequence, where the model does not say so
                (timm's do).
            overwritten: what to do about a module whose output a later module overwrites in place: "refuse" it, or
                "clone" its output, which costs one copy per pass.

        Raises:
            InputError: unknown names; a module that does not run exactly once, that gives no tensor, or whose output is
                overwritten in place afterwards; a layout that cannot be recognised; a model that is hooked already, is
                compiled, or cannot run on the example.
        """
        super().__init__()
        _refuse(model, prefix_tokens, overwritten)
        self.model = model
        self.image_size: tuple[int, int] | None = None
        self.passed_by: frozenset[str] = frozenset()
        self.attachment_count = 0
        self.compiled = False
        self._attached: dict[str, AttachedSAE] = {}
        self.readers: dict[str, AttachedSAE] = {}
        self._unread: dict[tuple[str, int], str | None] = {}
        self._handles: list[Any] = []
        self._passes: dict[tuple[tuple[int, int], torch.device], Recording] = {}
        self._rests: dict[tuple[str, tuple[int, int]], RestOfNetwork] = {}
        self.is_closed = False
        self._aliases: dict[str, str] = dict(getattr(model, "layer_aliases", None) or {})
        self.inputs = ModelInputs(model, example_input)
        self._handles += self.inputs.handles
        self.n_views = self.inputs.n_views
        images = default_images(model) if self.inputs.images is None else self.inputs.images
        require_images(images)
        self.n_channels, self.probe_size = int(images.shape[1]), (int(images.shape[-2]), int(images.shape[-1]))
        if hook_names is None:
            hook_names = list(self._aliases.values()) or default_hooks(model, images, self.n_views)
        paths = self._module_paths(hook_names)
        said = self._said_layouts(layouts or {}, paths)
        probe, other = record(model, images, keep=paths), at_another_size(model, images, self.n_views)
        self.inputs.require_once(paths, probe)
        found: dict[str, HookLayout] = {}
        cloned = set()
        for path in paths:
            call, found[path] = examine(
                model,
                path,
                probe,
                other,
                images,
                said=said.get(path),
                prefix_tokens=prefix_tokens,
                n_prefix=n_prefix_tokens,
            )
            if call.output._version != call.version:
                if overwritten == "refuse":
                    raise overwritten_in_place(path)
                cloned.add(path)
        said_prefix = n_prefix_tokens is not None
        settle_grids(
            model,
            found,
            images,
            other_size=None if other is None else other.image_size,
            prefix_tokens=prefix_tokens,
            n_prefix=n_prefix_tokens if said_prefix else count_prefix_tokens(model),
            is_said=said_prefix,
        )
        self.hook_layouts = {hook_name_of(path): layout for path, layout in found.items()}
        self.hook_shapes = {
            hook_name_of(path): tuple(layout.show(probe.of(path)[0].output).shape[1:]) for path, layout in found.items()
        }
        self._order = {hook_name_of(path): probe.of(path)[0].end for path in paths}
        final = final_path(model, probe, paths)
        self.final_hook = None if final is None else hook_name_of(final)
        self.head_path = find_head_path(model, probe)
        self._handles += [*any_size(model), model.register_forward_pre_hook(NoteImageSize(self), with_kwargs=True)]
        for path in paths:
            self._add_point(path, clone=path in cloned)
        self.setup()  # type: ignore[no-untyped-call]  # TransformerLens says no type

    # -- places --------------------------------------------------------------------------------------------------------

    def grid(self, hook_name: str, image_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the positions at a hook point for images of `image_size` (H, W).

        Raises:
            InputError: an unknown hook name, or one whose value has no grid: a vector, or tokens that do not tile the
                image.
        """
        name = self.resolve_hook_name(hook_name)
        layout = self.hook_layouts.get(name)
        grid: tuple[int, int] | None = None
        if layout is not None and layout.kind == "tokens":
            grid = layout.grid_at(image_size)
        elif layout is not None and layout.shows_grid:
            shape = self.call_at(name, image_size).shape
            assert shape is not None  # the constructor has seen that it gives a tensor
            height, width = shape[2:] if layout.channels_first else shape[1:3]
            grid = (height, width)
        if grid is None:
            raise InputError(f"{name!r} has no grid of positions; choose a hook point that shows a map")
        return grid

    def call_at(self, hook_name: str, image_size: tuple[int, int]) -> Call:
        """What is known of the output of a hook point's module for one image of `image_size` (H, W), but the output.

        Raises:
            InputError: an unknown hook name, or a size that the model does not take.
        """
        path = module_path(self.resolve_hook_name(hook_name))
        return self.look([], image_size).of(path)[0]

    def look(self, hook_names: Sequence[str], image_size: tuple[int, int]) -> Recording:
        """One pass, after which `grid`, `call_at` and `rest_from` at these hook points and this size need none.

        The outputs of the modules are held until `rest_from` has been asked for each.

        Args:
            hook_names: where `rest_from` will start.
            image_size: (H, W).

        Raises:
            InputError: an unknown hook name, a size that the model does not take, or attached SAEs.
        """
        if hook_names and self.acts_to_saes:
            raise InputError("make the rest of a network without SAEs attached; attach them afterwards")
        names = [self.resolve_hook_name(name) for name in hook_names]
        paths = [module_path(name) for name in names if (name, image_size) not in self._rests]
        noise = noise_for(self, image_size)
        place = (image_size, noise.device)  # in a GPU's memory a map may lie otherwise
        known = self._passes.get(place)
        if known is None or any(known.of(path)[0].output is None for path in paths):
            known = self._passes[place] = record(self.model, noise, keep=paths)
            known.features = None  # a whole map
        return known

    def read(self, images: Images, hook_name: str) -> Reading:
        """One pass over images (B, 3, H, W): the value at a hook point, the module's own output, the head's input.

        Raises:
            InputError: an unknown hook name, or one under which an SAE stands.
        """
        name = self._hook_target(hook_name)
        raw: list[Any] = []
        values: list[torch.Tensor] = []
        module = self.model.get_submodule(module_path(name))
        handle = module.register_forward_hook(
            lambda _module, _args, output: raw.append(first_tensor(output)), prepend=True
        )
        try:
            with (
                seen_by_hooks(self),
                nullcontext([None]) if self.head_path is None else self.head_input() as head,
                self.hooks(fwd_hooks=[(name, lambda value, hook: values.append(value))]),  # noqa: ARG005
            ):
                self(images)
        finally:
            handle.remove()
        return Reading(values[0], raw[0], head[0])

    @contextmanager
    def head_input(self) -> Iterator[list[torch.Tensor]]:
        """Within the block every pass appends what the model's own linear classifier reads, (B, d), to the list.

        Raises:
            InputError: the model's output does not come from a linear layer.
        """
        seen: list[torch.Tensor] = []
        head = self.model.get_submodule(self.require_head())
        handle = head.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        try:
            with seen_by_hooks(self):
                yield seen
        finally:
            handle.remove()

    def require_head(self) -> str:
        """The module path of the linear classifier.

        Raises:
            InputError: the model's output does not come from a linear layer.
        """
        if self.head_path is None:
            raise InputError(
                f"the output of {type(self.model).__name__} does not come from a linear layer, so there is "
                f"nothing that a linear classifier reads: {GET_A_HEAD}"
            )
        return self.head_path

    def encoder_state(self) -> dict[str, torch.Tensor]:
        """The state dict without the linear classifier: what decides every activation and what the classifier reads."""
        head = None if self.head_path is None else f"model.{self.head_path}."
        return {name: tensor for name, tensor in self.state_dict().items() if head is None or not name.startswith(head)}

    def rest_from(self, hook_name: str, image_size: tuple[int, int]) -> RestOfNetwork:
        """The part of the network behind a hook point, which runs without the part before it.

        Args:
            hook_name: where to start.
            image_size: (H, W) of the images behind the activations that it will be given.

        Raises:
            InputError: an unknown hook name, or one around which other values flow to the output.
        """
        name = self.resolve_hook_name(hook_name)
        if (name, image_size) not in self._rests:
            recording = self.look([name], image_size)
            self._rests[name, image_size] = RestOfNetwork(self, name, image_size, recording)
            call = recording.of(module_path(name))[0]
            call.output = call.rest = None
        return self._rests[name, image_size]

    # -- names ---------------------------------------------------------------------------------------------------------

    def resolve_hook_name(self, name: str) -> str:
        """The full hook name for a full name, a module path or an alias.

        `layer_39`, `bn2` and `bn2.hook_out` all give `bn2.hook_out`; while an SAE is attached there,
        `layer_39.hook_sae_acts_post` gives `bn2.hook_out.hook_sae_acts_post`.

        Raises:
            InputError: there is no such hook point; the message has the nearest names.
        """
        text(name, "the hook point")
        known = {**self.hook_shapes, **self.hook_dict}
        for meaning in meanings(name, self._aliases):
            if meaning in known:
                return meaning
        paths = [module_path(known_name) for known_name in self.hook_shapes]
        near = difflib.get_close_matches(name, [*known, *paths, *self._aliases], n=3)
        hint = (
            f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(sorted(self.hook_shapes)[:5])}, ..."
        )
        raise InputError(f"no hook point {name!r}; {hint}")

    def _module_paths(self, names: Sequence[str] | str) -> list[str]:
        modules = dict(self.model.named_modules())
        path_of = {module: path for path, module in modules.items()}
        paths = []
        for name in [names] if isinstance(names, str) else names:
            text(name, "the hook point")
            full = list(meanings(name, self._aliases))
            tried = [*(one.removesuffix(f".{HOOK_SUFFIX}") for one in full), *map(module_path, full)]
            path = next((one for one in tried if one in modules), tried[0])
            if path and path not in modules:
                path = path_of.get(submodule(self.model, path), path)  # a module that goes by two names
            if not path or path not in modules:
                known = [*filter(None, modules), *self._aliases]
                near = difflib.get_close_matches(path, [*known, *(f"{one}.{HOOK_SUFFIX}" for one in known)], n=3)
                hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(known[:5])}, ..."
                raise InputError(f"{type(self.model).__name__} has no module {name!r} to hook; {hint}")
            paths.append(path)
        if not paths:
            raise InputError("hook_names is empty; name at least one module to hook")
        return list(dict.fromkeys(paths))

    def _said_layouts(self, layouts: Mapping[str, str], paths: Sequence[str]) -> dict[str, str]:
        said = {}
        for name, layout in layouts.items():
            if layout not in ("channels_first", "channels_last"):
                raise InputError(f"layouts[{name!r}] is {layout!r}; it must be 'channels_first' or 'channels_last'")
            (path,) = self._module_paths(name)
            if path not in paths:
                raise InputError(f"layouts names {name!r}, which is not among the modules to hook")
            said[path] = layout
        return said

    @staticmethod
    def wrapper_of(model: nn.Module) -> "HookedVisionModel | None":
        """The wrapper that hooks a model or a part of it, to close it where it is no longer at hand; None without."""
        marks = (getattr(module, MARK, None) for module in model.modules())
        return next((mark.root for mark in marks if mark is not None), None)

    # -- forward and hooks ---------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped model's forward, through the hook points and attached SAEs."""
        self.require_open()
        self.inputs.require(args, kwargs, self.n_channels)
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

    def run_with_cache(
        self, *model_args: Any, return_cache_object: bool = True, remove_batch_dim: bool = False, **kwargs: Any
    ) -> tuple[Any, Any]:
        """TransformerLens's `run_with_cache`; raises `InputError` as `hooks` does.

        Args:
            model_args: images (B, 3, H, W).
            return_cache_object: give an `ActivationCache`, which is a mapping and finds aliases too; else a dict.
            remove_batch_dim: of a batch of one.
            kwargs: as TransformerLens's: `names_filter`, `device`, `incl_bwd`, ...
        """
        output, cache = super().run_with_cache(*model_args, remove_batch_dim=remove_batch_dim, **kwargs)
        if return_cache_object:
            return output, HookCache(cache, self, not remove_batch_dim, aliases=self._aliases)
        return output, cache

    def list_hooks(self, name_filter: NamesFilter = None, *args: Any, **kwargs: Any) -> dict[str, list[Any]]:
        """TransformerLens's `list_hooks`: hooks by full name; raises `InputError` as `hooks` does."""
        return super().list_hooks(self._checked_filter(name_filter), *args, **kwargs)

    def add_hook(self, name: str | Callable[[str], bool], hook: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """TransformerLens's `add_hook`; raises `InputError` as `hooks` does."""
        super().add_hook(self._hook_target(name), hook, *args, **kwargs)

    def add_caching_hooks(self, names_filter: NamesFilter = None, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """TransformerLens's `add_caching_hooks`; raises `InputError` as `hooks` does."""
        cache: dict[str, torch.Tensor] = super().add_caching_hooks(self._checked_filter(names_filter), *args, **kwargs)
        return cache

    def get_caching_hooks(
        self, names_filter: NamesFilter = None, *args: Any, **kwargs: Any
    ) -> tuple[dict[str, torch.Tensor], list[Any], list[Any]]:
        """TransformerLens's `get_caching_hooks`, which `run_with_cache` uses; raises `InputError` as `hooks` does."""
        return super().get_caching_hooks(self._checked_filter(names_filter), *args, **kwargs)

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
        if any(attached.place == full for attached in self._attached.values()):
            raise InputError(
                f"an SAE stands at {full!r}: use {full}.hook_sae_input (before it) or {full}.hook_sae_output (after it)"
            )
        return full

    # -- SAEs ----------------------------------------------------------------------------------------------------------

    @property
    def acts_to_saes(self) -> dict[str, SAE[Any]]:
        """The attached SAEs by the full hook name of what they read, which is where they stand but for transcoders."""
        return {name: attached.sae for name, attached in self._attached.items()}

    def add_sae(
        self,
        sae: SAE[Any],
        use_error_term: bool | None = None,
        exclude_special_tokens: bool | list[int] = False,
    ) -> None:
        """Attach an SAE at the hook point that its metadata names, until `reset_saes`; another SAE there is replaced.

        A transcoder, whose metadata has a `hook_name_out`, stands there and reads `hook_name`; it replaces the SAEs at
        both names. Where nothing behind the SAE reads it, so that it cannot change the output, a warning is logged.

        With the error term x - decode(encode(x)), computed without hooks, the output is x to float rounding as long as
        nothing is edited, and an edit of the latents changes it by the edit alone. The error is computed without
        gradient: gradients go through the SAE's path only.

        Args:
            sae: any SAELens SAE; `sae.cfg.metadata.hook_name` may be an alias.
            use_error_term: None means what the SAE itself says, which is usually False.
            exclude_special_tokens: True lets class and register tokens pass by the SAE where the hook point shows them;
                elsewhere there are none, and it changes nothing. Images have no token numbers, so a list is refused.

        Raises:
            InputError: no or unknown hook name; another width than the hook point's; metadata that names another layout
                than "channels_last"; a transcoder without a second hook name, or between other positions; an SAE that
                reads positions together or one for attention heads; an SAE that is attached elsewhere; hooks at the
                point that the SAE would displace.
        """
        self.require_open()
        if not isinstance(sae, SAE):
            raise InputError(f"a {type(sae).__name__} is no SAE of SAELens; give a sae_lens.SAE")
        if not isinstance(exclude_special_tokens, bool):
            raise InputError("exclude_special_tokens lists token numbers, which images do not have; give True or False")
        metadata = sae.cfg.metadata
        if not metadata.hook_name:
            raise InputError("the SAE's metadata has no hook_name; set sae.cfg.metadata.hook_name")
        reads = self.resolve_hook_name(metadata.hook_name)
        place = self.resolve_hook_name(metadata.hook_name_out or reads)
        for name in {reads, place} - set(self.hook_shapes):
            raise InputError(
                f"{name!r} lies inside an attached SAE; an SAE can only stand at the model's own hook points"
            )
        check_fit(sae, reads, place, self.hook_shapes, self._order)
        elsewhere = [one.place for one in self._attached.values() if one.sae is sae and one.place != place]
        if elsewhere:
            raise InputError(f"this SAE is attached at {elsewhere[0]!r} already; attach a copy at {place!r}")
        if place in self.hook_dict and self.hook_dict[place].has_hooks():
            raise InputError(
                f"hooks at {place!r} would be lost under the SAE; remove them, and hook {place}.hook_sae_input"
            )
        attached = AttachedSAE(
            sae,
            place=place,
            reads=reads,
            use_error_term=sae.use_error_term if use_error_term is None else use_error_term,
            exclude_special_tokens=exclude_special_tokens,
            n_special=self.hook_layouts[place].n_shown_prefix,
        )
        for name in [name for name, one in self._attached.items() if name == reads or one.place == place]:
            self._detach(name)
        unread = (place, attached.n_special)
        if unread not in self._unread:
            self._unread[unread] = advice_where_unread(self, *unread)
        if self._unread[unread] is not None:
            logger.warning("the SAE at %r cannot change the output: %s", place, self._unread[unread])
        self._attached[reads] = attached
        if reads != place:
            self.readers[reads] = attached
        self._put(place, attached)

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
        for name in [name for name, one in self._attached.items() if name in names or one.place in names]:
            self._detach(name)

    @contextmanager
    def saes(
        self,
        saes: SAE[Any] | Sequence[SAE[Any]] = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        exclude_special_tokens: bool | list[int] = False,
    ) -> Iterator["HookedVisionModel"]:
        """Attach SAEs for the length of the block, then put back what was attached before; may be nested.

        Args:
            saes: one or several, as for `add_sae`.
            reset_saes_end: False leaves them attached.
            use_error_term: as for `add_sae`, for all of them.
            exclude_special_tokens: as for `add_sae`.
        """
        before = dict(self._attached)
        try:
            for sae in [saes] if isinstance(saes, SAE) else saes:
                self.add_sae(sae, use_error_term, exclude_special_tokens)
            yield self
        finally:
            if reset_saes_end:
                for name in [name for name, attached in self._attached.items() if before.get(name) is not attached]:
                    self._detach(name)
                for name, attached in before.items():
                    if self._attached.get(name) is not attached:
                        self.add_sae(attached.sae, attached.use_error_term, attached.exclude_special_tokens)

    def run_with_saes(
        self,
        *model_args: Any,
        saes: SAE[Any] | Sequence[SAE[Any]] = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        exclude_special_tokens: bool | list[int] = False,
        **model_kwargs: Any,
    ) -> Any:
        """`forward` with the SAEs attached for this one run; arguments as for `saes`."""
        with self.saes(saes, reset_saes_end, use_error_term, exclude_special_tokens):
            return self(*model_args, **model_kwargs)

    def run_with_cache_with_saes(
        self,
        *model_args: Any,
        saes: SAE[Any] | Sequence[SAE[Any]] = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        exclude_special_tokens: bool | list[int] = False,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """`run_with_cache` with the SAEs attached for this one run.

        Args:
            model_args: images (B, 3, H, W).
            saes: as for `saes`, and so the next three.
            reset_saes_end: as for `saes`.
            use_error_term: as for `saes`.
            exclude_special_tokens: as for `saes`.
            return_cache_object: as for `run_with_cache`, and so the rest.
            remove_batch_dim: of a batch of one.
            kwargs: as for `run_with_cache`.

        Returns:
            The model's output, and its activations by hook name.
        """
        with self.saes(saes, reset_saes_end, use_error_term, exclude_special_tokens):
            return self.run_with_cache(
                *model_args, return_cache_object=return_cache_object, remove_batch_dim=remove_batch_dim, **kwargs
            )

    def run_with_hooks_with_saes(
        self,
        *model_args: Any,
        saes: SAE[Any] | Sequence[SAE[Any]] = (),
        reset_saes_end: bool = True,
        exclude_special_tokens: bool | list[int] = False,
        fwd_hooks: HookList = (),
        bwd_hooks: HookList = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        use_error_term: bool | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """`run_with_hooks` with the SAEs attached for this one run."""
        with self.saes(saes, reset_saes_end, use_error_term, exclude_special_tokens):
            return self.run_with_hooks(
                *model_args,
                fwd_hooks=list(fwd_hooks),
                bwd_hooks=list(bwd_hooks),
                reset_hooks_end=reset_hooks_end,
                clear_contexts=clear_contexts,
                **model_kwargs,
            )

    def _detach(self, name: str) -> None:
        attached = self._attached.pop(name)
        self.readers.pop(name, None)  # one SAE reads a hook point at a time
        self._put(attached.place, HookPoint())
        attached.sae.setup()  # gives the SAE's hook points their own names back

    def _put(self, name: str, module: nn.Module) -> None:
        parent, _, leaf = name.rpartition(".")
        self.get_submodule(parent).add_module(leaf, module)
        self.attachment_count += 1
        self.setup()  # type: ignore[no-untyped-call]

    # -- life ----------------------------------------------------------------------------------------------------------

    def _add_point(self, path: str, *, clone: bool) -> None:
        name, node = hook_name_of(path), cast(nn.Module, self)
        for part in name.split(".")[:-1]:
            child = dict(node.named_children()).get(part)
            if child is None:
                child = HookNode()
                node.add_module(part, child)
            node = child
        node.add_module(HOOK_SUFFIX, HookPoint())
        module = self.model.get_submodule(path)
        setattr(module, MARK, Mark(self))
        self._handles.append(module.register_forward_hook(Route(self, name, clone=clone)))

    def require_open(self) -> None:
        """Raise `RuntimeError` if the wrapper is closed."""
        if self.is_closed:
            raise RuntimeError("this HookedVisionModel is closed; use the model itself, or wrap it again")

    def nnsight(self, rename: Rename | None = None) -> Any:
        """The model as it is now, its attached SAEs included, wrapped for nnsight: see `wrap_for_nnsight`."""
        return wrap_for_nnsight(self, rename)

    def close(self) -> None:
        """Detach all SAEs and take the hooks out of the model, which is then as it was; may be called twice."""
        self.reset_saes()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._passes.clear()
        self._rests.clear()
        for name in () if self.is_closed else self.hook_shapes:
            delattr(self.model.get_submodule(module_path(name)), MARK)
        self.is_closed = True

    def __enter__(self) -> "HookedVisionModel":
        """The wrapper itself; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def require_hooked(model: Any) -> None:
    """Refuse what has no hook points."""
    if not hasattr(model, "resolve_hook_name"):
        raise InputError(f"the model is a {type(model).__name__}: wrap it, HookedVisionModel(model, ['layer'])")


def _refuse(model: nn.Module, prefix_tokens: str, overwritten: str) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(
            f"the model is a {type(model).__name__} and no torch.nn.Module; "
            + ("wrap its .network" if hasattr(model, "network") else "create or load it first")
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("this model is scripted, and scripts run no hooks; wrap the Python model that it was made of")
    if isinstance(model, HookedVisionModel):
        raise InputError("this is a HookedVisionModel, hooked already; close it and wrap its .model again")
    if HookedVisionModel.wrapper_of(model) is not None:
        raise InputError(
            "this model is hooked already, and so is a copy of it; close() its HookedVisionModel first, which "
            "HookedVisionModel.wrapper_of(model) gives"
        )
    if any(hasattr(module, "_orig_mod") for module in model.modules()):
        raise InputError(
            "this model is compiled, and compiled code does not run hooks that come later; wrap the model itself, and "
            "compile it then"
        )
    if is_compiled_in_place(model):
        raise InputError(
            "this model was compiled in place (by its compile()), and compiled code does not run hooks that come "
            "later; load or make it anew, wrap it, and compile it then"
        )
    if prefix_tokens not in ("drop", "keep"):
        raise InputError(f"prefix_tokens is {prefix_tokens!r}; it must be 'drop' or 'keep'")
    if overwritten not in ("refuse", "clone"):
        raise InputError(f"overwritten is {overwritten!r}; it must be 'refuse' or 'clone'")
