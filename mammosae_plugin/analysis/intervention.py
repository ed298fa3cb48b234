"""Group interventions on latents: what the classifier says when only a group is kept, or a group is removed.

At the final layer everything after the SAE is linear (decoder, average pool, linear head), so a logit under any mask m
over latents follows from the mean latents alone:

    logit = offset + sum_i m_i * mean_i * weight_i

Equations 3 and 4 of the paper (Nakka, Mammo-SAE, arXiv 2507.15227), for every group at once, are therefore one sparse
matrix product, and the network is never run again. A latent that is set to a value alpha at every position has the mean
alpha, so the same sum holds. At an inner layer the part of the network behind it must run for
every mask; what runs it is handed in as `passes`, so that the analysis itself needs no network.
"""

__all__ = [
    "Ablations", "DEFAULT_KS", "intervene", "latent_group", "Mode", "Passes", "single_ablations", "sweep",
    "sweep_controls",
]  # fmt: skip

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from mammosae_plugin.analysis.probing import RankedLatents
from mammosae_plugin.arguments import between, checked_arguments, entries, indices, one_of, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents.table import logit_error
from mammosae_plugin.measures.statistics import (
    METRICS,
    MIN_PATIENTS,
    NETWORK_ERROR,
    Resamples,
    classification_metrics,
    ranking_metrics,
    require_two_classes,
    settled,
)

if TYPE_CHECKING:
    from mammosae_plugin.latents import EvaluationRows, LatentTable

Mode = Literal["activate", "deactivate"]

DEFAULT_KS = (0, 1, 5, 10, 50, 100, 250, 500, 1000, 5000, 10000, 16384)
"""The latents per class of the paper's Figure 2."""

_MODES: tuple[Mode, ...] = ("activate", "deactivate")
# The numbers seed the draws: changing one changes every control.
_CONTROL_KINDS = {"random": 0, "mass": 1}
_CONTROL_METRICS = ("auroc", "average_precision")

# Block sizes of the sparse product: 1024 images x 64 groups of float64 results are 0.5 MB, 16,384 x 64 masks 8 MB.
_IMAGES_PER_BLOCK = 1024
_GROUPS_PER_BLOCK = 64


class Passes(Protocol):
    """What gives logits under masks by running a network: `mammosae_plugin.latents.masked_passes.MaskedPasses`."""

    def logits(
        self,
        table: "LatentTable",
        kept: NDArray[np.bool_],
        *,
        head: str,
        error_term: bool,
        image_rows: NDArray[np.int64],
        set_latents: NDArray[np.bool_] | None = None,
        alpha: float = 0.0,
    ) -> NDArray[np.float64]:
        """Logits (n, n_groups, n_out) while only the latents in each column of `kept` (d_sae, n_groups) are left.

        Those in each column of `set_latents` (d_sae, n_groups), none of which is kept, have the value alpha.
        """
        ...


@checked_arguments
def latent_group(ranking: RankedLatents, k: int) -> NDArray[np.int64]:
    """The union over classes of each class's k best latents, sorted by index.

    Args:
        ranking: latents of every class, best first.
        k: latents per class, 0 ... d_sae. The union has between k and k * n_class latents.

    Raises:
        InputError: k out of range.
    """
    return np.unique(ranking.indices[:, : whole(k, "k", least=0, most=ranking.d_sae)])


@checked_arguments
def intervene(
    table: "LatentTable",
    group: NDArray[np.int64],
    *,
    mode: Mode,
    head: str,
    error_term: bool = False,
    image_rows: NDArray[np.int64] | None = None,
    passes: Passes | None = None,
    alpha: float | None = None,
) -> NDArray[np.float64]:
    """The logits of one head while a group of latents is kept (`activate`) or zeroed (`deactivate`), or set to a value.

    ```python
    ranking = rank_latents(class_mean_latents(table, "Mass", score="centered_mean"))
    group = latent_group(ranking, 10)
    without = intervene(table, group, mode="deactivate", head="Mass", error_term=True)
    raised = intervene(table, group, mode="deactivate", head="Mass", error_term=True, alpha=2.0)
    ```

    Args:
        table: the latents table.
        group: latent indices, each at most once or repeated, in any order.
        mode: "activate" (Equation 3: keep the group, zero all else) or "deactivate" (Equation 4: zero the group).
        head: name of the head (its concept).
        error_term: add back what the SAE does not reconstruct; then an edit that changes no latent gives the
            classifier's own logits.
        image_rows: (n,) rows of the table; all images when None.
        passes: runs the network behind the layer, such as `MaskedPasses`. Needed at inner layers (readout "network");
            at the final map the linear form is used without it.
        alpha: the value, in units of activation, that every latent of the group takes at every position of every image,
            instead of its own (`activate`) or of zero (`deactivate`; so alpha 0 is Equation 4). None leaves Equations 3
            and 4. What is set in this way is the same for every image: `activate` with an alpha, without the error
            term, gives equal logits to all.

    Returns:
        (n, n_out) float64 logits.

    Raises:
        InputError: an unknown mode, a latent or image row out of range, an alpha that is not finite, a head that the
            table lacks, or no `passes` where the table's readout is "network".
    """
    group = indices(group, "the group's latents", table.d_sae)
    n_images = len(table.images)
    image_rows = np.arange(n_images) if image_rows is None else indices(image_rows, "image_rows", n_images)
    return _logits(table, [(mode, group)], head, error_term, image_rows, passes, alpha)[:, 0]


@dataclass(frozen=True)
class Ablations:
    """What latents that were zeroed one by one, and random groups beside each, took of a head's logit.

    Attributes:
        head: the head.
        latents: (n_latents,).
        image_rows: (n,) rows of the table.
        losses: (n, n_latents), the unmodified model's logit minus what is left of it.
        control_losses: (n, n_latents, n_controls), that of the groups.
    """

    head: str
    latents: NDArray[np.int64]
    image_rows: NDArray[np.int64]
    losses: NDArray[np.float64] = field(repr=False)
    control_losses: NDArray[np.float64] = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """A row per latent: latent, n_images, loss (mean over the images), and loss_random, the mean of its groups."""
        n_images, n_latents, n_controls = self.control_losses.shape
        random = self.control_losses.mean(axis=(0, 2)) if n_images * n_controls else np.full(n_latents, np.nan)
        loss = self.losses.mean(axis=0) if n_images else np.full(n_latents, np.nan)
        return pd.DataFrame({"latent": self.latents, "n_images": n_images, "loss": loss, "loss_random": random})


@checked_arguments
def single_ablations(
    table: "LatentTable",
    latents: NDArray[np.int64],
    *,
    head: str,
    image_rows: NDArray[np.int64],
    n_controls: int = 99,
    seed: int = 0,
    passes: Passes | None = None,
) -> Ablations:
    """How much of the unmodified model's logit goes when one latent is zeroed, and beside it random groups.

    A random group holds live latents that are not among those given, in random order until their mean activation in
    the training split first reaches the latent's. What the SAE does not reconstruct stays in place.

    Args:
        table: the latents table.
        latents: (n_latents,) the latents, each zeroed alone.
        head: name of a head with one output.
        image_rows: (n,) rows of the table, each once.
        n_controls: random groups per latent.
        seed: seed of the groups.
        passes: as for `intervene`.

    Raises:
        InputError: as `intervene`.
    """
    latents = indices(latents, "the latents", table.d_sae)
    image_rows = indices(image_rows, "image_rows", len(table.images))
    n_controls, seed = whole(n_controls, "n_controls", least=0), whole(seed, "seed", least=0)
    live, mass = np.setdiff1d(table.live_latents("training"), latents), _mean_activation(table, "training")
    own = [np.array([latent]) for latent in latents]
    controls = [
        _mass_control(latent, live, mass, np.random.default_rng([seed, int(latent[0]), control]))
        for latent in own
        for control in range(n_controls)
    ]
    edits: list[tuple[Mode, NDArray[np.int64]]] = [("deactivate", group) for group in (*own, *controls)]
    left = _logits(table, edits, head, True, image_rows, passes, None)[:, :, 0]
    losses = table.logits(head)[image_rows] - left
    control_losses = losses[:, len(own) :].reshape(len(image_rows), len(own), n_controls)
    return Ablations(head, latents, image_rows, losses[:, : len(own)], control_losses)


@checked_arguments
def sweep(
    table: "LatentTable",
    ranking: RankedLatents,
    *,
    concept: str,
    ks: Sequence[int] = DEFAULT_KS,
    modes: Sequence[Mode] = _MODES,
    split: str = "test",
    unit: str = "image",
    error_term: bool = False,
    n_controls: int = 20,
    n_bootstrap: int = 1000,
    seed: int = 0,
    passes: Passes | None = None,
    alpha: float | None = None,
    min_patients: int = MIN_PATIENTS,
    patients: Collection[str] | None = None,
) -> pd.DataFrame:
    """Metrics of the classifier under every mode and group size, beside matched controls, as in Figure 2 of the paper.

    Args:
        table: the latents table.
        ranking: latents of every class of the concept, best first (from the training split).
        concept: a concept that has a head; its head is evaluated.
        ks: latents per class; those above d_sae are replaced by d_sae itself.
        modes: any of "activate" and "deactivate".
        split: the split evaluated.
        unit: as for `LatentTable.rows`; the edited probabilities of a unit's images are put together.
        error_term: as for `intervene`.
        n_controls: control groups per row and kind; fewer than the default 20 make a poor band, 0 gives NaN. At an
            inner layer every one costs a pass of the rest of the network over every image.
        n_bootstrap: patient-level resamples for the 95 % intervals, the same for every row; 0 gives NaN.
        seed: seed of resamples and controls. A row does not depend on the other ks and modes.
        passes: as for `intervene`.
        alpha: as for `intervene`; the latents of the controls are set to it too.
        min_patients: patients that every class must have for an interval; with fewer the ends are NaN.
        patients: those of the split's patients that are looked at, such as a sample where passes are dear; None: all.

    Returns:
        One row per (mode, k): mode, k, n_latents, n_live (of the group's latents, those that fire in the training
        split); the counts of `statistics.Resamples.counts`; for every metric m the columns m, m_low, m_high; and for
        the control kinds `random` and `mass` (see `sweep_controls`) and the metrics auroc and average_precision the
        columns kind_m_mean, kind_m_low, kind_m_high: mean, minimum and maximum over the control groups. Logits that
        differ by no more than rounding tie.

    Raises:
        InputError: fewer than two classes in the split, an unknown mode, a ranking of another width, or as `intervene`.
    """
    modes = _checked_modes(modes)
    rows = _evaluation_rows(table, ranking, concept, split, unit, patients)
    own = [_Group(mode, k, latent_group(ranking, k)) for mode in modes for k in _kept_ks(ks, table.d_sae)]
    controls = _control_groups(table, ranking, ks, modes, n_controls, seed)
    # All groups in one call: where the network is run, each image is then encoded once, and equal masks are run once.
    logits = _row_logits(table, [*own, *controls], rows, concept, error_term, passes, alpha)
    judged = _control_metrics(controls, logits[:, len(own) :], rows.labels)
    live = table.live_latents("training")
    resamples = Resamples(rows.labels, rows.patient_ids, n_bootstrap=n_bootstrap, seed=seed, min_patients=min_patients)
    counts = resamples.counts(binary=logits.shape[-1] == 1)
    records = []
    for column, group in enumerate(own):
        point = classification_metrics(logits[:, column], rows.labels)
        samples = resamples.metrics(logits[:, column])
        record: dict[str, Any] = {
            "mode": group.mode,
            "k": group.k,
            "n_latents": len(group.latents),
            "n_live": len(np.intersect1d(group.latents, live, assume_unique=True)),
            **counts,
        }
        for name in METRICS:
            record[name] = point[name]
            record[f"{name}_low"], record[f"{name}_high"] = resamples.interval(
                samples[name], auroc=name == "auroc" and logits.shape[-1] == 1
            )
        beside = judged[(judged["mode"] == group.mode) & (judged["k"] == group.k)]
        for kind in _CONTROL_KINDS:
            for name in _CONTROL_METRICS:
                values = beside.loc[beside["kind"] == kind, name]
                record[f"{kind}_{name}_mean"] = values.mean()
                record[f"{kind}_{name}_low"] = values.min()
                record[f"{kind}_{name}_high"] = values.max()
        records.append(record)
    return pd.DataFrame.from_records(records)


@checked_arguments
def sweep_controls(
    table: "LatentTable",
    ranking: RankedLatents,
    *,
    concept: str,
    ks: Sequence[int] = DEFAULT_KS,
    modes: Sequence[Mode] = _MODES,
    split: str = "test",
    unit: str = "image",
    error_term: bool = False,
    n_controls: int = 20,
    seed: int = 0,
    passes: Passes | None = None,
    alpha: float | None = None,
) -> pd.DataFrame:
    """The control groups of `sweep`, one by one: what groups of latents chosen without looking at the concept do.

    Kind `random` draws as many live latents as the group has. Kind `mass` adds live latents in random order until
    their total mean activation (its absolute value, where latents can be negative) first reaches that of the group, so
    that it removes or keeps as much activation. Live latents and mean activations are those of the training split, and
    the group's own latents may be drawn. Both modes are measured on the same control groups.

    Returns:
        One row per (mode, k, kind, control): mode, k, kind, control (0 ... n_controls - 1), n_latents, auroc,
        average_precision.
    """
    modes = _checked_modes(modes)
    rows = _evaluation_rows(table, ranking, concept, split, unit)
    controls = _control_groups(table, ranking, ks, modes, n_controls, seed)
    logits = _row_logits(table, controls, rows, concept, error_term, passes, alpha)
    return _control_metrics(controls, logits, rows.labels)


@dataclass(frozen=True)
class _Group:
    """One intervention of a sweep."""

    mode: Mode
    k: int
    latents: NDArray[np.int64]
    kind: str = "own"
    control: int = 0


def _control_groups(
    table: "LatentTable",
    ranking: RankedLatents,
    ks: Sequence[int],
    modes: Sequence[Mode],
    n_controls: int,
    seed: int,
) -> list[_Group]:
    n_controls, seed = whole(n_controls, "n_controls", least=0), whole(seed, "seed", least=0)
    live = table.live_latents("training")
    mass = _mean_activation(table, "training")
    groups = []
    for k in _kept_ks(ks, table.d_sae):
        own = latent_group(ranking, k)
        drawn = [
            (kind, control, draw(own, live, mass, np.random.default_rng([seed, number, k, control])))
            for (kind, number), draw in zip(_CONTROL_KINDS.items(), (_random_control, _mass_control), strict=True)
            for control in range(n_controls)
        ]
        groups += [_Group(mode, k, latents, kind, control) for mode in modes for kind, control, latents in drawn]
    return groups


def _control_metrics(
    controls: Sequence[_Group], logits: NDArray[np.float64], labels: NDArray[np.int64]
) -> pd.DataFrame:
    records = [
        (
            group.mode,
            group.k,
            group.kind,
            group.control,
            len(group.latents),
            *ranking_metrics(logits[:, column], labels),
        )
        for column, group in enumerate(controls)
    ]
    columns = ["mode", "k", "kind", "control", "n_latents", *_CONTROL_METRICS]
    return pd.DataFrame.from_records(records, columns=columns)


def _random_control(
    group: NDArray[np.int64], live: NDArray[np.int64], _mass: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """As many live latents as the group has."""
    n_live = len(np.intersect1d(group, live, assume_unique=True))
    return rng.choice(live, size=n_live, replace=False)


def _mass_control(
    group: NDArray[np.int64], live: NDArray[np.int64], mass: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Live latents in random order until their mass first reaches the group's."""
    wanted = mass[group].sum()
    if wanted <= 0:
        return live[:0]
    order = rng.permutation(live)
    # The tolerance keeps rounding in another order of summation from asking for one latent more.
    n_needed = int(np.searchsorted(np.cumsum(mass[order]), wanted * (1 - 1e-12))) + 1
    return order[:n_needed]


def _row_logits(
    table: "LatentTable",
    groups: Sequence[_Group],
    rows: "EvaluationRows",
    head: str,
    error_term: bool,
    passes: Passes | None,
    alpha: float | None,
) -> NDArray[np.float64]:
    """Logits (n_units, n_groups, n_out) of what is evaluated under every group, each group's settled among themselves.

    Each image is computed once.
    """
    images, image_of_row = np.unique(rows.image_rows, return_inverse=True)
    edits = [(group.mode, group.latents) for group in groups]
    logits = rows.reduced_logits(_logits(table, edits, head, error_term, images, passes, alpha)[image_of_row])
    error = logit_error(table, head)
    for column in range(len(groups)):
        values = logits[:, column]
        logits[:, column] = settled(values, max(error, NETWORK_ERROR * float(np.abs(values).max(initial=0))))
    return logits


def _logits(
    table: "LatentTable",
    edits: Sequence[tuple[Mode, NDArray[np.int64]]],
    head: str,
    error_term: bool,
    image_rows: NDArray[np.int64],
    passes: Passes | None,
    alpha: float | None,
) -> NDArray[np.float64]:
    """Logits (n, n_edits, n_out) float64 under every edit, a mode and its group of latents."""
    group = np.zeros((table.d_sae, len(edits)), dtype=np.bool_)
    for column, (mode, latents) in enumerate(edits):
        one_of(mode, "mode", _MODES)
        group[latents, column] = True
    keeps_group = np.array([mode == "activate" and alpha is None for mode, _ in edits], dtype=np.bool_)
    keeps_rest = np.array([mode == "deactivate" for mode, _ in edits], dtype=np.bool_)
    kept = (group & keeps_group) | (~group & keeps_rest)
    value = 0.0 if alpha is None else between(alpha, "alpha", -np.inf, np.inf)
    if passes is not None and value == 0:
        return passes.logits(table, kept, head=head, error_term=error_term, image_rows=image_rows)
    if passes is not None:
        return passes.logits(
            table, kept, head=head, error_term=error_term, image_rows=image_rows, set_latents=group, alpha=value
        )
    if table.readout_kind == "none":
        if "logits" in table.elements:
            table.logits(head)  # says that there is no head, and how to get one
        raise InputError(
            f"the table was made of rows of {table.hook_name}, without the network behind them, so that there are no "
            "logits to change; encode images with encode_latents"
        )
    if table.readout_kind != "linear":
        raise InputError(
            f"the table was made at {table.hook_name}, behind which the network is not linear: give `passes`, "
            "a mammosae_plugin.latents.masked_passes.MaskedPasses over the cached outputs of that layer"
        )
    logits = _linear_logits(table, kept, head=head, error_term=error_term, image_rows=image_rows)
    return logits + value * (group.T.astype(np.float64) @ table.readout(head).weight) if value else logits


def _linear_logits(
    table: "LatentTable",
    kept: NDArray[np.bool_],
    *,
    head: str,
    error_term: bool,
    image_rows: NDArray[np.int64],
) -> NDArray[np.float64]:
    """The linear form of `_logits`, for latents that are kept or zeroed.

    Only the latents that count are summed, never all minus some, which would round more.
    """
    readout = table.readout(head)
    if error_term:
        # logit + sum (m_i - 1) mean_i weight_i: take away the latents that the mask zeroes.
        own = table.logits(head)[image_rows]
        return own[:, None, :] - _masked_sums(table.mean_latents, image_rows, readout.weight, ~kept)
    return readout.offset + _masked_sums(table.mean_latents, image_rows, readout.weight, kept)


def _masked_sums(
    mean_latents: csr_array, image_rows: NDArray[np.int64], weight: NDArray[np.float64], masks: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Sums over latents of mean * weight * mask, (n, n_masks, n_out) float64.

    Args:
        mean_latents: sparse (n_images, d_sae).
        image_rows: (n,) rows of it.
        weight: (d_sae, n_out).
        masks: (d_sae, n_masks).
    """
    sums = np.empty((len(image_rows), masks.shape[1], weight.shape[1]))
    for first_image in range(0, len(image_rows), _IMAGES_PER_BLOCK):
        images = slice(first_image, first_image + _IMAGES_PER_BLOCK)
        means = mean_latents[image_rows[images]]
        for output in range(weight.shape[1]):
            data = means.data * weight[means.indices, output]
            contributions = csr_array((data, means.indices, means.indptr), shape=means.shape)
            for first_mask in range(0, masks.shape[1], _GROUPS_PER_BLOCK):
                block = slice(first_mask, first_mask + _GROUPS_PER_BLOCK)
                sums[images, block, output] = contributions @ masks[:, block].astype(np.float64)
    return sums


def _mean_activation(table: "LatentTable", split: str) -> NDArray[np.float64]:
    """Mean over the images of a split of the mean latents, its absolute value, (d_sae,) float64."""
    images = np.flatnonzero((table.images["split"] == split).to_numpy())
    if len(images) == 0:
        raise InputError(f"the table has no image of split '{split}', from which controls are drawn: encode it too")
    sums = np.asarray(table.mean_latents[images].sum(axis=0, dtype=np.float64))
    return np.asarray(np.abs(sums) / len(images))


def _kept_ks(ks: Sequence[int], d_sae: int) -> list[int]:
    """The ks in rising order without repeats; those above d_sae become d_sae."""
    given = entries(ks, "ks")
    if not given:
        raise InputError("ks is empty: give numbers of latents per class, 0 or more")
    return sorted({min(whole(k, "k", least=0), d_sae) for k in given})


def _checked_modes(modes: Sequence[Mode]) -> list[Mode]:
    """The modes in the order given, without repeats."""
    given = entries(modes, "modes")
    for mode in given:
        one_of(mode, "mode", _MODES)
    if not given:
        raise InputError(f"modes is empty: give {' or '.join(_MODES)}, or both")
    return list(dict.fromkeys(given))


def _evaluation_rows(
    table: "LatentTable",
    ranking: RankedLatents,
    concept: str,
    split: str,
    unit: str,
    patients: Collection[str] | None = None,
) -> "EvaluationRows":
    if ranking.d_sae != table.d_sae:
        raise InputError(f"the ranking has {ranking.d_sae} latents, but the table has {table.d_sae}: rank this table")
    rows = table.rows(concept, split=split, unit=unit).of_patients(patients)
    require_two_classes(rows.labels, concept=concept, split=split)
    return rows
