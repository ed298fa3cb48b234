"""Any of timm's architectures as a classifier that is trained and studied."""

__all__ = ["new_timm_classifier", "new_timm_network", "TimmClassifier"]

import copy
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
from torch import nn
from typing_extensions import Self

from mammosae_plugin.adapters.backbone_classifier import BackboneClassifier, cannot_run, no_linear_head
from mammosae_plugin.adapters.checkpoints import CheckpointFormatError
from mammosae_plugin.adapters.classifier import encoder_state
from mammosae_plugin.adapters.plain_weights import prefix_hint, state_in, with_counters
from mammosae_plugin.adapters.preprocessing import Preprocessing
from mammosae_plugin.adapters.recording import record
from mammosae_plugin.adapters.sources import find_source, origin_of
from mammosae_plugin.arguments import whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json


class TimmClassifier(BackboneClassifier):
    """A network of timm's with a linear head, or without one.

    Hook points are named by timm's module paths: `HookedVisionModel(classifier.network, ["layer3"])`.

    Attributes:
        network: timm's model; its attribute `source` is the classifier's.
        architecture: timm's name, with the tag of the pretrained weights where it was given.
        image_size: (H, W) of the only images that it takes, where the architecture is built for one size.
        preprocessing: by default timm's: over 255, minus the mean, over the deviation of its pretrained weights.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        architecture: str,
        image_size: tuple[int, int] | None = None,
        preprocessing: Preprocessing | None = None,
        arguments: Mapping[str, Any] | None = None,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        """Adopt a model that `timm.create_model` made.

        Raises:
            InputError: its head is not one linear layer.
        """
        super().__init__(
            network,
            library="timm",
            architecture=architecture,
            preprocessing=preprocessing or _preprocessing_of(network),
            arguments=arguments,
            image_size=image_size,
            source=source,
            head_path=_head_of(network, architecture),
        )

    @classmethod
    def described(cls, said: Mapping[str, Any], source: Mapping[str, Any]) -> Self:
        """The network of a `description`, with random weights."""
        size, arguments = said["image_size"], dict(said.get("arguments", {}))
        image_size = None if size is None else (int(size[0]), int(size[1]))
        preprocessing = Preprocessing.described(said["preprocessing"])
        return cls(
            _create(
                said["architecture"], said["n_class"], image_size, **arguments, **_of_channels(preprocessing.channels)
            ),
            architecture=said["architecture"],
            image_size=image_size,
            preprocessing=preprocessing,
            arguments=arguments,
            source=source,
        )

    def description(self) -> dict[str, Any]:
        """What the network is but its weights, in plain JSON."""
        said = super().description()
        return {"kind": "timm", **{name: value for name, value in said.items() if name not in ("kind", "library")}}

    @property
    def _identity(self) -> list[Any]:
        own = [self.arguments] if self.arguments else []
        return [self.architecture.split(".")[0], *own]

    def with_head(self, n_class: int) -> Self:
        """A copy with a fresh linear head of `n_class` outputs, drawn from torch's global random state.

        Raises:
            InputError: the logits do not come from one linear layer.
        """
        made = copy.copy(self)
        made.network = copy.deepcopy(self.network)
        made.network.reset_classifier(n_class)  # type: ignore[operator]
        made.head_path = _head_of(made.network, self.architecture)
        made.require_linear_head()
        return made

    def regularise(self, *, dropout: float, drop_connect: float) -> None:
        """Make the network anew with timm's `drop_rate` and `drop_path_rate`, which are not in the state dict.

        Raises:
            InputError: the architecture has no such setting.
        """
        wanted = {"drop_rate": dropout, "drop_path_rate": drop_connect}
        settings: dict[str, Any] = {name: value for name, value in wanted.items() if value}
        if not settings:
            return
        settings = {**self.arguments, **settings, **_of_channels(self.preprocessing.channels)}
        network = _create(self.architecture, self.n_class, self.image_size, **settings)
        network.load_state_dict(self.network.state_dict())
        network.source = self.source  # type: ignore[assignment]
        self.network = network.to(next(self.network.parameters()).device)


def new_timm_classifier(
    architecture: str,
    n_class: int | None = 0,
    *,
    weights: str | os.PathLike[str] = "random",
    arguments: Mapping[str, Any] | None = None,
    image_size: tuple[int, int] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    seed: int = 0,
    prefix: str = "",
) -> TimmClassifier:
    """One of timm's architectures, in evaluation mode.

    Args:
        architecture: timm's name, such as "resnet18" or "vit_base_patch16_224.augreg_in21k"; or "hf-hub:owner/name", a
            repository of the Hub, or "local-dir:" and a folder, whose config.json names an architecture of timm's.
        n_class: outputs of the head, which is random unless the weights have one of as many; 0 for none; None for those
            of the weights.
        weights: "random"; "pretrained", which timm fetches from the Hub or finds in its cache; or a file of a state
            dict under timm's names: safetensors, or what `torch.save` wrote, on this machine or
            "hub://owner/name/file".
        arguments: further ones of `timm.create_model`, in plain JSON.
        image_size: (H, W), for architectures that are built for one size (many transformers); others take any.
        preprocessing: mean, std, scale, channels or size (which images are stretched to) in place of timm's.
        seed: of random weights, or of a random head.
        prefix: what stands in a file before the names of the network's tensors, such as "image_encoder."; the others
            are left out.

    Raises:
        InputError: timm has no such architecture, cannot make it for that size, or has no such weights; the head is not
            one linear layer; the file does not fit.
        UnsafeCheckpointError: the file asks for code; none of it was run.
    """
    n_class, seed = None if n_class is None else whole(n_class, "n_class", least=0), whole(seed, "seed", least=0)
    said = _said_of(architecture)
    given, asked = dict(preprocessing or {}), {**said.arguments, **dict(arguments or {})}
    image_size = given.get("size") or image_size
    fixed: tuple[int, int] | None = None
    if said.config.get("fixed_input_size"):
        fixed = image_size or (int(said.config["input_size"][1]), int(said.config["input_size"][2]))
    source: dict[str, Any] = {"kind": "timm", "variant": said.shown}
    settings = {**asked, **said.settings, **_of_channels(given.get("channels", 3))}
    if weights == "random":
        network, source = _create(said.name, n_class, fixed, seed=seed, **settings), {**source, "seed": seed}
    elif weights == "pretrained":
        network = _create(said.name, n_class, fixed, seed=seed, pretrained=True, **settings)
        source |= said.origin
    else:
        file = find_source(weights)
        state = state_in(file.path, prefix)
        if n_class is None:
            head = state.get(f"{said.config.get('classifier') or ''}.weight")
            n_class = len(head) if isinstance(head, torch.Tensor) else 0
        settings["pretrained_cfg_overlay"] = {"state_dict": state}
        network = _create(said.name, n_class, fixed, seed=seed, pretrained=True, **settings)
        source |= origin_of([file])
    made = TimmClassifier(
        network.eval(),
        architecture=said.name,
        image_size=fixed,
        preprocessing=replace(_preprocessing_of(network), **given),
        arguments=asked,
        source=source,
    )
    if weights not in ("random", "pretrained"):
        # timm leaves a head of other classes random, and with it whatever else is missing.
        missing = sorted(set(encoder_state(made)) - set(with_counters(state, encoder_state(made))))
        if missing and (hint := prefix_hint(state, encoder_state(made))):
            raise CheckpointFormatError(
                f"{weights} is of a larger model than a {said.name}; give its prefix, such as {hint!r}"
            )
        if missing:
            raise CheckpointFormatError(
                f"{weights} lacks {len(missing)} of the weights of a {said.name}, such as {missing[0]}"
            )
    if n_class != 0:
        made.require_linear_head()
    if image_size is not None:
        _require_size(made, image_size)
    return made


def new_timm_network(architecture: str, *, weights: str = "random", seed: int = 0) -> nn.Module:
    """The network of `new_timm_classifier` whatever its head is, as timm makes it, in evaluation mode."""
    said = _said_of(architecture)
    settings = {**said.arguments, **said.settings}
    return _create(said.name, None, None, seed=seed, pretrained=weights == "pretrained", **settings).eval()


@dataclass(frozen=True)
class _Said:
    """What timm, or a config.json, says of an architecture.

    Attributes:
        name: timm's name.
        shown: the name as it was given, without the path of a folder.
        config: size, mean, deviation and place of the weights.
        arguments: of `timm.create_model`, in plain JSON.
        settings: further ones of it, which are no part of what the network is.
        origin: where its own weights come from.
    """

    name: str
    shown: str
    config: Mapping[str, Any]
    arguments: dict[str, Any]
    settings: dict[str, Any]
    origin: dict[str, Any]


def _said_of(architecture: str) -> _Said:
    """What is known of an architecture before it is made.

    Raises:
        InputError: there is none of that name, or the repository's config names none.
    """
    scheme, _, place = architecture.partition(":")
    if scheme not in ("hf-hub", "hf_hub", "local-dir"):
        known = timm.get_pretrained_cfg(_known(architecture))
        config: dict[str, Any] = {} if known is None else known.to_dict()  # type: ignore[no-untyped-call]
        return _Said(architecture, architecture, config, {}, {}, {"repo": config.get("hf_hub_id")})
    is_local = scheme == "local-dir"
    found = find_source(place, "config.json") if is_local else find_source(f"hub://{place}/config.json")
    said: Any = read_json(found.path)
    if not isinstance(said, Mapping) or not isinstance(name := said.get("architecture"), str):
        raise InputError(
            f"the config.json of {place} names no architecture of timm; write transformers:{place}, or "
            f"open_clip:hf-hub:{place}, where it is of one of these"
        )
    own = said.get("pretrained_cfg", said)
    config = {key: value for key, value in own.items() if key not in ("architecture", "num_features", "labels")}
    config |= {key: said[key] for key in ("num_classes",) if key in said}
    config |= (
        {"file": str(found.path.parent), "source": "local-dir"}
        if is_local
        else {"hf_hub_id": place, "source": "hf-hub"}
    )
    shown = f"local-dir:{found.path.parent.name}" if is_local else f"hf-hub:{place}"
    origin: dict[str, Any] = {} if is_local else {"hub": [found.hub_record()]}
    arguments = dict(said.get("model_args") or {})
    return _Said(_known(name), shown, config, arguments, {"pretrained_cfg": config}, origin)


def _require_size(made: TimmClassifier, image_size: tuple[int, int]) -> None:
    images = torch.zeros(1, made.preprocessing.channels, *image_size)
    try:
        record(made.network, images)
    except InputError as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise cannot_run(made.architecture, images, cause) from error


def _known(architecture: str) -> str:
    known = timm.list_models()
    if architecture.split(".")[0] not in known:
        near = difflib.get_close_matches(architecture.lower(), known, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"{architecture!r} is no model that timm {timm.__version__} has{hint}")
    return architecture


def _of_channels(channels: int) -> dict[str, Any]:
    return {} if channels == 3 else {"in_chans": channels}


def _create(
    architecture: str,
    n_class: int | None,
    image_size: tuple[int, int] | None,
    *,
    seed: int = 0,
    pretrained: bool = False,
    **settings: Any,
) -> nn.Module:
    """timm's network; the global random state is left alone."""
    size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    classes: dict[str, Any] = {} if n_class is None else {"num_classes": n_class}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network: nn.Module = timm.create_model(
                _known(architecture), pretrained=pretrained, **{**settings, **classes, **size}
            )
        except InputError:
            raise
        except Exception as error:  # whatever an architecture or a download raises
            said = " ".join(str(error).split())[:200] or type(error).__name__
            has_file = "pretrained_cfg_overlay" in settings
            asked = {
                **size,
                **{name: value for name, value in settings.items() if not name.startswith("pretrained_cfg")},
            }
            what = f" with {', '.join(f'{name}={value}' for name, value in asked.items())}" if asked else ""
            way_out = "; give a file of its weights, or take random ones" if pretrained and not has_file else ""
            raise InputError(f"timm cannot make {architecture}{what}: {said}{way_out}") from error
    return network


def _preprocessing_of(network: nn.Module) -> Preprocessing:
    config: Mapping[str, Any] = network.default_cfg  # type: ignore[assignment]
    mean, std = ((float(v[0]), float(v[1]), float(v[2])) for v in (config["mean"], config["std"]))
    stem = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if stem is not None and stem.in_channels == 1:
        return Preprocessing(mean=sum(mean) / 3, std=sum(std) / 3, scale="full_range", channels=1)
    return Preprocessing(mean=mean, std=std, scale="full_range")


def _head_of(network: nn.Module, architecture: str) -> str:
    head = network.get_classifier()  # type: ignore[operator]
    path: str
    for path, module in network.named_modules():
        if module is head and isinstance(module, (nn.Linear, nn.Identity)):
            return path
    raise no_linear_head(architecture)
