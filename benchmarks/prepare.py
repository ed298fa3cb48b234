"""`mammosae prepare` against pydicom's decoding of the same files, by transfer syntax; memory of few and many images.

    python benchmarks/prepare.py [--images 2000] [--few 500] [--height 3000 --width 2400] [--workers 2] [--made 4]

A few mammograms of 12 bit are drawn, written in each transfer syntax and hard-linked to as many files as asked for, so
that disks count for little. Both ways run over all files with as many processes: pydicom's dcmread and pixel_array
alone, and prepare_dicom as a whole, which also finds the breast, resizes, writes PNG, and keeps its records. Memory is
that of prepare_dicom's processes together (the peak of the sum of their resident pages, looked at ten times a second).
"""

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

SYNTAXES = ("explicit", "JPEG 2000", "JPEG lossless", "RLE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--few", type=int, default=500)
    parser.add_argument("--height", type=int, default=3000)
    parser.add_argument("--width", type=int, default=2400)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--made", type=int, default=4, help="different pictures, of which the files are links")
    parser.add_argument("--syntaxes", nargs="*", choices=SYNTAXES, default=SYNTAXES)
    parser.add_argument("--folder", type=Path, help="where to work; by default the system's place for temporary files")
    parser.add_argument("--once", nargs=3, metavar=("ROOT", "OUT", "WORKERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        once(*options.once)
        return
    print(
        f"{options.images} files of {options.height} x {options.width}, {options.workers} processes on "
        f"{os.cpu_count()} cores; images per second"
    )
    print(f"{'':14}{'decoded':>9}{'prepared':>10}{'time, times':>13}{'MiB/' + str(options.few):>11}{'MiB/all':>10}")
    for syntax in options.syntaxes:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            files = make(Path(name), syntax, options)
            alone = decoded(files, options.workers)
            rows = {n: prepared(Path(name), files[:n], options.workers) for n in (options.few, options.images)}
        seconds, peak = rows[options.images]
        n = len(files)
        print(
            f"{syntax:14}{n / alone:9.2f}{n / seconds:10.2f}{seconds / alone:13.2f}{rows[options.few][1]:11.0f}"
            f"{peak:10.0f}",
            flush=True,
        )


def make(folder: Path, syntax: str, options: argparse.Namespace) -> list[Path]:
    """Pictures in one transfer syntax, and links to them."""
    from helpers_dicom import dicom_file

    made = [
        dicom_file(folder / "made" / f"{at}.dcm", picture(at, options.height, options.width), syntax=syntax, bits=12)
        for at in range(options.made)
    ]
    (folder / "dcm").mkdir()
    files = [folder / "dcm" / f"{at}.dcm" for at in range(options.images)]
    for at, file in enumerate(files):
        os.link(made[at % len(made)], file)
    return files


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """uint16 (H, W): a smooth half-ellipse with fine texture and noise of 12 bit on a black background."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    inside = (x / (0.65 * width)) ** 2 + ((y - 0.5 * height) / (0.42 * height)) ** 2
    texture = 200 * np.sin(x / 37 + seed) * np.cos(y / 53) + rng.normal(0, 12, size=(height, width))
    return np.where(inside < 1, 800 + 2200 * (1 - inside) + texture, 0).clip(0, 4095).astype(np.uint16)


def decode(path: Path) -> int:
    """What pydicom does alone."""
    import pydicom

    return int(pydicom.dcmread(path).pixel_array[-1, -1])


def decoded(files: list[Path], workers: int) -> float:
    """Seconds of pydicom, its processes being up."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(decode, files[: 2 * workers], chunksize=1)
        began = time.perf_counter()
        pool.map(decode, files, chunksize=1)
        return time.perf_counter() - began


def prepared(folder: Path, files: list[Path], workers: int) -> tuple[float, float]:
    """Seconds of `prepare_dicom`, as it tells them, and the peak of its memory in MiB."""
    rows = "\n".join(f"p{file.stem},{file.stem},training,{int(file.stem) % 2}" for file in files)
    (folder / "images.csv").write_text(f"patient_id,image_id,split,cancer\n{rows}\n")
    out = folder / "out"
    program = [sys.executable, __file__, "--once", str(folder), str(out), str(workers)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        peak, done = [0.0], threading.Event()
        watcher = threading.Thread(target=watch, args=(process.pid, peak, done))
        watcher.start()
        said, _ = process.communicate()
        done.set()
        watcher.join()
    if process.returncode:
        raise SystemExit("prepare_dicom ended badly")
    shutil.rmtree(out)
    return float(said), peak[0]


def once(root: str, out: str, workers: str) -> None:
    """One run, in a process of its own: prints its seconds, from the first image on."""
    from mammosae_plugin.datasets import prepare_dicom

    mapping = {"table": "images.csv", "image": "dcm/{image_id}.dcm", "labels": ["cancer"]}
    began = time.perf_counter()
    prepare_dicom(mapping, root, out, workers=int(workers))
    print(time.perf_counter() - began)


def watch(pid: int, peak: list[float], done: threading.Event) -> None:
    """Keep the largest sum of resident memory (MiB) of a process and all below it."""
    while not done.wait(0.1):
        parents, sizes = {}, {}
        for place in Path("/proc").glob("[0-9]*"):
            try:
                fields = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
            except OSError:
                continue  # it has just ended
            parents[int(place.name)] = int(fields["PPid"])
            sizes[int(place.name)] = int(fields.get("VmRSS", "0 kB").split()[0]) / 1024
        family = {pid}
        while more := {child for child, parent in parents.items() if parent in family} - family:
            family |= more
        peak[0] = max(peak[0], sum(sizes.get(one, 0.0) for one in family))


if __name__ == "__main__":
    main()
