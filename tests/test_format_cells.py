"""The block of formats in docs/compatibility.md says what running its cells gives."""

import runpy
from pathlib import Path

from helpers_format_cells import block

ROOT = Path(__file__).parents[1]


def test_the_page_says_of_formats_what_running_them_gives() -> None:
    block_of = runpy.run_path(str(ROOT / "benchmarks" / "compatibility.py"))["block_of"]
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert block_of(page, "formats") == block()
