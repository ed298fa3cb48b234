"""Figures of several SAEs: what they show, and what they say of what is missing."""

import numpy as np
import pandas as pd
import pytest

from mammosae_plugin.errors import InputError
from mammosae_plugin.visualization import plot_pareto, plot_quality_and_recovery, plot_recovery, save_figure


def ranking(n=6):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "name": [f"SAE {number}" for number in range(n)],
            "l0": 4.0 * 2 ** np.arange(n),
            "explained_variance": np.linspace(0.6, 0.9, n),
            "monosemanticity": rng.uniform(0.2, 0.6, n),
            "recovery": rng.uniform(0.2, 0.9, n),
            "monosemanticity_sd": 0.02,
            "recovery_sd": np.nan,
            "n_seeds": 3,
            "on_front": np.arange(n) % 2 == 0,
            "control": np.arange(n) == n - 1,
        }
    )


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_the_pareto_plot_names_the_front_and_marks_controls(tmp_path):
    figure = plot_pareto(ranking())
    panels = figure.get_axes()
    assert [axes.get_title(loc="left")[0] for axes in panels] == list("ABCD")
    for axes in panels:
        labels = [label for label in axes.texts if label.get_text()]
        assert sorted(label.get_text() for label in labels) == ["1", "2", "3"]
        boxes = [label.get_window_extent() for label in labels]
        assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
        frame = axes.get_window_extent()
        assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    told = texts(figure.legends[0])
    assert told[2:4] == ["control", "± 1 SD over 3 seeds"] and told[4:] == ["1   SAE 0", "2   SAE 2", "3   SAE 4"]
    save_figure(figure, tmp_path / "pareto.png")
    many = plot_pareto(ranking(40).assign(on_front=True, control=False, monosemanticity_sd=np.nan, l0=np.nan))
    assert texts(many.legends[0])[-1] == "and 28 more on the front"
    assert [text.get_text() for text in many.get_axes()[0].texts] == ["no SAE has both"]


def grid():
    rows = [
        {"model": model, "width": width, "l0": l0, "explained_variance": 0.5 + l0 / 100, "dense_auroc": 0.9,
         "sparse_auroc": 0.8, "monosemanticity": 0.3, "monosemanticity_chance": 0.02}
        | {f"recovered_{k}": 0.2 + k / 100 for k in (1, 3, 10)} | {"recovered_1_low": 0.1, "recovered_1_high": 0.3}
        for model in ("net", "random")
        for width in (1024, 2048)
        for l0 in (30.0, 10.0)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_eight_panels_share_l0_and_say_what_was_not_measured():
    figure = plot_quality_and_recovery(grid())
    panels = figure.get_axes()
    assert [axes.get_title(loc="left")[0] for axes in panels] == list("ABCDEFGH")
    empty = [axes.get_title(loc="left") for axes in panels if [text.get_text() for text in axes.texts]]
    assert empty == ["C  Feature activity", "H  Recovery, 50 latents"]
    curve = panels[0].get_lines()[0]
    np.testing.assert_allclose(curve.get_xdata(), [10, 30])  # by rising L0
    np.testing.assert_allclose(curve.get_ydata(), [0.6, 0.8])
    assert len({axes.get_ylim() for axes in panels[4:7]}) == 1
    chance = [line.get_ydata()[0] for line in panels[4].get_lines() if len(set(line.get_ydata())) == 1][-1]
    assert chance == 0
    assert texts(figure.legends[0]) == [
        "net", "random", "1,024 latents", "2,048 latents", "dense layer, by model", "chance",
    ]  # fmt: skip


def curves(n_labels=2):
    rows = [
        {"label": f"organ_{number}", "k": k, "recovered": 0.1 * number + 0.05 * k, "recovered_low": 0.0,
         "recovered_high": 1.0, "recovered_permuted": -0.2}
        for number in range(n_labels)
        for k in (5, 1, 10)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_recovery_is_drawn_between_chance_and_the_dense_layer():
    axes = plot_recovery(curves()).get_axes()[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines) == ["chance", "dense layer", "permuted labels, mean", "Organ 0", "Organ 1"]
    np.testing.assert_allclose(lines["Organ 1"].get_xdata(), [1, 5, 10])
    np.testing.assert_allclose(lines["Organ 1"].get_ydata(), [0.15, 0.35, 0.6])
    assert axes.get_title(loc="left") == "2 labels, 95 % intervals over groups" and axes.get_ylim()[0] < -0.2
    many = plot_recovery(curves(9)).get_axes()[0]
    named = [line.get_label() for line in many.get_lines() if line.get_label().startswith("Organ")]
    assert named == [f"Organ {number}" for number in range(3, 9)]
    assert "3 others" in [line.get_label() for line in many.get_lines()]
    summary = curves().rename(columns={"label": "name"}).assign(n_labels=5)
    assert plot_recovery(summary, by="name").get_axes()[0].get_title(loc="left").startswith("5 labels")


def test_figures_of_saes_refuse_in_one_line():
    for draw, message in (
        (lambda: plot_pareto(ranking().drop(columns="l0")), "ranking have no l0"),
        (lambda: plot_pareto(ranking()[:0]), "ranking have no row"),
        (lambda: plot_quality_and_recovery(grid(), ks=(1, 2)), "ks hold 2 numbers of latents"),
        (lambda: plot_quality_and_recovery(grid(), measure="ratio"), "measure is 'ratio'"),
        (lambda: plot_quality_and_recovery(grid().assign(model=range(8))), "there are 8 models"),
        (lambda: plot_recovery(curves().assign(recovered=np.nan)), "no row has a recovered share"),
        (lambda: plot_recovery(curves(), by="name"), "rows have no name"),
    ):
        with pytest.raises(InputError, match=message):
            draw()
