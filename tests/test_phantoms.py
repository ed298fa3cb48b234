import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mammosae_plugin.datasets import CONCEPTS, VinDrMammo, make_phantoms, phantoms
from mammosae_plugin.errors import InputError

SIZE = (160, 96)
NO_FINDINGS = {"mass_share": 0.0, "calcification_share": 0.0, "other_share": 0.0}


def make(root: Path, n_patients: int = 4, **options) -> VinDrMammo:
    make_phantoms(root, **{"n_patients": n_patients, "image_size": SIZE, "seed": 5} | options)
    return VinDrMammo(root, image_size=options.get("image_size", SIZE))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_phantoms_load_as_vindr_data_with_views_splits_and_all_columns(tmp_path):
    data = make(tmp_path, n_patients=10)
    assert len(data) == 40
    assert data.images.groupby("patient_id")["split"].nunique().max() == 1
    assert data.images.drop_duplicates("patient_id")["split"].value_counts().to_dict() == {"training": 7, "test": 3}
    sides = data.images.groupby("patient_id")[["laterality", "view"]].apply(
        lambda rows: set(map(tuple, rows.to_numpy()))
    )
    assert all(views == {("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO")} for views in sides)
    assert data.images["density"].between(0, 3).all()
    table = pd.read_csv(tmp_path / "vindr_detection_v1_folds.csv")
    assert {"series_id", "fold", "finding_birads", "xmin", *CONCEPTS, "No_Finding"} <= set(table.columns)
    image = Image.open(data.path(0))
    assert image.mode == "L"
    assert image.size == (SIZE[1], SIZE[0])


def test_original_boxes_are_in_the_larger_original_image(tmp_path):
    make(tmp_path, mass_share=1.0)
    table = pd.read_csv(tmp_path / "vindr_detection_v1_folds.csv")
    scale = table["width"] / SIZE[1]
    assert (scale > 1).all()
    boxed = table["xmin"].notna()
    assert boxed.any()
    np.testing.assert_allclose(table["xmax"][boxed], (table["resized_xmax"] * scale)[boxed])


def test_the_same_seed_gives_the_same_bytes_in_any_count_and_with_threads(tmp_path):
    make(tmp_path / "a", n_patients=3)
    make(tmp_path / "b", n_patients=3, num_workers=3)
    make(tmp_path / "more", n_patients=5)
    first = contents(tmp_path / "a")
    assert first == contents(tmp_path / "b")
    more = contents(tmp_path / "more")
    images = [name for name in first if name.endswith(".png")]
    assert len(images) == 12
    assert all(more[name] == first[name] for name in images)
    rows = (tmp_path / "a" / "vindr_detection_v1_folds.csv").read_text()
    assert (tmp_path / "more" / "vindr_detection_v1_folds.csv").read_text().startswith(rows)


def test_another_seed_gives_other_images(tmp_path):
    first, second = make(tmp_path / "a", 1), make(tmp_path / "b", 1, seed=6)
    assert not np.array_equal(first.gray(0), second.gray(0))


def test_a_call_that_was_interrupted_goes_on_where_it_stopped(tmp_path):
    make(tmp_path / "whole")
    make(tmp_path / "cut")
    images = sorted((tmp_path / "cut").rglob("*.png"))
    before = {path: path.stat().st_mtime_ns for path in images}
    images[3].unlink()
    images[5].write_bytes(images[5].read_bytes()[:100])
    (tmp_path / "cut" / "vindr_detection_v1_folds.csv").unlink()
    make(tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    rewritten = {path for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert rewritten == {images[3], images[5]}


def test_the_annotation_file_is_written_last(tmp_path, monkeypatch):
    def stop(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(phantoms._Phantom, "pixels", stop)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path)
    assert not (tmp_path / "vindr_detection_v1_folds.csv").exists()
    assert not list(tmp_path.rglob("*.png"))


def test_a_folder_of_other_phantoms_or_of_real_data_is_left_alone(tmp_path):
    make(tmp_path / "a", 1)
    with pytest.raises(InputError, match="made with other arguments"):
        make(tmp_path / "a", 1, seed=6)
    (tmp_path / "real" / "images_png").mkdir(parents=True)
    with pytest.raises(InputError, match="no phantoms of this generator"):
        make(tmp_path / "real", 1)
    assert json.loads((tmp_path / "a" / "phantoms.json").read_text())["seed"] == 5


def test_findings_show_in_every_view_of_one_breast_and_not_in_the_other(tmp_path):
    data = make(tmp_path, 12, mass_share=1.0)
    per_breast = data.images.groupby(["patient_id", "laterality"])["Mass"].agg(["min", "max"])
    assert (per_breast["min"] == per_breast["max"]).all()
    assert (per_breast["max"].groupby("patient_id").sum() == 1).all()
    positive = data.images["Mass"] == 1
    assert (data.images["birads"][positive] >= 2).all()


def test_prevalences_are_followed_and_independent():
    shares = {"mass": 0.5, "calcification": 0.3, "other": 0.1}
    drawn = [phantoms._Patient.drawn(0, index, 1, shares).views[0].lesions for index in range(600)]
    found = np.array(
        [[any(concept in lesion.concepts for lesion in lesions) for concept in CONCEPTS] for lesions in drawn]
    )
    mass, calcification = (found[:, CONCEPTS.index(name)] for name in ("Mass", "Suspicious_Calcification"))
    assert abs(mass.mean() - 0.5) < 0.08
    assert abs(calcification.mean() - 0.3) < 0.08
    assert abs(np.corrcoef(mass, calcification)[0, 1]) < 0.12


@pytest.mark.parametrize("size", [(160, 96), (320, 192)])
@pytest.mark.parametrize(
    ("share", "concept"), [("mass_share", "Mass"), ("calcification_share", "Suspicious_Calcification")]
)
def test_boxes_hold_what_the_finding_changes_and_little_else(tmp_path, size, share, concept):
    with_it = make(tmp_path / "with", 3, image_size=size, **NO_FINDINGS | {share: 1.0})
    without = make(tmp_path / "without", 3, image_size=size, **NO_FINDINGS)
    assert without.images[list(CONCEPTS)].to_numpy().sum() == 0
    n_checked = 0
    for index in range(len(with_it)):
        change = with_it.gray(index).astype(int) - without.gray(index)
        boxes = with_it[index]["boxes"][concept].round().int().tolist()
        if not boxes:
            assert (change == 0).all()
            continue
        ((left, top, right, bottom),) = boxes
        inside = change[top:bottom, left:right]
        assert inside.sum() >= 0.95 * change.sum()
        assert inside.max() > 25
        edges = [inside[0], inside[-1], inside[:, 0], inside[:, -1]]
        assert all(edge.max() > 0.05 * inside.max() for edge in edges)  # the box is tight
        assert 0.012 < inside.size / change.size < 0.105
        n_checked += 1
    assert n_checked == 6


def test_findings_lie_within_the_breast(tmp_path):
    data = make(tmp_path, 8, mass_share=1.0, calcification_share=1.0, other_share=0.0)
    shares = [
        (data.gray(index)[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] > 30).mean()
        for index in range(len(data))
        for boxes in data[index]["boxes"].values()
        for box in boxes.tolist()
    ]
    assert len(shares) == 32
    assert min(shares) > 0.9


def test_images_have_a_dark_background_a_marker_and_the_breast_at_its_own_side(tmp_path):
    data = make(tmp_path, 3, **NO_FINDINGS)
    for index in range(len(data)):
        image = data.gray(index)
        dark = (image < 12).mean()
        assert 0.15 < dark < 0.75
        wall, far = image[:, :4].mean(), image[:, -4:].mean()
        if data.images.at[index, "laterality"] == "R":
            wall, far = far, wall
        assert wall > 4 * far
        top_corner = image[: SIZE[0] // 6]
        half = (
            top_corner[:, SIZE[1] // 2 :]
            if data.images.at[index, "laterality"] == "L"
            else top_corner[:, : SIZE[1] // 2]
        )
        assert half.max() > 150


@pytest.mark.parametrize(
    "options",
    [
        {"n_patients": 0},
        {"images_per_patient": 5},
        {"image_size": (50, 50)},
        {"mass_share": 1.2},
        {"test_share": -0.1},
        {"num_workers": -1},
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_written(tmp_path, options):
    with pytest.raises(InputError, match="give|need"):
        make_phantoms(tmp_path / "x", **{"n_patients": 1, "image_size": SIZE} | options)
    assert not (tmp_path / "x").exists()


def test_an_image_is_drawn_again_as_it_lies_there_and_without_a_finding_elsewhere_the_same(tmp_path):
    data = make(tmp_path, n_patients=3, mass_share=1.0, calcification_share=1.0)
    image_id = data.images.loc[data.images["Mass"] == 1, "image_id"].iloc[0]
    stored = np.asarray(Image.open(tmp_path / "images_png" / image_id.rsplit("_", 2)[0] / image_id))
    assert np.array_equal(phantoms.draw_phantom(tmp_path, image_id), stored)
    erased = phantoms.draw_phantom(tmp_path, image_id, without=["Mass"])
    changed = np.argwhere(erased != stored)
    assert len(changed)
    own = data.findings[(data.findings["image_id"] == image_id) & (data.findings["Mass"] == 1)].iloc[0]
    assert stored[changed[:, 0], changed[:, 1]].mean() > erased[changed[:, 0], changed[:, 1]].mean()
    inside = np.abs(changed[:, 1] - (own["xmin"] + own["xmax"]) / 2) < own["xmax"] - own["xmin"]
    assert inside.all()


def test_only_images_of_the_folder_can_be_drawn_again(tmp_path):
    make(tmp_path, n_patients=1)
    for root, image_id, words in (
        (tmp_path / "none", "phantom_00000_L_CC.png", "no phantoms of version"),
        (tmp_path, "somebody.png", "is no image of a phantom"),
        (tmp_path, "phantom_00000_X_CC.png", "has no image"),
    ):
        with pytest.raises(InputError, match=words):
            phantoms.draw_phantom(root, image_id)
