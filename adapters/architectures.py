"""Architectures of torchvision, transformers and OpenCLIP, and what somebody's function makes, as classifiers."""

__all__ = [
    "LIBRARIES",
    "Library",
    "described_network",
    "new_backbone_classifier",
    "preprocessing_of_transformers",
]

import difflib
import importlib
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from mammosae_plugin.adapters.backbone_classifier import (
    BackboneClassifier,
    Readable,
    Upsampled,
    cannot_run,
    head_in,
    no_linear_head,
    put_head,
)
from mammosae_plugin.adapters.checkpoints import (
    CheckpointFormatError,
    check_keys,
)
from mammosae_plugin.adapters.hook_points import at_another_size, default_images
from mammosae_plugin.adapters.open_clip_towers import open_clip_tower
from mammosae_plugin.adapters.plain_weights import prefix_hint, state_in, with_counters
from mammosae_plugin.adapters.preprocessing import IMAGENET, Number, Preprocessing
from mammosae_plugin.adapters.recording import any_size, record
from mammosae_plugin.adapters.sources import find_source, origin_of
from mammosae_plugin.arguments import one_of, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, read_json
from mammosae_plugin.hub_requests import first_sentence

logger = logging.getLogger(__name__)

Library = Literal["torchvision", "transformers", "open_clip", "function"]
LIBRARIES: tuple[Library, ...] = get_args(Library)

_GRAY = Preprocessing(mean=0.449, std=0.226, scale="full_range", channels=1)  # ImageNet's, averaged over channels
_SMALL = (64, 64)
_AUXILIARY_HEADS = ("aux1", "aux2", "AuxLogits")
_ROUNDING = 1e-6


@dataclass
class _Built:
    """A network as its library makes it, readable as a classifier.

    Attributes:
        network: the module, in evaluation mode.
        preprocessing: what the library says of its weights, but the size.
        own_size: (H, W) that the library makes it for, where it says one.
        arguments: what it was made with, in plain JSON, so that it can be made again.
        source: where its weights come from.
        unset: weights that the library left random where it was asked for its own.
        left_out: how the weights begin that a file may hold and the network has no place for.
        head_path: module path of the linear head, or of the identity in its place.
        width: how many numbers the head reads.
    """

    network: nn.Module
    preprocessing: Preprocessing
    own_size: tuple[int, int] | None
    arguments: dict[str, Any]
    source: dict[str, Any]
    unset: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    head_path: str = ""
    width: int = 0


def new_backbone_classifier(
    library: Library,
    architecture: str,
    n_class: int | None = None,
    *,
    weights: str | os.PathLike[str] = "pretrained",
    arguments: Mapping[str, Any] | None = None,
    image_size: tuple[int, int] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    seed: int = 0,
    prefix: str = "",
) -> BackboneClassifier:
    """A network of torchvision, transformers or OpenCLIP, or one that a function makes, in evaluation mode.

    Args:
        library: "torchvision", "transformers", "open_clip" or "function".
        architecture: torchvision's name ("resnet50"); the name of a model of transformers on the Hub, or its folder;
            OpenCLIP's name with one of its weights ("ViT-B-32/openai"), or "hf-hub:owner/name", whose image tower is
            taken; or "package.module:function", which is imported and called and must give a torch.nn.Module.
        n_class: outputs of the head: None keeps the one that is there, 0 leaves it out, and a head of as many outputs
            as another number says is random unless the weights have one of as many.
        weights: "pretrained", the library's own, or of a function what it gives; "random"; or a file of a state dict
            under the network's own names: safetensors, or what `torch.save` wrote, on this machine or
            "hub://owner/name/file".
        arguments: of torchvision's builder or of the function, or settings of transformers' config; plain JSON. Of
            torchvision `upsample_to` too: (H, W) to which the network itself brings its images, see `Upsampled`.
        image_size: (H, W) of the images. A network that is built for another size gets them stretched to that one,
            which its preprocessing says.
        preprocessing: mean, std, scale, channels or size in place of what the library says of the weights.
        seed: of random weights, or of a random head.
        prefix: what stands in a file before the names of the network's tensors, such as "image_encoder."; the others
            are left out.

    Raises:
        InputError: there is no such architecture or function, it cannot be made or has no such weights, its output does
            not come from one linear layer, it does not take such images, or the file does not fit.
        UnsafeCheckpointError: the file asks for code; none of it was run.
    """
    one_of(library, "library", LIBRARIES)
    n_class = None if n_class is None else whole(n_class, "n_class", least=0)
    seed = whole(seed, "seed", least=0)
    file = None if weights in ("pretrained", "random") else find_source(weights)
    if library == "function" and weights == "random":
        raise InputError(
            f"weights of {architecture} are what the function gives, or a file; say by its arguments that "
            "they are to be random"
        )
    given = dict(preprocessing or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = _build(
            library,
            architecture,
            dict(arguments or {}),
            functions=(architecture,),
            anew=file is not None or weights == "random",
            channels=given.get("channels"),
        )
        state = None if file is None else state_in(file.path, prefix)
        if n_class is None and state is not None:  # the head that the file has
            head = state.get(
                f"{built.head_path}.weight", state.get(f"{built.head_path}.weight".removeprefix("backbone."))
            )
            n_class = len(head) if isinstance(head, torch.Tensor) else 0
        if n_class is None and any(name.startswith(f"{built.head_path}.") for name in built.unset):
            n_class = 0  # a head that the weights lack would be random
        if n_class is not None:
            put_head(built.network, built.head_path, built.width, n_class)
    if built.unset and (unset := [name for name in built.unset if not name.startswith(f"{built.head_path}.")]):
        raise InputError(
            f"{architecture} lacks {len(unset)} of its weights, such as {unset[0]}; give weights: random, or a file"
        )
    source: dict[str, Any] = {"kind": library, "variant": _shown(architecture), **built.source}
    if state is not None and file is not None:
        _load(built, state, where=str(weights), what=f"a {_shown(architecture)}")
        source |= origin_of([file])
    elif weights == "random":
        source["seed"] = seed
    settings, fixed = _fitted(built, _shown(architecture), given, image_size)
    return BackboneClassifier(
        built.network.eval(),
        library=library,
        architecture=_shown(architecture),
        arguments=built.arguments,
        preprocessing=settings,
        image_size=fixed,
        source=source,
        head_path=built.head_path,
    )


def described_network(
    said: Mapping[str, Any], source: Mapping[str, Any], functions: Collection[str]
) -> BackboneClassifier:
    """The network of a `BackboneClassifier.description`, with random weights.

    Args:
        said: the description.
        source: where the weights come from that it will be given.
        functions: those that may be imported and called; a file cannot name one by itself.

    Raises:
        InputError: the description names another function, or the library cannot make the network.
    """
    size, arguments = said["image_size"], dict(said.get("arguments", {}))
    preprocessing = Preprocessing.described(said["preprocessing"])
    built = _build(said["library"], said["architecture"], arguments, functions=functions, anew=True)
    put_head(built.network, built.head_path, built.width, said["n_class"])
    fixed = None if size is None else (int(size[0]), int(size[1]))
    _say_size(built, fixed or _SMALL, preprocessing.channels)
    return BackboneClassifier(
        built.network.eval(),
        library=said["library"],
        architecture=said["architecture"],
        arguments=arguments,
        preprocessing=preprocessing,
        image_size=fixed,
        source=source,
        head_path=built.head_path,
    )


def _shown(architecture: str) -> str:
    """The architecture's name; of a folder its own, without the path."""
    place = architecture.removeprefix("local-dir:")
    return Path(place).name if _is_folder(place) else architecture


def _is_folder(name: str) -> bool:
    return local_path(name).is_dir()


def _build(
    library: str,
    architecture: str,
    arguments: dict[str, Any],
    *,
    functions: Collection[str] = (),
    anew: bool = False,
    channels: int | None = None,
) -> _Built:
    """A network as its library makes it, with its head found.

    Args:
        library: as for `new_backbone_classifier`.
        architecture: the same.
        arguments: the same; of a saved network of transformers the whole config under "config".
        functions: those that may be imported and called.
        anew: without the library's own weights.
        channels: of its images, where it can be made for other ones.

    Raises:
        InputError: as `new_backbone_classifier`.
    """
    if library == "function":
        built = _from_function(architecture, arguments, functions)
    elif library == "transformers":
        built = _from_transformers(architecture, arguments, anew=anew, channels=channels)
    elif library == "torchvision":
        built = _from_torchvision(architecture, arguments, anew=anew)
    elif library == "open_clip":
        built = _from_open_clip(architecture, arguments, anew=anew)
    else:
        raise InputError(f"no network of {library!r} can be made by this release; update it")
    built.network.eval()
    if library == "function":
        any_size(built.network)  # for good: the classifier itself is given images too
    images, what = default_images(built.network), f"the network {_shown(architecture)}"
    if built.own_size is not None:
        images = images.new_zeros(1, images.shape[1], *built.own_size)
        built.network.default_cfg = {"input_size": tuple(images.shape[1:])}  # type: ignore[assignment]
    try:
        output = record(built.network, images).output
    except InputError as error:
        raise cannot_run(what, images, error.__cause__ if isinstance(error.__cause__, Exception) else error) from error
    if hasattr(output, "logits") or not isinstance(output, torch.Tensor) or output.dim() != 2:
        built.network = _readable(built, gives_logits=isinstance(getattr(output, "logits", None), torch.Tensor))
    try:
        built.head_path = (
            "head"
            if hasattr(built.network, "gives_logits") and not built.network.gives_logits
            else head_in(built.network, _shown(architecture))
        )
    except InputError:
        if library not in ("function", "open_clip"):
            raise
        built.network = _readable(built, gives_logits=False)  # it gives features, and no logits
        built.head_path = "head"
    if not built.head_path:
        raise no_linear_head(_shown(architecture))
    head = built.network.get_submodule(built.head_path)
    if isinstance(head, nn.Linear):
        built.width = head.in_features
    else:
        with torch.no_grad():
            built.width = int(built.network(images).shape[1])
    return built


def _readable(built: _Built, *, gives_logits: bool) -> Readable:
    wrapped = Readable(built.network, gives_logits=gives_logits).eval()
    for name in ("default_cfg", "num_prefix_tokens"):
        if hasattr(built.network, name):
            setattr(wrapped, name, getattr(built.network, name))
    return wrapped


def _fitted(
    built: _Built, what: str, given: Mapping[str, Any], image_size: tuple[int, int] | None
) -> tuple[Preprocessing, tuple[int, int] | None]:
    """The preprocessing of a network for images of a size, and the only size that it takes.

    Raises:
        InputError: it takes no such images.
    """
    size: Any = given.get("size")
    settings = replace(built.preprocessing, **{name: value for name, value in given.items() if name != "size"})
    wanted = tuple(size or image_size or built.own_size or _SMALL)
    example = default_images(built.network)
    images = example.new_zeros(1, settings.channels, *wanted)
    resized = None if size is None else wanted
    try:
        record(built.network, images)
    except InputError as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        if size is not None or built.own_size is None or wanted == built.own_size:
            raise cannot_run(what, images, cause) from error
        images = images.new_zeros(1, settings.channels, *built.own_size)
        try:
            record(built.network, images)
        except InputError:
            raise cannot_run(what, images, cause) from error
        logger.warning(
            "%s takes no images of %d x %d: they are stretched to its own %d x %d",
            *(what, *wanted, *built.own_size),
        )
        resized = built.own_size
    taken = (int(images.shape[-2]), int(images.shape[-1]))
    other = at_another_size(built.network, images)
    is_fixed = other is None or other.image_size == taken
    _say_size(built, taken if is_fixed else _SMALL, settings.channels)
    return replace(settings, size=resized), taken if is_fixed else None


def _say_size(built: _Built, size: tuple[int, int], channels: int) -> None:
    """Let what looks at the network take images of this size, or of the library's where it takes no such ones."""
    for shape in (size, built.own_size or size):
        built.network.default_cfg = {"input_size": (channels, *shape)}  # type: ignore[assignment]
        with suppress(InputError):
            record(built.network, default_images(built.network))
            return


def _load(built: _Built, state: Mapping[str, torch.Tensor], *, where: str, what: str) -> None:
    """Put weights into a network; a head of other classes stays as it is.

    Raises:
        CheckpointFormatError: the keys or shapes are others.
    """
    network = built.network
    own = network.state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.startswith(built.left_out)}
    if isinstance(network, Readable) and not any(name.startswith("backbone.") for name in state):
        state = {f"backbone.{name}": tensor for name, tensor in state.items()}
    head = f"{built.head_path}."
    of_head = [name for name in own if name.startswith(head)]
    keeps_head = bool(of_head) and all(name in state and state[name].shape == own[name].shape for name in of_head)
    state = {name: tensor for name, tensor in state.items() if keeps_head or not name.startswith(head)}
    expected = {name: tensor.shape for name, tensor in own.items() if keeps_head or not name.startswith(head)}
    if prefix := prefix_hint(state, (name.removeprefix("backbone.") for name in expected)).removeprefix("backbone."):
        raise CheckpointFormatError(f"{where} is of a larger model than {what}; give its prefix, such as {prefix!r}")
    state = with_counters(state, own)
    check_keys(state, expected, where=where, what=what)
    network.load_state_dict(state, strict=False)


def _from_function(architecture: str, arguments: dict[str, Any], functions: Collection[str]) -> _Built:
    """What a function of somebody's gives; nothing is imported that was not named by the caller."""
    if architecture not in functions:
        raise InputError(
            f"the file is of a network that the function {architecture} makes, and files are not trusted to name code: "
            "name it yourself: in a study as the model's `function`, to `mammosae publish model` with --function, in "
            "Python with functions=[...] of load_classifier or prepare_model"
        )
    module_name, _, name = architecture.partition(":")
    if not module_name or not name.isidentifier():
        raise InputError(f"{architecture!r} is no function; write package.module:function")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{architecture}: no module {error.name} is there to import; install its package, or put its folder on "
            "PYTHONPATH"
        ) from error
    except Exception as error:  # whatever foreign code raises
        raise InputError(f"{architecture}: importing {module_name} fails: {_line(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        near = difflib.get_close_matches(name, [one for one in dir(module) if callable(getattr(module, one))], n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"{module_name} has no function {name}{hint}")
    try:
        network = function(**arguments)
    except Exception as error:
        raise InputError(f"{architecture} fails with {arguments or 'no arguments'}: {_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{architecture} gives a {type(network).__name__} and no torch.nn.Module")
    channels = default_images(network).shape[1]
    return _Built(network, _GRAY if channels == 1 else IMAGENET, None, arguments, {})


def _line(error: Exception) -> str:
    said = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _from_torchvision(architecture: str, arguments: dict[str, Any], *, anew: bool) -> _Built:
    from torchvision import models

    known = models.list_models(module=models)
    if architecture not in known:
        near = difflib.get_close_matches(architecture.lower(), known, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"{architecture!r} is no classifier that torchvision has{hint}")
    weights = models.get_model_weights(architecture).DEFAULT
    said = weights.transforms()
    upsampled = arguments.get("upsample_to")
    settings = {name: value for name, value in arguments.items() if name != "upsample_to"}
    try:
        network = models.get_model(architecture, weights=None if anew else weights, **settings)
    except Exception as error:  # whatever a builder or a download raises
        way_out = "" if anew else "; give a file of its weights, or take random ones"
        raise InputError(f"torchvision cannot make {architecture}: {_line(error)}{way_out}") from error
    beside = [name for name in _AUXILIARY_HEADS if hasattr(network, name)]
    if beside:  # outputs of training beside the logits; no study trains them
        network.aux_logits = False
        for name in beside:
            setattr(network, name, None)
    if "transform_input" in vars(network):  # which comes with the library's weights, and decides what they see
        arguments = {**arguments, "transform_input": bool(network.transform_input)}
    if isinstance(network, models.SqueezeNet):  # a convolution tells its classes: it has features, and no linear head
        network, beside = nn.Sequential(OrderedDict(features=network.features)), ["classifier"]
    if upsampled is not None:
        network, beside = Upsampled(network, tuple(upsampled)), [f"backbone.{name}" for name in beside]
    mean, std = (tuple(float(value) for value in values) for values in (said.mean, said.std))
    own = int(getattr(network, "image_size", None) or said.crop_size[0])
    return _Built(
        network,
        Preprocessing(_three(mean), _three(std), "full_range"),
        (own, own),
        arguments,
        {} if anew else {"weights": weights.name},
        left_out=tuple(f"{name}." for name in beside),
    )


def _from_open_clip(architecture: str, arguments: dict[str, Any], *, anew: bool) -> _Built:
    kept = arguments.get("config")
    if unknown := [name for name in arguments if name != "config"]:
        raise InputError(f"a network of open_clip has no arguments {', '.join(unknown)}; leave them out")
    if not anew and kept is None and "/" not in architecture and ":" not in architecture:
        raise InputError(
            f"open_clip:{architecture} is an architecture alone; name its weights too, as open_clip:{architecture}/TAG "
            "(open_clip.list_pretrained() has the tags), or take random ones, or a file"
        )
    tower = open_clip_tower(architecture, kept, anew=anew)
    size: Any = getattr(tower.network, "image_size", None)
    own = (size, size) if isinstance(size, int) else None if size is None else (int(size[0]), int(size[1]))
    mean, std = (_three(tower.preprocessing[name]) for name in ("mean", "std"))
    return _Built(tower.network, Preprocessing(mean, std, "full_range"), own, {"config": tower.config}, tower.source)


def _three(values: Any) -> Number:
    first, second, third = map(float, values)
    return first, second, third


def _from_transformers(name: str, arguments: dict[str, Any], *, anew: bool, channels: int | None = None) -> _Built:
    try:
        from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
        from transformers.utils.hub import cached_file
    except ImportError as error:
        raise InputError(f"networks of transformers need its package: pip install transformers ({error})") from error
    settings, stored = dict(arguments), None
    if channels is not None:
        settings["num_channels"] = channels
    info: Mapping[str, Any] = {}
    try:
        if (config_said := settings.pop("config", None)) is not None:  # of a file of ours
            config = AutoConfig.for_model(**config_said)
        else:
            config = AutoConfig.from_pretrained(name, **settings)
            stored = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        unknown = sorted(set(settings) - set(config.to_dict()))
        if unknown:
            raise InputError(f"the config of {_shown(name)} has no {', '.join(unknown)} (model's arguments)")
        config.architectures = list(config.architectures or [])  # which some mappings iterate over
        has_head = config.model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
        maker: Any = AutoModelForImageClassification if has_head else AutoModel
        if anew:
            network = maker.from_config(config)
        else:
            network, info = maker.from_pretrained(
                name, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=False
            )
    except InputError:
        raise
    except Exception as error:  # of a name, a download, a config or weights
        said = first_sentence(error)
        way_out = "give the name of a repository that can be read, or a folder that holds its config.json"
        if not anew:
            way_out = "give the folder of a model, or take random weights (--random; a study's weights: random)"
        way_out = "" if _is_folder(name) and anew else f"; {way_out}"
        raise InputError(f"transformers cannot make {_shown(name)}: {said}{way_out}") from error
    described = json.loads(config.to_json_string(use_diff=False))
    model_type = config.model_type
    if hasattr(config, "vision_config") and isinstance(getattr(network, "vision_model", None), nn.Module):
        network, config = network.vision_model, config.vision_config  # the image tower of a model that has a text tower
    own = getattr(config, "image_size", None)
    size = (own, own) if isinstance(own, int) else tuple(own) if isinstance(own, (list, tuple)) else None
    names = [key for key, _ in network.named_parameters()]
    prefix = sum(
        any(key.endswith(token) for key in names) for token in ("cls_token", "class_embedding", "distillation_token")
    )
    if prefix or isinstance(getattr(config, "patch_size", None), int):
        network.num_prefix_tokens = prefix + int(getattr(config, "num_register_tokens", 0) or 0)
    for key in ("_name_or_path", "transformers_version", "id2label", "label2id"):
        described.pop(key, None)
    return _Built(
        network,
        preprocessing_of_transformers(
            {} if stored is None else read_json(stored), int(getattr(config, "num_channels", 3) or 3)
        ),
        size,
        {"config": {**described, "model_type": model_type}},
        {},
        tuple(f"backbone.{key}" for key in info.get("missing_keys", ())),
    )


def preprocessing_of_transformers(said: Mapping[str, Any], channels: int = 3) -> Preprocessing:
    """What a `preprocessor_config.json` says of mean, deviation and scaling; ImageNet's where it says nothing."""
    mean, std = (said.get(name) for name in ("image_mean", "image_std"))
    if said.get("do_normalize") is False:
        mean, std = [0.0] * channels, [1.0] * channels
    if not (isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) == channels):
        return _GRAY if channels == 1 else IMAGENET
    scale = 255 * float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 255.0
    scale = 1.0 if abs(scale - 1) < _ROUNDING else scale
    mean, std = ([float(value) / scale for value in values] for values in (mean, std))
    if channels == 1:
        return Preprocessing(mean[0], std[0], "full_range", 1)
    return Preprocessing(_three(mean), _three(std), "full_range")
