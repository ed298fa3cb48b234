"""The command line as a user meets it: help, one clear line for bad input, exit codes."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_study import mammosae, mammosae_process, results_of, save_random_sae, study_settings, write_study
from PIL import Image
from typer.main import get_command

from mammosae_plugin import __version__
from mammosae_plugin.adapters import new_classifier, save_classifier
from mammosae_plugin.cli import app

STEPS = ("classify", "extract", "train", "encode", "probe", "intervene", "localize", "evidence", "report")
ANNOTATIONS = "vindr_detection_v1_folds.csv"


@pytest.fixture(scope="module")
def done(tmp_path_factory, phantom_root):
    """A study that ran through the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("study")
    file = write_study(folder, study_settings(folder, phantom_root))
    return file, mammosae_process("study", "--config", file)


@pytest.fixture
def settings(done, tmp_path, phantom_root):
    """Settings whose files are those of the finished study and whose data can be spoiled."""
    root = tmp_path / "data"
    shutil.copytree(phantom_root, root)
    found = study_settings(done[0].parent, root)
    found["output"] = str(tmp_path / "out")
    return found


def refused(file, *arguments):
    """The one line that a command prints when it refuses its input."""
    result = mammosae("study", "--config", file, *arguments)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    line = result.stderr.replace("\r", "\n").strip().splitlines()[-1]
    assert line.startswith("mammosae: ")
    return line


def test_help_names_every_command_and_every_command_explains_itself():
    top = mammosae_process("--help")
    assert top.returncode == 0
    for step in ("study", "demo", *STEPS):
        assert step in top.stdout
        assert "--debug" in mammosae(step, "--help").stdout


def test_no_help_loses_words_in_brackets():
    """Rich takes words in brackets for markup, and prints nothing where they stand."""

    def texts(command):
        yield from (command.help or "", *(getattr(one, "help", None) or "" for one in command.params))
        for inner in getattr(command, "commands", {}).values():
            yield from texts(inner)

    assert [text for text in texts(get_command(app)) if re.search(r"\[[a-z#/@]", text)] == []


@pytest.mark.parametrize("kind", ["sae", "model", "findings", "space"])
def test_whatever_is_published_can_be_told_how_small_a_group_is_too_small(kind):
    refused = mammosae("publish", kind, "nothing", "someone/name", "--min-group", "0")
    assert refused.returncode == 2
    assert "invalid value for '--min-group': must be at least 1, not '0'" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["study", "a.yaml", "b.yaml"], "b.yaml"),
        (["study", "--nosuch"], "no such option: --nosuch; see `mammosae study --help`"),
        (["study", "--set"], "--set"),
        (["stud"], "no such command 'stud'"),
        (["publish", "saes"], "no such command 'saes'"),
        (["note", "abc"], "must be a whole number, not 'abc'; see `mammosae note --help`"),
        (["publish", "sae", "x", "a/b", "--min-group", "five"], "must be a whole number, not 'five'"),
        (["compare", "a"], "missing argument"),
        (["report", "."], "is a folder; name the study's YAML file"),
    ],
)
def test_a_wrong_use_ends_with_one_line_of_our_own(arguments, said):
    refused = mammosae(*arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith("mammosae: ")
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_group_of_commands_alone_answers_with_its_help():
    for said in ([], ["publish"]):
        assert "Commands" in "".join([(done := mammosae(*said)).stdout, done.stderr])


def test_a_study_prints_the_main_figures_and_the_reports_place(done):
    file, result = done
    assert result.returncode == 0, result.stderr
    assert "pretrained/Mass: AUROC" in result.stdout
    assert str(file.parent / "out" / "results" / "report.html") in result.stdout


def test_a_study_leaves_everything_that_is_promised(done):
    results = done[0].parent / "out" / "results"
    for name in ("report.html", "results.json", "class_means.parquet"):
        assert (results / name).stat().st_size > 0
    figures = {path.name for path in (results / "figures").iterdir()}
    for concept in ("Mass", "Suspicious_Calcification"):
        assert f"figure_2_{concept}.png" in figures
        for model in ("pretrained", "finetuned"):
            assert {f"figure_3_{model}_{concept}.png", f"figure_4_{model}_{concept}.png"} <= figures
    tables = {path.name for path in (results / "tables").iterdir()}
    for table in ("table_1", "table_2"):
        assert {f"{table}.csv", f"{table}.md", f"{table}.tex"} <= tables
    assert not list((done[0].parent / "out").rglob(".tmp-*"))


def test_no_file_of_a_study_names_a_path_of_the_machine(done, phantom_root):
    results = done[0].parent / "out" / "results"
    for path in results.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for secret in (str(done[0].parent), str(phantom_root)):
                assert secret.encode() not in content, path


def test_running_again_changes_no_byte_of_the_results(done):
    out = done[0].parent / "out" / "results"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert mammosae("study", "--config", done[0]).returncode == 0
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("step", "said"),
    [("probe", "with_sae"), ("intervene", "activate"), ("localize", "percentile 95"), ("evidence", "latents fire")],
)
def test_a_step_prints_its_result(done, step, said):
    result = mammosae(step, "--config", done[0])
    assert result.returncode == 0, result.stderr
    assert said in result.stdout


def test_without_a_configuration_the_way_out_is_said():
    result = mammosae("study")
    assert result.returncode == 2
    assert "--config study.yaml" in result.stderr
    assert "analysis.n_bootstrap" in mammosae("study", "--settings").stdout


def test_a_study_is_named_with_or_without_the_flag_but_not_twice(settings, tmp_path):
    settings["data"]["root"] = str(tmp_path / "nowhere")
    file = write_study(tmp_path, settings)
    for step in ("study", "probe"):
        result = mammosae(step, file)
        assert result.returncode == 2
        assert "nowhere" in result.stderr
    twice = mammosae("study", file, "--config", file)
    assert twice.returncode == 2
    assert "both name the study; give one" in twice.stderr


def test_a_misspelt_key_is_refused_with_the_nearest_one(settings, tmp_path):
    settings["analysis"]["n_bootstraps"] = 100
    assert "unknown setting 'analysis.n_bootstraps' (did you mean 'n_bootstrap'?)" in refused(
        write_study(tmp_path, settings)
    )


def test_a_missing_folder_is_refused(settings, tmp_path):
    settings["data"]["root"] = str(tmp_path / "nowhere")
    assert "nowhere" in refused(write_study(tmp_path, settings))


def test_a_csv_without_a_column_with_a_duplicate_row_and_a_patient_in_both_splits_is_refused_at_once(
    settings, tmp_path
):
    file = tmp_path / "data" / ANNOTATIONS
    table = pd.read_csv(file)
    patient = table["patient_id"][table["split"] == "test"].iloc[0]
    rows = table.index[table["patient_id"] == patient]
    table.loc[rows[0], "split"] = "training"
    table = pd.concat([table, table.iloc[[5]]]).drop(columns="Asymmetry")
    table.to_csv(file, index=False)
    line = refused(write_study(tmp_path, settings))
    assert "Asymmetry" in line
    table.assign(Asymmetry=0).to_csv(file, index=False)
    line = refused(write_study(tmp_path, settings))
    assert patient in line
    assert "duplicate" in line or "twice" in line or "repeat" in line


def test_a_missing_image_is_refused_and_named(settings, tmp_path):
    missing = next((tmp_path / "data" / "images_png").rglob("*.png"))
    missing.unlink()
    assert missing.name in refused(write_study(tmp_path, settings))


def test_bad_images_go_to_quarantine_and_the_study_goes_on_until_there_are_too_many(settings, tmp_path):
    images = sorted((tmp_path / "data" / "images_png").rglob("*.png"))
    Image.fromarray(np.full((96, 64), 7, dtype=np.uint8)).save(images[0])
    images[1].write_bytes(images[1].read_bytes()[:200])
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 64), dtype=np.uint8)).save(images[2])
    settings["data"]["max_bad_share"] = 0.2
    settings["models"], settings["concepts"] = settings["models"][:1], ["Mass"]
    settings["analysis"] |= {"top": 3, "error_term": False}
    file = write_study(tmp_path, settings)
    assert mammosae("study", "--config", file).returncode == 0
    results = results_of(tmp_path / "out")
    assert {row["image_id"] for row in results["data"]["quarantine"]} == {path.name for path in images[:3]}
    listed = pd.read_csv(next((tmp_path / "out" / "work").glob("quarantine-*.csv")))
    assert sorted(listed["image_id"]) == [path.name for path in images[:3]]
    assert listed["reason"].nunique() == 3
    for _ in range(2):  # the second run finds the first one's quarantine file
        assert "3 of 48" in refused(file, "--set", "data.max_bad_share=0.01", "--output", tmp_path / "other")


def test_a_concept_that_the_data_lack_is_refused_with_the_nearest(settings, tmp_path):
    settings["concepts"] = ["Masss"]
    for model in settings["models"]:
        model["classifiers"]["Masss"] = model["classifiers"]["Mass"]
    assert "'Masss'" in (line := refused(write_study(tmp_path, settings)))
    assert "Mass" in line.replace("Masss", "")


def test_a_class_without_a_positive_image_is_refused(settings, tmp_path):
    settings["concepts"] = ["Suspicious_Lymph_Node"]
    for model in settings["models"]:
        model["classifiers"] = {"Suspicious_Lymph_Node": model["classifiers"]["Mass"]}
    line = refused(write_study(tmp_path, settings))
    assert "training split has no positive image for Suspicious_Lymph_Node" in line


def test_a_checkpoint_of_another_architecture_is_refused(settings, tmp_path):
    torch.save({"model": {"image_encoder.layer1.weight": torch.zeros(3, 3)}}, tmp_path / "resnet.pth")
    settings["models"][0]["classifiers"]["Mass"] = str(tmp_path / "resnet.pth")
    assert "resnet.pth" in refused(write_study(tmp_path, settings))


def test_a_classifier_of_another_number_of_classes_is_refused(settings, tmp_path):
    save_classifier(new_classifier("tinynet_e", 4, seed=0), tmp_path / "density.safetensors", metadata={})
    settings["models"][0]["classifiers"]["Mass"] = str(tmp_path / "density.safetensors")
    assert "density.safetensors has 4 outputs, but Mass has 2 classes" in refused(write_study(tmp_path, settings))
    for said in ({"concepts": ["Suspicious_Calcification"]}, {"concept": "Suspicious_Calcification"}):
        save_classifier(new_classifier("tinynet_e", 1, seed=0), tmp_path / "density.safetensors", metadata=said)
        assert (
            "density.safetensors is given as the classifier for Mass of model pretrained, but its own metadata say "
            "that it is for Suspicious_Calcification; give the file for Mass"
        ) in refused(write_study(tmp_path, settings))


def test_an_sae_of_another_width_is_refused(settings, tmp_path):
    settings["sae"]["path"] = str(save_random_sae(tmp_path / "narrow", 48))
    line = refused(write_study(tmp_path, settings))
    assert "width 48" in line
    assert "1280" in line


def test_an_unknown_layer_is_refused_with_the_nearest_names(settings, tmp_path):
    line = refused(write_study(tmp_path, settings), "--set", "layers=[layer_66]")
    assert "layer_66" in line
    assert "did you mean layer_6" in line


def test_a_missing_sae_and_a_missing_checkpoint_are_refused(settings, tmp_path):
    settings["sae"]["path"] = str(tmp_path / "none.pt")
    assert "none.pt" in refused(write_study(tmp_path, settings))
    settings["models"][0]["classifiers"]["Mass"] = str(tmp_path / "absent.pth")
    assert "absent.pth" in refused(write_study(tmp_path, settings))


def test_an_output_that_cannot_be_written_is_one_line(settings, tmp_path):
    (tmp_path / "file").write_text("")
    settings["output"] = str(tmp_path / "file" / "out")
    result = mammosae("study", "--config", write_study(tmp_path, settings))
    assert result.returncode in (1, 2)
    assert "Traceback" not in result.stderr
    assert "file" in result.stderr.replace("\r", "\n").strip().splitlines()[-1]


def test_debug_shows_the_traceback(settings, tmp_path):
    settings["sae"]["path"] = str(tmp_path / "none.pt")
    result = mammosae_process("study", "--config", write_study(tmp_path, settings), "--debug")
    assert result.returncode != 0
    assert "Traceback" in result.stderr


def test_help_comes_without_importing_torch():
    import subprocess
    import sys

    script = "import sys; import mammosae_plugin.cli; assert not {'torch', 'pandas', 'sae_lens'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_command_tells_its_version_without_loading_torch():
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mammosae_plugin", "--version"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (told.returncode, told.stdout) == (0, f"mammosae-plugin {__version__}\n")
    assert " torch\n" not in told.stderr
