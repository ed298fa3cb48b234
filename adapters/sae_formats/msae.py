"""SAEs of MSAE (WolodjaZ/MSAE), of CLIP's embeddings of images and texts.

A file holds `model`, a state dict, `mean_center` and `scaling_factor`; how the weights are used stands in its name,

    <latents>_<width>_<activation>[_<k>][_UW|_RW]_<tied>_<normalize>_<soft cap>_<rows>.pth

With u = (x - mean) s, its class `SAE` computes

    z = f((u - pre_bias) E + latent_bias),   x' = (z D + pre_bias) / s + mean

so that W_enc = s E, W_dec = D / s and b_dec = mean + pre_bias / s, taken from the input. f is ReLU or JumpReLU, and of
TopKReLU the k largest of it. A Matryoshka SAE (UW, RW) was trained with rising k up to all latents, and a BatchTopKReLU
one chooses within a batch; of both, that class gives all that ReLU leaves, as here.
"""

__all__ = ["MSAE"]

import re
from collections.abc import Mapping
from typing import Any

import torch

from mammosae_plugin.adapters.checkpoints import check_keys
from mammosae_plugin.adapters.sae_formats.parts import Opened, Parts, SAEFormat, refused, required_k
from mammosae_plugin.adapters.sae_formats.signed_topk import SIGNED_TOPK

_NAME = re.compile(
    r"(?P<d_sae>\d+)_(?P<d_in>\d+)_(?P<activation>[A-Za-z]+)(?:_(?P<k>\d+))?(?:_(?P<weighting>UW|RW))?"
    r"_(?P<tied>True|False)_(?P<normalize>True|False)_(?P<cap>\d+(?:\.\d+)?)(?:_(?P<rows>.+?))?\.pth?"
)
_THRESHOLD = "activation.log_threshold"
_WEIGHTS = {"pre_bias", "latent_bias", "encoder"}


class MSAE(SAEFormat):
    """One file, whose name says its settings."""

    name = "msae"
    title = "an SAE as MSAE saves it"
    library = "MSAE"

    def recognises(self, opened: Opened) -> bool:
        content = opened.content
        inner = content.get("model") if isinstance(content, Mapping) else None
        return isinstance(inner, Mapping) and inner.keys() >= _WEIGHTS

    def read(self, opened: Opened) -> Parts:
        said = _NAME.fullmatch(opened.file.name)
        if said is None:
            raise refused(
                opened,
                "is an SAE of MSAE under another name than its own, which says how its weights are used; call it "
                "LATENTS_WIDTH_ACTIVATION[_K][_UW]_TIED_NORMALIZE_CAP_ROWS.pth again, such as "
                "6144_768_TopKReLU_64_UW_False_False_0.0_cc3m.pth",
            )
        if float(said["cap"]) != 0:
            raise refused(opened, f"caps its latents by a tanh ({said['cap']}), which no SAE of SAELens does")
        if said["normalize"] == "True":
            raise refused(opened, "normalises rows after centring them, which no SAE of SAELens does")
        held = _weights(opened, said)
        mean, scale = _scaling(opened, len(held["pre_bias"]))
        decoder = held["decoder"] if "decoder" in held else held["encoder"].T
        state: dict[str, torch.Tensor] = {
            "W_enc": held["encoder"] * scale,
            "b_enc": held["latent_bias"],
            "W_dec": decoder / scale,
            "b_dec": mean + held["pre_bias"] / scale,
        }
        found = re.search(r"(?:ViT-[A-Z]~\d+|RN\d+)(?=_)", said["rows"] or "")  # CLIP's own names, with ~ for their /
        metadata: dict[str, Any] = {"model_name": f"open_clip:{found[0].replace('~', '-')}/openai"} if found else {}
        metadata |= {"trained_on": said["rows"], "folded_scale": scale} if said["rows"] else {"folded_scale": scale}
        return _parts(opened, said, state, held, metadata)


def _parts(
    opened: Opened,
    said: re.Match[str],
    state: dict[str, torch.Tensor],
    held: Mapping[str, torch.Tensor],
    metadata: dict[str, Any],
) -> Parts:
    activation, k, d_sae = said["activation"], int(said["k"] or 0), len(state["W_dec"])
    settings: dict[str, Any] = {"apply_b_dec_to_input": True}
    if _THRESHOLD in held:
        return Parts("jumprelu", state | {"threshold": held[_THRESHOLD].exp()}, settings, metadata)
    if activation == "ReLU":
        return Parts("standard", state, settings, metadata)
    if activation == "BatchTopKReLU" or (activation == "TopKReLU" and said["weighting"]):
        return Parts("standard", state, settings, metadata | {"k": k})
    if activation in ("TopKReLU", "TopK") and not said["weighting"]:
        required_k(opened, k, d_sae, "write the number into its name, behind the activation's")
        return Parts("topk" if activation == "TopKReLU" else SIGNED_TOPK, state, settings | {"k": k}, metadata)
    raise refused(opened, f"has MSAE's activation {activation}, which no SAE of SAELens has")


def _weights(opened: Opened, said: re.Match[str]) -> dict[str, torch.Tensor]:
    d_in, d_sae = int(said["d_in"]), int(said["d_sae"])
    shapes = {"pre_bias": (d_in,), "latent_bias": (d_sae,), "encoder": (d_in, d_sae)}
    if said["tied"] == "False":
        shapes["decoder"] = (d_sae, d_in)
    if _THRESHOLD in opened.tensors:
        shapes[_THRESHOLD] = (d_sae,)
    found = {name: value for name, value in opened.tensors.items() if name != "latents_activation_frequency"}
    check_keys(found, shapes, where=str(opened.file), what=f"{MSAE.title}, {d_in} x {d_sae} by its name")
    return found


def _scaling(opened: Opened, d_in: int) -> tuple[torch.Tensor, float]:
    """The mean that is taken from rows, and by what they are multiplied then."""
    mean, scale = opened.content.get("mean_center"), opened.content.get("scaling_factor")
    scale = float(scale) if isinstance(scale, int | float | torch.Tensor) else None
    if not isinstance(mean, torch.Tensor) or mean.shape != (d_in,) or not scale:
        raise refused(
            opened,
            "does not say by which mean and scale its rows were normalised; write mean_center (a tensor of the width) "
            "and scaling_factor (a number that is not 0) into it, zeros and 1 where they were not",
        )
    return mean, scale
