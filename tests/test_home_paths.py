"""A leading ~ in any path is the home folder."""

from pathlib import Path

import pytest
from helpers_study import results_of, small_phantoms, study_settings, toy_store, write_study
from typer.testing import CliRunner

from mammosae_plugin.activations import ActivationStore, merge_stores
from mammosae_plugin.adapters import load_mammo_clip, load_vision_sae
from mammosae_plugin.adapters.inspection import inspect_checkpoint
from mammosae_plugin.cli import app
from mammosae_plugin.config import load_config
from mammosae_plugin.datasets import VinDrMammo, make_phantoms
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, read_json
from mammosae_plugin.findings.notes import add_note, read_notes
from mammosae_plugin.findings.study_folder import StudyFolder
from mammosae_plugin.hub import load_findings, stage_findings
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.training import SAETraining, train_sae


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    yield tmp_path / "home"
    assert not list((tmp_path / "elsewhere").iterdir())


def test_functions_take_paths_in_the_home_folder(home):
    toy_store(home / "store")
    store = ActivationStore("~/store")
    train_sae(store, "~/sae", SAETraining(d_sae=8, epochs=1, batch_size=200))
    assert load_vision_sae("~/sae").cfg.d_sae == 8
    assert inspect_checkpoint("~/sae").kind == "saelens folder"
    assert merge_stores(["~/store"], "~/merged").n_rows == store.n_rows
    make_phantoms("~/phantoms", n_patients=2, images_per_patient=1, image_size=(96, 64))
    assert len(VinDrMammo("~/phantoms", image_size=(96, 64))) == 2
    with pytest.raises(InputError, match=f"{home}/none.pth"):
        load_mammo_clip(Path("~/none.pth"))
    with pytest.raises(InputError, match="begins with a home folder that this machine does not have"):
        local_path("~nobody-of-this-name/a")


def test_commands_and_settings_take_paths_in_the_home_folder(home):
    settings = study_settings(home, small_phantoms(home / "data"))
    settings["concepts"] = ["Mass"]
    settings["models"] = [{"name": "m", "classifiers": {"Mass": "~/pretrained-Mass.safetensors"}}]
    settings["analysis"] |= {"error_term": False, "top": 2}
    settings |= {"output": "~/unused", "sae": {"path": "~/sae"}}
    settings["data"] |= {"root": "~/data", "annotations": "~/data/vindr_detection_v1_folds.csv"}
    write_study(home, settings)
    config = load_config("~/study.yaml", ["data.root=~/data"])
    assert (config.output, config.data.root) == (home / "unused", home / "data")
    done = CliRunner().invoke(app, ["study", "~/study.yaml", "--output=~/out"])
    assert done.exit_code == 0, done.output
    assert results_of(home / "out")["models"]
    study = StudyFolder("~/out")
    assert LatentTable(f"~/out/{study.layers[0].encoders['m'].table_folder.relative_to(home / 'out')}").folder.is_dir()
    add_note("~/out", 3, "an edge", author="AB")
    assert len(read_notes("~/out")) == 1
    stage_findings("~/out", "~/staged", licence="cc-by-4.0", min_group=1)
    assert len(load_findings("~/staged").latents)
    assert read_json("~/out/results/results.json")["models"]
