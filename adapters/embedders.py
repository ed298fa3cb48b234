"""Networks that give one vector per image: any backbone, with a stated pooling, hooked at that vector."""

__all__ = ["Embedder", "load_embedder", "Pooling", "POOLINGS", "with_random_weights"]

import copy
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import torch
from torch import nn

from mammosae_plugin.adapters.architectures import new_backbone_classifier, preprocessing_of_transformers
from mammosae_plugin.adapters.backbone_classifier import Readable
from mammosae_plugin.adapters.checkpoints import CheckpointFormatError, is_safetensors, read_torch_checkpoint
from mammosae_plugin.adapters.classifier import Classifier
from mammosae_plugin.adapters.loading import load_classifier
from mammosae_plugin.adapters.mammo_clip import MammoClipClassifier
from mammosae_plugin.adapters.mammo_clip_files import parse_mammo_clip
from mammosae_plugin.adapters.names import network_name
from mammosae_plugin.adapters.preprocessing import Preprocessing
from mammosae_plugin.adapters.published_encoders import published_encoder
from mammosae_plugin.adapters.sources import find_source
from mammosae_plugin.adapters.timm_classifier import new_timm_classifier
from mammosae_plugin.arguments import one_of
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, read_json
from mammosae_plugin.hub_requests import first_sentence

if TYPE_CHECKING:
    from mammosae_plugin.adapters.hooked_vision_model import HookedVisionModel

Pooling = Literal["model", "class_token", "mean_of_patches", "projected"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)

_PROJECTION = "image_projection.projection."
_Network = TypeVar("_Network", bound=nn.Module)
_DEVIATION = 0.02  # of parameters that no module knows how to draw, such as a class token


class Embedder(nn.Module):
    """A backbone that gives one vector per image, at a hook point named by the pooling.

    `HookedVisionModel(embedder, [embedder.hook_name])` shows (B, d). Under `pooling`:

    | pooling | the vector |
    |---|---|
    | class_token | the class token behind the last norm |
    | mean_of_patches | the mean of the patch tokens behind the last norm, without class and register tokens; of a map, over its positions |
    | model | the backbone's own: what its classifier would read (timm), its pooled output (transformers), a CLIP tower's embedding; of DINOv3 the class token, as its authors have it |
    | projected | of a checkpoint of Mammo-CLIP's, MedCLIP's or GLoRIA's, the pooled vector in the space that images and texts share, before it is scaled to length 1 |

    Attributes:
        backbone: the network.
        pooling: how its vector is made.
        preprocessing: how images become its input; None where nothing says it.
        image_size: (H, W) of the only images that it takes; None where any size will do.
        architecture: its name.
        source: where its weights come from.
    """  # noqa: E501

    def __init__(
        self,
        backbone: nn.Module,
        pooling: Pooling = "model",
        *,
        projection: nn.Linear | None = None,
        preprocessing: Preprocessing | None = None,
        image_size: tuple[int, int] | None = None,
        architecture: str = "",
        source: Mapping[str, Any] | None = None,
    ) -> None:
        """Adopt a backbone.

        Raises:
            InputError: an unknown pooling, or one that this backbone cannot have.
        """
        super().__init__()
        one_of(pooling, "pooling", POOLINGS)
        if (pooling == "projected") != (projection is not None):
            raise InputError(
                "pooling 'projected' is of files that hold the layer: Mammo-CLIP's pretraining checkpoints, MedCLIP's, "
                "GLoRIA's"
            )
        self.backbone, self.pooling, self.projection = backbone, pooling, projection
        self.preprocessing, self.image_size = preprocessing, image_size
        self.architecture = architecture or str(getattr(backbone, "architecture", type(backbone).__name__))
        self.source = {**dict(source or getattr(backbone, "source", None) or {}), "pooling": pooling}
        self.default_cfg = dict(getattr(backbone, "default_cfg", None) or {})
        if image_size is not None:
            self.default_cfg["input_size"] = (3, *image_size)
        self._pool = _pooling_of(backbone, pooling, self.architecture)
        self.add_module(self.hook_path, _Vector())

    @property
    def hook_path(self) -> str:
        """The module path of the vector, which names the pooling: "pooled", "class_token", ..."""
        return "pooled" if self.pooling == "model" else self.pooling

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) -> (B, d).

        Raises:
            InputError: the backbone has no such vector.
        """
        vector = self._pool(images)
        if self.projection is not None:
            vector = self.projection(vector)
        return self.get_submodule(self.hook_path)(vector)  # type: ignore[no-any-return]

    def hooked(self, image_size: tuple[int, int]) -> "HookedVisionModel":
        """The embedder with its hook point, for images of (H, W).

        Raises:
            InputError: the backbone does not run on such images.
        """
        parameter = next(self.parameters(), torch.zeros(()))
        images = torch.zeros(1, 3, *image_size, device=parameter.device, dtype=parameter.dtype)
        from mammosae_plugin.adapters.hooked_vision_model import HookedVisionModel

        return HookedVisionModel(self, [self.hook_path], example_input=images)


class _Vector(nn.Module):
    """Where the vector is hooked; a copy, so that no layer before it counts as the model's head."""

    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        return vector.clone()


def _pooling_of(backbone: nn.Module, pooling: Pooling, architecture: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from images to vectors."""
    wanted: str = "model" if pooling == "projected" else pooling
    if wanted == "model" and "dinov3" in architecture and hasattr(backbone, "forward_head"):
        wanted = "class_token"  # timm would take the mean of the patches
    if isinstance(backbone, MammoClipClassifier) and wanted == "model":
        return backbone.features
    if hasattr(backbone, "forward_features"):
        return partial(_of_timm, backbone, wanted)
    if hasattr(backbone, "config") and hasattr(backbone, "get_input_embeddings"):
        return partial(_of_transformers, backbone, wanted)
    tower = getattr(backbone, "visual", backbone)
    if isinstance(backbone, Readable) and wanted != "model":
        return _pooling_of(backbone.backbone, pooling, architecture)
    if wanted != "model" and hasattr(tower, "trunk") and hasattr(tower.trunk, "forward_features"):
        return partial(_of_timm, tower.trunk, wanted)
    if wanted != "model" and hasattr(tower, "transformer") and hasattr(tower, "ln_post"):
        return partial(_of_open_clip, tower, wanted)
    return partial(_of_output, tower, wanted)


def _of_timm(backbone: Any, wanted: str, images: torch.Tensor) -> torch.Tensor:
    features = backbone.forward_features(images)
    if wanted == "model":
        return backbone.forward_head(features, pre_logits=True)  # type: ignore[no-any-return]
    n_prefix = int(getattr(backbone, "num_prefix_tokens", 0) or 0)
    has_class_token = isinstance(getattr(backbone, "cls_token", None), torch.Tensor)
    last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
    return _pooled(features, wanted, n_prefix, has_class_token, channels_last=last)


def _of_transformers(backbone: Any, wanted: str, images: torch.Tensor) -> torch.Tensor:
    vision = getattr(backbone, "vision_model", backbone)  # of a model with a text tower
    output = vision(pixel_values=images)
    if wanted == "model":
        if getattr(output, "pooler_output", None) is None:
            raise InputError(f"{type(backbone).__name__} has no pooled output; choose class_token or mean_of_patches")
        return output.pooler_output.flatten(1)  # type: ignore[no-any-return]
    hidden = output.last_hidden_state
    patch = getattr(vision.config, "patch_size", None)
    n_prefix = 0
    if hidden.dim() == 3 and isinstance(patch, int):
        n_prefix = hidden.shape[1] - (images.shape[-2] // patch) * (images.shape[-1] // patch)
    return _pooled(hidden, wanted, n_prefix, n_prefix > 0)


def _of_open_clip(tower: Any, wanted: str, images: torch.Tensor) -> torch.Tensor:
    """OpenCLIP's own transformer: its tokens behind the last norm, before they are pooled and projected."""
    tokens: list[torch.Tensor] = []
    handle = tower.transformer.register_forward_hook(lambda _module, _args, output: tokens.append(output))
    try:
        tower(images)
    finally:
        handle.remove()
    hidden = tokens[0]
    hidden = hidden if hidden.shape[0] == len(images) else hidden.transpose(0, 1)
    has_class_token = hasattr(tower, "class_embedding")
    return _pooled(tower.ln_post(hidden), wanted, int(has_class_token), has_class_token)


def _of_output(tower: Any, wanted: str, images: torch.Tensor) -> torch.Tensor:
    output = tower(images)
    if wanted == "model" and isinstance(output, torch.Tensor) and output.dim() == 2:
        return output
    if wanted == "model" or not isinstance(output, torch.Tensor) or output.dim() == 2:
        gives = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise InputError(
            f"{type(tower).__name__} gives {gives}, from which no {wanted} vector can be taken; wrap it in a module "
            "that gives (B, d), with pooling 'model'"
        )
    return _pooled(output, wanted, 0, False)


def _pooled(
    features: torch.Tensor, wanted: str, n_prefix: int, has_class_token: bool, *, channels_last: bool = False
) -> torch.Tensor:
    """(B, d) of tokens (B, n_prefix + n, d) or a map (B, d, h, w), or (B, h, w, d) with `channels_last`."""
    if wanted == "class_token":
        if not has_class_token or features.dim() != 3:
            raise InputError("this backbone has no class token; choose mean_of_patches, or model, its own pooling")
        return features[:, 0]
    if features.dim() == 4:
        return features.mean(dim=(1, 2) if channels_last else (2, 3))
    return features[:, n_prefix:].mean(dim=1)


def load_embedder(
    model: str | os.PathLike[str] | nn.Module | Classifier | Embedder,
    *,
    pooling: Pooling = "model",
    weights: str | os.PathLike[str] | None = None,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
) -> Embedder:
    """A backbone with a pooling, by name, from a file, or of a network that is there; in evaluation mode.

    Args:
        model: timm's name of an architecture ("vit_large_patch16_dinov3.lvd1689m", "resnet50"), or "hf-hub:owner/name";
            a model of transformers, by its name on the Hub ("facebook/dinov3-vitl16-pretrain-lvd1689m") or its folder,
            with "hf:" or "transformers:" before it or without; "open_clip:ViT-B-32/openai", "torchvision:resnet50",
            "function:package.module:function"; a checkpoint that `load_classifier` reads (Mammo-CLIP's, or one of
            ours); or a network: of timm, of transformers, a tower of OpenCLIP, a classifier, any module that gives
            (B, d).
        pooling: how its vector is made, see `Embedder`.
        weights: "random" draws all of them anew, a control for any model. Else they are a name's pretrained ones, or a
            file of a state dict under the library's names, or what a file or network holds.
        seed: of random weights.
        image_size: (H, W) of the images, for architectures that are built for one size.

    Raises:
        InputError: no such model, weights that it cannot have, or a pooling that it cannot have.
    """
    made: Embedder
    if isinstance(model, Embedder):
        return model if weights is None else _control(model, weights, seed)
    if not isinstance(model, (str, os.PathLike)):
        network = model if isinstance(model, nn.Module) else model.network
        made = Embedder(
            network,
            pooling,
            preprocessing=getattr(model, "preprocessing", None),
            image_size=getattr(model, "image_size", None),
            architecture=str(getattr(model, "architecture", "")),
        ).eval()
        return made if weights is None else _control(made, weights, seed)
    library, name, _ = network_name(model)
    if library == "file":
        made = _from_checkpoint(name, pooling)
        return made if weights is None else _control(made, weights, seed)
    if library == "transformers":
        return _from_transformers(name, pooling, weights, seed)
    chosen = weights or "pretrained"
    classifier: Classifier
    if library == "timm":
        classifier = new_timm_classifier(name, weights=chosen, image_size=image_size, seed=seed)
    elif library == "function" and chosen == "random":
        return _control(load_embedder(model, pooling=pooling, image_size=image_size), chosen, seed)
    else:
        classifier = new_backbone_classifier(library, name, 0, weights=chosen, image_size=image_size, seed=seed)  # type: ignore[arg-type]
    return Embedder(
        classifier.network,
        pooling,
        preprocessing=classifier.preprocessing,
        image_size=classifier.image_size,
        architecture=classifier.architecture if library != "timm" else name,
        source=classifier.source,
    ).eval()


def _control(embedder: Embedder, weights: str | os.PathLike[str], seed: int) -> Embedder:
    if weights != "random":
        raise InputError(
            f"weights {os.fspath(weights)!r} are for an architecture of timm's; of a network there are 'random' ones"
        )
    return with_random_weights(embedder, seed)


def with_random_weights(network: _Network, seed: int = 0) -> _Network:
    """A copy with all weights drawn anew: the control that any model has.

    Every module draws its own as it does when it is made (`reset_parameters`); what belongs to none that can, such as a
    class token, is normal with deviation 0.02. Running statistics are those of a new network.

    Args:
        network: a module.
        seed: the same seed, the same weights; the global random state is left alone.
    """
    network = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in network.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
                continue
            for name, parameter in module.named_parameters(recurse=False):
                parameter.normal_(std=_DEVIATION)
                if name == "weight" and parameter.dim() == 1:  # a norm of somebody's own
                    parameter.fill_(1.0)
                elif name == "bias":
                    parameter.zero_()
    if isinstance(network, Embedder):
        network.source = {**network.source, "weights": "random", "seed": seed}
        network._pool = _pooling_of(network.backbone, network.pooling, network.architecture)
    return network


def _from_checkpoint(name: str, pooling: Pooling) -> Embedder:
    """Mammo-CLIP's files and ours; the projection is in the former's pretraining checkpoints."""
    classifier = load_classifier(name)
    projection = _projection(name, classifier) if pooling == "projected" else None
    return Embedder(
        classifier.network,
        pooling,
        projection=projection,
        preprocessing=classifier.preprocessing,
        image_size=classifier.image_size,
        architecture=classifier.architecture,
        source=classifier.source,
    ).eval()


def _projection(name: str, classifier: Classifier) -> nn.Linear:
    source = find_source(name)
    path = source.path
    if is_safetensors(path) or path.is_dir():
        raise InputError(f"{path} holds no projection; give the checkpoint of its authors: Mammo-CLIP's or MedCLIP's")
    if (published := published_encoder(content := read_torch_checkpoint(path), str(path))) is not None:
        layer = published[0].projection_in(published[1], str(path))
        if layer is None:
            raise InputError(f"{path} is {published[0].title}, which has no space shared with texts; choose model")
        return layer
    weights = parse_mammo_clip(content, path).weights
    weight, bias = (weights.get(f"{_PROJECTION}{part}") for part in ("weight", "bias"))
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or not isinstance(bias, torch.Tensor):
        raise CheckpointFormatError(f"{path} has no {_PROJECTION}weight and bias; give a pretraining checkpoint")
    width = classifier.network.num_features
    if weight.shape[1] != width or bias.shape != (len(weight),):
        raise CheckpointFormatError(
            f"{path} has a projection of {tuple(weight.shape)} and {tuple(bias.shape)}, but its encoder gives {width} "
            "features"
        )
    layer = nn.Linear(weight.shape[1], len(weight))
    layer.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    return layer


def _from_transformers(name: str, pooling: Pooling, weights: str | os.PathLike[str] | None, seed: int) -> Embedder:
    if weights not in (None, "pretrained", "random"):
        raise InputError("of a model of transformers there are its own weights, and 'random' ones; leave weights out")
    from transformers import AutoConfig, AutoModel
    from transformers.utils.hub import cached_file

    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if weights == "random":
                network = AutoModel.from_config(AutoConfig.from_pretrained(name))  # type: ignore[no-untyped-call]
            else:
                network = AutoModel.from_pretrained(name, use_safetensors=True, dtype=torch.float32)
        said = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"transformers cannot open {name}: {first_sentence(error)}") from error
    source = {"kind": "transformers", "name": Path(name).name if local_path(name).exists() else name}
    if weights == "random":
        source |= {"weights": "random", "seed": str(seed)}
    return Embedder(
        network,
        pooling,
        preprocessing=preprocessing_of_transformers({} if said is None else read_json(said)),
        architecture=str(network.config.model_type),
        source=source,
    ).eval()
