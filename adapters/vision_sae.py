"""Checkpoints of Mammo-SAE and of SAIL (`sail.py`) as plain SAELens SAEs.

The file of the Mammo-SAE release (Nakka, arXiv 2507.15227) is a state dict whose tensors may carry a leading component
axis of length 1. Its formula, with a bias b that is taken from the input and added to the output again,

    z = ReLU((x - b) E^T + c),   x' = z D^T + b

is SAELens's `standard` architecture with `apply_b_dec_to_input=True`: W_enc = E^T, b_enc = c, W_dec = D^T, b_dec = b.
"""

__all__ = [
    "DEFAULT_FILENAME", "HOOK_NAME", "load_saelens_folder", "load_vision_sae", "parse_mammo_sae", "SAELENS_FILES",
    "unregistered", "vision_sae_disk_loader", "vision_sae_huggingface_config", "vision_sae_huggingface_loader",
]  # fmt: skip

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sae_lens
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

from mammosae_plugin.adapters.checkpoints import (
    CheckpointFormatError,
    check_keys,
    read_torch_checkpoint,
    refuse_not_finite,
    refuse_unpacked,
    refuse_what_was_never_a_checkpoint,
    unwrapped,
)
from mammosae_plugin.adapters.input_scaling import fold_scaling_beside
from mammosae_plugin.adapters.other_forms import peers_sae, peers_sae_folder, safetensors_sae
from mammosae_plugin.adapters.sail import is_sail, parse_sail
from mammosae_plugin.adapters.sources import HUB_SCHEME, Source, find_source
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json, sha256_of_file
from mammosae_plugin.version import __version__

DEFAULT_FILENAME = "sparse_autoencoder_final.pt"
HOOK_NAME = "bn2.hook_out"

_BIASES = ("tied_bias", "pre_encoder_bias._bias_reference", "post_decoder_bias._bias_reference")
_MODEL_NAMES = {2048: "mammo_clip_b5", 1408: "mammo_clip_b2"}
SAELENS_FILES = ("cfg.json", "sae_weights.safetensors")


TRAINING, DIGESTS = "training.json", "files"
"""What `train_sae` leaves beside an SAE, and where in it the SHA-256 of the SAE's files stand."""


def load_vision_sae(
    path_or_repo: str | os.PathLike[str], *, filename: str = DEFAULT_FILENAME, revision: str | None = None
) -> SAE[Any]:
    """Load a checkpoint of Mammo-SAE or of SAIL, or an SAE that SAELens saved, as a SAELens SAE on the CPU.

    Args:
        path_or_repo: a checkpoint file; a folder that holds `filename`; a folder that SAELens wrote (`cfg.json`);
            where no such path exists, a Hugging Face repo ("KKNakka/MammoSAE", or "pwesp/sail" with a filename); or
            "hub://owner/name[@revision]/path/in/repo", of a checkpoint or of a folder that SAELens wrote.
        filename: the checkpoint's or folder's name inside a folder or repo.
        revision: branch, tag or commit of the repo; only for the Hub. Name a commit where results must be reproducible.

    Returns:
        Of a checkpoint a `StandardSAE` with float32 weights, whose metadata names the file with its SHA-256, repo,
        revision and commit; of a Mammo-SAE file the hook point and the layout too; of a SAIL file `levels`, `k` and
        `input_normalization` "unit_l2": it wants rows of length 1, which this package gives it and SAELens does not.
        Of a SAELens folder the class of its architecture, with the metadata that it was saved with. Of a checkpoint of
        a training that is under way the form for use, with the scale of its rows folded in (`folded_scaling_factor`).

    Raises:
        UnsafeCheckpointError: the file asks for code; none of it was run.
        CheckpointFormatError: the file is not an SAE of a known form.
        InputError: neither a path nor a repo that can be read, or a `revision` for a local path.
    """
    source = find_source(
        path_or_repo,
        None if filename == DEFAULT_FILENAME else filename,
        revision=revision,
        default=DEFAULT_FILENAME,
        folder_files=SAELENS_FILES,
    )
    if not source.path.exists():
        raise InputError(f"{source.path} does not exist; give a checkpoint, a folder that SAELens wrote, or a Hub repo")
    if source.path.is_dir():
        return load_saelens_folder(source.path)

    def convert(
        path: str | Path,  # noqa: ARG001  # SAELens names it
        device: str,
        cfg_overrides: dict[str, Any] | None,
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        return _convert(source, device, cfg_overrides)

    sae: SAE[Any] = SAE.load_from_disk(source.path, converter=convert)
    return sae


def vision_sae_disk_loader(
    path: str | Path, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """For `SAE.load_from_disk(path, converter=vision_sae_disk_loader)`: config and state dict of a checkpoint.

    Args:
        path: the checkpoint of Mammo-SAE or of SAIL, or a folder that holds `sparse_autoencoder_final.pt`.
        device: goes into the config; SAELens moves the weights.
        cfg_overrides: applied last.

    Raises:
        UnsafeCheckpointError, CheckpointFormatError, InputError: as `load_vision_sae`.
    """
    return _convert(find_source(Path(path), default=DEFAULT_FILENAME), device, cfg_overrides)


def vision_sae_huggingface_loader(
    repo_id: str,
    folder_name: str,
    device: str = "cpu",
    force_download: bool = False,
    cfg_overrides: dict[str, Any] | None = None,
    *,
    revision: str | None = None,
) -> tuple[dict[str, Any], dict[str, torch.Tensor], None]:
    """For `SAE.from_pretrained(repo_id, filename, converter=vision_sae_huggingface_loader)`.

    SAELens passes no revision; bind it: `functools.partial(vision_sae_huggingface_loader, revision="<commit>")`.

    Args:
        repo_id: Hugging Face repo.
        folder_name: SAELens's name for its second argument; here the checkpoint's file name in the repo.
        device: goes into the config; SAELens moves the weights.
        force_download: download again even where the file is cached.
        cfg_overrides: applied last.
        revision: branch, tag or commit.

    Returns:
        Config, state dict, and None for the sparsity that these files do not hold.

    Raises:
        UnsafeCheckpointError, CheckpointFormatError, InputError: as `load_vision_sae`.
    """
    source = find_source(HUB_SCHEME + repo_id, folder_name, revision=revision, force_download=force_download)
    return *_convert(source, device, cfg_overrides), None


def vision_sae_huggingface_config(
    repo_id: str,
    folder_name: str,
    device: str | None = None,
    force_download: bool = False,
    cfg_overrides: dict[str, Any] | None = None,
    *,
    revision: str | None = None,
) -> dict[str, Any]:
    """The config alone of `vision_sae_huggingface_loader`, in the form of SAELens's config getters.

    The file is downloaded, because the shapes are in it; nothing of it is copied into memory.
    """
    source = find_source(HUB_SCHEME + repo_id, folder_name, revision=revision, force_download=force_download)
    weights, said = _parse(source.path)
    return _config(weights, said, source, device or "cpu", cfg_overrides)


def load_saelens_folder(folder: Path) -> SAE[Any]:
    """The SAE in a folder that SAELens wrote, in the form for use, with SAELens's errors as ours.

    Raises:
        CheckpointFormatError: the files are there but are no SAE that SAELens can load.
        InputError: a file is missing, or `cfg.json` is no JSON.
    """
    refuse_unpacked(folder)
    missing = [name for name in SAELENS_FILES if not (folder / name).is_file()]
    if missing and (peer := peers_sae_folder(folder)) is not None:
        raise CheckpointFormatError(f"{folder} is {peer}")
    if missing:
        raise InputError(f"{folder} holds no SAE: neither {DEFAULT_FILENAME} nor {' and '.join(missing)}")
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


def _convert(
    source: Source, device: str, cfg_overrides: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    weights, said = _parse(source.path)
    # Copies, because the tensors read are mapped from the file and SAELens adopts what it is given.
    copies = {
        key: tensor.to(torch.float32).clone(memory_format=torch.contiguous_format) for key, tensor in weights.items()
    }
    return _config(weights, said, source, device, cfg_overrides), copies


def _parse(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """SAELens's state dict, of views, and what the metadata say of it."""
    if (peer := safetensors_sae(path)) is not None:
        raise CheckpointFormatError(f"{path} is {peer}")
    content = read_torch_checkpoint(path)
    if is_sail(content):
        return parse_sail(content, path)
    weights = parse_mammo_sae(content, path)
    state_dict = {
        "W_enc": weights["encoder._weight"].T,
        "b_enc": weights["encoder._bias"],
        "W_dec": weights["decoder._weight"].T,
        "b_dec": weights["tied_bias"],
    }
    model = _MODEL_NAMES.get(len(state_dict["W_enc"]), "mammo_clip")
    return state_dict, {"model_name": model, "hook_name": HOOK_NAME, "layout": "channels_last"}


def _config(
    weights: Mapping[str, torch.Tensor],
    said: Mapping[str, Any],
    source: Source,
    device: str,
    cfg_overrides: Mapping[str, Any] | None,
) -> dict[str, Any]:
    d_in, d_sae = weights["W_enc"].shape
    hub = {f"source_{key}": value for key, value in (source.hub_record() or {}).items()}
    return {
        "architecture": "standard",
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": device,
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": {
            # Without its version here SAELens takes the config for one of before 6.0 and drops our metadata.
            "sae_lens_version": sae_lens.__version__,
            "mammosae_plugin_version": __version__,
            **said,
            "source_file": source.name,
            "source_sha256": sha256_of_file(source.path),
            **hub,
        },
        **(cfg_overrides or {}),
    }


def parse_mammo_sae(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """The state dict without component axis, with consistent shapes and one bias.

    Args:
        content: what `read_torch_checkpoint` gave.
        path: the file, for messages.

    Raises:
        CheckpointFormatError: it is not a Mammo-SAE checkpoint, or holds more than one SAE.
    """
    content = unwrapped(content, where=str(path)) if isinstance(content, Mapping) else content
    encoder = content.get("encoder._weight") if isinstance(content, Mapping) else None
    if not isinstance(encoder, torch.Tensor) or encoder.dim() not in (2, 3):
        if encoder is not None:
            found = f"of shape {tuple(encoder.shape)}" if isinstance(encoder, torch.Tensor) else type(encoder).__name__
            raise CheckpointFormatError(
                f"{path} is not a Mammo-SAE checkpoint: its encoder._weight is {found}, not a tensor with 2 or 3 axes"
            )
        if (peer := peers_sae(content)) is not None:
            raise CheckpointFormatError(f"{path} is {peer}")
        held = ", ".join(map(str, list(content)[:4])) if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise CheckpointFormatError(f"{path} is not a Mammo-SAE checkpoint: it has no encoder._weight, it holds {held}")
    if encoder.dim() == 3 and len(encoder) != 1:
        raise CheckpointFormatError(
            f"{path} holds {len(encoder)} SAEs (component axis); only files with one can be loaded"
        )
    component = (1,) if encoder.dim() == 3 else ()
    d_sae, d_in = encoder.shape[-2:]
    shapes = {
        "encoder._weight": (*component, d_sae, d_in),
        "encoder._bias": (*component, d_sae),
        "decoder._weight": (*component, d_in, d_sae),
        **dict.fromkeys(_BIASES, (*component, d_in)),
    }
    check_keys(content, shapes, where=str(path), what=f"a Mammo-SAE checkpoint of {d_in} x {d_sae}")
    different = [bias for bias in _BIASES[1:] if not torch.equal(content[bias], content["tied_bias"])]
    if different:
        raise CheckpointFormatError(f"{path} has a bias {different[0]} that differs from tied_bias; it should be tied")
    return {key: content[key][0] if component else content[key] for key in shapes}
