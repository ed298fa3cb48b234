"""Names of networks, wherever one is named: which library they are of, with their own weights, and with random ones."""

import json
import shutil

import pytest
import torch
from helpers_hub import LoopbackHub, run_on_hub
from helpers_study import mammosae

from mammosae_plugin.adapters import load_classifier, new_backbone_classifier, save_classifier
from mammosae_plugin.adapters.embedders import load_embedder
from mammosae_plugin.adapters.layers import open_model
from mammosae_plugin.adapters.names import NetworkName, network_name
from mammosae_plugin.errors import InputError

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TOWER = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}


@pytest.mark.parametrize(
    ("name", "library", "there", "has_weights"),
    [
        ("microsoft/rad-dino", "transformers", "microsoft/rad-dino", True),
        ("transformers:microsoft/rad-dino", "transformers", "microsoft/rad-dino", True),
        ("hf:microsoft/rad-dino", "transformers", "microsoft/rad-dino", True),
        ("hf-hub:timm/resnet18.a1_in1k", "timm", "hf-hub:timm/resnet18.a1_in1k", True),
        ("hf_hub:timm/resnet18.a1_in1k", "timm", "hf_hub:timm/resnet18.a1_in1k", True),
        ("timm:hf-hub:a/b", "timm", "hf-hub:a/b", True),
        ("resnet18.a1_in1k", "timm", "resnet18.a1_in1k", False),
        ("open_clip:ViT-B-32", "open_clip", "ViT-B-32", False),
        ("open_clip:ViT-B-32/openai", "open_clip", "ViT-B-32/openai", True),
        ("open_clip:hf-hub:a/b", "open_clip", "hf-hub:a/b", True),
        ("torchvision:resnet50", "torchvision", "resnet50", False),
        ("function:package.module:make", "function", "package.module:make", True),
        ("hf://owner/name/net.safetensors", "file", "hf://owner/name/net.safetensors", True),
    ],
)
def test_what_a_name_means(name, library, there, has_weights):
    assert network_name(name) == NetworkName(library, there, has_weights)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders of tiny networks of transformers, of timm and of OpenCLIP, with the networks."""
    import open_clip
    import timm
    from timm.models import save_for_hf
    from transformers import Dinov2Config, Dinov2Model

    root = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    dino = Dinov2Model(Dinov2Config(**SIZES, image_size=28, patch_size=14)).eval()
    dino.save_pretrained(root / "dino")
    said = {"image_mean": [0.25] * 3, "image_std": [0.5] * 3}
    (root / "dino" / "preprocessor_config.json").write_text(json.dumps(said))
    settings = {"input_size": (3, 48, 48), "mean": (0.25, 0.25, 0.25)}
    resnet = timm.create_model("test_resnet", num_classes=5, act_layer="gelu").eval()
    resnet.pretrained_cfg.update(settings)
    save_for_hf(resnet, root / "resnet", model_args={"act_layer": "gelu"})
    clip = open_clip.CLIP(12, dict(TOWER), dict(TEXT), quick_gelu=True).eval()
    (root / "clip").mkdir()
    torch.save(clip.state_dict(), root / "clip" / "open_clip_pytorch_model.bin")
    model = {"embed_dim": 12, "vision_cfg": TOWER, "text_cfg": TEXT, "quick_gelu": True}
    preprocessing = {"mean": [0.25] * 3, "std": [0.5] * 3}
    said = {"model_cfg": model, "preprocess_cfg": preprocessing}
    (root / "clip" / "open_clip_config.json").write_text(json.dumps(said))
    return root, dino, resnet, clip


def features_of(dino, images):
    """What a classifier on DINOv2 reads, without the classifier, which no such weights have."""
    tokens = dino(images).last_hidden_state
    return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1)


@pytest.mark.parametrize("kind", ["dino", "resnet", "clip"])
def test_a_folder_says_itself_whose_network_it_holds(folders, kind):
    root, dino, resnet, clip = folders
    network = open_model(str(root / kind))
    size = {"dino": 28, "resnet": 48, "clip": 32}[kind]
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = {
            "dino": lambda: features_of(dino, images),
            "resnet": lambda: resnet(images),
            "clip": lambda: clip.visual(images),
        }[kind]()
        assert torch.equal(network(images), wanted)
        drawn = [open_model(str(root / kind), weights="random", seed=seed)(images) for seed in (0, 0, 1)]
        assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
        embedder = load_embedder(str(root / kind))
        assert kind != "dino" or torch.equal(embedder(images), dino(images).pooler_output)
        assert embedder(images).shape == (2, {"dino": 16, "resnet": resnet.num_features, "clip": 12}[kind])
    assert embedder.preprocessing.mean == (0.25,) * 3 and str(root) not in str(embedder.source)


def test_a_tower_of_open_clip_is_saved_and_read_back_without_its_repository(folders, tmp_path):
    root, _, _, clip = folders
    made = new_backbone_classifier("open_clip", f"local-dir:{root / 'clip'}", 2, image_size=(32, 32))
    save_classifier(made, tmp_path / "net.safetensors", metadata={})
    read, images = load_classifier(tmp_path / "net.safetensors"), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(read(images), made(images)) and read(images).shape == (2, 2)
        assert torch.equal(read.features(images), clip.visual(images))
        patches = load_embedder(str(root / "clip"), pooling="mean_of_patches")(images)
        assert patches.shape == (2, 16)  # before the projection
    assert read.description() == made.description() and read.description()["library"] == "open_clip"


FETCH = """
import sys, torch
from mammosae_plugin.adapters.layers import open_model
from mammosae_plugin.adapters.embedders import load_embedder

seen = {}
names = {"dino": "someone/dino", "resnet": "hf-hub:someone/resnet", "clip": "open_clip:hf-hub:someone/clip"}
for kind, name in names.items():
    size = {"dino": 28, "resnet": 48, "clip": 32}[kind]
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen[f"{kind} random"] = open_model(name, weights="random")(images).tolist()
        if sys.argv[1] == "online":
            seen.setdefault("asked", [path for _, path in hub()["requests"]])
            seen[kind] = open_model(name)(images).tolist()
if sys.argv[1] == "online":
    seen["source"] = load_embedder("hf-hub:someone/resnet").source
    seen["bare"] = attempt(lambda: open_model("hf-hub:someone/bare"))["message"]
    open_model("hf-hub:someone/bare", weights="random")
    seen["of another library"] = attempt(lambda: open_model("hf-hub:someone/dino"))["message"]
seen["none"] = attempt(lambda: open_model("hf-hub:someone/none", weights="random"))["message"]
"""


def test_names_of_the_hub_give_their_own_weights_and_offline_random_ones(folders, tmp_path, monkeypatch):
    root, dino, resnet, clip = folders
    with LoopbackHub() as hub:
        for kind in ("dino", "resnet", "clip"):
            hub.commit(f"someone/{kind}", {file.name: file for file in (root / kind).iterdir()})
        hub.commit("someone/bare", {"config.json": root / "resnet" / "config.json"})
        online = run_on_hub(hub, tmp_path / "home", FETCH, "online")
        hub.requests.clear()
        own = hub.environment
        monkeypatch.setattr(hub, "environment", lambda *args: own(*args) | {"HF_HUB_OFFLINE": "1"})
        offline = run_on_hub(hub, tmp_path / "home", FETCH, "offline")
        assert hub.requests == []
    for kind, network in (("dino", dino), ("resnet", resnet), ("clip", clip.visual)):
        size = {"dino": 28, "resnet": 48, "clip": 32}[kind]
        images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            wanted = features_of(network, images) if kind == "dino" else network(images)
        torch.testing.assert_close(torch.tensor(online[kind]), wanted)
        assert offline[f"{kind} random"] == online[f"{kind} random"] != online[kind]
    assert online["asked"] and not any(path.endswith(".safetensors") for path in online["asked"])  # the config alone
    assert online["source"]["variant"] == "hf-hub:someone/resnet"
    assert online["source"]["hub"][0]["repo"] == "someone/resnet"
    assert "names no architecture of timm; write transformers:someone/dino" in online["of another library"]
    assert "; or take random weights (--random), which need the config alone" in online["bare"]
    assert "has no repo someone/none" in online["none"]
    assert "HF_HUB_OFFLINE is set" in offline["none"] or "not in the cache" in offline["none"]
    assert all("\n" not in said for said in (*online.values(), *offline.values()) if isinstance(said, str))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "the model's name is empty"),
        ("torchvision:", "names no network; write it behind the colon"),
        ("open_clip:ViT-B-33", "is no model that open_clip has; did you mean ViT-B-32"),
        ("open_clip:ViT-B-32/nope", "open_clip has no weights 'nope' of ViT-B-32; it has openai, "),
        ("open_clip:someone/clip", "is no model that open_clip has; a repository is open_clip:hf-hub:someone/clip"),
    ],
)
def test_names_that_are_of_nothing_are_one_line(name, said):
    with pytest.raises(InputError, match=said) as caught:
        open_model(name)
    assert "\n" not in str(caught.value)


def test_an_architecture_of_open_clip_alone_has_no_weights_to_load():
    with pytest.raises(InputError, match=r"name its weights too, as open_clip:ViT-B-32/TAG .* or take random ones"):
        load_embedder("open_clip:ViT-B-32")
    with torch.no_grad():
        assert open_model("open_clip:ViT-B-32", weights="random")(torch.zeros(1, 3, 224, 224)).shape == (1, 512)


def test_the_command_lists_by_name_with_random_weights(folders, tmp_path):
    done = mammosae("layers", str(folders[0] / "resnet"), "--random")
    assert done.returncode == 0 and "layer4.hook_out" in done.stdout
    (tmp_path / "empty").mkdir()
    done = mammosae("layers", str(tmp_path / "empty"))
    assert done.returncode == 2 and "is a folder without the config of a network" in done.stderr


def test_a_repository_that_cannot_be_read_is_one_line_whose_way_out_works(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = mammosae("layers", "someone/nowhere", "--random")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.strip().endswith("or a folder that holds its config.json") and "weights:" not in done.stderr
    done = mammosae("layers", "someone/nowhere")
    assert done.returncode == 2 and "take random weights (--random; a study's weights: random)" in done.stderr
    (tmp_path / "config").mkdir()
    shutil.copy(folders[0] / "dino" / "config.json", tmp_path / "config")  # what they say
    done = mammosae("layers", str(tmp_path / "config"), "--random")
    assert done.returncode == 0 and "layernorm.hook_out" in done.stdout
