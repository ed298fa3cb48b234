"""The text embedding inside wordllama, read from its files: the numbers of the package, and words where it fails."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from mammosae_plugin.adapters.word_embeddings import load_word_embeddings
from mammosae_plugin.errors import InputError

PACKAGE = Path(find_spec("wordllama").submodule_search_locations[0])
TEXTS = ["spiculated mass in a dense breast", "CC", "Mass", "ein Ödem, 3 cm", "🙂 emoji", " ".join(["axial"] * 600)]


@pytest.fixture(scope="module")
def embeddings():
    return load_word_embeddings()


def test_it_gives_what_the_package_gives(embeddings, tmp_path):
    """Its own loader looks for the tokenizer where it does not lie, so that it is put where it looks next."""
    (tmp_path / "tokenizers").symlink_to(PACKAGE / "tokenizers")
    script = (
        "import sys, numpy as np; from wordllama import WordLlama;"
        "own = WordLlama.load(cache_dir=sys.argv[1], disable_download=True);"
        "np.save(sys.argv[1] + '/own.npy', own.embed(sys.argv[2:], norm=True))"
    )  # in a process of its own: the package sets up logging when it is imported
    subprocess.run([sys.executable, "-c", script, str(tmp_path), *TEXTS], check=True)
    np.testing.assert_allclose(embeddings.embed_texts(TEXTS), np.load(tmp_path / "own.npy"), atol=1e-5)


def test_texts_have_length_1_whatever_they_are_embedded_with(embeddings):
    found = embeddings.embed_texts(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(np.concatenate([embeddings.embed_texts([one]) for one in TEXTS]), found)
    assert {"breast", "image", "left"} <= set(embeddings.words) and "wordllama" not in sys.modules


def test_what_is_no_text_or_no_package_is_refused(embeddings, tmp_path):
    for texts, said in (([], "no texts"), (["a mass", " "], "a text is ''"), ("a mass", "give a list")):
        with pytest.raises(InputError, match=said):
            embeddings.embed_texts(texts)
    with pytest.raises(InputError, match="l2_supercat_256.safetensors is missing"):
        load_word_embeddings(tmp_path)
    for name in ("weights/l2_supercat_256.safetensors", "tokenizers/l2_supercat_tokenizer_config.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(InputError, match="is no tokenizer; install wordllama again"):
        load_word_embeddings(tmp_path)
    (tmp_path / "tokenizers" / "l2_supercat_tokenizer_config.json").write_bytes(
        (PACKAGE / "tokenizers" / "l2_supercat_tokenizer_config.json").read_bytes()
    )
    with pytest.raises(InputError, match="holds no embedding.weight"):
        load_word_embeddings(tmp_path)
