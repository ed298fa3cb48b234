"""Files that were found whole are read again only when their size or times are other; `verify` reads all."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from mammosae_plugin import checked_files
from mammosae_plugin.checked_files import changed_files, note_of
from mammosae_plugin.cli import app
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sha256_of_file
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.shards import run_shards
from mammosae_plugin.study.verifying import verify


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two files, which are old enough."""
    monkeypatch.setattr(checked_files, "_SETTLED", -60.0)
    monkeypatch.setenv("MAMMOSAE_CACHE", str(tmp_path / "cache"))
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    return tmp_path


@pytest.fixture
def reads(monkeypatch):
    """The names of files that were read whole."""
    found = []

    def read(path):
        found.append(path.name)
        return sha256_of_file(path)

    monkeypatch.setattr(checked_files, "sha256_of_file", read)
    return found


def digests_of(folder):
    return {name: sha256_of_file(folder / name) for name in ("a.bin", "b.bin")}


def overwrite(path, data):
    """Write it so that its time is another, however coarse the clock of the file system."""
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:
        path.write_bytes(data)


def test_what_was_found_whole_is_not_read_again(folder, reads):
    digests = digests_of(folder)
    assert changed_files(folder, digests) == [] and reads == ["a.bin", "b.bin"]
    assert changed_files(folder, digests) == [] and len(reads) == 2
    assert changed_files(folder, digests, anew=True) == [] and len(reads) == 4


@pytest.mark.parametrize("data", [b"a.bin" * 99, b"A.bin" * 100])
def test_another_size_or_time_is_read_again_and_told(folder, reads, data):
    digests = digests_of(folder)
    changed_files(folder, digests)
    overwrite(folder / "a.bin", data)
    assert changed_files(folder, digests) == ["a.bin"] and reads == ["a.bin", "b.bin", "a.bin"]
    overwrite(folder / "a.bin", b"a.bin" * 100)
    assert changed_files(folder, digests) == []
    (folder / "b.bin").unlink()
    assert changed_files(folder, digests) == ["b.bin"]


def test_another_digest_is_held_against_the_file(folder):
    digests = digests_of(folder)
    changed_files(folder, digests)
    assert changed_files(folder, {**digests, "b.bin": digests["a.bin"]}) == ["b.bin"]


def test_what_was_written_just_now_is_not_noted(folder, reads, monkeypatch):
    monkeypatch.setattr(checked_files, "_SETTLED", 1e6)  # one that is overwritten at once may have the same time
    digests = digests_of(folder)
    assert changed_files(folder, digests) == changed_files(folder, digests) == []
    assert len(reads) == 4 and not note_of(folder).exists()


def test_a_copy_is_read_again(folder, reads, tmp_path_factory):
    digests = digests_of(folder)
    changed_files(folder, digests)
    copy = tmp_path_factory.mktemp("copies") / "copy"
    shutil.copytree(folder, copy)  # which keeps the time of the content
    assert changed_files(copy, digests) == [] and len(reads) == 4


def test_damage_that_changes_no_time_is_found_anew_and_remembered_no_more(folder):
    digests = digests_of(folder)
    changed_files(folder, digests)
    overwrite(folder / "a.bin", b"A.bin" * 100)
    found = (folder / "a.bin").stat()
    noted = json.loads(note_of(folder).read_text())
    noted["a.bin"][1:] = [found.st_size, found.st_mtime_ns, found.st_ctime_ns]  # as if the disk had done it
    note_of(folder).write_text(json.dumps(noted))
    assert changed_files(folder, digests) == []
    assert changed_files(folder, digests, anew=True) == ["a.bin"]
    assert changed_files(folder, digests) == ["a.bin"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a.bin": 1}'])
def test_a_damaged_note_only_costs_reading(folder, reads, text):
    note_of(folder).parent.mkdir(parents=True)
    note_of(folder).write_text(text)
    assert changed_files(folder, digests_of(folder)) == [] and reads == ["a.bin", "b.bin"]


def test_where_nothing_can_be_written_files_are_read(folder, monkeypatch):
    def full(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(checked_files, "write_json", full)
    assert changed_files(folder, digests_of(folder)) == []


def test_a_job_that_is_done_reads_no_shard(folder, reads):
    def run():
        run_shards(folder / "job", {"of": "test"}, 4, 2, lambda items: {"x": torch.ones(len(items))}, description="x")

    run()
    run()  # the first run that finds it done looks through it
    assert sorted(set(reads)) == ["shard-00000.safetensors", "shard-00001.safetensors"]
    n = len(reads)
    run()
    assert len(reads) == n
    overwrite(folder / "job" / "shard-00001.safetensors", b"no shard")
    run()
    run()
    assert verify(folder / "job").damaged == ()


def test_a_study_is_verified_and_what_is_damaged_is_named(finished_study, tmp_path):
    study = tmp_path / "study"
    shutil.copytree(finished_study.output, study)
    sae = study / "work" / "sae" / "1a2b3c4d5e6f" / "sae_weights.safetensors"
    sae.parent.mkdir(parents=True)
    sae.write_bytes(b"weights")
    (sae.parent / "training.json").write_text(json.dumps({"files": {sae.name: sha256_of_file(sae)}}))
    found = verify(study)
    assert not found.damaged and found.n_files > 10 and found.nbytes > 10_000
    answer = CliRunner().invoke(app, ["verify", str(study)])
    assert answer.exit_code == 0 and f"{found.n_files} files" in answer.output and "all as recorded" in answer.output
    table = next(path.parent for path in sorted(study.glob("work/latents/*/table.json")))
    shard = next(iter(sorted(table.glob("test/shard-*.safetensors"))))
    images = table / "training" / "images.parquet"
    for path in (shard, sae):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    images.unlink()
    assert verify(study).damaged == tuple(sorted([shard, sae, images]))
    answer = CliRunner().invoke(app, ["verify", str(study)])
    assert answer.exit_code == 2 and f"3 of {found.n_files} files" in answer.output
    assert all(f"damaged or missing: {path}" in answer.output for path in (shard, sae, images))
    with pytest.raises(InputError, match=r"images\.parquet"):
        LatentTable(table)


@pytest.mark.parametrize("name", ["table.json", "test/done.json", "test/plan.json"])
def test_damaged_records_are_named_too(finished_study, tmp_path, name):
    table = next(path.parent for path in sorted(finished_study.output.glob("work/latents/*/table.json")))
    shutil.copytree(table, tmp_path / "table")
    (tmp_path / "table" / name).write_text('{"changed": true}')
    assert any(path.parent == (tmp_path / "table" / name).parent for path in verify(tmp_path / "table").damaged)


@pytest.mark.parametrize("place", ["missing", "file", "empty"])
def test_what_holds_nothing_to_verify_is_one_line(tmp_path, place):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    answer = CliRunner().invoke(app, ["verify", str(tmp_path / place)])
    assert answer.exit_code == 2 and "name a study's output folder" in answer.output
