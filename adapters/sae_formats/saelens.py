"""SAEs in SAELens's own form: its folders, and its weights as a file of their own."""

__all__ = ["DIGESTS", "load_saelens_folder", "SAELens", "SAELENS_FILES", "SAELensWeights", "TRAINING", "unregistered"]

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import sae_lens
from sae_lens import SAE, TrainingSAE
from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME, ACTIVATION_WHITENING_FILENAME
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

from mammosae_plugin.adapters.checkpoints import (
    CheckpointFormatError,
    check_keys,
    refuse_not_finite,
    refuse_what_was_never_a_checkpoint,
)
from mammosae_plugin.adapters.input_scaling import NOT_IN_THE_WEIGHTS, fold_scaling_beside
from mammosae_plugin.adapters.sae_formats.parts import Opened, Parts, SAEFormat, refused, shape_of
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json, sha256_of_file

SAELENS_FILES = ("cfg.json", "sae_weights.safetensors")

_SAVED = f"save it as {SAELENS_FILES[1]} (safetensors.torch.save_file) beside its {SAELENS_FILES[0]}"
_SCALING = (ACTIVATION_SCALER_CFG_FILENAME, ACTIVATION_WHITENING_FILENAME)

TRAINING, DIGESTS = "training.json", "files"
"""What `train_sae` leaves beside an SAE, and where in it the SHA-256 of the SAE's files stand."""


class SAELens(SAEFormat):
    """A folder that SAELens wrote, or the file of weights in it."""

    name = "saelens"
    title = "an SAE in SAELens's format"
    library = "SAELens"
    layouts = (SAELENS_FILES,)
    loads_with = "load_vision_sae"

    def recognises(self, opened: Opened) -> bool:
        return opened.layout == SAELENS_FILES or (
            opened.file.name == SAELENS_FILES[1] and opened.beside(SAELENS_FILES[0]) is not None
        )

    def read(self, opened: Opened) -> Parts:
        if opened.beside_json(SAELENS_FILES[0]).get("normalize_activations") in NOT_IN_THE_WEIGHTS:
            for name in _SCALING:  # from the Hub these come only when they are asked for
                opened.beside(name)
        sae = load_saelens_folder(opened.file.parent)
        return Parts(sae.cfg.architecture(), sae.state_dict(), sae=sae)

    def facts(self, opened: Opened) -> dict[str, Any]:
        config = opened.beside_json(SAELENS_FILES[0])
        metadata = config["metadata"] if isinstance(config.get("metadata"), dict) else {}
        return {
            **{name: config.get(name) for name in ("architecture", "d_in", "d_sae")},
            "hook_name": metadata.get("hook_name"),
            "top_level": tuple(config)[:20],
        }

    def kind(self, opened: Opened) -> str:
        return "saelens folder" if opened.layout is not None else "saelens weights"


_BARE: dict[str, set[str]] = {
    "standard": {"W_enc", "b_enc", "W_dec", "b_dec"},
    "jumprelu": {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"},
    "gated": {"W_enc", "b_gate", "b_mag", "r_mag", "W_dec", "b_dec"},
}


class SAELensWeights(SAEFormat):
    """Weights under SAELens's names, without the config that says how they are used."""

    name = "saelens-weights"
    title = "the bare weights of an SAE under SAELens's names"
    library = "SAELens"

    def recognises(self, opened: Opened) -> bool:
        return {"W_enc", "W_dec", "b_dec"} <= set(opened.tensors)

    def read(self, opened: Opened) -> Parts:
        tensors = opened.tensors
        architecture = next((name for name, keys in _BARE.items() if keys == set(tensors)), None)
        if architecture is None:
            what = ", ".join(sorted(set(tensors).difference(*_BARE.values()))[:3]) or "other tensors than those"
            raise refused(
                opened, f"holds {what} beside an SAE's weights, of an architecture that cannot be told; {_SAVED}"
            )
        if opened.asked != self.name:
            raise refused(
                opened,
                f"is {self.title}, without the config that says how they are used; {_SAVED}, or "
                f'load_sae(path, format="{self.name}") takes them for a {architecture} SAE whose b_dec is taken from '
                "the input first",
            )
        d_in, d_sae = shape_of(opened, self.title, tensors, "W_enc")
        shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
        expected = {name: shapes.get(name, (d_sae,)) for name in tensors}
        check_keys(tensors, expected, where=str(opened.file), what=f"an SAE of {d_in} x {d_sae}")
        return Parts(architecture, tensors, metadata={"assumed": "SAELens's defaults: no config came with the weights"})

    def kind(self, opened: Opened) -> str:  # noqa: ARG002
        return "saelens weights"


def load_saelens_folder(folder: Path) -> SAE[Any]:
    """The SAE in a folder that SAELens wrote, in the form for use, with SAELens's errors as ours.

    Raises:
        CheckpointFormatError: the files are there but are no SAE that SAELens can load.
        InputError: a file is missing, or `cfg.json` is no JSON.
    """
    missing = [name for name in SAELENS_FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder} holds no SAE in SAELens's format: it has no {' and '.join(missing)}")
    config = read_json(folder / "cfg.json")
    if not isinstance(config, dict) or "d_in" not in config or "d_sae" not in config:
        raise CheckpointFormatError(f"{folder / 'cfg.json'} is not a SAELens config: it has no d_in and d_sae")
    architecture = str(config.get("architecture", "standard"))
    in_training = architecture not in SAE_CLASS_REGISTRY and architecture in SAE_TRAINING_CLASS_REGISTRY
    if architecture not in SAE_CLASS_REGISTRY and not in_training:
        raise CheckpointFormatError(f"{folder}: {unregistered(architecture)}")
    refuse_what_was_never_a_checkpoint(folder / "sae_weights.safetensors")
    _refuse_changed(folder)
    try:
        sae: SAE[Any] = _of_training(folder) if in_training else SAE.load_from_disk(folder)
        if not in_training:
            fold_scaling_beside(sae, folder)
    except InputError:
        raise
    except KeyError as error:
        raise CheckpointFormatError(_lacks(folder, architecture, error)) from error
    except Exception as error:  # SAELens has no error type of its own
        raise CheckpointFormatError(
            f"{folder} is not an SAE that sae-lens {sae_lens.__version__} can load: {_first_line(error)}"
        ) from error
    refuse_not_finite(sae.state_dict(), where=str(folder / SAELENS_FILES[1]))
    return sae


def _of_training(folder: Path) -> SAE[Any]:
    """The form for use of an SAE whose architecture is one of training only, such as batch top-k."""
    training: TrainingSAE[Any] = TrainingSAE.load_from_disk(folder)
    fold_scaling_beside(training, folder)
    with tempfile.TemporaryDirectory() as temporary:  # SAELens makes that form when it saves one
        training.save_inference_model(temporary)
        return SAE.load_from_disk(temporary)


def _refuse_changed(folder: Path) -> None:
    """Refuse an SAE of which `train_sae` says that it wrote other files; SAELens's format has no checksum."""
    said = read_json(folder / TRAINING) if (folder / TRAINING).is_file() else None
    digests = said.get(DIGESTS) if isinstance(said, dict) else None
    for name, digest in digests.items() if isinstance(digests, dict) else ():
        if (folder / name).is_file() and sha256_of_file(folder / name) != digest:
            raise CheckpointFormatError(
                f"{folder / name} was changed after the training wrote it; restore it, or move {TRAINING} away "
                "to load it as it is"
            )


def _lacks(folder: Path, architecture: str, error: KeyError) -> str:
    """Which entry of its config or which tensor an SAE of SAELens lacks."""
    name, example = str(error.args[0]), {"dtype": '"float32"', "device": '"cpu"'}
    entries = {entry.name for entry in dataclasses.fields(SAE_CLASS_REGISTRY[architecture][1])}
    if name not in entries:
        return f"{folder / SAELENS_FILES[1]} lacks {name!r}, without which sae-lens {sae_lens.__version__} loads no SAE"
    return (
        f"{folder / SAELENS_FILES[0]} has no entry {name!r}, without which sae-lens {sae_lens.__version__} loads "
        f'no SAE; add "{name}": {example.get(name, "...")} as the SAE was trained'
    )


def unregistered(architecture: str) -> str:
    """What to do about an architecture of which sae-lens has no SAE for use."""
    return (
        f"sae-lens {sae_lens.__version__} has no inference SAE of the architecture {architecture!r}; register it with "
        "sae_lens.register_sae_class"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no reason given')}"
