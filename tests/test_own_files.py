"""Files of ours beside a user's: ours are replaced and removed, theirs stay."""

import json

import pytest

from mammosae_plugin.errors import InputError
from mammosae_plugin.own_files import RECORD, remove_files, replace_files, replace_folder, require_unclaimed


def staged(folder, **files):
    """A folder with files by name, of which "__" stands for "/"."""
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def texts(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD
    }


def test_files_of_an_earlier_run_go_and_those_of_the_user_stay(tmp_path):
    replace_files(staged(tmp_path / "one", figures__a="a", figures__b="b", tables__c="c"), tmp_path / "out")
    staged(tmp_path / "out", figures__mine="mine", other__mine="mine")
    replace_files(staged(tmp_path / "two", figures__a="new"), tmp_path / "out")
    assert texts(tmp_path / "out") == {"figures/a": "new", "figures/mine": "mine", "other/mine": "mine"}
    assert not (tmp_path / "out" / "tables").exists()


def test_a_file_of_the_user_where_a_folder_of_ours_goes_is_kept_under_another_name(tmp_path):
    staged(tmp_path / "out", figures="mine")
    replace_files(staged(tmp_path / "one", figures__a="a"), tmp_path / "out")
    assert texts(tmp_path / "out") == {"figures/a": "a", "figures.edited": "mine"}


def test_edited_files_are_kept_under_another_name_however_often(tmp_path):
    out = tmp_path / "out"
    replace_files(staged(tmp_path / "one", a="1", gone="gone"), out)
    for text in ("first edit", "second edit"):
        staged(out, a=text, gone="edited")
        replace_files(staged(tmp_path / "two", a="2"), out)
    assert texts(out) == {"a": "2", "a.edited": "first edit", "a.edited2": "second edit", "gone": "edited"}


def test_files_that_lay_there_before_the_first_run_are_the_users(tmp_path):
    out = staged(tmp_path / "out", a="mine", same="same")
    replace_files(staged(tmp_path / "one", a="1", same="same"), out)
    assert texts(out) == {"a": "1", "a.edited": "mine", "same": "same"}


def test_files_of_a_run_that_was_killed_between_two_of_them_are_ours(tmp_path):
    out = tmp_path / "out"
    replace_files(staged(tmp_path / "one", a="1", b="1"), out)
    record = out / RECORD
    before = json.loads(record.read_text())
    replace_files(staged(tmp_path / "two", a="2", b="2"), out)
    after = json.loads(record.read_text())
    record.write_text(json.dumps({name: before[name] + after[name] for name in before}))  # as during the second call
    staged(out, b="1")
    replace_files(staged(tmp_path / "three", a="3"), out)
    assert texts(out) == {"a": "3"}


def test_removing_leaves_the_users_files_and_an_untouched_folder_goes_whole(tmp_path):
    for folder in (tmp_path / "ours", tmp_path / "shared"):
        replace_files(staged(tmp_path / "one", a="1", sub__b="2"), folder)
    staged(tmp_path / "shared", sub__b="edited", mine="mine")
    remove_files(tmp_path / "ours")
    remove_files(tmp_path / "shared")
    assert not (tmp_path / "ours").exists()
    assert texts(tmp_path / "shared") == {"mine": "mine", "sub/b": "edited"}


def test_a_folder_that_goes_out_takes_no_file_of_another_and_loses_none(tmp_path):
    out = tmp_path / "out"
    replace_folder(staged(tmp_path / "one", card="1"), out)
    replace_folder(staged(tmp_path / "two", card="2"), out)
    assert [path.name for path in out.iterdir()] == ["card"]
    for name in ("card", "other"):
        staged(out, **{name: "mine"})
        with pytest.raises(InputError, match=f"out/{name} was edited, or not written by this package"):
            replace_folder(staged(tmp_path / "three", card="3"), out)
        assert (out / name).read_text() == "mine"
        (out / name).unlink()


def test_a_damaged_record_is_named(tmp_path):
    out = staged(tmp_path / "out", **{RECORD: "[1]"})
    with pytest.raises(InputError, match=f"{RECORD} is damaged"):
        replace_files(staged(tmp_path / "one", a="1"), out)


def test_a_folder_with_a_file_in_the_way_is_refused_until_the_job_has_begun(tmp_path):
    (tmp_path / "metrics.png").write_text("mine")
    with pytest.raises(InputError, match=r"metrics\.png is in the way, and of no earlier run; move it, or"):
        require_unclaimed(tmp_path, ["plan.json"], ["cfg.json", "metrics.png"])
    (tmp_path / "plan.json").write_text("{}")
    require_unclaimed(tmp_path, ["plan.json"], ["cfg.json", "metrics.png"])
    require_unclaimed(tmp_path / "none", [], ["cfg.json"])
