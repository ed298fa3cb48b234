"""Attack everything that `mammosae publish` writes for a study, and see that what people write is looked through.

    python tests/attack_published.py STUDY [--images FOLDER] [--min-group 5] [--keep FOLDER]

publishes the SAEs, the classifiers, the findings with their examples and the Space of a study, with harmless texts
wherever somebody may write, on a Hub on this machine; looks for patients and images in all that arrives there; and then
tries to publish with secrets in each of these places. Prints a line per attack with how much it told, and ends with 1
if that is anything.
"""

import argparse
import hashlib
import json
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import helpers_inference as inference
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from helpers_publishing import FOLDER, FORMS, KEY, PLACES, REPOS, Sent, Upload, send
from helpers_secrets import HARMLESS, SECRETS, disguised
from PIL import Image
from safetensors.numpy import load_file

from mammosae_plugin.findings.study_folder import StudyFolder
from mammosae_plugin.hub.findings import Findings
from mammosae_plugin.privacy.guard import hash_ids

_IDS = ("patient_id", "image_id", "study_id", "series_id")
_RUN = 16
"""How many pixels in a row say that an image is there."""
_LONG = 6
"""Digits from which a number tells which computation it comes from."""
_LOSS = re.compile(r"(\w+_)?loss(_\d+)?")
"""What SAELens calls a loss, and the parts of it."""


@dataclass(frozen=True)
class Case:
    """What an attacker has, and the truth to hold it against.

    Attributes:
        study: the study, which knows the truth.
        folders: part -> what arrived on the Hub.
        findings: the tables of its findings.
        min_group: the fewest patients that may be told together.
        key: what ids were hashed with, to check guesses.
        images: files of the study's images.
    """

    study: StudyFolder
    folders: Mapping[str, Path]
    findings: Findings
    min_group: int
    key: bytes
    images: Sequence[Path] = ()

    @classmethod
    def of(cls, study: Path, sent: Sequence[Sent], folder: Path, *, min_group: int, images: Sequence[Path]) -> "Case":
        """Lay what arrived on the Hub into a folder."""
        for one in sent:
            for path, data in one.files.items():
                (folder / one.upload.part / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / one.upload.part / path).write_bytes(data)
        folders = {part: folder / part for part in REPOS}
        findings = Findings.load(folders["findings"])
        return cls(StudyFolder(study), folders, findings, min_group, bytes.fromhex(KEY), images)

    @cached_property
    def bare(self) -> Findings:
        """The findings as they were if nothing were left out."""
        return Findings.of_study(self.study.folder, min_group=1)

    @cached_property
    def ids(self) -> list[str]:
        """Ids of patients, images and whatever else the dataset numbers, and names of files without their ending."""
        found = set()
        for file in (self.study.folder / "work" / "latents").glob("*/*/*.parquet"):
            table = pd.read_parquet(file)
            for column in set(_IDS) & set(table.columns):
                found |= set(table[column].astype(str))
        return sorted(found | {Path(one).stem for one in found})

    def files(self, *parts: str) -> Iterator[Path]:
        """Every file that arrived, or those of some parts."""
        for part, folder in self.folders.items():
            if not parts or part in parts:
                yield from (path for path in sorted(folder.rglob("*")) if path.is_file())


# -- what stands in files ----------------------------------------------------------------------------------------------


def values_of(path: Path) -> list[Any]:
    """What a file says as plain values: its JSON, its rows, its numbers, its text."""
    match path.suffix:
        case ".json":
            return [json.loads(path.read_text())]
        case ".jsonl":
            return [json.loads(line) for line in path.read_text().splitlines()]
        case ".js" if path.parent.name == "data":
            return [json.loads(path.read_text().partition(" = ")[2].rstrip().rstrip(";"))]
        case ".parquet":
            return [_unfolded(row) for row in pq.read_table(path).to_pylist()]
        case ".png" | ".safetensors":
            return []
    return path.read_text().splitlines()


def _unfolded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in which JSON in a column is a value."""
    return {
        name: json.loads(value) if isinstance(value, str) and value[:1] in ("{", "[") else value
        for name, value in row.items()
    }


def walk(value: Any, concept: str | None = None) -> Iterator[tuple[str | None, str, Any]]:
    """(concept that it is of, key, value) of every value in a JSON value that is no object."""
    if isinstance(value, Mapping):
        concept = value.get("concept") or concept
        for key, item in value.items():
            yield from walk(item, concept) if isinstance(item, Mapping) else _of_key(key, item, concept)
    elif isinstance(value, list):
        yield from _of_key("", value, concept)
    else:
        yield concept, "", value


def _of_key(key: str, value: Any, concept: str | None) -> Iterator[tuple[str | None, str, Any]]:
    if not isinstance(value, list):
        yield concept, key, value
        return
    for item in value:
        yield from walk(item, concept) if isinstance(item, Mapping) else _of_key(key, item, concept)


def is_long(value: Any) -> bool:
    """Whether a number is not just any: a rate of few images, a setting."""
    return isinstance(value, float) and len(f"{abs(value):.15g}".replace(".", "").strip("0")) > _LONG


def numbers_in(path: Path) -> dict[float, set[int | None]]:
    """The long numbers that a file says, in tables, JSON or text, each with the latents that it is said of, or None.

    Of the examples no heatmap. Nor losses of a training's batches and what is told of pairs of latents: thousands of
    float32 that are of many rows each, of which some equal an activation by chance.
    """
    found: dict[float, set[int | None]] = {}
    for value in values_of(path):
        of_batch = path.suffix == ".jsonl" and isinstance(value, dict) and value.get("of") == "batch"
        for latent, key, item in _by_latent(value):
            if key == "heatmap" or (of_batch and _LOSS.fullmatch(key)):
                continue
            texts = re.findall(r"-?\d+\.\d{6,}(?:e-?\d+)?", item) if isinstance(item, str) else []
            for one in (item, *map(float, texts)):
                if is_long(one):
                    found.setdefault(one, set()).add(latent)
    return found


def _by_latent(value: Any, latent: int | None = None, key: str = "") -> Iterator[tuple[int | None, str, Any]]:
    """(latent that it is said of, key, value) of all in a JSON value, but for what is of pairs of latents."""
    if isinstance(value, Mapping):
        latent = one if isinstance(one := value.get("latent"), int) else latent
        for name, item in value.items():
            if "neighbour" not in value or name not in ("value", "chance"):
                yield from _by_latent(item, latent, name)
    elif isinstance(value, list):
        for item in value:
            yield from _by_latent(item, latent, key)
    else:
        yield latent, key, value


def long_numbers(values: Any) -> set[float]:
    """Numbers as they may stand somewhere: float32 as the double that it is, and in its shortest decimals."""
    flat = np.asarray(values).ravel()
    return {one for value in flat for one in (float(value), float(str(value))) if is_long(one)}


def told_alike(found: set[float], known: set[float]) -> set[float]:
    """Numbers that are in both, but for shares of few thousands, which may be equal by chance."""
    return {
        one for one in found & known if abs(Fraction(one).limit_denominator(4096) - Fraction(one)) > abs(one) * 1e-12
    }


# -- the attacks on files ----------------------------------------------------------------------------------------------


def known_ids(case: Case) -> int:
    """Ids of patients, images, studies or series, with other separators or without, in any file or its name."""
    bare = {re.sub(r"[\W_]", "", one).lower().encode() for one in case.ids}
    needles = [one for one in bare if len(one) >= 6 and re.search(rb"\d", one)]
    told = 0
    for path in case.files():
        texts = [path.as_posix().encode(), path.read_bytes(), json.dumps(values_of(path), default=str).encode()]
        bare_text = b"\n".join(re.sub(rb"[\W_]", b"", text).lower() for text in texts)
        told += sum(one in bare_text for one in needles)
    return told


def bare_hashes(case: Case) -> int:
    """Hashes of ids that need no key, whole or their first 16 digits; and hashes of images that are of no id."""
    kinds = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "blake2b", "blake2s", "sha3_256")
    hashes = {hashlib.new(kind, one.encode()).hexdigest()[:16] for kind in kinds for one in case.ids}
    hashes |= {one[:16] for one in hash_ids(case.ids, bytes(32))}
    told = 0
    for path in case.files():
        text = json.dumps(values_of(path), default=str).lower()
        runs = re.findall(r"[0-9a-f]{16,}", text)
        told += sum(run[place : place + 16] in hashes for run in runs for place in range(len(run) - 15))
    examples = case.findings.examples
    if examples is not None:
        known = set(hash_ids(case.ids, case.key))
        told += sum(one not in known for column in ("image", "patient") for one in examples[column].unique())
    return told


def this_machine(case: Case) -> int:
    """Paths, names of folders and of this host."""
    folders = {FOLDER, *(one.name for one in (case.study.folder, *case.study.folder.parents) if len(one.name) > 11)}
    names = {str(case.study.folder), str(Path.home()) + "/", socket.gethostname(), *folders} - {"", "//"}
    needles = [name.encode() for name in names if len(name) > 7 or re.search(r"[\d-]", name)]
    path_like = re.compile(rb"(?<![\w:/.-])/(?:home|Users|root|tmp|mnt|media|work|data|scratch|srv|opt|var)/\w")
    told = 0
    for path in case.files():
        data = path.relative_to(path.parents[1]).as_posix().encode() + path.read_bytes()
        data += json.dumps(values_of(path), default=str).encode()
        told += sum(needle in data for needle in needles) + len(path_like.findall(data))
    return told


def pixels(case: Case) -> int:
    """Runs of pixels of the study's images in any figure, enlarged or not, in any list of numbers, in any bytes."""
    known = set()
    for path in case.images[:200]:
        rows = np.array(Image.open(path).convert("L"))[::8]
        known |= {run for row in rows for run in _runs(row, step=_RUN)}
    return sum(any(run in known for run in _runs(data)) for path in case.files() for data in _bytes_of(path))


def _runs(data: np.ndarray, step: int = 1) -> Iterator[bytes]:
    """Runs of so many bytes that are no area of one or few greys."""
    if len(data) < _RUN:
        return
    windows = np.lib.stride_tricks.sliding_window_view(data, _RUN)[::step]
    busy = (np.diff(np.sort(windows, axis=1), axis=1) > 0).sum(axis=1) >= _RUN // 2
    yield from (window.tobytes() for window in windows[busy])


def _bytes_of(path: Path) -> Iterator[np.ndarray]:
    """What a file holds as bytes: of a figure its channels at several scales, of numbers these as greys."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            shown = np.array(image.convert("RGBA"))
        for step, channel in ((step, channel) for step in (1, 2, 4, 8) for channel in range(4)):
            yield shown[::step, ::step, channel].ravel()
        return
    if path.suffix == ".safetensors":
        for tensor in load_file(path).values():
            yield tensor.view(np.uint8).ravel() if tensor.dtype == np.uint8 else _as_greys(tensor.ravel())
        return
    numbers = [item for value in values_of(path) for _, _, item in walk(value) if isinstance(item, (int, float))]
    yield _as_greys(np.array(numbers, dtype=np.float64))


def _as_greys(values: np.ndarray) -> np.ndarray:
    scaled = values * 255 if np.abs(values).max(initial=0) <= 1 else values
    return np.clip(np.nan_to_num(np.round(scaled)), 0, 255).astype(np.uint8)


def single_numbers(case: Case) -> int:
    """Activations and logits of single images and patients; but for maxima, which are of nobody known, and examples."""
    known: dict[float, set[int | None]] = {}

    def know(values: Any, latent: int | None = None) -> None:
        for one in long_numbers(values):
            known.setdefault(one, set()).add(latent)

    for _, encoder, table in inference.tables_of(case.study):
        for values in (table.max_latents, table.mean_latents):
            of_latent = values.tocsc()
            by_patient = pd.DataFrame(values.toarray()).groupby(table.images["patient_id"].to_numpy())
            sums, means = by_patient.sum().to_numpy(), by_patient.mean().to_numpy()
            for latent in range(values.shape[1]):
                own = of_latent.data[of_latent.indptr[latent] : of_latent.indptr[latent + 1]]
                know(np.concatenate([own, sums[:, latent], means[:, latent]]), latent)
        for concept in encoder.concepts:
            know(table.logits(concept))
    told = set()
    for path in case.files():
        found = numbers_in(path)
        for one in told_alike(set(found), set(known)):  # what is said of one latent is of no other's images
            if None in found[one] | known[one] or found[one] & known[one]:
                told.add(one)
    return len(told - long_numbers(case.findings.latents["max_activation"].dropna().astype(np.float32)))


# -- the attacks across parts ------------------------------------------------------------------------------------------


def hidden_numbers(case: Case) -> int:
    """Numbers that the findings leave out and another part says: cards, evaluations, the Space."""

    def numbers(findings: Findings) -> set[float]:
        frames = [findings.latents, findings.concepts, findings.interventions, findings.reconstruction]
        frames += [findings.localization, *([] if findings.names is None else [findings.names])]
        columns = [frame[name] for frame in frames for name in frame.columns]
        floats = [column.dropna() for column in columns if column.dtype.kind == "f"]
        of_study = (value for _, _, value in walk(json.loads(json.dumps(findings.study))) if is_long(value))
        return set().union(*(long_numbers(column) for column in floats), of_study)

    hidden = numbers(case.bare) - numbers(case.findings)
    return sum(map(len, (told_alike(set(numbers_in(path)), hidden) for path in case.files())))


def hidden_counts(case: Case) -> int:
    """How many images, boxes or patients of a class with few of them there are, in any part."""
    small = inference.small_classes(case.study, case.min_group)
    told = 0
    for path in case.files():
        of_file = next((concept for concept, _ in small if path.parent.name.endswith(f"-{concept}")), None)
        for value in values_of(path):
            if isinstance(value, str):
                told += sum(_says(value, concept, counts) for (concept, _), counts in small.items())
            else:
                told += sum(_tells(row, concept, set(small)) for concept, row in _rows(value, of_file))
    return told


def _rows(value: Any, concept: str | None) -> Iterator[tuple[str | None, Mapping[str, Any]]]:
    """Every object in a JSON value, with the concept that it, or what it stands in, is of."""
    if isinstance(value, Mapping):
        concept = value.get("concept") or concept
        yield concept, value
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _rows(item, concept)


def _tells(row: Mapping[str, Any], concept: str | None, small: set[tuple[str, str]]) -> int:
    """Counts in a row of a class that has few patients; what has no split is of test images, but counts by class."""
    found = {name: row.get(name) for name in ("n_positive", "n_negative", "n_boxes", "n_positive_patients")}
    found |= {"n_images": row.get("n_images")} if "iou_threshold" in row else {}
    told = sum(count is not None for count in found.values()) if (concept, row.get("split", "test")) in small else 0
    by_class = row.get("n_images") if isinstance(row.get("n_images"), list) else []
    return told + (sum(count is not None for count in by_class) if (concept, "training") in small else 0)


def _says(line: str, concept: str, counts: set[int]) -> bool:
    """Whether a line of a card speaks of a concept and says one of the counts."""
    if not re.search(rf"\b{concept.replace('_', '[ _]')}\b", line, re.IGNORECASE):
        return False
    found = re.findall(r"(?<![\d.,])(\d+)\s+(?:positive|boxes|images|patients)", line)
    return any(int(number) in counts for number in found)


def _of_findings(attack: Callable[[StudyFolder, Findings, int], int]) -> Callable[[Case], int]:
    return lambda case: attack(case.study, case.findings, case.min_group)


def _of_examples(attack: Callable[..., int]) -> Callable[[Case], int]:
    """The other images and patients are as many as there are examples."""
    return lambda case: (
        0 if case.findings.examples is None else attack(case.study, case.findings.examples, case.key, case.min_group)
    )


ATTACKS: Mapping[str, Callable[[Case], int]] = {
    "images by order": _of_examples(inference.by_order),
    "images by counts": _of_examples(inference.by_counts),
    "sums of few patients": _of_findings(inference.sums),
    "activity of few patients": _of_findings(inference.activity),
    "maxima beside what gives them away": _of_findings(inference.maxima),
    "gaps in the ranks": _of_findings(inference.gaps),
    "bins of few patients": _of_findings(inference.bins),
    "counts that stand elsewhere": _of_findings(inference.counts),
    "counts hidden in the findings, in any part": hidden_counts,
    "numbers hidden in the findings, in any part": hidden_numbers,
    "numbers of one image or patient": single_numbers,
    "ids": known_ids,
    "hashes without the key": bare_hashes,
    "paths, folders and hosts": this_machine,
    "pixels of images": pixels,
}
"""What it looks for -> the attack."""


# -- what people write -------------------------------------------------------------------------------------------------


def harmless_uploads() -> list[Upload]:
    """Every part, with harmless texts wherever words may be free."""
    free = [
        place for places in PLACES.values() for place in places if place.split()[-1] in ("note", "latent", "--author")
    ]
    one = {"--title": HARMLESS[:1], "title of the study": HARMLESS[1:2]}
    many = dict.fromkeys((*free, "--description", "--link", "card that is there"), HARMLESS) | one
    return [
        Upload(part, {place: many[place] for place in PLACES[part] if place in many}, repo)
        for part, repo in REPOS.items()
    ]


def secret_uploads(ids: Sequence[str]) -> list[Upload]:
    """All secrets in every place; where a form is asked for those that have it, one by one; ids in changing places."""
    places = [(part, place) for part in PLACES for place in PLACES[part]]
    free = [place for place in places if place[1] not in FORMS]
    of_form = [place for place in places if place[1] in FORMS]
    fitting = [text for text in SECRETS if re.fullmatch(r"[A-Za-z0-9][\w.-]*", text)]
    planted = [(place, SECRETS) for place in free]
    planted += [(of_form[number % len(of_form)], [text]) for number, text in enumerate(fitting)]
    planted += [(free[5 * number % len(free)], [text]) for number, text in enumerate(disguised(ids).values())]
    return [Upload(part, {place: texts}, f"someone/planted-{n}") for n, ((part, place), texts) in enumerate(planted)]


def left(sent: Sent) -> list[str]:
    """The texts of an upload that left, or that would leave once a person had let the others out."""
    ((_, texts),) = sent.upload.texts.items()
    if sent.files or sent.code != 2:
        return list(texts)
    if any(text is None for _, _, text in sent.found):  # whatever a person says
        return []
    found = [text.casefold() for _, _, text in sent.found if text]
    return [one for one in texts if not any(text in one.casefold() or one.casefold() in text for text in found)]


def publish(study: Path, folder: Path, *, min_group: int) -> tuple[list[Sent], list[Sent]]:
    """Publish all parts with harmless texts, and try to with secrets: what came of the four, and of the others."""
    table = next(iter(StudyFolder(study).layers[0].encoders.values())).table
    uploads = [*harmless_uploads(), *secret_uploads(table.images["patient_id"].astype(str).tolist())]
    sent = list(send(study, uploads, folder, min_group=min_group))
    return sent[: len(REPOS)], sent[len(REPOS) :]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path, help="The study's output folder.")
    parser.add_argument("--images", type=Path, help="Its images. Default: the folder beside STUDY that it names.")
    parser.add_argument("--min-group", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="Leave here what arrives on the Hub.")
    given = parser.parse_args()
    root = given.images or given.study.parent / StudyFolder(given.study).results["config"]["data"]["root"]
    images = sorted(root.rglob("*.png"))
    if not images:
        parser.error(f"{root} holds no PNG; name the folder of the study's images by --images")
    with tempfile.TemporaryDirectory() as temporary:
        whole, planted = publish(given.study, Path(temporary) / "sent", min_group=given.min_group)
        stopped = [one for one in whole if one.code != 0]
        lines = {f"harmless texts ({len(HARMLESS)}) stopped, in {len(whole)} parts": len(stopped)}
        lines |= {f"  {one.upload.part}: {one.said.splitlines()[-1]}": 1 for one in stopped}
        n = sum(len(texts) for one in planted for texts in one.upload.texts.values())
        lines[f"planted secrets ({len(SECRETS)} and ids, {n} in all) that leave"] = sum(
            len(left(one)) for one in planted
        )
        lines |= {
            f"  {one.upload.part}, {place}: {text}": 1
            for one in planted
            for place in one.upload.texts
            for text in left(one)
        }
        if not stopped:
            folder = given.keep or Path(temporary) / "arrived"
            case = Case.of(given.study, whole, folder, min_group=given.min_group, images=images)
            lines |= {what: attack(case) for what, attack in ATTACKS.items()}
    for what, number in lines.items():
        sys.stdout.write(f"{what}: {number}\n")
    return int(any(lines.values()))


if __name__ == "__main__":
    sys.exit(main())
