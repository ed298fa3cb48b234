"""The networks of a study, each read from disk once while a step needs it.

The last one that something was computed with stays in memory, with the study's hook points in it. What a study must
know of the others, their heads and fingerprints, is noted when they are read.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from mammosae_plugin.adapters import HookedVisionModel, MammoClipClassifier, load_mammo_clip
from mammosae_plugin.errors import InputError
from mammosae_plugin.provenance import tensors_fingerprint

Files = tuple[Path, ...]
"""What `load_mammo_clip` is given."""


@dataclass(frozen=True)
class NetworkFacts:
    """What is known of a network when it is no longer in memory.

    Attributes:
        architecture: timm's name.
        n_class: outputs of its head.
        concepts: those that a saved classifier's own metadata name; empty where they name none.
        weights: fingerprint of all weights.
        encoder: fingerprint of the weights without the head.
        head: the linear head; None without classes.
        final_module: module path of the final map.
    """

    architecture: str
    n_class: int
    concepts: tuple[str, ...]
    weights: str
    encoder: str
    head: nn.Linear | None
    final_module: str


class Networks:
    """Reads networks and keeps the last one."""

    def __init__(self) -> None:
        self._files: Files | None = None
        self._network: MammoClipClassifier | None = None
        self._hooked: HookedVisionModel | None = None
        self._facts: dict[Files, NetworkFacts] = {}

    def plain(self, files: Files) -> MammoClipClassifier:
        """A network without hooks, in evaluation mode on the CPU.

        Raises:
            InputError: A file cannot be read, or is none of a network.
        """
        if self._hooked is not None:
            self._hooked.close()
            self._hooked = None
        if files != self._files or self._network is None:
            self._files = self._network = None  # the old one goes before the new one comes
            self._network, self._files = load_mammo_clip(*files), files
            self.note(files, self._network)
        return self._network

    def hooked(self, files: Files, modules: Sequence[str]) -> HookedVisionModel:
        """A network with hook points at all these modules; the same object as long as it is the last one asked for.

        Raises:
            InputError: As `plain`, or a module that there is not or that cannot be hooked.
        """
        if self._hooked is None or files != self._files or not _has_just(self._hooked, modules):
            network = self.plain(files)
            self._hooked = HookedVisionModel(network, modules)
        return self._hooked

    def facts(self, files: Files) -> NetworkFacts:
        """What is known of a network; one that was never read is read for it, and takes no other one's place."""
        if files not in self._facts:
            self.note(files, self.plain(files) if self._network is None else load_mammo_clip(*files))
        return self._facts[files]

    def note(self, files: Files, network: MammoClipClassifier) -> None:
        """Take down the facts of a network that these files hold."""
        if files in self._facts:
            return
        state = network.state_dict()
        encoder = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
        head = copy.deepcopy(network.classifier) if isinstance(network.classifier, nn.Linear) else None
        metadata = network.source.get("metadata") or {}
        said = metadata.get("concepts", metadata.get("concept"))
        self._facts[files] = NetworkFacts(
            network.architecture,
            network.n_class,
            (said,) if isinstance(said, str) else tuple(map(str, said or ())),
            tensors_fingerprint(state),
            tensors_fingerprint(encoder),
            head,
            list(network.layer_aliases.values())[-1],
        )


def _has_just(hooked: HookedVisionModel, modules: Sequence[str]) -> bool:
    """Whether a wrapper's hook points are those at these modules."""
    try:
        return {hooked.resolve_hook_name(module) for module in modules} == set(hooked.hook_shapes)
    except InputError:
        return False
