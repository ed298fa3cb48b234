"""One image through the network and the SAE, as a latents table has it, with the maps of whatever fires in it."""

__all__ = ["encode_image", "logits_without", "OneImage"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from scipy import sparse
from torch import nn

from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.recording import evaluation
from mammosae_plugin.arguments import indices
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents.encoded_layer import decodes_linearly, weight_and_bias, why_not_linear
from mammosae_plugin.latents.encoding import rows_at_once
from mammosae_plugin.shapes import LatentMaps


@dataclass(frozen=True)
class OneImage:
    """What the SAE says of one image.

    Attributes:
        mean_latents: (d_sae,) float64, over positions.
        max_latents: (d_sae,) float64.
        logits: (n_out,) float64, what the network's own forward pass gives.
        logits_with_sae: (n_out,) float64, of the mean over positions of the SAE's reconstruction.
        error: (n_out,) float64, what the mean over positions of what it does not reconstruct adds.
        grid: (h, w).
        codes: (h w, d_sae) the latents at every position.
    """

    mean_latents: NDArray[np.float64]
    max_latents: NDArray[np.float64]
    logits: NDArray[np.float64]
    logits_with_sae: NDArray[np.float64]
    error: NDArray[np.float64]
    grid: tuple[int, int]
    codes: sparse.csr_array

    def maps(self, latents: Sequence[int] | NDArray[np.int64]) -> LatentMaps:
        """(n, h, w) float32: activations of some latents over the positions."""
        chosen: Any = self.codes[:, list(latents)]
        found: NDArray[np.float32] = chosen.toarray().T.reshape(-1, *self.grid).astype(np.float32)
        return found

    def weighted_map(self, weight: NDArray[np.float64]) -> NDArray[np.float32]:
        """(h, w) float32: at every position the sum over latents of activation times weight (d_sae,)."""
        found: NDArray[np.float32] = np.asarray(self.codes @ weight).reshape(self.grid).astype(np.float32)
        return found


def encode_image(
    model: HookedVisionModel,
    sae: SAE[Any],
    image: torch.Tensor,
    head: nn.Linear,
    *,
    hook_name: str | None = None,
    device: str = "cpu",
) -> OneImage:
    """Encode one image at the final map.

    Args:
        model: the hookable model, without SAEs attached.
        sae: a SAELens SAE of its final map.
        image: (C, H, W), preprocessed.
        head: the linear classifier, which reads the mean of the map over positions.
        hook_name: the layer, where the SAE's metadata does not name it.

    Raises:
        InputError: a layer from which the logit is not linear in the mean over positions, an SAE that does not decode
            linearly, or features that are not finite.
    """
    name = model.resolve_hook_name(hook_name or sae.cfg.metadata.hook_name or str(model.final_hook))
    with evaluation(model, sae, device=device), torch.inference_mode():
        if not decodes_linearly(sae):
            raise InputError(f"the SAE ({sae.cfg.architecture()}) does not decode linearly: {why_not_linear(sae)}")
        reading = model.read(image[None].to(device), name)
        value = reading.value[0]
        if value.dim() != 3 or not torch.isfinite(value).all():
            raise InputError(f"{name} gives no map of finite numbers for this image; check image and weights")
        rows = value.reshape(-1, value.shape[-1])
        if reading.head_input is None or rows.shape[1] != head.in_features:
            raise InputError(f"the classifier does not read the mean of {name}; explain at the final map")
        pieces, decoded = [], torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
        for chunk in torch.split(rows, rows_at_once(sae)):
            latents = sae.encode(chunk)
            decoded += sae.decode(latents).sum(0, dtype=torch.float64)
            pieces.append(sparse.csr_array(latents.double().cpu().numpy()))
        codes = sparse.csr_array(sparse.vstack(pieces))
        weight, bias = weight_and_bias(head, device)
        means = rows.double().mean(0)
        decoded /= len(rows)
        return OneImage(
            mean_latents=np.asarray(codes.sum(axis=0)).ravel() / len(rows),
            max_latents=np.asarray(codes.max(axis=0).todense()).ravel().astype(np.float64),
            logits=(weight @ reading.head_input[0].double() + bias).cpu().numpy(),
            logits_with_sae=(weight @ decoded + bias).cpu().numpy(),
            error=(weight @ (means - decoded)).cpu().numpy(),
            grid=(int(value.shape[0]), int(value.shape[1])),
            codes=codes,
        )


def logits_without(
    model: HookedVisionModel,
    sae: SAE[Any],
    image: torch.Tensor,
    head: nn.Linear,
    latents: Sequence[int],
    *,
    hook_name: str,
    device: str = "cpu",
) -> NDArray[np.float64]:
    """What the network gives for an image when some latents are removed from a layer and all else stays as it is.

    At every position what the latents add to the layer is taken away; what the SAE does not reconstruct stays. The
    network then runs on, so that at the final map this checks the sum of `encode_image` without using it.

    Args:
        model: as for `encode_image`.
        sae: likewise; one that decodes linearly.
        image: likewise.
        head: likewise.
        latents: those that are removed; none gives the network's own logits.
        hook_name: the layer, which may be an inner one.
        device: where it runs.

    Returns:
        (n_out,).

    Raises:
        InputError: a latent that the SAE does not have.
    """
    off = torch.as_tensor(indices(list(latents), "latents", sae.cfg.d_sae, distinct=True))

    def removed(value: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001 - TransformerLens names it
        rows = value.reshape(-1, value.shape[-1])
        pieces = []
        for chunk in torch.split(rows, rows_at_once(sae)):
            codes = sae.encode(chunk)
            rest = codes.clone()
            rest[:, off] = 0
            pieces.append(chunk - (sae.decode(codes) - sae.decode(rest)))
        return torch.cat(pieces).reshape(value.shape)

    with evaluation(model, sae, device=device), torch.inference_mode():
        weight, bias = weight_and_bias(head, device)
        with model.head_input() as seen, model.hooks(fwd_hooks=[(hook_name, removed)] if len(off) else []):
            model(image[None].to(device))
        found: NDArray[np.float64] = (weight @ seen[0][0].double() + bias).cpu().numpy()
        return found
