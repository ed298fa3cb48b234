"""`inspect_checkpoint` and `mammosae inspect` say what a file is, and in one line why one cannot be read."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_adapters import DATA, fixture_checkpoint, fixture_downstream
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from mammosae_plugin.adapters import (
    CheckpointFormatError,
    CheckpointReport,
    UnsafeCheckpointError,
    inspect_checkpoint,
    load_vision_sae,
    new_classifier,
    save_classifier,
)
from mammosae_plugin.cli import app
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sha256_of_file
from mammosae_plugin.training import save_sae

TINY = DATA / "vision_sae_tiny.pt"


def inspected(content: Any, path: Path) -> CheckpointReport:
    torch.save(content, path)
    return inspect_checkpoint(path)


def with_text_tower(keys: list[str], name: str | None, variant: str = "b2") -> dict[str, Any]:
    """The variant's pretraining checkpoint with another text tower."""
    content = fixture_checkpoint(variant)
    content["model"] = {key: t for key, t in content["model"].items() if not key.startswith("text_encoder.")}
    content["model"] |= {f"text_encoder.text_encoder.{key}": torch.zeros(2) for key in keys}
    if name is not None:
        content["config"]["model"]["text_encoder"] = {"name": name}
    return content


# -- what files are ----------------------------------------------------------------------------------------------------


def test_a_pretraining_checkpoint_is_told_with_its_towers_keys_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "b2-model-best-epoch-10.tar"
    report = inspected(with_text_tower(["embeddings.word"], "emilyalsentzer/Bio_ClinicalBERT"), path)
    assert (report.kind, report.loads_with, report.problem) == ("mammo-clip pretraining", "load_mammo_clip", None)
    assert (report.variant, report.architecture, report.n_class) == ("b2", "tf_efficientnet_b2", 0)
    assert report.image_encoder_name == "tf_efficientnetv2-detect"
    assert (report.text_tower, report.family) == ("emilyalsentzer/Bio_ClinicalBERT", "Mammo-CLIP")
    assert report.groups == {"image_encoder": 506, "image_projection": 1, "logit_scale": 1, "text_encoder": 1}
    assert report.n_tensors == 509
    assert 7_700_000 < report.n_parameters < 7_800_000  # the optimiser's state is not among them
    assert report.top_level == ("model", "optimizer", "scheduler", "config", "epoch", "train_loss")
    assert report.numbers == {"epoch": 7, "train_loss": 1.5}
    assert [(file.name, file.size, file.sha256) for file in report.files] == [
        (path.name, path.stat().st_size, sha256_of_file(path))
    ]


@pytest.mark.parametrize(
    ("keys", "name", "tower", "family"),
    [
        (["layers.0.attn.Wqkv.weight"], "answerdotai/ModernBERT-base", "answerdotai/ModernBERT-base", "Mammo-FM"),
        (["layers.0.attn.Wqkv.weight"], None, "a ModernBERT", "Mammo-FM"),
        (["encoder.layer.0.attention.self.query.weight"], None, "a BERT", None),
        (["encoder.layer.0.attention.self.query.weight"], "some/other", "some/other", None),
    ],
)
def test_mammo_fm_is_told_from_mammo_clip_by_its_text_tower(
    keys: list[str], name: str | None, tower: str, family: str | None, tmp_path: Path
) -> None:
    report = inspected(with_text_tower(keys, name), tmp_path / "fm.tar")
    assert (report.text_tower, report.family) == (tower, family)
    assert report.problem is None


@pytest.mark.parametrize(
    ("n_class", "name", "hint", "training"),
    [
        (1, "upmc_b5_period_n_lp_seed_10_best_aucroc.pth", "binary", "linear probe"),
        (3, "upmc_b5_period_n_ft_seed_10_best_acc.pth", "BI-RADS has 3", "fine-tuned"),
        (4, "density.pth", "density has 4", None),
    ],
)
def test_a_downstream_classifier_is_told_with_its_outputs(
    n_class: int, name: str, hint: str, training: str | None, tmp_path: Path
) -> None:
    report = inspected(fixture_downstream("b2", n_class=n_class, prefix="module."), tmp_path / name)
    assert (report.kind, report.variant, report.n_class) == ("downstream classifier", "b2", n_class)
    assert hint in str(report.outputs_hint)
    assert report.training == training
    assert report.data_parallel
    assert report.groups == {"image_encoder": 506, "classifier": 2}
    assert report.numbers == {"epoch": 4, "auroc": 0.979}


def test_b5_is_told_without_building_its_network(tmp_path: Path) -> None:
    made: list[torch.device] = []
    register = nn.Module.register_parameter

    def counting(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            made.append(parameter.device)
        register(self, name, parameter)

    path = tmp_path / "b5.pth"
    torch.save(fixture_downstream("b5"), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "register_parameter", counting)
        report = inspect_checkpoint(path)
    assert (report.variant, report.architecture, report.problem) == ("b5", "tf_efficientnet_b5", None)
    assert {device.type for device in made} == {"meta"}


def test_a_head_alone_and_a_text_encoder_alone_say_what_is_missing(tmp_path: Path) -> None:
    content = fixture_downstream("b2", n_class=4)
    content["model"] = {key: t for key, t in content["model"].items() if key.startswith("classifier.")}
    report = inspected(content, tmp_path / "head.pth")
    assert (report.kind, report.n_class, report.loads_with) == ("downstream classifier", 4, "load_mammo_clip")
    assert "give load_mammo_clip the pretraining checkpoint too, before this file" in str(report.problem)
    content["model"] = {"classifier.classification_head.weight": torch.zeros(2)}
    assert inspected(content, tmp_path / "no_matrix.pth").loads_with is None
    report = inspected({"model": {"text_encoder.weight": torch.zeros(2)}}, tmp_path / "text.tar")
    assert (report.kind, report.loads_with) == ("text encoder only", None)
    assert "no image encoder" in str(report.problem)
    report = inspected({"model": {"classifier.weight": torch.zeros(2)}}, tmp_path / "other_head.pth")
    assert (report.kind, report.loads_with) == ("downstream classifier", None)
    assert "no image encoder" in str(report.problem)


def test_what_the_loader_would_refuse_is_reported_and_not_raised(tmp_path: Path) -> None:
    content = fixture_downstream("b2")
    del content["model"]["image_encoder._conv_head.weight"]
    assert "another architecture" in str(inspected(content, tmp_path / "a.pth").problem)
    content = fixture_downstream("b2")
    del content["model"]["image_encoder._blocks.3._bn1.weight"]
    report = inspected(content, tmp_path / "b.pth")
    assert "1 missing (_blocks.3._bn1.weight)" in str(report.problem)
    assert report.loads_with is None
    sae = torch.load(TINY, weights_only=True)
    sae["tied_bias"] = sae["tied_bias"] + 1
    report = inspected(sae, tmp_path / "sae.pt")
    assert (report.kind, report.loads_with, report.d_in, report.d_sae) == ("mammo-sae", None, 64, 512)
    assert "differs from tied_bias" in str(report.problem)


@pytest.mark.parametrize(("weight", "said"), [(5, "is int"), (torch.zeros(4), r"is of shape \(4,\)")])
def test_an_encoder_weight_that_is_no_matrix_is_not_said_to_be_missing(weight: Any, said: str, tmp_path: Path) -> None:
    report = inspected({"encoder._weight": weight}, tmp_path / "sae.pt")
    assert (report.kind, report.loads_with) == ("mammo-sae", None)
    assert re.search(f"its encoder._weight {said}, not a tensor with 2 or 3 axes", str(report.problem))
    with pytest.raises(CheckpointFormatError, match=said):
        load_vision_sae(tmp_path / "sae.pt")


@pytest.mark.parametrize("has_axis", [True, False])
def test_a_mammo_sae_file_is_told_with_its_widths(has_axis: bool, tmp_path: Path) -> None:
    state_dict = {key: t if has_axis else t[0] for key, t in torch.load(TINY, weights_only=True).items()}
    report = inspected(state_dict, tmp_path / "sae.pt")
    assert (report.kind, report.loads_with, report.problem) == ("mammo-sae", "load_vision_sae", None)
    assert (report.d_in, report.d_sae, report.component_axis) == (64, 512, has_axis)
    assert report.n_parameters == 2 * 64 * 512 + 512 + 3 * 64
    assert report.groups["encoder"] == 2


def test_a_saelens_folder_is_told_and_one_in_training_form_and_weights_alone(tmp_path: Path) -> None:
    save_sae(load_vision_sae(TINY), tmp_path / "good")
    report = inspect_checkpoint(tmp_path / "good")
    assert (report.kind, report.architecture, report.problem) == ("saelens folder", "standard", None)
    assert report.loads_with == "load_vision_sae"
    assert (report.d_in, report.d_sae, report.hook_name, report.n_tensors) == (64, 512, "bn2.hook_out", 4)
    assert [file.name for file in report.files] == ["cfg.json", "sae_weights.safetensors"]
    BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=4, d_sae=8, k=2)).save_model(tmp_path / "bad")
    report = inspect_checkpoint(tmp_path / "bad")
    assert (report.kind, report.architecture, report.loads_with) == ("saelens folder", "batchtopk", "load_vision_sae")
    alone = inspect_checkpoint(tmp_path / "good" / "sae_weights.safetensors")
    assert (alone.kind, alone.d_in, alone.d_sae, alone.problem) == ("saelens weights", 64, 512, None)
    (tmp_path / "good" / "cfg.json").unlink()
    alone = inspect_checkpoint(tmp_path / "good" / "sae_weights.safetensors")
    assert (alone.kind, alone.loads_with) == ("saelens weights", None)
    assert "without the config that says how they are used" in str(alone.problem)


def test_a_classifier_that_this_package_saved_is_told(tmp_path: Path) -> None:
    path = tmp_path / "mass.safetensors"
    save_classifier(new_classifier("tinynet_e", 3, seed=0), path, metadata={"concept": "birads"})
    report = inspect_checkpoint(path)
    assert (report.kind, report.architecture, report.n_class) == ("saved classifier", "tinynet_e", 3)
    assert "BI-RADS" in str(report.outputs_hint)
    assert (report.loads_with, report.problem) == ("load_mammo_clip", None)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'version\\": 1', b'version\\": 9', 1))
    report = inspect_checkpoint(path)
    assert "format version 9" in str(report.problem)
    assert report.loads_with is None
    path.write_bytes(content.replace(b"tinynet_e", b"tinynet_z", 1))
    assert "did you mean tinynet_e" in str(inspect_checkpoint(path).problem)


def test_other_checkpoints_are_unknown_with_their_keys(tmp_path: Path) -> None:
    report = inspected({"state_dict": {"layer.weight": torch.zeros(2, 3)}, "epoch": np.int64(3)}, tmp_path / "a.pt")
    assert (report.kind, report.loads_with, report.groups) == ("unknown", None, {"layer": 1})
    assert (report.n_parameters, report.numbers) == (6, {"epoch": 3})
    assert inspected(torch.zeros(5), tmp_path / "b.pt").n_parameters == 5
    assert inspected({"model": {"layer.weight": torch.zeros(2)}}, tmp_path / "c.pt").kind == "unknown"
    save_file({"weight": torch.zeros(7)}, tmp_path / "d.safetensors")
    assert inspect_checkpoint(tmp_path / "d.safetensors").kind == "unknown"


def test_the_report_is_plain_json_even_with_odd_numbers(tmp_path: Path) -> None:
    content = {"model": {}, "auroc": float("nan"), "flag": True, "loss": np.float32(0.5), "note": "text"}
    report = inspected(content, tmp_path / "odd.pt")
    assert report.numbers == {"loss": 0.5}
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False)) == report.as_dict()
    assert report.as_dict()["files"][0]["name"] == "odd.pt"


def test_an_int_that_no_float_can_hold_is_left_out(tmp_path: Path) -> None:
    report = inspected({"huge": 10**400, "large": 10**300}, tmp_path / "huge.pt")
    assert report.numbers == {"large": 10**300}
    assert "large 1e+300" in report.as_text()


# -- what cannot be read -----------------------------------------------------------------------------------------------


def a_truncated_safetensors_file(path: Path) -> None:
    save_file({"W_dec": torch.zeros(100, 100)}, path)
    path.write_bytes(path.read_bytes()[:300])


def a_truncated_checkpoint(path: Path) -> None:
    torch.save({"model": torch.zeros(500)}, path)
    path.write_bytes(path.read_bytes()[:700])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("\n<!DOCTYPE html>\n<html><body>Sign in</body></html>"), "is a web page"),
        (lambda path: path.write_text("<?xml version='1.0'?><Error>AccessDenied</Error>"), "is a web page"),
        (
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
            "is a Git LFS pointer",
        ),
        (lambda path: path.write_text("epoch,auroc\n1,0.5\n" + "é" * 300), "text file, not a torch checkpoint"),
        (
            lambda path: path.write_text("class,auroc\nMass,0.9\n"),
            "text file, not a torch checkpoint: it begins 'class",
        ),
        (a_truncated_checkpoint, "truncated"),
        (a_truncated_safetensors_file, "truncated"),
        (lambda path: path.write_bytes(bytes(range(256)) * 4), "not a torch checkpoint (it is no pickle"),
        (lambda path: path.mkdir(), "holds no SAE: neither sparse_autoencoder_final.pt nor cfg.json and sae_weights"),
        (lambda path: None, "No such file"),
    ],
    ids=["empty", "html", "xml", "lfs", "text", "csv", "cut pickle", "cut safetensors", "noise", "folder", "missing"],
)
def test_a_file_that_is_no_checkpoint_gives_one_line_that_says_what_it_is(
    make: Callable[[Path], Any], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    make(path)
    with pytest.raises(InputError) as caught:
        inspect_checkpoint(path)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lfs_pointers_in_a_saelens_folder_are_told(tmp_path: Path) -> None:
    save_sae(load_vision_sae(TINY), tmp_path)
    (tmp_path / "sae_weights.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "Git LFS pointer" in str(inspect_checkpoint(tmp_path).problem)
    with pytest.raises(CheckpointFormatError, match="Git LFS pointer"):
        load_vision_sae(tmp_path)


class Malicious:
    """A pickle of this writes the file when it is run."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, (f"open({str(self.marker)!r}, 'w').close()",)


def test_a_malicious_file_is_refused_by_the_name_that_it_asks_for_and_not_run(tmp_path: Path) -> None:
    torch.save({"model": Malicious(tmp_path / "it_ran")}, tmp_path / "evil.pt")
    with pytest.raises(UnsafeCheckpointError, match="asks for exec,"):
        inspect_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "it_ran").exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)  # so that the check above can fail
    assert (tmp_path / "it_ran").exists()


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_prints_the_report_for_people_and_for_programs() -> None:
    report = CliRunner().invoke(app, ["inspect", str(TINY)])
    assert report.exit_code == 0
    lines = dict(line.split("  ", 1) for line in report.stdout.splitlines())
    assert lines["kind"].strip() == "mammo-sae"
    assert lines["width, latents"].strip() == "64, 512"
    assert sha256_of_file(TINY) in report.stdout
    found = json.loads(CliRunner().invoke(app, ["inspect", str(TINY), "--json"]).stdout)
    assert found == inspect_checkpoint(str(TINY)).as_dict()


def test_the_command_ends_with_one_line_and_code_2_on_a_bad_file(tmp_path: Path) -> None:
    (tmp_path / "page.pt").write_text("<html></html>")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "page.pt")])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.strip() == (
        f"mammosae: {tmp_path / 'page.pt'} is a web page, not a torch checkpoint; download the file itself, not the "
        "page about it"
    )


def test_the_command_ends_with_code_0_on_a_file_that_it_can_tell_but_that_does_not_load(tmp_path: Path) -> None:
    torch.save({"model": {"text_encoder.weight": torch.zeros(2)}}, tmp_path / "text.tar")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "text.tar")])
    assert result.exit_code == 0
    assert "no image encoder" in result.stdout
    assert "loads with" not in result.stdout
