"""Image encoders that others published, of random weights under the published names: MedCLIP, GLoRIA, Mirai."""

import collections
import re
import subprocess
import sys
import types
from itertools import product

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torchvision import models

from mammosae_plugin.adapters import (
    HookedVisionModel,
    inspect_checkpoint,
    load_classifier,
    new_backbone_classifier,
    new_timm_classifier,
    save_classifier,
)
from mammosae_plugin.adapters.checkpoints import CheckpointFormatError, UnsafeCheckpointError, read_torch_checkpoint
from mammosae_plugin.adapters.embedders import load_embedder
from mammosae_plugin.errors import InputError


def under(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / 10


def random_resnet(name, **settings):
    """torchvision's, with batch norms whose statistics are no identity."""
    torch.manual_seed(0)
    network = getattr(models, name)(weights=None, **settings).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    network.fc = nn.Identity()
    return network


def swin_as_published(state):
    """The names that transformers gave SwinModel's tensors when MedCLIP was published, with the index it kept then."""
    old = {}
    for name, tensor in state.items():
        name = re.sub(r"attention\.([qkv])_proj", lambda m: "attention.self." + _QKV[m[1]], name)
        name = name.replace("attention.o_proj", "attention.output.dense").replace("mlp.fc1", "intermediate.dense")
        name = name.replace("mlp.fc2", "output.dense")
        old[name.replace("attention.relative_position_bias.relative", "attention.self.relative")] = tensor
    old["encoder.layers.0.blocks.0.attention.self.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    return old


_QKV = {"q": "query", "k": "key", "v": "value"}
TEXT = {"text_model.projection_head.weight": torch.ones(2, 2), "logit_scale": torch.tensor(2.6)}


@pytest.fixture(scope="module")
def resnet50():
    return random_resnet("resnet50")


def medclip_resnet(path, network):
    weight = drawn(512, 2048)
    weights = under("vision_model.model.", network.state_dict()) | {"vision_model.model.fc.weight": weight}
    torch.save(weights | TEXT, path)
    return lambda images: functional.linear(network(images), weight), network


def medclip_swin(path, _network):
    from transformers import SwinConfig, SwinModel

    torch.manual_seed(1)
    swin, weight = SwinModel(SwinConfig()).eval(), drawn(512, 768)
    weights = under("vision_model.model.", swin_as_published(swin.state_dict()))
    torch.save(weights | {"vision_model.projection_head.weight": weight} | TEXT, path)
    return lambda images: functional.linear(pooled(swin, images), weight), lambda images: pooled(swin, images)


def pooled(swin, images):
    return swin(images).pooler_output


class _Settings:
    """Stands for OmegaConf's DictConfig, which the reader does not have."""

    def __init__(self):
        self.content = collections.defaultdict(dict, {"model": {"vision": {"model_name": "resnet_50"}}})


def gloria(path, network):
    weight, bias = drawn(768, 2048), drawn(768, seed=1)
    own = {"global_embedder.weight": weight, "global_embedder.bias": bias, "local_embedder.weight": drawn(8, 4, 1, 1)}
    state = under("gloria.img_encoder.model.", network.state_dict()) | under("gloria.img_encoder.", own)
    module = types.ModuleType("omegaconf.dictconfig")
    module.DictConfig = type("DictConfig", (_Settings,), {"__module__": module.__name__, "__qualname__": "DictConfig"})
    sys.modules.update({"omegaconf": types.ModuleType("omegaconf"), module.__name__: module})
    try:
        content = {"state_dict": state | {"gloria.text_encoder.x": torch.ones(1)}, "epoch": 9}
        torch.save(content | {"hyper_parameters": module.DictConfig()}, path)
    finally:
        del sys.modules["omegaconf"], sys.modules[module.__name__]

    def encode(images):
        return network(functional.interpolate(images, (299, 299), mode="bilinear", align_corners=True))

    return lambda images: functional.linear(encode(images), weight, bias), encode


@pytest.mark.parametrize(
    ("write", "kind", "final", "mean"),
    [
        (medclip_resnet, "medclip resnet", "layer4", 0.5862785803043838),
        (medclip_swin, "medclip swin", None, 0.5862785803043838),
        (gloria, "gloria", "backbone.layer4", 0.5),
    ],
)
def test_published_encoders_are_the_plain_modules_with_their_weights(write, kind, final, mean, resnet50, tmp_path):
    path = tmp_path / "published.bin"
    projected, encode = write(path, resnet50)
    report = inspect_checkpoint(path)
    assert (report.kind, report.loads_with, report.problem) == (kind, "load_classifier", None)
    classifier = load_classifier(path)
    ramp = (np.arange(300 * 200).reshape(300, 200) % 251).astype(np.uint8)
    image = classifier.preprocessing(ramp)[None]
    assert image.shape == (1, 3, 224, 224) and torch.equal(image[:, 0], image[:, 2])
    assert classifier.preprocessing.mean == mean and classifier.source["files"] == ["published.bin"]
    with torch.no_grad():
        torch.testing.assert_close(classifier(image), encode(image), rtol=0, atol=1e-6)
        found = load_embedder(path, pooling="projected")(image)
        torch.testing.assert_close(found, projected(image), rtol=0, atol=1e-5)
    with HookedVisionModel(classifier.network) as hooked:
        names = [name for name in hooked.hook_shapes if final is None or name == f"{final}.hook_out"]
        assert names
    if final is not None:
        save_classifier(classifier.with_head(2), tmp_path / "head.safetensors", metadata={})
        assert load_classifier(tmp_path / "head.safetensors").n_class == 2
        with pytest.raises(InputError, match="holds no projection; give the checkpoint of its authors"):  # as above
            load_embedder(tmp_path / "head.safetensors", pooling="projected")


def as_mirai(state):
    """The names of Mirai's custom ResNet: blocks layer1_0, the stem in a downsampler, what comes behind left in."""
    renamed = {re.sub(r"^layer(\d)\.(\d)\.", r"layer\1_\2.", name): tensor for name, tensor in state.items()}
    stem = {name: f"downsampler.{name}" for name in renamed if name.startswith(("conv1.", "bn1."))}
    named = {stem.get(name, name): tensor for name, tensor in renamed.items()}
    return under("_model.", named | {"pool.age_fc.weight": torch.ones(2, 2), "fc.weight": torch.ones(2, 512)})


def test_an_encoder_without_a_space_of_texts_gives_its_own_vector(tmp_path):
    network = random_resnet("resnet18")
    torch.save(as_mirai(network.state_dict()), tmp_path / "mirai.p")
    with pytest.raises(InputError, match="has no space shared with texts; choose model"):
        load_embedder(tmp_path / "mirai.p", pooling="projected")
    network.avgpool = nn.AdaptiveMaxPool2d(1)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = load_embedder(tmp_path / "mirai.p", pooling="model")(images)
        torch.testing.assert_close(found, network(images), rtol=0, atol=1e-6)


def test_published_encoders_in_wrappers_load_and_damaged_ones_are_refused_by_their_name(resnet50, tmp_path):
    medclip_resnet(tmp_path / "plain", resnet50)
    plain, key = torch.load(tmp_path / "plain", weights_only=True), "vision_model.model.layer2.0.conv1.weight"
    for prefix in ("module.module.", "_orig_mod.", "module._orig_mod."):
        torch.save(under(prefix, plain), tmp_path / "wrapped")
        assert inspect_checkpoint(tmp_path / "wrapped").kind == "medclip resnet"
        assert torch.equal(load_classifier(tmp_path / "wrapped").network.conv1.weight, resnet50.conv1.weight)
    uncounted = {name: tensor for name, tensor in plain.items() if not name.endswith("num_batches_tracked")}
    of_lightning = {"state_dict": under("model.", uncounted), "epoch": 3}
    for content in (uncounted, of_lightning, {"checkpoint": {"state_dict": plain}, "args": {}}):
        torch.save(content, tmp_path / "wrapped")
        report = inspect_checkpoint(tmp_path / "wrapped")
        assert (report.kind, report.loads_with, report.problem) == ("medclip resnet", "load_classifier", None)
        assert torch.equal(load_classifier(tmp_path / "wrapped").network.conv1.weight, resnet50.conv1.weight)
    torch.save(plain | {key: plain[key].to(torch.int64)}, tmp_path / "integers")
    with pytest.raises(CheckpointFormatError, match="conv1.weight as torch.int64; save MedCLIP's .* as floats"):
        load_classifier(tmp_path / "integers")
    other = {name.replace("vision_model.", "image_encoder."): tensor for name, tensor in plain.items()}
    torch.save(other, tmp_path / "of another")
    with pytest.raises(CheckpointFormatError) as caught:
        load_classifier(tmp_path / "of another")
    assert "of Mammo-CLIP's network" not in str(caught.value)  # whose encoder is no ResNet


@pytest.mark.parametrize("prefix", ["", "image_encoder.", "module."])
def test_mirais_exported_encoder_is_a_resnet_with_the_maximum_over_positions(prefix, tmp_path):
    network = random_resnet("resnet18")
    torch.save(under(prefix, as_mirai(network.state_dict())), tmp_path / "mirai.pt")
    classifier = load_classifier(tmp_path / "mirai.pt")
    network.avgpool = nn.AdaptiveMaxPool2d(1)
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(classifier(images), network(images), rtol=0, atol=1e-6)
    assert inspect_checkpoint(tmp_path / "mirai.pt").kind == "mirai"
    assert classifier.preprocessing.size == (2048, 1664)  # Mirai's own
    black, white = (np.array([[0, value]], dtype=np.uint16) for value in (1, 65535))
    assert classifier.preprocessing(white)[0, 0, 0] == pytest.approx((0 - 7047.99) / 12005.5, abs=1e-5)
    assert black.size == 2
    classifier.regularise(dropout=0.5, drop_connect=0)
    with torch.no_grad():
        torch.testing.assert_close(classifier.network.eval()(images), network(images), rtol=0, atol=1e-6)


CODE = """
import torch
from torch import nn
from torchvision.models import resnet18

class CustomResnet(nn.Module):
    def __init__(self):
        super().__init__()
        plain = resnet18(weights=None)
        self._model = nn.Module()
        self._model.downsampler = nn.Sequential()
        self._model.downsampler.conv1, self._model.downsampler.bn1 = plain.conv1, plain.bn1
        for i in range(1, 5):
            for j, block in enumerate(getattr(plain, f"layer{i}")):
                self._model.add_module(f"layer{i}_{j}", block)
        self._model.prob_of_failure_layer = nn.Linear(2, 2)
"""


def test_mirais_pickled_network_is_refused_with_the_way_to_export_it(tmp_path):
    folder = tmp_path / "onconet" / "models"
    folder.mkdir(parents=True)
    (folder / "custom_resnet.py").write_text(CODE)
    snapshot = tmp_path / "mgh_mammo_MIRAI_Base_May20_2019.p"
    write = "import torch; from onconet.models.custom_resnet import CustomResnet; "
    write += f"torch.save(CustomResnet(), {snapshot.name!r})"
    subprocess.run([sys.executable, "-c", write], cwd=tmp_path, check=True)
    with pytest.raises(UnsafeCheckpointError, match="whole pickled network of Mirai's code") as told:
        load_classifier(snapshot)
    assert "\n" not in str(told.value)
    way_out = str(told.value).partition("export its weights: ")[2]
    subprocess.run([sys.executable, "-c", way_out], cwd=tmp_path, check=True)
    assert load_classifier(tmp_path / "mirai.pt").architecture == "resnet18"


class Evil:
    def __reduce__(self):
        return eval, ("1 + 1",)


@pytest.mark.parametrize("where", ["hyper_parameters", "state_dict"])
def test_settings_beside_weights_run_nothing(where, tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": {}, where: Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(UnsafeCheckpointError, match="asks for .*eval.* nothing of it was run"):
        read_torch_checkpoint(tmp_path / "evil.ckpt")


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_weights_under_a_prefix_are_taken_and_others_are_told_in_one_line(library, tmp_path):
    plain, make = random_resnet("resnet18"), {"torchvision": new_backbone_classifier, "timm": new_timm_classifier}

    def load(**settings):
        first = ("torchvision",) if library == "torchvision" else ()
        return make[library](*first, "resnet18", 0, **settings)

    state = under("module.image_encoder.", plain.state_dict()) | {"classifier.weight": torch.ones(2, 2)}
    torch.save({"checkpoint": {"state_dict": state}}, tmp_path / "net.pt")
    uncounted = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(uncounted, tmp_path / "uncounted.pt")
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for file, prefix in product(("net.pt", "uncounted.pt"), ("image_encoder.", "module.image_encoder.")):
        made = load(weights=tmp_path / file, prefix=prefix)
        with torch.no_grad():
            torch.testing.assert_close(made(images), plain(images), rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="give its prefix, such as 'image_encoder.'") as told:
        load(weights=tmp_path / "net.pt")
    assert "\n" not in str(told.value)
    with pytest.raises(InputError, match="no tensor that begins with 'encoder.'; its names begin with 'classifier.'"):
        load(weights=tmp_path / "net.pt", prefix="encoder.")
    lacking = {name: tensor for name, tensor in state.items() if "layer3.0.conv1" not in name}
    save_file(lacking, tmp_path / "lacks.safetensors")
    with pytest.raises(InputError, match=r"layer3\.0\.conv1\.weight") as told:
        load(weights=tmp_path / "lacks.safetensors", prefix="image_encoder.")
    assert "\n" not in str(told.value)
