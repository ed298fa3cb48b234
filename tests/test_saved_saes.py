"""Every SAE that SAELens trains is saved so that a process that imports only `sae_lens` computes the same with it."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import (
    SAE,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from safetensors.torch import load_file, save_file

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sha256_of_file
from mammosae_plugin.training import save_sae

D_IN, D_SAE = 12, 40
# Without those that others register, ours among them (test_sail_saes).
SAELENS_OWN = [
    name for name, (kind, _) in SAE_TRAINING_CLASS_REGISTRY.items() if kind.__module__.partition(".")[0] == "sae_lens"
]
INFERENCE_FORM = {
    "standard": "standard",
    "gated": "gated",
    "topk": "topk",
    "abstopk": "abstopk",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
    "matching_pursuit": "matching_pursuit",
}
SETTINGS = {
    "topk": {"k": 5},
    "abstopk": {"k": 5},
    "batchtopk": {"k": 5},
    "matryoshka_batchtopk": {"k": 5, "matryoshka_widths": [10, D_SAE]},
    "jumprelu": {"jumprelu_init_threshold": 0.2},
    "matching_pursuit": {"max_iterations": 4, "decoder_init_norm": 1.0},
}


def build(architecture: str) -> Any:
    """A training SAE whose biases, norms and thresholds all matter."""
    sae_class, config_class = SAE_TRAINING_CLASS_REGISTRY[architecture]
    config: Any = config_class(d_in=D_IN, d_sae=D_SAE, **SETTINGS.get(architecture, {}))
    sae: Any = sae_class(config)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name == "threshold":
                parameter += torch.rand(parameter.shape)
            elif architecture != "matching_pursuit" or name != "W_dec":  # its rows must keep norm 1
                parameter += 0.3 * torch.randn(parameter.shape)
    if "batchtopk" in architecture:
        sae.topk_threshold.fill_(0.7)
    return sae


def expected_of(sae: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents in units of the layer and the reconstruction, from the training SAE, by the architecture's formula."""
    norms = sae.W_dec.norm(dim=1)
    architecture = sae.cfg.architecture()
    if "batchtopk" in architecture:  # its training form depends on the batch; in use it has one threshold
        pre = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc) * norms
        latents = pre * (pre > sae.topk_threshold)
        return latents, latents / norms @ sae.W_dec + sae.b_dec
    latents, reconstruction = sae.encode(x), sae(x)
    return latents * norms if architecture in ("standard", "gated", "jumprelu") else latents, reconstruction


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder per architecture, `expected.safetensors`, and `seen.json` of a process that imports only sae_lens."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("saes")
    x = torch.randn(50, D_IN)
    expected = {"x": x}
    for architecture in SAELENS_OWN:
        sae = build(architecture)
        with torch.no_grad():
            expected[f"{architecture}.latents"], expected[f"{architecture}.reconstruction"] = expected_of(sae, x)
        save_sae(sae, root / architecture, metadata={"hook_name": "bn2.hook_out", "layout": "channels_last"})
    save_file({name: tensor.detach().contiguous() for name, tensor in expected.items()}, root / "expected.safetensors")
    program = """
import json, pathlib, sys
import torch
from safetensors.torch import load_file
from sae_lens import SAE
root = pathlib.Path(sys.argv[1])
expected = load_file(root / "expected.safetensors")
seen = {}
for folder in sorted(path for path in root.iterdir() if path.is_dir()):
    sae = SAE.load_from_disk(folder)
    with torch.no_grad():
        latents = sae.encode(expected["x"])
        reconstruction = sae.decode(latents)
    relative = lambda found, name: float((found - expected[f"{folder.name}.{name}"]).norm() / found.norm())
    seen[folder.name] = {
        "architecture": sae.cfg.architecture(),
        "latents": relative(latents, "latents"),
        "reconstruction": relative(reconstruction, "reconstruction"),
        "active": float((latents != 0).float().mean()),
        "norm": float((sae.W_dec.norm(dim=1) - 1).abs().max()),
        "metadata": sae.cfg.metadata.to_dict(),
        "files": sorted(path.name for path in folder.iterdir()),
    }
assert not any(name.startswith("mammosae") for name in sys.modules)
(root / "seen.json").write_text(json.dumps(seen))
"""
    subprocess.run([sys.executable, "-c", program, str(root)], check=True, capture_output=True, cwd=root)
    return root


def test_the_architectures_that_saelens_trains_are_the_ones_we_know() -> None:
    assert set(SAELENS_OWN) == set(INFERENCE_FORM), (
        "upstream changed: SAELens trains other architectures; add the new one to INFERENCE_FORM with its formula in "
        "expected_of, and look whether save_sae folds what it should"
    )


@pytest.mark.parametrize("architecture", INFERENCE_FORM)
def test_a_process_that_imports_only_sae_lens_computes_the_same(saved: Path, architecture: str) -> None:
    seen = json.loads((saved / "seen.json").read_text())[architecture]
    assert seen["architecture"] == INFERENCE_FORM[architecture]
    assert 0.02 < seen["active"] < 0.7
    assert seen["latents"] < 1e-5
    assert seen["reconstruction"] < 1e-5
    assert seen["norm"] < 1e-5
    assert seen["metadata"]["hook_name"] == "bn2.hook_out"
    assert seen["metadata"]["training_architecture"] == architecture
    assert seen["files"] == ["cfg.json", "sae_weights.safetensors"]


def test_saving_leaves_the_sae_as_it_was_and_says_the_same_thing_twice(tmp_path: Path) -> None:
    sae = build("standard")
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    save_sae(sae, tmp_path / "sae", metadata={"hook_name": "bn2.hook_out"})
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())
    assert sae.cfg.metadata.hook_name is None
    digests = [sha256_of_file(path) for path in sorted((tmp_path / "sae").iterdir())]
    assert save_sae(sae, str(tmp_path / "sae"), metadata={"hook_name": "bn2.hook_out"}) == tmp_path / "sae"
    assert [sha256_of_file(path) for path in sorted((tmp_path / "sae").iterdir())] == digests


def test_another_sae_is_not_overwritten_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    save_sae(build("standard"), tmp_path)
    digest = sha256_of_file(tmp_path / "sae_weights.safetensors")
    with pytest.raises(InputError, match="holds another SAE"):
        save_sae(build("standard"), tmp_path)
    with pytest.raises(InputError, match="holds another SAE"):
        save_sae(SAE.load_from_disk(tmp_path), tmp_path, metadata={"hook_name": "other"})
    assert sha256_of_file(tmp_path / "sae_weights.safetensors") == digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cfg.json", "notes.txt", "sae_weights.safetensors"]


def test_an_inference_sae_is_saved_with_its_norms_folded(tmp_path: Path) -> None:
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE))
    with torch.no_grad():
        sae.W_dec *= 3
        sae.b_enc += torch.randn(D_SAE)
        sae.threshold += 0.4
    save_sae(sae, tmp_path)
    found = SAE.load_from_disk(tmp_path)
    x = torch.randn(20, D_IN)
    with torch.no_grad():
        torch.testing.assert_close(found(x), sae(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.encode(x), sae.encode(x) * sae.W_dec.norm(dim=1), rtol=1e-5, atol=1e-5)
    assert not torch.equal(found.W_dec, sae.W_dec)


def test_top_k_by_raw_values_keeps_its_norms_because_folding_would_select_others(tmp_path: Path) -> None:
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3, rescale_acts_by_decoder_norm=False))
    with torch.no_grad():
        sae.W_dec *= torch.rand(D_SAE, 1) + 0.5
    save_sae(sae, tmp_path)
    found, x = SAE.load_from_disk(tmp_path), torch.randn(20, D_IN)
    with torch.no_grad():
        torch.testing.assert_close(found.encode(x), sae.encode(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found(x), sae(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [torch.zeros(1), Path("data"), float("nan"), {"nested": {1, 2}}])
def test_metadata_that_is_no_json_is_refused_before_anything_is_written(tmp_path: Path, bad: Any) -> None:
    for sae, metadata in ((build("standard"), {"note": bad}), (build("standard"), {})):
        if not metadata:
            sae.cfg.metadata.note = bad
        with pytest.raises(InputError, match="not plain JSON at 'note'"):
            save_sae(sae, tmp_path / "sae", metadata=metadata)
    assert not (tmp_path / "sae").exists()


def test_a_normalisation_that_is_not_in_the_weights_is_refused_until_it_is_folded(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, normalize_activations="expected_average_only_in")
    sae = StandardTrainingSAE(config)
    with pytest.raises(InputError, match="fold it first"):
        save_sae(sae, tmp_path)
    sae.fold_activation_norm_scaling_factor(2.0)
    save_sae(sae, tmp_path)
    x = torch.randn(5, D_IN)
    with torch.no_grad():
        torch.testing.assert_close(SAE.load_from_disk(tmp_path)(x), sae(x), rtol=1e-5, atol=1e-5)


def test_what_saelens_could_not_load_again_is_refused(tmp_path: Path) -> None:
    class OwnConfig(StandardSAEConfig):
        @classmethod
        def architecture(cls) -> str:
            return "our_own"

    with pytest.raises(InputError, match="no inference SAE of the architecture 'our_own'"):
        save_sae(StandardSAE(OwnConfig(d_in=4, d_sae=8)), tmp_path / "sae")
    with pytest.raises(InputError, match="Linear is no SAELens SAE"):
        save_sae(torch.nn.Linear(2, 2), tmp_path / "sae")
    assert not (tmp_path / "sae" / "cfg.json").exists()


@pytest.mark.parametrize("dies_at", [0, 1])
def test_a_process_killed_while_saving_leaves_no_sae_and_saving_again_completes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    sae, replace, calls = build("gated"), os.replace, []

    def dying(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) > dies_at:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("mammosae_plugin.training.saving.os.replace", dying)
    with pytest.raises(KeyboardInterrupt):
        save_sae(sae, tmp_path)
    assert not (tmp_path / "cfg.json").exists()
    monkeypatch.undo()
    save_sae(sae, tmp_path)
    assert torch.equal(load_file(tmp_path / "sae_weights.safetensors")["b_gate"].sign(), sae.b_gate.sign())
