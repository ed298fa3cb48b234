"""The audit of an SAE: every score of it beside seeds of itself and controls, from tables or codes of the same images.

In 2026 several works found that most scores of SAEs hardly tell a trained one from one with random directions or
without any training (arXiv 2602.14111, 2605.18229). So a score is shown with d, the difference of means over the pooled
standard deviation between seeds, against every control, and one below 2 is said not to separate.
"""

__all__ = [
    "audit", "audit_of", "AuditSettings", "chosen_labels", "member_scores", "one_against_rest", "reasons_of",
    "reference_scores", "replications",
]  # fmt: skip

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from mammosae_plugin.analysis.codes import as_groups
from mammosae_plugin.analysis.coherence import monosemanticity_of
from mammosae_plugin.analysis.hierarchies import nested_classes
from mammosae_plugin.analysis.matching import replication_of
from mammosae_plugin.analysis.probes import latent_aurocs_of, probe_of
from mammosae_plugin.analysis.reconstruction import reconstruction_quality
from mammosae_plugin.analysis.retrieval_quality import retrieval_scores_of
from mammosae_plugin.analysis.similarity import activation_similarity_of
from mammosae_plugin.analysis.sparse_recovery import LEAST_DENSE
from mammosae_plugin.analysis.structure_scores import TOP, AuditImages, most_active, structure_scores, why_missing
from mammosae_plugin.arguments import numbers
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents.image_codes import ImageCodes
from mammosae_plugin.provenance import environment, package_versions
from mammosae_plugin.schema.score_card import CONTROLS, SAE, SCORES, TRAINED, Member, ScoreCard

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

Labels = Mapping[str, NDArray[np.float64]]
_LEAST_GROUPS = 5  # of a class, for a label to be asked for
_RESAMPLES = 200  # by which references have intervals


@dataclass(frozen=True)
class AuditSettings:
    """How an audit scores; the same for all that it compares.

    Attributes:
        seed: Of folds, halves, queries and the choice of images.
        n_folds: Folds of the probes, cut by group.
        ks: Latents of the sparse probes.
        strength: Inverse L2 penalty of the probes: one for all, so that a dozen SAEs cost minutes.
        n_queries: Images of each label that are asked for in retrieval.
        most_images: Images that are scored; of more, whole groups are drawn.
        most_labels: Labels that are asked for: those with the most groups in their smaller class.
        most_latents: Latents that are matched between seeds, and whose likeness is looked at: those that fire in the
            most images.
    """

    seed: int = 0
    n_folds: int = 3
    ks: tuple[int, ...] = (1, 5, 20)
    strength: float = 0.1
    n_queries: int = 25
    most_images: int = 2000
    most_labels: int = 10
    most_latents: int = 1024


def audit(
    table: "LatentTable",
    seeds: Sequence["LatentTable"],
    controls: Mapping[str, Sequence["LatentTable"]],
    *,
    split: str = "test",
    concepts: Sequence[str] | None = None,
    vectors: ArrayLike | None = None,
    settings: AuditSettings | None = None,
) -> ScoreCard:
    """The score card of an SAE from latents tables of it, of seeds of itself and of controls.

    `mammosae audit` makes seeds and controls too, and scores them in the same way (`study.audit.audit_sae`).

    Args:
        table: A latents table of the SAE.
        seeds: Tables of the same images under SAEs that were trained in the same way with other seeds; three or more.
        controls: Tables of the same images by kind of control, those of `schema.score_card.CONTROLS`.
        split: The split whose images are scored.
        concepts: Some of the table's; of one with more than two classes each is a label.
        vectors: (n_images of the table, d), the rows themselves, averaged over positions; of tables of maps by default
            the channels' means that the table holds.
        settings: How to score.

    Raises:
        InputError: Tables of other images, an unknown split or concept, or a control of another name.
    """
    wanted = table.images.index[(table.images["split"] == split).to_numpy()].to_numpy()
    if not len(wanted):
        raise InputError(f"{table.folder} has no split {split!r}; it has {', '.join(table.splits)}")
    members = {SAE: [table], TRAINED: list(seeds), **{name: list(some) for name, some in controls.items()}}
    encoded: dict[str, list[ImageCodes]] = {}
    for kind, tables in members.items():
        encoded[kind] = []
        for one in tables:
            if not np.array_equal(one.images["image_id"].to_numpy(), table.images["image_id"].to_numpy()):
                raise InputError(f"{one.folder} is of other images than {table.folder}; encode the same with all")
            quality = reconstruction_quality(one, split)
            codes = one.max_latents[wanted]
            codes.data = np.maximum(codes.data, 0)
            explained = None if np.isnan(quality.explained_variance) else quality.explained_variance
            own = ImageCodes(codes, explained, quality.l0, quality.dead_share, quality.n_positions)
            encoded[kind].append(replace(own, levels=one.levels))
    names = list(table.vocabulary) if concepts is None else list(concepts)
    labels: dict[str, NDArray[np.float64]] = {}
    nested: dict[str, NDArray[np.float64]] = {}
    for name in names:
        concept, values = table.vocabulary.named(name, str(table.folder)), table.images[name].to_numpy()[wanted]
        labels |= one_against_rest(name, concept.classes, values)
        nested |= nested_classes(concept, values)
    if vectors is None and not table.is_of_rows:
        vectors = table.mean_channels
    rows = None if vectors is None else numbers(vectors, "vectors")[wanted]
    groups = table.images["patient_id"].to_numpy(dtype=object)[wanted]
    described = {"hook_name": table.hook_name, "d_in": table.d_in, "d_sae": table.d_sae}
    return audit_of(
        encoded, labels, groups, nested=nested, vectors=rows, settings=settings, sae=described, rows={"split": split}
    )


def one_against_rest(name: str, classes: Sequence[str], values: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Labels 0, 1 or NaN of class numbers (n,), -1 where one is missing; of more than two classes one label each."""
    given = np.asarray(values, dtype=np.float64)
    known = np.where(given < 0, np.nan, given)
    if len(classes) == 2:
        return {name: known}
    return {
        f"{name}: {word}": np.where(np.isnan(known), np.nan, known == number) for number, word in enumerate(classes)
    }


def audit_of(
    members: Mapping[str, Sequence[ImageCodes]],
    labels: Mapping[str, ArrayLike],
    groups: ArrayLike,
    *,
    nested: Mapping[str, ArrayLike] | None = None,
    vectors: ArrayLike | None = None,
    settings: AuditSettings | None = None,
    sae: Mapping[str, Any] | None = None,
    rows: Mapping[str, Any] | None = None,
) -> ScoreCard:
    """The score card from codes of the same images.

    Args:
        members: By kind ("sae", "trained", or a control's name) the codes of its members, (n_images, D) each.
        labels: By name (n_images,) 0 or 1, NaN where it is missing.
        groups: (n_images,) which images belong together.
        nested: Labels that may lie in each other, by which absorption is judged, such as "birads >= 4"; by default
            `labels`.
        vectors: (n_images, d), the rows themselves; without them no score that needs them is had.
        settings: How to score.
        sae: What the card says of the SAE.
        rows: What the card says of the rows.

    Raises:
        InputError: No codes of the SAE, an unknown kind, or arrays that do not fit.

    Example:
        >>> card = audit_of({"sae": [own], "trained": seeds, "untrained": random}, labels, patients)  # doctest: +SKIP
        >>> print(card.as_text())                                                                     # doctest: +SKIP
    """
    settings = settings or AuditSettings()
    if not members.get(SAE):
        raise InputError(f"name the SAE's own codes as {SAE!r}")
    for kind in members:
        if kind not in (SAE, TRAINED, *CONTROLS):
            raise InputError(f"{kind!r} is no kind of control; there are {', '.join((SAE, TRAINED, *CONTROLS))}")
    first = members[SAE][0]
    n_images = first.codes.shape[0]
    of_row = as_groups(groups, n_images)
    kept, reasons = chosen_labels(labels, of_row, settings)
    images = AuditImages(
        of_row,
        kept,
        {name: numbers(given, f"labels of {name}") for name, given in (labels if nested is None else nested).items()},
        None if vectors is None else numbers(vectors, "vectors"),
        reasons=reasons,
    )
    references, dense = reference_scores(images, settings, first.codes.shape[1])
    found = []
    for kind, several in members.items():
        shared = replications([one.codes for one in several], settings) if kind != SAE else [None]
        for number, one in enumerate(several):
            if one.codes.shape[0] != n_images:
                raise InputError(f"{kind} has codes of {one.codes.shape[0]} images, the SAE of {n_images}")
            scores = member_scores(one, images, dense, settings)
            found.append(Member(kind, number + 1, {**scores, "replication": shared[number]}))
    if members.get(TRAINED):
        codes = [first.codes, *(one.codes for one in members[TRAINED])]
        found[0] = Member(SAE, 1, {**found[0].scores, "replication": replications(codes, settings)[0]})
    return ScoreCard(
        sae=dict(sae or {}),
        rows={
            "n_images": n_images,
            "n_groups": images.n_groups,
            "n_rows": first.n_rows,
            "concepts": list(kept),
            **(rows or {}),
        },
        members=tuple(found),
        settings=asdict(settings),
        references=references,
        reasons=reasons_of(found, [one for several in members.values() for one in several], images),
        provenance={"packages": package_versions(), **environment()},
    )


def reasons_of(scored: Sequence[Member], members: Sequence[ImageCodes], images: AuditImages) -> dict[str, str]:
    """Why a score is missing, by score, for each that no SAE has; and by kind, where none of its latents fires.

    Args:
        scored: Scores of all.
        members: What was scored, in the same order.
        images: What is known of the images.
    """
    known = why_missing(members, images)
    missing = [name for name in SCORES if all(one.scores.get(name) is None for one in scored)]
    fires = {one.kind for one, codes in zip(scored, members, strict=True) if (codes.codes.data > 0).any()}
    return {
        **{name: known.get(name, "no latent of any SAE could be judged by it") for name in missing},
        **{one.kind: _SILENT for one in scored if one.kind not in fires},
    }


_SILENT = "none of its latents fires in these images, so that its AUROCs are those of chance"


def chosen_labels(
    labels: Mapping[str, ArrayLike], groups: NDArray[np.int64], settings: AuditSettings
) -> tuple[dict[str, NDArray[np.float64]], dict[str, str]]:
    """The labels that are asked for, and why scores are missing if they are.

    Args:
        labels: By name (n_images,) 0 or 1, NaN where it is missing.
        groups: (n_images,) numbered.
        settings: How many.

    Raises:
        InputError: Labels that do not fit, or hold something else.
    """
    smaller: dict[str, int] = {}
    values = {name: numbers(given, f"labels of {name}") for name, given in labels.items()}
    for name, given in values.items():
        if given.shape != groups.shape or not np.isin(given[~np.isnan(given)], (0, 1)).all():
            raise InputError(f"labels of {name}: expected ({len(groups)},), 0 or 1 of every image, NaN where missing")
        smaller[name] = min(len(np.unique(groups[given == value])) for value in (0, 1))
    usable = [name for name in values if smaller[name] >= _LEAST_GROUPS]
    best = sorted(usable, key=lambda name: (-smaller[name], name))[: settings.most_labels]
    kept = {name: values[name] for name in values if name in best}
    reasons = {}
    few = f"no label has {_LEAST_GROUPS} groups of either class" if values else "there are no labels"
    if not kept:
        reasons = dict.fromkeys(_OF_LABELS, few)
    elif len(kept) < 2:
        reasons = dict.fromkeys(_OF_SEVERAL, "a single label has no entropy")
    return kept, reasons


_OF_SEVERAL = ("monosemanticity", "monosemantic_share")
_OF_RETRIEVAL = {"cosine": "retrieval_map", "bm25": "retrieval_bm25", "fingerprint": "retrieval_fingerprint"}
_OF_LABELS = (
    *_OF_SEVERAL, "latent_auroc", "probe_1", "probe_5", "probe_20", "probe_all", "slope_20", "slope_all",
    "recovery_20", *_OF_RETRIEVAL.values(),
)  # fmt: skip


def reference_scores(
    images: AuditImages, settings: AuditSettings, n_latents: int
) -> tuple[dict[str, dict[str, float | None]], dict[str, float]]:
    """What needs no SAE and so is the same for all: probes on the rows in several forms, retrieval by them and by luck.

    The interval of a mean over labels has the means of theirs as its ends, which is never too narrow: a mean varies at
    most as its parts do on average.

    Args:
        images: What is known of these images; labels as `chosen_labels` gives them.
        settings: How to score.
        n_latents: As many clusters are looked for.

    Returns:
        By one of `schema.score_card.REFERENCES` and score, value and ends of its interval, None where there is none;
        and the AUROC of a probe on the rows, by label.
    """
    vectors, labels, groups = images.vectors, images.labels, images.groups
    if vectors is None or not labels:
        return {}, {}
    arms: dict[str, tuple[Any, dict[str, Any]]] = {"dense": (vectors, {})}
    if images.channels is not None:
        arms["channels"] = (images.channels, {})
    arms |= {"pca": (vectors, {"basis": "pca"}), "kmeans": (vectors, {"basis": "kmeans", "n_clusters": n_latents})}
    found: dict[str, dict[str, float | None]] = {}
    dense: dict[str, float] = {}
    for arm, (features, basis) in arms.items():
        probed = {
            name: _probe(features, given, groups, settings, n_bootstrap=_RESAMPLES, **basis)
            for name, given in labels.items()
        }
        found[arm] = _probe_scores(list(probed.values()), settings, ends=True)
        if arm == "dense":
            dense = {name: float(some["auroc"].iloc[-1]) for name, some in probed.items()}
    ranked = _ranked(
        sparse.csr_array(vectors), images, settings, methods=("cosine",), embeddings=vectors, n_bootstrap=_RESAMPLES
    )
    for kind, name, method in (
        ("dense", "retrieval_map", "cosine"),
        ("dense", "retrieval_fingerprint", "dense_fingerprint"),
        ("random", "retrieval_map", "random"),
    ):
        if ranked is not None:
            found.setdefault(kind, {}).update(_spread(name, ranked[ranked["method"] == method], "average_precision"))
    return found, dense


def member_scores(
    member: ImageCodes, images: AuditImages, dense: Mapping[str, float], settings: AuditSettings
) -> dict[str, float | None]:
    """Every score of one SAE but its replication.

    Args:
        member: Its codes (n_images, D) and what is known of its reconstruction.
        images: What is known of these images; labels as `chosen_labels` gives them.
        dense: AUROC of a probe on the rows, by label.
        settings: How to score.

    Returns:
        A value of each of `SCORES`, None where it cannot be had.
    """
    codes = sparse.csr_array(member.codes).astype(np.float64)
    labels, groups = images.labels, images.groups
    found: dict[str, float | None] = dict.fromkeys(SCORES)
    found |= {"explained_variance": member.explained_variance, "l0": member.l0, "dead_share": member.dead_share}
    found |= _coherent(codes, labels, groups, settings)
    found |= structure_scores(member, codes, images, most_latents=settings.most_latents, seed=settings.seed)
    if images.vectors is not None:
        found["activation_similarity"] = _similarity(codes, images.vectors)
    if not labels:
        return found
    found["latent_auroc"] = _mean([_best_latent(codes, given, groups, settings) for given in labels.values()])
    probed = {name: _probe(codes, given, groups, settings) for name, given in labels.items()}
    found |= _probe_scores(list(probed.values()), settings)
    if 20 in settings.ks:
        place = settings.ks.index(20)
        shares = [
            (float(probed[name]["auroc"].iloc[place]) - 0.5) / (auroc - 0.5)
            for name, auroc in dense.items()
            if auroc > LEAST_DENSE
        ]
        found["recovery_20"] = _mean(shares)
    ranked = _ranked(codes, images, settings, methods=tuple(_OF_RETRIEVAL))
    if ranked is not None:
        for method, name in _OF_RETRIEVAL.items():
            found[name] = _mean(ranked.loc[ranked["method"] == method, "average_precision"])
    return found


def replications(several: Sequence[sparse.csr_array], settings: AuditSettings) -> list[float | None]:
    """How far the latents of each SAE of a kind are found again in the others, mean over them; None of a single one."""
    kept = [sparse.csc_array(codes[:, most_active(codes, settings.most_latents)]) for codes in several]
    shares: dict[int, list[float]] = {number: [] for number in range(len(kept))}
    for one, other in combinations(range(len(kept)), 2):
        if min(kept[one].shape[1], kept[other].shape[1]) and kept[one].shape[0] >= 3:
            share = replication_of(kept[one], kept[other], n_draws=0).share
            shares[one].append(share)
            shares[other].append(share)
    return [_mean(shares[number]) for number in range(len(kept))]


def _coherent(
    codes: sparse.csr_array, labels: Labels, groups: NDArray[np.int64], settings: AuditSettings
) -> dict[str, float | None]:
    nothing: dict[str, float | None] = dict.fromkeys(_OF_SEVERAL)
    if len(labels) < 2:
        return nothing
    has = np.stack(list(labels.values()), axis=1)
    known = np.flatnonzero(~np.isnan(has).any(axis=1))
    if len(np.unique(groups[known])) < TOP:
        return nothing
    scored = monosemanticity_of(codes[known], has[known] == 1, groups[known], n=(TOP,), seed=settings.seed)
    significant = float((scored[f"q_{TOP}"] < 0.05).sum())
    return {
        "monosemanticity": _mean(scored[f"monosemanticity_{TOP}"].to_numpy()),
        "monosemantic_share": significant / codes.shape[1],
    }


def _similarity(codes: sparse.csr_array, vectors: NDArray[np.float64]) -> float | None:
    usable = np.flatnonzero(np.linalg.norm(vectors, axis=1) > 0)
    if len(usable) < 2:
        return None
    own = activation_similarity_of(codes[usable], vectors[usable])
    chance = float(activation_similarity_of(np.ones((len(usable), 1)), vectors[usable])[0])
    mean = _mean(own)
    return None if mean is None else mean - chance


def _best_latent(
    codes: sparse.csr_array, labels: NDArray[np.float64], groups: NDArray[np.int64], settings: AuditSettings
) -> float:
    """AUROC of the latent that tells a label best in one half of the groups, in the other half; mean of both ways."""
    known = np.flatnonzero(~np.isnan(labels))
    own = groups[known]
    # Groups with the label and those without are halved apart, so that either half has both.
    having = np.unique(own[labels[known] == 1])
    generator = np.random.default_rng(settings.seed)
    first: set[int] = set()
    for some in (having, np.setdiff1d(own, having)):
        first |= set(generator.permutation(some)[: len(some) // 2].tolist())
    in_first = np.isin(own, list(first))
    halves = [known[in_first], known[~in_first]]
    aurocs = []
    for chosen, judged in (halves, halves[::-1]):
        if any(len(np.unique(labels[rows])) < 2 for rows in (chosen, judged)):
            continue
        on = {
            place: latent_aurocs_of(codes[rows], labels[rows], groups[rows], n_permutations=1)
            .set_index("latent")
            .dropna(subset="auroc")
            for place, rows in (("chosen", chosen), ("judged", judged))
        }
        if not len(on["chosen"]):
            aurocs.append(0.5)
            continue
        away = on["chosen"]["auroc"] - 0.5
        best = int(on["chosen"].index.to_numpy()[int(away.abs().to_numpy().argmax())])
        there = float(on["judged"]["auroc"].get(best, 0.5))
        aurocs.append(0.5 + float(np.sign(away.loc[best])) * (there - 0.5))
    return float(np.mean(aurocs)) if aurocs else float("nan")


def _probe(
    features: Any,
    labels: NDArray[np.float64],
    groups: NDArray[np.int64],
    settings: AuditSettings,
    n_bootstrap: int = 0,
    **more: Any,
) -> pd.DataFrame:
    """`probe_of` with each of the settings' numbers of features, and with all."""
    return probe_of(
        features,
        labels,
        groups,
        ks=(*settings.ks, None),
        n_folds=settings.n_folds,
        strengths=(settings.strength,),
        n_bootstrap=n_bootstrap,
        permute=False,
        seed=settings.seed,
        **more,
    )


def _probe_scores(
    probed: Sequence[pd.DataFrame], settings: AuditSettings, *, ends: bool = False
) -> dict[str, float | None]:
    """Means over labels of AUROC and slope for each number of features, where they are scores."""
    found: dict[str, float | None] = {}
    for place, k in enumerate((*settings.ks, None)):
        rows = pd.DataFrame([one.iloc[place] for one in probed])
        for name, column in ((f"probe_{k or 'all'}", "auroc"), (f"slope_{k or 'all'}", "calibration_slope")):
            if name in SCORES:
                found |= _spread(name, rows, column) if ends else {name: _mean(rows[column])}
    return found


def _spread(name: str, rows: pd.DataFrame, column: str) -> dict[str, float | None]:
    """The mean over labels, and the mean ends of their intervals where all that have a value have one."""
    known = rows[rows[column].notna()]
    ends = {end: known.get(f"{column}{end}", pd.Series(np.nan, known.index)) for end in ("_low", "_high")}
    whole = all(bool(some.notna().all()) for some in ends.values())
    return {
        name: _mean(known[column]),
        **{f"{name}{end}": _mean(some) if whole else None for end, some in ends.items()},
    }


def _ranked(
    codes: sparse.csr_array, images: AuditImages, settings: AuditSettings, n_bootstrap: int = 0, **more: Any
) -> pd.DataFrame | None:
    """Retrieval judged by each label; None without labels or a second group."""
    if not images.labels or images.n_groups < 2:
        return None
    return retrieval_scores_of(
        codes,
        images.labels,
        images.groups,
        n_queries=settings.n_queries,
        n_bootstrap=n_bootstrap,
        n_draws=0,
        seed=settings.seed,
        **more,
    )


def _mean(values: Any) -> float | None:
    """The mean of those that are known; None without any."""
    array = np.asarray(values, dtype=np.float64)
    known = array[np.isfinite(array)]
    return float(known.mean()) if len(known) else None
