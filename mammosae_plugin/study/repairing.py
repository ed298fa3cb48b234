"""A classifier that no longer uses chosen latents, as a file, and what that does to it, before and after."""

__all__ = ["checked_output", "groups_of", "Kind", "Repair", "repair", "repaired_logits", "require_group"]

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sae_lens import SAE

from mammosae_plugin.adapters import Classifier, HookedVisionModel, load_classifier, save_classifier
from mammosae_plugin.adapters.classifier import encoder_state, head_of
from mammosae_plugin.adapters.folding import fold_latents, project_head
from mammosae_plugin.adapters.hook_names import module_path
from mammosae_plugin.adapters.mammo_clip_files import save_mammo_clip
from mammosae_plugin.adapters.recording import evaluation
from mammosae_plugin.analysis.covariates import NEVER
from mammosae_plugin.analysis.lesion_localization import froc_of_stages
from mammosae_plugin.analysis.lesion_truth import Lesions
from mammosae_plugin.arguments import checked_arguments, entries, indices, one_of, resampling, shown
from mammosae_plugin.datasets import StudyDataset
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.latents.peak_finder import peaks_of
from mammosae_plugin.latents.peaks import Peaks, cell_centres
from mammosae_plugin.measures.calibration import calibration
from mammosae_plugin.measures.statistics import (
    MIN_PATIENTS,
    Resamples,
    classification_metrics,
)
from mammosae_plugin.measures.units import EvaluationRows
from mammosae_plugin.progress import progress
from mammosae_plugin.provenance import tensors_fingerprint

Kind = Literal["exact", "linear"]
ALL = "all"
_AGREEMENT = 1e-4  # of a logit of the repaired network with the closed form, in units of the largest
_TRIED = 4  # images that the network is run on to see that
_MOST_VALUES = 8  # of a numeric covariate, above which it is cut into thirds
_MOST_GROUPS = 30
_NATIVE = (".pth", ".pt", ".tar")


@dataclass(frozen=True)
class Repair:
    """A repaired classifier, and what the repair did.

    Attributes:
        classifier: the repaired network.
        head: the concept that it classifies.
        latents: the latents that were scaled.
        scale: by what.
        kind: "exact" or "linear".
        hook_name: the SAE's layer.
        performance: one row per group and stage (`before`, `after`; of a linear repair also `exact`, what folding the
            SAE in would have given): group, stage, n_rows, n_positive, n_patients, fewest_patients (of the
            class that has the fewest), auroc, auroc_low, auroc_high,
            auroc_change, _low and _high (against before, on the same resamples of patients), calibration_slope, _low,
            _high, calibration_excess, ece, brier (of one output; `measures.calibration`), and reason: why something is
            NaN, else empty.
        firing: one row per latent: latent, n_images and n_patients of the split in which it fires.
        difference: of a linear repair from the exact one, in logits over the split: largest, root_mean_square, and
            root_mean_square of the exact repair itself (`of_the_repair`); empty of an exact one.
        notes: what is to be known beside the numbers.
        froc: where it was asked for, one row per stage and number of false positives per image, with the columns of
            `analysis.lesion_localization.froc_of_stages`: sensitivity and CPM with intervals, and beside each what the
            same peaks find of other patients' lesions. It is of the peaks of the logit's own map (at every position the
            layer through the head), which a repair changes.
    """

    classifier: Classifier
    head: str
    latents: tuple[int, ...]
    scale: float
    kind: Kind
    hook_name: str
    performance: pd.DataFrame
    firing: pd.DataFrame = field(default_factory=pd.DataFrame)
    difference: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    froc: pd.DataFrame | None = None

    def to_frame(self) -> pd.DataFrame:
        """`performance`."""
        return self.performance

    def worst(self, stage: str = "after", *, min_patients: int = MIN_PATIENTS) -> "pd.Series[Any] | None":
        """The row of the group with the lowest AUROC; None where there is none.

        Args:
            stage: as in `performance`.
            min_patients: patients of either class that a group needs to be counted.
        """
        rows = self.performance[(self.performance["stage"] == stage) & (self.performance["group"] != ALL)]
        rows = rows[(rows["fewest_patients"] >= min_patients) & rows["auroc"].notna()]
        return None if rows.empty else rows.iloc[int(rows["auroc"].to_numpy().argmin())]

    def describe(self) -> dict[str, Any]:
        """What was done, in plain JSON, as the file says it."""
        return {
            "latents": list(self.latents),
            "scale": self.scale,
            "kind": self.kind,
            "hook_name": self.hook_name,
            "concept": self.head,
        }

    def save(self, path: str | Path) -> Path:
        """Write the classifier, and see that what is read again is it.

        Args:
            path: `.safetensors`, which `load_classifier` reads, `load_mammo_clip` too where it is a network of theirs;
                or, of a linear repair of Mammo-CLIP's B5 or B2, `.pth`, which their own code reads as well.

        Raises:
            InputError: another ending, or a network that the form cannot hold.
        """
        path = checked_output(path, self.kind)
        if path.suffix in _NATIVE:
            save_mammo_clip(self.classifier, path)
        else:
            known = dict(self.classifier.source.get("metadata") or {})
            save_classifier(self.classifier, path, metadata={**known, "concept": self.head, "repair": self.describe()})
        functions = [self.classifier.architecture]  # of a function's network: it has just been run
        with torch.inference_mode():
            tried = torch.rand(
                1, 3, *(self.classifier.image_size or (64, 64)), generator=torch.Generator().manual_seed(0)
            )
            again = load_classifier(path, functions=functions)
            expected = self.classifier(tried.to(next(self.classifier.network.parameters()).device)).cpu()
            if not torch.allclose(again(tried), expected, atol=1e-5, rtol=1e-5):
                raise RuntimeError(f"{path} does not give the logits of the network that was written")
        return path


def checked_output(path: str | Path, kind: Kind) -> Path:
    """A place for a repaired classifier, seen before anything is computed.

    Raises:
        InputError: another ending than `Repair.save` takes, a folder, or a place below a file.
    """
    path = local_path(path)
    if path.suffix in _NATIVE and kind != "linear":
        raise InputError(
            f"{path.name} is a file of Mammo-CLIP's own form, which has no place for an SAE; name a .safetensors, or "
            "repair with kind='linear' (--kind linear)"
        )
    if path.suffix not in (*_NATIVE, ".safetensors"):
        raise InputError(f"{path.name} ends in {path.suffix or 'nothing'}; name a .safetensors or .pth file")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file")
    above = next((one for one in path.parents if one.exists()), None)
    if above is not None and not above.is_dir():
        raise InputError(f"{above} is no folder, so {path.name} cannot lie below it; name another place")
    return path


@checked_arguments
def repair(
    table: LatentTable,
    classifier: Classifier,
    sae: SAE[Any],
    latents: Sequence[int],
    *,
    head: str | None = None,
    scale: float = 0.0,
    kind: Kind = "exact",
    group: str | Sequence[str] | None = None,
    split: str = "test",
    unit: str = "image",
    images: StudyDataset | None = None,
    path: str | Path | None = None,
    froc: bool = False,
    n_bootstrap: int = 1000,
    min_patients: int = MIN_PATIENTS,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int = 4,
) -> Repair:
    """Remove latents from a classifier for good, or scale them, and measure it before and after.

    `exact` folds the SAE's part in: in every position the layer loses (1 - s) z_j W_dec[j] of each latent j, what
    scaling it does in the running network with the error term; the file carries the encoder of these latents. `linear`
    scales their decoder directions in the head, which any code can run, but takes with them whatever else lies in these
    directions: it is an approximation, and `difference` says how good.

    At the final map the figures follow from the table in closed form. At an inner layer, where only `exact` exists, the
    networks are run on `images`.

    Args:
        table: the latents table of this classifier and SAE.
        classifier: without hooks; it is not changed.
        sae: the table's.
        latents: those to remove or scale.
        head: the concept; by default the one whose head the classifier has.
        scale: what they are multiplied by, 0 to remove them.
        kind: "exact" or "linear".
        group: a column of `table.images`, such as a device, or several, by each of which performance is told apart
            too; numbers of many values are cut into thirds. A unit of several images that differ in it is in no group.
        split: the split whose images are measured.
        unit: as for `LatentTable.rows`.
        images: the table's images, as the network reads them; at the final map only to see on a few that the repaired
            network gives the logits of the closed form.
        path: where to write the classifier (`Repair.save`).
        froc: also which lesions the logit's map finds, before and after; at the final map, by running both networks on
            all `images` of the split.
        n_bootstrap: resamples of patients.
        min_patients: patients of either class that a group needs for an interval.
        seed: of the resamples.
        device: where networks run.
        batch_size: images per pass.

    Raises:
        InputError: a table of another network, SAE or head; latents that it has not; an unknown column; a linear repair
            of an inner layer; an inner layer without images.

    Example:
        >>> done = repair(table, classifier, sae, [13867], group="machine", path="r.safetensors")   # doctest: +SKIP
        >>> done.performance, done.worst("before"), done.worst("after")   # doctest: +SKIP
    """
    one_of(kind, "kind", ("exact", "linear"))
    if path is not None:
        checked_output(path, kind)
    n_bootstrap, min_patients, seed = resampling(n_bootstrap, min_patients, seed)
    chosen = indices(latents, "latents", table.d_sae, distinct=True)
    columns = [group] if isinstance(group, str) else [str(one) for one in entries(group or (), "group")]
    head = _checked_head(table, classifier, sae, head)
    is_linear = table.readout_kind == "linear"
    if kind == "linear" and not is_linear:
        raise InputError(
            f"a linear repair scales directions in the head, which reads no map of {table.hook_name}; use kind='exact'"
        )
    if not is_linear and images is None:
        raise InputError(
            f"{table.folder} was made at {table.hook_name}, an inner layer, where the repaired network must be run: "
            "give the images of the table (images=)"
        )
    if froc and (not is_linear or images is None):
        raise InputError("FROC is of maps at the final map, of images: give images=, or leave froc out")
    rows = table.rows(head, split=split, unit=unit)
    groups = [(name, own) for column in columns for name, own in groups_of(table, rows, column)]
    exact = fold_latents(classifier, sae, chosen.tolist(), scale=scale, hook_name=table.hook_name)
    made = exact if kind == "exact" else project_head(classifier, sae, chosen.tolist(), scale=scale)
    stages = {"before": table.logits(head)}
    if is_linear:
        closed = _scaled_logits(table, head, chosen, scale)
        stages |= {"after": closed} if kind == "exact" else {"after": _head_logits(table, made), "exact": closed}
        if images is not None:
            _see(table, made, images, stages["after"], rows, device, batch_size)
    else:
        assert images is not None
        stages["after"] = _run(table, made, images, np.unique(rows.image_rows), device, batch_size)
    firing = _firing(table, rows, chosen)
    done = Repair(
        made,
        head,
        tuple(chosen.tolist()),
        float(scale),
        kind,
        table.hook_name,
        _performance(rows, stages, groups, n_bootstrap, min_patients, seed),
        firing,
        _difference(stages, rows) if kind == "linear" else {},
        (*_firing_notes(firing, table, rows, kind, split), *_notes(table, kind, rows, columns, froc)),
        None
        if not froc or images is None
        else _froc(
            table,
            {"before": classifier, "after": made},
            images,
            head,
            split,
            device,
            n_bootstrap=n_bootstrap,
            seed=seed,
            min_patients=min_patients,
        ),
    )
    if path is not None:
        done.save(path)
    return done


def _checked_head(table: LatentTable, classifier: Classifier, sae: SAE[Any], head: str | None) -> str:
    """The concept, after it has been seen that table, classifier and SAE belong together."""
    made_of, own = table.provenance["inputs"], head_of(classifier)
    if own is None:
        raise InputError(f"the network ({classifier.architecture}) has no linear head to repair")
    if made_of["sae"] != tensors_fingerprint(sae.state_dict()):
        raise InputError(f"{table.folder} was made with another SAE; give its own")
    weights = {
        f"model.{name}": tensor for name, tensor in encoder_state(classifier).items()
    }  # as hooked models have them
    if made_of["model"] != tensors_fingerprint(weights):
        raise InputError(f"{table.folder} was made with a network of other weights; give its own")
    print_ = tensors_fingerprint(own.state_dict())
    fitting = [name for name, other in made_of["heads"].items() if other == print_]
    if head is not None:
        table.logits(head)  # says which there are
    if not fitting or (head is not None and head not in fitting):
        which = "none of its heads" if head is None else f"the head of {head}"
        raise InputError(
            f"the classifier's head is not that of {table.folder}: it is {which} there; give its classifier"
        )
    return fitting[0] if head is None else head


def repaired_logits(
    table: LatentTable,
    classifier: Classifier,
    sae: SAE[Any],
    head: str,
    latents: Sequence[int],
    scale: float,
    kind: Kind,
) -> NDArray[np.float64]:
    """(n_images, n_out) logits of a repair at the final map, in closed form."""
    if kind == "exact" or not len(latents):
        return _scaled_logits(table, head, np.array(latents, dtype=np.int64), scale)
    return _head_logits(table, project_head(classifier, sae, latents, scale=scale))


def _scaled_logits(table: LatentTable, head: str, chosen: NDArray[np.int64], scale: float) -> NDArray[np.float64]:
    means = table.mean_latents[:, chosen].astype(np.float64)
    taken: NDArray[np.float64] = np.asarray(means @ table.readout(head).weight[chosen])
    return table.logits(head) - (1 - scale) * taken


def _head_logits(table: LatentTable, classifier: Classifier) -> NDArray[np.float64]:
    own = head_of(classifier)
    assert own is not None and own.bias is not None
    weight, bias = (tensor.detach().double().cpu().numpy() for tensor in (own.weight, own.bias))
    found: NDArray[np.float64] = table.mean_channels.astype(np.float64) @ weight.T + bias
    return found


def _numbers(images: StudyDataset) -> dict[str, int]:
    """The place of each image in its dataset."""
    return {str(one): number for number, one in enumerate(images.images["image_id"])}


def _run(
    table: LatentTable,
    classifier: Classifier,
    images: StudyDataset,
    image_rows: NDArray[np.int64],
    device: str,
    batch_size: int,
) -> NDArray[np.float64]:
    """(n_images, n_out) logits of a network; NaN where an image was not asked for."""
    number_of = _numbers(images)
    ids = table.images["image_id"].astype(str).to_numpy()[image_rows]
    if missing := [one for one in ids if one not in number_of]:
        raise InputError(f"the images lack {len(missing)} of the {len(ids)} of the table ({missing[0]}); give its own")
    part = images.with_preprocessing(classifier.preprocessing)
    logits = np.full((len(table.images), classifier.n_class), np.nan)
    with evaluation(classifier.network, device=device), torch.inference_mode():
        starts = range(0, len(ids), batch_size)
        for first in progress(starts, description="run the network", unit="step", delay=2, leave=False):
            some = slice(first, first + batch_size)
            batch = torch.stack([part[number_of[one]]["image"] for one in ids[some]])
            logits[image_rows[some]] = classifier(batch.to(device)).double().cpu().numpy()
    return logits


def _see(
    table: LatentTable,
    classifier: Classifier,
    images: StudyDataset,
    logits: NDArray[np.float64],
    rows: EvaluationRows,
    device: str,
    batch_size: int,
) -> None:
    """See on a few images that the repaired network gives the logits that are told.

    Raises:
        RuntimeError: it does not.
    """
    tried = np.unique(rows.image_rows)[:_TRIED]
    found = _run(table, classifier, images, tried, device, batch_size)[tried]
    error = float(np.abs(found - logits[tried]).max(initial=0))
    if not error <= _AGREEMENT * max(1.0, float(np.abs(logits[tried]).max(initial=0))):
        raise RuntimeError(f"the repaired network's logits differ from the closed form by {error:.1e}")


def _performance(
    rows: EvaluationRows,
    stages: Mapping[str, NDArray[np.float64]],
    groups: Sequence[tuple[str, NDArray[np.bool_]]],
    n_bootstrap: int,
    min_patients: int,
    seed: int,
) -> pd.DataFrame:
    logits = {stage: rows.logits(values) for stage, values in stages.items()}
    found = []
    for name, chosen in [(ALL, np.ones(len(rows.labels), dtype=np.bool_)), *groups]:
        labels, patients = rows.labels[chosen], rows.patient_ids[chosen]
        resamples = None
        if len(np.unique(labels)) > 1:
            resamples = Resamples(labels, patients, n_bootstrap=n_bootstrap, seed=seed, min_patients=min_patients)
        before: NDArray[np.float64] | None = None
        for stage, of_all in logits.items():
            own = of_all[chosen]
            record: dict[str, Any] = {"group": name, "stage": stage, "n_rows": len(labels)}
            record |= {"n_positive": int((labels > 0).sum()), "n_patients": len(np.unique(patients.astype(str)))}
            record["fewest_patients"] = 0 if resamples is None else int(resamples.patients_per_class.min())
            record |= dict.fromkeys(_NUMBERS, np.nan)
            reasons = ["one class only"] if resamples is None else []
            if own.shape[1] == 1 and len(labels):
                record |= _calibrated(labels, own[:, 0], patients)
                if np.isnan(record["calibration_slope"]) and resamples is not None:
                    reasons.append(_NO_SLOPE if own.std() >= _LEAST_SPREAD else _ALIKE.format(own.std()))
            if resamples is not None:
                binary = own.shape[1] == 1
                samples = resamples.metrics(own)["auroc"]
                record["auroc"] = classification_metrics(own, labels)["auroc"]
                record["auroc_low"], record["auroc_high"] = resamples.interval(samples, auroc=binary)
                if before is None:
                    before, at = samples, record["auroc"]
                else:
                    record["auroc_change"] = record["auroc"] - at
                    change = resamples.interval(samples - before)
                    record["auroc_change_low"], record["auroc_change_high"] = change
                if np.isnan(record["auroc_low"]) and n_bootstrap:
                    reasons.append(f"no interval: fewer than {min_patients} patients of a class")
            record["reason"] = "; ".join(reasons)
            found.append(record)
    return pd.DataFrame(found)


_NUMBERS = (
    *("auroc", "auroc_low", "auroc_high", "auroc_change", "auroc_change_low", "auroc_change_high"),
    *("calibration_slope", "calibration_slope_low", "calibration_slope_high", "calibration_excess", "ece", "brier"),
)


_LEAST_SPREAD = 0.01  # of logits, in standard deviations: a slope of 1 would be an AUROC of 0.503
_NO_SLOPE = "no slope: a threshold tells the classes apart, or nearly"
_ALIKE = "no slope: the logits hardly differ (standard deviation {:.1g})"


def _calibrated(labels: NDArray[np.int64], logits: NDArray[np.float64], patients: NDArray[Any]) -> dict[str, float]:
    found = calibration(labels, logits, patients.astype(str))
    fitted = (found.slope, *found.slope_interval) if logits.std() >= _LEAST_SPREAD else (np.nan,) * 3
    return {
        **dict(zip(("calibration_slope", "calibration_slope_low", "calibration_slope_high"), fitted, strict=True)),
        "calibration_excess": found.excess,
        "ece": found.ece,
        "brier": found.brier,
    }


def require_group(group: str) -> None:
    """Refuse a column that makes no groups of patients: ids, splits and what is told of the label itself.

    Raises:
        InputError: it is one.
    """
    if group in NEVER:
        raise InputError(
            f"{group} makes no groups of patients; name a column of the patients or of how images were made, such as "
            "machine or laterality"
        )


def groups_of(table: LatentTable, rows: EvaluationRows, group: str) -> list[tuple[str, NDArray[np.bool_]]]:
    """By name (column=value) which units have each value of a column.

    Raises:
        InputError: no such column, one of ids, nothing known of it, or too many values.
    """
    require_group(group)
    if group not in table.images.columns:
        there = ", ".join(map(str, table.images.columns))
        raise InputError(f"{table.folder} has no column {group!r} to tell groups by; it has {there}")
    values = table.images[group].iloc[rows.image_rows].reset_index(drop=True)
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > _MOST_VALUES:
        values = pd.qcut(values, 3, duplicates="drop").astype(object)
    of_unit = np.arange(len(values)) if rows.unit_of_row is None else rows.unit_of_row
    named = values.map(lambda value: None if pd.isna(value) else f"{group}={value}")
    by_unit = named.groupby(of_unit)
    one = by_unit.first().where(by_unit.nunique(dropna=False) == 1)
    if one.isna().all():
        raise InputError(f"{table.folder} knows no {group!r} of the images of this split; name another column")
    if one.nunique() > _MOST_GROUPS:
        raise InputError(
            f"{group!r} has {one.nunique()} values, too many to tell groups by; name a column of at most {_MOST_GROUPS}"
        )
    return [(str(name), (one == name).to_numpy()) for name in sorted(one.dropna().unique())]


def _difference(stages: Mapping[str, NDArray[np.float64]], rows: EvaluationRows) -> dict[str, float]:
    used = np.unique(rows.image_rows)
    apart = (stages["after"] - stages["exact"])[used]
    meant = (stages["exact"] - stages["before"])[used]
    return {
        "largest": float(np.abs(apart).max(initial=0)),
        "root_mean_square": float(np.sqrt(np.square(apart).mean())),
        "of_the_repair": float(np.sqrt(np.square(meant).mean())),
    }


_PEAKS = 20  # of the logit's map, in each image


def _froc(
    table: LatentTable,
    stages: Mapping[str, Classifier],
    images: StudyDataset,
    head: str,
    split: str,
    device: str,
    **settings: Any,
) -> pd.DataFrame:
    """Which lesions the peaks of the logit's map find; see `Repair.froc`."""
    image_rows = Lesions.read(table, head, split).image_rows
    peaks = {stage: _peaks(table, one, images, image_rows, device) for stage, one in stages.items()}
    return froc_of_stages(table, head, peaks, split=split, **settings)


def _peaks(
    table: LatentTable, classifier: Classifier, images: StudyDataset, image_rows: NDArray[np.int64], device: str
) -> Peaks:
    """The strongest places of the logit's map in each image."""
    number_of = _numbers(images)
    part, own = images.with_preprocessing(classifier.preprocessing), head_of(classifier)
    assert own is not None
    rows, cells, values = [], [], []
    with (
        HookedVisionModel(classifier.network, [module_path(table.hook_name)]) as model,
        evaluation(model, device=device),
        torch.inference_mode(),
    ):
        weight = own.weight[-1]
        for row in progress(image_rows.tolist(), description="peaks", unit="image", delay=2, leave=False):
            image: torch.Tensor = part[number_of[str(table.images["image_id"][row])]]["image"]
            value = model.read(image[None].to(device), table.hook_name).value[0]
            _, positions, scores = peaks_of((value @ weight)[None].float().cpu(), _PEAKS)
            rows.append(np.full(len(positions), row))
            cells.append(positions.numpy())
            values.append(scores.numpy())
    where = np.concatenate(cells)
    return Peaks(
        np.concatenate(rows),
        np.zeros(len(where), dtype=np.int64),
        where,
        cell_centres(where, table.grid, table.image_size),
        np.concatenate(values),
    )


def _firing(table: LatentTable, rows: EvaluationRows, chosen: NDArray[np.int64]) -> pd.DataFrame:
    """As `Repair.firing`."""
    used = np.unique(rows.image_rows)
    fires = table.mean_latents[used][:, chosen].toarray() != 0
    patients = table.images["patient_id"].astype(str).to_numpy()[used]
    counts = {"n_images": fires.sum(axis=0), "n_patients": [len(set(patients[own])) for own in fires.T]}
    return pd.DataFrame({"latent": chosen, **counts})


def _firing_notes(
    firing: pd.DataFrame, table: LatentTable, rows: EvaluationRows, kind: Kind, split: str
) -> Iterator[str]:
    used = np.unique(rows.image_rows)
    n_patients = table.images["patient_id"].astype(str).iloc[used].nunique()
    told = [f"{one.latent} in {one.n_images} images of {one.n_patients} patients" for one in firing.itertuples()]
    yield f"of the {len(used)} images of {n_patients} patients of the {split} split, latents fire: {', '.join(told)}"
    if silent := [str(one) for one in firing["latent"][firing["n_images"] == 0]]:
        one = len(silent) == 1
        latents = f"latent{'' if one else 's'} {', '.join(silent)}"
        what = f"{latents} {'fires' if one else 'fire'} in no image of the split"
        if kind == "exact":
            yield f"{what}, so scaling {'it' if one else 'them'} changes nothing there"
        else:
            yield f"{what}; a linear repair scales what else lies in their directions all the same"


def _notes(table: LatentTable, kind: Kind, rows: EvaluationRows, columns: Sequence[str], froc: bool) -> Iterator[str]:
    if kind == "linear":
        yield (
            "linear: whatever else lies in the latents' decoder directions is scaled with them; the stage `exact` is "
            "what folding the SAE in gives"
        )
    else:
        yield "exact: in every position the latents' own contribution is scaled, and nothing else changes"
    for group in columns:
        left = len(rows.labels) - sum(int(chosen.sum()) for _, chosen in groups_of(table, rows, group))
        if left:
            yield f"{left} of {len(rows.labels)} are in no group: {shown(group)} is not known of them, or differs"
    if not froc:
        yield "FROC is left out: it needs a pass over all images of the split, before and after (froc)"
