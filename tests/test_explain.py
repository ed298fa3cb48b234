"""Why a classifier gives an image its logit: the sum over latents, the page, and what stays out of it."""

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_adapters import calibrated_classifier
from helpers_dicom import breast, dicom_file
from helpers_study import mammosae, random_sae
from PIL import Image

import mammosae_plugin as mp
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.datasets import VinDrMammo
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import LatentTable, encode_image
from mammosae_plugin.schema.names import signed
from mammosae_plugin.study import Study


def test_the_sum_is_the_logit_for_every_image(encoded: LatentTable) -> None:
    readout, means = encoded.readout("Mass"), encoded.mean_latents.toarray()
    for row in range(len(encoded.images)):
        found = mp.explain(encoded, row, head="Mass", n=0)
        frame = found.to_frame()
        assert frame["contribution"].sum() == pytest.approx(encoded.logits("Mass")[row, 0], abs=1e-4)
        of_latents = frame[frame["kind"] == "latent"].set_index("latent")["contribution"]
        expected = means[row] * readout.weight[:, 0]
        np.testing.assert_allclose(of_latents.sort_index(), expected[means[row] != 0], atol=1e-6)
        assert found.error == pytest.approx((encoded.logits("Mass") - encoded.logits_with_sae("Mass"))[row, 0])
    strongest = found.strongest(3, sign=1)["contribution"].to_numpy()
    assert (np.diff(strongest) <= 0).all() and (strongest > 0).all()
    training = (encoded.images["split"] == "training").to_numpy()
    usual = means[training].mean(axis=0) * readout.weight[:, 0]
    np.testing.assert_allclose(found.latents["usual"], usual[found.latents["latent"]], atol=1e-6)


def test_an_image_outside_the_table_is_explained_as_one_of_it(encoded: LatentTable, phantoms: VinDrMammo) -> None:
    network = calibrated_classifier(1)
    sae, item = random_sae(network.num_features), phantoms[5]
    with HookedVisionModel(network, ["bn2"]) as model:
        one = encode_image(model, sae, item["image"], network.classifier)
    assert one.logits[0] == pytest.approx(network(item["image"][None]).item(), abs=1e-4)
    found = mp.explain(encoded, one, head="Mass", patient=item["patient_id"])
    same = mp.explain(encoded, item["image_id"], head="Mass")
    assert found.logit == pytest.approx(same.logit, abs=1e-4) and found.error == pytest.approx(same.error, abs=1e-4)
    np.testing.assert_allclose(found.latents["contribution"], same.latents["contribution"], atol=1e-5)
    assert found.neighbours["image_id"].tolist() == same.neighbours["image_id"].tolist()
    of_others = encoded.images.set_index("image_id").loc[found.neighbours["image_id"]]
    assert (of_others["split"] == "training").all() and not (of_others["patient_id"] == item["patient_id"]).any()
    row = int(np.flatnonzero(encoded.images["image_id"] == item["image_id"])[0])
    if row in encoded._map_places:
        np.testing.assert_allclose(one.maps([1, 2]), encoded.maps([1, 2], row), atol=1e-5)
    weight = encoded.readout("Mass").weight[:, 0]
    total = one.weighted_map(weight).mean()
    assert total == pytest.approx(found.latents["contribution"].sum(), abs=1e-4)


def test_an_image_of_another_network_is_no_sum_and_fails_loudly(encoded: LatentTable, phantoms: VinDrMammo) -> None:
    other = calibrated_classifier(1, seed=3)
    with HookedVisionModel(other, ["bn2"]) as model:
        one = encode_image(model, random_sae(other.num_features), phantoms[0]["image"], other.classifier)
    with pytest.raises(RuntimeError, match="do not belong together"):
        mp.explain(encoded, one, head="Mass")
    with pytest.raises(InputError, match="has no classifier for 'density'"):
        mp.explain(encoded, 0, head="density")
    with pytest.raises(InputError, match="does not read the mean of"):
        inner = random_sae(56, hook_name="blocks.4.1.hook_out")
        network = calibrated_classifier(1)
        with HookedVisionModel(network, ["blocks.4.1"]) as model:
            encode_image(model, inner, torch.rand(3, 96, 64), network.classifier)


def _explain(study: Study, *arguments: Any) -> Any:
    return mammosae("explain", *arguments, "--study", study.output.parent / "study.yaml", "--concept", "Mass")


def test_the_command_explains_an_image_of_the_study_and_its_file(finished_study: Study, tmp_path: Path) -> None:
    images = finished_study.all_images
    test = int(np.flatnonzero((images.images["split"] == "test").to_numpy())[0])
    image_id = str(images.images["image_id"][test])
    by_id = _explain(finished_study, image_id, "-o", tmp_path / "a")
    by_file = _explain(finished_study, images.image_paths[test], "-o", tmp_path / "b")
    assert by_id.returncode == by_file.returncode == 0, by_id.stderr + by_file.stderr
    assert by_id.stdout.replace("/a/", "/b/") == by_file.stdout
    assert re.match(
        rf"{re.escape(image_id)}: the logit of Mass, present, is [+−][0-9.]+ \(probability [01]\.[0-9]+ by the "
        r"classifier\), the sum of what [0-9]+ latents, the SAE's error and the bias add\.",
        by_id.stdout,
    )
    said = json.loads((tmp_path / "a" / "explanation.json").read_text())
    assert sum(row["contribution"] for row in said["sum"]) == pytest.approx(said["logit"], abs=1e-4)
    assert said["transform"] is None and not (tmp_path / "a" / "original.png").exists()
    page = (tmp_path / "a" / "explanation.html").read_text()
    assert "<h1>Mass: why " in page and "error: what the SAE does not reconstruct" in page and "data:image/png" in page
    own = images.images["patient_id"][test]
    others = set(images.images["patient_id"].astype(str)) - {str(own)}
    assert not any(f">{patient}<" in page for patient in others)
    assert page.count("data:image") == 1  # the image that was asked for, and nobody else's


def test_a_dicom_file_is_prepared_and_explained_on_its_own_pixels(finished_study: Study, tmp_path: Path) -> None:
    original = dicom_file(tmp_path / "exam.dcm", breast(300, 200))
    done = _explain(finished_study, original, "-o", tmp_path / "out", "--top", "2", "-n", "2")
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert said["transform"]["source"] == [300, 200] and not said["in_study"]
    assert sum(row["contribution"] for row in said["sum"]) == pytest.approx(said["logit"], abs=1e-4)
    drawn = np.asarray(Image.open(tmp_path / "out" / "original.png"))
    assert drawn.shape[1] > drawn.shape[0] / 3
    page = (tmp_path / "out" / "explanation.html").read_text()
    assert page.count("data:image") == 2
    words = re.sub(r'src="data:[^"]*"', "", page)
    assert "SECRET-7" not in words and "Doe" not in words
    again = _explain(finished_study, original, "-o", tmp_path / "out", "--preparation", "letterbox")
    assert again.returncode == 0 and json.loads((tmp_path / "out" / "explanation.json").read_text()) != said


def test_a_file_of_another_size_is_told_how_it_was_prepared_and_what_chance_likeness_is(
    finished_study: Study, tmp_path: Path
) -> None:
    Image.fromarray(breast(100, 70).astype(np.uint8)).save(tmp_path / "small.png")
    done = _explain(finished_study, tmp_path / "small.png", "-o", tmp_path / "out", "--preparation", "letterbox")
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "out" / "explanation.json").read_text())
    prepared = (
        "The file has 100 x 70 pixels (height x width), and was prepared by letterbox: its rows 0 to 100 and columns"
    )
    assert said["prepared"].startswith(f"{prepared} 0 to 70 were resized to 91 x 64 in an image of 96 x 64")
    page = html.unescape((tmp_path / "out" / "explanation.html").read_text())
    assert said["prepared"] in done.stdout and said["prepared"] in page
    likeness = f"all that were searched: {said['usual_likeness']:.3f} on average"
    assert likeness in done.stdout and likeness in page
    assert 0 <= said["usual_likeness"] <= said["neighbours"][0]["likeness"]
    reasons = {one["latent"]: one["reason"] for one in said["told"]}
    assert any(reasons.values())
    for latent, reason in reasons.items():
        assert reason is None or (f"latent {latent}: " in done.stdout and f": {reason}" in done.stdout)


def test_numbers_that_round_to_nothing_have_no_sign() -> None:
    assert [signed(value) for value in (-0.0004, 0.0, 0.0004, -0.0006, 1)] == ["0.000"] * 3 + ["−0.001", "+1.000"]


def test_notes_and_verdicts_stand_beside_the_latents(
    finished_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mammosae_plugin.findings import told_latents
    from mammosae_plugin.findings.notes import Note
    from mammosae_plugin.study import explain_command

    image_id = str(finished_study.all_images.images["image_id"][0])
    plain = _explain(finished_study, image_id, "-o", tmp_path / "plain")
    said = json.loads((tmp_path / "plain" / "explanation.json").read_text())
    latent = max(said["latents"], key=lambda row: row["contribution"])["latent"]
    layer = finished_study.primary
    chosen = explain_command.finished_layer(finished_study.output.parent / "study.yaml", concept="Mass")
    note = Note(
        "R. Reader", layer.name, latent, "the marker", None, "Mass", "artefact", 4, "2026", chosen.found.sae_tensors
    )
    monkeypatch.setattr(told_latents, "read_notes", lambda _: [note])
    row = {
        "model": chosen.pair.model,
        "concept": "Mass",
        "latent": latent,
        "verdict": "shortcut",
        "reason": "off tissue",
    }
    monkeypatch.setattr(explain_command, "results_with_readers", lambda found: {**found.results, "evidence": [row]})
    done = _explain(finished_study, image_id, "-o", tmp_path / "noted")
    assert plain.returncode == done.returncode == 0 and "shortcut" in done.stdout
    page = (tmp_path / "noted" / "explanation.html").read_text()
    assert "[artefact] the marker (R. Reader)" in page and "shortcut: off tissue" in page
    own = next(one for one in chosen.found.results["evidence"] if (one["concept"], one["latent"]) == ("Mass", latent))
    assert f"{own['verdict']}: {own['reason']}" in html.unescape((tmp_path / "plain" / "explanation.html").read_text())
    monkeypatch.setattr(explain_command, "results_with_readers", lambda found: {**found.results, "evidence": []})
    assert _explain(finished_study, image_id, "-o", tmp_path / "none").returncode == 0  # a study of an earlier version
    assert "has no evidence on these latents" in (tmp_path / "none" / "explanation.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.png"], "nothing.png is no file, and no image of the study"),
        (["phantom_00001_L_MLO"], "such as phantom_00001_L_MLO.png, "),
        (["damaged.png"], "damaged.png: "),
        (["text.dcm"], "give a PNG or DICOM file of one mammogram"),
        (["black.png"], "constant"),
        (["IMAGE", "--layer", "layer_6"], "is not the final map"),
        (["IMAGE", "--model", "x"], "has no model 'x'"),
        (["IMAGE", "--class", "3"], "leave --class out"),
        (["IMAGE", "--set", "output=/nowhere"], "/nowhere holds no finished study"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_one_line(
    finished_study: Study, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    Path("text.dcm").write_text("not a picture")
    Image.new("L", (64, 96)).save("black.png")
    image_id = str(finished_study.all_images.images["image_id"][0])
    done = _explain(finished_study, *[image_id if one == "IMAGE" else one for one in arguments], "-o", "out")
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not Path("out").exists()
