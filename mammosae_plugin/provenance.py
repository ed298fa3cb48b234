"""What made a result: package versions, weights' fingerprints, one seed."""

__all__ = [
    "environment", "package_versions", "PACKAGES", "plain", "seed_everything", "tensors_fingerprint", "torch_generator",
]  # fmt: skip

import hashlib
import json
import platform
import random
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
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
    """Python and platform, without the machine's name or any path; `commit` of this package where one is known."""
    known = {"commit": commit} if (commit := _commit()) else {}
    return {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}", **known}


@cache
def _commit() -> str | None:
    """The git commit that this package was installed from (PEP 610) or runs from, `-dirty` where files differ from it.

    None where there is none: a release from an index, a copied folder, no git.
    """
    try:
        origin = json.loads(distribution("mammosae-plugin").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        origin = {}
    if commit := origin.get("vcs_info", {}).get("commit_id"):
        return str(commit)
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "--no-optional-locks", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


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
