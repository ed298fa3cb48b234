"""Any of timm's architectures as a classifier that is trained and studied."""

__all__ = ["new_timm_classifier", "TimmClassifier"]

import copy
import difflib
import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn
from typing_extensions import Self

from mammosae_plugin.adapters.checkpoints import CheckpointFormatError, is_safetensors, read_torch_checkpoint
from mammosae_plugin.adapters.classifier import encoder_state
from mammosae_plugin.adapters.hook_points import default_images, find_head_path
from mammosae_plugin.adapters.hooked_vision_model import HookedVisionModel, default_hooks
from mammosae_plugin.adapters.preprocessing import Preprocessing
from mammosae_plugin.adapters.recording import record
from mammosae_plugin.adapters.sources import find_source, origin_of
from mammosae_plugin.arguments import whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sha256_of_json
from mammosae_plugin.provenance import tensors_fingerprint
from mammosae_plugin.shapes import Images

_WRAPPED_AS = ("state_dict_ema", "model_ema", "state_dict", "model")  # by timm's own training script


class TimmClassifier:
    """A network of timm's with a linear head, or without one.

    Hook points are named by timm's module paths: `HookedVisionModel(classifier.network, ["layer3"])`.

    Attributes:
        network: timm's model; its attribute `source` is the classifier's.
        architecture: timm's name, with the tag of the pretrained weights where it was given.
        image_size: (H, W) of the only images that it takes, where the architecture is built for one size.
        preprocessing: by default timm's: over 255, minus the mean, over the deviation of its pretrained weights.
    """

    network: nn.Module

    def __init__(
        self,
        network: nn.Module,
        *,
        architecture: str,
        image_size: tuple[int, int] | None = None,
        preprocessing: Preprocessing | None = None,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        """Adopt a model that `timm.create_model` made.

        Raises:
            InputError: its head is not one linear layer.
        """
        self.network = network
        self.architecture, self.image_size = architecture, image_size
        self.preprocessing = preprocessing or _preprocessing_of(network)
        self.source = dict(source or {})
        self.head_path = _head_of(network, architecture)
        if image_size is not None:  # what looks at the network takes its images' size from there
            network.default_cfg = {**network.default_cfg, "input_size": (3, *image_size)}  # type: ignore[assignment, dict-item]

    @property
    def source(self) -> dict[str, Any]:
        """Where the weights come from."""
        source: dict[str, Any] = self.network.source  # type: ignore[assignment]
        return source

    @source.setter
    def source(self, source: dict[str, Any]) -> None:
        self.network.source = source  # type: ignore[assignment]

    @classmethod
    def described(cls, said: Mapping[str, Any], source: Mapping[str, Any]) -> Self:
        """The network of a `description`, with random weights."""
        size = said["image_size"]
        image_size = None if size is None else (int(size[0]), int(size[1]))
        return cls(
            _create(said["architecture"], said["n_class"], image_size),
            architecture=said["architecture"],
            image_size=image_size,
            preprocessing=Preprocessing.described(said["preprocessing"]),
            source=source,
        )

    def description(self) -> dict[str, Any]:
        """What the network is but its weights, in plain JSON."""
        return {
            "kind": "timm",
            "architecture": self.architecture,
            "n_class": self.n_class,
            "image_size": None if self.image_size is None else list(self.image_size),
            "preprocessing": self.preprocessing.describe(),
        }

    @property
    def n_class(self) -> int:
        """Outputs of the head; 0 where there is none."""
        return int(self.network.num_classes)  # type: ignore[arg-type]

    @cached_property
    def final_module(self) -> str:
        """The last of timm's feature modules whose positions decide what the head reads, found by trying.

        Behind the last block of a transformer whose head reads the class token, patches change nothing any more.

        Raises:
            InputError: there is none.
        """
        images = default_images(self.network)
        size = (int(images.shape[-2]), int(images.shape[-1]))
        names = default_hooks(self.network, images)
        with HookedVisionModel(self.network, names) as hooked:
            hooked.look(names, size)
            for name in reversed(names):
                layout = hooked.hook_layouts[hooked.resolve_hook_name(name)]
                try:
                    if layout.shows_grid and hooked.rest_from(name, size).reaches_head:
                        return name
                except InputError:  # other values flow around it
                    continue
        raise InputError(f"{self.architecture} has no layer with positions from which its head can be reached")

    def fingerprint(self, *, with_head: bool = True) -> str:
        """SHA-256 of the weights and the architecture, or of those that decide what the head reads.

        The same weights mean another network in another architecture: timm has several with the same names and shapes.
        """
        tensors = self.network.state_dict() if with_head else encoder_state(self)
        return sha256_of_json([self.architecture.split(".")[0], self.image_size, tensors_fingerprint(tensors)])

    def __call__(self, images: Images) -> torch.Tensor:
        """Images (B, 3, H, W) -> logits (B, n_class), or what a head would read."""
        return self.network(images)  # type: ignore[no-any-return]

    def features(self, images: Images) -> torch.Tensor:
        """What the head reads: images (B, 3, H, W) -> (B, d)."""
        seen: list[torch.Tensor] = []
        head = self.network.get_submodule(self.head_path)
        handle = head.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        try:
            self.network(images)
        finally:
            handle.remove()
        return seen[0]

    def with_head(self, n_class: int) -> Self:
        """A copy with a fresh linear head of `n_class` outputs, drawn from torch's global random state.

        Raises:
            InputError: the logits do not come from one linear layer.
        """
        network = copy.deepcopy(self.network)
        network.reset_classifier(n_class)  # type: ignore[operator]
        made = type(self)(
            network,
            architecture=self.architecture,
            image_size=self.image_size,
            preprocessing=self.preprocessing,
            source=self.source,
        )
        made.require_linear_head()
        return made

    def require_linear_head(self) -> None:
        """See in a pass that the output is what the head gives.

        Raises:
            InputError: it is not.
        """
        if find_head_path(self.network, record(self.network, default_images(self.network))) != self.head_path:
            raise _no_linear_head(self.architecture)

    def regularise(self, *, dropout: float, drop_connect: float) -> None:
        """Make the network anew with timm's `drop_rate` and `drop_path_rate`, which are not in the state dict.

        Raises:
            InputError: the architecture has no such setting.
        """
        wanted = {"drop_rate": dropout, "drop_path_rate": drop_connect}
        settings: dict[str, Any] = {name: value for name, value in wanted.items() if value}
        if not settings:
            return
        network = _create(self.architecture, self.n_class, self.image_size, **settings)
        network.load_state_dict(self.network.state_dict())
        network.source = self.source  # type: ignore[assignment]
        self.network = network.to(next(self.network.parameters()).device)


def new_timm_classifier(
    architecture: str,
    n_class: int = 0,
    *,
    weights: str | os.PathLike[str] = "random",
    image_size: tuple[int, int] | None = None,
    seed: int = 0,
) -> TimmClassifier:
    """One of timm's architectures, in evaluation mode.

    Args:
        architecture: timm's name, such as "resnet18" or "vit_base_patch16_224.augreg_in21k".
        n_class: outputs of the head, which is random unless the weights have one of as many; 0 for none.
        weights: "random"; "pretrained", which timm fetches from the Hub or finds in its cache; or a file of a state
            dict under timm's names: safetensors, or what `torch.save` wrote, on this machine or
            "hub://owner/name/file".
        image_size: (H, W), for architectures that are built for one size (many transformers); others take any.
        seed: of random weights, or of a random head.

    Raises:
        InputError: timm has no such architecture, cannot make it for that size, or has no such weights; the head is not
            one linear layer; the file does not fit.
        UnsafeCheckpointError: the file asks for code; none of it was run.
    """
    n_class, seed = whole(n_class, "n_class", least=0), whole(seed, "seed", least=0)
    config = timm.get_pretrained_cfg(_known(architecture))
    fixed: tuple[int, int] | None = None
    if config is not None and config.fixed_input_size:
        fixed = image_size or (int(config.input_size[1]), int(config.input_size[2]))
    source: dict[str, Any] = {"kind": "timm", "variant": architecture}
    if weights == "random":
        network, source = _create(architecture, n_class, fixed, seed=seed), {**source, "seed": seed}
    elif weights == "pretrained":
        network = _create(architecture, n_class, fixed, seed=seed, pretrained=True)
        source["repo"] = getattr(config, "hf_hub_id", None)
    else:
        file = find_source(weights)
        state = _state_in(file.path)
        network = _create(
            architecture, n_class, fixed, seed=seed, pretrained=True, pretrained_cfg_overlay={"state_dict": state}
        )
        source |= origin_of([file])
    made = TimmClassifier(network.eval(), architecture=architecture, image_size=fixed, source=source)
    if weights not in ("random", "pretrained"):
        # timm leaves a head of other classes random, and with it whatever else is missing.
        missing = sorted(set(encoder_state(made)) - set(state))
        if missing:
            raise CheckpointFormatError(
                f"{weights} lacks {len(missing)} of the weights of a {architecture}, such as {missing[0]}"
            )
    if n_class:
        made.require_linear_head()
    return made


def _known(architecture: str) -> str:
    known = timm.list_models()
    if architecture.split(".")[0] not in known:
        near = difflib.get_close_matches(architecture.lower(), known, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"{architecture!r} is no model that timm {timm.__version__} has{hint}")
    return architecture


def _create(
    architecture: str,
    n_class: int,
    image_size: tuple[int, int] | None,
    *,
    seed: int = 0,
    pretrained: bool = False,
    **settings: Any,
) -> nn.Module:
    """timm's network; the global random state is left alone."""
    size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network: nn.Module = timm.create_model(
                _known(architecture), pretrained=pretrained, num_classes=n_class, **size, **settings
            )
        except InputError:
            raise
        except Exception as error:  # whatever an architecture or a download raises
            said = " ".join(str(error).split())[:200] or type(error).__name__
            asked = {**size, **{name: value for name, value in settings.items() if name != "pretrained_cfg_overlay"}}
            what = f" with {', '.join(f'{name}={value}' for name, value in asked.items())}" if asked else ""
            way_out = "; give a file of its weights, or take random ones" if pretrained and not settings else ""
            raise InputError(f"timm cannot make {architecture}{what}: {said}{way_out}") from error
    return network


def _state_in(path: os.PathLike[str]) -> dict[str, Any]:
    """The state dict in a file."""
    content = load_file(path) if is_safetensors(path) else read_torch_checkpoint(path)
    for name in _WRAPPED_AS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise CheckpointFormatError(f"{path} holds no state dict of a network; give a file of weights alone")
    return {str(name).removeprefix("module.").removeprefix("_orig_mod."): value for name, value in content.items()}


def _preprocessing_of(network: nn.Module) -> Preprocessing:
    config: Mapping[str, Any] = network.default_cfg  # type: ignore[assignment]
    mean, std = ((float(v[0]), float(v[1]), float(v[2])) for v in (config["mean"], config["std"]))
    return Preprocessing(mean=mean, std=std, scale="full_range")


def _head_of(network: nn.Module, architecture: str) -> str:
    head = network.get_classifier()  # type: ignore[operator]
    path: str
    for path, module in network.named_modules():
        if module is head and isinstance(module, (nn.Linear, nn.Identity)):
            return path
    raise _no_linear_head(architecture)


def _no_linear_head(architecture: str) -> InputError:
    return InputError(
        f"the logits of {architecture} do not come from one linear layer, which a study of a classifier needs; choose "
        "another architecture"
    )
