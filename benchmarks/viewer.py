"""What a reader of `mammosae view` waits for: 16,384 latents of three encoders, a table of 20,000 images.

    python benchmarks/viewer.py [--latents 16384 --images 20000 --live 850]

Synthetic findings are written for the pages once, then the command is started in a process of its own until its first
page is answered. With Chromium and playwright the list of latents is opened and sorted. Of an image of a synthetic
table what the server does for each question is measured. Seconds are of the CPU, of child processes too, except where
it says wall: other work on the machine counts there.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers_space import CHROMIUM_FLAGS, chromium, synthetic_findings, write_findings

from mammosae_plugin.findings.published import Findings
from mammosae_plugin.study.viewed_images import ViewedImages
from mammosae_plugin.study.viewing import Viewer

PLACE = {"layer": "final", "encoder": "pretrained", "concept": "Mass"}


def timed(what: str, do: Callable[[], Any]) -> Any:
    """Do it, and print how long it took."""
    start, cpu = time.perf_counter(), time.process_time()
    found = do()
    print(f"{what:<66} {time.process_time() - cpu:8.3f} s CPU {time.perf_counter() - start:8.3f} s wall", flush=True)
    return found


def started(folder: Path) -> subprocess.Popen[str]:
    """The command as people start it, until its first page is answered."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "mammosae_plugin", "view", str(folder), "--no-browser", "--port", "0"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    address = next(line for line in running.stdout if line.startswith("http")).partition("#")[0]
    with urllib.request.urlopen(f"{address}data/index.js") as answer:
        answer.read()
    wall = time.perf_counter() - start
    stat = Path(f"/proc/{running.pid}/stat")
    if stat.exists():
        ticks = stat.read_text().rpartition(")")[2].split()
        cpu = (int(ticks[11]) + int(ticks[12])) / 100
    else:
        cpu = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before.ru_utime
    print(f"{'start of the command to its first page':<66} {cpu:8.3f} s CPU {wall:8.3f} s wall", flush=True)
    running.address = address  # type: ignore[attr-defined]
    return running


def looked_at(address: str) -> None:
    """The list of latents in a browser: opened, and sorted by several columns."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=list(CHROMIUM_FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        start = time.perf_counter()
        page.goto(f"{address}#/")
        page.wait_for_selector("table.latents tbody tr")
        print(f"{'the list of latents is there':<66} {'':14} {time.perf_counter() - start:8.3f} s wall")
        took = page.evaluate(
            """async () => {
              const took = [];
              for (const column of ["latent", "rank", "ablation", "rate"]) {
                const button = document.querySelector(`table.latents thead th[data-key="${column}"] button`);
                if (!button) continue;
                const start = performance.now();
                button.click();
                await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
                took.push([column, (performance.now() - start) / 1000]);
              }
              return took;
            }"""
        )
        for column, seconds in took:
            print(f"{'sorted by ' + column:<66} {'':14} {seconds:8.3f} s wall")
        browser.close()


class SyntheticTable:
    """What the viewer asks of a latents table: sparse codes with a linear readout."""

    concepts, heads, readout_kind, grid, image_size = ("Mass",), ("Mass",), "linear", (48, 29), (1520, 912)
    splits, is_of_rows, folder = ("training", "test"), False, Path("TABLE")
    vocabulary = {"Mass": SimpleNamespace(classes=("absent", "present"), is_binary=True)}

    def __init__(self, n: int, d_sae: int, n_live: int) -> None:
        rng = np.random.default_rng(0)
        self.d_sae = d_sae
        live = np.sort(rng.choice(d_sae, n_live, replace=False))
        codes = sparse.random_array((n, n_live), density=0.4, format="coo", dtype=np.float32, rng=rng)
        self.mean_latents = sparse.csr_array((codes.data, (codes.row, live[codes.col])), shape=(n, d_sae))
        self.max_latents = self.mean_latents * np.float32(3)
        self._readout = SimpleNamespace(offset=np.zeros(1), weight=rng.normal(size=(d_sae, 1)) / 10)
        self._logits = self.mean_latents.astype(np.float64) @ self._readout.weight
        splits = np.where(np.arange(n) % 5 == 0, "test", "training")
        patients = [f"p{row // 4}" for row in range(n)]
        ids = [f"image_{row:05}" for row in range(n)]
        labels = (rng.random(n) < 0.1).astype(int)
        self.images = pd.DataFrame({"image_id": ids, "patient_id": patients, "split": splits, "Mass": labels})

    def readout(self, head: str) -> Any:  # noqa: ARG002
        return self._readout

    def logits(self, head: str) -> Any:  # noqa: ARG002
        return self._logits

    logits_with_sae = logits

    def boxes(self, row: int, concept: str) -> Any:  # noqa: ARG002
        return np.zeros((0, 4))

    def map_latents(self, row: int) -> Any:  # noqa: ARG002
        return np.arange(40)

    def maps(self, latents: Any, row: int) -> Any:  # noqa: ARG002
        return np.ones((len(latents), *self.grid), dtype=np.float32)


def asked(table: SyntheticTable) -> None:
    """What the server does for each question on an image."""
    encoder = SimpleNamespace(name="pretrained", model="pretrained", concepts=("Mass",), table=table)
    layer = SimpleNamespace(name="final", encoders={"pretrained": encoder})
    study: Any = SimpleNamespace(layers=[layer], primary_name="final", layer=lambda _: layer)
    images = ViewedImages(lambda: study, None, "study")
    timed("images by logit", lambda: images.rows(**PLACE, split="test", order="highest"))
    timed("the first image taken apart", lambda: images.image("5", **PLACE))
    timed("the next image taken apart", lambda: images.image("10", **PLACE))
    timed("latents at a place", lambda: images.at_place("10", **PLACE, cell=700))
    timed(
        "examples of a latent chosen",
        lambda: images.examples("final", "pretrained", int(table.mean_latents.indices[0])),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=16_384)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--live", type=int, default=850)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "study"
        findings = synthetic_findings(d_sae=options.latents, layers=("final",))
        small = synthetic_findings(d_sae=64, layers=("final",))
        write_findings(small, folder / "results" / "findings")  # only its files' sizes and times are looked at
        Findings.of_study = classmethod(lambda *_, **__: findings)  # type: ignore[assignment, method-assign]
        timed(
            "numbers written for the pages, once for the same findings", lambda: Viewer(folder, None, "").prepare(print)
        )
        running = started(folder)
        try:
            if chromium() is not None:
                looked_at(running.address)  # type: ignore[attr-defined]
        finally:
            running.terminate()
            running.wait()
    asked(SyntheticTable(options.images, options.latents, options.live))


if __name__ == "__main__":
    main()
