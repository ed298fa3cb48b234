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
    ("about", "part"), [(CMMD, "CC0 1.0"), (VINDR_MAMMO, "PhysioNet licence"), (VINDR_MAMMO, "1.5.0")]
)
def test_a_part_of_a_licences_name_is_not_it(about, part):
    with pytest.raises(InputError, match="not the licence"):
        permit_sending(about, part, "models.example.org")


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
    model = openai_model("m", "https://192.0.2.1/v1", permission=permission)
    sent = []
    completions = SimpleNamespace(create=lambda **request: sent.append(request) or SimpleNamespace(choices=[]))
    model._client = SimpleNamespace(chat=SimpleNamespace(completions=completions))  # nothing leaves the test
    model.answer(Question((Image.new("L", (4, 4)),), {"type": "object"}), seed=0)
    assert len(sent) == 1
    with pytest.raises(InputError, match="permission is for"):
        openai_model("m", "https://192.0.2.9/v1", permission=permission)
