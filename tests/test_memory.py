"""Memory that was freed and is kept, seen from outside: in processes of their own, since it is for a whole process."""

import ctypes
import os
import subprocess
import sys

import pytest

from mammosae_plugin.cli import main
from mammosae_plugin.memory import keep_freed_memory

PASSES = """
import ctypes, sys
import torch
from mammosae_plugin.memory import keep_freed_memory

class Told(ctypes.Structure):  # glibc's struct mallinfo2
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd a b uordblks fordblks c".split()]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Told

kept = keep_freed_memory() if sys.argv[1] == "keep" else None
value = torch.ones(128, 400, 300)  # 61 MB: above what glibc learns to keep by itself
mapped = library.mallinfo2().hblkhd
found = sum(float((value + number).relu().sum()) for number in range(3))
del value
print(kept, mapped, library.mallinfo2().fordblks, found)
"""
SIZE = 128 * 400 * 300 * 4

glibc = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="a setting of glibc, and what it tells of itself since 2.33",
)


def passes(how, **environment):
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    result = subprocess.run(
        [sys.executable, "-c", PASSES, how], env=plain | environment, capture_output=True, text=True, check=True
    )
    kept, mapped, free, value = result.stdout.split()
    return kept, int(mapped), int(free), value


@glibc
def test_freed_buffers_are_used_again_and_no_value_changes():
    kept, mapped, free, value = passes("keep")
    usual = passes("usual")
    assert (kept, usual[0]) == ("True", "None")
    assert usual[1] >= SIZE and usual[2] < SIZE  # else the setting is of no use any more
    assert mapped < SIZE and free >= 3 * SIZE  # the tensor's, the sum's and the relu's buffer
    assert value == usual[3]


@glibc
@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "1000", "False"),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_max=7", "False"),
        ("MALLOC_ARENA_MAX", "2", "True"),
        ("GLIBC_TUNABLES", "glibc.pthread.rseq=0", "True"),
    ],
)
def test_settings_of_the_environment_are_left_alone(name, value, kept):
    assert passes("keep", **{name: value})[0] == kept


@glibc
def test_the_command_keeps_its_memory(monkeypatch):
    called = []
    monkeypatch.setattr("mammosae_plugin.cli.steps.keep_freed_memory", lambda: called.append(1))
    monkeypatch.setattr(sys, "argv", ["mammosae", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert called == [1]


def _no_library(name):
    raise OSError("static")


@pytest.mark.parametrize("library", [_no_library, lambda name: object()])
def test_other_c_libraries_are_left_alone(monkeypatch, library):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("mammosae_plugin.memory.ctypes.CDLL", library)
    assert keep_freed_memory() is False


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
