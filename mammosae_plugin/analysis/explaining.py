"""A logit of one image as a sum over latents."""

__all__ = ["explain", "Explanation", "LogitParts", "take_apart", "usual_means"]

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from mammosae_plugin.analysis.retrieval import LatentIndex, retrieve_of, row_of_image, rows_of_split
from mammosae_plugin.arguments import checked_arguments, index, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.statistics import NETWORK_ERROR

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

_AGREEMENT = 1e-4
TRAINING = "training"


class EncodedImage(Protocol):
    """One image outside a table, as `latents.one_image.encode_image` gives it."""

    @property
    def mean_latents(self) -> NDArray[np.float64]:
        """(d_sae,) over positions."""

    @property
    def max_latents(self) -> NDArray[np.float64]:
        """(d_sae,) likewise."""

    @property
    def logits(self) -> NDArray[np.float64]:
        """(n_out,) of the network."""

    @property
    def error(self) -> NDArray[np.float64]:
        """(n_out,) what the SAE does not reconstruct, through the head."""


@dataclass(frozen=True)
class Explanation:
    """A logit as a sum: `logit` = `bias` + `error` + the contributions of the latents, to rounding (`gap`).

    Attributes:
        head: the concept.
        output: which of the head's outputs, from 0.
        logit: what the network gives.
        bias: what an image without any latent would get: the decoder's bias through the head, and the head's own.
        error: what the SAE does not reconstruct.
        latents: one row per latent that fires, the largest contribution (in amount) first: latent, contribution (mean
            times weight), mean and maximum over positions, weight (what a unit of the mean adds), and usual (its mean
            contribution in the training images), above_usual (contribution less that).
        neighbours: one row per training image of other patients, the most like first, by the strongest latents of
            both (`retrieve_of`, fingerprint): image_id, likeness, shared (latents).
        gap: `logit` less the sum, by rounding.
        usual_likeness: the mean likeness of all those that were searched for neighbours; NaN where none were.
        n_firing: how many latents fire.
    """

    head: str
    output: int
    logit: float
    bias: float
    error: float
    latents: pd.DataFrame
    neighbours: pd.DataFrame
    gap: float
    usual_likeness: float = float("nan")

    @property
    def n_firing(self) -> int:
        """How many latents fire."""
        return len(self.latents)

    def strongest(self, n: int, *, sign: int) -> pd.DataFrame:
        """The latents that speak most for (sign 1) or against (-1) the output."""
        rows = self.latents[np.sign(self.latents["contribution"]) == sign]
        found: pd.DataFrame = rows.iloc[np.argsort(-rows["contribution"].abs().to_numpy(), kind="stable")[:n]]
        return found

    def to_frame(self) -> pd.DataFrame:
        """The whole sum: kind ("latent", "bias", "error"), latent (-1 of the others), contribution."""
        rest = pd.DataFrame({"kind": ["bias", "error"], "latent": -1, "contribution": [self.bias, self.error]})
        own = self.latents[["latent", "contribution"]].assign(kind="latent")
        return pd.concat([own[["kind", "latent", "contribution"]], rest], ignore_index=True)


@dataclass(frozen=True)
class LogitParts:
    """All logits of one head for one image, each as a sum: `logits` = `bias` + `error` + `contributions` over latents.

    Attributes:
        logits: (n_out,) what the network gives.
        bias: (n_out,) what an image without any latent would get.
        error: (n_out,) what the SAE does not reconstruct.
        latents: (n,) those that fire, ascending.
        mean: (n,) over positions.
        maximum: (n,) likewise.
        weight: (n, n_out) what a unit of the mean adds.
        gap: (n_out,) `logits` less the sum, by rounding.
        contributions: (n, n_out) mean times weight.
    """

    logits: NDArray[np.float64]
    bias: NDArray[np.float64]
    error: NDArray[np.float64]
    latents: NDArray[np.int64]
    mean: NDArray[np.float64]
    maximum: NDArray[np.float64]
    weight: NDArray[np.float64]

    @property
    def contributions(self) -> NDArray[np.float64]:
        """(n, n_out) mean times weight."""
        found: NDArray[np.float64] = self.mean[:, None] * self.weight
        return found

    @property
    def gap(self) -> NDArray[np.float64]:
        """(n_out,) `logits` less the sum, by rounding."""
        found: NDArray[np.float64] = self.logits - (self.bias + self.error + self.contributions.sum(axis=0))
        return found


@checked_arguments
def take_apart(table: "LatentTable", image: "str | int | EncodedImage", *, head: str) -> LogitParts:
    """The logits of a head for an image as sums over the latents that fire; the formula is in `explain`.

    Args:
        table: a latents table at the final map.
        image: as for `explain`.
        head: the concept.

    Raises:
        InputError: a table whose readout is not linear, an unknown image or head.
        RuntimeError: a sum is not its logit: the table, or the encoded image, is of another network.
    """
    readout = table.readout(head)
    if isinstance(image, (str, int, np.integer)):
        row = row_of_image(table, image if isinstance(image, str) else int(image))
        means = table.mean_latents[[row]].toarray().ravel().astype(np.float64)
        maxima = table.max_latents[[row]].toarray().ravel().astype(np.float64)
        logits = table.logits(head)[row]
        error = logits - table.logits_with_sae(head)[row]
    else:
        means, maxima = image.mean_latents, image.max_latents
        logits, error = np.asarray(image.logits), np.asarray(image.error)
    if means.shape != readout.weight.shape[:1]:
        raise InputError(f"the image has {len(means)} latents, the table {table.d_sae}: encode it with the table's SAE")
    fires = np.flatnonzero((means != 0) | (maxima != 0))
    parts = LogitParts(logits, readout.offset, error, fires, means[fires], maxima[fires], readout.weight[fires])
    sizes = np.abs(parts.bias) + np.abs(error) + np.abs(parts.contributions).sum(axis=0)
    for gap, size, logit in zip(parts.gap, sizes, logits, strict=True):
        if not abs(gap) <= max(_AGREEMENT, NETWORK_ERROR * size):
            raise RuntimeError(
                f"the sum over latents is {logit - gap:.6g}, but the logit {logit:.6g}: table, network and SAE do not "
                "belong together"
            )
    return parts


@checked_arguments
def explain(
    table: "LatentTable",
    image: "str | int | EncodedImage",
    *,
    head: str,
    output: int = 0,
    k: int = 5,
    n: int = 5,
    patient: str | None = None,
) -> Explanation:
    """Why a classifier gives an image its logit: the sum over latents, and the training images that share them.

    At the final map the logit is b_dec . w + c + sum_j zbar_j (W_dec[j] . w) + e, with zbar_j the mean of latent j
    over positions, w and c the head's, and e the mean over positions of what the SAE does not reconstruct, through w. e
    is computed by itself and not as what is left over, so that the sum can be checked; it is, to 1e-4.

    A contribution says what the classifier made of this image. It does not say that the latent stands for the finding:
    its name, its evidence and its verdict do, and a latent that fires in every image contributes to all of them, which
    is why `above_usual` stands beside it.

    Args:
        table: a latents table at the final map.
        image: an image of the table, as for `row_of_image`; or another one, encoded by `latents.one_image.encode_image`
            with the table's network, SAE and head.
        head: the concept.
        output: which of the head's outputs.
        k: latents by which images are likened.
        n: neighbours; 0 looks for none.
        patient: of an image outside the table its patient, whose images are no neighbours, where it is known.

    Raises:
        InputError: a table whose readout is not linear, an unknown image or head.
        RuntimeError: the sum is not the logit: the table, or the encoded image, is of another network.

    Example:
        >>> found = explain(table, "8269f597", head="Mass")   # doctest: +SKIP
        >>> found.to_frame()["contribution"].sum() - found.logit   # doctest: +SKIP
    """
    k, n = whole(k, "k", least=1), whole(n, "n", least=0)
    parts = take_apart(table, image, head=head)
    output = index(output, "output", len(parts.logits))
    row = None
    if isinstance(image, (str, int, np.integer)):
        row = row_of_image(table, image if isinstance(image, str) else int(image))
        maxima = table.max_latents[[row]].toarray().ravel().astype(np.float64)
    else:
        maxima = image.max_latents
    weight, contributions = parts.weight[:, output], parts.contributions[:, output]
    usual = usual_means(table)[parts.latents] * weight
    frame = pd.DataFrame(
        {
            "latent": parts.latents,
            "contribution": contributions,
            "mean": parts.mean,
            "maximum": parts.maximum,
            "weight": weight,
            "usual": usual,
            "above_usual": contributions - usual,
        }
    )
    frame = frame.iloc[np.argsort(-np.abs(contributions), kind="stable")].reset_index(drop=True)
    found, usual_likeness = _neighbours(table, row, maxima, patient, k, n)
    logit, bias, error, gap = (float(part[output]) for part in (parts.logits, parts.bias, parts.error, parts.gap))
    return Explanation(head, output, logit, bias, error, frame, found, gap, usual_likeness)


def usual_means(table: "LatentTable") -> NDArray[np.float64]:
    """(d_sae,) the mean over the training images of every latent's mean over positions, NaN where there are none."""
    rows = np.flatnonzero((table.images["split"] == TRAINING).to_numpy())
    if not len(rows):
        return np.full(table.d_sae, np.nan)
    found: NDArray[np.float64] = np.asarray(table.mean_latents[rows].sum(axis=0, dtype=np.float64)) / len(rows)
    return found


def _neighbours(
    table: "LatentTable", row: int | None, maxima: NDArray[np.float64], patient: str | None, k: int, n: int
) -> tuple[pd.DataFrame, float]:
    """The neighbours, and how like the image all are among which they were found, on average."""
    none = pd.DataFrame({"image_id": [], "likeness": [], "shared": []}), float("nan")
    if n == 0 or not (table.images["split"] == TRAINING).any():
        return none
    rows = rows_of_split(table, TRAINING)
    patients = table.images["patient_id"].astype(str).to_numpy()
    own = patients[row] if row is not None else "\0" if patient is None else patient
    searched = rows[patients[rows] != own]
    codes: Any = sparse.vstack([sparse.csr_array(maxima[None]), table.max_latents[searched].astype(np.float64)])
    groups = np.array(["\0asked", *patients[searched]], dtype=object)
    try:
        found, likeness = retrieve_of(codes, 0, groups, k=k, n=n)
    except InputError:  # nothing of its own to go by, or nobody else
        return none
    index_ = LatentIndex(codes)
    asked = index_.fingerprint(0, k)
    shared = [asked[own > 0].tolist() for own in index_.rows[found][:, asked].toarray()]
    ids = table.images["image_id"].astype(str).to_numpy()[searched[found - 1]]
    usual = float(index_.likeness(0, "fingerprint", k)[1:].mean())
    return pd.DataFrame({"image_id": ids, "likeness": likeness, "shared": shared}), usual
