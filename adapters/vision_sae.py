"""Checkpoints of Mammo-SAE and of SAIL, and what SAELens saved: `load_sae` under the names that scripts know."""

__all__ = ["load_vision_sae", "vision_sae_disk_loader", "vision_sae_huggingface_loader"]

import os
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE

from mammosae_plugin.adapters.sae_formats.loading import disk_converter, huggingface_converter, load_sae
from mammosae_plugin.adapters.sae_formats.mammo_sae import DEFAULT_FILENAME


def load_vision_sae(
    path_or_repo: str | os.PathLike[str], *, filename: str = DEFAULT_FILENAME, revision: str | None = None
) -> SAE[Any]:
    """Load a checkpoint of Mammo-SAE or of SAIL, or an SAE that SAELens saved, as a SAELens SAE on the CPU.

    What `load_sae` reads besides is read as well.

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
    name = None if filename == DEFAULT_FILENAME else filename
    return load_sae(path_or_repo, filename=name, revision=revision)


def vision_sae_disk_loader(
    path: str | Path, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """For `SAE.load_from_disk(path, converter=vision_sae_disk_loader)`: config and state dict of a checkpoint.

    Args:
        path: what `load_sae` reads, such as a checkpoint of Mammo-SAE or of SAIL.
        device: goes into the config; SAELens moves the weights.
        cfg_overrides: applied last.

    Raises:
        UnsafeCheckpointError, CheckpointFormatError, InputError: as `load_sae`.
    """
    return disk_converter()(path, device, cfg_overrides)


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
        folder_name: SAELens's name for its second argument; here the file's or folder's name in the repo.
        device: goes into the config; SAELens moves the weights.
        force_download: download again even where the file is cached.
        cfg_overrides: applied last.
        revision: branch, tag or commit.

    Returns:
        Config, state dict, and None for the sparsity that these files do not hold.

    Raises:
        UnsafeCheckpointError, CheckpointFormatError, InputError: as `load_sae`.
    """
    return huggingface_converter(revision=revision)(repo_id, folder_name, device, force_download, cfg_overrides)
