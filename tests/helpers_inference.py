"""Attacks by arithmetic on the findings of a study, as somebody would who has the dataset's labels.

The attacker knows every label, every patient, and even in whose images a latent fires; what they do not know are
activations. Each attack gives how many images, or published numbers, it tells; 0 is what is promised.
"""

from collections import Counter
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from mammosae_plugin.findings.study_folder import StudyFolder
from mammosae_plugin.hub.findings import Findings
from mammosae_plugin.privacy.guard import hash_ids


def tables_of(study: StudyFolder) -> Any:
    return ((layer, one, one.table) for layer in study.layers for one in layer.encoders.values())


def _own(frame: pd.DataFrame, layer: Any, encoder: Any) -> pd.DataFrame:
    return frame[(frame["layer"] == layer.name) & (frame["encoder"] == encoder.name)]


def few(fires: np.ndarray, patients: np.ndarray, images: np.ndarray, min_group: int) -> np.ndarray:
    """(d_sae,) latents that fire in some of the images, but in those of fewer patients than `min_group`."""
    rows = pd.DataFrame(fires[images]).groupby(patients[images]).any().to_numpy().sum(0)
    return (rows > 0) & (rows < min_group)


def sums(study: StudyFolder, findings: Findings, min_group: int) -> int:
    """Every sum of class means with the factors -1, 0 and 1 of which only few patients are left."""
    n = 0
    for layer, encoder, table in tables_of(study):
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
                    told = of_class.set_index("latent")[column].reindex(range(table.d_sae)).notna().to_numpy()
                    shown.append(told | _named(findings, layer, encoder, concept, "mean_with", split))
            if split == "test":
                activity = _own(findings.latents, layer, encoder)
                weights.append((table.images["split"] == "test").to_numpy().astype(int))
                shown.append(activity["mean_activation"].notna().to_numpy())
                for concept in encoder.concepts:
                    rows = table.rows(concept, split=split, unit=unit)
                    weights.append(np.bincount(rows.image_rows[rows.labels == 0], minlength=len(table.images)))
                    shown.append(_named(findings, layer, encoder, concept, "mean_without", split))
            for factors in product((-1, 0, 1), repeat=len(weights)):
                used = [place for place, factor in enumerate(factors) if factor]
                left = sum(factor * weight for factor, weight in zip(factors, weights, strict=True))
                if used and np.any(left):
                    known = np.logical_and.reduce([shown[place] for place in used])
                    n += int((few(fires, patients, left != 0, min_group) & known).sum())
    return n


def _named(findings: Findings, layer: Any, encoder: Any, concept: str, column: str, split: str) -> np.ndarray:
    """(d_sae,) latents beside whose role a mean over test images stands."""
    named = findings.study["named_latents"].get(layer.name, {}).get(f"{encoder.model}/{concept}", [])
    told = [one["latent"] for one in named if split == "test" and one.get(column) is not None]
    return np.isin(np.arange(encoder.table.d_sae), told)


def activity(study: StudyFolder, findings: Findings, min_group: int) -> int:
    """Activity of latents that fire, or are silent, in the test images of few patients."""
    n = 0
    for layer, encoder, table in tables_of(study):
        test = (table.images["split"] == "test").to_numpy()
        fires, patients = table.max_latents.toarray() != 0, table.images["patient_id"].to_numpy()
        own = _own(findings.latents, layer, encoder)
        hide = few(fires, patients, test, min_group)
        n += int(own.loc[hide, ["firing_rate", "mean_activation", "max_activation"]].notna().sum().sum())
        n += int(own.loc[few(~fires, patients, test, min_group), "firing_rate"].notna().sum())
    return n


def maxima(_study: StudyFolder, findings: Findings, _min_group: int) -> int:
    """Means beside a hidden maximum, which together with counts give it away."""
    own = findings.latents
    hidden = own["max_activation"].isna() & (own["firing_rate"] != 0)
    return int(own.loc[hidden, "mean_activation"].notna().sum())


def gaps(_study: StudyFolder, findings: Findings, _min_group: int) -> int:
    """Ranks that say between which others a hidden latent lies."""
    ranks = findings.concepts.dropna(subset=["rank"]).groupby(["layer", "encoder", "concept", "class"])["rank"]
    found = sum(sorted(own) != list(range(1, len(own) + 1)) for _, own in ranks)
    places = ["layer", "method", "model", "concept", "threshold", "iou_threshold"]
    tables = findings.localization.groupby(places)["rank"]
    return found + sum(sorted(own) != list(range(1, len(own) + 1)) for _, own in tables)


def bins(study: StudyFolder, findings: Findings, min_group: int) -> int:
    """Counts of a histogram, and differences of two of a bin, that are of few patients' images; wrong ones too."""
    n = 0
    frame = findings.histograms
    for layer, encoder, table in () if frame is None else tables_of(study):
        test = (table.images["split"] == "test").to_numpy()
        values, patients = table.max_latents.toarray(), table.images["patient_id"].to_numpy()
        for latent, rows in _own(frame, layer, encoder).groupby("latent"):
            own = values[:, latent].astype(float)
            sets = {("", 0): test, ("nobody", 0): np.zeros_like(test)}
            for row in rows.itertuples():
                of_class = test & (table.images[row.concept].to_numpy() == row[rows.columns.get_loc("class") + 1])
                sets[row.concept, len(sets)] = of_class
                edges, counts = np.array(row.edges), list(row.n_images)
                inside = np.clip(np.searchsorted(edges, own, side="right") - 1, 0, len(counts) - 1)
                found = [int((of_class & (inside == one) & (own > 0)).sum()) for one in range(len(counts))]
                silent = int((of_class & (own <= 0)).sum())
                if pd.isna(row.n_silent):
                    found[0] += silent
                n += found != counts or row.n != sum(counts) + (0 if pd.isna(row.n_silent) else row.n_silent)
                bounds = (tuple(edges), bool(pd.isna(row.n_silent)))
                sets.setdefault((row.concept, -1), np.zeros_like(test))
                sets[row.concept, -1] = sets[row.concept, -1] | of_class
            where = [(own > 0) & (inside == one) for one in range(len(bounds[0]) - 1)]
            where = [where[0] | (own <= 0), *where[1:]] if bounds[1] else [own <= 0, *where]
            for (_, one), (_, other) in combinations(sets.items(), 2):
                for place in where:
                    left = len(set(patients[(one ^ other) & place]))
                    n += 0 < left < min_group
    return n


def small_classes(study: StudyFolder, min_group: int) -> dict[tuple[str, str], set[int]]:
    """(concept, split) with a class of few patients -> how many rows, images and patients its classes have."""
    found: dict[tuple[str, str], set[int]] = {}
    for layer, encoder, table in tables_of(study):
        for concept, split in product(encoder.concepts, ("training", "test")):
            rows = table.rows(concept, split=split, unit=layer.results["data"]["unit"])
            classes = [rows.labels == label for label in table.classes(concept)]
            of_class = [
                (own.sum(), *(len(set(ids[own])) for ids in (rows.image_rows, rows.patient_ids))) for own in classes
            ]
            if min(patients for *_, patients in of_class) < min_group:
                found[concept, split] = {int(count) for counts in of_class for count in counts}
    return found


def counts(study: StudyFolder, findings: Findings, min_group: int) -> int:
    """Counts of classes with few patients that some table tells."""
    n = 0
    for concept, split in small_classes(study, min_group):
        told = [row for row in findings.study["data"]["concepts"] if (row["concept"], row["split"]) == (concept, split)]
        n += sum(row[count] is not None for row in told for count in ("n_positive", "n_boxes"))
        quality = [row for sae in findings.study["sae"].values() for row in sae["quality"]]
        own = [row for row in quality if (row["concept"], row["split"]) == (concept, split)]
        n += sum(row.get("auroc_cost") is not None for row in own)
        frames = {
            "training": [(findings.concepts, "n_images")],
            "test": [(findings.reconstruction, "n_positive"), (findings.localization, "n_images")],
        }
        n += sum(int(frame.loc[frame["concept"] == concept, name].notna().sum()) for frame, name in frames[split])
    return n


def by_order(study: StudyFolder, examples: pd.DataFrame, key: bytes, _min_group: int) -> int:
    """Images that one of the dataset's orders, put beside the published one, names; where the orders agree at all."""
    (_, _, table) = next(tables_of(study))
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


def by_counts(_study: StudyFolder, examples: pd.DataFrame, _key: bytes, min_group: int) -> int:
    """Images of patients whose number of images and labels fewer than `min_group` patients have."""
    signs: dict[str, Counter[Any]] = {}
    wide = examples.drop_duplicates(["image", "concept"]).pivot(index="image", columns="concept", values="label")
    patients = examples.drop_duplicates("image").set_index("image")["patient"]
    for image, labels in zip(wide.index, wide.itertuples(index=False, name=None), strict=True):
        signs.setdefault(patients[image], Counter())[labels] += 1
    looks = {patient: frozenset(own.items()) for patient, own in signs.items()}
    alike = Counter(looks.values())
    return sum(own.total() for patient, own in signs.items() if alike[looks[patient]] < min_group)
