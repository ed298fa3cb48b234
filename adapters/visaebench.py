"""ViSAEBench (the extra `mammosae-plugin[visaebench]`): its SAEs as SAELens's and back, and what its results are worth.

Its checkpoints are read and written without it. An SAE of SAELens runs in `visaebench.evaluate` unchanged, as it has
`encode` and `decode`; `for_visaebench` is needed only where the metadata ask for normalised rows.
"""

__all__ = ["for_visaebench", "ForVisaebench", "load_visaebench_sae", "save_visaebench_sae", "visaebench_results"]

import copy
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file, save_file

from mammosae_plugin.adapters.attached_sae import refuse_what_no_map_fits
from mammosae_plugin.adapters.checkpoints import (
    CheckpointFormatError,
    is_safetensors,
    read_torch_checkpoint,
    refuse_not_finite,
)
from mammosae_plugin.adapters.input_normalization import input_normalization, normalized, rescaled
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import atomic_path, local_path, read_json, write_json

_WEIGHTS, _CONFIGS = ("sae.pt", "model.safetensors", "model.pt"), ("config.json", "config.yaml", "config.yml")

_WORTH: Mapping[str, tuple[bool, str]] = {
    "fvu": (
        False,
        "explained variance is right only where every channel of rows and residuals has mean 0: it subtracts the "
        "square of the summed means, so that variances of others are too small or below 0; ours is per channel",
    ),
    "downstream_preservation": (True, "probes see training rows only; images of a patient may be on both sides"),
    "sparse_probing_auc": (
        False,
        "features are chosen on all rows before they are split, so that random labels are told (accuracy .87 at k = "
        "100); analysis.linear_probes chooses within folds by patient",
    ),
    "monosemanticity": (
        True,
        "the label-free score over the 16 strongest images, activations less their minimum; no chance beside it: "
        "analysis.activation_similarity",
    ),
    "feature_localization": (
        False,
        "Moran's I is right, but latents that fire in fewer than 5 patches are left out (small lesions), and 0.0 is "
        "what it says where nothing can be scored; analysis.moran_of",
    ),
    "absorption_rate": (
        False,
        "overlap of strongest latents or an F1 gap on the rows that it was fitted on, without chance; "
        "analysis.absorption counts images in which the coarse latent is silent",
    ),
}


def load_visaebench_sae(
    folder: str | os.PathLike[str],
    *,
    mean: torch.Tensor | None = None,
    std: float | None = None,
    hook_name: str = "",
) -> SAE[Any]:
    """An SAE of ViSAEBench as SAELens's: a top-k or a JumpReLU one, with the same latents and reconstructions.

    Args:
        folder: A folder with `sae.pt`, `model.safetensors` or `model.pt`, and `config.json` or `.yaml`.
        mean: (d_in,) what was subtracted from the rows that it was trained on (`norm_stats.pt` beside its activations).
        std: What they were divided by. Both are folded into the weights, so that the SAE takes rows as they are.
        hook_name: Where it reads, for the metadata.

    Raises:
        CheckpointFormatError: No such files, tensors of other names or shapes, an activation that is not known.
        UnsafeCheckpointError: A pickle that would run something.
        InputError: `mean` or `std` alone, or of the wrong shape.
    """
    path = local_path(folder)
    weights = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
    config = next((path / name for name in _CONFIGS if (path / name).is_file()), None)
    if weights is None or config is None:
        raise CheckpointFormatError(
            f"{path} holds no SAE of ViSAEBench: it needs one of {', '.join(_WEIGHTS)} and one of {', '.join(_CONFIGS)}"
        )
    settings = read_json(config) if config.suffix == ".json" else yaml.safe_load(config.read_text(encoding="utf-8"))
    tensors = load_file(weights) if is_safetensors(weights) else read_torch_checkpoint(weights)
    if not isinstance(settings, dict) or not isinstance(tensors, Mapping):
        raise CheckpointFormatError(f"{path} holds no SAE of ViSAEBench: its config or its weights are no mapping")
    encoder, b_enc, decoder, b_dec = _tensors(tensors, path)
    if (mean is None) != (std is None):
        raise InputError("give mean and std together, or neither where rows are normalised before the SAE")
    if mean is not None and std is not None:
        if mean.shape != b_dec.shape or not std > 0:
            raise InputError(
                f"mean has shape {tuple(mean.shape)} and std is {std}: expected ({len(b_dec)},) and above 0"
            )
        encoder, b_enc = encoder / std, b_enc - encoder @ mean / std
        decoder, b_dec = decoder * std, b_dec * std + mean
    kind = str(settings.get("activation", settings.get("sae_type", settings.get("architecture", "topk")))).lower()
    metadata = SAEMetadata(hook_name=hook_name)
    sizes: dict[str, Any] = {"d_in": encoder.shape[1], "d_sae": encoder.shape[0], "apply_b_dec_to_input": False}
    state = {"W_enc": encoder.T.contiguous(), "b_enc": b_enc, "W_dec": decoder, "b_dec": b_dec}
    sae: SAE[Any]
    if kind == "topk":
        k = settings.get("k")
        if not isinstance(k, int) or not 0 < k <= encoder.shape[0]:
            raise CheckpointFormatError(f"{config}: k is {k!r} for {encoder.shape[0]} latents; a top-k SAE needs one")
        sae = TopKSAE(TopKSAEConfig(**sizes, k=k, metadata=metadata, rescale_acts_by_decoder_norm=False))
    elif kind in ("batchtopk", "jumprelu"):
        if kind == "jumprelu":
            threshold = tensors.get("jump_thresholds", tensors.get("thresholds", torch.full_like(b_enc, 0.01))).float()
        else:
            given: Any = settings.get("threshold", tensors.get("_running_threshold", 0.0))
            # It keeps what is as large as the threshold too, SAELens what is larger.
            threshold = torch.nextafter(torch.full_like(b_enc, float(given)), torch.tensor(-torch.inf))
        state["threshold"] = threshold
        sae = JumpReLUSAE(JumpReLUSAEConfig(**sizes, metadata=metadata))
    else:
        raise CheckpointFormatError(f"{config}: activation {kind!r} is none of topk, batchtopk and jumprelu")
    refuse_not_finite(state, where=str(weights))
    sae.load_state_dict(state)
    return sae.eval()


def _tensors(tensors: Mapping[Any, Any], path: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Encoder (d_sae, d_in), its bias, decoder (d_sae, d_in), its bias, of either of its layouts."""
    simple, overcomplete = "encoder", "encoder.final_block.0"
    name = simple if f"{simple}.weight" in tensors else overcomplete
    decoder = tensors.get("decoder.weight" if name == simple else "dictionary._weights")
    encoder, b_enc = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
    if not all(isinstance(one, torch.Tensor) for one in (encoder, b_enc, decoder)):
        raise CheckpointFormatError(
            f"{path} holds no SAE of ViSAEBench: it needs encoder.weight, encoder.bias and decoder.weight, or the "
            "names of overcomplete"
        )
    assert encoder is not None and b_enc is not None and decoder is not None
    multiplier = tensors.get("dictionary.multiplier")
    if name == overcomplete and multiplier is not None and float(multiplier) != 0:
        decoder = decoder * multiplier.exp()
    b_dec = tensors.get("decoder.bias") if name == simple else None
    b_dec = torch.zeros(encoder.shape[-1]) if b_dec is None else b_dec
    if encoder.ndim != 2 or decoder.shape != encoder.shape or b_enc.shape != encoder.shape[:1]:
        raise CheckpointFormatError(
            f"{path}: encoder {tuple(encoder.shape)}, its bias {tuple(b_enc.shape)} and decoder {tuple(decoder.shape)} "
            "do not fit; expected (d_sae, d_in), (d_sae,) and (d_sae, d_in)"
        )
    return encoder.float(), b_enc.float(), decoder.float(), b_dec.float()


def save_visaebench_sae(sae: SAE[Any], folder: str | os.PathLike[str]) -> Path:
    """Write a SAELens SAE so that `visaebench.hub.load_sae(folder)` reads it: model.safetensors and config.json.

    Args:
        sae: A standard, top-k or JumpReLU SAE; what is batch-top-k or nested in training is saved as one of these.
        folder: Where to; it is made.

    Returns:
        The folder.

    Raises:
        InputError: An architecture that ViSAEBench has no form for, or rows that must be normalised one by one.
    """
    if not isinstance(sae, StandardSAE | TopKSAE | JumpReLUSAE):
        raise InputError(f"ViSAEBench has no form for {type(sae).__name__}: give a standard, top-k or JumpReLU SAE")
    if input_normalization(sae) is not None or sae.cfg.normalize_activations not in ("none", None):
        raise InputError(
            "the SAE takes rows that are normalised one by one, which ViSAEBench's files cannot say: give "
            "for_visaebench(sae) to visaebench.evaluate instead"
        )
    plain = copy.deepcopy(sae)
    if getattr(plain.cfg, "rescale_acts_by_decoder_norm", False):
        plain.fold_W_dec_norm()
    state = {name: value.detach().float().cpu() for name, value in plain.state_dict().items()}
    encoder, b_enc = state["W_enc"].T, state["b_enc"]
    if plain.cfg.apply_b_dec_to_input:
        b_enc = b_enc - encoder @ state["b_dec"]
    tensors = {"encoder.weight": encoder, "encoder.bias": b_enc, "decoder.weight": state["W_dec"]}
    tensors["decoder.bias"] = state["b_dec"]
    config: dict[str, Any] = {"input_dim": int(plain.cfg.d_in), "hidden_dim": int(plain.cfg.d_sae)}
    if isinstance(plain, TopKSAE):
        config |= {"activation": "topk", "k": int(plain.cfg.k)}
    else:
        config["activation"] = "jumprelu"
        tensors["jump_thresholds"] = state.get("threshold", torch.zeros_like(b_enc))
    target = local_path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with atomic_path(target / "model.safetensors") as part:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
    write_json(target / "config.json", config)
    return target


class ForVisaebench:
    """An SAE as `visaebench.evaluate` calls it: rows are normalised as the metadata say, and no gradients are kept.

    Args:
        sae: A SAELens SAE.
    """

    def __init__(self, sae: SAE[Any]) -> None:
        self.sae = sae
        self._lengths: torch.Tensor | None = None

    @torch.no_grad()
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Codes (b, d_sae) of rows (b, d_in)."""
        rows, self._lengths = normalized(self.sae, x)
        codes: torch.Tensor = self.sae.encode(rows)
        return codes.to_dense() if codes.is_sparse else codes

    @torch.no_grad()
    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Rows (b, d_in) of codes (b, d_sae); where rows are normalised, of those that were encoded last."""
        return rescaled(self.sae.decode(z), self._lengths)


def for_visaebench(sae: SAE[Any]) -> ForVisaebench:
    """An SAE for `visaebench.evaluate(sae=...)`.

    ```python
    rows = store.rows_of(range(len(store.image_ids))).reshape(len(store.image_ids), -1, store.d_in)
    found = visaebench.evaluate(for_visaebench(sae), activations=rows, labels=labels, grid_size=(h, w),
                                ood_datasets={}, metrics=["fvu", "localization"], device="cpu")
    visaebench_results(found)
    ```

    Raises:
        InputError: An SAE that is no function of single rows, or whose scale of the rows is not in its weights.
    """
    refuse_what_no_map_fits(sae, "ViSAEBench")
    return ForVisaebench(sae)


def visaebench_results(results: Iterable[Any]) -> pd.DataFrame:
    """What ViSAEBench found, and what it is worth.

    Args:
        results: Its `EvalResults`, or several `MetricResult`.

    Returns:
        One row per metric: metric, dimension, value (NaN where nothing could be scored: it says 0.0 or infinity then),
        higher_is_better, trusted (whether the number means what it says; found with version 0.1.0) and note.
    """
    records = []
    for result in results:
        trusted, note = _WORTH.get(result.metric_name, (False, "not looked at"))
        about = dict(result.metadata)
        scored = [
            about[name] for name in ("num_features_scored", "num_evaluable_features", "num_tests") if name in about
        ]
        value = float(result.value)
        records.append(
            {
                "metric": result.metric_name,
                "dimension": result.dimension,
                "value": np.nan if not np.isfinite(value) or (scored and not scored[0]) else value,
                "higher_is_better": bool(result.higher_is_better),
                "trusted": trusted,
                "note": note,
            }
        )
    columns = ["metric", "dimension", "value", "higher_is_better", "trusted", "note"]
    return pd.DataFrame(records, columns=columns)
