"""Interventions of many analyses at an inner layer, run at once and kept: each image and mask once for all of them.

A mask does the same whatever concept it is asked for, and a pass under it gives what every head on the encoder reads.
So analyses are asked first for the masks that they will want (`AskedMasks`); all of these are run together, in a folder
of shards that a killed run goes on with (`KeptPasses`), and the analyses then read their answers.
"""

__all__ = ["AskedMasks", "KeptPasses"]

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sha256_of_json
from mammosae_plugin.latents.masked_passes import Edits, MaskedPasses
from mammosae_plugin.latents.table import LatentTable
from mammosae_plugin.provenance import plain
from mammosae_plugin.shards import is_done, run_shards, shard_name, shard_paths

FORMAT_VERSION = 1
_PASSES_PER_SHARD = 1024  # what a killed run loses at most, unless an image alone has more
_COUNTED = 64  # images from which the number of passes is told

_Key = tuple[bytes, bool]


class _AskedEnough(Exception):
    """Ends an analysis that was only asked for its masks."""


class AskedMasks:
    """The masks that analyses will ask for, each once, whatever concept and how many analyses ask for it.

    ```python
    asked = AskedMasks(table)
    for concept, ranking in rankings.items():
        asked.by(lambda passes: sweep(table, ranking, concept=concept, passes=passes))
    passes = KeptPasses("kept", asked, lambda: MaskedPasses(model, sae, outputs, heads))
    sweep(table, rankings["Mass"], concept="Mass", passes=passes)
    ```

    Args:
        table: The latents table that the analyses read.

    Attributes:
        n_asked: How many masks were asked for, those that are equal counted each time.
    """

    def __init__(self, table: LatentTable) -> None:
        self.table = table
        self.n_asked = 0
        self._number_of: dict[_Key, int] = {}
        self._masks: list[NDArray[np.uint8]] = []
        self._of_head: dict[str, set[int]] = {}
        self._rows: dict[str, set[int]] = {}

    def by(self, analysis: Callable[["AskedMasks"], Any]) -> None:
        """Take down what an analysis asks for, which is given this object as its `passes` and goes no further.

        Only its first question is heard, as that of the analyses here is their only one; what else one may ask
        `KeptPasses` has run when it is asked.
        """
        with suppress(_AskedEnough):
            analysis(self)

    def logits(
        self,
        _table: LatentTable,
        kept: NDArray[np.bool_],
        *,
        head: str,
        error_term: bool,
        image_rows: NDArray[np.int64],
        set_latents: NDArray[np.bool_] | None = None,
        alpha: float = 0.0,
    ) -> NDArray[np.float64]:
        """Take the masks down and end the analysis; masks that set latents to a value are not run ahead."""
        if set_latents is None and not alpha:
            self.n_asked += kept.shape[1]
            for key, bits in _named(kept, error_term):
                number = self._number_of.setdefault(key, len(self._number_of))
                if number == len(self._masks):
                    self._masks.append(bits)
                self._of_head.setdefault(head, set()).add(number)
            self._rows.setdefault(head, set()).update(np.asarray(image_rows).tolist())
        raise _AskedEnough

    @property
    def n_masks(self) -> int:
        """How many of the masks differ."""
        return len(self._masks)

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that are asked about."""
        return tuple(sorted(self._of_head))

    @property
    def image_rows(self) -> list[int]:
        """The rows of the table that are asked about, rising."""
        return sorted(set().union(*self._rows.values()))

    def keys(self, head: str) -> list[_Key]:
        """What names the masks of a head, in the order of their answers."""
        keys = list(self._number_of)
        return [keys[number] for number in sorted(self._of_head[head])]

    def heads_at(self, row: int) -> tuple[str, ...]:
        """The heads that are asked about in an image."""
        return tuple(head for head in self.heads if row in self._rows[head])

    def edits(self, heads: Sequence[str]) -> tuple[Edits, dict[str, NDArray[np.int64]]]:
        """The edits that some heads ask for, and where each head's are among them."""
        numbers = sorted(set().union(*(self._of_head[head] for head in heads)))
        packed = np.stack([self._masks[number] for number in numbers])
        kept = np.unpackbits(packed, axis=1, count=self.table.d_sae).astype(np.bool_).T
        keys = list(self._number_of)
        edits = Edits(kept, np.array([keys[number][1] for number in numbers]))
        return edits, {head: np.searchsorted(numbers, sorted(self._of_head[head])) for head in heads}

    def estimate(self, rows: Sequence[int]) -> int:
        """How many passes some images take, about: as `count` of a few of them, spread over all."""
        some = rows[:: max(1, len(rows) // _COUNTED)]
        return round(self.count(some) * len(rows) / len(some)) if some else 0

    def count(self, rows: Sequence[int]) -> int:
        """How many passes some images take, by the latents that fire there."""
        fires, n_passes = self.table.mean_latents, 0
        edits_of = {heads: self.edits(heads)[0] for heads in {self.heads_at(row) for row in rows}}
        for row in rows:
            fired = fires.indices[fires.indptr[row] : fires.indptr[row + 1]]
            distinct, _ = edits_of[self.heads_at(row)].distinct(fired)
            n_passes += sum(left is not None for left in distinct.values())
        return n_passes


class KeptPasses:
    """The answers to `AskedMasks`, run once and kept in a folder; the `passes` of the analyses that asked.

    What nobody asked for ahead is run when it is asked for.

    Args:
        folder: Where the answers are kept; a killed run is made again and goes on.
        asked: The masks.
        passes: Makes what runs them; it is called where something must be run, and what it makes is not kept here.

    Attributes:
        n_passes: Passes that were run here.

    Raises:
        InputError: As `MaskedPasses.logits`.
    """

    def __init__(self, folder: str | Path, asked: AskedMasks, passes: Callable[[], MaskedPasses]) -> None:
        self.folder, self.asked, self._passes = Path(folder), asked, passes
        self.n_passes = 0
        ids = asked.table.images["image_id"].to_numpy(dtype=object)
        self._row_of = {str(ids[row]): place for place, row in enumerate(asked.image_rows)}
        if asked.n_masks:
            self._run()

    @staticmethod
    def plan(asked: AskedMasks) -> dict[str, Any]:
        """Everything on which the answers depend."""
        ids = asked.table.images["image_id"].to_numpy(dtype=object)
        return {
            "format_version": FORMAT_VERSION,
            "table": sha256_of_json(plain(asked.table.header)),
            "masks": {
                head: sha256(b"".join(name + bytes([error]) for name, error in asked.keys(head))).hexdigest()
                for head in asked.heads
            },
            "ids_sha256": {
                head: sha256_of_json([ids[row] for row in asked.image_rows if head in asked.heads_at(row)])
                for head in asked.heads
            },
        }

    @staticmethod
    def left(folder: Path, asked: AskedMasks) -> list[int]:
        """The rows of the table on whose images the masks are still to be run."""
        rows = asked.image_rows
        if not asked.n_masks or is_done(folder):
            return []
        size = _images_per_shard(asked)
        there = [(folder / shard_name(number)).exists() for number in range(-(-len(rows) // size))]
        return [row for place, row in enumerate(rows) if not there[place // size]]

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
        """As `MaskedPasses.logits`: from the answers, where all of this was asked."""
        places = [self._places.get(head, {}).get(key) for key, _ in _named(kept, error_term)]
        ids = table.images["image_id"].to_numpy(dtype=object)[np.asarray(image_rows)]
        rows = [self._row_of.get(str(image_id)) for image_id in ids]
        is_plain = set_latents is None and not alpha
        if is_plain and table.folder == self.asked.table.folder and None not in places and None not in rows:
            found: NDArray[np.float64] = self._answers[head][np.ix_(rows, places)]  # type: ignore[arg-type]
            if np.isfinite(found).all():  # of an image without a label of the concept nothing was asked
                return found
        passes = self._passes()
        before = passes.n_passes
        answer = passes.logits(
            table, kept, head=head, error_term=error_term, image_rows=image_rows, set_latents=set_latents, alpha=alpha
        )
        self.n_passes += passes.n_passes - before
        return answer

    @cached_property
    def _places(self) -> dict[str, dict[_Key, int]]:
        return {head: {key: place for place, key in enumerate(self.asked.keys(head))} for head in self.asked.heads}

    @cached_property
    def _answers(self) -> dict[str, NDArray[np.float64]]:
        shards = [load_file(path) for path in shard_paths(self.folder)]
        return {head: np.concatenate([shard[head] for shard in shards]) for head in self.asked.heads}

    def _run(self) -> None:
        rows = self.asked.image_rows
        made: list[MaskedPasses] = []

        def passes() -> MaskedPasses:
            if not made:
                made.append(self._passes())
            return made[0]

        sizes = {head: len(self._places[head]) for head in self._places}
        edits = {heads: self.asked.edits(heads) for heads in {self.asked.heads_at(row) for row in rows}}

        def compute(items: range) -> dict[str, torch.Tensor]:
            network, answers = passes(), {}
            for head, n in sizes.items():
                answers[head] = np.full((len(items), n, len(network.heads[head][0])), np.nan)
            for heads, some in groupby(items, lambda item: self.asked.heads_at(rows[item])):
                own, where = edits[heads]
                places = list(some)
                found = network.logits_of_heads(self.asked.table, own, [rows[item] for item in places], heads)
                for head, logits in found.items():
                    answers[head][np.array(places) - items.start] = logits[:, where[head]]
            return {head: torch.from_numpy(logits) for head, logits in answers.items()}

        size = _images_per_shard(self.asked)
        run_shards(self.folder, self.plan(self.asked), len(rows), size, compute, description="masked passes")
        self.n_passes += made[0].n_passes if made else 0


def _images_per_shard(asked: AskedMasks) -> int:
    return max(1, _PASSES_PER_SHARD // asked.n_masks)


def _named(kept: NDArray[np.bool_], error_term: bool) -> list[tuple[_Key, NDArray[np.uint8]]]:
    """What names each mask of (d_sae, n_masks), and its bits."""
    kept = np.asarray(kept)
    if kept.dtype != np.bool_ or kept.ndim != 2:
        raise InputError(f"kept is {kept.dtype} {kept.shape}: expected truth values (d_sae, n_groups)")
    packed = np.packbits(kept, axis=0).T
    return [((sha256(bits.tobytes()).digest(), error_term), np.ascontiguousarray(bits)) for bits in packed]
