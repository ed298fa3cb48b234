"""What people say of a study's latents: notes and labels of several readers, and how far the readers agree.

A reader's notes lie in `notes/<author>.jsonl` of the study's folder, one JSON object per line. A file only ever grows:
who changes their mind adds a note, and the last label counts, or withdraws what they said, which is a line too. A note
keeps the fingerprint of the SAE whose latent it is about, so that it is never shown beside a latent of another SAE that
happens to have the same number.
"""

__all__ = [
    "add_note", "Agreement", "agreement", "cohen_kappa", "CONFIDENCES", "fleiss_kappa", "keep_notes", "LONGEST",
    "merge_notes", "new_note", "Note", "NOTES_FOLDER", "read_notes", "results_with_readers", "SEE_NOTE", "with_readers",
    "withdraw_notes",
]  # fmt: skip

import dataclasses
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import parse_json
from mammosae_plugin.findings.study_folder import LayerResults, StudyFolder
from mammosae_plugin.schema.names import file_part
from mammosae_plugin.schema.results import BACKGROUND, CONCEPT, UNCLEAR, Results

if TYPE_CHECKING:
    from mammosae_plugin.privacy.context import PrivacyContext

logger = logging.getLogger(__name__)

NOTES_FOLDER = "notes"
CONFIDENCES = range(1, 6)
SEE_NOTE = "see note"
"""The role of a latent of which readers say something, but give no label."""
LONGEST = {"author": 80, "label": 120, "text": 2000}
"""The most characters of a note's parts."""


@dataclass(frozen=True)
class Note:
    """What one reader says of one latent.

    Attributes:
        author: Who says it.
        layer: The layer of the study.
        latent: The latent's number.
        text: What they say.
        encoder: The encoder on whose images it was seen; None for all.
        concept: The concept that it is about; None for none in particular.
        label: One word or two that can be counted, such as "artefact"; None without one.
        confidence: From 1 (a guess) to 5 (certain); None where the reader does not say.
        created: When, in UTC, as in 2026-11-21T10:00:00+00:00.
        sae: Fingerprint (SHA-256) of the SAE whose latent it is.
        withdrawn: Whether it says nothing but that the author's earlier notes on the latent no longer count.
    """

    author: str
    layer: str
    latent: int
    text: str
    encoder: str | None
    concept: str | None
    label: str | None
    confidence: int | None
    created: str
    sae: str
    withdrawn: bool = False

    def as_text(self) -> str:
        """One line for people."""
        where = f"{self.layer} latent {self.latent}" + (f" ({self.encoder})" if self.encoder else "")
        facts = [self.concept and f"of {self.concept}", self.label and f"[{self.label}]", self.text]
        sure = f", confidence {self.confidence}" if self.confidence is not None else ""
        return f"{where}: {' '.join(filter(None, facts))} ({self.author}, {self.created}{sure})"


_FIELDS = {field.name for field in fields(Note)}


def add_note(
    study_folder: str | Path,
    latent: int,
    text: str,
    *,
    author: str,
    layer: str | None = None,
    encoder: str | None = None,
    concept: str | None = None,
    label: str | None = None,
    confidence: int | None = None,
    allow: Sequence[str] = (),
) -> Note:
    """Add a reader's note on a latent to a study.

    Args:
        study_folder: The study's output folder.
        latent: The latent's number.
        text: What the reader says; may be empty when there is a label.
        author: Who says it. It is published with the findings.
        layer: The layer; the primary one when None.
        encoder: The encoder (see `LayerResults.encoders`) on whose images it was seen; None for all.
        concept: The concept that it is about, if any.
        label: A label to count, if any; readers who are to be compared agree on the labels beforehand.
        confidence: 1 ... 5, if the reader gives one.
        allow: Texts that look private and are not; whoever publishes the note is asked again.

    Returns:
        The note as it was written; it is on disk when this returns.

    Raises:
        InputError: No study, a latent, layer, encoder or concept that it does not have, or a note that says nothing, is
            too long, or has a line break in its author or label.
        PrivacyError: It holds what the privacy guard lets out of no study.
    """
    study = StudyFolder(study_folder)
    note = new_note(
        study, latent, text,
        author=author, layer=layer, encoder=encoder, concept=concept, label=label, confidence=confidence, allow=allow,
    )  # fmt: skip
    _append(_file_of(study.folder, author.strip()), [note])
    return note


def new_note(
    study: StudyFolder,
    latent: int,
    text: str,
    *,
    author: str,
    layer: str | None = None,
    encoder: str | None = None,
    concept: str | None = None,
    label: str | None = None,
    confidence: int | None = None,
    allow: Sequence[str] = (),
) -> Note:
    """A note that `add_note` may write; arguments and errors as there."""
    author, text, label = author.strip(), text.strip(), (label or "").strip() or None
    where = _place(study, latent, author, layer, encoder)
    if not text and label is None:
        raise InputError("a note says something: give a text, a label or both")
    _check_form({"author": author, "label": label or "", "text": text})
    if concept is not None:
        _check("concept", concept, study.concepts)
    if confidence is not None and confidence not in CONFIDENCES:
        raise InputError(f"confidence is {confidence}; give a whole number from 1 (a guess) to 5 (certain)")
    _check_privacy(study, {"author": author, "label": label or "", "text": text}, allow)
    return Note(author, where.name, int(latent), text, encoder, concept, label, confidence, _now(), where.sae_tensors)


def keep_notes(study: StudyFolder, notes: Sequence[Note]) -> list[Note]:
    """Write several notes; those that their readers have in force already are not written again.

    Returns:
        The new ones.
    """
    said = {dataclasses.replace(note, created="") for note in _in_force(_all_notes(study.folder))}
    new = []
    for note in notes:
        if (undated := dataclasses.replace(note, created="")) not in said:
            said.add(undated)
            new.append(note)
    for author in dict.fromkeys(note.author for note in new):
        _append(_file_of(study.folder, author), [note for note in new if note.author == author])
    return new


def withdraw_notes(
    study_folder: str | Path, latent: int, *, author: str, layer: str | None = None, encoder: str | None = None
) -> int:
    """Withdraw what a reader said of a latent so far: it is neither shown nor published any more, nor does it count.

    The lines stay in the reader's file, which only grows, and never leave this machine.

    Args:
        study_folder: The study's output folder.
        latent: The latent's number.
        author: Whose notes.
        layer: The layer; the primary one when None.
        encoder: Only the notes on this encoder's images; None for all of the author's notes on the latent.

    Returns:
        The number of notes withdrawn; the withdrawal is on disk when this returns.

    Raises:
        InputError: No study, a latent, layer or encoder that it does not have, or no note to withdraw.
    """
    author = author.strip()
    study = StudyFolder(study_folder)
    where = _place(study, latent, author, layer, encoder)
    line = Note(
        author, where.name, int(latent), "", encoder, None, None, None, _now(), where.sae_tensors, withdrawn=True
    )
    found = [note for note in _in_force(_all_notes(study.folder)) if _withdraws(line, note)]
    if not found:
        raise InputError(f"{author} has no note on latent {latent} of layer {where.name}; `note --list` shows all")
    _append(_file_of(study.folder, author), [line])
    return len(found)


def _place(study: StudyFolder, latent: int, author: str, layer: str | None, encoder: str | None) -> LayerResults:
    """The layer that a note is on."""
    where = study.layer(layer)
    if not author:
        raise InputError("a note needs an author; give a name or initials")
    if not 0 <= latent < where.d_sae:
        raise InputError(f"layer {where.name} has the latents 0 to {where.d_sae - 1}, but the note is on {latent}")
    if encoder is not None:
        _check("encoder", encoder, where.encoders)
    return where


def _check_form(parts: dict[str, str]) -> None:
    for name, value in parts.items():
        if name != "text" and re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", value):
            raise InputError(f"the note's {name} has a line break or control character; write it on one line")
        if len(value) > LONGEST[name]:
            raise InputError(f"the note's {name} has {len(value)} characters; {LONGEST[name]} are the most")


def _check_privacy(study: StudyFolder, parts: dict[str, str], allow: Sequence[str]) -> None:
    """Refuse now what would stop the whole publication later."""
    from mammosae_plugin.privacy.context import PRIVATE_FILE
    from mammosae_plugin.privacy.guard import check_said

    tables = [*study.folder.glob(PRIVATE_FILE), *sorted((study.folder / "work" / "latents").glob("*/*/images.parquet"))]
    versions = tuple((file.stat().st_mtime_ns, file.stat().st_size) for file in tables)
    said = {f"the note's {name}": value for name, value in parts.items() if value}
    check_said(said, dataclasses.replace(_privacy_context(study.folder, versions), allowed=tuple(allow)))


@lru_cache(maxsize=4)
def _privacy_context(folder: Path, versions: tuple[tuple[int, int], ...]) -> "PrivacyContext":
    """The ids of a study, as far as its tables are here (a reader may have the results alone)."""
    from mammosae_plugin.privacy.context import PrivacyContext

    return PrivacyContext.of_study(folder) if versions else PrivacyContext()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def read_notes(study_folder: str | Path) -> list[Note]:
    """All notes on a study, oldest first (of one second: by author, then in the order in which they were written).

    A line that a killed process left unfinished is no note; it is passed over with a warning, as are notes on an SAE
    that is no longer the study's. Notes that their authors withdrew are left out.

    Raises:
        InputError: No study.
    """
    study = StudyFolder(study_folder)
    return [note for note in _in_force(_all_notes(study.folder)) if _is_of(note, study.layers)]


def with_readers(
    named: Mapping[str, Sequence[Mapping[str, Any]]], notes: Sequence[Note], layer: LayerResults
) -> dict[str, list[dict[str, Any]]]:
    """The named latents of a layer's results, with what readers say in place of the rule's role.

    A reader's last label on a latent (of the concept, or of none in particular) is its role; readers whose labels
    differ leave it `unclear`; where there are notes but no label, the role is `see note`. Rows that a reader speaks of
    have a field more, `by`, the readers.

    Args:
        named: `named_latents` of the results: rows of latent and role by "model/concept".
        notes: notes in force, oldest first.
        layer: the layer that the results are of.
    """
    own = [note for note in notes if note.layer == layer.name]
    if not own:
        return {pair: [dict(row) for row in rows] for pair, rows in named.items()}
    encoder_of = {
        f"{encoder.model}/{concept}": encoder.name
        for encoder in layer.encoders.values()
        for concept in encoder.concepts
    }
    found = {}
    for pair, rows in named.items():
        here = [
            note
            for note in own
            if note.encoder in (None, encoder_of[pair]) and note.concept in (None, pair.rpartition("/")[2])
        ]
        found[pair] = [_read(dict(row), [note for note in here if note.latent == row["latent"]]) for row in rows]
    return found


def results_with_readers(layer: LayerResults) -> Results:
    """What was found at a layer, whose named latents are what the study's readers say, where they say something."""
    notes = [note for note in _in_force(_all_notes(layer.study_folder)) if _is_of(note, [layer], warn=False)]
    named = with_readers(layer.results["named_latents"], notes, layer)
    return cast(Results, {**layer.results, "named_latents": named})


def _read(row: dict[str, Any], notes: Sequence[Note]) -> dict[str, Any]:
    if not notes:
        return row
    labels = {note.author: note.label for note in notes if note.label is not None}
    readers = list(labels or dict.fromkeys(note.author for note in notes))
    role, reason = SEE_NOTE, "a reader's note, without a label"
    if labels:
        distinct = {label.casefold(): label for label in labels.values()}
        known = next(iter(distinct)) if next(iter(distinct)) in (CONCEPT, BACKGROUND, UNCLEAR) else None
        role, reason = known or next(iter(distinct.values())), "a reader's label"
        if len(distinct) > 1:
            role, reason = UNCLEAR, f"readers disagree: {', '.join(distinct.values())}"
    return row | {"role": role, "reason": reason, "by": ", ".join(readers)}


def merge_notes(study_folder: str | Path, others: Iterable[str | Path]) -> int:
    """Add the notes of other copies of a study, and withdrawals; what is already there is not added again.

    Args:
        study_folder: The study that gets the notes.
        others: Folders of the same study on other readers' machines: study folders, or their `notes` folders alone.

    Returns:
        The number of notes and withdrawals added.

    Raises:
        InputError: A folder without notes, or with notes on other SAEs than the study's; nothing is added then.
    """
    study = StudyFolder(study_folder)
    known = set(_all_notes(study.folder))
    new: dict[str, list[Note]] = {}
    for other in map(Path, others):
        found = _all_notes(other)
        if not found:
            raise InputError(f"{other} has no notes; name a study's folder in which someone wrote some")
        strangers = [note for note in found if not _is_of(note, study.layers, warn=False)]
        if strangers:
            raise InputError(
                f"{other} has {len(strangers)} notes on an SAE that {study.folder} does not use at layer "
                f"{strangers[0].layer}, whose latent numbers mean something else; merge notes on the same study only"
            )
        for note in found:
            if note not in known:
                known.add(note)
                new.setdefault(note.author, []).append(note)
    for author, notes in new.items():
        _append(_file_of(study.folder, author), notes)
    return sum(map(len, new.values()))


@dataclass(frozen=True)
class Agreement:
    """How far readers agree on the labels of latents, beyond chance.

    Attributes:
        readers: Those who gave labels, in alphabetical order.
        n_items: The latents that all of them labelled; the rest is left out.
        n_left_out: The latents that only some of them labelled.
        labels: The labels in use on those items.
        observed: The share of pairs of readers and items with equal labels; NaN without an item.
        kappa: Cohen's kappa for two readers, Fleiss' for more: 1 is full agreement, 0 what chance would give. NaN where
            it is undefined: no item, or one label for everything.
        statistic: "Cohen's kappa" or "Fleiss' kappa".
        pairs: One row per pair of readers: reader_a, reader_b, n_items (labelled by both), observed, kappa (Cohen's).
    """

    readers: tuple[str, ...]
    n_items: int
    n_left_out: int
    labels: tuple[str, ...]
    observed: float
    kappa: float
    statistic: str
    pairs: pd.DataFrame

    def as_text(self) -> str:
        """What a command prints."""
        if len(self.readers) < 2:
            return "agreement: needs labels of two readers or more"
        if self.n_items == 0:
            return f"agreement: no latent has a label of all {len(self.readers)} readers ({', '.join(self.readers)})"
        kappa = "undefined (one label for everything)" if np.isnan(self.kappa) else f"{self.kappa:.3f}"
        lines = [
            f"{self.statistic} of {', '.join(self.readers)}: {kappa}; equal labels {self.observed:.0%}, on "
            f"{self.n_items} latents labelled by all ({self.n_left_out} by some only); labels: {', '.join(self.labels)}"
        ]
        if len(self.readers) > 2:
            lines.append(self.pairs.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
        return "\n".join(lines)


def agreement(notes: Sequence[Note] | pd.DataFrame) -> Agreement:
    """How far the readers of notes agree on labels.

    An item is a latent of a layer, on whichever encoder's images it was seen. Of several labels that a reader gave an
    item the last one counts.

    Args:
        notes: The notes of a study, or of published findings (`Findings.notes`), oldest first.
    """
    frame = notes if isinstance(notes, pd.DataFrame) else pd.DataFrame(map(asdict, notes), columns=sorted(_FIELDS))
    labelled = frame.dropna(subset=["label"]).sort_values("created", kind="stable")
    last: dict[tuple[str, Any], str] = {
        (row["author"], (row["layer"], row["latent"])): row["label"] for row in labelled.to_dict("records")
    }
    readers = tuple(sorted({author for author, _ in last}))
    by_reader: dict[str, dict[Any, str]] = {reader: {} for reader in readers}
    for (author, item), label in last.items():
        by_reader[author][item] = label
    items = {item for _, item in last}
    common = sorted(item for item in items if all(item in by_reader[reader] for reader in readers))
    rows = [[by_reader[reader][item] for item in common] for reader in readers]
    labels = tuple(sorted({label for row in rows for label in row}))
    pairs = pd.DataFrame(
        [_pair(a, b, by_reader[a], by_reader[b]) for a, b in combinations(readers, 2)],
        columns=["reader_a", "reader_b", "n_items", "observed", "kappa"],
    )
    counts = np.array([[sum(row[i] == label for row in rows) for label in labels] for i in range(len(common))])
    enough = len(readers) >= 2 and len(common) > 0
    two = len(readers) == 2
    return Agreement(
        readers=readers,
        n_items=len(common),
        n_left_out=len(items) - len(common),
        labels=labels,
        observed=_observed(counts) if enough else float("nan"),
        kappa=(cohen_kappa(*rows) if two else fleiss_kappa(counts)) if enough else float("nan"),
        statistic="Cohen's kappa" if two else "Fleiss' kappa",
        pairs=pairs,
    )


def cohen_kappa(a: Sequence[str], b: Sequence[str]) -> float:
    """Cohen's kappa of two readers: (p_o - p_e) / (1 - p_e), p_o the share of equal labels and p_e what chance gives.

    Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20 (1960), 37-46;
    computed by scikit-learn.

    Args:
        a: The first reader's label of every item.
        b: The second reader's.

    Returns:
        At most 1; NaN where both readers gave one and the same label to everything.
    """
    from sklearn.metrics import cohen_kappa_score

    if len({*a, *b}) < 2:
        return float("nan")
    return float(cohen_kappa_score(list(a), list(b)))


def fleiss_kappa(counts: ArrayLike) -> float:
    """Fleiss' kappa of several readers: (P - P_e) / (1 - P_e).

    P is the mean over items of the share of agreeing pairs of readers, P_e the sum of the squared shares of the labels.
    Fleiss, "Measuring nominal scale agreement among many raters", Psychological Bulletin 76 (1971), 378-382.

    Args:
        counts: (n_items, n_labels), how many readers gave each label to each item; all rows have the same sum, 2 or
            more.

    Returns:
        At most 1; NaN where only one label is in use.

    Raises:
        InputError: Rows of different sums, or fewer than two readers.
    """
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 2 or len(table) == 0 or (table < 0).any() or np.ptp(table.sum(1)) != 0 or table[0].sum() < 2:
        raise InputError("Fleiss' kappa needs the same number of labels, two or more, for every item")
    expected = float(np.square(table.sum(0) / table.sum()).sum())
    # A share of exactly 1: then every other label's share is 0, and the square is exact.
    return float("nan") if expected == 1 else (_observed(table) - expected) / (1 - expected)


def _observed(counts: np.ndarray) -> float:
    """The share of pairs of readers that agree, over all items: P of Fleiss, and p_o of Cohen for two readers."""
    n_readers = counts[0].sum()
    return float((np.square(counts, dtype=np.float64).sum(1) - n_readers).mean() / (n_readers * (n_readers - 1)))


def _pair(a: str, b: str, labels_a: dict[Any, str], labels_b: dict[Any, str]) -> tuple[str, str, int, float, float]:
    common = [item for item in labels_a if item in labels_b]
    rows = [labels_a[item] for item in common], [labels_b[item] for item in common]
    equal = float(np.mean([x == y for x, y in zip(*rows, strict=True)])) if common else float("nan")
    return a, b, len(common), equal, cohen_kappa(*rows) if common else float("nan")


def _in_force(notes: Sequence[Note]) -> list[Note]:
    """The notes, oldest first, that no later line withdraws."""
    kept: list[Note] = []
    for note in notes:
        if note.withdrawn:
            kept = [one for one in kept if not _withdraws(note, one)]
        else:
            kept.append(note)
    return kept


def _withdraws(line: Note, note: Note) -> bool:
    same = (line.author, line.layer, line.latent, line.sae) == (note.author, note.layer, note.latent, note.sae)
    return same and line.encoder in (None, note.encoder)


def _is_of(note: Note, layers: Sequence[LayerResults], *, warn: bool = True) -> bool:
    same = any((layer.name, layer.sae_tensors) == (note.layer, note.sae) for layer in layers)
    if not same and warn:
        logger.warning(
            "a note of %s on latent %d at layer %s is about an SAE that the study no longer uses; it is left out",
            *(note.author, note.latent, note.layer),
        )
    return same


def _check(what: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise InputError(f"the study has no {what} {name!r}; it has {', '.join(known)}")


# The files


def _file_of(study_folder: Path, author: str) -> Path:
    """A reader's file; who only differs in signs that no file name takes shares it, and is told apart in its lines."""
    return study_folder / NOTES_FOLDER / f"{file_part(author)}.jsonl"


def _append(path: Path, notes: Sequence[Note]) -> None:
    """Add lines at the end of the file, in one write that other processes' writes cannot come between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(_line(note), ensure_ascii=False) + "\n" for note in notes)
    with path.open("ab+", buffering=0) as file:
        if file.tell():  # "a" opens at the end
            file.seek(-1, os.SEEK_END)
            # A line that a killed process left unfinished must not swallow this one.
            if file.read(1) != b"\n":
                lines = "\n" + lines
        data = lines.encode()
        if file.write(data) != len(data):
            raise OSError(f"{path} could not be written in full; is the disk full?")
        os.fsync(file.fileno())


def _line(note: Note) -> dict[str, Any]:
    """A note as it stands in the file; `withdrawn` only where it is true, as files of earlier versions lack it."""
    return {name: value for name, value in asdict(note).items() if name != "withdrawn" or value}


def _all_notes(folder: Path) -> list[Note]:
    folder = folder / NOTES_FOLDER if (folder / NOTES_FOLDER).is_dir() else folder
    notes: list[Note] = []
    for file in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
            note = _parse(line)
            if note is not None:
                notes.append(note)
            elif line.strip():
                logger.warning("line %d of %s is no note (was a process killed?); it is passed over", number, file)
    return sorted(notes, key=lambda note: note.created)  # stable: by file, then line


def _parse(line: str) -> Note | None:
    try:
        value = parse_json(line)
    except ValueError:
        return None
    if not isinstance(value, dict) or set(value) | {"withdrawn"} != _FIELDS or not isinstance(value["latent"], int):
        return None
    return Note(**value)
