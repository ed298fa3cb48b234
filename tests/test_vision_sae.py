"""A Mammo-SAE file becomes a plain SAELens SAE that computes what the original computes."""

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_adapters import DATA, fixture_downstream, relative_error
from huggingface_hub.errors import LocalEntryNotFoundError
from sae_lens import (
    SAE,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
)
from safetensors.torch import load_file

from mammosae_plugin.adapters import (
    CheckpointFormatError,
    UnsafeCheckpointError,
    load_vision_sae,
    sources,
    vision_sae_disk_loader,
    vision_sae_huggingface_loader,
)
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sha256_of_file

TINY = DATA / "vision_sae_tiny.pt"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A Hub that holds the tiny checkpoint in every repo; the list records what was asked for."""
    asked: list[dict[str, Any]] = []

    def download(repo_id: str, filename: str, *, revision: str | None, force_download: bool) -> str:
        asked.append({"repo": repo_id, "file": filename, "revision": revision, "force": force_download})
        return str(TINY)

    monkeypatch.setattr(sources, "hf_hub_download", download)
    return asked


def tiny_state_dict() -> dict[str, torch.Tensor]:
    return dict(torch.load(TINY, weights_only=True))


def refusal(path: Any, error_type: type[Exception] = CheckpointFormatError, **options: Any) -> str:
    with pytest.raises(error_type) as caught:
        load_vision_sae(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_latents_and_reconstruction_equal_the_original() -> None:
    sae = load_vision_sae(TINY)
    expected = load_file(DATA / "vision_sae_tiny_expected.safetensors")
    with torch.no_grad():
        latents = sae.encode(expected["x"])
        reconstruction = sae.decode(latents)
    assert type(sae) is StandardSAE
    assert (expected["latents"] > 0).float().mean() > 0.05
    torch.testing.assert_close(latents, expected["latents"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reconstruction, expected["reconstruction"], rtol=1e-5, atol=1e-5)
    assert relative_error(reconstruction, expected["reconstruction"]) < 1e-5


def test_the_bias_is_taken_from_the_input() -> None:
    """Without it the latents are others: the commonest silent mistake with foreign SAEs."""
    sae, expected = load_vision_sae(TINY), load_file(DATA / "vision_sae_tiny_expected.safetensors")
    sae.cfg.apply_b_dec_to_input = False
    with torch.no_grad():
        assert relative_error(sae.encode(expected["x"]), expected["latents"]) > 0.01


def test_a_file_without_component_axis_gives_the_same_sae(tmp_path: Path) -> None:
    torch.save({key: tensor[0] for key, tensor in tiny_state_dict().items()}, tmp_path / "flat.pt")
    flat, tiny = load_vision_sae(tmp_path / "flat.pt").state_dict(), load_vision_sae(TINY).state_dict()
    assert list(flat) == list(tiny)
    assert all(torch.equal(flat[key], tiny[key]) for key in tiny)


@pytest.mark.parametrize(("d_in", "d_sae"), [(512, 24), (48, 7), (3, 3)])
@pytest.mark.parametrize("has_axis", [True, False])
def test_files_of_any_width_compute_the_formula(d_in: int, d_sae: int, has_axis: bool, tmp_path: Path) -> None:
    encoder, decoder = torch.randn(d_sae, d_in), torch.randn(d_in, d_sae)
    bias, encoder_bias = torch.randn(d_in), torch.randn(d_sae)
    state_dict = {
        "encoder._weight": encoder,
        "encoder._bias": encoder_bias,
        "decoder._weight": decoder,
        **dict.fromkeys(("tied_bias", "pre_encoder_bias._bias_reference", "post_decoder_bias._bias_reference"), bias),
    }
    torch.save({key: tensor[None] if has_axis else tensor for key, tensor in state_dict.items()}, tmp_path / "sae.pt")
    sae = load_vision_sae(tmp_path / "sae.pt")
    assert (sae.cfg.d_in, sae.cfg.d_sae, sae.cfg.metadata.model_name) == (d_in, d_sae, "mammo_clip")
    x = torch.randn(5, d_in)
    latents = torch.relu((x - bias) @ encoder.T + encoder_bias)
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(x), latents, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sae(x), latents @ decoder.T + bias, rtol=1e-4, atol=1e-4)


def test_a_named_file_that_is_not_in_the_folder_is_refused_even_beside_an_sae(tmp_path: Path) -> None:
    load_vision_sae(TINY).save_model(tmp_path)
    assert "other.pt does not exist" in refusal(tmp_path, InputError, filename="other.pt")


def test_metadata_says_where_the_sae_belongs_and_comes_from() -> None:
    metadata = load_vision_sae(TINY).cfg.metadata
    assert (metadata.hook_name, metadata.layout) == ("bn2.hook_out", "channels_last")
    assert (metadata.model_name, metadata.source_file) == ("mammo_clip", "vision_sae_tiny.pt")
    assert metadata.source_sha256 == sha256_of_file(TINY)
    assert metadata.sae_lens_version is not None


@pytest.mark.parametrize(("d_in", "name"), [(2048, "mammo_clip_b5"), (1408, "mammo_clip_b2")])
def test_the_model_is_told_by_the_width(d_in: int, name: str, tmp_path: Path) -> None:
    bias = torch.zeros(d_in)
    state_dict = {
        "encoder._weight": torch.zeros(4, d_in),
        "encoder._bias": torch.zeros(4),
        "decoder._weight": torch.zeros(d_in, 4),
        **dict.fromkeys(("tied_bias", "pre_encoder_bias._bias_reference", "post_decoder_bias._bias_reference"), bias),
    }
    torch.save(state_dict, tmp_path / "sae.pt")
    assert load_vision_sae(tmp_path / "sae.pt").cfg.metadata.model_name == name


def test_the_loaded_sae_does_not_depend_on_the_file(tmp_path: Path) -> None:
    shutil.copy(TINY, tmp_path / "sae.pt")
    sae = load_vision_sae(tmp_path / "sae.pt")
    before = {key: tensor.clone() for key, tensor in sae.state_dict().items()}
    with (tmp_path / "sae.pt").open("r+b") as file:  # in place, as a download that starts again would
        file.write(b"\0" * TINY.stat().st_size)
    assert all(torch.equal(tensor, before[key]) for key, tensor in sae.state_dict().items())


def test_saved_again_it_loads_in_a_process_that_imports_only_sae_lens(tmp_path: Path) -> None:
    sae = load_vision_sae(TINY)
    sae.save_model(tmp_path / "saved")
    program = f"""
import sys
from sae_lens import SAE
from safetensors.torch import load_file
expected = load_file({str(DATA / "vision_sae_tiny_expected.safetensors")!r})
sae = SAE.load_from_disk({str(tmp_path / "saved")!r})
error = (sae(expected["x"]) - expected["reconstruction"]).norm() / expected["reconstruction"].norm()
assert not any(name.startswith("mammosae") for name in sys.modules)
metadata = sae.cfg.metadata
print(type(sae).__name__, metadata.hook_name, metadata.layout, metadata.source_sha256, float(error) < 1e-5)
"""
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert output.stdout.split() == ["StandardSAE", "bn2.hook_out", "channels_last", sha256_of_file(TINY), "True"]


def test_a_saelens_folder_loads_as_what_it_is(tmp_path: Path) -> None:
    tiny = load_vision_sae(TINY)
    tiny.save_model(tmp_path / "standard")
    found = load_vision_sae(tmp_path / "standard")
    assert type(found) is StandardSAE
    assert found.cfg.metadata.hook_name == "bn2.hook_out"
    assert all(torch.equal(tensor, tiny.state_dict()[key]) for key, tensor in found.state_dict().items())
    StandardTrainingSAE(StandardTrainingSAEConfig(d_in=4, d_sae=8)).save_inference_model(tmp_path / "trained")
    assert type(load_vision_sae(tmp_path / "trained")) is StandardSAE
    JumpReLUSAE(JumpReLUSAEConfig(d_in=4, d_sae=8)).save_model(tmp_path / "jumprelu")
    assert type(load_vision_sae(tmp_path / "jumprelu")) is JumpReLUSAE


def test_a_folder_with_the_checkpoint_loads_it_by_name(tmp_path: Path) -> None:
    shutil.copy(TINY, tmp_path / "sparse_autoencoder_final.pt")
    shutil.copy(TINY, tmp_path / "other.pt")
    assert load_vision_sae(tmp_path).cfg.metadata.source_file == "sparse_autoencoder_final.pt"
    assert load_vision_sae(str(tmp_path), filename="other.pt").cfg.metadata.source_file == "other.pt"


def test_the_disk_converter_works_in_saelens_own_loader() -> None:
    sae = SAE.load_from_disk(TINY, converter=vision_sae_disk_loader, dtype="float64")
    assert sae.W_enc.dtype == torch.float64
    assert sae.cfg.metadata.hook_name == "bn2.hook_out"
    assert sae.cfg.metadata.source_file == "vision_sae_tiny.pt"


def test_the_hub_converter_works_in_saelens_own_loader_with_a_bound_revision(hub: list[dict[str, Any]]) -> None:
    converter = functools.partial(vision_sae_huggingface_loader, revision="abc123")
    sae = SAE.from_pretrained("someone/MammoSAE", "folder/sae.pt", converter=converter, force_download=True)
    assert hub == [{"repo": "someone/MammoSAE", "file": "folder/sae.pt", "revision": "abc123", "force": True}]
    metadata = sae.cfg.metadata
    assert (metadata.source_repo, metadata.source_revision) == ("someone/MammoSAE", "abc123")
    assert (metadata.source_file, metadata.source_sha256) == ("folder/sae.pt", sha256_of_file(TINY))


def test_a_repo_name_is_read_from_the_hub(hub: list[dict[str, Any]]) -> None:
    sae = load_vision_sae("KKNakka/MammoSAE", revision="main")
    assert hub == [
        {"repo": "KKNakka/MammoSAE", "file": "sparse_autoencoder_final.pt", "revision": "main", "force": False}
    ]
    assert type(sae) is StandardSAE


def test_a_repo_that_cannot_be_read_gives_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> str:
        raise LocalEntryNotFoundError("cannot reach the Hub\nand more text")

    monkeypatch.setattr(sources, "hf_hub_download", offline)
    message = refusal("runs/sae", InputError)
    assert "runs/sae is no local path" in message
    assert "is not in the cache and the Hub cannot be reached" in message
    assert "and more text" not in message


def test_paths_that_hold_no_sae_give_one_line(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing.pt", InputError)
    assert "does not exist" in refusal(Path("owner/name"), InputError)  # a Path is never a repo
    assert "neither sparse_autoencoder_final.pt nor cfg.json and sae_weights" in refusal(tmp_path, InputError)
    assert "revision 'main' means nothing" in refusal(TINY, InputError, revision="main")


def test_damaged_saelens_folders_give_one_line(tmp_path: Path) -> None:
    load_vision_sae(TINY).save_model(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "d_in": 32}))
    assert "W_enc" in refusal(tmp_path) or "state_dict" in refusal(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "architecture": "unheard_of"}))
    assert "no inference SAE of the architecture 'unheard_of'; register it" in refusal(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "architecture": "batchtopk"}))
    assert "lacks 'k', without which" in refusal(tmp_path) or "can load: " in refusal(tmp_path)
    (tmp_path / "cfg.json").write_text("[]")
    assert "not a SAELens config" in refusal(tmp_path)
    (tmp_path / "cfg.json").write_text("{")
    assert "not valid JSON" in refusal(tmp_path, InputError)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.pop("encoder._weight"), "has no encoder._weight"),
        (lambda s: s.pop("encoder._bias"), r"1 missing (encoder._bias)"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 unexpected (extra)"),
        (lambda s: s.update({"decoder._weight": torch.zeros(1, 512, 64)}), "instead of (1, 64, 512)"),
        (lambda s: s.update({"tied_bias": s["tied_bias"] + 1}), "differs from tied_bias"),
        (lambda s: s.update({k: torch.cat([t, t]) for k, t in s.items()}), "holds 2 SAEs"),
    ],
)
def test_state_dicts_that_are_not_as_they_should_be_give_one_line(
    change: Callable[[dict[str, torch.Tensor]], Any], reason: str, tmp_path: Path
) -> None:
    state_dict = tiny_state_dict()
    change(state_dict)
    torch.save(state_dict, tmp_path / "sae.pt")
    assert reason in refusal(tmp_path / "sae.pt")


def test_other_checkpoints_and_malicious_files_give_one_line(tmp_path: Path) -> None:
    torch.save(fixture_downstream("b2"), tmp_path / "classifier.pth")
    assert "it holds model, predictions, epoch, auroc" in refusal(tmp_path / "classifier.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    assert "it holds a list" in refusal(tmp_path / "list.pt")
    torch.save({"encoder._weight": print}, tmp_path / "evil.pt")
    assert "print" in refusal(tmp_path / "evil.pt", UnsafeCheckpointError)
    (tmp_path / "cut.pt").write_bytes(TINY.read_bytes()[:1000])
    assert "truncated" in refusal(tmp_path / "cut.pt")
