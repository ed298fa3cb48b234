"""Folders for staging: gone when their process is done with them, and when it was killed."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mammosae_plugin.hub.scratch import PREFIX, Scratch, tidy

HOLDER = """
import sys
from mammosae_plugin.hub.scratch import Scratch
scratch = Scratch("publish")
(scratch.folder / "weights").write_text("x")
print(scratch.folder, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go in this test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is tidied there")
def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_living_one_holds_stays(place: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(place)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        folder = Path(holder.stdout.readline().strip())
        try:
            own = Scratch("check")
            assert (folder / "weights").exists()
        finally:
            holder.send_signal(signal.SIGKILL)
    assert (folder / "weights").exists()
    (own.folder / "rows").write_text("x")
    tidy()
    assert not folder.parent.exists()
    assert (own.folder / "rows").exists()
    own.remove()
    assert list(place.iterdir()) == []


def test_what_is_not_of_a_scratch_folder_is_left_alone(place: Path) -> None:
    (place / f"{PREFIX}notes").mkdir()
    (place / f"{PREFIX}notes" / "kept").write_text("x")
    target = place / "elsewhere"
    target.mkdir()
    (target / "lock").write_text("")
    (place / f"{PREFIX}link").symlink_to(target)
    Scratch("publish").remove()
    assert (place / f"{PREFIX}notes" / "kept").exists()
    assert (target / "lock").exists()


def test_a_folder_is_empty_at_first_and_may_be_removed_twice(place: Path) -> None:
    scratch = Scratch("publish")
    assert list(scratch.folder.iterdir()) == []
    assert scratch.folder.is_relative_to(place)
    scratch.remove()
    scratch.remove()
    assert list(place.iterdir()) == []
