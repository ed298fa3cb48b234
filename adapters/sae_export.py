"""A SAELens SAE as the files of other libraries, whose own code loads them with the same latents.

The files of dictionary_learning and saev are state dicts that `torch.save` wrote, because that is what these libraries
read: tensors alone, which `torch.load(weights_only=True)` takes. With z = act(a) and x' = z W_dec + b_dec, libraries
differ in whether a is (x - b_dec) W_enc + b_enc or x W_enc + b_enc. Where the SAE has the other form the difference,
b_dec W_enc, is moved into the encoder's bias, computed in float64.
"""

__all__ = ["export_sae", "EXPORT_FORMATS", "plain_sae", "PlainSAE"]

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, TrainingSAE
from safetensors.torch import save_file

from mammosae_plugin.adapters.attached_sae import refuse_what_no_map_fits
from mammosae_plugin.adapters.checkpoints import refuse_not_finite
from mammosae_plugin.adapters.input_normalization import input_normalization
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import TEMPORARY, local_path
from mammosae_plugin.version import __version__

_SIGNED_TOPK = "signed_topk"
"""Top-k that keeps negative values, as saev's does."""


def export_sae(sae: SAE[Any], folder: str | os.PathLike[str], *, format: str) -> Path:
    """Write an SAE as another library's files.

    Rows go in as they are, and latents and reconstruction are those of the SAE to float rounding. The folder appears
    whole, or not at all; one that holds anything is left alone. The SAE is not changed.

    | format | files | loads with | holds |
    |---|---|---|---|
    | "dictionary_learning" | config.json, ae.pt | `dictionary_learning.utils.load_dictionary` | standard, gated, top-k,
      JumpReLU |
    | "saev" | sae.pt, of schema 5 | `saev.nn.load` | standard, JumpReLU of one threshold |
    | "saev-0.1" | sae.pt, without schema | `saev.nn.load` of the registry's saev 0.1.0 | standard, d_sae a multiple of
      d_in |
    | "sparsify" | cfg.json, sae.safetensors | `sparsify.SparseCoder.load_from_disk` | top-k |

    Args:
        sae: a SAELens SAE in the form in which it is used.
        folder: where to; it is made.
        format: one of these.

    Returns:
        The folder.

    Raises:
        InputError: there is no such format; it cannot express the SAE (the message says which can); the SAE scales or
            reshapes its rows, or is one in training; or the folder holds something.

    Examples:
        >>> export_sae(load_vision_sae("sae"), "for-peers", format="dictionary_learning")   # doctest: +SKIP
    """
    if format not in EXPORT_FORMATS:
        raise InputError(f"there is no format {format!r} to export to; there are {', '.join(EXPORT_FORMATS)}")
    folder = local_path(folder)
    plain = plain_sae(sae)
    reason = EXPORT_FORMATS[format].cannot(plain)
    if reason is not None:
        others = [name for name, other in EXPORT_FORMATS.items() if other.cannot(plain) is None]
        instead = f"; {', '.join(others)} can" if others else "; save_sae writes SAELens's own, which can"
        raise InputError(f"{format} cannot hold this SAE: {reason}{instead}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds something already; name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=TEMPORARY))
    try:
        EXPORT_FORMATS[format].write(plain, temporary)
        temporary.chmod(0o755)
        for file in temporary.iterdir():
            with file.open("rb+") as written:
                os.fsync(written.fileno())
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


@dataclass(frozen=True)
class PlainSAE:
    """An SAE of linear maps on rows as they are.

    Attributes:
        architecture: SAELens's name.
        state: its tensors, float32 on the CPU, under SAELens's names.
        subtracts: whether b_dec is taken from the input.
        k: of top-k SAEs.
        said: of its metadata, what other libraries have a place for.
    """

    architecture: str
    state: dict[str, torch.Tensor]
    subtracts: bool
    k: int | None
    said: dict[str, str]

    @property
    def d_in(self) -> int:
        return int(self.state["W_enc"].shape[0])

    @property
    def d_sae(self) -> int:
        return int(self.state["W_enc"].shape[1])

    @property
    def one_threshold(self) -> float | None:
        """The threshold that all latents share; None where they have several."""
        threshold = self.state["threshold"]
        return float(threshold[0]) if bool((threshold == threshold[0]).all()) else None

    def bias(self, name: str, *, subtracted: bool, scale: torch.Tensor | None = None) -> torch.Tensor:
        """An encoder's bias for code that takes b_dec from the input, or does not; `scale` is the encoder's own."""
        own = self.state[name]
        if subtracted == self.subtracts:
            return own
        moved = self.state["b_dec"].double() @ self.state["W_enc"].double()
        moved = moved if scale is None else moved * scale.double()
        return (own.double() + (moved if subtracted else -moved)).float()

    def encoder(self) -> torch.Tensor:
        """(d_sae, d_in), as a linear layer has it."""
        return self.state["W_enc"].T.contiguous()


def plain_sae(sae: SAE[Any]) -> PlainSAE:
    refuse_what_no_map_fits(sae, "export")
    refuse_not_finite(sae.state_dict(), where="the SAE")
    if isinstance(sae, TrainingSAE):
        raise InputError(
            f"the SAE is one in training ({type(sae).__name__}); export what save_sae makes of it: "
            "load_vision_sae(save_sae(sae, folder))"
        )
    scaling = input_normalization(sae) or sae.cfg.normalize_activations
    if scaling != "none":
        raise InputError(
            f"the SAE scales each row by itself first ({scaling}), which no other library's file says; save_sae writes "
            "SAELens's own, which does"
        )
    used = copy.deepcopy(sae).to("cpu", torch.float32)
    if getattr(used.cfg, "rescale_acts_by_decoder_norm", False):
        used.fold_W_dec_norm()
    state = {name: value.detach().contiguous() for name, value in used.state_dict().items()}
    metadata: Any = sae.cfg.metadata
    said = {name: str(metadata[name]) for name in ("model_name", "hook_name") if metadata[name]}
    architecture, k = used.cfg.architecture(), getattr(used.cfg, "k", None)
    return PlainSAE(architecture, state, bool(used.cfg.apply_b_dec_to_input), None if k is None else int(k), said)


def _of(plain: PlainSAE, *architectures: str) -> str | None:
    return None if plain.architecture in architectures else f"its architecture is {plain.architecture!r}"


# -- dictionary_learning -----------------------------------------------------------------------------------------------


def _cannot_dictionary_learning(plain: PlainSAE) -> str | None:
    return _of(plain, "standard", "gated", "topk", "jumprelu")


def _write_dictionary_learning(plain: PlainSAE, folder: Path) -> None:
    state, encoder = plain.state, plain.encoder()
    decoder = state["W_dec"].T.contiguous()
    linear = {"encoder.weight": encoder, "decoder.weight": decoder}
    tensors: dict[str, torch.Tensor]
    if plain.architecture == "jumprelu":
        name = "JumpReluAutoEncoder"
        tensors = {key: state[key] for key in ("W_enc", "W_dec", "b_dec", "threshold")}
        tensors["b_enc"] = plain.bias("b_enc", subtracted=False)
    elif plain.architecture == "topk":
        name = "AutoEncoderTopK"
        tensors = {**linear, "encoder.bias": plain.bias("b_enc", subtracted=True), "b_dec": state["b_dec"]}
        tensors |= {"k": torch.tensor(plain.k, dtype=torch.int), "threshold": torch.tensor(-1.0)}
    elif plain.architecture == "gated":
        name, magnitude = "GatedAutoEncoder", state["r_mag"].exp()
        tensors = {**linear, "decoder_bias": state["b_dec"], "r_mag": state["r_mag"]}
        tensors["gate_bias"] = plain.bias("b_gate", subtracted=True)
        tensors["mag_bias"] = plain.bias("b_mag", subtracted=True, scale=magnitude)
    elif plain.subtracts and _of_unit_norm(decoder):
        name = "AutoEncoder"
        tensors = {**linear, "encoder.bias": state["b_enc"], "bias": state["b_dec"]}
    else:  # AutoEncoder divides other decoders by their norms when it is loaded, which changes the latents
        name = "AutoEncoderNew"
        tensors = {**linear, "encoder.bias": plain.bias("b_enc", subtracted=False), "decoder.bias": state["b_dec"]}
    trainer: dict[str, Any] = {"dict_class": name, "activation_dim": plain.d_in, "dict_size": plain.d_sae}
    trainer |= {"k": plain.k} if plain.architecture == "topk" else {}
    trainer |= {"lm_name": plain.said.get("model_name"), "submodule_name": plain.said.get("hook_name")}
    _write_json(folder / "config.json", {"trainer": trainer, "written_by": f"mammosae-plugin {__version__}"})
    torch.save(tensors, folder / "ae.pt")


def _of_unit_norm(decoder: torch.Tensor) -> bool:
    norms = decoder.norm(dim=0)
    return torch.allclose(norms, torch.ones_like(norms))


# -- saev --------------------------------------------------------------------------------------------------------------


def _cannot_saev(plain: PlainSAE) -> str | None:
    if plain.architecture == "topk":
        return "its top-k sets negative values to 0, and saev's keeps them"
    if plain.architecture == "jumprelu" and plain.one_threshold is None:
        return "its latents have thresholds of their own, and saev has one for all"
    return _of(plain, "standard", "jumprelu", _SIGNED_TOPK)


def _write_saev(plain: PlainSAE, folder: Path) -> None:
    none, aux = {"cls": "NoSparsity", "params": {"key": "no-sparsity"}}, {"key": "auxk", "k_aux": 512, "alpha": 1 / 32}
    extra: dict[str, torch.Tensor] = {}
    if plain.architecture == "jumprelu" and (plain.one_threshold or 0) > 0:
        params: dict[str, Any] = {"key": "batch-top-k", "top_k": 32, "sparsity": none, "momentum": 0.1}
        activation = {"cls": "BatchTopK", "params": params | {"aux": {"cls": "AuxK", "params": aux}}}
        extra["activation.threshold"] = torch.tensor(plain.one_threshold)
    elif plain.architecture == _SIGNED_TOPK:
        params = {"key": "top-k", "top_k": plain.k, "sparsity": none, "aux": {"cls": "AuxK", "params": aux}}
        activation = {"cls": "TopK", "params": params}
    else:
        l1 = {"cls": "L1Sparsity", "params": {"key": "l1-sparsity", "coeff": 4e-4}}
        params = {"key": "relu", "sparsity": l1, "aux": {"cls": "NoAux", "params": {"key": "no-aux"}}}
        activation = {"cls": "Relu", "params": params}
    cfg = {
        "d_model": plain.d_in,
        "d_sae": plain.d_sae,
        "activation": activation,
        "reinit_blend": 0.8,
        "reinit_enc_dec_tranpose": True,
        "remove_parallel_grads": True,
        "normalize_w_dec": _of_unit_norm(plain.state["W_dec"].T),
    }
    header = {"schema": 5, "cfg": cfg, "commit": "unknown", "lib": f"mammosae-plugin {__version__}"}
    _write_with_header(folder / "sae.pt", header, _saev_state(plain, subtracted=False) | extra)


def _cannot_saev_0(plain: PlainSAE) -> str | None:
    if plain.architecture == "standard" and plain.d_sae % plain.d_in:
        return f"its {plain.d_sae} latents are no multiple of its {plain.d_in} channels, as the file has to say"
    return _of(plain, "standard")


def _write_saev_0(plain: PlainSAE, folder: Path) -> None:
    header = {"d_vit": plain.d_in, "exp_factor": plain.d_sae // plain.d_in}
    header |= {"normalize_w_dec": _of_unit_norm(plain.state["W_dec"].T)}
    _write_with_header(folder / "sae.pt", header, _saev_state(plain, subtracted=True))


def _saev_state(plain: PlainSAE, *, subtracted: bool) -> dict[str, torch.Tensor]:
    state = {name: plain.state[name] for name in ("W_enc", "W_dec", "b_dec")}
    return state | {"b_enc": plain.bias("b_enc", subtracted=subtracted)}


def _write_with_header(path: Path, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    with path.open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        torch.save(tensors, file)


# -- sparsify ----------------------------------------------------------------------------------------------------------


def _cannot_sparsify(plain: PlainSAE) -> str | None:
    return _of(plain, "topk")


def _write_sparsify(plain: PlainSAE, folder: Path) -> None:
    state = plain.state
    tensors = {"encoder.weight": plain.encoder(), "encoder.bias": plain.bias("b_enc", subtracted=True)}
    save_file(tensors | {"W_dec": state["W_dec"], "b_dec": state["b_dec"]}, folder / "sae.safetensors")
    config = {"activation": "topk", "num_latents": plain.d_sae, "k": plain.k, "d_in": plain.d_in}
    config |= {"normalize_decoder": _of_unit_norm(state["W_dec"].T), "multi_topk": False}
    _write_json(folder / "cfg.json", config | {"skip_connection": False, "transcode": False})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Format:
    """One format: why it cannot hold an SAE, None where it can, and how its files are written."""

    cannot: Callable[[PlainSAE], str | None]
    write: Callable[[PlainSAE, Path], None]


EXPORT_FORMATS: dict[str, _Format] = {
    "dictionary_learning": _Format(_cannot_dictionary_learning, _write_dictionary_learning),
    "saev": _Format(_cannot_saev, _write_saev),
    "saev-0.1": _Format(_cannot_saev_0, _write_saev_0),
    "sparsify": _Format(_cannot_sparsify, _write_sparsify),
}
"""What `export_sae` writes, by name."""
