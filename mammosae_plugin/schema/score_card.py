"""The score card of an SAE: scores of it, of seeds of itself and of controls, and whether these can be told apart.

Declared once: what is scored, what an SAE is held against, and what stands in `score_card.json`, of which people,
cards on the Hub and `compare` read the same numbers. It holds means over latents, images and concepts, and nothing of
a single image or patient.
"""

__all__ = [
    "BESIDE", "compare_cards", "Comparison", "comparison_text", "CONTROLS", "FIELDS", "FIGURE", "FORMAT",
    "FORMAT_VERSION", "Member", "read_score_card", "REFERENCES", "SAE", "SCORE_CARD", "score_card_in", "score_card_of",
    "ScoreCard", "scored_alike", "SCORES", "SEPARATES", "shown_d", "study_audit", "study_cards", "TRAINED",
]  # fmt: skip

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, read_json
from mammosae_plugin.provenance import plain
from mammosae_plugin.schema.names import MINUS, digits, file_part

FORMAT, FORMAT_VERSION = "mammosae-score-card", 1
SCORE_CARD, FIGURE = "score_card.json", "score_card.png"
SEPARATES = 2.0
"""The d from which a score is said to tell the trained SAE from a control."""

SAE, TRAINED = "sae", "trained"
CONTROLS: Mapping[str, str] = {
    "untrained": "the same architecture with the random weights that training starts from",
    "frozen decoder": "trained like the others, but the latents' directions stay random",
    "permuted encoder": "this SAE with the weights of each latent's encoder in a random order",
    "pca": "principal components, positive and negative parts as latents, the largest per row",
}
"""What an SAE is held against, in this order."""
REFERENCES: Mapping[str, str] = {
    "dense": "the rows",
    "channels": "raw channels",
    "pca": "components",
    "kmeans": "clusters",
    "random": "random images",
}
"""What is scored once beside all SAEs, since none of them changes it: the rows of an image averaged over positions,
each channel's maximum over positions, 100 principal components of the rows, which of as many clusters of them as there
are latents is nearest, and images at random."""


@dataclass(frozen=True)
class _Score:
    title: str
    better: Literal["higher", "lower"] | None
    meaning: str


_SLOPE = (
    "of the label on the probe's held-out logit, mean over concepts: 1 is right, below it the probe is too sure and "
    "above it not sure enough, so neither side is the better one"
)
SCORES: Mapping[str, _Score] = {
    "explained_variance": _Score("explained variance", "higher", "of the rows, by the reconstruction"),
    "l0": _Score("L0", None, "latents that fire per row; made alike where the architecture allows, so it is no score"),
    "dead_share": _Score("dead latents", "lower", "share of the latents that fire at none of the rows scored"),
    "dense_share": _Score("dense latents", "lower", "share of the latents that fire in more than half of the images"),
    "median_density": _Score(
        "density, log10", None, "median over latents that fire of the share of images in which each does; no score"
    ),
    "monosemanticity": _Score(
        "monosemanticity", "higher", "SAIL's, of a latent's 10 strongest images of different groups; mean over latents"
    ),
    "monosemantic_share": _Score(
        "share above its null", "higher", "latents whose 10 images are more alike than chance at q < 0.05, of all"
    ),
    "activation_similarity": _Score(
        "activation similarity", "higher", "Pach et al., label-free, less its chance; mean over latents"
    ),
    "clarity": _Score(
        "clarity", "higher", "cosine of the rows of a latent's 10 strongest images, less its chance; mean over latents"
    ),
    "latent_auroc": _Score(
        "best single latent, AUROC", "higher", "chosen on one half of the groups, judged on the other"
    ),
    "probe_1": _Score("probe on 1 latent, AUROC", "higher", "held out by group, mean over concepts"),
    "probe_5": _Score("probe on 5 latents, AUROC", "higher", "held out by group, mean over concepts"),
    "probe_20": _Score("probe on 20 latents, AUROC", "higher", "held out by group, mean over concepts"),
    "probe_all": _Score("probe on all latents, AUROC", "higher", "held out by group, mean over concepts"),
    "slope_20": _Score("calibration slope, 20 latents", None, _SLOPE),
    "slope_all": _Score("calibration slope, all latents", None, _SLOPE),
    "recovery_20": _Score(
        "recovery with 20 latents", "higher", "(AUROC - 0.5) of 20 latents over that of the rows themselves"
    ),
    "retrieval_map": _Score(
        "retrieval, mAP", "higher", "images like one by cosine of codes, of other groups, judged by labels"
    ),
    "retrieval_bm25": _Score("retrieval by BM25, mAP", "higher", "the same with latents as words"),
    "retrieval_fingerprint": _Score(
        "retrieval by 5 latents, mAP", "higher", "the same by the query's 5 strongest latents (SAIL's fingerprint)"
    ),
    "replication": _Score(
        "replication between seeds", "higher", "share of latents matched above r 0.7 in another of its kind; mean"
    ),
    "decoder_redundancy": _Score(
        "decoder rows alike", "lower", "cosine of a latent's direction with its nearest other's; mean over latents"
    ),
    "code_redundancy": _Score(
        "codes alike", "lower", "correlation of a latent's codes with its nearest other's, less its chance; mean"
    ),
    "absorption": _Score(
        "absorption",
        "lower",
        "of a finer finding's images, where its latent fires and the coarser one's does not, "
        "less chance; mean over pairs of labels that lie in each other; near 0 also where no latent tells the coarser",
    ),
    "splitting": _Score(
        "splitting", "lower", "share of the first level's latents that the next level has in parts, less its chance"
    ),
    "moran": _Score("Moran's I", "higher", "whether a latent's map is in one piece; mean over strong latents' maps"),
    "position_entropy": _Score(
        "entropy over positions", "lower", "in nats, over how many positions a map is spread; mean over these maps"
    ),
    "breast_energy": _Score(
        "energy inside the breast", "higher", "share of these maps on tissue and not on background, less that of area"
    ),
    "box_energy": _Score(
        "energy inside boxes", "higher", "share of these maps inside boxes of findings, less that of area"
    ),
}
"""What is scored, in the order in which it is shown."""


@dataclass(frozen=True)
class Member:
    """One SAE that was scored.

    Attributes:
        kind: "sae" (the one that the card is of), "trained" (a seed of it), or one of `CONTROLS`.
        number: Which of its kind, from 1.
        scores: A value of each of `SCORES`; None where it could not be had.
    """

    kind: str
    number: int
    scores: Mapping[str, float | None]

    @property
    def name(self) -> str:
        """The kind and which of them."""
        return self.kind if self.kind == SAE else f"{self.kind} {self.number}"


@dataclass(frozen=True)
class Comparison:
    """One score of the trained seeds against one control.

    Attributes:
        score: One of `SCORES`.
        control: One of `CONTROLS`.
        trained: Mean over the trained seeds.
        control_mean: Mean over the control's members.
        sd: The pooled standard deviation: sqrt(sum of squared deviations of both from their means over (n_trained +
            n_control - 2)); of a control with one member that of the seeds alone, over (n_trained - 1).
        d: (trained - control_mean) / sd, turned so that above 0 is better; None without an sd above 0.
        d_of_sae: The same of this SAE itself in the place of the seeds' mean.
        separates: d >= 2; without an sd above 0, whether the means differ in the better direction. None where a score
            could not be had of both.
    """

    score: str
    control: str
    trained: float | None
    control_mean: float | None
    sd: float | None
    d: float | None
    d_of_sae: float | None
    separates: bool | None


@dataclass(frozen=True)
class ScoreCard:
    """Scores of an SAE beside seeds of itself and controls; see the module.

    Attributes:
        sae: What the SAE is: architecture, d_in, d_sae, tensors (their fingerprint), hook_name.
        rows: What was scored: n_images, n_groups, n_rows, split, concepts, fingerprint, grid.
        members: All that was scored.
        training: How the seeds were trained: settings, settings_known, rows_seen, seeds, l0, and own_batch_size where
            the SAE's own batches were larger.
        settings: Of the scores.
        references: Scores that need no SAE, by one of `REFERENCES`: of a score its mean over labels, and with _low and
            _high its 95 % interval over groups; None where there is none.
        reasons: Why a score is missing, by score, or a control, by control.
        provenance: Versions.
    """

    sae: Mapping[str, Any]
    rows: Mapping[str, Any]
    members: Sequence[Member]
    training: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    references: Mapping[str, Any] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kinds(self) -> list[str]:
        """The kinds that there are, in order."""
        there = {member.kind for member in self.members}
        return [kind for kind in (SAE, TRAINED, *CONTROLS) if kind in there]

    @property
    def scored(self) -> list[str]:
        """The scores that any member has."""
        return [name for name in SCORES if any(member.scores.get(name) is not None for member in self.members)]

    def values(self, score: str, kind: str) -> list[float]:
        """One score of all members of a kind that have it."""
        return [value for one in self.members if one.kind == kind and (value := one.scores.get(score)) is not None]

    def comparisons(self) -> list[Comparison]:
        """Every score against every control."""
        controls = [kind for kind in self.kinds if kind in CONTROLS]
        better = [name for name in self.scored if SCORES[name].better]
        return [self._compared(score, control) for control in controls for score in better]

    def _compared(self, score: str, control: str) -> Comparison:
        own, other = (np.array(self.values(score, kind)) for kind in (TRAINED, control))
        this = self.values(score, SAE)
        if not len(own) or not len(other):
            mean = None if not len(own) else float(own.mean())
            return Comparison(score, control, mean, None, None, None, None, None)
        sign = 1.0 if SCORES[score].better == "higher" else -1.0
        free = len(own) + len(other) - 2
        sd = _pooled(own, other)
        gap = sign * float(own.mean() - other.mean())
        d = gap / sd if sd > 0 else None
        d_of_sae = sign * (this[0] - float(other.mean())) / sd if sd > 0 and this else None
        separates = d >= SEPARATES if d is not None else (gap > 0 if free > 0 else None)
        return Comparison(
            score, control, float(own.mean()), float(other.mean()), sd if sd > 0 else None, d, d_of_sae, separates
        )

    def sentences(self) -> list[str]:
        """What the card says of each control, in words."""
        found = []
        compared = self.comparisons()
        for control in (kind for kind in self.kinds if kind in CONTROLS):
            of = [one for one in compared if one.control == control and one.separates is not None]
            if not of:
                continue
            apart = [one for one in of if one.separates]
            alike = [one for one in of if not one.separates and (one.d is None or one.d > -SEPARATES)]
            worse = [one for one in of if not one.separates and one.d is not None and one.d <= -SEPARATES]
            said = f"{_capital(control)}: the trained SAE separates from it in {len(apart)} of {len(of)} scores"
            if alike:
                said += f"; does not separate from it in {_listed(alike)}"
            if worse:
                said += f"; is worse than it in {_listed(worse)}"
            found.append(said + ".")
            lost = [one for one in apart if one.d_of_sae is not None and one.d_of_sae < SEPARATES]
            if lost:
                parts = [f"{SCORES[one.score].title} ({_d(one.d_of_sae)})" for one in lost]
                found.append(f"Seeds of it do, but this SAE itself does not separate from it in {', '.join(parts)}.")
        return found

    def to_frame(self) -> pd.DataFrame:
        """One row per score and member: score, title, kind, number, value."""
        return pd.DataFrame(
            [
                {
                    "score": name,
                    "title": SCORES[name].title,
                    "kind": member.kind,
                    "number": member.number,
                    "value": member.scores.get(name),
                }
                for name in self.scored
                for member in self.members
            ]
        )

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Heads and rows of the table as it is printed: means over members, and d of the seeds against each control."""
        compared = {(one.score, one.control): one for one in self.comparisons()}
        heads = ["score", *(_HEADS.get(kind, kind) for kind in self.kinds)]
        rows = []
        for name in self.scored:
            cells = [SCORES[name].title]
            for kind in self.kinds:
                values = self.values(name, kind)
                cell = "–" if not values else _value(float(np.mean(values)))
                if len(values) > 1:
                    cell += f" ± {_value(float(np.std(values, ddof=1)))}"
                one = compared.get((name, kind))
                cells.append(cell if one is None or one.d is None or not values else f"{cell} ({_d(one.d)})")
            rows.append(cells)
        return heads, rows

    def reference_table(self) -> tuple[list[str], list[list[str]]]:
        """Heads and rows of what is scored once, without any SAE; no row of a card that holds none."""
        there = [kind for kind in REFERENCES if self.references.get(kind)]
        rows = []
        for name in SCORES:
            cells = [_reference(self.references[kind], name) for kind in there]
            if any(cell != "–" for cell in cells):
                rows.append([SCORES[name].title, *cells])
        return ["score", *(REFERENCES[kind] for kind in there)], rows

    def as_text(self) -> str:
        """What a command prints: what was scored, the table, the sentences, and the references."""
        beside = self.reference_table()
        return "\n".join(
            [
                self.described(),
                "",
                *_lines(*self.table()),
                "",
                "In brackets: d of the trained seeds against the control; from 2 on they separate.",
                *self.sentences(),
                *self.missing(),
                *(["", BESIDE, "", *_lines(*beside)] if beside[1] else []),
            ]
        )

    def missing(self) -> list[str]:
        """What was not scored and why, in words."""
        return [
            f"Not scored: {', '.join(_called(name) for name, why in self.reasons.items() if why == reason)}, because "
            f"{reason}."
            for reason in dict.fromkeys(self.reasons.values())
        ]

    def described(self) -> str:
        """What was scored and how the seeds were made, in a sentence or two."""
        rows, training = self.rows, self.training
        n_seeds = len({one.number for one in self.members if one.kind == TRAINED})
        split = f" of split {rows['split']}" if rows.get("split") else ""
        text = f"Scored on {rows.get('n_images'):,} images of {rows.get('n_groups'):,} groups{split}"
        if rows.get("concepts"):
            text += f", {len(rows['concepts'])} labels"
        text += f"; {n_seeds} seeds"
        if training.get("rows_seen"):
            text += f" trained over {training['rows_seen']:,} rows each"
        if own := training.get("own_batch_size"):
            text += f" in batches of {training['settings']['batch_size']:,}, not {own:,} as the SAE, for want of rows"
        if training and not training.get("settings_known", True):
            text += ", by settings of ours, since the SAE does not say its own"
        return text + "."

    def to_json(self) -> dict[str, Any]:
        """The content of `score_card.json`."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **{name: plain(getattr(self, name)) for name in _PARTS},
            "members": [
                {"kind": one.kind, "number": one.number, "scores": plain(dict(one.scores))} for one in self.members
            ],
            "comparisons": [plain(vars(one)) for one in self.comparisons()],
            "sentences": self.sentences(),
        }


BESIDE = "Without any SAE, in square brackets a 95 % interval over groups where every label has 10 of either class:"
_HEADS = {SAE: "this SAE", TRAINED: "trained seeds", "pca": "PCA"}
_PARTS = ("sae", "rows", "training", "settings", "references", "reasons", "provenance")

FIELDS: frozenset[str] = frozenset(
    (
        *("format", "format_version", "members", "comparisons", "sentences", *_PARTS),
        *("kind", "number", "scores", *SCORES, *CONTROLS),
        *(one.name for one in fields(Comparison)),
        *("architecture", "d_in", "d_sae", "tensors", "hook_name"),
        *("n_images", "n_groups", "n_rows", "split", "concepts", "fingerprint", "grid"),
        *("settings_known", "rows_seen", "seeds", "l0", "random", "own_batch_size"),
        *("seed", "n_folds", "n_queries", "n", "ks", "most_images", "most_labels", "most_latents", "strength"),
        *("packages", "python", "platform", "commit", *REFERENCES),
        *(f"{name}{end}" for name in SCORES for end in ("_low", "_high")),
    )
)
"""Every name that stands in a score card, beside the settings of a training and the names of packages."""


def read_score_card(place: str | os.PathLike[str]) -> ScoreCard:
    """A score card from its file, or from the folder that `mammosae audit` wrote.

    Raises:
        InputError: There is none, or it is of another format.
    """
    path = local_path(place)
    path = path / SCORE_CARD if path.is_dir() else path
    if not path.exists():
        raise InputError(f"{path} does not exist; give a {SCORE_CARD}, or the folder that `mammosae audit` wrote")
    return score_card_of(read_json(path), str(path))


def score_card_of(said: Any, where: str) -> ScoreCard:
    """A score card from the content of its file.

    Raises:
        InputError: It is none, or of another format.
    """
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise InputError(f"{where} is no score card; `mammosae audit` writes one, {SCORE_CARD}")
    if said.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{where} is a score card of format {said.get('format_version')}; this version reads {FORMAT_VERSION}, so "
            "install the mammosae-plugin that wrote it, or audit again"
        )
    try:
        members = tuple(
            Member(str(one["kind"]), int(one["number"]), {name: one["scores"].get(name) for name in SCORES})
            for one in said["members"]
        )
        for value in (value for one in members for value in one.scores.values() if value is not None):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{value!r} is no score")
        card = ScoreCard(members=members, **{name: dict(said[name]) for name in _PARTS})
        _ = card.comparisons(), card.described()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where} is damaged: {error!r} in the score card; audit again") from error
    return card


def score_card_in(folder: Path) -> Path | None:
    """The score card in a folder of an SAE, or in a folder `audit` there; None if there is none."""
    return next((path for path in (folder / SCORE_CARD, folder / "audit" / SCORE_CARD) if path.is_file()), None)


def compare_cards(a: ScoreCard, b: ScoreCard) -> pd.DataFrame:
    """Two SAEs by their score cards.

    Returns:
        One row per score that both have: score, title, a and b (of the SAEs themselves), seeds_a and seeds_b (means of
        their seeds), d (seeds_a - seeds_b over the pooled standard deviation between seeds, above 0 where a is better;
        NaN without), untrained_a and untrained_b (d against the untrained control).
    """
    records = []
    against = [{one.score: one.d for one in card.comparisons() if one.control == "untrained"} for card in (a, b)]
    for name in (score for score in SCORES if score in a.scored and score in b.scored):
        own, other = (np.array(card.values(name, TRAINED)) for card in (a, b))
        sd = _pooled(own, other)
        sign = {"higher": 1.0, "lower": -1.0, None: np.nan}[SCORES[name].better]
        records.append(
            {
                "score": name,
                "title": SCORES[name].title,
                **{end: next(iter(card.values(name, SAE)), np.nan) for end, card in (("a", a), ("b", b))},
                "seeds_a": own.mean() if len(own) else np.nan,
                "seeds_b": other.mean() if len(other) else np.nan,
                "d": sign * float(own.mean() - other.mean()) / sd if sd else np.nan,
                "untrained_a": against[0].get(name),
                "untrained_b": against[1].get(name),
            }
        )
    columns = ["score", "title", "a", "b", "seeds_a", "seeds_b", "d", "untrained_a", "untrained_b"]
    return pd.DataFrame(records, columns=columns).astype(dict.fromkeys(columns[2:], "float64"))


def scored_alike(a: ScoreCard, b: ScoreCard) -> bool:
    """Whether two cards have scores of the same images with the same labels, so that their numbers compare."""
    told = [
        ({key: card.rows.get(key) for key in ("n_images", "n_groups", "split", "concepts")}, dict(card.settings))
        for card in (a, b)
    ]
    return told[0] == told[1]


def comparison_text(compared: pd.DataFrame, *, alike: bool) -> str:
    """What `compare` prints of two score cards."""
    shown = compared.drop(columns="score").rename(columns={"title": "score"})
    lines = [shown.to_string(index=False, float_format=lambda value: f"{value:.3g}", na_rep="–")]
    lines.append("d: seeds of a against seeds of b over the spread between seeds, above 0 where a is better")
    if not alike:
        lines.append("scored on other images, labels or settings: numbers do not compare, d against untrained may")
    return "\n".join(lines)


def _pooled(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The pooled standard deviation of two samples; 0 where it is but rounding, or they are too few."""
    free = len(one) + len(other) - 2
    if not len(one) or not len(other) or free < 1:
        return 0.0
    squares = np.square(one - one.mean()).sum() + np.square(other - other.mean()).sum()
    sd = float(np.sqrt(squares / free))
    return 0.0 if sd <= 1e-12 * max(1.0, abs(float(one.mean()))) else sd


def study_audit(output: str | os.PathLike[str], layer: str) -> Path:
    """Where the audit of a study's SAE at a layer lies in the study's output folder."""
    return local_path(output) / "audit" / file_part(layer)


def study_cards(output: Path) -> dict[str, ScoreCard]:
    """The score cards of a study's SAEs by the name of the layer's folder; empty where there was no audit."""
    return {path.parent.name: read_score_card(path) for path in sorted(output.glob(f"audit/*/{SCORE_CARD}"))}


def _value(value: float) -> str:
    return f"{value:.3f}".replace("-", MINUS) if abs(value) < 10 else digits(value)


def shown_d(value: float) -> str:
    """A d as it is printed and drawn."""
    value = value if abs(value) >= 0.05 else 0.0
    near = abs(abs(value) - SEPARATES) < 0.05  # 1.97 is not 2
    shown = f"{value:.{2 if near else 1}f}" if abs(value) < 100 else ("> 100" if value > 0 else "< -100")
    return shown.replace("-", MINUS)


def _d(value: float | None) -> str:
    return "d –" if value is None else f"d {shown_d(value)}"


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in columns."""
    widths = [max(len(row[place]) for row in [heads, *rows]) for place in range(len(heads))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [heads, *rows]
    ]


def _reference(scores: Mapping[str, float | None], name: str) -> str:
    value, low, high = (scores.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    return _value(value) + ("" if low is None or high is None else f" [{_value(low)}, {_value(high)}]")


def _listed(several: Sequence[Comparison]) -> str:
    return ", ".join(f"{SCORES[one.score].title} ({_d(one.d)})" for one in several)


def _called(name: str) -> str:
    return SCORES[name].title if name in SCORES else _HEADS.get(name, name)


def _capital(text: str) -> str:
    return "PCA" if text == "pca" else text[:1].upper() + text[1:]
