import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers_layers import layer_of

from mammosae_plugin.activations import (
    ActivationStore,
    LayerOutputs,
    cache_layer_outputs,
    capture,
    extract_activations,
    extraction,
    image_batches,
    layer_output_nbytes,
    layer_outputs,
)
from mammosae_plugin.activations.extraction import sampled_positions
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.errors import InputError


@pytest.fixture(scope="module")
def hooked(classifier):
    with HookedVisionModel(classifier, ["blocks.3", "bn2"]) as model:
        yield model


@pytest.fixture(scope="module")
def store(hooked, phantoms, tmp_path_factory):
    return extract_activations(
        hooked, phantoms, tmp_path_factory.mktemp("store"), hook_name="bn2", fraction=0.5, seed=3, batch_size=4
    )


def test_rows_are_the_hook_points_values_at_the_recorded_images_and_positions(store, hooked, phantoms):
    shard = store._shards[0]
    for row in (0, 7, len(shard["rows"]) - 1):
        image = phantoms[int(shard["image"][row])]["image"]
        with torch.inference_mode():
            value = capture(hooked, "bn2.hook_out", image[None])[0].reshape(-1, store.d_in)
        torch.testing.assert_close(shard["rows"][row], value[int(shard["position"][row])], rtol=1e-4, atol=1e-5)


def test_the_sampled_positions_depend_on_seed_and_image_only():
    one = sampled_positions("a.png", 100, 0.25, seed=1)
    assert len(one) == 25
    assert len(set(one)) == 25
    assert (one == sampled_positions("a.png", 100, 0.25, seed=1)).all()
    assert (one != sampled_positions("b.png", 100, 0.25, seed=1)).any()
    assert (one != sampled_positions("a.png", 100, 0.25, seed=2)).any()


def test_two_extractions_are_bit_equal(store, hooked, phantoms, tmp_path):
    again = extract_activations(hooked, phantoms, tmp_path, hook_name="bn2", fraction=0.5, seed=3, batch_size=4)
    assert torch.equal(store._shards[0]["rows"], again._shards[0]["rows"])


def test_an_extraction_killed_halfway_ends_byte_identical(hooked, phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "IMAGES_PER_SHARD", 16)
    whole = extract_activations(hooked, phantoms, tmp_path / "whole", hook_name="bn2", batch_size=4)
    calls = []

    def dies(model, hook_name, images):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return capture(model, hook_name, images)

    monkeypatch.setattr(extraction, "capture", dies)
    with pytest.raises(KeyboardInterrupt):
        extract_activations(hooked, phantoms, tmp_path / "broken", hook_name="bn2", batch_size=4)
    with pytest.raises(InputError, match="not a complete activation store"):
        ActivationStore(tmp_path / "broken")
    extract_activations(hooked, phantoms, tmp_path / "broken", hook_name="bn2", batch_size=4)
    for path in whole.folder.iterdir():
        assert (tmp_path / "broken" / path.name).read_bytes() == path.read_bytes(), path.name


def test_every_row_comes_exactly_once_per_epoch(store):
    batches = store.batches(7, seed=0)
    n_epochs = 2
    wanted = n_epochs * store.n_rows
    taken = torch.cat([next(batches) for _ in range(-(-wanted // 7))])[:wanted]
    everything = store.take(np.arange(store.n_rows))
    for epoch in range(n_epochs):
        rows = taken[epoch * store.n_rows : (epoch + 1) * store.n_rows]
        assert torch.equal(rows.sort(dim=0).values, everything.sort(dim=0).values)
    assert not torch.equal(taken[: store.n_rows], taken[store.n_rows :])


def test_a_stream_started_at_a_batch_equals_the_stream_from_the_start(store):
    from_start = store.batches(32, seed=5)
    batches = [next(from_start) for _ in range(12)]
    from_eighth = store.batches(32, seed=5, start=8)
    for batch in batches[8:]:
        assert torch.equal(batch, next(from_eighth))


def test_image_batches_come_in_order_and_cover_the_range(phantoms):
    found = list(image_batches(phantoms, range(3, 10), 3))
    assert [first for first, _ in found] == [3, 6, 9]
    assert torch.equal(torch.cat([images for _, images in found])[4], phantoms[7]["image"])


def test_an_inner_layer_extracts_channels_last(hooked, phantoms, tmp_path):
    store = extract_activations(hooked, phantoms.select(split="test"), tmp_path, hook_name="blocks.3")
    assert store.d_in == hooked.hook_shapes["blocks.3.hook_out"][-1]
    assert store.manifest["splits"] == ["test"]


@pytest.mark.parametrize("fraction", [0.0, 1.5])
def test_an_impossible_fraction_is_refused(hooked, phantoms, tmp_path, fraction):
    with pytest.raises(InputError, match="fraction"):
        extract_activations(hooked, phantoms, tmp_path, hook_name="bn2", fraction=fraction)
    assert not any(tmp_path.iterdir())


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
    torch.testing.assert_close(patches.take(np.arange(96)), expected[:, 1:].flatten(0, 1))
    torch.testing.assert_close(tokens.take(np.arange(102)), expected.flatten(0, 1))
    torch.testing.assert_close(vectors.take(np.arange(6)), cache["fc_norm.hook_out"])


def test_an_early_layer_has_fewer_images_in_a_shard_so_that_memory_stays_bounded(tmp_path, monkeypatch):
    with layer_of("torch_cnn", tmp_path) as layer:
        nbytes = 12 * 12 * 8 * 4  # 12 x 8 positions of 12 channels in float32
        monkeypatch.setattr(extraction, "BYTES_PER_SHARD", 2 * nbytes + 5)
        store = extract_activations(layer.model, layer.dataset, tmp_path / "rows", hook_name=layer.hook_name)
        half = extract_activations(
            layer.model, layer.dataset, tmp_path / "half", hook_name=layer.hook_name, fraction=0.5
        )
    assert [len(shard["rows"]) for shard in store._shards] == [2 * 96] * 3
    assert [len(shard["rows"]) for shard in half._shards] == [4 * 48, 2 * 48]


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
            if len(passes) == 5:
                raise KeyboardInterrupt
            return read(self, images, hook_name)

        monkeypatch.setattr(HookedVisionModel, "read", dies)
        with pytest.raises(KeyboardInterrupt):
            cache_layer_outputs(layer.model, layer.dataset, tmp_path / "broken", **arguments)
        with pytest.raises(InputError, match="not a complete cache of layer outputs"):
            LayerOutputs(tmp_path / "broken")
        done = len(passes)
        cache_layer_outputs(layer.model, layer.dataset, tmp_path / "broken", **arguments)
    assert len(passes) - done == 1 + 4  # the blank image, and the images of the two shards that were missing
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
            OSError, match=r"middle\.hook_out for 6 images need 0\.0 GB in .*name another folder, a later"
        ):
            cache_layer_outputs(layer.model, layer.dataset, tmp_path / "new" / "cache", **arguments)
        assert not (tmp_path / "new").exists()
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=6 * nbytes))
        outputs = cache_layer_outputs(layer.model, layer.dataset, tmp_path / "new" / "cache", **arguments)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        assert cache_layer_outputs(layer.model, layer.dataset, outputs.folder, **arguments).n_images == 6


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
