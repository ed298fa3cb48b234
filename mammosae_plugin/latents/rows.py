"""Making a latents table of rows, one vector per image, without a network: what an SAE says of stored embeddings."""

__all__ = ["encode_rows", "write_sparse_features"]

import hashlib
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sae_lens import SAE
from scipy import sparse

from mammosae_plugin import distributed
from mammosae_plugin.activations.embedding_files import VECTOR_COLUMNS, write_vectors
from mammosae_plugin.activations.row_sources import RowSource, Source, as_sails, in_lengths, open_rows
from mammosae_plugin.activations.store import MANIFEST
from mammosae_plugin.adapters.attached_sae import refuse_what_no_map_fits
from mammosae_plugin.adapters.checkpoints import refuse_not_finite
from mammosae_plugin.adapters.input_normalization import (
    INPUT_NORMALIZATION,
    input_normalization,
    normalized,
    rescaled,
)
from mammosae_plugin.adapters.input_scaling import keep_scale_of
from mammosae_plugin.adapters.levels import levels_of
from mammosae_plugin.adapters.recording import evaluation
from mammosae_plugin.arguments import whole
from mammosae_plugin.datasets import StudyDataset
from mammosae_plugin.datasets.concepts import Concept, Vocabulary
from mammosae_plugin.datasets.splits import TRAINING
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, sha256_of_json, write_parquet
from mammosae_plugin.latents.decoding import latents_times_decoder
from mammosae_plugin.latents.encoding import is_whole_table, rows_at_once, seal_table, settings_in
from mammosae_plugin.latents.table import (
    BOX_COLUMNS,
    ELEMENTS_KEY,
    ELEMENTS_OF_ROWS,
    FINDINGS,
    FORMAT_VERSION,
    IMAGES,
    SETTINGS,
    TABLE,
    VOCABULARY,
    LatentTable,
)
from mammosae_plugin.own_files import require_unclaimed
from mammosae_plugin.provenance import environment, package_versions, plain, tensors_fingerprint
from mammosae_plugin.shards import PLAN, ShardTask, Tensors, run_shards_together

ROWS_PER_SHARD = 8192
_SPARSE = 0.05  # share of latents that fire below which decoding only these is faster


def encode_rows(
    source: Source,
    sae: SAE[Any],
    folder: str | os.PathLike[str],
    *,
    images: pd.DataFrame | StudyDataset | None = None,
    concepts: Sequence[str | Concept] | None = None,
    column: str | None = None,
    split: str = TRAINING,
    device: str = "cpu",
    shard_size: int = ROWS_PER_SHARD,
) -> LatentTable:
    """Encode stored rows, one vector per image, and write the latents table: no image and no network is needed.

    The table has a grid of 1 x 1. What reads a table reads it, but for what needs a map, boxes or a network's logits,
    which says so. Where the SAE's metadata name an input normalisation, it is done. Memory holds one shard of codes,
    whatever the number of rows. A killed call is made again and continues; the table is the same, byte for byte. Under
    torchrun all processes make the same call, and each encodes its share.

    Args:
        source: What `embed` or `extract_activations` wrote at a hook point that shows a vector: an `ActivationStore` or
            its folder. Or files of embeddings: a parquet file (SAIL's, or any with a column of lists), a `.npy` with a
            CSV beside it, a list of such files, or a folder with them; the split is in a file's name
            (`x_valid.parquet`) or in its column `split`.
        sae: A SAELens SAE, such as `load_sae` gives.
        folder: Where the table goes.
        images: What is known of the images, if it does not lie beside the rows: a table with image_id, patient_id,
            split and labels, or the dataset.
        concepts: Of a table, which columns are labels: names, or `Concept`s. By default those that hold 0 and 1 alone.
        column: Of files, the column with the vectors.
        split: The split of rows of which nothing says another.
        device: Where the SAE runs.
        shard_size: Rows per shard.

    Raises:
        InputError: Rows of another width than the SAE's, or of several widths; one that is not finite; several
            positions per image; an SAE that does not fit rows; a folder that holds another table.

    Example:
        >>> sae = load_sae("dinov3_sae.ckpt")                        # doctest: +SKIP
        >>> table = encode_rows("embeddings_test.parquet", sae, "codes")    # doctest: +SKIP
        >>> table.codes(level=512)                                          # doctest: +SKIP
    """
    if not hasattr(sae, "cfg") or not hasattr(sae, "encode"):
        raise InputError(f"the SAE is a {type(sae).__name__}: give a SAELens SAE, such as load_sae(path)")
    shard_size = whole(shard_size, "shard_size", least=1)
    refuse_not_finite(sae.state_dict(), where="the SAE")
    refuse_what_no_map_fits(sae, "rows")
    known: pd.DataFrame | None
    vocabulary: Vocabulary | None
    if images is None or isinstance(images, pd.DataFrame):
        known, vocabulary = images, None
    else:
        known, vocabulary = images.images, images.vocabulary
    rows = open_rows(source, column=column, images=known, vocabulary=vocabulary, concepts=concepts, split=split)
    if rows.width != sae.cfg.d_in:
        raise InputError(
            f"the SAE takes vectors of width {sae.cfg.d_in}, but {rows.name} has rows of width {rows.width}; use an "
            "SAE that was trained on this model's embeddings"
        )
    with evaluation(sae, device=distributed.place(device)):
        return _encode(rows, sae, local_path(folder), shard_size)


def _encode(rows: RowSource, sae: SAE[Any], folder: Path, shard_size: int) -> LatentTable:
    in_order = sorted(rows.images["split"].unique(), key=lambda name: (name != TRAINING, name))
    places = {split: np.flatnonzero((rows.images["split"] == split).to_numpy()) for split in in_order}
    begun = [TABLE, *(f"{split}/{PLAN}" for split in places)]
    written = [MANIFEST, *(f"{split}/{name}" for split in places for name in (IMAGES, FINDINGS))]
    distributed.on_main(partial(require_unclaimed, folder, begun, written))
    done = distributed.on_main(partial(is_whole_table, folder))
    normalization = {INPUT_NORMALIZATION: name} if (name := input_normalization(sae)) else {}
    levels = list(levels_of(sae)) or [int(sae.cfg.d_sae)]
    fixed = {
        "format_version": FORMAT_VERSION,
        ELEMENTS_KEY: ELEMENTS_OF_ROWS,
        "sae": tensors_fingerprint(sae.state_dict()),
        "architecture": sae.cfg.architecture(),
        "rows": rows.fingerprint,
        "levels": levels,
        **normalization,
    }
    if (settings := settings_in(folder, sae)) is not None:
        fixed[SETTINGS] = settings
    header = {
        "format_version": FORMAT_VERSION,
        ELEMENTS_KEY: ELEMENTS_OF_ROWS,
        "splits": list(places),
        "concepts": list(rows.vocabulary.binary),
        VOCABULARY: rows.vocabulary.to_json(),
        "heads": [],
        "hook_name": rows.hook_name,
        "readout": "none",
        "gradcam": [],
        "d_sae": int(sae.cfg.d_sae),
        "d_in": int(sae.cfg.d_in),
        "levels": levels,
        "grid": [1, 1],
        "image_size": list(rows.image_size),
        **normalization,
        "provenance": {
            "inputs": fixed,
            "sae": plain(sae.cfg.to_dict()),
            "packages": package_versions(),
            **environment(),
        },
    }
    encoder = _RowEncoder(sae, levels)
    for split, numbers in places.items():
        known = rows.images.iloc[numbers].reset_index(drop=True)
        known_of = pd.util.hash_pandas_object(known).to_numpy()
        images = sha256_of_json([known.columns.tolist(), hashlib.sha256(known_of.tobytes()).hexdigest()])
        plan = {**fixed, "split": split, "images": images}
        stream = partial(_stream, rows, numbers, encoder)
        jobs = {"": (folder / split, plan)}
        run_shards_together(jobs, len(numbers), shard_size, stream, description=f"encode {split}", unit="row")
        if not done:
            distributed.on_main(partial(_write_labels, folder / split, known, rows.vocabulary))
    distributed.on_main(partial(seal_table, folder, header))
    return LatentTable(folder)


def _write_labels(folder: Path, known: pd.DataFrame, vocabulary: Vocabulary) -> None:
    write_parquet(folder / IMAGES, known)
    none = known.iloc[:0][["image_id", *vocabulary]]  # nothing is anywhere in a vector
    boxes = pd.DataFrame({name: np.zeros(0) for name in BOX_COLUMNS})
    write_parquet(folder / FINDINGS, pd.concat([none, boxes], axis=1))


@torch.inference_mode()
def _stream(
    rows: RowSource, numbers: npt.NDArray[np.int64], encoder: "_RowEncoder", tasks: Sequence[ShardTask]
) -> Generator[Mapping[str, Tensors], None, None]:
    """The shards of all tasks in order, from one pass over the rows."""
    wanted = [numbers[task.items.start : task.items.stop] for task in tasks]
    for vectors in in_lengths(rows, wanted):
        yield {"": encoder.encode(vectors)}


class _RowEncoder:
    """Turns rows into the tensors of one shard."""

    def __init__(self, sae: SAE[Any], levels: Sequence[int]) -> None:
        self.sae, self.levels = sae, levels
        self.linear = latents_times_decoder(sae, 1e-3)
        self.decoder = sae.W_dec.detach().float().cpu().numpy()
        self.bias = sae.b_dec.detach().float().cpu().numpy()

    def encode(self, rows: npt.NDArray[np.float32]) -> Tensors:
        """The codes of rows (n, d_in) as compressed sparse rows, and the sums of their reconstruction."""
        step = rows_at_once(self.sae)
        codes = []
        sse = np.zeros((len(self.levels), rows.shape[1]))
        l0 = np.zeros(len(self.levels), dtype=np.int64)
        sums = {name: np.zeros(rows.shape[1]) for name in ("sum", "sum_sq")}
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            given, lengths = normalized(self.sae, torch.from_numpy(block).to(self.sae.device, self.sae.dtype))
            latents = self.sae.encode(given)
            found = _compressed(latents)
            codes.append(found)
            for number, (fired, decoded) in enumerate(self._decoded(given, latents, found)):
                output = rescaled(torch.from_numpy(decoded), None if lengths is None else lengths.float().cpu()).numpy()
                sse[number] += np.square(output - block).sum(0, dtype=np.float64)
                l0[number] += fired
            sums["sum"] += block.sum(0, dtype=np.float64)
            sums["sum_sq"] += np.square(block.astype(np.float64)).sum(0)
        joined = sparse.vstack(codes, format="csr")
        tensors = {
            "indptr": joined.indptr.astype(np.int64),
            "indices": joined.indices.astype(np.int32),
            "values": joined.data,
            "total.n_positions": np.int64(len(rows)),
            "total.l0": l0[-1],
            "total.sse": sse[-1].copy(),  # of an SAE of one level these would be one tensor
            "total.level_l0": l0,
            "total.level_sse": sse,
            **{f"total.{name}": value for name, value in sums.items()},
        }
        return {name: torch.from_numpy(np.asarray(value)) for name, value in tensors.items()}

    def _decoded(
        self, given: torch.Tensor, latents: torch.Tensor, codes: sparse.csr_array
    ) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Of each level how many latents fire, and what it reconstructs, (n, d_in)."""
        if not self.linear or codes.nnz > _SPARSE * np.prod(codes.shape):
            for width in self.levels:
                prefix = latents.clone()
                prefix[:, width:] = 0
                keep_scale_of(self.sae, given)
                yield int(torch.count_nonzero(prefix)), self.sae.decode(prefix).float().cpu().numpy()
            return
        decoded = np.tile(self.bias, (codes.shape[0], 1))
        before = fired = 0
        for width in self.levels:  # what a level adds to the one before it
            more = codes[:, before:width]
            decoded = decoded + more @ self.decoder[before:width]
            fired, before = fired + more.nnz, width
            yield fired, decoded


def _compressed(latents: torch.Tensor) -> sparse.csr_array:
    """Latents (n, d_sae) as compressed sparse rows of float32."""
    row, column = torch.nonzero(latents, as_tuple=True)
    values = latents[row, column].float().cpu().numpy()
    indptr = np.concatenate([[0], np.bincount(row.cpu().numpy(), minlength=len(latents)).cumsum()])
    shape = (len(latents), latents.shape[1])
    return sparse.csr_array((values, column.cpu().numpy().astype(np.int32), indptr.astype(np.int32)), shape=shape)


def write_sparse_features(
    table: LatentTable, folder: str | os.PathLike[str], name: str = "sparse_features"
) -> list[Path]:
    """Write the codes of a table as SAIL's files of sparse features, dense rows and all, one file per split.

    Args:
        table: A latents table.
        folder: Where the files go: `<name>_train.parquet`, `<name>_val.parquet`, `<name>_test.parquet`.
        name: How their names begin.

    Returns:
        The files, in the order of the table's splits.
    """
    codes, words = table.max_latents, {"training": "train", "validation": "val"}
    files = []
    for split in table.splits:
        rows = np.flatnonzero((table.images["split"] == split).to_numpy())
        blocks = (codes[rows[start : start + 1024]].toarray() for start in range(0, len(rows), 1024))
        files.append(local_path(folder) / f"{name}_{words.get(split, split)}.parquet")
        write_vectors(files[-1], as_sails(table.images.iloc[rows]), blocks, column=VECTOR_COLUMNS[1])
    return files
