"""Every architecture, what is refused, held-out rows, metrics, several SAEs in one pass."""

import sys
import types

import numpy as np
import pytest
import torch
from helpers_training import ARCHITECTURES, assert_same_weights, rows_store, small_training, store_of
from sae_lens import SAE
from sae_lens.config import SAETrainerConfig
from sae_lens.evals import ExplainedVarianceCalculator
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer

from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.reconstruction import Measures
from mammosae_plugin.provenance import seed_everything
from mammosae_plugin.training import SAETraining, final_metrics_of, grid, train_sae, train_saes
from mammosae_plugin.training import sae as sae_module
from mammosae_plugin.training.metrics import problems_of, read_metrics
from mammosae_plugin.training.new_sae import new_training_sae
from mammosae_plugin.training.rows import TrainingRows, images_of_held_out_patients

SAVED_AS = {name: name for name in ARCHITECTURES} | dict.fromkeys(
    ("batchtopk", "matryoshka_batchtopk", "matryoshka_independent"), "jumprelu"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return rows_store(tmp_path_factory.mktemp("rows"))


@pytest.fixture
def no_figure(monkeypatch):
    monkeypatch.setattr(sae_module, "draw_metrics", lambda rows, file: None)


# Architectures


@pytest.mark.parametrize("scaling", ["none", "expected_average_only_in"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_learns_and_is_saved_as_what_saelens_loads(
    store, tmp_path, no_figure, architecture, scaling
):
    threshold = {"threshold_lr": 0.1} if SAVED_AS[architecture] != architecture else {}
    config = small_training(
        architecture=architecture, epochs=8, lr=5e-3, normalize_activations=scaling, evaluate_every=1000, **threshold
    )
    sae = train_sae(store, tmp_path, config)
    assert SAE.load_from_disk(tmp_path).cfg.architecture() == SAVED_AS[architecture]
    assert sae.cfg.metadata.training_architecture == architecture
    rows = store.take(np.arange(384))
    first, *_, last_batch, last = (
        row for row in read_metrics(tmp_path / "metrics.jsonl") if row["of"] in ("batch", "training")
    )
    assert last_batch["loss"] < first["loss"]
    variance = (rows - rows.mean(0)).square().sum()
    with torch.no_grad():
        explained = 1 - (sae(rows) - rows).square().sum() / variance
    assert explained > 0.5
    assert last["explained_variance"] == pytest.approx(last_batch["explained_variance"], abs=0.15)
    if architecture in ("topk", "matching_pursuit"):
        assert last["l0"] <= 4 + 1e-9
    elif "topk" in architecture:
        assert last["l0"] == pytest.approx(4, abs=2.5)


@pytest.mark.parametrize(
    ("schedule", "saelens"),
    [
        ({}, {"lr_end": 3e-3}),
        (
            {"lr_schedule": "cosine", "lr_end": 1e-4},
            {"lr_scheduler_name": "cosineannealing", "lr_end": 1e-4},
        ),
    ],
)
def test_our_loop_gives_what_saelens_own_fit_gives(schedule, saelens, store, tmp_path, no_figure):
    both = {"lr": 3e-3, "lr_warm_up_steps": 5, "lr_decay_steps": 10}
    config = small_training(architecture="batchtopk", init_bias="zero", **both, **schedule)
    ours = train_sae(store, tmp_path / "ours", config)
    seed_everything(config.seed)
    sae = new_training_sae(config, store.d_in, metadata=SAEMetadata(), device="cpu")
    theirs = SAETrainerConfig(
        total_training_samples=30 * 32, train_batch_size_samples=32, dead_feature_window=config.dead_feature_window,
        **both, **saelens,
    )  # fmt: skip
    trainer = SAETrainer(theirs, sae, store.batches(32, seed=0))
    trainer.optimizer.param_groups[0].update(fused=True, foreach=False)  # the same Adam, rounded otherwise
    trainer.fit()
    sae.save_inference_model(tmp_path / "theirs")
    inference = SAE.load_from_disk(tmp_path / "theirs")
    inference.fold_W_dec_norm()
    inference.threshold.data /= 1 - 0.99**30  # a moving average from 0, corrected
    torch.testing.assert_close(ours.threshold, inference.threshold, rtol=1e-6, atol=0)
    inference.threshold.data = ours.threshold.data
    assert_same_weights(ours, inference)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("standard", {"l1_coefficient": 3e-3 * 16}),
        ("gated", {"l1_coefficient": 3e-3 * 16}),
        ("jumprelu", {"l0_coefficient": 1e-2 * 16, "jumprelu_sparsity_loss_mode": "step", "l0_warm_up_steps": 5}),
        ("topk", {"k": 4, "aux_loss_coefficient": 1 / 32, "decoder_init_norm": 1.0}),
        ("matryoshka_batchtopk", {"matryoshka_widths": [6, 12, 24, 48]}),
        ("matching_pursuit", {"max_iterations": 4, "decoder_init_norm": 1.0}),
    ],
)
def test_settings_reach_saelens_in_its_units(architecture, expected):
    config = small_training(architecture=architecture)
    sae = new_training_sae(config, 16, metadata=SAEMetadata(), device="cpu")
    assert {name: getattr(sae.cfg, name) for name in expected} == expected


@pytest.mark.parametrize("settings", [{}, {"normalize_activations": "expected_average_only_in"}, {"sparsity": 0.1}])
def test_a_jumprelu_sae_has_the_l0_that_was_asked_for(store, tmp_path, no_figure, caplog, settings):
    config = SAETraining(architecture="jumprelu", k=6, d_sae=48, epochs=20, batch_size=32, lr=5e-3, **settings)
    train_sae(store, tmp_path, config)
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert last["l0"] == pytest.approx(6, rel=0.02)
    assert last["explained_variance"] > 0.5
    assert "but k is" not in caplog.text


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_the_threshold_of_a_short_run_gives_the_l0_that_was_asked_for(store, tmp_path, no_figure, architecture):
    """It follows slowly from 0: uncorrected, 12 steps would end at a tenth of it, where many more latents fire."""
    train_sae(store, tmp_path, small_training(architecture=architecture, epochs=1))
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["l0"] == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
def test_an_offset_that_all_rows_share_costs_nothing(store, tmp_path, no_figure, architecture):
    """The bias of the decoder has it from the start; from 0, latents would have to learn it first."""
    rows = store.rows_of(range(40))
    offset = store_of(rows + 5 * rows.std() * torch.linspace(-1, 1, rows.shape[1]), tmp_path / "rows")
    config = small_training(architecture=architecture, k=4, epochs=8, lr=5e-3, dead_feature_window=20)
    found = {}
    for name, each, settings in (
        ("without", store, {}), ("with", offset, {}), ("from 0", offset, {"init_bias": "zero"})
    ):  # fmt: skip
        train_sae(each, tmp_path / name, config.model_copy(update=settings))
        found[name] = read_metrics(tmp_path / name / "metrics.jsonl")[-1]["explained_variance"]
    assert found["with"] == pytest.approx(found["without"], abs=0.05)
    assert found["from 0"] < found["with"] - 0.05


def test_what_a_user_must_know_of_a_trained_sae_is_said():
    well = {"l0": 6.1, "rows": 10, "explained_variance": 0.9, "dead_share_in_training": 0.1, "rows_in_training": 90}
    config = SAETraining(architecture="jumprelu", k=6)
    assert problems_of(config, well) == []
    assert problems_of(config, well | {"l0": 54.0}) == ["54 latents fire per row, but k is 6"]
    assert problems_of(SAETraining(), well | {"l0": 54.0}) == []
    (worse,) = problems_of(config, well | {"explained_variance": -0.1})
    assert worse == "the explained variance is -0.1: a constant would explain more"
    (dead,) = problems_of(config, well | {"dead_share_in_training": 0.6})
    assert "60% of the latents fire at none of 90 training rows" in dead


def test_an_sae_whose_latents_are_all_dead_is_told(store, tmp_path, no_figure, caplog):
    train_sae(store, tmp_path, small_training(architecture="jumprelu", jumprelu_threshold=1e6))
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["l0"] == 0
    assert "no latent fires at any of 384 rows: the SAE is dead; lower sparsity, or scale the rows" in caplog.text


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "topk"}, "needs k"),
        ({"architecture": "topk", "k": 2.5}, "fires a whole number"),
        ({"architecture": "batchtopk", "k": 65, "d_sae": 64}, "k is 65, but the SAE has only 64 latents"),
        ({"architecture": "jumprelu", "k": 65, "d_sae": 64}, "k is 65"),
        ({"k": 4}, "k does nothing for the architecture 'standard'"),
        ({"architecture": "topk", "k": 4, "sparsity": 1e-3}, "sparsity does nothing"),
        ({"architecture": "batchtopk", "k": 4, "resample_epochs": 10}, "resample_epochs does nothing"),
        ({"architecture": "gated", "aux_loss": 0.5}, "aux_loss does nothing"),
        ({"architecture": "topk", "k": 4, "normalize_activations": "layer_norm"}, "expected_average_only_in"),
        ({"architecture": "matryoshka_batchtopk", "k": 4, "d_sae": 8, "matryoshka_widths": (4, 2, 8)}, "must be pos"),
        ({"architecture": "matryoshka_batchtopk", "k": 4, "d_sae": 8, "matryoshka_widths": (2, 4)}, "must be all 8"),
        ({"architecture": "matryoshka_batchtopk", "k": 1, "d_sae": 4}, "too few for nested eighths"),
        ({"resample_every": 500}, "dead only after more than dead_feature_window = 1000 steps"),
        ({"resample_every": 5000, "resample_epochs": 10}, "not both"),
        ({"architecture": "topk_absolute"}, "does not know it; take one of 'standard'"),
        ({"architecture": "transcoder"}, "loads SAEs of it, but cannot train them"),
        ({"architecture_settings": {"lp_nor": 2.0}}, "has no setting 'lp_nor'; it has decoder_init_norm, lp_norm"),
        ({"architecture_settings": {"l1_coefficient": 2.0}}, "l1_coefficient follows from sparsity"),
        ({"architecture_settings": {"lp_norm": float("nan")}}, "must be plain JSON"),
        ({"validation_share": 1.0}, "below 1"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused_when_they_are_made(settings, message):
    with pytest.raises(InputError, match=message):
        SAETraining(**settings)


def test_acting_settings_are_those_of_the_architecture():
    topk = SAETraining(architecture="topk", k=4, d_sae=64)
    assert topk.acting() == {name: value for name, value in topk.model_dump().items() if name in topk.acting()}
    assert {"k", "aux_loss", "d_sae", "lr"} <= topk.acting().keys()
    assert not {"sparsity", "jumprelu_bandwidth", "resample_every", "expansion_factor"} & topk.acting().keys()
    assert {"sparsity", "resample_every", "expansion_factor"} <= SAETraining().acting().keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "topk", "k": 200, "d_sae": None}, "k is 200, but the SAE has only 128 latents"),
        ({"lr_warm_up_steps": 20, "lr_decay_steps": 20}, "lr_warm_up_steps [+] lr_decay_steps is 40"),
        ({"lr_schedule": "cosine", "lr_decay_steps": 20, "lr_warm_up_share": 0.34}, "none is left for the cosine"),
        ({"sparsity_warm_up_steps": 31}, "lambda would never be reached"),
        ({"architecture": "topk", "dead_feature_window": 30}, "no latent would count as dead"),
        ({"resample_epochs": 0.1}, "resample_epochs of 0.1 are 1 steps"),
        ({"epochs": 0.01}, "not one batch of 32"),
    ],
)
def test_settings_that_do_not_fit_the_rows_are_refused_before_the_first_step(store, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        train_sae(store, tmp_path, small_training(**settings))
    assert not list(tmp_path.iterdir())


def test_a_changed_copy_of_settings_is_checked_too(store, tmp_path):
    config = small_training(architecture="topk").model_copy(update={"k": None})
    with pytest.raises(InputError, match="needs k"):
        train_sae(store, tmp_path, config)


def test_a_loss_that_is_not_finite_ends_the_training(store, tmp_path):
    with pytest.raises(InputError, match="diverged at step"):
        train_sae(store, tmp_path, small_training(lr=1e30))
    assert not (tmp_path / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("scaling", ["none", "expected_average_only_in"])
@pytest.mark.parametrize(("value", "said"), [(0.0, "0 in every channel"), (3.5, "the same")])
def test_rows_that_do_not_vary_are_refused(tmp_path, value, said, scaling):
    same = store_of(torch.full((400, 16), value), tmp_path / "rows")
    with pytest.raises(InputError, match=f"all of the first 32 rows are {said}, so there is nothing to learn at bn2"):
        train_sae(same, tmp_path / "sae", small_training(normalize_activations=scaling))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("held_out", [(), (38, 39)])
def test_a_row_that_is_not_finite_is_named(store, tmp_path, value, held_out):
    rows = store.rows_of(range(40))
    rows[395, 3] = value  # of image 39
    with pytest.raises(InputError, match="a row that is not finite: image image-39, position"):
        train_sae(store_of(rows, tmp_path / "rows"), tmp_path / "sae", small_training(), validation_images=held_out)


# Rows held out


def test_rows_of_held_out_patients_are_judged_by_and_never_trained_on(store):
    held_out = images_of_held_out_patients(store, 0.2, seed=0)
    assert len(held_out) == 8
    assert {image ^ 1 for image in held_out} == set(held_out)  # both images of a patient
    assert held_out != images_of_held_out_patients(store, 0.2, seed=1)
    rows = TrainingRows(store, 32, 0, held_out)
    assert rows.n_rows == 320
    judged = torch.cat(list(rows.evaluation()))
    trained = torch.cat([batch for _, batch in zip(range(10), rows.batches(), strict=False)])
    images = [set((part[:, 0] * 40).round().int().tolist()) for part in (judged, trained)]
    assert images == [set(held_out), set(range(40)) - set(held_out)]
    assert len(judged) == 80


def test_the_last_line_says_that_it_is_of_held_out_rows(store, tmp_path, no_figure):
    train_sae(store, tmp_path, small_training(validation_share=0.2))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[-1]["final"]
    assert (rows[-1]["of"], rows[-1]["rows"]) == ("validation", 80)
    assert [row["step"] for row in rows if row["of"] == "validation"] == [10, 20, 24]
    assert "of patients held out of training" in (tmp_path / "README.md").read_text()


def test_evaluation_reads_a_bounded_number_of_held_out_rows(store, monkeypatch):
    monkeypatch.setattr("mammosae_plugin.training.rows.EVALUATION_ROWS", 25)
    rows = TrainingRows(store, 32, 0, range(20))
    assert [len(batch) for batch in rows.evaluation()] == [30]


@pytest.mark.parametrize(
    ("images", "message"),
    [([40], "images 0 to 39"), ([0], "hold out all images of a patient or none"), (range(40), "leave some to train")],
)
def test_images_that_cannot_be_held_out_are_refused(store, tmp_path, images, message):
    with pytest.raises(InputError, match=message):
        train_sae(store, tmp_path, small_training(), validation_images=list(images))


# Metrics


def test_measures_agree_with_their_definitions_and_with_saelens():
    generator = torch.Generator().manual_seed(0)
    rows = 100 + torch.randn(60, 5, generator=generator)  # a large mean, where float32 sums would fail
    latents = torch.randn(60, 7, generator=generator).relu()
    latents[:, 2] = 0
    reconstruction = rows + 0.3 * torch.randn(60, 5, generator=generator)
    measures, theirs = Measures(5, 7, "cpu"), ExplainedVarianceCalculator()
    for part in (slice(0, 25), slice(25, 60)):
        measures.add(rows[part], latents[part], reconstruction[part])
        theirs.add_batch(reconstruction[part].double(), rows[part].double())
    found = measures.row()
    exact = rows.double()
    error = (exact - reconstruction.double()).square()
    assert found["explained_variance"] == pytest.approx(
        1 - float(error.sum() / (exact - exact.mean(0)).square().sum()), abs=1e-9
    )
    assert found["explained_variance"] == pytest.approx(theirs.compute(), abs=1e-6)
    assert found["mse"] == pytest.approx(float(error.mean()))
    assert found["l0"] == pytest.approx(float((latents > 0).sum() / 60))
    assert found["dead_share"] == pytest.approx(1 / 7)
    centred = [part - part.mean(0) for part in (exact, reconstruction.double())]
    assert found["slope"] == pytest.approx(float((centred[0] * centred[1]).sum() / centred[1].square().sum()))
    assert found["density"]["never"] == 1
    assert found["density"]["counts"][-1] == 6  # between 10 ** -0.5 and 1
    assert sum(found["density"]["counts"]) == 6


def test_rows_that_do_not_vary_have_no_explained_variance():
    measures = Measures(3, 2, "cpu")
    measures.add(torch.zeros(4, 3), torch.zeros(4, 2), torch.zeros(4, 3))
    assert measures.row()["explained_variance"] is None
    assert measures.row()["slope"] is None


def test_the_slope_is_1_for_an_unbiased_reconstruction_and_tells_shrinkage():
    """However little of the variance it explains; the ratio of norms would read 0.4 and 0.2."""
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(20_000, 3, generator=generator)
    rows = 10 + known + 2 * torch.randn(20_000, 3, generator=generator)
    for factor, slope in ((1, 1), (0.5, 2)):
        measures = Measures(3, 2, "cpu")
        measures.add(rows, torch.zeros(20_000, 2), 10 + factor * known)
        assert measures.row()["slope"] == pytest.approx(slope, rel=0.05)


def test_the_course_of_a_training_is_written_and_drawn(store, tmp_path):
    train_sae(store, tmp_path, small_training(), final_metrics=lambda sae: {"auroc_cost": sae.cfg.d_sae / 1000})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if row["of"] == "batch"] == list(range(3, 31, 3))
    assert [row["step"] for row in rows if row["of"] == "training"] == [10, 20, 30]
    assert {"explained_variance", "l0", "dead_share", "dead_window_steps", "slope", "loss"} <= rows[0].keys()
    assert rows[-1]["auroc_cost"] == 0.048
    assert rows[-1]["density"]["counts"]
    assert (tmp_path / "metrics.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_go_to_wandb_only_if_asked(store, tmp_path, no_figure, monkeypatch):
    logged, finished = [], []
    run = types.SimpleNamespace(log=lambda row, step: logged.append((step, row)), finish=lambda: finished.append(1))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **settings: run))
    train_sae(store, tmp_path / "not", small_training())
    assert not logged
    train_sae(store, tmp_path / "asked", small_training(architecture="matryoshka_batchtopk"), tracker="wandb")
    assert [step for step, row in logged if "batch/l0" in row] == list(range(3, 31, 3))
    assert finished
    evaluated = [row for row in read_metrics(tmp_path / "asked" / "metrics.jsonl") if row["of"] == "training"]
    last = next(row for step, row in reversed(logged) if step == evaluated[-2]["step"] and "training/l0" in row)
    for level in evaluated[-2]["levels"]:
        of_level = f"training/level_{level['width']}"
        sent = {name: value for name, value in last.items() if name.startswith(f"{of_level}/")}
        assert sent == {f"{of_level}/{name}": value for name, value in level.items() if name != "width" and value}


@pytest.mark.parametrize(("tracker", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_missing_tracker_is_named_before_the_first_step(store, tmp_path, monkeypatch, tracker, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"{tracker}, which is not installed: pip install {tracker}"):
        train_sae(store, tmp_path, small_training(), tracker=tracker)


# Several SAEs in one pass


def test_saes_trained_together_are_those_trained_alone(store, tmp_path, no_figure, monkeypatch):
    settings = grid(small_training(architecture="batchtopk"), k=[2, 6], seed=[0, 1])
    settings["longer standard"] = small_training(epochs=4, row_seed=0, sparsity=1e-2, d_sae=20)
    settings["resampled"] = small_training(row_seed=0, resample_every=8)
    read = []
    batches = type(store).batches

    def counting(self, *args, **kwargs):
        for batch in batches(self, *args, **kwargs):
            read.append(1)
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(type(store), "batches", counting)
        patched.setattr(TrainingRows, "evaluation", lambda rows: iter([]))
        patched.setattr(sae_module, "measure", lambda *_: {})
        patched.setattr(sae_module._Run, "_start", lambda run: None)
        patched.setattr(sae_module, "_finish", lambda job, plan, rows: None)
        patched.setattr(sae_module, "resample_dead", lambda *_: 0)
        train_saes(store, tmp_path / "counted", settings)
    n_samples = 8192 // 32 * 2  # the resampled one looks at rows ahead, twice
    assert len(read) == 50 + n_samples
    together = train_saes(store, tmp_path / "together", settings)
    for name, config in settings.items():
        alone = train_sae(store, tmp_path / "alone" / name, config)
        assert_same_weights(together[name], alone)
    table = final_metrics_of(tmp_path / "together").set_index("name")
    assert set(table.index) == set(settings)
    assert table.loc["k=6,seed=0", "l0"] > table.loc["k=2,seed=0", "l0"]
    assert not torch.equal(together["k=2,seed=0"].W_dec, together["k=2,seed=1"].W_dec)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"batch_size": 16}, "share batch_size"),
        ({"seed": 1}, "same row_seed"),
        ({"validation_share": 0.1}, "share val"),
    ],
)
def test_saes_that_read_other_batches_are_refused(store, tmp_path, other, message):
    with pytest.raises(InputError, match=message):
        train_saes(store, tmp_path, {"one": small_training(), "other": small_training(**other)})


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_a_name_that_is_no_folder_is_refused(store, tmp_path, name):
    with pytest.raises(InputError, match="cannot be the name of a folder"):
        train_saes(store, tmp_path, {name: small_training()})


def test_a_grid_says_which_of_its_settings_do_not_go_together():
    with pytest.raises(InputError, match="k=100: .*only 48 latents"):
        grid(small_training(architecture="topk"), k=[4, 100])
    with pytest.raises(InputError, match="no setting 'lambda_'"):
        grid(small_training(), lambda_=[1])
    with pytest.raises(InputError, match="lr has no value"):
        grid(small_training(), lr=[])


def test_final_metrics_of_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no finished SAE"):
        final_metrics_of(tmp_path)


@pytest.mark.parametrize("name", ["metrics.png", "metrics.jsonl", "README.md", "activations.json"])
def test_a_folder_in_which_something_else_lies_is_refused_before_the_first_step(store, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=rf"{name} is in the way, and of no earlier run"):
        train_sae(store, tmp_path, small_training())
    assert [path.name for path in tmp_path.iterdir()] == [name]
