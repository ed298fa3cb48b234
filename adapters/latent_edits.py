"""What takes latents out of a network at one of its modules, without their SAE: written with it and read again."""

__all__ = ["attach_edits", "edits_of", "EditedModule", "LatentEdit", "put_edit"]

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

_INSIDE = "edited"  # the name of the module inside an EditedModule
_SAID = ("activation", "n_kept", "n_encoded", "n_latents", "d_in", "axis", "n_prefix")


class LatentEdit(nn.Module):
    """x -> x - (1 - s) sum_j z_j(x) W_dec[j], over chosen latents j of an SAE, position by position.

    What the SAE does not reconstruct stays, and so do all other latents. Only what the chosen latents depend on is
    kept: of ReLU and JumpReLU SAEs their own columns of the encoder, of top-k SAEs all of it.

    Attributes:
        W_enc: (d_in, n_encoded).
        b_enc: (n_encoded,), with what the SAE takes from its input in it.
        threshold: (n_encoded,) of JumpReLU; zeros otherwise.
        chosen: (n_latents,) which of the encoded latents are edited.
        W_sub: (n_latents, d_in) what a unit of each takes away, (1 - s) W_dec[j].
        settings: JSON of what is no tensor, as bytes: with it the state dict says what is computed, and so do
            fingerprints.
    """

    def __init__(self, said: Mapping[str, Any]) -> None:
        """Make an edit without weights.

        Args:
            said: its description: activation ("relu", "jumprelu" or "topk"), n_kept (of top-k), n_encoded, n_latents,
                d_in, axis (of the channels: 1 or -1) and n_prefix (tokens in front that are left alone).
        """
        super().__init__()
        self.said = {name: said[name] for name in _SAID}
        if self.said["activation"] not in ("relu", "jumprelu", "topk") or self.said["axis"] not in (1, -1):
            raise KeyError("activation")  # of a damaged header
        n_encoded, n_latents, d_in = (int(said[name]) for name in ("n_encoded", "n_latents", "d_in"))
        self.register_buffer("W_enc", torch.zeros(d_in, n_encoded))
        self.register_buffer("b_enc", torch.zeros(n_encoded))
        self.register_buffer("threshold", torch.zeros(n_encoded))
        self.register_buffer("chosen", torch.zeros(n_latents, dtype=torch.int64))
        self.register_buffer("W_sub", torch.zeros(n_latents, d_in))
        settings = json.dumps(self.said, sort_keys=True).encode()
        self.register_buffer("settings", torch.tensor(list(settings), dtype=torch.uint8))

    W_enc: torch.Tensor
    b_enc: torch.Tensor
    threshold: torch.Tensor
    chosen: torch.Tensor
    W_sub: torch.Tensor

    def latents(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (..., d_in) -> the chosen latents (..., n_latents)."""
        before = rows @ self.W_enc + self.b_enc
        if self.said["activation"] == "jumprelu":
            return (before * (before > self.threshold)).relu()[..., self.chosen]
        found = before.relu()
        if self.said["activation"] == "topk":
            largest = found.topk(int(self.said["n_kept"]), dim=-1)
            found = torch.zeros_like(found).scatter(-1, largest.indices, largest.values)
        return found[..., self.chosen]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A module's output of any layout -> the same less what the chosen latents contribute, in its dtype."""
        rows = x.movedim(1, -1) if self.said["axis"] == 1 else x
        n_prefix = int(self.said["n_prefix"])
        taken = self.latents(rows[:, n_prefix:].to(self.W_enc.dtype)) @ self.W_sub
        if n_prefix:
            taken = torch.cat([torch.zeros_like(rows[:, :n_prefix]), taken], dim=1)
        taken = taken.movedim(-1, 1) if self.said["axis"] == 1 else taken
        return x - taken.to(x.dtype)


class EditedModule(nn.Module):
    """A module of a network with an edit behind it; hook points at its path show the edited value."""

    def __init__(self, module: nn.Module, edit: LatentEdit) -> None:
        super().__init__()
        self.add_module(_INSIDE, module)
        self.edit = edit

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module gives, edited."""
        return self.edit(self.get_submodule(_INSIDE)(*args, **kwargs))


def edits_of(network: nn.Module) -> list[dict[str, Any]]:
    """The edits in a network, in plain JSON, for `attach_edits` in this order."""
    found = [(path, module) for path, module in network.named_modules() if isinstance(module, EditedModule)]
    outer = [".".join(part for part in path.split(".") if part != _INSIDE) for path, _ in found]
    return [{"path": path, **module.edit.said} for path, (_, module) in zip(outer, found, strict=True)][::-1]


def attach_edits(network: nn.Module, edits: Sequence[Mapping[str, Any]]) -> None:
    """Put edits into a network, whose weights are then loaded."""
    for said in edits:
        put_edit(network, str(said["path"]), LatentEdit(said))


def put_edit(network: nn.Module, path: str, edit: LatentEdit) -> None:
    """Put an edit behind the module at a path."""
    parent, _, leaf = path.rpartition(".")
    setattr(network.get_submodule(parent), leaf, EditedModule(network.get_submodule(path), edit))
