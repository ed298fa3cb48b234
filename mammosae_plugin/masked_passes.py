"""Interventions at an inner layer: the rest of the network, once per image and mask, and nothing else.

What lies before the layer does not depend on the mask, so its output is read from disk (`cache_layer_outputs`). Each
image is encoded once. A mask then costs a sparse decode, over the latents that fire in that image alone, and one pass
of the network behind the layer; masks that differ only in latents that do not fire there are one mask.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm

from mammosae_plugin.activations import LayerOutputs
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.hooked_vision_model import refuse_what_no_map_fits
from mammosae_plugin.adapters.recording import evaluation
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import LatentTable, decodes_linearly, rows_at_once, weight_and_bias
from mammosae_plugin.provenance import tensors_fingerprint

# Fewer passes than this are done before a progress bar would be read.
_PASSES_WITHOUT_PROGRESS = 200


class MaskedPasses:
    """Logits under masks over latents, by running the network behind a layer; the `passes` of `intervene` and `sweep`.

    The result is that of splicing the SAE into the running network with the masked latents set to zero. An edit that
    zeroes no latent that fires gives, with the error term, the network's own logits.

    ```python
    outputs = cache_layer_outputs(model, images.select(split="test"), "cache", hook_name="layer_12")
    passes = MaskedPasses(model, sae, outputs, heads={"Mass": classifier.classifier})
    sweep(table, ranking, concept="Mass", n_controls=3, passes=passes)
    ```

    Attributes:
        n_passes: passes of the rest of the network so far.
    """

    def __init__(
        self,
        model: HookedVisionModel,
        sae: Any,
        outputs: LayerOutputs,
        heads: Mapping[str, nn.Linear],
        *,
        device: str = "cpu",
        masks_at_once: int = 4,
    ) -> None:
        """Check that model, SAE and cache belong together.

        Args:
            model: the hookable model, without SAEs attached.
            sae: a SAELens SAE of the layer that decodes as latents @ W_dec + b_dec.
            outputs: the layer's outputs, at least for the images that will be asked for.
            heads: linear heads by concept, as given to `encode_latents`.
            device: where SAE and network run.
            masks_at_once: masks in one batch of the rest of the network; more are faster until memory is short.

        Raises:
            InputError: the cache is of another model, another layer than the SAE's, or another image size; the SAE
                does not decode linearly; or other values flow around the layer.
        """
        if masks_at_once < 1:
            raise InputError(f"masks_at_once is {masks_at_once}: give 1 or more")
        named = sae.cfg.metadata.hook_name or model.final_hook
        if named is None or model.resolve_hook_name(named) != outputs.hook_name:
            raise InputError(
                f"the SAE belongs to {named}, but {outputs.folder} holds outputs of {outputs.hook_name}; "
                "cache the SAE's layer"
            )
        self._inputs = {
            "model": tensors_fingerprint(model.encoder_state()),
            "sae": tensors_fingerprint(sae.state_dict()),
            "hook_name": outputs.hook_name,
            "preprocessing": outputs.manifest.get("preprocessing"),
        }
        self._head_fingerprints = {concept: tensors_fingerprint(head.state_dict()) for concept, head in heads.items()}
        if outputs.manifest["model"] != self._inputs["model"]:
            raise InputError(f"{outputs.folder} holds outputs of a model with other weights; cache this model's")
        refuse_what_no_map_fits(sae, outputs.hook_name)
        with evaluation(sae):
            if not decodes_linearly(sae):
                raise InputError(
                    f"the SAE ({sae.cfg.architecture()}) does not decode as latents @ W_dec + b_dec; "
                    "fold its normalisation or its decoder norms into the weights first"
                )
        self._model = model
        self.sae, self.outputs, self.device, self.masks_at_once = sae, outputs, device, masks_at_once
        self.rest = model.rest_from(outputs.hook_name, outputs.image_size)
        self.heads = {concept: weight_and_bias(head, device) for concept, head in heads.items()}
        self.n_passes = 0
        self._of_bias: tuple[torch.Tensor, torch.Tensor] | None = None

    def logits(
        self,
        table: LatentTable,
        kept: NDArray[np.bool_],
        *,
        head: str,
        error_term: bool,
        image_rows: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Logits while only some latents are left.

        Args:
            table: the latents table of the same model, SAE and layer.
            kept: (d_sae, n_groups), the latents that each intervention leaves.
            head: the concept of the head.
            error_term: add back what the SAE does not reconstruct.
            image_rows: (n,) rows of the table; each image is computed once.

        Returns:
            (n, n_groups, n_out) float64.

        Raises:
            InputError: a table of other inputs, an unknown head, or an image that is not in the cache.
        """
        self._check(table, head)
        weight, bias = self.heads[head]
        images, image_of_row = np.unique(image_rows, return_inverse=True)
        numbers = [self.outputs.number_of(image_id) for image_id in table.images["image_id"].to_numpy()[images]]
        logits = np.empty((len(images), kept.shape[1], len(weight)))
        quick = len(images) * kept.shape[1] < _PASSES_WITHOUT_PROGRESS
        with evaluation(self._model, self.sae, device=self.device):
            for place, number in enumerate(tqdm(numbers, desc="masked passes", unit="image", disable=quick)):
                read = self._head_inputs(number, kept, error_term).double()
                logits[place] = (read @ weight.T + bias).cpu().numpy()
        return logits[image_of_row]

    def _check(self, table: LatentTable, head: str) -> None:
        if head not in self.heads:
            raise InputError(f"these passes have no head for {head!r}; they have {', '.join(self.heads)}")
        made_of = table.provenance["inputs"]
        same = {**{name: made_of.get(name) for name in self._inputs}, "head": made_of["heads"].get(head)}
        for name, fingerprint in {**self._inputs, "head": self._head_fingerprints[head]}.items():
            if same[name] != fingerprint:
                raise InputError(
                    f"{table.folder} was made with another {name.replace('_', ' ')} than these passes run; "
                    "give the passes of the table's own model, SAE, layer and heads"
                )

    @torch.inference_mode()
    def _head_inputs(self, number: int, kept: NDArray[np.bool_], error_term: bool) -> torch.Tensor:
        """What the classifier reads for one image under every mask, (n_groups, d)."""
        raw = self.outputs.raw(number).to(self.device)
        value = self.rest.show(raw)
        codes = _encoded(self.sae, value)
        effective = kept[codes.fired.cpu().numpy()]
        first_of: dict[bytes, int] = {}
        same_as = [
            first_of.setdefault(bits.tobytes(), group) for group, bits in enumerate(np.packbits(effective, axis=0).T)
        ]
        is_empty = ~effective.any(axis=0) & (not error_term)
        found = {group: self._nothing_left(raw, value) for group in first_of.values() if is_empty[group]}
        waiting = [group for group in first_of.values() if not is_empty[group]]
        for start in range(0, len(waiting), self.masks_at_once):
            batch = waiting[start : start + self.masks_at_once]
            masks = torch.from_numpy(effective[:, batch]).to(self.device).T
            edited = [codes.without(~mask, value) if error_term else codes.decoded(mask, self.sae) for mask in masks]
            found |= dict(zip(batch, self._run(raw, torch.stack(edited)), strict=True))
        return torch.stack([found[group] for group in same_as])

    def _run(self, raw: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """What the classifier reads, (n, d), for values (n, ...) of the layer in one image."""
        self.n_passes += len(values)
        inputs = self.rest.replace(raw.expand(len(values), *raw.shape[1:]), values.to(raw.dtype))
        return self.rest.head_input(inputs)

    def _nothing_left(self, raw: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """What the classifier reads, (d,), when no latent is left and the layer is the decoder's bias everywhere.

        It is the same for every image unless tokens go around the layer. It is computed once, because rounding, which
        depends on what else is in a batch, would rank images that the edited model cannot tell apart.
        """
        bias = self.sae.b_dec.expand(value.shape)
        inputs = self.rest.replace(raw, bias.to(raw.dtype))
        if self._of_bias is None or not torch.equal(self._of_bias[0], inputs):
            self._of_bias = (inputs.clone(), self._run(raw, bias)[0])
        return self._of_bias[1]


@dataclass(frozen=True)
class _Codes:
    """The latents of one image that are not zero, position by position.

    Attributes:
        fired: (n_fired,) the latents that fire anywhere in the image, ascending.
        weight: (n_fired, d_in) their rows of the decoder.
        activations: (nnz,) the values, by position.
        columns: (nnz,) the place in `fired` of each.
        starts: (n_positions,) where each position's values begin.
        shape: of the layer's value, (1, h, w, d_in).
    """

    fired: torch.Tensor
    weight: torch.Tensor
    activations: torch.Tensor
    columns: torch.Tensor
    starts: torch.Tensor
    shape: torch.Size

    def decoded(self, mask: torch.Tensor, sae: Any) -> torch.Tensor:
        """The reconstruction (h, w, d_in) from the latents of `mask` (n_fired,) alone."""
        reconstruction: torch.Tensor = self._sums(mask) + sae.b_dec
        return reconstruction

    def without(self, mask: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The layer's own value less what the latents of `mask` contribute: the SAE's error stays in."""
        return value[0] - self._sums(mask).to(value.dtype)

    def _sums(self, mask: torch.Tensor) -> torch.Tensor:
        weights = self.activations * mask[self.columns]
        rows = functional.embedding_bag(self.columns, self.weight, self.starts, mode="sum", per_sample_weights=weights)
        return rows.reshape(self.shape[1:])


def _encoded(sae: Any, value: torch.Tensor) -> _Codes:
    """Encode the value (1, h, w, d_in) of one image, a block of positions at a time."""
    activations, columns, counts = [], [], []
    for chunk in torch.split(value.reshape(-1, value.shape[-1]), rows_at_once(sae)):
        latents = sae.encode(chunk)
        places = latents.nonzero(as_tuple=True)
        activations.append(latents[places])
        columns.append(places[1])
        counts.append(torch.count_nonzero(latents, dim=1))
    fired, local = torch.unique(torch.cat(columns), return_inverse=True)
    per_position = torch.cat(counts)
    starts = per_position.cumsum(0) - per_position
    return _Codes(fired, sae.W_dec[fired], torch.cat(activations), local, starts, value.shape)
