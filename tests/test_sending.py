"""Which pictures may go to which machine: the licence named must be theirs, and this machine needs none."""

from types import SimpleNamespace

import pytest
from PIL import Image

from mammosae_plugin.adapters.language_models import Question, openai_model
from mammosae_plugin.datasets.about import CMMD, KNOWN, PHANTOMS, VINDR_MAMMO, DatasetAbout
from mammosae_plugin.errors import InputError
from mammosae_plugin.privacy.sending import permit_sending


@pytest.mark.parametrize("about", [about for about in KNOWN.values() if about.licence])
def test_images_go_out_only_under_the_licence_that_is_theirs(about):
    with pytest.raises(InputError, match="stay here") as caught:
        permit_sending(about, None, "models.example.org")
    for said in (about.title, about.licence, about.url, "--send-images-under", "models.example.org"):
        assert said in str(caught.value) and "\n" not in str(caught.value)
    for other in ("MIT", "yes", " ", "data"):
        with pytest.raises(InputError, match="not the licence|stay here"):
            permit_sending(about, other, "models.example.org")
    named = permit_sending(about, f"  {about.licence.upper()}", "models.example.org")
    assert (named.dataset, named.host) == (about.name, "models.example.org")


@pytest.mark.parametrize(
    ("about", "other"),
    [
        *[
            (CMMD, said)
            for said in ("CC0 1.0", "accelerated by me", "cc by-nc-nd 1.0", "CC BY 3.0", "CC BY 40", "cc by")
        ],
        *[(VINDR_MAMMO, said) for said in ("PhysioNet licence", "1.5.0", "not under physionet 1.5.0")],
        (KNOWN["inbreast"], "INBREAST forbids it"),
        (KNOWN["embed"], "embed"),
    ],
)
def test_words_that_are_in_a_licences_name_or_hold_it_are_not_it(about, other):
    with pytest.raises(InputError, match="not the licence") as caught:
        permit_sending(about, other, "models.example.org")
    assert f"--send-images-under '{about.licence}'" in str(caught.value)


@pytest.mark.parametrize("said", ["CC-BY-4.0", "cc by 4.0", "CC_BY_4.0", "cc\u00a0by 4.0."])
def test_spaces_hyphens_and_capitals_of_a_licences_name_do_not_matter(said):
    assert permit_sending(CMMD, said, "models.example.org").licence == said
    own = DatasetAbout("own", "Our archive", licence="CC-BY-4.0")
    assert permit_sending(own, "CC BY 4.0", "models.example.org").dataset == "own"


def test_of_other_data_the_licence_is_named_as_it_is_stated_and_unknown_ones_stay():
    own = DatasetAbout("own", "Our archive", licence="House terms 2")
    assert permit_sending(own, "house  TERMS 2", "h").licence == "house  TERMS 2"
    for wrong in ("house terms", "house terms 22", "terms 2"):
        with pytest.raises(InputError, match="not the licence"):
            permit_sending(own, wrong, "h")
    for licence in (None, "none", "CC BY 4.0"):
        with pytest.raises(InputError, match="licence of Our archive is not known.*data.licence"):
            permit_sending(DatasetAbout("own", "Our archive"), licence, "h")
    assert permit_sending(PHANTOMS, "none", "h").dataset == "phantom"
    with pytest.raises(InputError, match="phantom"):
        permit_sending(PHANTOMS, None, "h")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_takes_no_permission(host):
    assert permit_sending(VINDR_MAMMO, None, host) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "localhost.example.org", "127.0.0.1.example.org", "2130706433"])
def test_what_only_looks_like_this_machine_takes_one(host):
    with pytest.raises(InputError, match="stay here"):
        permit_sending(VINDR_MAMMO, None, host)


def test_a_permission_opens_the_way_to_its_host_alone(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    permission = permit_sending(CMMD, "CC BY 4.0", "192.0.2.1")
    model = openai_model("m", "https://192.0.2.1/v1", key_from="OPENAI_API_KEY", permission=permission)
    sent = []
    empty = SimpleNamespace(http_response=SimpleNamespace(content=b'{"choices": []}'))
    raw = SimpleNamespace(create=lambda **request: sent.append(request) or empty)
    chat = SimpleNamespace(completions=SimpleNamespace(with_raw_response=raw))
    place = SimpleNamespace(host="192.0.2.1", scheme="https")
    model._client = SimpleNamespace(chat=chat, base_url=place)  # nothing leaves the test
    picture = Question((Image.new("L", (4, 4)),), {"type": "object"})
    model.answer(picture, seed=0)
    assert len(sent) == 1
    with pytest.raises(InputError, match="permission is for"):
        openai_model("m", "https://192.0.2.9/v1", key_from="OPENAI_API_KEY", permission=permission)
    with pytest.raises(AttributeError):
        model.host = None
    place.host = "192.0.2.9"
    with pytest.raises(InputError, match=r"stay on this machine.*192\.0\.2\.9"):
        model.answer(picture, seed=0)
    assert len(sent) == 1
