"""One vector per image of any backbone, as rows of an activation store."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers_adapters import fixture_checkpoint, fixture_tensor
from helpers_kills import ended
from helpers_study import random_sae
from torch import nn
from typer.testing import CliRunner

from mammosae_plugin.activations import ActivationStore, embed, extract_activations
from mammosae_plugin.adapters import MammoClipClassifier
from mammosae_plugin.adapters.embedders import Embedder, load_embedder, with_random_weights
from mammosae_plugin.cli import app
from mammosae_plugin.datasets import VinDrMammo
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import encode_rows

SIZE = (96, 64)


@pytest.fixture(scope="module")
def images(phantom_root: Path) -> VinDrMammo:
    return VinDrMammo(phantom_root, image_size=SIZE)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tiny_dinov3(folder: Path) -> Any:
    """A DINOv3 of transformers with two blocks, random weights and biases, saved in a folder."""
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_register_tokens=4
    )
    network = transformers.DINOv3ViTModel(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    network.save_pretrained(folder)
    return network


def as_timm(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of transformers' DINOv3 under timm's names."""
    state = {name.removeprefix("model.").removeprefix("embeddings."): tensor for name, tensor in state.items()}
    found = {
        "cls_token": state["cls_token"],
        "reg_token": state["register_tokens"],
        **{f"patch_embed.proj.{leaf}": state[f"patch_embeddings.{leaf}"] for leaf in ("weight", "bias")},
        **{f"norm.{leaf}": state[f"norm.{leaf}"] for leaf in ("weight", "bias")},
    }
    same = {"norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.o_proj"}
    same |= {"mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}
    for number in range(2):
        old, new = f"layer.{number}.", f"blocks.{number}."
        weights = [state[f"{old}attention.{part}_proj.weight"] for part in "qkv"]
        found |= {f"{new}attn.qkv.weight": torch.cat(weights)}
        found |= {f"{new}attn.{part}_bias": state[f"{old}attention.{part}_proj.bias"] for part in "qv"}
        found |= {f"{new}gamma_{k}": state[f"{old}layer_scale{k}.lambda1"] for k in (1, 2)}
        found |= {f"{new}{a}.{leaf}": state[f"{old}{b}.{leaf}"] for a, b in same.items() for leaf in ("weight", "bias")}
    buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in found}
    assert not {name for name, _ in model.named_parameters()} - found.keys()
    return found | buffers


def test_dinov3_of_timm_gives_the_pooled_output_of_transformers(tmp_path: Path, pixels: torch.Tensor) -> None:
    theirs = tiny_dinov3(tmp_path / "dinov3")
    assert timm.is_model("vit_large_patch16_dinov3")
    ours = timm.create_model(
        "vit_small_patch16_dinov3_qkvb", img_size=SIZE, embed_dim=48, depth=2, num_heads=4, mlp_ratio=2
    ).eval()
    ours.load_state_dict(as_timm(theirs.state_dict(), ours))
    with torch.no_grad():
        output = theirs(pixel_values=pixels)
        patches = output.last_hidden_state[:, 5:].mean(1)
        for backbone, name in ((ours, "vit_small_patch16_dinov3_qkvb"), (theirs, "dinov3_vit")):
            for pooling, wanted in (("model", output.pooler_output), ("class_token", output.pooler_output)):
                found = Embedder(backbone, pooling, architecture=name)(pixels)
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
            found = Embedder(backbone, "mean_of_patches", architecture=name)(pixels)
            torch.testing.assert_close(found, patches, rtol=1e-4, atol=1e-5)
        of_folder = load_embedder(f"hf:{tmp_path / 'dinov3'}")
        torch.testing.assert_close(of_folder(pixels), output.pooler_output)
        random = [load_embedder(f"hf:{tmp_path / 'dinov3'}", weights="random", seed=seed)(pixels) for seed in (0, 0, 1)]
    assert torch.equal(random[0], random[1]) and not torch.equal(random[0], random[2])
    assert str(tmp_path) not in str(of_folder.source)


def test_poolings_of_timms_networks(pixels: torch.Tensor) -> None:
    vit = timm.create_model("test_vit", img_size=SIZE, pretrained=False).eval()
    resnet = timm.create_model("test_resnet", pretrained=False).eval()
    with torch.no_grad():
        tokens, features = vit.forward_features(pixels), resnet.forward_features(pixels)
        assert torch.equal(Embedder(vit, "class_token")(pixels), tokens[:, 0])
        assert torch.equal(Embedder(vit, "mean_of_patches")(pixels), tokens[:, vit.num_prefix_tokens :].mean(1))
        assert torch.equal(Embedder(vit, "model")(pixels), vit.forward_head(tokens, pre_logits=True))
        torch.testing.assert_close(Embedder(resnet, "mean_of_patches")(pixels), features.mean((2, 3)))
        torch.testing.assert_close(Embedder(resnet, "model")(pixels), features.mean((2, 3)))
        with pytest.raises(InputError, match="no class token; choose mean_of_patches"):
            Embedder(resnet, "class_token")(pixels)


class _Tower(nn.Module):
    """What OpenCLIP's transformer is made of, as far as poolings see it: tokens, a last norm, a projection."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(8))
        self.patches, self.transformer, self.ln_post = nn.Conv2d(3, 8, 32, 32), nn.Identity(), nn.LayerNorm(8)
        self.projection, self.batch_first = nn.Linear(8, 4), batch_first

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(images), 1, 8), patches], dim=1)
        tokens = self.transformer(tokens if self.batch_first else tokens.transpose(0, 1))
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        return self.projection(self.ln_post(tokens[:, 0]))


@pytest.mark.parametrize("batch_first", [True, False])
def test_poolings_of_a_clip_tower(batch_first: bool) -> None:
    images = torch.randn(3, 3, *SIZE)
    tower = _Tower(batch_first=batch_first).eval()
    clip = nn.Module()
    clip.visual = tower
    tokens = torch.cat([tower.class_embedding.expand(3, 1, 8), tower.patches(images).flatten(2).transpose(1, 2)], dim=1)
    with torch.no_grad():
        assert torch.equal(Embedder(clip)(images), tower(images))
        torch.testing.assert_close(Embedder(clip, "class_token")(images), tower.ln_post(tokens[:, 0]))
        torch.testing.assert_close(Embedder(tower, "mean_of_patches")(images), tower.ln_post(tokens)[:, 1:].mean(1))


def test_poolings_of_open_clip_itself() -> None:
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
    clip = open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(Embedder(clip)(images), clip.encode_image(images))
        token = Embedder(clip, "class_token")(images)
        torch.testing.assert_close(token @ clip.visual.proj, clip.encode_image(images))
        assert Embedder(clip, "mean_of_patches")(images).shape == (2, 64)


def test_mammo_clips_pooled_vector_and_its_projection(tmp_path: Path) -> None:
    content = fixture_checkpoint("b2")
    weight, bias = fixture_tensor("projection.weight", (512, 1408)), fixture_tensor("projection.bias", (512,))
    content["model"] |= {"image_projection.projection.weight": weight, "image_projection.projection.bias": bias}
    torch.save(content, tmp_path / "b2.tar")
    images = torch.randn(1, 3, 64, 64)
    pooled, projected = (load_embedder(tmp_path / "b2.tar", pooling=pooling) for pooling in ("model", "projected"))
    network: Any = pooled.backbone
    with torch.no_grad():
        vector = network.forward_features(images).mean((2, 3))
        assert torch.equal(pooled(images), vector)
        torch.testing.assert_close(projected(images), vector @ weight.T + bias)
        with projected.hooked((64, 64)) as hooked:
            assert hooked.hook_shapes == {"projected.hook_out": (512,)}
            assert any("projection" in name for name in hooked.encoder_state())  # it decides the vector
    with pytest.raises(InputError, match="Mammo-CLIP's pretraining checkpoints, MedCLIP's, GLoRIA's"):
        Embedder(network, "projected")
    del content["model"]["image_projection.projection.weight"]
    torch.save(content, tmp_path / "lacks.tar")
    with pytest.raises(InputError, match="has no image_projection"):
        load_embedder(tmp_path / "lacks.tar", pooling="projected")


def test_a_control_with_random_weights_of_any_network(classifier: MammoClipClassifier, pixels: torch.Tensor) -> None:
    state = torch.random.get_rng_state()
    drawn = [load_embedder(classifier, weights="random", seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(state, torch.random.get_rng_state())
    own = load_embedder(classifier)
    with torch.no_grad():
        vectors = [embedder(pixels) for embedder in (own, *drawn)]
    assert torch.equal(vectors[1], vectors[2])
    assert len({vector.numpy().tobytes() for vector in vectors}) == 3
    assert all(torch.isfinite(vector).all() and vector.std() > 0 for vector in vectors)
    assert drawn[0].source["weights"] == "random" and "weights" not in own.source
    vit = timm.create_model("test_vit", img_size=SIZE).eval()
    changed = with_random_weights(vit, 0)
    assert all(
        not torch.equal(new, old) or bool((new == 0).all()) or bool((new == 1).all())
        for (name, new), old in zip(changed.named_parameters(), vit.parameters(), strict=True)
    )
    with pytest.raises(InputError, match="of a network there are 'random' ones"):
        load_embedder(classifier, weights="pretrained")


def test_a_store_of_embeddings_has_a_row_per_image_and_what_is_known_of_it(images: VinDrMammo, tmp_path: Path) -> None:
    store = embed("test_resnet", images, tmp_path / "store", weights="random", batch_size=5)
    assert (store.n_rows, store.hook_name) == (len(images), "pooled.hook_out")
    assert store.manifest["source"]["pooling"] == "model"
    own = load_embedder("test_resnet", weights="random")
    assert own.preprocessing is not None
    shown = images.with_preprocessing(own.preprocessing)
    with torch.no_grad():
        wanted = torch.cat([own(shown[number]["image"][None]) for number in range(3)])
    torch.testing.assert_close(store.rows_of(range(3)), wanted, rtol=1e-4, atol=1e-5)
    before = contents(tmp_path / "store")
    assert embed("test_resnet", images, tmp_path / "store", weights="random", batch_size=5).n_rows == store.n_rows
    assert contents(tmp_path / "store") == before
    table = encode_rows(store, random_sae(store.d_in), tmp_path / "table")
    assert table.image_size == SIZE and set(table.vocabulary) == set(images.vocabulary)
    by_id = images.images.set_index("image_id").loc[table.images["image_id"]]
    assert np.array_equal(table.images["Mass"], by_id["Mass"]) and table.splits == ("training", "test")
    assert np.array_equal(table.images["patient_id"], by_id["patient_id"])
    place = list(store.image_ids).index(table.images["image_id"].iloc[-1])
    code = random_sae(store.d_in).encode(store.rows_of([place])).detach()
    np.testing.assert_allclose(table.codes()[[-1]].toarray(), code.numpy(), rtol=1e-4, atol=1e-5)
    (tmp_path / "store" / "images.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="images.parquet is missing or was changed"):
        encode_rows(store, random_sae(store.d_in), tmp_path / "other")


def test_another_pooling_type_or_weights_is_refused_in_the_same_folder(images: VinDrMammo, tmp_path: Path) -> None:
    few = images.select(split="test")
    embed("test_vit", few, tmp_path / "s", weights="random", limit=3)
    for other in (
        {"pooling": "mean_of_patches"},
        {"seed": 1},
        {"dtype": "float16"},
        {"autocast": "bfloat16"},
    ):
        with pytest.raises(InputError, match="other settings"):
            embed("test_vit", few, tmp_path / "s", **{"weights": "random", "limit": 3, **other})
    low = embed("test_vit", few, tmp_path / "low", weights="random", limit=3, autocast="bfloat16", dtype="bfloat16")
    assert low.dtype == torch.bfloat16
    with pytest.raises(InputError, match="is no model that timm"):
        embed("vit_gigantic_of_nowhere", few, tmp_path / "t")
    with pytest.raises(InputError, match="pooling is 'best': choose one of"):
        embed("test_vit", few, tmp_path / "t", weights="random", pooling="best")
    with pytest.raises(InputError, match="transformers cannot open"):
        load_embedder(f"hf:{tmp_path}")
    with pytest.raises(InputError, match="from which no model vector can be taken"):
        load_embedder(nn.Conv2d(3, 4, 3)).hooked(SIZE)


def test_a_vector_hook_point_extracted_by_name_is_encoded_too(
    classifier: MammoClipClassifier, images: VinDrMammo, tmp_path: Path
) -> None:
    with Embedder(classifier, preprocessing=None).hooked(SIZE) as hooked:
        store = extract_activations(hooked, images.select(split="test"), tmp_path / "store", hook_name="pooled")
    table = encode_rows(store, random_sae(store.d_in), tmp_path / "table", images=images)
    assert table.splits == ("test",) and set(table.vocabulary) == set(images.vocabulary)
    with pytest.raises(InputError, match="the table of images lacks"):
        encode_rows(store, random_sae(store.d_in), tmp_path / "t", images=images.images.iloc[:2])


def test_the_command_line_embeds_and_says_what_is_wrong(phantom_root: Path, tmp_path: Path) -> None:
    data = ["--data", str(phantom_root), "--image-size", "96", "64"]
    command = ["embed", "test_resnet", "--weights", "random", "--limit", "3", *data]
    run = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    assert "3 rows of" in run.output and ActivationStore(tmp_path / "out").n_rows == 3
    for wrong, message in (
        ([*command[:4], "-o", "x"], "say what the images are"),
        ([*command, "--kind", "dicom", "-o", "x"], "kind must be one of"),
        ([*command, "--pooling", "projected", "-o", "x"], "pretraining checkpoints"),
        (["embed", "nothing", *data, "-o", "x"], "is no model that timm"),
    ):
        failed = CliRunner().invoke(app, wrong)
        assert failed.exit_code == 2 and message in failed.output + failed.stderr, failed.output
    told = CliRunner().invoke(app, ["embed", "--help"]).output
    assert all(word in told for word in ("--pooling", "class_token", "mean_of_patches", "--weights", "torchrun"))


KILLED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from helpers_kills import killed_at
from mammosae_plugin.activations import embed, embedding, extraction
from mammosae_plugin.datasets import VinDrMammo

embedding.IMAGES_PER_SHARD = 3
images = VinDrMammo(sys.argv[1], image_size=(96, 64)).select(split="test")
out = Path(sys.argv[2])

def killed(folder, moment):
    def work():
        embed("test_resnet", images, folder, weights="random", batch_size=2)
    return killed_at(moment, work, [(extraction, "capture_several")])

killed(out / "whole", None)
moment = 2
while killed(out / "broken", moment):
    moment += 2
assert moment >= 10, moment
killed(out / "broken", None)
"""


def test_killed_outright_again_and_again_it_ends_with_the_same_bytes(phantom_root: Path, tmp_path: Path) -> None:
    ended(KILLED, phantom_root, tmp_path)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
