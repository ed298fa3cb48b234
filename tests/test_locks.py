"""One run at a time in one output folder."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers_adapters import calibrated_classifier
from helpers_study import small_phantoms, study_settings, toy_store, write_study
from typer.testing import CliRunner

from mammosae_plugin import locks
from mammosae_plugin.cli import app
from mammosae_plugin.datasets import VinDrMammo
from mammosae_plugin.errors import InputError
from mammosae_plugin.locks import LOCK, only_run
from mammosae_plugin.shards import run_shards
from mammosae_plugin.training import ClassifierTraining, SAETraining, train_classifier, train_sae

HOLD = """
import sys
from pathlib import Path
from mammosae_plugin.locks import only_run
folders, file = [Path(name) for name in sys.argv[1:-1]], sys.argv[-1]
with only_run(*folders, file=Path(file) if file else None):
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_run(*folders, file=""):
    """Another process that holds the lock until it is told to end."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, *map(str, folders), str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"ready\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def test_other_spellings_of_a_path_are_the_same_lock(tmp_path):
    out, link = tmp_path / "out", tmp_path / "link"
    out.mkdir()
    link.symlink_to(out)
    with only_run(out):
        for spelling in (link, tmp_path / "link" / ".." / "out"):
            with only_run(spelling):
                pass
            assert (out / LOCK).exists()
    assert not (out / LOCK).exists()


def test_a_second_run_is_told_who_is_there_and_a_killed_one_is_continued_at_once(tmp_path):
    store, folder = toy_store(tmp_path / "store"), tmp_path / "sae"
    settings = SAETraining(d_sae=16, epochs=1, batch_size=100)
    with another_run(folder) as holder:
        with pytest.raises(InputError, match=f"sae is being written by another run .process {holder.pid} on .*wait"):
            train_sae(store, folder, settings)
        assert [path.name for path in folder.iterdir()] == [LOCK]
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        train_sae(store, folder, settings)
    assert not (folder / LOCK).exists()
    with another_run(folder):  # a finished SAE is only read
        train_sae(store, folder, settings)


def test_a_run_that_ends_lets_the_next_one_in_and_leaves_nothing(tmp_path):
    with another_run(tmp_path / "out") as holder:
        holder.communicate(b"")
        assert holder.returncode == 0
    assert not (tmp_path / "out").exists()
    with only_run(tmp_path / "out"):
        assert json.loads((tmp_path / "out" / LOCK).read_text())["pid"] == os.getpid()


def test_every_step_that_writes_refuses_a_second_run(tmp_path):
    root = small_phantoms(tmp_path / "data", n_patients=4)
    file = write_study(tmp_path, study_settings(tmp_path, root))
    images = VinDrMammo(root, image_size=(96, 64))
    shards, classifier, demo = tmp_path / "shards", tmp_path / "c.safetensors", tmp_path / "demo"
    with another_run(tmp_path / "out", shards, demo, file=classifier):
        before = sorted(tmp_path.rglob("*"))
        for arguments in (["study", "--config", str(file)], ["demo", "--quick", "--output", str(demo)]):
            refused = CliRunner().invoke(app, arguments)
            assert refused.exit_code == 2
            assert "is being written by another run" in refused.output
        with pytest.raises(InputError, match="is being written by another run"):
            run_shards(shards, {}, 4, 2, lambda items: {}, description="nothing")
        with pytest.raises(InputError, match="is being written by another run"):
            train_classifier(calibrated_classifier(0), images, "Mass", classifier, ClassifierTraining(epochs=1))
        assert sorted(tmp_path.rglob("*")) == before


def test_nested_blocks_of_one_thread_are_one_run_and_another_threads_are_not(tmp_path):
    said = []

    def other():
        try:
            with only_run(tmp_path):
                said.append("in")
        except InputError as error:
            said.append(str(error))

    with only_run(tmp_path), only_run(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(said) == 1
    assert "another thread of this process" in said[0]
    with only_run(tmp_path):
        pass


def test_of_several_folders_all_or_none_are_taken(tmp_path):
    with another_run(tmp_path / "b"):
        with pytest.raises(InputError, match="b is being written"), only_run(tmp_path / "a", tmp_path / "b"):
            pass
        assert not (tmp_path / "a").exists()


@pytest.fixture
def no_locks(monkeypatch):
    """A file system that knows no locks, as some network ones."""

    def lockf(*_args):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", lockf)


def write_lock(folder: Path, **record):
    folder.mkdir(exist_ok=True)
    own = {"host": socket.gethostname(), "pid": os.getpid(), "process_start": locks._process_start(os.getpid())}
    (folder / LOCK).write_text(json.dumps({**own, "since": "2026-11-29T10:00:00+00:00", **record}))


def test_without_locks_the_file_is_the_lock(tmp_path, no_locks):
    with only_run(tmp_path):
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()
    write_lock(tmp_path)
    said = f"process {os.getpid()} on .*delete .*{LOCK} if that process has ended"
    with pytest.raises(InputError, match=said), only_run(tmp_path):
        pass
    assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize("record", [{"pid": 2**22 + 1}, {"process_start": "1"}])
def test_without_locks_a_file_of_a_process_that_has_ended_is_stale(tmp_path, no_locks, record):
    write_lock(tmp_path, **record)
    with only_run(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("content", ['{"host": "elsewhere", "pid": 1}', "", "half a rec"])
def test_without_locks_what_cannot_be_told_from_a_running_process_stands(tmp_path, no_locks, content):
    (tmp_path / LOCK).write_text(content)
    with pytest.raises(InputError, match="if that process has ended"), only_run(tmp_path):
        pass
    assert (tmp_path / LOCK).read_text() == content


def test_with_locks_a_file_that_a_killed_run_left_on_another_host_is_stale(tmp_path):
    write_lock(tmp_path, host="elsewhere")
    with only_run(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_what_is_no_file_at_the_locks_place_is_named(tmp_path, kind):
    if kind == "folder":
        (tmp_path / LOCK).mkdir()
    else:
        (tmp_path / LOCK).symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match="where the lock of its folder goes; remove it"), only_run(tmp_path):
        pass
