"""What a GPU brings, in one go of under ten minutes: a B5's features, steps of SAEs, the encoding of images.

    python benchmarks/gpu.py [--device cuda] [--out gpu.md]
    python benchmarks/gpu.py --cpu-check          # tiny sizes on the CPU: that the script runs, not what it measures

Measured are images/s of an EfficientNet-B5 at 1520 x 912 (float32 and bfloat16 autocast, batch norms folded, with the
error of the features against float32 without TF32), rows/s of a training step by architecture at 2048 x 16,384 beside
SAELens's own step (`training_step.py`), and images/s of `encode_latents` from images in memory. Without a GPU it says
so and exits with 2. Every part stands alone: what fails or does not fit into memory is a line of the table.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import training_step
from encoder import calibrated
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata

from mammosae_plugin.adapters import HookedVisionModel, new_classifier
from mammosae_plugin.adapters.fast_inference import fold_batch_norms
from mammosae_plugin.datasets import as_images
from mammosae_plugin.latents import encode_latents

Line = tuple[str, str, str]
"""What was measured, at what size, and what came out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="write the Markdown table there too")
    parser.add_argument("--seconds", type=float, default=480, help="begin no further part after so many")
    parser.add_argument("--cpu-check", action="store_true", help="tiny sizes on the CPU")
    options = parser.parse_args()
    device = "cpu" if options.cpu_check else options.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        print("no GPU is here: nothing was measured; --cpu-check runs the script at tiny sizes", file=sys.stderr)
        raise SystemExit(2)
    small = options.cpu_check
    parts: list[tuple[str, Callable[[], Iterator[Line]]]] = [
        ("features", lambda: features(device, small)),
        *((f"step of {name}", lambda name=name: step(name, device, small)) for name in ARCHITECTURES),
        ("encoding", lambda: encoding(device, small)),
    ]
    lines, start = [], time.perf_counter()
    for name, part in parts:
        if time.perf_counter() - start > options.seconds:
            lines.append((name, "", "not begun: the time is over"))
            continue
        try:
            for line in part():
                print(" | ".join(line), file=sys.stderr, flush=True)
                lines.append(line)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            lines.append((name, "", f"failed: {str(error).splitlines()[0]}"))
    text = table(lines, device)
    print(text)
    if options.out is not None:
        options.out.write_text(text)


ARCHITECTURES = ("standard", *(name for name in (*training_step.BARE, *training_step.OTHER) if name != "standard"))


def features(device: str, small: bool) -> Iterator[Line]:
    architecture, size = ("tinynet_e", (64, 64)) if small else ("tf_efficientnet_b5", (1520, 912))
    network, images = network_and_images(architecture, size, 2)
    folded, _ = fold_batch_norms(network, images[:1])
    folded = folded.to(device)
    with torch.inference_mode():
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            exact = folded.forward_features(images.to(device)).double()
        for batch in (1, 2) if small else (1, 8, 32):
            given = images[:1].repeat(batch, 1, 1, 1).to(device)
            for dtype in (torch.float32, torch.bfloat16):
                with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype is torch.bfloat16):
                    found = folded.forward_features(images.to(device)).double()
                    seconds = median_seconds(lambda: folded.forward_features(given), device, 3 if small else 10)  # noqa: B023
                error = float((found - exact).norm() / exact.norm())
                yield (
                    f"features of {architecture}, {str(dtype).removeprefix('torch.')}",
                    f"{size[0]} x {size[1]}, {batch} images at once",
                    f"{batch / seconds:.1f} images/s, relative error {error:.1e}",
                )


def step(architecture: str, device: str, small: bool) -> Iterator[Line]:
    d_in, d_sae, batch, k = (32, 64, 32, 4) if small else (2048, 16384, 4096, 64)
    for autocast in (False, True):
        options = argparse.Namespace(
            architecture=architecture, d_in=d_in, d_sae=d_sae, batch=batch, k=k, dead=0.0, steps=2 if small else 10,
            device=device, autocast=autocast,
        )  # fmt: skip
        seconds, _ = training_step.measured(options)
        ours, theirs = (statistics.median(seconds[name]) for name in ("ours", "SAELens's own"))
        yield (
            f"step of {architecture}, {'bfloat16 autocast' if autocast else 'float32'}",
            f"{d_in} x {d_sae}, {batch} rows" + ("" if architecture == "standard" else f", k {k}"),
            f"{batch / ours:,.0f} rows/s, {theirs / ours:.2f} times SAELens's own",
        )


def encoding(device: str, small: bool) -> Iterator[Line]:
    architecture, size, d_sae = ("tinynet_e", (64, 64), 128) if small else ("tf_efficientnet_b5", (1520, 912), 16384)
    n_images = 4 if small else 64
    network, images = network_and_images(architecture, size, 2)
    hook = "bn2.hook_out"
    with HookedVisionModel(network, ["bn2"]) as model, tempfile.TemporaryDirectory() as name:
        d_in = model.hook_shapes[hook][-1]
        sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=d_sae, metadata=SAEMetadata(hook_name=hook)))
        with torch.inference_mode():
            rows = model.read(images[:1], hook).value.reshape(-1, d_in)[:64]
            before = (rows @ sae.W_enc).flatten()[:1_000_000]
            sae.b_enc.fill_(-float(torch.quantile(before, 1 - 64 / d_sae if d_sae > 128 else 0.9)))
        many = as_images(images.repeat(n_images // 2, 1, 1, 1))
        for number, batch in enumerate((1, 2) if small else (1, 8)):
            start = time.perf_counter()
            encode_latents(model, sae, many, Path(name) / str(number), heads={}, device=device, batch_size=batch)
            seconds = time.perf_counter() - start
            yield (
                f"encode_latents, {architecture}, float32",
                f"{size[0]} x {size[1]}, {d_sae} latents, {batch} images at once",
                f"{n_images / seconds:.1f} images/s, start included",
            )


def network_and_images(architecture: str, size: tuple[int, int], n: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """A network with random weights whose batch norms know their inputs, and images."""
    images = torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(0))
    return calibrated(new_classifier(architecture, 1, seed=0), images), images


def median_seconds(run: Callable[[], object], device: str, n: int) -> float:
    run()
    return statistics.median(training_step.timed(run, device) for _ in range(n))


def table(lines: list[Line], device: str) -> str:
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "the CPU, at sizes that say nothing"
    head = f"On {name}, torch {torch.__version__}:\n\n| what | size | measured |\n|---|---|---|\n"
    return head + "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
