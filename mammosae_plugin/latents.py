"""The latents table: what an SAE says about every image, in a folder that any analysis reads without a network.

At the final map everything after the SAE is linear (decode, average over positions, linear head), so the mean of each
latent over positions is all that Table 1, Equations 2 to 4 and every k of Figure 2 need. `encode_latents` therefore
passes over the images once. The format is described in `docs/latents-table.md`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from scipy import sparse
from torch import nn

from mammosae_plugin.activations import capture, image_batches
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.datasets import MammogramDataset, n_classes_of
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import (
    read_json,
    read_parquet,
    sha256_of_json,
    write_json,
    write_parquet,
    write_safetensors,
)
from mammosae_plugin.provenance import environment, package_versions, plain, tensors_fingerprint
from mammosae_plugin.shards import run_shards, shard_paths

FORMAT_VERSION = 1
POSITIONS_AT_ONCE = 512  # rows of latents in memory: 512 x 16384 float32 is 34 MB

BOX_COLUMNS = ("xmin", "ymin", "xmax", "ymax")
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


@dataclass(frozen=True)
class EvaluationRows:
    """The rows that a metric is computed over.

    Attributes:
        image_rows: (n,) int64, rows of `LatentTable.images`; an image repeats under unit "finding_row".
        labels: (n,) int64, the class of each row.
        patient_ids: (n,) the patient of each row, for resampling by patient.
    """

    image_rows: np.ndarray
    labels: np.ndarray
    patient_ids: np.ndarray


class LatentTable:
    """A latents table on disk, read lazily; no model, image or network is needed.

    Args:
        folder: A folder that `encode_latents` wrote.
        header: What `table.json` will hold, given by `encode_latents` while the table is not complete.

    Attributes:
        images: One row per image (the row number is the image row used everywhere): image_id, patient_id, split,
            laterality, view, density, birads, and a 0/1 column per concept.
        findings: One row per row of the annotation file: image_id, image_row, labels, xmin, ymin, xmax, ymax in pixels
            of the model's input (NaN without a box).
        concepts: The findings that have a column.
        heads: The concepts whose classifier's logits the table holds.
        d_sae: Number of latents.
        grid: (h, w) of the feature map.
        image_size: (H, W) of the model's input in pixels.
        provenance: What made the table.

    Raises:
        InputError: The folder is not a complete latents table, or is of a newer format.
    """

    def __init__(self, folder: str | Path, *, header: dict[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        if header is None and not (self.folder / TABLE).exists():
            raise InputError(f"{self.folder} is not a complete latents table (no {TABLE}); run `mammosae encode` again")
        header = header or read_json(self.folder / TABLE)
        if header.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{self.folder} has latents-table format {header.get('format_version')}; this version reads format "
                f"{FORMAT_VERSION}, so install the one that wrote it or encode again"
            )
        self.header: dict[str, Any] = header
        self.provenance: dict[str, Any] = header["provenance"]
        self.concepts: tuple[str, ...] = tuple(header["concepts"])
        self.heads: tuple[str, ...] = tuple(header["heads"])
        self.d_sae: int = header["d_sae"]
        self.grid: tuple[int, int] = (header["grid"][0], header["grid"][1])
        self.image_size: tuple[int, int] = (header["image_size"][0], header["image_size"][1])
        self.splits: tuple[str, ...] = tuple(header["splits"])
        self._parts = [self.folder / split for split in self.splits]

    def _concatenated(self, name: str) -> pd.DataFrame:
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

    def _shards(self) -> list[Path]:
        return [path for part in self._parts for path in shard_paths(part)]

    @cached_property
    def _statistics(self) -> dict[str, Any]:
        columns: dict[str, list[np.ndarray]] = {}
        for path in self._shards():
            tensors = load_file(path)
            counts = np.diff(tensors["indptr"].numpy())
            for name in ("indices", "mean", "max"):
                columns.setdefault(name, []).append(tensors[name].numpy())
            columns.setdefault("counts", []).append(counts)
            for head in self.heads:
                for kind in ("logits", "logits_with_sae"):
                    columns.setdefault(f"{kind}.{head}", []).append(tensors[f"{kind}.{head}"].numpy())
        return {name: np.concatenate(pieces) for name, pieces in columns.items()}

    def _csr(self, values: str) -> sparse.csr_array:
        found = self._statistics
        indptr = np.concatenate([[0], np.cumsum(found["counts"], dtype=np.int64)])
        shape = (len(indptr) - 1, self.d_sae)
        return sparse.csr_array((found[values], found["indices"], indptr), shape=shape)

    @cached_property
    def mean_latents(self) -> sparse.csr_array:
        """(n_images, d_sae) float32: each latent's mean over the positions of each image."""
        return self._csr("mean")

    @cached_property
    def max_latents(self) -> sparse.csr_array:
        """(n_images, d_sae) float32: each latent's maximum over the positions of each image."""
        return self._csr("max")

    def _check_head(self, head: str) -> None:
        if head not in self.heads:
            raise InputError(f"{self.folder} has no classifier for {head!r}; it has {', '.join(self.heads)}")

    def logits(self, head: str) -> np.ndarray:
        """(n_images, n_out) float64: the unmodified model's logits."""
        self._check_head(head)
        return np.asarray(self._statistics[f"logits.{head}"], dtype=np.float64)

    def logits_with_sae(self, head: str) -> np.ndarray:
        """(n_images, n_out) float64: logits with the SAE's reconstruction in place of the map."""
        self._check_head(head)
        return np.asarray(self._statistics[f"logits_with_sae.{head}"], dtype=np.float64)

    def readout(self, head: str) -> Readout:
        """The linear map from mean latents to the head's logits."""
        self._check_head(head)
        tensors = load_file(self.folder / READOUT)
        return Readout(tensors[f"offset.{head}"].numpy(), tensors[f"weight.{head}"].numpy())

    def classes(self, concept: str) -> tuple[int, ...]:
        """The class numbers of a concept: (0, 1) for a finding, (0, 1, 2, 3) for density, (0, ..., 4) for birads."""
        return tuple(range(n_classes_of(concept)))

    def rows(self, concept: str, *, split: str, unit: str = "image") -> EvaluationRows:
        """The rows to evaluate `concept` on.

        Args:
            concept: A label column of `images`.
            split: A split of the table.
            unit: "image" (an image has the label of any of its findings) or "finding_row" (one row per row of the
                annotation file, as the released code evaluates: an image repeats, and can carry label 0 in one row and
                1 in another).

        Raises:
            InputError: Unknown concept, split or unit.
        """
        if concept not in self.images.columns:
            raise InputError(
                f"{self.folder} has no labels for {concept!r}; it has {', '.join(self.concepts)}, density, birads"
            )
        if split not in self.splits:
            raise InputError(f"{self.folder} has no split {split!r}; it has {', '.join(self.splits)}")
        if unit not in ("image", "finding_row"):
            raise InputError(f"unit {unit!r} is neither 'image' nor 'finding_row'")
        in_split = (self.images["split"] == split).to_numpy()
        if unit == "image":
            image_rows = np.flatnonzero(in_split)
            labels = self.images[concept].to_numpy()[image_rows]
        else:
            chosen = self.findings[in_split[self.findings["image_row"].to_numpy()]]
            image_rows = chosen["image_row"].to_numpy()
            labels = chosen[concept].to_numpy()
        patients = self.images["patient_id"].to_numpy(dtype=object)[image_rows]
        return EvaluationRows(image_rows.astype(np.int64), labels.astype(np.int64), patients)

    def live_latents(self, split: str = "training") -> np.ndarray:
        """int64 latents, ascending, that fire at any position of any image of the split."""
        image_rows = np.flatnonzero((self.images["split"] == split).to_numpy())
        return np.unique(self.mean_latents[image_rows].indices).astype(np.int64)

    @cached_property
    def _map_places(self) -> dict[int, tuple[Path, int, np.ndarray]]:
        places: dict[int, tuple[Path, int, np.ndarray]] = {}
        row = 0
        for path in self._shards():
            tensors = load_file(path)
            kept = tensors["map_images"].numpy()
            for place, offset in enumerate(kept):
                places[row + int(offset)] = (path, place, tensors["map_latents"].numpy())
            row += len(tensors["indptr"]) - 1
        return places

    def map_latents(self, image_row: int) -> np.ndarray:
        """int64 latents whose maps over positions were kept for this image; empty where none were."""
        place = self._map_places.get(int(image_row))
        return place[2].astype(np.int64) if place else np.zeros(0, dtype=np.int64)

    def maps(self, latents: Sequence[int] | np.ndarray, image_row: int) -> np.ndarray:
        """(len(latents), h, w) float32: the latents' activations over the positions of one image.

        Raises:
            InputError: The table did not keep the map of one of them for this image.
        """
        kept = self.map_latents(image_row)
        column_of = {int(latent): column for column, latent in enumerate(kept)}
        missing = [int(latent) for latent in latents if int(latent) not in column_of]
        if missing:
            raise InputError(
                f"{self.folder} keeps no map of latent {missing[0]} for image row {image_row}; "
                "encode again with it in map_latents"
            )
        path, place, _ = self._map_places[int(image_row)]
        with safe_open(path, framework="numpy") as file:
            maps: np.ndarray = file.get_slice("maps")[place]
        return maps[[column_of[int(latent)] for latent in latents]]

    def boxes(self, image_row: int, concept: str) -> np.ndarray:
        """(n, 4) float32 xyxy: the concept's boxes in the image, in pixels of the model's input."""
        rows = self._findings_of_image.get(int(image_row))
        if rows is None:
            return np.zeros((0, 4), dtype=np.float32)
        chosen = self.findings.loc[rows]
        boxes = chosen.loc[chosen[concept] == 1, list(BOX_COLUMNS)].dropna()
        found: np.ndarray = boxes.to_numpy(dtype=np.float32)
        return found

    @cached_property
    def _findings_of_image(self) -> dict[Any, Any]:
        return dict(self.findings.groupby("image_row").groups)

    def reconstruction_sums(self, split: str) -> dict[str, Any]:
        """Sums over all positions of the split's images, for explained variance and L0.

        Returns:
            n_positions; l0 (number of active latents summed over positions); and per feature dimension, (d,) float64:
            sse (squared error of the reconstruction), sum and sum_sq (of the model's own features).
        """
        totals: dict[str, Any] = {}
        for path in shard_paths(self.folder / split):
            tensors = load_file(path)
            for name in ("n_positions", "l0", "sse", "sum", "sum_sq"):
                value = tensors[f"total.{name}"].numpy()
                totals[name] = totals.get(name, 0) + value
        return {**totals, "n_positions": int(totals["n_positions"]), "l0": int(totals["l0"])}


def final_hook_name(model: HookedVisionModel) -> str:
    """The hook point of the final map, after which there are only the average over positions and the linear head."""
    return model.resolve_hook_name("bn2")


def encode_latents(
    model: HookedVisionModel,
    sae: Any,
    dataset: MammogramDataset,
    folder: str | Path,
    *,
    heads: Mapping[str, nn.Linear],
    map_latents: Sequence[int] | Callable[[LatentTable], Sequence[int]] = (),
    map_splits: Sequence[str] = ("test",),
    device: str = "cpu",
    batch_size: int = 1,
    shard_size: int = 64,
    num_workers: int = 0,
) -> LatentTable:
    """Encode every image once and write the latents table.

    The splits are encoded one after the other, "training" first. Memory does not grow with the number of images. A
    killed call is simply made again: whole shards are kept, and the table is the same as an undisturbed one, byte for
    byte.

    Args:
        model: The hookable model; its final map (B, h, w, d) is encoded.
        sae: A SAELens SAE of width d whose metadata names the final map's hook point.
        dataset: Images with labels and boxes, all splits.
        folder: Where the table goes.
        heads: The linear heads to record logits of, by concept. They read the average of the final map over positions,
            so that several classifiers on one encoder share one pass.
        map_latents: Latents whose maps over positions are kept for images that have a box; or a function that names
            them when the splits before are in the table (rank on "training", keep the best for "test").
        map_splits: Splits whose images keep maps.
        device: Where the network and the SAE run.
        batch_size: Images per forward pass.
        shard_size: Images per shard.
        num_workers: Processes that read images beside the network.

    Raises:
        InputError: The SAE does not fit the final map, a head does not fit it, or the folder holds another table.
    """
    folder = Path(folder)
    hook_name = final_hook_name(model)
    _check_fit(model, hook_name, sae, heads)
    model.to(device)
    sae.to(device)
    splits = sorted(dataset.images["split"].unique(), key=lambda name: (name != "training", name))
    fixed = {
        "format_version": FORMAT_VERSION,
        "model": tensors_fingerprint(model.state_dict()),
        "sae": tensors_fingerprint(sae.state_dict()),
        "heads": {concept: tensors_fingerprint(head.state_dict()) for concept, head in heads.items()},
        "dataset": dataset.fingerprint,
        "image_size": list(dataset.image_size),
        "hook_name": hook_name,
    }
    header = {
        "format_version": FORMAT_VERSION,
        "splits": splits,
        "concepts": list(dataset.concepts),
        "heads": list(heads),
        "d_sae": int(sae.cfg.d_sae),
        "d_in": int(sae.cfg.d_in),
        "grid": list(_grid(model, hook_name, dataset.image_size, device)),
        "image_size": list(dataset.image_size),
        "provenance": {
            "inputs": fixed,
            "dataset": dataset.name,
            "model": plain(getattr(model.model, "source", {})),
            "sae": plain(sae.cfg.to_dict()),
            "packages": package_versions(),
            **environment(),
        },
    }
    encoder = _Encoder(model, sae, hook_name, heads, device)
    for number, split in enumerate(splits):
        part = dataset.select(split=split)
        kept: Sequence[int] = ()
        if split in map_splits:
            before = LatentTable(folder, header={**header, "splits": splits[:number]})
            kept = map_latents(before) if callable(map_latents) else map_latents
        kept = sorted({int(latent) for latent in kept})
        plan = {
            **fixed,
            "split": split,
            "images": sha256_of_json(part.images["image_id"].tolist()),
            "map_latents": kept,
            "batch_size": batch_size,
        }
        compute = partial(encoder.encode, part, map_latents=kept, batch_size=batch_size, num_workers=num_workers)
        run_shards(folder / split, plan, len(part), shard_size, compute, description=f"encode {split}")
        for name, frame in ((IMAGES, part.images), (FINDINGS, part.findings)):
            if not (folder / split / name).exists():
                write_parquet(folder / split / name, frame)
    if not (folder / TABLE).exists():
        _write_readout(folder / READOUT, sae, heads)
        write_json(folder / TABLE, header)  # last: a folder with it is complete
    return LatentTable(folder)


def _check_fit(model: HookedVisionModel, hook_name: str, sae: Any, heads: Mapping[str, nn.Linear]) -> None:
    d_in = model.hook_shapes[hook_name][-1]
    named = sae.cfg.metadata.hook_name
    if named is not None and model.resolve_hook_name(named) != hook_name:
        raise InputError(
            f"the SAE belongs to {named}, but the latents table is made at the final map, {hook_name}; "
            "train an SAE there"
        )
    if sae.cfg.d_in != d_in:
        raise InputError(
            f"the SAE takes vectors of width {sae.cfg.d_in}, but {hook_name} of this model has width {d_in}; "
            "use an SAE that was trained on this architecture"
        )
    with torch.inference_mode():
        rows = torch.randn(8, d_in, generator=torch.Generator().manual_seed(0)).to(sae.device, sae.dtype)
        latents = sae.encode(rows)
        linear = latents @ sae.W_dec + sae.b_dec
        if not torch.allclose(sae.decode(latents), linear, rtol=1e-3, atol=1e-3 * float(linear.abs().max())):
            raise InputError(
                f"the SAE ({sae.cfg.architecture()}) does not decode as latents @ W_dec + b_dec, on which the table "
                "relies; fold its normalisation or its decoder norms into the weights first"
            )
    for concept, head in heads.items():
        if head.in_features != d_in:
            raise InputError(
                f"the classifier for {concept} reads {head.in_features} features, the final map has {d_in}"
            )


def _grid(model: HookedVisionModel, hook_name: str, image_size: tuple[int, int], device: str) -> tuple[int, int]:
    """(h, w) of the final map for inputs of `image_size`, from one blank image."""
    with torch.inference_mode():
        rows = capture(model, hook_name, torch.zeros(1, 3, *image_size, device=device))
    return int(rows.shape[1]), int(rows.shape[2])


def _write_readout(path: Path, sae: Any, heads: Mapping[str, nn.Linear]) -> None:
    decoder = sae.W_dec.detach().double().cpu()
    bias = sae.b_dec.detach().double().cpu()
    tensors = {}
    for concept, head in heads.items():
        weight = head.weight.detach().double().cpu()
        tensors[f"weight.{concept}"] = decoder @ weight.T
        tensors[f"offset.{concept}"] = bias @ weight.T + head.bias.detach().double().cpu()
    write_safetensors(path, tensors)


class _Encoder:
    """Turns images of a dataset into the tensors of one shard of the table."""

    def __init__(
        self, model: HookedVisionModel, sae: Any, hook_name: str, heads: Mapping[str, nn.Linear], device: str
    ) -> None:
        self.model, self.sae, self.hook_name, self.device = model.eval(), sae.eval(), hook_name, device
        self.heads = {
            concept: (head.weight.detach().double().to(device), head.bias.detach().double().to(device))
            for concept, head in heads.items()
        }

    @torch.inference_mode()
    def encode(
        self, part: MammogramDataset, items: range, *, map_latents: Sequence[int], batch_size: int, num_workers: int
    ) -> dict[str, torch.Tensor]:
        has_box = set(part.findings.dropna(subset=["xmin"])["image_id"])
        ids = part.images["image_id"]
        columns: dict[str, list[torch.Tensor]] = {}
        totals: dict[str, torch.Tensor] = {}
        map_images = []
        for first, images in image_batches(part, items, batch_size, num_workers):
            features = capture(self.model, self.hook_name, images.to(self.device))
            for offset, grid in enumerate(features):
                row = first + offset
                if not torch.isfinite(grid).all():
                    raise InputError(
                        f"the model gives features that are not finite for image {ids[row]}; check its weights"
                    )
                found, sums = self._encode_one(grid, map_latents)
                if map_latents and ids[row] in has_box:
                    map_images.append(row - items.start)
                    columns.setdefault("maps", []).append(found["maps"].cpu())
                for name in found.keys() - {"maps"}:
                    columns.setdefault(name, []).append(found[name].cpu())
                for name, value in sums.items():
                    totals[name] = totals[name] + value if name in totals else value
        n_latents = torch.tensor([0] + [len(indices) for indices in columns["indices"]])
        tensors = {"indptr": n_latents.cumsum(0), "map_images": torch.tensor(map_images, dtype=torch.int64)}
        tensors["map_latents"] = torch.tensor(list(map_latents), dtype=torch.int64)
        for name, pieces in columns.items():
            tensors[name] = torch.cat(pieces) if name in ("indices", "mean", "max") else torch.stack(pieces)
        return {**tensors, **{f"total.{name}": value.cpu() for name, value in totals.items()}}

    def _encode_one(
        self, grid: torch.Tensor, map_latents: Sequence[int]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """One image's map (h, w, d) -> its columns of the table, and its share of the sums over positions."""
        height, width, d_in = grid.shape
        rows = grid.reshape(-1, d_in)
        total = torch.zeros(self.sae.cfg.d_sae, dtype=torch.float64, device=rows.device)
        maximum = torch.zeros(self.sae.cfg.d_sae, device=rows.device)
        decoded = torch.zeros(d_in, dtype=torch.float64, device=rows.device)
        sums = {
            "n_positions": torch.tensor(len(rows)),
            "l0": torch.zeros((), dtype=torch.int64, device=rows.device),
            "sse": torch.zeros(d_in, dtype=torch.float64, device=rows.device),
            "sum": rows.sum(0, dtype=torch.float64),
            "sum_sq": rows.double().square_().sum(0),
        }
        maps = []
        for chunk in torch.split(rows, POSITIONS_AT_ONCE):
            latents = self.sae.encode(chunk)
            output = self.sae.decode(latents)
            total += latents.sum(0, dtype=torch.float64)
            torch.maximum(maximum, latents.amax(0), out=maximum)
            decoded += output.sum(0, dtype=torch.float64)
            sums["l0"] += torch.count_nonzero(latents)
            sums["sse"] += (output - chunk).square_().sum(0, dtype=torch.float64)
            if map_latents:
                maps.append(latents[:, list(map_latents)])
        fired = torch.nonzero(maximum).squeeze(1)
        mean = total / len(rows)
        found = {"indices": fired.to(torch.int32), "mean": mean[fired].float(), "max": maximum[fired].float()}
        if maps:
            found["maps"] = torch.cat(maps).T.reshape(-1, height, width).float()
        for concept, (weight, bias) in self.heads.items():
            found[f"logits.{concept}"] = sums["sum"] / len(rows) @ weight.T + bias
            found[f"logits_with_sae.{concept}"] = decoded / len(rows) @ weight.T + bias
        return found, sums
