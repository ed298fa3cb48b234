"""Several processes do what one does: the same files, the same SAE, also when one of them is killed on the way.

The processes run in `program_distributed.py`, all of its jobs once for all tests here, and once under torchrun itself.
"""

import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from datetime import timedelta
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from helpers_distributed import KILLED_AT_STEP, LAYERS, TRAININGS
from helpers_stores import labelled_store
from helpers_study import study_settings

from mammosae_plugin import distributed
from mammosae_plugin.activations import ActivationStore
from mammosae_plugin.config import load_config
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.study import Study
from mammosae_plugin.training.metrics import read_metrics

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"
PATH = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PATH}
pytestmark = pytest.mark.slow

# Taken over: four processes, one killed in the extraction, none restarted; then two, one killed in the training and
# restarted. Restarted: two, one killed in the extraction and restarted, the writing one killed in the training; then
# one process alone.
HISTORIES = ("taken over", "restarted")

SLURM = {
    "scontrol": """[ "$*" = "show hostnames node[1-2]" ] && printf 'localhost\\nnode2\\n'""",
    "srun": """
for node in node1 node2; do
    export HOME="$SCRATCH/$node/home" TMPDIR="$SCRATCH/$node/tmp"
    mkdir -p "$HOME" "$TMPDIR"
    (cd "$SCRATCH/$node" && exec "$@") &
    started+=($!)
done
for process in "${started[@]}"; do wait "$process" || code=$?; done
exit "${code:-0}"
""",
}


@pytest.fixture(scope="module")
def done(tmp_path_factory, phantom_root):
    """The folder in which the program has done its jobs, and what it printed."""
    out = tmp_path_factory.mktemp("processes")
    command = [sys.executable, str(TESTS / "program_distributed.py"), str(out), str(phantom_root)]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return out, result.stderr


def free_job():
    """A job's number whose port by the recipe nobody has."""

    def is_free(number):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", 20000 + number % 20000))
            return True
        return False

    return next(filter(is_free, count(os.getpid())))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_processes_were_killed_and_restarted_as_it_is_told_here(done):
    out, _ = done
    said = json.loads((out / "codes.json").read_text())
    # Of several processes that end, which one torchrun sees first is chance: the killed one, or one that it left alone.
    failed = {job: bool(codes) and 0 not in codes for job, codes in said["codes"].items()}
    assert failed == {job: job in ("four, one killed", "restarted", "bad input", "no config") for job in failed}
    assert said["codes"]["bad input"] == said["codes"]["no config"] == [2]
    assert set(said["checkpoints"]) == set(TRAININGS)  # the training was under way when its last process was killed
    deaths = {str(path.relative_to(out / "deaths")) for path in (out / "deaths").rglob("*") if path.is_file()}
    assert deaths == {
        "taken over/extracting-3", "taken over/training-1", "restarted/extracting-1", "restarted/training-0"
    }  # fmt: skip


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("what", ["stores", "table"])
def test_stores_and_tables_are_those_of_one_process_byte_for_byte(done, history, what):
    out, _ = done
    expected = contents(out / "one" / what)
    assert contents(out / history / what) == expected
    n_images = 48
    assert sum("shard-" in name for name in expected) == {"stores": n_images, "table": 13}[what]
    if what == "stores":
        for layer in LAYERS:
            ActivationStore(out / history / what / layer).verify()
    else:
        assert len(LatentTable(out / history / what).images) == n_images


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_killed_and_continued_by_two_make_the_sae_of_two_undisturbed_bit_for_bit(done, name):
    """Every sum is then formed in the same order."""
    out, _ = done
    undisturbed, killed = (out / side / "saes" / name for side in ("two", "taken over"))
    for file in ("cfg.json", "sae_weights.safetensors", "metrics.jsonl"):
        assert (killed / file).read_bytes() == (undisturbed / file).read_bytes(), file
    assert not (killed / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("history", [*HISTORIES, "two"])
@pytest.mark.parametrize("name", TRAININGS)
def test_the_sae_of_several_processes_learns_as_that_of_one(done, history, name):
    """The same loss curve and quality. Not the same bits: sums of another order, in which a latent that was just chosen
    may just not be, and Adam makes a whole step of a gradient's last digit."""
    out, _ = done
    one, several = (read_metrics(out / side / "saes" / name / "metrics.jsonl") for side in ("one", history))
    assert [(row["step"], row["of"]) for row in several] == [(row["step"], row["of"]) for row in one]
    assert several[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-2)
    for row, other in zip(one, several, strict=True):
        assert row.keys() == other.keys()
        assert row.get("rows") == other.get("rows")
        for key in ("loss", "mse_loss", "mse"):
            if key in row:
                assert other[key] == pytest.approx(row[key], rel=0.05), (row["step"], key)
        for key in ("explained_variance", "dead_share", "slope"):
            if row.get(key) is not None:
                assert other[key] == pytest.approx(row[key], abs=0.1), (row["step"], key)
        if "l0" in row:
            assert other["l0"] == pytest.approx(row["l0"], rel=0.1, abs=0.2)
    if "dead latents" in name:
        late = [row for row in one if row["of"] == "batch" and row["step"] > KILLED_AT_STEP]
        assert max(row["dead_share"] for row in late) > 0.05
        assert max(row["auxiliary_reconstruction_loss"] for row in late) > 0
    if name == "resampled":
        assert sum(row.get("n_dead", 0) for row in one) > 0


def test_an_error_of_one_process_is_the_error_of_all_at_once(done):
    out, _ = done
    first, second = (json.loads((out / f"said-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert re.fullmatch(r"image \S+: cannot be read \(.*\)", first["one image"])
    assert first["a full disk"] == "shard-00001.safetensors: No space left on device"
    assert "33 rows cannot be divided equally among 2 processes" in first["an odd batch"]
    assert "all hosts must share one folder" in first["other folders"]


@pytest.mark.parametrize(
    ("job", "line"),
    [
        ("meet_bad_input", "mammosae: only process 1 met this"),
        ("command", "mammosae: cannot read the configuration missing.yaml: No such file or directory"),
    ],
)
def test_bad_input_is_told_in_one_line_by_one_process(done, job, line):
    part = next(part for part in done[1].split("== ") if part.startswith(f"2 {job}"))
    assert [found for found in part.splitlines() if found.startswith("mammosae:")] == [line]


def test_processes_share_the_images_that_they_screen_and_hash_and_find_what_one_finds(done):
    out, _ = done
    one, first, second = (
        json.loads((out / folder / f"said-{rank}.json").read_text())
        for folder, rank in (("look-1", 0), ("look-2", 0), ("look-2", 1))
    )
    for name in ("content", "kept", "error", "again"):
        assert one[name] == first[name] == second[name], name
    assert one["again"] == [one["content"], one["kept"]]
    n_images = len(one["kept"]) + 1
    assert re.match(rf"1 of {n_images} images \(.*\) are bad", one["error"])
    assert one["hashed"][::2] == first["hashed"] and one["hashed"][1::2] == second["hashed"]
    assert len(set(one["hashed"])) == n_images
    # Each looked at its half of them, the second one not at the image that cannot be read.
    assert [said["looked"] for said in (one, first, second)] == [n_images - 1, n_images // 2, n_images // 2 - 1]
    lists = [{path.name: path.read_bytes() for path in (out / name).glob("*-*.csv")} for name in ("look-1", "look-2")]
    assert lists[0] == lists[1]
    assert sorted(name.split("-")[0] for name in lists[0]) == ["quarantine", "suspects"]


def test_the_recipe_for_slurm_runs_on_two_nodes_with_scratch_of_their_own(tmp_path, phantom_root):
    """The file of docs/scaling.md itself, where Slurm's two commands are stood in for: `srun` starts a node's processes
    in a folder, a home and a TMPDIR of its own. The nodes share the study's output alone."""
    settings = study_settings(tmp_path, phantom_root)
    settings |= {"models": settings["models"][:1], "concepts": ["Mass"]}
    training = {"d_sae": 32, "batch_size": 32, "epochs": 4, "architecture": "batchtopk", "k": 4, "lr": 1e-3}
    training |= {"dead_feature_window": 5}
    source = {"model": "pretrained", "concept": "Mass", "count": 4, "dtype": "float16", "training": training}
    settings["sae"] = {"train": source}
    settings["analysis"]["top"] = 4
    del settings["models"][0]["classifiers"]["Suspicious_Calcification"]
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(settings))
    page = (DOCS / "scaling.md").read_text(encoding="utf-8")
    script, submit = re.findall(r"```bash\n(.+?)```", page, flags=re.DOTALL)
    recipe, commands = tmp_path / "mammosae.slurm", tmp_path / "bin"
    recipe.write_text(script)
    commands.mkdir()
    for name, text in SLURM.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}")
        (commands / name).chmod(0o755)
    here = {"/shared/study.yaml": str(file), "cuda": "cpu", "num_workers=8": "num_workers=0"}
    submitted = [here.get(word, word) for word in shlex.split(submit)]
    assert submitted[:2] == ["sbatch", recipe.name]
    places = {"PATH": os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])}
    job = {"SLURM_JOB_ID": str(free_job()), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    result = subprocess.run(
        ["bash", str(recipe), *submitted[2:], "--output", str(tmp_path / "two")],
        env=ENVIRONMENT | places | job | {"SCRATCH": str(tmp_path / "scratch")},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert sorted(path.name for path in (tmp_path / "scratch").iterdir()) == ["node1", "node2"]
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))  # all that is shared lies in the output
    assert result.stdout.count("encode: done") == 1
    assert len(re.findall(r"extract activations: +0%", result.stderr)) == 1  # one process shows progress
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun's processes have
    try:
        Study(load_config(file, replace={"output": tmp_path / "one"})).run(until="encode")
    finally:
        torch.set_num_threads(n_threads)
    work = [tmp_path / name / "work" for name in ("two", "one")]
    assert contents(work[0] / "activations") == contents(work[1] / "activations")
    assert len(list(work[0].glob("activations/*/*/shard-*"))) == 1
    last = [read_metrics(next(side.glob("sae/*/metrics.jsonl")))[-1] for side in work]
    assert last[0]["mse"] == pytest.approx(last[1]["mse"], rel=0.05)
    tables = [LatentTable(next(side.glob("latents/*/table.json")).parent) for side in work]
    without = [table.logits("Mass") for table in tables]
    assert np.array_equal(*without)


@pytest.mark.parametrize("n_parts", [2, 4])
def test_the_parts_of_batches_make_the_batches(tmp_path, n_parts):
    store = labelled_store(tmp_path / "store", n_images=12, n_positions=10)
    settings = {"seed": 3, "start": 2, "reservoir_rows": 40}
    whole = islice(store.batches(8, **settings), 30)  # two epochs
    parts = [store.batches(8, **settings, part=(number, n_parts)) for number in range(n_parts)]
    for batch in whole:
        pieces = [next(part) for part in parts]
        assert {len(piece) for piece in pieces} == {8 // n_parts}
        assert torch.equal(torch.cat(pieces), batch)


def test_a_part_that_is_not_whole_is_refused(tmp_path):
    store = labelled_store(tmp_path / "store")
    with pytest.raises(InputError, match="no part 0 of 3 equal parts of a batch of 8 rows"):
        store.batches(8, part=(0, 3))


def test_one_process_alone_waits_for_nobody(monkeypatch):
    monkeypatch.setattr(distributed.time, "sleep", lambda seconds: pytest.fail(f"waits {seconds} s"))
    distributed.start()
    with distributed.together(), distributed.main_first(), distributed.alone():
        distributed.check()
    total = torch.ones(2)
    distributed.add_up([total])
    assert distributed.on_main(lambda: 7) == 7
    assert distributed.share([1, 2, 3]) == [1, 2, 3]
    for n_threads in (0, 2):
        assert distributed.spread(str, [1, 2, 3], n_threads=n_threads, description="", unit="") == ["1", "2", "3"]
    assert distributed.gathered(total).shape == (1, 2)
    assert torch.equal(total, distributed.mean(total))
    assert (distributed.rank(), distributed.world_size(), distributed.place("cuda")) == (0, 1, "cuda")
    assert distributed.ending(2) == (True, 2)


@pytest.mark.parametrize("order", [(1, 0), (0, 1)])
def test_a_process_that_another_one_left_ends_as_that_one_did(monkeypatch, order):
    """The second one's own error, of a lost connection (exit code 1), is only a consequence."""
    store = dist.HashStore()
    monkeypatch.setattr(distributed, "_GRACE", timedelta(0))
    found = []
    for rank, exit_code in zip(order, (2, 1), strict=True):
        monkeypatch.setattr(distributed, "_team", distributed._Team(rank, 2, store, None))
        found.append(distributed.ending(exit_code))
    assert found == [(True, 2), (False, 2)]


def test_without_torchrun_s_store_each_process_tells_its_error(monkeypatch):
    monkeypatch.setattr(distributed, "_team", distributed._Team(0, 2, None, None))
    assert distributed.ending(1) == (True, 1)
