"""What a dataset says of itself."""

import pytest

from mammosae_plugin.datasets.about import KNOWN, PHANTOMS, DatasetAbout
from mammosae_plugin.errors import InputError


def test_a_dataset_knows_its_terms(phantoms):
    assert phantoms.about is PHANTOMS and phantoms.name == "phantom"
    real = KNOWN["vindr"]
    phantoms = phantoms.select()
    phantoms.images = phantoms.images.assign(patient_id="p1")
    assert phantoms.about is real and phantoms.name == "vindr"
    assert real.restricted and real.why and "Scientific Data" in str(real.citation)
    assert not PHANTOMS.restricted


@pytest.mark.parametrize(("name", "title"), [("", "x"), ("a b", "x"), ("../a", "x"), ("a", " ")])
def test_names_that_no_file_can_bear_are_refused(name, title):
    with pytest.raises(InputError, match=r"^(a dataset's name|the title)[^\n]*$"):
        DatasetAbout(name=name, title=title)
