"""Classifiers that no longer use latents, or use them less: the SAE's part folded in, or taken out of the head."""

__all__ = ["fold_latents", "project_head"]

import copy
from collections.abc import Sequence
from typing import Any

import torch
from sae_lens import SAE
from torch import nn

from mammosae_plugin.adapters.classifier import Classifier, head_of
from mammosae_plugin.adapters.hook_names import module_path
from mammosae_plugin.adapters.hook_routes import MARK
from mammosae_plugin.adapters.hooked_vision_model import HookedVisionModel
from mammosae_plugin.adapters.input_normalization import input_normalization
from mammosae_plugin.adapters.latent_edits import LatentEdit, put_edit
from mammosae_plugin.adapters.sae_export import PlainSAE, plain_sae
from mammosae_plugin.arguments import between, indices
from mammosae_plugin.errors import InputError

_AGREEMENT = 1e-4  # relative, of the latents that are computed here with the SAE's own


def fold_latents(
    classifier: Classifier,
    sae: SAE[Any],
    latents: Sequence[int],
    *,
    scale: float = 0.0,
    hook_name: str | None = None,
) -> Classifier:
    """A copy of a classifier that uses latents of its SAE only to a part, or no more: the SAE's part folded in.

    At the SAE's layer, in every position, the copy has x - (1 - s) sum_j z_j(x) W_dec[j] over the latents j, exactly
    what scaling these latents does in the running network when the error term is kept. `save_classifier` writes it, and
    `load_classifier` (of Mammo-CLIP's networks `load_mammo_clip`) reads it as any other.

    Args:
        classifier: of any kind, without hooks.
        sae: a SAELens SAE of a layer of it: standard, JumpReLU or top-k.
        latents: those that are edited.
        scale: what each is multiplied by, s: 0 removes it, 1 leaves it alone, above 1 makes more of it.
        hook_name: the layer, where the SAE's metadata does not name it; else the final map.

    Raises:
        InputError: latents that the SAE has not, a layer that the network has not, an SAE of another width or of an
            architecture whose latents cannot be told by these rules, or a network that is hooked.
    """
    scale = between(scale, "scale", -100, 100)
    if any(getattr(module, MARK, None) is not None for module in classifier.network.modules()):
        raise InputError("the network is hooked; close its HookedVisionModel first (model.close())")
    plain, chosen = _plain(sae), _chosen(latents, int(sae.cfg.d_sae))
    named = hook_name or sae.cfg.metadata.hook_name or classifier.final_module
    made = _copied(classifier)
    with HookedVisionModel(made.network, [named]) as hooked:
        full = hooked.resolve_hook_name(named)
        layout, width = hooked.hook_layouts[full], hooked.hook_shapes[full][-1]
    if width != plain.d_in:
        raise InputError(f"the SAE takes vectors of width {plain.d_in}, but {full} of this network has width {width}")
    axis = 1 if layout.kind == "map" and layout.channels_first else -1
    edit = _edit(plain, chosen, scale, axis=axis, n_prefix=layout.n_prefix if layout.kind == "tokens" else 0)
    _check(edit, sae, chosen)
    example = next(made.network.parameters())
    put_edit(made.network, module_path(full), edit.to(example.device))
    made.network.eval()
    return made


def project_head(classifier: Classifier, sae: SAE[Any], latents: Sequence[int], *, scale: float = 0.0) -> Classifier:
    """A copy of a classifier whose head no longer reads the directions in which latents of an SAE are decoded.

    With Q (d, r) an orthonormal basis of the decoder rows of the latents, the head's weight w becomes
    w - (1 - s) Q Q^T w, and its bias c becomes c + (1 - s) (Q Q^T w) . b_dec, so that a map without latents (the
    decoder's bias everywhere) keeps its logit. No SAE is needed to run it, and its file is an ordinary one. It is an
    approximation: whatever else lies in these directions, other latents and the SAE's error, is scaled with them.

    Args:
        classifier: whose head reads the mean of the SAE's layer over positions, which is not looked at here.
        sae: a SAELens SAE of its final map.
        latents: those whose directions are scaled.
        scale: as for `fold_latents`.

    Raises:
        InputError: latents that the SAE has not, or no head of its width.
    """
    scale = between(scale, "scale", -100, 100)
    chosen = _chosen(latents, int(sae.cfg.d_sae))
    made = _copied(classifier)
    head = head_of(made)
    if head is None or head.in_features != sae.cfg.d_in:
        has = "no linear head" if head is None else f"a head that reads {head.in_features} numbers"
        raise InputError(f"the network has {has}, but the SAE has width {sae.cfg.d_in}: edit its own classifier")
    weight, bias = _projected(head, sae, chosen, scale)
    head.weight = nn.Parameter(weight.to(head.weight))
    head.bias = nn.Parameter(bias.to(head.weight))
    return made


def _projected(head: nn.Linear, sae: SAE[Any], chosen: list[int], scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    weight = head.weight.detach().double()
    rows = sae.W_dec.detach()[chosen].double().to(weight.device)
    _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
    basis = basis[sizes > 1e-9 * sizes.max().clamp(min=1e-300)]
    lost = (1 - scale) * (weight @ basis.T) @ basis
    bias = weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach().double()
    return weight - lost, bias + lost @ sae.b_dec.detach().double().to(weight.device)


def _copied(classifier: Classifier) -> Classifier:
    if isinstance(classifier, nn.Module):
        return copy.deepcopy(classifier)
    made = copy.copy(classifier)
    made.network = copy.deepcopy(classifier.network)  # type: ignore[misc]
    return made


def _chosen(latents: Sequence[int], d_sae: int) -> list[int]:
    chosen = [int(latent) for latent in indices(latents, "latents", d_sae, distinct=True)]
    if not chosen:
        raise InputError("latents is empty: name those to remove or scale")
    return chosen


def _plain(sae: SAE[Any]) -> PlainSAE:
    scaling = input_normalization(sae) or sae.cfg.normalize_activations
    if scaling != "none":
        raise InputError(f"the SAE scales each row by itself first ({scaling}); take one that was trained without")
    plain = plain_sae(sae)
    if plain.architecture not in ("standard", "jumprelu", "topk"):
        raise InputError(
            f"the SAE's architecture is {plain.architecture!r}; latents of standard, jumprelu and topk SAEs can be "
            "folded into a network. Scale the directions in the head instead (kind='linear'), or wrap the network in a "
            "HookedVisionModel"
        )
    return plain


def _edit(plain: PlainSAE, chosen: list[int], scale: float, *, axis: int, n_prefix: int) -> LatentEdit:
    state = plain.state
    encoded = list(range(plain.d_sae)) if plain.architecture == "topk" else chosen
    activation = "relu" if plain.architecture == "standard" else plain.architecture
    said = {
        "activation": activation,
        "n_kept": plain.k,
        "n_encoded": len(encoded),
        "n_latents": len(chosen),
        "d_in": plain.d_in,
        "axis": axis,
        "n_prefix": n_prefix,
    }
    edit = LatentEdit(said)
    edit.W_enc.copy_(state["W_enc"][:, encoded])
    edit.b_enc.copy_(plain.bias("b_enc", subtracted=False)[encoded])
    if activation == "jumprelu":
        edit.threshold.copy_(state["threshold"][encoded])
    places = {latent: place for place, latent in enumerate(encoded)}
    edit.chosen.copy_(torch.tensor([places[latent] for latent in chosen]))
    edit.W_sub.copy_((1 - scale) * state["W_dec"][chosen])
    return edit


@torch.no_grad()
def _check(edit: LatentEdit, sae: SAE[Any], chosen: list[int]) -> None:
    """See on noise that the edit computes the SAE's latents.

    Raises:
        InputError: it does not.
    """
    rows = torch.randn(64, sae.cfg.d_in, generator=torch.Generator().manual_seed(0))
    rows = 4 * rows + sae.b_dec.detach().float().cpu()
    expected = sae.encode(rows.to(sae.b_dec.device, sae.W_dec.dtype))[:, chosen].float().cpu()
    error = (edit.latents(rows) - expected).abs().max()
    if not error <= _AGREEMENT * expected.abs().max().clamp(min=1):
        raise InputError(
            f"the SAE ({sae.cfg.architecture()}) computes its latents in another way than its architecture's, so that "
            "they cannot be folded into a network; scale the directions in the head instead (kind='linear')"
        )
