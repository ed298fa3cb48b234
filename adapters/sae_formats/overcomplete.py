"""SAEs of overcomplete (KempnerInstitute): the state dict of one whose encoder is one linear layer.

With E (m, d), c, a dictionary D (m, d) whose rows are normalised and multiplied by exp(u), rows x and r = max(., 0):

    SAE             z = r(a) with a = E x + c,  x' = D^T z
    TopKSAE         the k largest of r(a)
    BatchTopKSAE    z = r(a) [r(a) >= theta] with one theta for all
    JumpSAE         z = r(a) [r(a) >= exp(t)] with t for each latent

A batch norm behind the linear layer is folded into it. SAELens keeps what is larger than a threshold, so thresholds
become the next smaller number. What is not in a state dict (the class, k, theta, how D is normalised) is read from a
`config.json` beside it: {"sae_class": "TopKSAE", "top_k": 8, "running_threshold": 0.1, "normalization": "l2"}.
"""

__all__ = ["Overcomplete"]

from collections.abc import Callable
from typing import Any

import torch

from mammosae_plugin.adapters.checkpoints import check_keys
from mammosae_plugin.adapters.sae_formats.parts import Opened, Parts, SAEFormat, refused, required_k, shape_of

_CONFIG = "config.json"
_BIAS, _WEIGHT = "encoder.final_block.0.bias", "encoder.final_block.0.weight"
_UNTIED, _TIED = "encoder.weight", "encoder.tied_to._weights"
_NORM = tuple(f"encoder.final_block.1.{name}" for name in ("weight", "bias", "running_mean", "running_var"))
_COUNT = "encoder.final_block.1.num_batches_tracked"
_ROWS, _MULTIPLIER, _THRESHOLDS = "dictionary._weights", "dictionary.multiplier", "thresholds"
_CLASSES = ("SAE", "TopKSAE", "BatchTopKSAE", "JumpSAE")
_NORMALIZATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "l2": lambda rows: rows / (rows.norm(dim=1, keepdim=True) + 1e-8),
    "max_l2": lambda rows: rows / rows.norm(dim=1).max(),
    "l1": lambda rows: rows / (rows.norm(p=1, dim=1, keepdim=True) + 1e-8),
    "max_l1": lambda rows: rows / rows.norm(p=1, dim=1).max(),
    "identity": lambda rows: rows,
}


class Overcomplete(SAEFormat):
    """A state dict, with a `config.json` beside it for what it does not hold."""

    name = "overcomplete"
    title = "an SAE as overcomplete saves it"
    library = "overcomplete"

    def recognises(self, opened: Opened) -> bool:
        return any(key.startswith(("dictionary.", "encoder.final_block.")) for key in opened.tensors)

    def read(self, opened: Opened) -> Parts:
        tensors, config = opened.tensors, opened.beside_json(_CONFIG)
        if (why := _cannot(set(tensors))) is not None:
            raise refused(opened, f"is {self.title}, {why}")
        name = "JumpSAE" if _THRESHOLDS in tensors else config.get("sae_class")
        if name not in _CLASSES or (name == "JumpSAE" and _THRESHOLDS not in tensors):
            raise refused(
                opened,
                f"is {self.title}, whose state dict does not say of which class; put a {_CONFIG} beside it: "
                '{"sae_class": "SAE"}, or "TopKSAE" with "top_k", or "BatchTopKSAE" with "running_threshold"',
            )
        state = _weights(opened, config)
        metadata = {"dictionary_class": name, "normalization": config.get("normalization", "l2")}
        bias, settings = state["b_enc"], {"apply_b_dec_to_input": False}
        if name == "SAE":
            return Parts("standard", state, settings, metadata)
        if name == "TopKSAE":
            way_out = f"give it in the {_CONFIG} beside it"
            k = required_k(opened, config.get("top_k"), len(bias), way_out, name="top_k")
            return Parts("topk", state, {**settings, "k": k}, metadata)
        threshold = tensors[_THRESHOLDS].exp() if name == "JumpSAE" else config.get("running_threshold")
        if not isinstance(threshold, int | float | torch.Tensor) or isinstance(threshold, bool):
            raise refused(opened, f"has running_threshold {threshold!r}; give the number in the {_CONFIG} beside it")
        full = torch.as_tensor(threshold, dtype=torch.float32).expand_as(bias)
        state["threshold"] = torch.nextafter(full, torch.tensor(-torch.inf))
        return Parts("jumprelu", state, settings, metadata)


def _cannot(keys: set[str]) -> str | None:
    """Why an SAE with these tensors cannot be one of SAELens's."""
    if any(key.startswith("encoder.mlp_blocks.") for key in keys):
        return "with an encoder of several layers, which no SAE of SAELens has"
    if _ROWS not in keys:
        return "with a dictionary of another form than a matrix"
    if not ({_WEIGHT, _BIAS} <= keys or _UNTIED in keys or _TIED in keys):
        return "with an encoder that is not one linear layer, which no SAE of SAELens has"
    if _NORM[0] in keys and _NORM[2] not in keys:
        return "with a layer norm in its encoder, which no SAE of SAELens has; a batch norm can be read"
    return None


def _weights(opened: Opened, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    tensors = opened.tensors
    d_sae, d_in = shape_of(opened, Overcomplete.title, tensors, _ROWS)
    matrix = tensors[_ROWS]
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys((_WEIGHT, _UNTIED, _TIED, _ROWS), (d_sae, d_in)),
        **dict.fromkeys((_BIAS, "encoder.bias", _THRESHOLDS, *_NORM), (d_sae,)),
        **dict.fromkeys((_MULTIPLIER, "encoder.tied_to.multiplier", _COUNT), ()),
    }
    optional = set(shapes) - {_ROWS, _MULTIPLIER}
    expected = {name: shape for name, shape in shapes.items() if name not in optional or name in tensors}
    check_keys(tensors, expected, where=str(opened.file), what=f"{Overcomplete.title}, {d_in} x {d_sae}")
    said = config.get("normalization", "l2")
    if "normalization" not in config and bool(((matrix.float().norm(dim=1) - 1).abs() > 0.05).any()):
        raise refused(
            opened,
            f"is {Overcomplete.title}, whose rows were not normalised to length 1, its default; "
            f'put a {_CONFIG} beside it with "normalization": one of {", ".join(_NORMALIZATIONS)}',
        )
    if said not in _NORMALIZATIONS:
        raise refused(
            opened, f"has the normalization {said!r} in its {_CONFIG}; known are {', '.join(_NORMALIZATIONS)}"
        )
    rows = _NORMALIZATIONS[said](matrix.float()) * tensors[_MULTIPLIER].float().exp()
    encoder = tensors.get(_WEIGHT, tensors.get(_UNTIED, rows)).float()
    bias = tensors.get(_BIAS, tensors.get("encoder.bias", torch.zeros(d_sae))).float()
    if _NORM[0] in tensors:
        weight, shift, mean, variance = (tensors[name].float() for name in _NORM)
        scale = weight / (variance + 1e-5).sqrt()
        encoder, bias = encoder * scale[:, None], (bias - mean) * scale + shift
    return {"W_enc": encoder.T, "b_enc": bias, "W_dec": rows, "b_dec": torch.zeros(d_in)}
