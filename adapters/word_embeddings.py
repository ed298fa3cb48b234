"""A small text embedding that lies in a package: wordllama's vectors of word pieces, read without its code."""

__all__ = ["load_word_embeddings", "WordEmbeddings"]

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mammosae_plugin.adapters.text_towers import unit_rows
from mammosae_plugin.arguments import entries, text
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path

_WEIGHTS, _TOKENIZER = "weights/l2_supercat_256.safetensors", "tokenizers/l2_supercat_tokenizer_config.json"
_TENSOR = "embedding.weight"
_WORD = re.compile("▁[a-z]{4,}")  # a piece that begins a word, and is one


class WordEmbeddings:
    """Texts as means of vectors of word pieces; `load_word_embeddings` makes it.

    Attributes:
        name: as results say it.
        words: what of the vocabulary is a word of four small letters or more, in alphabetical order.
    """

    def __init__(self, tokenizer: Any, vectors: NDArray[np.float32], name: str) -> None:
        """Take a tokenizer of the library tokenizers and its pieces' vectors (V, e)."""
        self._tokenizer, self._vectors, self.name = tokenizer, vectors, name
        self.words: tuple[str, ...] = tuple(sorted(one[1:] for one in tokenizer.get_vocab() if _WORD.fullmatch(one)))

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts -> (n, e), each of length 1: the mean of the vectors of a text's pieces, whatever their order.

        Raises:
            InputError: no texts, or one without a piece.
        """
        given = [str(one) for one in entries(texts, "texts")]
        for one in given:
            text(one.strip(), "a text")
        if not given:
            raise InputError("there are no texts to embed; give at least one")
        found = np.empty((len(given), self._vectors.shape[1]))
        for row, tokens in enumerate(self._tokenizer.encode_batch(given, add_special_tokens=False)):
            found[row] = self._vectors[tokens.ids].mean(axis=0, dtype=np.float64)
        return unit_rows(found, "embeddings of texts").astype(np.float32)


def load_word_embeddings(folder: str | os.PathLike[str] | None = None) -> WordEmbeddings:
    """The embedding inside the package wordllama (256 numbers a word piece), from its files; no network is asked.

    The vectors are those of `WordLlama.load().embed(texts, norm=True)`. The package itself is not imported, because it
    reconfigures logging and downloads what it does not find.

    Args:
        folder: where `weights` and `tokenizers` lie; None: the installed package.

    Raises:
        InputError: the package or a file of it is missing or damaged.

    Example:
        >>> a, b, c = load_word_embeddings().embed_texts(["a dense breast", "breast density", "a bicycle"])
        >>> bool(a @ b > 0.5 > a @ c)
        True
    """
    if folder is None:
        spec = find_spec("wordllama")
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                "search by text needs the package wordllama, which holds a small text embedding; "
                "pip install 'mammosae-plugin[language]', or search by words (--by words)"
            )
        folder = spec.submodule_search_locations[0]
    place = local_path(folder)
    weights, vocabulary = place / _WEIGHTS, place / _TOKENIZER
    for file in (weights, vocabulary):
        if not file.is_file():
            raise InputError(f"{file} is missing; install wordllama 0.4 or newer, below 1")
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(vocabulary))
        vectors = load_file(Path(weights))[_TENSOR].astype(np.float32)
    except ImportError as error:
        raise InputError(f"the tokenizer needs {error.name}; pip install 'mammosae-plugin[language]'") from error
    except (SafetensorError, KeyError) as error:
        raise InputError(f"{weights} holds no {_TENSOR}; install wordllama again") from error
    except Exception as error:  # tokenizers raises nothing more special
        raise InputError(f"{vocabulary} is no tokenizer; install wordllama again") from error
    if vectors.ndim != 2 or len(vectors) < tokenizer.get_vocab_size():
        raise InputError(f"{weights} has {vectors.shape} for {tokenizer.get_vocab_size()} pieces; install it again")
    return WordEmbeddings(tokenizer, vectors, "wordllama l2_supercat, 256")
