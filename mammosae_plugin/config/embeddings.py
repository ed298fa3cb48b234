"""The configuration of a study of embeddings: one vector per image, SAEs on these, and what their latents tell."""

__all__ = ["EmbeddingAnalysis", "EmbeddingModel", "EmbeddingSAEs", "EmbeddingStudyConfig"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mammosae_plugin.adapters.embedders import Pooling
from mammosae_plugin.adapters.sources import HUB_SCHEMES
from mammosae_plugin.config.common import Checkpoint, CommonConfig, Data, FileName
from mammosae_plugin.config.names import NameSettings
from mammosae_plugin.datasets.registry import LocalPath
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.units import EvaluationUnit, UnitScores
from mammosae_plugin.training.settings import SAETraining
from mammosae_plugin.training.sweep import grid, published_grid
from mammosae_plugin.validation import Settings

_NESTED: dict[str, Any] = {
    "architecture": "matryoshka_batchtopk",
    "k": 20,
    "epochs": 100,
    "batch_size": 2048,
    "lr": 1e-4,
    "normalize_activations": "unit_l2",
}
"""How SAEs on embeddings are trained where nothing is said: SAELens's nested SAE, on rows of length 1 as SAIL's."""
SAE = "sae"
"""The name of an SAE that is the only one of its model."""


class EmbeddingModel(Settings):
    """One model of the comparison: what makes its vectors, or the files that hold them."""

    name: FileName = Field(description="How tables and figures call the model.")
    network: str | None = Field(
        None,
        description="What makes one vector of each image of `data`: timm's name of an architecture or "
        "hf-hub:owner/name, owner/name of a model of transformers, open_clip:NAME/WEIGHTS, torchvision:NAME, or a "
        "checkpoint, Mammo-CLIP's or one of ours; as for `mammosae embed`.",
    )
    pooling: Pooling = Field(
        "model",
        description="How: model (the network's own), class_token, mean_of_patches, or projected (Mammo-CLIP's).",
    )
    weights: str | None = Field(
        None,
        description="random: the same network with random weights, as a control. pretrained, or a file of weights, for "
        "timm's. By default the model's own.",
    )
    seed: int = Field(0, ge=0, description="Of random weights.")
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="Type of the stored vectors.")
    autocast: Literal["bfloat16", "float16"] | None = Field(
        None, description="Run the network under autocast to this type."
    )
    embeddings: tuple[LocalPath, ...] | None = Field(
        None,
        min_length=1,
        description="Instead of a network, vectors that are there: a file, several of one split each, or a folder; "
        "SAIL's parquet files, any parquet with a column of lists, .npy with a CSV beside it, or what `embed` wrote.",
    )
    column: str | None = Field(None, description="Of files, the column with the vectors, where there are several.")

    @field_validator("embeddings", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, given: Any) -> Any:
        found = [given] if isinstance(given, (str, Path)) else given
        for one in found if isinstance(found, (list, tuple)) else ():
            if str(one).startswith(HUB_SCHEMES):
                raise ValueError(f"{one} is on the Hub; download it first and name the file")
        return found

    @model_validator(mode="after")
    def _one_source(self) -> "EmbeddingModel":
        if (self.network is None) == (self.embeddings is None):
            raise ValueError("give either `network` (what makes the vectors) or `embeddings` (files that hold them)")
        return self


class EmbeddingSAEs(Settings):
    """The sparse autoencoders of each model: trained here, one or a grid of them, or files."""

    train: SAETraining | None = Field(
        None,
        description="How they are trained. Where no architecture is named: SAELens's nested matryoshka_batchtopk with "
        "k 20 on rows of length 1, 100 epochs of batches of 2048.",
    )
    grid: Literal["published"] | dict[str, tuple[Any, ...]] | None = Field(
        None,
        description="Several for each model, trained in one pass: lists of values of settings of `train`, such as "
        "{k: [10, 20], seed: [0, 1, 2]}, every combination; or published, SAIL's 28 nested ones.",
    )
    files: dict[str, tuple[Checkpoint, ...]] | None = Field(
        None,
        description="Instead, by the model's name, files of SAEs: SAIL's checkpoints, folders in SAELens's format.",
    )

    @field_validator("train", mode="before")
    @classmethod
    def _nested_by_default(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "architecture" not in given:
            return {**_NESTED, **given}
        return given

    @field_validator("files", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {name: [one] if isinstance(one, (str, Path)) else one for name, one in given.items()}

    @model_validator(mode="after")
    def _one_source(self) -> "EmbeddingSAEs":
        if self.files is not None and (self.train is not None or self.grid is not None):
            raise ValueError("give either `files` or how SAEs are trained (`train`, `grid`)")
        if self.files is None:
            try:
                _ = self.settings
            except InputError as error:
                raise ValueError(f"grid: {error}") from error
        return self

    @property
    def settings(self) -> dict[str, SAETraining]:
        """How each SAE that the study trains is trained, by its name."""
        if self.files is not None:
            return {}
        if self.grid == "published":
            return published_grid(self.train)
        base = self.train or SAETraining(**_NESTED)
        return grid(base, **self.grid) if self.grid else {SAE: base}


class EmbeddingAnalysis(Settings):
    """What is computed from the codes."""

    split: str = Field("test", description="The split that is judged on; SAEs are trained on the split training.")
    n: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        (10, 50), min_length=1, description="How many of a latent's strongest images, one of each group, are looked at."
    )
    ks: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (1, 2, 5, 10, 20, 50, 100), min_length=1, description="Latents that a sparse probe may use; all is tried too."
    )
    n_folds: int = Field(5, ge=2, description="Folds of a probe, each with groups of its own.")
    n_bootstrap: int = Field(1000, ge=100, description="Resamples of groups for intervals.")
    min_patients: int = Field(10, ge=2, description="Groups of every class from which on an interval is given.")
    n_permutations: int = Field(200, ge=20, description="Permutations of the labels for what chance reaches.")
    n_queries: int = Field(200, gt=0, description="Images of each label that retrieval asks for, at most.")
    names: NameSettings | None = Field(
        NameSettings(), description="What latents are called, each name beside its score and chance; null: no names."
    )


class EmbeddingStudyConfig(CommonConfig):
    """A study of embeddings. Relative paths count from the folder of the configuration file."""

    kind: Literal["embeddings"] = Field(description="embeddings: SAEs on one vector per image; see maps above.")
    title: str = Field("What latents of embeddings tell", description="The report's heading.")
    data: Data | None = Field(None, description="The images; needed where a model's `network` makes the vectors.")
    images: LocalPath | None = Field(
        None,
        description="For `embeddings` that do not say it: a table (CSV or parquet) with image_id, patient_id (what is "
        "kept apart), split and labels.",
    )
    unit: Literal["image", "breast", "exam", "patient"] = Field(
        "image",
        description="What probes and single latents tell apart where there are no `data`, whose `unit` says it else. "
        "Monosemanticity, retrieval and how well vectors are given back are of images, whatever the unit.",
    )
    unit_scores: UnitScores = Field(
        "mean", description="The same for data.unit_scores: mean or maximum of codes and vectors over a unit's images."
    )
    concepts: tuple[str, ...] = Field(
        min_length=1,
        description="What is told from the codes: labels of the data, or columns of what is known of the images, such "
        "as Mass, density, view.",
    )
    models: tuple[EmbeddingModel, ...] = Field(min_length=1, description="The models to compare.")
    sae: EmbeddingSAEs = EmbeddingSAEs()
    analysis: EmbeddingAnalysis = EmbeddingAnalysis()
    batch_size: int = Field(8, gt=0, description="Images per forward pass.")

    @model_validator(mode="after")
    def _names_fit(self) -> "EmbeddingStudyConfig":
        names = [model.name for model in self.models]
        _once(names, "models", "two models have the same name, or differ in case alone")
        _once(self.concepts, "concepts", "a concept is named twice")
        if self.data is not None and self.data.unit == "finding_row":
            raise ValueError("data.unit is finding_row, but a vector is of a whole image; leave it out")
        if self.data is not None and (self.unit, self.unit_scores) != ("image", "mean"):
            raise ValueError("unit and unit_scores are for vectors without `data`; write them below `data`")
        if self.data is None and (without := [model.name for model in self.models if model.network is not None]):
            raise ValueError(f"`data` is missing: the images of which {', '.join(without)} makes vectors")
        if self.data is not None and all(model.network is None for model in self.models):
            raise ValueError("`data` are images for a `network`, but all models have `embeddings`; name a table of "
                             "labels as `images` instead")  # fmt: skip
        if self.images is not None and all(model.embeddings is None for model in self.models):
            raise ValueError("`images` is a table for `embeddings`, but all models have a `network`; name labels in "
                             "`data`")  # fmt: skip
        files = self.sae.files
        if files is not None and set(files) != set(names):
            raise ValueError(
                f"sae.files has SAEs for {', '.join(files) or 'no model'}, but the models are {', '.join(names)}; name "
                "the same in both"
            )
        return self

    @property
    def evaluation_unit(self) -> EvaluationUnit:
        """What probes and single latents tell apart."""
        return EvaluationUnit(self.unit, self.unit_scores) if self.data is None else self.data.evaluation_unit


def _once(names: Sequence[str], where: str, problem: str) -> None:
    if len({name.lower() if where == "models" else name for name in names}) < len(names):
        raise ValueError(f"{problem} ({', '.join(names)})")
