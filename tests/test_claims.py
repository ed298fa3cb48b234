"""The paper's claims at their thresholds: which side the bar itself is on, and when a question cannot be asked."""

import math
from typing import Any

import pytest

from mammosae_plugin.study.claims import claims

BEST = {"without_sae": 0.9, "with_sae": 0.885, "activate": 0.88, "deactivate": 0.7, "random": 0.8, "found": (0.3,)}


def study(**changed: Any) -> dict[str, Any]:
    """A study's results in which all claims hold, but for what is changed."""
    value = BEST | changed
    mass = {"model": "m", "concept": "Mass"}

    def sweep(mode: str, auroc: float, **more: Any) -> dict[str, Any]:
        random = {"random_auroc_mean": value["random"]}
        return mass | {"mode": mode, "k": 10, "error_term": False, "auroc": auroc} | random | more

    return {
        "rankings": [mass | {"class": label} for label in (0, 1)],
        "reconstruction": [mass | {"variant": name, "auroc": value[name]} for name in ("without_sae", "with_sae")],
        "interventions": [
            sweep("activate", value["activate"]),
            sweep("deactivate", value["deactivate"]),
            sweep("activate", 0.5, k=5),
            sweep("deactivate", 0.9, error_term=True),
        ],
        "localization": [mass | {"average_precision": one} for one in value["found"]],
    }


def passed(**changed: Any) -> list[bool | None]:
    return [check["passed"] for check in claims(study(**changed), top=10)]


def test_each_claim_is_asked_once_of_the_group_that_it_names():
    assert passed() == [True] * 4


@pytest.mark.parametrize(
    ("changed", "number", "expected"),
    [
        ({"with_sae": 0.8801}, 0, True),
        ({"with_sae": 0.95}, 0, True),  # it may gain
        ({"with_sae": 0.8799}, 0, False),
        ({"with_sae": 0.875}, 0, False),
        ({"without_sae": 0.98, "with_sae": 0.98, "activate": 0.956}, 1, True),
        ({"activate": 0.8799}, 1, False),
        ({"random": 0.7}, 2, False),
        ({"random": 0.7001}, 2, True),
        ({"found": (0.25,)}, 3, False),
        ({"found": (0.2501, 0.0)}, 3, True),
        ({"found": (math.nan,)}, 3, None),
        ({"activate": math.nan}, 1, None),
        ({"without_sae": 0.5, "with_sae": 0.5}, 0, None),
        ({"without_sae": 0.4}, 2, None),
    ],
)
def test_the_bar_is_where_the_claim_puts_it(changed, number, expected):
    assert passed(**changed)[number] is expected


def test_a_grade_is_no_finding():
    results = study()
    for rows in results.values():
        for row in rows:
            row["concept"] = "density"
    results["rankings"] = [{"model": "m", "concept": "density", "class": label} for label in range(4)]
    assert claims(results, top=10) == []
