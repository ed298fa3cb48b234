import numpy as np
import pytest
import torch

from mammosae_plugin.activations import ActivationStore, capture, extract_activations, extraction, image_batches
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
