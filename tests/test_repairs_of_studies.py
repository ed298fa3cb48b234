"""Repairs as a part of a study: settings, the file, results.json, the report and the refusals."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_evidence import MARKER, planted_table
from helpers_results import synthetic_results, whole_report
from helpers_study import mammosae
from sklearn.metrics import roc_auc_score
from test_repair import READ

from mammosae_plugin.adapters import load_classifier
from mammosae_plugin.analysis import intervene
from mammosae_plugin.config import load_config
from mammosae_plugin.config.repair import RepairSettings
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sha256_of_file
from mammosae_plugin.findings.layers import read_layers
from mammosae_plugin.schema.findings import LAYERS
from mammosae_plugin.schema.repairs import FROC_COLUMNS, PERFORMANCE_COLUMNS
from mammosae_plugin.study import Study
from mammosae_plugin.study.held_out import held_out_change
from mammosae_plugin.study.inputs import ModelPair
from mammosae_plugin.study.repairs import repairs
from mammosae_plugin.visualization import write_tables

MASS = ModelPair("pretrained", "Mass")
LATENTS = [1, 2, 5]


@pytest.fixture(scope="module")
def rows(finished_study: Study) -> dict[str, list[dict[str, Any]]]:
    """What the study's results say, by layer."""
    found = read_layers(finished_study.results_folder / "findings")
    return {name: results["repair"] for name, results in found.items()}


@torch.no_grad()
def test_the_file_that_a_study_writes_gives_the_masked_logits_in_a_fresh_process(
    finished_study: Study, rows: dict[str, Any], tmp_path: Path
) -> None:
    row = next(one for one in rows[finished_study.primary.name] if one["concept"] == "Mass")
    path = finished_study.output / row["file"]
    assert row["latents"] == LATENTS and row["sha256"] == sha256_of_file(path)
    assert load_classifier(path).source["metadata"]["repair"]["latents"] == LATENTS
    table, images = finished_study.primary.tables[MASS], finished_study.split("test")
    classifier = finished_study.classifier(MASS)
    part = images.with_preprocessing(classifier.preprocessing)
    torch.save(torch.stack([part[number]["image"] for number in range(3)]), tmp_path / "images.pt")
    given = [str(path), str(tmp_path / "images.pt"), str(tmp_path / "logits.pt")]
    subprocess.run([sys.executable, "-c", READ, *given], check=True)
    ids = [int(np.flatnonzero(table.images["image_id"] == one)[0]) for one in images.images["image_id"][:3]]
    expected = intervene(table, LATENTS, mode="deactivate", head="Mass", error_term=True, image_rows=ids)
    np.testing.assert_allclose(torch.load(tmp_path / "logits.pt").numpy(), np.reshape(expected, (3, 1)), atol=1e-4)
    assert not np.allclose(expected, table.logits("Mass")[ids], atol=1e-3)


def test_results_hold_every_declared_column_of_every_layer(finished_study: Study, rows: dict[str, Any]) -> None:
    inner, final = (layer.name for layer in finished_study.layers)
    for layer, own in rows.items():
        assert [row["concept"] for row in own] == ["Mass", "Suspicious_Calcification"]
        assert all(set(row) == {one.name for one in LAYERS["repair"]} - {"layer"} for row in own)
        written = json.loads((finished_study.report_folder(_layer(finished_study, layer)) / "results.json").read_text())
        assert written["repair"] == own
    assert [row["reason"] for row in rows[inner]] == ["the settings name latents of the final map"] * 2
    mass, calcification = rows[final]
    assert calcification["reason"] == "the settings name no latent of it" and not calcification["performance"]
    frame = pd.DataFrame(mass["performance"])
    assert list(frame["group"].unique()) == ["all", "view=CC", "view=MLO", "laterality=L", "laterality=R"]
    assert (frame["stage"] == "after").sum() == 5 and mass["groups"] == ["view", "laterality"]
    froc = pd.DataFrame(mass["froc"])
    assert froc["stage"].tolist() == ["before"] * 6 + ["after"] * 6
    assert set(froc) == {one.name for one in FROC_COLUMNS} and set(frame) == {one.name for one in PERFORMANCE_COLUMNS}


def _layer(study: Study, name: str) -> Any:
    return next(layer for layer in study.layers if layer.name == name)


def test_the_report_tells_it_with_the_command_that_repeats_it(
    finished_study: Study, rows: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mass = rows[finished_study.primary.name][0]
    results = read_layers(finished_study.results_folder / "findings")[finished_study.primary.name]
    page = whole_report(results, tmp_path)
    section, other = (part.split("</section>")[0] for part in page.split('<section id="repair">')[1:])
    assert "latents 1, 2, 5 removed" in section and mass["file"] in section and mass["sha256"] in section
    assert "FROC of the logit&#39;s map before" in section and "without chance beside it (no other patient" in section
    assert "No classifier was repaired: the settings name no latent of it." in other
    assert "Read the change with care" not in section, "the settings chose the latents"
    command = section.split('<pre class="copy">')[1].split("</pre>")[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text((finished_study.output.parent / "study.yaml").read_text())
    done = mammosae(*command.split()[1:])
    assert done.returncode == 0, done.stderr
    (made,) = tmp_path.glob("*.safetensors")
    again = load_classifier(finished_study.output / mass["file"])
    assert load_classifier(made).fingerprint() == again.fingerprint()
    told = json.loads(made.with_suffix(".json").read_text())["performance"]
    assert [row["auroc"] for row in told] == [row["auroc"] for row in mass["performance"]]
    write_tables(results, tmp_path)
    printed = finished_study.evidence_summary()
    assert f"pretrained/Mass with latents 1, 2, 5 times 0: AUROC {told[0]['auroc']:.3f} before" in printed
    assert mass["file"] in printed and printed.count("times 0") == 1
    tables = tmp_path / "tables"
    assert len(pd.read_csv(tables / "repair.csv")) == 10 and len(pd.read_csv(tables / "repair_froc.csv")) == 12


def test_without_shortcuts_nothing_is_claimed_and_with_them_the_choice_is_told(
    rows: dict[str, Any], finished_study: Study, tmp_path: Path
) -> None:
    mass = rows[finished_study.primary.name][0]
    plain = synthetic_results()
    assert 'id="repair"' not in whole_report(plain, tmp_path)
    none = [{**mass, "reason": "no latent is called a shortcut", "performance": [], "froc": []}]
    page = whole_report({**plain, "repair": none}, tmp_path).split('<section id="repair">')[1].split("</section>")[0]
    assert "No classifier was repaired: no latent is called a shortcut." in page and "<table" not in page
    assert "Chosen anew" not in page
    few = [{**one, **dict.fromkeys([n for n in one if n.endswith(("_low", "_high"))])} for one in mass["performance"]]
    chosen = [{**mass, "chosen": "verdict", "performance": few, "froc": [], "froc_reason": "of a reason",
               "held_out_change": 0.02, "held_out_first": [3]}]  # fmt: skip
    page = whole_report({**plain, "repair": chosen}, tmp_path).split('<section id="repair">')[1]
    assert "Read the change with care" in page and "labels of the training images and of these same test images" in page
    assert "(latents 3; none) and measured on the other half, the change is +0.020, without an interval" in page
    assert "There is no interval" in page and "No group has enough patients to be called the worst." in page
    assert "FROC before and after is not told: of a reason." in page
    told = [{**one, "reason": "no slope: of one reason; no interval: of another"} for one in mass["performance"]]
    page = whole_report({**plain, "repair": [{**mass, "performance": told}]}, tmp_path).split('id="repair"')[1]
    assert page.count("no slope: of one reason.") == page.count("no interval: of another.") == 1  # not in every row


class Layer:
    """A layer of a finished study with other settings and verdicts; keeps nothing."""

    def __init__(self, study: Study, real: Any, work: Path, verdicts: pd.DataFrame, **settings: Any) -> None:
        self.study, self.tables, self.sae, self.unit, self.name = study, real.tables, real.sae, real.unit, real.name
        self.covariates = None
        self.is_inner, self.is_final, self.evidence, self.work = real.is_inner, real.is_final, verdicts, work
        analysis = study.config.analysis.model_copy(update={"repair": RepairSettings(**settings)})
        self.config = study.config.model_copy(update={"analysis": analysis})

    def kept(self, _name: str, pair: ModelPair, _settings: Any, compute: Any) -> pd.DataFrame:
        """What is computed; nothing is kept."""
        found: pd.DataFrame = compute(self.tables[pair], pair)
        return found

    def told(self, part: Any, pair: ModelPair) -> pd.DataFrame:
        """The verdicts, whichever half of the patients is seen, where the real ones can be told too."""
        of_half, all_images = (len(one.rows("Mass", split="test").labels) for one in (part, self.tables[pair]))
        assert of_half < all_images and {"latent"} <= set(self.study.primary.told(part, pair))
        return self.evidence[self.evidence["concept"] == pair.concept]


@pytest.fixture
def verdicts() -> pd.DataFrame:
    return pd.DataFrame({"latent": [3, 7, 4], "verdict": ["shortcut", "concept", "shortcut"],
                         "reliance": [0.01, 0.9, -0.2], "model": "pretrained", "concept": "Mass"})  # fmt: skip


def test_the_latents_called_shortcut_are_those_that_are_removed(
    finished_study: Study, verdicts: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finished_study, "output", tmp_path)
    of: Any = Layer(finished_study, finished_study.primary, tmp_path, verdicts)
    mass, calcification = repairs(of)
    assert mass["latents"] == [4, 3] and mass["chosen"] == "verdict" and mass["froc"] == []
    assert mass["froc_reason"].startswith("both networks would be run") and "view" in mass["groups"]
    assert mass["held_out_first"] == mass["held_out_second"] == [4, 3] and mass["held_out_change"] is not None
    assert calcification["reason"] == "no latent is called a shortcut"
    path = tmp_path / mass["file"]
    before = path.read_bytes()
    path.write_bytes(before + b"mine")
    again, _ = repairs(of)
    assert path.read_bytes() == before and again["sha256"] == mass["sha256"]
    (kept,) = path.parent.glob("*.edited.safetensors")
    assert kept.read_bytes() == before + b"mine", "what was changed is the user's"


def test_inner_layers_are_repaired_where_that_is_asked_for_and_else_say_why_not(
    finished_study: Study, verdicts: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finished_study, "output", tmp_path)
    inner = finished_study.layers[0]
    not_asked: Any = Layer(finished_study, inner, tmp_path, verdicts)
    row = repairs(not_asked)[0]
    assert row["latents"] == [4, 3] and "must be run on all test images; analysis.repair.inner: true" in row["reason"]
    assert row["file"] is None and not row["performance"] and not list(tmp_path.rglob("*.safetensors"))
    asked: Any = Layer(finished_study, inner, tmp_path, verdicts, inner=True, groups=[])
    row = repairs(asked)[0]
    assert row["reason"] == "" and [one["stage"] for one in row["performance"]] == ["before", "after"]
    said = load_classifier(tmp_path / row["file"]).source["metadata"]["repair"]
    assert said["hook_name"] == inner.hook_name and said["latents"] == [4, 3]
    linear: Any = Layer(finished_study, inner, tmp_path, verdicts, inner=True, kind="linear")
    row = repairs(linear)[0]
    assert row["reason"].startswith("a linear repair scales directions in the head") and row["file"] is None
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_what_is_chosen_on_half_of_the_patients_is_measured_on_the_other_half() -> None:
    table = planted_table(n_patients=80)
    rows = table.rows("Mass", split="test")
    seen: list[set[str]] = []

    def choose(part: Any) -> list[int]:
        own, everyone = part.rows("Mass", split="test"), part.rows("Mass", split="training")
        assert set(own.labels) == {0, 1} and len(everyone.labels) == len(table.rows("Mass", split="training").labels)
        seen.append(set(own.patient_ids))
        return [MARKER] if len(seen) == 1 else []

    def repaired(latents: Sequence[int]) -> Any:
        taken = table.mean_latents[:, list(latents)] @ table.readout("Mass").weight[list(latents)]
        return table.logits("Mass") - taken

    settings: dict[str, Any] = {"split": "test", "unit": "image", "n_bootstrap": 100, "seed": 3}
    found = held_out_change(table, "Mass", choose, repaired, min_patients=5, **settings)
    assert not seen[0] & seen[1] and seen[0] | seen[1] == set(rows.patient_ids)
    other = np.isin(rows.patient_ids, list(seen[1]))
    after, before = (one[rows.image_rows][other, 0] for one in (repaired([MARKER]), table.logits("Mass")))
    change = roc_auc_score(rows.labels[other], after) - roc_auc_score(rows.labels[other], before)
    assert found["held_out_change"] == pytest.approx(change / 2), "in the other half nothing was chosen"
    assert found["held_out_change_low"] < found["held_out_change"] < found["held_out_change_high"]
    assert (found["held_out_first"], found["held_out_second"]) == ([MARKER], [])
    few = held_out_change(table, "Mass", lambda _: [MARKER], repaired, min_patients=50, **settings)
    assert np.isnan(few["held_out_change_low"]) and np.isfinite(few["held_out_change"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "{latents: [{model: pretrained, concept: Mass, latents: [1, 1]}]}",
            "analysis.repair.latents.0.latents: names latent 1 twice: give each once",
        ),
        (
            "{latents: [{model: pretrained, concept: Mass, latents: []}]}",
            "analysis.repair.latents.0.latents: needs at least 1 entry",
        ),
        ("{latents: [{model: pretrained, concept: Mass, latents: [one]}]}", "must be a whole number, not 'one'"),
        ("{latents: [{model: pretrained, concept: Mass, latents: [-1]}]}", "must be at least 0, not the number -1"),
        ("{latents: []}", "is an empty list; name latents, or leave it out"),
        ("{latents: some}", "analysis.repair.latents: must be one of 'shortcut', not 'some'"),
        (
            "{latents: [{model: pretrained, concept: Moss, latents: [1]}]}",
            "names pretrained/Moss, no model/concept of the study; it has pretrained/",
        ),
        ("{kind: both}", "analysis.repair.kind: must be one of 'exact', 'linear', not 'both'"),
        ("{scale: 1000}", "must be at most 100"),
        ("{groups: [view, view]}", "groups names a column twice"),
        ("{group: view}", "unknown setting 'analysis.repair.group' (did you mean 'group"),
    ],
)
def test_settings_that_mean_nothing_are_refused_in_one_line(finished_study: Study, change: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        load_config(finished_study.output.parent / "study.yaml", [f"analysis.repair={change}"])
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{latents: [{model: pretrained, concept: Mass, latents: [64]}]}", "names latent 64 of pretrained/Mass, but"),
        ("{groups: [exam_id]}", "exam_id makes no groups of patients; name a column"),
        ("{groups: [device]}", "analysis.repair.groups names 'device', no column of the images; they have image_id"),
    ],
)
def test_what_the_data_and_the_sae_have_not_is_told_before_anything_is_made(
    finished_study: Study, change: str, message: str, tmp_path: Path
) -> None:
    file = finished_study.output.parent / "study.yaml"
    settings = ["--set", f"analysis.repair={change}", "--set", f"output={tmp_path / 'new'}"]
    done = mammosae("classify", file, *settings)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "new" / "work" / "repaired").exists()
