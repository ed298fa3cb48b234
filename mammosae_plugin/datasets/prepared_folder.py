"""From originals and their annotations to a folder that holds prepared images and a mapping of its own.

The folder has `mapping.yaml`, `images.csv`, `images/`, `masks/`, `transforms.parquet` (where each image comes from,
with the inverse), `quarantine.csv` (what could not be used, and why), `boxes.csv` (what became of boxes that are not as
they were) and `prepared.json`. `work/` has one folder of shards per share of the images (see `shards`), so that a run
killed at any moment continues; the tables are written from them when the last share is done.
"""

__all__ = ["prepare_dicom", "prepared_summary", "read_transforms"]

import contextlib
import json
import logging
import os
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args
from urllib.parse import quote

import numpy as np
import pandas as pd
import torch
import yaml
from safetensors import SafetensorError, safe_open

from mammosae_plugin import shards
from mammosae_plugin.arguments import between, whole
from mammosae_plugin.datasets.annotations import MISSING, Annotations, read_annotations
from mammosae_plugin.datasets.base import BOX_COLUMNS, DatasetError, describe
from mammosae_plugin.datasets.boxes import in_shares
from mammosae_plugin.datasets.dicom import MultiFrame, Voi
from mammosae_plugin.datasets.image_files import checked_size
from mammosae_plugin.datasets.mapping import MAPPING_FILE, ImageMapping, load_mapping
from mammosae_plugin.datasets.originals import is_original
from mammosae_plugin.datasets.preparation import PREPARATIONS, Bits, Flip, Orientation, Transform, letterbox
from mammosae_plugin.datasets.prepared_images import (
    How,
    ImageJob,
    MaskJob,
    Record,
    sources_of,
    targets_of,
    version_of,
    written_size,
)
from mammosae_plugin.datasets.prepared_processes import in_processes
from mammosae_plugin.datasets.table_checks import MISSING_TEXT
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import (
    differences,
    local_path,
    read_json,
    read_parquet,
    remove_temporaries,
    sha256_of_json,
    write_json,
    write_text,
)
from mammosae_plugin.locks import only_run
from mammosae_plugin.own_files import RECORD, empty_staging, replace_files, require_unclaimed

logger = logging.getLogger(__name__)

_VERSION = 2  # raise it with every change of what is written for the same settings
_SHARD = 32  # images that a killed run does again at most
_TABLE, _TRANSFORMS, _QUARANTINE, _BOXES, _ABOUT = (
    "images.csv", "transforms.parquet", "quarantine.csv", "boxes.csv", "prepared.json",
)  # fmt: skip
_WORK, _SETTINGS, _IMAGES, _MASKS = "work", "settings.json", "images", "masks"
_FLAGS = ("implant", "spot_view")
_TOLERANCE = 0.1  # of the original's side that a box may reach over it, as everywhere
_FEW = 0.02  # of all boxes that may be wrong
_NO_MASK = "dropped: the mask shows nothing that the preparation keeps"
_KEPT = ("name", "title", "citation", "licence", "url", "restricted", "phantom", "at_skin")


def prepare_dicom(
    source: str | os.PathLike[str] | Mapping[str, Any] | ImageMapping,
    root: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    preparation: str = "mammo-clip",
    image_size: tuple[int, int] | None = None,
    bits: Bits = 8,
    voi: Voi = "none",
    multi_frame: MultiFrame = "refuse",
    flip: Flip = "none",
    orientation: Orientation = "stored",
    max_bad_share: float = 0.01,
    share: str | None = None,
    workers: int = 0,
) -> Path:
    """Prepare the images of a collection, DICOM or PNG, for `load_images(output)` and a study's `data.root`.

    Labels, boxes, masks, covariates and splits go along. Nothing of a DICOM header leaves it but what the mapping
    names, and whether there is an implant or a spot view. Text that is burnt into pixels is not looked for. Killed at
    any moment, the same call continues, and ends with the same files.

    Args:
        source: a preset's name, a mapping's path, a dict, or an `ImageMapping`.
        root: the collection's folder; None for that of the mapping's file.
        output: the folder to write, made when it does not exist.
        preparation: "mammo-clip" or "letterbox"; see `prepare_picture`.
        image_size: (height, width) of the prepared images; by default the mapping's.
        bits: 8 or 16 per pixel of the prepared images.
        voi: "none", "window", "lut" or "auto"; see `read_picture`.
        multi_frame: "refuse", "first", "middle" or "brightest"; see `read_picture`.
        flip: "none", "laterality" or "content"; see `prepare_picture`.
        orientation: "stored" or "upright"; see `prepare_picture`.
        max_bad_share: the share of images that may be unusable (0 to 1); they are listed in `quarantine.csv`.
        share: "3/16": only the fourth of 16 shares, counted from 0, for as many jobs side by side on any machines that
            see the folder; the one that ends last writes the tables. None: all.
        workers: processes that prepare at once; 0 prepares in this one. The files do not depend on it.

    Returns:
        The folder.

    Raises:
        DatasetError: The annotations are wrong (all problems are named), too many images are bad or boxes wrong.
        InputError: An argument is wrong, pydicom is not installed, or the folder holds what other settings made.
        OSError: A file cannot be written; what is done stays, and the same call continues.

    Example:
        >>> prepare_dicom("vindr", "physionet/vindr-mammo", "vindr-png", workers=8)  # doctest: +SKIP
    """
    mapping, place = load_mapping(source, root)
    how = How(
        preparation=_one_of("preparation", preparation, PREPARATIONS),
        image_size=checked_size(image_size or mapping.image_size),
        bits=cast(Bits, _one_of("bits", bits, get_args(Bits))),
        voi=cast(Voi, _one_of("voi", voi, get_args(Voi))),
        multi_frame=cast(MultiFrame, _one_of("multi_frame", multi_frame, get_args(MultiFrame))),
        flip=cast(Flip, _one_of("flip", flip, get_args(Flip))),
        orientation=cast(Orientation, _one_of("orientation", orientation, get_args(Orientation))),
    )
    between(max_bad_share, "max_bad_share", 0, 1)
    workers = whole(workers, "workers", least=0)
    number, n_shares = _share(share)
    folder = local_path(output).absolute()
    own, theirs = folder.resolve(), place.resolve()
    if own == theirs or own in theirs.parents:
        raise InputError(f"{folder} is the folder of the originals, or above it; name another one for what is prepared")
    require_unclaimed(folder, [_WORK, RECORD], [MAPPING_FILE, _TABLE, _IMAGES, _MASKS])
    annotations = read_annotations(mapping, place)
    if how.flip == "laterality" and "laterality" not in annotations.images:
        raise InputError("flip: laterality needs the sides, and the mapping names no column of laterality")
    job = _Job(folder, annotations, how, n_shares, max_bad_share)
    if any(folder in Path(one).absolute().parents for image in job.jobs for one in sources_of(image)):
        raise InputError(f"{folder} holds originals; name another folder for what is prepared")
    job.begin()
    job.prepare(number, workers)
    job.finish()
    return folder


def read_transforms(folder: str | os.PathLike[str]) -> dict[str, Transform]:
    """Of every image of a prepared folder, where it comes from: to draw its boxes and heatmaps on the original.

    Args:
        folder: What `prepare_dicom` wrote.

    Returns:
        By image id.

    Raises:
        InputError: It is no prepared folder.

    Example:
        >>> read_transforms("vindr-png")[image_id].heatmap_back(heatmap)  # doctest: +SKIP
    """
    table = read_parquet(local_path(folder) / _TRANSFORMS)
    return {str(row["image_id"]): Transform.from_json(_from_row(row)) for row in table.to_dict("records")}


def prepared_summary(folder: str | os.PathLike[str]) -> str:
    """What a folder holds, in lines for people; of one whose other shares are not done that they are not."""
    place = local_path(folder)
    if not (place / _ABOUT).exists():
        done = len([*(place / _WORK).glob(f"share-*/{shards.DONE}")])
        return f"{place}: {done} shares are done; the one that ends last writes the tables"
    about = read_json(place / _ABOUT)
    lines = [f"{place}: {about['n_images']} images of {about['image_size'][0]} x {about['image_size'][1]}"]
    if about["n_bad"]:
        lines.append(f"{about['n_bad']} could not be used; {place / _QUARANTINE} says why")
    return "\n".join([*lines, f"set data.root of a study to {place}"])


def _one_of(name: str, value: Any, choices: Sequence[Any]) -> Any:
    if value not in choices:
        raise InputError(f"{name} is {value!r}; choose one of {', '.join(map(str, choices))}")
    return value


def _share(share: str | None) -> tuple[int, int]:
    if share is None:
        return 0, 1
    found = re.fullmatch(r"(\d+)/(\d+)", str(share).strip())
    if found is None or not int(found[1]) < int(found[2]):
        raise InputError(f"share is {share!r}: write such as 3/16, which is the fourth of 16: they are counted from 0")
    return int(found[1]), int(found[2])


def _safe(name: str) -> str:
    """An id as a file's name: letters, digits and -_. stay."""
    found = quote(name, safe=" ")
    return f"%2E{found[1:]}" if found.startswith(".") else found


class _Job:
    """The images of one folder, what is done of them, and the tables made of that."""

    def __init__(self, folder: Path, annotations: Annotations, how: How, n_shares: int, max_bad_share: float) -> None:
        self.folder, self.annotations, self.how = folder, annotations, how
        self.n_shares, self.max_bad_share = n_shares, max_bad_share
        root, images, findings = annotations.root, annotations.images, annotations.findings
        masks = findings.loc[findings["mask"] != "", ["image_id", "mask"]].drop_duplicates()
        by_image = masks.groupby("image_id", sort=False)["mask"].agg(list).to_dict()
        sides = images["laterality"] if "laterality" in images else [None] * len(images)
        self.jobs: list[ImageJob] = []
        self.targets: dict[str, str] = {}  # of image ids and of masks: relative to the folder
        for image_id, patient, file, side in zip(
            images["image_id"], images["patient_id"], images["file"], sides, strict=True
        ):
            stem = f"{_safe(patient)}/{_safe(image_id).removesuffix('.png')}"
            self.targets[image_id] = f"{_IMAGES}/{stem}.png"
            own = []
            for at, mask in enumerate(by_image.get(image_id, ())):
                self.targets[f"{image_id}\n{mask}"] = f"{_MASKS}/{stem}_{at}.png"
                own.append(MaskJob(str(root / mask), str(folder / _MASKS / f"{stem}_{at}.png")))
            target = str(folder / self.targets[image_id])
            self.jobs.append(ImageJob(image_id, str(root / file), target, side, tuple(own)))
        if len({job.target for job in self.jobs}) < len(self.jobs):
            raise DatasetError("some image ids differ only in the ending .png; give them names that differ in more")
        self.order = sha256_of_json(
            [[job.image_id, os.path.relpath(job.source, root), [os.path.relpath(m.source, root) for m in job.masks]]
             + ([job.laterality] if how.flip == "laterality" else []) for job in self.jobs]
        )  # fmt: skip

    # -- shares of images --------------------------------------------------------------------------------------------

    @property
    def _settings(self) -> dict[str, Any]:
        """All on which prepared images depend."""
        how = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self.how).items()}
        return {"prepare": _VERSION, **how, "images": self.order}

    def _plan(self, number: int) -> dict[str, Any]:
        return {**self._settings, "share": f"{number}/{self.n_shares}"}

    def begin(self) -> None:
        """See that all shares of the folder are of the same settings."""
        wanted = self._settings
        file = self.folder / _WORK / _SETTINGS
        for there in (file, self.folder / _ABOUT):  # the second tells it where work/ was deleted
            said = {name: value for name, value in read_json(there).items() if name in wanted} if there.exists() else {}
            if said and (differing := differences(said, wanted)):
                raise InputError(
                    f"{self.folder} holds images prepared otherwise ({differing}); name another folder or delete this "
                    "one"
                )
        begun = {int(path.name.rpartition("-")[2]) for path in (self.folder / _WORK).glob("share-*-of-[0-9]*")}
        if (begun - {self.n_shares}) and not (self.folder / _ABOUT).exists():
            raise InputError(
                f"{self.folder} was begun in {min(begun - {self.n_shares})} shares, not in {self.n_shares}; go on with "
                f"that number, or delete {self.folder / _WORK}"
            )
        write_json(file, wanted)

    def _place(self, number: int) -> Path:
        return self.folder / _WORK / f"share-{number:03d}-of-{self.n_shares:03d}"

    def _jobs(self, number: int) -> list[ImageJob]:
        return self.jobs[number :: self.n_shares]

    def prepare(self, number: int, workers: int) -> None:
        """Prepare what is missing, damaged or changed of one share."""
        place, jobs = self._place(number), self._jobs(number)
        for folder in {Path(target).parent for job in jobs for target in targets_of(job)}:
            folder.mkdir(parents=True, exist_ok=True)
        with only_run(place):
            bad = self._forget_changed(place, jobs)
            allowed = self.max_bad_share * len(self.jobs)

            def stream(tasks: Sequence[shards.ShardTask]) -> Generator[Mapping[str, shards.Tensors], None, None]:
                wanted = [jobs[item] for task in tasks for item in task.items]
                with contextlib.closing(in_processes(wanted, self.how, workers)) as records:
                    for task in tasks:
                        found = [next(records) for _ in task.items]
                        bad.extend(one for one in found if one["reason"] is not None)
                        if len(bad) > allowed:
                            self._refuse(bad)
                        yield {"": {"records": _packed(found)}}

            shards.run_shards_together(
                {"": (place, self._plan(number))}, len(jobs), _SHARD, stream, description="preparing images"
            )

    def _forget_changed(self, place: Path, jobs: Sequence[ImageJob]) -> list[Record]:
        """Remove the shards of images of which an original or a result is another than it was; of what stays, the bad
        images. While the folder is not finished, these are tried again: their cause may be gone.
        """
        kept: list[Record] = []
        again = not (self.folder / _ABOUT).exists()
        for path in sorted(place.glob("shard-*.safetensors")):
            records = _unpacked(path)
            start = int(path.stem.removeprefix("shard-")) * _SHARD
            own = jobs[start : start + _SHARD]
            bad = [record for record in records if record["reason"] is not None]
            same = len(records) == len(own) and all(_is_same(*pair) for pair in zip(records, own, strict=True))
            if same and not (bad and again):
                kept += bad
            else:
                path.unlink()
        return kept

    def _refuse(self, bad: Sequence[Record]) -> None:
        file = self.folder / _WORK / _QUARANTINE
        write_text(file, _listed(bad).to_csv(index=False, lineterminator="\n"))
        examples = [f"{record['image_id']}: {record['reason']}" for record in bad]
        raise DatasetError(
            f"{describe(len(bad), f'of {len(self.jobs)} images cannot be used', examples)}, more than the "
            f"{self.max_bad_share:.1%} allowed (max_bad_share); all are listed in {file}; put them right and run again"
        )

    # -- the tables ----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Write the tables, once all shares are done."""
        left = [number for number in range(self.n_shares) if not shards.is_done(self._place(number))]
        if left:
            logger.info(
                "%d of %d shares are done; the last one writes the tables", self.n_shares - len(left), self.n_shares
            )
            return
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(only_run(self.folder))
            except InputError as error:
                if self.n_shares == 1:
                    raise
                logger.info("another share writes the tables (%s)", error)
                return
            records: list[Record] = [None] * len(self.jobs)  # type: ignore[list-item]
            for number in range(self.n_shares):
                place, plan = self._place(number), self._plan(number)
                there = json.loads((place / shards.PLAN).read_text(encoding="utf-8"))
                if any(there.get(name) != value for name, value in plan.items()):
                    raise InputError(f"{place} was made with other settings than this share; run it again with these")
                own = [record for path in shards.shard_paths(place) for record in _unpacked(path)]
                records[number :: self.n_shares] = own
            self._write(records)

    def _write(self, records: Sequence[Record]) -> None:
        bad = [record for record in records if record["reason"] is not None]
        if len(bad) > self.max_bad_share * len(records):
            self._refuse(bad)
        good = {record["image_id"]: record for record in records if record["reason"] is None}
        if not good:
            raise DatasetError("no image could be prepared")
        transforms = {name: Transform.from_json(cast(Any, record["transform"])) for name, record in good.items()}
        table, changes = self._table(good, transforms)
        staged = empty_staging(self.folder)
        table.to_csv(staged / _TABLE, index=False, lineterminator="\n")
        _listed(bad).to_csv(staged / _QUARANTINE, index=False, lineterminator="\n")
        changes.to_csv(staged / _BOXES, index=False, lineterminator="\n")
        originals = dict(zip(self.annotations.images["image_id"], self.annotations.images["file"], strict=True))
        rows = [
            {"image_id": name, "original": originals[name], **_row(one), **{flag: good[name][flag] for flag in _FLAGS}}  # type: ignore[literal-required]
            for name, one in transforms.items()
        ]
        pd.DataFrame(rows).to_parquet(staged / _TRANSFORMS, index=False)
        mapping = self._mapping(table, good, float(np.median([one.area for one in transforms.values()])))
        ImageMapping.checked(mapping, where=MAPPING_FILE)
        text = yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True, width=120)
        (staged / MAPPING_FILE).write_text(text, encoding="utf-8")
        write_json(staged / _ABOUT, {**self._settings, "n_images": len(good), "n_bad": len(bad)})
        for place in {
            self.folder,
            self.folder / _WORK,
            *(Path(path).parent for job in self.jobs for path in targets_of(job)),
        }:
            remove_temporaries(place)  # of killed runs; all shares are done
        replace_files(staged, self.folder)
        for path in sorted(staged.iterdir()):
            path.unlink()
        staged.rmdir()
        lying = [record["image_id"] for record in good.values() if record["lies"]]
        if lying:
            what = "files are DICOM though their names end in .png, or PNG though they do not"
            logger.warning("%s", describe(len(lying), what, lying, "they were read as what they are"))
        if bad:
            logger.warning("%d of %d images are left out, see %s", len(bad), len(records), self.folder / _QUARANTINE)

    def _table(
        self, good: Mapping[str, Record], transforms: Mapping[str, Transform]
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """One row per finding, as the folder's own mapping reads it; and what became of boxes."""
        images, findings = self.annotations.images, self.annotations.findings
        concepts = {concept.name: concept for concept in self.annotations.concepts}
        findings = findings[findings["image_id"].isin(good)].reset_index(drop=True)
        of_image = images.set_index("image_id").drop(columns=[*concepts, "file"])
        table = findings[["image_id"]].join(of_image, on="image_id")
        table["file"] = findings["image_id"].map(self.targets)
        table["line"] = list(_unlike(findings["line"].tolist()))
        for name, concept in concepts.items():
            words = ["0", "1"] if concept.is_binary else list(concept.classes)
            table[name] = ["" if number == MISSING else words[number] for number in findings[name]]
        for flag in _FLAGS if any(record["is_dicom"] for record in good.values()) else ():
            if flag not in table:
                table[flag] = [int(good[name][flag]) for name in findings["image_id"]]  # type: ignore[literal-required]
        changes = pd.DataFrame(columns=["image_id", "line", "change", *BOX_COLUMNS])
        if self.annotations.mapping.boxes is not None:
            boxes, changes = self._boxes(findings, transforms)
            table[list(BOX_COLUMNS)] = boxes
        if self.annotations.mapping.masks is not None:
            keys = findings["image_id"] + "\n" + findings["mask"]
            table["mask"] = keys.map(self.targets).fillna("")
            nothing = table["mask"].isin([file for file, marked in self._marked(good).items() if not marked])
            table.loc[nothing, "mask"] = ""
            notes = findings.loc[nothing, ["image_id", "line"]].assign(change=_NO_MASK)
            if len(notes):
                logger.warning("%d masks show nothing that the preparation keeps, see %s", len(notes), _BOXES)
                changes = pd.concat([changes, notes]) if len(changes) else notes.reindex(columns=changes.columns)
        return table, changes

    def _marked(self, good: Mapping[str, Record]) -> dict[str, int]:
        """Of every prepared mask, relative to the folder, the pixels of its largest part."""
        return {
            os.path.relpath(mask.target, self.folder): marked
            for job in self.jobs
            if job.image_id in good
            for mask, marked in zip(job.masks, good[job.image_id]["marked"], strict=True)
        }

    def _boxes(self, findings: pd.DataFrame, transforms: Mapping[str, Transform]) -> tuple[Any, pd.DataFrame]:
        """Boxes in pixels of the prepared images, clipped to them, NaN where nothing is left."""
        there = findings[list(BOX_COLUMNS)].to_numpy(dtype=np.float64)
        some = ~np.isnan(there).any(axis=1)
        found = np.full(there.shape, np.nan)
        notes: list[tuple[Any, ...]] = []
        n_wrong, examples = 0, []
        mapping = self.annotations.mapping
        pixels = "" if mapping.boxes is None else mapping.boxes.pixels
        files = dict(zip(self.annotations.images["image_id"], self.annotations.images["file"], strict=True))
        if pixels != "shares" and (n_shares := int(in_shares(there).sum())) > some.sum() / 2:
            raise DatasetError(f"{n_shares} of {some.sum()} boxes are shares of the image (0 to 1): set boxes.pixels")
        for row in np.flatnonzero(some):
            name = str(findings["image_id"].iloc[row])
            transform, box = transforms[name], there[row]
            side = np.array(transform.source[::-1] * 2, dtype=np.float64)
            if pixels == "shares":
                box = box * side
            elif pixels == "prepared" and is_original(files[name], mapping):  # of what is shown of it unprepared
                box = letterbox(transform.source, mapping.image_size).boxes_back(box)[0]
            over = np.concatenate([-box[:2], box[2:]]) - np.concatenate([[0, 0], side[2:]])
            change = ""
            if (box[2:] <= box[:2]).any() or (over > _TOLERANCE * side).any():
                change = "dropped: inverted, or outside of the original"
                n_wrong += 1
                examples.append(f"{name}, {', '.join(f'{one:g}' for one in there[row])}")
            else:
                moved = transform.boxes(box)[0]
                frame = np.array(transform.output[::-1] * 2, dtype=np.float64)
                clipped = transform.boxes(box.clip(0, side))[0].clip(0, frame)
                if (clipped[2:] <= clipped[:2]).any():
                    change = "dropped: outside of what the preparation keeps"
                else:
                    found[row] = clipped
                    change = "" if np.allclose(clipped, moved, atol=1e-6) else "clipped"
            if change:
                notes.append((name, findings["line"].iloc[row], change, *there[row]))
        if n_wrong > max(1, _FEW * some.sum()):
            advice = "say by `boxes` in which pixels and in which order they are"
            raise DatasetError(describe(n_wrong, "boxes are inverted or lie outside of their image", examples, advice))
        if notes:
            logger.warning(
                "%d of %d boxes were clipped or dropped, see %s", len(notes), some.sum(), self.folder / _BOXES
            )
        return found, pd.DataFrame(notes, columns=["image_id", "line", "change", *BOX_COLUMNS])

    def _mapping(self, table: pd.DataFrame, good: Mapping[str, Record], area: float) -> dict[str, Any]:
        """The mapping by which the folder is read; `area` pixels stand for one of an original, as a rule."""
        old, images, findings = self.annotations.mapping, self.annotations.images, self.annotations.findings
        kept = {name: getattr(old, name) for name in _KEPT if name in old.model_fields_set}
        found: dict[str, Any] = {name: list(one) if isinstance(one, tuple) else one for name, one in kept.items()}
        found |= {"table": _TABLE, "image": "file", "image_id": "image_id", "patient_id": "patient_id"}
        found |= {name: name for name in ("exam_id", "laterality", "view") if name in images}
        found |= {"split": {"column": "split"}, "labels": {}}
        for concept in self.annotations.concepts:
            of_rows = findings.groupby("image_id")[concept.name].agg(["max", "min"])
            of_rows = of_rows.loc[images["image_id"]]
            highest = of_rows["max"].to_numpy().copy()
            if concept.is_binary:
                highest[(highest == 0) & (of_rows["min"].to_numpy() == MISSING)] = MISSING
            same = bool((highest == images[concept.name].to_numpy()).all())
            label: dict[str, Any] = {
                "column": concept.name,
                "kind": concept.kind,
                "rows": "highest" if same else "same",
            }
            if not concept.is_binary or tuple(concept.classes) != ("absent", "present"):
                label["classes"] = list(concept.classes)
                if odd := {one: one for one in concept.classes if one.lower() in MISSING_TEXT}:
                    label["values"] = odd
            if not old.labels[concept.name].located:
                label["located"] = False
            found["labels"][concept.name] = label
        if old.boxes is not None:
            found["boxes"] = {"columns": list(BOX_COLUMNS), "form": "xyxy", "pixels": "prepared", "origin": 0}
        if old.masks is not None:
            least = [round(old.masks.min_area * area), *filter(None, self._marked(good).values())]
            found["masks"] = {"image": "mask", "min_area": max(1, min(least))}  # so that every mask has a part
        known = {*found, *found["labels"], "split", "file", "line", "mask", *BOX_COLUMNS, "image_id", "patient_id"}
        numbers = [name for name in table.columns if name not in known]
        found["covariates"] = {}
        for name in numbers:
            is_number = pd.api.types.is_numeric_dtype(table[name])
            words = [] if is_number else [one for one in table[name].unique() if one and one.lower() in MISSING_TEXT]
            kind = "number" if is_number else "category"
            found["covariates"][name] = {"kind": kind, "values": {one: one for one in words}} if words else kind
        found["image_size"] = list(self.how.image_size)
        return found


# -- records in shards -------------------------------------------------------------------------------------------------


def _listed(bad: Sequence[Record]) -> pd.DataFrame:
    return pd.DataFrame([(one["image_id"], one["reason"]) for one in bad], columns=["image_id", "reason"])


def _packed(records: Sequence[Record]) -> torch.Tensor:
    text = json.dumps(records, separators=(",", ":"), allow_nan=False).encode()
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _unpacked(path: Path) -> list[Record]:
    """The records of a shard; none where it is damaged."""
    try:
        with safe_open(path, framework="np") as file:
            found: list[Record] = json.loads(file.get_tensor("records").tobytes())
            return found
    except (SafetensorError, OSError, ValueError):
        return []


def _is_same(record: Record, job: ImageJob) -> bool:
    """Whether the originals are those that they were, and what was made of them has the size that it had."""
    sources = sources_of(job)
    targets = targets_of(job) if record["reason"] is None else []
    return (
        record["image_id"] == job.image_id
        and record["sources"] == [version_of(source) for source in sources]
        and record["bytes"] == [written_size(target) for target in targets]
    )


def _unlike(lines: Sequence[Any]) -> Iterator[str]:
    """Lines of the original table, told apart where several rows are of one."""
    seen: dict[Any, int] = {}
    for line in lines:
        seen[line] = seen.get(line, 0) + 1
        yield str(line) if seen[line] == 1 else f"{line}.{seen[line]}"


def _row(transform: Transform) -> dict[str, Any]:
    """A transform as columns of a table."""
    said = transform.to_json()
    return {**said, "matrix": np.ravel(said["matrix"]).tolist(), "inverse": np.ravel(said["inverse"]).tolist()}


def _from_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Such a row as `Transform.from_json` takes it."""
    found: dict[str, Any] = {}
    for name in Transform.__annotations__:
        value = row.get(name)
        found[name] = value.tolist() if isinstance(value, np.ndarray) else value
    return found
