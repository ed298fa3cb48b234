"""What a study's folder holds: steps that are done, settings that have changed, results that nothing uses any more."""

import shutil
from functools import partial

import pytest
from typer.testing import CliRunner

from mammosae_plugin.cli import app
from mammosae_plugin.config.reading import portable_config
from mammosae_plugin.errors import InputError
from mammosae_plugin.study import Study, in_use, plans
from mammosae_plugin.study.done import STEPS, clean, record_step, status
from mammosae_plugin.study.steps import Steps


class Small(Steps):
    """A study whose steps each make one result, which depends on a setting."""

    def __init__(self, config, setting, data="a" * 12):
        self.config, self.output, self.setting, self._data = config, config.output, setting, data
        for step in STEPS:
            setattr(self, step, partial(self._make, step))

    report_file = state = None  # set below

    def _make(self, step):
        plan = {"step": step, "setting": self.setting}
        path = plans.keep(plan, self.output / "work" / "tables" / f"{step}-{plans.digest(plan)}.parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0" * 1000)
        path.with_name(f"{path.stem}.log.jsonl").write_text("said\n")

    def summary(self, step):
        return step


Small.state = property(lambda self: (portable_config(self.config), self._data))
Small.__abstractmethods__ = frozenset()


@pytest.fixture
def config(finished_study, tmp_path):
    """The configuration of a study whose folder is new."""
    return finished_study.config.model_copy(update={"output": tmp_path / "out"})


def run(config, setting, until="report", data="a" * 12):
    """As if each run were a process of its own."""
    in_use.forget()
    study = Small(config, setting, data)
    study.run(until)
    return study


def test_a_finished_study_says_that_everything_is_done_and_needed(finished_study):
    found = status(finished_study.output, *finished_study.state)
    assert (found.done, found.changed, found.whole, found.unused) == ([*STEPS], [], True, [])
    assert {one.name.partition("/")[0] for one in found.kept} >= {"latents", "analyses"}
    assert found.as_text().count(" done, ") == len(STEPS) and "does nothing: everything is done" in found.as_text()


def test_what_earlier_settings_made_is_told_and_goes_after_asking_and_the_rest_stays(config):
    run(config, 1)
    ours = config.output / "work" / "tables" / "mine-0123456789ab.parquet"  # without a plan: not a result of ours
    ours.write_text("mine")
    notes = config.output / "notes" / "AB.jsonl"
    notes.parent.mkdir()
    notes.write_text("{}\n")
    assert status(config.output).unused == []
    run(config, 2, until="encode")
    assert status(config.output).unused == []  # what later steps need is not known before they have ended
    run(config, 2)
    unused = status(config.output).unused
    assert len(unused) == len(STEPS) and all(one.nbytes > 1000 and len(one.paths) == 3 for one in unused)
    before = sorted(config.output.rglob("*"))
    assert clean(config.output, lambda _: False) == [] and sorted(config.output.rglob("*")) == before
    removed = clean(config.output, lambda found: found == unused)
    left = sorted(config.output.rglob("*"))
    gone = {path for one in removed for path in one.paths}
    assert {*before} - {*left} == gone and not gone & {*left} and {ours, notes} <= {*left}
    assert status(config.output).unused == [] and run(config, 2) and status(config.output).unused == []


def test_settings_and_data_that_have_changed_are_told_with_what_they_were(config):
    run(config, 1)
    top = config.analysis.model_copy(update={"top": config.analysis.top + 3})
    other = config.model_copy(update={"analysis": top, "device": "cuda", "output": config.output / "elsewhere"})
    found = status(config.output, portable_config(other), "b" * 12)
    assert found.changed == [
        f"analysis.top: {config.analysis.top} -> {config.analysis.top + 3}",
        "data: files of images or annotations",
    ]
    assert "makes anew what depends on that" in found.as_text()
    run(other.model_copy(update={"output": config.output}), 1, until="train")
    found = status(config.output)
    assert found.done == ["classify", "extract", "train"] and "goes on with encode" in found.as_text()


def test_nothing_is_removed_where_it_is_not_known_what_is_needed(config, tmp_path):
    run(config, 1, until="probe")
    with pytest.raises(InputError, match="not known before a whole run of it has ended; run the study first"):
        clean(config.output, lambda _: True)
    with pytest.raises(InputError, match="holds no study"):
        status(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_the_commands_list_ask_and_say_what_is_wrong(config, finished_study, tmp_path):
    run(config, 1)
    run(config, 2)
    call = CliRunner().invoke
    folder = str(config.output)
    listed = call(app, ["clean", folder, "--dry-run"])
    assert listed.exit_code == 0 and "work/tables/encode-" in listed.stdout and "nothing removed" in listed.stdout
    unasked = call(app, ["clean", folder])
    assert unasked.exit_code == 2 and "add --yes" in unasked.stderr
    assert "nothing removed" in call(app, ["clean", folder], input="n\n").stdout
    assert f"{len(STEPS)} results removed" in call(app, ["clean", folder], input="y\n").stdout
    assert "does nothing" in call(app, ["status", folder]).stdout
    wrong = call(app, ["status", folder, "--set", "analysis.top=3"])
    assert wrong.exit_code == 2 and "name the study's YAML file" in wrong.stderr
    missing = call(app, ["status", str(tmp_path / "no.yaml")])
    assert missing.exit_code == 2 and missing.stderr.count("\n") == 1


def test_a_removal_that_is_cut_off_is_finished_by_the_next(config, monkeypatch):
    run(config, 1)
    run(config, 2)
    names = [one.name for one in status(config.output).unused]
    first = status(config.output).unused[0]
    for path in first.paths:
        if not path.name.endswith(".plan.json"):
            path.unlink()
    assert [one.name for one in status(config.output).unused] == names
    assert [one.name for one in clean(config.output, lambda _: True)] == names


def test_a_real_study_that_was_cleaned_has_nothing_to_make_again(finished_study, tmp_path, monkeypatch):
    shutil.copytree(finished_study.output, copy := tmp_path / "out")
    config = finished_study.config.model_copy(update={"output": copy})
    for number in range(2):
        in_use.forget()
        before = {path: path.stat().st_mtime_ns for path in (copy / "work").rglob("*") if path.is_file()}
        study = Study(config)
        study.run("evidence")
        record_step(copy, "report", *study.state)
        after = {path: path.stat().st_mtime_ns for path in (copy / "work").rglob("*") if path.is_file()}
        assert {path for path in {*before} | {*after} if before.get(path) != after.get(path)} <= {
            copy / "work/done.json"
        }
        removed = {one.name.partition("/")[0] for one in clean(copy, lambda _: True)}
        assert removed == ({"layer-outputs", "masked-passes"} if number == 0 else set())
