"""How a classifier is trained: every setting, and the recipes that set several of them."""

__all__ = ["ClassifierTraining", "RECIPES"]

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mammosae_plugin.training.augmentation import Kind
from mammosae_plugin.validation import Settings

RECIPES: dict[str, dict[str, Any]] = {
    "mammosae": {},
    "mammo_clip": {
        "epochs": 30,
        "batch_size": 8,
        "lr": 5e-5,
        "weight_decay": 1e-4,
        "warm_up_from_zero": True,
        "augmentation": "mammo_clip",
        "drop_connect": 0.2,
        "dropout": 0.4,
        "batch_norm_momentum": 0.01,
        "drop_last": True,
        "autocast": "float16",
    },
}
"""What a recipe sets instead of the defaults; "mammo_clip" is that of Mammo-CLIP's scripts for findings."""


class ClassifierTraining(Settings):
    """How a classifier is trained."""

    kind: Literal["pretrained", "linear_probe", "finetuned"] = Field(
        "finetuned",
        description="'pretrained': fit the linear head on frozen features by logistic regression. 'linear_probe': "
        "train it as 'finetuned' does, on a frozen encoder. 'finetuned': train the whole network.",
    )
    recipe: Literal["mammosae", "mammo_clip"] = Field(
        "mammosae",
        description="Where the settings that are not given come from. 'mammosae': the defaults listed here. "
        "'mammo_clip': Mammo-CLIP's own scripts: 30 epochs, batch 8, warm-up from 0 over one epoch, augmentation "
        "mammo_clip, drop_connect 0.2, dropout 0.4, batch_norm_momentum 0.01, drop_last, autocast float16.",
    )
    l2: float = Field(
        1.0, gt=0, description="pretrained: L2 penalty of the logistic regression on standardised features."
    )
    epochs: int = Field(10, gt=0, description="Passes over the training images (not for 'pretrained').")
    batch_size: int = Field(16, gt=0, description="Images per step.")
    lr: float = Field(5e-5, gt=0, description="Peak learning rate of AdamW (not for 'pretrained').")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's decoupled weight decay (not for 'pretrained').")
    warm_up: float = Field(
        0.1, ge=0, lt=1, description="Share of the steps with rising learning rate; then cosine (not for 'pretrained')."
    )
    warm_up_from_zero: bool = Field(
        False, description="The first step of the warm-up has learning rate 0, instead of one step's rise."
    )
    drop_last: bool = Field(False, description="Leave out an epoch's last batch where it is smaller than the others.")
    drop_connect: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="finetuned: share of images for which the last block's residual branch is left out (stochastic "
        "depth); it falls in a line to 0 at the first block.",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="finetuned: share of pooled features that are set to 0 before the head."
    )
    batch_norm_momentum: float | None = Field(
        None,
        gt=0,
        le=1,
        description="finetuned: weight of a batch in the running statistics of batch norms, in PyTorch's sense; None "
        "is the network's own, 0.1.",
    )
    class_weights: Literal["balanced", "none"] = Field(
        "balanced",
        description="'balanced': positives of a finding count negatives / positives, classes of others by "
        "their rarity. 'none': every image counts the same.",
    )
    augmentation: Kind = Field(
        "affine",
        description="'none'; 'flips'; 'affine': flips, and rotation 20, shift 10 %, scale 0.8 to 1.2 and shear 20 "
        "degrees; 'mammo_clip': flips, an affine map of fixed rotation, shift and shear, and an elastic map, each for "
        "half of the images, as Mammo-CLIP's code does under albumentations 1.4.7 (not for 'pretrained').",
    )
    elastic_alpha: float = Field(
        10.0, ge=0, description="mammo_clip: factor in pixels of the elastic map's blurred noise; released: 10."
    )
    elastic_sigma: float = Field(
        15.0, gt=0, description="mammo_clip: blur of the elastic map's noise, a standard deviation in pixels."
    )
    elastic_affine: float = Field(
        50.0,
        ge=0,
        description="mammo_clip: reach in pixels of the elastic map's affine part: alpha_affine of albumentations "
        "1.4.7. 0: none, as in albumentations 2.",
    )
    validation_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the training patients held out; the epoch with the best AUROC on them is kept. "
        "0: train on all and keep the last epoch.",
    )
    autocast: Literal["none", "bfloat16", "float16"] = Field(
        "none",
        description="Run the network under autocast to this type; float16, with its gradient scaler, on GPUs only: "
        "elsewhere the network stays in float32. True means bfloat16.",
    )
    checkpoint_every: int | None = Field(
        None,
        gt=0,
        description="Steps between the states from which a killed run continues, beside the end of every epoch.",
    )
    seed: int = Field(
        0, ge=0, description="Seeds the head, the patients held out, the order of the images and the augmentation."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_the_recipe(cls, given: Any) -> Any:
        name = given.get("recipe", "mammosae") if isinstance(given, dict) else None
        recipe = RECIPES.get(name) if isinstance(name, str) else None
        if not recipe:
            return given
        filled = {**recipe, **given}
        try:
            epochs = float(filled["epochs"])  # "12" counts as 12 there too
        except (TypeError, ValueError):
            return filled
        return {**({"warm_up": 1 / epochs} if epochs > 1 else {}), **filled}

    @field_validator("autocast", mode="before")
    @classmethod
    def _as_a_type(cls, autocast: Any) -> Any:
        if isinstance(autocast, bool) or autocast is None:
            return "bfloat16" if autocast else "none"
        return autocast

    @model_validator(mode="after")
    def _elastic_map_is_used(self) -> "ClassifierTraining":
        given = [
            name
            for name in ("elastic_alpha", "elastic_sigma", "elastic_affine")
            if getattr(self, name) != _default(name)
        ]
        if given and self.augmentation != "mammo_clip":
            raise ValueError(
                f"{given[0]} means nothing with augmentation {self.augmentation!r}; set augmentation to 'mammo_clip'"
            )
        return self


def _default(name: str) -> Any:
    return ClassifierTraining.model_fields[name].default
