"""Images that a study takes apart in its report: by which rule, that the sums are right, and what stays at home."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_results import synthetic_results, whole_report
from helpers_study import mammosae

from mammosae_plugin.config import load_config
from mammosae_plugin.findings import told_latents
from mammosae_plugin.findings.layers import read_layers, write_layers
from mammosae_plugin.findings.notes import Note, results_with_readers
from mammosae_plugin.findings.study_folder import StudyFolder
from mammosae_plugin.findings.tables import findings_tables
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.schema.findings import CONFIGS
from mammosae_plugin.study import Study
from mammosae_plugin.study.explained import choose_images, with_ids
from mammosae_plugin.visualization.drawings import Drawings
from mammosae_plugin.visualization.explanation import write_explanations


def _image(**changes: Any) -> dict[str, Any]:
    latent = {"usual": 0.1, "mean": 0.2, "maximum": 0.5, "role": None, "verdict": "shortcut", "reason": "off tissue"}
    latents = [{"latent": 3, "contribution": 1.5, **latent}, {"latent": 9, "contribution": -0.25, **latent}]
    image = {"model": "pretrained", "concept": "Mass", "rule": "with_finding", "place": 1}
    numbers = {"n_images": 7, "logit": 1.2, "bias": -0.3, "error": 0.05, "gap": 1e-7, "n_firing": 5, "others": 0.2}
    return {**image, **numbers, "latents": latents, **changes}


def _id_of(study: Study, row: dict[str, Any]) -> str:
    frame = study.primary.explained
    own = frame[
        (frame["concept"] == row["concept"]) & (frame["rule"] == row["rule"]) & (frame["place"] == row["place"])
    ]
    (found,) = set(own["image_id"])
    return str(found)


def _section(results: Any, folder: Path) -> str:
    page = whole_report(results, folder / "figures")
    return page.split('<section id="explained">')[1].split("</section>")[0]


@pytest.fixture(scope="module")
def found(finished_study: Study) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = json.loads((finished_study.results_folder / "results.json").read_text())["explained"]
    return said


def test_the_images_are_the_surest_hit_and_false_alarm(finished_study: Study, found: list[dict[str, Any]]) -> None:
    layer = finished_study.primary
    of_rule = [("with_finding", 1), ("without_finding", 0)]
    assert [(row["concept"], row["rule"], row["place"]) for row in found] == [
        (pair.concept, rule, 1) for pair in finished_study.pairs for rule, _ in of_rule
    ]
    for row in found:
        table = layer.tables[next(pair for pair in finished_study.pairs if pair.concept == row["concept"])]
        own = (table.images["split"] == "test") & (table.images[row["concept"]] == dict(of_rule)[row["rule"]])
        assert row["n_images"] == own.sum()
        logits = table.logits(row["concept"])[own.to_numpy(), 0]
        assert row["logit"] == pytest.approx(logits.max(), abs=1e-4)
        image_id = table.images["image_id"][own].iloc[int(logits.argmax())]
        assert _id_of(finished_study, row) == image_id and "image_id" not in row


def test_every_sum_is_the_logit_and_its_latents_are_the_strongest(
    finished_study: Study, found: list[dict[str, Any]]
) -> None:
    for row in found:
        told = sum(one["contribution"] for one in row["latents"]) + row["others"] + row["bias"] + row["error"]
        assert told == pytest.approx(row["logit"], abs=1e-4) and told + row["gap"] == pytest.approx(
            row["logit"], abs=1e-9
        )
        table = finished_study.primary.tables[finished_study.pairs[0]]
        at = int(np.flatnonzero(table.images["image_id"] == _id_of(finished_study, row))[0])
        added = table.mean_latents[[at]].toarray()[0] * table.readout(row["concept"]).weight[:, 0]
        for sign in (1, -1):
            own = [one for one in row["latents"] if np.sign(one["contribution"]) == sign]
            strongest = np.sort(sign * added)[::-1][: len(own)]
            np.testing.assert_allclose([sign * one["contribution"] for one in own], strongest, atol=1e-5)
        assert {one["verdict"] for one in row["latents"]} <= {"concept", "context", "shortcut", "unclear"}
    inner = finished_study.layers[0]
    assert inner.name == "layer_6" and inner.explained.empty  # no sum over latents there


def test_no_patient_stands_twice_under_a_rule(encoded: LatentTable) -> None:
    chosen = choose_images(encoded, "Mass", 9)
    assert [one["rule"] for one in chosen[:4]] == ["with_finding", "without_finding"] * 2
    for rule in ("with_finding", "without_finding"):
        rows = [one["row"] for one in chosen if one["rule"] == rule]
        assert encoded.images["patient_id"].iloc[rows].is_unique
        logits = encoded.logits("Mass")[rows, 0]
        assert (np.diff(logits) <= 1e-4).all()


def test_they_can_be_left_out_or_more(finished_study: Study) -> None:
    file = finished_study.output.parent / "study.yaml"
    assert Study(load_config(file, ["analysis.explain=null"])).primary.explained.empty
    done = mammosae("study", "--config", file, "--set", "analysis.explain.images=0")
    assert done.returncode == 2 and "analysis.explain.images" in done.stderr and done.stderr.count("\n") == 1


def test_they_are_kept_here_and_published_nowhere(finished_study: Study, found: list[dict[str, Any]]) -> None:
    study = StudyFolder(finished_study.output)
    assert "explained" not in CONFIGS and "explained" not in findings_tables(study)
    ids = set(finished_study.primary.explained["image_id"])
    assert not any(image_id in (finished_study.results_folder / "results.json").read_text() for image_id in ids)
    for name, table in findings_tables(study).items():
        assert not any(image_id in str(table.to_pylist()) for image_id in ids), name
    assert study.layer().results["explained"] == found


def test_findings_without_them_are_read_too(tmp_path: Path) -> None:
    results: Any = synthetic_results() | {"explained": [_image()]}
    write_layers({"final": results}, tmp_path)
    assert read_layers(tmp_path)["final"]["explained"] == [_image()]
    (tmp_path / "explained.parquet").unlink()
    assert "explained" not in read_layers(tmp_path)["final"]


def test_the_report_shows_sum_verdict_notes_and_figure(tmp_path: Path) -> None:
    notes = _image(latents=[{**one, "notes": ["the marker (R. Reader)"]} for one in _image()["latents"]])
    section = _section(synthetic_results() | {"explained": [notes, _image(rule="without_finding", place=2)]}, tmp_path)
    assert "pretrained, Mass: hit" in section and "pretrained, Mass: false alarm" in section
    assert "Of the 7 test images with the finding that of the highest logit." in section
    assert "that of the highest logit but 1, each of another patient" in section
    assert "5 latents, bias and error add up to +1.200, 1e-07 from it." in section and "3 other latents" in section
    assert "Latent 3: verdict shortcut: off tissue; the marker (R. Reader)" in section
    assert "figures/explained_pretrained_Mass_with_finding_1.png is not there" in section  # of phantoms there is one
    assert "mammosae explain" not in section
    named = _section(synthetic_results() | {"explained": [_image(image_id="a b.png")]}, tmp_path)
    assert "Image a b.png, of the 7 test images" in named
    below = _section(synthetic_results() | {"explained": [_image(logit=-0.2, gap=0.0, error=0.4)]}, tmp_path)
    assert "nearest to a hit, but below 0" in below and "+0.400 is what the SAE does not reconstruct" in below


def test_patients_images_are_not_drawn_but_the_command_is_there(tmp_path: Path) -> None:
    results: Any = synthetic_results() | {"data_kind": "vindr", "explained": [_image()]}
    section = _section(results, tmp_path)
    assert "<img" not in section and "There are no pictures" in section
    command = shlex.split(section.split('<pre class="copy">')[1].split("</pre>")[0].replace("&#39;", "'"))
    assert command[:3] == ["mammosae", "explain", "with_finding:1"] and "--concept" in command

    def images() -> Any:
        raise AssertionError("an image was asked for")
        yield

    write_explanations(results, images(), Drawings(tmp_path))


def test_readers_names_and_notes_stand_beside_them(finished_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = StudyFolder(finished_study.output).layer()
    row = layer.results["explained"][0]
    latent, pair = row["latents"][0]["latent"], f"{row['model']}/{row['concept']}"
    note = Note("R. Reader", layer.name, latent, "the marker", None, None, "artefact", 4, "2026", layer.sae_tensors)
    monkeypatch.setattr(told_latents, "read_notes", lambda _: [note])
    results = results_with_readers(layer)
    named: Any = {**results["named_latents"], pair: [{"latent": latent, "role": "artefact", "by": "R. Reader"}]}
    told = told_latents.explained_with_readers({**results, "named_latents": named}, layer)["explained"]
    assert told[0]["latents"][0]["role"] == "artefact"
    assert told[0]["latents"][0]["notes"] == ["[artefact] the marker (R. Reader)"]


def test_ids_stand_where_images_may_be_shown_and_nowhere_else(finished_study: Study) -> None:
    results = StudyFolder(finished_study.output).layer().results
    explained = finished_study.primary.explained
    shown = with_ids(results, explained)["explained"]
    assert [row["image_id"] for row in shown] == [_id_of(finished_study, row) for row in shown]
    patients: Any = {**results, "data_kind": "vindr"}
    assert all("image_id" not in row for row in with_ids(patients, explained)["explained"])


def test_the_command_finds_an_image_by_its_rule(finished_study: Study, found: list[dict[str, Any]]) -> None:
    asked = ["--study", str(finished_study.output.parent / "study.yaml"), "--concept", "Mass", "-n", "0"]
    (row,) = (row for row in found if (row["concept"], row["rule"]) == ("Mass", "without_finding"))
    done = mammosae("explain", "without_finding:1", *asked)
    assert done.returncode == 0 and done.stdout.startswith(f"{_id_of(finished_study, row)}: the logit of Mass"), (
        done.stderr
    )
    beyond = mammosae("explain", "with_finding:99", *asked)
    assert beyond.returncode == 2 and "of fewer patients; give with_finding:1" in beyond.stderr
