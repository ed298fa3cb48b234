"""Presets of public collections, each on a small made-up copy of its layout, against what is known of the copy."""

from functools import partial

import pytest
from helpers_collections import WRITERS, write_rsna

from mammosae_plugin.datasets.about import KNOWN
from mammosae_plugin.datasets.annotations import read_annotations
from mammosae_plugin.datasets.base import BOX_COLUMNS
from mammosae_plugin.datasets.mapping import load_mapping, preset_names
from mammosae_plugin.errors import InputError

LAYOUTS = {**WRITERS, "rsna with folds": partial(write_rsna, folds=True)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_preset_gives_the_labels_boxes_and_covariates_of_the_copy(tmp_path, layout):
    truth = LAYOUTS[layout](tmp_path)
    mapping, root = load_mapping(layout.split()[0], tmp_path)
    found = read_annotations(mapping, root)
    images = found.images.set_index("image_id")
    assert sorted(images.index) == sorted(truth)
    for image, known in truth.items():
        row = images.loc[image]
        assert (row["patient_id"], row["laterality"], row["view"]) == (known.patient_id, known.laterality, known.view)
        assert known.split in (None, row["split"])
        assert (root / row["file"]).is_file()
        assert {name: row[name] for name in known.labels} == {
            name: -1 if label is None else label for name, label in known.labels.items()
        }
        for name, value in known.covariates.items():
            assert row[name] != row[name] if value is None else row[name] == value
        own = found.findings[(found.findings["image_id"] == image) & found.findings["xmin"].notna()]
        for name in known.labels if mapping.boxes else ():
            boxes = own.loc[own[name] == 1, list(BOX_COLUMNS)].to_numpy().tolist() if name in known.boxes else []
            expected = sorted(known.boxes.get(name, []))
            if layout == "vindr":  # as distributed, some overhang; they are clipped when images are prepared
                assert len(boxes) == len(expected)
            else:
                assert sorted(boxes) == expected


def test_every_preset_has_the_terms_of_its_collection_and_an_unknown_one_is_told_its_nearest(tmp_path):
    for name in preset_names():
        mapping, _ = load_mapping(name, tmp_path)
        assert mapping.about is KNOWN[mapping.name] and mapping.about.restricted and mapping.files
    with pytest.raises(InputError, match=r"nearest: vindr"):
        load_mapping("vindrr", tmp_path)
