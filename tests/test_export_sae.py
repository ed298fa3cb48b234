"""Exported SAEs compute what they computed: by the formulas of each library's code on the tensors in its file, and by
sparsify itself. The files were also loaded by dictionary_learning 0.1.0, saev 0.1.0 and saev at 3d73f1f, which do not
install beside this package's dependencies: latents and reconstruction within 3e-7 of the largest value.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import ARCHITECTURES, small_training
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file
from typer.testing import CliRunner

from mammosae_plugin.adapters import export_sae, load_sae, load_vision_sae, sae_export
from mammosae_plugin.adapters.sae_export import EXPORT_FORMATS
from mammosae_plugin.cli import app
from mammosae_plugin.errors import InputError
from mammosae_plugin.training import save_sae
from mammosae_plugin.training.new_sae import new_training_sae

D_IN, D_SAE, K = 8, 24, 4
Computed = tuple[torch.Tensor, torch.Tensor]


def build(architecture: str, *, apply: bool = True, unit: bool = True, thresholds: str = "one", **settings: Any) -> Any:
    torch.manual_seed(0)
    metadata = {"hook_name": "blocks.1.hook_out", "model_name": "vit"}
    config = {"architecture": architecture, "d_in": D_IN, "d_sae": D_SAE, "apply_b_dec_to_input": apply}
    sae = SAE.from_dict({**config, **settings, "metadata": metadata})
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn_like(parameter))
        if unit:
            sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        if architecture == "jumprelu":
            threshold: torch.Tensor = sae.threshold
            threshold.copy_(torch.rand(D_SAE) if thresholds == "several" else torch.full((D_SAE,), 0.8))
    return sae


def rows() -> torch.Tensor:
    return 3 * torch.randn(64, D_IN, generator=torch.Generator().manual_seed(1))


def top(values: torch.Tensor, k: int) -> torch.Tensor:
    kept, places = values.relu().topk(k)
    return torch.zeros_like(values).scatter(1, places, kept)


def by_dictionary_learning(folder: Path) -> Computed:
    trainer = json.loads((folder / "config.json").read_text())["trainer"]
    assert (trainer["lm_name"], trainer["submodule_name"]) == ("vit", "blocks.1.hook_out")
    t, x = torch.load(folder / "ae.pt", weights_only=True), rows()
    name = trainer["dict_class"]
    if name == "JumpReluAutoEncoder":
        a = x @ t["W_enc"] + t["b_enc"]
        z = a.relu() * (a > t["threshold"])
        return z, z @ t["W_dec"] + t["b_dec"]
    bias = t[
        {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}.get(name, "b_dec")
    ]
    inside = x if name == "AutoEncoderNew" else x - bias
    a = inside @ t["encoder.weight"].T + t.get("encoder.bias", torch.zeros(()))
    if name == "GatedAutoEncoder":
        z = (a + t["gate_bias"] > 0) * (t["r_mag"].exp() * a + t["mag_bias"]).relu()
    else:
        assert name != "AutoEncoder" or torch.allclose(t["decoder.weight"].norm(dim=0), torch.ones(D_SAE))
        z = top(a, trainer["k"]) if name == "AutoEncoderTopK" else a.relu()
    return z, z @ t["decoder.weight"].T + bias


def by_saev(folder: Path) -> Computed:
    with (folder / "sae.pt").open("rb") as file:
        header = json.loads(file.readline())
        (folder / "tensors.pt").write_bytes(file.read())
    t, x = torch.load(folder / "tensors.pt", weights_only=True), rows()
    if "schema" not in header:
        assert header["d_vit"] * header["exp_factor"] == D_SAE
        a, threshold = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"], 0.0
    else:
        assert (header["schema"], header["cfg"]["d_model"], header["cfg"]["d_sae"]) == (5, D_IN, D_SAE)
        a, threshold = x @ t["W_enc"] + t["b_enc"], float(t.get("activation.threshold", 0.0))
        kind = header["cfg"]["activation"]["cls"]
        assert kind == ("BatchTopK" if threshold else "Relu")
    z = torch.where(a > threshold, a, torch.zeros_like(a))
    return z, z @ t["W_dec"] + t["b_dec"]


def by_sparsify(folder: Path) -> Computed:
    config, t = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae.safetensors")
    z = top((rows() - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"], config["k"])
    return z, z @ t["W_dec"] + t["b_dec"]


BY: dict[str, Callable[[Path], Computed]] = {
    "dictionary_learning": by_dictionary_learning,
    "saev": by_saev,
    "saev-0.1": by_saev,
    "sparsify": by_sparsify,
}
"""Each library's forward pass, written out."""

KINDS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "standard": ({}, {"dictionary_learning", "saev", "saev-0.1"}),
    "gated": ({}, {"dictionary_learning"}),
    "jumprelu": ({}, {"dictionary_learning", "saev"}),
    "jumprelu of several thresholds": ({"thresholds": "several"}, {"dictionary_learning"}),
    "topk": ({"k": K}, {"dictionary_learning", "sparsify"}),
    "topk of rescaled latents": ({"k": K, "rescale_acts_by_decoder_norm": True}, {"dictionary_learning", "sparsify"}),
    "abstopk": ({"k": K}, set()),
    "matching_pursuit": ({"max_iterations": 3, "apply_b_dec_to_input": True}, set()),
}
"""Kinds of SAEs, and the formats that hold them."""


def of_kind(kind: str, **more: Any) -> Any:
    return build(kind.split(" ")[0], **{**KINDS[kind][0], **more})


@pytest.mark.parametrize("format", EXPORT_FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_sae_computes_what_it_did_or_says_which_format_can(kind: str, format: str, tmp_path: Path) -> None:
    if format not in KINDS[kind][1]:
        with pytest.raises(InputError, match=f"{format} cannot hold this SAE: ") as refusal:
            export_sae(of_kind(kind), tmp_path / "out", format=format)
        said = str(refusal.value).rpartition("; ")[2]
        assert said == (
            f"{', '.join(sorted(KINDS[kind][1]))} can" if KINDS[kind][1] else "save_sae writes SAELens's own, which can"
        )
        assert not any(tmp_path.iterdir())
        save_sae(of_kind(kind), tmp_path / "saelens")
        return
    for number, (apply, unit) in enumerate([(True, True), (True, False), (False, True), (False, False)]):
        sae = of_kind(kind, apply=apply, unit=unit)
        folder = export_sae(sae, tmp_path / str(number), format=format)
        with torch.no_grad():
            latents = sae.encode(rows())
            expected = latents, sae.decode(latents)
            back = load_sae(folder if format in ("dictionary_learning", "sparsify") else folder / "sae.pt")
            again = back.encode(rows())
            there_and_back = again, back.decode(again)
        for found, once_more, wanted in zip(BY[format](folder), there_and_back, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))
            torch.testing.assert_close(once_more, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))


def test_sparsify_itself_loads_what_is_written_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSIFY_DISABLE_TRITON", "1")
    sparsify = pytest.importorskip("sparsify")
    sae = of_kind("topk")
    theirs = sparsify.SparseCoder.load_from_disk(export_sae(sae, tmp_path / "blocks.1", format="sparsify"))
    with torch.no_grad():
        found = theirs.encode(rows())
        latents = torch.zeros(64, D_SAE).scatter(1, found.top_indices, found.top_acts)
    torch.testing.assert_close(latents, sae.encode(rows()), rtol=0, atol=1e-5)


def test_a_trained_sae_goes_out_as_it_is_used(tmp_path: Path) -> None:
    config = small_training(architecture="batchtopk", d_sae=D_SAE)
    said = SAEMetadata(hook_name="blocks.1.hook_out", model_name="vit")
    training = new_training_sae(config, D_IN, metadata=said, device="cpu")
    with pytest.raises(InputError, match="reads positions together"):
        export_sae(training, tmp_path / "out", format="dictionary_learning")
    standard = new_training_sae(small_training(d_sae=D_SAE), D_IN, metadata=said, device="cpu")
    with pytest.raises(InputError, match=r"one in training .*load_vision_sae\(save_sae\(sae, folder\)\)"):
        export_sae(standard, tmp_path / "out", format="dictionary_learning")
    sae = load_vision_sae(save_sae(training, tmp_path / "sae"))
    latents, _ = by_dictionary_learning(export_sae(sae, tmp_path / "out", format="dictionary_learning"))
    torch.testing.assert_close(latents, sae.encode(rows()), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalize_activations": "layer_norm"}, "scales each row by itself first"),
        ({"normalize_activations": "expected_average_only_in"}, "would see them unscaled"),
    ],
)
def test_an_sae_that_scales_its_rows_is_not_exported(change: dict[str, str], message: str, tmp_path: Path) -> None:
    sae = of_kind("standard", **change)
    with pytest.raises(InputError, match=message):
        export_sae(sae, tmp_path / "out", format="saev")
    if "itself" in message:  # "save_sae writes SAELens's own, which does"
        torch.testing.assert_close(load_vision_sae(save_sae(sae, tmp_path / "own")).encode(rows()), sae.encode(rows()))
    sae = of_kind("standard")
    sae.cfg.metadata.input_normalization = "unit_l2"
    with pytest.raises(InputError, match="scales each row by itself first \\(unit_l2\\)"):
        export_sae(sae, tmp_path / "out", format="saev")


def test_the_first_saev_holds_multiples_of_the_width_alone(tmp_path: Path) -> None:
    sae = SAE.from_dict({**of_kind("standard").cfg.to_dict(), "d_sae": D_SAE + 1})
    with pytest.raises(InputError, match="25 latents are no multiple .* 8 channels.*; dictionary_learning, saev can"):
        export_sae(sae, tmp_path / "out", format="saev-0.1")


def test_an_export_is_whole_or_absent_and_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something already; name another folder"):
        export_sae(of_kind("standard"), tmp_path / "full", format="saev")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    assert export_sae(of_kind("standard"), tmp_path / "another", format="saev").is_dir()

    def full(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sae_export.torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        export_sae(of_kind("standard"), tmp_path / "out", format="dictionary_learning")
    assert {path.name for path in tmp_path.iterdir()} == {"full", "another"}


def test_every_trained_architecture_has_a_way_out_or_a_reason() -> None:
    known = {kind.split(" ")[0] for kind in KINDS}
    assert known >= set(ARCHITECTURES) - {"batchtopk", "matryoshka_batchtopk", "matryoshka_independent"}  # jumprelu


def test_an_sae_that_overflows_its_half_precision_is_refused_by_its_architecture(tmp_path: Path) -> None:
    sae = new_training_sae(small_training(architecture="matching_pursuit"), D_IN, metadata=SAEMetadata(), device="cpu")
    sae.save_inference_model(tmp_path / "sae")
    used = SAE.load_from_disk(tmp_path / "sae").to(torch.float16)
    with torch.no_grad():
        used.W_dec *= 100
    with pytest.raises(InputError, match="its architecture is 'matching_pursuit'"):
        export_sae(used, tmp_path / "out", format="sparsify")


def test_the_command_exports_a_folder(tmp_path: Path) -> None:
    of_kind("topk").save_model(tmp_path / "sae")
    runner = CliRunner(env={"COLUMNS": "200"})
    arguments = ["export", str(tmp_path / "sae"), str(tmp_path / "out"), "--format"]
    found = runner.invoke(app, [*arguments, "sparsify"])
    assert found.exit_code == 0 and "cfg.json, sae.safetensors, for sparsify" in found.output
    again = runner.invoke(app, [*arguments, "sparsify"])
    assert again.exit_code == 2 and "holds something already" in " ".join(again.output.split())
    unknown = runner.invoke(app, [*arguments, "keras"])
    assert unknown.exit_code == 2 and "there is no format 'keras'" in " ".join(unknown.output.split())
