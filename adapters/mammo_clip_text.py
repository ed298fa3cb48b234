"""Mammo-CLIP's text side: the BERT and both projections of a pretraining checkpoint, for naming latents."""

__all__ = ["BIO_CLINICAL_BERT", "load_mammo_clip_text", "MammoClipText"]

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from mammosae_plugin.adapters.checkpoints import (
    CheckpointFormatError,
    check_keys,
    read_torch_checkpoint,
    unwrapped,
    without_prefix,
)
from mammosae_plugin.adapters.sources import Source, find_source, is_on_hub, origin_of
from mammosae_plugin.adapters.text_towers import embed_in_batches, projected
from mammosae_plugin.arguments import numbers, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path
from mammosae_plugin.hub_requests import first_sentence

BIO_CLINICAL_BERT = "emilyalsentzer/Bio_ClinicalBERT"
"""The repository of the tokenizer that Mammo-CLIP was trained with; it is in no checkpoint."""
MAX_TOKENS = 256
Pooling = Literal["eos", "bos", "mean"]
_ENCODER, _TEXT, _IMAGE = "text_encoder.text_encoder.", "text_projection.projection.", "image_projection.projection."
_HEAD_WIDTH = 64  # of every BERT that was published under its name


class MammoClipText(nn.Module):
    """Mammo-CLIP's text encoder with the projections of texts and images into one space; a `TextTower`.

    Attributes:
        text_encoder: transformers' BertModel.
        text_projection: linear, from its width to the joint space (512).
        image_projection: linear, from the image encoder's channels (2048 of B5, 1408 of B2) averaged over positions.
        logit_scale: as trained; the logit of an image and a text is exp(logit_scale) times their cosine.
        pooling: "eos" (as released: the last token), "bos" (the first) or "mean".
        tokenizer: what makes tokens of texts; None until it is asked for.
        source: where the weights come from.
    """

    text_encoder: Any

    def __init__(
        self,
        encoder: nn.Module,
        text_projection: nn.Linear,
        image_projection: nn.Linear,
        *,
        logit_scale: float,
        pooling: Pooling,
        tokenizer: Any,
        source: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.text_encoder, self.text_projection, self.image_projection = encoder, text_projection, image_projection
        self.register_buffer("logit_scale", torch.tensor(logit_scale))
        self.pooling, self.source = pooling, dict(source)
        self._tokenizer_place = tokenizer
        self.tokenizer: Any = tokenizer if callable(tokenizer) else None

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Tokens (B, L) and their mask, padded on the right -> embeddings (B, e), before their length is made 1."""
        hidden = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "mean":
            mask = attention_mask[..., None].to(hidden.dtype)
            pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        elif self.pooling == "bos":
            pooled = hidden[:, 0]
        else:
            pooled = hidden[torch.arange(len(hidden), device=hidden.device), attention_mask.sum(dim=1) - 1]
        return self.text_projection(pooled)  # type: ignore[no-any-return]

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts -> (n, e), each of length 1; beyond 256 tokens a text is cut.

        Raises:
            InputError: no texts, or a tokenizer that cannot be read or has more words than the encoder.
        """
        if self.tokenizer is None:
            self.tokenizer = _tokenizer(self._tokenizer_place, self.text_encoder.config.vocab_size)
        device = self.text_projection.weight.device
        longest = min(MAX_TOKENS, self.text_encoder.config.max_position_embeddings)

        def encode(batch: list[str]) -> torch.Tensor:
            tokens = self.tokenizer(batch, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            found: torch.Tensor = self(tokens["input_ids"].to(device), tokens["attention_mask"].to(device))
            return found

        return embed_in_batches(texts, encode)

    def project(self, features: ArrayLike) -> NDArray[np.float64]:
        """Means over positions of the final map (n, d) -> (n, e), before their length is made 1.

        Pooling and projection are linear, so that this is exact for any sum of maps; a latents table of the final map
        keeps such means as `mean_channels`.

        Raises:
            InputError: another width than the image projection reads.
        """
        weight, bias = (x.detach().double().cpu().numpy() for x in self.image_projection.parameters())
        return projected(numbers(features, "features"), weight, bias)


def load_mammo_clip_text(
    checkpoint: str | os.PathLike[str],
    *,
    tokenizer: Any = BIO_CLINICAL_BERT,
    filename: str | None = None,
    revision: str | None = None,
    n_heads: int | None = None,
    device: str | torch.device = "cpu",
) -> MammoClipText:
    """Load the text side of a Mammo-CLIP pretraining checkpoint, in evaluation mode; `load_mammo_clip` has the images'.

    Args:
        checkpoint: a pretraining checkpoint (`b5-model-best-epoch-7.tar`), named as for `load_mammo_clip`. Downstream
            classifiers hold no text side, and Mammo-FM's (a ModernBERT) is not read.
        tokenizer: where the tokenizer lies, which is not in the file: a local folder, a repository of the Hub, or the
            tokenizer itself. It is read when the first text is embedded.
        filename: the checkpoint's name inside the repo or folder.
        revision: branch, tag or commit, for a checkpoint on the Hub.
        n_heads: attention heads, which weights do not tell; None means heads of 64, as every published BERT has.
        device: where to put the encoder.

    Raises:
        UnsafeCheckpointError: the file asks for code; none of it was run.
        CheckpointFormatError: no text side, one of another form, or missing, unexpected or misshapen keys.
        InputError: transformers is not installed, a path that cannot be read, or heads that do not fit.

    Example:
        >>> text = load_mammo_clip_text("b5-model-best-epoch-7.tar", tokenizer="Bio_ClinicalBERT")   # doctest: +SKIP
        >>> text.embed_texts(["a spiculated mass", "no finding"]).shape   # doctest: +SKIP
        (2, 512)
    """
    try:
        from transformers import BertConfig, BertModel
    except ImportError as error:
        raise InputError(
            f"Mammo-CLIP's text encoder needs transformers: pip install 'mammosae-plugin[language]' ({error})"
        ) from error
    if revision is not None and not is_on_hub(checkpoint):
        raise InputError(f"revision {revision!r} means nothing for a local file; leave it out")
    found: Source = find_source(checkpoint, filename, revision=revision)
    content = read_torch_checkpoint(found.path)
    where = str(found.path)
    model = content.get("model") if isinstance(content, Mapping) else None
    weights = unwrapped(model, where=where) if isinstance(model, Mapping) else {}
    encoder = {
        key: value
        for key, value in without_prefix(weights, _ENCODER).items()
        if not key.startswith("pooler.") and key != "embeddings.position_ids"  # neither is used
    }
    settings = _bert_settings(encoder, where)
    heads = whole(settings["hidden_size"] / _HEAD_WIDTH if n_heads is None else n_heads, "n_heads", least=1)
    if settings["hidden_size"] % heads:
        raise InputError(f"n_heads is {heads}, which does not divide the encoder's width {settings['hidden_size']}")
    with torch.random.fork_rng(devices=[]):
        bert: Any = BertModel(BertConfig(**settings, num_attention_heads=heads), add_pooling_layer=False)
        check_keys(
            encoder, {key: value.shape for key, value in bert.state_dict().items()}, where=where, what="a BERT encoder"
        )
        text, image = (
            _linear(without_prefix(weights, prefix), prefix, where, width)
            for prefix, width in ((_TEXT, settings["hidden_size"]), (_IMAGE, None))
        )
    if text.out_features != image.out_features:
        raise CheckpointFormatError(
            f"{where} projects texts to {text.out_features} numbers and images to {image.out_features}; one space has "
            "one width"
        )
    bert.load_state_dict(encoder)
    scale = weights.get("logit_scale")
    tower = MammoClipText(
        bert,
        text,
        image,
        logit_scale=float(scale) if isinstance(scale, torch.Tensor) else 0.0,
        pooling=_pooling(content.get("config"), where),
        tokenizer=tokenizer,
        source={"kind": "text", **origin_of([found])},
    )
    return tower.eval().to(device)


def _bert_settings(encoder: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the shapes of a BERT's weights tell of it."""
    if not encoder:
        raise CheckpointFormatError(
            f"{where} has no text encoder ({_ENCODER}*), as a classifier has none; give the pretraining checkpoint"
        )
    names = ("embeddings.word_embeddings", "embeddings.position_embeddings", "embeddings.token_type_embeddings")
    tables = [encoder.get(f"{name}.weight") for name in (*names, "encoder.layer.0.intermediate.dense")]
    if not all(isinstance(table, torch.Tensor) and table.dim() == 2 for table in tables):
        raise CheckpointFormatError(
            f"{where} holds a text encoder that is no BERT (Mammo-FM's is a ModernBERT, which is not read): its keys "
            f"begin with {', '.join(list(encoder)[:2])}"
        )
    words, positions, types, inner = (tuple(table.shape) for table in tables)  # type: ignore[union-attr]
    return {
        "vocab_size": words[0],
        "hidden_size": words[1],
        "max_position_embeddings": positions[0],
        "type_vocab_size": types[0],
        "intermediate_size": inner[0],
        "num_hidden_layers": len({key.split(".")[2] for key in encoder if key.startswith("encoder.layer.")}),
    }


def _linear(weights: Mapping[str, Any], prefix: str, where: str, width: int | None) -> nn.Linear:
    weight = weights.get("weight")
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        raise CheckpointFormatError(f"{where} has no matrix at {prefix}weight; its projection is not a linear layer")
    shapes = {"weight": (weight.shape[0], width or weight.shape[1]), "bias": (weight.shape[0],)}
    check_keys(weights, shapes, where=where, what=f"a linear projection at {prefix.removesuffix('.')}")
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict(dict(weights))
    return layer


def _pooling(config: Any, where: str) -> Pooling:
    """`config["model"]["text_encoder"]["pooling"]`; as released where the file does not say."""
    for key in ("model", "text_encoder", "pooling"):
        config = config.get(key) if isinstance(config, Mapping) else None
    for known in get_args(Pooling):
        if known == ("eos" if config is None else config):
            found: Pooling = known
            return found
    raise CheckpointFormatError(f"{where} pools texts by {config!r}; known are {', '.join(get_args(Pooling))}")


def _tokenizer(place: Any, n_words: int) -> Any:
    from transformers import AutoTokenizer

    if not isinstance(place, (str, Path)):
        raise InputError(f"tokenizer is {place!r}: give a folder, a repository of the Hub, or the tokenizer itself")
    local = local_path(place)
    try:
        found = AutoTokenizer.from_pretrained(str(local) if local.exists() else str(place))
    except Exception as error:  # whatever a download or a folder raises
        raise InputError(
            f"no tokenizer can be read from {place}: {first_sentence(error)}; give a folder with the files of "
            f"{BIO_CLINICAL_BERT} (vocab.txt, config.json)"
        ) from error
    if len(found) > n_words:
        raise InputError(
            f"the tokenizer of {place} has {len(found)} words and the text encoder {n_words}; give the one that the "
            "encoder was trained with"
        )
    return found
