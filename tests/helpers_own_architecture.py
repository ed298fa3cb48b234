"""An architecture that SAELens does not have, as a user would write it: latents are shrunk by a setting of its own.

Its inference SAE calls no hook point of its latents, which SAELens does not ask of one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from sae_lens import (
    SAEConfig,
    StandardSAE,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    register_sae_class,
    register_sae_training_class,
)
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

NAME = "shrinking"


@dataclass
class ShrinkingConfig(SAEConfig):
    shrink: float = 0.0

    @classmethod
    def architecture(cls) -> str:
        return NAME


@dataclass(kw_only=True)
class ShrinkingTrainingConfig(StandardTrainingSAEConfig):
    shrink: float

    @classmethod
    def architecture(cls) -> str:
        return NAME


class ShrinkingSAE(StandardSAE):
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return (self.process_sae_in(x) @ self.W_enc + self.b_enc - self.cfg.shrink).relu()


class ShrinkingTrainingSAE(StandardTrainingSAE):
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.process_sae_in(x) @ self.W_enc + self.b_enc - self.cfg.shrink
        return hidden.relu(), hidden

    def fold_W_dec_norm(self) -> None:
        raise NotImplementedError("the shrinkage is of latents as they are")


ShrinkingSAE.fold_W_dec_norm = ShrinkingTrainingSAE.fold_W_dec_norm


def register(*, for_use: bool = True) -> None:
    register_sae_training_class(NAME, ShrinkingTrainingSAE, ShrinkingTrainingConfig)
    if for_use:
        register_sae_class(NAME, ShrinkingSAE, ShrinkingConfig)


@contextmanager
def registered(*, for_use: bool = True) -> Iterator[None]:
    register(for_use=for_use)
    try:
        yield
    finally:
        SAE_TRAINING_CLASS_REGISTRY.pop(NAME)
        SAE_CLASS_REGISTRY.pop(NAME, None)
