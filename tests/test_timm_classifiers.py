"""timm's architectures as classifiers: made, saved, read back, and refused where they cannot be studied."""

import json
import re

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mammosae_plugin.adapters import (
    Classifier,
    HookedVisionModel,
    Preprocessing,
    UnsafeCheckpointError,
    inspect_checkpoint,
    load_classifier,
    load_mammo_clip,
    new_classifier,
    new_timm_classifier,
    save_classifier,
)
from mammosae_plugin.adapters.preprocessing import MAMMO_CLIP
from mammosae_plugin.adapters.saved_classifiers import save_classifier_folder
from mammosae_plugin.errors import InputError
from mammosae_plugin.hub.guard import PrivacyContext, check_staged

SIZE = (96, 64)
IMAGES = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
HALVES = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), scale="full_range")


@pytest.fixture(params=["test_resnet", "test_convnext", "test_vit", "test_maxvit"])
def network(request):
    torch.manual_seed(1)
    made = new_timm_classifier(request.param, image_size=SIZE, seed=2).with_head(2)
    made.network.eval()
    return made


def test_a_saved_network_is_read_back_as_what_it_is_without_being_told(network, tmp_path):
    file, folder = tmp_path / "net.safetensors", tmp_path / "staged" / "net"
    save_classifier(network, file, metadata={"concepts": ["Mass", "Nipple_Retraction"]})
    save_classifier_folder(network, folder, source=network.source, metadata={})
    for place in (file, folder):
        read = load_classifier(place)
        assert isinstance(read, Classifier)
        assert read.description() == network.description()
        assert (read.preprocessing, read.n_class, read.fingerprint()) == (HALVES, 2, network.fingerprint())
        with torch.no_grad():
            assert torch.equal(read(IMAGES), network(IMAGES))
        with pytest.raises(InputError, match=f"holds a {network.architecture} of timm's .* load_classifier reads it"):
            load_mammo_clip(place)
    assert load_classifier(file).source["metadata"] == {"concepts": ["Mass", "Nipple_Retraction"]}
    report = inspect_checkpoint(file)
    assert (report.kind, report.architecture, report.n_class) == ("saved classifier", network.architecture, 2)
    assert (report.loads_with, report.problem) == ("load_classifier", None)
    assert len(check_staged(tmp_path / "staged", "model", PrivacyContext(datasets=("phantom",)))) == 2


def test_the_head_reads_the_features_and_is_all_that_with_head_changes(network):
    other = network.with_head(5)
    other.network.eval()
    with torch.no_grad():
        features = network.features(IMAGES)
        assert torch.allclose(network.network.get_submodule(network.head_path)(features), network(IMAGES), atol=1e-5)
        assert torch.equal(other.features(IMAGES), features)
    assert (network.n_class, other.n_class, other(IMAGES).shape) == (2, 5, (2, 5))
    same, changed = (network.fingerprint(with_head=head) == other.fingerprint(with_head=head) for head in (False, True))
    assert same and not changed


def test_hooks_go_into_the_network(network):
    with pytest.raises(InputError, match=r"is a TimmClassifier and no torch.nn.Module; wrap its .network"):
        HookedVisionModel(network)


def test_regularisation_is_for_training_alone(network):
    before = network.fingerprint()
    network.regularise(dropout=0.5, drop_connect=0.5)
    assert network.fingerprint() == before
    network.network.eval()
    calm = network(IMAGES)
    assert torch.equal(network(IMAGES), calm)
    network.network.train()
    assert not torch.equal(network(IMAGES), calm)


def test_the_same_weights_in_another_architecture_are_another_network():
    one, other = (new_timm_classifier(name, 1, seed=0) for name in ("efficientnet_b0", "tf_efficientnet_b0"))
    other.network.load_state_dict(one.network.state_dict())
    assert one.fingerprint() != other.fingerprint()


def test_a_mammo_clip_network_with_a_preprocessing_of_its_own_keeps_it(tmp_path):
    model = new_classifier("tinynet_e", 1, seed=0)
    assert isinstance(model, Classifier)
    save_classifier(model, tmp_path / "a.safetensors", metadata={})
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        said = json.loads(file.metadata()["mammosae_classifier"])
    assert list(said) == ["format_version", "architecture", "n_class", "static_padding", "source", "metadata"]
    assert load_mammo_clip(tmp_path / "a.safetensors").preprocessing == MAMMO_CLIP
    model.preprocessing = HALVES
    save_classifier(model, tmp_path / "b.safetensors", metadata={})
    assert load_mammo_clip(tmp_path / "b.safetensors").preprocessing == HALVES


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_weights_come_from_a_file_of_a_state_dict(kind, tmp_path):
    trained = timm.create_model("test_vit", num_classes=7)  # at timm's own size, with a head of other classes
    file = tmp_path / f"weights.{kind}"
    state = trained.state_dict()
    save_file(state, file) if kind == "safetensors" else torch.save({"state_dict": state}, file)
    made = new_timm_classifier("test_vit", weights=file, image_size=SIZE)
    found = made.network.state_dict()
    same = [name for name in found if name in state and name != "pos_embed"]
    assert len(same) == len(found) - 1
    assert all(torch.equal(found[name], state[name]) for name in same)
    assert found["pos_embed"].shape != state["pos_embed"].shape  # interpolated, as timm does it
    assert made.source["files"] == [file.name]
    assert len(made.source["sha256"]) == 1


def test_weights_that_do_not_fit_are_refused(tmp_path):
    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    without = {name: tensor for name, tensor in state.items() if not name.startswith("layer3")}
    save_file(without, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match=r"part.safetensors lacks \d+ of the weights of a test_resnet, such as layer3"):
        new_timm_classifier("test_resnet", weights=tmp_path / "part.safetensors")
    save_file({**state, "conv1.0.weight": torch.zeros(1)}, tmp_path / "shape.safetensors")
    with pytest.raises(InputError, match=r"timm cannot make test_resnet: .*size mismatch"):
        new_timm_classifier("test_resnet", weights=tmp_path / "shape.safetensors")
    torch.save({"state_dict": re.compile("x")}, tmp_path / "code.pth")
    with pytest.raises(UnsafeCheckpointError):
        new_timm_classifier("test_resnet", weights=tmp_path / "code.pth")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"architecture": "resnett18"}, "'resnett18' is no model that timm .*did you mean .*resnet18"),
        ({"architecture": "deit_tiny_distilled_patch16_224"}, "do not come from one linear layer"),
        ({"architecture": "test_maxvit", "n_class": 1, "image_size": (90, 64)}, "images of shape"),
        ({"architecture": "test_vit", "n_class": -1}, "n_class is -1: give a whole number, 0 or more"),
        ({"architecture": "test_vit", "n_class": 1.5}, "n_class is 1.5: give a whole number, 0 or more"),
    ],
    ids=["name", "two heads", "size", "classes", "half a class"],
)
def test_what_cannot_be_studied_is_refused_in_one_line(settings, said):
    with pytest.raises(InputError, match=said) as caught:
        new_timm_classifier(**settings)
    assert "\n" not in str(caught.value)


def test_a_file_of_a_later_release_says_so(tmp_path):
    folder = tmp_path / "net"
    save_classifier_folder(new_timm_classifier("test_resnet", 1), folder, source={}, metadata={})
    said = json.loads((folder / "config.json").read_text())
    for change, words in (
        ({"kind": "of tomorrow"}, "has format version 2; this release reads"),
        ({"format_version": 3}, "has format version 3; this release reads 2, update it"),
        ({"preprocessing": {**said["preprocessing"], "resize": 7}}, "none that this release knows"),
        ({"image_size": [1]}, "damaged header at config.json"),
    ):
        (folder / "config.json").write_text(json.dumps(said | change))
        with pytest.raises(InputError, match=words):
            load_classifier(folder)
