"""Every family of networks, as docs/compatibility.md says of it."""

import runpy
from pathlib import Path

import pytest
from helpers_families import FAMILIES
from helpers_family_cells import row

ROOT = Path(__file__).resolve().parents[1]
COMPATIBILITY = runpy.run_path(str(ROOT / "benchmarks" / "compatibility.py"))
ROWS = COMPATIBILITY["block_of"](COMPATIBILITY["PAGE"].read_text(encoding="utf-8"), "families").splitlines()[2:]


def test_every_family_has_its_row_and_no_other_has_one():
    assert [line.split(" | ")[0].removeprefix("| ") for line in ROWS] == list(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_row_of_the_family_is_what_running_it_gives(family):
    assert row(family) == ROWS[list(FAMILIES).index(family)]
