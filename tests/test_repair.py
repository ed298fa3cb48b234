"""Latents that a classifier no longer uses: the file, what is exact in it, and performance before and after."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_adapters import calibrated_classifier, fixture_downstream
from helpers_study import mammosae, random_sae
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, TopKSAE, TopKSAEConfig
from scipy import sparse
from sklearn.metrics import roc_auc_score

import mammosae_plugin as mp
from mammosae_plugin.adapters import (
    HookedVisionModel,
    MammoClipClassifier,
    load_classifier,
    new_timm_classifier,
    save_classifier,
)
from mammosae_plugin.adapters.folding import fold_latents, project_head
from mammosae_plugin.analysis import froc_of, intervene
from mammosae_plugin.datasets import VinDrMammo
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import LatentTable, encode_latents
from mammosae_plugin.measures.calibration import calibration
from mammosae_plugin.report.repair import froc_sentences
from mammosae_plugin.study import Study

LATENTS = [1, 2, 5, 9]
READ = """
import sys, torch
from mammosae_plugin.adapters import load_mammo_clip
network = load_mammo_clip(sys.argv[1])
torch.save(network(torch.load(sys.argv[2])).detach(), sys.argv[3])
"""


@pytest.fixture(scope="module")
def network() -> MammoClipClassifier:
    return calibrated_classifier(1)


@pytest.fixture(scope="module")
def sae(network: MammoClipClassifier) -> Any:
    return random_sae(network.num_features)


def masked(network: Any, sae: Any, images: torch.Tensor, latents: list[int], scale: float) -> torch.Tensor:
    """The logits by the definition: pooled in float64, each position without a share of the latents' contribution."""
    features = network.forward_features(images).permute(0, 2, 3, 1)
    codes = sae.encode(features)
    without = codes.clone()
    without[..., latents] = 0
    left = features.double() - (1 - scale) * (sae.decode(codes).double() - sae.decode(without))
    return left.mean(dim=(1, 2)) @ network.classifier.weight.double().T + network.classifier.bias.double()


@torch.no_grad()
def test_a_repaired_file_read_in_a_fresh_process_gives_the_masked_logits(
    encoded: LatentTable, network: MammoClipClassifier, sae: Any, phantoms: VinDrMammo, tmp_path: Path
) -> None:
    path = tmp_path / "repaired.safetensors"
    done = mp.repair(encoded, network, sae, LATENTS, path=path, n_bootstrap=0, images=phantoms)
    images = torch.stack([phantoms[number]["image"] for number in range(3)])
    torch.save(images, tmp_path / "images.pt")
    given = [str(path), str(tmp_path / "images.pt"), str(tmp_path / "logits.pt")]
    subprocess.run([sys.executable, "-c", READ, *given], check=True)
    found = torch.load(tmp_path / "logits.pt").double()
    rows = [int(np.flatnonzero(encoded.images["image_id"] == one)[0]) for one in phantoms.images["image_id"][:3]]
    expected = intervene(encoded, LATENTS, mode="deactivate", head="Mass", error_term=True, image_rows=rows)
    torch.testing.assert_close(found, torch.as_tensor(np.asarray(expected)).reshape(3, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(found, masked(network, sae, images, LATENTS, 0), atol=1e-4, rtol=0)
    again = load_classifier(path)
    assert again.source["metadata"]["repair"] == done.describe()
    assert again.fingerprint() == done.classifier.fingerprint() != network.fingerprint()
    assert again.fingerprint(with_head=False) != network.fingerprint(with_head=False)


def _jump_relu(plain: Any) -> Any:
    cfg = JumpReLUSAEConfig(d_in=plain.cfg.d_in, d_sae=plain.cfg.d_sae, apply_b_dec_to_input=False)
    made = JumpReLUSAE(cfg)
    made.load_state_dict({**plain.state_dict(), "threshold": torch.full((plain.cfg.d_sae,), 0.3)})
    return made


def _top_k(plain: Any) -> Any:
    made = TopKSAE(TopKSAEConfig(d_in=plain.cfg.d_in, d_sae=plain.cfg.d_sae, k=5, rescale_acts_by_decoder_norm=True))
    made.load_state_dict(plain.state_dict())
    return made


@pytest.mark.parametrize("change", [lambda plain: plain, _jump_relu, _top_k], ids=["standard", "jumprelu", "topk"])
@pytest.mark.parametrize("scale", [0.0, 0.4, 1.0])
@torch.no_grad()
def test_scaling_latents_is_exact_for_every_architecture(
    network: MammoClipClassifier, sae: Any, change: Any, scale: float
) -> None:
    chosen, images = change(sae), torch.randn(2, 3, 96, 64)
    made = fold_latents(network, chosen, LATENTS, scale=scale, hook_name="bn2")
    expected = masked(network, chosen, images, LATENTS, scale)
    torch.testing.assert_close(made(images).double(), expected, atol=1e-4, rtol=0)
    assert (scale == 1) == torch.equal(made(images), network(images))


@torch.no_grad()
def test_a_layer_inside_is_repaired_and_read_again_and_again_repaired(
    network: MammoClipClassifier, tmp_path: Path
) -> None:
    inner = random_sae(56, hook_name="blocks.4.1.hook_out")
    images = torch.randn(2, 3, 96, 64)
    made = fold_latents(network, inner, [1, 3], scale=0.5)
    with HookedVisionModel(calibrated_classifier(1), ["blocks.4.1"]) as hooked:

        def halve(codes: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001
            codes[..., [1, 3]] *= 0.5
            return codes

        name = hooked.add_sae(inner, use_error_term=True) or "blocks.4.1.hook_out"
        expected = hooked.run_with_hooks(images, fwd_hooks=[(f"{name}.hook_sae_acts_post", halve)])
    torch.testing.assert_close(made(images), expected, atol=1e-4, rtol=0)
    twice = fold_latents(fold_latents(made, random_sae(network.num_features), [2]), inner, [5])
    mp.adapters.save_classifier(twice, tmp_path / "twice.safetensors", metadata={})
    again = load_classifier(tmp_path / "twice.safetensors")
    assert torch.equal(again(images), twice(images)) and not torch.equal(twice(images), made(images))


@torch.no_grad()
def test_networks_of_libraries_are_repaired_too(tmp_path: Path) -> None:
    network = new_timm_classifier("resnet10t", 1, image_size=(64, 64), seed=0)
    sae = random_sae(512, hook_name="layer4.hook_out")
    made = fold_latents(network, sae, [1, 2])
    images = torch.rand(2, 3, 64, 64)
    codes = sae.encode(network.network.forward_features(images).permute(0, 2, 3, 1))[..., [1, 2]]
    head = network.network.get_submodule(network.head_path)
    expected = network(images) - (codes @ sae.W_dec[[1, 2]]).mean(dim=(1, 2)) @ head.weight.T
    torch.testing.assert_close(made(images), expected, atol=1e-4, rtol=1e-4)
    mp.adapters.save_classifier(made, tmp_path / "made.safetensors", metadata={})
    assert torch.equal(load_classifier(tmp_path / "made.safetensors")(images), made(images))


@torch.no_grad()
def test_a_linear_repair_scales_directions_in_the_head(network: MammoClipClassifier, sae: Any) -> None:
    made = project_head(network, sae, LATENTS, scale=0.25)
    weight, bias = made.classifier.weight[0].double(), made.classifier.bias[0].double()
    before = network.classifier.weight[0].double()
    rows = sae.W_dec[LATENTS].double()
    torch.testing.assert_close(rows @ weight, 0.25 * rows @ before, atol=1e-6, rtol=0)
    across = torch.linalg.svd(rows, full_matrices=True)[2][len(LATENTS) :]
    torch.testing.assert_close(across @ weight, across @ before, atol=1e-6, rtol=0)
    b_dec = sae.b_dec.double()
    torch.testing.assert_close(b_dec @ weight + bias, b_dec @ before + network.classifier.bias[0].double())
    assert torch.equal(network.classifier.weight, calibrated_classifier(1).classifier.weight)


def test_a_linear_repair_says_how_far_it_is_from_the_exact_one(
    encoded: LatentTable, network: MammoClipClassifier, sae: Any, phantoms: VinDrMammo
) -> None:
    done = mp.repair(encoded, network, sae, [1], kind="linear", n_bootstrap=0, images=phantoms)
    assert done.performance["stage"].tolist() == ["before", "after", "exact"]
    assert 0 < done.difference["root_mean_square"] <= done.difference["largest"]
    exact = mp.repair(encoded, network, sae, [1], n_bootstrap=0)
    assert exact.performance["auroc"][1] == done.performance["auroc"][2] and not exact.difference


@torch.no_grad()
def test_a_linear_repair_is_written_as_mammo_clips_own_files_are(tmp_path: Path) -> None:
    original = fixture_downstream("b2")
    torch.save(original, tmp_path / "original.pth")
    network = mp.load_mammo_clip(tmp_path / "original.pth")
    sae = random_sae(network.num_features)
    from mammosae_plugin.adapters.mammo_clip_files import save_mammo_clip

    save_mammo_clip(project_head(network, sae, [1, 2]), tmp_path / "repaired.pth")
    written = torch.load(tmp_path / "repaired.pth", weights_only=True)["model"]
    assert set(written) == set(original["model"])  # what Mammo-CLIP's own code loads strictly
    for key, tensor in written.items():
        same = torch.equal(tensor, original["model"][key])
        assert same == (key != "classifier.classification_head.weight" and not key.endswith("head.bias")), key
    assert mp.load_mammo_clip(tmp_path / "repaired.pth").n_class == 1
    folded = fold_latents(network, sae, [1])
    with pytest.raises(InputError, match=r"its classifiers on EfficientNet B5 and B2 alone; name a \.safetensors"):
        save_mammo_clip(folded, tmp_path / "no.pth")
    save_classifier(folded, tmp_path / "yes.safetensors", metadata={})
    assert mp.load_mammo_clip(tmp_path / "yes.safetensors").n_class == 1


def test_performance_is_told_by_group_before_and_after(
    encoded: LatentTable, network: MammoClipClassifier, sae: Any
) -> None:
    done = mp.repair(encoded, network, sae, LATENTS, scale=20, group="laterality", n_bootstrap=50, min_patients=2)
    frame = done.performance.set_index(["group", "stage"])
    assert list(frame.index.get_level_values("group").unique()) == ["all", "laterality=L", "laterality=R"]
    rows = encoded.rows("Mass", split="test")
    side = encoded.images["laterality"].to_numpy()[rows.image_rows]
    after = encoded.logits("Mass") + 19 * encoded.mean_latents[:, LATENTS] @ encoded.readout("Mass").weight[LATENTS]
    for name, chosen in (("all", side != ""), ("laterality=L", side == "L")):
        for stage, logits in (("before", encoded.logits("Mass")), ("after", after)):
            expected = roc_auc_score(rows.labels[chosen], logits[rows.image_rows][chosen, 0])
            assert frame.loc[(name, stage), "auroc"] == pytest.approx(expected)
    changed = frame.loc[("all", "after")]
    assert changed["auroc_change"] == pytest.approx(changed["auroc"] - frame.loc[("all", "before"), "auroc"])
    assert changed["auroc_change_low"] <= changed["auroc_change"] <= changed["auroc_change_high"]
    worst = done.worst(min_patients=1)
    assert worst is not None and worst["auroc"] == frame.loc[(slice(None), "after"), "auroc"].iloc[1:].min()


def test_froc_is_of_the_logits_own_map_before_and_after(
    encoded: LatentTable, network: MammoClipClassifier, sae: Any, phantoms: VinDrMammo
) -> None:
    part = phantoms.select(split="training")
    settings: dict[str, Any] = {"split": "training", "images": part, "froc": True, "n_bootstrap": 5}
    same = mp.repair(encoded, network, sae, LATENTS, scale=1, **settings).froc
    found = mp.repair(encoded, network, sae, LATENTS, scale=-30, **settings).froc
    assert same is not None and found is not None and same["cpm_change"].dropna().eq(0).all()
    assert found["stage"].tolist() == ["before"] * 6 + ["after"] * 6
    rows = encoded.rows("Mass", split="training")
    boxes = [encoded.boxes(int(row), "Mass") for row in rows.image_rows]
    kept = [place for place, own in enumerate(boxes) if len(own) or rows.labels[place] == 0]
    assert found["n_images"].eq(len(kept)).all() and found["n_lesions"].eq(sum(map(len, boxes))).all()
    number_of = {one: number for number, one in enumerate(part.images["image_id"])}
    points = []
    for place in kept:
        image = part[number_of[encoded.images["image_id"][rows.image_rows[place]]]]["image"]
        with torch.no_grad():
            map_ = torch.einsum("chw,c->hw", network.forward_features(image[None])[0], network.classifier.weight[0])
        padded = torch.nn.functional.pad(map_, (1, 1, 1, 1), value=-torch.inf)
        around = padded.unfold(0, 3, 1).unfold(1, 3, 1).amax(dim=(2, 3))
        y, x = torch.where((map_ == around) & (map_ > 0))
        height, width = 96 / map_.shape[0], 64 / map_.shape[1]
        centres = torch.stack([(x + 0.5) * width, (y + 0.5) * height], dim=1)
        points.append((centres.numpy(), map_[y, x].numpy()))
    expected = froc_of(points, [boxes[place] for place in kept])
    assert found["cpm"][0] == pytest.approx(expected.cpm)
    np.testing.assert_allclose(found["sensitivity"][:6], expected.sensitivity)
    assert found["cpm_chance"].between(0, 1).all() and found["sensitivity_chance"].between(0, 1).all()
    before, after = froc_sentences(found)
    assert f"CPM {expected.cpm:.3f}" in before and "by chance (other patients' lesions; p " in before
    assert "a change of" in after
    with pytest.raises(InputError, match="give images=, or leave froc out"):
        mp.repair(encoded, network, sae, LATENTS, froc=True)


def test_scaling_by_one_changes_nothing(encoded: LatentTable, network: MammoClipClassifier, sae: Any) -> None:
    done = mp.repair(encoded, network, sae, LATENTS, scale=1, n_bootstrap=20, min_patients=1)
    before, after = (done.performance.iloc[number] for number in (0, 1))
    assert after["auroc"] == before["auroc"] and after["auroc_change"] == 0


def test_an_inner_layers_repair_is_measured_by_running_the_network(phantoms: VinDrMammo, tmp_path: Path) -> None:
    network = calibrated_classifier(1)
    inner = random_sae(56, hook_name="blocks.4.1.hook_out")
    part = phantoms.select(split="test")
    with HookedVisionModel(network, ["blocks.4.1"]) as hooked:
        table = encode_latents(hooked, inner, part, tmp_path / "table", heads={"Mass": network.classifier})
    with pytest.raises(InputError, match=r"give the images of the table"):
        mp.repair(table, network, inner, [1])
    same = mp.repair(table, network, inner, [1], scale=1, images=part, n_bootstrap=0)
    assert same.performance["auroc"].nunique() == 1
    with pytest.raises(InputError, match="use kind='exact'"):
        mp.repair(table, network, inner, [1], kind="linear", images=part)


def test_what_does_not_belong_together_is_refused(encoded: LatentTable, sae: Any, tmp_path: Path) -> None:
    network = calibrated_classifier(1)
    for latents, message in (([], "latents is empty"), ([64], "from 0 to 63"), ([1, 1], "twice")):
        with pytest.raises(InputError, match=message):
            mp.repair(encoded, network, sae, latents, n_bootstrap=0)
    with pytest.raises(InputError, match="made with another SAE"):
        mp.repair(encoded, network, random_sae(network.num_features, seed=5), [1])
    with pytest.raises(InputError, match="network of other weights"):
        mp.repair(encoded, calibrated_classifier(1, seed=3), sae, [1])
    with pytest.raises(InputError, match="has no column 'device' to tell groups by; it has"):
        mp.repair(encoded, network, sae, [1], group="device", n_bootstrap=0)
    done = mp.repair(encoded, network, sae, [1], n_bootstrap=0)
    with pytest.raises(InputError, match=r"name a \.safetensors, or repair with kind='linear'"):
        done.save(tmp_path / "a.pth")
    with pytest.raises(InputError, match="ends in .bin"):
        done.save(tmp_path / "a.bin")
    with HookedVisionModel(network, ["bn2"]), pytest.raises(InputError, match="close its HookedVisionModel first"):
        fold_latents(network, sae, [1])
    done.save(tmp_path / "a.safetensors")  # as the refusals say, from here on
    fold_latents(network, sae, [1])
    gated = SAE.from_dict(
        {"architecture": "gated", "d_in": network.num_features, "d_sae": 8, "metadata": {"hook_name": "bn2.hook_out"}}
    )
    narrow = random_sae(24)
    with pytest.raises(InputError, match=r"Scale the directions in the head instead \(kind='linear'\), or wrap the"):
        fold_latents(network, gated, [1])
    assert project_head(network, gated, [1]).n_class == 1
    with HookedVisionModel(network, ["bn2"]) as hooked, torch.no_grad():
        assert hooked.run_with_saes(torch.zeros(1, 3, 96, 64), saes=[gated]).shape == (1, 1)
    with pytest.raises(InputError, match="a head that reads 1280 numbers, but the SAE has width 24"):
        project_head(network, narrow, [1])
    scaled = SAE.from_dict({**sae.cfg.to_dict(), "normalize_activations": "layer_norm"})
    with pytest.raises(InputError, match=r"each row by itself first \(layer_norm\); take one that was trained without"):
        fold_latents(network, scaled, [1])


class Doubled(StandardSAE):
    """An SAE that calls itself standard and is not."""

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().encode(x)


def test_an_sae_that_encodes_otherwise_than_it_says_is_repaired_in_the_head(network: MammoClipClassifier) -> None:
    plain = random_sae(network.num_features)
    doubled = Doubled(plain.cfg)
    doubled.load_state_dict(plain.state_dict())
    with pytest.raises(InputError, match=r"computes its latents in another way .*in the head instead \(kind='linear'"):
        fold_latents(network, doubled, [1])
    assert project_head(network, doubled, [1]).n_class == 1


def test_calibration_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=4000) * 2
    labels = (rng.random(4000) < 1 / (1 + np.exp(-logits))).astype(int)
    true = calibration(labels, logits, np.repeat(np.arange(2000), 2))
    assert true.slope_interval[0] < 1 < true.slope_interval[1] and true.ece < 0.03 and abs(true.excess) < 0.02
    overconfident = calibration(labels, 3 * logits)
    assert overconfident.slope == pytest.approx(true.slope / 3, rel=1e-4) and overconfident.ece > 0.05
    probability = 1 / (1 + np.exp(-logits))
    bins = np.array_split(np.argsort(logits, kind="stable"), 10)
    expected = sum(abs(probability[rows].mean() - labels[rows].mean()) for rows in bins) / 10
    assert true.ece == pytest.approx(expected) and true.brier == pytest.approx(np.mean((probability - labels) ** 2))
    apart = calibration([0, 0, 1, 1], [-2.0, -1, 1, 2])
    assert np.isnan(apart.slope) and np.isnan(apart.slope_interval).all()


def test_the_command_writes_the_classifier_a_page_and_numbers(finished_study: Study, tmp_path: Path) -> None:
    study = finished_study.output.parent / "study.yaml"
    path = tmp_path / "repaired.safetensors"
    named = ["--concept", "Mass"]
    done = mammosae("repair", study, "--latents", "1,2", "-l", "5", "--group", "view", "-o", path, *named)
    assert done.returncode == 0, done.stderr
    assert "view=CC" in done.stdout and "patients" in done.stdout and "ECE has no interval: " in done.stdout
    assert "exact:" in done.stdout and "FROC is left out" in done.stdout
    said = json.loads(path.with_suffix(".json").read_text())
    assert said["repair"]["latents"] == [1, 2, 5] and said["performance"][1]["stage"] == "after"
    page = path.with_suffix(".html").read_text()
    assert "Mass: latents 1, 2, 5 removed" in page and "view=CC" in page and "not a medical device" in page
    assert load_classifier(path).source["metadata"]["repair"] == {**done_as(said)}
    inner = mammosae("repair", study, "--latents", "3", "--layer", "layer_6", "-o", tmp_path / "i.safetensors", *named)
    assert inner.returncode == 0 and load_classifier(tmp_path / "i.safetensors").n_class == 1, inner.stderr


def test_the_command_writes_over_its_own_files_alone(finished_study: Study, tmp_path: Path) -> None:
    study = finished_study.output.parent / "study.yaml"
    path = tmp_path / "new" / "repaired.safetensors"  # a folder that is made
    for edited in ("", "mine"):
        done = mammosae("repair", study, "--latents", "1", "-o", path, "--concept", "Mass")
        assert done.returncode == 0 and load_classifier(path).n_class == 1, done.stderr
        path.with_suffix(".json").write_text(edited or "earlier")
    kept = path.parent / "repaired.edited.json"
    assert kept.read_text() == "earlier" and not path.with_name("repaired.edited.safetensors").exists()
    before = {one: one.read_bytes() for one in path.parent.iterdir()}
    given = finished_study.config.models[0].classifiers["Mass"]
    table = next(iter(finished_study.primary.tables.values())).folder
    places = [
        (kept.with_suffix(".safetensors"), f"{kept} is in the way, and of no earlier run"),
        (path.with_suffix(".pth"), f"{path} was written by an earlier run and would be lost"),
        (given, f"{given} is an input of the study; name another place"),
        (table / "x.safetensors", f"is in {finished_study.work}, the study's own folder"),
    ]
    for place, message in places:
        named = ["--concept", "Mass", "--kind", "linear"]
        done = mammosae("repair", study, "--latents", "1", "-o", place, *named)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert {one: one.read_bytes() for one in path.parent.iterdir()} == before
    assert not list(table.glob("x.*")) and given.exists()
    done = mammosae("repair", tmp_path / "study.yaml", "--latents", "1", "-o", tmp_path / "a.safetensors")
    assert done.returncode == 2 and "study.yaml" in done.stderr and done.stderr.count("\n") == 1
    assert [one.name for one in tmp_path.iterdir()] == ["new"]


def test_latents_that_never_fire_and_slopes_that_say_nothing_are_named(
    encoded: LatentTable, network: MammoClipClassifier, sae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = encoded.rows("Mass", split="test").image_rows
    codes = encoded.mean_latents.toarray()
    codes[rows, 9] = 0
    monkeypatch.setitem(encoded.__dict__, "mean_latents", sparse.csr_array(codes))
    done = mp.repair(encoded, network, sae, [9, 2], n_bootstrap=0)
    patients = encoded.images["patient_id"].to_numpy()
    of_two = [row for row in rows if codes[row, 2]]
    expected = [[9, 0, 0], [2, len(of_two), len(set(patients[of_two]))]]
    assert done.firing.to_numpy().tolist() == expected and of_two
    assert "latent 9 fires in no image of the split, so scaling it changes nothing there" in done.notes
    assert f"2 in {len(of_two)} images of {expected[1][2]} patients" in done.notes[0]
    linear = mp.repair(encoded, network, sae, [9], kind="linear", n_bootstrap=0)
    assert "latent 9 fires in no image of the split; a linear repair scales" in linear.notes[1]
    logits = encoded.logits("Mass")
    monkeypatch.setattr(LatentTable, "logits", lambda *_: 1e-4 * logits / logits.std())
    (_, row) = mp.repair(encoded, network, sae, [9], n_bootstrap=0).performance.iloc
    assert (
        np.isnan(row["calibration_slope"])
        and row["reason"] == "no slope: the logits hardly differ (standard deviation 0.0001)"
    )


def done_as(said: dict[str, Any]) -> dict[str, Any]:
    return {name: said["repair"][name] for name in ("latents", "scale", "kind", "hook_name", "concept")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--latents", "1"], "name the file to write"),
        (["-o", "a.safetensors"], "name the latents"),
        (["--latents", "one", "-o", "a.safetensors"], "give numbers of latents"),
        (
            ["--latents", "1", "-o", "a.safetensors"],
            "has the concepts Mass, Suspicious_Calcification; name one with --concept",
        ),
        (["--latents", "1", "-o", "a.safetensors", "--model", "x"], "has no model 'x'; it has pretrained"),
        (["--latents", "1", "-o", "a.safetensors", "--layer", "x"], "has no layer 'x'; it has layer_6, layer_10"),
        (["--latents", "1", "-o", "a.safetensors", "--set", "output=/nowhere"], "/nowhere holds no finished study"),
        (["--latents", "64", "-o", "a.safetensors", "--concept", "Mass"], "hold 64: give whole numbers from 0 to 63"),
        (["--latents", "1,1", "-o", "a.safetensors", "--concept", "Mass"], "hold 1 twice: give each once"),
        (["--latents", "1,,2", "-o", "a.safetensors", "--concept", "Mass"], "--latents has '': give numbers"),
        (["--latents", "-1", "-o", "a.safetensors", "--concept", "Mass"], "--latents has '-1': give numbers"),
        (["--latents", "²", "-o", "a.safetensors", "--concept", "Mass"], "--latents has '²': give numbers"),
        (["--latents", "1", "-o", "a.bin", "--concept", "Mass"], "a.bin ends in .bin; name a .safetensors or .pth"),
        (["--latents", "1", "-o", "a.pth", "--concept", "Mass"], "or repair with kind='linear' (--kind linear)"),
        (["--latents", "1", "-o", "/dev/null/a.safetensors"], "/dev/null is no folder, so a.safetensors cannot lie"),
        (["--latents", "1", "-o", "a.safetensors", "--concept", "Moss"], "has no concept 'Moss'; it has Mass"),
        (
            ["--latents", "1", "-o", "b/a.safetensors", "--concept", "Mass", "--group", "device"],
            "has no column 'device' to tell groups by; it has",
        ),
        (
            ["--latents", "1", "-o", "b/a.safetensors", "--concept", "Mass", "--group", "patient_id"],
            "patient_id makes no groups of patients; name a column of the patients",
        ),
    ],
)
def test_the_command_refuses_in_one_line(
    finished_study: Study, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = mammosae("repair", finished_study.output.parent / "study.yaml", *arguments)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not list(tmp_path.iterdir())
