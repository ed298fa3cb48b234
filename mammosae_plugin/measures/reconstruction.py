"""How well an SAE reconstructs, and how many latents it uses: explained variance, L0, dead latents, slope, density."""

__all__ = [
    "dead_share", "DENSITY_EDGES", "density_histogram", "explained_variance", "Function", "Levels",
    "mean_absolute_correlation", "measure", "Measures", "Row",
]  # fmt: skip

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mammosae_plugin import distributed
from mammosae_plugin.shapes import Rows

Row = dict[str, Any]
Function = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
_OF_LEVELS = ("mse", "explained_variance", "r2", "l0")
_CORRELATED_ROWS, _COLUMNS_AT_ONCE = 2048, 1024
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
            r2: the same with the one mean of all numbers in the place of each channel's, as SAIL has it.
            mse: squared error, mean over rows and channels.
            l0: latents that fire per row.
            dead_share: share of the latents that fire at none of the rows.
            slope: of the regression of the rows on their reconstruction, both less each channel's mean: 1 where latents
                have the right size, above 1 where they are too small (shrinkage; Rajamanoharan et al., 2024, give its
                inverse); None where the reconstruction does not vary.
            density: how many latents fire at what share of the rows: `counts` between `log10_edges`, and `never`.
        """
        variation = float((self._sum_of_squares - self._sum.square() / self.n_rows).sum())
        around_one_mean = float(self._sum_of_squares.sum() - self._sum.sum().square() / (self.n_rows * len(self._sum)))
        error = float(self._squared_error.sum())
        return {
            "rows": self.n_rows,
            "explained_variance": explained_variance(error, variation),
            "r2": explained_variance(error, around_one_mean),
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


@dataclass(frozen=True)
class Levels:
    """The levels of nested SAEs, each the first so many latents.

    Attributes:
        widths: how many, rising; the last are all.
        decode: the reconstruction (b, d_in) from the first latents (b, width) alone.
    """

    widths: Sequence[int]
    decode: Callable[[torch.Tensor], torch.Tensor]


def measure(
    function: Function,
    batches: Iterable[Rows],
    d_in: int,
    d_sae: int,
    device: str,
    levels: Levels | None = None,
) -> Row:
    """The measures of an SAE on batches of rows (b, d_in); `function` gives latents and reconstruction of a batch.

    Those of nested SAEs have `levels` too, a row for each: width, mse, explained_variance, r2, l0, alive (latents that
    fire at any of the rows) and mean_absolute_correlation (of the first batch, of at most 2,048 rows).

    Of several processes each looks at some of the batches, which are the same in all.
    """
    widths = () if levels is None else tuple(levels.widths)
    measures = [Measures(d_in, width, device) for width in (*widths[:-1], d_sae)]
    correlations = torch.zeros(len(widths), dtype=torch.float64, device=device)
    with torch.no_grad():
        for number, batch in enumerate(batches):
            if number % distributed.world_size() == distributed.rank():
                batch = batch.to(device)
                latents, reconstruction = function(batch)
                measures[-1].add(batch, latents, reconstruction)
                for width, of_level in zip(widths[:-1], measures, strict=False):
                    assert levels is not None
                    of_level.add(batch, latents[:, :width], levels.decode(latents[:, :width]))
                if number == 0:
                    found = [mean_absolute_correlation(latents[:_CORRELATED_ROWS, :width]) for width in widths]
                    correlations += correlations.new_tensor([torch.nan if one is None else one for one in found])
    for one in measures:
        one.add_up()
    row = measures[-1].row()
    if not widths:
        return row
    distributed.add_up([correlations])
    row["levels"] = []
    for width, one, correlation in zip(widths, measures, correlations.tolist(), strict=True):
        whole = one.row()
        row["levels"].append(
            {
                "width": width,
                **{name: whole[name] for name in _OF_LEVELS},
                "alive": round(width * (1 - whole["dead_share"])),
                "mean_absolute_correlation": None if correlation != correlation else correlation,
            }
        )
    return row


def mean_absolute_correlation(latents: torch.Tensor) -> float | None:
    """The mean of |Pearson's r| over pairs of latents (n, m) that fire and vary; None where there is no pair."""
    columns = latents[:, (latents != 0).any(0)].double()
    sizes = columns.norm(dim=0)
    columns = columns - columns.mean(0)
    lengths = columns.norm(dim=0)
    varies = lengths > 1e-7 * sizes  # less is rounding
    unit = (columns[:, varies] / lengths[varies]).float()
    n_latents = int(unit.shape[1])
    if n_latents < 2:
        return None
    total = 0.0
    for start in range(0, n_latents, _COLUMNS_AT_ONCE):
        block = unit[:, start : start + _COLUMNS_AT_ONCE]
        products = (block.T @ unit[:, start:]).abs_()  # each pair once, but those within the block twice
        own = products[:, : block.shape[1]]
        total += float(products.sum(dtype=torch.float64) - own.sum(dtype=torch.float64))
        total += float(own.triu(1).sum(dtype=torch.float64))
    return float(total / (n_latents * (n_latents - 1) / 2))


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
