import csv
import math
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from helpers_results import (
    KS,
    MODELS,
    named_latent,
    synthetic_class_means,
    synthetic_panels,
    synthetic_results,
)
from matplotlib.colors import same_color
from matplotlib.patches import Rectangle
from PIL import Image

from mammosae_plugin.errors import InputError
from mammosae_plugin.schema.names import file_part
from mammosae_plugin.schema.results import frame, recovered, stated_role
from mammosae_plugin.visualization import (
    Estimate,
    figure_2_name,
    figure_3_name,
    figure_4_name,
    may_show_images,
    plot_class_means,
    plot_heatmaps,
    plot_hits,
    plot_k_sweep,
    plot_layers,
    plot_score_decay,
    plot_sweep,
    plot_sweeps,
    save_figure,
    table_1,
    table_2,
    table_interventions,
    table_layers,
    table_rankings,
    table_roles,
    write_figures,
    write_table,
    write_tables,
)
from mammosae_plugin.visualization.style import RANDOM, TRUTH_BOX
from mammosae_plugin.visualization.tables import leader, to_csv, to_latex, to_markdown


def sweep_rows(model: str = "finetuned", concept: str = "Mass") -> pd.DataFrame:
    return frame(synthetic_results()["interventions"], model=model, concept=concept, error_term=False)


def lines_by_label(axes):
    return {line.get_label(): line for line in axes.get_lines()}


# Figure 2


def test_sweep_has_a_panel_per_mode_with_curve_random_mean_and_unmodified_model():
    rows = sweep_rows()
    figure = plot_sweep(rows, title="Mass", reference_auroc=0.913)
    panels = figure.get_axes()
    assert [axes.get_title(loc="left").split(":")[0] for axes in panels] == ["Activate", "Deactivate"]
    for axes, mode in zip(panels, ("activate", "deactivate"), strict=True):
        lines = lines_by_label(axes)
        curve = lines[f"k best latents per class, {mode}d (95 % interval)"]
        expected = rows[rows["mode"] == mode].sort_values("k")
        np.testing.assert_allclose(curve.get_xdata(), expected["k"])
        np.testing.assert_allclose(curve.get_ydata(), expected["auroc"])
        assert lines["unmodified model"].get_ydata()[0] == 0.913
        assert lines["unmodified model"].is_dashed()
        assert "per class" in axes.get_xlabel()
    assert panels[0].get_ylabel() == "AUROC"


def test_grey_band_reaches_from_the_smallest_to_the_largest_random_group():
    rows = sweep_rows()
    axes = plot_sweep(rows, title="Mass", reference_auroc=None).get_axes()[0]
    band = next(c for c in axes.collections if same_color(c.get_facecolor()[0][:3], RANDOM))
    drawn = {tuple(np.round(vertex, 9)) for vertex in band.get_paths()[0].vertices}
    for row in rows[rows["mode"] == "activate"].itertuples():
        assert (row.k, round(row.random_auroc_low, 9)) in drawn
        assert (row.k, round(row.random_auroc_high, 9)) in drawn


def test_the_legend_claims_a_mean_and_a_range_of_several_random_groups_only():
    def labels(n_controls):
        rows = sweep_rows().assign(model="finetuned")
        figure = plot_sweeps(rows, models=["finetuned"], title="Mass", n_controls=n_controls)
        return [text.get_text() for text in figure.legends[0].get_texts() if text.get_text().startswith("random")]

    assert [label.rpartition("(")[2] for label in labels(3)] == ["mean, range)", "mean)"]
    assert [label.rpartition("(")[2] for label in labels(1)] == ["one group)", "one group)"]


def test_sweep_without_reference_has_no_unmodified_line():
    axes = plot_sweep(sweep_rows(), title="Mass", reference_auroc=None).get_axes()[0]
    assert "unmodified model" not in lines_by_label(axes)


def test_k_zero_has_its_own_tick_at_an_equal_step_from_one():
    axes = plot_sweep(sweep_rows(), title="Mass", reference_auroc=0.9).get_axes()[0]
    axes.figure.draw_without_rendering()
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["0", "1", "10", "100", "512"]
    pixels = axes.transData.transform([(k, 0.5) for k in KS])[:, 0]
    assert np.all(np.diff(pixels) > 5)


def test_sweeps_show_models_as_columns_and_modes_as_rows_on_one_scale():
    rows = frame(synthetic_results()["interventions"], concept="Mass", error_term=False)
    figure = plot_sweeps(rows, models=list(MODELS), title="Mass", reference_aurocs={"finetuned": 0.913})
    panels = figure.get_axes()
    assert [axes.get_title(loc="left").split(":")[0] for axes in panels] == [*MODELS, *MODELS]
    assert len({axes.get_ylim() for axes in panels}) == 1
    assert "unmodified model" in lines_by_label(panels[1])
    assert "unmodified model" not in lines_by_label(panels[0])
    low, high = panels[0].get_ylim()
    assert low < rows[["auroc_low", "random_auroc_low"]].min().min()
    assert high > rows[["auroc_high", "random_auroc_high"]].max().max()


# Figure 3


def heatmap_arguments(**changes):
    panels = synthetic_panels(synthetic_results(), n_images=2, n_latents=4)[0]
    arguments = {
        "images": panels.images,
        "heatmaps": panels.heatmaps,
        "boxes": panels.boxes,
        "latents": panels.latents,
        "activations": panels.activations,
        "titles": panels.titles,
        "title": "finetuned, Mass",
    }
    return arguments | changes


def image_axes(figure):
    return [axes for axes in figure.get_axes() if axes.images]


def test_heatmaps_have_a_row_per_image_and_a_column_per_latent_after_the_plain_image():
    arguments = heatmap_arguments()
    panels = image_axes(plot_heatmaps(**arguments))
    assert len(panels) == 2 * (1 + 4)
    assert [axes.get_title() for axes in panels[:5]] == ["image", "rank 1", "rank 2", "rank 3", "rank 4"]
    assert [len(panels[0].images), len(panels[1].images)] == [1, 2]
    for row in range(2):
        for column, latent in enumerate(arguments["latents"]):
            words = panels[row * 5 + 1 + column].get_xlabel()
            mean = arguments["activations"][row, column]
            assert words.startswith(f"latent {latent}\nmean ")
            assert float(words.split("mean ")[1]) == pytest.approx(mean, rel=5e-3)


def test_annotated_boxes_are_red_on_every_panel_and_in_image_pixels():
    arguments = heatmap_arguments(boxes=[np.array([[10, 20, 50, 80], [100, 110, 120, 140]]), np.zeros((0, 4))])
    panels = image_axes(plot_heatmaps(**arguments))
    for position, axes in enumerate(panels):
        red = [p for p in axes.patches if isinstance(p, Rectangle) and same_color(p.get_edgecolor(), TRUTH_BOX)]
        assert len(red) == (2 if position < 5 else 0)
    first = panels[0].patches[0]
    assert (first.get_x(), first.get_y(), first.get_width(), first.get_height()) == (10, 20, 40, 60)


def test_predicted_boxes_are_those_of_localization_and_can_be_left_out():
    from mammosae_plugin.analysis.localization import heatmap, heatmap_boxes

    arguments = heatmap_arguments()
    expected, _ = heatmap_boxes(heatmap(arguments["heatmaps"][0, 0], arguments["images"][0].shape), percentile=95.0)
    axes = image_axes(plot_heatmaps(**arguments))[1]
    dashed = [p for p in axes.patches if not same_color(p.get_edgecolor(), TRUTH_BOX)]
    drawn = [(p.get_x(), p.get_y(), p.get_x() + p.get_width(), p.get_y() + p.get_height()) for p in dashed]
    np.testing.assert_allclose(drawn, expected)
    without = image_axes(plot_heatmaps(**heatmap_arguments(percentile=None)))[1]
    assert all(same_color(p.get_edgecolor(), TRUTH_BOX) for p in without.patches)


def test_overlay_is_clear_where_the_latent_is_silent_and_strongest_at_its_peak():
    maps = np.zeros((1, 1, 8, 4), dtype=np.float32)
    maps[0, 0, 2, 1] = 5.0
    image = np.full((256, 128), 90, dtype=np.uint8)
    figure = plot_heatmaps([image], maps, [np.zeros((0, 4))], [7], np.array([[5 / 32]]), titles=["a"], title="t")
    overlay = np.asarray(image_axes(figure)[1].images[1].get_array())
    alpha = overlay[..., 3]
    assert alpha[-1, -1] == 0
    assert 0 < alpha.max() < 255  # tissue shows even under the peak
    y, x = np.unravel_index(alpha.argmax(), alpha.shape)
    assert abs(y / alpha.shape[0] - 2.5 / 8) < 0.05
    assert abs(x / alpha.shape[1] - 1.5 / 4) < 0.05


def test_a_map_of_zeros_says_that_the_latent_does_not_fire():
    arguments = heatmap_arguments()
    panels = image_axes(plot_heatmaps(**arguments))
    silent = [any("does not fire" in text.get_text() for text in axes.texts) for axes in panels]
    zero = ~arguments["heatmaps"].any(axis=(2, 3))
    expected = [column > 0 and bool(zero[row, column - 1]) for row in range(2) for column in range(5)]
    assert silent == expected
    assert sum(silent) == 2


@pytest.mark.parametrize(("scale", "words"), [("latent", "scale per column"), ("common", "one scale for all")])
def test_the_colour_scale_is_stated_and_used(scale, words):
    arguments = heatmap_arguments()
    arguments["heatmaps"] = arguments["heatmaps"] * np.array([1, 0.5, 0.25, 0.125])[None, :, None, None]
    figure = plot_heatmaps(**arguments, scale=scale)
    assert any(words in text.get_text() for text in figure.texts)
    peaks = [np.asarray(axes.images[1].get_array())[..., 3].max() for axes in image_axes(figure)[1:4]]
    if scale == "latent":
        assert min(peaks) > 0.9 * max(peaks)
    else:
        assert peaks[0] > 1.3 * peaks[1] > 1.3 * peaks[2]


@pytest.mark.parametrize(
    "changes",
    [
        {"latents": [1, 2]},
        {"titles": ["only one"]},
        {"boxes": []},
        {"images": [np.zeros((380, 228), np.uint8), np.zeros((10, 10), np.uint8)]},
        {"images": [np.zeros((380, 228)), np.zeros((380, 228))]},
        {"activations": np.zeros((2, 3))},
    ],
)
def test_heatmaps_that_do_not_fit_together_are_refused_in_one_line(changes):
    with pytest.raises(InputError) as caught:
        plot_heatmaps(**heatmap_arguments(**changes))
    assert "\n" not in str(caught.value)


# Figures 4 and 5


def class_means(seed=0, n=300):
    rng = np.random.default_rng(seed)
    mean_0 = rng.lognormal(-5, 1.5, n)
    return mean_0, mean_0 * rng.lognormal(0, 0.3, n), np.arange(1000, 1000 + n)


def test_class_means_show_every_live_latent_and_label_the_named_ones():
    mean_0, mean_1, latents = class_means()
    named = [(1003, "concept", 0.8), (1100, "background", 0.5), (1200, "concept", 0.75), (1250, "unclear", 0.6)]
    figure = plot_class_means(mean_0, mean_1, latents, named, title="t", class_names=("without it", "with it"))
    axes = figure.get_axes()[0]
    points = [collection for collection in axes.collections if not collection.get_label().startswith("_")]
    offsets = {collection.get_label().split()[0]: np.asarray(collection.get_offsets()) for collection in points}
    np.testing.assert_allclose(offsets["background"], [[mean_0[100], mean_1[100]]])
    np.testing.assert_allclose(offsets["concept"], [[mean_0[3], mean_1[3]], [mean_0[200], mean_1[200]]])
    np.testing.assert_allclose(offsets["leading"], [[mean_0[250], mean_1[250]]])
    assert len(offsets["other"]) == 296
    names = {text.get_text() for text in axes.texts}
    assert {"1003 (0.80)", "1100 (0.50)", "1200 (0.75)", "1250"} <= names  # no role without its number
    assert axes.get_xlabel().endswith("without it")
    assert axes.get_ylabel().endswith("with it")


def test_labels_of_crowded_latents_do_not_overlap():
    mean_0, mean_1, latents = class_means()
    mean_0[:12] = np.linspace(0.5, 0.6, 12)
    mean_1[:12] = np.linspace(0.55, 0.65, 12)
    figure = plot_class_means(mean_0, mean_1, latents, [(1000 + i, "unclear", 0.6) for i in range(12)], title="t")
    figure.draw_without_rendering()
    axes = figure.get_axes()[0]
    # An annotation's extent covers its leader line too: compare the words alone.
    boxes = [matplotlib.text.Text.get_window_extent(t) for t in axes.texts if t.get_text().isdigit()]
    assert len(boxes) == 12
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    frame_box = axes.get_window_extent()
    assert all(frame_box.x0 <= b.x0 and b.x1 <= frame_box.x1 and b.y1 <= frame_box.y1 for b in boxes)


def test_labels_lie_over_no_other_points():
    rng = np.random.default_rng(0)
    mean_0 = 10 ** rng.uniform(-3, 0, 1500)
    mean_1 = mean_0 * 10 ** rng.normal(0, 0.05, 1500)
    latents = np.arange(1500)
    named = [(int(latent), "unclear", 0.6) for latent in np.argsort(mean_1)[700:708]]
    figure = plot_class_means(mean_0, mean_1, latents, named, title="t")
    figure.draw_without_rendering()
    axes = figure.get_axes()[0]
    points = axes.transData.transform(np.column_stack([mean_0, mean_1]))
    boxes = [matplotlib.text.Text.get_window_extent(t) for t in axes.texts if t.get_text().isdigit()]
    assert len(boxes) == 8
    assert sum(int(box.count_contains(points)) for box in boxes) == 0


@pytest.mark.parametrize("height", [0.0085, 0.02, 0.05])
def test_no_label_and_no_mark_lies_over_the_notes_in_a_class_means_figure(height):
    mean_0 = np.array([1e-4, height, 0.018, 0.08, *np.geomspace(0.003, 0.09, 40)])
    names = ("images without suspicious calcification", "images with suspicious calcification")
    named = [(latent, "unclear", 0.6) for latent in range(1, 4)]
    figure = plot_class_means(mean_0, 1.03 * mean_0, np.arange(44), named, title="t", class_names=names)
    figure.draw_without_rendering()
    axes = figure.get_axes()[0]
    labels, notes = (
        [matplotlib.text.Text.get_window_extent(text) for text in axes.texts if text.get_text().isdigit() == number]
        for number in (True, False)
    )
    assert len(labels) == 3 and len(notes) == 2
    assert not any(label.overlaps(note) for label in labels for note in notes)
    points = axes.transData.transform(np.column_stack([mean_0, 1.03 * mean_0]))
    assert not any(note.padded(3).count_contains(points) for note in notes)


def test_a_latent_that_fires_in_one_class_only_is_inside_the_axes():
    mean_0, mean_1, latents = class_means()
    mean_0[5] = 0.0
    axes = plot_class_means(mean_0, mean_1, latents, [], title="t").get_axes()[0]
    assert axes.get_xlim()[0] < 0 < axes.get_xlim()[1]
    assert max(mean_0.max(), mean_1.max()) < axes.get_ylim()[1]
    assert axes.get_xlim() == axes.get_ylim()


def test_a_named_latent_that_is_not_live_is_refused():
    with pytest.raises(InputError, match="7"):
        plot_class_means(*class_means(), [(7, "concept", 0.8)], title="t")


# Saving


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_the_same_figure_has_the_same_bytes(tmp_path, ending):
    for name in ("a", "b"):
        save_figure(plot_sweep(sweep_rows(), title="t", reference_auroc=0.9), tmp_path / f"{name}.{ending}", dpi=50)
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a.{ending}", f"b.{ending}"]


def test_png_holds_no_software_name_or_date(tmp_path):
    save_figure(plot_sweep(sweep_rows(), title="t", reference_auroc=0.9), tmp_path / "a.png", dpi=50)
    assert set(Image.open(tmp_path / "a.png").info) <= {"dpi"}


def test_an_unknown_file_ending_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"\.bmp"):
        save_figure(plot_sweep(sweep_rows(), title="t", reference_auroc=0.9), tmp_path / "a.bmp")


def test_drawing_leaves_the_callers_matplotlib_settings_alone_and_ignores_them(tmp_path):
    with matplotlib.rc_context({"font.size": 31, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        save_figure(plot_sweep(sweep_rows(), title="t", reference_auroc=0.9), tmp_path / "theirs.png", dpi=50)
        assert dict(matplotlib.rcParams) == before
    save_figure(plot_sweep(sweep_rows(), title="t", reference_auroc=0.9), tmp_path / "ours.png", dpi=50)
    assert (tmp_path / "theirs.png").read_bytes() == (tmp_path / "ours.png").read_bytes()


# Tables


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (Estimate(0.9514, 0.94, 0.9619), "0.951 [0.940, 0.962]"),
        (Estimate(0.5), "0.500"),
        (Estimate(math.nan, 0.1, 0.2), "– [0.100, 0.200]"),
        (Estimate(math.nan), "–"),
        (Estimate(-0.0213, -0.03, 0.004, signed=True), "−0.021 [−0.030, +0.004]"),
        (Estimate(-0.0001, signed=True), "0.000"),
        (Estimate(0.99993, 0.99957, 1.0), "1.000 [0.9996, 1.0000]"),
        (Estimate(0.0, -0.00001, 0.00002, signed=True), "0.000 [−0.00001, +0.00002]"),
        (Estimate(1.0, 1.0, 1.0), "1.000 [1.000, 1.000]"),
    ],
)
def test_an_estimate_prints_to_three_digits_with_its_interval(cell, text):
    assert str(cell) == text


def test_csv_keeps_all_digits_and_the_intervals_in_columns_of_their_own():
    table = pd.DataFrame({"model": ["a,b", "c"], "auroc": [Estimate(0.123456789, 0.1, 0.2), Estimate(math.nan)]})
    rows = list(csv.reader(to_csv(table).splitlines()))
    assert rows == [
        ["model", "auroc", "auroc_low", "auroc_high"],
        ["a,b", "0.123456789", "0.1", "0.2"],
        ["c", "", "", ""],
    ]


def test_markdown_aligns_numbers_right_and_escapes_bars():
    table = pd.DataFrame({"model": ["a|b"], "k": [10], "auroc": [Estimate(0.5, best=True)]})
    assert to_markdown(table, "Caption.") == (
        "Caption.\n\n| Model | k | AUROC |\n| :--- | ---: | ---: |\n| a\\|b | 10 | **0.500** |\n"
    )


def test_latex_escapes_what_it_would_interpret_and_uses_booktabs():
    table = pd.DataFrame({"model": ["50 % & $x_1$ #~^\\{}"], "auroc": [Estimate(-0.25, best=True)], "f1": [math.nan]})
    text = to_latex(table, "A_b", "table_1")
    body = r"50 \% \& \$x\_1\$ \#\textasciitilde{}\textasciicircum{}\textbackslash{}\{\}"
    assert rf"{body} & \textbf{{$-$0.250}} & -- \\" in text
    assert r"\caption{A\_b}" in text
    assert r"\begin{tabular}{lrr}" in text
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert "resizebox" not in text


def test_a_latex_table_wider_than_a_page_is_scaled_to_it():
    text = to_latex(table_1(synthetic_results()), "Table 1", "table_1")
    assert r"\usepackage{graphicx}" in text
    assert text.index(r"\resizebox{\textwidth}{!}{%") < text.index(r"\begin{tabular}")
    assert "\\end{tabular}}\n" in text
    assert text.count("{") == text.count("}")


def test_table_1_has_three_rows_per_model_with_the_numbers_of_the_results():
    results = synthetic_results()
    table = table_1(results)
    assert list(table["variant"]) == ["without SAE", "with SAE", "difference"] * 4
    for row, source in zip(table.itertuples(), results["reconstruction"], strict=True):
        assert row.auroc.value == source["auroc"]
        assert (row.recall.low, row.recall.high) == (source["recall_low"], source["recall_high"])
    assert str(table.iloc[2]["auroc"]).startswith("−0.021 [")


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([(0.8, 0.7, 0.9), (0.6, 0.5, 0.65)], 0),
        ([(0.5, 0.4, 0.6), (0.8, 0.59, 0.9)], None),  # the intervals overlap
        ([(0.8, 0.7, 0.9), (0.6, 0.5, 0.65), (0.75, 0.72, 0.78)], None),
        ([(0.8, math.nan, math.nan), (0.1, 0.0, 0.2)], None),  # no interval
        ([(0.04, 0.03, 0.045), (0.01, 0.0, 0.02)], None),  # near zero
        ([(0.8, 0.7, 0.9)], None),  # nothing beside it
        ([(0.8, 0.7, 0.9), (math.nan, math.nan, math.nan)], None),
        ([(0.8, 0.8, 0.8), (0.8, 0.8, 0.8)], None),  # a tie
        ([], None),
    ],
)
def test_a_value_leads_only_above_zero_and_with_its_interval_above_all_others(values, best):
    assert leader([Estimate(*value) for value in values], at_least=0.05) == best


def test_table_2_has_a_row_per_model_and_marks_a_rank_only_by_its_interval():
    results = synthetic_results()
    unmarked = table_2(results)
    assert not any(cell.best for name in unmarked if name.startswith("rank_") for cell in unmarked[name])
    ends = ("average_precision_low", "average_precision_high")
    for row in results["localization"]:
        precision = row["average_precision"]
        row.update(zip(ends, (0.8 * precision, 1.2 * precision), strict=True))
    results["localization"][3].update(dict.fromkeys(("average_precision", *ends)))
    table = table_2(results)
    assert len(table) == 4
    assert [column for column in table if column.startswith("rank_")] == [f"rank_{r}" for r in range(1, 11)]
    finetuned = table[(table["model"] == "finetuned") & (table["concept"] == "Mass")].iloc[0]
    assert [rank for rank in range(1, 11) if finetuned[f"rank_{rank}"].best] == [2]
    assert finetuned["best_number"] == next(
        r["latent"]
        for r in results["localization"]
        if (r["model"], r["concept"], r["rank"]) == ("finetuned", "Mass", 2)
    )
    assert str(table.iloc[0]["rank_4"]) == "–"


def test_the_best_latent_stays_a_whole_number_beside_a_row_without_one():
    results = synthetic_results()
    for row in results["localization"][:10]:
        row["average_precision"] = 0.0
    results["localization"][15]["average_precision"] = results["localization"][25]["average_precision"] = 0.3
    latents = [line.rsplit(",", 1)[1] for line in to_csv(table_2(results)).splitlines()[1:]]
    assert latents[0] == ""
    assert all(latent.isdigit() for latent in latents[1:])


def test_table_2_marks_nothing_when_no_latent_localizes():
    results = synthetic_results()
    for row in results["localization"]:
        row["average_precision"] = 0.0
    table = table_2(results)
    assert not any(cell.best for column in table if column.startswith("rank_") for cell in table[column])
    assert table["best_number"].isna().all()


def test_table_2_sets_baselines_beside_the_latents():
    results = synthetic_results(baselines=True)
    table = table_2(results)
    own = table[(table["model"] == "pretrained") & (table["concept"] == "Mass")]
    assert list(own["method"]) == ["latent", "raw channel", "Grad-CAM"]
    best = [(row.method, rank) for row in own.itertuples() for rank in range(1, 11)
            if getattr(row, f"rank_{rank}") is not None and getattr(row, f"rank_{rank}").best]  # fmt: skip
    assert best == []  # none of them has an interval
    assert list(own["best_number"])[1:] == [110, None]


def test_the_table_of_layers_marks_the_best_layer_of_each_classifier():
    table = table_layers(synthetic_results(layers=("early", "middle", "late")))
    own = table[(table["model"] == "finetuned") & (table["concept"] == "Mass")]
    assert list(own["layer"]) == ["early", "middle", "late"]
    assert [cell.best for cell in own["single_latent_auroc"]] == [False, False, True]
    assert not any(cell.best for name in ("best_latent_ap", "best_channel_ap", "gradcam_ap") for cell in own[name])
    assert list(own["grid"]) == ["96 × 60", "48 × 30", "24 × 15"]
    assert "single_latent_auroc,single_latent_auroc_low,single_latent_auroc_high" in to_csv(table).splitlines()[0]


def test_layers_are_drawn_as_a_line_per_model_and_concept_over_the_layers_in_order():
    results = synthetic_results(layers=("early", "middle", "late"))
    separation, localization = plot_layers(frame(results["layers"]), title="Layers").get_axes()
    assert [label.get_text() for label in separation.get_xticklabels()] == ["early", "middle", "late"]
    line = {line.get_label(): line for line in localization.get_lines()}["finetuned, Suspicious calcification"]
    own = [r for r in results["layers"] if (r["model"], r["concept"]) == ("finetuned", "Suspicious_Calcification")]
    np.testing.assert_allclose(line.get_ydata(), [row["best_latent_ap"] for row in own])
    np.testing.assert_allclose(line.get_xdata(), [0, 1, 2], atol=0.1)
    drawn = {round(y, 9) for path in separation.collections for s in path.get_segments() for y in s[:, 1]}
    assert {round(row["single_latent_auroc_low"], 9) for row in own} <= drawn
    same_concept = {line.get_label(): line for line in localization.get_lines()}["pretrained, Suspicious calcification"]
    assert same_concept.get_color() == line.get_color()
    assert same_concept.get_marker() != line.get_marker()


def test_layers_without_any_box_are_still_drawn():
    rows = frame(synthetic_results(layers=("early", "late"))["layers"]).assign(best_latent_ap=np.nan)
    low, high = plot_layers(rows, title="Layers").get_axes()[1].get_ylim()
    assert low == 0 < high


def test_no_role_is_stated_without_its_numbers():
    results = synthetic_results()
    pair = "finetuned/Mass"
    results["named_latents"] = {
        pair: [named_latent(1, "concept"), {"latent": 2, "role": "background"}, {"latent": 3, "role": "x", "by": "AB"}]
    }
    table = table_roles(results)
    assert table["role"].tolist() == ["concept", "unclear", "x"]
    assert str(table["auroc"][0]) == "0.830 [0.780, 0.880]"
    assert table["said_by"].tolist() == [None, None, "AB"]
    assert table["n_patients"].tolist() == ["57 + 183", None, None]
    assert table["undefined_resamples"].tolist() == ["0.0 %, 0.0 %", None, None]
    for lost in ("auroc_low", "mean_without", "ablation", "ablation_random"):
        assert stated_role(named_latent(1, "concept", **{lost: None})) == "unclear"


def test_rankings_table_counts_ranks_from_1():
    results = synthetic_results()
    table = table_rankings(results)
    assert len(table) == 4 * 2 * 10
    first = table[(table["model"] == "finetuned") & (table["concept"] == "Mass") & (table["class"] == "1")].iloc[0]
    assert first["rank"] == 1
    assert "role" not in table.columns  # it would stand there without its numbers


def test_interventions_table_gives_the_share_recovered():
    results = synthetic_results()
    table = table_interventions(results)
    whole = table[(table["model"] == "pretrained") & (table["concept"] == "Mass") & (table["k"] == 512)]
    kept = whole[(whole["mode"] == "activate") & ~whole["error_term"]].iloc[0]
    assert kept["auroc_recovered"].value == pytest.approx((0.787 - 0.0213 - 0.5) / 0.287)
    assert kept["random_auroc"].low < kept["random_auroc"].value < kept["random_auroc"].high


def test_recovery_of_a_model_at_chance_is_undefined():
    assert math.isnan(recovered(0.6, 0.5))
    assert recovered(0.7, 0.9) == pytest.approx(0.5)


def test_a_table_is_written_in_three_forms(tmp_path):
    paths = write_table(pd.DataFrame({"k": [1]}), tmp_path, "rankings", "Caption.")
    assert [path.name for path in paths] == ["rankings.csv", "rankings.md", "rankings.tex"]
    assert paths[0].read_text() == "k\n1\n"


# A whole study


def test_a_study_gets_all_figures_and_tables_under_their_names(tmp_path):
    results = synthetic_results()
    results["models"] = [row for row in results["models"] if row["concept"] == "Mass"]
    panels = synthetic_panels(results, n_images=1, n_latents=3)
    written = write_figures(results, synthetic_class_means(results), panels, tmp_path)
    assert {path.name for path in written} == {
        figure_2_name("Mass"),
        figure_2_name("Mass", error_term=True),
        *(figure_3_name(model, "Mass") for model in MODELS),
        *(figure_4_name(model, "Mass") for model in MODELS),
    }
    assert all(path.parent == tmp_path / "figures" and path.stat().st_size > 10_000 for path in written)
    tables = {path.name for path in write_tables(results, tmp_path)}
    assert {"table_1.csv", "table_2.tex", "rankings.md", "interventions.csv"} <= tables
    assert "layers.csv" not in tables


def test_a_study_of_several_layers_gets_their_figure_and_table(tmp_path):
    results = synthetic_results(layers=("early", "late"))
    results["models"] = results["models"][:1]
    written = write_figures(results, synthetic_class_means(results), [], tmp_path)
    assert tmp_path / "figures" / "layers.png" in written
    assert tmp_path / "tables" / "layers.csv" in write_tables(results, tmp_path)
    assert "The 10 best latents" in (tmp_path / "tables" / "rankings.md").read_text()


def test_patients_images_are_drawn_only_when_the_config_asks_for_them(tmp_path):
    results = synthetic_results(data_kind="vindr")
    results["models"] = results["models"][:1]

    def panels():
        raise AssertionError("the images must not even be asked for")
        yield

    names = {path.name for path in write_figures(results, synthetic_class_means(results), panels(), tmp_path)}
    assert not any(name.startswith("figure_3") for name in names)
    assert not may_show_images(results)
    assert may_show_images(synthetic_results(data_kind="vindr", include_images=True))
    assert may_show_images(synthetic_results(data_kind="phantom"))
    results["config"]["report"]["include_images"] = "false"  # a truthy string is not a yes
    assert not may_show_images(results)


def test_a_concept_of_many_classes_sets_its_outermost_classes_against_each_other(tmp_path):
    results = synthetic_results()
    results["models"] = [results["models"][0] | {"concept": "density"}]
    means = synthetic_class_means(synthetic_results()).query("model == 'pretrained' and concept == 'Mass'")
    means = means.assign(concept="density", score_mean_2=1.0, score_mean_3=means["score_mean_1"] * 2)
    written = write_figures(results, means, [], tmp_path)
    assert figure_4_name("pretrained", "density") in {path.name for path in written}


def test_null_in_the_results_is_not_a_number_in_frames():
    rows = frame([{"a": None, "b": "x"}, {"a": 1.5, "b": None}])
    assert math.isnan(rows["a"][0])
    assert rows["a"].dtype == float


@pytest.mark.parametrize("name", ["a/b", "../x", "fine tuned"])
def test_figure_names_never_leave_their_folder(name):
    assert Path(figure_3_name(name, "Mass")).name == figure_3_name(name, "Mass")


@pytest.mark.parametrize("n_models", [1, 2])
def test_the_legend_of_figure_2_lies_inside_the_figure(n_models: int) -> None:
    results = synthetic_results()
    models = ["pretrained", "finetuned"][:n_models]
    rows = frame(results["interventions"], concept="Mass", error_term=False)
    figure = plot_sweeps(
        rows[rows["model"].isin(models)], models=models, title="Mass", reference_aurocs=dict.fromkeys(models, 0.9)
    )
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_a_name_of_any_length_gives_a_file_that_can_be_written():
    long = [file_part("Läsion " * 60 + end) for end in "ab"]
    assert file_part("Suspicious_Calcification") == "Suspicious_Calcification"
    assert [len(part) for part in long] == [100, 100]
    assert long[0] != long[1]


# Retrieval


def retrieval_rows() -> pd.DataFrame:
    ways = [
        ("latents", "fingerprint", 1),
        ("latents", "fingerprint", 5),
        ("latents", "cosine", 0),
        ("random", "random", 0),
    ]
    rows = [
        {"label": label, "source": source, "method": method, "k": k, "n": 10, "precision": value,
         "precision_low": value - 0.1, "precision_high": value + 0.1, "n_queries": 40, "n_query_groups": 30,
         "reason": ""}
        for label, level in (("Mass", 0.6), ("density=C", 0.4))
        for (source, method, k), value in zip(ways, (level, level + 0.1, level + 0.2, 0.2), strict=True)
    ]  # fmt: skip
    lacking = [
        {**row, "label": "rare", "precision": np.nan, "precision_low": np.nan, "precision_high": np.nan, "n_queries": 0,
         "n_query_groups": 0, "reason": "no image has this label"}
        for row in rows[:4]
    ]  # fmt: skip
    return pd.DataFrame([*rows, *lacking])


def test_k_sweep_has_a_panel_per_label_with_chance_the_sweep_and_all_latents():
    figure = plot_k_sweep(retrieval_rows())
    panels = figure.get_axes()
    assert [axes.get_title(loc="left") for axes in panels] == ["Mass", "density: C", "rare"]
    lines = lines_by_label(panels[0])
    assert lines["fingerprint"].get_ydata().tolist() == [0.6, 0.7] and lines["fingerprint"].get_xdata().tolist() == [
        0,
        1,
    ]
    assert lines["cosine of all latents"].get_xdata().tolist() == [2]
    assert lines["random images (chance)"].get_ydata()[0] == 0.2
    assert [label.get_text() for label in panels[0].get_xticklabels()] == ["1", "5", "all"]
    assert "40 queries of 30 groups" in {text.get_text() for text in panels[0].texts}
    assert [text.get_text() for text in panels[2].texts] == ["no image has this label"]
    assert panels[0].get_ylabel() == "precision of the first 10"
    with pytest.raises(InputError, match="measure is 'auc'"):
        plot_k_sweep(retrieval_rows(), measure="auc")
    with pytest.raises(InputError, match="no score to draw"):
        plot_k_sweep(retrieval_rows()[:0])


def test_hits_show_the_querys_latents_in_every_image_on_one_scale():
    latents = pd.DataFrame(
        {
            "place": np.repeat(np.arange(11), 2),
            "image_id": np.repeat([f"patient/a_very_long_name/{number:04d}" for number in range(11)], 2),
            "latent": [7, 3] * 11,
            "activation": [2.0, 1.0, *([1.5, 0.0] * 10)],
        }
    )
    figure = plot_hits(latents, title="Images like one", captions=["query"] + [f"likeness {n}" for n in range(10)])
    panels = figure.get_axes()
    assert len(panels) == 9 and "the first 8 of 10 hits" in figure.get_suptitle()
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["latent 7", "latent 3"]
    assert len({axes.get_xlim() for axes in panels}) == 1
    assert [bar.get_width() for bar in panels[1].patches] == [1.5, 0.0]
    said = [text.get_text() for text in panels[1].texts]
    assert said[0] == "silent" and said[1].startswith("patient/") and "likeness 0" in said[1]
    with_images = plot_hits(latents[:6], title="x", images=[np.zeros((4, 3), np.uint8)] * 3)
    assert len(with_images.get_axes()) == 6
    with pytest.raises(InputError, match="11 images need as many captions, got 1"):
        plot_hits(latents, title="x", captions=["one"])


def test_score_decay_shows_scores_from_the_best_on_beside_images_at_random():
    rows = pd.DataFrame({"latent": [4, 5, 6]})
    for score, values in (
        ("coherence", [0.2, 0.9, np.nan]),
        ("specificity", [0.5] * 3),
        ("monosemanticity", [0, 0.4, 0.1]),
    ):
        rows[f"{score}_10"] = values
    rows["null_10"] = 0.1
    panels = plot_score_decay({"trained": rows, "untrained": rows[:1]}).get_axes()
    assert [axes.get_title(loc="left") for axes in panels] == [
        "Coherence, 10 images", "Specificity, 10 images", "Monosemanticity, 10 images",
    ]  # fmt: skip
    lines = lines_by_label(panels[0])
    assert lines["trained"].get_ydata().tolist() == [0.9, 0.2] and lines["untrained"].get_ydata().tolist() == [0.2]
    assert lines["images at random"].get_ydata()[0] == pytest.approx(0.1)
    assert panels[0].texts[0].get_text() == "latents: trained 2, untrained 1"
    with pytest.raises(InputError, match="no scores to draw"):
        plot_score_decay(rows[["latent"]])
    with pytest.raises(InputError, match="of other numbers of images"):
        plot_score_decay({"a": rows, "b": rows.rename(columns={"coherence_10": "coherence_50"})})
