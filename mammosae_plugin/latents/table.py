"""The latents table: what an SAE says about every image, in a folder that any analysis reads without a network.

At the final map everything after the SAE is linear (decode, average over positions, linear head), so the mean of each
latent over positions is all that Table 1, Equations 2 to 4 and every k of Figure 2 need. At an inner layer the table
holds the same, and logits under the SAE come from running the rest of the network; see `masked_passes` for
interventions there. `encode_latents` passes over the images once. The format is described in `docs/latents-table.md`.
"""

__all__ = [
    "BOX_COLUMNS", "changed_file", "CODES", "ELEMENTS", "elements_beyond_the_first", "ELEMENTS_KEY", "elements_of",
    "ELEMENTS_OF_ROWS", "EvaluationRows", "FILES", "FINDINGS", "FORMAT_VERSION", "IMAGES", "LatentTable", "logit_error",
    "MOMENTS", "READABLE", "READOUT", "Readout", "ReadoutKind", "SETTINGS", "TABLE",
    "VOCABULARY",
]  # fmt: skip

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import load_file
from scipy import sparse

from mammosae_plugin.adapters.hook_points import GET_A_HEAD, NO_HEAD_OF_EXAMS
from mammosae_plugin.adapters.input_normalization import INPUT_NORMALIZATION
from mammosae_plugin.arguments import checked_arguments, index, indices, shown, text
from mammosae_plugin.checked_files import changed_files
from mammosae_plugin.datasets.concepts import Vocabulary
from mammosae_plugin.datasets.vindr import older_vocabulary
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import is_sealed, local_path, read_json, read_parquet
from mammosae_plugin.latents.peaks import MapKind, Peaks, map_groups_of, read_peaks
from mammosae_plugin.measures.statistics import NETWORK_ERROR
from mammosae_plugin.measures.units import EvaluationRows, EvaluationUnit, grouped_rows
from mammosae_plugin.shapes import Boxes, LatentMaps
from mammosae_plugin.shards import shard_paths, verify_shards

FORMAT_VERSION = 3
READABLE = (2, FORMAT_VERSION)  # format 2 said nothing of the files beside table.json, and its shards not their place

ELEMENTS = {
    **dict.fromkeys(("labels", "latents", "channels", "logits", "sums", "readout"), 1),
    **dict.fromkeys(("maps", "channel_maps", "gradcam"), 1),
}
_FIRST = dict(ELEMENTS)  # what tables hold that do not say so
PEAKS = "peaks"
ELEMENTS = {**_FIRST, PEAKS: 1}
"""What a table is made of, each with the version of its own form (`docs/latents-table.md`).

A new statistic is a new element, and one that is computed otherwise a new version of its element: tables without it
stay as they are, and only what reads it asks for encoding again.
"""
CODES = "codes"
ELEMENTS_OF_ROWS = {"labels": 1, CODES: 1, "sums": 1}
"""The same of a table of one vector per image, whose latents have one value in each image: no maximum beside a mean."""
_NEEDED = dict.fromkeys(("maps", "channel_maps", "gradcam", "boxes", PEAKS), "a map of positions") | {
    "channels": "the rows themselves beside their codes"
}
ELEMENTS_KEY = "elements"

ReadoutKind = Literal["linear", "network", "none"]

MOMENTS = ("sse", "sum", "sum_sq")  # sums over positions per feature
BOX_COLUMNS = ("xmin", "ymin", "xmax", "ymax")
FILES = "files"  # in table.json: the SHA-256 of the files beside it
SETTINGS = "sae_settings"  # among the inputs in table.json; tables of earlier versions lack them
VOCABULARY = "vocabulary"  # in table.json: the concepts; tables of earlier versions lack it
TABLE, IMAGES, FINDINGS, READOUT = "table.json", "images.parquet", "findings.parquet", "readout.safetensors"


@dataclass(frozen=True)
class Readout:
    """The linear map from mean latents to logits of one head.

    With z the mean over positions of the latents (d_sae,), W_dec the decoder (d_sae, d), w and c the head's weight
    (n_out, d) and bias: logit = offset + z @ weight, offset = b_dec @ w.T + c, weight = W_dec @ w.T.

    Attributes:
        offset: (n_out,) float64.
        weight: (d_sae, n_out) float64.
    """

    offset: np.ndarray
    weight: np.ndarray


class LatentTable:
    """A latents table on disk, read lazily; no model, image or network is needed.

    Args:
        folder: A folder that `encode_latents` wrote.
        header: What `table.json` will hold, given by `encode_latents` while the table is not complete.

    Attributes:
        images: One row per image (the row number is the image row used everywhere): image_id, patient_id, split,
            what else the dataset knows of images, and the class number of every concept.
        findings: One row per row of the annotation file: image_id, image_row, labels, xmin, ymin, xmax, ymax in pixels
            of the model's input (NaN without a box).
        vocabulary: The concepts that images are labelled with, by name.
        concepts: The names of those that are absent or present, and may have boxes.
        heads: The concepts whose classifier's logits the table holds.
        d_sae: Number of latents.
        d_in: Number of channels of the layer.
        hook_name: The layer: the full hook name at which the SAE reads.
        readout_kind: "linear" where the classifiers read the mean of the layer over positions, so that mean latents
            decide the logits; "network" where more of the network lies between; "none" where none is known of.
        gradcam_heads: The heads whose Grad-CAM maps were kept.
        grid: (h, w) of the layer's map.
        image_size: (H, W) of the images in pixels, which boxes are in and heatmaps are drawn at; (0, 0) where rows came
            without it.
        levels: Of nested SAEs the numbers of latents of each, rising: level i is the first `levels[i]` latents. Of
            others the number of latents alone.
        elements: What the table is made of, with the version of each.
        provenance: What made the table.

    Raises:
        InputError: The folder is not a complete latents table, or is of a newer format.
    """

    def __init__(self, folder: str | Path, *, header: dict[str, Any] | None = None) -> None:
        self.folder = local_path(folder)
        if header is None and not (self.folder / TABLE).exists():
            raise InputError(f"{self.folder} is not a complete latents table (no {TABLE}); run `mammosae encode` again")
        on_disk = header is None
        header = header or read_json(self.folder / TABLE)
        if header.get("format_version") not in READABLE:
            raise InputError(
                f"{self.folder} has latents-table format {header.get('format_version')}; this version reads format "
                f"{FORMAT_VERSION}, so install the one that wrote it or encode again"
            )
        if on_disk and header["format_version"] == FORMAT_VERSION and (changed := changed_file(self.folder, header)):
            raise InputError(
                f"{changed} was changed after it was written; run `mammosae encode` again with the same settings, "
                "which writes it anew"
            )
        named = (header["provenance"].get("sae") or {}).get("metadata", {}).get(INPUT_NORMALIZATION)
        if named not in (None, "none", header.get(INPUT_NORMALIZATION)):
            raise InputError(
                f"{self.folder} was made without the {INPUT_NORMALIZATION} {named!r} that its SAE wants, so its "
                "latents are not that SAE's; encode again, into another folder"
            )
        self.header: dict[str, Any] = header
        self.elements: dict[str, int] = elements_of(header)
        self.provenance: dict[str, Any] = header["provenance"]
        self.concepts: tuple[str, ...] = tuple(header["concepts"])
        self.vocabulary = _vocabulary(header)
        self.heads: tuple[str, ...] = tuple(header["heads"])
        self.d_sae: int = header["d_sae"]
        self.d_in: int = header["d_in"]
        self.hook_name: str = header["hook_name"]
        self.readout_kind: ReadoutKind = header["readout"]
        self.gradcam_heads: tuple[str, ...] = tuple(header["gradcam"])
        self.grid: tuple[int, int] = (header["grid"][0], header["grid"][1])
        self.image_size: tuple[int, int] = (header["image_size"][0], header["image_size"][1])
        self.splits: tuple[str, ...] = tuple(header["splits"])
        self.levels: tuple[int, ...] = tuple(header.get("levels", (self.d_sae,)))
        self._parts = [self.folder / split for split in self.splits]

    @property
    def is_of_rows(self) -> bool:
        """Whether it was made by `encode_rows`, of one vector per image: there are no maps, boxes and logits."""
        return CODES in self.elements

    def need(self, element: str) -> None:
        """See that an element can be read.

        Raises:
            InputError: The table was made before there was such an element, or holds it in another version.
        """
        version, known = self.elements.get(element), {**ELEMENTS, **ELEMENTS_OF_ROWS}[element]
        if version is None and self.is_of_rows:
            raise InputError(
                f"{self.folder} was made of rows, one vector per image, and so holds no {element}; what needs "
                f"{_NEEDED.get(element, 'a network')} reads a table that encode_latents makes of images"
            )
        if version is None or version < known:
            yet = f"when tables had no {element} of version {known} yet"
            how = f"with {PEAKS}=0" if element == PEAKS and self.header.get(PEAKS) == 0 else yet
            raise InputError(f"{self.folder} was made {how}; encode again, into another folder, to have them")
        if version > known:
            raise InputError(
                f"{self.folder} holds its {element} in version {version}; this version of mammosae-plugin reads "
                f"{known}, so install the one that wrote it"
            )

    def _concatenated(self, name: str) -> pd.DataFrame:
        self.need("labels")
        return pd.concat([read_parquet(part / name) for part in self._parts], ignore_index=True)

    @cached_property
    def images(self) -> pd.DataFrame:
        """One row per image."""
        return self._concatenated(IMAGES)

    @cached_property
    def findings(self) -> pd.DataFrame:
        """One row per row of the annotation file, with the image row that it belongs to."""
        frame = self._concatenated(FINDINGS)
        row_of_image = pd.Series(self.images.index, index=self.images["image_id"])
        frame.insert(1, "image_row", row_of_image.loc[frame["image_id"]].to_numpy())
        return frame

    @cached_property
    def _shards(self) -> list[Path]:
        """The shards, each compared once with its recorded SHA-256."""
        for part in self._parts if self.header["format_version"] == FORMAT_VERSION else []:
            verify_shards(part)
        return [path for part in self._parts for path in shard_paths(part)]

    @cached_property
    def _statistics(self) -> dict[str, Any]:
        names = ["indices", "values"] if self.is_of_rows else ["indices", "mean", "max"]
        names += [f"{kind}.{head}" for kind in ("logits", "logits_with_sae") for head in self.heads]
        columns: dict[str, list[np.ndarray]] = {}
        for path in self._shards:
            tensors = _read(path, ["indptr", *names])
            columns.setdefault("counts", []).append(np.diff(tensors["indptr"]))
            for name in names:
                columns.setdefault(name, []).append(tensors[name])
        return {name: np.concatenate(columns.pop(name)) for name in list(columns)}  # the pieces of one beside its whole

    def _csr(self, values: str) -> sparse.csr_array:
        self.need(CODES if self.is_of_rows else "latents")
        found, values = self._statistics, "values" if self.is_of_rows else values
        indptr = np.concatenate([[0], np.cumsum(found["counts"], dtype=np.int64)])
        shape = (len(indptr) - 1, self.d_sae)
        return sparse.csr_array((found[values], found["indices"], indptr), shape=shape)

    @cached_property
    def mean_latents(self) -> sparse.csr_array:
        """(n_images, d_sae) float32: each latent's mean over the positions of each image."""
        return self._csr("mean")

    @cached_property
    def max_latents(self) -> sparse.csr_array:
        """(n_images, d_sae) float32: each latent's maximum over the positions of each image.

        The largest value, not the largest amount: where an architecture has negative latents, one that fires but is
        nowhere positive has a maximum of 0 or below.
        """
        return self._csr("max")

    def codes(self, level: int | None = None) -> sparse.csr_array:
        """(n_images, width) float32: the maximum over positions of the latents of one level of a nested SAE.

        Args:
            level: The number of latents of the level, one of `levels`; None means all.

        Raises:
            InputError: There is no such level.
        """
        if level is not None and level not in self.levels:
            raise InputError(
                f"{self.folder} has no level of {shown(level)} latents; it has {', '.join(map(str, self.levels))}"
            )
        codes = self.max_latents
        return codes if level is None else codes[:, :level]

    @cached_property
    def mean_channels(self) -> np.ndarray:
        """(n_images, d_in) float32: the mean over positions of every channel of the layer itself, without the SAE."""
        self.need("channels")
        rows = (row for path in self._shards for row in _read(path, ["mean_channels"])["mean_channels"])
        return np.fromiter(rows, (np.float32, (self.d_in,)), len(self.images))  # a shard at a time beside the whole

    def _check_head(self, head: str) -> None:
        text(head, "head")
        if head not in self.heads:
            advice = NO_HEAD_OF_EXAMS if "views" in self.provenance.get("inputs", {}) else GET_A_HEAD
            hint = f": {advice}" if not self.heads and "logits" in self.elements else ""
            raise InputError(
                f"{self.folder} has no classifier for {head!r}; it has {', '.join(self.heads) or 'none'}{hint}"
            )

    def logits(self, head: str) -> np.ndarray:
        """(n_images, n_out) float64: the unmodified model's logits."""
        self._check_head(head)
        self.need("logits")
        return np.asarray(self._statistics[f"logits.{head}"], dtype=np.float64)

    def logits_with_sae(self, head: str) -> np.ndarray:
        """(n_images, n_out) float64: logits with the SAE's reconstruction in place of the layer's output."""
        self._check_head(head)
        self.need("logits")
        return np.asarray(self._statistics[f"logits_with_sae.{head}"], dtype=np.float64)

    def readout(self, head: str) -> Readout:
        """The linear map from mean latents to the head's logits.

        Raises:
            InputError: An unknown head, or a layer whose readout is not linear.
        """
        self._check_head(head)
        if self.readout_kind != "linear":
            raise InputError(
                f"{self.folder} was made at {self.hook_name}, where logits are not linear in the mean latents; "
                "run the rest of the network (mammosae_plugin.latents.masked_passes)"
            )
        self.need("readout")
        tensors = load_file(self.folder / READOUT)
        return Readout(tensors[f"offset.{head}"], tensors[f"weight.{head}"])

    def classes(self, concept: str) -> tuple[int, ...]:
        """The class numbers of a concept: (0, 1) for a finding, (0, 1, 2, 3) for a density of four classes.

        Raises:
            InputError: An unknown concept.
        """
        return tuple(range(self.vocabulary.named(concept, str(self.folder)).n_classes))

    def rows(self, concept: str, *, split: str, unit: str = "image") -> EvaluationRows:
        """The rows to evaluate `concept` on: those whose label is known.

        Args:
            concept: A label column of `images`.
            split: A split of the table.
            unit: "image" (an image has the label of any of its findings), "finding_row" (one row per row of the
                annotation file, as the released code evaluates: an image repeats, and can carry label 0 in one row and
                1 in another), or "breast", "exam" or "patient", which are made of several images (`measures.units` has
                the rules): their scores are the mean over the images, or "breast by maximum" the maximum.

        Raises:
            InputError: Unknown concept, split or unit, or images of which it is not known what they belong to.
        """
        found = self.vocabulary.named(concept, str(self.folder))
        self._check_split(split)
        counted = EvaluationUnit.named(unit)
        in_split = (self.images["split"] == split).to_numpy()
        if counted.has_several_images:
            return grouped_rows(self.images, found, chosen=in_split, unit=counted, where=str(self.folder))
        if unit == "image":
            image_rows = np.flatnonzero(in_split)
            labels = self.images[concept].to_numpy()[image_rows]
        else:
            chosen = self.findings[in_split[self.findings["image_row"].to_numpy()]]
            image_rows = chosen["image_row"].to_numpy()
            labels = chosen[concept].to_numpy()
        known = np.nan_to_num(labels.astype(np.float64), nan=-1) >= 0  # a missing label is missing, and not "absent"
        image_rows, labels = image_rows[known], labels[known]
        patients = self.images["patient_id"].to_numpy(dtype=object)[image_rows]
        return EvaluationRows(image_rows.astype(np.int64), labels.astype(np.int64), patients)

    def _check_split(self, split: str) -> None:
        text(split, "split")
        if split not in self.splits:
            raise InputError(f"{self.folder} has no split {split!r}; it has {', '.join(self.splits)}")

    def _checked_row(self, image_row: int) -> int:
        return index(image_row, "image_row", len(self.images))

    def live_latents(self, split: str = "training") -> np.ndarray:
        """int64 latents, ascending, that fire at any position of any image of the split.

        Raises:
            InputError: Unknown split.
        """
        self._check_split(split)
        image_rows = np.flatnonzero((self.images["split"] == split).to_numpy())
        return np.unique(self.mean_latents[image_rows].indices).astype(np.int64)

    @cached_property
    def _map_places(self) -> dict[int, tuple[Path, int, dict[str, np.ndarray]]]:
        """Of each image with maps: its shard, its place among the shard's, and what the maps there are of."""
        self.need("maps")
        places: dict[int, tuple[Path, int, dict[str, np.ndarray]]] = {}
        row = 0
        for path in self._shards:
            tensors = _read(path, ["indptr", "map_images", "map_latents", "map_channels"])
            for place, offset in enumerate(tensors["map_images"].tolist()):
                places[row + offset] = (path, place, tensors)
            row += len(tensors["indptr"]) - 1
        return places

    def map_latents(self, image_row: int) -> np.ndarray:
        """int64 latents whose maps over positions were kept for this image; empty where none were."""
        return self._kept_maps("map_latents", image_row)

    def map_channels(self, image_row: int) -> np.ndarray:
        """int64 channels of the layer whose maps were kept for this image; empty where none were."""
        return self._kept_maps("map_channels", image_row)

    def _kept_maps(self, name: str, image_row: int) -> np.ndarray:
        place = self._map_places.get(self._checked_row(image_row))
        return place[2][name] if place else np.zeros(0, dtype=np.int64)

    def maps(self, latents: Sequence[int] | np.ndarray, image_row: int) -> LatentMaps:
        """(len(latents), h, w) float32: the latents' activations over the positions of one image.

        Raises:
            InputError: The table did not keep the map of one of them for this image.
        """
        return self._chosen_maps("maps", "latent", self.map_latents(image_row), latents, image_row)

    def channel_maps(self, channels: Sequence[int] | np.ndarray, image_row: int) -> np.ndarray:
        """(len(channels), h, w) float32: channels of the layer itself over the positions of one image.

        Raises:
            InputError: The table did not keep the map of one of them for this image.
        """
        return self._chosen_maps("channel_maps", "channel", self.map_channels(image_row), channels, image_row)

    def _chosen_maps(
        self, name: str, what: str, kept: np.ndarray, wanted: Sequence[int] | np.ndarray, image_row: int
    ) -> np.ndarray:
        width = {"latent": self.d_sae, "channel": self.d_in}[what]
        self.need(name)
        numbers = indices(wanted, f"the {what}s", width).tolist()
        column_of = {int(number): column for column, number in enumerate(kept)}
        missing = [number for number in numbers if number not in column_of]
        if missing:
            raise InputError(
                f"{self.folder} keeps no map of {what} {missing[0]} for image row {image_row}; "
                f"encode again with it in map_{what}s"
            )
        if not numbers:
            return np.zeros((0, *self.grid), dtype=np.float32)
        return self._map_of_image(name, image_row)[[column_of[number] for number in numbers]]

    def gradcam(self, head: str, image_row: int) -> np.ndarray:
        """(h, w) float32, not negative: Grad-CAM of the head's logit at the layer, for one image.

        Raises:
            InputError: The table has no Grad-CAM maps of this head, or none for this image.
        """
        if head not in self.gradcam_heads:
            raise InputError(f"{self.folder} keeps no Grad-CAM of {head!r}; encode again with gradcam=True")
        self.need("gradcam")
        if self._checked_row(image_row) not in self._map_places:
            raise InputError(
                f"{self.folder} keeps no Grad-CAM for image row {image_row}, which has no box or is in another split"
            )
        return self._map_of_image(f"gradcam.{head}", image_row)

    def _map_of_image(self, name: str, image_row: int) -> np.ndarray:
        path, place, _ = self._map_places[int(image_row)]
        with safe_open(path, framework="numpy") as file:
            values: np.ndarray = file.get_slice(name)[place]
        return values

    def peaks(self, latents: Sequence[int] | np.ndarray, *, split: str = "test", images: Any = None) -> Peaks:
        """The strongest local maxima of latents' maps in all images of a split, those without a finding too.

        Given rows of `images`, only shards that hold one of them are read, with all of their images.

        Raises:
            InputError: The table keeps none (of an earlier version, or made with `peaks=0`), or an unknown split.
        """
        wanted = indices(latents, "the latents", self.d_sae, distinct=True)
        return self._peaks(("latents", "indices"), wanted, split, "", images)

    def channel_peaks(self, channels: Sequence[int] | np.ndarray, *, split: str = "test") -> Peaks:
        """The same of channels of the layer; InputError as `peaks`, or where `map_channels` lacked one of them."""
        wanted = indices(channels, "the channels", self.d_in, distinct=True)
        return self._peaks(("channels", "map_channels"), wanted, split, " with them in map_channels")

    def gradcam_peaks(self, head: str, *, split: str = "test") -> Peaks:
        """The same of a head's Grad-CAM maps; InputError as `peaks`, or where the split has none."""
        return self._peaks((f"gradcam.{head}", None), np.zeros(1, dtype=np.int64), split, " with gradcam=True")

    def group_peaks(self, name: str, *, split: str = "test") -> Peaks:
        """The same of a weighted sum of latents' maps; InputError as `peaks`, or where `map_groups` lacked its name."""
        return self._peaks((f"group.{name}", None), np.zeros(1, dtype=np.int64), split, " with it in map_groups")

    def map_groups(self, split: str = "test") -> dict[str, dict[int, float]]:
        """By name the weights of the latents in each sum whose peaks were kept in a split.

        Raises:
            InputError: Unknown split.
        """
        return map_groups_of(shards[0][0]) if (shards := self._shards_of(split)) else {}

    def _shards_of(self, split: str) -> list[tuple[Path, int]]:
        """The shards of a split, each with the image row that it begins with."""
        self._check_split(split)
        paths, counts = self._shards, [len(_read(path, ["indptr"])["indptr"]) - 1 for path in self._shards]
        first = np.cumsum([0, *counts]).tolist()
        return [(path, row) for path, row in zip(paths, first, strict=False) if path.parent == self.folder / split]

    def _peaks(self, of: MapKind, wanted: np.ndarray, split: str, hint: str, images: Any = None) -> Peaks:
        shards = self._shards_of(split)
        if images is not None:
            held = set(np.searchsorted([row for _, row in shards], images, side="right") - 1)
            shards = [shard for number, shard in enumerate(shards) if number in held]
        self.need(PEAKS)
        try:
            return read_peaks(shards, of, wanted, self.grid, self.image_size)
        except KeyError as error:
            what = of[0] if of[1] is None else f"{of[0].removesuffix('s')} {error.args[0]}"
            raise InputError(
                f"{self.folder} keeps no peaks of {what} in split {split}; encode again, into another folder,{hint}"
            ) from error

    def boxes(self, image_row: int, concept: str) -> Boxes:
        """(n, 4) float32 xyxy: the concept's boxes in the image, in pixels of the model's input.

        Raises:
            InputError: No concept that can have boxes, or a table of rows, which have no positions.
        """
        if self.is_of_rows:
            self.need("maps")
        text(concept, "the concept")
        if concept not in self.concepts:
            raise InputError(f"{self.folder} has no boxes of {concept!r}; it has those of {', '.join(self.concepts)}")
        rows = self._findings_of_image.get(self._checked_row(image_row))
        if rows is None:
            return np.zeros((0, 4), dtype=np.float32)
        chosen = self.findings.loc[rows]
        boxes = chosen.loc[chosen[concept] == 1, list(BOX_COLUMNS)].dropna()
        return np.asarray(boxes, dtype=np.float32)

    @cached_property
    def _findings_of_image(self) -> dict[Any, Any]:
        return dict(self.findings.groupby("image_row").groups)

    def reconstruction_sums(self, split: str) -> dict[str, Any]:
        """Sums over all positions of the split's images, for explained variance and L0.

        Returns:
            n_positions; l0 (number of active latents summed over positions); and per feature dimension, (d,) float64:
            sse (squared error of the reconstruction), sum and sum_sq (of the model's own features).
        """
        self._check_split(split)
        self.need("sums")
        totals: dict[str, Any] = {}
        for path in (path for path in self._shards if path.parent == self.folder / split):
            for name, value in _read(path, [f"total.{name}" for name in ("n_positions", "l0", *MOMENTS)]).items():
                key = name.removeprefix("total.")
                totals[key] = totals.get(key, 0) + value
        return {**totals, "n_positions": int(totals["n_positions"]), "l0": int(totals["l0"])}

    def level_sums(self, split: str) -> dict[int, dict[str, Any]]:
        """`reconstruction_sums` of each level of a nested SAE, by its number of latents; of a table of rows.

        Raises:
            InputError: Unknown split, or a table of maps, which knows the whole SAE's alone.
        """
        sums = self.reconstruction_sums(split)
        if not self.is_of_rows:
            raise InputError(f"{self.folder} was made of maps and sums up no levels; encode_rows does, of rows")
        shared = {name: sums[name] for name in ("n_positions", "sum", "sum_sq")}
        paths = [path for path in self._shards if path.parent == self.folder / split]
        found = [_read(path, ["total.level_l0", "total.level_sse"]) for path in paths]
        l0 = np.sum([tensors["total.level_l0"] for tensors in found], axis=0)
        sse = np.sum([tensors["total.level_sse"] for tensors in found], axis=0)
        return {
            width: {**shared, "l0": int(l0[number]), "sse": sse[number]} for number, width in enumerate(self.levels)
        }


def _vocabulary(header: Mapping[str, Any]) -> Vocabulary:
    """The concepts that a header describes; an older one only names its findings, which are VinDr-Mammo's."""
    if VOCABULARY in header:
        return Vocabulary.of_json(header[VOCABULARY])
    return older_vocabulary(header["concepts"])


def _read(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Some tensors of a shard; the maps beside them are not read."""
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in names}


def elements_of(header: Mapping[str, Any]) -> dict[str, int]:
    """What a table is made of, with the version of each; a header of before there were elements does not say so."""
    return dict(header.get(ELEMENTS_KEY, _FIRST))


def elements_beyond_the_first(elements: Mapping[str, int]) -> dict[str, int]:
    """Those that not every table has, as plans name them: what was made by an earlier version is by the same plan."""
    return {name: version for name, version in elements.items() if _FIRST.get(name) != version}


def changed_file(folder: Path, header: Mapping[str, Any]) -> Path | None:
    """The first file of a table that is not what was written."""
    if not is_sealed(header) or FILES not in header:
        return folder / TABLE
    return next((folder / name for name in changed_files(folder, header[FILES])), None)


@checked_arguments
def logit_error(table: LatentTable, head: str) -> float:
    """How far rounding can move a logit of a latents table: `NETWORK_ERROR` of the largest sum of what it is made of.

    Args:
        table: the latents table.
        head: a concept that has a head.
    """
    sizes = [np.abs(table.logits(head)), np.abs(table.logits_with_sae(head))]
    if table.readout_kind == "linear":
        readout = table.readout(head)
        sizes.append(np.abs(readout.offset) + abs(table.mean_latents) @ np.abs(readout.weight))
    return NETWORK_ERROR * float(max((size.max() for size in sizes if size.size), default=0.0))
