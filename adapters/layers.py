"""Which layers of a model can carry an SAE: what `mammosae layers` prints."""

__all__ = ["describe_layers", "Layer", "layers_table", "MAMMOGRAM_SIZE", "open_model"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from mammosae_plugin.adapters.architectures import new_backbone_classifier
from mammosae_plugin.adapters.embedders import with_random_weights
from mammosae_plugin.adapters.hook_names import hook_name_of
from mammosae_plugin.adapters.hook_points import (
    at_another_size,
    count_prefix_tokens,
    default_hooks,
    default_images,
    examine,
)
from mammosae_plugin.adapters.layouts import HookLayout, settle_grids
from mammosae_plugin.adapters.loading import load_classifier
from mammosae_plugin.adapters.mammo_clip import MammoClipClassifier
from mammosae_plugin.adapters.names import network_name
from mammosae_plugin.adapters.recording import Recording, record
from mammosae_plugin.adapters.timm_classifier import new_timm_network
from mammosae_plugin.errors import InputError

MAMMOGRAM_SIZE = (1520, 912)


@dataclass(frozen=True)
class Layer:
    """One module whose output can be hooked, or cannot.

    Attributes:
        hook_name: the full hook name.
        aliases: other names of the layer.
        kind: "map", "tokens" or "vector"; empty where the module cannot be hooked.
        shape: of the value shown at the hook point, without batch: (h, w, C), (n, C) or (C,).
        stride: pixels of the image per position, (vertical, horizontal), where there is a grid.
        problem: why the module cannot be hooked; empty where it can.
    """

    hook_name: str
    aliases: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    stride: tuple[float, float] | None
    problem: str = ""


def open_model(name: str, *, weights: str | None = None, seed: int = 0) -> nn.Module:
    """The model behind a name that a user gives, in evaluation mode.

    Args:
        name: as `network_name` reads it: a checkpoint that `load_classifier` reads (a path, or
            "hub://owner/name/file"); "owner/name", "transformers:NAME" or a folder of transformers; "hf-hub:owner/name"
            or a name of timm's; "open_clip:NAME"; "torchvision:NAME"; "function:package.module:function".
        weights: "pretrained" or "random". By default what a repository, a folder or a file holds, and random ones of an
            architecture that is named alone.
        seed: of random weights.

    Raises:
        InputError: there is no such network, or its weights cannot be had.
    """
    library, there, has_weights = network_name(name)
    if library == "file":
        network = load_classifier(there).network
        return with_random_weights(network, seed) if weights == "random" else network
    chosen = weights or ("pretrained" if has_weights else "random")
    try:
        if library == "timm":
            return new_timm_network(there, weights=chosen, seed=seed)
        if library == "function" and chosen == "random":
            return with_random_weights(new_backbone_classifier("function", there).network, seed)
        return new_backbone_classifier(library, there, weights=chosen, seed=seed).network  # type: ignore[arg-type]
    except InputError as error:
        if weights is None and chosen == "pretrained" and library != "function":
            raise InputError(f"{error}; or take random weights (--random), which need the config alone") from error
        raise


def describe_layers(model: nn.Module, *, image_size: tuple[int, int] | None = None, every: bool = False) -> list[Layer]:
    """The layers of a model that can be hooked, in the order in which they run.

    Args:
        model: an image model that is not wrapped.
        image_size: (H, W) of the images; by default 1520 x 912 for Mammo-CLIP's own checkpoints, else what the model
            says it wants.
        every: every module, with the reason for those that cannot be hooked, instead of the default list.

    Raises:
        InputError: the model cannot run on images of that size, or has no layer that it could list.
    """
    images = default_images(model)
    if image_size is None and isinstance(model, MammoClipClassifier) and "variant" in model.source:
        image_size = MAMMOGRAM_SIZE
    if image_size is not None:
        if min(image_size) < 1:
            raise InputError(f"images of {image_size[0]} x {image_size[1]} pixels do not exist; give height and width")
        images = images.new_zeros(1, images.shape[1], *image_size)
    aliases = getattr(model, "layer_aliases", None) or {}
    listed = list(aliases.values()) or ([] if every else default_hooks(model, images))
    paths: Sequence[str] = [path for path, _ in model.named_modules() if path] if every else listed
    probe, other = record(model, images, keep=set(paths)), at_another_size(model, images)
    found: dict[str, HookLayout] = {}
    problems: dict[str, str] = {}
    for path in paths:
        try:
            call, found[path] = examine(model, path, probe, other, images)
            if call.output._version != call.version:
                problems[path] = "overwritten in place by a later module (needs overwritten='clone')"
        except InputError as error:
            problems[path] = str(error).removeprefix(f"{path!r} cannot be hooked: ")
    # A listing counts what can be counted and refuses nothing: wrapping does.
    settle_grids(model, found, images, n_prefix=count_prefix_tokens(model) or 0)
    return [
        _described(path, found.get(path), probe, problems.get(path, ""), aliases)
        for path in sorted(paths, key=lambda path: max((call.end for call in probe.of(path)), default=-1))
    ]


def _described(
    path: str, layout: HookLayout | None, probe: Recording, problem: str, aliases: Mapping[str, str]
) -> Layer:
    names = tuple(alias for alias, target in aliases.items() if target == path)
    hook_name = hook_name_of(path)
    if layout is None:
        return Layer(hook_name, names, "", (), None, problem)
    shape = tuple(layout.show(probe.of(path)[0].output).shape[1:])
    return Layer(hook_name, names, layout.kind, shape, layout.stride, problem)


def layers_table(layers: Sequence[Layer]) -> str:
    """The layers as text, one per line."""
    aliased = any(layer.aliases for layer in layers)
    rows = [("hook name", "alias" if aliased else "", "kind", "shape shown", "stride", "")]
    for layer in layers:
        shape = " x ".join(map(str, layer.shape))
        stride = "" if layer.stride is None else _stride_text(layer.stride)
        rows.append((layer.hook_name, ", ".join(layer.aliases), layer.kind, shape, stride, layer.problem))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False) if width]
        lines.append("  ".join([*cells, row[5]]).rstrip())
    return "\n".join(lines)


def _stride_text(stride: tuple[float, float]) -> str:
    one, other = (f"{value:.4g}" for value in stride)
    return one if one == other else f"{one}, {other}"
