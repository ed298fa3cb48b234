"""SAIL's checkpoints become SAELens's `standard` SAEs, which see rows of length 1 wherever ours applies them."""

import copy
import runpy
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
from helpers_training import assert_same_weights, rows_store, small_training, store_of
from PIL import Image
from sae_lens import SAE, JumpReLUSAE, StandardSAE, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file

from mammosae_plugin.adapters import (
    CheckpointFormatError,
    inspect_checkpoint,
    load_vision_sae,
    vision_sae_disk_loader,
)
from mammosae_plugin.adapters.input_normalization import of_unit_length
from mammosae_plugin.adapters.levels import levels_of
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json, sealed, write_json
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.measures.reconstruction import Measures, mean_absolute_correlation
from mammosae_plugin.training import SAETraining, published_grid, save_sae, train_sae
from mammosae_plugin.training.metrics import read_metrics
from mammosae_plugin.training.rows import TrainingRows, images_of_held_out_patients

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


def test_the_example_opens_a_sail_sae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    expected = load_file(SAIL / "expected.safetensors")
    np.save(tmp_path / "rows.npy", 3 * expected["x_unit"].numpy())  # of length 3: the example divides them
    example = Path(__file__).parent.parent / "examples" / "open_a_sail_sae.py"
    monkeypatch.setattr(sys, "argv", [str(example), str(CKPT), "--embeddings", str(tmp_path / "rows.npy")])
    runpy.run_path(str(example), run_name="__main__")
    said = capsys.readouterr().out
    assert "24 x 64, levels [8, 16, 32, 64], trained with k [2, 3, 4, 6]" in said
    for level, width in enumerate(LEVELS):
        fires = float((expected[f"latents.{level}"] > 0).sum(1).float().mean())
        error = float((expected[f"reconstruction.{level}"] - expected["x_unit"]).square().mean())
        assert f"level of {width:5d}: {fires:7.1f} latents fire per row, mean squared error {error:.3g}" in said


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
        with pytest.raises(InputError, match=r"by itself \(unit_l2\), which no weights can hold"):
            fitted.encode(tmp_path / "table")


# The architecture


def fixture_sae(budgets: list[float], **settings: Any) -> tuple[TrainingSAE[Any], torch.Tensor]:
    """The fixture's weights, by its rule, in a training SAE that SAELens makes by name; and its rows (24, 96)."""
    random = np.random.RandomState(11)  # noqa: NPY002  # the fixture's own
    d_in, d_sae = 96, 512
    weight = (random.standard_normal((d_sae, d_in)) / np.sqrt(d_in)).astype(np.float32)
    weight *= random.uniform(0.8, 1.2, (d_sae, 1)).astype(np.float32)
    encoder_bias = (0.05 * random.standard_normal(d_sae)).astype(np.float32)
    bias = (0.03 * random.standard_normal(d_in)).astype(np.float32)
    rows = random.standard_normal((6, 24, d_in)).astype(np.float32)[0]
    sizes = {"d_in": d_in, "d_sae": d_sae, "k": budgets[-1], "matryoshka_widths": [16, 64, 128, 512]}
    cfg = {"architecture": "matryoshka_independent", **sizes, "matryoshka_k": budgets, **settings}
    sae = TrainingSAE.from_dict(cfg)
    values = {"W_enc": weight.T, "W_dec": weight, "b_enc": encoder_bias, "b_dec": bias}
    sae.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()}, strict=False)
    return sae, torch.from_numpy(rows * (2 / np.linalg.norm(rows, axis=1, keepdims=True)))


def step_on(sae: TrainingSAE[Any], rows: torch.Tensor) -> Any:
    return sae.training_forward_pass(TrainStepInput(rows, {}, None, 0, False))


@pytest.mark.parametrize(
    ("mode", "budgets"),
    [("train", [4, 8, 12, 20]), ("train_large_k_relu", [12, 40, 80, 300])],
    ids=lambda each: str(each),
)
@pytest.mark.parametrize("tied", [True, False])
def test_levels_choose_as_sails_do(mode: str, budgets: list[float], tied: bool) -> None:
    sae, rows = fixture_sae(budgets, tied_weights=tied)
    expected = load_file(SAIL / "forward.safetensors")
    output = step_on(sae, rows)
    found = [*sae.levels(output.hidden_pre), (output.feature_acts, output.sae_out)]
    for level, (latents, reconstruction) in enumerate(found):
        torch.testing.assert_close(reconstruction, expected[f"{mode}.recon.{level}"], rtol=0, atol=1e-5)
        if mode == "train":
            torch.testing.assert_close(latents, expected[f"train.acts.{level}"], rtol=0, atol=1e-5)
        assert (latents >= 0).all()
    if mode == "train":
        assert output.loss.item() / 96 == pytest.approx(0.040588222444057465, rel=1e-5)  # forward.json, loss, plain


def test_gradients_go_through_encoder_and_decoder() -> None:
    expected = load_file(SAIL / "forward.safetensors")
    tied, rows = fixture_sae([4, 8, 12, 20], tied_weights=True)
    untied, _ = fixture_sae([4, 8, 12, 20])
    for sae in (tied, untied):
        (step_on(sae, rows).loss / 96).backward()  # SAELens sums over features, SAIL takes the mean
        close = {"rtol": 1e-4, "atol": 1e-7}
        torch.testing.assert_close(sae.b_enc.grad, expected["grad_c"], **close)
        torch.testing.assert_close(sae.b_dec.grad, expected["grad_b"], **close)
    torch.testing.assert_close(tied.W_dec.grad, expected["grad_W.full"], **close)
    torch.testing.assert_close(untied.W_dec.grad + untied.W_enc.grad.T, expected["grad_W.full"], **close)
    assert tied.W_enc.grad is None and float(untied.W_dec.grad.norm()) > 1e-4


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaled", ["none", "expected_average_only_in"])
def test_a_trained_one_is_a_jumprelu_sae_of_plain_sae_lens(tied: bool, scaled: str, tmp_path: Path) -> None:
    store = rows_store(tmp_path / "rows")
    config = small_training(
        architecture="matryoshka_independent",
        architecture_settings={"tied_weights": tied},
        normalize_activations=scaled,
        epochs=16,
        lr=5e-3,
    )
    sae = train_sae(store, tmp_path / "sae", config)
    assert type(sae) is JumpReLUSAE
    rows = store.rows_of(range(8))
    with torch.no_grad():
        latents = sae.encode(rows)
        reconstruction = sae.decode(latents)
    found = in_plain_sae_lens(tmp_path / "sae", rows, tmp_path)
    torch.testing.assert_close(found["latents"], latents, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["reconstruction"], reconstruction, rtol=1e-5, atol=1e-5)
    if tied:  # decoder rows are of norm 1, and encoder columns the same directions
        cosine = torch.nn.functional.cosine_similarity(sae.W_enc.T, sae.W_dec)
        torch.testing.assert_close(cosine, torch.ones(48), rtol=0, atol=1e-5)
    last = read_metrics(tmp_path / "sae" / "metrics.jsonl")[-1]
    assert last["explained_variance"] > 0.5 and last["l0"] == pytest.approx(4, rel=0.25)
    assert [level["width"] for level in last["levels"]] == [6, 12, 24, 48]
    assert {name: last[name] for name in ("mse", "explained_variance", "l0")}.items() <= last["levels"][-1].items()
    assert last["levels"][0]["explained_variance"] < last["levels"][-1]["explained_variance"]


@pytest.mark.parametrize("architecture", ["matryoshka_batchtopk", "matryoshka_independent"])
def test_every_level_is_measured_while_training_and_at_the_end(architecture: str, tmp_path: Path) -> None:
    store = rows_store(tmp_path / "rows")
    config = small_training(architecture=architecture, validation_share=0.25, normalize_activations="unit_l2")
    sae = train_sae(store, tmp_path / "sae", config)
    assert levels_of(sae) == (6, 12, 24, 48) and sae.cfg.metadata.levels == [6, 12, 24, 48]
    assert sae.cfg.metadata.k == ([1, 1.5, 3, 4] if architecture == "matryoshka_independent" else None)
    course = [row for row in read_metrics(tmp_path / "sae" / "metrics.jsonl") if row["of"] == "validation"]
    assert [row["step"] for row in course] == [10, 20, 22] and all(len(row["levels"]) == 4 for row in course)
    images = images_of_held_out_patients(store, 0.25, config.order)
    held_out = torch.nn.functional.normalize(store.rows_of(images), dim=1)
    first = next(iter(TrainingRows(store, config.batch_size, config.order, images).divided().evaluation()))
    for level in course[-1]["levels"]:
        width = level["width"]
        with torch.no_grad():
            latents = sae.encode(held_out)
            latents[:, width:] = 0
            errors = (sae.decode(latents) - held_out).double()
            codes = sae.encode(first)[:, :width].numpy()
        assert level["mse"] == pytest.approx(float(errors.square().mean()), rel=1e-5)
        variation = float((held_out.double() - held_out.double().mean(0)).square().mean())
        assert level["explained_variance"] == pytest.approx(1 - level["mse"] / variation, abs=1e-5)
        assert level["r2"] == pytest.approx(1 - level["mse"] / float(held_out.double().var(correction=0)), abs=1e-5)
        assert level["l0"] == pytest.approx(int((latents != 0).sum()) / len(held_out))
        assert level["alive"] == int((latents != 0).any(0).sum())
        correlations = np.abs(np.corrcoef(codes[:, codes.std(0) > 0].T))
        assert level["mean_absolute_correlation"] == pytest.approx(
            correlations[np.triu_indices(len(correlations), 1)].mean(), abs=1e-5
        )
    with Image.open(tmp_path / "sae" / "metrics.png") as figure:
        assert figure.size == (9 * 120, 12 * 120)  # a panel for each measure of the levels


def test_measures_of_a_level_are_those_that_sail_logs() -> None:
    """Of one batch in training; the numbers are `logged` in SAIL's forward.json."""
    _, rows = fixture_sae([4, 8, 12, 20])
    expected = load_file(SAIL / "forward.safetensors")
    for level, (mse, r2, l0, alive, correlation) in enumerate(
        [
            (0.040129199624061584, 0.03689873218536377, 4, 16, 0.1785999834537506),
            (0.03571287542581558, 0.14289051294326782, 8, 57, 0.16493602097034454),
            (0.034070104360580444, 0.18231701850891113, 12, 114, 0.14662718772888184),
            (0.052440717816352844, -0.25857794284820557, 20, 284, 0.1203058511018753),
        ]
    ):
        latents = expected[f"train.acts.{level}"]
        measures = Measures(96, latents.shape[1], "cpu")
        measures.add(rows, latents, expected[f"train.recon.{level}"])
        found = measures.row()
        assert found["mse"] == pytest.approx(mse, rel=1e-5) and found["r2"] == pytest.approx(r2, abs=1e-5)
        assert (found["l0"], round((1 - found["dead_share"]) * latents.shape[1])) == (l0, alive)
        assert mean_absolute_correlation(latents) == pytest.approx(correlation, abs=1e-6)


def test_latents_that_never_vary_have_no_correlation() -> None:
    assert mean_absolute_correlation(torch.zeros(5, 3)) is None
    codes = torch.tensor([[1.0, 0.3, 0.0], [1.0, 0.1, 0.0], [1.0, 0.0, 0.0]])
    assert mean_absolute_correlation(codes) is None  # one always the same, one never fires


# The published grid


def test_the_published_grid_is_of_28_configurations() -> None:
    found = published_grid()
    assert len(found) == 28 and len({config.model_dump_json() for config in found.values()}) == 28
    assert "D_16_64_256_1024_K_5_10_20_40" in found and "D_16_64_256_1024_K_20_20_20_20" not in found
    config = found["D_128_512_2048_8192_K_20_40_80_160"]
    assert (config.architecture, config.d_sae, config.k) == ("matryoshka_independent", 8192, 160)
    assert (config.matryoshka_widths, config.matryoshka_k) == ((128, 512, 2048, 8192), (20, 40, 80, 160))
    assert config.normalize_activations == "unit_l2" and config.architecture_settings == {"tied_weights": True}
    assert (config.lr_schedule, config.lr_end) == ("cosine", 1e-6)
    assert [config.warm_up_steps(steps) for steps in (999, 30_000)] == [99, 1000]
    theirs = published_grid(SAETraining(matryoshka_widths=(8, 16), d_sae=16, k=2, lr=1e-2))
    assert theirs.keys() == found.keys()
    config = theirs["D_16_64_256_1024_K_5_10_20_40"]
    assert (config.architecture, config.k, config.matryoshka_k, config.lr) == ("matryoshka_batchtopk", 40, None, 1e-2)
    with pytest.raises(InputError, match="the published grid is of nested SAEs, which 'standard' is not"):
        published_grid(SAETraining())


def test_saelens_own_trainer_takes_it_by_name(tmp_path: Path) -> None:
    store, settings = rows_store(tmp_path / "rows"), {"d_in": 16, "d_sae": 48, "k": 4, "matryoshka_widths": [12, 48]}
    sae = TrainingSAE.from_dict({"architecture": "matryoshka_independent", **settings, "tied_weights": True})
    config = SAETrainerConfig(total_training_samples=320, train_batch_size_samples=32, lr=1e-3, lr_end=1e-3)
    SAETrainer(config, sae, store.batches(32, seed=0)).fit()
    sae.save_inference_model(tmp_path / "sae")
    inference = SAE.load_from_disk(tmp_path / "sae")
    assert type(inference) is JumpReLUSAE and torch.equal(inference.W_enc, inference.W_dec.T)
    assert inference.cfg.metadata.training_architecture == "matryoshka_independent"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"matryoshka_k": (1, 4)}, "matryoshka_k has 2 budgets, but there are 4 levels"),
        ({"matryoshka_k": (7, 7, 7, 4)}, "gives 7 latents per row to a level of 6"),
        ({"matryoshka_widths": (6, 24, 12, 48)}, "must be positive and rise from each to the next"),
        ({"matryoshka_k": (1, 2, 3, 5)}, "the last of matryoshka_k is 5, but k is 4"),
        ({"matryoshka_widths": (6, 12)}, "must be all 48 latents"),
        ({"architecture": "batchtopk", "k": 4, "matryoshka_widths": None, "matryoshka_k": (4,)}, "matryoshka_k does"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:20],
)
def test_levels_that_do_not_fit_are_refused_when_set(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small_training(**{"architecture": "matryoshka_independent", "matryoshka_widths": (6, 12, 24, 48), **settings})


def test_plans_without_budgets_are_as_before_and_default_budgets_fit_their_levels() -> None:
    known_later = {"matryoshka_k", "lr_schedule", "lr_end", "lr_warm_up_share"}
    assert not known_later & SAETraining().model_dump().keys()
    sae = TrainingSAE.from_dict(
        {"architecture": "matryoshka_independent", "d_in": 4, "d_sae": 8, "k": 3, "matryoshka_widths": [2, 8]}
    )
    assert sae.cfg.matryoshka_k == [2, 3]


def test_rows_of_other_lengths_are_not_trained_on_as_rows_of_length_1(tmp_path: Path) -> None:
    store, said = rows_store(tmp_path / "rows"), {"input_normalization": "unit_l2"}
    with pytest.raises(InputError, match="has rows of length .*; set normalize_activations: unit_l2, "):
        train_sae(store, tmp_path / "refused", small_training(), metadata=said)
    unit = store_of(torch.nn.functional.normalize(store.rows_of(range(40)), dim=1), tmp_path / "unit")
    trained = train_sae(unit, tmp_path / "sae", small_training(), metadata=said)
    assert trained.cfg.metadata.input_normalization == "unit_l2"


@pytest.mark.parametrize(
    "settings",
    [
        {"init": "data_points", "resample_every": 6, "dead_feature_window": 3, "lr": 0.02, "sparsity": 0.1},
        {"architecture": "jumprelu", "sparsity_warm_up_steps": 0, "k": 4, "validation_share": 0.25},
    ],
    ids=["resampled from data points", "jumprelu held at k, held out"],
)
def test_rows_are_divided_by_their_lengths_wherever_a_training_reads_them(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    store = rows_store(tmp_path / "rows")
    unit = store_of(of_unit_length(store.rows_of(range(40)))[0], tmp_path / "unit")
    sae = train_sae(store, tmp_path / "sae", small_training(normalize_activations="unit_l2", **settings))
    assert sae.cfg.metadata.input_normalization == "unit_l2" and sae.cfg.normalize_activations == "none"
    of_unit_rows = train_sae(unit, tmp_path / "of unit rows", small_training(**settings))
    assert_same_weights(sae, of_unit_rows)
    assert read_metrics(tmp_path / "sae/metrics.jsonl") == read_metrics(tmp_path / "of unit rows/metrics.jsonl")
    with pytest.raises(InputError, match="the metadata say input_normalization 'none', the settings 'unit_l2'"):
        said = {"input_normalization": "none"}
        train_sae(store, tmp_path / "refused", small_training(normalize_activations="unit_l2"), metadata=said)


def test_nested_saes_are_saelens_own_unless_told_otherwise() -> None:
    assert SAETraining(matryoshka_widths=(8, 16), d_sae=16, k=2).architecture == "matryoshka_batchtopk"
    with pytest.raises(ValueError, match="matryoshka_k does nothing for the architecture 'matryoshka_batchtopk'"):
        SAETraining(matryoshka_widths=(8, 16), matryoshka_k=(1, 2), d_sae=16, k=2)
