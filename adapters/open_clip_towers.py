"""Image towers of OpenCLIP, by its names, by repositories of the Hub, and from a config that was kept."""

__all__ = ["open_clip_tower", "Tower"]

import difflib
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from mammosae_plugin.adapters.sources import find_source
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json
from mammosae_plugin.hub_requests import REPOSITORY, first_sentence

_TEXT = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}  # a tower that is thrown away
_OF_TOWER = ("embed_dim", "vision_cfg", "quick_gelu")
_SCHEMES = ("hf-hub:", "local-dir:")


class Tower(NamedTuple):
    """An image tower.

    Attributes:
        network: the module, which gives the image's embedding (B, d).
        preprocessing: mean, std and size, as OpenCLIP says them.
        config: from which it can be made again: OpenCLIP's of the image side, and its preprocessing.
        source: where its weights come from.
    """

    network: nn.Module
    preprocessing: Mapping[str, Any]
    config: dict[str, Any]
    source: dict[str, Any]


def open_clip_tower(name: str, kept: Mapping[str, Any] | None, *, anew: bool) -> Tower:
    """The image tower of a model of OpenCLIP's.

    Args:
        name: "ViT-B-32", or with one of its weights "ViT-B-32/laion2b_s34b_b79k"; "hf-hub:owner/name", or "local-dir:"
            and a folder, with an open_clip_config.json.
        kept: the `config` of a tower that was made before, which is made again with random weights.
        anew: random weights; without, the name must be of certain ones.

    Raises:
        InputError: OpenCLIP is not installed, has no such model, or the name is of no weights.
    """
    try:
        import open_clip
    except ImportError as error:
        raise InputError(f"networks of OpenCLIP need its package: pip install open_clip_torch ({error})") from error
    if kept is not None:
        return _from_config(kept, {})
    config, tag, source = _config_of(name)
    if anew:
        return _from_config(config, source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: Any = open_clip.create_model(
                name.removesuffix(f"/{tag}"),
                pretrained=tag,
                force_quick_gelu=bool(config.get("quick_gelu")),
                require_pretrained=True,
            )
    except Exception as error:  # whatever a download or a config raises
        raise InputError(f"open_clip cannot make {name}: {first_sentence(error)}") from error
    return Tower(_vectors_of(model.visual), config["preprocessing"], config, source)


def _from_config(config: Mapping[str, Any], source: dict[str, Any]) -> Tower:
    import open_clip

    vision = {
        **config["vision_cfg"],
        **({"timm_model_pretrained": False} if "timm_model_name" in config["vision_cfg"] else {}),
    }
    try:
        model: Any = open_clip.CLIP(config["embed_dim"], vision, dict(_TEXT), quick_gelu=bool(config.get("quick_gelu")))
    except Exception as error:  # whatever an architecture raises
        raise InputError(f"open_clip cannot make an image tower of {vision}: {first_sentence(error)}") from error
    return Tower(_vectors_of(model.visual), config["preprocessing"], dict(config), source)


def _vectors_of(tower: nn.Module) -> nn.Module:
    """The tower, giving its vector alone, where it would give its tokens beside it."""
    if hasattr(tower, "output_tokens"):
        tower.output_tokens = False  # type: ignore[assignment]
    return tower.eval()


def _config_of(name: str) -> tuple[dict[str, Any], str | None, dict[str, Any]]:
    """The image side of a model's config, the tag of its weights, and where they come from."""
    import open_clip

    preprocessing: dict[str, Any] = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    source: dict[str, Any] = {}
    tag: str | None = None
    if name.startswith(_SCHEMES):
        scheme, _, place = name.partition(":")
        file = "open_clip_config.json"
        found = find_source(place, file) if scheme == "local-dir" else find_source(f"hub://{place}/{file}")
        said: Any = read_json(found.path)
        if not isinstance(said, Mapping) or "vision_cfg" not in (said.get("model_cfg") or {}):
            raise InputError(f"the {file} of {place} has no model_cfg with a vision_cfg, as OpenCLIP writes it")
        model, preprocessing = said["model_cfg"], preprocessing | dict(said.get("preprocess_cfg") or {})
        source = {"hub": [record]} if (record := found.hub_record()) else {}
    else:
        architecture, _, tag = name.partition("/")
        model = open_clip.get_model_config(architecture)
        if model is None:
            near = difflib.get_close_matches(architecture, open_clip.list_models(), n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            hint = f"; a repository is open_clip:hf-hub:{name}" if REPOSITORY.fullmatch(name) else hint
            raise InputError(f"{architecture!r} is no model that open_clip has{hint}")
        known = open_clip.list_pretrained_tags_by_model(architecture)
        if tag and tag not in known:
            raise InputError(
                f"open_clip has no weights {tag!r} of {architecture}; it has {', '.join(known) or 'none of it'}"
            )
        if tag:
            own = open_clip.get_pretrained_cfg(architecture, tag)
            model = {**model, "quick_gelu": bool(own.get("quick_gelu", model.get("quick_gelu")))}
            preprocessing |= {key: own[key] for key in ("mean", "std") if key in own}
            source = {"weights": tag}
    config = {key: model[key] for key in _OF_TOWER if key in model}
    preprocessing = {key: list(preprocessing[key]) for key in ("mean", "std")}
    return {**config, "preprocessing": preprocessing}, tag or None, source
