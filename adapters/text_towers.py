"""Text encoders that share a space with images: one protocol, and CLIP-like pairs of any library in it."""

__all__ = ["ClipText", "Reads", "text_tower", "TextTower", "unit_rows"]

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mammosae_plugin.arguments import entries, numbers, one_of, text
from mammosae_plugin.errors import InputError
from mammosae_plugin.progress import progress

Reads = Literal["embedding", "pooled"]


@runtime_checkable
class TextTower(Protocol):
    """What naming needs of a pair of a text and an image encoder: any object with these two methods is one."""

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts -> (n, e), each of length 1."""
        ...

    def project(self, features: ArrayLike) -> NDArray[np.float64]:
        """Image features (n, d), what the image side's last linear map reads -> (n, e), before their length is made 1.

        It is linear but for a bias, so that `project(v) - project(0)` is where a direction v of the features points.
        """
        ...


def unit_rows(vectors: NDArray[Any], what: str) -> NDArray[np.float64]:
    """Vectors (n, e), each divided by its length.

    Raises:
        InputError: one that is zero or not finite.
    """
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise InputError(f"{what} hold a vector that is zero or not finite, which points nowhere; leave it out")
    return np.asarray(vectors / lengths, dtype=np.float64)


def embed_in_batches(
    texts: Sequence[str], encode: Callable[[list[str]], torch.Tensor], batch_size: int = 64
) -> NDArray[np.float32]:
    """Embeddings (n, e) of length 1 of texts, a batch at a time.

    Raises:
        InputError: no texts, or one that is empty.
    """
    given = entries(texts, "texts")
    for one in given:
        text(one, "a text")
    if not given:
        raise InputError("there are no texts to embed; give at least one")
    with torch.inference_mode():
        firsts = range(0, len(given), batch_size)
        starts = progress(firsts, description="embed texts", unit="step", delay=2, leave=False)
        batches = [encode(given[start : start + batch_size]).float().cpu() for start in starts]
    return unit_rows(torch.cat(batches).numpy(), "embeddings of texts").astype(np.float32)


class ClipText:
    """The text side of a CLIP-like model of OpenCLIP or transformers, a `TextTower`; `text_tower` makes it."""

    def __init__(self, encode: Callable[[list[str]], torch.Tensor], weight: NDArray[np.float64] | None) -> None:
        self._encode, self._weight = encode, weight

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts -> (n, e), each of length 1."""
        return embed_in_batches(texts, self._encode)

    def project(self, features: ArrayLike) -> NDArray[np.float64]:
        """Image features (n, d) -> (n, e); as they are where they are embeddings already."""
        found = numbers(features, "features")
        return found if self._weight is None else projected(found, self._weight, 0.0)


def projected(features: NDArray[np.float64], weight: NDArray[np.float64], bias: Any) -> NDArray[np.float64]:
    """Features (n, d) under a linear map (e, d).

    Raises:
        InputError: features of another width.
    """
    if features.ndim != 2 or features.shape[1] != weight.shape[1]:
        raise InputError(f"features have shape {features.shape}: the image projection reads (n, {weight.shape[1]})")
    found: NDArray[np.float64] = features @ weight.T + bias
    return found


def text_tower(model: Any, tokenizer: Any, *, reads: Reads = "embedding") -> ClipText:
    """The text side of a CLIP-like model that somebody has loaded, of OpenCLIP or transformers.

    Args:
        model: with `encode_text` (OpenCLIP) or `get_text_features` (CLIP, SigLIP and others of transformers).
        tokenizer: OpenCLIP's, which makes a tensor of texts, or a tokenizer or processor of transformers.
        reads: what the image features are that will be named: "embedding", the image's embedding, as OpenCLIP's
            `encode_image`, our `embed` with a tower of OpenCLIP and `get_image_features` give it; or "pooled", what the
            model's own image projection reads (transformers' pooled output).

    Raises:
        InputError: a model without either, or without a linear image projection where "pooled" needs one.

    Example:
        >>> import open_clip   # doctest: +SKIP
        >>> model, _, _ = open_clip.create_model_and_transforms("ViT-B-32", "openai")   # doctest: +SKIP
        >>> tower = text_tower(model, open_clip.get_tokenizer("ViT-B-32"))   # doctest: +SKIP
        >>> tower.embed_texts(["a mass", "a bicycle"]).shape   # doctest: +SKIP
        (2, 512)
    """
    one_of(reads, "reads", ("embedding", "pooled"))
    weight: Any
    if hasattr(model, "encode_text"):
        device = next(model.parameters()).device

        def encode(texts: list[str]) -> torch.Tensor:
            found: torch.Tensor = model.encode_text(tokenizer(texts).to(device))
            return found

        matrix = getattr(getattr(model, "visual", None), "proj", None)
        weight = matrix.T if isinstance(matrix, torch.Tensor) else getattr(matrix, "weight", None)
    elif hasattr(model, "get_text_features"):
        # SigLIP was trained on texts of one length, without a mask.
        fixed = "siglip" in type(model).__name__.lower()

        def encode(texts: list[str]) -> torch.Tensor:
            padding = "max_length" if fixed else True
            tokens = tokenizer(text=texts, padding=padding, truncation=True, return_tensors="pt")
            found = model.get_text_features(**{name: value.to(model.device) for name, value in tokens.items()})
            vectors: torch.Tensor = found if isinstance(found, torch.Tensor) else found.pooler_output
            return vectors

        weight = getattr(getattr(model, "visual_projection", None), "weight", None)
    else:
        raise InputError(
            f"a {type(model).__name__} has neither encode_text nor get_text_features: give a CLIP-like model of "
            "OpenCLIP or transformers, or an object with embed_texts and project"
        )
    if reads == "pooled" and weight is None:
        raise InputError(f"{type(model).__name__} has no linear image projection; give reads='embedding'")
    own = None if reads == "embedding" else weight.detach().double().cpu().numpy()
    model.eval()
    return ClipText(encode, own)
