"""SAEs of ViT-Prisma (Prisma-Multimodal/ViT-Prisma).

A file `n_images_*.pt` holds `cfg`, an object of the settings, and `state_dict`; on the Hub there is a `config.json`
beside a file of weights (`weights.pt`), and what it says counts. With rows x, normalised as `normalize_activations`
says and in the reconstruction back again, they compute

    standard   z = f((x - b_dec) W_enc + b_enc),  f max(., 0) or the k largest of it
    gated      z = [u W_enc + b_gate > 0] max(u (W_enc exp(r_mag)) + b_mag, 0) with u = x - b_dec

and x' = z W_dec + b_dec, which is what SAELens does with the same names.
"""

__all__ = ["Prisma"]

import re
from collections.abc import Mapping
from typing import Any

import torch

from mammosae_plugin.adapters.checkpoints import StoredSettings, check_keys
from mammosae_plugin.adapters.sae_formats.parts import Opened, Parts, SAEFormat, refused, required_k, shape_of

_TELLING = {"hook_point_layer", "activation_fn_str"}
_NORMALISED = {"none", "layer_norm", "constant_norm_rescale"}
_OPEN_CLIP = "open-clip:"
_WHERE = {  # Prisma's hook point -> the module with that output, behind the block's own name: timm's, OpenCLIP's
    "hook_resid_post": ("", ""),
    "hook_mlp_out": (".mlp", ".mlp"),
    "ln1.hook_normalized": (".norm1", ".ln_1"),
    "ln2.hook_normalized": (".norm2", ".ln_2"),
    "mlp.hook_post": (".mlp.act", ".mlp.gelu"),
}


class Prisma(SAEFormat):
    """`weights.pt` with `config.json`, or one file with both."""

    name = "vit-prisma"
    title = "an SAE as ViT-Prisma saves it"
    library = "ViT-Prisma"
    layouts = (("config.json", "weights.pt"),)

    def recognises(self, opened: Opened) -> bool:
        return "W_dec" in opened.tensors and _TELLING & _settings(opened).keys() != set()

    def read(self, opened: Opened) -> Parts:
        said, tensors = _settings(opened), opened.tensors
        if said.get("is_transcoder") or "b_dec_out" in tensors or "W_skip" in tensors:
            raise refused(opened, "is a transcoder of ViT-Prisma, from one layer to another, and no SAE of one layer")
        gated = said.get("architecture", "standard") == "gated"
        if said.get("architecture", "standard") not in ("standard", "gated"):
            raise refused(opened, f"has ViT-Prisma's architecture {said['architecture']!r}, which its code has none of")
        activation, k = said.get("activation_fn_str"), (said.get("activation_fn_kwargs") or {}).get("k")
        if activation not in ("relu", "topk") or (gated and activation != "relu"):
            raise refused(opened, f"has the activation {activation!r}, which SAELens's {_name(gated)} SAEs have not")
        normalised = said.get("normalize_activations")
        if normalised is None:
            raise refused(
                opened,
                "is of a ViT-Prisma whose settings do not say how rows are normalised; say it in a config.json beside "
                f'it: {{"normalize_activations": "none"}}, or {", ".join(sorted(_NORMALISED - {"none"}))}',
            )
        state = _state(opened, tensors, gated)
        d_sae = len(state["W_dec"])
        settings: dict[str, Any] = {
            "apply_b_dec_to_input": True,
            "normalize_activations": normalised if normalised in _NORMALISED else "none",  # Prisma does nothing then
        }
        if activation == "topk":
            way_out = 'say it in a config.json beside it: {"activation_fn_kwargs": {"k": 32}}'
            return Parts("topk", state, settings | {"k": required_k(opened, k, d_sae, way_out)}, _metadata(said))
        return Parts("gated" if gated else "standard", state, settings, _metadata(said))


def _name(gated: bool) -> str:
    return "gated" if gated else "standard"


def _settings(opened: Opened) -> Mapping[str, Any]:
    """The settings in `config.json` beside the file, over those in the file."""
    within = opened.content.get("cfg") if isinstance(opened.content, Mapping) else None
    stored = vars(within) if isinstance(within, StoredSettings) else within
    beside = opened.beside_json("config.json")
    return {**(stored if isinstance(stored, Mapping) else {}), **beside}


def _state(opened: Opened, tensors: Mapping[str, Any], gated: bool) -> dict[str, torch.Tensor]:
    d_in, d_sae = shape_of(opened, Prisma.title, tensors, "W_enc")
    widths = dict.fromkeys(("b_gate", "r_mag", "b_mag") if gated else ("b_enc",), (d_sae,))
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,), **widths}
    found = {name: value for name, value in tensors.items() if not (gated and name == "b_enc")}  # there, but not used
    check_keys(found, shapes, where=str(opened.file), what=f"{Prisma.title}, {_name(gated)}, {d_in} x {d_sae}")
    return found


def _metadata(said: Mapping[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    model = said.get("model_name")
    of_open_clip = isinstance(model, str) and model.startswith(_OPEN_CLIP)
    if isinstance(model, str):
        metadata["model_name"] = f"open_clip:hf-hub:{model.removeprefix(_OPEN_CLIP)}" if of_open_clip else model
    layer, part = said.get("hook_point_layer"), said.get("layer_subtype")
    point = f"blocks.{layer}.{part}" if part is not None else said.get("hook_point")
    if isinstance(layer, int) and isinstance(point, str):
        metadata |= {"source_layer": layer, "prisma_hook_point": point}
        where = _WHERE.get(re.sub(r"^blocks\.\d+\.", "", point))
        is_of_timm = isinstance(model, str) and "/" not in model  # transformers' names of blocks differ by version
        if where is not None and said.get("hook_point_head_index") is None and (of_open_clip or is_of_timm):
            block = f"transformer.resblocks.{layer}{where[1]}" if of_open_clip else f"blocks.{layer}{where[0]}"
            metadata |= {"hook_name": f"{block}.hook_out", "layout": "channels_last"}
    if "cls_token_only" in said:
        of_patches = "patches" if said.get("use_patches_only") else "class_token_and_patches"
        metadata["trained_on"] = "class_token" if said["cls_token_only"] else of_patches
    return metadata
