"""What a study of embeddings asks of the codes of one SAE, and of the vectors themselves: a data frame for each."""

__all__ = [
    "labels_digest", "labels_of", "latents", "monosemanticity", "of_latents", "probes", "quality", "recovery",
    "retrieval",
]  # fmt: skip

import hashlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mammosae_plugin.analysis import (
    activation_similarity_of,
    latent_aurocs_of,
    monosemanticity_of,
    probe_of,
    recovery_thresholds,
    retrieval_scores_of,
)
from mammosae_plugin.analysis.codes import as_codes, settled_codes
from mammosae_plugin.config.embeddings import EmbeddingAnalysis
from mammosae_plugin.datasets.concepts import PRESENT, Concept, Vocabulary
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.measures.reconstruction import explained_variance
from mammosae_plugin.measures.units import EvaluationRows, EvaluationUnit, grouped_rows
from mammosae_plugin.schema.embeddings import FOUND, TABLES

logger = logging.getLogger(__name__)

Vectors = NDArray[np.float32]
CODES, DENSE, PCA, KMEANS = "codes", "dense", "pca", "kmeans"
_RECOVERED = (0.5, 0.8, 0.9, 1.0)
_IMAGES = EvaluationUnit()


def labels_of(
    images: pd.DataFrame, vocabulary: Vocabulary, unit: EvaluationUnit = _IMAGES, where: str = "the table of images"
) -> Iterator[tuple[str, str, NDArray[np.float64], EvaluationRows]]:
    """(concept, class, labels, rows): whether a finding is there, and of what has other classes each against the rest.

    Labels are (n,) 1 or 0 for each unit, NaN where they are missing (of units of several images these are left out);
    rows are the images that the units are made of, and their patients.

    Raises:
        InputError: It is not known what belongs together, or images of one unit have different classes without order.
    """
    everywhere = np.ones(len(images), dtype=np.bool_)
    for concept in vocabulary.values():
        if unit.has_several_images:
            rows = grouped_rows(images, concept, chosen=everywhere, unit=unit, where=where)
        else:
            numbers = images[concept.name].to_numpy().astype(np.int64)
            rows = EvaluationRows(np.arange(len(images)), numbers, images["patient_id"].to_numpy(dtype=object))
        for number in _asked(concept):
            labels = np.where(rows.labels < 0, np.nan, rows.labels == number)
            yield concept.name, concept.classes[number], labels, rows


def _values(rows: EvaluationRows, of_images: Any) -> Any:
    """(n_units, ...) the mean or maximum of each unit's images."""
    if rows.unit_of_row is None:
        return of_images
    reduced = rows.values(of_images)
    return settled_codes(as_codes(reduced)) if hasattr(reduced, "tocsr") else reduced


def labels_digest(images: pd.DataFrame, vocabulary: Vocabulary) -> str:
    """The same for the same images with the same split, group and labels, in any order."""
    known = images[["image_id", "patient_id", "split"]].astype(str)
    for concept in vocabulary.values():
        names = np.array([*concept.classes, ""], dtype=object)  # -1, a missing label, is the last
        known[concept.name] = names[images[concept.name].to_numpy().astype(np.int64)]
    rows = np.sort(pd.util.hash_pandas_object(known, index=False).to_numpy())
    return hashlib.sha256(rows.tobytes()).hexdigest()


def _asked(concept: Concept) -> range:
    """The classes that are told from the rest: of two the second says all."""
    return range(1 if concept.is_binary else 0, concept.n_classes)


def _sets(images: pd.DataFrame, vocabulary: Vocabulary) -> NDArray[np.bool_]:
    """(n, L) which labels each image has: a finding that is there, any class of what has other classes."""
    columns = []
    for concept in vocabulary.values():
        numbers = images[concept.name].to_numpy()
        first = 1 if concept.is_binary and concept.classes[1] == PRESENT else 0
        columns += [numbers == number for number in range(first, concept.n_classes)]
    return np.column_stack(columns)


def quality(table: LatentTable) -> pd.DataFrame:
    """How well each level of the SAE gives the vectors back, per split: split, level, l0, explained_variance, ..."""
    records = []
    for split in table.splits:
        images = np.flatnonzero((table.images["split"] == split).to_numpy())
        fired = np.bincount(table.codes()[images].indices, minlength=table.d_sae) > 0
        for level, sums in table.level_sums(split).items():
            n = sums["n_positions"]
            error, variation = float(sums["sse"].sum()), float((sums["sum_sq"] - np.square(sums["sum"]) / n).sum())
            explained = explained_variance(error, variation)
            records.append(
                {
                    "split": split,
                    "level": level,
                    "l0": sums["l0"] / n,
                    "explained_variance": np.nan if explained is None else explained,
                    "mse": error / (n * len(sums["sse"])),
                    "dead_share": float(1 - fired[:level].mean()),
                    "n_images": n,
                }
            )
    return pd.DataFrame(records)


def of_latents(table: LatentTable, dense: Vectors, split: str) -> pd.DataFrame:
    """Every latent in the images of a split: firing_rate, activations, and how alike are the images where it fires.

    Args:
        table: The codes.
        dense: (n, d) the vectors of the split's images, in order.
        split: The split.
    """
    codes = table.codes()[np.flatnonzero((table.images["split"] == split).to_numpy())]
    n = codes.shape[0]
    largest = codes.max(axis=0).toarray().ravel()
    fires = np.bincount(codes.indices, minlength=table.d_sae)
    total = np.bincount(codes.indices, weights=codes.data.astype(np.float64), minlength=table.d_sae)
    return pd.DataFrame(
        {
            "latent": np.arange(table.d_sae),
            "firing_rate": fires / n,
            "max_activation": np.where(fires > 0, largest, np.nan),
            "mean_activation": total / n,
            "similarity": activation_similarity_of(codes, dense),
            "similarity_by_chance": activation_similarity_of(np.ones((n, 1)), dense)[0],
        }
    )


def monosemanticity(table: LatentTable, vocabulary: Vocabulary, split: str, n: tuple[int, ...]) -> pd.DataFrame:
    """SAIL's score of every latent that can be scored, by the labels of its strongest images: a row per latent and N.

    Images that lack one of the labels are left out: what is not known is no sign of likeness. N that the others have
    too few groups for is left out.
    """
    images = np.flatnonzero((table.images["split"] == split).to_numpy())
    complete = (table.images[list(vocabulary)].iloc[images] >= 0).all(axis=1).to_numpy()
    if n_lacking := int((~complete).sum()):
        logger.warning(
            "%d of %d images of the split %s lack a label and do not count in monosemanticity; name fewer concepts to "
            "have more images", n_lacking, len(images), split
        )  # fmt: skip
    images = images[complete]
    known = table.images.iloc[images]
    groups = known["patient_id"].to_numpy()
    sizes = [size for size in n if size <= len(np.unique(groups))]
    names = ("coherence", "null", "specificity", "monosemanticity", "p", "q")
    columns = ["latent", "n", "n_images", "n_groups", *names]
    if not sizes:
        return pd.DataFrame(columns=columns)
    found = monosemanticity_of(table.codes()[images], _sets(known, vocabulary), groups, n=sizes)
    long = [
        found[["latent", "n_images", "n_groups"]].assign(n=size, **{name: found[f"{name}_{size}"] for name in names})
        for size in sizes
    ]
    return pd.concat(long, ignore_index=True)[columns]


def latents(
    table: LatentTable, vocabulary: Vocabulary, split: str, settings: EmbeddingAnalysis, unit: EvaluationUnit = _IMAGES
) -> pd.DataFrame:
    """AUROC of every latent for every label, beside chance: concept, class, latent, auroc, p, q, best_by_chance."""
    images = np.flatnonzero((table.images["split"] == split).to_numpy())
    known, codes = table.images.iloc[images], table.codes()[images]
    found = []
    for concept, name, labels, rows in labels_of(known, vocabulary, unit):
        try:
            scored = latent_aurocs_of(
                _values(rows, codes), labels, rows.patient_ids, n_permutations=settings.n_permutations
            )
        except InputError:  # of one class alone nothing is told, which `probes` says
            continue
        scored.insert(0, "concept", concept)
        scored.insert(1, "class", name)
        found.append(scored.dropna(subset="auroc").drop(columns="reason"))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def probes(
    features: Any,
    images: pd.DataFrame,
    vocabulary: Vocabulary,
    arm: str,
    settings: EmbeddingAnalysis,
    seed: int,
    unit: EvaluationUnit = _IMAGES,
) -> pd.DataFrame:
    """Probes for every label, in folds of groups within the split that is judged on (`analysis.probe_of`).

    Args:
        features: (n, F) codes or vectors of the images.
        images: What is known of them.
        vocabulary: The concepts.
        arm: "codes", with every k, or "dense", "pca", "kmeans", with all features.
        settings: The study's.
        seed: Of folds, resamples and permuted labels.
        unit: What is told apart; one of several images has the mean, or maximum, of their features.
    """
    found = []
    for concept, name, labels, rows in labels_of(images, vocabulary, unit):
        about = {"concept": concept, "class": name, "arm": arm}
        known = labels[~np.isnan(labels)]
        if not len(known) or known.min() == known.max():
            which = f"no {unit.noun} has a label" if not len(known) else f"all {unit.nouns} are of one class"
            found.append(pd.DataFrame([{**about, "reason": f"{which} in the split {settings.split!r}"}]))
            continue
        probed = probe_of(
            _values(rows, features),
            labels,
            rows.patient_ids,
            ks=(*settings.ks, None) if arm == CODES else (None,),
            basis=arm if arm in (PCA, KMEANS) else "features",
            n_folds=settings.n_folds,
            n_bootstrap=settings.n_bootstrap,
            min_patients=settings.min_patients,
            seed=seed,
        )
        if arm == CODES:
            probed["uses_all"] = [*[False] * len(settings.ks), True]
        found.append(pd.concat([pd.DataFrame([about] * len(probed)), probed], axis=1))
    return pd.concat(found, ignore_index=True)


def recovery(codes: pd.DataFrame, dense: pd.DataFrame) -> pd.DataFrame:
    """With how few latents a probe reaches shares of what the dense probe tells above chance: a row per label.

    Args:
        codes: What `probes` found of the codes.
        dense: What it found of the vectors.
    """
    records = []
    whole = {(row["concept"], row["class"]): row for row in dense.to_dict("records")}
    for (concept, name), rows in codes.groupby(["concept", "class"], sort=False):
        rows = rows[rows["auroc"].notna()] if "auroc" in rows else rows.iloc[:0]
        other = whole[concept, name].get("auroc", np.nan)
        tried = rows[~rows["uses_all"].astype(bool)] if len(rows) else rows
        reached = recovery_thresholds(
            tried["k"].to_numpy(), tried["auroc"].to_numpy(), other, thresholds=_RECOVERED
        ) if len(tried) else dict.fromkeys(_RECOVERED)  # fmt: skip
        shares = {f"k_{round(100 * share)}": reached[share] for share in _RECOVERED}
        records.append({"concept": concept, "class": name, "dense_auroc": other, **shares})
    return pd.DataFrame(records)


def retrieval(
    table: LatentTable, dense: Vectors, vocabulary: Vocabulary, split: str, settings: EmbeddingAnalysis, seed: int
) -> pd.DataFrame:
    """How often the images that are found share the query's label: concept, class, method, precision, ndcg, ..."""
    images = np.flatnonzero((table.images["split"] == split).to_numpy())
    known = table.images.iloc[images]
    found = retrieval_scores_of(
        table.codes()[images],
        {f"{concept}\n{name}": labels for concept, name, labels, _ in labels_of(known, vocabulary)},
        known["patient_id"],
        embeddings=dense,
        n=FOUND,
        n_queries=settings.n_queries,
        n_bootstrap=settings.n_bootstrap,
        min_patients=settings.min_patients,
        seed=seed,
    )
    parts = found.pop("label").str.split("\n", n=1, expand=True)
    found.insert(0, "concept", parts[0])
    found.insert(1, "class", parts[1])
    return found[[column.name for column in TABLES["retrieval"] if column.name not in ("model", "sae")]]
