"""SAEs of saev (OSU-NLP-Group/saev): a line of JSON, then torch's state dict of W_enc, b_enc, W_dec and b_dec.

Six ages of the header are read. With a the encoder's output they all have x' = z W_dec + b_dec, and

    Relu        z = max(a, 0)
    TopK        the k largest of a, negative ones too
    BatchTopK   z = a [a > theta] with one theta for all latents, or a [a > 0] where that is not above 0

and a = (x - b_dec) W_enc + b_enc in files without `schema` and of schema 1, but a = x W_enc + b_enc from schema 2 on,
and in the second form of schema 1 (`cls` is SparseAutoencoderConfig). saev today reads old files by the newer formula;
here they give what the code gave that trained and wrote them. Schemas 1 to 5 differ besides in names of settings
(`d_vit` and `exp_factor` before, `d_model` and `d_sae` now), none of which is needed: widths are the tensors'.

The objective (vanilla or Matryoshka, whose prefixes are drawn anew for every batch) leaves nothing in the file, nor do
the network, the layer, and the mean and scale by which rows may have been normalised.
"""

__all__ = ["Saev"]

from collections.abc import Mapping
from typing import Any

import torch

from mammosae_plugin.adapters.checkpoints import check_keys
from mammosae_plugin.adapters.sae_formats.parts import Opened, Parts, SAEFormat, refused, required_k, shape_of
from mammosae_plugin.adapters.sae_formats.signed_topk import SIGNED_TOPK

_SCHEMAS = range(6)
_THRESHOLD = "activation.threshold"
_WITHOUT_B_DEC = {"e7ca004", "9f39cf8", "f5d892c", "65c5a2b"}  # commits that wrote schema 1, but by the newer formula


class Saev(SAEFormat):
    """One file, `sae.pt`."""

    name = "saev"
    title = "an SAE as saev saves it"
    library = "saev"

    def recognises(self, opened: Opened) -> bool:
        line = opened.json_line
        return line is not None and ({"schema", "cfg"} <= line.keys() or {"d_vit", "exp_factor"} <= line.keys())

    def read(self, opened: Opened) -> Parts:
        header = opened.json_line or {}
        schema = header.get("schema", 0)
        if schema not in _SCHEMAS:
            raise refused(opened, f"is of saev's schema {schema!r}; this version reads 0 to {_SCHEMAS[-1]}")
        activation, k = _activation(header)
        tensors = opened.content
        d_in, d_sae = shape_of(opened, self.title, tensors, "W_enc")
        shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
        shapes |= {_THRESHOLD: ()} if _THRESHOLD in tensors else {}
        check_keys(tensors, shapes, where=str(opened.file), what=f"{self.title}, {d_in} x {d_sae}")
        state: dict[str, torch.Tensor] = {name: tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        settings: dict[str, Any] = {"apply_b_dec_to_input": _subtracts_b_dec(schema, header)}
        metadata = {"saev_schema": schema, "saev_activation": activation}
        metadata |= {f"saev_{key}": header[key] for key in ("commit", "lib") if isinstance(header.get(key), str)}
        if activation == "Relu":
            return Parts("standard", state, settings, metadata)
        if activation == "TopK":
            k = min(k, d_sae) if type(k) is int else k
            way_out = "write the number into the params of the activation in its first line"
            settings |= {"k": required_k(opened, k, d_sae, way_out, name="top_k")}
            return Parts(SIGNED_TOPK, state, settings, metadata)
        if activation != "BatchTopK":
            raise refused(opened, f"has saev's activation {activation}, which this version does not know")
        if _THRESHOLD not in tensors:
            raise refused(
                opened,
                "is a BatchTopK SAE of saev without a threshold, as saev wrote them before 16 November 2025: which "
                "latents fire depends on the other rows of the batch; train it on with a newer saev, which adds one",
            )
        threshold = float(tensors[_THRESHOLD])
        metadata |= {"k": k, "threshold": threshold}
        if threshold <= 0:
            return Parts("standard", state, settings, metadata)
        return Parts("jumprelu", state | {"threshold": torch.full((d_sae,), threshold)}, settings, metadata)


def _activation(header: Mapping[str, Any]) -> tuple[str, Any]:
    """The name of the activation's class, and the k of its settings, by its own default 32; None of odd settings."""
    cfg = header.get("cfg", {})
    said = cfg.get("activation") if isinstance(cfg, Mapping) else None
    name, params = str(header.get("cls", "Relu")), cfg
    if isinstance(said, Mapping):
        name, params = str(said.get("cls")), said.get("params")
    return name, params.get("top_k", 32) if isinstance(params, Mapping) else None


def _subtracts_b_dec(schema: int, header: Mapping[str, Any]) -> bool:
    newer = header.get("cls") == "SparseAutoencoderConfig" or str(header.get("commit"))[:7] in _WITHOUT_B_DEC
    return schema == 0 or (schema == 1 and not newer)
