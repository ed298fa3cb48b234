import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers_study import toy_store
from sae_lens import SAE, StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput

from mammosae_plugin.activations import extract_activations
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.datasets import PREPROCESSING
from mammosae_plugin.errors import InputError
from mammosae_plugin.training import SAETraining, train_sae
from mammosae_plugin.training import sae as sae_module
from mammosae_plugin.training.metrics import read_metrics

SMALL = SAETraining(d_sae=96, epochs=60, batch_size=64, lr=1e-3, checkpoint_every=5, dead_feature_window=20)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Rows of width 32 that are sparse combinations of 48 directions, in the form that extraction writes."""
    return toy_store(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sae")
    return folder, train_sae(store, folder, SMALL, metadata={"preprocessing": PREPROCESSING})


def test_saelens_loss_with_lambda_times_d_is_d_times_the_papers_objective():
    """mean over features of (x - x')^2 + lambda * sum |z|, decoder rows at unit norm (released code)."""
    d_in, d_sae, sparsity = 24, 60, 3e-5
    config = StandardTrainingSAEConfig(
        d_in=d_in, d_sae=d_sae, l1_coefficient=sparsity * d_in, apply_b_dec_to_input=True
    )
    sae = StandardTrainingSAE(config)
    with torch.no_grad():
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        sae.b_dec += torch.randn(d_in)
    x = torch.randn(40, d_in)
    step = TrainStepInput(
        sae_in=x, coefficients={"l1": sparsity * d_in}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
    )
    loss = sae.training_forward_pass(step).loss.item()
    w_enc, w_dec, b_dec = sae.W_enc.double(), sae.W_dec.double(), sae.b_dec.double()
    z = torch.relu((x.double() - b_dec) @ w_enc + sae.b_enc.double())
    paper = ((z @ w_dec + b_dec - x) ** 2).mean(1) + sparsity * z.abs().sum(1)
    assert loss == pytest.approx(d_in * paper.mean().item(), rel=1e-5)


def test_the_trainer_gets_lambda_times_the_width(store):
    trainer = sae_module._make_trainer(store, SMALL, 10, {}, "cpu")
    assert trainer.sae.cfg.l1_coefficient == pytest.approx(3e-5 * store.d_in)
    assert trainer.sae.cfg.apply_b_dec_to_input


def test_training_lowers_the_loss(trained):
    folder, _ = trained
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["of"] == "batch"]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]


def test_the_saved_decoder_has_unit_norm_and_the_function_is_that_of_the_trained_sae(trained, store):
    _, sae = trained
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(96), rtol=1e-4, atol=1e-4)
    rows = store.take(np.arange(50))
    variance = (rows - rows.mean(0)).square().sum()
    assert (sae(rows) - rows).square().sum() < 0.7 * variance


def test_the_metadata_says_everything(classifier, phantoms, tmp_path):
    """For a store that was extracted, not made up."""
    with HookedVisionModel(classifier, ["bn2"]) as model:
        store = extract_activations(model, phantoms.select(split="training"), tmp_path / "rows", hook_name="bn2")
    config = SMALL.model_copy(update={"d_sae": 16, "epochs": 0.5})
    metadata = train_sae(
        store, tmp_path / "sae", config, metadata={"preprocessing": PREPROCESSING}
    ).cfg.metadata.to_dict()
    assert metadata["hook_name"] == "bn2.hook_out"
    assert metadata["layout"] == "channels_last"
    assert metadata["model_name"] == "tinynet_e"
    assert metadata["image_size"] == [96, 64]
    assert metadata["preprocessing"] == PREPROCESSING
    assert metadata["dataset_fingerprint"] == store.manifest["dataset"]
    assert metadata["splits"] == ["training"]
    assert metadata["seed"] == 0
    assert metadata["training"]["epochs"] == 0.5
    assert {"sae_lens_version", "mammosae_version", "model_fingerprint", "num_dead_features"} <= set(metadata)


def test_the_saved_sae_loads_in_a_process_that_imports_only_sae_lens(trained):
    script = (
        "import sys; from sae_lens import SAE\n"
        "sae = SAE.load_from_disk(sys.argv[1])\n"
        "assert sae.cfg.architecture() == 'standard' and sae.cfg.d_sae == 96\n"
        "assert 'mammosae_plugin' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, str(trained[0])], check=True, capture_output=True)


def test_a_card_lies_beside_the_weights(trained):
    card = (trained[0] / "README.md").read_text()
    assert "`bn2.hook_out`" in card
    assert "library_name: saelens" in card


def test_folded_scaling_gives_an_sae_of_the_raw_rows(store, tmp_path):
    config = SMALL.model_copy(update={"normalize_activations": "expected_average_only_in", "epochs": 60})
    sae = train_sae(store, tmp_path, config)
    assert sae.cfg.normalize_activations == "none"
    rows = store.take(np.arange(50))
    assert (sae(rows) - rows).square().sum() < 0.7 * (rows - rows.mean(0)).square().sum()


def test_too_few_rows_and_other_settings_are_refused(store, trained, tmp_path):
    with pytest.raises(InputError, match="not one batch of 100000"):
        train_sae(store, tmp_path, SAETraining(epochs=1, batch_size=100000))
    with pytest.raises(InputError, match="other settings"):
        train_sae(store, trained[0], SMALL.model_copy(update={"lr": 5e-4}))


def test_sae_lens_still_loads_what_was_saved_when_training_is_asked_for_again(trained, store):
    folder, sae = trained
    before = (folder / "sae_weights.safetensors").stat().st_mtime_ns
    again = train_sae(store, folder, SMALL, metadata={"preprocessing": PREPROCESSING})
    assert (folder / "sae_weights.safetensors").stat().st_mtime_ns == before
    assert torch.equal(again.W_dec, sae.W_dec)
    assert isinstance(SAE.load_from_disk(str(folder)), type(sae))
