"""One known truth, written in all the ways that a mapping knows: images, labels and boxes are the truth's."""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mammosae_plugin.datasets import load_images

HEIGHT, WIDTH = 48, 36
PLACED = ("Mass", "Calc")
SPLITS = {"training": "train", "test": "val"}


@dataclass
class Seen:
    """An image as it truly is: what is found in it, each a set of labels and its boxes; None where nobody looked."""

    image_id: str
    patient_id: str
    split: str
    density: str
    findings: list[tuple[tuple[str, ...], list[list[int]]]] | None

    @property
    def labels(self) -> dict[str, int]:
        has = {name: any(name in names for names, _ in self.findings or ()) for name in PLACED}
        known = {name: -1 if self.findings is None else int(has[name]) for name in PLACED}
        density = "ABCD".index(self.density) if self.density else -1
        return {**known, "any": max(known.values()), "density": density}

    def boxes(self, label: str) -> list[list[int]]:
        return sorted(box for names, boxes in self.findings or () if label in names for box in boxes)


def seen(seed: int, one_set: bool) -> list[Seen]:
    """Ten images of six patients; with `one_set` all that is found in an image has the same labels."""
    rng = np.random.default_rng(seed)
    patients = ["007", "070", "0010", "1e3", "P-5", "6"]
    found = []
    for number in range(10):
        patient = patients[number % 6]
        places = rng.permutation([(x, y) for x in (1, 13, 25) for y in (2, 14, 26, 38)])[: rng.integers(1, 5)]
        ends = places + rng.integers(2, 9, places.shape)
        boxes = np.concatenate([places, ends], axis=1).tolist()
        sets = [("Mass",), ("Calc",), PLACED]
        cut = len(boxes) if one_set else int(rng.integers(1, len(boxes) + 1))
        kinds = rng.permutation(3)
        findings = [(sets[kinds[0]], boxes[:cut]), *([(sets[kinds[1]], boxes[cut:])] if boxes[cut:] else [])]
        of_image = None if number == 3 else [] if number in (1, 7) else findings
        density = "" if number in (2, 3) else "ABCD"[rng.integers(4)]
        split = "training" if number % 6 < 4 else "test"
        found.append(Seen(f"{number:03d}", patient, split, density, of_image))
    return found


# Ways of writing labels: the cells of a row that has these labels (None: nobody looked), and the mapping's part


def as_numbers(labels, _rng):
    cells = {f"is_{name}": "" if labels is None else str(int(name in labels)) for name in PLACED}
    return cells, {name: f"is_{name}" for name in PLACED}


def as_words(labels, rng):
    words = [("no", "yes"), ("False", "TRUE"), ("absent", "present"), ("0.0", "1.0")][rng.integers(4)]
    return {name: "n/a" if labels is None else words[name in labels] for name in PLACED}, list(PLACED)


def as_categories(labels, _rng):
    cells = {f"kind_{name}": "" if labels is None else ("none", "proven")[name in labels] for name in PLACED}
    return cells, {name: {"column": f"kind_{name}", "positive": "proven", "negative": ["none"]} for name in PLACED}


def as_printed_list(labels, rng):
    names = ["" if labels is None else one for one in sorted(labels or (), reverse=bool(rng.integers(2)))] or ["No"]
    cell = (
        "" if labels is None else [str(names), json.dumps(names), " ; ".join(names), "|".join(names)][rng.integers(4)]
    )
    return {"findings": cell}, {name: {"column": "findings", "contains": name} for name in PLACED}


def as_parts(labels, rng):
    """Each label as one of two columns that together are the label."""
    cells, said = {}, {}
    for name in PLACED:
        first = bool(rng.integers(2))
        has = labels is not None and name in labels
        cells |= {f"{name}_{part}": "" if labels is None else str(int(has and part == first)) for part in (0, 1)}
        said[name] = {"any_of": [f"{name}_0", f"{name}_1"]}
    return cells, said


LABELS = [as_numbers, as_words, as_categories, as_printed_list, as_parts]

# Ways of writing boxes: the rows of an image (its labels, cells), and the mapping's part


def numbers_of(box, form, origin, pixels):
    x0, y0, x1, y1 = box
    if pixels == "shares":
        x0, y0, x1, y1 = x0 / WIDTH, y0 / HEIGHT, x1 / WIDTH, y1 / HEIGHT
    x0, y0, x1, y1 = (value + origin for value in (x0, y0, x1, y1))
    return {"xyxy": [x0, y0, x1, y1], "xywh": [x0, y0, x1 - x0, y1 - y0], "yxyx": [y0, x0, y1, x1]}[form]


def in_places(rng, in_json):
    form, pixels = (
        list(one)[rng.integers(3)] for one in (("xyxy", "xywh", "yxyx"), ("original", "prepared", "shares"))
    )
    origin = 0 if pixels == "shares" else int(rng.integers(2))
    how = {"form": form, "pixels": pixels, "origin": origin}
    if pixels == "original" and rng.integers(2):
        how["size"] = ["h", "w"]
    as_dict = form == "xywh" and in_json and bool(rng.integers(2))

    def rows(image, _folder):
        for labels, boxes in image.findings or [(None if image.findings is None else (), [])]:
            written = [numbers_of(box, form, origin, pixels) for box in boxes]
            if as_dict:
                written = [dict(zip(("x", "y", "width", "height"), box, strict=True)) for box in written]
            if in_json:
                shown = (json.dumps, str)[rng.integers(2)](written[0] if len(written) == 1 else written)
                yield labels, {"boxes": shown if boxes else "", "h": "48", "w": "36"}
            for box in () if in_json else written or [[""] * 4]:
                yield labels, {**{f"c{n}": str(value) for n, value in enumerate(box)}, "h": "48", "w": "36"}

    return rows, {"boxes": {**how, **({"json": "boxes"} if in_json else {"columns": ["c0", "c1", "c2", "c3"]})}}


def in_columns(rng):
    return in_places(rng, False)


def in_json(rng):
    return in_places(rng, True)


def write_mask(file, boxes, rng):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        mask[y0:y1, x0:x1] = (255, 1, number + 1)[rng.integers(3)]
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(mask if rng.integers(2) else mask > 0).save(file)


def in_a_mask_of_each_label(rng):
    def rows(image, folder):
        for name in PLACED:
            if image.boxes(name):
                write_mask(folder / name / f"{image.image_id}.png", image.boxes(name), rng)
        labels = tuple(name for name in PLACED if image.labels[name] == 1)
        yield None if image.findings is None else labels, {}

    return rows, {"masks": "{label}/{image_id}.png"}


def in_a_mask_of_each_image(rng):
    def rows(image, folder):
        for labels, boxes in image.findings or [(None if image.findings is None else (), [])]:
            if boxes:
                write_mask(folder / "masks" / f"{image.image_id}_mask.png", boxes, rng)
            yield labels, {}

    return rows, {"masks": {"image": "masks/{image_id}_mask.png"}}


def in_several_masks(rng):
    def rows(image, folder):
        for labels, boxes in image.findings or [(None if image.findings is None else (), [])]:
            for number, box in enumerate(boxes):
                write_mask(folder / "masks" / f"{image.image_id}_{number}.png", [box], rng)
            yield labels, {}

    return rows, {"masks": "masks/{image_id}_*.png"}


def in_masks_that_rows_name(rng):
    def rows(image, folder):
        number = 0
        for labels, boxes in image.findings or [(None if image.findings is None else (), [])]:
            for box in boxes or [None]:
                name = "" if box is None else f"roi/{image.image_id}-{number}.png"
                if box is not None:
                    write_mask(folder / name, [box], rng)
                    number += 1
                yield labels, {"roi": name.replace("/", "\\") if rng.integers(2) else name}

    return rows, {"masks": "roi"}


PLACES = [in_columns, in_json, in_a_mask_of_each_label, in_masks_that_rows_name]
OF_ONE_SET = [in_a_mask_of_each_image, in_several_masks]

# Ways of writing tables


def as_csv(rows, folder, rng):
    text = rows.to_csv(index=False, sep=",;\t|"[rng.integers(4)], lineterminator=("\n", "\r\n")[rng.integers(2)])
    (folder / "t.csv").write_bytes(("\ufeff" if rng.integers(2) else "").encode() + text.encode())
    return "t.csv"


def typed(rows):
    """As programs keep it: numbers as numbers, empty cells as nothing, ids as text."""
    found = rows.copy()
    for name in found.columns.difference(["image_id", "patient_id", "file", "Mass", "Calc"]):
        values = pd.to_numeric(found[name].replace("", None), errors="coerce")
        if values.notna().sum() == (found[name] != "").sum():
            found[name] = values
    return found


def as_parquet(rows, folder, _rng):
    typed(rows).to_parquet(folder / "t.parquet")
    return "t.parquet"


def as_workbook(rows, folder, _rng):
    typed(rows).to_excel(folder / "t.xlsx", index=False)
    return "t.xlsx"


def as_several(rows, folder, rng):
    rows.iloc[:7].to_csv(folder / "a.csv", index=False, sep=";")
    rest = rows.iloc[7:]
    rest[list(rng.permutation(rest.columns))].to_parquet(folder / "b.parquet")
    return ["a.csv", "b.parquet"]


TABLES = [as_csv, as_csv, as_parquet, as_workbook, as_several]


def write(folder, images, labels, places, table, rng):
    """Write the images in one way; the mapping that reads them."""
    said = {}
    rows_of, placed = places(rng)
    rows = []
    for image in images:
        own = {"image_id": image.image_id, "patient_id": image.patient_id, "part": SPLITS[image.split]}
        for has, cells in rows_of(image, folder):
            names, said = labels(has, rng)
            rows.append({**own, "dens": image.density and f"DENSITY {image.density}", **names, **cells})
    (folder / "images").mkdir()
    for number, image in enumerate(images):
        rng_of = np.random.default_rng(number)
        Image.fromarray(rng_of.integers(0, 255, (HEIGHT, WIDTH), np.uint8)).save(
            folder / f"images/{image.image_id}.png"
        )
    written = pd.DataFrame(rows)
    said = dict.fromkeys(said) if isinstance(said, list) else said
    density = {
        "column": "dens",
        "kind": "graded",
        "classes": list("ABCD"),
        "values": {f"DENSITY {c}": c for c in "ABCD"},
    }
    return {
        "table": table(written, folder, rng),
        "image": "images/{image_id}.png",
        "split": {"column": "part", "values": {part: [word] for part, word in SPLITS.items()}},
        "missing": "n/a",
        "labels": {**said, "any": {"any_of": list(PLACED if labels is not as_parts else _parts())}, "density": density},
        "image_size": [HEIGHT, WIDTH],
        **placed,
    }


def _parts():
    return [f"{name}_{part}" for name in PLACED for part in (0, 1)]


@pytest.mark.parametrize("places", [*PLACES, *OF_ONE_SET], ids=lambda one: one.__name__)
@pytest.mark.parametrize("labels", LABELS, ids=lambda one: one.__name__)
def test_every_way_of_writing_the_truth_gives_the_truth(labels, places, tmp_path):
    for number in range(3):
        seed = 100 * LABELS.index(labels) + 10 * [*PLACES, *OF_ONE_SET].index(places) + number
        rng = np.random.default_rng(seed)
        truth = seen(seed, one_set=places in OF_ONE_SET)
        folder = tmp_path / str(number)
        folder.mkdir()
        table = TABLES[(seed // 10 + seed) % len(TABLES)]
        mapping = write(folder, truth, labels, places, table, rng)
        data = load_images(mapping, folder)
        items = {item["image_id"]: item for item in map(data.__getitem__, range(len(data)))}
        assert list(items) == [image.image_id for image in truth], (mapping, seed)
        for image in truth:
            item = items[image.image_id]
            assert (item["patient_id"], item["split"]) == (image.patient_id, image.split)
            assert item["labels"] == image.labels, (image, mapping)
            for name in PLACED:
                boxes = sorted(item["boxes"][name].tolist())
                assert len(boxes) == len(image.boxes(name)), (image, boxes, mapping)
                np.testing.assert_allclose(
                    np.reshape(boxes, (-1, 4)), np.reshape(image.boxes(name), (-1, 4)), atol=1e-4
                )
        assert data.missing["Mass"] == 1 and data.missing["density"] == 2
