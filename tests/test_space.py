"""The Space: its data are the findings' numbers, and its pages do in a browser what they promise."""

import json
import math
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers_hub import LoopbackHub, run_on_hub
from helpers_space import KS, read_data, running_browser, synthetic_evidence, synthetic_findings, write_findings
from scipy.stats import spearmanr
from typer.testing import CliRunner

from mammosae_plugin.cli import app
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sha256_of_file
from mammosae_plugin.findings.about import About
from mammosae_plugin.hub.findings import Findings, compare_findings
from mammosae_plugin.hub.guard import PrivacyContext, PrivacyError, check_staged
from mammosae_plugin.hub.space import PAGES, build_space, read_findings
from mammosae_plugin.schema.findings import SCHEMAS

PRETRAINED = "#/latent/final/pretrained"
BEST = 77  # first for Mass in `pretrained`, and named by the study
NOTES = [
    {"latent": BEST, "text": "Rims of round, dense masses.", "label": "Mass", "confidence": 4},
    {"latent": BEST, "text": "Half of it is crossing vessels.", "label": "Mass", "confidence": 2, "author": "Reader B"},
    {"latent": 3, "text": "The plate with letters in the corner.", "label": "artefact", "confidence": 5},
    {"latent": 40, "text": "Edge of the pectoral muscle.", "author": "Reader B", "concept": "Suspicious_Calcification"},
]
CANARY = "<img src=x onerror='window.pwned=1'><script>window.pwned=1</script>\"'>&lt;b&gt;</script>"


@pytest.fixture(scope="module")
def findings():
    return synthetic_findings(notes=NOTES)


@pytest.fixture(scope="module")
def replication():
    return synthetic_findings(noise=0.6, origin="someone-else/replication", title="Replication on other phantoms")


@pytest.fixture(scope="module")
def space(findings, tmp_path_factory):
    return build_space(findings, tmp_path_factory.mktemp("space") / "one")


@pytest.fixture(scope="module")
def two(findings, replication, tmp_path_factory):
    return build_space(findings, tmp_path_factory.mktemp("space") / "two", compare=replication)


# -- what is written ---------------------------------------------------------------------------------------------------


def same(values, column):
    """Whether JSON values are exactly a column's, null where it is missing."""
    expected = column.astype(object).where(column.notna(), None).tolist()
    return len(values) == len(expected) and all(
        (one is None and other is None) or one == other for one, other in zip(values, expected, strict=True)
    )


def test_every_number_of_every_latent_is_the_findings_number(findings, space):
    (study,) = read_data(space, "index")["studies"]
    assert {(table["layer"], table["encoder"]) for table in study["tables"]} == set(
        findings.latents[["layer", "encoder"]].itertuples(index=False, name=None)
    )
    for table in study["tables"]:
        own = findings.latents.query("layer == @table['layer'] and encoder == @table['encoder']")
        written = read_data(space, table["file"])
        for column in ("latent", "firing_rate", "mean_activation"):
            assert same(written[column], own[column])
        maxima = np.array([math.nan if value is None else value for value in written["max_activation"]], np.float32)
        assert np.array_equal(maxima, own["max_activation"].to_numpy(), equal_nan=True)
        for part in table["concepts"]:
            rows = findings.concepts.query(
                "layer == @table['layer'] and encoder == @table['encoder'] and concept == @part['concept']"
            )
            written = read_data(space, part["file"])
            for label, count in enumerate(part["n_images"]):
                one = rows[rows["class"] == label].sort_values("latent")
                assert same([count] * len(one), one["n_images"])
                for name, column in (("class_means", "class_mean"), ("scores", "score"), ("ranks", "rank")):
                    assert same(written[name][label], one[column])
                for column in ("average_precision", "ablation_effect"):
                    assert same(written[column], one[column])


def test_the_rows_of_the_analyses_and_the_notes_are_the_findings_rows(findings, space):
    (study,) = read_data(space, "index")["studies"]
    for config in ("interventions", "reconstruction", "localization", "notes"):
        frame = getattr(findings, config)
        assert len(study[config]) == len(frame) > 0
        for column in study[config][0]:
            assert same([row[column] for row in study[config]], frame[column]), (config, column)
    assert {row["role"] for row in study["roles"]} == {"concept", "background"}


def test_what_was_suppressed_is_null_and_never_0(findings, space):
    (study,) = read_data(space, "index")["studies"]
    table = next(table for table in study["tables"] if table["encoder"] == "pretrained")
    part = next(part for part in table["concepts"] if part["concept"] == "Architectural_Distortion")
    assert part["n_images"] == [429, None]
    written = read_data(space, part["file"])
    assert set(written["class_means"][1]) == set(written["ranks"][0]) == {None}
    assert any(written["class_means"][0])
    hidden = [row for row in study["interventions"] if row["concept"] == "Architectural_Distortion"]
    assert hidden and all(row["auroc"] is None for row in hidden)


def test_heatmaps_of_single_images_are_not_written(findings, tmp_path):
    examples = pd.DataFrame({"image": ["0123456789abcdef"], "heatmap": [[[0.5]]]})
    build_space(replace(findings, examples=examples), tmp_path / "space")
    assert not [
        file for file in (tmp_path / "space").rglob("*") if file.is_file() and b"0123456789abcdef" in file.read_bytes()
    ]


def test_findings_read_from_a_folder_give_the_same_space(tmp_path):
    findings = synthetic_findings(d_sae=24, notes=[{"latent": 2, "text": "an edge"}, {"latent": 9, "text": "a rim"}])
    space = build_space(findings, tmp_path / "one")
    folder = write_findings(findings, tmp_path / "findings")
    read = Findings.load(folder, origin=findings.origin, repo_id=findings.repo_id)
    again = build_space(read, tmp_path / "two")
    assert len(list((again / "data").iterdir())) == 19
    for file in sorted((space / "data").iterdir()):
        assert (again / "data" / file.name).read_text() == file.read_text(), file.name


def test_building_again_leaves_nothing_of_the_study_before(findings, replication, tmp_path):
    folder = build_space(findings, tmp_path / "space", compare=replication)
    assert (folder / "data" / "b0.js").is_file()
    build_space(findings, folder)
    assert not list((folder / "data").glob("b*"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="no Space"):
        build_space(findings, tmp_path / "other")
    assert [file.name for file in (tmp_path / "other").iterdir()] == ["mine.txt"]


def test_the_readme_says_static_and_whose_findings_they_are(space):
    text = (space / "README.md").read_text()
    matter = yaml.safe_load(text.split("---")[1])
    assert matter["sdk"] == "static"
    assert matter["title"] == "Concept latents of phantom mammograms"
    assert matter["datasets"] == ["somebody/phantom-findings"]
    assert "Not a medical device" in text


def test_findings_of_this_machine_are_no_dataset_of_the_hub_whatever_they_are_called(tmp_path):
    local = synthetic_findings(d_sae=24, origin="x/y", on_hub=False)
    folder = build_space(local, tmp_path / "space", compare=local)
    studies = read_data(folder, "index")["studies"]
    assert [study["link"] for study in studies] == [None, None]
    title = local.study["title"]
    assert [study["origin"] for study in studies] == [f"{title} (A)", f"{title} (B)"]
    assert "datasets" not in yaml.safe_load((folder / "README.md").read_text().split("---")[1])


def test_no_path_of_this_machine_gets_into_a_space_of_folders(finished_study, tmp_path):
    places = [shutil.copytree(finished_study.output, tmp_path / "site" / name) for name in ("study", "study2")]
    folder = build_space(*map(read_findings, places[:1]), tmp_path / "space", compare=read_findings(places[1]))
    title = read_findings(places[0]).study["title"]
    assert [study["origin"] for study in read_data(folder, "index")["studies"]] == [f"{title} (A)", f"{title} (B)"]
    assert not [file.name for file in folder.rglob("*") if file.is_file() and str(tmp_path) in file.read_text()]
    assert check_staged(folder, "space", PrivacyContext.of_study(places[0]))


def test_the_pages_make_no_markup_of_text_and_load_nothing_from_elsewhere():
    pages = resources.files("mammosae_plugin.hub_cards") / "space"
    of_viewer = {"viewer.css", "viewer.js"}  # served on one machine, never a part of a Space
    assert {page.name for page in pages.iterdir()} == {*PAGES, *of_viewer} and not of_viewer & {*PAGES}
    for name in PAGES:
        text = (pages / name).read_text(encoding="utf-8")
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "fetch(",
        ):
            assert word not in text, (name, word)
        for address in re.findall(r"https?://[^\s\"'`]+", text):
            assert address in ("http://www.w3.org/2000/svg", "https://huggingface.co"), (name, address)
    assert "default-src 'none'; script-src 'self'" in (pages / "index.html").read_text()


def test_the_guard_lets_the_space_out_and_stops_an_id_in_a_note(tmp_path):
    context = PrivacyContext(frozenset({"b8d273e8601f348d"}), ("phantom",))
    one, other = synthetic_findings(d_sae=24), synthetic_findings(d_sae=24, seed=1)
    folder = build_space(one, tmp_path / "space", compare=other)
    assert len(check_staged(folder, "space", context)) == sum(file.is_file() for file in folder.rglob("*"))
    told = synthetic_findings(notes=[{"latent": 5, "text": "see patient b8d273e8601f348d"}], d_sae=24)
    with pytest.raises(PrivacyError, match=r"data/index\.js.*private values"):
        check_staged(build_space(told, folder), "space", context)


# -- publishing --------------------------------------------------------------------------------------------------------

PUBLISHER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from helpers_space import synthetic_findings, write_findings
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from typer.testing import CliRunner
from mammosae_plugin.cli import app
from mammosae_plugin.hub import publish_space

findings, folder = synthetic_findings(d_sae=24), Path(sys.argv[2])
dry = publish_space(findings, "someone/space", tag="v1", folder=folder, dry_run=True)
seen = {"described": dry.describe(), "before": hub()["repos"]}
seen["sent"] = publish_space(findings, "someone/space", tag="v1", folder=folder).as_text()
seen["again"] = publish_space(findings, "someone/space", tag="v1").as_text()
seen["in the way"] = attempt(lambda: publish_space(synthetic_findings(d_sae=12), "someone/space").as_text())

given = write_findings(findings, Path(sys.argv[3]))
files = [file for file in given.rglob("*") if file.is_file()]
api = HfApi()
api.create_repo("someone/findings", repo_type="dataset")
added = [CommitOperationAdd(file.relative_to(given).as_posix(), file) for file in files]
api.create_commit("someone/findings", added, commit_message="findings", repo_type="dataset")
api.create_tag("someone/findings", tag="v1", repo_type="dataset")
publish_space("someone/findings@v1", "someone/from-hub", folder=folder.with_name("from-hub"))
seen["no such revision"] = attempt(lambda: publish_space("someone/findings@v9", "someone/x").as_text())

arguments = ["publish", "space", str(given), "someone/by-command", "--title", "Phantoms"]
seen["dry"] = [(run := CliRunner().invoke(app, arguments)).exit_code, run.output, hub()["repos"]]
seen["confirmed"] = [(run := CliRunner().invoke(app, [*arguments, "--confirm"])).exit_code, run.output]
kept = {}
for title in (["--title", "Mine"], [], ["--title", "Yours"]):
    run = CliRunner().invoke(app, [*arguments[:4], *title, "--replace", "--confirm", "--author", f"A {len(kept)}."])
    card = Path(hf_hub_download("someone/by-command", "README.md", repo_type="space"))
    kept[" ".join(title)] = [run.exit_code, card.read_text()]
seen["titles"] = kept
publish_space(findings, "someone/anew")
publish_space(synthetic_findings(d_sae=24, title="Anew"), "someone/anew", replace=True)
seen["of the study"] = Path(hf_hub_download("someone/anew", "README.md", repo_type="space")).read_text()
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """What was seen while publishing on a Hub on this machine, and that Hub."""
    folder = tmp_path_factory.mktemp("published")
    with LoopbackHub() as hub:
        given = (Path(__file__).parent, folder / "space", folder / "findings")
        yield hub, folder / "space", run_on_hub(hub, folder / "home", PUBLISHER, *given)


def test_a_space_is_published_as_static_in_one_commit_with_a_tag(published):
    hub, folder, seen = published
    assert not seen["before"] and "index.html" in seen["described"]
    state = hub.repos["space", "someone/space"].state()
    staged = {file.relative_to(folder).as_posix(): sha256_of_file(file) for file in folder.rglob("*") if file.is_file()}
    assert {path: digest for path, digest in state["files"].items() if path != ".gitattributes"} == staged
    assert state["private"] and state["n_commits"] == 2 and list(state["tags"]) == ["v1"]
    assert "sdk: static" in (folder / "README.md").read_text()
    assert "--replace" in seen["in the way"]["message"]


def test_a_space_shows_findings_of_the_hub_and_names_them(published):
    hub, folder, seen = published
    (study,) = read_data(folder.with_name("from-hub"), "index")["studies"]
    assert study["link"] == "https://huggingface.co/datasets/someone/findings"
    assert "- someone/findings" in (folder.with_name("from-hub") / "README.md").read_text()
    own = read_data(folder, "index")["studies"][0]
    assert study["interventions"] == own["interventions"]
    assert study["parquet"]["latents"] == f"{study['link']}/resolve/v1/latents/train-00000-of-00001.parquet"
    assert set(study["parquet"]) == {"latents", "interventions", "reconstruction", "localization"}
    assert "index.html" in hub.repos["space", "someone/from-hub"].state()["files"]
    assert "v9" in seen["no such revision"]["message"]


def test_the_command_sends_a_space_only_when_told_to(published):
    hub, _, seen = published
    code, text, repos = seen["dry"]
    assert code == 0 and "data/index.js" in text and "Nothing was sent" in text
    assert "space someone/by-command" not in repos and "space someone/space" in repos
    assert seen["confirmed"][0] == 0, seen["confirmed"][1]
    files = hub.repos["space", "someone/by-command"].state()["files"]
    assert "index.html" in files and "data/index.js" in files


def test_a_title_that_was_given_stays_until_another_is_given(published):
    for given, (code, card) in published[2]["titles"].items():
        assert code == 0 and f"# {'Yours' if 'Yours' in given else 'Mine'}\n" in card
    assert "# Anew\n" in published[2]["of the study"]  # where none was given it is the study's


def test_the_command_builds_a_folder_to_look_at(tmp_path):
    given = write_findings(synthetic_findings(d_sae=24), tmp_path / "findings")
    arguments = ["publish", "space", str(given)]
    run = CliRunner().invoke(app, [*arguments, "--folder", str(tmp_path / "space"), "--compare", str(given)])
    assert (run.exit_code, run.stdout.strip()) == (0, str(tmp_path / "space" / "index.html")), run.output
    assert len(read_data(tmp_path / "space", "index")["studies"]) == 2
    for wrong, word in (([], "--folder"), (["--folder", str(tmp_path / "x"), "--confirm"], "--confirm")):
        refused = CliRunner().invoke(app, [*arguments, *wrong])
        assert refused.exit_code == 2 and word in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_a_study_folder_is_shown_without_anything_of_its_patients(finished_study, tmp_path):
    folder = build_space(read_findings(finished_study.output, min_group=1), tmp_path / "space")
    context = PrivacyContext.of_study(finished_study.output, min_group=1)
    assert len(context.private_values) > 20
    assert check_staged(folder, "space", context)
    assert read_data(folder, "index")["studies"][0]["primary"] == "layer_10"


# -- in a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    yield from running_browser()


@pytest.fixture
def look(browser):
    """Open a page of a Space; in the end there was no error or warning, and nothing was loaded from elsewhere."""
    contexts, problems = [], []

    def open_page(folder, address="#/", *, width=1280, height=900, dark=False, problems=problems):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on(
            "request",
            lambda request: None if request.url.startswith(("file:", "data:")) else problems.append(request.url),
        )
        page.goto(f"{(folder / 'index.html').as_uri()}{address}")
        page.wait_for_selector("body[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def go(page, address):
    """Follow an address within the page."""
    with shown_anew(page):
        page.evaluate("address => { location.hash = address; }", address)


@contextmanager
def shown_anew(page):
    before = page.evaluate("document.body.dataset.ready")
    yield
    page.wait_for_selector(f'body[data-ready]:not([data-ready="{before}"])')


def settled(page):
    """Wait until the page shows what was chosen; by a selector, since the page forbids code from strings."""
    page.wait_for_selector('[aria-busy="true"]', state="detached")


def latents(page):
    settled(page)
    return [int(text) for text in page.locator("table.latents tbody th a").all_inner_texts()]


def column(page, key):
    settled(page)
    keys = page.locator("table.latents thead th").evaluate_all("heads => heads.map((head) => head.dataset.key)")
    return page.locator(f"table.latents tbody tr > :nth-child({keys.index(key) + 1})").all_inner_texts()


def of(findings, encoder="pretrained", layer="final", concept="Mass", label=1, dead=False):
    """The latents of one table with what they are for one concept, in the table's usual order; those that fire."""
    place = ["layer", "encoder", "latent"]
    rows = findings.concepts.query("concept == @concept and `class` == @label").merge(findings.latents, on=place)
    rows = rows if dead else rows[rows["firing_rate"] > 0]
    return rows.query("layer == @layer and encoder == @encoder").sort_values("rank", kind="stable")


def test_the_table_opens_with_the_best_latents_of_the_final_layer(look, findings, space):
    page = look(space)
    own = of(findings, "finetuned/Mass")  # ranks are within an encoder: one is listed, the last of the study
    assert latents(page) == own["latent"].head(50).tolist()
    assert page.locator("#status").inner_text() == (
        f"{len(own)} of 512 latents, 1–50 shown, sorted by rank (rising). "
        f"{512 - len(own)} that never fire are left out."
    )
    assert page.locator(".research").inner_text().startswith("Research only, not a medical device.")


@pytest.mark.parametrize(
    ("key", "field", "first"),
    [("precision", "average_precision", False), ("rate", "firing_rate", False), ("latent", "latent", True),
     ("maximum", "max_activation", False)],
)  # fmt: skip
def test_a_click_on_a_heading_sorts_and_a_second_one_turns_the_order(look, findings, space, key, field, first):
    page = look(space, "#/?encoder=pretrained")
    heading = page.locator(f'th[data-key="{key}"]')
    for rising in (first, not first):
        heading.locator("button").click()
        own = of(findings).sort_values("latent").sort_values(field, ascending=rising, kind="stable")
        assert latents(page) == own["latent"].head(50).tolist()  # pandas puts what is missing last too
        assert heading.get_attribute("aria-sort") == ("ascending" if rising else "descending")
        assert heading.locator("button").evaluate("button => button === document.activeElement")
    assert page.locator('th[aria-sort="none"]').count() == page.locator("table.latents th[data-key]").count() - 1


def shown_columns(page):
    settled(page)
    return page.locator("table.latents th[data-key]").evaluate_all("heads => heads.map((head) => head.dataset.key)")


def test_the_list_fits_its_page_and_a_wider_choice_scrolls_in_its_frame(look, judged):
    page = look(judged[1], "#/?encoder=pretrained")
    usual = ["latent", "rank", "verdict", "auroc", "q", "reliance", "precision", "rate"]
    assert shown_columns(page) == usual
    assert page.evaluate("document.documentElement.scrollWidth") == 1280
    page.locator(".picker summary").click()
    page.check("#column-place")
    assert shown_columns(page) == [*usual[:6], "place", *usual[6:]]
    page.locator("#columns-all").click()
    page.wait_for_selector(".scroll.list.more")
    assert page.evaluate("document.documentElement.scrollWidth") == 1280
    page.locator("#list").evaluate("box => { box.scrollLeft = 300; }")
    number = page.locator("table.latents tbody th").first.bounding_box()
    assert number["x"] == pytest.approx(page.locator("#list").bounding_box()["x"], abs=2)  # it stays in sight
    for key in ("q", "place"):
        page.uncheck(f"#column-{key}")
    link, keys = page.evaluate("location.hash"), shown_columns(page)
    assert "place" not in keys and "score" in keys and shown_columns(look(judged[1], link)) == keys
    page.locator("#columns-usual").click()
    assert shown_columns(page) == usual and page.evaluate("location.hash") == "#/?encoder=pretrained"


def test_the_list_can_be_taken_along_as_csv_with_its_filters_and_numbers_in_full(look, findings, space, tmp_path):
    page = look(space, "#/?encoder=pretrained&least=20&sort=rate")
    with page.expect_download() as download:
        page.locator("#csv").click()
    assert download.value.suggested_filename == "latents-final-pretrained-Mass.csv"
    download.value.save_as(tmp_path / "latents.csv")
    table = pd.read_csv(tmp_path / "latents.csv")
    own = of(findings).sort_values("latent").sort_values("firing_rate", ascending=False, kind="stable")
    own = own[own["firing_rate"] >= 0.2]
    assert table["latent"].tolist() == own["latent"].tolist() and len(own) > 10
    for name, field in (("firing_rate", "firing_rate"), ("score", "score"), ("mean_present", "class_mean"),
                        ("box_average_precision", "average_precision")):  # fmt: skip
        assert np.array_equal(table[name], own[field], equal_nan=True), name
    assert set(table["concept"]) == {"Mass"} and set(table["encoder"]) == {"pretrained"}
    rows = [["=1+1", -1], ['a,"b"', None], ["@x", 0.1]]
    odd = page.evaluate("rows => mammosae.csv(['a', 'b'], rows)", rows)
    assert odd == 'a,b\n\'=1+1,-1\n"a,""b""",\n\'@x,0.1\n'


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Findings with evidence on one classifier of the final layer, and their Space."""
    findings = synthetic_findings(d_sae=64)
    of_mass = {"model": "pretrained", "encoder": "pretrained", "concept": "Mass", "layer": "final"}
    findings = replace(findings, evidence=synthetic_evidence(findings, **of_mass))
    return findings, build_space(findings, tmp_path_factory.mktemp("judged") / "space")


def test_the_evidence_is_the_findings_and_spaces_without_it_stay_as_they_are(judged, findings, space):
    given, folder = judged
    (study,) = read_data(folder, "index")["studies"]
    parts = [part for table in study["tables"] for part in table["concepts"]]
    (part,) = [part for part in parts if part.get("evidence")]
    table = next(table for table in study["tables"] if part in table["concepts"])
    numbers = read_data(folder, table["file"])["latent"]
    rows = given.evidence.set_index("latent").reindex(numbers)
    written = read_data(folder, part["file"])["evidence"]
    for name in ("verdict", "reason", "auroc", "auroc_low", "auroc_q", "reliance_high", "place", "covariate"):
        assert same(written[name], rows[name]), name
    assert not {"n_patients_with", "n_positive", "covariate_level"} & set(written)
    assert check_staged(folder, "space", PrivacyContext(frozenset({"b8d273e8601f348d"}), ("phantom",)))
    for file in (space / "data").glob("*.js"):
        assert "verdict" not in file.read_text()


@pytest.mark.parametrize(
    ("key", "field", "first"),
    [("verdict", "verdict", True), ("auroc", "auroc", False), ("q", "auroc_q", True), ("reliance", "reliance", False),
     ("place", "place", False), ("covariate", "covariate", True)],
)  # fmt: skip
def test_the_evidence_sorts_the_list(look, judged, key, field, first):
    given, folder = judged
    page = look(folder, "#/?encoder=pretrained&columns=all", width=1800)
    heading = page.locator(f'th[data-key="{key}"]')
    rows = given.evidence.set_index("latent")
    for rising in (first, not first):
        heading.locator("button").click()
        values = [rows[field].get(latent) or None for latent in latents(page)]
        known = [value for value in values if value is not None and value == value]
        assert len(known) > 10 and known == sorted(known, reverse=not rising)
        assert not any(value is not None and value == value for value in values[len(known) :])
        assert heading.get_attribute("aria-sort") == ("ascending" if rising else "descending")


def test_a_verdict_stands_beside_its_numbers_in_the_list_and_on_the_latents_page(look, judged, space):
    given, folder = judged
    row = given.evidence[given.evidence["verdict"] == "shortcut"].iloc[0]
    page = look(folder, f"#/?encoder=pretrained&text={row['latent']}", width=1800)
    assert column(page, "verdict")[0].split("\n") == ["shortcut", row["reason"]]
    told = f"{row['auroc']:.3f} [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]"
    assert column(page, "auroc") == [told]
    go(page, f"{PRETRAINED}/{row['latent']}?concept=Mass")
    facts = page.locator("#concept-Mass dl.evidence").inner_text()
    assert "shortcut" in facts and row["reason"] in facts and told in facts and f"{row['reliance']:.3f}" in facts
    hidden = given.evidence[given.evidence["verdict"].isna()].iloc[0]
    go(page, f"{PRETRAINED}/{hidden['latent']}?concept=Mass")
    facts = page.locator("#concept-Mass dl.evidence").inner_text()
    assert facts.count("hidden") == 2 and f"{hidden['auroc']:.3f}" in facts  # the verdict and the place it rests on
    assert page.locator("dl.evidence").count() == 1  # the other concepts have none
    go(page, "#/study")
    assert "Reliance: share of the logit" in page.locator("dl.terms").first.inner_text()
    assert look(space).locator('th[data-key="verdict"]').count() == 0


def test_ablation_effects_are_sorted_by_size_whatever_their_sign(look, findings, tmp_path):
    changed = findings.concepts.copy()
    changed.loc[changed["latent"] % 3 == 0, "ablation_effect"] *= -1
    space = build_space(replace(findings, concepts=changed), tmp_path / "space")
    page = look(space, "#/?encoder=pretrained&sort=ablation")
    own = of(findings)
    largest_first = own.loc[own["ablation_effect"].abs().sort_values(ascending=False).index, "latent"]
    assert latents(page) == largest_first.head(50).tolist()
    assert {text[0] for text in column(page, "ablation")} == {"+", "−"}
    assert "sorted by size of the ablation effect (falling)" in page.locator("#status").inner_text()


def test_latents_that_never_fire_are_hidden_until_asked_for_and_grey_then(look, findings, space):
    page = look(space, "#/?encoder=pretrained")
    every = of(findings, dead=True)
    silent = every[every["firing_rate"] == 0]["latent"].tolist()
    assert f" {len(silent)} that never fire are left out." in page.locator("#status").inner_text()
    assert page.locator("tr.dead").count() == 0
    page.fill("#search", str(silent[0]))
    assert "No latent passes these filters, but for 1 latent that never fires." in page.locator(".missing").inner_text()
    page.check("#dead")
    assert latents(page) == [silent[0]] and page.locator("tr.dead").count() == 1
    assert page.evaluate("location.hash") == f"#/?encoder=pretrained&dead=1&text={silent[0]}"
    page.fill("#search", "")
    assert latents(page) == every["latent"].head(50).tolist()
    assert "hidden" not in page.locator("#status").inner_text()
    # A link to one leads there all the same, and its page says what its rank is worth.
    go(page, f"{PRETRAINED}/{silent[0]}")
    assert page.locator("h1").inner_text() == f"Latent {silent[0]}"
    assert "says nothing: the latent never fires" in page.locator("section.concept").first.inner_text()
    go(page, f"{PRETRAINED}/{BEST}")
    assert "says nothing" not in page.locator("main").inner_text()


def test_a_latent_that_fires_in_training_images_alone_is_not_dead(look, findings, tmp_path):
    rare = int(of(findings)["latent"].iloc[5])
    changed = findings.latents.copy()
    changed.loc[changed["latent"] == rare, "firing_rate"] = 0.0
    page = look(
        build_space(replace(findings, latents=changed), tmp_path / "space"), f"#/?encoder=pretrained&text={rare}"
    )
    assert latents(page) == [rare] and column(page, "rate") == ["never"]


def test_filters_choose_layer_encoder_concept_class_firing_rate_and_notes(look, findings, space):
    page = look(space)
    page.select_option("#encoder", "pretrained")
    page.select_option("#concept", "Suspicious_Calcification")
    own = of(findings, concept="Suspicious_Calcification")
    assert latents(page) == own["latent"].head(50).tolist()
    page.select_option("#class", "0")
    assert latents(page) == of(findings, concept="Suspicious_Calcification", label=0)["latent"].head(50).tolist()
    page.select_option("#layer", "blocks_4")
    inner = of(findings, layer="blocks_4", concept="Suspicious_Calcification", label=0)
    assert latents(page) == inner["latent"].head(50).tolist()
    assert set(column(page, "ablation")) == {"–"}  # not measured there
    page.fill("#least", "20")
    often = inner[inner["firing_rate"] >= 0.2]
    assert latents(page) == often["latent"].head(50).tolist() and 0 < len(often) < 100
    assert page.locator("#status").inner_text().startswith(f"{len(often)} of 512 latents")
    page.fill("#least", "")
    page.check("#noted")
    assert page.locator(".missing").inner_text().startswith("No latent passes")  # notes are on the final layer
    page.select_option("#layer", "final")
    assert sorted(latents(page)) == [3, 40, BEST]


def test_all_layers_and_encoders_stand_in_one_table(look, findings, space):
    page = look(space, "#/?layer=all&encoder=all&dead=1")
    told = page.locator("#status").inner_text()
    assert told.startswith("1,024 of 1,024 latents in 2,048 rows, one for each encoder")
    page = look(space, "#/?layer=all&encoder=all&sort=rate")
    assert set(column(page, "layer")) == {"blocks_4", "final"}
    assert set(column(page, "encoder")) == {"pretrained", "finetuned / Mass"}


def test_the_search_finds_numbers_and_words_of_notes(look, space):
    page = look(space, "#/?encoder=pretrained&dead=1")
    for text, found in {
        "77": [77], "77, 3 500": [77, 3, 500], "vessels": [77], "READER b": [77, 40], "mass rims": [77],
        "mass plate": [], "artefact": [3], "<b>": [], "77 mass": [77], "3 mass": [],
    }.items():  # fmt: skip
        page.fill("#search", text)
        assert sorted(latents(page)) == sorted(found), text
    page.fill("#search", "vessels")
    page.press("#search", "Escape")
    assert page.input_value("#search") == "" and len(latents(page)) == 50


@pytest.mark.parametrize("text", ["größe", "GRÖSSE", "Grösse", "gro\u0308\u00dfe", "ＧＲÖẞE", "grosse", "RONDE"])
def test_the_search_sees_no_difference_of_capitals_and_accents(look, tmp_path, text):
    notes = [{"latent": 5, "text": "Größe der runden Herde; densité rondé"}, {"latent": 6, "text": "groove, rondo"}]
    page = look(
        build_space(synthetic_findings(d_sae=24, notes=notes, layers=("final",)), tmp_path / "space"),
        "#/?encoder=pretrained",
    )
    page.fill("#search", text)
    page.check("#dead")
    assert latents(page) == [5]


def test_what_was_chosen_stands_in_the_link_and_comes_back_from_it(look, space):
    page = look(space)
    page.select_option("#encoder", "pretrained")
    page.select_option("#concept", "Mass")
    page.fill("#least", "0.5")
    page.locator('th[data-key="rate"] button').click()
    page.locator("#page-next").click()
    rows, link = latents(page), page.evaluate("location.hash")
    assert link == "#/?encoder=pretrained&least=0.5&sort=rate&page=2"
    again = look(space, link)
    assert latents(again) == rows
    assert again.input_value("#least") == "0.5" and again.input_value("#encoder") == "pretrained"
    assert again.locator('th[aria-sort="descending"]').get_attribute("data-key") == "rate"


def test_a_row_opens_the_latent_and_back_leads_to_the_same_list(look, findings, space):
    page = look(space, "#/?encoder=finetuned%2FMass&sort=rate")
    rows = latents(page)
    with shown_anew(page):
        page.locator("table.latents tbody tr").nth(1).locator("td").nth(2).click()
    assert page.evaluate("location.hash") == f"#/latent/final/finetuned%2FMass/{rows[1]}?concept=Mass"
    assert page.locator("h1").inner_text() == f"Latent {rows[1]}"
    assert page.title().startswith(f"Latent {rows[1]}, finetuned / Mass")
    with shown_anew(page):
        page.locator("#next").click()
    assert page.locator("h1").inner_text() == f"Latent {rows[2]}"
    with shown_anew(page):
        page.locator("#back").click()
    assert latents(page) == rows and page.locator('th[aria-sort="descending"]').get_attribute("data-key") == "rate"


def written(value):
    """A number as the pages write it: three significant digits, which is how Python writes them too."""
    text = f"{value:#.3g}"
    return text.replace("-", "−")


def test_the_page_of_a_latent_shows_its_numbers(look, findings, space):
    page = look(space, f"{PRETRAINED}/{BEST}?concept=Mass")
    own = of(findings).set_index("latent").loc[BEST]
    facts = page.locator("main dl.facts dd:not(.small)").all_inner_texts()
    assert facts[:4] == [
        f"{100 * own.firing_rate:.1f} %",
        written(own.max_activation),
        written(own.mean_activation),
        "2",
    ]
    part = page.locator("section.concept").first
    assert part.get_attribute("data-concept") == "Mass" and "concept latent" in part.locator("h2").inner_text()
    values = part.locator("dl.facts dd:not(.small)").all_inner_texts()
    assert values == ["1 of 512", f"{own.average_precision:.3f}", written(own.ablation_effect)]
    bars = part.locator("table.bars tbody tr")
    for label, count in ((0, "429"), (1, "131")):
        row = of(findings, label=label).set_index("latent").loc[BEST]
        cells = bars.nth(label).locator("td").all_inner_texts()
        interval = "" if pd.isna(row.mean_low) else f"[{written(row.mean_low)}, {written(row.mean_high)}]"
        assert [cell.strip() for cell in cells[:2]] == [count, written(row.class_mean) + interval]
        assert cells[3] == str(row["rank"])
    # Its place among the firing rates of all latents.
    live = findings.latents.query("layer == 'final' and encoder == 'pretrained' and firing_rate > 0")["firing_rate"]
    fewer = (live < own.firing_rate).sum()
    assert f"({fewer} of {len(live) - 1}) of the other latents" in page.locator("#density").inner_text()
    assert page.locator("#density svg .bar.here").count() == page.locator("#density svg .mark").count() == 1
    assert f"{512 - len(live)} of 512 latents never fire" in page.locator("#density").inner_text()


def test_the_page_of_a_latent_says_where_it_enters_the_sweep(look, findings, space):
    ranks = [of(findings, label=label).set_index("latent")["rank"] for label in (0, 1)]
    smallest = pd.concat(ranks, axis=1).min(axis=1)
    chosen = int(smallest[smallest.isin(KS[3:6])].index[0])  # the last rank that the group of that k has
    page = look(space, f"{PRETRAINED}/{chosen}?concept=Mass")
    entered = min(k for k in KS if k >= smallest[chosen])
    rows = findings.interventions.query(
        "layer == 'final' and model == 'pretrained' and concept == 'Mass' and k == @entered"
    )
    text = page.locator("section.concept").first.locator(".enters").inner_text()
    assert f"Its best rank is {smallest[chosen]} " in text and f"enters the group at k = {entered} " in text
    for mode in ("activate", "deactivate"):
        row = rows[rows["mode"] == mode].iloc[0]
        assert (
            f"{row.auroc:.3f} [{row.auroc_low:.3f}, {row.auroc_high:.3f}] (random groups: {row.random_auroc_mean:.3f})"
            in text
        )
    assert page.locator("section.concept").first.locator("svg .mark").count() == 1


def test_a_sweep_on_a_sample_of_patients_says_so_at_inner_layers(look, tmp_path):
    findings = synthetic_findings(d_sae=24)
    analysis = {**findings.study["config"]["analysis"], "inner_patients": 20}
    study = {**findings.study, "config": {**findings.study["config"], "analysis": analysis}}
    page = look(build_space(replace(findings, study=study), tmp_path / "space"), "#/latent/blocks_4/pretrained/3")
    told = "Run on the images of 20 of 60 test patients, drawn at random."
    assert told in page.locator("section.concept .enters").first.inner_text()
    go(page, f"{PRETRAINED}/3")  # of the final map everything is computed
    assert told not in page.locator("section.concept .enters").first.inner_text()


def test_notes_are_shown_with_who_wrote_them_and_when(look, space):
    page = look(space, f"{PRETRAINED}/{BEST}")
    notes = page.locator("#notes li").all_inner_texts()
    assert len(notes) == 2
    assert "Rims of round, dense masses." in notes[0] and "Reader A · 2026-11-20 · confidence 4 of 5" in notes[0]
    assert "Reader B" in notes[1]
    go(page, f"{PRETRAINED}/{BEST + 1}")
    assert "No reader has written" in page.locator("#notes").inner_text()


def test_names_stand_beside_their_scores_in_the_table_and_on_the_page(look, tmp_path):
    findings = synthetic_findings(d_sae=24, layers=("final",))
    first = {"layer": "final", "encoder": "pretrained", "method": "labels", "name": "metal_clip <b>", "score": 0.95,
             "low": 0.76, "high": 0.99, "chance": 0.25, "q": 0.0001, "n": 20, "check_auroc": 0.875, "check_low": 0.8,
             "check_high": 0.9}  # fmt: skip
    other = {**first, "method": "model", "name": "a round rim", "q": None, "model": "toy-vlm", "prompt_version": "2"}
    rows = [{"latent": 5, **first}, {"latent": 6, **other}, {"latent": 5, **other}]
    names = pd.DataFrame(rows).reindex(columns=SCHEMAS["names"].names).astype({"n": "Int64"})
    space = build_space(replace(findings, names=names), tmp_path / "space")
    (study,) = read_data(space, "index")["studies"]
    assert [row["name"] for row in study["names"]] == ["metal_clip <b>", "a round rim", "a round rim"]
    assert (study["names"][1]["q"], study["names"][0]["score"], study["names"][0]["detection"]) == (None, 0.95, None)
    page = look(space, "#/?encoder=pretrained&sort=called&dead=1")
    cells = page.locator("tbody td.called").all_inner_texts()
    assert cells[0] == "Metal clip <b>\nlabels 0.95, chance 0.25"  # by q, which the other has not
    assert [text for text in cells if text] == [cells[0], "a round rim\nmodel 0.95, chance 0.25"]
    page.fill("#search", "round rim")
    assert page.locator("tbody th").all_inner_texts() in (["5", "6"], ["6", "5"])
    page.fill("#search", "metal clip")  # as it is shown
    assert page.locator("tbody th").all_inner_texts() == ["5"]
    go(page, f"{PRETRAINED}/5")
    assert page.locator("#called").inner_text() == "Called Metal clip <b> (labels 0.95, chance 0.25)"
    told = [" ".join(text.split()) for text in page.locator("#names tbody tr").all_inner_texts()]
    assert told[0] == "Metal clip <b> labels 0.95 [0.76, 0.99] 0.25 1.0 × 10⁻⁴ 20 0.88 [0.80, 0.90]"
    assert told[1].startswith("a round rim model, toy-vlm, prompt 2 0.95 [0.76, 0.99] 0.25 –")
    go(page, f"{PRETRAINED}/7")
    assert page.locator("#called, #names").count() == 0


def test_a_long_note_is_folded_and_can_be_read(look, tmp_path):
    long = ("A rim of calcium. " * 1700)[:30000]
    notes = [{"latent": 5, "text": long}, {"latent": 5, "text": "line\n" * 60}, {"latent": 5, "text": "short"}]
    space = build_space(synthetic_findings(d_sae=24, notes=notes, layers=("final",)), tmp_path / "space")
    page = look(space, f"{PRETRAINED}/5")
    closed = page.locator("#notes").bounding_box()["height"]
    assert closed < 700
    assert page.locator("#notes .whole").first.is_hidden()
    summary = page.locator("#notes details.note summary")
    assert summary.count() == 2 and "(the whole note: 30,000 characters)" in summary.first.inner_text()
    summary.first.click()
    assert page.locator("#notes .whole").first.inner_text().strip() == long.strip()
    assert page.locator("#notes").bounding_box()["height"] < closed + 450


def test_what_was_suppressed_is_called_hidden_and_what_was_not_measured_a_dash(look, findings, space):
    page = look(space, "#/?encoder=pretrained&concept=Architectural_Distortion&sort=rate")
    assert set(column(page, "rank")) == set(column(page, "score")) == set(column(page, "mean1")) == {"hidden"}
    assert set(column(page, "ablation")) == {"hidden"} and "hidden" not in column(page, "mean0")
    # The maximum of a latent that fires in too few patients; one that never fires has none.
    rare = of(findings).query("firing_rate > 0 and max_activation.isna()")["latent"].iloc[0]
    dead = of(findings, dead=True).query("firing_rate == 0")["latent"].iloc[0]
    go(page, f"#/?encoder=pretrained&text={rare}")
    assert column(page, "maximum") == ["hidden"]
    go(page, f"#/?encoder=pretrained&text={dead}&dead=1")
    assert (column(page, "maximum"), column(page, "rate"), column(page, "precision")) == (["–"], ["never"], ["–"])
    go(page, f"{PRETRAINED}/{BEST}?concept=Architectural_Distortion")
    part = page.locator("section.concept").first
    assert part.locator("table.bars tbody tr").nth(1).locator("td").all_inner_texts()[0] == "hidden"
    assert "fewer than 5 patients" in part.inner_text() and part.locator("svg").count() == 0


def test_a_latent_that_fires_in_few_patients_says_so_in_the_table_its_legend_and_its_page(look, findings, tmp_path):
    own = of(findings)
    rare = int(own["latent"].iloc[0])
    latents, concepts = findings.latents.copy(), findings.concepts.copy()
    numbers = ["firing_rate", "max_activation", "mean_activation"]
    latents.loc[latents["latent"] == rare, numbers] = np.nan
    hidden = ["class_mean", "score", "average_precision", "ablation_effect"]
    concepts.loc[concepts["latent"] == rare, hidden] = np.nan
    concepts.loc[concepts["latent"] == rare, "rank"] = pd.NA
    found = replace(findings, latents=latents, concepts=concepts)
    page = look(build_space(found, tmp_path / "space"), f"#/?encoder=pretrained&concept=Mass&text={rare}")
    names = ("rank", "score", "mean0", "mean1", "precision", "ablation", "rate", "maximum")
    assert {name: column(page, name) for name in names} == {name: ["hidden"] for name in names}
    assert page.locator("td.rate i").get_attribute("title") == "Hidden: fewer than 5 patients behind it"
    assert page.locator("#legend").inner_text().startswith("“hidden”: a class has fewer than 5 patients")
    go(page, f"{PRETRAINED}/{rare}?concept=Mass")
    text = page.locator("main").inner_text()
    assert "NaN" not in text and "fires in no test image" not in text
    assert "hidden, because the latent fires in fewer than 5 patients of a class" in text


def test_the_comparison_is_that_of_compare_findings(look, findings, replication, two):
    page = look(two, "#/compare")
    computed = compare_findings(findings, replication, top=10)
    for concept in ("Mass", "Suspicious_Calcification"):
        page.select_option("#concept", concept)
        for label in (0, 1):
            page.select_option("#class", str(label))
            (expected,) = computed.latents.query(
                "layer == 'final' and model == 'pretrained' and concept == @concept and `class` == @label"
            ).itertuples()
            settled(page)
            seen = {
                name: float(page.get_attribute(f"#{name}", "data-value"))
                for name in ("correlation", "shared", "compared")
            }
            assert seen["correlation"] == pytest.approx(expected.rank_correlation, abs=1e-12)
            assert (seen["shared"], seen["compared"]) == (expected.shared_top, expected.n_latents)
            assert f"{written(expected.expected_shared)} expected by chance" in page.locator("main").inner_text()
    (best,) = computed.localization.query(
        "layer == 'final' and model == 'pretrained' and concept == 'Mass'"
    ).itertuples()
    row = page.locator("main table").last.locator("tbody tr").first.inner_text()
    assert f"{best.average_precision_a:.3f} latent {best.best_latent_a}" in row
    assert f"{best.average_precision_b:.3f} latent {best.best_latent_b}" in row
    assert page.locator(".scatter canvas").get_attribute("aria-label").startswith("Score of")


def test_too_few_latents_to_tell_is_said(look, findings, replication, two, tmp_path):
    small = [synthetic_findings(d_sae=10, noise=noise, layers=("final",)) for noise in (0, 0.6)]
    page = look(build_space(small[0], tmp_path / "space", compare=small[1]), "#/compare")
    n = int(page.get_attribute("#compared", "data-value"))
    assert 2 <= n < 10
    for name in ("#few-correlation", "#few-shared"):
        assert page.locator(name).inner_text() == f"Too few latents to tell: only {n} are compared"
    page = look(two, "#/compare")
    assert page.locator(".caution").count() == 0
    n = int(page.get_attribute("#compared", "data-value"))
    for top, warned in ((n // 2, 0), (n // 2 + 1, 1)):
        page.fill("#top", str(top))
        page.press("#top", "Enter")
        settled(page)
        assert page.get_attribute("#compared", "data-value") == str(n)
        page.wait_for_selector(f"dt:text-is('Shared among the {top} best')")
        assert (page.locator("#few-shared").count(), page.locator("#few-correlation").count()) == (warned, 0)


def test_two_studies_of_one_title_are_told_apart_wherever_they_are_named(look, tmp_path):
    one, other = (synthetic_findings(d_sae=24, origin=name, on_hub=False, noise=0.6) for name in ("study", "study2"))
    page = look(build_space(one, tmp_path / "space", compare=other))
    title = one.study["title"]
    names = [f"A: {title}", f"B: {title}"]
    assert page.locator("#study option").all_inner_texts() == names
    go(page, "#/compare")
    assert [text.strip() for text in page.locator(".sides li").all_inner_texts()] == [f"A {title}", f"B {title}"]
    go(page, "#/study")
    headings = page.locator("h2").all_inner_texts()
    assert [heading for heading in headings if title in heading] == names
    go(page, f"{PRETRAINED}/3?study=2")
    assert page.locator(".where").inner_text().endswith(names[1])


def test_on_a_phone_long_choices_are_whole_and_a_wide_table_says_that_it_scrolls(look, two):
    page = look(two, "#/compare?a=1%2Fblocks_4%2Ffinetuned%252FSuspicious_Calcification", width=390, height=844)
    left = page.locator(".field", has=page.locator("#left"))
    chosen = page.evaluate("document.getElementById('left').selectedOptions[0].textContent")
    assert "Suspicious calcification" in chosen
    assert left.locator(".chosen").inner_text() == chosen
    for field in ("left", "right", "concept", "value"):
        assert page.locator(f"#{field}").bounding_box()["width"] > 300, field
    wide = page.locator(".captioned").last
    page.wait_for_selector(".captioned:last-child .scroll.more")
    assert wide.locator(".hint").inner_text() == "Scrolls sideways →"
    page.set_viewport_size({"width": 1280, "height": 900})
    page.wait_for_selector(".captioned:last-child .scroll:not(.more)")
    assert wide.locator(".hint").is_hidden() and left.locator(".chosen").is_hidden()


def test_the_rank_correlation_is_that_of_scipy_where_values_are_equal(look, two):
    page = look(two, "#/compare")
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 5, 40), rng.integers(0, 7, 40)
    seen = page.evaluate("([xs, ys]) => mammosae.statistics.spearman(xs, ys)", [one.tolist(), other.tolist()])
    assert seen == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)


def test_choices_that_overtake_each_other_end_with_the_last(look, findings, space):
    page = look(space, "#/?encoder=pretrained")
    page.evaluate("""() => {
      const choose = (id, value) => {
        const field = document.getElementById(id);
        field.value = value;
        field.dispatchEvent(new Event("change", { bubbles: true }));
      };
      choose("layer", "blocks_4");
      choose("concept", "Suspicious_Calcification");
      choose("class", "0");
      document.getElementById("page-next").click();
      choose("concept", "density");
      choose("concept", "Suspicious_Calcification");
      choose("class", "0");
    }""")
    own = of(findings, layer="blocks_4", concept="Suspicious_Calcification", label=0)
    assert latents(page) == own["latent"].head(50).tolist()


def test_a_comparison_can_be_linked_to_and_its_points_open_latents(look, two):
    page = look(two, "#/compare")
    page.select_option("#left", "1/blocks_4/finetuned%2FMass")
    page.select_option("#right", "2/blocks_4/finetuned%2FMass")
    page.fill("#top", "25")
    page.press("#top", "Enter")
    page.select_option("#value", "rate")
    link = page.evaluate("location.hash")
    settled(page)
    shared = page.get_attribute("#shared", "data-value")
    again = look(two, link)
    assert again.input_value("#right") == "2/blocks_4/finetuned%2FMass" and again.input_value("#top") == "25"
    assert again.get_attribute("#shared", "data-value") == shared and again.input_value("#value") == "rate"
    again.locator(".scatter canvas").scroll_into_view_if_needed()
    found = again.evaluate("""() => {
      const canvas = document.querySelector(".scatter canvas");
      const box = canvas.getBoundingClientRect();
      for (let x = box.width - 14; x > 60; x -= 3) for (let y = 10; y < box.height - 50; y += 3) {
        const where = { clientX: box.left + x, clientY: box.top + y };
        canvas.dispatchEvent(new MouseEvent("mousemove", where));
        if (canvas.style.cursor !== "pointer") continue;
        canvas.dispatchEvent(new MouseEvent("click", where));
        return document.querySelector(".tip").textContent;
      }
      return null;
    }""")
    again.wait_for_selector(".page.latent h1")
    assert found.startswith(f"{again.locator('h1').inner_text()}:")


def test_different_saes_are_not_compared_by_number(look, findings, tmp_path):
    other = synthetic_findings(sae="b", seed=5, d_sae=512, origin="other/study")
    page = look(
        build_space(findings, tmp_path / "space", compare=other),
        "#/compare?a=1%2Ffinal%2Fpretrained&b=2%2Ffinal%2Fpretrained",
    )
    assert "equal latent numbers mean different latents" in page.locator("#different").inner_text()
    assert page.locator("#correlation").count() == page.locator("canvas").count() == 0
    assert "0.790" in page.locator("main table").last.inner_text()
    with pytest.raises(InputError, match="different SAEs"):
        compare_findings(findings, other)


def test_studies_that_rank_by_different_scores_are_not_compared(look, findings, replication, tmp_path):
    config = replication.study["config"] | {"analysis": {"score": "mean"}}
    other = replace(replication, study=replication.study | {"config": config})
    page = look(build_space(findings, tmp_path / "space", compare=other), "#/compare")
    assert "by centered_mean, the other by mean" in page.locator("#different").inner_text()
    assert page.locator("#correlation").count() == 0
    with pytest.raises(InputError, match="ranks latents by"):
        compare_findings(findings, other)


def test_two_encoders_of_one_study_can_be_compared(look, findings, space):
    page = look(space, "#/compare")
    assert page.input_value("#left") == "1/final/pretrained"
    assert page.input_value("#right").startswith("1/final/finetuned")
    alone = synthetic_findings(layers=("final",))
    assert int(page.get_attribute("#compared", "data-value")) > 100 and len(alone.latents) == 3 * 512


def test_16384_latents_of_several_encoders_sort_and_filter(look, tmp_path):
    large = synthetic_findings(d_sae=16384, layers=("final",), notes=NOTES)
    page = look(build_space(large, tmp_path / "space"), "#/?dead=1&encoder=all")
    assert page.locator("#status").inner_text().startswith("16,384 of 16,384 latents in 32,768 rows")
    assert page.locator("table.latents tbody tr").count() == 50
    for key in ("score", "rate", "notes", "rank"):
        page.locator(f'th[data-key="{key}"] button').click()
        page.wait_for_selector(f'th[data-key="{key}"][aria-sort]:not([aria-sort="none"])')
    page.fill("#search", "16383")
    assert latents(page) == [16383, 16383]
    page.fill("#search", "")
    page.locator("#page-last").click()
    assert page.locator(".pager span").inner_text() == "Page 656 of 656"
    assert len(latents(page)) == 32768 - 655 * 50


def test_in_a_list_of_all_encoders_the_ranking_of_each_stays_together(look, findings, space):
    page = look(space, "#/?encoder=all&least=60")
    encoders, ranks = column(page, "encoder"), [int(text.replace(",", "")) for text in column(page, "rank")]
    assert len(set(encoders)) == 2 and len(encoders) < 50
    assert [one for i, one in enumerate(encoders) if i == 0 or one != encoders[i - 1]] == [
        "pretrained",
        "finetuned / Mass",
    ]
    for encoder in set(encoders):
        own = [rank for rank, one in zip(ranks, encoders, strict=True) if one == encoder]
        assert own == sorted(own)


def test_on_a_phone_the_table_begins_in_the_first_screen(look, space):
    page = look(space, width=390, height=844)
    # Its place depends on the fonts that are there; whatever they are, nothing but folded filters stands before it.
    assert page.locator("table.latents tbody tr").first.bounding_box()["y"] < 844
    assert page.locator("form details").first.get_attribute("open") is None
    assert page.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("address", ["#/", "#/compare", "#/study", f"{PRETRAINED}/{BEST}", f"{PRETRAINED}/1"])
def test_pages_hold_no_words_of_programs(look, space, address):
    text = look(space, address).locator("main").inner_text()
    assert not re.search(r"\b(false|true|null|undefined|NaN)\b|\[object|box ap\b|radiologists' ", text)


def test_what_an_arrow_leads_to_is_called_a_latent(look, space):
    page = look(space, f"{PRETRAINED}/1")
    assert page.locator("#previous").inner_text() == "← latent 0"
    assert page.locator("#next").inner_text() == "latent 2 →"


def test_every_chart_has_at_least_two_ticks_on_each_scale(look, space):
    page = look(space, f"{PRETRAINED}/{BEST}")
    ticks = """charts => charts.map((chart) => ["end", "middle"].map((side) =>
        chart.querySelectorAll(`text.tick[text-anchor=${side}]`).length))"""
    counted = page.locator("svg.chart").evaluate_all(ticks)
    assert counted and all(min(pair) >= 2 for pair in counted), counted
    short = page.evaluate("""() => [[1, 3], [-2.9, 3.4], [0, 1], [0.11, 0.119], [-8, 1]].map(([low, high]) => {
        const node = mammosae.charts.ranking([high, low], [1, 2], 0, "");
        return node.querySelectorAll("text.tick[text-anchor=end]").length;
    })""")
    assert min(short) >= 2, short


def test_what_is_said_of_the_study_stands_on_its_page(look, findings, tmp_path):
    about = About(
        authors=["A. B."], description="On <phantoms>.", links={"paper": "https://example.org/a"}, sae="x/saes"
    )
    page = look(build_space(findings, tmp_path / "space", about=about), "#/study")
    text = page.locator("#about").inner_text()
    assert "On <phantoms>." in text and "Authors: A. B." in text
    urls = page.locator("#about a").evaluate_all("links => links.map((link) => link.href)")
    assert {"https://huggingface.co/x/saes", "https://example.org/a"} <= set(urls)


def test_the_keyboard_does_everything_in_the_table(look, findings, space):
    page = look(space, "#/?encoder=pretrained")
    rows = latents(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("/")  # in the field it is a letter
    assert page.input_value("#search") == "/"
    page.keyboard.press("Escape")

    def focused():
        return page.evaluate("document.activeElement.textContent")

    page.locator("table.latents tbody a").first.focus()
    assert page.locator('table.latents tbody a[tabindex="0"]').count() == 1
    for key, expected in (("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("End", 49), ("Home", 0), ("ArrowUp", 0)):
        page.keyboard.press(key)
        assert focused() == str(rows[expected]), key
    page.keyboard.press("PageDown")
    pages = math.ceil(len(of(findings)) / 50)
    assert page.locator(".pager span").inner_text() == f"Page 2 of {pages}" and focused() == str(latents(page)[0])
    page.keyboard.press("ArrowUp")  # over the edge: the last row of the page before
    assert focused() == str(rows[49])
    with shown_anew(page):
        page.keyboard.press("Enter")
    assert page.locator("h1").inner_text() == f"Latent {rows[49]}"
    assert page.evaluate("document.activeElement.tagName") == "H1"
    page.keyboard.press("/")
    page.wait_for_selector("table.latents")
    page.locator('th[data-key="rate"] button').focus()
    page.keyboard.press("Space")
    assert page.locator('th[data-key="rate"]').get_attribute("aria-sort") == "descending"


def test_every_field_and_control_has_a_name_and_every_page_one_heading(look, two):
    page = look(two)
    for address in ("#/", f"{PRETRAINED}/{BEST}", "#/compare", "#/study", "#/nothing"):
        go(page, f"{address}?x=1" if address == "#/" else address)
        assert page.locator("h1").count() == 1
        unnamed = page.evaluate("""() => [...document.querySelectorAll("input, select, button, svg[role=img], canvas")]
          .filter((node) => !(node.labels?.length || node.getAttribute("aria-label") || node.textContent.trim()))
          .map((node) => node.outerHTML)""")
        assert unnamed == []
        ids = page.locator("[id]").evaluate_all("nodes => nodes.map((node) => node.id)")
        assert len(ids) == len(set(ids))


def test_dark_follows_the_system_and_the_choice_is_kept(look, space):
    def luminance(page):
        return sum(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))))

    assert luminance(look(space)) > 700
    page = look(space, dark=True)
    assert luminance(page) < 150
    page.locator("#theme").click()
    assert luminance(page) > 700 and page.locator("#theme").inner_text() == "Dark"
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert luminance(page) > 700


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_background(look, two, dark):
    """WCAG 2's contrast of 4.5 for the colours of text on those of backgrounds."""
    page = look(two, dark=dark)
    colors = page.evaluate("""() => {
      const style = getComputedStyle(document.documentElement);
      const names = ["page", "tint", "notice", "ink", "muted", "accent"];
      return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    }""")

    def light(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for text in ("ink", "muted", "accent"):
        for behind in ("page", "tint") + (("notice",) if text == "ink" else ()):
            low, high = sorted((light(colors[text]), light(colors[behind])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, behind)


def test_a_phone_of_360_px_shows_every_page_without_sideways_scrolling(look, two, space):
    for folder, addresses in (
        (two, ("#/", "#/?layer=all&concept=density", f"{PRETRAINED}/{BEST}", "#/compare", "#/study", "#/nothing")),
        (space, ("#/",)),
    ):
        page = look(folder, width=360, height=740)
        for address in addresses:
            if address != "#/":
                go(page, address)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, address
    page.locator(".filters summary").click()
    page.select_option("#sort", "maximum")  # its column is not shown, and can be sorted by all the same
    assert page.evaluate("location.hash") == "#/?sort=maximum"
    assert page.locator('th[data-key="maximum"]').is_hidden()


def test_in_print_every_table_is_as_wide_as_the_paper_at_most(look, two):
    page = look(two, width=718)  # A4 within margins of 10 mm, at 96 pixels per inch
    page.emulate_media(media="print")
    for address in ("#/?layer=all&concept=density", f"{PRETRAINED}/{BEST}", "#/compare", "#/study"):
        go(page, address)
        settled(page)
        beyond = (
            "tables => tables.map((table) => table.getBoundingClientRect().right).filter((end) => end > innerWidth)"
        )
        assert page.locator("main table").evaluate_all(beyond) == [], address


def test_text_of_the_data_never_becomes_markup(look, tmp_path):
    name = CANARY.replace("/", "")  # a slash parts the name of an encoder
    notes = [
        {"latent": 7, "text": CANARY, "author": CANARY, "label": CANARY, "created": CANARY, "encoder": f"pre{name}"}
    ]
    plain = synthetic_findings(notes=notes, d_sae=64, title=CANARY, origin=CANARY, on_hub=False)
    names = {"pretrained": f"pre{name}", "Mass": f"Mass{CANARY}", "final": f"final{CANARY}"}

    def renamed(frame):
        return frame.replace(names) if len(frame) else frame

    study = json.loads(json.dumps(plain.study))
    for row in study["models"]:
        row |= {key: names.get(value, value) if isinstance(value, str) else value for key, value in row.items()}
        row["architecture"] = CANARY
    study["layers"] = [names.get(layer, layer) for layer in study["layers"]]
    study["sae"] = {names.get(layer, layer): {**sae, "source": CANARY} for layer, sae in study["sae"].items()}
    study["provenance"]["packages"][CANARY] = CANARY
    frames = {
        name: renamed(getattr(plain, name))
        for name in ("latents", "concepts", "interventions", "reconstruction", "localization", "notes")
    }
    hostile = replace(plain, study=study, **frames)
    folder = build_space(hostile, tmp_path / "space", compare=hostile)
    assert "<" not in (folder / "data" / "index.js").read_text()
    page = look(folder)
    assert CANARY in page.locator("#title").inner_text()
    assert CANARY in page.title()
    page.check("#dead")
    for text in (CANARY.split()[0], CANARY):
        page.fill("#search", text)
    page.select_option("#encoder", "all")
    assert column(page, "encoder")[0] == f"pre{name}"
    with shown_anew(page):
        page.locator("table.latents tbody a").first.click()
    assert CANARY in page.locator("#notes .note").inner_text()
    for address in (
        "#/compare",
        "#/study",
        f"#/latent/{CANARY}/{CANARY}/7",
        f"#/{CANARY}",
        f"#/?text={CANARY}&layer={CANARY}",
    ):
        go(page, address)
    go(page, f"#/compare?a={CANARY}&concept={CANARY}")
    assert page.evaluate("window.pwned") is None
    assert page.locator("main img, main script").count() == 0


def test_addresses_that_mean_nothing_are_answered_in_words(look, space):
    page = look(space)
    for address in (
        "#/latent/final/pretrained/99999",
        "#/latent/final/pretrained/1e2",
        "#/latent",
        "#/latent/%E0%A4%A",
        "#/x/y",
    ):
        go(page, address)
        assert page.locator("h1").inner_text().startswith("There is no such"), address
    for address in (
        "#/?page=999&least=-3&class=77&study=9&sort=x",
        "#/?page=abc&least=1e9",
        "#/compare?a=x&top=-1&value=y",
    ):
        go(page, address)
        assert page.locator("h1").inner_text() in ("Latents", "Compare")


def test_a_missing_data_file_is_said(look, findings, tmp_path):
    folder = build_space(synthetic_findings(d_sae=64), tmp_path / "space")
    for file in (folder / "data").glob("a*-0.js"):
        file.unlink()
    page = look(folder, problems=[])
    assert re.search(r"data/a\d-0\.js could not be read", page.locator("[role=alert]").inner_text())
