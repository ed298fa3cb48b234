"""What the site's builder does with links, names and addresses; `make docs` builds the whole in its strict mode."""

import importlib.util
from pathlib import Path

import pytest
from mkdocs.exceptions import PluginError
from test_architecture import PUBLIC
from test_docs import LINK, SCRIPTS, anchors

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("make_site", ROOT / "docs" / "make_site.py")
make_site = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_site)


def test_links_to_files_become_links_to_their_pages_outside_of_code():
    pages = {file: address for file, (address, _) in make_site.outside().items()}
    text = "[a](docs/data.md#dicom) [b](examples/study.yaml) [c](https://x.org) [d](#d)\n```\n[e](docs/data.md)\n```\n"
    told = make_site.relinked(text, ROOT / "README.md", "index.md", pages)
    assert told == text.replace("(docs/data.md#", "(data.md#").replace("study.yaml)", "study.yaml.md)")
    neighbour = ROOT / "docs" / "neighbours" / "saelens.md"
    told = make_site.relinked(
        "[a](../../README.md#in-python) [b](nnsight.md)", neighbour, "neighbours/saelens.md", pages
    )
    assert told == "[a](../index.md#in-python) [b](nnsight.md)"
    with pytest.raises(PluginError, match=r"README\.md: Makefile has no page"):
        make_site.relinked("[a](Makefile)", ROOT / "README.md", "index.md", pages)


def test_every_question_is_listed_and_answered_with_code_that_runs():
    folder = ROOT / "docs" / "questions"
    pages = {page.name for page in folder.glob("*.md")} - {"index.md"}
    assert set(LINK.findall((folder / "index.md").read_text())) == pages
    run = {name.partition(":")[0] for name, _ in SCRIPTS}  # by test_docs
    assert {f"docs/questions/{page}" for page in pages} <= run


def test_headings_have_the_anchors_of_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# What `mean_low` is, and why (95 %)?\n")
    assert anchors(page) == {make_site.anchor("What mean_low is, and why (95 %)?", "-")}


def test_the_reference_has_what_the_contract_names():
    for room, names in PUBLIC.items():
        if room in make_site.ROOMS:
            assert set(names.split()) <= set(make_site.public_names(room)), room
    pages = dict(make_site.reference())
    assert set(pages) == {"reference/index.md", *(f"reference/{room}.md" for room in make_site.ROOMS)}
    assert "::: mammosae_plugin.training.saving.save_sae\n" in pages["reference/training.md"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('<script src="https://cdn.org/a.js"></script>', ["https://cdn.org/a.js"]),
        ('<link rel="stylesheet" href="//cdn.org/a.css">', ["//cdn.org/a.css"]),
        ('<img alt="" src="http://x.org/a.png">', ["http://x.org/a.png"]),
        ("<style>@import 'https://x.org/a.css'; p {src: url(https://x.org/f)}</style>", ["https://x.org/a.css", "https://x.org/f"]),
        ('<a href="https://x.org">x</a><img src="a.png"><link rel="canonical" href="https://x.org/y">', []),
        ("<p>url(https://x.org/a)</p>", []),
    ],
)  # fmt: skip
def test_what_a_page_would_load_from_elsewhere_is_found(text, found):
    assert make_site.loaded_from_elsewhere(text) == found
