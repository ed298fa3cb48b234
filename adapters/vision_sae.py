"""Mammo-SAE checkpoints as plain SAELens SAEs.

The file of the Mammo-SAE release (Nakka, arXiv 2507.15227) is a state dict whose tensors may carry a leading component
axis of length 1. Its formula, with a bias b that is taken from the input and added to the output again,

    z = ReLU((x - b) E^T + c),   x' = z D^T + b

is SAELens's `standard` architecture with `apply_b_dec_to_input=True`: W_enc = E^T, b_enc = c, W_dec = D^T, b_dec = b.
"""

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sae_lens
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from sae_lens import SAE, StandardSAE

from mammosae_plugin import __version__
from mammosae_plugin.adapters.checkpoints import CheckpointFormatError, check_keys, read_torch_checkpoint
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json, sha256_of_file

DEFAULT_FILENAME = "sparse_autoencoder_final.pt"
HOOK_NAME = "bn2.hook_out"

_BIASES = ("tied_bias", "pre_encoder_bias._bias_reference", "post_decoder_bias._bias_reference")
_MODEL_NAMES = {2048: "mammo_clip_b5", 1408: "mammo_clip_b2"}
_SAELENS_FILES = ("cfg.json", "sae_weights.safetensors")


def load_vision_sae(
    path_or_repo: str | os.PathLike[str], *, filename: str = DEFAULT_FILENAME, revision: str | None = None
) -> StandardSAE:
    """Load a Mammo-SAE checkpoint, or an SAE that SAELens saved, as a SAELens SAE on the CPU.

    Args:
        path_or_repo: a checkpoint file; a folder that holds `filename`; a folder that SAELens wrote (`cfg.json`); or,
            where no such path exists, a Hugging Face repo ("KKNakka/MammoSAE").
        filename: the checkpoint's name inside a folder or repo.
        revision: branch, tag or commit of the repo; only for the Hub. Name a commit where results must be reproducible.

    Returns:
        A `StandardSAE` with float32 weights; its metadata names the hook point, the layout, and the file with its
        SHA-256. A SAELens folder of another architecture gives that architecture's class.

    Raises:
        UnsafeCheckpointError: the file asks for code; none of it was run.
        CheckpointFormatError: the file is not an SAE of a known form.
        InputError: neither a path nor a repo that can be read, or a `revision` for a local path.
    """
    path = Path(path_or_repo)
    if not path.exists():
        if isinstance(path_or_repo, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", path_or_repo):
            converter = functools.partial(vision_sae_huggingface_loader, revision=revision)
            return SAE.from_pretrained(path_or_repo, filename, converter=converter)
        raise InputError(f"{path_or_repo} does not exist, and is no name of a Hugging Face repo (owner/name)")
    if revision is not None:
        raise InputError(f"revision {revision!r} means nothing for the local path {path}; leave it out")
    if path.is_dir() and not (path / filename).exists():
        return _load_saelens_folder(path, filename)
    return SAE.load_from_disk(path / filename if path.is_dir() else path, converter=vision_sae_disk_loader)


def vision_sae_disk_loader(
    path: str | Path, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """For `SAE.load_from_disk(path, converter=vision_sae_disk_loader)`: config and state dict of a Mammo-SAE file.

    Args:
        path: the checkpoint, or a folder that holds `sparse_autoencoder_final.pt`.
        device: goes into the config; SAELens moves the weights.
        cfg_overrides: applied last.

    Raises:
        UnsafeCheckpointError, CheckpointFormatError, InputError: as `load_vision_sae`.
    """
    path = Path(path)
    return _convert(path / DEFAULT_FILENAME if path.is_dir() else path, device, cfg_overrides, source={})


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
    try:
        path = hf_hub_download(repo_id, folder_name, revision=revision, force_download=force_download)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise InputError(
            f"{repo_id} is no local path, and {folder_name} could not be read from a Hugging Face repo of that name: "
            f"{_first_line(error)}"
        ) from error
    source = {"source_repo": repo_id, "source_revision": revision}
    return *_convert(Path(path), device, cfg_overrides, source=source, name=folder_name), None


def _load_saelens_folder(folder: Path, filename: str) -> Any:
    missing = [name for name in _SAELENS_FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder} holds no SAE: neither {filename} nor {' and '.join(missing)}")
    config = read_json(folder / "cfg.json")
    if not isinstance(config, dict) or "d_in" not in config or "d_sae" not in config:
        raise CheckpointFormatError(f"{folder / 'cfg.json'} is not a SAELens config: it has no d_in and d_sae")
    try:
        return SAE.load_from_disk(folder)
    except Exception as error:  # SAELens has no error type of its own
        raise CheckpointFormatError(
            f"{folder} is not an SAE that sae-lens {sae_lens.__version__} can load: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no reason given')}"


def _convert(
    path: Path,
    device: str,
    cfg_overrides: Mapping[str, Any] | None,
    *,
    source: Mapping[str, Any],
    name: str | None = None,
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    weights = _checked_weights(path)
    d_sae, d_in = weights["encoder._weight"].shape
    cfg = {
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
            "model_name": _MODEL_NAMES.get(d_in, "mammo_clip"),
            "hook_name": HOOK_NAME,
            "layout": "channels_last",
            "source_file": name or path.name,
            "source_sha256": sha256_of_file(path),
            **source,
        },
        **(cfg_overrides or {}),
    }
    state_dict = {
        "W_enc": weights["encoder._weight"].T,
        "b_enc": weights["encoder._bias"],
        "W_dec": weights["decoder._weight"].T,
        "b_dec": weights["tied_bias"],
    }
    # Copies, because the tensors read are mapped from the file and SAELens adopts what it is given.
    return cfg, {
        key: tensor.to(torch.float32).clone(memory_format=torch.contiguous_format) for key, tensor in state_dict.items()
    }


def _checked_weights(path: Path) -> dict[str, torch.Tensor]:
    """The state dict without component axis, with consistent shapes and one bias."""
    content = read_torch_checkpoint(path)
    encoder = content.get("encoder._weight") if isinstance(content, Mapping) else None
    if not isinstance(encoder, torch.Tensor) or encoder.dim() not in (2, 3):
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
