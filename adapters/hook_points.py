"""Which modules of a network can be hooked, how their outputs lie, and which of them is the last map and the head."""

__all__ = [
    "at_another_size", "count_prefix_tokens", "default_hooks", "default_images", "examine", "final_path",
    "find_head_path", "GET_A_HEAD", "likely_paths", "NO_HEAD_OF_EXAMS", "overwritten_in_place", "require_images",
    "stages", "submodule",
]  # fmt: skip

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import nn

from mammosae_plugin.adapters.layouts import HookLayout, PrefixTokens, layout_of
from mammosae_plugin.adapters.recording import Call, Recording, first_tensor, record
from mammosae_plugin.errors import InputError
from mammosae_plugin.shapes import Images

GET_A_HEAD = (
    "train one by train_classifier(new_backbone_classifier('function', 'package.module:function', 0), dataset, "
    "concept, file, ClassifierTraining(kind='pretrained')), hook its network and give encode_latents its head"
)
NO_HEAD_OF_EXAMS = (
    "its network reads several views, or more than images, and no head a single one; change latents in the network "
    "itself, HookedVisionModel.run_with_hooks_with_saes"
)
_DEFAULT_INPUT_SIZE = (3, 64, 64)
_SMALL_SIZES = ((64, 96), (96, 64), (128, 160), (160, 128))  # of a second look, of which only shapes are wanted
_STEM_CHANNELS = 16  # more than that are no image
_FEW = 3  # with fewer hook points a plain network's list is looked for one level further inside


def stages(model: nn.Module) -> list[str]:
    """The paths in timm's `feature_info`, of the model or of the network that it wraps."""
    for path, module in model.named_modules():
        info = getattr(module, "feature_info", None) or []
        found = [entry.get("module") for entry in info if isinstance(entry, Mapping)]
        paths = [f"{path}.{name}".lstrip(".") for name in found if isinstance(name, str) and name]
        if paths and all(submodule(model, name) is not None for name in paths):
            return paths
    return []


def likely_paths(model: nn.Module, recording: Recording) -> list[str]:
    """The modules that people hook: timm's feature modules and the last map, or a stack's blocks and the norm behind.

    Of networks with neither, or with several stacks, the outermost modules that give maps or tokens.
    """
    blocks = [path for path in stages(model) if recording.of(path)]
    is_own = bool(blocks) and bool(getattr(model, "feature_info", None))
    blocks = blocks or _only_stack(model, recording)
    if not blocks:
        return _outermost(model, recording)
    last = final_path(model, recording, None) if is_own else _norm_behind(model, recording, blocks[-1])
    return [*blocks, *([last] if last is not None else [])]


def _only_stack(model: nn.Module, recording: Recording) -> list[str]:
    """The blocks of a network that has one stack of them: two or more of one kind in a list, each of which ran once.

    Lists whose paths differ in numbers alone, one for each stage of a pyramid, are one stack. Layers that embed patches
    are none.
    """
    calls: dict[str, list[Call]] = {}
    for call in recording.calls:
        calls.setdefault(call.path, []).append(call)
    found: dict[str, list[str]] = {}
    of_stages: dict[tuple[str, type[nn.Module]], list[str]] = {}
    for path, module in model.named_modules():
        parts = [f"{path}.{name}".lstrip(".") for name, _ in module.named_children()]
        kinds = {type(part) for part in module.children()}
        is_stack = (
            isinstance(module, nn.ModuleList | nn.Sequential)
            and len(kinds) == 1
            and "embed" not in next(iter(kinds)).__name__.lower()
            and all(len(calls.get(part, ())) == 1 and _has_positions(calls[part][0].shape) for part in parts)
            and all(next(part.children(), None) is not None for part in module.children())
        )
        if not is_stack or any(path.startswith(f"{outer}.") for outer in found):
            continue
        if isinstance(module, nn.ModuleList):
            alike = ".".join("*" if part.isdecimal() else part for part in path.split("."))
            of_stages.setdefault((alike, next(iter(kinds))), []).extend(parts)
        if len(parts) > 1:
            found[path] = parts
    if len(found) == 1:
        return next(iter(found.values()))
    joined = [parts for parts in of_stages.values() if len(parts) > 1]
    is_all = len(joined) == 1 and all(set(parts) <= set(joined[0]) for parts in found.values())
    return sorted(joined[0], key=lambda path: calls[path][0].end) if is_all else []


def _norm_behind(model: nn.Module, recording: Recording, last: str) -> str | None:
    """The normalisation that runs behind the last block, or nothing."""
    end = recording.of(last)[0].end
    behind = [
        call.path
        for call in recording.calls
        if call.start > end
        and _has_positions(call.shape)
        and "norm" in type(submodule(model, call.path)).__name__.lower()
    ]
    return behind[0] if behind else None


def submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _outermost(model: nn.Module, recording: Recording) -> list[str]:
    """The outermost modules that give maps or tokens, inside them where these are few.

    A sequence is looked into when it is a whole network (its parts give maps of several shapes) or a stack of
    transformer blocks; what gives no tensor, or only holds modules, always is. What embeds patches and
    what drops are left out where anything else is there.
    """
    shapes = {call.path: None if call.in_tuple else call.shape for call in recording.calls}

    def parts(path: str, *, of_vectors: bool = False) -> list[str]:
        names = [f"{path}.{name}".lstrip(".") for name, _ in model.get_submodule(path).named_children()]
        looked_into = {name for name in names if shapes.get(name) is None}
        if of_vectors:  # a whole network in this one
            looked_into |= {name for name in names if not _has_positions(shapes[name])}
        inside = {name: parts(name) if name in looked_into else [name] for name in names}
        return [part for name in names for part in inside[name] if _has_positions(shapes.get(part))]

    def unfolded(path: str) -> list[str]:
        found = {shapes[part] for part in parts(path)}
        is_stack = any(shape is not None and len(shape) == 3 for shape in found)
        sequence = isinstance(model.get_submodule(path), nn.Sequential | nn.ModuleList)
        return parts(path) if sequence and (len(found) > 1 or is_stack) else [path]

    paths = [part for path in parts("") or parts("", of_vectors=True) for part in unfolded(path)]
    if len(paths) < _FEW:
        paths = [deeper for path in paths for part in parts(path) or [path] for deeper in unfolded(part)]
    return [path for path in paths if not _embeds(model, path)] or paths


def _embeds(model: nn.Module, path: str) -> bool:
    """Whether a module makes the first tokens of an image, lies in one that does, or is a dropout, as behind them."""
    if isinstance(model.get_submodule(path), nn.Dropout):
        return True
    names = path.split(".")
    around = (model.get_submodule(".".join(names[:n])) for n in range(1, len(names) + 1))
    return any("embed" in type(module).__name__.lower() for module in around)


def _has_positions(shape: tuple[int, ...] | None) -> bool:
    """Whether a map or tokens, of more than one position."""
    return shape is not None and len(shape) in (3, 4) and sum(length > 1 for length in shape[1:]) > 1


def final_path(model: nn.Module, recording: Recording, paths: Sequence[str] | None) -> str | None:
    """The module that gives what `forward_features` gives; without that method the last hooked map or tokens."""
    found = [call for call in recording.calls if call.path and _has_positions(call.shape)]
    if isinstance(recording.features, torch.Tensor):
        same = [
            call
            for call in found
            if call.end < recording.features_end
            and call.shape == tuple(recording.features.shape)
            and call.address == recording.features.data_ptr()
        ]
        last_stage = stages(model)[-1:]
        same.sort(key=lambda call: (call.path in last_stage, call.path in (paths or ()), call.end))
        if same and (paths is None or same[-1].path in paths):
            return same[-1].path
        return None
    last = max(found, key=lambda call: call.end, default=None)
    if last is None or last.shape is None or paths is None:
        return None if last is None else last.path
    # A module around the last one gives the same tensor, and so does a permutation.
    same = [call for call in found if call.address == last.address and sorted(call.shape or ()) == sorted(last.shape)]
    return next((call.path for call in reversed(same) if call.path in paths), None)


def find_head_path(model: nn.Module, recording: Recording) -> str | None:
    """The linear layer, or, of a model without classes, the identity, whose output is the model's.

    Of an output of several values the `logits` count, or of a tuple the first.
    """
    output = recording.output
    if not isinstance(output, torch.Tensor):
        said = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
        output = said if said is not None else first_tensor(output)
    if not isinstance(output, torch.Tensor) or output.dim() != 2:
        return None
    last = [
        call.path
        for call in sorted(recording.calls, key=lambda call: call.end)
        if call.path and call.shape == tuple(output.shape) and call.address == output.data_ptr() and not call.in_tuple
    ]
    for kind in (nn.Linear, nn.Identity):
        of_kind = [path for path in last if isinstance(model.get_submodule(path), kind)]
        if of_kind:
            return of_kind[-1]
    return None


def count_prefix_tokens(model: nn.Module) -> int | None:
    """Class, distillation and register tokens of a model or of the network that it wraps; None where nothing says.

    timm says how many. Elsewhere they are parameters, and transformers' configurations say how many registers. A
    network of timm that has neither has none.
    """
    for module in model.modules():
        said = getattr(module, "num_prefix_tokens", None)
        if isinstance(said, int):
            return said
        of_module = dict(module.named_parameters(recurse=False))
        counts = {name: t.numel() // t.shape[-1] for name, t in of_module.items() if name in _PREFIX_PARAMETERS}
        if counts:
            registers = getattr(getattr(module, "config", None), "num_register_tokens", None)
            n_others = sum(n for name, n in counts.items() if name not in _REGISTERS)
            return n_others + (registers if registers is not None else sum(counts.values()) - n_others)
    return 0 if any(hasattr(module, "pretrained_cfg") for module in model.modules()) else None


_REGISTERS = ("register_tokens", "reg_token", "storage_tokens")
_PREFIX_PARAMETERS = (
    *("cls_token", "class_token", "class_embedding", "cls_embedding", "dist_token", "distillation_token"),
    *_REGISTERS,
)


def require_images(images: Any, n_channels: int | None = None) -> None:
    """Refuse what is no batch of images, in a line of ours instead of one of torch's.

    Raises:
        InputError: no tensor, not (B, C, H, W), no floating-point numbers, or another number of channels.
    """
    wanted = f"give a tensor (B, {n_channels or 'C'}, H, W) of floating-point numbers"
    if not isinstance(images, torch.Tensor):
        raise InputError(f"images are a {type(images).__name__}: {wanted}")
    if images.ndim != 4 or not images.is_floating_point() or n_channels not in (None, images.shape[1]):
        kind = str(images.dtype).removeprefix("torch.")
        hint = ", with [None] for a single image" if images.ndim == 3 else ""
        raise InputError(f"images are {kind} of shape {tuple(images.shape)}: {wanted}{hint}")


def default_images(model: nn.Module) -> torch.Tensor:
    """One black image of the size that the model says it wants, else of 64 x 64."""
    config = getattr(model, "default_cfg", None) or {}
    channels, height, width = config.get("input_size") or _DEFAULT_INPUT_SIZE
    for module in model.modules():  # a transformer may be built for another size than its architecture's own
        size = getattr(module, "img_size", None)
        if isinstance(size, tuple) and len(size) == 2 and hasattr(module, "grid_size"):
            height, width = size
            break
    else:
        height, width = _size_in_configuration(model) or (height, width)
    stem = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if stem is not None and stem.in_channels <= _STEM_CHANNELS:
        channels = stem.in_channels
    parameter = next(model.parameters(), torch.zeros(()))
    return torch.zeros(1, channels, height, width, device=parameter.device, dtype=parameter.dtype)


def _size_in_configuration(model: nn.Module) -> tuple[int, int] | None:
    """The size of images in a configuration of transformers, or that torchvision's and open_clip's transformers say."""
    if getattr(model, "default_cfg", None):
        return None
    for module in model.modules():
        size = getattr(getattr(module, "config", module), "image_size", None)
        if isinstance(size, int) and size:
            return size, size
        if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(length, int) for length in size):
            return size[0], size[1]
    return None


def at_another_size(model: nn.Module, images: torch.Tensor, n_views: int = 1) -> Recording | None:
    """The calls for two images, or exams of `n_views`, of another height, width and area.

    Of the same where the model takes no other; the attribute `image_size` of the recording says which.
    """
    height, width = int(images.shape[-2]), int(images.shape[-1])
    others = [size for size in _SMALL_SIZES if size[0] != height and size[1] != width and prod(size) != height * width]
    for size in (*others[:1], (height + 64, width + 32), (height, width)):
        try:
            return record(model, images.new_zeros(2 * n_views, images.shape[1], *size))
        except InputError:
            continue
    return None


def examine(
    model: nn.Module,
    path: str,
    probe: Recording,
    other: Recording | None,
    images: torch.Tensor,
    *,
    said: str | None = None,
    prefix_tokens: PrefixTokens = "drop",
    n_prefix: int | None = None,
) -> tuple[Call, HookLayout]:
    """The only call of a module in `probe`, and the layout of its output.

    Args:
        model: the model.
        path: the module.
        probe: a pass over `images`.
        other: what `at_another_size` gave.
        images: (B, 3, H, W).
        said: as `layout_of`'s.
        prefix_tokens: as for `HookedVisionModel`.
        n_prefix: how many prefix tokens, where the model does not say so.

    Raises:
        InputError: it cannot be hooked.
    """
    call = _hookable_call(path, probe, other, len(images))
    assert call.shape is not None
    return call, layout_of(
        model.get_submodule(path),
        path,
        call.shape,
        other.of(path)[0].shape if other is not None and other.of(path) else None,
        (int(images.shape[-2]), int(images.shape[-1])),
        other.image_size if other is not None else None,
        said=said,
        n_prefix=count_prefix_tokens(model) if n_prefix is None else n_prefix,
        prefix_tokens=prefix_tokens,
        model_format=getattr(model, "output_fmt", None),
    )


def _hookable_call(path: str, probe: Recording, other: Recording | None, n_images: int) -> Call:
    """The only call of a module, whose output is a tensor of images.

    An output that a later module overwrites in place is another matter: what a hook sees, and what a cache holds, would
    turn into something else during the same pass. torch counts such writes in the tensor's version.
    """
    runs = probe.of(path)
    if len(runs) != 1:
        raise InputError(f"{path!r} cannot be hooked: it ran {len(runs)} times in one forward pass, not once")
    call = runs[0]
    if call.shape is None:
        raise InputError(f"{path!r} cannot be hooked: it gives a {call.kind} and not a tensor")
    if len(call.shape) not in (2, 3, 4):
        raise InputError(f"{path!r} cannot be hooked: its output has {len(call.shape)} dimensions, not 2, 3 or 4")
    again = other.of(path)[0].shape if other is not None and other.of(path) else None
    if call.shape[0] != n_images or (again is not None and other is not None and again[0] != other.n_images):
        raise InputError(
            f"{path!r} cannot be hooked: its output {call.shape} has no axis for the images in front (windows, or the "
            "sequence first); hook the module around it"
        )
    return call


def overwritten_in_place(path: str) -> InputError:
    instead = f"the enclosing {path.rpartition('.')[0]!r}" if "." in path else "a later module"
    return InputError(
        f"{path!r} cannot be hooked: a later module overwrites its output in place; hook the output of {instead}, or "
        "wrap with overwritten='clone'"
    )


def default_hooks(model: nn.Module, images: Images, n_views: int = 1) -> list[str]:
    """timm's feature modules and the last map; of other networks the outermost modules that give maps or tokens."""
    recording = record(model, images)
    candidates = likely_paths(model, recording)
    probe, other = record(model, images, keep=set(candidates)), at_another_size(model, images, n_views)
    names = []
    for path in dict.fromkeys(candidates):
        try:
            call, _ = examine(model, path, probe, other, images)
        except InputError:
            continue
        if call.output._version == call.version:
            names.append(path)
    if not names:
        raise InputError(
            f"{type(model).__name__} does not say where its feature maps are; give hook_names (module paths), or wrap "
            "the network inside"
        )
    return names
