"""The settings of a study's repairs: classifiers without the latents that are shortcuts."""

__all__ = ["ChosenLatents", "RepairSettings"]

from typing import Annotated, Literal

from pydantic import Field, field_validator

from mammosae_plugin.validation import Settings


class ChosenLatents(Settings):
    """Latents of one classifier that were chosen elsewhere."""

    model: str = Field(description="The classifier's model.")
    concept: str = Field(description="Its concept.")
    latents: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        min_length=1, description="Their numbers, of the final map's SAE or that of the only layer."
    )

    @field_validator("latents")
    @classmethod
    def _once(cls, latents: tuple[int, ...]) -> tuple[int, ...]:
        if twice := [one for place, one in enumerate(latents) if one in latents[:place]]:
            raise ValueError(f"names latent {twice[0]} twice: give each once")
        return latents


class RepairSettings(Settings):
    """Classifiers without some of their latents, as files in work/repaired, and what that does on the test images."""

    latents: Literal["shortcut"] | tuple[ChosenLatents, ...] = Field(
        "shortcut",
        description="Which: shortcut, those of each classifier with that verdict, which is told from the test images "
        "too, so that the change measured on these looks better than on others; or a list of latents that were "
        "chosen elsewhere, such as [{model: finetuned, concept: Mass, latents: [3, 17]}].",
    )
    scale: float = Field(0.0, ge=-100, le=100, description="What they are multiplied by: 0 removes them.")
    kind: Literal["exact", "linear"] = Field(
        "exact",
        description="exact: the SAE's part is folded into the network; linear: their directions are scaled in the "
        "head, an approximation that any code can load.",
    )
    groups: tuple[str, ...] | None = Field(
        None,
        description="Columns of the data by which performance is told apart; null: those of "
        "analysis.confounders.covariates. An empty list tells it of all test images alone.",
    )
    held_out: bool = Field(
        True,
        description="Tell too what a repair does to patients who had no part in the choice: shortcuts are told anew "
        "from each half of the test patients, at the cost of the evidence, and measured on the other half; at the "
        "final map, where latents are chosen by their verdict.",
    )
    inner: bool = Field(
        False,
        description="Repair at inner layers too, where the repaired network is run on all test images once for every "
        "classifier; at the final map all but FROC follows from the latents table.",
    )
    froc: bool = Field(
        False,
        description="Which lesions the logit's map finds, before and after, at the final map; both networks are run on "
        "all test images for every classifier that is repaired.",
    )

    @field_validator("latents")
    @classmethod
    def _each_once(cls, latents: object) -> object:
        pairs = [f"{one.model}/{one.concept}" for one in latents] if isinstance(latents, tuple) else []
        if isinstance(latents, tuple) and not pairs:
            raise ValueError("is an empty list; name latents, or leave it out")
        if twice := [one for place, one in enumerate(pairs) if one in pairs[:place]]:
            raise ValueError(f"names {twice[0]} twice: give all its latents in one entry")
        return latents

    @field_validator("groups")
    @classmethod
    def _columns_once(cls, groups: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if groups is not None and len(set(groups)) < len(groups):
            raise ValueError("groups names a column twice: give each once")
        return groups

    @property
    def named(self) -> dict[str, tuple[int, ...]] | None:
        """The latents by model/concept; None where they are those with the verdict."""
        if isinstance(self.latents, str):
            return None
        return {f"{one.model}/{one.concept}": one.latents for one in self.latents}

    def of(self, pair: str) -> tuple[int, ...] | None:
        """The latents named for a model/concept; None where they are those with the verdict."""
        return None if self.named is None else self.named.get(pair, ())
