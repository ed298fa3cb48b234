import io
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from mammosae_plugin import progress as module
from mammosae_plugin.progress import progress, progress_bar, time_left
from mammosae_plugin.study.layer_tables import LayerTables


@pytest.fixture
def clock():
    """A clock that stands still until a test moves its hand."""
    hand = [1000.0]
    return hand, lambda: hand[0]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "under a minute"),
        (59.9, "under a minute"),
        (60, "about 1 min"),
        (61, "about 2 min"),
        (99 * 60, "about 99 min"),
        (125 * 60, "about 2 h 5 min"),
    ],
)
def test_what_remains_is_told_in_minutes(seconds, words):
    assert time_left(seconds) == words


def test_a_bar_says_the_minutes_that_remain_at_the_pace_of_this_run(clock):
    hand, now = clock
    with progress_bar(description="encode", unit="image", total=100, done=40, clock=now) as bar:
        assert "40/100 images, ? min left" in str(bar)
        hand[0] += 120
        bar.update(10)  # 12 s each; what an earlier run did is no pace
        assert "encode:  50%|" in str(bar)
        assert "50/100 images, about 10 min left" in str(bar)
        hand[0] += 600
        bar.set_postfix(loss=2)
        bar.update(50)
        assert str(bar).endswith("100/100 images, done, loss=2")


def test_a_bar_over_things_gives_them_all_and_one_of_unknown_length_says_so(clock):
    _, now = clock
    assert list(progress(range(3), description="", unit="item", clock=now)) == [0, 1, 2]
    bar = progress(iter("ab"), description="read", unit="file", clock=now)
    assert list(bar) == ["a", "b"]
    assert "2/? files, ? min left" in str(bar)
    with progress_bar(total=2, description="more than was said", unit="item", clock=now) as bar:
        bar.update(3)
        assert "3/? items" in str(bar)


@pytest.mark.parametrize(("shown", "lines"), [(True, 1), (False, 0)])
def test_where_it_writes_is_told_once_and_nothing_where_nothing_is_shown(clock, monkeypatch, shown, lines, tmp_path):
    _, now = clock
    said = io.StringIO()
    monkeypatch.setattr(module.sys, "stderr", said)
    with progress_bar(total=3, description="encode", unit="image", to=tmp_path, shown=shown, clock=now) as bar:
        for _ in range(3):
            bar.update()
            bar.refresh()
    assert said.getvalue().count(f"encode: written to {tmp_path}\n") == lines
    assert bool(said.getvalue()) == shown


def test_the_places_of_several_results_are_told_in_one_line(capsys):
    with progress_bar(total=1, description="train", unit="step", to=["one", "two", "three"]):
        pass
    assert "train: written to one and 2 more\n" in capsys.readouterr().err


def test_an_analysis_says_how_many_classifiers_it_lacks_and_where_it_is_kept(tmp_path, capsys):
    there = tmp_path / "b"
    there.touch()
    asked = []

    def kept(name, pair, settings, compute):
        asked.append(pair)
        return pd.DataFrame({"pair": [pair]})

    layer = SimpleNamespace(name="bn2", work=tmp_path, kept=kept, _place=lambda name, pair, settings: tmp_path / pair)
    found = LayerTables._each(layer, "evidence", {}, None, ["a", "b", "c"])
    assert found["pair"].tolist() == asked == ["a", "b", "c"]
    said = capsys.readouterr().err
    assert f"evidence at bn2: written to {tmp_path / 'analyses'}\n" in said
    assert "0/2 classifiers" in said
    there.with_name("a").touch()
    there.with_name("c").touch()
    LayerTables._each(layer, "evidence", {}, None, ["a", "b", "c"])
    assert capsys.readouterr().err == ""


def test_no_other_module_makes_a_bar_of_its_own():
    package = Path(module.__file__).parent
    others = [path for path in package.rglob("*.py") if path.name != "progress.py" and "tqdm" in path.read_text()]
    assert not others
