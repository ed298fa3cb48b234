"""The viewer in a browser: an image taken apart, places, latents on and off, notes; by keyboard and on a phone."""

import re

import numpy as np
import pytest
from helpers_dicom import breast, dicom_file
from helpers_space import running_browser
from helpers_view import copied_study, running, value

from mammosae_plugin.findings.notes import read_notes


@pytest.fixture(scope="module")
def file(finished_study, tmp_path_factory):
    return copied_study(finished_study, tmp_path_factory.mktemp("view"))


@pytest.fixture(scope="module")
def server(file):
    with running(file) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    yield from running_browser()


@pytest.fixture
def look(browser, server):
    """Opens a page of the viewer; at the end nothing may have gone wrong or been asked of another machine."""
    problems, contexts = [], []

    def open_page(page_address="#/image", *, width=1280, height=900, dark=False):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        contexts.append(context)
        page = context.new_page()
        page.on(
            "console",  # a question that the server refuses is told by the page, and noted by the browser
            lambda message: "400 (Bad Request)" in message.text or problems.append(f"{message.type}: {message.text}"),
        )
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((server.address, "data:")) else problems.append(f"asked {request.url}")
            ),
        )
        page.goto(f"{server.address}{page_address}")
        page.wait_for_selector("body[data-ready]", timeout=60_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def at_rest(page):
    page.wait_for_selector('.page[aria-busy="true"]', state="detached", timeout=60_000)


def number(text):
    return float(re.search(r"[+−]?\d+\.\d+", text)[0].replace("−", "-"))


def first_image(server):
    one = next(one for one in value(server, "about")["classifiers"] if one["linear"])
    place = {"layer": one["layer"], "encoder": one["encoder"], "concept": one["concepts"][0]["concept"]}
    row = value(server, "images", **place, split="test")["rows"][0]
    return place, value(server, "image", key=row, **place)


def test_the_page_shows_the_sum_and_what_becomes_of_it_without_latents(look, server):
    page, (_, image) = look(), first_image(server)
    assert number(page.inner_text("#now")) == pytest.approx(image["logits"][0], abs=6e-4)
    rows = [number(text) for text in page.locator("#sum td").all_inner_texts()]
    assert sum(rows[:3]) == pytest.approx(rows[3], abs=2e-3)
    adds = np.array(image["mean"]) * np.array(image["weight"])[:, 0]
    order = np.argsort(-np.abs(adds), kind="stable")
    strongest = image["latents"][order[0]]
    assert page.locator("#latents tbody th a").first.inner_text() == str(strongest)
    page.locator("#latents input[data-latent]").first.uncheck()
    assert number(page.inner_text("#now")) == pytest.approx(image["logits"][0] - adds[order[0]], abs=6e-4)
    assert "without 1 latent" in page.inner_text("#now")
    page.click("#ask-network")
    page.wait_for_selector("#network:not(:empty)", timeout=60_000)
    said = page.inner_text("#network")
    assert "run with 1 latent removed" in said and "the sum is the same to" in said
    page.click("#all-off")
    alone = image["bias"][0] + image["error"][0]
    assert number(page.inner_text("#now")) == pytest.approx(alone, abs=6e-4)
    assert page.locator("#latents input:checked").count() == 0
    page.click("#all-on")
    assert number(page.inner_text("#now")) == pytest.approx(image["logits"][0], abs=6e-4)


def test_places_are_chosen_by_click_and_by_arrow_keys(look, server):
    page, (place, image) = look(), first_image(server)
    h, w = image["grid"]
    box = page.locator("#frame .sheet").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.5 / w, box["y"] + box["height"] * 0.5 / h)
    page.wait_for_selector("#place p:not(.missing)")
    assert page.inner_text("#place p").startswith(f"Row 1 of {h}, column 1 of {w}: ")
    page.focus("#frame")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(f"#place p:has-text('Row 2 of {h}, column {min(2, w)} of {w}')")
    here = value(server, "place", key=image["row"], **place, cell=w + min(2, w) - 1)
    assert page.locator("#place tbody th a").all_inner_texts() == [str(one) for one in here["latents"]][:30]
    if not here["complete"]:
        page.locator("#place button.encode").click()
        page.wait_for_selector("#place:not(:has(button.encode)) p:has-text('Row 2')", timeout=60_000)
    assert "of those whose maps" not in page.inner_text("#place")
    page.locator("#latents button.map").first.click()
    page.wait_for_selector("#no-map")
    drawn = page.evaluate(
        "() => { const c = document.querySelector('canvas.heat');"
        " return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v > 0); }"
    )
    assert drawn
    page.click("#no-map")
    assert page.locator("#latents button.map[aria-pressed=true]").count() == 0


def test_the_next_image_and_a_filter_and_the_address_that_leads_back(look, server):
    page = look()
    first = page.inner_text(".image-name")
    page.click("#image-next")
    page.wait_for_selector(f".image-name:not(:has-text('{first}'))")
    second = page.inner_text(".image-name")
    assert page.input_value("#position") == "2"
    again = look(page.url.removeprefix(server.address))
    assert again.inner_text(".image-name") == second and again.input_value("#position") == "2"
    page.select_option("#image-label", "1")
    at_rest(page)
    assert "present" in page.inner_text(".view .where")
    page.fill("#image-text", "no such image")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=No image of the study is like that")


def test_a_file_of_ones_own_is_opened_and_a_wrong_one_is_told(look, tmp_path):
    page = look()
    page.click("summary:has-text('Open an image of your own')")
    page.set_input_files("#image-file", dicom_file(tmp_path / "exam.dcm", breast(300, 200)))
    page.wait_for_selector(".image-name:has-text('exam.dcm')", timeout=60_000)
    assert "prepared by mammo-clip" in page.inner_text(".left")
    assert page.is_hidden("#image-next") and "exam" not in page.url
    page.wait_for_selector("#photo")
    (tmp_path / "letter.png").write_text("no picture")
    page.set_input_files("#image-file", tmp_path / "letter.png")
    page.wait_for_selector("#view-error:not([hidden])")
    assert page.inner_text("#view-error").startswith("Letter.png: ")
    assert page.locator(".image-name").inner_text() == "exam.dcm"  # what was there stays


def test_a_note_is_written_from_a_latents_page(look, file, server):
    page = look("#/latent/layer_10/pretrained/3")
    page.fill("#note-text", "the rim of a mass")
    page.click("#note-add")
    page.wait_for_selector(".told.failed")
    assert "author" in page.inner_text(".told")
    page.fill("#note-author", "AB")
    page.click("#note-add")
    page.wait_for_selector(".told:has-text('Written into')")
    assert page.locator("#notes .note").first.inner_text() == "the rim of a mass"
    assert [note.text for note in read_notes(file.parent / "study") if note.latent == 3] == ["the rim of a mass"]
    page.goto(f"{server.address}#/latent/layer_10/pretrained/3")
    page.reload()
    page.wait_for_selector("#notes .note:has-text('the rim of a mass')")
    assert page.input_value("#note-author") == "AB"


def test_a_latents_page_shows_images_of_the_study(look, server):
    place, image = first_image(server)
    latent = image["latents"][int(np.argmax(image["maximum"]))]
    page = look(f"#/latent/{place['layer']}/{place['encoder']}/{latent}")
    picture = page.locator(".thumbnail img").first
    picture.wait_for(timeout=60_000)
    assert picture.evaluate("(image) => image.decode().then(() => image.naturalWidth)") > 0
    page.locator(".thumbnail button").first.click()
    assert "Strongest 1 (1 of" in page.inner_text("#picture-caption")
    page.keyboard.press("ArrowRight")
    assert " (2 of " in page.inner_text("#picture-caption")
    page.click("dialog.picture a")
    page.wait_for_selector("#now")
    assert page.locator("dialog.picture").count() == 0


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, True)])
def test_axe_finds_nothing_and_nothing_scrolls_sideways(look, server, width, dark):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe looks at the pages ('.[dev]')").Axe()
    page = look(width=width, dark=dark)
    page.locator("#latents input[data-latent]").first.uncheck()
    page.focus("#frame")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("#place p:not(.missing)")
    at_rest(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.get_attribute("#nav-image", "aria-current") == "page"
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()
    place, image = first_image(server)
    page.goto(f"{server.address}#/latent/{place['layer']}/{place['encoder']}/{image['latents'][0]}")
    page.wait_for_selector("#pictures .thumbnail", timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()


def test_everything_is_reached_by_keys(look):
    page = look()
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    for wanted in ("nav-image", "image-classifier", "image-next", "frame", "ask-network", "all-off", "map"):
        assert wanted in seen, seen
