"""An SAE in the place of a hook point."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sae_lens import SAE, MatchingPursuitSAE
from torch import nn
from transformer_lens.hook_points import HookPoint


class AttachedSAE(nn.Module):
    """An SAE in the place of a hook point: x -> decode(encode(x)), plus the error term where wanted, in x's dtype.

    The SAE's own hook points are children, so their names are upstream's: `bn2.hook_out.hook_sae_acts_post`. The SAE
    itself is no submodule: its parameters stay out of the model's state dict. It follows the model to another device
    and keeps its own dtype.
    """

    sae: SAE[Any]

    def __init__(
        self, sae: SAE[Any], *, use_error_term: bool = False, exclude_special_tokens: bool = False, n_special: int = 0
    ):
        """Adopt the SAE's hook points.

        Args:
            sae: any SAELens SAE.
            use_error_term: add what the SAE does not reconstruct.
            exclude_special_tokens: let class and register tokens pass by the SAE.
            n_special: how many of them lead the sequence.
        """
        super().__init__()
        object.__setattr__(self, "sae", sae)
        for name, point in sae.hook_dict.items():
            if name not in ("hook_sae_error", "hook_sae_output"):
                self.add_module(name, point)
        # These two belong to the attachment, which computes what flows through them.
        self.hook_sae_error = HookPoint()
        self.hook_sae_output = HookPoint()
        self.use_error_term = use_error_term
        self.exclude_special_tokens = exclude_special_tokens
        self.n_special = n_special if exclude_special_tokens else 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d_in) -> (..., d_in); as SAELens does, excluded tokens are encoded too, and put back at the end."""
        out = self.sae.decode(self._encode(x))
        if self.use_error_term:
            with torch.no_grad():
                with _hooks_bypassed(self.sae):
                    clean = self.sae.decode(self.sae.encode(x))
                error = x - clean
                if self.n_special:
                    error[:, : self.n_special] = 0
                error = self.hook_sae_error(error)
            out = out + error
        out = out.to(x.dtype)
        if self.n_special:
            out = torch.cat([x[:, : self.n_special], out[:, self.n_special :]], dim=1)
        return self.hook_sae_output(out)  # type: ignore[no-any-return]

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        acts: torch.Tensor = self.sae.encode(x)
        # SAELens's matching pursuit does not call its own hook: an edit of its latents would silently do nothing.
        return self.sae.hook_sae_acts_post(acts) if isinstance(self.sae, MatchingPursuitSAE) else acts

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: the SAE as class, config and weights, because SAELens's objects hold a lambda."""
        weights = {name: tensor.detach().clone() for name, tensor in self.sae.state_dict().items()}
        return {**self.__dict__, "sae": (type(self.sae), self.sae.cfg.to_dict(), weights)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the SAE anew and give it the hook points back that stand in the model."""
        kind, cfg, weights = state.pop("sae")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        sae = kind.from_dict(cfg)
        sae.load_state_dict(weights)
        for name in set(sae.hook_dict) & set(self._modules) - {"hook_sae_error", "hook_sae_output"}:
            setattr(sae, name, self._modules[name])
        object.__setattr__(self, "sae", sae)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "AttachedSAE":
        # Every way to another device comes through here: .to(), .cuda(), .cpu(), also of the model around it.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.sae.to(fn(torch.empty(0, device=next(self.sae.parameters()).device)).device)
        return self


@contextmanager
def _hooks_bypassed(sae: SAE[Any]) -> Iterator[None]:
    """Run the SAE without its hooks, so that an edit of latents is not taken for error. Not thread-safe."""
    points = {name: getattr(sae, name) for name in sae.hook_dict}
    try:
        for name in points:
            setattr(sae, name, nn.Identity())
        yield
    finally:
        for name, point in points.items():
            setattr(sae, name, point)
