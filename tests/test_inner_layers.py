"""Extraction, SAE training, encoding, probing and localization at inner layers of every family of backbones."""

import copy

import numpy as np
import pytest
import torch
from helpers_layers import Layer, layer_of
from helpers_study import random_sae
from sae_lens import SAE

from mammosae_plugin.activations import cache_layer_outputs, extract_activations
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.analysis.intervention import intervene
from mammosae_plugin.analysis.localization import localize, localize_baselines
from mammosae_plugin.analysis.probing import best_single_latent, class_mean_latents, rank_channels, rank_latents
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import LatentTable, encode_latents
from mammosae_plugin.latents.encoding import rows_at_once
from mammosae_plugin.latents.masked_passes import MaskedPasses
from mammosae_plugin.training import SAETraining, train_sae

FAMILIES = ("efficientnet", "resnet", "convnext", "swin", "vit", "vit_registers", "torch_cnn")
# Where the mean over positions is what the classifier reads; the others normalise after pooling, or read a class token.
LINEAR_AT_THE_END = {
    "efficientnet": True,
    "resnet": True,
    "convnext": False,
    "swin": True,
    "vit": False,
    "vit_registers": False,
    "torch_cnn": True,
}


@pytest.fixture(scope="module", params=FAMILIES)
def encoded_layer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    with layer_of(request.param, folder) as layer:
        yield layer, layer.encode(folder / "table", map_latents=[2, 1], map_channels=[3], map_splits=("training",))


def values_of(layer: Layer) -> torch.Tensor:
    """(n, h, w, C) at the hook point, by the ordinary cache of the hookable model."""
    with torch.inference_mode():
        _, cache = layer.model.run_with_cache(layer.images, names_filter=layer.hook_name)
    return cache[layer.hook_name]


def test_a_table_of_any_layer_holds_the_latents_and_channels_at_every_position(encoded_layer):
    layer, table = encoded_layer
    values = values_of(layer)
    with torch.inference_mode():
        latents = layer.sae.encode(values)
        errors = (layer.sae.decode(latents) - values).square()
    assert table.hook_name == layer.hook_name
    assert table.readout_kind == "network"
    assert table.grid == tuple(values.shape[1:3]) == layer.model.grid(layer.hook_name, layer.dataset.image_size)
    assert (table.d_in, table.d_sae) == (values.shape[-1], 48)
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(table.mean_latents.toarray(), latents.mean((1, 2)).numpy(), **close)
    np.testing.assert_allclose(table.max_latents.toarray(), latents.amax((1, 2)).numpy(), **close)
    np.testing.assert_allclose(table.mean_channels, values.mean((1, 2)).numpy(), **close)
    row = int(np.flatnonzero(table.images["image_id"] == "a2.png")[0])
    np.testing.assert_allclose(table.maps([1, 2], row), latents[row, ..., [1, 2]].permute(2, 0, 1).numpy(), **close)
    np.testing.assert_allclose(table.channel_maps([3], row)[0], values[row, ..., 3].numpy(), **close)
    assert len(table.map_latents(0)) == len(table.map_channels(0)) == 0  # the image without a box
    expected = errors[3:].sum((0, 1, 2)).numpy()  # the last three images are the test split
    np.testing.assert_allclose(table.reconstruction_sums("test")["sse"], expected, rtol=1e-4)


def test_logits_of_any_layer_are_the_networks_without_and_with_the_sae(encoded_layer):
    layer, table = encoded_layer
    with torch.inference_mode():
        own, spliced = layer.model(layer.images), layer.model.run_with_saes(layer.images, saes=layer.sae)
    np.testing.assert_allclose(table.logits("Mass"), own.numpy(), atol=1e-4 * float(own.abs().max()))
    np.testing.assert_allclose(table.logits_with_sae("Mass"), spliced.numpy(), atol=1e-4 * float(spliced.abs().max()))
    assert (own - spliced).abs().max() > 1e-2
    with pytest.raises(InputError, match="logits are not linear in the mean latents"):
        table.readout("Mass")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_readout_of_the_last_layer_is_found_by_measuring(family, tmp_path):
    with layer_of(family, tmp_path, final=True) as layer:
        table = layer.encode(tmp_path / "table")
        assert table.readout_kind == ("linear" if LINEAR_AT_THE_END[family] else "network")
        with torch.inference_mode():
            spliced = layer.model.run_with_saes(layer.images, saes=layer.sae).numpy()
        np.testing.assert_allclose(table.logits_with_sae("Mass"), spliced, atol=1e-4 * np.abs(spliced).max())
        if LINEAR_AT_THE_END[family]:
            readout = table.readout("Mass")
            linear = readout.offset + table.mean_latents @ readout.weight
            np.testing.assert_allclose(linear, spliced, atol=1e-4 * np.abs(spliced).max())


class ReluBeforePooling(torch.nn.Module):
    """Its map is positive already, so that the second ReLU does nothing until a reconstruction comes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=8), torch.nn.Softplus())
        self.fc = torch.nn.Linear(8, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(images).relu().mean((2, 3)))


def test_a_relu_behind_a_positive_map_is_not_taken_for_a_linear_readout(tmp_path):
    with layer_of("torch_cnn", tmp_path) as other:
        dataset = other.dataset
    torch.manual_seed(0)
    network = ReluBeforePooling().eval()
    with HookedVisionModel(network, ["features"], example_input=torch.zeros(1, 3, 96, 64)) as model:
        sae = random_sae(8, 48, hook_name="features.hook_out")
        layer = Layer(model, "features.hook_out", sae, dataset, network.fc)
        table = layer.encode(tmp_path / "table")
        with torch.inference_mode():
            spliced = model.run_with_saes(layer.images, saes=sae)
    assert table.readout_kind == "network"
    np.testing.assert_allclose(table.logits_with_sae("Mass"), spliced.numpy(), atol=1e-5)


@pytest.mark.parametrize("family", ["efficientnet", "vit"])
def test_an_sae_trained_at_an_inner_layer_is_encoded_probed_and_localized_there(family, tmp_path):
    with layer_of(family, tmp_path) as layer:
        rows = extract_activations(
            layer.model, layer.dataset.select(split="training"), tmp_path / "rows", hook_name=layer.hook_name
        )
        values = values_of(layer)
        assert rows.n_rows == 3 * values.shape[1] * values.shape[2]
        assert rows.d_in == values.shape[-1]
        settings = SAETraining(d_sae=32, epochs=2, batch_size=16)
        trained = train_sae(rows, tmp_path / "sae", settings)
        alone = SAE.load_from_disk(tmp_path / "sae")
        assert alone.cfg.metadata.hook_name == layer.hook_name
        fitted = Layer(layer.model, layer.hook_name, trained, layer.dataset, layer.head)
        table = fitted.encode(tmp_path / "table", map_latents=range(32), map_channels=range(rows.d_in))
    ranking = rank_latents(class_mean_latents(table, "Mass", score="centered_mean"))
    assert len(localize(table, ranking.indices[1, :3], "Mass")) == 3
    channels = rank_channels(table, "Mass").indices[1, :2]
    assert localize_baselines(table, "Mass", channels=channels).rows["latent"].tolist() == channels.tolist()
    assert best_single_latent(table, "Mass", n_bootstrap=5).latent in table.live_latents()


def test_an_inner_table_killed_halfway_ends_byte_identical(tmp_path, monkeypatch):
    def folder_bytes(folder):
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    with layer_of("torch_cnn", tmp_path) as layer:
        whole = folder_bytes(layer.encode(tmp_path / "whole", map_latents=[1], shard_size=2).folder)
        read, passes = HookedVisionModel.read, []

        def dies(self, images, hook_name):
            passes.append(1)
            if len(passes) == 4:
                raise KeyboardInterrupt
            return read(self, images, hook_name)

        monkeypatch.setattr(HookedVisionModel, "read", dies)
        with pytest.raises(KeyboardInterrupt):
            layer.encode(tmp_path / "broken", map_latents=[1], shard_size=2)
        with pytest.raises(InputError, match="not a complete latents table"):
            LatentTable(tmp_path / "broken")
        layer.encode(tmp_path / "broken", map_latents=[1], shard_size=2)
    assert folder_bytes(tmp_path / "broken") == whole
    assert len(whole) > 8


def test_positions_are_encoded_in_blocks_that_take_as_much_memory_at_any_width(tmp_path, monkeypatch):
    sae = random_sae(8, 16)
    for d_in, d_sae, expected in ((2048, 16384, 512), (24, 192, 43690), (512, 64, 16384), (8, 10**8, 1)):
        sae.cfg.d_in, sae.cfg.d_sae = d_in, d_sae
        assert rows_at_once(sae) == expected
    with layer_of("torch_cnn", tmp_path) as layer:
        whole = layer.encode(tmp_path / "whole", map_latents=[1, 5])
        monkeypatch.setattr("mammosae_plugin.latents.encoding.NUMBERS_AT_ONCE", 48 * 7)
        blocks = layer.encode(tmp_path / "blocks", map_latents=[1, 5])
    np.testing.assert_allclose(blocks.mean_latents.toarray(), whole.mean_latents.toarray(), rtol=1e-5)
    np.testing.assert_allclose(blocks.logits_with_sae("Mass"), whole.logits_with_sae("Mass"), atol=1e-5)
    row = int(np.flatnonzero(whole.images["image_id"] == "c1.png")[0])
    np.testing.assert_allclose(blocks.maps([1, 5], row), whole.maps([1, 5], row), atol=1e-6)


def test_a_layer_without_a_map_is_refused(tmp_path):
    with layer_of("torch_cnn", tmp_path) as other:
        network, dataset = other.model.model, other.dataset
    with HookedVisionModel(network, ["pool", "top"], example_input=torch.zeros(1, 3, 96, 64)) as model:
        for name in ("fc", "top.hook_sae_acts_post"):
            layer = Layer(model, name, random_sae(16, hook_name=name), dataset, network.fc)
            with pytest.raises(InputError, match=f"no hook point '{name}'"):
                layer.encode(tmp_path / "table")
    with HookedVisionModel(network, ["fc"], example_input=torch.zeros(1, 3, 96, 64)) as model:
        layer = Layer(model, "fc", random_sae(2, hook_name="fc"), dataset, network.fc)
        with pytest.raises(InputError, match=r"fc\.hook_out shows no map of positions"):
            layer.encode(tmp_path / "table")
        unnamed = random_sae(2)
        unnamed.cfg.metadata.hook_name = None
        with pytest.raises(InputError, match="neither the SAE's metadata nor the model names a layer"):
            Layer(model, "fc", unnamed, dataset, network.fc).encode(tmp_path / "table")
    assert not (tmp_path / "table").exists()


def test_a_transformer_that_shows_its_class_token_has_no_map(tmp_path):
    with layer_of("vit", tmp_path) as dropping:
        network, dataset = dropping.model.model, dropping.dataset
    example = torch.zeros(1, 3, 64, 64)
    with HookedVisionModel(network, ["blocks.1"], example_input=example, prefix_tokens="keep") as model:
        layer = Layer(model, "blocks.1", random_sae(32, hook_name="blocks.1"), dataset, network.head)
        with pytest.raises(InputError, match='shows no map of positions.*prefix_tokens="drop"'):
            layer.encode(tmp_path / "table")


def test_another_head_on_the_same_encoder_reuses_cached_outputs_and_tables(tmp_path, monkeypatch):
    """What a folder depends on is the encoder: training its linear classifier anew must not lock it."""
    with layer_of("torch_cnn", tmp_path) as layer:
        other = torch.nn.Linear(layer.head.in_features, 1)
        heads = {"Mass": copy.deepcopy(layer.head), "Suspicious_Calcification": other}
        settings = {"model": layer.model, "sae": layer.sae, "dataset": layer.dataset}
        cache_layer_outputs(layer.model, layer.dataset, tmp_path / "outputs", hook_name=layer.hook_name)
        table = encode_latents(**settings, folder=tmp_path / "table", heads=heads)
        with torch.no_grad():
            layer.model.get_submodule("model.fc").weight.add_(1)  # the model's own classifier, which no head here is
        read = []
        monkeypatch.setattr(HookedVisionModel, "read", count_calls(HookedVisionModel.read, read))
        outputs = cache_layer_outputs(layer.model, layer.dataset, tmp_path / "outputs", hook_name=layer.hook_name)
        again = encode_latents(**settings, folder=tmp_path / "table", heads=dict(reversed(heads.items())))
        assert not read
        assert (again.mean_latents != table.mean_latents).nnz == 0
        passes = MaskedPasses(layer.model, layer.sae, outputs, heads)
        group = np.zeros(0, dtype=np.int64)
        logits = intervene(again, group, mode="deactivate", head="Suspicious_Calcification", passes=passes)
        np.testing.assert_allclose(logits, again.logits_with_sae("Suspicious_Calcification"), atol=1e-5)


def count_calls(method, calls):
    def counted(*args, **kwargs):
        calls.append(args)
        return method(*args, **kwargs)

    return counted
