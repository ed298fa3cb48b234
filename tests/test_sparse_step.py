"""The step through the latents that fire, against SAELens's dense one; and what it assumes of SAELens."""

from typing import Any

import pytest
import torch
from sae_lens import BatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAE, TrainingSAE
from sae_lens.saes.sae import SAEMetadata, TrainStepInput

from mammosae_plugin import sparse_products
from mammosae_plugin.provenance import seed_everything
from mammosae_plugin.sparse_products import Places
from mammosae_plugin.training import SAETraining
from mammosae_plugin.training.checkpoints import load_state, save_state
from mammosae_plugin.training.new_sae import new_training_sae
from mammosae_plugin.training.sae import _make_trainer
from tests.helpers_training import ARCHITECTURES, rows_store, small_training

D_IN, D_SAE, ROWS = 24, 64, 48
FAMILY = ("topk", "abstopk", "batchtopk", "matryoshka_batchtopk", "matryoshka_independent")


def small_sae(architecture: str, *, sparse: bool, **more: Any) -> TrainingSAE[Any]:
    torch.manual_seed(1)
    settings = {**ARCHITECTURES[architecture], "d_sae": D_SAE, "sparse_step": sparse, "aux_loss": 0.5, **more}
    sae = new_training_sae(
        SAETraining(architecture=architecture, **settings), D_IN, metadata=SAEMetadata(), device="cpu"
    )
    with torch.no_grad():  # as in the middle of a training, where nothing is at 0 and no two norms are alike
        sae.b_enc.normal_(std=0.1)
        sae.b_dec.normal_(std=0.1)
        sae.W_dec.mul_(torch.rand(D_SAE, 1) + 0.5)
    return sae


def some_rows() -> torch.Tensor:
    return torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(2))


def step(sae: TrainingSAE[Any], *, share_dead: float = 0.0) -> Any:
    """One step's output; gradients are left on the parameters."""
    dead = torch.arange(D_SAE) % 10 < 10 * share_dead
    output = sae.training_forward_pass(TrainStepInput(some_rows().to(sae.W_enc.dtype), {}, dead, 0, False))
    output.loss.backward()
    return output


def in_float64(sae: TrainingSAE[Any]) -> TrainingSAE[Any]:
    sae.cfg.dtype = "float64"
    return sae.to(torch.float64)


def same_gradients(sae: TrainingSAE[Any], reference: TrainingSAE[Any], relative: float = 1e-6) -> None:
    named = dict(reference.named_parameters())
    for name, parameter in sae.named_parameters():
        other = named[name].grad
        if other is None:
            assert parameter.grad is None, name
            continue
        assert parameter.grad.stride() == parameter.stride(), name
        difference = (parameter.grad.double() - other).norm()
        assert difference <= relative * other.norm(), (name, float(difference))


@pytest.mark.parametrize("share_dead", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("architecture", FAMILY)
def test_gradients_are_those_of_saelens_dense_step(architecture, share_dead, monkeypatch):
    monkeypatch.setattr(sparse_products, "_CHUNK", 50)
    monkeypatch.setattr(sparse_products, "_COLUMNS", 24)
    reference = in_float64(small_sae(architecture, sparse=False))
    expected = step(reference, share_dead=share_dead)
    sae = small_sae(architecture, sparse=True)
    products_taken = []
    monkeypatch.setattr(Places, "times", counted(Places.times, products_taken))
    output = step(sae, share_dead=share_dead)
    assert products_taken, "the step was dense"
    assert output.losses.keys() == expected.losses.keys()
    for name, loss in output.losses.items():
        assert loss.item() == pytest.approx(expected.losses[name].item(), rel=1e-6), name
    assert torch.equal(output.feature_acts != 0, expected.feature_acts != 0)
    same_gradients(sae, reference)


def counted(function: Any, calls: list[None]) -> Any:
    def call(*given: Any, **named: Any) -> Any:
        calls.append(None)
        return function(*given, **named)

    return call


@pytest.mark.parametrize(
    ("architecture", "further"),
    [
        ("matryoshka_independent", {"tied_weights": True}),
        ("matryoshka_independent", {"rescale_acts_by_decoder_norm": True}),
        ("topk", {"rescale_acts_by_decoder_norm": False}),
        ("matryoshka_batchtopk", {"use_matryoshka_aux_loss": True}),
    ],
)
def test_so_are_they_under_the_architectures_own_settings(architecture, further):
    assert_same_step(architecture, architecture_settings=further)


@pytest.mark.filterwarnings("ignore:WARNING. You have only set one")
@pytest.mark.parametrize("architecture", ["matryoshka_batchtopk", "matryoshka_independent"])
def test_so_are_they_with_one_level_or_two(architecture):
    for widths in ((D_SAE,), (D_SAE // 2, D_SAE)):
        assert_same_step(architecture, matryoshka_widths=widths, matryoshka_k=None)


def assert_same_step(architecture: str, change: Any = lambda _: None, share_dead: float = 0.3, **settings: Any) -> None:
    """In float64, where nothing but rounding is left of a difference, and in float32."""
    reference = in_float64(small_sae(architecture, sparse=False, **settings))
    change(reference)
    expected = step(reference, share_dead=share_dead)
    for sae, relative in (
        (in_float64(small_sae(architecture, sparse=True, **settings)), 1e-12),
        (small_sae(architecture, sparse=True, **settings), 1e-6),
    ):
        change(sae)
        output = step(sae, share_dead=share_dead)
        assert torch.equal(output.feature_acts != 0, expected.feature_acts != 0)
        same_gradients(sae, reference, relative)


@torch.no_grad()
def few_fire(sae: TrainingSAE[Any]) -> None:
    sae.b_enc.fill_(-2.5)


@torch.no_grad()
def twins(sae: TrainingSAE[Any]) -> None:
    for parameter in (sae.W_enc.T, sae.b_enc, sae.W_dec):
        parameter[1::2] = parameter[::2]


@torch.no_grad()
def nothing_fires(sae: TrainingSAE[Any]) -> None:  # but of abstopk, of which negative ones do
    sae.b_enc.fill_(-100)


def biased_rows(sae: TrainingSAE[Any]) -> None:
    sae.cfg.apply_b_dec_to_input = not sae.cfg.apply_b_dec_to_input


@pytest.mark.parametrize("change", [few_fire, nothing_fires, biased_rows])
@pytest.mark.parametrize("architecture", FAMILY)
def test_so_are_they_where(architecture, change):
    assert_same_step(architecture, change)


@pytest.mark.parametrize("architecture", FAMILY)
def test_so_are_they_where_the_last_that_fires_has_an_equal(architecture):
    # None is dead: of equal dead latents the auxiliary loss may take any.
    assert_same_step(architecture, twins, share_dead=0.0)


def test_a_frozen_decoder_stays_and_the_encoder_learns():
    assert_same_step("batchtopk", frozen_decoder=True)


@pytest.mark.parametrize("architecture", FAMILY)
def test_a_run_is_that_of_saelens_dense_steps_and_unfused_adam(architecture, tmp_path):
    store = rows_store(tmp_path / "rows")
    config = small_training(architecture=architecture, **ARCHITECTURES[architecture], dead_feature_window=2)
    trainers = []
    for settings in (config, config.model_copy(update={"sparse_step": False})):
        seed_everything(0)
        trainers.append(_make_trainer(store, settings, 30, {}, "cpu"))
    ours, theirs = trainers
    theirs.optimizer.param_groups[0].update(fused=False)
    start = {name: each.detach().clone() for name, each in theirs.sae.named_parameters()}
    for rows, _ in zip(store.batches(32, seed=0), range(8), strict=False):
        same = [trainer.step(rows) for trainer in trainers]
        assert torch.equal(same[0].feature_acts != 0, same[1].feature_acts != 0)
    assert ours.dead_neurons.any() and torch.equal(ours.dead_neurons, theirs.dead_neurons)
    for name, other in theirs.sae.named_parameters():
        difference = (ours.sae.get_parameter(name) - other).norm() / (other - start[name]).norm()
        assert difference < 1e-4, (name, float(difference))


@pytest.mark.parametrize("architecture", ["topk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("reason", ["hook", "autocast", "gradient", "weights of bfloat16"])
def test_where_an_assumption_does_not_hold_the_step_is_saelens_own(architecture, reason, monkeypatch):
    sae = small_sae(architecture, sparse=True)
    monkeypatch.setattr(Places, "of", lambda _: pytest.fail("the step was sparse"))
    rows = torch.randn(ROWS, D_IN, requires_grad=reason == "gradient")
    if reason == "weights of bfloat16":
        sae.cfg.dtype, sae, rows = "bfloat16", sae.to(torch.bfloat16), rows.bfloat16()
    if reason == "hook":
        sae.hook_sae_acts_post.add_hook(lambda latents, hook: 2 * latents)
    with torch.autocast("cpu", torch.bfloat16, enabled=reason == "autocast"):
        sae.training_forward_pass(TrainStepInput(rows, {}, None, 0, False)).loss.backward()
    assert sae.W_enc.grad.abs().sum() > 0


def test_evaluation_and_encoding_outside_a_step_are_saelens_own():
    sae, reference = small_sae("batchtopk", sparse=True), small_sae("batchtopk", sparse=False)
    rows = torch.randn(ROWS, D_IN)
    step(sae)
    assert torch.equal(sae(rows), reference(rows))


@pytest.mark.parametrize("was_sparse", [False, True])
def test_a_run_of_the_one_step_continues_with_the_other(was_sparse, tmp_path):
    store = rows_store(tmp_path / "rows")
    config = small_training(architecture="batchtopk")
    first, second = (
        _make_trainer(store, config.model_copy(update={"sparse_step": sparse}), 30, {}, "cpu")
        for sparse in (was_sparse, not was_sparse)
    )
    first.optimizer.param_groups[0].update(fused=was_sparse)  # an earlier version's were not
    batches = store.batches(32, seed=0)
    for rows, _ in zip(batches, range(4), strict=False):
        first.step(rows)
    save_state(first, tmp_path / "state.safetensors", extra={})
    load_state(second, tmp_path / "state.safetensors")
    assert second.optimizer.param_groups[0]["fused"] == was_sparse
    before = {name: each.detach().clone() for name, each in first.sae.named_parameters()}
    rows = next(batches)
    for trainer in (first, second):
        trainer.step(rows)
    for name, other in first.sae.named_parameters():
        difference = (second.sae.get_parameter(name) - other).norm() / (other - before[name]).norm()
        assert difference < 1e-4, (name, float(difference))


# What is assumed of SAELens: each test names what has changed there when it fails.


@pytest.mark.parametrize("architecture", FAMILY)
def test_its_step_encodes_once_and_decodes_that_very_tensor(architecture, monkeypatch):
    sae = small_sae(architecture, sparse=False)
    encoded, decoded = [], []
    encode, decode = sae.encode_with_hidden_pre, sae.decode
    monkeypatch.setattr(sae, "encode_with_hidden_pre", lambda rows: encoded.append(encode(rows)) or encoded[-1])
    monkeypatch.setattr(sae, "decode", lambda latents: decoded.append(latents) or decode(latents))
    output = step(sae)
    assert len(encoded) == len(decoded) == 1
    latents, hidden = encoded[0]
    assert decoded[0] is latents and output.feature_acts is latents and output.hidden_pre is hidden


@pytest.mark.parametrize("is_rescaled", [False, True])
@pytest.mark.parametrize("architecture", FAMILY)
def test_latents_that_fire_are_pre_activations(architecture, is_rescaled):
    settings = {"rescale_acts_by_decoder_norm": is_rescaled}
    sae = small_sae(architecture, sparse=False, architecture_settings=settings)
    rows = some_rows()
    latents, hidden = sae.encode_with_hidden_pre(rows)
    assert torch.equal(latents[latents != 0], hidden[latents != 0])
    expected = (rows - sae.b_dec * sae.cfg.apply_b_dec_to_input) @ sae.W_enc + sae.b_enc
    torch.testing.assert_close(hidden, expected * sae.W_dec.norm(dim=1) if is_rescaled else expected)


@pytest.mark.parametrize("architecture", FAMILY)
def test_its_auxiliary_loss_is_asked_for_by_these_names(architecture, monkeypatch):
    sae, asked = small_sae(architecture, sparse=False), []
    name = "calculate_abstopk_aux_loss" if architecture == "abstopk" else "calculate_topk_aux_loss"
    calculate = getattr(sae, name)
    monkeypatch.setattr(sae, name, lambda **given: asked.append(given) or calculate(**given))
    output = step(sae, share_dead=0.3)
    assert [set(given) for given in asked] == [{"sae_in", "sae_out", "hidden_pre", "dead_neuron_mask"}]
    assert asked[0]["hidden_pre"] is output.hidden_pre and asked[0]["sae_out"] is output.sae_out
    assert output.losses["auxiliary_reconstruction_loss"] > 0


def test_its_matryoshka_step_is_that_of_batch_top_k_and_the_inner_losses():
    sae = small_sae("matryoshka_batchtopk", sparse=False)
    whole, outer = (
        step(sae),
        BatchTopKTrainingSAE.training_forward_pass(sae, TrainStepInput(some_rows(), {}, None, 0, False)),
    )
    inner = {f"inner_mse_loss_{width}" for width in sae.cfg.matryoshka_widths[:-1]}
    assert whole.losses.keys() - outer.losses.keys() == inner and inner
    torch.testing.assert_close(whole.loss, outer.loss + sum(whole.losses[name] for name in inner))
    assert MatryoshkaBatchTopKTrainingSAE.__bases__ == (BatchTopKTrainingSAE,)


def test_its_trainer_has_an_adam(tmp_path):
    trainer = _make_trainer(rows_store(tmp_path / "rows"), small_training(), 30, {}, "cpu")
    assert type(trainer.optimizer) is torch.optim.Adam and len(trainer.optimizer.param_groups) == 1
    assert trainer.optimizer.param_groups[0]["fused"]
