"""SAEs of dictionary_learning (saprmarks/dictionary_learning), and so of sae-for-vlm: `config.json` and `ae.pt`.

The file is a state dict; which class of the library it is of says `trainer.dict_class` in the settings. With E (m, d),
D (d, m) of its linear layers, rows x, and r = max(., 0), they compute in use

    AutoEncoder            z = r(E (x - b) + c),  x' = D z + b, after D's columns were made of length 1 and E and c
                           longer by as much, as its own loading does
    AutoEncoderNew         z = r(E x + c),  x' = D z + b
    GatedAutoEncoder       z = [E (x - b) + g > 0] r(exp(s) E (x - b) + c),  x' = D z + b
    AutoEncoderTopK        the k largest of r(E (x - b) + c),  x' = D z + b
    BatchTopKSAE, MatryoshkaBatchTopKSAE
                           z = r(a) [r(a) > theta] with a = E (x - b) + c and one theta for all,  x' = D z + b
    JumpReluAutoEncoder    z = r(a [a > theta]) with a = E x + c and theta for each latent,  x' = D z + b

A training that was interrupted leaves a file with the state dict under `ae` beside `norm_factor`, by which rows were
divided; biases and thresholds are multiplied by it here, as the library does when it finishes.
"""

__all__ = ["DictionaryLearning"]

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

import torch

from mammosae_plugin.adapters.checkpoints import check_keys
from mammosae_plugin.adapters.sae_formats.parts import Opened, Parts, SAEFormat, refused, required_k, shape_of

Tensors = Mapping[str, torch.Tensor]

_LINEAR = {"encoder.weight", "encoder.bias", "decoder.weight"}
_OWN = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
_KEYS: dict[str, set[str]] = {  # those that may be missing stand in _OPTIONAL
    "GatedAutoEncoder": {"decoder_bias", "encoder.weight", "r_mag", "gate_bias", "mag_bias", "decoder.weight"},
    "MatryoshkaBatchTopKSAE": {*_OWN, "group_sizes", "k"},
    "AutoEncoderTopK": {*_LINEAR, "b_dec", "k", "threshold"},
    "BatchTopKSAE": {*_LINEAR, "b_dec", "k", "threshold"},
    "AutoEncoder": {*_LINEAR, "bias"},
    "AutoEncoderNew": {*_LINEAR, "decoder.bias"},
    "JumpReluAutoEncoder": _OWN,
}
_OPTIONAL = {"AutoEncoderTopK": {"k", "threshold"}, "BatchTopKSAE": {"k"}, "MatryoshkaBatchTopKSAE": {"k"}}
_SCALED = {"encoder.bias", "bias", "decoder.bias", "b_enc", "b_dec", "decoder_bias", "mag_bias", "gate_bias"}
_SPELT = {"MatroyshkaBatchTopKSAE": "MatryoshkaBatchTopKSAE"}  # as sae-for-vlm writes it


class DictionaryLearning(SAEFormat):
    """`config.json` and `ae.pt`, or a checkpoint of the training beside or below the settings."""

    name = "dictionary_learning"
    title = "an SAE as dictionary_learning saves it"
    library = "dictionary_learning"
    layouts = (("config.json", "ae.pt"), ("config.json", "ae.safetensors"))

    def recognises(self, opened: Opened) -> bool:
        if opened.layout in self.layouts:
            return True
        keys = set(opened.tensors)
        told = any(_fits(name, keys) for name in _KEYS if name != "JumpReluAutoEncoder")
        return told or (_fits("JumpReluAutoEncoder", keys) and "dict_class" in _trainer(opened))

    def read(self, opened: Opened) -> Parts:
        trainer = _trainer(opened)
        name = _class_of(opened, trainer)
        tensors = _checked(opened, name)
        state, architecture, settings, told = _READ[name](tensors, opened, trainer)
        metadata: dict[str, Any] = {"dictionary_class": name, **told}
        for key, ours in (("lm_name", "model_name"), ("layer", "source_layer"), ("submodule_name", "source_submodule")):
            if trainer.get(key) not in (None, ""):
                metadata[ours] = trainer[key]
        return Parts(architecture, state, settings, metadata)


def _trainer(opened: Opened) -> Mapping[str, Any]:
    """The settings of the training: in the file of a training that was interrupted, beside it, or one folder up."""
    within = opened.content.get("config") if isinstance(opened.content, Mapping) else None
    if isinstance(within, Mapping):
        return within
    config = opened.beside_json("config.json") or opened.beside_json("../config.json")
    trainer = config.get("trainer", config)
    return trainer if isinstance(trainer, Mapping) else {}


def _fits(name: str, keys: set[str]) -> bool:
    return _KEYS[name] - _OPTIONAL.get(name, set()) <= keys <= _KEYS[name]


def _class_of(opened: Opened, trainer: Mapping[str, Any]) -> str:
    """The library's class, from the settings, or where the names of the tensors leave one only."""
    keys = set(opened.tensors)
    fitting = [name for name in _KEYS if _fits(name, keys)]
    said = trainer.get("dict_class")
    name = _SPELT.get(str(said), str(said))
    if said is None:
        if fitting == ["AutoEncoderTopK", "BatchTopKSAE"]:
            raise refused(
                opened,
                "has the tensors of AutoEncoderTopK and of BatchTopKSAE alike; put the training's config.json beside "
                'it, or one with {"trainer": {"dict_class": "AutoEncoderTopK"}} or "BatchTopKSAE"',
            )
        if fitting:
            return fitting[0]
        raise refused(opened, f"is not {DictionaryLearning.title}: it holds {', '.join(sorted(keys)[:4]) or 'nothing'}")
    if name not in _KEYS:
        raise refused(opened, f"is of the class {said} of dictionary_learning, which SAELens has no counterpart of")
    if name == "AutoEncoder" and "AutoEncoderNew" in fitting:  # the trainers that make it say so
        name = "AutoEncoderNew"
    if name not in fitting:
        missing = sorted(_KEYS[name] - _OPTIONAL.get(name, set()) - keys)
        extra = sorted(keys - _KEYS[name])
        what = f"lacks {', '.join(missing[:3])}" if missing else f"has {', '.join(extra[:3])} besides"
        raise refused(opened, f"should be {_a(name)} of dictionary_learning by its settings, but {what}")
    return name


def _a(name: str) -> str:
    return f"an {name}" if name.startswith("A") else f"a {name}"


def _checked(opened: Opened, name: str) -> dict[str, torch.Tensor]:
    """The tensors, of fitting shapes, for rows that are not divided by anything."""
    tensors = opened.tensors
    weights = "W_enc" if "W_enc" in tensors else "encoder.weight"
    lengths = shape_of(opened, DictionaryLearning.title, tensors, weights)
    d_in, d_sae = lengths if weights == "W_enc" else lengths[::-1]
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("bias", "b_dec", "decoder_bias", "decoder.bias"), (d_in,)),
        **dict.fromkeys(("encoder.bias", "b_enc", "r_mag", "gate_bias", "mag_bias"), (d_sae,)),
        "encoder.weight": (d_sae, d_in),
        "decoder.weight": (d_in, d_sae),
        "W_enc": (d_in, d_sae),
        "W_dec": (d_sae, d_in),
        "k": (),
        "threshold": (),
    }
    if name == "JumpReluAutoEncoder":
        shapes["threshold"] = (d_sae,)
    sizes = tensors.get("group_sizes")
    shapes["group_sizes"] = (sizes.numel(),) if isinstance(sizes, torch.Tensor) else ()
    expected = {key: shapes[key] for key in tensors}
    check_keys(tensors, expected, where=str(opened.file), what=f"{_a(name)} of dictionary_learning, {d_in} x {d_sae}")
    factor = opened.content.get("norm_factor") if isinstance(opened.content, Mapping) else None
    if not isinstance(factor, int | float | torch.Tensor):
        return dict(tensors)
    factor = float(factor)
    scaled = {key: value * factor if key in _SCALED else value for key, value in tensors.items()}
    if "threshold" in scaled and (name == "JumpReluAutoEncoder" or float(scaled["threshold"]) >= 0):
        scaled["threshold"] = scaled["threshold"] * factor
    return scaled


_Read = tuple[dict[str, torch.Tensor], str, dict[str, Any], dict[str, Any]]


def _linear(tensors: Tensors, bias: str) -> dict[str, torch.Tensor]:
    state = {"W_enc": tensors["encoder.weight"].T, "W_dec": tensors["decoder.weight"].T, "b_dec": tensors[bias]}
    return state | ({"b_enc": tensors["encoder.bias"]} if "encoder.bias" in tensors else {})


def _standard(tensors: Tensors, opened: Opened, trainer: Mapping[str, Any]) -> _Read:  # noqa: ARG001
    state = _linear(tensors, "bias")
    norms = state["W_dec"].norm(dim=1)
    if torch.allclose(norms, torch.ones_like(norms)):
        return state, "standard", {}, {}
    state["W_dec"] = state["W_dec"] / norms.where(norms > 0, 1.0)[:, None]  # the library divides 0 by 0
    state["W_enc"], state["b_enc"] = state["W_enc"] * norms, state["b_enc"] * norms
    return state, "standard", {}, {"decoder_normalized": True}


def _new(tensors: Tensors, opened: Opened, trainer: Mapping[str, Any]) -> _Read:  # noqa: ARG001
    return _linear(tensors, "decoder.bias"), "standard", {"apply_b_dec_to_input": False}, {}


def _gated(tensors: Tensors, opened: Opened, trainer: Mapping[str, Any]) -> _Read:  # noqa: ARG001
    state = _linear(tensors, "decoder_bias")
    state |= {"b_gate": tensors["gate_bias"], "b_mag": tensors["mag_bias"], "r_mag": tensors["r_mag"]}
    return state, "gated", {}, {}


def _k(tensors: Tensors, trainer: Mapping[str, Any]) -> Any:
    k = tensors["k"].item() if "k" in tensors else trainer.get("k")
    return (
        int(k) if isinstance(k, float) and "k" in tensors and k.is_integer() else k
    )  # of a file made float as a whole


def _topk(tensors: Tensors, opened: Opened, trainer: Mapping[str, Any]) -> _Read:
    way_out = "give the number, in the file or as k of trainer in its config.json"
    k = required_k(opened, _k(tensors, trainer), len(tensors["encoder.bias"]), way_out)
    told = {"threshold": float(tensors["threshold"])} if "threshold" in tensors else {}
    return _linear(tensors, "b_dec"), "topk", {"k": k}, told


def _batch_topk(tensors: Tensors, opened: Opened, trainer: Mapping[str, Any]) -> _Read:  # noqa: ARG001
    state = _linear(tensors, "b_dec")
    state["threshold"] = torch.full_like(state["b_enc"], float(tensors["threshold"]))
    return state, "jumprelu", {}, {"k": _k(tensors, trainer)}


def _matryoshka(tensors: Tensors, opened: Opened, trainer: Mapping[str, Any]) -> _Read:
    state = {key: tensors[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
    state["threshold"] = torch.full_like(state["b_enc"], float(tensors["threshold"]))
    levels = list(accumulate(int(size) for size in tensors["group_sizes"]))
    if levels[-1:] != [len(state["b_enc"])]:
        raise refused(opened, f"has groups that end at {levels[-1:]} of {len(state['b_enc'])} latents")
    return state, "jumprelu", {}, {"levels": levels, "k": _k(tensors, trainer)}


def _jumprelu(tensors: Tensors, opened: Opened, trainer: Mapping[str, Any]) -> _Read:  # noqa: ARG001
    return dict(tensors), "jumprelu", {"apply_b_dec_to_input": False}, {}


_READ: dict[str, Callable[[Tensors, Opened, Mapping[str, Any]], _Read]] = {
    "AutoEncoder": _standard,
    "AutoEncoderNew": _new,
    "GatedAutoEncoder": _gated,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batch_topk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jumprelu,
}
