"""The files that this package saves classifiers in: any network of the protocol, as it says itself what it is."""

__all__ = [
    "is_classifier_folder", "read_saved_classifier", "save_classifier", "save_classifier_folder",
    "saved_classifier_header",
]  # fmt: skip

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mammosae_plugin.adapters.architectures import described_network
from mammosae_plugin.adapters.checkpoints import CheckpointFormatError, check_keys
from mammosae_plugin.adapters.classifier import Classifier
from mammosae_plugin.adapters.latent_edits import attach_edits, edits_of
from mammosae_plugin.adapters.mammo_clip import MammoClipClassifier
from mammosae_plugin.adapters.sources import CLASSIFIER_FILES, Source, classifier_weights, origin_of
from mammosae_plugin.adapters.timm_classifier import TimmClassifier
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import write_safetensors, write_text

_HEADER_KEY = "mammosae_classifier"
_FIRST_KIND = "mammo_clip"  # of files that name none
_OF_LIBRARY = "network"
_EDITS = "latent_edits"  # what a repair folded into it; releases that do not know it refuse its tensors
_KINDS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Classifier]] = {
    _FIRST_KIND: MammoClipClassifier.described,
    "timm": TimmClassifier.described,
}
_VERSION_OF_KIND = {_FIRST_KIND: 1, "timm": 2, _OF_LIBRARY: 3}  # releases that know Mammo-CLIP alone ask to be updated


def is_classifier_folder(path: Path) -> bool:
    """Whether `save_classifier_folder` wrote a folder."""
    return all((path / name).is_file() for name in CLASSIFIER_FILES)


def save_classifier_folder(
    model: Classifier,
    folder: str | os.PathLike[str],
    *,
    source: Mapping[str, Any],
    metadata: Mapping[str, Any],
) -> None:
    """Write a classifier as a folder of `CLASSIFIER_FILES`, to be read by `load_classifier`.

    The tensors are the model's state dict, without metadata; what `save_classifier` has in its header is `config.json`.

    Args:
        model: the classifier.
        folder: where to write.
        source: as the model's `source`, as far as it is to be told.
        metadata: as for `save_classifier`.

    Raises:
        InputError: `metadata` is not plain JSON.
    """
    config, weights = (Path(folder) / name for name in CLASSIFIER_FILES)
    write_text(config, json.dumps(_header(model, source, metadata), indent=1) + "\n")
    write_safetensors(weights, _tensors(model))


def save_classifier(model: Classifier, path: str | os.PathLike[str], *, metadata: Mapping[str, Any]) -> None:
    """Write a classifier as safetensors, to be read by `load_classifier`.

    The tensors are the network's state dict under timm's names. The header's only metadata entry,
    `mammosae_classifier`, is a JSON object: format_version, what the network's `description` says, source, and
    `metadata` as given.

    Args:
        model: the classifier, in whatever mode.
        path: where to write; a killed process leaves the old file or the new one.
        metadata: plain JSON that says what the classifier is: concept, classes, preprocessing, ...; it comes back as
            `source["metadata"]`.

    Raises:
        InputError: `metadata` is not plain JSON.
    """
    write_safetensors(path, _tensors(model), {_HEADER_KEY: json.dumps(_header(model, model.source, metadata))})


def _tensors(model: Classifier) -> dict[str, torch.Tensor]:
    tensors = {name: tensor.detach().cpu() for name, tensor in model.network.state_dict().items()}
    places = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    shared = {name for name, tensor in tensors.items() if places[tensor.untyped_storage().data_ptr()] > 1}
    return {name: tensor.clone() if name in shared else tensor for name, tensor in tensors.items()}


def _header(model: Classifier, source: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    said = model.description()
    header = {
        "format_version": _VERSION_OF_KIND[said.get("kind", _FIRST_KIND)],
        **said,
        **({_EDITS: edits} if (edits := edits_of(model.network)) else {}),
        "source": dict(source),
        "metadata": dict(metadata),
    }
    try:
        json.dumps(header, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the classifier's metadata is not plain JSON: {error}") from error
    return header


def saved_classifier_header(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """What `save_classifier` says in a safetensors file's metadata; None for a file that it did not write.

    A damaged header is an empty one.
    """
    text = metadata.get(_HEADER_KEY)
    if text is None:
        return None
    try:
        header = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return header if isinstance(header, dict) else {}


def read_saved_classifier(source: Source, *, device: str = "cpu", functions: Collection[str] = ()) -> Classifier:
    """The classifier in a file that `save_classifier`, or a folder that `save_classifier_folder` wrote.

    Args:
        source: the file or folder.
        device: "meta" checks all that loading checks, and gives a network without weights.
        functions: as for `load_classifier`.

    Raises:
        CheckpointFormatError: the file is another or a damaged one.
        InputError: no library here has the file's architecture, or a function makes it that is not among `functions`.
    """
    path = source.path
    config = path / CLASSIFIER_FILES[0] if path.is_dir() else None
    try:
        with safe_open(classifier_weights(path), framework="pt") as file:
            header_text = config.read_text(encoding="utf-8") if config else (file.metadata() or {}).get(_HEADER_KEY)
            state_dict = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise CheckpointFormatError(f"{path} is damaged or no safetensors file: {error}") from error
    if header_text is None:
        raise CheckpointFormatError(f"{path} is a safetensors file, but not one that save_classifier wrote")
    try:
        header = json.loads(header_text)
        kind = header.get("kind", _FIRST_KIND)
        if header["format_version"] != _VERSION_OF_KIND.get(kind):
            known = _VERSION_OF_KIND.get(kind, max(_VERSION_OF_KIND.values()))
            raise CheckpointFormatError(
                f"{path} has format version {header['format_version']}; this release reads {known}, update it"
            )
        origin = {
            "kind": "saved_classifier",
            **origin_of([source]),
            "metadata": header["metadata"],
            "trained_from": header["source"],
        }
        with torch.device(device):
            of_library = partial(described_network, functions=functions)
            model = (of_library if kind == _OF_LIBRARY else _KINDS[kind])(header, origin)
            attach_edits(model.network, header.get(_EDITS, ()))
    except (KeyError, TypeError, IndexError, AttributeError, json.JSONDecodeError) as error:
        raise CheckpointFormatError(
            f"{path} has a damaged header at {config.name if config else _HEADER_KEY}: {type(error).__name__}: {error}"
        ) from error
    expected = {name: tensor.shape for name, tensor in model.network.state_dict().items()}
    check_keys(state_dict, expected, where=str(path), what=f"a {header['architecture']} classifier")
    model.network.load_state_dict(state_dict)
    return model
