"""Any image network with one linear head as a classifier that is trained and studied, wherever its code comes from."""

__all__ = ["BackboneClassifier", "cannot_run", "head_in", "no_linear_head", "put_head", "Readable", "Upsampled"]

import copy
from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from typing_extensions import Self

from mammosae_plugin.adapters.classifier import encoder_state
from mammosae_plugin.adapters.hook_points import default_hooks, default_images, find_head_path
from mammosae_plugin.adapters.preprocessing import Preprocessing
from mammosae_plugin.adapters.recording import record, tensors_in
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sha256_of_json
from mammosae_plugin.provenance import tensors_fingerprint
from mammosae_plugin.shapes import Images


class Readable(nn.Module):
    """A network around one whose output is no vector, or whose vector no linear layer gives.

    Attributes:
        backbone: the network.
        gives_logits: its output has an attribute `logits`, which is this one's output. Else the output is what `head`
            makes of a vector: the network's own, its pooled output, or the mean of its tokens or of a map (B, C, h, w).
    """

    def __init__(self, backbone: nn.Module, *, gives_logits: bool) -> None:
        super().__init__()
        self.backbone, self.gives_logits = backbone, gives_logits
        if not gives_logits:
            self.head: nn.Module = nn.Identity()

    def forward(self, images: Images) -> torch.Tensor:
        """Images (B, C, H, W) -> (B, n)."""
        output = self.backbone(images)
        return output.logits if self.gives_logits else self.head(_vector(output))  # type: ignore[no-any-return]


_POOLED = ("pooler_output", "image_embeds", "pooled")  # of transformers, and as others name it


class Upsampled(nn.Module):
    """A network that first brings its images to one size, bilinearly with corners aligned, as GLoRIA's encoder does."""

    def __init__(self, backbone: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.backbone, self.size = backbone, size
        stages = [name for name, _ in backbone.named_children() if name.startswith("layer")]
        self.layer_aliases = {name: f"backbone.{name}" for name in stages}

    def forward(self, images: Images) -> torch.Tensor:
        """Images (B, C, H, W) of any size -> what the network gives."""
        images = functional.interpolate(images, self.size, mode="bilinear", align_corners=True)
        return self.backbone(images)  # type: ignore[no-any-return]


def _vector(output: Any) -> torch.Tensor:
    """(B, d) of what a network without a head gives.

    Raises:
        InputError: it is nothing of the kind.
    """
    named = dict(output) if isinstance(output, Mapping) else getattr(output, "__dict__", {})
    for name in _POOLED:
        if isinstance(named.get(name), torch.Tensor):
            return named[name].flatten(1)  # type: ignore[no-any-return]
    value = next(iter(tensors_in(named.get("last_hidden_state", output))), output)
    if not isinstance(value, torch.Tensor) or value.dim() not in (2, 3, 4):
        gives = tuple(value.shape) if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        raise InputError(
            f"the network gives {gives}; a study needs one that gives logits (B, n), features (B, d), tokens (B, n, d) "
            "or a map (B, C, h, w)"
        )
    return value.mean(dim=(2, 3)) if value.dim() == 4 else value.mean(dim=1) if value.dim() == 3 else value


class BackboneClassifier:
    """A network with a linear head, or without one: of timm, torchvision, transformers, OpenCLIP or a function's.

    Hook points are named by its module paths: `HookedVisionModel(classifier.network, ["layer3"])`.

    Attributes:
        network: the torch module, whose output is a tensor (B, n); its attribute `source` is the classifier's.
        library: "timm", "torchvision", "transformers", "open_clip" or "function".
        architecture: the name there; of a function `package.module:function`.
        arguments: what the architecture was made with, in plain JSON; of transformers and OpenCLIP the config.
        image_size: (H, W) of the only images that it takes, where it is built for one size.
        preprocessing: how images become its input.
        head_path: module path of the linear head, or of what stands in its place.
    """

    network: nn.Module
    library: str

    def __init__(
        self,
        network: nn.Module,
        *,
        library: str,
        architecture: str,
        preprocessing: Preprocessing,
        arguments: Mapping[str, Any] | None = None,
        image_size: tuple[int, int] | None = None,
        source: Mapping[str, Any] | None = None,
        head_path: str | None = None,
    ) -> None:
        """Adopt a network.

        Args:
            network: the module.
            library: where its code comes from.
            architecture: its name there.
            preprocessing: how images become its input.
            arguments: what it was made with.
            image_size: (H, W) of the only images that it takes.
            source: where its weights come from.
            head_path: of its linear head; found in a pass where it is not said.

        Raises:
            InputError: it does not run, or its output does not come from one linear layer.
        """
        self.network = network
        self.library, self.architecture = library, architecture
        self.arguments = dict(arguments or {})
        self.image_size, self.preprocessing = image_size, preprocessing
        self.source = dict(source or {})
        if image_size is not None:  # what looks at the network takes its images' size from there
            shape = (preprocessing.channels, *image_size)
            network.default_cfg = {**(getattr(network, "default_cfg", None) or {}), "input_size": shape}  # type: ignore[assignment]
        self.head_path = head_path or head_in(network, architecture)

    @property
    def source(self) -> dict[str, Any]:
        """Where the weights come from."""
        source: dict[str, Any] = self.network.source  # type: ignore[assignment]
        return source

    @source.setter
    def source(self, source: dict[str, Any]) -> None:
        self.network.source = source  # type: ignore[assignment]

    def description(self) -> dict[str, Any]:
        """What the network is but its weights, in plain JSON."""
        return {
            "kind": "network",
            "library": self.library,
            "architecture": self.architecture,
            **({"arguments": self.arguments} if self.arguments else {}),
            "n_class": self.n_class,
            "image_size": None if self.image_size is None else list(self.image_size),
            "preprocessing": self.preprocessing.describe(),
        }

    @property
    def n_class(self) -> int:
        """Outputs of the head; 0 where there is none."""
        head = self.network.get_submodule(self.head_path)
        return head.out_features if isinstance(head, nn.Linear) else 0

    @cached_property
    def final_module(self) -> str:
        """The last of the outermost modules whose positions decide what the head reads, found by trying.

        Behind the last block of a transformer whose head reads the class token, patches change nothing any more.

        Raises:
            InputError: there is none.
        """
        from mammosae_plugin.adapters.hooked_vision_model import HookedVisionModel

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

    @property
    def _identity(self) -> list[Any]:
        """What decides what the network computes beside its weights."""
        return [self.library, self.architecture, self.arguments]

    def fingerprint(self, *, with_head: bool = True) -> str:
        """SHA-256 of the weights and the architecture, or of those that decide what the head reads.

        The same weights mean another network in another architecture: timm has several with the same names and shapes.
        """
        tensors = self.network.state_dict() if with_head else encoder_state(self)
        return sha256_of_json([*self._identity, self.image_size, tensors_fingerprint(tensors)])

    def __call__(self, images: Images) -> torch.Tensor:
        """Images (B, C, H, W) -> logits (B, n_class), or what a head would read."""
        return self.network(images)  # type: ignore[no-any-return]

    def features(self, images: Images) -> torch.Tensor:
        """What the head reads: images (B, C, H, W) -> (B, d)."""
        seen: list[torch.Tensor] = []
        head = self.network.get_submodule(self.head_path)
        handle = head.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        try:
            self.network(images)
        finally:
            handle.remove()
        return seen[0]

    def with_head(self, n_class: int) -> Self:
        """A copy with a fresh linear head of `n_class` outputs, drawn from torch's global random state."""
        made = copy.copy(self)
        made.network = copy.deepcopy(self.network)
        with torch.no_grad():
            width = int(self.features(default_images(self.network)).shape[1])
        put_head(made.network, self.head_path, width, n_class, fresh=True)
        return made

    def require_linear_head(self) -> None:
        """See in a pass that the output is what the head gives.

        Raises:
            InputError: it is not.
        """
        if find_head_path(self.network, record(self.network, default_images(self.network))) != self.head_path:
            raise no_linear_head(self.architecture)

    def regularise(self, *, dropout: float, drop_connect: float) -> None:
        """Put dropout before the head, and rates that rise over the blocks into their stochastic depth, for training.

        Raises:
            InputError: the architecture has no stochastic depth.
        """
        if dropout:
            head = self.network.get_submodule(self.head_path)
            head.register_forward_pre_hook(partial(_drop, dropout))
        if drop_connect:
            rates = [(m, name) for m in self.network.modules() if (name := _rate_of_depth(m)) is not None]
            if not rates:
                raise InputError(
                    f"{self.architecture} has no stochastic depth for drop_connect to act on; leave it out (of "
                    "transformers, arguments: {drop_path_rate: 0.1} puts it in)"
                )
            for number, (module, name) in enumerate(rates, start=1):
                setattr(module, name, drop_connect * number / len(rates))


def _drop(rate: float, head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (functional.dropout(args[0], rate, training=head.training), *args[1:])


def _rate_of_depth(module: nn.Module) -> str | None:
    """The attribute that holds the rate of a module that drops the way around which a block goes."""
    kind = type(module).__name__
    return "p" if kind == "StochasticDepth" else "drop_prob" if kind.endswith("DropPath") else None


def head_in(network: nn.Module, architecture: str) -> str:
    """Module path of the linear head of a network, or of the identity in its place.

    Raises:
        InputError: its output comes from neither.
    """
    path = find_head_path(network, record(network, default_images(network)))
    if path is None:
        raise no_linear_head(architecture)
    return path


def put_head(network: nn.Module, path: str, width: int, n_class: int, *, fresh: bool = False) -> None:
    """Put a linear layer of `n_class` outputs in the head's place, for 0 an identity; one of as many stays."""
    if not path:
        raise InputError("the network is one linear layer, which has no map to study")
    parent, _, leaf = path.rpartition(".")
    found = network.get_submodule(path)
    if not fresh and n_class and isinstance(found, nn.Linear) and found.out_features == n_class:
        return
    example = next(network.parameters(), torch.zeros(()))
    head = nn.Linear(width, n_class, device=example.device, dtype=example.dtype) if n_class else nn.Identity()
    setattr(network.get_submodule(parent), leaf, head)


def no_linear_head(architecture: str) -> InputError:
    return InputError(
        f"the logits of {architecture} do not come from one linear layer, which a study of a classifier needs; choose "
        "another architecture"
    )


def cannot_run(what: str, images: torch.Tensor, error: Exception) -> InputError:
    """That a network does not take images of this shape."""
    said = " ".join(str(error).split())[-200:]
    channels, height, width = images.shape[-3:]
    return InputError(
        f"{what} cannot take images of {height} x {width} pixels in {channels} channels ({said}); set the model's "
        "preprocessing.size or channels"
    )
