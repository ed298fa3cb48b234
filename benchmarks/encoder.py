"""Features of a full-size B5: this package's encoder against a plain eager one, in turns in one run.

    python benchmarks/encoder.py [--height 1520 --width 912] [--architecture tf_efficientnet_b5] [--rounds 5]

The plain encoder stands for the released one: contiguous memory, a padding module before every convolution that pads,
unfused batch norms, swish as x * sigmoid(x). It is made of the same weights and runs in a process of its own, with the
C library's usual way with memory. The others run in one that keeps freed memory, as the command `mammosae` does: the
plain encoder; channels-last memory; batch norms folded; on request that compiled, and in bfloat16.

`ratio` is the plain encoder's time over this one's, `matrix` this one's over the time that as many operations take as
products of large matrices; both are medians over rounds, within which everything takes its turn for a few passes.
Errors are relative (L2): to the plain encoder in float64, and to the plain encoder.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection

import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn import functional

from mammosae_plugin.adapters import new_classifier
from mammosae_plugin.adapters.fast_inference import fold_batch_norms
from mammosae_plugin.adapters.mammo_clip import MammoClipClassifier
from mammosae_plugin.adapters.mammo_clip_files import _VARIANTS
from mammosae_plugin.memory import keep_freed_memory

PASSES = 3


class PaddedConv(nn.Module):
    """A padding module, then a convolution without padding."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        stride, kernel = conv.stride[0], conv.kernel_size[0]
        static = getattr(conv, "static_padding", None)
        side = (kernel - 1) // 2
        amount = static if static is not None else (side, side, side, side)
        self.pad = nn.ZeroPad2d(amount) if any(amount) else nn.Identity()  # a padding by nothing would copy
        self.conv = nn.Conv2d(conv.in_channels, conv.out_channels, kernel, stride, groups=conv.groups, bias=False)
        self.conv.weight, self.conv.bias = conv.weight, conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.pad(x))


class PlainNorm(nn.Module):
    """Batch norm, then swish as a product, each a pass of its own."""

    def __init__(self, norm: BatchNormAct2d):
        super().__init__()
        self.norm = nn.BatchNorm2d(norm.num_features, eps=norm.eps)
        self.norm.load_state_dict(norm.state_dict())
        self.swish = not isinstance(norm.act, nn.Identity)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        return x * torch.sigmoid(x) if self.swish else x


def plain(model: MammoClipClassifier) -> MammoClipClassifier:
    """The same weights in the manner of the released encoder."""
    model = copy.deepcopy(model)
    for path, module in list(model.named_modules()):
        if isinstance(module, BatchNormAct2d):
            replacement: nn.Module = PlainNorm(module)
        elif isinstance(module, nn.Conv2d):
            replacement = PaddedConv(module)
        else:
            continue
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, replacement)
    return model.to(memory_format=torch.contiguous_format).eval()


def plain_features(model: MammoClipClassifier, images: torch.Tensor) -> torch.Tensor:
    """`forward_features` without turning the images to channels last."""
    return model.bn2(model.conv_head(model.blocks(model.bn1(model.conv_stem(images)))))


def matrix_seconds(flops: int, size: int = 2048) -> float:
    """Seconds that so many operations take as float32 products of large matrices."""
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    n_products = max(1, round(flops / (2 * size**3)))

    def run() -> None:
        for _ in range(n_products):
            torch.mm(a, b, out=out)

    return timed(run) * flops / (n_products * 2 * size**3)


def operations(model: nn.Module, images: torch.Tensor) -> int:
    """Multiplications and additions of all convolutions in one pass."""
    total = 0

    def count(module: nn.Conv2d, _args: object, output: torch.Tensor) -> None:
        nonlocal total
        total += 2 * output.numel() * module.weight[0].numel()

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d)]
    model(images)
    for handle in handles:
        handle.remove()
    return total


def networks(options: argparse.Namespace) -> tuple[MammoClipClassifier, torch.Tensor]:
    """The network with random weights, whose batch norms know their inputs, and one image."""
    images = torch.randn(1, 3, options.height, options.width, generator=torch.Generator().manual_seed(0))
    random = new_classifier(options.architecture, 0, seed=0)
    variant = next((v for v in _VARIANTS.values() if v.architecture == options.architecture), None)
    for path, amount in (variant.static_padding if variant is not None else {}).items():
        random._pad_statically(path, amount)
    return calibrated(random, images), images


def run_plain(options: argparse.Namespace, connection: Connection) -> None:
    """In a process of its own, with memory as everybody's: a pass whenever one is asked for, until told to end."""
    with torch.inference_mode():
        ours, images = networks(options)
        reference = plain(ours)
        while connection.recv():
            connection.send(timed(lambda: plain_features(reference, images)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=1520)
    parser.add_argument("--width", type=int, default=912)
    parser.add_argument("--architecture", default="tf_efficientnet_b5")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also under torch.compile, which needs a C++ compiler")
    parser.add_argument("--bfloat16", action="store_true", help="also autocast, slow on a CPU without bfloat16")
    options = parser.parse_args()
    ask, answer = Pipe()
    other = get_context("spawn").Process(target=run_plain, args=(options, answer), daemon=True)
    other.start()
    keep_freed_memory()
    ours, images = networks(options)
    folded, error = fold_batch_norms(ours, images)
    reference = plain(ours)
    with torch.inference_mode():
        flops = operations(ours, images)
        runs: dict[str, Callable[[], torch.Tensor]] = {
            "plain, memory kept": lambda: plain_features(reference, images),
            "channels last": lambda: ours.forward_features(images),
            "folded": lambda: folded.forward_features(images),
        }
        if options.compile:
            compiled = torch.compile(folded.forward_features)
            runs["folded, compiled"] = lambda: compiled(images)
        if options.bfloat16:
            runs["folded, bfloat16"] = lambda: in_bfloat16(folded, images)
        outputs = {name: run().double() for name, run in runs.items()}  # warms up, too
        exact = plain_features(copy.deepcopy(reference).double(), images.double())
        outputs = {"plain": outputs["plain, memory kept"]} | outputs
        timers = {"plain": lambda: asked(ask)} | {name: partial(timed, run) for name, run in runs.items()}
        timers["matrix products"] = partial(matrix_seconds, flops)
        asked(ask)
        seconds: dict[str, list[float]] = {name: [] for name in timers}
        for _ in range(options.rounds):
            for name, timer in timers.items():
                seconds[name].append(timer())
    ask.send(False)
    print(
        f"{options.architecture}, {options.height} x {options.width}, {torch.get_num_threads()} threads: "
        f"{flops / 1e9:.0f} GFLOP; folding's own error {error:.1e}"
    )
    print(f"{'encoder':18} {'median':>8} {'best':>8} {'ratio':>6} {'matrix':>7} {'error':>8} {'of plain':>8}")
    for name, times in seconds.items():
        ratio = statistics.median(base / one for base, one in zip(seconds["plain"], times, strict=True))
        matrix = statistics.median(one / rest for one, rest in zip(times, seconds["matrix products"], strict=True))
        errors = [
            f"{float((outputs[name] - other).norm() / other.norm()):8.1e}"
            for other in (exact, outputs["plain"])
            if name in outputs
        ]
        print(f"{name:18} {statistics.median(times):7.3f}s {min(times):7.3f}s {ratio:6.2f} {matrix:7.2f}", *errors)


def timed(run: Callable[[], object]) -> float:
    """Seconds of a pass, the mean of a few behind one that is not counted, as in a long extraction."""
    run()
    start = time.perf_counter()
    for _ in range(PASSES):
        run()
    return (time.perf_counter() - start) / PASSES


def asked(connection: Connection) -> float:
    """The same of the plain encoder in its process."""
    connection.send(True)
    return float(connection.recv())


def in_bfloat16(model: MammoClipClassifier, images: torch.Tensor) -> torch.Tensor:
    """Features under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        return model.forward_features(images)


def calibrated(model: MammoClipClassifier, images: torch.Tensor) -> MammoClipClassifier:
    """Batch norms that know their inputs, so that no map is nearly zero."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(functional.interpolate(images, size=(380, 228)).repeat(2, 1, 1, 1))
    return model.eval()


if __name__ == "__main__":
    main()
