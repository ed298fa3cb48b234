"""SAEs of EleutherAI's sparsify: `cfg.json` and `sae.safetensors`, a folder for each layer.

With E (m, d), W (m, d), rows x and r = max(., 0), it computes in use the k largest z of r(E (x - b) + c), or with
`signed` the k largest by absolute value of E (x - b) + c, and x' = W^T z + b. `normalize_decoder` and `multi_topk` act
in training only. Transcoders, skip connections and groupmax (the largest latent of each of k groups) have no
counterpart among SAELens's SAEs.
"""

__all__ = ["Sparsify"]

import re
from typing import Any

from mammosae_plugin.adapters.checkpoints import check_keys
from mammosae_plugin.adapters.sae_formats.parts import Opened, Parts, SAEFormat, refused, required_k, shape_of

_KEYS = {"encoder.weight", "encoder.bias", "W_dec", "b_dec"}
_CONFIG = "cfg.json"
_MODULE = re.compile(r"[A-Za-z_]\w*(\.\w+)*\.\d+(\.\w+)*")
"""A path of modules with a number in it, as sparsify names the folders of layers."""


class Sparsify(SAEFormat):
    """The folder of a layer, or its file beside `cfg.json`."""

    name = "sparsify"
    title = "an SAE as sparsify saves it"
    library = "sparsify"
    layouts = ((_CONFIG, "sae.safetensors"),)

    def recognises(self, opened: Opened) -> bool:
        return opened.layout in self.layouts or set(opened.tensors) >= _KEYS

    def read(self, opened: Opened) -> Parts:
        config, tensors = opened.beside_json(_CONFIG), opened.tensors
        if (why := _cannot(config, set(tensors))) is not None:
            raise refused(opened, f"is {self.title}, {why}")
        d_sae, d_in = shape_of(opened, self.title, tensors, "encoder.weight")
        shapes = {"encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
        check_keys(tensors, shapes, where=str(opened.file), what=f"{self.title}, {d_in} x {d_sae}")
        where = f"its {_CONFIG}" if config else f"a {_CONFIG} beside it, which is missing"
        k = required_k(opened, config.get("k"), d_sae, f"give it in {where}")
        state = {
            "W_enc": tensors["encoder.weight"].T,
            "b_enc": tensors["encoder.bias"],
            "W_dec": tensors["W_dec"],
            "b_dec": tensors["b_dec"],
        }
        return Parts("abstopk" if config.get("signed") else "topk", state, {"k": k}, _layer(opened))


def _cannot(config: dict[str, Any], keys: set[str]) -> str | None:
    """Why an SAE of these settings cannot be one of SAELens's."""
    if config.get("transcode"):
        return "a transcoder (transcode), which predicts another layer than it reads, and no SAE"
    if config.get("skip_connection") or "W_skip" in keys:
        return "with a linear skip connection (W_skip), which no SAE of SAELens has"
    if config.get("activation", "topk") != "topk":
        return (
            f"with the activation {config['activation']!r}, which no SAE of SAELens has; of its kinds topk can be read"
        )
    return None


def _layer(opened: Opened) -> dict[str, Any]:
    """What the folder's name tells: sparsify calls it by the module's path in the base model."""
    name = opened.file.parent.name
    return {"source_layer": name, "hook_name": f"{name}.hook_out"} if _MODULE.fullmatch(name) else {}
