"""The settings of an SAE training, checked when they are made: what cannot work fails in the first second."""

__all__ = ["default_of", "SAETraining"]

import json
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from mammosae_plugin.errors import InputError
from mammosae_plugin.training.architectures import Architecture, architecture, taking
from mammosae_plugin.training.matryoshka import level_budgets
from mammosae_plugin.validation import Settings


class SAETraining(Settings):
    """How an SAE is trained. The defaults are the paper's."""

    architecture: str = Field(
        "standard",
        description="The SAE's architecture, by SAELens's name; any that SAELens trains, your own registered ones too. "
        "Where matryoshka_widths are given and this is not, matryoshka_batchtopk.",
    )
    architecture_settings: dict[str, Any] | None = Field(
        None, description="Further settings of the architecture, by SAELens's names of them, such as lp_norm."
    )
    d_sae: int | None = Field(None, gt=0, description="Number of latents; None means expansion_factor times the width.")
    expansion_factor: int = Field(8, gt=0, description="Latents per feature of the map, where d_sae is not given.")
    epochs: float = Field(200.0, gt=0, description="Passes over the stored rows.")
    lr: float = Field(3e-4, gt=0, description="Adam's learning rate (the released scripts used 5e-4).")
    lr_warm_up_steps: int = Field(0, ge=0, description="Steps of linear warm-up of the learning rate.")
    lr_warm_up_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Or the share of the run's steps; where both are given the smaller number of steps counts.",
    )
    lr_schedule: Literal["constant", "cosine"] = Field(
        "constant", description="The learning rate between warm-up and decay: constant, or half a cosine to lr_end."
    )
    lr_end: float | None = Field(
        None, gt=0, description="cosine: the learning rate at its end; None means a tenth of lr, as SAELens has it."
    )
    lr_decay_steps: int = Field(0, ge=0, description="Steps of linear decay of the learning rate to 0 at the end.")
    sparsity: float = Field(
        3e-5,
        ge=0,
        description="The paper's lambda (jumprelu: of L0); SAELens's coefficient is lambda times the width.",
    )
    sparsity_warm_up_steps: int = Field(0, ge=0, description="Steps over which lambda rises from 0.")
    k: float | None = Field(
        None,
        gt=0,
        description="Latents that fire per row: exactly (topk), on average (batchtopk), aimed at (jumprelu), at most "
        "(matching_pursuit).",
    )
    aux_loss: float = Field(
        1 / 32,
        ge=0,
        description="topk, batchtopk, matryoshka: weight of the loss by which dead latents learn the error.",
    )
    threshold_lr: float = Field(
        0.01, gt=0, le=1, description="batchtopk, matryoshka: rate at which the threshold of the saved SAE follows."
    )
    matryoshka_widths: tuple[int, ...] | None = Field(
        None, description="matryoshka: nested numbers of latents; None means an eighth, a quarter, a half and all."
    )
    matryoshka_k: tuple[float, ...] | None = Field(
        None,
        description="matryoshka_independent: latents that fire per row at each of matryoshka_widths, of which the last "
        "is k; None means k for each, but no more than its width.",
    )
    jumprelu_threshold: float = Field(0.01, gt=0, description="jumprelu: the thresholds' first value.")
    jumprelu_bandwidth: float = Field(0.05, gt=0, description="jumprelu: width of the gradient around a threshold.")
    pre_act_loss: float | None = Field(
        None, gt=0, description="jumprelu: weight of the loss that draws dead latents towards firing (3e-6 is usual)."
    )
    residual_threshold: float = Field(
        1e-2, ge=0, description="matching_pursuit: a row takes no more latents once its error's norm is below this."
    )
    batch_size: int = Field(4096, gt=0, description="Rows per step.")
    normalize_activations: Literal["none", "expected_average_only_in", "unit_l2"] = Field(
        "none",
        description="expected_average_only_in: scale rows to a mean norm of sqrt(width) while training; folded into "
        "the weights afterwards. unit_l2: divide each row by its length, as SAIL does; the saved SAE's metadata say "
        "so, and whatever of this package applies it does it too.",
    )
    init: Literal["random", "data_points"] = Field(
        "random", description="Where the latents' directions start: at random, or at rows of the store."
    )
    init_bias: Literal["zero", "geometric_median"] | None = Field(
        None,
        description="Where the decoder's bias starts: at 0, or at the geometric median of the rows; None means 0 for "
        "standard, as in the paper, and the median for the others.",
    )
    frozen_decoder: bool = Field(
        False, description="Leave the latents' directions as they start: a control, beside which training is seen."
    )
    resample_every: int | None = Field(
        None, gt=0, description="standard: steps after which dead latents start anew from badly explained rows."
    )
    resample_epochs: float | None = Field(
        None, gt=0, description="standard: epochs after which dead latents start anew; the released scripts used 10."
    )
    dead_feature_window: int = Field(
        1000, gt=0, description="Steps without firing after which a latent counts as dead."
    )
    validation_share: float = Field(
        0.0, ge=0, lt=1, description="Share of the patients whose rows are held out to judge the SAE by."
    )
    log_every: int = Field(20, gt=0, description="Steps between lines of metrics.jsonl about the current batch.")
    evaluate_every: int = Field(
        1000, gt=0, description="Steps between evaluations on held-out rows, or else on a sample of the rows."
    )
    checkpoint_every: int = Field(500, gt=0, description="Steps between checkpoints from which a killed run continues.")
    autocast: bool = Field(False, description="Run the step under bfloat16 autocast.")
    sparse_step: bool = Field(
        True,
        description="topk, abstopk, batchtopk, matryoshka: train through the latents that fire alone, with the same "
        "gradients; false: SAELens's own dense step.",
    )
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Seeds the initial weights and the order of the rows.")
    row_seed: int | None = Field(
        None, ge=0, description="Seeds the order of the rows alone; SAEs trained in one pass share it."
    )

    @field_validator("architecture")
    @classmethod
    def _is_trained_by_saelens(cls, name: str) -> str:
        return architecture(name).name

    @field_validator("architecture_settings")
    @classmethod
    def _are_plain(cls, settings: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            json.dumps(settings, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"must be plain JSON: {error}") from error
        return settings or None

    @model_serializer(mode="wrap")
    def _as_before_where_none_is_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what earlier versions did not know, so that their plans are still those of the same SAEs."""
        values: dict[str, Any] = handler(self)
        for name in (
            "architecture_settings",
            "matryoshka_k",
            "frozen_decoder",
            "lr_warm_up_share",
            "lr_schedule",
            "lr_end",
            "sparse_step",
        ):
            if getattr(self, name) == default_of(name):
                values.pop(name, None)
        return values

    @property
    def kind(self) -> Architecture:
        """What SAELens knows of the architecture."""
        return architecture(self.architecture)

    @model_validator(mode="before")
    @classmethod
    def _nested_saes_are_saelens_own_by_default(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("matryoshka_widths") and "architecture" not in given:
            return {**given, "architecture": "matryoshka_batchtopk"}
        return given

    @model_validator(mode="after")
    def _fits_together(self) -> "SAETraining":
        self._check_that_all_settings_act()
        self._check_latents()
        if self.lr_end is not None and (self.lr_schedule == "constant" or self.lr_end > self.lr):
            raise ValueError(
                f"lr_end is {self.lr_end:g}: it goes with lr_schedule: cosine, and is at most lr ({self.lr:g})"
            )
        if self.resample_every is not None and self.resample_epochs is not None:
            raise ValueError("give resample_every (steps) or resample_epochs, not both")
        if self.frozen_decoder and (self.resample_every or self.resample_epochs):
            raise ValueError("frozen_decoder keeps the latents' directions, and resampling changes them; leave one out")
        if self.resample_every is not None and self.resample_every <= self.dead_feature_window:
            raise ValueError(
                f"resample_every is {self.resample_every}, but a latent counts as dead only after more than "
                f"dead_feature_window = {self.dead_feature_window} steps; lower the window"
            )
        return self

    def _check_that_all_settings_act(self) -> None:
        for name in type(self).model_fields:
            if not self.kind.takes(name) and getattr(self, name) != default_of(name):
                raise ValueError(
                    f"{name} does nothing for the architecture {self.architecture!r}; leave it out (it is for "
                    f"{', '.join(taking(name))})"
                )
        self.kind.check_further(self.architecture_settings or {})

    def _check_latents(self) -> None:
        if self.kind.needs_k and self.k is None:
            raise ValueError(f"the architecture {self.architecture!r} needs k, the number of latents that fire per row")
        if self.k is not None and self.kind.k_is_whole and self.k != int(self.k):
            raise ValueError(f"k is {self.k:g}, but {self.architecture} fires a whole number of latents per row")
        if self.d_sae is not None:
            self.check_d_sae(self.d_sae)
        widths = self.matryoshka_widths
        if widths is not None and (not widths or widths[0] <= 0 or list(widths) != sorted(set(widths))):
            raise ValueError(f"matryoshka_widths {list(widths)} must be positive and rise from each to the next")
        if widths is not None and self.k is not None and self.kind.takes("matryoshka_k"):
            level_budgets(widths, self.k, self.matryoshka_k)

    def check_d_sae(self, d_sae: int) -> None:
        """Compare k and the nested widths with the number of latents, which may follow from the width of the rows.

        Raises:
            ValueError: They are larger than it, or the last width is not all latents.
        """
        if self.k is not None and self.k > d_sae:
            raise ValueError(f"k is {self.k:g}, but the SAE has only {d_sae} latents; lower k or raise d_sae")
        if self.matryoshka_widths and self.matryoshka_widths[-1] != d_sae:
            raise ValueError(
                f"the last of matryoshka_widths is {self.matryoshka_widths[-1]}, but it must be all {d_sae} latents"
            )
        if self.kind.takes("matryoshka_widths") and not self.matryoshka_widths and d_sae < 8:
            raise ValueError(f"{d_sae} latents are too few for nested eighths; give matryoshka_widths")

    @property
    def order(self) -> int:
        """The seed of the order of the rows."""
        return self.seed if self.row_seed is None else self.row_seed

    @property
    def starts_at_median(self) -> bool:
        """Whether the decoder's bias starts at the geometric median of the rows, and not at 0."""
        if self.init_bias is None:
            return self.architecture != "standard"
        return self.init_bias == "geometric_median"

    @property
    def held_l0(self) -> float | None:
        """The L0 at which thresholds are held; None where they are not."""
        return self.k if self.kind.holds_l0 else None

    def d_sae_for(self, d_in: int) -> int:
        """The number of latents for rows of width `d_in`."""
        return self.d_sae or self.expansion_factor * d_in

    def warm_up_steps(self, steps: int) -> int:
        """Steps of warm-up of the learning rate in a run of so many."""
        if self.lr_warm_up_share is None:
            return self.lr_warm_up_steps
        share = int(self.lr_warm_up_share * steps)
        return min(share, self.lr_warm_up_steps) if self.lr_warm_up_steps else share

    def check_steps(self, steps: int) -> None:
        """Compare schedules and windows with the length of the run, which follows from the number of rows.

        Raises:
            ValueError: A schedule is longer than the run, or nothing would ever count as dead where that matters.
        """
        schedule = self.warm_up_steps(steps) + self.lr_decay_steps
        if schedule > steps or (schedule == steps and self.lr_schedule == "cosine"):
            left = ", and none is left for the cosine" if schedule == steps else ""
            raise ValueError(
                f"lr_warm_up_steps + lr_decay_steps is {schedule}, but the run has only {steps} steps{left}"
            )
        if self.sparsity_warm_up_steps > steps:
            raise ValueError(
                f"sparsity_warm_up_steps is {self.sparsity_warm_up_steps}, but the run has only {steps} steps: lambda "
                "would never be reached"
            )
        revives = (self.kind.revives and self.aux_loss > 0) or self.pre_act_loss is not None
        if revives and self.dead_feature_window >= steps:
            raise ValueError(
                f"dead_feature_window is {self.dead_feature_window}, but the run has only {steps} steps: no latent "
                "would count as dead, and the loss that revives them would never act; lower the window"
            )

    def check_run(self, d_in: int, n_rows: int, of: str) -> int:
        """Refuse a run that cannot work on rows of width `d_in`, so many of them.

        Args:
            d_in: Width of the rows.
            n_rows: How many there are to train on.
            of: What holds them, in words; begins the line of an error.

        Returns:
            The steps of the run.

        Raises:
            InputError: They are not one batch, or settings do not fit the width or the length of the run.
        """
        steps = int(n_rows * self.epochs // self.batch_size)
        if steps < 1:
            raise InputError(
                f"{of} {n_rows} rows, which is not one batch of {self.batch_size} in {self.epochs:g} epochs; lower "
                "batch_size or keep more positions"
            )
        try:
            SAETraining(**self.model_dump())  # a copy with changed settings has not been checked
            self.check_d_sae(self.d_sae_for(d_in))
            self.check_steps(steps)
            self.resample_steps(n_rows / self.batch_size)
        except InputError:
            raise
        except ValueError as error:
            raise InputError(str(error)) from error
        return steps

    def acting(self) -> dict[str, Any]:
        """The settings without those that do nothing for the architecture."""
        return {
            name: value
            for name, value in self.model_dump().items()
            if self.kind.takes(name) and not (name == "expansion_factor" and self.d_sae is not None)
        }

    def resample_steps(self, steps_per_epoch: float) -> int | None:
        """Steps between two resamplings; None where there are none.

        Raises:
            ValueError: The interval is not longer than the window after which a latent counts as dead.
        """
        if self.resample_epochs is None:
            return self.resample_every
        steps = round(self.resample_epochs * steps_per_epoch)
        if steps <= self.dead_feature_window:
            raise ValueError(
                f"resample_epochs of {self.resample_epochs:g} are {steps} steps, but a latent counts as dead only "
                f"after more than dead_feature_window = {self.dead_feature_window} steps; lower the window"
            )
        return steps


def default_of(name: str) -> Any:
    """The default of a setting."""
    return SAETraining.model_fields[name].default
