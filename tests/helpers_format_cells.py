"""The block of formats in docs/compatibility.md: every cell is run on the fixtures of `test_sae_formats.py`."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from safetensors.torch import load_file

from mammosae_plugin.adapters import inspect_checkpoint, load_sae
from mammosae_plugin.adapters.sae_export import EXPORT_FORMATS, export_sae
from mammosae_plugin.adapters.sae_formats import FORMATS
from mammosae_plugin.errors import InputError

EXPECTED = "expected.safetensors"
READ = {one.name for one in FORMATS}
CLOSE = 1e-5
"""Of what is written and read again, by the largest value: biases are folded on the way."""


def close(found: SAE[Any], latents: torch.Tensor, rows: torch.Tensor, limit: float) -> bool:
    with torch.no_grad():
        return float((found.encode(rows) - latents).abs().max() / latents.abs().max()) < limit


def exports(sae: SAE[Any], rows: torch.Tensor, folder: Path) -> list[str]:
    """The formats that an SAE can be written in; of those that `load_sae` reads, with the same latents."""
    with torch.no_grad():
        latents = sae.encode(rows)
    found = []
    for name in EXPORT_FORMATS:
        try:
            written = export_sae(sae, folder / name, format=name)
        except InputError:
            continue
        alone = written / "sae.pt"  # saev's form is a file, not a folder
        if name not in READ or close(load_sae(alone if alone.is_file() else written), latents, rows, CLOSE):
            found.append(name)
    return found


def row(format: str, what: str, path: Path, expected_file: Path) -> str:
    sae, expected = load_sae(path), load_file(expected_file)
    exact = close(sae, expected["latents"], expected["rows"], 1e-6)
    report = inspect_checkpoint(path)
    with tempfile.TemporaryDirectory() as temporary:
        told = exports(sae, expected["rows"], Path(temporary))
        sae.save_model(Path(temporary) / "saved")
        again = load_sae(Path(temporary) / "saved")
    trip = all(torch.equal(value, again.state_dict()[name]) for name, value in sae.state_dict().items())
    what = sae.cfg.metadata.dictionary_class or what
    cells = (
        *(format, what, sae.cfg.architecture(), "yes" if exact else "no"),
        *(f"`{report.kind}`" if report.problem is None else "no", ", ".join(told) or "none", "yes" if trip else "no"),
    )
    return f"| {' | '.join(cells)} |"


def block() -> str:
    from test_sae_formats import FIXTURES
    from test_sae_formats_vision import CASES, FILES, MSAE, place

    rows = [
        row(one.format, one.folder.split("/")[0].removeprefix(f"{one.format}_"), one.path, one.beside / EXPECTED)
        for one in FIXTURES
    ]
    before, behind = MSAE.split("{}")
    for name, source, _ in CASES:
        what = name.removeprefix(before).removesuffix(behind)
        rows.append(row(source, what, place(name), FILES / f"{name}.{EXPECTED}"))
    heads = ("format", "what", "becomes", "load exact", "inspect", "export", "round trip")
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows])
