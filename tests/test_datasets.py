"""What a dataset says of itself."""

import pytest

from mammosae_plugin.datasets import Concept, Vocabulary
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": " "}, "give the name of its column"),
        ({"kind": "ordinal"}, "'ordinal'; a concept is binary, graded, multiclass"),
        ({"classes": ("a", "b", "c")}, "needs two classes, not 3"),
        ({"kind": "graded"}, "needs three or more classes, not 2"),
        ({"kind": "multiclass", "classes": ("a", "b", "a")}, "two classes of Cancer have the same name"),
        ({"kind": "graded", "classes": ("a", "b", "c"), "boxes": True}, "boxes and masks are of concepts with two"),
    ],
)
def test_a_concept_whose_parts_do_not_fit_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Concept(**{"name": "Cancer"} | settings)


def test_concepts_are_read_as_they_were_written():
    grade = Concept("Grade", "graded", ("I", "II", "III"))
    concepts = Vocabulary([Concept("Cancer", classes=("benign", "malignant"), boxes=True), grade])
    assert Vocabulary.of_json(concepts.to_json()) == concepts
    assert concepts.binary == ("Cancer",) and concepts["Grade"].n_outputs == 3
    with pytest.raises(InputError, match="two concepts have the same name"):
        Vocabulary([grade, grade])
