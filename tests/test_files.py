import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch

from mammosae_plugin import provenance
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import atomic_path, read_json, sha256_of_json, write_json, write_text
from mammosae_plugin.locks import only_run
from mammosae_plugin.provenance import environment, plain, tensors_fingerprint, torch_generator
from mammosae_plugin.shards import run_shards, shard_paths, verify_shards


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path):
    path = tmp_path / "value.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["value.txt"]


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "value.txt"
    write_text(path, "old")
    script = f"""
        import os
        from mammosae_plugin.files import atomic_path
        with atomic_path({str(path)!r}) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), 9)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)]).returncode == -9
    assert path.read_text() == "old"


def test_a_file_where_a_folder_goes_is_named(tmp_path):
    (tmp_path / "table.csv").write_text("mine")
    for inside in ("a.txt", "b/c/a.txt"):
        with pytest.raises(InputError, match=r"table\.csv is no folder; name another place for what is written"):
            write_text(tmp_path / "table.csv" / inside, "x")
    with pytest.raises(InputError, match=r"table\.csv is no folder"), only_run(tmp_path / "table.csv"):
        pass
    assert (tmp_path / "table.csv").read_text() == "mine"


def test_a_full_disk_is_told_with_the_file_that_was_written(tmp_path):
    with pytest.raises(OSError, match="No space left") as told, atomic_path(tmp_path / "a.bin"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert told.value.filename == str(tmp_path / "a.bin")


def test_somebodys_plan_is_kept_under_another_name(tmp_path):
    (tmp_path / "plan.json").write_text("mine")
    run_shards(tmp_path, {"a": 1}, 1, 1, lambda items: {"x": torch.zeros(len(items))}, description="x")
    assert (tmp_path / "plan.edited.json").read_text() == "mine"
    verify_shards(tmp_path)


def test_json_with_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "x.json", {"value": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"value": ')
    with pytest.raises(InputError, match="x.json is not valid JSON"):
        read_json(tmp_path / "x.json")


def test_a_name_that_json_gives_twice_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"x": [{"y": 1, "z": 2, "y": 1}]}')
    with pytest.raises(InputError, match=r"a\.json gives 'y' twice, of which only one would count; remove one"):
        read_json(tmp_path / "a.json")


def test_the_json_digest_ignores_the_order_of_keys():
    assert sha256_of_json({"a": 1, "b": 2}) == sha256_of_json({"b": 2, "a": 1}) != sha256_of_json({"a": 1, "b": 3})


def test_plain_makes_numpy_and_nan_fit_for_json():
    value = plain({"a": torch.tensor(2), "b": [float("nan"), 1.5], "c": (torch.tensor(0.5),)})
    assert json.dumps(value) == '{"a": 2, "b": [null, 1.5], "c": [0.5]}'


def test_a_fingerprint_tells_values_names_and_dtypes_apart():
    base = {"a": torch.zeros(3)}
    others = [{"a": torch.ones(3)}, {"b": torch.zeros(3)}, {"a": torch.zeros(3, dtype=torch.float64)}]
    assert all(tensors_fingerprint(base) != tensors_fingerprint(other) for other in others)
    assert tensors_fingerprint(base) == tensors_fingerprint({"a": torch.zeros(3)})


def test_a_generator_depends_on_all_of_its_parts():
    draws = [torch.rand(1, generator=torch_generator(*parts)).item() for parts in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert draws[0] == draws[3]
    assert len(set(draws)) == 3


def _squares(items):
    return {"square": torch.tensor([float(item) ** 2 for item in items])}


def test_shards_killed_halfway_continue_and_end_the_same(tmp_path):
    run_shards(tmp_path / "whole", {"job": 1}, 10, 3, _squares, description="")
    computed = []

    def fails_late(items):
        computed.append(items.start)
        if len(computed) == 3:
            raise KeyboardInterrupt
        return _squares(items)

    with pytest.raises(KeyboardInterrupt):
        run_shards(tmp_path / "broken", {"job": 1}, 10, 3, fails_late, description="")
    with pytest.raises(InputError, match="not complete"):
        shard_paths(tmp_path / "broken")
    run_shards(tmp_path / "broken", {"job": 1}, 10, 3, fails_late, description="")
    assert computed == [0, 3, 6, 6, 9]
    for one, other in zip(shard_paths(tmp_path / "whole"), shard_paths(tmp_path / "broken"), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_shards_of_another_plan_are_refused(tmp_path):
    run_shards(tmp_path, {"job": 1}, 4, 2, _squares, description="")
    with pytest.raises(InputError, match="other settings"):
        run_shards(tmp_path, {"job": 2}, 4, 2, _squares, description="")


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "unfinished"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda plan: plan.write_text(plan.read_text().replace('"job": 1', '"job": 3')),
        lambda plan: plan.write_text(plan.read_text().replace('"job": 1', '"job": 2')),  # what the other run asks for
        lambda plan: plan.write_bytes(plan.read_bytes()[:9]),
        lambda plan: plan.write_bytes(b"\xff\xfe"),
        lambda plan: plan.write_bytes(b""),
        lambda plan: plan.unlink(),
    ],
    ids=["flipped", "of-another", "cut", "no-text", "empty", "removed"],
)
def test_a_damaged_plan_is_told_and_written_again_and_costs_no_shard(tmp_path, spoil, sealed):
    run_shards(tmp_path, {"job": 1}, 4, 2, _squares, description="")
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    plan, done = tmp_path / "plan.json", tmp_path / "done.json"
    spoil(plan)
    with pytest.raises(InputError, match=r"plan\.json is missing or was changed .* run the step that writes it again"):
        verify_shards(tmp_path)
    if not sealed:
        done.unlink()
    spoiled = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if sealed or spoiled.get("plan.json", b"").find(b'"job": 2') < 0:
        with pytest.raises(InputError, match=r"is missing or damaged, and these are not|holds the result of other"):
            run_shards(tmp_path, {"job": 2}, 4, 2, _squares, description="")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == spoiled
    run_shards(tmp_path, {"job": 1}, 4, 2, lambda _: pytest.fail("a whole shard was computed again"), description="")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


def test_damaged_and_missing_shards_are_computed_again_and_no_others(tmp_path):
    run_shards(tmp_path, {"job": 1}, 6, 2, _squares, description="")
    first, second, third = shard_paths(tmp_path)
    before = [path.read_bytes() for path in (first, second, third)]
    first.write_bytes(before[0][:-1] + b"x")
    third.unlink()
    computed = []

    def remember(items):
        computed.append(items.start)
        return _squares(items)

    run_shards(tmp_path, {"job": 1}, 6, 2, remember, description="")
    assert computed == [0, 4]
    assert [path.read_bytes() for path in shard_paths(tmp_path)] == before
    (tmp_path / "done.json").write_text("{}")
    run_shards(tmp_path, {"job": 1}, 6, 2, remember, description="")
    verify_shards(tmp_path)


def test_a_flipped_byte_and_a_missing_shard_are_found(tmp_path):
    run_shards(tmp_path, {"job": 1}, 4, 2, _squares, description="")
    verify_shards(tmp_path)
    first, second = shard_paths(tmp_path)
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        verify_shards(tmp_path)
    second.unlink()
    with pytest.raises(InputError, match="lacks shard-00001"):
        shard_paths(tmp_path)


def test_the_commit_is_told_where_git_or_pip_knows_it(monkeypatch, tmp_path):
    def told(**found):
        origin = SimpleNamespace(read_text=lambda name: json.dumps(found) if found else None)
        monkeypatch.setattr(provenance, "distribution", lambda name: origin)
        provenance._commit.cache_clear()
        return environment().get("commit")

    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "package" / "provenance.py"))
    assert told(vcs_info={"commit_id": "0f1e" * 10}) == "0f1e" * 10
    assert told(dir_info={"editable": True}) is None and told() is None
    if shutil.which("git") is None:
        return
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert told() == head
    monkeypatch.setenv("PATH", str(tmp_path))  # no git there
    assert told() is None
    monkeypatch.undo()
    provenance._commit.cache_clear()
