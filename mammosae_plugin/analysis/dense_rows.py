"""The dense rows beside codes: those of the layer that a table keeps, an array, an activation store or files."""

__all__ = ["DenseRows", "dense_rows", "Embeddings"]

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mammosae_plugin.activations.row_sources import RowSource, Source, open_rows
from mammosae_plugin.arguments import as_array, numbers
from mammosae_plugin.errors import InputError

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

Embeddings = NDArray[Any] | Source | None
"""Of the images of a table: an array (n_images, d) in its order; an `ActivationStore`, its folder, or files of
embeddings, whose rows are found by image_id; or None for the layer's own channels, averaged, of a table of maps."""
_BLOCK = 1024  # rows of an array that are read at once


@dataclass(frozen=True)
class DenseRows:
    """Dense rows (n, d) of some images, a block at a time.

    Attributes:
        source: where they lie: an array (n_all, d), or what `open_rows` opened.
        places: (n,) their numbers there.
    """

    source: NDArray[Any] | RowSource
    places: NDArray[np.int64]

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Which of the n rows, and these (b, d), each row once.

        Raises:
            InputError: a row that cannot be read or is not finite.
        """
        if isinstance(self.source, RowSource):
            order = np.argsort(self.places, kind="stable")
            start = 0
            for vectors in self.source.blocks(self.places[order]):
                yield order[start : start + len(vectors)], np.asarray(vectors, dtype=np.float32)
                start += len(vectors)
            return
        for start in range(0, len(self.places), _BLOCK):
            places = self.places[start : start + _BLOCK]
            rows = numbers(self.source[places], "embeddings").astype(np.float32)
            if not np.isfinite(rows).all():
                raise InputError("embeddings hold a value that is not finite")
            yield np.arange(start, start + len(places)), rows

    def whole(self) -> NDArray[np.float32]:
        """All of them, (n, d)."""
        found = np.zeros((0, 0), dtype=np.float32)
        for rows, vectors in self.blocks():
            if not found.size:
                found = np.empty((len(self.places), vectors.shape[1]), dtype=np.float32)
            found[rows] = vectors
        return found


def dense_rows(table: "LatentTable", embeddings: Embeddings, image_rows: NDArray[np.int64]) -> DenseRows:
    """The dense rows of some images of a table.

    Args:
        table: the latents table.
        embeddings: where they are.
        image_rows: (n,) rows of `table.images`.

    Raises:
        InputError: None for a table of rows, which keeps their codes alone; an array of other images; a source that
            lacks an image, or that cannot be opened.
    """
    images = table.images
    if embeddings is None:
        if getattr(table, "is_of_rows", False):
            raise InputError(
                f"{table.folder} was made of rows and keeps their codes alone: give the rows themselves, "
                "embeddings=..., such as the store or the files that it was made of"
            )
        return DenseRows(table.mean_channels, image_rows)
    if hasattr(embeddings, "shape"):
        array = as_array(embeddings, "embeddings")
        if array.ndim != 2 or len(array) != len(images):
            raise InputError(
                f"embeddings have shape {array.shape}: expected ({len(images)}, d), a row for each image of the table, "
                "in the order of table.images"
            )
        return DenseRows(array, image_rows)
    source = open_rows(embeddings)
    key = ["image_id"] if source.images["image_id"].is_unique else ["image_id", "split"]
    there = pd.Series(np.arange(len(source.images)), index=_keys(source.images, key))
    wanted = _keys(images.iloc[image_rows], key)
    places = there.reindex(wanted).to_numpy()
    if (missing := np.isnan(places.astype(np.float64))).any():
        raise InputError(
            f"{source.name} lacks {int(missing.sum())} of the {len(wanted)} images of the table (first "
            f"{wanted[int(missing.argmax())]!r}): give the rows that the table was made of"
        )
    return DenseRows(source, places.astype(np.int64))


def _keys(images: pd.DataFrame, columns: list[str]) -> pd.Index:
    return pd.Index(["/".join(map(str, key)) for key in images[columns].itertuples(index=False)])
