"""Figures that are drawn only when what they show has changed."""

import numpy as np
import pandas as pd
import pytest
from helpers_results import synthetic_class_means, synthetic_panels, synthetic_results
from matplotlib.figure import Figure

from mammosae_plugin.visualization import drawings, output, write_figures
from mammosae_plugin.visualization.drawings import Drawings


def _plot(values, *, title):
    figure = Figure(figsize=(1, 1))
    figure.add_subplot().plot(np.asarray(values, dtype=float))
    figure.suptitle(title)
    return figure


@pytest.fixture
def drawn(monkeypatch):
    """The names of the figures that were really drawn."""
    names, save = [], drawings.save_figure

    def counted(figure, path, **settings):
        names.append(path.name)
        save(figure, path, **settings)

    monkeypatch.setattr(drawings, "save_figure", counted)
    return names


def test_a_figure_is_taken_from_an_earlier_run_where_nothing_has_changed(drawn, tmp_path, monkeypatch):
    first = Drawings(tmp_path / "one")
    before = first.draw("a.png", _plot, [1, 2], title="t")
    again = Drawings(tmp_path / "two", earlier=tmp_path / "one", known=first.record)
    assert again.draw("a.png", _plot, [1, 2], title="t").read_bytes() == before.read_bytes()
    assert drawn == ["a.png"] and again.record == first.record
    for shown, title, dpi in (([1, 3], "t", 200), ([1, 2], "u", 200), ([1, 2], "t", 100), (np.array([1, 2]), "t", 200)):
        again.draw("a.png", _plot, shown, title=title, dpi=dpi)
    assert len(drawn) == 5
    before.write_bytes(b"with my arrows")
    again.draw("a.png", _plot, [1, 2], title="t")
    assert len(drawn) == 6
    monkeypatch.setattr(drawings, "_code", lambda: "another version")
    Drawings(tmp_path / "three", earlier=tmp_path / "two", known=again.record).draw("a.png", _plot, [1, 2], title="t")
    assert len(drawn) == 7


def test_frames_and_arrays_are_told_apart_by_their_values_and_types():
    frame = pd.DataFrame({"a": [1.0, np.nan], "b": ["x", None]})
    different = [
        frame,
        frame.assign(b=["x", "y"]),
        frame.rename(columns={"a": "c"}),
        np.zeros((2, 3), dtype=np.float32),
        np.zeros((3, 2), dtype=np.float32),
        np.zeros((2, 3)),
        [np.zeros(2), np.ones(2)],
    ]
    told = [drawings.sha256_of_json(drawings._told(value)) for value in different]
    assert len(set(told)) == len(told)
    assert drawings._told(frame) == drawings._told(frame.copy())


def test_of_a_study_only_the_figures_of_what_has_changed_are_drawn_again(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(
        output, "plot_heatmaps", lambda *shown, **settings: _plot([len(shown)], title=settings["title"])
    )
    results = synthetic_results()
    results["models"] = results["models"][:1]
    means, panels = synthetic_class_means(results), synthetic_panels(results, n_images=1, n_latents=2)
    first = Drawings(tmp_path / "one")
    write_figures(results, means, panels, tmp_path / "one", drawings=first)
    n, record = len(drawn), (tmp_path / "one" / "figures.json").read_bytes()
    again = Drawings(tmp_path / "two", earlier=tmp_path / "one", known=first.record)
    write_figures(results, means, panels, tmp_path / "two", drawings=again)
    assert len(drawn) == n == 4 and (tmp_path / "two" / "figures.json").read_bytes() == record
    panels[0].heatmaps[0, 0, 0, 0] += 1
    results["interventions"][0]["auroc"] += 0.01
    write_figures(results, means, panels, tmp_path / "two", drawings=again)
    assert sorted(drawn[n:]) == ["figure_2_Mass.png", "figure_3_pretrained_Mass.png"]
