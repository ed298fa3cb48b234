"""Whether SAEs that are to be published load with plain SAELens and compute the same there, in a process of its own."""

__all__ = ["check_with_sae_lens", "TOLERANCE"]

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sae_lens
import torch
from sae_lens import SAE, TrainingSAE
from safetensors.torch import load_file

from mammosae_plugin.adapters.sae_formats import load_sae
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import write_safetensors
from mammosae_plugin.hub.scratch import Scratch
from mammosae_plugin.provenance import torch_generator

TOLERANCE = 1e-5
"""How far latents of plain SAELens may be from ours, relative to the largest."""
_ROWS, _ACTIVE = 32, 8

_PROGRAM = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from sae_lens import SAE

work = json.loads(sys.argv[1])
found, errors = {}, {}
for number, folder in enumerate(work["folders"]):
    try:
        sae = SAE.load_from_disk(folder, device="cpu")
        rows = load_file(work["rows"])[str(number)]
        with torch.no_grad():
            latents = sae.encode(rows)
            found[f"{number}.latents"] = latents.contiguous()
            found[f"{number}.reconstruction"] = sae.decode(latents).contiguous()
    except Exception as error:
        errors[number] = f"{type(error).__name__}: {error}"
assert not any(name.startswith("mammosae") for name in sys.modules)
save_file(found, work["found"])
print(json.dumps(errors))
"""


def check_with_sae_lens(folders: Mapping[str, Path], saes: Mapping[str, Any]) -> None:
    """Let a fresh process that imports sae_lens and nothing of ours load folders, and compare what it computes.

    Each SAE encodes 32 fixed rows, made of eight of its decoder's directions each. The latents must agree with those of
    `load_sae`, and the reconstruction with that of the SAE given, to 1e-5 of the largest value.

    Args:
        folders: by id, what is to be published.
        saes: by id, the SAE that was given.

    Raises:
        InputError: it cannot be loaded, or computes something else.
    """
    rows = {name: _fixed_rows(sae) for name, sae in saes.items()}
    found, errors = _computed_by_sae_lens(folders, rows)
    problems = [f"cannot load {name}: {' '.join(reason.split())}" for name, reason in errors.items()]
    for name, folder in folders.items():
        if name in errors:
            continue
        with torch.no_grad(), _evaluating(saes[name]):
            expected = {"latents": load_sae(folder).encode(rows[name])}
            if not isinstance(saes[name], TrainingSAE):  # which may answer otherwise in training than in use
                expected["reconstruction"] = saes[name](rows[name])
        for what, tensor in expected.items():
            off = float((found[name][what] - tensor).abs().max() / tensor.abs().max().clamp_min(1.0))
            if not off <= TOLERANCE:
                problems.append(
                    f"computes other {what} with {name} than this package (off by {off:.2g} of the largest)"
                )
    if problems:
        raise InputError(f"not published: plain sae-lens {sae_lens.__version__} {'; it '.join(problems)}")


def _computed_by_sae_lens(
    folders: Mapping[str, Path], rows: Mapping[str, torch.Tensor]
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, str]]:
    """By id, the latents and the reconstruction; and why others could not be loaded."""
    names = list(folders)
    scratch = Scratch("check")
    try:
        given, answer = scratch.folder / "rows.safetensors", scratch.folder / "found.safetensors"
        paths = [str(folders[name].resolve()) for name in names]
        work = {"folders": paths, "rows": str(given), "found": str(answer)}
        write_safetensors(given, {str(number): rows[name] for number, name in enumerate(names)})
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, json.dumps(work)],
            capture_output=True,
            text=True,
            cwd=scratch.folder,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            check=False,
        )
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise InputError(f"the process that imports sae-lens alone failed, so nothing was published: {reason}")
        errors = {names[int(number)]: reason for number, reason in json.loads(done.stdout.splitlines()[-1]).items()}
        tensors = load_file(answer)
    finally:
        scratch.remove()
    computed = {
        name: {what: tensors[f"{number}.{what}"] for what in ("latents", "reconstruction")}
        for number, name in enumerate(names)
        if name not in errors
    }
    return computed, errors


def _fixed_rows(sae: SAE[Any]) -> torch.Tensor:
    """(32, d_in) float32: sums of eight decoder rows with random weights, plus the decoder's bias."""
    d_sae = int(sae.cfg.d_sae)
    generator = torch_generator(0)
    latents = torch.zeros(_ROWS, d_sae)
    for row in latents:
        chosen = torch.randperm(d_sae, generator=generator)[:_ACTIVE]
        row[chosen] = 1 + torch.rand(len(chosen), generator=generator)
    with torch.no_grad():
        rows: torch.Tensor = latents @ sae.W_dec.float() + sae.b_dec.float()
    return rows.contiguous()


@contextmanager
def _evaluating(sae: SAE[Any]) -> Iterator[None]:
    before = sae.training
    sae.eval()
    try:
        yield
    finally:
        sae.train(before)
