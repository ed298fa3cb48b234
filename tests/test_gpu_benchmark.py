"""The script for a GPU: it runs where there is none, and says so."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, env=environment)


def test_the_script_measures_every_part_at_tiny_sizes_on_the_cpu(tmp_path):
    done = run("--cpu-check", "--out", str(tmp_path / "gpu.md"))
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "gpu.md").read_text()
    assert written == done.stdout.rstrip("\n") + "\n"
    assert "failed" not in written and "not begun" not in written
    for part in ("features of tinynet_e, bfloat16", "step of matryoshka_independent, float32", "encode_latents"):
        assert part in written


def test_without_a_gpu_it_says_so_in_one_line():
    done = run()
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("no GPU is here") and not done.stdout
