"""Small made-up copies of how public collections lie on the disk, quirks included; no real patient's row or image.

Each `write_*` makes the files below `root` and returns what a reader must find: by image, `split` (where the collection
has one), `patient_id`, `laterality`, `view`, the labels (missing ones None) and by concept the boxes, xyxy pixels of
the image as distributed.
"""

import plistlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

IMAGE = (64, 48)
"""Height and width of most images."""


@dataclass
class Known:
    """What is known of an image because of how it was made."""

    patient_id: str
    laterality: str
    view: str
    labels: dict[str, int | None]
    boxes: dict[str, list[list[float]]] = field(default_factory=dict)
    split: str | None = None
    covariates: dict[str, Any] = field(default_factory=dict)


Truth = dict[str, Known]


def breast(size: tuple[int, int] = IMAGE, side: str = "L", boxes: Sequence[Sequence[float]] = (), seed: int = 0) -> Any:
    """uint16 pixels of 12 bit: a bright half disc at the chest wall's edge, brighter inside of boxes (xyxy)."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    across, down = x / size[1], y / size[0] - 0.5
    disc = (across / 0.8) ** 2 + (down / 0.45) ** 2 < 1
    pixels = np.where(disc, 1200 + 900 * (1 - across) + 40 * np.sin(seed + x), 0)
    pixels = pixels[:, ::-1] if side == "R" else pixels
    for left, top, right, bottom in boxes:
        pixels[(x > left) & (x < right) & (y > top) & (y < bottom)] = 3800
    return pixels.astype(np.uint16)


def write_dicom(path: Path, pixels: Any, **tags: Any) -> Path:
    """A mammogram for presentation, explicit little endian, with these tags by keyword."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.sequence import Sequence as Items
    from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found = Dataset()
    found.file_meta = meta
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    found.Modality, found.PresentationIntentType = "MG", "FOR PRESENTATION"
    found.PhotometricInterpretation, found.SamplesPerPixel, found.PixelRepresentation = "MONOCHROME2", 1, 0
    found.Rows, found.Columns = pixels.shape
    found.BitsAllocated = 8 * pixels.dtype.itemsize
    found.BitsStored = 8 if pixels.dtype == np.uint8 else 12
    found.HighBit = found.BitsStored - 1
    found.PixelData = np.ascontiguousarray(pixels).tobytes()
    for name, value in tags.items():
        if name == "view_code":
            code = Dataset()
            code.CodeMeaning = value
            found.ViewCodeSequence = Items([code])
        else:
            setattr(found, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save_as(path, enforce_file_format=True)
    return path


def mask_of(size: tuple[int, int], box: Sequence[float]) -> Any:
    """uint8 pixels, 255 inside of the box (xyxy, whole numbers)."""
    pixels = np.zeros(size, dtype=np.uint8)
    left, top, right, bottom = map(int, box)
    pixels[top:bottom, left:right] = 255
    return pixels


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False, **options)


# -- VinDr-Mammo -------------------------------------------------------------------------------------------------------

VINDR_FINDINGS = (
    "Architectural_Distortion", "Asymmetry", "Focal_Asymmetry", "Global_Asymmetry", "Mass", "Nipple_Retraction",
    "Skin_Retraction", "Skin_Thickening", "Suspicious_Calcification", "Suspicious_Lymph_Node",
)  # fmt: skip


def write_vindr(root: Path) -> Truth:
    """As PhysioNet has it: two images without a finding (one only in the table of breasts), one of three rows."""
    images = {  # id: (study, side, view, split, birads, density, rows of (findings, box))
        "0a1": ("s0", "L", "CC", "training", 1, "A", [([], None)]),
        "0a2": ("s0", "R", "MLO", "training", 2, "B", None),
        "0b1": ("s1", "L", "MLO", "training", 4, "C", [
            (["Mass"], (10.5, 12.25, 20, 22)),
            (["Suspicious Calcification", "Mass"], (5, 30, 15, 40)),
            (["Suspicious Lymph Node"], (2, 2, 8, 9)),
        ]),
        "0c1": ("s2", "R", "CC", "test", 5, "D", [
            (["Skin Thickening"], (-0.4, 5, 12, 20)), (["Mass"], (30, 40, 48.6, 60)),
        ]),
        "0c2": ("s2", "L", "CC", "test", 3, "D", [(["Global Asymmetry"], None)]),
    }  # fmt: skip
    findings, breasts, truth = [], [], {}
    for image, (study, side, view, split, birads, density, rows) in images.items():
        height, width = IMAGE
        of_breast = {
            "study_id": study, "series_id": f"x{study}", "image_id": image, "laterality": side, "view_position": view,
            "height": height, "width": width, "breast_birads": f"BI-RADS {birads}",
            "breast_density": f"DENSITY {density}",
        }  # fmt: skip
        breasts.append({**of_breast, "split": split})
        boxes: dict[str, list[list[float]]] = {}
        for names, box in rows or []:
            corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), box or [""] * 4, strict=True))
            findings.append(
                {
                    **of_breast,
                    "finding_categories": str(names or ["No Finding"]),
                    "finding_birads": f"BI-RADS {birads}" if names else "",
                    **corners,
                    "split": split,
                }
            )
            for name in names if box else ():
                inside = [max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height)]
                boxes.setdefault(name.replace(" ", "_"), []).append(inside)
        present = {name.replace(" ", "_") for names, _ in rows or [] for name in names}
        labels: dict[str, int | None] = {name: int(name in present) for name in VINDR_FINDINGS}
        labels |= {"density": "ABCD".index(density), "birads": birads - 1}
        truth[image] = Known(study, side, view, labels, boxes, split, {"age": 50.0 + len(truth)})
        pixels = breast(IMAGE, side, [box for _, box in rows or [] if box])
        write_dicom(root / "images" / study / f"{image}.dicom", pixels)
    write_table(root / "finding_annotations.csv", findings)
    write_table(root / "breast-level_annotations.csv", breasts)
    metadata = [
        {"SOP Instance UID": image, "Patient's Age": f"{50 + at:03d}Y", "Manufacturer's Model Name": "Model 1"}
        for at, image in enumerate(images)
    ]
    write_table(root / "metadata.csv", metadata)
    return truth


# -- RSNA --------------------------------------------------------------------------------------------------------------


def write_rsna(root: Path, *, folds: bool = False, n_patients: int = 10) -> Truth:
    """`train.csv` with DICOM, or `train_folds.csv` with prepared PNG: cancer per breast, odd views, missing labels."""
    rows, truth = [], {}
    for at in range(n_patients):
        patient = f"{10000 + at}"
        for number, (side, view) in enumerate(
            (("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "AT" if at == 1 else "MLO"))
        ):
            image = f"{at}{number}770"
            cancer = int(at in (1, 4, 7) and side == "L")
            birads, density = ("", "") if at % 3 == 2 else (str(at % 3), "ABCD"[at % 4])
            rows.append(
                {
                    "site_id": 1 + at % 2, "patient_id": patient, "image_id": image, "laterality": side, "view": view,
                    "age": "" if at == 3 else f"{40 + at}.0", "cancer": cancer, "biopsy": cancer, "invasive": 0,
                    "BIRADS": birads and f"{birads}.0", "implant": int(at == 5), "density": density,
                    "machine_id": 20 + at % 3,
                    "difficult_negative_case": "False",
                }
                | ({"fold": at % 4} if folds else {})
            )  # fmt: skip
            known = {"cancer": cancer, "biopsy": cancer, "invasive": 0, "difficult_negative": 0}
            known["birads"] = None if birads == "" else int(birads)
            known["density"] = None if density == "" else "ABCD".index(density)
            split = ("training" if at % 4 in (1, 2) else "test") if folds else None
            covariates = {
                "age": None if at == 3 else 40.0 + at,
                "implant": str(int(at == 5)),
                "site_id": str(1 + at % 2),
            }
            truth[image] = Known(patient, side, view, known, {}, split, covariates)
            pixels = breast(IMAGE, side, seed=4 * at + number)
            if folds:
                path = root / "train_images_png" / patient / f"{image}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((pixels >> 4).astype(np.uint8)).save(path)
            else:
                write_dicom(root / "train_images" / patient / f"{image}.dcm", pixels)
    write_table(root / ("train_folds.csv" if folds else "train.csv"), rows)
    return truth


# -- CBIS-DDSM ---------------------------------------------------------------------------------------------------------


def write_cbis_ddsm(root: Path) -> Truth:
    """Four files: a path with a newline, mask and crop exchanged, a mask of half the size, a patient in both splits."""
    images = {  # case: (file, patient, side, view, density, rows of (pathology, assessment, box, shape or type))
        "Mass-Training_P_00001_LEFT_CC": ("mass_train", "P_00001", "LEFT", "CC", 2, [
            ("MALIGNANT", 5, (8, 10, 18, 22), "IRREGULAR-ARCHITECTURAL_DISTORTION", "SPICULATED"),
            ("BENIGN", 0, (20, 30, 30, 40), "OVAL", "CIRCUMSCRIBED"),
        ]),
        "Calc-Training_P_00002_RIGHT_MLO": ("calc_train", "P_00002", "RIGHT", "MLO", 4, [
            ("BENIGN_WITHOUT_CALLBACK", 2, (12, 14, 26, 24), "PLEOMORPHIC", "CLUSTERED"),
        ]),
        "Mass-Test_P_00003_LEFT_MLO": ("mass_test", "P_00003", "LEFT", "MLO", 1, [
            ("BENIGN", 4, (6, 40, 20, 50), "ROUND", "OBSCURED"),
        ]),
        "Calc-Test_P_00001_LEFT_MLO": ("calc_test", "P_00001", "LEFT", "MLO", 2, [
            ("MALIGNANT", 4, (10, 20, 24, 30), "AMORPHOUS", "SEGMENTAL"),
        ]),
    }  # fmt: skip
    tables: dict[str, list[dict[str, Any]]] = {
        f"{kind}_{part}": [] for kind in ("mass", "calc") for part in ("train", "test")
    }
    truth = {}
    for at, (case, (table, patient, side, view, density, rows)) in enumerate(images.items()):
        is_mass = table.startswith("mass")
        kind = "mass" if is_mass else "calcification"
        pixels = breast(IMAGE, side[0], [box for _, _, box, _, _ in rows])
        write_dicom(root / case / "1.3.6.1" / "1.3.6.2" / "000000.dcm", pixels)
        for number, (pathology, assessment, box, shape, margins) in enumerate(rows, start=1):
            own = f"{case}_{number}/1.3.6.3/1.3.6.4"
            mask, crop = f"{own}/000000.dcm", f"{own}/000001.dcm"
            half = at == 2  # a mask of another size than its image
            size = (IMAGE[0] // 2, IMAGE[1] // 2) if half else IMAGE
            write_dicom(root / mask, mask_of(size, [side / 2 for side in box] if half else box))
            left, top, right, bottom = map(int, box)
            write_dicom(root / crop, pixels[top:bottom, left:right])
            if at == 1:
                mask, crop = crop, mask
            names = ("mass shape", "mass margins") if is_mass else ("calc type", "calc distribution")
            tables[table].append(
                {
                    "patient_id": patient,
                    "breast_density" if is_mass else "breast density": density,
                    "left or right breast": side,
                    "image view": view,
                    "abnormality id": number,
                    "abnormality type": kind,
                    names[0]: shape,
                    names[1]: margins,
                    "assessment": assessment,
                    "pathology": pathology,
                    "subtlety": 3 + number % 2,
                    "image file path": f"{case}/1.3.6.1/1.3.6.2/000000.dcm",
                    "cropped image file path": f"{crop}\n",
                    "ROI mask file path": f"{mask}\n",
                }
            )
        boxes: dict[str, list[list[float]]] = {}
        for pathology, _, box, shape, margins in rows:
            names = ["Mass" if is_mass else "Calcification"]
            names += ["Malignant"] if pathology == "MALIGNANT" else []
            names += [name for name, word in _CBIS_WORDS.items() if word in (*shape.split("-"), *margins.split("-"))]
            for name in names:
                boxes.setdefault(name, []).append(list(map(float, box)))
        labels: dict[str, int | None] = {
            name: int(name in boxes) for name in ("Mass", "Calcification", "Malignant", *_CBIS_WORDS)
        }
        labels["pathology"] = max(_PATHOLOGIES.index(one[0]) for one in rows)
        labels["assessment"] = max(one[1] for one in rows) - 1
        labels["density"] = density - 1
        split = "test" if table.endswith("test") and patient != "P_00001" else "training"
        truth[case] = Known(patient, side[0], view, labels, boxes, split)
    for name, found in tables.items():
        kind, part = name.split("_")
        write_table(root / f"{kind}_case_description_{part}_set.csv", found)
    return truth


_PATHOLOGIES = ("BENIGN_WITHOUT_CALLBACK", "BENIGN", "MALIGNANT")
_CBIS_WORDS = {
    "Architectural_Distortion": "ARCHITECTURAL_DISTORTION",
    "Irregular": "IRREGULAR",
    "Spiculated": "SPICULATED",
    "Pleomorphic": "PLEOMORPHIC",
    "Clustered": "CLUSTERED",
}

# -- INbreast ----------------------------------------------------------------------------------------------------------


def write_inbreast(root: Path) -> Truth:
    """Semicolons, ids removed, a blank ACR, BI-RADS 4a to 4c, contours as plist, points without area, odd spellings."""
    images: dict[str, tuple[str, str, str, str, str, list[tuple[str, list[tuple[float, float]]]]]] = {
        "20586908": ("6c613a14", "R", "CC", "3", "4c", [
            ("Mass", [(10.5, 12), (20, 12.5), (15, 25)]),
            ("Espiculated Region", [(8, 10), (22, 10), (22, 28), (8, 28)]),
        ]),
        "20586934": ("6c613a14", "L", "MLO", "", "1", []),
        "20586960": ("036aff49", "L", "CC", "2", "4a", [
            ("Calcification", [(30, 31)]), ("Calcification", [(33, 35)]), ("Cluster", [(28, 30), (36, 30), (36, 40)]),
        ]),
        "20587054": ("1feb7fb8", "R", "MLO", "1", "6", [
            ("Assymetry", [(5, 6), (15, 6), (15, 20)]), ("Unnamed", [(1, 1), (2, 2), (3, 1)]),
        ]),
        "20587080": ("2a6b1c77", "L", "MLO", "4", "2", [("Distortion", [(7, 8), (17, 8), (17, 18)])]),
    }  # fmt: skip
    meant = {"Espiculated Region": "Spiculated_Region", "Assymetry": "Asymmetry"}
    names = ("Mass", "Spiculated_Region", "Calcification", "Cluster", "Asymmetry", "Distortion")
    folder = root / "INbreast Release 1.0"
    lines, truth = ["Patient ID;Patient age;Laterality;View;Acquisition date;File Name;ACR;Bi-Rads"], {}
    for image, (patient, side, view, acr, birads, marks) in images.items():
        lines.append(f"removed;removed;{side};{view};200806;{image};{acr};{birads}")
        boxes: dict[str, list[list[float]]] = {}
        present = set()
        for name, points in marks:
            concept = meant.get(name, name)
            if concept not in names:
                continue
            present.add(concept)
            if len(points) > 2:
                x, y = zip(*points, strict=True)
                boxes.setdefault(concept, []).append([min(x), min(y), max(x), max(y)])
        labels: dict[str, int | None] = {name: int(name in present) for name in names}
        labels["density"] = int(acr) - 1 if acr else None
        labels["birads"] = ("1", "2", "3", "4a", "4b", "4c", "5", "6").index(birads)
        labels["suspicious"] = int(birads[0] in "456")
        truth[image] = Known(patient, side, view, labels, boxes)
        pixels = breast(IMAGE, side, [box for found in boxes.values() for box in found])
        short = "ML" if view == "MLO" else view
        write_dicom(folder / "AllDICOMs" / f"{image}_{patient}_MG_{side}_{short}_ANON.dcm", pixels)
        if marks:
            rois = [
                {"Name": name, "NumberOfPoints": len(points), "Point_px": [f"({x}, {y})" for x, y in points]}
                for name, points in marks
            ]
            found = {"Images": [{"ImageIndex": 0, "NumberOfROIs": len(rois), "ROIs": rois}]}
            (folder / "AllXML").mkdir(parents=True, exist_ok=True)
            (folder / "AllXML" / f"{image}.xml").write_bytes(plistlib.dumps(found))
    (folder / "INbreast.csv").write_text("\r\n".join(lines) + "\r\n", encoding="utf-8-sig")
    return truth


# -- EMBED -------------------------------------------------------------------------------------------------------------


def write_embed(root: Path) -> Truth:
    """Findings of L, R, B and no side; tomosynthesis and cview; boxes y first; a spot view; a side with two kinds."""
    kinds = ("Mass", "Asymmetry", "Architectural_Distortion", "Calcification", "Lymph_Node")
    clinical = [  # exam, side, asses, tissueden, massshape, calcfind, path_severity
        ("e1", "L", "S", 3, "O", "", 0),
        ("e1", "R", "N", 3, "", "", ""),
        ("e2", "B", "B", 2, "", "A", ""),
        ("e3", "", "N", 5, "Y", "", ""),
        ("e4", "R", "A", 1, "S", "", ""),
        ("e4", "R", "A", 1, "Q", "", 4),
    ]
    patients = {"e1": "p1", "e2": "p2", "e3": "p3", "e4": "p4", "e5": "p5"}
    files = [  # exam, side, view, type, spot, regions (ymin, xmin, ymax, xmax)
        ("e1", "L", "CC", "2D", "", [(12, 8, 30, 20)]),
        ("e1", "L", "MLO", "3D", "", []),
        ("e1", "L", "MLO", "cview", "", []),
        ("e1", "R", "CC", "2D", "", []),
        ("e2", "L", "CC", "2D", "", []),
        ("e2", "R", "CC", "C-view", "1", [(5, 6, 15, 26), (20, 10, 30, 22)]),
        ("e3", "L", "MLO", "2D", "", []),
        ("e4", "R", "MLO", "2D", "", [(10, 20, 26, 34)]),
        ("e5", "L", "CC", "2D", "", []),
    ]
    write_table(
        root / "tables" / "EMBED_OpenData_clinical.csv",
        [
            {
                "empi_anon": patients[exam], "acc_anon": exam, "numfind": 1, "side": side, "asses": asses,
                "tissueden": density, "massshape": shape, "massmargin": "", "massdens": "", "calcfind": calc,
                "calcdistri": "", "calcnumber": 0, "path_severity": severity, "age_at_study": 61.5,
            }
            for exam, side, asses, density, shape, calc, severity in clinical
        ],
    )  # fmt: skip
    rows, truth = [], {}
    for at, (exam, side, view, kind, spot, regions) in enumerate(files):
        name = f"1.2.84{at}"
        path = f"cohort_1/{patients[exam]}/{exam}/7.1/{name}.dcm"
        rows.append(
            {
                "empi_anon": patients[exam], "acc_anon": exam, "anon_dicom_path": f"/mnt/store/anon_dicom/{path}",
                "ImageLateralityFinal": side, "ViewPosition": view, "spot_mag": spot, "FinalImageType": kind,
                "ROI_coords": str([[one[0], IMAGE[1] - one[3], one[2], IMAGE[1] - one[1]] for one in regions]),
                "DCM_ROI_coords": str([list(one) for one in regions]), "num_roi": len(regions),
                "match_level": str([1] * len(regions)), "Rows": IMAGE[0], "Columns": IMAGE[1],
                "ManufacturerModelName": "Model E",
            }
        )  # fmt: skip
        boxes = [[float(region[corner]) for corner in (1, 0, 3, 2)] for region in regions]
        if kind == "3D":
            continue
        write_dicom(root / "images" / path, breast(IMAGE, side, boxes, seed=at))
        own = [one for one in clinical if one[0] == exam and (one[1] == side or one[1] in ("", "B"))]
        present = {
            "Mass": any(one[4] == "O" for one in own),
            "Asymmetry": any(one[4] == "S" for one in own),
            "Architectural_Distortion": any(one[4] == "Q" for one in own),
            "Calcification": any(one[5] == "A" for one in own),
            "Lymph_Node": any(one[4] == "Y" for one in own),
        }
        labels: dict[str, int | None] = {kind: int(present[kind]) if own else None for kind in kinds}
        labels["Finding"] = int(any(present.values()) or bool(regions)) if own or regions else None
        levels = [int("NBPSMK".index(one[2])) for one in own if one[2] in "NBPSMK"]
        labels["birads"] = max(levels) if levels else None
        labels["recalled"] = int(any(one[2] == "A" for one in own)) if own else None
        severities = [one[6] for one in own if one[6] != ""]
        labels["pathology"] = min(severities) if severities else None
        low = int(min(severities) <= 1) if severities else 0 if levels and max(levels) <= 1 else None
        labels["cancer"] = low
        density = own[0][3] if own else 5
        labels["density"] = density - 1 if density < 5 else None
        known = [kind for kind in kinds if present[kind]]
        of_kind = {known[0]: boxes} if len(known) == 1 and boxes else {}
        covariates = {"spot_mag": "1" if spot else "0", "image_type": "2D" if kind == "2D" else "cview"}
        truth[name] = Known(
            patients[exam], side, view, labels, of_kind | ({"Finding": boxes} if boxes else {}), None, covariates
        )
    write_table(root / "tables" / "EMBED_OpenData_metadata.csv", rows)
    return truth


# -- CMMD --------------------------------------------------------------------------------------------------------------


def write_cmmd(root: Path) -> Truth:
    """A workbook of breasts; files named by number alone, side and view in their headers, in one of two ways."""
    rows = [
        ("D1-0001", "R", 44, 2, "calcification", "Benign", ""),
        ("D1-0002", "L", 40, 4, "both", "Malignant", ""),
        ("D2-0001", "L", 51, 2, "mass", "Malignant", "Luminal A"),
        ("D2-0002", "R", 63, 2, "mass", "Benign", ""),
    ]
    columns = ("ID1", "LeftRight", "Age", "number", "abnormality", "classification", "subtype")
    root.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=columns).to_excel(root / "CMMD_clinicaldata_revision.xlsx", index=False)
    truth = {}
    long = {"CC": "cranio-caudal", "MLO": "medio-lateral oblique"}
    for at, (patient, side, age, number, abnormality, classification, subtype) in enumerate(rows):
        sides = [side, side] if number == 2 else [side, side, "R" if side == "L" else "L", "R" if side == "L" else "L"]
        for n, (own, view) in enumerate(zip(sides, ("CC", "MLO") * 2, strict=False), start=1):
            tags = {"ViewPosition": view} if at % 2 else {"view_code": long[view]}
            path = root / "CMMD" / patient / f"07-18-2010-NA-NA-{at}" / "1.000000-NA-70244" / f"1-{n}.dcm"
            write_dicom(path, breast(IMAGE, own, seed=n), PatientID=patient, ImageLaterality=own, **tags)
            told = own == side
            labels: dict[str, int | None] = {
                "Mass": int(abnormality in ("mass", "both")) if told else None,
                "Calcification": int(abnormality in ("calcification", "both")) if told else None,
                "malignant": int(classification == "Malignant") if told else None,
                "subtype": 0 if told and subtype else None,
            }
            truth[f"{patient}_1-{n}"] = Known(patient, own, view, labels, {}, None, {"age": float(age)})
    return truth


# -- CSAW-CC -----------------------------------------------------------------------------------------------------------


def write_csaw_cc(root: Path) -> Truth:
    """Names that say side and view, masks beside a table, a woman whose earlier exam says neither cancer nor none."""
    exams = [  # patient, n, year, x_case, cancer side, rad_timing
        ("00001", 1, 2010, 0, "", ""),
        ("00002", 1, 2009, 1, "Left", 3),
        ("00002", 2, 2011, 1, "Left", 1),
        ("00003", 1, 2012, 1, "Right", 2),
    ]
    rows, truth = [], {}
    for at, (patient, n, year, case, cancer_side, timing) in enumerate(exams):
        for side, word in (("L", "Left"), ("R", "Right")):
            name = f"{patient}_20990909_{side}_CC_{n}"
            rows.append(
                {
                    "anon_patientid": patient, "exam_year": year, "x_case": case, "x_cancer_laterality": cancer_side,
                    "x_type": 1 if case else "", "x_lymphnode_met": "", "x_age": 1 + at % 2, "rad_timing": timing,
                    "rad_recall": 0, "imagelaterality": word, "viewposition": "CC", "anon_filename": f"{name}.dcm",
                    "libra_breastarea": 100.5, "libra_densearea": 20.5, "libra_percentdensity": 20.4,
                }
            )  # fmt: skip
            hit = case and word == cancer_side
            box = (10, 20, 22, 30) if hit and timing == 1 else None
            labels: dict[str, int | None] = {"cancer": (None if timing == 3 else 1) if hit else 0}
            labels["timing"] = int(timing) if hit else 0
            boxes = {"cancer": [list(map(float, box))]} if box else {}
            truth[name] = Known(
                patient, side, "CC", labels, boxes, None, {"age_group": str(1 + at % 2), "percent_density": 20.4}
            )
            write_dicom(root / "images" / f"{name}.dcm", breast(IMAGE, side, [box] if box else []))
            if box:
                (root / "masks").mkdir(exist_ok=True)
                Image.fromarray(mask_of(IMAGE, box)).save(root / "masks" / f"{name}_mask.png")
    write_table(root / "CSAW-CC_breast_cancer_screening_data.csv", rows)
    return truth


WRITERS: dict[str, Callable[[Path], Truth]] = {
    "vindr": write_vindr,
    "rsna": write_rsna,
    "cbis-ddsm": write_cbis_ddsm,
    "inbreast": write_inbreast,
    "embed": write_embed,
    "cmmd": write_cmmd,
    "csaw-cc": write_csaw_cc,
}
