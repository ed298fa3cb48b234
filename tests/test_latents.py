import copy
import re
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_study import random_sae
from sae_lens import SAE, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file, save_file
from scipy import sparse

from mammosae_plugin.activations import capture
from mammosae_plugin.adapters import HookedVisionModel, new_classifier
from mammosae_plugin.adapters.preprocessing import MAMMO_CLIP
from mammosae_plugin.analysis.intervention import intervene, latent_group
from mammosae_plugin.analysis.probing import class_mean_latents, rank_latents
from mammosae_plugin.analysis.reconstruction import reconstruction_quality
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import write_json
from mammosae_plugin.latents import LatentTable, encode_latents, encoding
from mammosae_plugin.latents import table as table_format


@pytest.fixture(scope="module")
def hooked(classifier):
    with HookedVisionModel(classifier, ["bn2"]) as model:
        yield model


@pytest.fixture(scope="module")
def sae(classifier):
    return random_sae(classifier.num_features)


@pytest.fixture(scope="module")
def images(phantoms, encoded):
    """The images in the table's order: training first."""
    number_of = {image_id: number for number, image_id in enumerate(phantoms.images["image_id"])}
    return torch.stack([phantoms[number_of[image_id]]["image"] for image_id in encoded.images["image_id"]])


@pytest.fixture(scope="module")
def features(hooked, images):
    """(n, h * w, d) float64: the final map of every image."""
    with torch.inference_mode():
        return torch.stack([capture(hooked, "bn2.hook_out", image[None])[0] for image in images]).flatten(1, 2).double()


@pytest.fixture(scope="module")
def latents(features, sae):
    """(n, h * w, d_sae) float64, by the formula relu((x - b_dec) W_enc + b_enc)."""
    with torch.inference_mode():
        return torch.relu((features - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double())


def test_the_table_holds_every_image_once_training_first(encoded, phantoms):
    assert sorted(encoded.images["image_id"]) == sorted(phantoms.images["image_id"])
    assert encoded.splits == ("training", "test")
    assert (encoded.images["split"] == sorted(encoded.images["split"], reverse=True)).all()


def test_mean_and_maximum_over_positions_equal_the_formula(encoded, latents):
    np.testing.assert_allclose(encoded.mean_latents.toarray(), latents.mean(1).numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(encoded.max_latents.toarray(), latents.amax(1).numpy(), rtol=1e-4, atol=1e-5)


def test_logits_equal_the_networks_own_without_and_with_the_sae(encoded, hooked, sae, images):
    with torch.inference_mode():
        own = torch.cat([hooked(image[None]) for image in images])
        spliced = torch.cat([hooked.run_with_saes(image[None], saes=sae) for image in images])
    np.testing.assert_allclose(encoded.logits("Mass"), own.numpy(), atol=1e-4)
    np.testing.assert_allclose(encoded.logits_with_sae("Mass"), spliced.numpy(), atol=1e-4)
    assert (own - spliced).abs().max() > 1e-2


@pytest.mark.parametrize("error_term", [False, True])
@pytest.mark.parametrize("mode", ["activate", "deactivate"])
@pytest.mark.parametrize("k", [0, 1, 5, 20, 64])
def test_the_linear_form_equals_running_the_network_with_the_masked_sae(
    encoded, hooked, sae, images, mode, k, error_term
):
    ranking = rank_latents(class_mean_latents(encoded, "Mass"))
    group = latent_group(ranking, k)
    mask = torch.full((sae.cfg.d_sae,), float(mode == "deactivate"))
    mask[torch.from_numpy(group)] = float(mode == "activate")
    hook = ("bn2.hook_out.hook_sae_acts_post", lambda value, hook: value * mask)
    with torch.inference_mode():
        expected = hooked.run_with_hooks_with_saes(images[::5], saes=sae, use_error_term=error_term, fwd_hooks=[hook])
    found = intervene(
        encoded, group, mode=mode, head="Mass", error_term=error_term, image_rows=np.arange(len(images))[::5]
    )
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_maps_are_the_latents_over_positions_and_kept_only_for_test_images_with_a_box(encoded, latents):
    h, w = encoded.grid
    with_maps = [row for row in encoded.images.index if len(encoded.map_latents(row))]
    findings = encoded.findings.dropna(subset=["xmin"])
    boxed = findings[encoded.images["split"].to_numpy()[findings["image_row"]] == "test"]["image_row"]
    assert with_maps == sorted(boxed.unique()) != []
    row = with_maps[0]
    expected = latents[row, :, [3, 0, 9]].T.reshape(3, h, w)
    np.testing.assert_allclose(encoded.maps([3, 0, 9], row), expected.numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="no map of latent 40"):
        encoded.maps([40], row)


def test_channels_of_the_layer_itself_are_kept_as_latents_are(encoded, features):
    np.testing.assert_allclose(encoded.mean_channels, features.mean(1).numpy(), rtol=1e-4, atol=1e-6)
    row = next(row for row in encoded.images.index if len(encoded.map_channels(row)))
    assert encoded.map_channels(row).tolist() == [5, 700]
    expected = features[row, :, [700, 5, 700]].T.reshape(3, *encoded.grid)
    np.testing.assert_allclose(encoded.channel_maps([700, 5, 700], row), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert encoded.channel_maps([], row).shape == (0, *encoded.grid)
    with pytest.raises(InputError, match="no map of channel 6 for image row .* encode again with it in map_channels"):
        encoded.channel_maps([6], row)
    with pytest.raises(InputError, match="keeps no Grad-CAM of 'Mass'; encode again with gradcam=True"):
        encoded.gradcam("Mass", row)


def test_latents_that_are_negative_fire_and_keep_their_mean(hooked, features, phantoms, tmp_path):
    config = AbsTopKSAEConfig(d_in=1280, d_sae=24, k=4, metadata=SAEMetadata(hook_name="bn2.hook_out"))
    signed = AbsTopKSAE(config)
    table = _encode(hooked, signed, phantoms.select(split="training"), tmp_path)
    with torch.inference_mode():
        expected = signed.encode(features[: len(table.images)].float())
    assert (expected.amax(1) <= 0).logical_and((expected != 0).any(1)).any()  # fires, and is nowhere positive
    np.testing.assert_allclose(table.mean_latents.toarray(), expected.mean(1).numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(table.max_latents.toarray(), expected.amax(1).numpy(), rtol=1e-4, atol=1e-5)
    assert table.live_latents().tolist() == torch.nonzero((expected != 0).any(0).any(0)).flatten().tolist()
    assert table.reconstruction_sums("training")["l0"] == torch.count_nonzero(expected)


def test_reconstruction_quality_equals_the_formula(encoded, features, latents, sae):
    test = (encoded.images["split"] == "test").to_numpy()
    x, z = features[torch.tensor(test)].flatten(0, 1), latents[torch.tensor(test)].flatten(0, 1)
    error = z @ sae.W_dec.double() + sae.b_dec.double() - x
    quality = reconstruction_quality(encoded, "test")
    expected = 1 - (error**2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert quality.explained_variance == pytest.approx(expected.item(), rel=1e-5)
    assert quality.l0 == pytest.approx(float((z > 0).sum(1).double().mean()), rel=1e-4)
    assert quality.n_dead == int((z <= 0).all(0).sum()) >= sae.cfg.d_sae // 8


def test_live_latents_are_those_that_fire_in_the_split(encoded, latents):
    training = (encoded.images["split"] == "training").to_numpy()
    fires = (latents[torch.tensor(training)] > 0).any(0).any(0)
    assert encoded.live_latents("training").tolist() == torch.nonzero(fires).flatten().tolist()
    assert 0 not in encoded.live_latents("training")


def test_rows_count_images_or_annotation_rows(encoded):
    by_image = encoded.rows("Mass", split="test")
    by_finding = encoded.rows("Mass", split="test", unit="finding_row")
    in_test = encoded.findings[encoded.images["split"].to_numpy()[encoded.findings["image_row"]] == "test"]
    assert len(by_image.labels) == (encoded.images["split"] == "test").sum()
    assert len(by_finding.labels) == len(in_test) > len(by_image.labels)
    assert by_finding.labels.sum() == in_test["Mass"].sum()
    assert set(by_image.image_rows) == set(by_finding.image_rows)
    mixed = pd.Series(by_finding.labels).groupby(by_finding.image_rows).nunique()
    assert (mixed > 1).any()  # an image with a mass and another finding is 1 in one row and 0 in another


def test_boxes_are_those_of_the_concept_only(encoded, phantoms):
    for row in encoded.images.index[encoded.images["split"] == "test"]:
        number = phantoms.images.index[phantoms.images["image_id"] == encoded.images["image_id"][row]][0]
        boxes = phantoms[number]["boxes"]
        for concept in ("Mass", "Suspicious_Calcification"):
            np.testing.assert_array_equal(encoded.boxes(row, concept), boxes[concept].numpy())


def _bytes_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _encode(hooked, sae, phantoms, folder, **changes):
    heads = {"Mass": hooked.model.classifier}
    settings = {"heads": heads, "map_latents": [1, 2], "batch_size": 4, "shard_size": 8, **changes}
    return encode_latents(hooked, sae, phantoms, folder, **settings)


def test_an_encoding_killed_anywhere_continues_and_ends_byte_identical(hooked, sae, phantoms, tmp_path, monkeypatch):
    whole = _bytes_of(_encode(hooked, sae, phantoms, tmp_path / "whole").folder)
    attempts = 0

    def dies_often(self, images, hook_name):
        nonlocal attempts
        attempts += 1
        if attempts % 5 == 0:
            raise KeyboardInterrupt
        return read(self, images, hook_name)

    read = HookedVisionModel.read
    monkeypatch.setattr(HookedVisionModel, "read", dies_often)
    kills = 0
    for _ in range(40):
        try:
            _encode(hooked, sae, phantoms, tmp_path / "broken")
            break
        except KeyboardInterrupt:
            kills += 1
            with pytest.raises(InputError, match="not a complete latents table"):
                LatentTable(tmp_path / "broken")
    assert kills >= 3
    assert _bytes_of(tmp_path / "broken") == whole


def test_maps_can_be_chosen_from_the_training_split_while_the_test_split_waits(hooked, sae, phantoms, tmp_path):
    seen = []

    def best(table):
        seen.append(table.splits)
        return rank_latents(class_mean_latents(table, "Mass")).indices[1, :3]

    table = _encode(hooked, sae, phantoms, tmp_path, map_latents=best)
    assert seen == [("training",)]
    expected = sorted(rank_latents(class_mean_latents(table, "Mass")).indices[1, :3])
    row = next(row for row in table.images.index if len(table.map_latents(row)))
    assert table.map_latents(row).tolist() == expected


def test_the_documented_way_to_read_the_table_without_this_package_works(encoded, tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "latents-table.md").read_text()
    snippet = re.search(r"```python\n(.*?)```", page, flags=re.DOTALL)[1].replace('"TABLE"', repr(str(encoded.folder)))
    (tmp_path / "read.py").write_text(
        f"{snippet}\nimport sys\nassert not {{'torch', 'mammosae_plugin'}} & set(sys.modules)\n"
        f"assert len(images) == mean.shape[0]\nscipy.sparse.save_npz('mean.npz', mean)\n"
    )
    subprocess.run([sys.executable, "read.py"], check=True, cwd=tmp_path)
    np.testing.assert_array_equal(sparse.load_npz(tmp_path / "mean.npz").toarray(), encoded.mean_latents.toarray())


def test_memory_of_a_shard_does_not_hold_the_images(encoded):
    shard = load_file(encoded.folder / "training" / "shard-00000.safetensors")
    n_images = len(shard["indptr"]) - 1
    per_image = sum(tensor.numel() for name, tensor in shard.items() if not name.startswith("total.")) / n_images
    assert per_image < (5 + 2 * 5) * encoded.d_sae + encoded.d_in + 16  # up to five peaks are two numbers each


def test_an_sae_of_another_width_is_refused_before_anything_is_written(hooked, phantoms, tmp_path):
    with pytest.raises(InputError, match="width 32, but bn2.hook_out of this model has width 1280"):
        _encode(hooked, random_sae(32), phantoms, tmp_path / "table")
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize(
    ("name", "outputs", "message"),
    [
        ("Nope", 1, "no labels for 'Nope'"),
        ("Mas", 1, r"no labels for 'Mas' \(nearest: Mass"),
        ("Mass", 3, "the head of Mass has 3 outputs, but Mass has 2 classes: give one with 1 or 2"),
        ("density", 2, "the head of density has 2 outputs, but density has 4 classes: give one with 1 or 4"),
    ],
)
def test_a_head_that_is_of_no_concept_is_refused_before_anything_is_written(
    hooked, sae, phantoms, tmp_path, name, outputs, message
):
    heads = {name: torch.nn.Linear(hooked.model.num_features, outputs)}
    with pytest.raises(InputError, match=message) as error:
        encode_latents(hooked, sae, phantoms, tmp_path / "table", heads=heads)
    assert "\n" not in str(error.value) and not (tmp_path / "table").exists()


def test_an_sae_that_does_not_decode_linearly_is_refused(hooked, phantoms, tmp_path):
    normalising = random_sae(1280)
    config = StandardSAEConfig.from_dict({**normalising.cfg.to_dict(), "normalize_activations": "layer_norm"})
    sae = StandardSAE(config)
    sae.load_state_dict(normalising.state_dict())
    advice = r"by itself \(layer_norm\), which no weights can hold; .* or leave the heads out \(heads=\{\}\)"
    with pytest.raises(InputError, match="does not decode as latents @ W_dec.*" + advice):
        _encode(hooked, sae, phantoms, tmp_path / "table")
    assert not (tmp_path / "table").exists()
    encode_latents(hooked, sae, phantoms, tmp_path / "table", heads={})
    assert (tmp_path / "table").exists()


def test_an_sae_without_a_layer_is_encoded_at_the_final_map(hooked, phantoms, tmp_path):
    sae = random_sae(1280)
    sae.cfg.metadata.hook_name = None
    table = _encode(hooked, sae, phantoms.select(split="test"), tmp_path)
    assert (table.hook_name, table.readout_kind) == ("bn2.hook_out", "linear")


@pytest.mark.parametrize(("what", "name"), [("SAE", "W_dec"), ("SAE", "b_enc"), ("classifier for Mass", "weight")])
def test_weights_that_are_not_finite_are_refused_before_anything_is_written(
    hooked, sae, phantoms, tmp_path, what, name
):
    sae, head = copy.deepcopy(sae), torch.nn.Linear(7, 1)
    with torch.no_grad():
        (sae if what == "SAE" else head).get_parameter(name).view(-1)[1] = torch.inf
    with pytest.raises(InputError, match=f"the {what} has 1 of .* values in {name} that are NaN or infinite"):
        encode_latents(hooked, sae, phantoms, tmp_path / "t", heads={"Mass": head})
    assert not (tmp_path / "t").exists()


def test_a_head_of_another_width_is_refused(hooked, sae, phantoms, tmp_path):
    with pytest.raises(InputError, match="classifier for Mass reads 7 features, but this model's own reads 1280"):
        _encode(hooked, sae, phantoms, tmp_path / "table", heads={"Mass": torch.nn.Linear(7, 1)})
    assert not (tmp_path / "table").exists()


def test_a_table_of_the_first_format_is_refused_by_name(encoded, tmp_path):
    write_json(tmp_path / "table.json", {**encoded.header, "format_version": 1})
    with pytest.raises(InputError, match="has latents-table format 1; this version reads format 3, so install"):
        LatentTable(tmp_path)


def test_images_preprocessed_otherwise_into_the_same_folder_are_refused(hooked, sae, phantoms, tmp_path):
    few = phantoms.select(image_ids=phantoms.images["image_id"][:4])
    encode_latents(hooked, sae, few, tmp_path, heads={})
    with pytest.raises(InputError, match="other settings .*preprocessing is"):
        encode_latents(hooked, sae, few.with_preprocessing(replace(MAMMO_CLIP, mean=0.4)), tmp_path, heads={})


def test_so_are_those_of_a_dataset_that_prepares_them_itself(hooked, sae, phantoms, tmp_path, monkeypatch):
    few = phantoms.select(image_ids=phantoms.images["image_id"][:4])
    encode_latents(hooked, sae, few, tmp_path, heads={})

    class Darker(type(few)):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            return {**item, "image": item["image"] * 0.5}

    monkeypatch.setattr(few, "__class__", Darker)
    with pytest.raises(InputError, match="other settings .*dataset is"):
        encode_latents(hooked, sae, few, tmp_path, heads={})


def test_another_sae_into_the_same_folder_is_refused(hooked, sae, phantoms, tmp_path):
    _encode(hooked, sae, phantoms, tmp_path)
    with pytest.raises(InputError, match=r'other settings \(sae is "\w+\.\.\. there and "\w+\.\.\. here\)'):
        _encode(hooked, random_sae(1280, seed=1), phantoms, tmp_path)


@pytest.mark.parametrize("change", [{"k": 2}, {"apply_b_dec_to_input": False}])
def test_so_is_one_of_the_same_weights_and_another_setting_but_beside_what_an_older_version_made(
    hooked, sae, phantoms, tmp_path, monkeypatch, change
):
    few = phantoms.select(image_ids=phantoms.images["image_id"][:4])
    one = TopKSAE(TopKSAEConfig(d_in=sae.cfg.d_in, d_sae=sae.cfg.d_sae, k=3))
    one.load_state_dict(sae.state_dict())
    other = copy.deepcopy(one)
    for name, value in change.items():
        setattr(other.cfg, name, value)
    encode_latents(hooked, one, few, tmp_path / "new", heads={})
    with pytest.raises(InputError, match="other settings"):
        encode_latents(hooked, other, few, tmp_path / "new", heads={})
    with monkeypatch.context() as older:
        older.setattr(encoding, "settings_in", lambda *_: None)
        encode_latents(hooked, one, few, tmp_path / "old", heads={})
    before = _bytes_of(tmp_path / "old")
    encode_latents(hooked, one, few, tmp_path / "old", heads={})
    assert _bytes_of(tmp_path / "old") == before


def test_what_was_exchanged_or_edited_in_a_table_is_named_and_made_again(hooked, sae, phantoms, tmp_path):
    found = _encode(hooked, sae, phantoms, tmp_path, shard_size=8)
    whole = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def copied(source, target):
        (tmp_path / target).write_bytes((tmp_path / source).read_bytes())

    def edited():
        frame = pd.read_parquet(tmp_path / "test" / "images.parquet")
        frame.assign(Mass=1 - frame["Mass"]).to_parquet(tmp_path / "test" / "images.parquet")

    for spoil, match in [
        (lambda: copied("training/shard-00001.safetensors", "training/shard-00000.safetensors"), "were exchanged"),
        (lambda: copied("training/shard-00000.safetensors", "test/shard-00000.safetensors"), "of another job"),
        (lambda: copied("training/done.json", "test/done.json"), r"test/done\.json was changed"),
        (lambda: write_json(tmp_path / "table.json", found.header | {"hook_name": "x"}), r"table\.json was changed"),
        (lambda: write_json(tmp_path / "table.json", found.header | {"heads": ["Cyst"]}), r"table\.json was changed"),
        (lambda: copied("test/images.parquet", "training/images.parquet"), r"training/images\.parquet was changed"),
        (edited, r"test/images\.parquet was changed"),
        (lambda: (tmp_path / "readout.safetensors").unlink(), r"readout\.safetensors was changed"),
    ]:
        spoil()
        with pytest.raises(InputError, match=match):
            _ = LatentTable(tmp_path).mean_latents
        _encode(hooked, sae, phantoms, tmp_path, shard_size=8)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == whole


def test_a_table_of_format_2_is_still_read(encoded, tmp_path):
    shutil.copytree(encoded.folder, tmp_path / "old")
    for part in ("training", "test"):
        for shard in (tmp_path / "old" / part).glob("shard-*"):
            save_file(load_file(shard), shard)
        digests = {path.name: "not read" for path in (tmp_path / "old" / part).glob("shard-*")}
        write_json(tmp_path / "old" / part / "done.json", {"shards": digests})
    header = {key: value for key, value in encoded.header.items() if key not in ("files", "sha256", "vocabulary")}
    write_json(tmp_path / "old" / "table.json", header | {"format_version": 2})
    old = LatentTable(tmp_path / "old")
    assert (old.mean_latents != encoded.mean_latents).nnz == 0
    assert old.images.equals(encoded.images)
    assert old.vocabulary == encoded.vocabulary and old.classes("birads") == (0, 1, 2, 3, 4)


def test_a_new_statistic_asks_for_no_image_again_but_of_what_reads_it(hooked, sae, phantoms, tmp_path, monkeypatch):
    few = phantoms.select(image_ids=phantoms.images["image_id"][:4])
    first = encode_latents(hooked, sae, few, tmp_path / "table", heads={})
    before = {path: path.read_bytes() for path in (tmp_path / "table").rglob("*") if path.is_file()}
    monkeypatch.setattr(table_format, "ELEMENTS", {**table_format.ELEMENTS, "entropies": 1, "channels": 2})
    monkeypatch.setattr(encoding, "ELEMENTS", table_format.ELEMENTS)
    monkeypatch.setattr(encoding, "image_batches", lambda *_: pytest.fail("an image was read again"))
    again = encode_latents(hooked, sae, few, tmp_path / "table", heads={})
    assert (again.mean_latents != first.mean_latents).nnz == 0
    assert {path: path.read_bytes() for path in (tmp_path / "table").rglob("*") if path.is_file()} == before
    with pytest.raises(InputError, match="had no entropies of version 1 yet; encode again, into another folder"):
        again.need("entropies")
    with pytest.raises(InputError, match="had no channels of version 2 yet"):
        _ = again.mean_channels
    monkeypatch.undo()
    made = encode_latents(hooked, sae, few, tmp_path / "new", heads={})
    assert made.elements == table_format.ELEMENTS == made.header["elements"]


@pytest.mark.parametrize(
    ("read", "most"),
    [
        (lambda table: table.mean_channels, 1.1),
        (lambda table: table._statistics, 1.5),  # of three columns one is there twice
    ],
    ids=["channels", "statistics"],
)
def test_what_a_table_of_many_shards_holds_is_not_in_memory_twice(encoded, monkeypatch, read, most):
    n, n_shards, width = 64, 60, 256
    table = LatentTable(encoded.folder)
    table.d_in, table.heads = width, ()
    table.__dict__.update(_shards=range(n_shards), images=range(n * n_shards))

    def shard(number: int, names: list[str]) -> dict[str, np.ndarray]:
        counts, rows = np.arange(n + 1), partial(np.full, (n, width), number, dtype=np.float32)
        return {name: counts if name == "indptr" else rows() for name in names}

    monkeypatch.setattr(table_format, "_read", shard)
    tracemalloc.start()
    try:
        found = read(table)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most * held
    whole = found if isinstance(found, np.ndarray) else found["max"]
    assert np.array_equal(whole, np.repeat(np.arange(n_shards), n)[:, None] * np.ones((1, width)))


@pytest.mark.parametrize(
    ("element", "read"),
    [
        ("labels", lambda table: table.images),
        ("latents", lambda table: table.max_latents),
        ("channels", lambda table: table.mean_channels),
        ("logits", lambda table: table.logits("Mass")),
        ("readout", lambda table: table.readout("Mass")),
        ("maps", lambda table: table.maps([0], int(next(iter(table._map_places))))),
        ("channel_maps", lambda table: table.channel_maps([5], int(next(iter(table._map_places))))),
        ("sums", lambda table: table.reconstruction_sums("test")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_of_a_table_of_a_newer_version_the_elements_that_are_known_are_read(encoded, element, read):
    header = {**encoded.header, "elements": {**encoded.elements, element: 2, "unheard_of": 1}}
    table = LatentTable(encoded.folder, header=header)
    if element != "labels":
        assert table.images.equals(encoded.images)
    with pytest.raises(InputError, match=f"holds its {element} in version 2; this version of mammosae-plugin reads 1"):
        read(table)
    assert read(LatentTable(encoded.folder)) is not None


def test_unknown_concepts_splits_and_heads_are_named(encoded):
    with pytest.raises(InputError, match="no labels for 'Cyst'"):
        encoded.rows("Cyst", split="test")
    with pytest.raises(InputError, match="no split 'validation'"):
        encoded.rows("Mass", split="validation")
    with pytest.raises(InputError, match="no classifier for 'density'"):
        encoded.logits("density")


def test_encoding_leaves_model_and_sae_as_they_were(sae, phantoms, tmp_path):
    network = new_classifier("tinynet_e", 1, seed=0)
    with HookedVisionModel(network, ["bn2"]) as model:
        model.train()
        network.bn1.eval()  # a mixed state, as in fine-tuning with frozen statistics
        network.conv_stem.requires_grad_(False)
        network.blocks[0].requires_grad_(False)
        sae = random_sae(network.num_features).train()
        sae.b_dec.requires_grad_(False)
        before, state = _settings(model, sae), _numbers(model, sae)
        assert len({training for training, _ in before.values()}) == 2
        _encode(model, sae, phantoms, tmp_path / "table")
        assert _settings(model, sae) == before
        with pytest.raises(InputError):
            _encode(model, random_sae(3), phantoms, tmp_path / "wrong")
        assert _settings(model, sae) == before
        assert all(torch.equal(tensor, state[name]) for name, tensor in _numbers(model, sae).items())


def _settings(*modules):
    """Mode and gradient flags of every submodule."""
    return {
        (number, name): (module.training, [p.requires_grad for p in module.parameters(recurse=False)])
        for number, root in enumerate(modules)
        for name, module in root.named_modules()
    }


def _numbers(*modules):
    return {
        (n, name): tensor.clone() for n, module in enumerate(modules) for name, tensor in module.state_dict().items()
    }


@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder"])
def test_a_transcoder_is_refused_before_anything_is_written(hooked, phantoms, tmp_path, architecture):
    widths = {"d_in": 1280, "d_out": 1280, "d_sae": 32, "apply_b_dec_to_input": False}
    transcoder = SAE.from_dict({"architecture": architecture, "metadata": {"hook_name": "bn2"}, **widths})
    with pytest.raises(InputError, match="is a transcoder, from one layer to another"):
        _encode(hooked, transcoder, phantoms, tmp_path / "table")
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize("scaling", ["expected_average_only_in", "covariance_whitening"])
def test_an_sae_whose_scale_is_not_in_its_weights_is_refused_until_it_is_folded(hooked, phantoms, tmp_path, scaling):
    sae = random_sae(1280)
    sae.cfg.normalize_activations = scaling
    with pytest.raises(InputError, match=rf"was trained on scaled rows \({scaling}\) and would see them unscaled"):
        _encode(hooked, sae, phantoms, tmp_path / "table")
    with pytest.raises(InputError, match="would see them unscaled"):
        hooked.add_sae(sae)
    assert not (tmp_path / "table").exists()
    sae.fold_activation_norm_scaling_factor(0.5)
    _encode(hooked, sae, phantoms, tmp_path / "table")


def test_a_scaling_that_was_only_written_into_the_config_is_refused(hooked, phantoms, tmp_path):
    sae = random_sae(1280)
    sae.cfg.normalize_activations = "layer_norm"  # said after the SAE was made, it does nothing
    with pytest.raises(InputError, match=r"scaled rows \(layer_norm\) and would see them unscaled"):
        _encode(hooked, sae, phantoms, tmp_path / "table")


def test_a_flipped_byte_in_a_shard_is_found_when_the_table_is_read(encoded, tmp_path):
    copy = tmp_path / "table"
    shutil.copytree(encoded.folder, copy)
    shard = next(copy.rglob("shard-*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        _ = LatentTable(copy).mean_latents
    with pytest.raises(InputError, match="is damaged"):
        LatentTable(copy).reconstruction_sums(shard.parent.name)
