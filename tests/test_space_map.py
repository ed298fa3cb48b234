"""The map of latents in a Space: its places and its worth are the findings', and it can be read without a mouse."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers_space import read_data, running_browser, synthetic_evidence, synthetic_findings

from mammosae_plugin.hub.guard import check_staged
from mammosae_plugin.hub.space import build_space
from mammosae_plugin.privacy.context import PrivacyContext

WORTH = {"trustworthiness": 0.87, "trustworthiness_by_chance": 0.52}
MASS = "#/map?encoder=pretrained"


@pytest.fixture(scope="module")
def findings():
    """With a map of the final layer, a grid that has the latents that fire in the order of their numbers, ten a row."""
    made = synthetic_findings(d_sae=128)
    judged = synthetic_evidence(made, model="pretrained", encoder="pretrained", concept="Mass", layer="final")
    live = made.latents.query("layer == 'final' and encoder == 'pretrained' and firing_rate > 0")["latent"].to_numpy()
    step = np.arange(len(live))
    places = pd.DataFrame({"layer": "final", "latent": live, "x": step % 10 / 1.0, "y": -(step // 10) / 1.0})
    worth = WORTH | {"n_mapped": len(live) - 9, "n_latents": len(live)}
    sae = made.study["sae"] | {"final": made.study["sae"]["final"] | {"latent_map": worth}}
    return replace(made, latent_map=places, evidence=judged, study=made.study | {"sae": sae})


@pytest.fixture(scope="module")
def space(findings, tmp_path_factory):
    return build_space(findings, tmp_path_factory.mktemp("space") / "one")


@pytest.fixture(scope="module")
def browser():
    yield from running_browser()


@pytest.fixture
def look(browser, space):
    """Open a page of the Space; in the end there was no error."""
    problems, contexts = [], []

    def open_page(address, folder=space):
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 900}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{(folder / 'index.html').as_uri()}{address}")
        page.wait_for_selector("body[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def chosen(page):
    """The number of the latent that the page tells."""
    return int(page.locator("#map-tip").inner_text().split(" · ")[0].removeprefix("Latent "))


def test_places_and_worth_are_the_findings_and_pass_the_guard(findings, space):
    (study,) = read_data(space, "index")["studies"]
    assert study["maps"] == {"final": {"file": "am0"} | findings.study["sae"]["final"]["latent_map"]}
    written, own = read_data(space, "am0"), findings.latent_map
    assert written == {name: own[name].tolist() for name in ("latent", "x", "y")}
    assert check_staged(space, "space", PrivacyContext(datasets=("phantom",)), repo_id="somebody/space")


def test_colours_are_counted_in_words_and_the_address_keeps_the_choice(look, findings):
    page = look(f"{MASS}&colour=verdict")
    verdicts = findings.evidence["verdict"].value_counts()
    told = page.locator("ul.legend").inner_text()
    for word in ("concept", "context", "shortcut"):
        assert f"{word} ({verdicts[word]})" in told
    rest = len(findings.latent_map) - verdicts.drop("unclear").sum()
    assert f"unclear, or not known ({rest})" in told
    worth, n = page.locator("#worth").inner_text(), len(findings.latent_map)
    assert "is 0.87; a map of the same directions with shuffled values has 0.52." in worth
    assert f"{n} latents are shown, of which {n - 9} were placed" in worth
    page.select_option("#colour", "density")
    page.wait_for_selector("ul.legend .q4")
    assert page.evaluate("location.hash") == f"{MASS}&colour=density"
    painted = page.evaluate("""() => {
      const canvas = document.querySelector(".map canvas");
      return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value > 0);
    }""")
    assert painted
    # Of the other encoder is known only how often its latents fire, and roles.
    page.select_option("#encoder", "finetuned/Mass")
    page.wait_for_selector("#concept option:text-is('Mass')", state="attached")
    assert "verdict" not in page.locator("#colour option").evaluate_all("all => all.map((one) => one.value)")


def test_the_keyboard_moves_from_latent_to_latent_and_enter_opens_one(look, findings):
    own = findings.latent_map["latent"].tolist()
    page = look(f"{MASS}&latent={own[15]}")
    assert chosen(page) == own[15]
    page.locator(".map canvas").focus()
    for key, place in (("ArrowRight", 16), ("ArrowDown", 26), ("ArrowLeft", 25), ("ArrowUp", 15), ("+", 15)):
        page.keyboard.press(key)
        assert chosen(page) == own[place], key
    page.keyboard.press("0")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"h1:text-is('Latent {own[15]}')")
    page.locator("#on-map").click()
    page.wait_for_selector(".map canvas")
    assert chosen(page) == own[15] and page.input_value("#encoder") == "pretrained"


def test_a_click_opens_the_latent_under_the_pointer(look, findings):
    page = look(f"{MASS}&latent={findings.latent_map['latent'].iloc[0]}")
    canvas = page.locator(".map canvas")
    canvas.scroll_into_view_if_needed()
    page.mouse.move(0, 0)
    box = canvas.bounding_box()
    for x in range(8, int(box["width"]), 6):
        page.mouse.move(box["x"] + x, box["y"] + 14)
        if page.evaluate("document.querySelector('.map canvas').style.cursor") == "pointer":
            break
    found = chosen(page)
    assert found == findings.latent_map["latent"].iloc[0]
    page.mouse.click(box["x"] + x, box["y"] + 14)
    page.wait_for_selector(f"h1:text-is('Latent {found}')")


def test_a_finger_reads_a_latent_by_its_first_tap_and_opens_it_by_the_second(browser, space):
    with browser.new_context(viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True) as context:
        page = context.new_page()
        page.goto(f"{(space / 'index.html').as_uri()}{MASS}")
        page.wait_for_selector("body[data-ready]")
        assert "Tap a latent" in page.locator("#map-keys").inner_text()
        canvas = page.locator(".map canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        for place in np.arange(8, box["height"], 8):
            page.touchscreen.tap(box["x"] + 16, box["y"] + place)  # down the first column
            if page.locator("#map-tip a").count():
                break
        assert page.evaluate("location.hash") == MASS
        found = chosen(page)
        page.touchscreen.tap(box["x"] + 16, box["y"] + place)
        page.wait_for_selector(f"h1:text-is('Latent {found}')")


def test_findings_without_a_map_say_so_and_show_no_way_to_it(look, findings, tmp_path):
    folder = build_space(replace(findings, latent_map=None), tmp_path / "space")
    page = look("#/map", folder)
    assert "hold no map of latents" in page.locator(".missing").inner_text()
    assert page.locator("#nav-map").is_hidden() and look("#/").locator("#nav-map").is_visible()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_axe_finds_nothing_on_any_page_and_nothing_scrolls_sideways(browser, space, width, dark):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe looks at the pages ('.[dev]')").Axe()
    size = {"width": width, "height": 900}
    with browser.new_context(viewport=size, color_scheme="dark" if dark else "light", bypass_csp=True) as context:
        page = context.new_page()
        page.goto((space / "index.html").as_uri())
        for turn, address in enumerate((MASS, "#/?encoder=pretrained&columns=all", "#/compare?", "#/study?"), start=1):
            page.wait_for_selector(f'body[data-ready="{turn}"]')
            page.evaluate("address => { location.hash = address; }", address)
            page.wait_for_selector(f'body[data-ready="{turn + 1}"]')
            found = axe.run(page).response["violations"]
            assert [(address, one["id"], one["nodes"][0]["html"]) for one in found] == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width, address
