"""What of the evidence on latents a report shows and a findings dataset may tell."""

import json
import shlex

import numpy as np
import pandas as pd
import pytest
from helpers_evidence import FINDING, MARKER, planted_table
from helpers_results import synthetic_results, whole_report
from helpers_space import running_browser
from helpers_study import mammosae

from mammosae_plugin.adapters import load_classifier
from mammosae_plugin.analysis import confounders, group_performance, join_lesions, latent_evidence
from mammosae_plugin.findings.layers import read_layers, write_layers
from mammosae_plugin.findings.study_folder import StudyFolder
from mammosae_plugin.findings.told_evidence import told_evidence, told_groups
from mammosae_plugin.provenance import plain
from mammosae_plugin.report import write_report
from mammosae_plugin.schema.findings import EVIDENCE, GROUPS, LAYERS, names_of
from mammosae_plugin.schema.results import shortcuts
from mammosae_plugin.visualization import write_tables

QUICK = {"n_bootstrap": 60, "n_permutations": 60}


@pytest.fixture(scope="module")
def results():
    table = planted_table()
    known = latent_evidence(table, "Mass", **QUICK)
    verdicts = confounders(table, "Mass", evidence=known, **QUICK)
    more = [*verdicts.columns.difference(known.columns), "reason"]
    rows = known.drop(columns="reason").merge(verdicts[["latent", *more]], on="latent")
    lesions = {"method": "latent", "latent": FINDING, "all_cpm": 0.7, "all_cpm_low": 0.6, "all_cpm_high": 0.8}
    rows = join_lesions(rows, pd.DataFrame([{**lesions, "all_cpm_chance": 0.1, "p_adjusted": 0.01}]))
    groups = group_performance(table, "Mass", ["site", "age"], n_bootstrap=60)
    pair = {"model": "pretrained", "concept": "Mass"}
    return synthetic_results() | {
        "evidence": plain([{**pair, **row} for row in rows.to_dict("records")]),
        "groups": plain([{**pair, **row} for row in groups.to_dict("records")]),
    }


def test_every_column_is_declared_and_read_back_and_findings_without_are_read_too(results, tmp_path):
    assert set(results["evidence"][0]) == {one.name for one in LAYERS["evidence"]} - {"layer"}
    assert set(results["groups"][0]) == {one.name for one in LAYERS["groups"]} - {"layer"}
    write_layers({"final": results}, tmp_path)
    found = read_layers(tmp_path)["final"]
    assert found["evidence"][0]["auroc_mean"] == results["evidence"][0]["auroc_mean"]
    assert found["groups"][0]["n_rows"] == results["groups"][0]["n_rows"]
    (tmp_path / "evidence.parquet").unlink()
    (tmp_path / "groups.parquet").unlink()
    assert "evidence" not in read_layers(tmp_path)["final"]


def test_the_report_shows_verdicts_with_numbers_intervals_and_correction(results, tmp_path):
    page = whole_report(results, tmp_path)
    assert "1 concept, 1 context, 2 shortcut" in page and "Benjamini and Hochberg over up to 24 latents" in page
    assert "went with the concept in the training images only" in page and "Performance by group" in page
    assert "Every latent that fires" not in whole_report(synthetic_results(), tmp_path)
    write_tables(results, tmp_path)
    lines = (tmp_path / "tables" / "evidence.csv").read_text().splitlines()
    assert len(lines) == 1 + 24 and "auroc_q" in lines[0]


def test_the_commands_that_remove_shortcuts_are_told_where_there_are_some(results, tmp_path):
    (told,) = shortcuts(results)
    assert sorted(told["latents"]) == sorted(
        row["latent"] for row in results["evidence"] if row["verdict"] == "shortcut"
    )
    page = whole_report(results, tmp_path)
    assert told["repair"] in page and "To remove the shortcuts" in page and str(tmp_path) not in page
    none = results | {"evidence": [row | {"verdict": "unclear"} for row in results["evidence"]]}
    assert shortcuts(none) == [] and "To remove the shortcuts" not in whole_report(none, tmp_path)


@pytest.mark.parametrize("inner", [False, True])
def test_these_commands_do_what_they_say_on_a_finished_study(finished_study, tmp_path, monkeypatch, inner):
    found = next(one for one in StudyFolder(finished_study.output).layers if (one.name == "layer_6") == inner)
    written = json.loads((found.folder / "results.json").read_text())
    assert written["shortcuts"] == shortcuts(found.results)
    fires = [row for row in found.results["evidence"] if row["concept"] == "Mass"][:3]
    assert len(fires) == 3
    called = [row | {"verdict": "shortcut", "reliance": place} for place, row in enumerate(fires)]
    (told,) = shortcuts({**found.results, "evidence": called})
    assert told["latents"] == [row["latent"] for row in reversed(called)]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text((finished_study.output.parent / "study.yaml").read_text())
    done = mammosae(*shlex.split(told["repair"])[1:])
    assert done.returncode == 0, done.stderr
    repaired = load_classifier(next(tmp_path.glob("repaired_*.safetensors"))).source["metadata"]["repair"]
    assert repaired["latents"] == told["latents"] and repaired["hook_name"] == found.hook_name
    if inner:
        assert told["explain"] is None
        return
    image = str(finished_study.all_images.images["image_id"][0])
    done = mammosae(*(image if word == "IMAGE" else word for word in shlex.split(told["explain"])[1:]))
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("explained_*/explanation.html"))) == 1


@pytest.fixture(scope="module")
def browser():
    yield from running_browser()


def _opened(browser, results, folder, *, javascript=True):
    """The page of the concept in a browser that has no network, at the latents, and what it complained of."""
    page = browser.new_context(java_script_enabled=javascript, offline=True).new_page()
    problems = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    write_report(results, folder)
    page.goto((folder / "concepts" / "Mass.html").as_uri() + "#evidence")
    return page, problems


def _column(page, at):
    return page.locator(f".sortable tbody tr > :nth-child({at + 1})").all_text_contents()


def test_the_reports_latents_are_sorted_by_the_keyboard_and_put_back(results, browser, tmp_path):
    write_tables(results, tmp_path)
    page, problems = _opened(browser, results, tmp_path)
    headings = [text.lower() for text in page.locator(".sortable th").all_inner_texts()]
    rows = {row["latent"]: row for row in results["evidence"]}
    stated = _column(page, headings.index("latent"))
    assert sorted(map(int, stated)) == sorted(rows)  # all of them
    for name, key in (("q", "auroc_q"), ("auroc", "auroc"), ("in its boxes", "place")):
        heading = page.locator(".sortable th").nth(headings.index(name))
        heading.locator("button").focus()
        for order, sign in (("descending", -1), ("ascending", 1)):
            page.keyboard.press("Enter")
            assert heading.get_attribute("aria-sort") == order
            assert page.locator(".sortable th:not([aria-sort=none])").count() == 1
            values = [rows[int(latent)][key] for latent in _column(page, headings.index("latent"))]
            known = [value for value in values if value is not None]
            assert len(known) > 3 and known == sorted(known, key=lambda value: sign * value)
            assert values == known + [None] * (len(values) - len(known))  # what is missing is last
        page.keyboard.press("Space")
        assert heading.get_attribute("aria-sort") == "none" and _column(page, headings.index("latent")) == stated
    words = page.locator(".sortable th").nth(headings.index("verdict"))
    words.locator("button").click()
    cells = page.locator(f".sortable tbody tr > :nth-child({headings.index('verdict') + 1})")
    told = cells.evaluate_all("cells => cells.map(cell => cell.dataset.value)")
    assert told == sorted(told) and len(set(told)) > 2 and words.get_attribute("aria-sort") == "ascending"
    link = page.locator("#evidence a[href$=csv]").get_attribute("href")
    assert (tmp_path / "concepts" / link).is_file() and problems == []


def test_without_a_script_and_in_print_the_latents_stand_in_the_stated_order(results, browser, tmp_path):
    page, problems = _opened(browser, results, tmp_path, javascript=False)
    page.emulate_media(media="print")
    assert page.locator(".sortable tbody tr:visible").count() == 10  # though nothing has opened what is folded
    assert "In print the first 10 of each" in page.locator("#evidence").inner_text()
    page.emulate_media(media="screen")
    page.locator("#evidence > details > summary").click()
    assert page.locator(".sortable button").count() == 0
    reliance = [abs(row["reliance"]) for row in results["evidence"] if row["verdict"] == "unclear"]
    shown = {str(row["latent"]): abs(row["reliance"]) for row in results["evidence"]}
    order = [shown[latent] for latent in _column(page, 2)][-len(reliance) :]
    assert order == sorted(reliance, reverse=True)
    assert page.locator(".sortable tbody tr:visible").count() == len(shown) and problems == []


def test_of_very_many_latents_the_first_are_shown_and_the_caption_says_so(results, tmp_path):
    many = [{**row, "latent": 1000 * i + row["latent"]} for i in range(6) for row in results["evidence"]]
    page = whole_report(results | {"evidence": many}, tmp_path)
    assert page.split('<table class="sortable">')[1].split("</table>")[0].count("<tr") == 1 + 100
    assert "The first 100 latents of each model and finding" in page
    assert "Sorts the tables" in page and "Sorts the tables" not in whole_report(synthetic_results(), tmp_path)


def test_a_study_tells_how_much_of_a_latent_lies_in_the_breast(finished_study):
    found = json.loads((finished_study.results_folder / "results.json").read_text())["evidence"]
    known = [row["in_breast"] for row in found if row["in_breast"] is not None]
    assert known and all(0 <= share <= 1 for share in known) and len(set(known)) > 1


def test_nothing_is_told_of_a_few_patients(results):
    rows = {row["latent"]: row for row in results["evidence"]}
    whole = told_evidence(rows[FINDING], silent=False, no_boxes=False, min_group=5)
    assert whole["verdict"] == "concept" and whole["place"] == rows[FINDING]["place"]
    no_boxes = told_evidence(rows[FINDING], silent=True, no_boxes=True, min_group=5)
    assert no_boxes["place"] is no_boxes["firing_rate"] is no_boxes["verdict"] is no_boxes["n_patients_boxed"] is None
    assert no_boxes["auroc_mean"] is not None
    few = told_evidence({**rows[MARKER], "n_firing_with": 3}, silent=False, no_boxes=False, min_group=5)
    assert all(few[name] is None for name in names_of("evidence", "group"))
    level = told_evidence({**rows[MARKER], "covariate_patients": 2}, silent=False, no_boxes=False, min_group=5)
    assert level["covariate"] is level["covariate_r"] is None and level["auroc"] is not None


def test_groups_of_a_covariate_are_told_all_or_none(results):
    groups = results["groups"]
    sites = [row for row in groups if row["by"] == "site"]
    assert list(told_groups(groups, 2)) == groups
    small = [row | {"n_positive_patients": 3} if row is sites[0] else row for row in groups]
    assert {row["by"] for row in told_groups(small, 5)} == {"", "age"}


def test_levels_and_counts_of_those_in_whom_a_latent_fires_stay_here():
    published = {one.name for one in (*EVIDENCE, *GROUPS)}
    assert not {"covariate_level", "n_firing_with", "n_positive_patients"} & published
    assert np.all([one.privacy != "image" for one in (*EVIDENCE, *GROUPS)])
