import re
from datetime import date
from pathlib import Path

import pytest
import yaml
from helpers_study import layered_settings, study_settings, write_study
from pydantic import BaseModel

from mammosae_plugin.config import StudyConfig, describe_settings, load_config, portable_config
from mammosae_plugin.errors import InputError
from mammosae_plugin.training import ClassifierTraining, SAETraining
from mammosae_plugin.validation import sections_in


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
    with pytest.raises(InputError, match=r"sae\.train\.dtype: .*'float32', 'float16', 'bfloat16'"):
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
        ("analysis.n_bootstrap", 3, "analysis.n_bootstrap: must be at least 100, not the number 3"),
        ("analysis.n_controls", 5, "analysis.n_controls: must be at least 20"),
        ("analysis.ks", [], "analysis.ks: needs at least 1 entry"),
        ("analysis.ks", [-1], "analysis.ks.0: must be at least 0"),
        ("models.0.name", "..", "models.0.name: must be letters, digits and _.-"),
        ("device", "abacus", "device: 'abacus' is not available on this machine; use cpu"),
        (
            "analysis.score",
            "median",
            "analysis.score: must be one of 'centered_mean', 'mean', 'overall_mean', not 'median'",
        ),
        ("models.0.classifiers", {"Mass": "x.pth"}, "has no classifier for Suspicious_Calcification"),
        ("models.0.train", {"kind": "finetuned"}, "give either `classifiers` (files) or `train` (settings)"),
        ("models.1.name", "pretrained", "two models have the same name"),
        ("sae", {}, "give one of `path`, `paths` (a file for each of `layers`) and `train`"),
        ("sae", {"path": "a", "paths": {"layer_1": "b"}}, "give one of `path`, `paths`"),
        ("sae", {"paths": {"layer_1": "b"}}, "an SAE for layer_1, but `layers` are not given"),
        ("layers", [], "layers: needs at least 1 entry"),
        ("layers", ["layer_1", "layer_1"], "a layer is named twice (layer_1, layer_1)"),
        ("layers", ["layer_1", "layer_2"], "sae.path is one SAE, but `layers` are several; give sae.paths"),
        ("analysis.inner_controls", 0, "analysis.inner_controls: must be at least 1"),
        (
            "sae",
            {"train": {"model": "other", "concept": "Mass"}},
            "trained on other/Mass, which the study does not have",
        ),
        (
            "sae",
            {"train": {"model": "pretrained", "concept": "Mass", "training": {"normalize_activations": "unit_l2"}}},
            "normalize_activations unit_l2 is for SAEs on one vector per image",
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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nbatch_size: 2\nseed: 3", "study.yaml, line 3: 'seed' is given twice (first in line 1)"),
        (
            "analysis:\n  top: 3\n  percentile: 9\n  top: 4",
            "study.yaml, line 4: 'top' is given twice (first in line 2)",
        ),
        ("concepts: [Mass]\nsae: {path: a,\n  path: b}", "line 3: 'path' is given twice"),
        ("models:\n- name: a\n- name: b\n  1: x\n  '1': y", "line 5: '1' is given twice"),
        ("analysis:\nreport:\n  title: x\nanalysis:\n  top: 1", "line 4: 'analysis' is given twice"),
    ],
)
def test_a_setting_that_is_given_twice_is_refused_with_both_lines(tmp_path, text, said):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(InputError, match="one would count; remove one") as caught:
        load_config(tmp_path / "study.yaml")
    assert said in str(caught.value)


def test_yaml_may_merge_and_replace_what_it_merges(settings, tmp_path):
    settings["models"] = "MODELS"
    text = yaml.safe_dump(settings).replace(
        "MODELS", "[&m {name: a, classifiers: {Mass: m, Suspicious_Calcification: s}}, {<<: *m, name: b}]"
    )
    (tmp_path / "study.yaml").write_text(text)
    assert [model.name for model in load_config(tmp_path / "study.yaml").models] == ["a", "b"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["analysis.top=3", "seed=1", "analysis.top=4"], "--set gives analysis.top twice"),
        (["analysis.top=3", "analysis={percentile: 50}"], "--set gives analysis.top twice"),
        (["report.title=[draft] Run 3"], 'no list or section; put it in quotes if it is text: "[draft] Run 3"'),
        (["analysis={top: 3, top: 4}"], "--set analysis: the value '{top: 3, top: 4}', line 1: 'top' is given twice"),
        (["output=other"], "output is given by --set and by its own flag"),
    ],
)
def test_a_setting_that_flags_give_twice_is_refused(settings, tmp_path, overrides, said):
    with pytest.raises(InputError) as caught:
        load_config(write_study(tmp_path, settings), overrides, replace={"output": tmp_path})
    assert said in str(caught.value)


def test_a_section_of_a_flag_may_be_refined_by_a_later_one(settings, tmp_path):
    config = load_config(write_study(tmp_path, settings), ["analysis={percentile: 50}", "analysis.top=4"])
    assert (config.analysis.percentile, config.analysis.top) == (50, 4)


@pytest.mark.parametrize(
    ("given", "title"),
    [
        ("Run 3: Mass: second try", "Run 3: Mass: second try"),
        ("Study #3 of 5", "Study #3 of 5"),
        ("...", "..."),
        ("a=b", "a=b"),
        ("Mass: yes", "Mass: yes"),
        ("- draft -", "- draft -"),
        ("50 % of all, [sic]", "50 % of all, [sic]"),
        ("*starred* & tagged! `code` @home %x", "*starred* & tagged! `code` @home %x"),
        ('"2024"', "2024"),
        ("'it''s'", "it's"),
    ],
)
def test_colons_and_hashes_on_the_command_line_are_text(settings, tmp_path, given, title):
    assert load_config(write_study(tmp_path, settings), [f"report.title={given}"]).report.title == title


def test_values_of_the_command_line_have_the_types_of_yaml(settings, tmp_path):
    overrides = ["seed=7", "analysis.percentile=9.5e1", "data.phantom=true", "analysis.ks=[0, 3]", "layers=null"]
    config = load_config(write_study(tmp_path, settings), [*overrides, "analysis.error_term=no", "sae.path=#1.pt"])
    assert (config.seed, config.analysis.percentile, config.data.phantom) == (7, 95, True)
    assert (config.analysis.ks, config.layers, config.analysis.error_term) == ((0, 3), None, False)
    assert config.sae.path.name == "#1.pt"


def test_names_that_hold_dots_stand_in_quotes_and_empty_sections_can_be_filled(settings, tmp_path):
    settings |= {"layers": ["blocks.3"], "sae": {"paths": None}, "report": None}
    file = write_study(tmp_path, settings)
    config = load_config(file, ['sae.paths."blocks.3"=x.pt', "report.title=Mine"])
    assert config.sae.paths["blocks.3"].name == "x.pt"
    assert config.report.title == "Mine"


@pytest.mark.parametrize("key", ["", ".", "a.", ".a", "a..b", "'a", "a'b'", "a b=c.d'"])
def test_what_is_no_key_is_refused(settings, tmp_path, key):
    with pytest.raises(InputError, match=r"--set .* (is not of the form key.subkey=value|there is no setting)|unknown"):
        load_config(write_study(tmp_path, settings), [f"{key}=1"])


def test_empty_sections_are_those_of_the_defaults(settings, tmp_path):
    settings |= {"analysis": None, "report": None}
    config = load_config(write_study(tmp_path, settings))
    assert config.analysis.top == 10
    assert config.report.n_images == 4
    settings["data"] = None
    with pytest.raises(InputError, match=r"data\.root is missing"):
        load_config(write_study(tmp_path, settings))
    settings["sae"] = {"train": None}
    with pytest.raises(InputError, match="`train:` is empty, so say on which model and concept"):
        load_config(write_study(tmp_path, settings))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("models.0.name", 2024, "must be text, not the number 2024, as which YAML reads it; write it in quotes"),
        ("models.0.name", True, "must be text, not true, as which YAML reads it; write it in quotes"),
        (
            "concepts",
            "Mass, Suspicious_Calcification",
            "must be a list, not 'Mass, Suspicious_Calcification'; write [Mass",
        ),
        ("analysis.top", True, "must be a whole number, not 'true'"),
        ("analysis.ks", [1, False], "must be a whole number, not 'false'"),
        ("analysis.top", 2.5, "must be a whole number, not the number 2.5"),
        ("analysis.n_bootstrap", "1e3", "must be a whole number, not '1e3'; write 1000"),
        ("data.image_size", "1520x912", "must be a list, not '1520x912'; write [1520, 912]"),
        ("analysis.percentile", 0.95, "percentile is in percent: did you mean 95?"),
        ("analysis.percentile", "high", "must be a number, not 'high'"),
        ("analysis.error_term", "perhaps", "must be true or false, not 'perhaps'"),
        ("data.root", None, "is empty, but must be a path; give a value, or leave the line out"),
        (
            "data.unit",
            "images",
            "must be one of 'image', 'finding_row', 'breast', 'exam', 'patient', not 'images' (did you mean 'image'?)",
        ),
        ("analysis", "all", "must be a section of settings (name: value), not 'all'"),
        ("models", {"name": "a"}, "must be a list, not a section of settings"),
    ],
)
def test_a_value_of_another_type_is_told_with_what_is_wanted(path, value, said):
    with pytest.raises(InputError) as caught:
        StudyConfig.checked(_with(path, value), where="study.yaml")
    place = f"{path}.1" if isinstance(value, list) else path
    assert str(caught.value).startswith(f"study.yaml: {place}: {said}")


def _all_places(section, prefix=""):
    for name, field in section.model_fields.items():
        place = f"{prefix}{name}"
        yield place
        for inner in sections_in(field.annotation):
            yield from _all_places(inner, f"{place}.0." if name == "models" else f"{place}.")


PLACES = sorted(_all_places(StudyConfig))
WRONG = [None, True, -1, 0, 2.5, float("inf"), float("nan"), "", "text", [], ["a"], [None], {}, {"a": 1}, {1: None}]
WRONG += [[[1]], [{"name": 5}], date(2026, 11, 29), b"bytes", 10**30]
THEIRS = re.compile(
    r"pydantic|input should|validation error|after valid|validator|value error|instance of|field required|extra inputs|"
    r"unable to parse|"
    r"\btuple\b|\bdict|\bstr\b|\bint\b|\bNoneType\b|\[type=|keyword|finite_number|\bstring\b|something else|union",
    re.IGNORECASE,
)


def _with(path, value):
    """A small study's settings of which one has another value."""
    settings = {
        "output": "out",
        "data": {"root": "data"},
        "concepts": ["Mass"],
        "models": [{"name": "a", "classifiers": {"Mass": "mass.pth"}}],
        "sae": {"path": "sae.pt"},
    }
    if path.startswith("sae.train."):
        settings["sae"] = {"train": {"model": "a", "concept": "Mass"}}
    if path.startswith("models.0.train."):
        settings["models"] = [{"name": "a", "encoder": "b5.tar", "train": {}}]
    node = settings
    *parents, leaf = path.split(".")
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
    node[leaf] = value
    return settings


@pytest.mark.parametrize("place", PLACES)
def test_no_setting_of_a_wrong_type_brings_out_the_words_of_a_library(place):
    refused = 0
    for value in WRONG:
        try:
            StudyConfig.checked(_with(place, value), where="study.yaml")
        except InputError as error:
            refused += 1
            assert "\n" not in str(error), value
            assert not THEIRS.search(str(error)), (value, str(error))
    assert refused >= 5


def test_settings_made_in_python_say_what_is_wrong_in_our_words():
    for make in (
        lambda: SAETraining(lr="fast", batch_size=[1], k={}),
        lambda: ClassifierTraining(epochs=0, kind="probe", nothing=1),
        lambda: StudyConfig(output=3),
        lambda: setattr(SAETraining(), "lr", 1.0),
    ):
        with pytest.raises(InputError) as caught:
            make()
        assert not THEIRS.search(str(caught.value)), caught.value
        assert "\n" not in str(caught.value)


def test_the_example_of_a_study_of_embeddings_loads():
    config = load_config(Path(__file__).parent.parent / "examples" / "study_embeddings.yaml")
    assert [model.weights for model in config.models] == [None, "random"]
    assert len(config.sae.settings) == 3 and {one.architecture for one in config.sae.settings.values()} == {
        "matryoshka_batchtopk"
    }


def test_every_setting_is_described():
    lines = describe_settings().splitlines()
    assert any(line.startswith("analysis.n_bootstrap: ") and "default 1000" in line for line in lines)
    assert any(line.startswith("models[].train.epochs: ") for line in lines)
    assert any(line.startswith("layers: ") and "work/layer-outputs" in line and "deleted" in line for line in lines)
    assert any(line.startswith("sae.train.training.sparsity: ") and "3e-05" in line for line in lines)
    assert (
        lines.count(
            "kind: maps: SAEs on the positions of feature maps; embeddings: on one vector per image. (default maps)"
        )
        == 1
    )
    assert any(line.startswith("sae.grid: ") for line in lines)
    assert all(line.split(": ", 1)[1].split(" (")[0].strip() for line in lines if line and not line.startswith("#"))


def test_the_shown_configuration_holds_no_path(settings, tmp_path, phantom_root):
    shown = portable_config(load_config(write_study(tmp_path, settings)))
    assert str(tmp_path) not in str(shown)
    assert shown["sae"]["path"] == "sae"
    layered = portable_config(load_config(write_study(tmp_path, layered_settings(tmp_path, phantom_root))))
    assert layered["sae"]["paths"] == {"layer_6": "sae-layer_6", "layer_10": "sae-layer_10"}


def numeric_settings(section=StudyConfig, prefix=""):
    """The place of every setting that is a number."""
    for name, field in section.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner is not None:
            yield from numeric_settings(inner, f"{prefix}{name}" + (".0." if name == "models" else "."))
        elif float in kinds or int in kinds:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_no_number_of_a_study_may_be_infinite_or_missing(settings, tmp_path, value):
    source = {"model": settings["models"][0]["name"], "concept": settings["concepts"][0]}
    places = [place for place in numeric_settings() if place.startswith(("analysis", "seed", "batch", "sae.", "data."))]
    assert {"analysis.percentile", "sae.train.training.lr", "sae.train.fraction", "data.max_bad_share"} <= set(places)
    for place in places:
        changed = {**settings, "sae": {"train": source}} if place.startswith("sae.") else settings
        file = write_study(tmp_path, changed)
        with pytest.raises(InputError, match=place.replace(".", r"\.")):
            load_config(file, [f"{place}={value}"])
    for training in (SAETraining, ClassifierTraining):
        with pytest.raises(ValueError, match="lr"):
            training(lr=float(value.replace(".", "")))


NAMED = "output: out\ndata: {root: data}\nconcepts: [Mass]\nmodels: [{name: NAME, classifiers: {Mass: m.pth}}]\n"


def said_of(tmp_path, text, *overrides):
    (tmp_path / "study.yaml").write_text(text + "sae: {path: s.pt}\n")
    with pytest.raises(InputError) as error:
        load_config(tmp_path / "study.yaml", overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("key", ["models.00.name", "models.-1.name", "models.+0.name", "models.0_0.name"])
def test_entries_of_a_list_have_one_spelling(tmp_path, key):
    assert "there is no setting" in said_of(tmp_path, NAMED, f"{key}=b")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x" * 65, "at most 64"),
        ("CON", "Windows"),
        ("lpt1.txt", "Windows"),
        ("a.", "the last no point"),
        ("a/b", "must be letters"),
        ("010", "is the number 8 to YAML"),
        ("1:30", "is the number 90 to YAML"),
        ("2024-01-01", "a date (2024-01-01)"),
    ],
)
def test_names_that_no_file_can_bear_or_that_yaml_reads_otherwise_are_refused(tmp_path, name, said):
    assert said in said_of(tmp_path, NAMED.replace("NAME", name))


def test_names_that_differ_in_case_alone_are_one_name(tmp_path):
    two = "[{name: a, classifiers: {Mass: m.pth}}, {name: A, classifiers: {Mass: m.pth}}]"
    text = NAMED.replace("[{name: NAME, classifiers: {Mass: m.pth}}]", two)
    assert "differ in case alone (a, A)" in said_of(tmp_path, text)


@pytest.mark.parametrize(
    ("key", "said"),
    [("Yes", "true"), ("no", "false"), ("1", "1"), ("null", "nothing"), ("2024-01-01", "2024-01-01"), ("''", "empty")],
)
def test_names_of_settings_are_text(tmp_path, key, said):
    message = said_of(tmp_path, NAMED.replace("m.pth}", f"m.pth, {key}: n.pth}}"))
    assert said in message and "models, 0, classifiers" in message


@pytest.mark.parametrize("output", ["$HOME/out", "${HOME}/out", "'%USERPROFILE%/out'", "x" * 256, '"a\\0b"'])
def test_paths_that_are_no_folder_of_the_users_are_refused(tmp_path, output):
    said_of(tmp_path, NAMED.replace("output: out", f"output: {output}"))


@pytest.mark.parametrize("text", ["seed: 010\n", "analysis: &x {top: *x}\n", "seed: " + "9" * 400 + "\n"])
def test_values_that_mean_something_else_are_refused(tmp_path, text):
    said_of(tmp_path, NAMED + text)
