"""Latents that start anew, and where latents start."""

import copy

import numpy as np
import pytest
import torch
from helpers_training import rows_store, small_training
from scipy.optimize import minimize

from mammosae_plugin.errors import InputError
from mammosae_plugin.training import resampling, train_sae
from mammosae_plugin.training import sae as sae_module
from mammosae_plugin.training.metrics import read_metrics

DEAD = slice(0, 20)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return rows_store(tmp_path_factory.mktemp("rows"))


@pytest.fixture
def trainer(store):
    """A trainer after 10 steps, in which the first 20 of 48 latents never fired."""
    torch.manual_seed(0)
    trainer = sae_module._make_trainer(store, small_training(), 100, {}, "cpu")
    with torch.no_grad():
        trainer.sae.b_enc[DEAD] = -100.0
        trainer.sae.b_dec += 0.2
    for _, batch in zip(range(10), store.batches(32, seed=0), strict=False):
        trainer.step(batch)
    assert trainer.dead_neurons.nonzero()[:, 0].tolist() == list(range(20))
    return trainer


def generator():
    return torch.Generator().manual_seed(0)


def test_dead_latents_start_anew_at_rows_and_adam_forgets_them(trainer, store):
    sae, rows = trainer.sae, store.take(np.arange(100))
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    moments = copy.deepcopy(trainer.optimizer.state_dict()["state"])
    assert resampling.resample_dead(trainer, rows, generator()) == 20
    live = slice(20, None)
    decoder_norm = before["W_dec"][live].norm(dim=1).mean()
    encoder_norm = before["W_enc"][:, live].norm(dim=0).mean()
    directions = torch.nn.functional.normalize(rows - before["b_dec"], dim=1)
    new = sae.W_dec[DEAD] / decoder_norm
    assert (new @ directions.T).max(dim=1).values.min() > 1 - 1e-5
    torch.testing.assert_close(sae.W_enc[:, DEAD], (new * 0.2 * encoder_norm).T)
    assert (sae.b_enc[DEAD] == 0).all()
    assert torch.equal(sae.W_dec[live], before["W_dec"][live])
    assert torch.equal(sae.W_enc[:, live], before["W_enc"][:, live])
    assert torch.equal(sae.b_enc[live], before["b_enc"][live])
    names = [name for name, _ in sae.named_parameters()]
    for number, state in trainer.optimizer.state_dict()["state"].items():
        for moment in ("exp_avg", "exp_avg_sq"):
            old, now = moments[number][moment], state[moment]
            if names[number] == "W_enc":
                old, now = old.T, now.T
            if names[number] != "b_dec":
                assert (now[DEAD] == 0).all()
                old, now = old[live], now[live]
            assert torch.equal(old, now)
    assert not trainer.dead_neurons.any()


def test_rows_are_drawn_by_the_square_of_their_loss(trainer, store):
    rows = store.take(np.arange(60))
    with torch.no_grad():
        losses = (trainer.sae(rows) - rows).square().sum(1).double()
    rows = rows[torch.argsort(losses)][[0, -1]]
    with torch.no_grad():
        low, high = ((trainer.sae(rows) - rows).square().sum(1).double()).tolist()
    counts, b_dec = np.zeros(2), trainer.sae.b_dec.detach()
    directions = torch.nn.functional.normalize(rows - b_dec, dim=1)
    for seed in range(100):
        copied = copy.deepcopy(trainer)
        resampling.resample_dead(copied, rows, torch.Generator().manual_seed(seed))
        drawn = torch.nn.functional.normalize(copied.sae.W_dec[DEAD], dim=1) @ directions.T
        counts += np.bincount(drawn.argmax(dim=1).numpy(), minlength=2)
    expected = high**2 / (low**2 + high**2)
    assert counts[1] / counts.sum() == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 2000) ** 0.5 + 1e-3)


def test_an_sae_without_dead_latents_is_left_alone_and_one_with_none_alive_starts_anew(trainer, store):
    rows = store.take(np.arange(50))
    trainer.n_forward_passes_since_fired[:] = 0
    before = trainer.sae.W_dec.clone()
    assert resampling.resample_dead(trainer, rows, generator()) == 0
    assert torch.equal(trainer.sae.W_dec, before)
    with torch.no_grad():
        trainer.sae.b_enc[:] = -100.0
    trainer.n_forward_passes_since_fired[:] = 99
    assert resampling.resample_dead(trainer, rows, generator()) == 48
    with torch.no_grad():
        assert (trainer.sae.encode(rows) > 0).any(dim=0).all()


def test_resampling_in_a_training_revives_latents_and_improves_the_sae(store, tmp_path, monkeypatch):
    """With most latents dead on arrival, as in the released results."""
    make = sae_module._make_trainer

    def with_dead_latents(*args):
        trainer = make(*args)
        with torch.no_grad():
            trainer.sae.b_enc[:44] = -100.0
        return trainer

    monkeypatch.setattr(sae_module, "_make_trainer", with_dead_latents)
    monkeypatch.setattr(sae_module, "draw_metrics", lambda rows, file: None)
    last = {}
    for name, settings in {"without": {}, "with": {"resample_every": 50}}.items():
        config = small_training(epochs=16, lr=5e-3, dead_feature_window=30, evaluate_every=1000, **settings)
        train_sae(store, tmp_path / name, config)
        last[name] = read_metrics(tmp_path / name / "metrics.jsonl")[-1]
    assert last["without"]["dead_share"] >= 44 / 48
    assert last["with"]["dead_share"] < 0.1
    assert last["with"]["explained_variance"] > last["without"]["explained_variance"] + 0.1


def test_resampling_leaves_a_whole_interval_at_the_end(store, tmp_path, monkeypatch):
    monkeypatch.setattr(sae_module, "draw_metrics", lambda rows, file: None)
    config = small_training(resample_epochs=0.8, dead_feature_window=3)  # 10 of 30 steps
    train_sae(store, tmp_path, config)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if row["of"] == "resampling"] == [10, 20]


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_the_geometric_median_has_the_smallest_sum_of_distances(offset):
    rows = torch.randn(40, 3, generator=generator()) + offset
    rows[:5] += 50  # which would pull the mean away
    median = resampling.geometric_median(rows)
    points = rows.double().numpy()
    sum_of_distances = lambda point: np.linalg.norm(points - point, axis=1).sum()  # noqa: E731
    best = minimize(sum_of_distances, points.mean(0), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-8})
    np.testing.assert_allclose(median.numpy(), best.x, atol=2e-3)


def test_the_geometric_median_of_equal_rows_is_that_row():
    assert torch.equal(resampling.geometric_median(torch.full((5, 2), 2.0)), torch.full((2,), 2.0))


@pytest.mark.parametrize("architecture", ["standard", "batchtopk", "matching_pursuit"])
def test_latents_start_at_different_rows_seen_from_the_bias(store, architecture):
    trainer = sae_module._make_trainer(store, small_training(architecture=architecture), 30, {}, "cpu")
    norm = trainer.sae.W_dec.norm(dim=1).mean()
    rows = store.take(np.arange(200))
    resampling.start_bias_at_median(trainer, rows)
    resampling.start_at_data_points(trainer, rows, generator())
    directions = torch.nn.functional.normalize(rows - resampling.geometric_median(rows), dim=1)
    closest = (trainer.sae.W_dec / norm @ directions.T).max(dim=1)
    assert closest.values.min() > 1 - 1e-5
    assert len(set(closest.indices.tolist())) >= 46  # a few rows of the store are nearly parallel
    torch.testing.assert_close(trainer.sae.W_enc, trainer.sae.W_dec.T)


def test_a_start_at_rows_is_a_start_at_scaled_rows_where_rows_are_scaled(store):
    trainer = sae_module._make_trainer(store, small_training(), 30, {}, "cpu")
    trainer.activation_scaler.scaling_factor = 2.0
    rows = store.take(np.arange(200))
    resampling.start_bias_at_median(trainer, rows)
    torch.testing.assert_close(trainer.sae.b_dec, 2 * resampling.geometric_median(rows), rtol=1e-3, atol=1e-3)


def test_too_few_rows_to_start_at_are_refused(store):
    trainer = sae_module._make_trainer(store, small_training(), 30, {}, "cpu")
    with pytest.raises(InputError, match="needs a row for each of 48 latents, and 30 of 30 rows serve"):
        resampling.start_at_data_points(trainer, store.take(np.arange(30)), generator())
