"""Pairs of phantoms: two images that differ in one thing, and tables of anybody's pairs."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mammosae_plugin.datasets import (
    CONCEPTS,
    PAIR_ATTRIBUTES,
    DatasetError,
    VinDrMammo,
    make_phantom_pairs,
    make_phantoms,
    phantom_pairs,
    read_pairs,
)
from mammosae_plugin.errors import InputError

SIZE = (160, 96)
LOCAL = (*CONCEPTS, "letter", "clip", "pectoral_muscle")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    pairs = read_pairs(make_phantom_pairs(root, n_pairs=2, image_size=SIZE, seed=3))
    return root, pairs, VinDrMammo(root, image_size=SIZE)


def gray(data, image_id):
    return data.gray(int(np.flatnonzero(data.images["image_id"] == image_id)[0])).astype(int)


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_every_attribute_has_its_pairs_and_vindrs_reader_reads_the_truth(made):
    _, pairs, data = made
    assert pairs["attribute"].tolist() == 2 * list(PAIR_ATTRIBUTES)
    truth = data.images.set_index("image_id")
    assert data.about.name == "phantom"
    assert set(truth["split"]) == {"test"}
    for pair in pairs.itertuples():
        one, other = truth.loc[pair.image_id_a], truth.loc[pair.image_id_b]
        differs = {name for name in truth.columns if one[name] != other[name]} - {"birads"}
        expected = {
            **{name: {name} for name in (*CONCEPTS, "density")},
            **dict.fromkeys(("letter", "clip"), {"marker"}),
            **dict.fromkeys(("noise", "blur", "contrast"), {"machine"}),
        }
        assert differs == expected.get(pair.attribute, set()), pair.attribute
        assert (one["patient_id"], one["density"]) == (pair.patient_id, int(pair.density))
    assert set(pairs.loc[pairs["attribute"] == "pectoral_muscle", "view"]) == {"MLO"}
    assert set(pairs["view"]) == {"CC", "MLO"}


def test_outside_of_its_box_a_local_change_leaves_every_byte(made):
    root, pairs, data = made
    for pair in pairs[pairs["attribute"].isin(LOCAL)].itertuples():
        one, other = gray(data, pair.image_id_a), gray(data, pair.image_id_b)
        left, top, right, bottom = (int(getattr(pair, name)) for name in ("xmin", "ymin", "xmax", "ymax"))
        changed = one != other
        assert changed[top:bottom, left:right].sum() == changed.sum() > 0
        assert np.array_equal(np.asarray(Image.open(root / pair.mask)) == 255, changed)
        assert float(pair.changed) == pytest.approx(changed.mean(), abs=1e-6)
        is_broad = pair.attribute in ("Global_Asymmetry", "pectoral_muscle", "Skin_Thickening")
        assert changed.mean() < (0.4 if is_broad else 0.2), pair.attribute
        if pair.attribute in CONCEPTS:  # what is annotated is the middle of what changed
            own = data.findings[(data.findings["image_id"] == pair.image_id_b) & (data.findings[pair.attribute] == 1)]
            box = own[["xmin", "ymin", "xmax", "ymax"]].to_numpy()[0]
            assert (box[:2] >= [left - 2, top - 2]).all()
            assert (box[2:] <= [right + 2, bottom + 2]).all()


def test_changes_of_the_whole_image_have_no_box_and_do_what_they_say(made):
    _, pairs, data = made
    for pair in pairs[~pairs["attribute"].isin(LOCAL)].itertuples():
        one, other = gray(data, pair.image_id_a), gray(data, pair.image_id_b)
        assert np.isnan(pair.xmin)
        assert (one != other).mean() > 0.2
        roughness = [np.abs(np.diff(image[30:-30, 10:-10], axis=0)).mean() for image in (one, other)]
        change = other.mean() - one.mean()
        if pair.attribute == "density":
            assert change > 2
        elif pair.attribute == "contrast":
            assert change > 5
        else:
            assert abs(change) < 1
            rougher = roughness[1] / roughness[0]
            low, high = {"noise": (1.1, 4), "blur": (0.3, 0.95), "exposure": (0.93, 1.07)}[pair.attribute]
            assert low < rougher < high, pair.attribute


def test_an_interrupted_call_goes_on_and_more_pairs_are_added(tmp_path, monkeypatch):
    chosen = {"attributes": ["Mass", "pectoral_muscle", "density"], "image_size": (96, 64), "seed": 4}
    make_phantom_pairs(tmp_path / "whole", n_pairs=2, **chosen, num_workers=2)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(phantom_pairs, "_box", stop)
        with pytest.raises(KeyboardInterrupt):
            make_phantom_pairs(tmp_path / "cut", n_pairs=1, **chosen)
    assert not (tmp_path / "cut" / "pairs.csv").exists()
    make_phantom_pairs(tmp_path / "cut", n_pairs=1, **chosen)
    image = next((tmp_path / "cut").rglob("*__Mass.png"))
    image.write_bytes(image.read_bytes()[:50])
    make_phantom_pairs(tmp_path / "cut", n_pairs=2, **chosen)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_folders_and_arguments_that_do_not_fit_are_refused(tmp_path):
    small = {"n_pairs": 1, "attributes": ["clip"], "image_size": (96, 64)}
    make_phantom_pairs(tmp_path / "a", **small)
    with pytest.raises(InputError, match="made with other arguments"):
        make_phantom_pairs(tmp_path / "a", **small, seed=1)
    with pytest.raises(InputError, match="no phantoms of this generator"):
        make_phantoms(tmp_path / "a", n_patients=1, image_size=(96, 64))
    make_phantoms(tmp_path / "b", n_patients=1, image_size=(96, 64))
    with pytest.raises(InputError, match="choose another folder"):
        make_phantom_pairs(tmp_path / "b", **small)
    for options, words in (
        ({"n_pairs": 0}, "n_pairs"),
        ({"attributes": ["lump"]}, "pectoral_muscle"),
        ({"attributes": []}, "at least one"),
        ({"attributes": ["clip", "clip"]}, "once"),
        ({"image_size": (50, 50)}, "at least 96 x 64"),
    ):
        with pytest.raises(InputError, match=words):
            make_phantom_pairs(tmp_path / "c", **small | options)
    assert not (tmp_path / "c").exists()


def test_anybodys_pairs_are_read_with_or_without_boxes(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("image_id_a,image_id_b,attribute,note\n0012,0013,implant,x\n0014,0015,implant,\n")
    found = read_pairs(file)
    assert found["image_id_a"].tolist() == ["0012", "0014"]
    assert found["xmin"].isna().all()
    pd.DataFrame(
        {"image_id_a": ["a", "c"], "image_id_b": ["b", "d"], "attribute": "clip"}
        | {"xmin": [1, ""], "ymin": [2, ""], "xmax": [3, ""], "ymax": [4.5, ""]}
    ).to_csv(file, index=False)
    assert read_pairs(file)[["xmin", "ymax"]].to_numpy().tolist()[0] == [1, 4.5]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image_id_a,image_id_b\na,b\n", "attribute is missing"),
        ("image_id_a,image_id_b,attribute\na,,x\n", "line 2 has no image_id_b"),
        ("image_id_a,image_id_b,attribute,xmin\na,b,x,1\n", "only xmin"),
        ("image_id_a,image_id_b,attribute,xmin,ymin,xmax,ymax\na,b,x,1,1,2,2\na,b,x,5,1,2,2\n", "line 3 has a box"),
        ("image_id_a,image_id_b,attribute,xmin,ymin,xmax,ymax\na,b,x,1,1,2,\n", "line 2 has a box"),
        ("image_id_a,image_id_b,attribute,xmin,ymin,xmax,ymax\na,b,x,1,1,2,two\n", "line 2 has a box"),
    ],
)
def test_a_table_of_pairs_that_is_none_is_refused_by_its_line(tmp_path, text, words):
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(DatasetError, match=words):
        read_pairs(tmp_path / "mine.csv")
