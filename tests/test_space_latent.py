"""A latent's page in a Space: histograms, intervals, latents beside it, code that loads it, notes to take along."""

from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd
import pytest
from helpers_space import read_data, running_browser, synthetic_findings

from mammosae_plugin.hub.guard import check_staged
from mammosae_plugin.hub.space import build_space
from mammosae_plugin.hub.space_details import CHUNK
from mammosae_plugin.privacy.context import PrivacyContext

PLACE = {"layer": "final", "encoder": "finetuned/Mass"}
LATENT = "#/latent/final/finetuned%2FMass/"


@pytest.fixture(scope="module")
def browser():
    yield from running_browser()


@pytest.fixture(scope="module")
def findings():
    """Of latents 3 and 300, which lie in files of their own, histograms and neighbours; of 7 and 9 neighbours alone."""
    made = synthetic_findings(notes=[{"latent": 3, "text": "an edge", "author": "A"}])
    edges = [0.0, 0.5, 1.0, 4.0]
    bins = [
        {
            **PLACE,
            "concept": "Mass",
            "class": one,
            "latent": latent,
            "edges": edges,
            "n_images": counts,
            "n_silent": silent,
        }
        for latent in (3, 300)
        for one, counts, silent in ((0, [20, 10, 5], 65), (1, [6, 0, 34], None))
    ]
    histograms = pd.DataFrame(bins).assign(n=[100, 40, 100, 40])
    histograms["n_silent"] = histograms["n_silent"].astype("Int64")
    rng = np.random.default_rng(0)
    beside = pd.DataFrame(
        {**PLACE, "latent": latent, "kind": kind, "rank": rank, "neighbour": 10 * rank + latent, "chance": 0.2, "n": n}
        for latent in (3, 7, 9, 300)
        for kind, n in (("together", 240), ("decoder", None))
        for rank in range(1, 6)
    )
    beside["value"] = rng.random(len(beside)).round(3)
    beside["n"] = beside["n"].astype("Int64")
    beside.loc[0, "value"] = np.nan  # suppressed
    return replace(made, histograms=histograms, neighbours=beside.sample(frac=1, random_state=0))


@pytest.fixture(scope="module")
def space(findings, tmp_path_factory):
    return build_space(findings, tmp_path_factory.mktemp("space") / "one")


@pytest.fixture
def look(browser, space):
    """Open a latent's page; in the end there was no error."""
    problems, contexts = [], []

    def open_page(latent):
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 900}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{(space / 'index.html').as_uri()}{LATENT}{latent}")
        page.wait_for_selector("#load")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def test_what_is_written_of_single_latents_is_what_the_findings_hold(findings, space):
    (study,) = read_data(space, "index")["studies"]
    chunks = {(table["layer"], table["encoder"]): table["details"] for table in study["tables"]}
    assert chunks.pop(("final", "finetuned/Mass")) == [0, 300 // CHUNK]
    assert set(map(tuple, chunks.values())) == {()}
    file = next(table["file"] for table in study["tables"] if table["details"])
    first, second = (read_data(space, f"d{file}-{chunk}") for chunk in (0, 300 // CHUNK))
    assert [[one["latent"] for one in chunk["latents"]] for chunk in (first, second)] == [[3, 7, 9], [300]]
    assert [one["edges"] for one in first["latents"]] == [[0.0, 0.5, 1.0, 4.0], None, None]
    assert first["latents"][0]["histograms"] == [
        {"concept": "Mass", "class": 0, "n_images": [20, 10, 5], "n_silent": 65, "n": 100},
        {"concept": "Mass", "class": 1, "n_images": [6, 0, 34], "n_silent": None, "n": 40},
    ]
    own = findings.neighbours.query("latent == 300 and kind == 'decoder'").sort_values("rank")
    assert second["latents"][0]["neighbours"]["decoder"] == {
        "neighbour": own["neighbour"].tolist(), "value": own["value"].tolist(), "chance": [0.2] * 5, "n": [None] * 5,
    }  # fmt: skip
    assert first["latents"][0]["neighbours"]["together"]["value"][0] is None


def test_the_guard_lets_it_out_and_takes_many_bins_of_many_latents_for_no_image(findings, tmp_path):
    row = findings.histograms.iloc[0].to_dict() | {
        "edges": [one / 4 for one in range(17)],
        "n_images": [6] * 16,
        "n": 161,
    }
    many = [row | {"latent": latent, "class": one} for latent in range(40) for one in (0, 1)]
    folder = build_space(replace(findings, histograms=pd.DataFrame(many)), tmp_path / "space")
    assert check_staged(folder, "space", PrivacyContext(datasets=("phantom",)), repo_id="somebody/space")


def test_the_page_shows_histograms_intervals_and_what_lies_beside(look, findings):
    page = look(3)
    caption = page.locator("figure.histogram figcaption").inner_text()
    assert (
        "absent: n 100, silent in 65" in caption
        and "present: n 40, those in which it is silent in the first bar" in caption
    )
    assert page.locator("figure.histogram path.step").count() == 2
    own = findings.concepts.query("encoder == 'finetuned/Mass' and layer == 'final' and latent == 3 and `class` == 1")
    shown = page.locator("#concept-Mass td.withbar").last.inner_text()
    assert ("[" in shown) == bool(own["mean_low"].notna().all())
    links = page.locator("#beside tbody a")
    assert [int(one) for one in links.all_inner_texts()] == [13, 23, 33, 43, 53] * 2
    assert "By chance up to 0.20" in page.locator("#beside").inner_text()
    links.first.click()
    page.wait_for_selector("h1:has-text('Latent 13')")
    bare = look(11)
    assert bare.locator("figure.histogram, #beside").count() == 0
    assert "mammosae view STUDY" in bare.locator("#pictures").inner_text()


def test_code_on_the_page_is_python_and_names_the_latent(look):
    page = look(3)
    for text in page.locator("#load pre").all_inner_texts():
        compile(text, "page", "exec")
        assert "latent = 3" in text or ", 3\n" in text


def test_a_note_is_taken_along_as_a_file_and_to_a_discussion(look):
    page = look(3)
    page.click("details.write summary")
    page.click("#note-add")
    assert "Write a text or a label first" in page.locator("details.write [role=status]").first.inner_text()
    page.fill("#note-text", 'a rim, "bright"')
    page.fill("#note-author", "=A. B.")
    page.select_option("#note-concept", "Mass")
    address = urlsplit(page.get_attribute("#note-hub", "href"))
    assert address.path == "/datasets/somebody/phantom-findings/discussions/new"
    said = parse_qs(address.query)
    assert said["title"] == ["Note on latent 3 of final"] and "bright" in said["description"][0]
    page.click("#note-add")
    page.reload()  # it stays in the browser
    page.wait_for_selector("#notes-file")
    with page.expect_download() as download:
        page.click("#notes-file")
    row = pd.read_csv(download.value.path(), dtype=str, keep_default_na=False).iloc[0].to_dict()
    assert row == {
        "latent": "3", "text": 'a rim, "bright"', "author": "=A. B.", "label": "", "layer": "final",
        "encoder": "finetuned/Mass", "concept": "Mass", "confidence": "",
    }  # fmt: skip


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_axe_finds_nothing_no_id_twice_and_nothing_scrolls_sideways(browser, space, width, dark):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe looks at the pages ('.[dev]')").Axe()
    size = {"width": width, "height": 900}
    with browser.new_context(viewport=size, color_scheme="dark" if dark else "light", bypass_csp=True) as context:
        page = context.new_page()
        page.goto(f"{(space / 'index.html').as_uri()}{LATENT}3")
        page.wait_for_selector("#load")
        page.click("details.write summary")
        found = axe.run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map((node) => node.id)")
        assert len(ids) == len(set(ids))
