"""The networks of a study, each read from disk once while a step needs it.

The last one that something was computed with stays in memory, with the study's hook points in it. What a study must
know of the others, their heads and fingerprints, is noted when they are read.
"""

__all__ = ["Files", "kind_of_network", "NetworkFacts", "Networks", "Origin", "Start"]

import copy
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from mammosae_plugin.adapters import (
    Classifier,
    HookedVisionModel,
    Preprocessing,
    load_classifier,
    new_backbone_classifier,
    new_timm_classifier,
)
from mammosae_plugin.adapters.classifier import head_of, library_of
from mammosae_plugin.errors import InputError


@dataclass(frozen=True)
class Start:
    """A network that a model starts from.

    Attributes:
        library: Whose architecture it is; "file" of a file of ours or Mammo-CLIP's.
        architecture: Its name there, or the file.
        weights: As for `new_backbone_classifier`.
        image_size: (H, W) of the study's images.
        seed: Of random weights.
        arguments: JSON of what the architecture is made with.
        preprocessing: JSON of what replaces the library's, or the file's.
        with_head: Whether its own head is kept.
        prefix: Of the names in a file of weights.
    """

    library: str
    architecture: str | Path
    weights: str | Path = ""
    image_size: tuple[int, int] = (0, 0)
    seed: int = 0
    arguments: str = "{}"
    preprocessing: str = "{}"
    with_head: bool = False
    prefix: str = ""


Files = tuple[Path, ...]
"""What `load_classifier` is given."""
Origin = Files | Start
"""Where a network comes from."""


@dataclass(frozen=True)
class NetworkFacts:
    """What is known of a network when it is no longer in memory.

    Attributes:
        architecture: its name in its library.
        kind: "mammo_clip", "timm", "torchvision", "transformers", "open_clip" or "function".
        preprocessing: how images become its input.
        image_size: (H, W) of the only images that it takes; None where any size will do.
        n_class: outputs of its head.
        concepts: those that a saved classifier's own metadata name; empty where they name none.
        weights: fingerprint of all weights.
        encoder: fingerprint of the weights without the head.
        head: the linear head; None without classes.
    """

    architecture: str
    kind: str
    preprocessing: Preprocessing
    image_size: tuple[int, int] | None
    n_class: int
    concepts: tuple[str, ...]
    weights: str
    encoder: str
    head: nn.Linear | None


class Networks:
    """Reads networks and keeps the last one."""

    def __init__(self, functions: Collection[str] = ()) -> None:
        """Read networks of these functions, which the configuration names, and of no others."""
        self._functions = tuple(functions)
        self._files: Origin | None = None
        self._network: Classifier | None = None
        self._hooked: HookedVisionModel | None = None
        self._facts: dict[Origin, NetworkFacts] = {}
        self._final_modules: dict[Origin, str] = {}

    def plain(self, files: Origin) -> Classifier:
        """A network without hooks, in evaluation mode on the CPU.

        Raises:
            InputError: A file cannot be read, or is none of a network.
        """
        if self._hooked is not None:
            self._hooked.close()
            self._hooked = None
        if files != self._files or self._network is None:
            self._files = self._network = None  # the old one goes before the new one comes
            self._network, self._files = self._read(files), files
            self.note(files, self._network)
        return self._network

    def hooked(self, files: Origin, modules: Sequence[str]) -> HookedVisionModel:
        """A network with hook points at all these modules; the same object as long as it is the last one asked for.

        Raises:
            InputError: As `plain`, or a module that there is not or that cannot be hooked.
        """
        if self._hooked is None or files != self._files or not _has_just(self._hooked, modules):
            network = self.plain(files)
            self._hooked = HookedVisionModel(network.network, modules)
        return self._hooked

    def facts(self, files: Origin) -> NetworkFacts:
        """What is known of a network; one that was never read is read for it, and takes no other one's place."""
        if files not in self._facts:
            self.note(files, self.plain(files) if self._network is None else self._read(files))
        return self._facts[files]

    def final_module(self, files: Origin) -> str:
        """Module path of a network's final map; it is asked of the network before hook points are put into it."""
        if files not in self._final_modules:
            self._final_modules[files] = self.plain(files).final_module
        return self._final_modules[files]

    def note(self, files: Origin, network: Classifier) -> None:
        """Take down the facts of a network that these files hold."""
        if files in self._facts:
            return
        metadata = network.source.get("metadata") or {}
        said = metadata.get("concepts", metadata.get("concept"))
        self._facts[files] = NetworkFacts(
            architecture=network.architecture,
            kind=kind_of_network(network),
            preprocessing=network.preprocessing,
            image_size=network.image_size,
            n_class=network.n_class,
            concepts=(said,) if isinstance(said, str) else tuple(map(str, said or ())),
            weights=network.fingerprint(),
            encoder=network.fingerprint(with_head=False),
            head=copy.deepcopy(head_of(network)),
        )

    def _read(self, origin: Origin) -> Classifier:
        """The network from where it comes, in evaluation mode on the CPU."""
        if not isinstance(origin, Start):
            return load_classifier(*origin, functions=self._functions)
        preprocessing: dict[str, Any] = json.loads(origin.preprocessing)
        for name, value in preprocessing.items():
            preprocessing[name] = tuple(value) if isinstance(value, list) else value
        if origin.library == "file":
            read = load_classifier(origin.architecture, functions=self._functions)
            read.preprocessing = replace(read.preprocessing, **preprocessing)
            return read
        settings: dict[str, Any] = {
            "weights": origin.weights,
            "arguments": json.loads(origin.arguments),
            "image_size": origin.image_size,
            "preprocessing": preprocessing,
            "seed": origin.seed,
            "prefix": origin.prefix,
        }
        n_class = None if origin.with_head else 0
        if origin.library == "timm":
            return new_timm_classifier(str(origin.architecture), n_class, **settings)
        return new_backbone_classifier(origin.library, str(origin.architecture), n_class, **settings)  # type: ignore[arg-type]


def kind_of_network(network: Classifier) -> str:
    """Whose code and weights a network has: those of Mammo-CLIP, or an architecture of a library."""
    return library_of(network.description(), network.source)


def _has_just(hooked: HookedVisionModel, modules: Sequence[str]) -> bool:
    """Whether a wrapper's hook points are those at these modules."""
    try:
        return {hooked.resolve_hook_name(module) for module in modules} == set(hooked.hook_shapes)
    except InputError:
        return False
