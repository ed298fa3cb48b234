import logging

import pytest

from mammosae_plugin.errors import InputError
from mammosae_plugin.hub.quality import flaws_of, refuse_poor
from mammosae_plugin.schema.results import poor_sae, sae_flaw


@pytest.mark.parametrize(
    ("row", "trained", "said"),
    [
        ({"explained_variance": -0.12, "l0": 8.0}, 8, "explained variance −0.120"),
        ({"explained_variance": 0.7, "l0": 54.0}, 8, "L0 54.0, trained for 8.00"),
        ({"explained_variance": 0.7, "l0": 3.9}, 8, "L0 3.90, trained for 8.00"),
        ({"explained_variance": 0.7, "l0": 0.0}, 8, "L0 0, trained for 8.00"),
        ({"explained_variance": -1.0, "l0": 54.0}, 8, "explained variance −1.000, L0 54.0, trained for 8.00"),
        ({"explained_variance": 0.0, "l0": 15.9}, 8, ""),
        ({"explained_variance": 0.7, "l0": 16.0}, 8, ""),
        ({"explained_variance": 0.7, "l0": 4.0}, 8, ""),
        ({"explained_variance": 0.7, "l0": 54.0}, None, ""),
        ({"explained_variance": None, "l0": None}, 8, ""),
        ({}, None, ""),
    ],
)
def test_an_sae_is_poor_below_the_mean_or_far_from_its_l0(row, trained, said):
    assert poor_sae(row, trained) == said
    assert sae_flaw(row, trained) == said


def test_dead_latents_are_a_flaw_for_the_report_and_no_reason_against_publishing():
    row = {"explained_variance": 0.7, "l0": 8.0, "dead_share": 0.95}
    assert (sae_flaw(row, 8), poor_sae(row, 8)) == ("95 % of the latents never fire", "")


def test_what_is_poor_is_refused_in_one_line_or_said_in_the_log(caplog):
    quality = [
        {"model": "a", "concept": "Mass", "split": split, "explained_variance": value, "l0": 8}
        for split, value in (("training", -0.3), ("test", -0.2))
    ]
    flaws = flaws_of({"bn2": {"trained_l0": 8, "quality": quality}, "good": {"quality": []}})
    assert flaws == ["bn2, a/Mass: explained variance −0.200"]
    with pytest.raises(InputError, match="bn2, a/Mass: explained variance −0.200.*--force-poor") as refused:
        refuse_poor(flaws, force_poor=False)
    assert "\n" not in str(refused.value)
    with caplog.at_level(logging.WARNING):
        refuse_poor(flaws, force_poor=True)
    assert "explained variance −0.200" in caplog.text
    refuse_poor([], force_poor=False)
