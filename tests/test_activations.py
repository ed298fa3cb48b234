import shutil
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pytest
import torch
from helpers_adapters import calibrated_classifier
from helpers_layers import layer_of

from mammosae_plugin.activations import (
    LayerOutputs,
    cache_layer_outputs,
    capture,
    extract_activations,
    extract_together,
    extraction,
    image_batches,
    layer_output_nbytes,
    layer_outputs,
    patient_number,
)
from mammosae_plugin.activations.extraction import sampled_positions
from mammosae_plugin.adapters import HookedVisionModel, new_classifier
from mammosae_plugin.adapters.recording import evaluation
from mammosae_plugin.datasets import BadImageError, VinDrMammo
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import write_json
from mammosae_plugin.training import Augmentation


@pytest.fixture(scope="module")
def hooked(classifier):
    with HookedVisionModel(classifier, ["blocks.3", "bn2"]) as model:
        yield model


@pytest.fixture(scope="module")
def store(hooked, phantoms, tmp_path_factory):
    return extract_activations(
        hooked, phantoms, tmp_path_factory.mktemp("store"), hook_name="bn2", fraction=0.5, seed=3, batch_size=4
    )


def values_at(hooked, image, hook_name="bn2.hook_out"):
    """(n, d) of one image (3, H, W), by a pass of its own."""
    with torch.inference_mode():
        value = capture(hooked, hook_name, image[None])[0]
    return value.reshape(-1, value.shape[-1])


def test_rows_are_the_hook_points_values_at_the_recorded_images_and_positions(store, hooked, phantoms):
    images, positions = store.labels()
    for row in (0, 7, store.n_rows - 1):
        expected = values_at(hooked, phantoms[int(images[row])]["image"])[positions[row]]
        torch.testing.assert_close(store.take(np.array([row]))[0], expected, rtol=1e-4, atol=1e-5)
    assert (np.bincount(images) == 3).all()  # half of 3 x 2 positions, of each of the 48 images
    assert len(set(zip(images.tolist(), positions.tolist(), strict=True))) == store.n_rows == 48 * 3


def test_the_sampled_positions_depend_on_seed_and_image_only():
    one = sampled_positions("a.png", 100, 25, seed=1)
    assert len(one) == len(set(one)) == 25
    assert (np.diff(one) > 0).all()
    assert (one == sampled_positions("a.png", 100, 25, seed=1)).all()
    assert (one != sampled_positions("b.png", 100, 25, seed=1)).any()
    assert (one != sampled_positions("a.png", 100, 25, seed=2)).any()
    assert (sampled_positions("a.png", 5, 9, seed=1) == np.arange(5)).all()


def same_files(one, other):
    """Whether two folders hold the same files with the same bytes."""
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (one, other)]
    return contents[0] == contents[1]


def test_two_extractions_are_bit_equal_whatever_reads_the_images(store, hooked, phantoms, tmp_path):
    """Batches of worker processes come in the same order, and hold the same."""
    settings = {"hook_name": "bn2", "fraction": 0.5, "seed": 3, "batch_size": 4}
    extract_activations(hooked, phantoms, tmp_path / "workers", **settings, num_workers=2)
    assert same_files(store.folder, tmp_path / "workers")


def test_the_same_image_gives_the_same_rows_in_any_company(store, hooked, phantoms, tmp_path):
    few = phantoms.select(image_ids=phantoms.images["image_id"][5:9])
    settings = {"hook_name": "bn2", "fraction": 0.5, "seed": 3}
    alone = extract_activations(hooked, few, tmp_path / "few", **settings)
    torch.testing.assert_close(alone.rows_of([1]), store.rows_of([6]), rtol=1e-4, atol=1e-5)
    other = extract_activations(hooked, few, tmp_path / "other", **settings | {"seed": 4})
    positions = [[s.labels()[1][s.labels()[0] == n].tolist() for n in range(4)] for s in (alone, other)]
    assert positions[0] != positions[1]


def test_a_count_of_positions_per_image_replaces_the_fraction(hooked, phantoms, tmp_path):
    store = extract_activations(hooked, phantoms.select(split="test"), tmp_path, hook_name="bn2", count=4)
    assert (np.bincount(store.labels()[0]) == 4).all()
    assert (store.manifest["count"], store.manifest["fraction"]) == (4, None)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rows_are_stored_in_half_the_bytes(hooked, phantoms, tmp_path, dtype):
    images = phantoms.select(split="test")
    whole = extract_activations(hooked, images, tmp_path / "whole", batch_size=4)
    half = extract_activations(hooked, images, tmp_path / "half", batch_size=4, dtype=dtype)
    assert half.dtype == getattr(torch, dtype)
    sizes = [next(store.folder.glob("shard-*")).stat().st_size for store in (half, whole)]
    assert sizes[0] < 0.51 * sizes[1]
    numbers = range(len(images))
    assert torch.equal(half.rows_of(numbers), whole.rows_of(numbers).to(half.dtype).float())


def test_autocast_changes_the_rows_a_little_and_is_in_the_manifest(hooked, phantoms, tmp_path):
    images = phantoms.select(split="test")
    exact = extract_activations(hooked, images, tmp_path / "exact", batch_size=4).rows_of(range(len(images)))
    low = extract_activations(hooked, images, tmp_path / "low", batch_size=4, autocast="bfloat16")
    assert low.manifest["autocast"] == "bfloat16"
    difference = (low.rows_of(range(len(images))) - exact).norm() / exact.norm()
    assert 1e-4 < difference < 0.1


def test_several_layers_are_read_in_one_pass(hooked, phantoms, tmp_path, monkeypatch):
    images, passes, run = phantoms.select(split="test"), [], HookedVisionModel.run_with_cache

    def counted(self, batch, **settings):
        passes.append(len(batch))
        return run(self, batch, **settings)

    monkeypatch.setattr(HookedVisionModel, "run_with_cache", counted)
    stores = extract_activations(hooked, images, tmp_path / "both", hook_names=["blocks.3", "bn2"], batch_size=4)
    assert sum(passes) == len(images)
    for name, store in stores.items():
        alone = extract_activations(hooked, images, tmp_path / name, hook_name=name, batch_size=4)
        assert store.folder == tmp_path / "both" / name
        assert same_files(store.folder, alone.folder)
    assert [store.d_in for store in stores.values()] == [hooked.hook_shapes[name][-1] for name in stores]
    # Where one layer's shard is lost, only its images are read again, and only for it.
    (stores["bn2.hook_out"].folder / "shard-00000.safetensors").unlink()
    again = extract_activations(hooked, images, tmp_path / "both", hook_names=["blocks.3", "bn2"], batch_size=4)
    assert same_files(again["bn2.hook_out"].folder, tmp_path / "bn2.hook_out")


def test_several_models_share_one_reading_of_the_images(hooked, phantoms, tmp_path, monkeypatch):
    images = phantoms.select(split="test")
    reads, get = [], type(images).__getitem__
    monkeypatch.setattr(type(images), "__getitem__", lambda self, index: reads.append(index) or get(self, index))
    with HookedVisionModel(calibrated_classifier(1, seed=5), ["bn2"]) as other:
        sources = {"one": (hooked, "bn2"), "two": (other, "bn2"), "inner": (hooked, "blocks.3")}
        stores = extract_together(sources, images, tmp_path, count=2, batch_size=4)
        assert reads == list(range(len(images)))
        for name, (model, hook_name) in sources.items():
            image, position = stores[name].labels()
            expected = values_at(model, images[0]["image"], model.resolve_hook_name(hook_name))
            expected = expected[np.sort(position[image == 0])]
            torch.testing.assert_close(stores[name].rows_of([0]), expected, rtol=1e-4, atol=1e-5)
    assert stores["one"].manifest["model"] == stores["inner"].manifest["model"] != stores["two"].manifest["model"]


def test_the_manifest_says_what_the_rows_are(store, hooked, phantoms):
    manifest = store.manifest
    assert (manifest["format_version"], manifest["hook_name"], manifest["dtype"]) == (3, "bn2.hook_out", "float32")
    assert manifest["layout"] == {"kind": "map", "grid": [3, 2], "prefix_tokens": 0}
    assert manifest["image_ids"] == phantoms.images["image_id"].tolist()
    assert manifest["dataset"] == phantoms.fingerprint
    assert manifest["splits"] == ["test", "training"]
    assert (manifest["fraction"], manifest["count"], manifest["seed"]) == (0.5, None, 3)
    patients = phantoms.images["patient_id"].tolist()
    assert len(set(manifest["patients"])) == len(set(patients))
    assert manifest["patients"] == [patient_number(patient) for patient in patients]
    assert manifest["patients"][0] < 2**53


def test_image_batches_come_in_order_and_cover_the_range(phantoms):
    found = list(image_batches(phantoms, range(3, 10), 3))
    assert [first for first, _ in found] == [3, 6, 9]
    assert torch.equal(torch.cat([images for _, images in found])[4], phantoms[7]["image"])


def test_image_batches_of_several_ranges_do_not_cross_their_borders(phantoms):
    found = list(image_batches(phantoms, [range(3), range(8, 10)], 2, num_workers=1))
    assert [(first, len(images)) for first, images in found] == [(0, 2), (2, 1), (8, 2)]
    assert torch.equal(found[-1][1][1], phantoms[9]["image"])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_in_one_line(tmp_path, num_workers):
    with layer_of("torch_cnn", tmp_path) as layer:
        layer.dataset.path(3).write_bytes(b"no image")
        with pytest.raises(BadImageError) as caught:
            extract_activations(
                layer.model, layer.dataset, tmp_path / "rows", hook_name=layer.hook_name, num_workers=num_workers
            )
    assert "c1.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_inner_layer_extracts_channels_last(hooked, phantoms, tmp_path):
    store = extract_activations(hooked, phantoms.select(split="test"), tmp_path, hook_name="blocks.3")
    assert store.d_in == hooked.hook_shapes["blocks.3.hook_out"][-1]
    assert store.manifest["splits"] == ["test"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 0.0}, "fraction is 0.0"),
        ({"fraction": 1.5}, "fraction is 1.5"),
        ({"count": 0}, "count is 0"),
        ({"count": 3, "fraction": 0.5}, "not as both"),
        ({"dtype": "int8"}, "dtype is 'int8': choose one of float32"),
        ({"autocast": "float8"}, "autocast is 'float8'"),
        ({"hook_names": ["bn2"]}, "hook_name or hook_names, not both"),
    ],
)
def test_an_impossible_setting_is_refused_before_anything_is_written(hooked, phantoms, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        extract_activations(hooked, phantoms, tmp_path, hook_name="bn2", **settings)
    assert not any(tmp_path.iterdir())


def test_a_dataset_of_annotation_rows_is_refused(hooked, phantom_root, tmp_path):
    rows = VinDrMammo(phantom_root, image_size=(96, 64), unit="finding_row")
    with pytest.raises(InputError, match="unit='image'"):
        extract_activations(hooked, rows, tmp_path)


def test_features_that_are_not_finite_stop_the_extraction_and_name_the_image(phantoms, tmp_path):
    from mammosae_plugin.adapters import new_classifier

    model = new_classifier("tinynet_e", 1, seed=1)
    model.conv_head.weight.data[0] = float("nan")
    with HookedVisionModel(model, ["bn2"]) as hooked, pytest.raises(InputError, match=r"not finite for image .*\.png"):
        extract_activations(hooked, phantoms, tmp_path, hook_name="bn2")


def test_rows_of_a_map_of_tokens_and_of_a_vector_are_extracted(tmp_path):
    with layer_of("vit", tmp_path) as layer:
        network, dataset = layer.model.model, layer.dataset
        patches = extract_activations(layer.model, dataset, tmp_path / "map", hook_name="blocks.1")
    example = torch.zeros(1, 3, 64, 64)
    with HookedVisionModel(network, ["blocks.1", "fc_norm"], example_input=example, prefix_tokens="keep") as model:
        tokens = extract_activations(model, dataset, tmp_path / "tokens", hook_name="blocks.1", batch_size=4)
        vectors = extract_activations(model, dataset, tmp_path / "vectors", hook_name="fc_norm")
        half = extract_activations(model, dataset, tmp_path / "half", hook_name="fc_norm", fraction=0.5)
        with torch.inference_mode():
            _, cache = model.run_with_cache(torch.stack([dataset[number]["image"] for number in range(6)]))
    assert (patches.n_rows, tokens.n_rows, vectors.n_rows, half.n_rows) == (6 * 16, 6 * 17, 6, 6)
    expected = cache["blocks.1.hook_out"]
    torch.testing.assert_close(patches.rows_of(range(6)), expected[:, 1:].flatten(0, 1))
    torch.testing.assert_close(tokens.rows_of(range(6)), expected.flatten(0, 1))
    torch.testing.assert_close(vectors.rows_of(range(6)), cache["fc_norm.hook_out"])
    layouts = [store.manifest["layout"] for store in (patches, tokens, vectors)]
    assert [(layout["kind"], layout["grid"], layout["prefix_tokens"]) for layout in layouts] == [
        ("tokens", [4, 4], 0),
        ("tokens", None, 1),
        ("vector", None, 0),
    ]


def test_an_early_layer_has_fewer_images_in_a_shard_so_that_memory_stays_bounded(tmp_path, monkeypatch):
    with layer_of("torch_cnn", tmp_path) as layer:
        nbytes = 12 * 12 * 8 * 4  # 12 x 8 positions of 12 channels in float32
        monkeypatch.setattr(extraction, "BYTES_PER_SHARD", 2 * nbytes + 5)
        store = extract_activations(layer.model, layer.dataset, tmp_path / "rows", hook_name=layer.hook_name)
        half = extract_activations(
            layer.model, layer.dataset, tmp_path / "half", hook_name=layer.hook_name, fraction=0.5
        )
        both = extract_together(
            {"a": (layer.model, layer.hook_name), "b": (layer.model, layer.hook_name)}, layer.dataset, tmp_path
        )
    assert [shard["rows"] for shard in store.manifest["shards"]] == [2 * 96] * 3
    assert [shard["rows"] for shard in half.manifest["shards"]] == [4 * 48, 2 * 48]
    assert [shard["rows"] for shard in both["a"].manifest["shards"]] == [96] * 6


def test_extraction_without_a_name_takes_the_final_map(hooked, phantoms, tmp_path):
    store = extract_activations(hooked, phantoms.select(split="test"), tmp_path, fraction=0.2)
    assert store.manifest["hook_name"] == "bn2.hook_out"


def test_extraction_without_a_name_needs_a_final_map(tmp_path):
    with layer_of("efficientnet", tmp_path) as layer:
        network, dataset = layer.model.model, layer.dataset
    with (
        HookedVisionModel(network, ["blocks.3"], example_input=torch.zeros(1, 3, 96, 64)) as model,
        pytest.raises(InputError, match="no hook point at its final map; name the layer"),
    ):
        extract_activations(model, dataset, tmp_path / "rows")


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """The cached outputs of a layer whose model keeps maps in channels-last memory, and of one that does not."""
    folder = tmp_path_factory.mktemp("cached")
    found = {}
    for family in ("efficientnet", "resnet", "vit"):
        with layer_of(family, folder / family) as layer:
            with torch.inference_mode():
                expected = layer.model.read(layer.images, layer.hook_name).raw
                said = layer_output_nbytes(layer.model, layer.hook_name, layer.dataset.image_size)
            outputs = cache_layer_outputs(
                layer.model, layer.dataset, folder / family / "cache", hook_name=layer.hook_name, batch_size=4
            )
            found[family] = (outputs, expected, said)
    return found


@pytest.mark.parametrize("family", ["efficientnet", "resnet", "vit"])
def test_the_cache_gives_the_modules_own_output_of_each_image(cached, family):
    outputs, expected, said = cached[family]
    assert outputs.n_images == len(expected) == 6
    assert outputs.image_ids == ("a1.png", "a2.png", "b1.png", "c1.png", "c2.png", "d1.png")
    for number in range(6):
        raw = outputs.raw(number)
        torch.testing.assert_close(raw, expected[number : number + 1], rtol=1e-4, atol=1e-4)
        assert outputs.number_of(outputs.image_ids[number]) == number
        if raw.dim() == 4:
            last = torch.channels_last
            assert raw.is_contiguous(memory_format=last) == expected.is_contiguous(memory_format=last)
    assert outputs.nbytes_per_image == said == expected[0].numel() * 4
    with pytest.raises(InputError, match="there is no image 6: .* has the images 0 to 5"):
        outputs.raw(6)
    with pytest.raises(InputError, match=r"has no output for image z\.png"):
        outputs.number_of("z.png")


def test_the_caches_cover_both_orders_of_memory(cached):
    assert [cached[family][0].manifest["channels_last_memory"] for family in ("efficientnet", "resnet")] == [
        True,
        False,
    ]


def test_a_cache_killed_halfway_continues_and_ends_byte_identical(tmp_path, monkeypatch):
    with layer_of("torch_cnn", tmp_path) as layer:
        arguments = {"hook_name": layer.hook_name, "batch_size": 1}
        monkeypatch.setattr(layer_outputs, "BYTES_PER_SHARD", 2 * layer_output_nbytes(layer.model, "middle", (96, 64)))
        whole = cache_layer_outputs(layer.model, layer.dataset, tmp_path / "whole", **arguments)
        with torch.inference_mode():
            expected = layer.model.read(layer.images, layer.hook_name).raw
        read, passes = HookedVisionModel.read, []

        def dies(self, images, hook_name):
            passes.append(1)
            if len(passes) == 4:
                raise KeyboardInterrupt
            return read(self, images, hook_name)

        monkeypatch.setattr(HookedVisionModel, "read", dies)
        with pytest.raises(KeyboardInterrupt):
            cache_layer_outputs(layer.model, layer.dataset, tmp_path / "broken", **arguments)
        with pytest.raises(InputError, match="not a complete cache of layer outputs"):
            LayerOutputs(tmp_path / "broken")
        done = len(passes)
        cache_layer_outputs(layer.model, layer.dataset, tmp_path / "broken", **arguments)
    assert len(passes) - done == 4  # the images of the two shards that were missing
    for path in whole.folder.iterdir():
        assert (tmp_path / "broken" / path.name).read_bytes() == path.read_bytes(), path.name
    assert len(list(whole.folder.glob("shard-*"))) == 3
    for number in range(6):
        torch.testing.assert_close(whole.raw(number), expected[number : number + 1])


def test_a_disk_without_room_is_said_in_one_line_before_anything_is_written(tmp_path, monkeypatch):
    with layer_of("torch_cnn", tmp_path) as layer:
        nbytes = layer_output_nbytes(layer.model, "middle", (96, 64))
        arguments = {"hook_name": "middle"}
        monkeypatch.setattr(layer_outputs, "BYTES_PER_SHARD", 2 * nbytes)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=6 * nbytes - 1))
        with pytest.raises(
            InputError, match=r"middle\.hook_out for 6 images need 0 MB in .*write to another disk, or choose a later"
        ):
            cache_layer_outputs(layer.model, layer.dataset, tmp_path / "new" / "cache", **arguments)
        assert not (tmp_path / "new").exists()
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=6 * nbytes))
        outputs = cache_layer_outputs(layer.model, layer.dataset, tmp_path / "new" / "cache", **arguments)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        assert cache_layer_outputs(layer.model, layer.dataset, outputs.folder, **arguments).n_images == 6


def test_rows_without_room_on_the_disk_are_refused_before_the_first_image(tmp_path, monkeypatch):
    with layer_of("torch_cnn", tmp_path) as layer:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
        with pytest.raises(InputError, match=r"the rows for 6 images need .*choose fewer positions or fewer images"):
            extract_activations(layer.model, layer.dataset, tmp_path / "new", hook_name=layer.hook_name)
    assert not (tmp_path / "new").exists()


def test_layer_outputs_that_were_exchanged_or_edited_are_refused_and_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(layer_outputs, "IMAGES_PER_SHARD", 2)
    with layer_of("torch_cnn", tmp_path) as layer:
        folder = tmp_path / "cache"

        def make():
            return cache_layer_outputs(layer.model, layer.dataset, folder, hook_name="middle")

        found = make()
        whole = {path.name: path.read_bytes() for path in folder.iterdir()}
        shutil.copy(folder / "shard-00002.safetensors", folder / "shard-00000.safetensors")
        with pytest.raises(InputError, match=r"shard-00000\.safetensors holds what shard-00002\.safetensors should"):
            LayerOutputs(folder).raw(0)
        make()
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
        edits = {"hook_name": "top", "image_ids": found.manifest["image_ids"][::-1], "channels_last_memory": None}
        for field, value in edits.items():
            write_json(folder / "layer_outputs.json", found.manifest | {field: value})
            with pytest.raises(InputError, match=r"layer_outputs\.json was changed"):
                LayerOutputs(folder)
            make()
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
        old = {key: value for key, value in found.manifest.items() if key != "sha256"} | {"format_version": 1}
        write_json(folder / "layer_outputs.json", old)
        assert torch.equal(LayerOutputs(folder).raw(1), found.raw(1))


def test_the_first_images_are_extracted_augmented_as_seed_and_id_say(hooked, phantoms, tmp_path):
    change = Augmentation("mammo_clip")
    settings = {"hook_name": "bn2", "seed": 3, "augmentation": change}
    found = extract_activations(hooked, phantoms, tmp_path / "a", limit=5, **settings)
    assert found.image_ids == tuple(phantoms.images["image_id"][:5])
    assert found.manifest["limit"] == 5
    assert found.manifest["augmentation"] == {
        "name": "Augmentation",
        "kind": "mammo_clip",
        "elastic_alpha": 10.0,
        "elastic_sigma": 15.0,
        "elastic_affine": 50.0,
    }
    assert "5 images" in found.summary() and "augmented" in found.summary()
    for number in range(5):
        item = phantoms[number]
        generator = np.random.default_rng([3, 1, crc32(item["image_id"].encode())])
        expected = values_at(hooked, change(item["image"], generator))
        torch.testing.assert_close(found.rows_of([number]), expected, rtol=1e-4, atol=1e-4)
    plain = extract_activations(hooked, phantoms, tmp_path / "plain", limit=5, hook_name="bn2", seed=3)
    assert not torch.equal(plain.rows_of(range(5)), found.rows_of(range(5)))
    other = extract_activations(
        hooked, phantoms.select(image_ids=found.image_ids[2:4]), tmp_path / "b", num_workers=1, **settings
    )
    assert torch.equal(other.rows_of([0, 1]), found.rows_of([2, 3]))
    more = extract_activations(hooked, phantoms, tmp_path / "all", limit=10**6, hook_name="bn2", count=1)
    assert len(more.image_ids) == len(phantoms)
    with pytest.raises(InputError, match=r"limit is 5 there and 6 here"):
        extract_activations(hooked, phantoms, tmp_path / "a", limit=6, **settings)


def test_a_share_of_a_batchs_positions_is_drawn_from_all_of_its_images(hooked, phantoms, tmp_path):
    settings = {"hook_name": "bn2", "fraction": 0.25, "limit": 10, "batch_size": 4, "sample_from": "batch"}
    found = extract_activations(hooked, phantoms, tmp_path / "a", **settings)
    image, position = found.labels()
    n_positions = values_at(hooked, phantoms[0]["image"]).shape[0]
    of_batch = [int(((image >= first) & (image < first + 4)).sum()) for first in (0, 4, 8)]
    assert of_batch == [round(n_positions), round(n_positions), round(n_positions / 2)]  # 4, 4 and 2 images
    assert len(set(zip(image.tolist(), position.tolist(), strict=True))) == found.n_rows  # none twice
    assert len(set(np.bincount(image, minlength=10).tolist())) > 1  # other numbers of different images
    rows = found.rows_of(range(10))
    order = np.lexsort((position, image))
    for row, number, place in zip(rows, image[order], position[order], strict=True):
        torch.testing.assert_close(row, values_at(hooked, phantoms[int(number)]["image"])[place], rtol=1e-4, atol=1e-4)
    again = extract_activations(hooked, phantoms, tmp_path / "b", **settings)
    assert torch.equal(again.rows_of(range(10)), rows)


@pytest.mark.parametrize("read", ["rows", "layer outputs", "size"])
def test_reading_leaves_the_model_as_it_was(phantoms, tmp_path, read):
    network = new_classifier("tinynet_e", 1, seed=0)
    with HookedVisionModel(network, ["bn2"]) as model:
        network.train()
        network.blocks[2].eval()
        network.conv_stem.requires_grad_(False)
        before = {
            name: (module.training, [p.requires_grad for p in module.parameters(recurse=False)])
            for name, module in model.named_modules()
        }
        numbers = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        random_state = torch.get_rng_state()
        if read == "rows":
            extract_activations(model, phantoms, tmp_path, count=2, batch_size=4)
        elif read == "size":
            layer_output_nbytes(model, "bn2", (96, 64))
        else:
            cache_layer_outputs(model, phantoms, tmp_path, hook_name="bn2", batch_size=4)
        assert {
            name: (module.training, [p.requires_grad for p in module.parameters(recurse=False)])
            for name, module in model.named_modules()
        } == before
        assert all(torch.equal(tensor, numbers[name]) for name, tensor in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_a_model_is_put_back_where_its_parts_were():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2).cuda())
    first = network[0].weight
    with evaluation(network, device="cuda"):
        assert first.device.type == "cuda"
    assert [tensor.device.type for tensor in network.state_dict().values()] == ["cpu"] * 2 + ["cuda"] * 5
    assert network[0].weight is first


def test_a_store_of_phantoms_says_that_they_are_phantoms(store):
    assert store.manifest["dataset_name"] == "phantom"
    assert "vindr" not in store.summary()


def test_a_refused_extraction_names_the_setting_that_differs(store, hooked, phantoms):
    same = {"hook_name": "bn2", "fraction": 0.5, "seed": 3, "batch_size": 4}
    for changed, told in [
        ({"seed": 4}, r"\(seed is 3 there and 4 here\)"),
        ({"dtype": "float16"}, r'\(dtype is "float32" there and "float16" here\)'),
        (
            {"hook_name": "blocks.3"},
            r'hook_name is "bn2\.hook_out" there and "blocks\.3\.hook_out" here; layout\.grid is',
        ),
    ]:
        with pytest.raises(InputError, match=told):
            extract_activations(hooked, phantoms, store.folder, **same | changed)


def test_a_cache_of_another_layer_or_model_is_refused(tmp_path):
    with layer_of("torch_cnn", tmp_path) as layer:
        cache_layer_outputs(layer.model, layer.dataset, tmp_path / "cache", hook_name="middle")
        with pytest.raises(InputError, match="holds the result of other settings"):
            cache_layer_outputs(layer.model, layer.dataset, tmp_path / "cache", hook_name="top")
        with pytest.raises(InputError, match=r"no hook point 'midle'; did you mean middle"):
            cache_layer_outputs(layer.model, layer.dataset, tmp_path / "cache", hook_name="midle")
        with torch.no_grad():
            layer.head.bias.fill_(torch.nan)
            layer.model.model.stem[0].weight.fill_(torch.inf)
        with pytest.raises(InputError, match=r"not finite for image a1\.png"):
            cache_layer_outputs(layer.model, layer.dataset, tmp_path / "infinite", hook_name="middle")
