from pathlib import Path

import pytest
import yaml
from helpers_study import layered_settings, study_settings, write_study

from mammosae_plugin.config import describe_settings, load_config, portable_config
from mammosae_plugin.errors import InputError


@pytest.fixture
def settings(tmp_path, phantom_root):
    return study_settings(tmp_path, phantom_root)


def test_the_commented_example_is_valid_and_means_the_papers_setting():
    config = load_config(Path(__file__).parent.parent / "examples" / "study.yaml")
    assert config.report.paper_setting
    assert not config.report.include_images
    assert config.data.unit == "finding_row"
    assert config.data.image_size == (1520, 912)
    assert [model.name for model in config.models] == ["pretrained", "finetuned"]


def test_the_defaults_of_sae_training_are_the_papers(settings, tmp_path):
    settings["sae"] = {"train": {"model": "finetuned", "concept": "Mass"}}
    source = load_config(write_study(tmp_path, settings)).sae.train
    training = source.training
    assert (training.epochs, training.lr, training.sparsity, training.batch_size) == (200, 3e-4, 3e-5, 4096)
    assert (training.expansion_factor, source.fraction) == (8, 0.25)


def test_positions_are_kept_by_share_or_by_number(settings, tmp_path):
    source = {"model": "finetuned", "concept": "Mass", "count": 348, "dtype": "float16", "autocast": "bfloat16"}
    settings["sae"] = {"train": source}
    kept = load_config(write_study(tmp_path, settings)).sae.train
    assert (kept.count, kept.dtype, kept.autocast, kept.fold_batch_norms) == (348, "float16", "bfloat16", False)
    settings["sae"]["train"] = source | {"fraction": 0.25}
    with pytest.raises(InputError, match=r"sae\.train: give the positions to keep .* not as both"):
        load_config(write_study(tmp_path, settings))
    settings["sae"]["train"] = source | {"dtype": "float8"}
    with pytest.raises(InputError, match=r"sae\.train\.dtype: .*'float32', 'float16' or 'bfloat16'"):
        load_config(write_study(tmp_path, settings))


@pytest.mark.parametrize("name", ["count", "dtype", "autocast", "fold_batch_norms"])
def test_the_settings_of_the_store_are_listed(name):
    assert f"\nsae.train.{name}: " in describe_settings()


def test_relative_paths_count_from_the_files_folder(settings, tmp_path, monkeypatch):
    settings["output"] = "out"
    settings["sae"] = {"path": "sae"}
    file = write_study(tmp_path / "deep", settings)
    monkeypatch.chdir(tmp_path)
    config = load_config(file)
    assert config.output == tmp_path / "deep" / "out"
    assert config.sae.path == tmp_path / "deep" / "sae"


def test_a_place_on_the_hub_is_no_path(settings, tmp_path):
    settings["sae"] = {"path": "hf://KKNakka/MammoSAE@main/sae.pt"}
    settings["models"][0]["classifiers"]["Mass"] = "hf://owner/name/mass.pth"
    config = load_config(write_study(tmp_path, settings))
    assert config.sae.path == "hf://KKNakka/MammoSAE@main/sae.pt"
    assert config.models[0].classifiers["Mass"] == "hf://owner/name/mass.pth"
    assert portable_config(config)["sae"]["path"] == "hf://KKNakka/MammoSAE@main/sae.pt"


def test_overrides_replace_and_can_say_everything(settings, tmp_path):
    file = write_study(tmp_path, settings)
    config = load_config(file, ["analysis.n_bootstrap=300", "models.0.name=probe", "data.unit=finding_row"])
    assert config.analysis.n_bootstrap == 300
    assert config.models[0].name == "probe"
    assert config.data.unit == "finding_row"
    flags = [
        f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()}"
        for key, value in settings.items()
    ]
    flags = [flag.removesuffix("\n...") for flag in flags]
    assert load_config(None, flags) == load_config(file)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("consepts", ["Mass"], "unknown setting 'consepts' (did you mean 'concepts'?)"),
        ("data.untis", "image", "unknown setting 'data.untis' (did you mean 'unit'?)"),
        ("analysis.n_bootstrap", 3, "analysis.n_bootstrap: Input should be greater than or equal to 100"),
        ("analysis.n_controls", 5, "analysis.n_controls: Input should be greater than or equal to 20"),
        ("analysis.ks", [], "analysis.ks: Tuple should have at least 1 item"),
        ("analysis.ks", [-1], "analysis.ks.0: Input should be greater than or equal to 0"),
        ("models.0.name", "..", "models.0.name: String should match pattern"),
        ("device", "abacus", "device: 'abacus' is not available on this machine; use cpu"),
        ("analysis.score", "median", "analysis.score: Input should be 'centered_mean' or 'mean'"),
        ("models.0.classifiers", {"Mass": "x.pth"}, "has no classifier for Suspicious_Calcification"),
        ("models.0.train", {"kind": "finetuned"}, "give either `classifiers` (files) or `train` (settings)"),
        ("models.1.name", "pretrained", "two models have the same name"),
        ("sae", {}, "give one of `path`, `paths` (a file for each of `layers`) and `train`"),
        ("sae", {"path": "a", "paths": {"layer_1": "b"}}, "give one of `path`, `paths`"),
        ("sae", {"paths": {"layer_1": "b"}}, "an SAE for layer_1, but `layers` are not given"),
        ("layers", [], "layers: Tuple should have at least 1 item"),
        ("layers", ["layer_1", "layer_1"], "a layer is named twice (layer_1, layer_1)"),
        ("layers", ["layer_1", "layer_2"], "sae.path is one SAE, but `layers` are several; give sae.paths"),
        ("analysis.inner_controls", 0, "analysis.inner_controls: Input should be greater than or equal to 1"),
        (
            "sae",
            {"train": {"model": "other", "concept": "Mass"}},
            "trained on other/Mass, which the study does not have",
        ),
        ("concepts", ["Mass", "Mass"], "a concept is named twice"),
    ],
)
def test_a_wrong_setting_is_one_line_with_its_place(settings, tmp_path, path, value, message):
    node = settings
    *parents, leaf = path.split(".")
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node[part]
    node[int(leaf) if isinstance(node, list) else leaf] = value
    with pytest.raises(InputError) as caught:
        load_config(write_study(tmp_path, settings))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "study.yaml" in str(caught.value)


def test_saes_must_be_given_for_exactly_the_layers(settings, tmp_path):
    settings["layers"] = ["layer_1", "layer_2"]
    settings["sae"] = {"paths": {"layer_1": "one", "layer_3": "three"}}
    with pytest.raises(
        InputError, match=r"sae\.paths has an SAE for layer_1, layer_3, but `layers` are layer_1, layer_2"
    ):
        load_config(write_study(tmp_path, settings))
    settings["sae"]["paths"] = {"layer_2": "two", "layer_1": "one"}
    paths = load_config(write_study(tmp_path, settings)).sae.paths
    assert paths == {"layer_1": tmp_path / "one", "layer_2": tmp_path / "two"}


def test_one_sae_will_do_for_one_named_layer(settings, tmp_path):
    settings["layers"] = ["layer_2"]
    assert load_config(write_study(tmp_path, settings)).layers == ("layer_2",)


@pytest.mark.parametrize("installed", [True, False])
def test_grad_cam_without_captum_is_refused_when_the_configuration_is_read(settings, tmp_path, monkeypatch, installed):
    settings["analysis"]["gradcam"] = True
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    file = write_study(tmp_path, settings)
    if installed:
        assert load_config(file).analysis.gradcam
    else:
        with pytest.raises(InputError, match=r"analysis\.gradcam: .*pip install 'mammosae-plugin\[gradcam\]'"):
            load_config(file)


def test_all_wrong_settings_are_said_at_once(settings, tmp_path):
    settings["sede"] = 1
    del settings["concepts"]
    with pytest.raises(InputError, match=r"concepts is missing; unknown setting 'sede' \(did you mean 'seed'\?\)"):
        load_config(write_study(tmp_path, settings))


def test_a_file_that_is_missing_or_no_yaml_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the configuration .*nothing\.yaml: No such file"):
        load_config(tmp_path / "nothing.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1, 2\nb: }")
    with pytest.raises(InputError, match=r"bad\.yaml is not valid YAML") as caught:
        load_config(tmp_path / "bad.yaml")
    assert "\n" not in str(caught.value)
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(InputError, match="must hold settings"):
        load_config(tmp_path / "list.yaml")


def test_an_override_of_nothing_is_refused(settings, tmp_path):
    file = write_study(tmp_path, settings)
    with pytest.raises(InputError, match="not of the form"):
        load_config(file, ["seed"])
    with pytest.raises(InputError, match=r"there is no setting 'models\.7\.name'"):
        load_config(file, ["models.7.name=x"])


def test_every_setting_is_described():
    lines = describe_settings().splitlines()
    assert any(line.startswith("analysis.n_bootstrap: ") and "default 1000" in line for line in lines)
    assert any(line.startswith("models[].train.epochs: ") for line in lines)
    assert any(line.startswith("layers: ") and "work/layer-outputs" in line and "deleted" in line for line in lines)
    assert any(line.startswith("sae.train.training.sparsity: ") and "3e-05" in line for line in lines)
    assert all(line.split(": ", 1)[1].split(" (")[0].strip() for line in lines)


def test_the_shown_configuration_holds_no_path(settings, tmp_path, phantom_root):
    shown = portable_config(load_config(write_study(tmp_path, settings)))
    assert str(tmp_path) not in str(shown)
    assert shown["sae"]["path"] == "sae"
    layered = portable_config(load_config(write_study(tmp_path, layered_settings(tmp_path, phantom_root))))
    assert layered["sae"]["paths"] == {"layer_6": "sae-layer_6", "layer_10": "sae-layer_10"}
