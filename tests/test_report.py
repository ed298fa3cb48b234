import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import pytest
from helpers_results import (
    CONCEPTS,
    MODELS,
    findings_of,
    named_latent,
    read_report,
    synthetic_results,
    whole_report,
    write_study,
)
from helpers_space import running_browser

from mammosae_plugin.findings.layers import read_layers
from mammosae_plugin.report import write_report
from mammosae_plugin.report.headline import headline
from mammosae_plugin.report.page import render_pages
from mammosae_plugin.report.paper import compare_figure_2, compare_table_1, compare_table_2, paper_results
from mammosae_plugin.report.summary import baselines_summary, findings, layers_summary, summary
from mammosae_plugin.schema.names import strengths_name
from mammosae_plugin.schema.results import pairs, run_patients
from mammosae_plugin.study.claims import claims
from mammosae_plugin.study.demo import _verdict
from mammosae_plugin.study.report_files import write_report_files
from mammosae_plugin.visualization import figure_2_name, figure_3_name, figure_4_name, table_layers

CALCIFIED = "Suspicious_Calcification"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


class Page(HTMLParser):
    """The tags of a page or of several, the text of each section, its captions, and the cells of its tables."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self.captions: list[str] = []
        self.style = ""
        self._section = "top"
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self._inside.append(tag)
        if tag == "figcaption":
            self.captions.append("")
        if tag == "section":
            self._section = dict(attrs)["id"]
        if tag == "tr":
            self.rows.setdefault(self._section, []).append([])
        if tag in ("td", "th"):
            self.rows[self._section][-1].append("")

    def handle_endtag(self, tag):
        assert self._inside.pop() == tag  # every tag is closed where it was opened

    def handle_data(self, data):
        if "style" in self._inside:
            self.style += data
            return
        if "script" in self._inside:
            return
        if "figcaption" in self._inside:
            self.captions[-1] += data
        self.text[self._section] = self.text.get(self._section, "") + data
        if "td" in self._inside or "th" in self._inside:
            self.rows[self._section][-1][-1] += data.strip() + " "

    def cells(self, section: str) -> list[list[str]]:
        return [[cell.strip() for cell in row] for row in self.rows.get(section, [])]


def report(folder, results, figures=()):
    """All pages as one: a section that stands on several has the text of all."""
    write_pages(folder, results, figures)
    return Page(read_report(folder))


def write_pages(folder, results, figures=()):
    """The pages by name."""
    (found,) = read_layers(findings_of(write_study(results, folder))).values()
    for name in figures:
        (folder / "figures").mkdir(exist_ok=True)
        (folder / "figures" / name).write_bytes(PNG)
    write_report(found, folder)
    pages = [folder / "report.html", *sorted((folder / "concepts").iterdir())]
    return {page.name: Page(page.read_text(encoding="utf-8")) for page in pages}


@pytest.mark.parametrize(("saved_as", "trained_as"), [("jumprelu", True), ("batchtopk", False)])
def test_the_saes_architecture_and_what_was_set_are_said_once(tmp_path, saved_as, trained_as):
    results = synthetic_results()
    training = {"architecture": "batchtopk", "k": 6, "positions_per_image": None}
    results["sae"] |= {"architecture": saved_as, "training": training}
    text = report(tmp_path, results).text["sae"]
    assert f"Architecture{saved_as}" in text
    assert text.count("rchitecture") == 1
    assert ("Trained asbatchtopk" in text) == trained_as
    assert "K6" in text
    assert "Positions per image" not in text


def test_captions_say_how_many_images_and_patients_stand_behind_the_numbers(tmp_path):
    results = synthetic_results()
    page = report(tmp_path, results, ("figure_2_Mass.png", "figure_4_finetuned_Mass.png"))
    of = {row["split"]: row for row in results["data"]["splits"]}
    positive = {row["split"]: row["n_positive"] for row in results["data"]["concepts"] if row["concept"] == "Mass"}
    for section, split in (("summary", "test"), ("table-1", "test"), ("figure-2", "test"), ("figure-4", "training")):
        size = of[split]
        told = f"n = {size['n_images']:,} {split} images of {size['n_patients']:,} patients"
        assert f"{told}, {positive[split]:,} with Mass" in page.text[section], section
    boxes = results["localization"][0]
    assert f"n = {boxes['n_images']:,} test images with {boxes['n_boxes']:,} boxes of Mass" in page.text["table-2"]


def three(value):
    return f"{value:.3f}".replace("-", "−")


def test_table_1_on_the_page_holds_the_numbers_of_the_results(tmp_path):
    results = synthetic_results()
    page = report(tmp_path, results)
    rows = [row for row in page.cells("table-1") if row[2] in ("without SAE", "with SAE", "difference")]
    assert len(rows) == len(results["reconstruction"]) == 12
    for row, source in zip(rows, results["reconstruction"], strict=True):
        assert row[0] == source["model"]
        sign = "+" if source["variant"] == "difference" and source["recall_high"] > 0 else ""
        assert row[3].split()[0] == three(source["auroc"])
        assert row[6].endswith(f"{sign}{three(source['recall_high'])}]")


def test_interventions_and_localization_on_the_page_are_those_of_the_results(tmp_path):
    results = synthetic_results()
    page = report(tmp_path, results)
    kept = [
        three(r["auroc"])
        for r in results["interventions"]
        if (r["model"], r["concept"], r["mode"], r["error_term"]) == ("finetuned", "Mass", "activate", False)
    ]
    assert ["finetuned", "Mass", "activate", "best latents", *kept] in page.cells("figure-2")
    localization = [
        three(r["average_precision"])
        for r in results["localization"]
        if (r["model"], r["concept"]) == ("finetuned", "Suspicious_Calcification")
    ]
    row = next(row for row in page.cells("table-2") if row[:2] == ["finetuned", "Suspicious calcification"])
    assert row[4:14] == localization


def test_latents_raw_channels_and_grad_cam_stand_in_one_table_2_and_none_is_bold_without_an_interval(tmp_path):
    results = synthetic_results(baselines=True)
    page = report(tmp_path, results)
    rows = [row for row in page.cells("table-2") if row[:2] == ["finetuned", "Suspicious calcification"]]
    assert [row[3] for row in rows] == ["latent", "raw channel", "Grad-CAM"]
    assert rows[1][4:] == [*(three(0.01 * rank) for rank in range(1, 11)), "110"]
    assert rows[2][4:] == ["0.400", *["–"] * 10]
    html = read_report(tmp_path)
    table = html[html.index('id="table-2"') :]
    assert not re.findall(r"<strong>([^<]+)</strong>", table)


def test_a_role_stands_above_its_reason_and_beside_its_numbers_and_the_share_of_undefined_resamples(tmp_path):
    results = synthetic_results()
    results["named_latents"] = {"finetuned/Mass": [named_latent(1, "concept") | {"by": "AB"}]}
    row = write_pages(tmp_path, results)["Mass.html"].cells("rankings")[-1]
    assert row[3] == "concept as a concept latent; said by AB"
    assert row[-2:] == ["57 + 183", "0.0 %, 0.0 %"]


def test_the_report_says_where_the_sae_marks_boxes_better_and_where_it_does_not():
    channels, grad_cam = baselines_summary(synthetic_results(baselines=True))
    assert "is for 2 of 4 classifiers above that of a raw channel" in channels and "may be chance" in channels
    assert f"({(0.316 + 0.02) / 2:.3f} against 0.100, means over the classifiers)" in channels
    assert "is for 1 of 4 classifiers above that of Grad-CAM" in grad_cam
    results = synthetic_results(baselines=True)
    for row in results["baselines"]:
        row["average_precision"] = 0.0
    assert "is for 4 of 4 classifiers above that of Grad-CAM" in baselines_summary(results)[1]
    for row in (*results["localization"], *results["baselines"]):
        row["average_precision"] = 0.2 * (row in results["baselines"])
    assert "is for none of 4 classifiers above that of a raw channel" in baselines_summary(results)[0]
    assert baselines_summary(synthetic_results()) == []


# Several layers

LAYERS = ("layer_4", "layer_6", "layer_10")


def test_layers_stand_side_by_side_with_the_numbers_of_the_results(tmp_path):
    results = synthetic_results(baselines=True, layers=LAYERS)
    page = report(tmp_path, results, ["layers.png"])
    rows = page.cells("layers")
    assert ["layer_6", "blocks.1.0.hook_out", "48 × 30", "48", "384"] in rows
    separation = [row for row in rows if row[:2] == ["finetuned", "Mass"] and len(row) == 12]
    assert [row[2] for row in separation] == list(LAYERS)
    source = next(
        r for r in results["layers"] if (r["model"], r["concept"], r["layer"]) == (*separation[1][:2], "layer_6")
    )
    assert separation[1][4] == "17.2"
    assert separation[1][6:8] == [three(source["auroc_without_sae"]), three(source["auroc_with_sae"])]
    assert separation[1][9].split()[0] == three(source["single_latent_auroc"])
    assert separation[1][9].endswith(f"{three(source['single_latent_auroc_high'])}]")
    assert separation[1][10:] == [three(source["recovered"]), f"+{three(source['removal_excess'])}"]
    assert ["finetuned", "Mass", "layer_6", "33", "0.330", "0.198", "0.200"] in rows
    assert sum(tag == "img" for tag, _ in page.tags) == 1


def test_a_study_of_one_layer_has_no_section_on_layers(tmp_path):
    page = report(tmp_path, synthetic_results())
    assert "layers" not in page.text
    assert "#layers" not in {attributes.get("href") for _, attributes in page.tags}


@pytest.mark.parametrize(
    ("own", "links"),
    [
        ("layer_10", ["layers/layer_4/report.html", "layers/layer_6/report.html"]),
        ("layer_4", ["../layer_6/report.html", "../../report.html"]),
    ],
)
def test_each_layers_report_leads_to_the_others(tmp_path, own, links):
    results = synthetic_results(layers=LAYERS)
    results["layer"]["name"] = own
    page = write_pages(tmp_path, results)["report.html"]
    found = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert [link for link in found if link.endswith("report.html")] == links
    assert f"This report is about {own}" in page.text["summary"]


def test_the_best_layers_are_named_with_their_means_and_what_may_be_chance():
    results = synthetic_results(layers=LAYERS)
    separates, localizes = layers_summary(results)
    assert "separates the classes best at layer_10: its test AUROC, the mean over 4 classifiers, is 0.885" in separates
    assert "(0.785 at layer_6, 0.685 at layer_4)" in separates
    assert "overlap" not in separates
    assert "average precision of a latent, the mean over 4 classifiers, is highest at layer_6" in localizes
    assert "no interval here, so no layer is best" in localizes
    for row in results["layers"]:
        if (row["model"], row["layer"]) == ("pretrained", "layer_6"):
            low = 0.92 if row["concept"] == "Mass" else 0.8
            row.update(single_latent_auroc=0.93, single_latent_auroc_low=low, single_latent_auroc_high=0.99)
    separates = layers_summary(results)[0]
    assert "That layer leads for 2 of the 4 classifiers." in separates
    assert "overlaps that of layer_6 for 1 of 4 classifiers, so neither is best there" in separates
    assert "separates the classes best" not in separates


def test_a_layer_leads_only_where_it_is_strictly_better():
    results = synthetic_results(layers=LAYERS)
    for row in results["layers"]:
        row["best_latent_ap"] = 0.0
    assert layers_summary(results)[1] == "No layer's latents mark the annotated boxes: every average precision is 0."
    row = next(
        r for r in results["layers"] if (r["model"], r["concept"], r["layer"]) == ("finetuned", "Mass", LAYERS[1])
    )
    row["best_latent_ap"] = 0.24
    localizes = layers_summary(results)[1]
    assert "average precision of a latent, the mean over 4 classifiers, is highest at layer_6: 0.060" in localizes
    assert "leads for 1 of the 4 classifiers" in localizes
    assert "no interval here, so no layer is best. It rests on 61 annotated boxes of a concept." in localizes
    row["best_latent_ap"] = 0.1
    assert layers_summary(results)[1].startswith("No layer's latents mark the annotated boxes to speak of.")


def test_layers_of_equal_means_tie():
    results = synthetic_results(layers=LAYERS)
    for row in results["layers"]:
        row["single_latent_auroc"] = 0.8 if row["layer"] != "layer_4" else 0.7
    separates = layers_summary(results)[0]
    assert "layer_6 and layer_10 tie" in separates
    assert "is 0.800 at each (0.700 at layer_4)" in separates
    assert "separates the classes best at" not in separates
    assert "guessing" not in separates
    for row in results["layers"]:
        row["single_latent_auroc"] -= 0.25
    assert "is little better than guessing" in layers_summary(results)[0]


def test_classifiers_with_a_clearly_better_layer_than_the_best_on_average_are_named():
    results = synthetic_results(layers=LAYERS)
    assert "clearly" not in layers_summary(results)[0]
    row = next(
        r for r in results["layers"] if (r["model"], r["concept"], r["layer"]) == ("finetuned", "Mass", LAYERS[0])
    )
    row.update(single_latent_auroc=0.99, single_latent_auroc_low=0.97, single_latent_auroc_high=1.0)
    assert "For “finetuned, Mass” layer_4 is clearly better" in layers_summary(results)[0]


def test_a_layer_whose_sae_does_poorly_is_not_compared_and_never_bold(tmp_path):
    results = synthetic_results(layers=LAYERS)
    for row in results["layers"]:
        if row["layer"] == "layer_10" and row["model"] == "pretrained":
            row.update(explained_variance=-0.31, dead_share=0.97, best_latent_ap=0.9)
    flawed, separates, localizes = layers_summary(results)
    assert flawed.startswith("layer_10 cannot be compared with the others")
    assert "“pretrained, Mass”: explained variance −0.310, 97 % of the latents never fire;" in flawed
    assert "finetuned" not in flawed
    assert "separates the classes best at layer_6" in separates
    assert "layer_10" not in separates + localizes
    table = table_layers(results)
    pretrained = table[(table["model"] == "pretrained") & (table["concept"] == "Mass")]
    assert [cell.best for cell in pretrained["single_latent_auroc"]] == [False, True, False]
    assert not any(cell.best for cell in pretrained["best_latent_ap"])  # without an interval
    for row in results["layers"]:
        if row["layer"] == "layer_4":
            row["dead_share"] = 0.91
    assert layers_summary(results)[2] == "Only layer_6 is left, so no layer is best."


def test_layers_without_values_are_left_out_of_the_comparison(tmp_path):
    results = synthetic_results(layers=LAYERS)
    for row in results["layers"]:
        row.update(best_latent=None, best_latent_ap=None, best_channel_ap=None, gradcam_ap=None)
    assert "no annotated boxes to compare with" in layers_summary(results)[1]
    page = report(tmp_path, results)
    assert not any("AP, best latent" in row for row in page.cells("layers"))
    assert not any(re.search(r"\bnan\b", text, re.IGNORECASE) for text in page.text.values())


def test_the_number_of_best_latents_in_the_text_is_the_studys(tmp_path):
    results = synthetic_results(layers=LAYERS)
    results["config"]["analysis"] = {"top": 5}
    page = report(tmp_path, results)
    assert any("Recovered by the 5 best" in row for row in page.cells("concepts"))
    assert "of the 5 are the same in both classes" in page.text["rankings"]
    assert ["6"] not in [row[:1] for row in page.cells("rankings")]
    assert not re.search(r"\b(ten|10) best", " ".join(page.text[name] for name in ("layers", "rankings", "table-2")))


def test_the_pages_load_nothing_but_figures_beside_them_and_run_nothing_but_their_own_scripts(tmp_path):
    results = synthetic_results()
    names = [figure_2_name("Mass"), figure_3_name("finetuned", "Mass")]
    for name, page in write_pages(tmp_path, results, names).items():
        tags = {tag for tag, _ in page.tags}
        assert not tags & {"link", "iframe", "object", "embed", "base", "video", "audio", "source", "form"}
        images = [attributes for tag, attributes in page.tags if tag == "img"]
        folder = tmp_path / ("concepts" if name != "report.html" else "")
        for image in images:
            file = (folder / image["src"]).resolve()
            assert file.parent == tmp_path / "figures" and file.read_bytes() == PNG
            assert image["alt"] and (image["width"], image["height"]) == ("1", "1")
        assert "url(" not in page.style and "@import" not in page.style
        assert not any(key.startswith("on") or key == "style" for _, attributes in page.tags for key in attributes)
        for link in (attributes["href"] for tag, attributes in page.tags if tag == "a"):
            assert link.startswith("#") or (folder / link).exists(), link
        policy = next(a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv"))
        html = (folder / name).read_text(encoding="utf-8")
        (script,) = re.findall("<script>(.*?)</script>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        allowed = f"img-src 'self' file:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        assert policy == f"default-src 'none'; {allowed}"


def test_the_contents_of_every_page_lead_to_its_sections_in_their_order_and_to_the_other_pages(tmp_path):
    pages = write_pages(tmp_path, synthetic_results())
    for page in pages.values():
        nav, sections = [], [attributes["id"] for tag, attributes in page.tags if tag == "section"]
        for tag, attributes in page.tags:
            if tag == "main":
                break
            nav += [attributes["href"]] if tag == "a" else []
        assert [link.lstrip("#") for link in nav if link.startswith("#")] == sections
    told = ["summary", "concepts", "all", "reading", "data", "models", "sae", "table-1", "checks", "provenance", "cite"]
    first = {attributes.get("href") for _, attributes in pages["report.html"].tags}
    assert [attributes["id"] for tag, attributes in pages["report.html"].tags if tag == "section"] == told
    assert {"concepts/Mass.html", "concepts/Suspicious_Calcification.html"} <= first
    of_mass = [attributes.get("href") for _, attributes in pages["Mass.html"].tags]
    assert {"../report.html", "Suspicious_Calcification.html"} <= set(of_mass)


def test_the_page_of_a_concept_holds_that_concept_alone(tmp_path):
    pages = write_pages(tmp_path, synthetic_results(baselines=True), [figure_2_name("Mass"), figure_2_name(CALCIFIED)])
    for name, other in (("Mass", "Suspicious calcification"), (CALCIFIED, "Mass")):
        page = pages[f"{name}.html"]
        cells = {cell for section in page.rows for row in page.cells(section) for cell in row}
        assert other not in cells and len(page.cells("table-2")) > 1
        assert [a["src"] for tag, a in page.tags if tag == "img"] == [f"../figures/{figure_2_name(name)}"]


def test_every_caption_says_how_much_stands_behind_it(tmp_path):
    results = synthetic_results(baselines=True, layers=LAYERS, paper_setting=True)
    figures = ["layers.png", *(figure_2_name(one, error_term=term) for one in CONCEPTS for term in (False, True))]
    figures += [name(model, one) for name in (figure_3_name, figure_4_name) for model in MODELS for one in CONCEPTS]
    page = report(tmp_path, results, figures)
    assert len(page.captions) > 40
    for caption in page.captions:
        assert re.search(r"\bn = \d[\d,]* \w+", caption), caption


def test_five_sentences_each_have_a_number_an_interval_and_what_chance_gives(tmp_path):
    results = synthetic_results()
    said = headline(results, "n = 240 test images")
    assert len(said) == 5 and all(re.search(r"\d\.\d{3}", sentence) for sentence in said)
    assert "“finetuned, Suspicious calcification” tells who has the finding" in said[0]
    assert "with an AUROC of 0.968 [0.937, 0.999] (0.5 is guessing)" in said[0]
    assert "the highest of 4 classifiers and chosen by that; n = 240 test images" in said[0]
    assert "a change of −0.004 [−0.010, +0.002]: an interval that holds 0: no cost can be told" in said[1]
    assert "more than any random group" in said[2] and "lower than without any random group" in said[3]
    assert "average precision of 0.316" in said[4] and "has no interval, so nothing is claimed" in said[4]
    for row in results["interventions"]:
        row.update(random_auroc_low=0.2, random_auroc_high=0.999)
    said = headline(results, "")
    assert all("random groups are not beaten, so nothing follows" in sentence for sentence in said[2:4])
    results["n_controls"] = 1
    assert "the one random group is not beaten" in headline(results, "")[2]
    for row in results["localization"]:
        row["average_precision"] = 0.0
    results["interventions"] = []
    said = headline(results, "")
    assert "was not measured" in said[2] and "where latents fire is not told" in said[4]
    for row in results["reconstruction"]:
        row.update(auroc=None, auroc_low=None, auroc_high=None)
    assert headline(results, "") == []


def test_warnings_stand_before_the_five_sentences(tmp_path):
    results = synthetic_results()
    results["sae_quality"][1].update(explained_variance=-0.2)
    page = write_pages(tmp_path, results)["report.html"]
    text = page.text["summary"]
    assert 0 < text.index("Warning: the SAE does poorly") < text.index("tells who has the finding")


def test_the_picture_of_the_first_page_is_an_image_where_images_may_be_shown_and_else_figure_2(tmp_path):
    figures = ["example.png", *(figure_2_name(one) for one in CONCEPTS), figure_4_name("finetuned", CALCIFIED)]
    for name, include, n in (("with", True, 3), ("without", False, 2)):
        (tmp_path / name).mkdir()
        results = synthetic_results(data_kind="vindr", include_images=include)
        page = write_pages(tmp_path / name, results, figures)["report.html"]
        sources = [a["src"].partition("/")[2] for tag, a in page.tags if tag == "img"]
        assert len(sources) == n and (sources[0] == "example.png") is include
        assert sources[-2:] == [figure_2_name(CALCIFIED), figure_4_name("finetuned", CALCIFIED)]
        assert ("so that others look weaker" in page.captions[0]) is include


def test_captions_have_the_names_of_latents_with_score_and_chance(tmp_path):
    results = synthetic_results()
    model, concept = results["rankings"][1]["model"], results["rankings"][1]["concept"]
    first, second = results["rankings"][1]["latents"][:2]
    name = {"encoder": model, "method": "labels", "score": 0.95, "chance": 0.25, "n": 20, "q": 0.01, "reason": ""}
    results["names"] = [{**name, "latent": one, "name": "Spot_like"} for one in (first, second)]
    page = write_pages(tmp_path, results, [figure_3_name(model, concept), figure_4_name(model, concept)])["Mass.html"]
    said = f"Names, which are guesses: Spot like (labels 0.95, chance 0.25): latents {first}, {second}."
    assert sum(caption.endswith(said) for caption in page.captions) == 2


def test_leading_latents_stand_beside_those_that_go_with_them_beyond_chance(tmp_path):
    results = synthetic_results()
    model, concept = MODELS[0], CONCEPTS[0]
    first, second = (row["latent"] for row in results["named_latents"][f"{model}/{concept}"][:2])
    row = {"model": model, "concept": concept, "latent": first, "kind": "together", "rank": 1, "chance": 0.2}
    rows = [
        {**row, "neighbour": 7, "value": 0.61},
        {**row, "neighbour": 9, "value": 0.19, "rank": 2},
        {**row, "neighbour": 8, "value": -0.3, "kind": "decoder"},
        {**row, "neighbour": 5, "value": 0.5, "latent": second},
        {**row, "neighbour": 4, "value": 0.5, "concept": CONCEPTS[1]},
    ]
    (tmp_path / strengths_name(model, concept)).write_bytes(PNG)
    page = Page(render_pages({**results, "neighbours": rows}, tmp_path)[f"concepts/{concept}.html"])
    assert page.cells("firing")[1:] == [
        [model, str(first), "7 (0.61; 0.20)", "none beyond chance"],
        [model, str(second), "5 (0.50; 0.20)", "–"],
    ]
    assert sum("strongly a latent fires" in caption for caption in page.captions) == 1
    without = render_pages(results, tmp_path / "none")[f"concepts/{concept}.html"]
    assert "firing" not in Page(without).text and "#firing" not in without


def test_the_command_and_the_versions_to_repeat_the_study(tmp_path):
    results = synthetic_results()
    results["provenance"]["packages"] |= {"torch": "2.8.0+cpu", "nnsight": "not installed"}
    text = write_pages(tmp_path, results)["report.html"].text["provenance"]
    assert "pip install mammosae-plugin==0.1.0 torch==2.8.0 sae-lens==6.54.12 timm==1.0.31\n" in text
    assert "mammosae study --config study.yaml" in text and "2.8.0+cpu" in text
    assert "Commit" not in text
    results["provenance"]["commit"] = "0f1e" * 10
    assert "0f1e" * 10 in write_pages(tmp_path, results)["report.html"].text["provenance"]


@pytest.fixture(scope="module")
def browser():
    yield from running_browser()


def test_in_a_browser_figures_show_and_links_and_print_open_what_is_folded(browser, tmp_path):
    write_pages(tmp_path, synthetic_results(), [figure_2_name("Mass")])
    page = browser.new_context(offline=True, viewport={"width": 390, "height": 844}).new_page()
    problems = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri() + "#data")
    assert page.locator("#data details").first.evaluate("one => one.open")
    assert not page.locator("#sae details").first.evaluate("one => one.open")
    assert not page.locator("nav details").evaluate("one => one.open")  # there is no room for it on a phone
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not page.locator("#sae details").first.evaluate("one => one.open")
    assert page.locator("button.copy").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator("main").get_by_role("link", name="Mass").first.click()
    page.wait_for_url("**/concepts/Mass.html")
    page.locator("#figure-2 img").evaluate("one => one.decode()")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.set_viewport_size({"width": 1280, "height": 900})
    page.locator("nav details[open]").wait_for()
    assert problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_a_phone_with_everything_unfolded(scheme, browser, tmp_path):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe looks at the pages").Axe()
    write_pages(tmp_path, synthetic_results(layers=LAYERS), [figure_2_name("Mass")])
    context = browser.new_context(
        bypass_csp=True, offline=True, color_scheme=scheme, viewport={"width": 390, "height": 844}
    )
    for name in ("report.html", "concepts/Mass.html"):
        page = context.new_page()
        page.goto((tmp_path / name).as_uri())
        page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
        page.locator(".scroll[tabindex]").first.wait_for(state="attached")
        found = axe.run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []


def test_pages_of_concepts_that_are_gone_go_with_their_figures_and_what_was_edited_is_kept(tmp_path):
    results, written = synthetic_results(), []

    def write(folder, drawings):
        written.append(folder)
        write_report(results, folder)

    def run():
        return write_report_files(tmp_path, results, write)

    assert run() == run() == tmp_path / "report.html" and len(written) == 1
    calcified, mass = (tmp_path / "concepts" / f"{name}.html" for name in (CALCIFIED, "Mass"))
    mass.write_text("with my words")
    results["models"] = [row for row in results["models"] if row["concept"] == "Mass"]
    run()
    assert not calcified.exists() and CALCIFIED not in mass.read_text(encoding="utf-8")
    assert mass.with_name("Mass.edited.html").read_text() == "with my words"


def test_the_same_results_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        report(tmp_path / name, synthetic_results(), [figure_2_name("Mass")])
    assert (tmp_path / "one/report.html").read_bytes() == (tmp_path / "two/report.html").read_bytes()


def test_text_from_the_results_is_escaped(tmp_path):
    results = synthetic_results()
    results["title"] = "<script>alert(1)</script> & more"
    results["config"]["note"] = "</pre><img src=http://example.org/x.png>"
    page = report(tmp_path, results)
    assert [tag for tag, _ in page.tags].count("script") == 3  # one of each page
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert "<script>alert(1)</script> & more" in page.text["top"]


# The paper's numbers


def test_the_papers_numbers_stand_beside_ours_only_in_its_setting(tmp_path):
    (tmp_path / "paper").mkdir()
    (tmp_path / "other").mkdir()
    paper = report(tmp_path / "paper", synthetic_results(paper_setting=True))
    other = report(tmp_path / "other", synthetic_results())
    rows = paper.cells("table-1")
    at = next(
        i for i, row in enumerate(rows) if row[:4] == ["finetuned", "Suspicious calcification", "without SAE", "ours"]
    )
    assert rows[at][4] == "0.968"
    assert rows[at + 1][3:5] == ["paper", "0.979"]
    assert rows[at + 2][3:5] == ["difference", "−0.011"]
    assert "paper" in {row[2] for row in paper.cells("table-2")}
    assert ["10", "0.947", "0.964", "−0.017"] in paper.cells("figure-2")
    assert not any("paper" in row for section in other.rows for row in other.cells(section))
    assert "not comparable with the paper's" in other.text["summary"]
    assert "published numbers stand beside ours" in paper.text["summary"]


def test_comparisons_take_the_published_values_of_the_matching_model_and_concept():
    results = synthetic_results(paper_setting=True)
    table = compare_table_1(results)
    row = table[(table["model"] == "pretrained") & (table["concept"] == "Mass") & (table["variant"] == "with SAE")]
    published = paper_results()["table_1_classification"]["Mass_pretrained with SAE"]
    assert row[row["source"] == "paper"].iloc[0]["average_precision"].value == published["auprc"]
    difference = row[row["source"] == "difference"].iloc[0]["auroc"].value
    assert difference == pytest.approx(0.787 - 0.0213 - published["aucroc"])
    second = compare_table_2(results)
    finetuned = second[(second["model"] == "finetuned") & (second["concept"] == "Mass") & (second["source"] == "paper")]
    assert finetuned.iloc[0]["rank_2"].value == 0.316
    assert list(compare_figure_2(results)["k"]) == [0, 1, 5, 10, 50, 100]


def test_other_models_and_thresholds_are_not_compared(tmp_path):
    results = synthetic_results(paper_setting=True)
    for section in ("models", "reconstruction", "interventions", "localization"):
        for row in results[section]:
            key = "name" if section == "models" else "model"
            row[key] = row[key].replace("finetuned", "mine").replace("pretrained", "other")
    assert compare_table_1(results).empty
    assert compare_figure_2(results).empty
    assert "nothing to compare" in report(tmp_path, results).text["summary"]
    results = synthetic_results(paper_setting=True)
    for row in results["localization"]:
        row["threshold"] = "relative 0.3"
    assert compare_table_2(results).empty


# Privacy


def test_patients_images_are_left_out_unless_the_config_asks_for_them(tmp_path):
    figures = [figure_3_name("finetuned", "Mass"), figure_2_name("Mass"), figure_4_name("finetuned", "Mass")]
    for name, include, n_images in (("without", False, 2), ("with", True, 3)):
        (tmp_path / name).mkdir()
        page = report(tmp_path / name, synthetic_results(data_kind="vindr", include_images=include), figures)
        images = [a for tag, a in page.tags if tag == "img"]
        assert len(images) == n_images
        assert ("include_images: true" in page.text["figure-3"]) is not include


def test_quarantined_images_appear_as_counts_without_identifiers(tmp_path):
    results = synthetic_results(data_kind="vindr", include_images=True)
    results["data"]["quarantine"].append({"image_id": "abc123.png", "reason": "abc123.png is truncated"})
    results["data"]["quarantine"].append({"reason": "wrong size", "n": 4})
    page = report(tmp_path, results)
    assert "2 × constant image" in page.text["data"]
    assert "1 × the image is truncated" in page.text["data"]
    assert "4 × wrong size" in page.text["data"]
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not any(image in html for image in ("bad_one", "bad_two", "bad_three", "abc123"))


# What is missing is said


def test_a_study_without_parts_still_has_a_report_that_says_so(tmp_path):
    results = synthetic_results()
    for section in ("sae_quality", "reconstruction", "rankings", "interventions", "localization", "checks"):
        results[section] = []
    results["named_latents"] = {}
    results["data"]["quarantine"] = []
    results["sae"].update(training=None, trained_on=None)
    page = report(tmp_path, results)
    assert "no classification metrics" in page.text["table-1"]
    assert "no interventions" in page.text["figure-2"]
    assert "There is no Table 2" in page.text["table-2"]
    assert "no rankings" in page.text["rankings"]
    assert "no pass marks" in page.text["checks"]
    assert "none was left out" in page.text["data"]
    assert "trained elsewhere" in page.text["sae"]
    assert "There are no heatmaps" in page.text["figure-3"]
    assert f"figures/{figure_4_name('finetuned', 'Mass')} is not there" in page.text["figure-4"]


def test_values_that_could_not_be_computed_print_as_a_dash(tmp_path):
    results = synthetic_results()
    for row in results["reconstruction"]:
        row.update(auroc=None, auroc_low=None, auroc_high=None)
    page = report(tmp_path, results)
    rows = [row for row in page.cells("table-1") if row[2] == "without SAE"]
    assert all(row[3] == "–" for row in rows)
    assert not any(re.search(r"\bnan\b", text, re.IGNORECASE) for text in page.text.values())


def test_checks_say_in_words_whether_they_passed(tmp_path):
    page = report(tmp_path, synthetic_results())
    rows = page.cells("checks")
    assert ["finetuned test AUROC, Mass", "0.913", "at least 0.9", "✓ passed"] in rows
    assert ["AUROC lost by the SAE, Mass", "0.023", "at most 0.02", "✗ failed"] in rows


def test_checks_that_cannot_be_asked_are_not_applicable_and_not_failed(tmp_path):
    results = synthetic_results()
    for row in results["reconstruction"]:
        if row["model"] == "pretrained" and row["variant"] == "without_sae":
            row["auroc"] = 0.5 if row["concept"] == "Mass" else math.nan
    for row in results["localization"]:
        if row["model"] == "pretrained" and row["concept"] == "Mass":
            row["average_precision"] = math.nan
    checks = claims(results, top=10)
    passed = {name: [c["passed"] for c in checks if c["name"].startswith(name)] for name in
              ("pretrained/Mass", "pretrained/Suspicious", "finetuned/Mass")}  # fmt: skip
    assert passed == {
        "pretrained/Mass": [None] * 4,
        "pretrained/Suspicious": [None, None, None, False],
        "finetuned/Mass": [True] * 4,
    }
    results["checks"] = [dict(check, value=None) if check["passed"] is None else check for check in checks]
    for row in (*results["reconstruction"], *results["localization"]):
        row.update({key: None for key, value in row.items() if isinstance(value, float) and math.isnan(value)})
    page = report(tmp_path, results)
    (cost,) = [row for row in page.cells("checks") if row[0] == "pretrained/Mass: AUROC that the SAE costs"]
    assert cost[1:] == ["–", "at most 0.02", "not applicable"]
    *lines, count, advice = _verdict(results["checks"])
    said = [line.split()[0] for line in lines]
    assert (said.count("n/a"), said.count("MISSED"), said.count("ok")) == (7, 1, 8)
    assert count == "8 of 16 criteria hold, 7 could not be asked."
    assert "--seed 1" in advice
    assert _verdict([check for check in checks if check["passed"]])[8:] == ["8 of 8 criteria hold."]


def test_provenance_holds_hashes_versions_config_and_seed(tmp_path):
    results = synthetic_results()
    text = report(tmp_path, results).text["provenance"]
    assert results["provenance"]["dataset_fingerprint"] in text
    assert all(checkpoint["sha256"] in text for checkpoint in results["provenance"]["checkpoints"])
    assert all(version in text for version in results["provenance"]["packages"].values())
    assert "n_bootstrap: 1000" in text


def test_the_report_says_that_it_is_for_research_only(tmp_path):
    assert "not a medical device" in report(tmp_path, synthetic_results()).text["top"]


# The summary


def sweep_row(results, mode, k, **changes):
    for row in results["interventions"]:
        if (row["mode"], row["k"], row["error_term"]) == (mode, k, False):
            row.update(changes)


def test_summary_states_cost_restoring_group_and_best_latent():
    results = synthetic_results()
    text = " ".join(summary(results))
    assert "Four classifiers" in text
    assert "costs at most 0.021 of AUROC (pretrained, " in text
    assert "10 best latents per class restore at least 95 %" in text
    assert "2 of 4 classifiers" in text
    assert "highest average precision on annotated boxes is 0.316" in text and "at IoU 0.25" in text
    finding = next(f for f in findings(results) if (f.model, f.concept) == ("finetuned", "Mass"))
    assert finding.restoring is not None
    assert finding.restoring.k == 10
    assert finding.recovered_by_best.value == pytest.approx((finding.restoring.auroc.value - 0.5) / 0.413)


@pytest.mark.parametrize("precision", [0.0499, 0.01])
def test_summary_calls_no_latent_the_best_where_all_are_near_zero(precision):
    results = synthetic_results(baselines=True)
    for row in (*results["localization"], *results["baselines"]):
        row["average_precision"] = precision
    assert "No latent's map marks the annotated boxes to speak of" in " ".join(summary(results))
    assert all(sentence.startswith("Neither a latent nor") for sentence in baselines_summary(results))


@pytest.mark.parametrize(("high", "guessing"), [(0.45, False), (0.55, True)])
def test_summary_calls_a_classifier_below_one_half_inverted(high, guessing):
    results = synthetic_results()
    assert "inverted" not in " ".join(summary(results))
    row = next(row for row in results["reconstruction"] if row["variant"] == "without_sae")
    row.update(auroc=0.333, auroc_low=0.25, auroc_high=high)
    (warning,) = [sentence for sentence in summary(results) if "inverted" in sentence]
    assert warning.startswith("Warning: the classifier “") and f"is 0.333 [0.250, {high:.3f}]" in warning
    assert ("only guesses" in warning) is guessing


def test_summary_warns_of_an_sae_that_fires_far_from_as_it_was_trained():
    results = synthetic_results()
    results["sae"]["trained_l0"] = 8.0
    for row in results["sae_quality"]:
        row["l0"] = 8.5
    assert "Warning" not in " ".join(summary(results))
    results["sae_quality"][1]["l0"] = 54.0
    assert "“finetuned, Mass”, test split: L0 54.0, trained for 8.00)" in summary(results)[1]


def test_summary_warns_of_an_sae_that_does_poorly():
    results = synthetic_results()
    assert "Warning" not in " ".join(summary(results))
    results["sae_quality"][1].update(explained_variance=-0.2)
    warning = summary(results)[1]
    assert warning.startswith("Warning: the SAE does poorly on the features of 1 of 4 classifiers")
    assert "“finetuned, Mass”, test split: explained variance −0.200)" in warning
    assert "mean little there" in warning
    results["sae_quality"][1].update(explained_variance=0.9, dead_share=0.95, split="training")
    assert "“finetuned, Mass”, training split: 95 % of the latents never fire)" in summary(results)[1]


def test_summary_admits_when_random_groups_do_as_well():
    results = synthetic_results()
    assert "None of the random groups of equally many live latents reaches" in " ".join(summary(results))
    sweep_row(results, "activate", 10, random_auroc_high=0.99)
    text = " ".join(summary(results))
    assert "for “finetuned, Mass” and “finetuned, Suspicious calcification” at least one of them does as well" in text


def test_controls_are_stated_with_their_number_and_one_in_the_singular(tmp_path):
    results = synthetic_results()
    results["n_controls"] = 3
    text = " ".join(summary(results))
    assert "None of the 3 random groups of equally many live latents reaches" in text
    assert "(mean of 3 random groups)" in text
    results["n_controls"] = 1
    for row in results["interventions"]:
        row.update(random_auroc_low=row["random_auroc_mean"], random_auroc_high=row["random_auroc_mean"])
    page = report(tmp_path, results)
    text = page.text["summary"] + page.text["all"]
    assert "The one random group of equally many live latents beside each has an AUROC of" in text
    assert "one group is a weak control" in text
    assert "(one random group)" in text
    assert "Random group there" in page.cells("concepts")[0]
    assert not re.search("random groups|on average|none reaches", text, re.IGNORECASE)
    assert "There is one such group" in page.text["figure-2"]
    assert "range of random" not in page.text["figure-2"]
    assert {row[3] for row in page.cells("figure-2")[1:] if len(row) > 4} >= {"best latents", "one random group"}
    assert "random, mean" not in page.text["figure-2"]
    sweep_row(results, "activate", 10, random_auroc_high=0.99)
    assert "it does as well as the chosen one, so the choice of latents" in " ".join(summary(results))


def test_summary_admits_when_switching_off_random_latents_hurts_as_much():
    results = synthetic_results()
    sweep_row(results, "deactivate", 10, random_auroc_mean=0.4)
    assert "the chosen latents matter no more than others" in " ".join(summary(results))


def test_summary_admits_when_no_group_restores_the_model():
    results = synthetic_results()
    for row in results["interventions"]:
        row["auroc"] = 0.5
    assert "No group of latents in the sweep restores" in " ".join(summary(results))


def test_summary_names_the_sae_as_the_reason_only_where_all_its_latents_restore_too_little():
    results = synthetic_results()
    text = " ".join(summary(results))
    assert (
        "The SAE itself is the reason for “pretrained, Mass” and “pretrained, Suspicious calcification”: "
        "even with all its latents the AUROC is 0.766 to 0.821"
    ) in text
    for row in results["interventions"]:
        row["auroc"] = 0.5
    for row in results["reconstruction"]:
        if row["variant"] == "with_sae":
            row["auroc"] = 0.51 if (row["model"], row["concept"]) == ("finetuned", "Mass") else 0.97
    text = " ".join(summary(results))
    assert "No group of latents in the sweep restores" in text
    assert "The SAE itself is the reason for “finetuned, Mass”: even with all its latents the AUROC is 0.510," in text


def test_summary_tells_latents_that_miss_every_box_from_boxes_that_are_not_there():
    results = synthetic_results()
    for row in results["localization"]:
        row["average_precision"] = 0.0
    assert "No latent's map marks the annotated boxes: every average precision is 0." in summary(results)
    for row in results["localization"]:
        row["average_precision"] = None
    without_boxes = summary(results)[-1]
    assert "no annotated boxes were there" in without_boxes
    results["localization"] = []
    assert summary(results)[-1] == without_boxes


def test_summary_speaks_of_one_latent_in_the_singular():
    results = synthetic_results()
    for row in results["interventions"]:
        row["auroc"] = 0.97
    assert "the best latent of each class restores at least 95 %" in " ".join(summary(results))


def test_summary_does_not_speak_of_restoring_a_model_at_chance():
    results = synthetic_results()
    for row in results["reconstruction"]:
        if row["variant"] == "without_sae":
            row["auroc"] = 0.49
    assert "nothing to restore" in " ".join(summary(results))


def test_summary_says_when_the_sae_costs_nothing():
    results = synthetic_results()
    for row in results["reconstruction"]:
        if row["variant"] == "difference":
            row["auroc"] = 0.001
    assert "does not lower the AUROC of any of them" in " ".join(summary(results))


def test_error_term_rows_do_not_enter_the_summary():
    results = synthetic_results()
    before = summary(results)
    for row in results["interventions"]:
        if row["error_term"]:
            row["auroc"] = 1.0
    assert summary(results) == before


def test_the_packages_paper_results_are_the_fixtures_facts():
    from pathlib import Path

    fixture = json.loads((Path(__file__).parent / "data" / "paper_results.json").read_text())
    assert paper_results() == fixture
    assert not any(math.isnan(v) for row in fixture["table_1_classification"].values() for v in row.values())


def test_the_surest_names_have_a_section_and_stand_beside_every_latent_that_is_shown(tmp_path):
    results = synthetic_results()
    row = {"method": "labels", "score": 0.95, "low": 0.8, "high": 0.99, "chance": 0.25, "n": 20, "reason": "",
           "check_auroc": 0.8, "check_low": 0.7, "check_high": 0.9}  # fmt: skip
    model, latents = results["rankings"][-1]["model"], results["rankings"][-1]["latents"]
    named = [
        {**row, "encoder": model, "latent": latent, "name": f"name {n}", "q": 0.001 * (n + 1)}
        for n, latent in enumerate(latents[:11])
    ]
    none = {**row, "encoder": model, "latent": 1, "name": "", "q": 0.4, "reason": "nothing stands out; nearest is Mass"}
    pages = render_pages({**results, "names": [*named, none, {**none, "latent": 2}]}, tmp_path)
    page = Page(pages[f"concepts/{results['rankings'][-1]['concept']}.html"])
    told = " ".join(page.text["names"].split())
    assert (
        f"{model}, by labels: 11 of 13 latents have a name. Why the others have none: nothing stands out (2)." in told
    )
    assert "detection" not in told.lower() and "other methods" not in told
    table = page.cells("names")
    assert len(table) == 11 and table[0][:4] == ["Encoder", "Latent", "Name", "Method"]
    number = str(latents[9])
    assert table[10] == [model, number, "name 9", "labels", "0.950 [0.800, 0.990]", "0.250", "0.010", "20",
                         "0.800 [0.700, 0.900]"]  # fmt: skip
    assert any("name 0 labels 0.95, chance 0.25" in cell for cells in page.cells("rankings") for cell in cells)
    for bare in (results, {**results, "names": []}):
        assert "names" not in Page(whole_report(bare, tmp_path)).text
    assert "No latent has a name." in Page(whole_report({**results, "names": [none]}, tmp_path)).text["names"]


def test_interventions_on_a_sample_of_patients_are_told_with_their_number_and_held_against_the_same_patients(tmp_path):
    results = synthetic_results()
    results["config"].setdefault("analysis", {})["inner_patients"] = 20
    assert run_patients(results) is None  # at a final map all are looked at
    for model in results["models"]:
        model["readout"] = "network"
    for row in results["interventions"]:
        row |= {"n_rows": 80, "n_positive": 19, "n_patients": 20}
    (model, concept), *_ = pairs(results)
    sweep_row(results, "activate", 10, auroc=0.7)
    (untouched,) = [
        row
        for row in results["interventions"]
        if row["error_term"]
        and (row["model"], row["concept"], row["mode"], row["k"]) == (model, concept, "deactivate", 0)
    ]
    untouched["auroc"] = 0.72
    assert findings(results)[0].recovered_by_best.value == pytest.approx(0.2 / 0.22)
    page = report(tmp_path, results)
    said = "on the images of 20 of the 60 test patients"
    assert said in page.text["summary"]
    assert said in page.text["all"]
    assert "n = 80 test images of 20 patients that were drawn, 19 with" in page.text["figure-2"]
    assert "240 test images" not in page.text["figure-2"]
    untouched["error_term"] = False  # nothing tells what the unmodified model does on these patients
    assert math.isnan(findings(results)[0].recovered_by_best.value)
