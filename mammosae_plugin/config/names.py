"""The section `analysis.names` of a study: what its latents are called."""

__all__ = ["LabelNames", "NameSettings"]

from typing import Literal

from pydantic import Field, field_validator

from mammosae_plugin.datasets.registry import LocalPath
from mammosae_plugin.validation import Settings


class LabelNames(Settings):
    """Names by what the strongest images of each latent share, checked in another split; no image is read."""

    labels: tuple[str, ...] | None = Field(
        None, description="Concepts, or columns of 0 and 1, to name by; null: all concepts that the data have."
    )
    metadata: tuple[str, ...] | None = Field(
        None,
        description="Other columns of what is known of images, such as [view, machine]; null: all that differ between "
        "images and are no ids; an empty list: none.",
    )
    n: int = Field(20, ge=2, description="Strongest images of a latent that are looked at, each of another patient.")
    min_groups: int = Field(
        10,
        ge=2,
        description="Patients that a latent must fire in for a name, and that must have an attribute, and lack it, for "
        "it to be tried.",
    )
    min_excess: float = Field(
        0.5, ge=0, le=1, description="How far from chance (0) to all images (1) a share must be for a name."
    )
    alpha: float = Field(0.05, gt=0, lt=1, description="False discovery rate of names.")
    statistic: Literal["max", "mean"] = Field("max", description="What of a latent counts, over positions.")


class NameSettings(Settings):
    """What latents are called, each name with its score (docs/naming.md)."""

    by_labels: LabelNames | None = Field(
        LabelNames(), description="Names by labels and metadata, which take a second or two; null leaves them out."
    )
    files: tuple[LocalPath, ...] = Field(
        (), description="Folders that `mammosae name -o` wrote of this study's latents tables, whose names join in."
    )
    share: tuple[str, ...] = Field(
        (),
        description="Columns, such as [view], by whose values names may leave this machine with the findings; else "
        "only those by labels, texts and models do.",
    )

    @field_validator("files", "share")
    @classmethod
    def _each_once(cls, given: tuple[object, ...]) -> tuple[object, ...]:
        if twice := [one for place, one in enumerate(given) if one in given[:place]]:
            raise ValueError(f"names {twice[0]} twice: give each once")
        return given
