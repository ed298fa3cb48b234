"""Products of a matrix that is zero but at a few places: the latents of a batch, of which k per row are not zero.

Of B rows of M latents and vectors of length d, a product through all latents takes B * M * d multiplications and one
through the places n * d, where n is their number; k of 32 among 16,384 make that 512 times fewer. On CPU and GPU the
sums are those of torch's `embedding_bag`, whose order is fixed: the same matrices give the same bits.
"""

__all__ = ["Places"]

from functools import cached_property

import torch
from torch.nn import functional

_CHUNK, _CHUNK_ON_CUDA = 1024, 16384  # places that are multiplied at once
_COLUMNS = 256  # latents that are turned at once on a CPU, so that they stay in a core's cache


class Places:
    """Where a matrix (B, M) is not zero, row by row.

    Args:
        rows: (n,) int64, rising.
        latents: (n,) int64, the columns.
        shape: (B, M).
    """

    def __init__(self, rows: torch.Tensor, latents: torch.Tensor, shape: tuple[int, int]) -> None:
        self.rows, self.latents, self.shape = rows, latents, shape

    @classmethod
    def of(cls, matrix: torch.Tensor) -> "Places":
        """Those of a dense matrix (B, M)."""
        rows, latents = matrix.nonzero(as_tuple=True)
        return cls(rows, latents, (matrix.shape[0], matrix.shape[1]))

    def times(self, values: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """The sum of each row's latents' vectors: values (n,), vectors (M, d) to (B, d)."""
        return _sums(self.latents, values, vectors, _starts(self.rows, self.shape[0]))

    def transposed_times(self, values: torch.Tensor, vectors: torch.Tensor, *, columns: bool = False) -> torch.Tensor:
        """The sum of each latent's rows' vectors: values (n,), vectors (B, d) to (M, d); with `columns` to (d, M)."""
        rows, values, n_latents = self.rows[self._order], values[self._order], self.shape[1]
        if not columns or vectors.is_cuda:
            sums = _sums(rows, values, vectors, self._starts_by_latent)
            return sums.T.contiguous() if columns else sums
        found = vectors.new_empty(vectors.shape[1], n_latents)
        firsts = list(range(0, n_latents, _COLUMNS))
        edges = self._starts_by_latent[[*firsts, n_latents]].tolist()
        for first, begin, end in zip(firsts, edges, edges[1:], strict=False):
            starts = self._starts_by_latent[first : first + _COLUMNS + 1] - begin
            found[:, first : first + _COLUMNS] = _sums(rows[begin:end], values[begin:end], vectors, starts).T
        return found

    def dots(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """At each place its row of `left` (B, d) times its latent's of `right` (M, d): (n,)."""
        size = _CHUNK_ON_CUDA if left.is_cuda else _CHUNK
        chunks = [slice(at, at + size) for at in range(0, len(self.rows), size)]
        parts = [(left[self.rows[these]] * right[self.latents[these]]).sum(1) for these in chunks]
        return torch.cat([right.new_zeros(0), *parts])

    @cached_property
    def _starts_by_latent(self) -> torch.Tensor:
        return _starts(self.latents, self.shape[1])

    @cached_property
    def _order(self) -> torch.Tensor:
        """The places latent by latent."""
        return torch.argsort(self.latents, stable=True)


def _starts(numbers: torch.Tensor, n: int) -> torch.Tensor:
    """(n + 1,) where each of `n` numbers begins among the sorted ones, and the end."""
    counts = torch.bincount(numbers, minlength=n)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _sums(of: torch.Tensor, values: torch.Tensor, vectors: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """The sums of vectors[of] * values over what lies between two starts: (len(starts) - 1, d)."""
    return functional.embedding_bag(of, vectors, starts[:-1], mode="sum", per_sample_weights=values)
