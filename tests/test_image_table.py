"""Images and a table of any form, said by a mapping."""

import pytest

from mammosae_plugin.datasets.mapping import load_mapping
from mammosae_plugin.errors import InputError

PLAIN = {"table": "images.csv", "image": "images/{image_id}.png", "labels": {"Mass": "mass"}}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": {"Mass": {"contain": "x"}}}, "did you mean 'contains'?"),
        ({"labels": {"Mass": {"contains": "x", "positive": "y"}}}, "contains and positive: give one of them"),
        ({"labels": {"split": "x"}}, "split cannot be the name"),
        ({"boxes": {"form": "xyxy"}}, "give the columns of the boxes, or the column `json`"),
        ({"split": {"column": "a", "file": "b"}}, "one of column, file and make"),
        ({"reader": "x"}, "the file of the table, or the name of a reader"),
        ({"at_skin": ["Mas"]}, "Mas is no label (nearest: Mass)"),
    ],
)
def test_what_is_wrong_in_a_mapping_is_told_with_its_place(tmp_path, changes, told):
    with pytest.raises(InputError, match="the mapping: ") as error:
        load_mapping(PLAIN, tmp_path, changes)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_mapping_without_a_folder_and_an_unknown_preset_are_refused(tmp_path):
    with pytest.raises(InputError, match="give root"):
        load_mapping(PLAIN)
    with pytest.raises(InputError, match="is no preset"):
        load_mapping("vindrr", tmp_path)
    with pytest.raises(InputError, match=r"holds no mapping\.yaml"):
        load_mapping(tmp_path)
