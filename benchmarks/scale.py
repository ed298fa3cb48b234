"""Time, memory and disk of what follows the networks, by the number of images, latents and encoders: docs/scaling.md.

    python benchmarks/scale.py --folder scale [--share 0.1] [--only images rows] [--steps evidence "Space built"]
    python benchmarks/scale.py --folder scale --table      # what has been measured, as Markdown

Every measurement is a process of its own (`scale_steps.py`), one after the other, and one line of JSON in
`FOLDER/measured.jsonl`: CPU seconds of the step alone, the largest memory of its process (with all imports, about 1
GB), and what it wrote. A run that was killed goes on where it stopped; a step whose line is deleted is measured
again. The folder takes 7 GB, and may be deleted afterwards.

The exponent is the slope of a line through the measurements in logarithms: 1 is linear, 0 independent. Where a step
took less than 0.05 s at its largest none is told.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

OF_TABLE = (
    *("table written", "table read", "places of one latent", "activations of one latent", "ranking", "sweep"),
    *("evidence", "confounders", "neighbours", "audit"),
)
OF_FINDINGS = ("findings written", "findings staged", "Space built", "Space guarded")
OF_ROWS = (
    *("embeddings written", "rows encoded", "rows read", "rows: evidence", "rows: meaning"),
    *("rows: one image retrieved", "rows: audit"),
)
OF_PROCESS = ("imports", "network made and read", "two images extracted", "two images encoded")
OF_FILES = ("images decoded", "images screened", "images hashed")
# By axis what is measured, and where: images (or rows), latents, encoders.
AXES: dict[str, tuple[Sequence[str], Sequence[tuple[int, int, int]]]] = {
    "images": ((*OF_TABLE, *OF_FINDINGS), [(n, 16_384, 3) for n in (2_500, 5_000, 10_000, 20_000)]),
    "latents": (("table written", *OF_TABLE[6:9], *OF_FINDINGS), [(5_000, n, 3) for n in (4_096, 8_192, 16_384)]),
    "encoders": (OF_FINDINGS, [(20_000, 16_384, n) for n in (1, 2, 3)]),
    "rows": (OF_ROWS, [(n, 8_192, 1) for n in (25_000, 50_000, 100_000, 200_000)]),
    "files": (OF_FILES, [(n, 0, 0) for n in (8, 16, 32)]),
    "process": (OF_PROCESS, [(1, 0, 0)]),
}
VARIED = {"images": 0, "latents": 1, "encoders": 2, "rows": 0, "files": 0, "process": 0}
LEAST_SECONDS = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--share", type=float, default=1.0, help="of the images and rows")
    parser.add_argument("--only", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--steps", nargs="+", help="of these axes, these steps alone")
    parser.add_argument("--table", action="store_true", help="print what has been measured, and measure nothing")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    kept = options.folder / "measured.jsonl"
    if not options.table:
        for axis in options.only:
            if axis == "process":
                measure_process(kept)
            else:
                measure(kept, axis, options.share, options.steps)
    print("\n".join(table(read(kept))))


def read(kept: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []


def measure(kept: Path, axis: str, share: float, chosen: Sequence[str] | None) -> None:
    from scale_steps import measured  # with torch and all else: not for a table

    steps, sizes = AXES[axis]
    for of_all in sizes:
        size = (max(round(of_all[0] * (share if axis != "files" else 1)), 8), *of_all[1:])
        for step in steps:
            done = {(row["step"], *row["size"]) for row in read(kept)}
            if (step, *size) in done or (chosen is not None and step not in chosen):
                continue
            if (found := measured(kept.parent, step, size)) is None:
                print(f"{step} at {size} failed", flush=True)
                continue
            row = {"step": step, "size": size, **found}
            with kept.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def measure_process(kept: Path) -> None:
    if any(row["step"] in OF_PROCESS for row in read(kept)):
        return
    command = [sys.executable, str(Path(__file__).with_name("scale_process.py"))]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    with kept.open("a") as file:
        file.writelines(json.dumps({**json.loads(line), "size": [1, 0, 0]}) + "\n" for line in said.splitlines())
    print(said, end="")


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of the straight line through logarithms, by least squares; NaN of fewer than two sizes."""
    x, y = [math.log(one) for one in sizes], [math.log(one) for one in values]
    middle, height = sum(x) / len(x), sum(y) / len(y)
    spread = sum((one - middle) ** 2 for one in x)
    return sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True)) / spread if spread else math.nan


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A Markdown table for each axis: every step at its largest size, and how it grows along the axis."""
    measured = {(row["step"], *row["size"]): row for row in rows}
    for axis, (steps, sizes) in AXES.items():
        at, largest = VARIED[axis], max(size[0] for size in sizes)
        fixed = [size[1:] if at == 0 else size for size in sizes]
        yield f"\n{axis}: {', '.join(str(size[at]) for size in sizes)}\n"
        yield "| step | CPU s | exponent | memory, GB | exponent of what the step adds | disk, MB | exponent |"
        yield "|---|---|---|---|---|---|---|"
        for step in steps:
            own = sorted(
                (
                    row
                    for (name, *size), row in measured.items()
                    if name == step and (tuple(size[1:]) in fixed if at == 0 else tuple(size) in fixed)
                ),
                key=lambda row: row["size"][at],
            )
            if not own or (at == 0 and own[-1]["size"][0] > largest):
                continue
            last, at_sizes = own[-1], [row["size"][at] for row in own]
            slow = last["cpu_s"] >= LEAST_SECONDS
            cpu = exponent(at_sizes, [max(row["cpu_s"], 1e-3) for row in own]) if slow else math.nan
            added = [max(row["memory_mb"] - row.get("memory_before_mb", 0.0), 1.0) for row in own]
            disk = [row.get("disk_mb") for row in own]
            cells = [
                f"{last['cpu_s']:.2g}" if last["cpu_s"] < 10 else f"{last['cpu_s']:.0f}",
                told(cpu),
                f"{last['memory_mb'] / 1024:.2f}",
                told(exponent(at_sizes, added)),
                "" if disk[-1] is None else f"{disk[-1]:,.0f}",
                "" if None in disk else told(exponent(at_sizes, disk)),
            ]
            yield f"| {step} | {' | '.join(cells)} |"


def told(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


if __name__ == "__main__":
    main()
