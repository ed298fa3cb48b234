"""What made a result: package versions, weights' fingerprints, one seed."""

__all__ = [
    "environment", "package_versions", "PACKAGES", "plain", "seed_everything", "tensors_fingerprint", "torch_generator",
]  # fmt: skip

import hashlib
import platform
import random
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

PACKAGES = ("mammosae-plugin", "torch", "timm", "sae-lens", "transformer-lens", "numpy", "pandas", "scikit-learn")


def package_versions() -> dict[str, str]:
    """Versions of this package and of those that decide its numbers; "not installed" where one is absent."""
    return {name: _version(name) for name in PACKAGES}


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def environment() -> dict[str, str]:
    """Python and platform, without the machine's name or any path."""
    return {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}


def tensors_fingerprint(tensors: "Mapping[str, torch.Tensor]") -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, in order of name: equal digits mean equal weights."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices). Called once at the start of each random step."""
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - upstream libraries draw from the global generator
    torch.manual_seed(seed)


def torch_generator(*parts: int) -> "torch.Generator":
    """A CPU generator that depends on all of `parts` and on nothing else (for example seed and epoch)."""
    import torch

    state = np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


def plain(value: Any) -> Any:
    """The value with NumPy and torch scalars turned into plain JSON ones, and NaN into None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return plain(value.item())
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
