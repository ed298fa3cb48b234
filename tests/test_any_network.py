"""Networks of torchvision, transformers and somebody's function: made, trained, saved, studied, and refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_adapters import calibrated_classifier
from helpers_backbones import TorchCNN, five_outputs
from helpers_hub import LoopbackHub, mammosae_on_hub, run_on_hub
from helpers_results import read_report
from helpers_study import mammosae, random_sae, study_settings, write_study
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from mammosae_plugin.adapters import (
    Classifier,
    HookedVisionModel,
    Preprocessing,
    inspect_checkpoint,
    load_classifier,
    new_backbone_classifier,
    save_classifier,
)
from mammosae_plugin.adapters.preprocessing import MAMMO_CLIP
from mammosae_plugin.config import load_config
from mammosae_plugin.datasets import VinDrMammo
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sha256_of_file
from mammosae_plugin.latents import encode_latents
from mammosae_plugin.study import Study
from mammosae_plugin.training import ClassifierTraining, train_classifier

SIZE = (96, 64)
CNN = "helpers_backbones:TorchCNN"
OWN = "test_any_network"


class Gray(nn.Module):
    """One channel in, a map out: no head, no pooling."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, stride=8, padding=1), nn.BatchNorm2d(width))

    def forward(self, images):
        return self.stem(images).relu()


class Squares(nn.Module):
    """A network for 32 x 32 alone, of two channels, whose features are flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.fc = nn.Linear(4 * 64, 3)

    def forward(self, images):
        return self.fc(self.stem(images).flatten(1))


def no_network():
    return "a network"


def failing(depth=1):
    raise RuntimeError(f"no {depth}")


@pytest.fixture(scope="session")
def vit(tmp_path_factory):
    """The folder of a tiny transformer's config and preprocessing, without weights."""
    from transformers import ViTConfig

    folder = tmp_path_factory.mktemp("transformers") / "tiny-vit"
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    ViTConfig(**sizes, image_size=64, patch_size=16).save_pretrained(folder)
    said = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_rescale": True, "rescale_factor": 1 / 127.5}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder


@pytest.fixture(params=["torchvision", "transformers", "function", "features"])
def made(request, vit):
    """A network, its final layer, what the head reads of that, and the size of its images."""
    if request.param == "torchvision":
        start = new_backbone_classifier("torchvision", "shufflenet_v2_x0_5", 0, weights="random", image_size=SIZE)
        return start, "conv5", "linear", SIZE
    if request.param == "transformers":
        start = new_backbone_classifier("transformers", str(vit), 0, weights="random", image_size=SIZE)
        return start, "backbone.vit.layers.1", "network", (64, 64)  # the last block's patches reach no class token
    if request.param == "function":
        return new_backbone_classifier("function", CNN, 0, image_size=SIZE), "top", "linear", SIZE
    start = new_backbone_classifier("function", f"{OWN}:Gray", 0, arguments={"width": 8}, image_size=SIZE)
    return start, "backbone.stem", "network", SIZE  # a ReLU lies between


def test_any_network_is_trained_saved_read_back_and_encoded(made, phantoms, tmp_path):
    start, final, readout, size = made
    labels = phantoms.images["Mass"].to_numpy()
    chosen = [*np.flatnonzero(labels == 1)[:6], *np.flatnonzero(labels == 0)[:6]]
    images = phantoms.select(image_ids=phantoms.images["image_id"].iloc[chosen])
    assert len(images) == 12 and isinstance(start, Classifier)
    file = tmp_path / "net.safetensors"
    trained = train_classifier(start, images, "Mass", file, ClassifierTraining(epochs=1, lr=1e-3, dropout=0.1))
    functions = (start.architecture,) if start.library == "function" else ()
    read = load_classifier(file, functions=functions)
    assert read.description() == trained.description()
    assert (read.n_class, read.preprocessing, read.final_module) == (1, start.preprocessing, final)
    assert (read.fingerprint(), read.fingerprint(with_head=False)) == (
        trained.fingerprint(),
        trained.fingerprint(with_head=False),
    )
    assert read.fingerprint(with_head=False) != start.fingerprint(with_head=False)
    batch = torch.stack([images.with_preprocessing(read.preprocessing)[number]["image"] for number in range(3)])
    assert batch.shape == (3, read.preprocessing.channels, *size)
    with torch.no_grad():
        head = read.network.get_submodule(read.head_path)
        assert torch.equal(read(batch), trained(batch)) and torch.allclose(head(read.features(batch)), read(batch))
    probe = train_classifier(start, images, "Mass", tmp_path / "b.safetensors", ClassifierTraining(kind="pretrained"))
    assert probe.fingerprint(with_head=False) == start.fingerprint(with_head=False)  # a linear probe on frozen features

    with HookedVisionModel(read.network, [final]) as hooked:
        assert list(hooked.hook_shapes) == [f"{final}.hook_out"]
        width = hooked.hook_shapes[f"{final}.hook_out"][-1]
        prepared = images.with_preprocessing(read.preprocessing)
        sae = random_sae(width, 16, hook_name=f"{final}.hook_out")
        table = encode_latents(hooked, sae, prepared, tmp_path / "table", heads={"Mass": head}, batch_size=4)
        assert (table.readout_kind, table.image_size) == (readout, SIZE)  # boxes stay in pixels of the images
        first = prepared[0]["image"][None]
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(table.logits("Mass")[:1]).float(), hooked(first), atol=1e-4)
            spliced = hooked.run_with_saes(first, saes=[sae])
        assert torch.allclose(torch.from_numpy(table.logits_with_sae("Mass")[:1]).float(), spliced, atol=1e-4)


def test_preprocessing_is_the_librarys_unless_it_is_said(vit):
    own = new_backbone_classifier("transformers", str(vit), weights="random", image_size=SIZE)
    # over 127.5, minus 0.5, over 0.25; stretched to the only size that the network takes
    assert own.preprocessing == Preprocessing((0.25,) * 3, (0.125,) * 3, "full_range", size=(64, 64))
    assert own.preprocessing.describe()["resize"] == [64, 64]
    assert Preprocessing.described(own.preprocessing.describe()) == own.preprocessing
    other = {"mean": 0.0, "std": 1.0, "scale": "own_range", "size": (48, 32)}
    said = new_backbone_classifier("function", CNN, image_size=SIZE, preprocessing=other)
    ramp = np.arange(SIZE[0] * SIZE[1], dtype=np.uint32).reshape(SIZE) % 251
    image = said.preprocessing(ramp.astype(np.uint8))
    assert image.shape == (3, 48, 32) and 0 <= float(image.min()) < float(image.max()) <= 1
    gray = new_backbone_classifier("function", f"{OWN}:Gray", image_size=SIZE).preprocessing
    assert (gray.channels, gray(ramp.astype(np.uint8)).shape) == (1, (1, *SIZE))
    assert len({p.fingerprint for p in (own.preprocessing, said.preprocessing, gray)}) == 3


def test_a_file_names_no_code(tmp_path):
    file = tmp_path / "net.safetensors"
    save_classifier(new_backbone_classifier("function", CNN, image_size=SIZE), file, metadata={})
    with pytest.raises(InputError, match="files are not trusted to name code: name it yourself"):
        load_classifier(file)
    with pytest.raises(InputError, match="files are not trusted"):
        load_classifier(file, functions=[f"{OWN}:Gray"])
    assert "files are not trusted" in inspect_checkpoint(file).problem
    assert load_classifier(file, functions=[CNN]).n_class == 2


def test_weights_come_from_a_file_with_the_head_that_it_has(tmp_path):
    torch.manual_seed(5)
    state = {f"module.{name}": tensor for name, tensor in TorchCNN().state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "weights.pt")
    kept = new_backbone_classifier("function", CNN, weights=tmp_path / "weights.pt", image_size=SIZE)
    assert torch.equal(kept.network.fc.weight, state["module.fc.weight"]) and kept.source["files"] == ["weights.pt"]
    without = new_backbone_classifier("function", CNN, 0, weights=tmp_path / "weights.pt", image_size=SIZE)
    assert without.n_class == 0 and without.fingerprint(with_head=False) == kept.fingerprint(with_head=False)
    fewer = {name.removeprefix("module."): tensor for name, tensor in state.items() if "middle" not in name}
    save_file(fewer | {"head.extra": torch.zeros(1)}, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match=r"6 missing \(middle.0.weight, .*\), 1 unexpected \(head.extra\)"):
        new_backbone_classifier("function", CNN, weights=tmp_path / "part.safetensors", image_size=SIZE)


@pytest.mark.parametrize(
    ("library", "architecture", "settings", "said"),
    [
        ("torchvision", "resnet81", {}, "is no classifier that torchvision has; did you mean .*resnet18"),
        ("torchvision", "resnet18", {"weights": "random", "arguments": {"depth": 3}}, "torchvision cannot make"),
        ("transformers", "", {}, "transformers cannot make tiny-vit: .*; give the folder of a model"),
        ("function", "helpers_backbones", {}, "is no function; write package.module:function"),
        ("function", "no_such_package.nets:make", {}, "no module no_such_package is there to import; install"),
        ("function", "helpers_backbones:TorchCN", {}, "has no function TorchCN; did you mean TorchCNN"),
        ("function", f"{OWN}:no_network", {}, "gives a str and no torch.nn.Module"),
        ("function", f"{OWN}:failing", {"arguments": {"depth": 2}}, "fails with {'depth': 2}: RuntimeError: no 2"),
        ("function", CNN, {"weights": "random"}, "are what the function gives, or a file"),
        ("function", f"{OWN}:Squares", {}, "cannot take images of 64 x 64 pixels in 3 channels"),
        ("function", CNN, {"preprocessing": {"channels": 1, "mean": 0.5, "std": 0.5}}, "96 x 64 pixels in 1 channels"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_one_line(library, architecture, settings, said, vit):
    with pytest.raises(InputError, match=said) as caught:
        new_backbone_classifier(library, architecture or str(vit), image_size=SIZE, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["googlenet", "squeezenet1_1"])
def test_auxiliary_heads_and_a_convolution_as_head_are_left_out(name, tmp_path):
    own = models.get_model(name, weights=None, **({"init_weights": False} if name == "googlenet" else {})).eval()
    torch.save(own.state_dict(), tmp_path / "weights.pth")  # as torchvision's own files, with every head
    images = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    arguments = {"init_weights": False} if name == "googlenet" else {}
    settings = {"weights": tmp_path / "weights.pth", "arguments": arguments, "image_size": SIZE}
    network = new_backbone_classifier("torchvision", name, 2, **settings)
    with torch.no_grad():
        if name == "googlenet":
            kept = new_backbone_classifier("torchvision", name, None, **settings)
            assert torch.equal(kept(images), own(images)) and kept.n_class == 1000
        else:
            assert torch.allclose(network.features(images), own.features(images).mean((2, 3)), atol=1e-6)
    assert network.network.train()(images).shape == (2, 2)  # in training too the logits alone
    save_classifier(network, tmp_path / "net.safetensors", metadata={})
    read = load_classifier(tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(read(images), network.network.eval()(images))
    assert read.final_module == {"googlenet": "inception5b", "squeezenet1_1": "backbone.features.12"}[name]


def test_torchvisions_own_weights_are_fetched_loaded_and_told(tmp_path, monkeypatch):
    own = models.squeezenet1_1(weights=None).eval()
    torch.save(own.state_dict(), tmp_path / "weights.pth")
    digest = sha256_of_file(tmp_path / "weights.pth")[:8]
    there = (tmp_path / "weights.pth").rename(tmp_path / f"squeezenet1_1-{digest}.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    place = models.SqueezeNet1_1_Weights.DEFAULT.value
    monkeypatch.setattr(place, "url", there.as_uri())
    start = new_backbone_classifier("torchvision", "squeezenet1_1", 1, image_size=SIZE)
    images = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(start.features(images), own.features(images).mean((2, 3)), atol=1e-6)
    assert start.source == {"kind": "torchvision", "variant": "squeezenet1_1", "weights": "IMAGENET1K_V1"}
    assert list((tmp_path / "cache").rglob(there.name))
    monkeypatch.setattr(place, "url", (tmp_path / "gone-00000000.pth").as_uri())
    with pytest.raises(
        InputError, match="torchvision cannot make squeezenet1_1: .*; give a file of its weights"
    ) as told:
        new_backbone_classifier("torchvision", "squeezenet1_1", 1, image_size=SIZE)
    assert "\n" not in str(told.value)


FETCH = """
import sys, torch
from huggingface_hub import HfApi
from transformers import ViTConfig, ViTForImageClassification
from mammosae_plugin.adapters import new_backbone_classifier

folder, sizes = sys.argv[1], {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
sizes |= {"intermediate_size": 32, "image_size": 64, "patch_size": 16}
torch.manual_seed(0)
ViTForImageClassification(ViTConfig(**sizes)).save_pretrained(folder)
HfApi().create_repo("someone/vit")
HfApi().upload_folder(repo_id="someone/vit", folder_path=folder)
images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
make = lambda name: new_backbone_classifier("transformers", name, image_size=(64, 64))
with torch.no_grad():
    fetched, local = make("someone/vit"), make(folder)
    seen = {"same": torch.equal(fetched(images), local(images)), "n_class": fetched.n_class, "source": fetched.source}
seen["missing"] = attempt(lambda: make("someone/none"))["message"]
"""


def test_weights_of_transformers_are_fetched_from_the_hub_loaded_and_told(tmp_path):
    with LoopbackHub() as hub:
        seen = run_on_hub(hub, tmp_path / "home", FETCH, tmp_path / "vit")
    assert seen["same"] and seen["n_class"] == 2
    assert seen["source"]["kind"] == "transformers" and seen["source"]["variant"] == "someone/vit"
    assert seen["missing"].startswith("transformers cannot make someone/none: ") and ".;" not in seen["missing"]
    assert "\n" not in seen["missing"] and len(seen["missing"]) < 350


# In a study


def own_head(folder, phantom_root, outputs, function=CNN):
    return study_settings(folder, phantom_root) | {
        "concepts": list(outputs),
        "models": [{"name": "net", "function": function, "outputs": outputs}],
        "sae": {
            "train": {
                "model": "net",
                "concept": next(iter(outputs)),
                "training": {"d_sae": 32, "epochs": 1, "batch_size": 32},
            }
        },
        "analysis": {"n_bootstrap": 100, "ks": [0, 32], "top": 2, "error_term": False},
    }


def test_a_trained_head_is_studied_by_a_declared_mapping_of_its_outputs(tmp_path, phantom_root, monkeypatch):
    outputs = {"birads": [[4, 5], None, 1, [3], None], "Mass": 4, "density": [None, ["A", "B"], None, ["C", "D"], None]}
    outputs["Suspicious_Calcification"] = 2
    study = Study(
        load_config(write_study(tmp_path, own_head(tmp_path, phantom_root, outputs, "helpers_backbones:five_outputs")))
    )
    study.run()
    found = json.loads((study.results_folder / "results.json").read_text())
    classes = {one["name"]: (one["kind"], one["classes"]) for one in found["data"]["vocabulary"]}
    assert classes["birads"] == ("graded", ["1", "3", "4 or 5"]) and classes["density"] == (
        "binary",
        ["A or B", "C or D"],
    )
    own = VinDrMammo(phantom_root, image_size=SIZE)
    table, weight = study.primary.tables[study.pairs[0]], study.networks.plain(study.classifier_files[study.pairs[0]])
    assert {pair: study.primary.tables[pair].folder for pair in study.pairs} == dict.fromkeys(study.pairs, table.folder)
    of_class = np.array([0, -1, 1, 2, 2])[own.images["birads"]]  # BI-RADS 2 is of no output
    images = table.images.set_index("image_id").loc[own.images["image_id"]]
    assert (images["birads"] == of_class).all() and (of_class == -1).any()
    rows = table.rows("birads", split="training")
    assert len(rows.labels) == ((own.images["split"] == "training") & (of_class >= 0)).sum()
    missing = {row["concept"]: row.get("n_missing") for row in found["data"]["concepts"] if row["split"] == "training"}
    assert missing["birads"] == (of_class == -1).sum() > 0
    assert missing["Mass"] is None
    data = study.dataset.with_preprocessing(weight.preprocessing)
    with torch.no_grad():
        logits = weight(torch.stack([data[number]["image"] for number in range(4)]))
    expected = {
        "birads": logits[:, [2, 3, 0]],
        "Mass": logits[:, [4]],
        "Suspicious_Calcification": logits[:, [2]],
        "density": logits[:, [3]] - logits[:, [1]],
    }
    places = table.images.set_index("image_id").index.get_indexer(data.images["image_id"][:4])
    for concept, wanted in expected.items():
        assert np.allclose(table.logits(concept)[places], wanted, atol=1e-4)
    assert {row["class"] for row in found["rankings"] if row["concept"] == "birads"} == {0, 1, 2}
    both = own.images["Mass"].astype(bool) & own.images["Suspicious_Calcification"].astype(bool)
    assert both.any()  # an image may have several labels, each of which is probed and intervened on by itself
    for part in ("rankings", "interventions", "reconstruction"):
        assert {row["concept"] for row in found[part]} == set(outputs), part
    page = read_report(study.results_folder)
    assert "net, Mass" in page and "net, Suspicious calcification" in page
    assert "no label" in page.lower() and "Mammo-CLIP" not in page.split('id="cite"')[1]
    published_with_its_classes(tmp_path, study.output, monkeypatch, {pair.concept for pair in study.pairs})


PUBLISH = """
import sys, torch
from mammosae_plugin.adapters import load_classifier
from mammosae_plugin.hub import load_findings, publish_findings, publish_model, publish_space

study, function = sys.argv[1], "helpers_backbones:five_outputs"
refused = attempt(lambda: publish_model(study, "someone/nets", licence="mit"))
publish_model(study, "someone/nets", licence="mit", tag="v1", functions=[function])
publish_findings(study, "someone/findings", licence="mit", min_group=2)
publish_space("someone/findings", "someone/space", min_group=2)
found = load_findings("someone/findings")
place = found.study["models"][0]["published"]
name = f"hub://{place['repo']}@{place['revision']}/{place['id']}"
images = torch.load(sys.argv[2], weights_only=True)
seen = {
    "refused": refused["message"], "unnamed": attempt(lambda: load_classifier(name))["message"],
    "logits": load_classifier(name, functions=[function])(images).tolist(),
    "vocabulary": found.study["data"]["vocabulary"], "outputs": found.study["config"]["models"][0]["outputs"],
    "classes": sorted(map(list, set(zip(found.concepts["concept"], map(int, found.concepts["class"]))))),
}
"""


def published_with_its_classes(folder, output, monkeypatch, concepts):
    """Network, findings and Space of a head with declared outputs, sent to a Hub and read back."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    images = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    torch.save(images, folder / "images.pt")
    with LoopbackHub() as hub:
        seen = run_on_hub(hub, folder / "publisher", PUBLISH, output, folder / "images.pt")
        cards = {name: repo.files["README.md"].decode() for (_, name), repo in hub.repos.items()}
    assert "publish model` with --function" in seen["refused"] and "name it yourself" in seen["unnamed"]
    with torch.no_grad():
        assert np.allclose(seen["logits"], five_outputs().eval()(images), atol=1e-6)
    assert {one["name"] for one in seen["vocabulary"]} >= concepts
    assert seen["outputs"]["birads"] == [["4", "5"], None, "1", ["3"], None]
    assert [list(pair) for pair in (("birads", 2), ("density", 1))] == [
        pair for pair in seen["classes"] if pair in (["birads", 2], ["density", 1])
    ]
    assert set(cards) == {"someone/nets", "someone/findings", "someone/space"}
    assert 'functions=["helpers_backbones:five_outputs"]' in cards["someone/nets"]
    assert not [name for name, card in cards.items() if "Mammo-CLIP" in card]


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ({"Mass": 2}, "outputs of net/Mass name output 2, counted from 0, but the network has 2"),
        ({"density": ["A", "B", "C"]}, "list 3 outputs, but the network has 2"),
        ({"density": ["A", "Bb"]}, "density has no class 'Bb' .nearest: B"),
        ({"density": ["A", ["A", "B"]]}, "the class 'A' belongs to two outputs"),
        ({"density": ["A", None]}, "tell no two classes of density apart"),
        ({"density": 1}, "one output, numbered from 0, says whether a finding is there; density has"),
    ],
)
def test_outputs_that_fit_no_concept_are_one_line(outputs, said, tmp_path, phantom_root):
    study = Study(load_config(write_study(tmp_path, own_head(tmp_path, phantom_root, outputs))))
    with pytest.raises(InputError, match=said) as caught:
        study.classify()
    assert "\n" not in str(caught.value)


def facts_of(folder, phantom_root, concept, **model):
    """What a study knows of the classifier of a concept."""
    settings = own_head(folder, phantom_root, {concept: 0})
    settings["models"] = [{"name": "net", **model}]
    study = Study(load_config(write_study(folder, settings)))
    return study.facts(study.pairs[0])


def test_a_mammo_clip_head_of_three_outputs_is_one_of_a_declared_mapping(tmp_path, phantom_root):
    head = calibrated_classifier(3)
    save_classifier(head, tmp_path / "birads.safetensors", metadata={})
    files = {"classifiers": {"birads": str(tmp_path / "birads.safetensors")}}
    of_density = {"classifiers": {"density": files["classifiers"]["birads"]}}
    with pytest.raises(InputError, match="has 3 outputs, but density has 4 classes; if its outputs stand for some"):
        facts_of(tmp_path, phantom_root, "density", **of_density)
    outputs = {"birads": [[1, 2], 3, [4, 5]]}
    facts = facts_of(tmp_path, phantom_root, "birads", **files, outputs=outputs)
    assert torch.equal(facts.head.weight, head.classifier.weight) and facts.kind == "timm"  # random, not Mammo-CLIP's
    other = facts_of(tmp_path, phantom_root, "birads", encoder=files["classifiers"]["birads"], outputs=outputs)
    assert torch.equal(other.head.weight, facts.head.weight) and other.preprocessing == MAMMO_CLIP


def test_a_study_takes_weights_under_the_prefix_that_its_configuration_states(tmp_path, phantom_root):
    torch.manual_seed(3)
    state = {f"net.encoder.{name}": tensor for name, tensor in models.resnet18(num_classes=2).state_dict().items()}
    torch.save({"state_dict": state | {"net.text.weight": torch.ones(2)}}, tmp_path / "theirs.pt")
    start = {"architecture": "resnet18", "weights": str(tmp_path / "theirs.pt"), "prefix": "net.encoder."}
    own = {"outputs": {"Mass": 1}, "preprocessing": {"mean": 0.5, "std": 0.25}}
    facts = facts_of(tmp_path, phantom_root, "Mass", torchvision=start | {"arguments": {"num_classes": 2}}, **own)
    assert torch.equal(facts.head.weight, state["net.encoder.fc.weight"][[1]])
    with pytest.raises(InputError, match="no tensor that begins with 'encoder.'; its names begin with 'net.'"):
        facts_of(tmp_path, phantom_root, "Mass", torchvision=start | {"prefix": "encoder."}, **own)


def test_a_study_imports_only_the_function_that_it_names(tmp_path, phantom_root):
    save_classifier(
        new_backbone_classifier("function", f"{OWN}:Gray", 0, image_size=SIZE).with_head(1),
        tmp_path / "net.safetensors",
        metadata={},
    )
    files = {"classifiers": {"Mass": str(tmp_path / "net.safetensors")}}
    with pytest.raises(InputError, match="files are not trusted to name code"):
        facts_of(tmp_path, phantom_root, "Mass", **files)
    facts = facts_of(tmp_path, phantom_root, "Mass", **files, function=f"{OWN}:Gray")
    assert (facts.kind, facts.n_class, facts.preprocessing.channels) == ("function", 1, 1)
    said = {"mean": 0.0, "std": 1.0}
    start = {"encoder": str(tmp_path / "net.safetensors"), "function": f"{OWN}:Gray", "outputs": {"Mass": 0}}
    changed = facts_of(tmp_path, phantom_root, "Mass", **start, preprocessing=said).preprocessing
    assert (changed.mean, changed.std, changed.channels) == (0.0, 1.0, 1)


def test_a_classifiers_file_of_any_network_is_published_and_read_back(made, tmp_path, monkeypatch):
    """With the command, whose refusal says what to add; its arguments, or config, go with it."""
    network = made[0].with_head(1)
    save_classifier(network, tmp_path / "net.safetensors", metadata={"concepts": ["Mass"]})
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    command = ["publish", "model", tmp_path / "net.safetensors", "someone/nets", "--id", "mass", "--licence", "mit"]
    with LoopbackHub() as hub:
        if network.library == "function":
            refused = mammosae_on_hub(hub, tmp_path / "home", *command, "--confirm")
            assert refused.returncode == 2 and "with --function" in refused.stderr
            command += ["--function", network.architecture]
        done = mammosae_on_hub(hub, tmp_path / "home", *command, "--confirm")
        assert done.returncode == 0, done.stderr
        files = hub.repos["model", "someone/nets"].files
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "read").mkdir(exist_ok=True)
        (tmp_path / "read" / name).write_bytes(files[f"mass/{name}"])
    read = load_classifier(tmp_path / "read", functions=[network.architecture])
    images = torch.rand(2, network.preprocessing.channels, *made[3], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(read(images), network(images))
    assert read.description() == network.description()


def test_layers_of_any_network_are_listed(vit):
    done = mammosae("layers", f"transformers:{vit}")
    assert done.returncode == 0 and "backbone.vit.layers.1.hook_out" in done.stdout
    assert "top.hook_out" in mammosae("layers", f"function:{CNN}").stdout
    assert mammosae("layers", "torchvision:resnet8").returncode == 2


def test_settings_of_networks_that_mean_nothing_are_told_when_they_are_read(tmp_path, phantom_root):
    def read(**model):
        settings = own_head(tmp_path, phantom_root, {"Mass": 0})
        settings["models"] = [{"name": "net", **model}]
        return load_config(write_study(tmp_path, settings))

    assert read(torchvision="resnet18", train={"epochs": 1}).models[0].start[0] == "torchvision"
    (tmp_path / "vit").mkdir()
    assert read(transformers="vit", train={}).models[0].transformers.architecture == str(tmp_path / "vit")
    for model, said in (
        ({"torchvision": "resnet18", "timm": "resnet18", "train": {}}, "needs an `encoder` to start from, or one of"),
        ({"torchvision": "resnet18"}, "give either `classifiers` .* or `outputs`, of a network whose own head"),
        ({"function": CNN, "outputs": {"density": 0}}, "`outputs` do not say which stand for Mass"),
        ({"function": CNN, "outputs": {"Mass": 0, "density": 0}}, "has outputs for density, no concept of the study"),
        ({"function": CNN, "outputs": {"Mass": 0}, "train": {}}, "with `train` leave them out"),
        ({"torchvsion": "resnet18", "train": {}}, "did you mean 'torchvision'"),
        ({"timm": "resnet18", "train": {}, "preprocessing": {"channels": 2}}, "channels"),
        ({"timm": "resnet18", "train": {}, "preprocessing": {"size": [0, 4]}}, "must be above 0"),
    ):
        with pytest.raises(InputError, match=said):
            read(**model)
