"""SAIL's checkpoints become SAELens's `standard` SAEs, which see rows of length 1 wherever ours applies them."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_adapters import DATA
from helpers_layers import Layer, layer_of
from helpers_study import random_sae
from sae_lens import SAE, StandardSAE
from safetensors.torch import load_file, save_file

from mammosae_plugin.adapters import (
    CheckpointFormatError,
    inspect_checkpoint,
    load_vision_sae,
    vision_sae_disk_loader,
)
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json, sealed, write_json
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.training import save_sae

SAIL = DATA / "sail" / "sae"
CKPT = SAIL / "last.ckpt"
LEVELS, BUDGETS = [8, 16, 32, 64], [2, 3, 4, 6]

PLAIN = """
import sys
import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file

sae = SAE.load_from_disk(sys.argv[1])
with torch.no_grad():
    latents = sae.encode(load_file(sys.argv[2])["x"])
    save_file({"latents": latents, "reconstruction": sae.decode(latents)}, sys.argv[3])
assert not any(name.startswith("mammosae") for name in sys.modules)
"""


def in_plain_sae_lens(folder: Path, rows: torch.Tensor, scratch: Path) -> dict[str, torch.Tensor]:
    """Latents and reconstruction of rows by a process that imports only sae_lens."""
    given, found = scratch / "given.safetensors", scratch / "found.safetensors"
    save_file({"x": rows.contiguous()}, given)
    ran = subprocess.run(
        [sys.executable, "-c", PLAIN, *map(str, (folder, given, found))], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return load_file(found)


def changed(folder: Path, **changes: Any) -> Path:
    """The checkpoint with other entries in its state dict (of model., with _ for the dots) or of hyper_parameters."""
    content = copy.deepcopy(torch.load(CKPT, weights_only=True))
    for name, value in changes.items():
        place = content["hyper_parameters"] if name in content["hyper_parameters"] else content["state_dict"]
        key = name if place is content["hyper_parameters"] else f"model.{name.replace('__', '.')}"
        if value is None:
            del place[key]
        else:
            place[key] = value
    torch.save(content, folder / "changed.ckpt")
    return folder / "changed.ckpt"


def test_a_checkpoint_of_sails_trainer_computes_what_sail_computes() -> None:
    sae, expected = load_vision_sae(CKPT), load_file(SAIL / "expected.safetensors")
    weights = torch.load(CKPT, weights_only=True)["state_dict"]
    assert type(sae) is StandardSAE and sae.cfg.apply_b_dec_to_input
    assert torch.equal(sae.W_dec, weights["model.encoder.weight"]) and torch.equal(sae.W_enc, sae.W_dec.T)
    with torch.no_grad():
        latents = sae.encode(expected["x_unit"])
        for level, width in enumerate(LEVELS):  # a level is a prefix
            prefix = torch.nn.functional.pad(latents[:, :width], (0, LEVELS[-1] - width))
            torch.testing.assert_close(latents[:, :width], expected[f"latents.{level}"], rtol=0, atol=1e-5)
            torch.testing.assert_close(sae.decode(prefix), expected[f"reconstruction.{level}"], rtol=0, atol=1e-5)
    assert 4 < float((latents > 0).float().sum(1).mean()) < 6  # 5.18 in SAIL's own features


def test_nothing_but_weights_and_facts_of_the_sae_travels_on(tmp_path: Path) -> None:
    sae = load_vision_sae(CKPT)
    metadata = sae.cfg.metadata
    assert (metadata.levels, metadata.k, metadata.input_normalization) == (LEVELS, BUDGETS, "unit_l2")
    assert metadata.source_file == "last.ckpt" and metadata.hook_name is None
    save_sae(sae, tmp_path / "sae")
    written = b"".join(path.read_bytes() for path in (tmp_path / "sae").iterdir())
    assert b"/data/" in CKPT.read_bytes() and b"/data" not in written and b"parquet" not in written
    assert sum(path.stat().st_size for path in (tmp_path / "sae").iterdir()) < CKPT.stat().st_size / 2
    assert load_vision_sae(tmp_path / "sae").cfg.metadata.to_dict()["levels"] == LEVELS
    expected = load_file(SAIL / "expected.safetensors")
    found = in_plain_sae_lens(tmp_path / "sae", expected["x_unit"], tmp_path)
    torch.testing.assert_close(found["reconstruction"], expected["reconstruction.3"], rtol=0, atol=1e-5)


def test_sae_lens_reads_it_through_the_converter_and_inspect_tells_what_it_is() -> None:
    same = SAE.load_from_disk(CKPT, converter=vision_sae_disk_loader)
    assert torch.equal(same.b_enc, load_vision_sae(CKPT).b_enc)
    report = inspect_checkpoint(CKPT)
    assert (report.kind, report.loads_with, report.d_in, report.d_sae) == ("sail", "load_vision_sae", 24, 64)


def test_an_untied_decoder_and_a_file_that_says_nothing_of_levels(tmp_path: Path) -> None:
    decoder = torch.randn(24, 64)
    assert torch.equal(load_vision_sae(changed(tmp_path, decoder__weight=decoder)).W_dec, decoder.T)
    content = torch.load(CKPT, weights_only=True)
    torch.save({"state_dict": content["state_dict"]}, tmp_path / "weights.ckpt")
    weights = load_vision_sae(tmp_path / "weights.ckpt")
    assert weights.cfg.metadata.levels is None and weights.cfg.metadata.input_normalization == "unit_l2"
    assert load_vision_sae(changed(tmp_path, k_values=None)).cfg.metadata.k == [1, 1, 1, 3]  # SAIL's default


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": None}, "of 6 keys, 1 missing (model.bias)"),
        ({"encoder__bias": torch.zeros(63)}, "1 of another shape (model.encoder.bias (63,) instead of (64,))"),
        ({"encoder__weight": torch.zeros(64)}, "no model.encoder.weight with 2 axes"),
        ({"other": torch.zeros(1)}, "1 unexpected (model.other)"),
        ({"_threshold_count": torch.tensor(0)}, "has no threshold (0 batches"),
        ({"_threshold_sum": torch.tensor(torch.nan)}, "has no threshold (132 batches, sum nan)"),
        ({"_threshold_sum": None}, "of 6 keys, 1 missing (model._threshold_sum)"),
        ({"dictionary_sizes": [8, 16, 32]}, "they are of two SAEs"),
        ({"input_dim": 25}, "they are of two SAEs"),
        ({"dictionary_sizes": [16, 8, 64]}, "its dictionary_sizes are [16, 8, 64]"),
        ({"k_values": [2, 3]}, "its k_values are [2, 3] for levels"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:20],
)
def test_a_checkpoint_of_another_shape_is_refused_in_a_line(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointFormatError) as caught:
        load_vision_sae(path := changed(tmp_path, **changes))
    assert message in str(caught.value) and "\n" not in str(caught.value) and path.name in str(caught.value)
    assert inspect_checkpoint(path).problem == str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_checkpoint_is_refused_in_a_line(share: float, tmp_path: Path) -> None:
    content = CKPT.read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointFormatError, match=r"cut\.ckpt is (empty|damaged, truncated)") as caught:
        load_vision_sae(tmp_path / "cut.ckpt")
    assert "\n" not in str(caught.value)


# Rows of length 1, wherever an SAE is applied


def unit_sae(layer: Layer) -> StandardSAE:
    """The layer's SAE, with the word that it wants rows of length 1."""
    sae: StandardSAE = random_sae(layer.sae.cfg.d_in, 48, hook_name=layer.hook_name)
    sae.cfg.metadata.input_normalization = "unit_l2"
    return sae


def test_a_spliced_sae_sees_rows_of_length_1_and_its_output_has_theirs(tmp_path: Path) -> None:
    with layer_of("torch_cnn", tmp_path) as layer, torch.no_grad():
        sae, name = unit_sae(layer), layer.hook_name
        _, plain = layer.model.run_with_cache(layer.images, names_filter=name)
        length = plain[name].norm(dim=-1, keepdim=True).clamp_min(1e-12)  # after a ReLU some rows are all zeros
        expected = sae.decode(sae.encode(plain[name] / length)) * length
        _, spliced = layer.model.run_with_cache_with_saes(layer.images, saes=sae)
        torch.testing.assert_close(spliced[f"{name}.hook_sae_output"], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(spliced[f"{name}.hook_sae_input"], plain[name] / length)
        assert not torch.allclose(expected, sae(plain[name]), rtol=0.1)
        with_error = layer.model.run_with_saes(layer.images, saes=sae, use_error_term=True)
        torch.testing.assert_close(with_error, layer.model(layer.images), rtol=1e-4, atol=1e-4)
        sae.cfg.metadata.input_normalization = "sphere"
        with pytest.raises(InputError, match="'sphere', which this version cannot do; it knows 'unit_l2'"):
            layer.model.add_sae(sae)


def test_a_table_is_made_from_rows_of_length_1_and_one_made_without_is_refused(tmp_path: Path) -> None:
    with layer_of("torch_cnn", tmp_path) as layer, torch.no_grad():
        sae = unit_sae(layer)
        fitted = Layer(layer.model, layer.hook_name, sae, layer.dataset, layer.head)
        table = fitted.encode(tmp_path / "table")
        _, cache = layer.model.run_with_cache(layer.images, names_filter=layer.hook_name)
        rows = cache[layer.hook_name]
        expected = sae.encode(torch.nn.functional.normalize(rows, dim=-1)).mean((1, 2))
        spliced = layer.model.run_with_saes(layer.images, saes=sae)
    assert table.header["input_normalization"] == "unit_l2"
    np.testing.assert_allclose(table.mean_latents.toarray(), expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(table.logits_with_sae("Mass"), spliced.numpy(), atol=1e-4 * float(spliced.abs().max()))
    header = {
        k: v for k, v in read_json(table.folder / "table.json").items() if k not in ("input_normalization", "sha256")
    }
    write_json(table.folder / "table.json", sealed(header))
    with pytest.raises(InputError, match="made without the input_normalization 'unit_l2' that its SAE wants"):
        LatentTable(table.folder)


def test_where_latents_are_added_up_linearly_such_an_sae_is_refused(tmp_path: Path) -> None:
    with layer_of("torch_cnn", tmp_path, final=True) as layer:
        fitted = Layer(layer.model, layer.hook_name, unit_sae(layer), layer.dataset, layer.head)
        with pytest.raises(InputError, match="an input_normalization cannot be folded"):
            fitted.encode(tmp_path / "table")
