"""Lesions found, from the study's settings to its results, findings, figure, report and command."""

import math
import shutil

import pytest
from helpers_results import whole_report
from helpers_study import layered_settings
from PIL import Image

from mammosae_plugin.config import StudyConfig
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json
from mammosae_plugin.findings import Findings
from mammosae_plugin.findings.layers import read_layers
from mammosae_plugin.findings.study_folder import StudyFolder
from mammosae_plugin.findings.tables import findings_tables
from mammosae_plugin.schema.findings import COLUMNS, SCHEMAS, names_of, parquet_path
from mammosae_plugin.schema.names import froc_name
from mammosae_plugin.visualization.lesions import best_of, plot_froc, table_lesions


@pytest.fixture(scope="module")
def study(finished_study):
    return StudyFolder(finished_study.output)


@pytest.fixture(scope="module")
def rows(study):
    return {layer.name: layer.results["lesions"] for layer in study.layers}


def test_a_study_looks_for_lesions_at_every_layer_in_all_test_images(study, rows, finished_study):
    n_test = len(finished_study.split("test"))
    for layer in study.layers:
        for concept in ("Mass", "Suspicious_Calcification"):
            own = [row for row in rows[layer.name] if row["concept"] == concept]
            methods = [row["method"] for row in own]
            # A group needs a layer that the classifier reads by its mean.
            assert methods == ["latent"] * 3 + ["channel"] * 3 + ["group"] * (layer.name == study.layers[-1].name)
            ranked = next(
                row["latents"] for row in layer.results["rankings"] if (row["concept"], row["class"]) == (concept, 1)
            )
            assert [row["latent"] for row in own][:3] == ranked[:3]
            assert all(row["n_images"] + row["n_unlocated"] == n_test for row in own)
            assert all(0 <= row["all_cpm"] <= 1 and len(row["all_sensitivity"]) == len(row["fppi"]) == 6 for row in own)
            table_2 = {row["latent"]: row["average_precision"] for row in reversed(layer.results["localization"])
                       if row["concept"] == concept}  # fmt: skip
            for row in own[:3]:
                assert row["average_precision"] == pytest.approx(table_2[row["latent"]])


def test_findings_hold_them_with_nothing_of_few_patients(study, rows):
    everything, told = (findings_tables(study, min_group=n)["lesions"].to_pylist() for n in (1, 50))
    assert len(everything) == sum(map(len, rows.values()))
    assert everything[0]["all_cpm"] == rows[everything[0]["layer"]][0]["all_cpm"]
    secret = {"n_patients", "n_lesion_patients", "energy_n_images"}
    assert not secret & set(SCHEMAS["lesions"].names) and secret <= set(rows[everything[0]["layer"]][0])
    hidden = names_of("lesions", "count", "group")
    assert {
        "all_sensitivity",
        "all_cpm_chance",
        "healthy_cpm_chance",
        "breast_cpm_chance",
        "n_lesions",
        "gain_low",
        "p",
    } <= set(hidden)
    assert all(row[name] is None for row in told for name in hidden)
    assert all(column.privacy != "secret" for column in COLUMNS["lesions"])
    found = Findings.of_study(study.folder, min_group=1)
    assert found.lesions is not None and found.lesions["method"].isin(["latent", "channel", "group"]).all()


def test_findings_of_before_are_read(study, tmp_path):
    shutil.copytree(study.folder / "results" / "findings", tmp_path / "findings")
    (tmp_path / "findings" / "lesions.parquet").unlink()
    found = read_layers(tmp_path / "findings")
    assert all("lesions" not in results for results in found.values())
    import pyarrow.parquet as pq

    for config, table in findings_tables(study).items():
        if config != "lesions":
            (tmp_path / "published" / config).mkdir(parents=True)
            pq.write_table(table, tmp_path / "published" / parquet_path(config))
    assert Findings.load(tmp_path / "published").lesions is None


def test_the_report_has_a_section_and_the_command_a_table(study, finished_study, tmp_path):
    results = study.layer().results
    for concept in ("Mass", "Suspicious_Calcification"):
        Image.new("RGB", (6, 4)).save(tmp_path / froc_name(concept))
    page = whole_report(results, tmp_path)
    assert 'id="lesions"' in page and "Lesions found, on all test images" in page
    first = results["lesions"][0]
    assert f"{first['n_lesions']} lesions in {first['n_lesion_images']} images" in page
    assert "it finds" in page and "Their sum, weighted by what each adds to the logit" in page
    without = {name: value for name, value in results.items() if name != "lesions"}
    assert 'id="lesions"' not in whole_report(without, tmp_path)
    printed = finished_study.summary("localize")
    assert printed.count("lesions found, on all test images:") == len(study.layers)
    assert "all_cpm_chance" in printed


def test_the_table_and_the_figure_show_the_best_of_channels_and_all_latents(study):
    results = study.layer().results
    table = table_lesions(results)
    own = table[table["concept"] == "Mass"]
    assert own["map"].tolist() == ["latent"] * 3 + ["best raw channel", "sum of 3 latents"]
    rows = [row for row in results["lesions"] if row["concept"] == "Mass"]
    figure = plot_froc(rows, models=["pretrained"], title="Mass")
    (axes,) = figure.axes
    best = best_of(rows, "latent")
    assert f"latent {best['latent']}" in axes.get_title(loc="left")
    drawn = {line.get_label(): line.get_ydata().tolist() for line in axes.get_lines()}
    assert drawn["latent of the highest CPM of 3 (95 % interval)"] == pytest.approx(best["all_sensitivity"])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1/8", "1/4", "1/2", "1", "2", "4"]
    assert best_of([{"method": "latent", "all_cpm": None, "rank": 1}], "latent") is None
    assert math.isnan(table["gain over its best"].iloc[0].value)


@pytest.mark.parametrize(
    ("lesions", "message"),
    [
        ({"fppi": [1, 0.5]}, "fppi rises"),
        ({"fppi": []}, "fppi"),
        ({"peaks": 0}, "peaks"),
        ({"group": 1}, "group"),
        ({"n_null": 3}, "n_null"),
    ],
)
def test_settings_are_checked(tmp_path, phantom_root, lesions, message):
    settings = layered_settings(tmp_path, phantom_root)
    settings["analysis"]["lesions"] = lesions
    with pytest.raises((InputError, ValueError), match=message):
        StudyConfig.model_validate(settings)


def test_tables_are_made_anew_for_other_peaks_and_as_before_without(finished_study):
    layer = finished_study.layers[-1]
    table = layer.tables[finished_study.pairs[0]]
    plan = read_json(table.folder.with_name(f"{table.folder.name}.plan.json"))
    assert plan["peaks"] == {"version": 1, "peaks": 5, "top": None, "group": None}
    assert set(table.map_groups()) == {"Mass", "Suspicious_Calcification"}
    head = finished_study.encoder_groups[0].named_heads["Mass"].weight.detach().double()
    for latent, weight in table.map_groups()["Mass"].items():
        assert weight == pytest.approx(float(layer.sae.W_dec[latent].detach().double() @ head[0]), rel=1e-6)
