"""The matrices of docs/compatibility.md, made by running every cell.

    python benchmarks/compatibility.py [BLOCK ...]

Each block of the page, between `<!-- begin NAME -->` and `<!-- end NAME -->`, is what `block()` of a module in tests/
gives. Tests make the cells anew with the same functions and compare them with the page.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
BLOCKS = {"families": "helpers_family_cells", "formats": "helpers_format_cells", "saelens": "helpers_saelens_cells"}
"""Block -> the module in tests/ whose `block()` makes its text."""


def block_of(page: str, name: str) -> str:
    """The text of a block."""
    return page.split(f"<!-- begin {name} -->\n", 1)[1].split(f"\n<!-- end {name} -->", 1)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("blocks", nargs="*", default=list(BLOCKS), help=f"of {', '.join(BLOCKS)}; by default all")
    sys.path.insert(0, str(ROOT / "tests"))
    for name in parser.parse_args().blocks:
        made = import_module(BLOCKS[name]).block()
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(page.replace(block_of(page, name), made), encoding="utf-8")
        print(f"{name}: {len(made.splitlines()) - 2} rows")


if __name__ == "__main__":
    main()
