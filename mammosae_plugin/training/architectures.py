"""What SAELens knows of the architectures that it trains, and what our settings are called there.

A setting acts on an architecture whose configuration in SAELens has the field that it becomes. Nothing else says which
architecture has which settings, so one that a user registered (`sae_lens.register_sae_training_class`) is trained as
SAELens's own are.
"""

__all__ = ["Architecture", "architecture", "FIELDS", "taking"]

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from functools import cached_property
from typing import Any

import sae_lens
from sae_lens import JumpReLUTrainingSAE, StandardTrainingSAE, TopKTrainingSAE, TrainingSAE, TrainingSAEConfig
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

FIELDS: Mapping[str, tuple[str, ...]] = {
    "sparsity": ("l1_coefficient", "l0_coefficient"),
    "sparsity_warm_up_steps": ("l1_warm_up_steps", "l0_warm_up_steps"),
    "k": ("k", "target_l0", "max_iterations"),
    "aux_loss": ("aux_loss_coefficient",),
    "threshold_lr": ("topk_threshold_lr",),
    "matryoshka_widths": ("matryoshka_widths",),
    "matryoshka_k": ("matryoshka_k",),
    "jumprelu_threshold": ("jumprelu_init_threshold",),
    "jumprelu_bandwidth": ("jumprelu_bandwidth",),
    "pre_act_loss": ("pre_act_loss_coefficient",),
    "residual_threshold": ("residual_threshold",),
}
"""What SAELens calls our settings, where not every architecture has them."""
_RESAMPLING = ("resample_every", "resample_epochs")  # ours alone, made for the L1 objective
_ALWAYS_SET = (
    *("d_in", "d_sae", "device", "dtype", "metadata", "normalize_activations", "apply_b_dec_to_input"),
    "reshape_activations",
)


@dataclass(frozen=True)
class Architecture:
    """An architecture that SAELens trains.

    Attributes:
        name: SAELens's name of it.
        sae: The class of its SAE in training.
        config: The class of that SAE's configuration.
    """

    name: str
    sae: type[TrainingSAE[Any]]
    config: type[TrainingSAEConfig]

    @cached_property
    def fields(self) -> dict[str, Field[Any]]:
        """The fields of its configuration, by name."""
        return {field.name: field for field in fields(self.config)}

    def takes(self, setting: str) -> bool:
        """Whether one of our settings acts on it."""
        if setting in _RESAMPLING:
            return issubclass(self.sae, StandardTrainingSAE)
        if setting == "sparse_step":
            return issubclass(self.sae, TopKTrainingSAE)
        return setting not in FIELDS or any(field in self.fields for field in FIELDS[setting])

    @property
    def needs_k(self) -> bool:
        """Whether it cannot be trained without a number of latents that fire."""
        return "k" in self.fields

    @property
    def k_is_whole(self) -> bool:
        """Whether that number is one of each row, and not of a batch on average."""
        return not any("float" in str(self.fields[name].type) for name in FIELDS["k"] if name in self.fields)

    @property
    def k_is_a_limit(self) -> bool:
        """Whether fewer may fire."""
        return "max_iterations" in self.fields

    @property
    def holds_l0(self) -> bool:
        """Whether it has thresholds that can be held where k latents fire."""
        return issubclass(self.sae, JumpReLUTrainingSAE)

    @property
    def revives(self) -> bool:
        """Whether a loss of its own makes dead latents learn the error."""
        return "aux_loss_coefficient" in self.fields

    def check_further(self, settings: Mapping[str, Any]) -> None:
        """See that fields of its configuration that are given by SAELens's names exist and are not set by ours.

        Raises:
            ValueError: One does not, or is.
        """
        ours = {field: name for name, names in FIELDS.items() for field in names}
        for name in settings:
            if name not in self.fields:
                raise ValueError(
                    f"the architecture {self.name!r} has no setting {name!r}; it has "
                    f"{', '.join(sorted(self.fields.keys() - ours.keys() - {*_ALWAYS_SET}))}"
                )
            if name in ours or name in _ALWAYS_SET:
                raise ValueError(f"{name} follows from {ours.get(name, 'the rows and the other settings')}; set that")

    def missing(self, given: Mapping[str, Any]) -> list[str]:
        """The fields of its configuration that have no default and are not given."""
        return [
            name
            for name, field in self.fields.items()
            if name not in given and field.init and field.default is MISSING and field.default_factory is MISSING
        ]


def architecture(name: str) -> Architecture:
    """An architecture by SAELens's name.

    Raises:
        ValueError: SAELens trains none of this name, or it is no autoencoder.
    """
    if name not in SAE_TRAINING_CLASS_REGISTRY:
        only = "loads SAEs of it, but cannot train them" if name in SAE_CLASS_REGISTRY else "does not know it"
        raise ValueError(
            f"{name!r}: sae-lens {sae_lens.__version__} {only}; take one of "
            f"{', '.join(map(repr, SAE_TRAINING_CLASS_REGISTRY))}, or register your own first "
            "(sae_lens.register_sae_training_class)"
        )
    found = Architecture(name, *SAE_TRAINING_CLASS_REGISTRY[name])
    if "d_out" in found.fields:
        raise ValueError(f"{name!r} is a transcoder, from one layer to another; only autoencoders are trained here")
    return found


def taking(setting: str) -> list[str]:
    """The names of the architectures on which a setting acts."""
    return [
        name for name, classes in SAE_TRAINING_CLASS_REGISTRY.items() if Architecture(name, *classes).takes(setting)
    ]
