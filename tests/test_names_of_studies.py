"""Names in a study: found and kept, joined from files, and of them what may leave, never without a score."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers_findings import LABEL, PLACE, WRITTEN, write_names

from mammosae_plugin.config import load_config
from mammosae_plugin.config.names import NameSettings
from mammosae_plugin.errors import InputError
from mammosae_plugin.findings.names import told_names
from mammosae_plugin.findings.published import Findings
from mammosae_plugin.findings.study_folder import StudyFolder
from mammosae_plugin.findings.tables import tellable
from mammosae_plugin.interpretation import read_names
from mammosae_plugin.schema.names_of_latents import KEPT_NAMES, NAMES, names_of_encoder, surest, told_name
from mammosae_plugin.study.latent_names import check_names, name_lines, names_of_table, require_tables

ROW = {"latent": 0, "method": "labels", "name": "Mass", "score": 0.95, "chance": 0.25, "q": 0.001, "n": 20,
       "column": "", "n_fewest": 12, "check_auroc": 0.8, "check_low": 0.7, "check_high": 0.9, "check_fewest": 12,
       "abstained": False, "reason": ""}  # fmt: skip
HIDES = SimpleNamespace(
    activity=np.array([False, True, False]), class_means={"Mass": np.array([False, False, True])}
)  # fmt: skip


def test_a_study_keeps_names_by_labels_and_those_of_files_and_the_rest_with_a_reason(finished_study):
    study = StudyFolder(finished_study.output)
    names = pd.DataFrame(study.results["names"])
    assert list(names.columns) == ["encoder", *(one.name for one in KEPT_NAMES)]
    live = next(iter(finished_study.primary.tables.values())).live_latents("training")
    of_study = names[(names["method"] == "labels") & names["abstained"]]
    assert of_study["latent"].tolist() == live.tolist() and (of_study["reason"] != "").all()
    assert (names["name"] != "").eq(~names["abstained"]).all()
    assert names.loc[~names["abstained"], "name"].value_counts().to_dict() == dict.fromkeys(
        (LABEL, PLACE, WRITTEN), len(live)
    )
    assert names.loc[~names["abstained"], ["score", "chance"]].notna().all(axis=None)
    inner = study.layer("layer_6").results["names"]
    assert {row["method"] for row in inner} == {"labels"} and not any(row["name"] for row in inner)


def test_what_leaves_has_its_score_and_no_name_from_a_column_of_metadata(finished_study):
    study = StudyFolder(finished_study.output)
    found = Findings.of_study(finished_study.output).names
    assert list(found.columns) == ["layer", "encoder", *(one.name for one in NAMES)]
    assert {"column", "reason", "abstained", "n_with", "n_groups"}.isdisjoint(found.columns)
    (told,) = [one for place, one in tellable(study.layers, 5).items() if place[0] == "layer_10"]
    live = set(next(iter(finished_study.primary.tables.values())).live_latents("training").tolist())
    shown = live - set(np.flatnonzero(told.activity).tolist())
    assert {*found["name"]} == {LABEL, WRITTEN}
    assert set(found.loc[found["name"] == WRITTEN, "latent"]) == shown < live
    of_label = shown - set(np.flatnonzero(told.class_means["Mass"]).tolist())
    assert set(found.loc[found["name"] == LABEL, "latent"]) == of_label <= shown
    assert found[["score", "chance", "method"]].notna().all(axis=None)
    written = found[found["name"] == WRITTEN]
    assert {*written["model"]} == {"toy-vlm"} and {*written["judge"]} == {"toy-judge"}
    assert Findings.of_study(finished_study.output, min_group=13).names is None  # 12 patients stand behind each


@pytest.mark.parametrize(
    ("change", "leaves"),
    [
        ({}, True),
        ({"name": "", "abstained": True}, False),
        ({"name": "site=a", "column": "site"}, False),
        ({"name": "view=CC", "column": "view"}, True),  # which the user shares
        ({"name": "site=a", "column": None}, False),  # a file that does not say what it is of
        ({"name": "a spot", "method": "model", "column": None, "n_fewest": None}, True),
        ({"n": 4}, False),
        ({"n": 0, "method": "direction", "n_fewest": None}, True),  # needs no patients
        ({"n_fewest": 4}, False),
        ({"n_fewest": None}, False),
        ({"latent": 1}, False),  # which fires in few patients
        ({"latent": 2}, False),  # of which the class means are hidden
        ({"latent": 2, "name": "Mass=3"}, False),
        ({"latent": 2, "name": "Clip"}, True),
    ],
)
def test_which_names_may_leave(change, leaves):
    told = list(told_names([ROW | change], HIDES, ["view"], 5))
    assert bool(told) is leaves and all(row["check_auroc"] == 0.8 for row in told)


def test_of_a_small_class_in_the_other_split_no_check_is_told():
    (told,) = told_names([ROW | {"check_fewest": 4}], HIDES, [], 5)
    assert told["name"] == "Mass" and [told[f"check_{end}"] for end in ("auroc", "low", "high")] == [None] * 3


def test_a_name_is_told_with_score_chance_and_method_and_the_surest_first():
    weak, other = ROW | {"name": "clip", "q": 0.04}, ROW | {"name": "edge", "latent": 3, "chance": None, "q": None}
    assert told_name(ROW) == "Mass (labels 0.95, chance 0.25)" and told_name(ROW | {"name": ""}) == ""
    assert told_name(other) == "edge (labels 0.95, chance not known)"
    assert [row["name"] for row in surest([other, weak, ROW, ROW | {"name": ""}])] == ["Mass", "clip", "edge"]
    rows = [{**row, "encoder": encoder} for row, encoder in ((weak, "a"), (ROW, "a"), (other, "b/x+y"))]
    assert names_of_encoder(rows, "a", "x")[0]["name"] == "Mass" and names_of_encoder(rows, "a/x") == {}
    assert [*names_of_encoder(rows, "b", "y")] == [3] == [*names_of_encoder(rows, "b/x+y")]
    assert names_of_encoder(rows, "b", "z") == {}
    lines = name_lines(pd.DataFrame(rows), ["encoder"], 2)
    assert lines[0].startswith("names: 3 latents of 3 have one") and len(lines) == 3
    assert lines[1] == "  a latent 0: Mass (labels 0.95, chance 0.25)"


def test_names_by_labels_are_made_once_for_the_same_table_and_settings(encoded, tmp_path, monkeypatch):
    settings = NameSettings.model_validate({"by_labels": {"n": 6, "min_groups": 3, "labels": ["Mass"], "metadata": []}})
    first = names_of_table(encoded, settings, tmp_path, "m", "test")
    assert set(first["latent"]) == set(encoded.live_latents("training").tolist())
    monkeypatch.setattr("mammosae_plugin.study.latent_names.name_by_labels", None)
    pd.testing.assert_frame_equal(names_of_table(encoded, settings, tmp_path, "m", "test"), first)
    nothing = names_of_table(encoded, NameSettings(by_labels=None), tmp_path, "m", "test")
    assert nothing.empty and list(nothing.columns) == list(first.columns)


def test_bad_folders_and_columns_are_refused_in_a_line(encoded, tmp_path):
    named = write_names(encoded, tmp_path / "named")
    own = read_names(named)
    settings = NameSettings(files=(named,), by_labels=None)
    check_names(settings, ["view"])
    require_tables(settings, [encoded])
    assert len(names_of_table(encoded, settings, tmp_path, "m", "test")) == len(own.latents)
    dataclasses.replace(own, about={"table": "another"}).write(named)
    with pytest.raises(InputError, match="has names of the table another, none of this study's"):
        require_tables(settings, [encoded])
    far = own.latents.assign(latent=encoded.d_sae)
    dataclasses.replace(own, latents=far).write(named)
    with pytest.raises(InputError, match="names latents that .* has not"):
        names_of_table(encoded, settings, tmp_path, "m", "test")
    (named / "names.json").write_text('{"latents": [{"latent": "x"}], "candidates": []}')
    with pytest.raises(InputError, match="is no file of names"):
        check_names(settings, ["view"])
    with pytest.raises(InputError, match="holds no names.json"):
        check_names(NameSettings(files=(tmp_path,)), ["view"])
    with pytest.raises(InputError, match="by_labels.labels names 'Tumour', no column"):
        check_names(NameSettings.model_validate({"by_labels": {"labels": ["Tumour"]}}), ["Mass"])
    with pytest.raises(InputError, match="share names 'site', no column"):
        check_names(NameSettings(share=("site",)), ["Mass"])


def test_paths_of_names_count_from_the_configuration_and_stay_on_this_machine(finished_study, tmp_path):
    told = Findings.of_study(finished_study.output).study["config"]["analysis"]["names"]
    assert told["files"] == [] and told["by_labels"]["min_groups"] == 10
    file = tmp_path / "study.yaml"
    file.write_text(
        "output: out\nconcepts: [Mass]\ndata: {root: ., phantom: true, image_size: [96, 64]}\nsae: {path: s}\n"
        "models: [{name: a, encoder: e, train: {kind: pretrained}}]\nanalysis: {names: {files: [named]}}\n"
    )
    assert load_config(file).analysis.names.files == (tmp_path / "named",)
