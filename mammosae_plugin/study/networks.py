"""The networks of a study, each read from disk once while a step needs it.

The last one that something was computed with stays in memory, with the study's hook points in it. What a study must
know of the others, their heads and fingerprints, is noted when they are read.
"""

__all__ = ["Files", "NetworkFacts", "Networks", "OfTimm", "Origin"]

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from mammosae_plugin.adapters import Classifier, HookedVisionModel, Preprocessing, load_classifier, new_timm_classifier
from mammosae_plugin.adapters.classifier import head_of
from mammosae_plugin.errors import InputError


@dataclass(frozen=True)
class OfTimm:
    """One of timm's architectures to start from, as for `new_timm_classifier`."""

    architecture: str
    weights: str | Path
    image_size: tuple[int, int]
    seed: int

    @property
    def name(self) -> str:
        """How messages call it."""
        return self.architecture


Files = tuple[Path, ...]
"""What `load_classifier` is given."""
Origin = Files | OfTimm
"""Where a network comes from."""


@dataclass(frozen=True)
class NetworkFacts:
    """What is known of a network when it is no longer in memory.

    Attributes:
        architecture: timm's name.
        preprocessing: how images become its input.
        image_size: (H, W) of the only images that it takes; None where any size will do.
        n_class: outputs of its head.
        concepts: those that a saved classifier's own metadata name; empty where they name none.
        weights: fingerprint of all weights.
        encoder: fingerprint of the weights without the head.
        head: the linear head; None without classes.
    """

    architecture: str
    preprocessing: Preprocessing
    image_size: tuple[int, int] | None
    n_class: int
    concepts: tuple[str, ...]
    weights: str
    encoder: str
    head: nn.Linear | None


class Networks:
    """Reads networks and keeps the last one."""

    def __init__(self) -> None:
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
            self._network, self._files = _read(files), files
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
            self.note(files, self.plain(files) if self._network is None else _read(files))
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
            preprocessing=network.preprocessing,
            image_size=network.image_size,
            n_class=network.n_class,
            concepts=(said,) if isinstance(said, str) else tuple(map(str, said or ())),
            weights=network.fingerprint(),
            encoder=network.fingerprint(with_head=False),
            head=copy.deepcopy(head_of(network)),
        )


def _read(origin: Origin) -> Classifier:
    """The network from where it comes, in evaluation mode on the CPU."""
    if isinstance(origin, OfTimm):
        return new_timm_classifier(
            origin.architecture, weights=origin.weights, image_size=origin.image_size, seed=origin.seed
        )
    return load_classifier(*origin)


def _has_just(hooked: HookedVisionModel, modules: Sequence[str]) -> bool:
    """Whether a wrapper's hook points are those at these modules."""
    try:
        return {hooked.resolve_hook_name(module) for module in modules} == set(hooked.hook_shapes)
    except InputError:
        return False
