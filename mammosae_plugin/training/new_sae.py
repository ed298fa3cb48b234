"""From our settings to SAELens's training SAEs.

Our coefficients belong to the mean of the squared error over the features of a row, SAELens's to its sum: a coefficient
there is ours times the width d_in.
"""

__all__ = ["new_training_sae"]

from typing import Any

from sae_lens import TrainingSAE
from sae_lens.saes.sae import SAEMetadata

from mammosae_plugin import distributed
from mammosae_plugin.adapters.input_normalization import UNIT_L2
from mammosae_plugin.adapters.sae_formats.saelens import unregistered
from mammosae_plugin.errors import InputError
from mammosae_plugin.training.architectures import FIELDS, Architecture
from mammosae_plugin.training.parallel import over_processes
from mammosae_plugin.training.settings import SAETraining
from mammosae_plugin.training.sparse_step import over_places


def new_training_sae(config: SAETraining, d_in: int, *, metadata: SAEMetadata, device: str) -> TrainingSAE[Any]:
    """A SAELens training SAE with fresh weights, drawn from torch's global generator.

    Args:
        config: The settings, whose k and widths fit the number of latents.
        d_in: Width of a row.
        metadata: What its metadata says.
        device: Where its weights lie.

    Raises:
        InputError: SAELens has no form of it for use, or refuses the settings.
    """
    found = config.kind
    kind = over_processes(found.sae) if distributed.world_size() > 1 else found.sae
    if config.sparse_step:
        kind = over_places(kind, found.sae)
    d_sae = config.d_sae_for(d_in)
    given = {
        "d_in": d_in,
        "d_sae": d_sae,
        "normalize_activations": "none" if config.normalize_activations == UNIT_L2 else config.normalize_activations,
        "apply_b_dec_to_input": True,
        "device": device,
        "metadata": metadata,
        **_own_settings(config, found, d_in, d_sae),
    }
    if missing := found.missing(given):
        raise InputError(f"the architecture {found.name!r} needs {', '.join(missing)}; give architecture_settings")
    try:
        sae = kind(found.config(**given))
        sae.W_dec.requires_grad_(not config.frozen_decoder)
        return sae
    except KeyError as error:  # SAELens's registry of architectures for use
        raise InputError(unregistered(error.args[0])) from error
    except (TypeError, ValueError) as error:
        raise InputError(f"the architecture {found.name!r} refuses its settings: {error}") from error


def _own_settings(config: SAETraining, found: Architecture, d_in: int, d_sae: int) -> dict[str, Any]:
    """The architecture's own settings by SAELens's names."""
    values = {name: getattr(config, name) for name in FIELDS}
    values["sparsity"] = config.sparsity * d_in
    if found.k_is_whole and config.k is not None:
        values["k"] = int(config.k)
    values["matryoshka_widths"] = list(config.matryoshka_widths or (d_sae // 8, d_sae // 4, d_sae // 2, d_sae))
    if config.matryoshka_k is not None:
        values["matryoshka_k"] = list(config.matryoshka_k)
    own = {field: values[name] for name, names in FIELDS.items() for field in names if field in found.fields}
    if found.needs_k or found.k_is_a_limit:
        # Rows of norm 1: a step of Adam turns shorter ones far, and at SAELens's 0.1 half of the latents die early.
        own["decoder_init_norm"] = 1.0
    if "jumprelu_sparsity_loss_mode" in found.fields:
        own["jumprelu_sparsity_loss_mode"] = "step" if config.k is None else "quadratic"
    return {**own, **(config.architecture_settings or {})}
