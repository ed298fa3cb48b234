"""What goes wrong around a long extraction: each ends in one clear error or in an exact continuation."""

import errno
import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from itertools import islice
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from helpers_kills import ended
from helpers_stores import labelled_rows, labelled_store
from typer.testing import CliRunner

from mammosae_plugin import files
from mammosae_plugin.activations import ActivationStore, extract_activations, extraction, store
from mammosae_plugin.adapters import HookedVisionModel, new_classifier
from mammosae_plugin.cli import app
from mammosae_plugin.errors import InputError

N_KILLS = int(os.environ.get("MAMMOSAE_KILLS", "2"))


@pytest.fixture(scope="module")
def hooked(classifier):
    with HookedVisionModel(classifier, ["bn2"]) as model:
        yield model


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(extraction, "IMAGES_PER_SHARD", 8)


@pytest.fixture
def extract(hooked, phantoms):
    """Extract six shards of 123 kB to a folder."""

    def call(folder):
        return extract_activations(hooked, phantoms, folder, hook_name="bn2", batch_size=4, fraction=0.5)

    return call


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def interrupt_every_third(monkeypatch, module, name):
    """Let every third call of a function fail as Ctrl-C does; return the list of calls."""
    original, calls = getattr(module, name), []

    def interrupted(*args, **settings):
        calls.append(1)
        if len(calls) % 3 == 0:
            raise KeyboardInterrupt
        return original(*args, **settings)

    monkeypatch.setattr(module, name, interrupted)
    return calls


@pytest.mark.parametrize(
    ("module", "name"),
    [(extraction, "capture_several"), (files.os, "replace"), (safetensors.torch, "save_file"), (files.os, "fsync")],
)
def test_an_extraction_interrupted_again_and_again_ends_byte_identical(tmp_path, extract, monkeypatch, module, name):
    """During a pass, before a finished file gets its name, before anything is written, before it is on the disk."""
    whole = contents(extract(tmp_path / "whole").folder)
    calls = interrupt_every_third(monkeypatch, module, name)
    interruptions = 0
    while True:
        try:
            extract(tmp_path / "broken")
            break
        except KeyboardInterrupt:
            interruptions += 1
            with pytest.raises(InputError, match="not a complete activation store"):
                ActivationStore(tmp_path / "broken")
    assert interruptions >= 2
    assert len(calls) >= 3 * interruptions
    assert contents(tmp_path / "broken") == whole


KILLED = """
import random, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from helpers_kills import killed_at
from mammosae_plugin.activations import extract_activations, extraction
from mammosae_plugin.adapters import HookedVisionModel, new_classifier
from mammosae_plugin.datasets import VinDrMammo

extraction.IMAGES_PER_SHARD = 2
root, out, n_kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
model = HookedVisionModel(new_classifier("tinynet_e", 1, seed=0), ["blocks.3"])
images = VinDrMammo(root, image_size=(96, 64)).select(split="test")

def run(folder, moment, num_workers=0):
    def work():
        extract_activations(model, images, folder, hook_name="blocks.3", count=2, num_workers=num_workers)
    return killed_at(moment, work, [(extraction, "capture_several")])

run(out / "whole", None)
chance, killed = random.Random(0), 0
for number in range(n_kills):
    killed += run(out / f"broken-{number % 2}", chance.randint(1, 12), num_workers=number % 2)
for number in range(2):
    run(out / f"broken-{number}", None)
print("killed", killed)
"""


def test_extractions_killed_outright_at_random_moments_end_byte_identical(tmp_path, phantom_root):
    """SIGKILL, in a process of its own, of which every second has a worker process; MAMMOSAE_KILLS sets how often."""
    told = ended(KILLED, phantom_root, tmp_path, N_KILLS)
    assert int(told.split()[-1]) >= N_KILLS // 2
    whole = contents(tmp_path / "whole")
    assert len(whole) == 7 + 3  # 14 images, two in a shard
    assert contents(tmp_path / "broken-0") == contents(tmp_path / "broken-1") == whole


def test_what_a_killed_writer_left_is_cleared_away(tmp_path, extract):
    whole = contents(extract(tmp_path / "whole").folder)
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "whole", broken)
    for name in ("done.json", "activations.json", "shard-00003.safetensors"):
        (broken / name).unlink()
    (broken / ".tmp-mammosae-abc.safetensors").write_bytes(b"half a shard")
    extract(broken)
    assert contents(broken) == whole


def test_a_killed_writers_old_file_makes_room_before_the_first_pass(tmp_path, extract, monkeypatch):
    extract(tmp_path / "store")
    (tmp_path / "store" / "done.json").unlink()
    (tmp_path / "store" / "shard-00005.safetensors").unlink()
    old, new = (tmp_path / "store" / f".tmp-mammosae-{name}.safetensors" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half a shard")
    os.utime(old, (time.time() - 3600, time.time() - 3600))
    seen = []
    original = extraction.capture_several
    monkeypatch.setattr(
        extraction,
        "capture_several",
        lambda *args: seen.append((old.exists(), new.exists())) or original(*args),
    )
    extract(tmp_path / "store")
    assert seen[0] == (False, True)  # the new one may be that of another process at work


@contextmanager
def small_disk(folder, size):
    """A disk of `size` bytes at `folder`, and a way to make it larger."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a small disk")
    try:
        yield lambda more: subprocess.run(["mount", "-o", f"remount,size={more}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_in_one_clear_error_and_an_exact_continuation(tmp_path, extract, monkeypatch):
    whole = contents(extract(tmp_path / "whole").folder)
    # There was room when it began; somebody else takes it.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 40))
    with small_disk(tmp_path / "disk", 300_000) as enlarge:
        folder = tmp_path / "disk" / "store"
        with pytest.raises(OSError, match=r"cannot write .*shard-0000\d\.safetensors: .*[Nn]o space left"):
            extract(folder)
        there = sorted(path.name for path in folder.iterdir())
        assert there == ["plan.json", "shard-00000.safetensors", "shard-00001.safetensors"]
        with pytest.raises(OSError, match="[Nn]o space left"):
            extract(folder)  # still full: the same error, nothing lost
        enlarge(4_000_000)
        extract(folder)
        assert contents(folder) == whole


def test_a_write_that_fails_is_told_with_the_file_and_leaves_nothing_half_written(tmp_path, extract, monkeypatch):
    """As above, where no small disk can be made; the error is that of a plain write."""
    whole = contents(extract(tmp_path / "whole").folder)
    save, calls = safetensors.torch.save_file, []

    def full(tensors, path, metadata):
        calls.append(path)
        if len(calls) == 4:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(tensors, path, metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left on device"):
        extract(tmp_path / "broken")
    assert sorted(contents(tmp_path / "broken")) == ["plan.json", *(f"shard-0000{n}.safetensors" for n in range(3))]
    extract(tmp_path / "broken")
    assert contents(tmp_path / "broken") == whole


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


def places_of(path):
    """The first byte of each tensor in a shard."""
    import json

    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return {name: 8 + length + header[name]["data_offsets"][0] for name in ("rows", "image", "position", "crc32")}


@pytest.mark.parametrize("where", ["rows", "crc32", "header"])
def test_a_flipped_byte_is_found_by_whoever_reads_it_and_mended_by_extracting_again(tmp_path, extract, where):
    found = extract(tmp_path)
    whole = contents(tmp_path)
    shard = tmp_path / "shard-00002.safetensors"
    flip(shard, {**places_of(shard), "header": shard.read_bytes().index(b'"rows":{"dtype"') + 3}[where])
    with pytest.raises(InputError, match=r"shard-00002\.safetensors is damaged"):
        list(islice(ActivationStore(tmp_path).batches(16), found.n_rows // 16))
    with pytest.raises(InputError, match=r"shard-00002\.safetensors is damaged \(its SHA-256"):
        ActivationStore(tmp_path).verify()
    told = CliRunner().invoke(app, ["activations", "verify", str(tmp_path)])
    assert told.exit_code == 2
    assert len(told.stderr.strip().splitlines()) == 1
    extract(tmp_path)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("where", ["image", "position"])
def test_a_flipped_byte_in_the_labels_is_found_when_rows_are_chosen_by_image(tmp_path, where):
    found = labelled_store(tmp_path)
    path = tmp_path / "shard-00001.safetensors"
    flip(path, places_of(path)[where])
    with pytest.raises(InputError, match=rf"shard-00001\.safetensors is damaged \(the checksum of {where}"):
        found.batches(4, images=[0])


def test_a_shard_damaged_before_the_end_of_an_interrupted_extraction_is_made_again(tmp_path, extract):
    """Its damage must not get into the seal."""
    extract(tmp_path)
    whole = contents(tmp_path)
    for name in ("done.json", "activations.json", "shard-00005.safetensors"):
        (tmp_path / name).unlink()
    flip(tmp_path / "shard-00000.safetensors", -1)
    (tmp_path / "shard-00003.safetensors").write_bytes(b"")
    extract(tmp_path)
    assert contents(tmp_path) == whole


def test_a_missing_shard_is_named_and_made_again(tmp_path, extract):
    found = extract(tmp_path)
    whole = contents(tmp_path)
    (tmp_path / "shard-00004.safetensors").unlink()
    with pytest.raises(InputError, match=r"shard-00004\.safetensors is gone; extract again"):
        list(islice(found.batches(16), found.n_rows // 16))  # opened before it was lost
    with pytest.raises(InputError, match=r"lacks shard-00004\.safetensors"):
        ActivationStore(tmp_path)
    extract(tmp_path)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_row_that_is_not_finite_is_named_by_image_and_position(tmp_path, monkeypatch, dtype, value):
    monkeypatch.setattr(store, "BLOCK_BYTES", 7 * 4 * dtype.itemsize)
    rows = labelled_rows(12, 10)
    rows[73, 2] = value
    found = labelled_store(tmp_path, rows=rows, dtype=dtype)
    with pytest.raises(InputError, match=r"a row that is not finite: image 007\.png, position 3; extract"):
        list(islice(found.batches(10), 12))
    with pytest.raises(InputError, match="not finite"):
        found.verify()
    assert len(list(islice(found.batches(10, images=[0, 1, 2, 3]), 4))) == 4  # in another shard


def test_features_too_large_for_float16_are_refused_when_they_are_extracted(phantoms, tmp_path):
    model = new_classifier("tinynet_e", 1, seed=0)
    model.bn2.bias.data.fill_(1e5)
    with HookedVisionModel(model, ["bn2"]) as hooked:
        with pytest.raises(InputError, match=r"image .*\.png has features above 65504, .* bfloat16 or float32"):
            extract_activations(hooked, phantoms, tmp_path / "half", dtype="float16")
        few = phantoms.select(split="test")
        assert extract_activations(hooked, few, tmp_path / "brain", dtype="bfloat16").rows_of([0]).max() > 65504
