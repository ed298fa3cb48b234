"""A training that is killed and made again ends with the same bytes as one that was left alone."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers_training import ARCHITECTURES, assert_same_weights, rows_store, small_training
from sae_lens.training.sae_trainer import SAETrainer

from mammosae_plugin.activations import ActivationStore
from mammosae_plugin.adapters import CheckpointFormatError, load_vision_sae
from mammosae_plugin.errors import InputError
from mammosae_plugin.training import checkpoints, train_sae, train_saes
from mammosae_plugin.training import sae as sae_module
from mammosae_plugin.training.rows import TrainingRows

VARIANTS = {
    **{name: {"architecture": name} for name in ARCHITECTURES},
    "resampled": {"resample_every": 6, "dead_feature_window": 3, "lr": 0.02, "sparsity": 0.1},
    "scaled batchtopk": {"architecture": "batchtopk", "normalize_activations": "expected_average_only_in"},
    "from data points, schedules": {
        "init": "data_points", "init_bias": "geometric_median", "lr_warm_up_steps": 9, "lr_decay_steps": 12,
        "sparsity_warm_up_steps": 15,
    },
    "tied levels on rows of length 1": {
        "architecture": "matryoshka_independent", "architecture_settings": {"tied_weights": True},
        "normalize_activations": "unit_l2", "lr_schedule": "cosine", "lr_warm_up_share": 0.2,
    },
    "bfloat16, held out": {"autocast": True, "validation_share": 0.2, "epochs": 3},
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return rows_store(tmp_path_factory.mktemp("rows"))


@pytest.fixture
def kills(monkeypatch):
    """A list of steps; a training dies once just before each of them."""
    waiting = []
    step = sae_module._Run.step

    def dying(run, batch):
        if waiting and run.done == waiting[0]:
            waiting.pop(0)
            raise KeyboardInterrupt
        step(run, batch)

    monkeypatch.setattr(sae_module._Run, "step", dying)
    monkeypatch.setattr(sae_module, "draw_metrics", lambda rows, file: None)
    return waiting


@pytest.mark.parametrize("name", VARIANTS)
def test_a_killed_training_continues_to_the_same_sae_and_metrics(store, tmp_path, kills, name):
    config = small_training(**VARIANTS[name])
    whole = train_sae(store, tmp_path / "whole", config)
    kills += [2, 8, 21, 29]  # before the first checkpoint, just behind one, on one, and before the last step
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            train_sae(store, tmp_path / "killed", config)
        torch.manual_seed(123)  # a new process has another generator
    continued = train_sae(store, tmp_path / "killed", config)
    assert_same_weights(whole, continued)
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / side).iterdir() if path.is_file()}
        for side in ("whole", "killed")
    ]
    assert files[0] == files[1]
    assert "checkpoint.safetensors" not in files[0]


def test_the_continued_run_starts_at_its_last_checkpoint(store, tmp_path, kills, monkeypatch):
    config, starts = small_training(), []
    kills.append(20)
    with pytest.raises(KeyboardInterrupt):
        train_sae(store, tmp_path, config)
    batches = TrainingRows.batches
    monkeypatch.setattr(
        TrainingRows, "batches", lambda rows, start=0, **part: starts.append(start) or batches(rows, start, **part)
    )
    train_sae(store, tmp_path, config)
    assert starts[0] == 14


def test_several_saes_killed_in_one_pass_continue_to_the_same_saes(store, tmp_path, kills):
    settings = {
        "short": small_training(epochs=1, row_seed=0),
        "other": small_training(architecture="topk", checkpoint_every=5, row_seed=0, seed=3),
        "nested": small_training(architecture="matryoshka_independent", row_seed=0, normalize_activations="unit_l2"),
    }
    whole = train_saes(store, tmp_path / "whole", settings)
    kills += [11, 23]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train_saes(store, tmp_path / "killed", settings)
    continued = train_saes(store, tmp_path / "killed", settings)
    for name in settings:
        assert_same_weights(whole[name], continued[name])
        assert (tmp_path / "whole" / name / "metrics.jsonl").read_bytes() == (
            tmp_path / "killed" / name / "metrics.jsonl"
        ).read_bytes()


def test_a_process_killed_by_the_system_continues_to_the_same_saes(store, tmp_path, monkeypatch):
    monkeypatch.setattr(sae_module, "draw_metrics", lambda rows, file: None)
    both = {"epochs": 4, "checkpoint_every": 3}
    settings = {
        "batchtopk": small_training(architecture="batchtopk", **both),
        "nested": small_training(architecture="matryoshka_independent", normalize_activations="unit_l2", **both),
    }
    script = (
        "import json, os, sys; from mammosae_plugin.activations import ActivationStore\n"
        "from mammosae_plugin.training import SAETraining, train_saes\n"
        "from mammosae_plugin.training import sae\n"
        "step = sae._Run.step\n"
        "def dying(run, batch):\n"
        "    if run.done == 11 and run.job.folder.name == 'nested':\n"
        "        os.kill(os.getpid(), 9)\n"
        "    step(run, batch)\n"
        "sae._Run.step = dying\n"
        "settings = {name: SAETraining(**each) for name, each in json.loads(sys.argv[3]).items()}\n"
        "train_saes(ActivationStore(sys.argv[1]), sys.argv[2], settings)\n"
    )
    given = json.dumps({name: config.model_dump() for name, config in settings.items()})
    process = subprocess.run(
        [sys.executable, "-c", script, str(store.folder), str(tmp_path / "killed"), given],
        stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}, check=False,
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL
    whole = train_saes(store, tmp_path / "whole", settings)
    for name in settings:
        folder = tmp_path / "killed" / name
        assert (folder / "checkpoint.safetensors").exists() and not (folder / "cfg.json").exists()
    continued = train_saes(store, tmp_path / "killed", settings)
    for name in settings:
        assert_same_weights(whole[name], continued[name])
        for file in ("metrics.jsonl", "sae_weights.safetensors", "cfg.json"):
            assert (tmp_path / "whole" / name / file).read_bytes() == (tmp_path / "killed" / name / file).read_bytes()


def test_a_run_killed_while_a_checkpoint_is_written_has_the_one_before(store, tmp_path, monkeypatch):
    config = small_training()
    save, calls = checkpoints.write_safetensors, []

    def dying(path, tensors, metadata):
        calls.append(path)
        if len(calls) == 2:
            monkeypatch.setattr("mammosae_plugin.files.os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        save(path, tensors, metadata)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "write_safetensors", dying)
        patched.setattr("mammosae_plugin.files.os.replace", os.replace)
        with pytest.raises(KeyboardInterrupt):
            train_sae(store, tmp_path / "killed", config)
    monkeypatch.undo()
    assert len(calls) == 2
    assert_same_weights(train_sae(store, tmp_path / "killed", config), train_sae(store, tmp_path / "whole", config))


def test_the_half_of_a_checkpoint_that_a_kill_left_makes_room_before_the_first_step(store, tmp_path, kills):
    kills += [8, 9]
    with pytest.raises(KeyboardInterrupt):
        train_sae(store, tmp_path, small_training())
    left = tmp_path / ".tmp-mammosae-half.safetensors"
    left.write_bytes(b"half of a checkpoint")
    with pytest.raises(KeyboardInterrupt):
        train_sae(store, tmp_path, small_training())
    assert not left.exists()
    left.touch()
    train_sae(store, tmp_path, small_training())
    assert not list(tmp_path.glob(".*"))


def test_a_run_killed_after_saving_the_sae_still_gets_its_card_and_last_metrics(store, tmp_path, monkeypatch):
    config = small_training()
    with monkeypatch.context() as patched:
        patched.setattr(sae_module, "draw_metrics", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_sae(store, tmp_path / "killed", config)
    assert (tmp_path / "killed" / "cfg.json").exists()
    assert not (tmp_path / "killed" / "README.md").exists()
    train_sae(store, tmp_path / "killed", config)
    train_sae(store, tmp_path / "whole", config)
    for name in ("metrics.jsonl", "README.md"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_nothing_that_is_written_is_a_pickle(store, tmp_path, kills):
    kills.append(20)
    with pytest.raises(KeyboardInterrupt):
        train_sae(store, tmp_path, small_training(architecture="batchtopk"))
    names = {path.name for path in tmp_path.rglob("*")}
    assert names == {"training.json", "metrics.jsonl", "checkpoint.safetensors"}


def test_a_damaged_checkpoint_is_named(store, tmp_path, kills):
    kills.append(20)
    with pytest.raises(KeyboardInterrupt):
        train_sae(store, tmp_path, small_training())
    checkpoint = tmp_path / "checkpoint.safetensors"
    whole = checkpoint.read_bytes()
    for damaged in (
        whole[:5000],
        whole[:-1] + bytes([whole[-1] ^ 1]),
        whole.replace(b"n_training_samples", b"n_training_samplez"),
    ):
        assert damaged != whole
        checkpoint.write_bytes(damaged)
        with pytest.raises(InputError, match=r"checkpoint\.safetensors is damaged; delete it"):
            train_sae(store, tmp_path, small_training())


def test_a_finished_sae_that_was_changed_is_not_read_as_its_own(store, tmp_path, kills):
    train_sae(store, tmp_path, small_training())
    whole = {name: (tmp_path / name).read_bytes() for name in ("cfg.json", "sae_weights.safetensors")}
    for name, changed in [
        ("sae_weights.safetensors", whole["sae_weights.safetensors"][:-1] + b"\x01"),
        ("cfg.json", whole["cfg.json"].replace(b'"bn2.hook_out"', b'"bn1.hook_out"')),
    ]:
        assert changed != whole[name]
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(InputError, match=rf"{name} is missing or was changed after the training wrote it; restore"):
            train_sae(store, tmp_path, small_training())
        with pytest.raises(
            CheckpointFormatError, match=rf"{name} was changed after the training wrote it; restore it, or"
        ):
            load_vision_sae(tmp_path)
        (tmp_path / name).write_bytes(whole[name])
    load_vision_sae(tmp_path)
    train_sae(store, tmp_path, small_training())


def test_the_card_of_an_sae_of_phantoms_does_not_call_them_mammography(store, tmp_path, kills, monkeypatch):
    monkeypatch.setattr(sae_module, "_datasets", lambda manifest: ["phantom"])
    train_sae(store, tmp_path, small_training())
    card = (tmp_path / "README.md").read_text()
    assert "- phantoms\n" in card
    assert "mammography" not in card


def test_metrics_that_were_cut_are_refused(store, tmp_path, kills):
    kills.append(20)
    with pytest.raises(KeyboardInterrupt):
        train_sae(store, tmp_path, small_training())
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match=r"metrics\.jsonl has been cut"):
        train_sae(store, tmp_path, small_training())


def test_our_checkpoint_holds_everything_that_saelens_puts_into_its_own(store, tmp_path: Path):
    """If SAELens's trainer gets more state, this fails, and `checkpoints` must learn of it."""
    trainer = sae_module._make_trainer(store, small_training(), 30, {}, "cpu")
    trainer.save_trainer_state(tmp_path)
    theirs = torch.load(tmp_path / "trainer_state.pt", weights_only=True)
    ours = {*checkpoints.COUNTERS, *checkpoints.TENSORS, "optimizer", "lr_scheduler", "coefficient_schedulers"}
    assert set(theirs) == ours
    assert {path.name for path in tmp_path.iterdir()} == {"trainer_state.pt", "activation_scaler.json"}


def test_a_trainer_continued_from_our_file_steps_as_one_continued_from_saelens_own(store: ActivationStore, tmp_path):
    config = small_training(architecture="batchtopk", lr_warm_up_steps=5)

    def new_trainer() -> SAETrainer:
        torch.manual_seed(0)
        return sae_module._make_trainer(store, config, 30, {}, "cpu")

    rows = list(zip(range(8), store.batches(32, seed=0), strict=False))
    trainer = new_trainer()
    for _, batch in rows[:4]:
        trainer.step(batch)
        trainer.n_training_steps += 1
    trainer.save_checkpoint("theirs", base_path=tmp_path)
    checkpoints.save_state(trainer, tmp_path / "ours.safetensors", extra={"of": "mine"})
    theirs, ours = new_trainer(), new_trainer()
    theirs.load_trainer_state(tmp_path / "theirs")
    theirs.sae.load_weights_from_checkpoint(tmp_path / "theirs")
    assert checkpoints.load_state(ours, tmp_path / "ours.safetensors") == {"of": "mine"}
    for _, batch in rows[4:]:
        theirs.step(batch)
        ours.step(batch)
    assert_same_weights(theirs.sae, ours.sae)
    assert theirs.lr_scheduler.get_last_lr() == ours.lr_scheduler.get_last_lr()
