"""How well an SAE reconstructs, and how many latents it uses: explained variance, L0, dead latents, slope, density."""

__all__ = [
    "dead_share", "DENSITY_EDGES", "density_histogram", "explained_variance", "Function", "measure", "Measures", "Row",
]  # fmt: skip

from collections.abc import Callable, Iterable
from typing import Any

import torch

from mammosae_plugin import distributed
from mammosae_plugin.shapes import Rows

Row = dict[str, Any]
Function = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
DENSITY_EDGES = tuple(-7 + 0.5 * step for step in range(15))  # log10 of the share of rows at which a latent fires


def explained_variance(squared_error: float, variation: float) -> float | None:
    """1 - (sum of squared errors) / (sum of squared deviations from each channel's mean); None without variation."""
    return 1 - squared_error / variation if variation > 0 else None


class Measures:
    """Sums over rows, in float64, from which the quality of an SAE follows.

    Args:
        d_in: Width of a row.
        d_sae: Number of latents.
        device: Where the sums lie.
    """

    def __init__(self, d_in: int, d_sae: int, device: str | torch.device) -> None:
        self.n_rows = 0
        self._sum = torch.zeros(d_in, dtype=torch.float64, device=device)
        self._sum_of_squares = torch.zeros_like(self._sum)
        self._squared_error = torch.zeros_like(self._sum)
        self._reconstructed = torch.zeros_like(self._sum)
        self._reconstructed_squares = torch.zeros_like(self._sum)
        self._products = torch.zeros_like(self._sum)
        self._fired = torch.zeros(d_sae, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, rows: Rows, latents: torch.Tensor, reconstruction: torch.Tensor) -> None:
        """Add rows (n, d_in), their latents (n, d_sae) and their reconstruction (n, d_in)."""
        rows, reconstruction = rows.double(), reconstruction.double()
        self.n_rows += len(rows)
        self._sum += rows.sum(0)
        self._sum_of_squares += rows.square().sum(0)
        self._squared_error += (rows - reconstruction).square().sum(0)
        self._reconstructed += reconstruction.sum(0)
        self._reconstructed_squares += reconstruction.square().sum(0)
        self._products += (rows * reconstruction).sum(0)
        self._fired += (latents != 0).sum(0)

    def add_up(self) -> None:
        """Add what the other processes have added to theirs."""
        n_rows = torch.tensor(self.n_rows, device=self._sum.device)
        sums = (self._sum, self._sum_of_squares, self._squared_error, self._fired)
        products = (self._reconstructed, self._reconstructed_squares, self._products)
        distributed.add_up([n_rows, *sums, *products])
        self.n_rows = int(n_rows)

    def row(self) -> Row:
        """The measures of all rows added.

        Returns:
            rows: how many.
            explained_variance: 1 - (sum of squared errors) / (sum of squared deviations from each channel's mean);
                None where the rows do not vary.
            mse: squared error, mean over rows and channels.
            l0: latents that fire per row.
            dead_share: share of the latents that fire at none of the rows.
            slope: of the regression of the rows on their reconstruction, both less each channel's mean: 1 where latents
                have the right size, above 1 where they are too small (shrinkage; Rajamanoharan et al., 2024, give its
                inverse); None where the reconstruction does not vary.
            density: how many latents fire at what share of the rows: `counts` between `log10_edges`, and `never`.
        """
        variation = float((self._sum_of_squares - self._sum.square() / self.n_rows).sum())
        error = float(self._squared_error.sum())
        return {
            "rows": self.n_rows,
            "explained_variance": explained_variance(error, variation),
            "mse": error / (self.n_rows * len(self._sum)),
            "l0": int(self._fired.sum()) / self.n_rows,
            "dead_share": float((self._fired == 0).double().mean()),
            "slope": self._slope(),
            "density": density_histogram(self._fired.double() / self.n_rows),
        }

    def _slope(self) -> float | None:
        means = self._reconstructed / self.n_rows
        variation = float((self._reconstructed_squares - means * self._reconstructed).sum())
        together = float((self._products - means * self._sum).sum())
        negligible = 1e-9 * float(self._reconstructed_squares.sum())  # what is left of sums of the same numbers
        return together / variation if variation > negligible else None


def measure(function: Function, batches: Iterable[Rows], d_in: int, d_sae: int, device: str) -> Row:
    """The measures of an SAE on batches of rows (b, d_in); `function` gives latents and reconstruction of a batch.

    Of several processes each looks at some of the batches, which are the same in all.
    """
    measures = Measures(d_in, d_sae, device)
    with torch.no_grad():
        for number, batch in enumerate(batches):
            if number % distributed.world_size() == distributed.rank():
                batch = batch.to(device)
                measures.add(batch, *function(batch))
    measures.add_up()
    return measures.row()


def dead_share(
    encode: Callable[[torch.Tensor], torch.Tensor], batches: Iterable[Rows], d_sae: int, device: str
) -> tuple[int, float]:
    """How many rows batches of rows (b, d_in) have, and the share of the latents that fire at none of them.

    Of several processes each looks at some of the batches, which are the same in all.
    """
    fired = torch.zeros(d_sae, dtype=torch.int64, device=device)
    n_rows = 0
    with torch.no_grad():
        for number, batch in enumerate(batches):
            n_rows += len(batch)
            if number % distributed.world_size() == distributed.rank():
                fired += (encode(batch.to(device)) != 0).sum(0)
    distributed.add_up([fired])
    return n_rows, float((fired == 0).double().mean())


def density_histogram(share: torch.Tensor) -> Row:
    """How many latents fire at what share (d_sae,) of the rows, on a logarithmic scale."""
    fires = share[share > 0].double().log10().clamp(DENSITY_EDGES[0], DENSITY_EDGES[-1]).cpu()
    counts = torch.histogram(fires, torch.tensor(DENSITY_EDGES, dtype=torch.float64)).hist
    return {"log10_edges": list(DENSITY_EDGES), "counts": counts.int().tolist(), "never": int((share == 0).sum())}
