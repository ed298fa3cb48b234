"""Saving an SAE so that plain SAELens loads it, whatever its architecture.

SAELens saves some architectures in a form that its own `SAE.load_from_disk` refuses (a batch top-k SAE as "batchtopk"
instead of as the JumpReLU SAE that it becomes). Here every SAE is saved in its inference form, and read back by SAELens
before anything appears under the name that was asked for.
"""

__all__ = ["CFG", "save_sae", "WEIGHTS"]

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_lens import SAE, TrainingSAE

from mammosae_plugin.adapters.input_scaling import NOT_IN_THE_WEIGHTS
from mammosae_plugin.adapters.sae_formats.saelens import unregistered
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import TEMPORARY, local_path, sha256_of_file

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"


def save_sae(sae: SAE[Any], folder: str | os.PathLike[str], *, metadata: Mapping[str, Any] | None = None) -> Path:
    """Save an SAE in SAELens's format, in the form in which it is used.

    A training SAE is saved as its inference SAE (batch top-k and Matryoshka batch top-k as JumpReLU). The norms of the
    decoder's rows are folded into the latents where the architecture allows it: every row then has norm 1, a latent is
    in units of the layer's own values, and the reconstruction is the same. Not folded are top-k SAEs that select
    without regard to the norms, matching pursuit, and others for which SAELens refuses. The SAE given is not changed.

    The folder is complete when it holds `cfg.json`, which is written last; a killed process leaves none, and saving
    again completes it. Other files in the folder stay.

    Args:
        sae: a SAELens `TrainingSAE` or `SAE`.
        folder: where `cfg.json` and `sae_weights.safetensors` go; made if need be.
        metadata: plain JSON added to the SAE's metadata (hook_name, layout, ...), over entries of the same name.

    Returns:
        The folder.

    Raises:
        InputError: the metadata is not plain JSON; the folder holds another SAE; the SAE's normalisation of activations
            was not folded into its weights; or sae-lens has no inference SAE of its architecture.
    """
    folder = local_path(folder)
    if not isinstance(sae, SAE):
        raise InputError(f"{type(sae).__name__} is no SAELens SAE; give a TrainingSAE or an SAE")
    if sae.cfg.normalize_activations in NOT_IN_THE_WEIGHTS:
        raise InputError(
            f"the SAE still normalizes activations ({sae.cfg.normalize_activations}) by a scale that is not in its "
            "weights; fold it first (fold_activation_norm_scaling_factor or fold_activation_whitening)"
        )
    added = dict(metadata or {})
    _check_json({**sae.cfg.metadata.to_dict(), **added})
    temporary = folder / f"{TEMPORARY}sae"
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process
    try:
        _write_inference_form(sae, temporary, added)
        if (folder / CFG).exists():
            _refuse_another(folder, temporary)
            return folder
        for name in (WEIGHTS, CFG):
            with (temporary / name).open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary / name, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_inference_form(sae: SAE[Any], folder: Path, metadata: Mapping[str, Any]) -> None:
    if isinstance(sae, TrainingSAE):
        sae.save_inference_model(folder)
    else:
        sae.save_model(folder)
    try:
        inference: Any = SAE.load_from_disk(folder)
    except KeyError as error:  # SAELens's registry of architectures
        raise InputError(unregistered(error.args[0])) from error
    with contextlib.suppress(NotImplementedError):  # SAELens's word for: not without changing which latents are active
        inference.fold_W_dec_norm()
    for key, value in metadata.items():
        inference.cfg.metadata[key] = value
    inference.save_model(folder)


def _refuse_another(folder: Path, temporary: Path) -> None:
    for name in (CFG, WEIGHTS):
        if not (folder / name).exists() or sha256_of_file(folder / name) != sha256_of_file(temporary / name):
            raise InputError(f"{folder} holds another SAE; name another folder or delete that one")


def _check_json(metadata: Mapping[str, Any]) -> None:
    for key, value in metadata.items():
        try:
            json.dumps({key: value}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"the SAE's metadata is not plain JSON at {key!r}: {error}") from error
