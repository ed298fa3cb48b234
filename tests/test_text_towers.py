"""Text encoders in the space of images: Mammo-CLIP's against transformers' own, and other pairs in one protocol."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mammosae_plugin.adapters import MammoClipText, TextTower, load_mammo_clip_text, text_tower
from mammosae_plugin.adapters.checkpoints import CheckpointFormatError
from mammosae_plugin.errors import InputError

transformers = pytest.importorskip("transformers")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "mass", "spiculated", "dense", "breast", "no", "finding"]
TEXTS = ["a spiculated mass", "no finding", "a dense breast no mass in a dense breast"]
D_IN, WIDTH = 24, 16


def bert() -> Any:
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=40,
    )  # fmt: skip
    model: Any = transformers.BertModel(config).eval()
    for parameter in model.parameters():  # the initial ones are all but 0, and biases 0
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def checkpoint(folder: Path, model: Any, pooling: str | None = "eos", **replaced: Any) -> Path:
    """A file of Mammo-CLIP's form; `replaced` values of None leave a key out."""
    weights: dict[str, Any] = {
        "image_encoder._conv_stem.weight": torch.zeros(48, 3, 3, 3),
        "text_encoder.text_encoder.embeddings.position_ids": torch.arange(40)[None],
        **{f"text_encoder.text_encoder.{key}": value for key, value in model.state_dict().items()},
        "text_projection.projection.weight": torch.randn(WIDTH, 32),
        "text_projection.projection.bias": torch.randn(WIDTH),
        "image_projection.projection.weight": torch.randn(WIDTH, D_IN),
        "image_projection.projection.bias": torch.randn(WIDTH),
        "logit_scale": torch.tensor(2.6),
    }
    weights = {key: value for key, value in {**weights, **replaced}.items() if value is not None}
    said = {} if pooling is None else {"pooling": pooling}
    content = {"model": weights, "config": {"model": {"text_encoder": {"name": "bert", **said}}}, "epoch": 1}
    torch.save(content, folder / "text.tar")
    return folder / "text.tar"


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


def reference(model: Any, file: Path, tokenizer: Any, text: str, pooling: str | None) -> np.ndarray:
    """One text at a time, without padding, as transformers embeds it and the original projects it."""
    weights = torch.load(file, weights_only=True)["model"]
    with torch.inference_mode():
        hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    pooled = {"mean": hidden.mean(dim=0), "bos": hidden[0]}.get(pooling or "eos", hidden[-1])
    found = weights["text_projection.projection.weight"] @ pooled + weights["text_projection.projection.bias"]
    return (found / found.norm()).numpy()


@pytest.mark.parametrize("pooling", ["eos", "bos", "mean", None])
def test_texts_have_the_embedding_of_the_transformers_model_with_the_same_weights(tmp_path, vocabulary, pooling):
    model = bert()
    file = checkpoint(tmp_path, model, pooling)
    random_state = torch.random.get_rng_state()
    text = load_mammo_clip_text(file, tokenizer=vocabulary, n_heads=4)
    assert torch.equal(random_state, torch.random.get_rng_state())
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(vocabulary))
    expected = np.stack([reference(model, file, tokenizer, one, pooling) for one in TEXTS])
    found = text.embed_texts(TEXTS)
    assert found.shape == (3, WIDTH) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 5e-3  # texts differ by far more than that
    assert text.pooling == (pooling or "eos") and float(text.logit_scale) == pytest.approx(2.6)
    assert text.source["files"] == ["text.tar"]


def test_images_are_projected_as_the_mean_of_projected_positions(tmp_path):
    file = checkpoint(tmp_path, bert())
    text = load_mammo_clip_text(file, n_heads=4)  # without any tokenizer: no text is embedded
    assert isinstance(text, MammoClipText) and isinstance(text, TextTower)
    weights = torch.load(file, weights_only=True)["model"]
    maps = torch.randn(5, 6, D_IN)
    each = maps @ weights["image_projection.projection.weight"].T + weights["image_projection.projection.bias"]
    np.testing.assert_allclose(text.project(maps.mean(dim=1)), each.mean(dim=1).numpy(), atol=1e-5)
    with pytest.raises(InputError, match=r"\(5, 3\).*reads \(n, 24\)"):
        text.project(np.zeros((5, 3)))


def test_long_texts_are_cut_and_wrong_ones_refused(tmp_path, vocabulary):
    text = load_mammo_clip_text(checkpoint(tmp_path, bert()), tokenizer=vocabulary, n_heads=4)
    assert np.isfinite(text.embed_texts(["mass " * 300])).all()
    for texts, said in (([], "no texts"), ([""], "a text is ''"), ("mass", "give a list")):
        with pytest.raises(InputError, match=said):
            text.embed_texts(texts)


def test_a_tokenizer_of_another_model_or_place_is_refused(tmp_path, vocabulary):
    file = checkpoint(tmp_path, bert())
    (vocabulary / "vocab.txt").write_text("\n".join([*WORDS, "more"]) + "\n")
    with pytest.raises(InputError, match="13 words and the text encoder 12"):
        load_mammo_clip_text(file, tokenizer=vocabulary, n_heads=4).embed_texts(TEXTS)
    with pytest.raises(InputError, match=r"no tokenizer can be read from .*nowhere"):
        load_mammo_clip_text(file, tokenizer=tmp_path / "nowhere", n_heads=4).embed_texts(TEXTS)
    with pytest.raises(InputError, match="tokenizer is 5"):
        load_mammo_clip_text(file, tokenizer=5, n_heads=4).embed_texts(TEXTS)


@pytest.mark.parametrize(
    ("pooling", "replaced", "said"),
    [
        ("last", {}, "pools texts by 'last'; known are eos, bos, mean"),
        ("eos", {"text_projection.projection.weight": None}, "no matrix at text_projection.projection.weight"),
        ("eos", {"text_projection.projection.weight": torch.zeros(WIDTH, 31)}, "of another shape"),
        ("eos", {"image_projection.projection.bias": torch.zeros(3)}, "of another shape"),
        ("eos", {"text_encoder.text_encoder.encoder.layer.1.output.dense.bias": None}, "not a BERT encoder: .* 1 miss"),
        ("eos", {"text_encoder.text_encoder.extra": torch.zeros(2)}, "1 unexpected"),
        ("eos", {"text_encoder.text_encoder.embeddings.word_embeddings.weight": None}, "no BERT .*ModernBERT"),
        (
            "eos",
            {
                "image_projection.projection.weight": torch.zeros(8, D_IN),
                "image_projection.projection.bias": torch.ones(8),
            },
            "texts to 16 numbers and images to 8",
        ),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_form_is_refused_in_a_line(tmp_path, pooling, replaced, said):
    with pytest.raises(CheckpointFormatError, match=said):
        load_mammo_clip_text(checkpoint(tmp_path, bert(), pooling, **replaced), n_heads=4)


def test_a_classifier_and_wrong_arguments_are_refused(tmp_path, monkeypatch):
    torch.save({"model": {"image_encoder.x": torch.zeros(2)}}, tmp_path / "classifier.pth")
    with pytest.raises(CheckpointFormatError, match="no text encoder .*give the pretraining checkpoint"):
        load_mammo_clip_text(tmp_path / "classifier.pth")
    file = checkpoint(tmp_path, bert())
    with pytest.raises(InputError, match=r"n_heads is 0\.5"):  # 32 wide, and published heads are 64 wide
        load_mammo_clip_text(file)
    with pytest.raises(InputError, match="n_heads is 5, which does not divide"):
        load_mammo_clip_text(file, n_heads=5)
    with pytest.raises(InputError, match="revision 'main' means nothing"):
        load_mammo_clip_text(file, revision="main")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'mammosae-plugin\[language\]'"):
        load_mammo_clip_text(file)


def test_a_clip_of_transformers_is_a_text_tower(vocabulary):
    torch.manual_seed(0)
    text = {"vocab_size": 12, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 16, "eos_token_id": 3}
    vision = {"hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    model: Any = transformers.CLIPModel(config).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(vocabulary))

    def tokens(text: list[str], **how: Any) -> Any:
        found = tokenizer(text, **how)
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    tower = text_tower(model, tokens, reads="pooled")
    assert isinstance(tower, TextTower)
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        pooled = model.vision_model(pixel_values=images).pooler_output
        output = model(pixel_values=images, **tokens(TEXTS, padding=True, return_tensors="pt"))
    np.testing.assert_allclose(tower.embed_texts(TEXTS), output.text_embeds.numpy(), atol=1e-5)
    found = tower.project(pooled)
    np.testing.assert_allclose(
        found / np.linalg.norm(found, axis=1, keepdims=True), output.image_embeds.numpy(), atol=1e-5
    )
    np.testing.assert_array_equal(text_tower(model, tokens).project(found), found)


def test_a_clip_of_openclip_is_a_text_tower():
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 16, "patch_size": 8, "width": 24, "layers": 1, "head_width": 12}
    model = open_clip.CLIP(WIDTH, vision, text).eval()

    def tokens(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[1 + len(one) % 40, *range(2, 8), 49] for one in texts])

    tower = text_tower(model, tokens, reads="pooled")
    with torch.inference_mode():
        expected = model.encode_text(tokens(TEXTS), normalize=True).numpy()
    np.testing.assert_allclose(tower.embed_texts(TEXTS), expected, atol=1e-5)
    features = np.random.default_rng(0).normal(size=(3, 24))
    np.testing.assert_allclose(tower.project(features), features @ model.visual.proj.detach().numpy(), atol=1e-5)


def test_what_is_no_pair_of_text_and_images_is_refused():
    with pytest.raises(InputError, match="a Linear has neither encode_text nor get_text_features"):
        text_tower(torch.nn.Linear(2, 2), None)
    with pytest.raises(InputError, match="reads is 'tokens'"):
        text_tower(torch.nn.Linear(2, 2), None, reads="tokens")
    bare: Any = torch.nn.Linear(2, 2)
    bare.get_text_features = SimpleNamespace
    with pytest.raises(InputError, match="no linear image projection"):
        text_tower(bare, None, reads="pooled")
