"""Attack what `mammosae publish findings` writes for a study, as somebody would who has the dataset's labels.

    python tests/attack_published.py STUDY [--min-group 5] [--data-licence TEXT]

stages the findings with their examples in a temporary folder, tries to tell patients by order, by counts and by
differences, prints how many it told, and ends with 1 if it told any. The attacker knows every label, every patient, and
even in whose images a latent fires; what they do not know are activations.
"""

import argparse
import sys
import tempfile
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from mammosae_plugin.hub.findings import KEY_FILE, Findings, stage_findings
from mammosae_plugin.hub.guard import hash_ids, load_or_make_key
from mammosae_plugin.study_folder import StudyFolder


def attack(study: StudyFolder, findings: Findings, *, min_group: int, key: bytes | None = None) -> dict[str, int]:
    """How many images, or published numbers, each attack tells; 0 everywhere is what is promised.

    Args:
        study: the study, which knows the truth.
        findings: what was published of it.
        min_group: the fewest patients that may be told together.
        key: what ids were hashed with, to check guesses; None without examples.
    """
    told = {
        "sums of few patients": _sums(study, findings, min_group),
        "activity of few patients": _activity(study, findings, min_group),
        "maxima beside what gives them away": _maxima(findings),
        "gaps in the ranks": _gaps(findings),
        "counts that stand elsewhere": _counts(study, findings, min_group),
    }
    if key is not None and findings.examples is not None:
        told["images by order"] = _by_order(study, findings.examples, key)
        told["images by counts"] = _by_counts(study, findings.examples, key, min_group)
    return told


def _tables(study: StudyFolder) -> Any:
    return ((layer, one, one.table) for layer in study.layers for one in layer.encoders.values())


def _own(frame: pd.DataFrame, layer: Any, encoder: Any) -> pd.DataFrame:
    return frame[(frame["layer"] == layer.name) & (frame["encoder"] == encoder.name)]


def few(fires: np.ndarray, patients: np.ndarray, images: np.ndarray, min_group: int) -> np.ndarray:
    """(d_sae,) latents that fire in some of the images, but in those of fewer patients than `min_group`."""
    rows = pd.DataFrame(fires[images]).groupby(patients[images]).any().to_numpy().sum(0)
    return (rows > 0) & (rows < min_group)


def _sums(study: StudyFolder, findings: Findings, min_group: int) -> int:
    """Every sum of class means with the factors -1, 0 and 1 of which only few patients are left."""
    n = 0
    for layer, encoder, table in _tables(study):
        unit = layer.results["data"]["unit"]
        fires, patients = table.max_latents.toarray() != 0, table.images["patient_id"].to_numpy()
        own = _own(findings.concepts, layer, encoder)
        for split, column in (("training", "class_mean"), ("training", "score"), ("test", "ablation_effect")):
            weights, shown = [], []
            for concept in encoder.concepts:
                rows = table.rows(concept, split=split, unit=unit)
                for label in table.classes(concept):
                    if split == "test" and label != 1:
                        continue
                    images = rows.image_rows[rows.labels == label]
                    weights.append(np.bincount(images, minlength=len(table.images)))
                    of_class = own[(own["concept"] == concept) & (own["class"] == label)]
                    shown.append(of_class.set_index("latent")[column].reindex(range(table.d_sae)).notna().to_numpy())
            if split == "test":
                activity = _own(findings.latents, layer, encoder)
                weights.append((table.images["split"] == "test").to_numpy().astype(int))
                shown.append(activity["mean_activation"].notna().to_numpy())
            for factors in product((-1, 0, 1), repeat=len(weights)):
                used = [place for place, factor in enumerate(factors) if factor]
                left = sum(factor * weight for factor, weight in zip(factors, weights, strict=True))
                if used and np.any(left):
                    known = np.logical_and.reduce([shown[place] for place in used])
                    n += int((few(fires, patients, left != 0, min_group) & known).sum())
    return n


def _activity(study: StudyFolder, findings: Findings, min_group: int) -> int:
    n = 0
    for layer, encoder, table in _tables(study):
        test = (table.images["split"] == "test").to_numpy()
        fires, patients = table.max_latents.toarray() != 0, table.images["patient_id"].to_numpy()
        own = _own(findings.latents, layer, encoder)
        hide = few(fires, patients, test, min_group)
        n += int(own.loc[hide, ["firing_rate", "mean_activation", "max_activation"]].notna().sum().sum())
        n += int(own.loc[few(~fires, patients, test, min_group), "firing_rate"].notna().sum())
    return n


def _maxima(findings: Findings) -> int:
    own = findings.latents
    hidden = own["max_activation"].isna() & (own["firing_rate"] != 0)
    return int(own.loc[hidden, "mean_activation"].notna().sum())


def _gaps(findings: Findings) -> int:
    ranks = findings.concepts.dropna(subset=["rank"]).groupby(["layer", "encoder", "concept", "class"])["rank"]
    found = sum(sorted(own) != list(range(1, len(own) + 1)) for _, own in ranks)
    places = ["layer", "method", "model", "concept", "threshold", "iou_threshold"]
    tables = findings.localization.groupby(places)["rank"]
    return found + sum(sorted(own) != list(range(1, len(own) + 1)) for _, own in tables)


def _counts(study: StudyFolder, findings: Findings, min_group: int) -> int:
    """Counts of classes with few patients that some table tells."""
    n = 0
    for layer, encoder, table in _tables(study):
        for concept in encoder.concepts:
            for split in ("training", "test"):
                rows = table.rows(concept, split=split, unit=layer.results["data"]["unit"])
                sizes = [len(set(rows.patient_ids[rows.labels == label])) for label in table.classes(concept)]
                if min(sizes) >= min_group:
                    continue
                told = [row for row in findings.study["data"]["concepts"] if row["concept"] == concept]
                n += sum(row["n_positive"] is not None for row in told if row["split"] == split)
                n += sum(row["n_boxes"] is not None for row in told if row["split"] == split)
                quality = findings.study["sae"][layer.name]["quality"]
                own = [row for row in quality if (row["concept"], row["split"]) == (concept, split)]
                n += sum(row.get("auroc_cost") is not None for row in own)
                frames = {
                    "training": [(findings.concepts, "n_images")],
                    "test": [(findings.reconstruction, "n_positive"), (findings.localization, "n_images")],
                }
                for frame, column in frames[split]:
                    n += int(frame.loc[frame["concept"] == concept, column].notna().sum())
    return n


def _by_order(study: StudyFolder, examples: pd.DataFrame, key: bytes) -> int:
    """Images that one of the dataset's orders, put beside the published one, names; where the orders agree at all."""
    (_, _, table) = next(_tables(study))
    images = table.images[["image_id", "patient_id"]].astype(str)
    images["hash"] = hash_ids(images["image_id"], key)
    there = images[images["hash"].isin(examples["image"])].reset_index(drop=True)
    published = examples["image"].drop_duplicates().tolist()
    worst = 0
    for order in (there, there.sort_values("image_id"), there.sort_values(["patient_id", "image_id"])):
        for guess in (order["hash"].tolist(), order["hash"].tolist()[::-1]):
            place = {one: number for number, one in enumerate(guess)}
            agreement = spearmanr([place[one] for one in published], range(len(published))).statistic
            if abs(agreement) > 4 / max(len(published), 17) ** 0.5:  # four standard deviations of what chance gives
                worst = max(worst, sum(a == b for a, b in zip(published, guess, strict=True)))
    return worst


def _by_counts(study: StudyFolder, examples: pd.DataFrame, key: bytes, min_group: int) -> int:
    """Images of patients whose number of images and labels fewer than `min_group` patients have."""
    signs: dict[str, Counter[Any]] = {}
    wide = examples.drop_duplicates(["image", "concept"]).pivot(index="image", columns="concept", values="label")
    patients = examples.drop_duplicates("image").set_index("image")["patient"]
    for image, labels in zip(wide.index, wide.itertuples(index=False, name=None), strict=True):
        signs.setdefault(patients[image], Counter())[labels] += 1
    looks = {patient: frozenset(own.items()) for patient, own in signs.items()}
    alike = Counter(looks.values())
    return sum(own.total() for patient, own in signs.items() if alike[looks[patient]] < min_group)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--min-group", type=int, default=5)
    parser.add_argument("--data-licence")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        staged = stage_findings(
            given.study, Path(folder) / "findings", licence="mit", examples=True,
            min_group=given.min_group, data_licence=given.data_licence,
        )  # fmt: skip
        findings = Findings.load(staged)
    key = load_or_make_key(given.study / KEY_FILE)
    told = attack(StudyFolder(given.study), findings, min_group=given.min_group, key=key)
    for what, number in told.items():
        sys.stdout.write(f"{what}: {number}\n")
    return int(any(told.values()))


if __name__ == "__main__":
    sys.exit(main())
