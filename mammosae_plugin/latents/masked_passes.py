"""Interventions at an inner layer: the rest of the network, once per image and mask, and nothing else.

What lies before the layer does not depend on the mask, so its output is read from disk (`cache_layer_outputs`). Each
image is encoded once. A mask then costs a sparse decode, over the latents that fire in that image alone, and one pass
of the network behind the layer; masks that differ only in latents that do not fire there are one mask. What many
analyses ask for is run at once by `kept_passes`.
"""

__all__ = ["Edits", "MaskedPasses"]

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from torch import nn
from torch.nn import functional

from mammosae_plugin.activations import LayerOutputs
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.attached_sae import refuse_what_no_map_fits
from mammosae_plugin.adapters.recording import evaluation
from mammosae_plugin.adapters.sae_settings import sae_settings
from mammosae_plugin.arguments import between, indices, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents.encoded_layer import decodes_linearly, weight_and_bias, why_not_linear
from mammosae_plugin.latents.encoding import rows_at_once
from mammosae_plugin.latents.table import SETTINGS, LatentTable
from mammosae_plugin.progress import progress
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
        sae: SAE[Any],
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
        masks_at_once = whole(masks_at_once, "masks_at_once", least=1)
        named = sae.cfg.metadata.hook_name or model.final_hook
        if named is None or model.resolve_hook_name(named) != outputs.hook_name:
            raise InputError(
                f"the SAE belongs to {named}, but {outputs.folder} holds outputs of {outputs.hook_name}; "
                "cache the SAE's layer"
            )
        self._inputs = {
            "model": tensors_fingerprint(model.encoder_state()),
            "sae": tensors_fingerprint(sae.state_dict()),
            SETTINGS: sae_settings(sae),
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
                    f"the SAE ({sae.cfg.architecture()}) does not decode as latents @ W_dec + b_dec: "
                    f"{why_not_linear(sae)}"
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
        set_latents: NDArray[np.bool_] | None = None,
        alpha: float = 0.0,
    ) -> NDArray[np.float64]:
        """Logits while only some latents are left, and some are set to a value.

        Args:
            table: the latents table of the same model, SAE and layer.
            kept: (d_sae, n_groups), the latents that each intervention leaves.
            head: the concept of the head.
            error_term: add back what the SAE does not reconstruct.
            image_rows: (n,) rows of the table; each image is computed once.
            set_latents: (d_sae, n_groups), the latents that have the value alpha at every position; none is kept.
            alpha: that value.

        Returns:
            (n, n_groups, n_out) float64.

        Raises:
            InputError: a table of other inputs, masks of another shape or that overlap, an unknown head, or an image
                that is not in the cache.
        """
        self._check(table, head)
        image_rows = indices(image_rows, "image_rows", len(table.images))
        kept, set_latents = self._checked_masks(kept, set_latents)
        alpha = between(alpha, "alpha", -np.inf, np.inf)
        weight, bias = self.heads[head]
        images, image_of_row = np.unique(image_rows, return_inverse=True)
        numbers = [self.outputs.number_of(image_id) for image_id in table.images["image_id"].to_numpy()[images]]
        logits = np.empty((len(images), kept.shape[1], len(weight)))
        quick = len(images) * kept.shape[1] < _PASSES_WITHOUT_PROGRESS
        edits = Edits(kept, np.full(kept.shape[1], error_term), self._constant(set_latents, alpha))
        with evaluation(self._model, self.sae, device=self.device):
            for place, number in enumerate(
                progress(numbers, description="masked passes", unit="image", shown=not quick)
            ):
                read = self._head_inputs(number, edits).double()
                logits[place] = (read @ weight.T + bias).cpu().numpy()
        return logits[image_of_row]

    def logits_of_heads(
        self, table: LatentTable, edits: "Edits", image_rows: Sequence[int], heads: Sequence[str]
    ) -> dict[str, NDArray[np.float64]]:
        """The logits of several heads under the same edits: a pass gives what all of them read.

        Args:
            table: as for `logits`.
            edits: the edits; masks of the shape that `logits` takes.
            image_rows: (n,) rows of the table.
            heads: concepts of heads.

        Returns:
            (n, n_edits, n_out) float64 by head.

        Raises:
            InputError: as `logits`.
        """
        for head in heads:
            self._check(table, head)
        numbers = [self.outputs.number_of(image_id) for image_id in table.images["image_id"].to_numpy()[image_rows]]
        found: dict[str, list[NDArray[np.float64]]] = {head: [] for head in heads}
        with evaluation(self._model, self.sae, device=self.device):
            for number in numbers:
                read = self._head_inputs(number, edits).double()
                for head, logits in found.items():
                    weight, bias = self.heads[head]
                    logits.append((read @ weight.T + bias).cpu().numpy())
        return {head: np.stack(logits) for head, logits in found.items()}

    def seconds_of_a_pass(self, table: LatentTable, edits: "Edits", image_row: int) -> float:
        """How long a pass takes on this machine, with the edit before it; of one image with a few of the edits.

        Args:
            table: as for `logits`.
            edits: the edits; the first two batches that differ in the image are run, and the second is timed.
            image_row: row of the table.

        Raises:
            InputError: as `logits`.
        """
        number = self.outputs.number_of(table.images["image_id"].to_numpy()[image_row])
        before = self.n_passes
        with evaluation(self._model, self.sae, device=self.device), torch.inference_mode():
            raw = self.outputs.raw(number).to(self.device)
            value = self.rest.show(raw)
            codes = _encoded(self.sae, value)
            effective, _ = edits.distinct(codes.fired.cpu().numpy())
            took, began = 0.0, time.perf_counter()
            for found in islice(self._batches(raw, value, codes, edits, effective), 2):
                _ = next(iter(found.values())).cpu()  # waits for the device
                took, began = (time.perf_counter() - began) / len(found), time.perf_counter()
        self.n_passes = before
        return took

    def _checked_masks(
        self, kept: NDArray[np.bool_], set_latents: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        kept = np.asarray(kept)
        set_latents = np.zeros_like(kept) if set_latents is None else np.asarray(set_latents)
        d_sae = int(self.sae.cfg.d_sae)
        for name, mask in (("kept", kept), ("set_latents", set_latents)):
            if mask.dtype != np.bool_ or mask.ndim != 2 or mask.shape != (d_sae, kept.shape[1]):
                raise InputError(f"{name} is {mask.dtype} {mask.shape}: expected truth values ({d_sae}, n_groups)")
        if (kept & set_latents).any():
            raise InputError("a latent is both kept and set to a value: choose one")
        return kept, set_latents

    def _constant(self, set_latents: NDArray[np.bool_], alpha: float) -> torch.Tensor | None:
        """What the latents that are set add to every position, (n_groups, d_in); None where that is nothing."""
        if alpha == 0 or not set_latents.any():
            return None
        groups = torch.from_numpy(np.ascontiguousarray(set_latents.T)).to(self.device, self.sae.W_dec.dtype)
        constant: torch.Tensor = (alpha * groups @ self.sae.W_dec).detach()
        return constant

    def _check(self, table: LatentTable, head: str) -> None:
        if head not in self.heads:
            raise InputError(f"these passes have no head for {head!r}; they have {', '.join(self.heads)}")
        made_of = table.provenance["inputs"]
        same = {**{name: made_of.get(name) for name in self._inputs}, "head": made_of["heads"].get(head)}
        for name, fingerprint in {**self._inputs, "head": self._head_fingerprints[head]}.items():
            if same[name] != fingerprint and (name in made_of or name != SETTINGS):  # which older tables do not say
                raise InputError(
                    f"{table.folder} was made with another {name.replace('_', ' ').removesuffix('s')} than these "
                    "passes run; give the passes of the table's own model, SAE, layer and heads"
                )

    @torch.inference_mode()
    def _head_inputs(self, number: int, edits: "Edits") -> torch.Tensor:
        """What the classifier reads for one image under every edit, (n_edits, d)."""
        raw = self.outputs.raw(number).to(self.device)
        value = self.rest.show(raw)
        codes = _encoded(self.sae, value)
        effective, same_as = edits.distinct(codes.fired.cpu().numpy())
        found = {edit: self._nothing_left(raw, value) for edit, left in effective.items() if left is None}
        for batch in self._batches(raw, value, codes, edits, effective):
            found |= batch
        return torch.stack([found[edit] for edit in same_as])

    def _batches(
        self,
        raw: torch.Tensor,
        value: torch.Tensor,
        codes: "_Codes",
        edits: "Edits",
        effective: Mapping[int, NDArray[np.bool_] | None],
    ) -> Iterator[dict[int, torch.Tensor]]:
        """What the classifier reads, (d,) by edit, of the edits that leave anything, so many as are run together."""
        waiting = [(edit, left) for edit, left in effective.items() if left is not None]
        for start in range(0, len(waiting), self.masks_at_once):
            batch = waiting[start : start + self.masks_at_once]
            values = torch.stack([self._edited(codes, value, edits, edit, left) for edit, left in batch])
            yield dict(zip([edit for edit, _ in batch], self._run(raw, values), strict=True))

    def _edited(
        self, codes: "_Codes", value: torch.Tensor, edits: "Edits", edit: int, left: NDArray[np.bool_]
    ) -> torch.Tensor:
        """The layer's value (h, w, d_in) under one edit that leaves the latents (n_fired,) `left`."""
        mask = torch.from_numpy(left).to(self.device)
        edited = codes.without(~mask, value) if edits.error_term[edit] else codes.decoded(mask, self.sae)
        return edited if edits.constant is None else edited + edits.constant[edit].to(edited.dtype)

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


class Edits:
    """What is done to the latents of every image, an edit per column.

    Args:
        kept: (d_sae, n_edits) the latents that keep their value.
        error_term: (n_edits,) whether what the SAE does not reconstruct stays.
        constant: (n_edits, d_in) what is added at every position; None where that is nothing.
    """

    def __init__(
        self, kept: NDArray[np.bool_], error_term: NDArray[np.bool_], constant: torch.Tensor | None = None
    ) -> None:
        self.error_term, self.constant = error_term, constant
        self._kept = np.packbits(kept, axis=1)  # an eighth of the memory, of which thousands of edits take much
        self._beside = [bytes([one]) for one in error_term.tolist()]
        self._adds: NDArray[np.bool_] = np.zeros(len(error_term), dtype=np.bool_)
        if constant is not None:
            of_edits = constant.cpu().numpy()
            self._beside = [flag + row.tobytes() for flag, row in zip(self._beside, of_edits, strict=True)]
            self._adds = np.asarray(of_edits.any(axis=1))

    def distinct(self, fired: NDArray[np.integer]) -> tuple[dict[int, NDArray[np.bool_] | None], list[int]]:
        """The edits that differ in an image, of those that do the same there the first alone.

        Args:
            fired: (n_fired,) the latents that fire in the image.

        Returns:
            By the number of each such edit which of `fired` it leaves, or None where nothing is left but the decoder's
            bias; and for every edit the number of the one that does the same.
        """
        left = np.unpackbits(self._kept[fired], axis=1, count=len(self._beside)).T
        first_of: dict[bytes, int] = {}
        same_as = [
            first_of.setdefault(bits.tobytes() + self._beside[edit], edit)
            for edit, bits in enumerate(np.packbits(left, axis=1))
        ]
        is_empty = ~left.any(axis=1) & ~self._adds & ~self.error_term
        return {edit: None if is_empty[edit] else left[edit].astype(np.bool_) for edit in first_of.values()}, same_as


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

    def decoded(self, mask: torch.Tensor, sae: SAE[Any]) -> torch.Tensor:
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


def _encoded(sae: SAE[Any], value: torch.Tensor) -> _Codes:
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
