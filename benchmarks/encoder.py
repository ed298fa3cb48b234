"""Features of a full-size B5: this package's encoder against a plain eager one, in turns in one run.

    python benchmarks/encoder.py [--height 1520 --width 912] [--architecture tf_efficientnet_b5] [--rounds 5]

The plain encoder stands for the released one: contiguous memory, a padding module before every convolution, unfused
batch norms, swish as x * sigmoid(x). It is made of the same weights. Rows: channels-last memory; batch norms folded;
torch.compile of that; bfloat16 autocast. `error` is relative (L2) to the plain features. The machine's matrix rate is
measured in the same run; `of rate` is the time that the network's operations need at that rate, over the time taken.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn import functional

from mammosae_plugin.adapters import new_classifier
from mammosae_plugin.adapters.fast_inference import fold_batch_norms
from mammosae_plugin.adapters.mammo_clip import _VARIANTS, MammoClipClassifier


class PaddedConv(nn.Module):
    """A padding module, then a convolution without padding."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        stride, kernel = conv.stride[0], conv.kernel_size[0]
        static = getattr(conv, "static_padding", None)
        side = (kernel - 1) // 2
        self.pad = nn.ZeroPad2d(static if static is not None else (side, side, side, side))
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


def matrix_rate(size: int = 3072) -> float:
    """Floating-point operations per second of a float32 matrix product, the best of a few."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=1520)
    parser.add_argument("--width", type=int, default=912)
    parser.add_argument("--architecture", default="tf_efficientnet_b5")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which needs a C++ compiler")
    options = parser.parse_args()
    images = torch.randn(1, 3, options.height, options.width, generator=torch.Generator().manual_seed(0))
    random = new_classifier(options.architecture, 0, seed=0)
    variant = next((v for v in _VARIANTS.values() if v.architecture == options.architecture), None)
    padding = variant.static_padding if variant is not None else {}
    for path, amount in padding.items():
        random._pad_statically(path, amount)
    ours = calibrated(random, images)
    with torch.inference_mode():
        folded, error = fold_batch_norms(ours, images)
        reference = plain(ours)
        flops = operations(ours, images)
        runs: dict[str, Callable[[], torch.Tensor]] = {
            "plain": lambda: plain_features(reference, images),
            "channels last": lambda: ours.forward_features(images),
            "folded": lambda: folded.forward_features(images),
        }
        if options.compile:
            compiled = torch.compile(folded.forward_features)
            runs["folded, compiled"] = lambda: compiled(images)
        runs["folded, bfloat16"] = lambda: in_bfloat16(folded, images)
        outputs = {name: run() for name, run in runs.items()}  # warms up, too
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        rate = matrix_rate()
        for _ in range(options.rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
            rate = max(rate, matrix_rate())
    print(
        f"{options.architecture}, {options.height} x {options.width}, {torch.get_num_threads()} threads: "
        f"{flops / 1e9:.0f} GFLOP, matrix products at {rate / 1e9:.0f} GFLOP/s; folding's own error {error:.1e}"
    )
    print(f"{'encoder':18} {'median':>8} {'best':>8} {'ratio':>6} {'of rate':>8} {'error':>8}")
    base = statistics.median(seconds["plain"])
    for name, times in seconds.items():
        middle = statistics.median(times)
        difference = float((outputs[name].float() - outputs["plain"]).norm() / outputs["plain"].norm())
        print(
            f"{name:18} {middle:7.3f}s {min(times):7.3f}s {base / middle:6.2f} {flops / rate / middle:8.2f} "
            f"{difference:8.1e}"
        )


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
