"""The section `analysis.pairs` of a study of maps: images that differ in one thing."""

__all__ = ["PairSettings"]

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from mammosae_plugin.config.common import Data
from mammosae_plugin.datasets.phantom_pairs import PAIR_FILE
from mammosae_plugin.datasets.registry import LocalPath, dataset_kind
from mammosae_plugin.validation import Settings


class PairSettings(Settings):
    """What latents answer to, by pairs of images that differ in one thing (docs/counterfactuals.md)."""

    data: Data = Field(
        description="The images of the pairs, said as the study's own `data`; of `mammosae pairs --make FOLDER` that "
        "folder is the root."
    )
    file: LocalPath | None = Field(
        None,
        description="The CSV of the pairs: image_id_a, image_id_b, attribute, and xmin, ymin, xmax, ymax where the "
        f"change has a place; None means {PAIR_FILE} in the root of `data`.",
    )
    statistic: Literal["max", "mean"] = Field("max", description="What of a latent counts, over positions.")
    untrained: bool = Field(
        True,
        description="Encode the same images with two untrained SAEs of the same size, architecture and number of "
        "latents that fire: what they score is chance.",
    )
    n_bootstrap: int = Field(1000, ge=50, description="Resamples of patients for the intervals of every latent.")
    n_permutations: int = Field(
        20, ge=2, description="How often latents are mixed, and attributes exchanged among the pairs, for chance."
    )

    @model_validator(mode="after")
    def _of_files(self) -> "PairSettings":
        if not dataset_kind(self.data.kind).of_files:
            raise ValueError(f"data.kind is {self.data.kind}: pairs are of PNG images, such as those of kind csv")
        return self

    @property
    def pair_file(self) -> Path:
        """The CSV of the pairs."""
        return self.data.root / PAIR_FILE if self.file is None else self.file
