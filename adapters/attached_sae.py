"""An SAE in the place of a hook point."""

__all__ = [
    "AttachedSAE", "check_fit", "reads_positions_together", "refuse_what_no_map_fits", "shows_latents",
    "width_out",
]  # fmt: skip

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from sae_lens import SAE
from torch import nn
from transformer_lens.hook_points import HookPoint

from mammosae_plugin.adapters.input_normalization import input_normalization, normalized, rescaled
from mammosae_plugin.adapters.input_scaling import refuse_unfolded_scaling
from mammosae_plugin.errors import InputError


class AttachedSAE(nn.Module):
    """An SAE in the place of a hook point: x -> decode(encode(x)), plus the error term where wanted, in x's dtype.

    Where the SAE's metadata names a normalisation of its input, the SAE sees x so, and its output is scaled back.

    The SAE's own hook points are children, so their names are upstream's: `bn2.hook_out.hook_sae_acts_post`. The SAE
    itself is no submodule: its parameters stay out of the model's state dict. It follows the model to another device
    and keeps its own dtype.

    A transcoder stands where its output goes and reads what another hook point showed before.

    Attributes:
        sae: the SAE.
        place: the full hook name where it stands.
        reads: the full hook name of what it encodes, which is `place` but for transcoders.
        given: the value there, which a transcoder waits for in every pass.
    """

    sae: SAE[Any]

    def __init__(
        self,
        sae: SAE[Any],
        *,
        place: str = "",
        reads: str = "",
        use_error_term: bool = False,
        exclude_special_tokens: bool = False,
        n_special: int = 0,
    ):
        """Adopt the SAE's hook points.

        Args:
            sae: any SAELens SAE.
            place: where it stands.
            reads: what it encodes; by default the value at its place.
            use_error_term: add what the SAE does not reconstruct.
            exclude_special_tokens: let class and register tokens pass by the SAE.
            n_special: how many of them lead the sequence.

        Raises:
            InputError: the SAE wants its input normalised in a way that is not known.
        """
        input_normalization(sae)
        super().__init__()
        object.__setattr__(self, "sae", sae)
        self.place, self.reads = place, reads or place
        self.given: torch.Tensor | None = None
        for name, point in sae.hook_dict.items():
            if name not in ("hook_sae_error", "hook_sae_output"):
                self.add_module(name, point)
        # These two belong to the attachment, which computes what flows through them.
        self.hook_sae_error = HookPoint()
        self.hook_sae_output = HookPoint()
        self.use_error_term = use_error_term
        self.exclude_special_tokens = exclude_special_tokens
        self.n_special = n_special if exclude_special_tokens else 0
        self._shows_latents = shows_latents(sae)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d_in) -> (..., d_in); as SAELens does, excluded tokens are encoded too, and put back at the end.

        Raises:
            InputError: a transcoder that was given nothing, or a value of other positions, in this pass.
        """
        rows, lengths = normalized(self.sae, self._input(x))
        out = rescaled(self._decode(self._encode(rows), rows), lengths)
        if self.use_error_term:
            with torch.no_grad():
                with _hooks_bypassed(self.sae):
                    clean = rescaled(self._decode(self.sae.encode(rows), rows), lengths)
                error = x - clean
                if self.n_special:
                    error[:, : self.n_special] = 0
                error = self.hook_sae_error(error)
            out = out + error
        out = out.to(x.dtype)
        if self.n_special:
            out = torch.cat([x[:, : self.n_special], out[:, self.n_special :]], dim=1)
        return self.hook_sae_output(out)  # type: ignore[no-any-return]

    def _input(self, x: torch.Tensor) -> torch.Tensor:
        if self.reads == self.place:
            return x
        given, self.given = self.given, None
        if given is None or given.shape[:-1] != x.shape[:-1]:
            what = "did not run before it in this pass" if given is None else f"gave {tuple(given.shape)} in this pass"
            raise InputError(
                f"the transcoder at {self.place!r}, of shape {tuple(x.shape)}, reads {self.reads!r}, which {what}; "
                "run the whole network, on images whose positions are the same at both"
            )
        return given

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        acts: torch.Tensor = self.sae.encode(x)
        # Where the SAE does not call its own hook, an edit of its latents would silently do nothing.
        return acts if self._shows_latents else self.sae.hook_sae_acts_post(acts)

    def _decode(self, acts: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.sae.decode(acts)
        # SAELens adds a skip transcoder's own path in forward() alone, which its HookedSAETransformer does not call.
        skip = getattr(self.sae, "W_skip", None)
        return out if skip is None else out + rows.to(skip.dtype) @ skip.T

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: the SAE as class, config and weights, because SAELens's objects hold a lambda."""
        weights = {name: tensor.detach().clone() for name, tensor in self.sae.state_dict().items()}
        return {**self.__dict__, "given": None, "sae": (type(self.sae), self.sae.cfg.to_dict(), weights)}

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


@torch.no_grad()
def shows_latents(sae: SAE[Any]) -> bool:
    """Whether encoding calls the hook point of the latents; SAELens's matching pursuit does not.

    `sae.device` is not asked: `sae.cuda()` does not change it.
    """
    with _hooks_bypassed(sae) as stand_ins:
        calls: list[None] = []
        stand_ins["hook_sae_acts_post"].register_forward_hook(lambda *_: calls.append(None))
        row = torch.zeros(1, sae.cfg.d_in, device=sae.b_dec.device)
        sae.decode(sae.encode(row))  # what encoding left for decoding is taken away again
    return bool(calls)


@torch.no_grad()
def reads_positions_together(sae: SAE[Any]) -> bool:
    """Whether what the SAE makes of a position changes with what stands at another position."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 3, sae.cfg.d_in, generator=generator).to(sae.b_dec.device)
    others = torch.cat([8 * rows[:, :2].flip(1), rows[:, 2:]], dim=1)
    with _hooks_bypassed(sae):
        one, other = (sae.decode(sae.encode(value))[:, 2] for value in (rows, others))
    largest = float(one.abs().nan_to_num(0, 0).max())  # half precision may overflow
    return not torch.allclose(one, other, rtol=1e-4, atol=1e-5 * largest, equal_nan=True)


@contextmanager
def _hooks_bypassed(sae: SAE[Any]) -> Iterator[dict[str, nn.Module]]:
    """Run the SAE without its hooks, so that an edit of latents is not taken for error. Not thread-safe."""
    points = {name: getattr(sae, name) for name in sae.hook_dict}
    stand_ins: dict[str, nn.Module] = {name: nn.Identity() for name in points}
    try:
        for name, stand_in in stand_ins.items():
            setattr(sae, name, stand_in)
        yield stand_ins
    finally:
        for name, point in points.items():
            setattr(sae, name, point)


def check_fit(
    sae: SAE[Any], reads: str, place: str, shapes: Mapping[str, tuple[int, ...]], order: Mapping[str, int]
) -> None:
    """Refuse an SAE that does not fit between two hook points, which are one but for transcoders.

    Args:
        sae: the SAE.
        reads: the full hook name of what it encodes.
        place: the full hook name of what it stands for.
        shapes: full hook name -> shape shown, without batch.
        order: full hook name -> when it runs.

    Raises:
        InputError: as `refuse_what_no_map_fits`, but for transcoders from one hook point to a later one with the same
            positions; or another width or layout.
    """
    refuse_what_no_map_fits(sae, reads, transcoders=False)
    if hasattr(sae.cfg, "d_out") and not sae.cfg.metadata.hook_name_out:
        raise InputError(
            f"the SAE for {reads!r} is a transcoder, and its metadata does not say to where; set "
            "sae.cfg.metadata.hook_name_out to one of the model's hook points"
        )
    for name, hook_name, width in (("d_in", reads, sae.cfg.d_in), ("d_out", place, width_out(sae))):
        if width != shapes[hook_name][-1]:
            fitting = [other for other, shape in shapes.items() if shape[-1] == width]
            what = f"name one with {width} channels, such as {fitting[-1]}" if fitting else "none hooked has as many"
            raise InputError(
                f"the SAE has {name} {width}, but {hook_name!r} has {shapes[hook_name][-1]} channels; {what}, or take "
                "an SAE that was trained there"
            )
    if reads == place:
        return
    if shapes[reads][:-1] != shapes[place][:-1] or order[reads] > order[place]:
        raise InputError(
            f"the transcoder reads {reads!r}, shape {shapes[reads]}, for {place!r}, shape {shapes[place]}: the second "
            "must come later and have the same positions; choose such hook points"
        )
    if input_normalization(sae) is not None:
        raise InputError(
            f"the transcoder for {place!r} wants its input at length 1 (input_normalization in its metadata), and "
            "what its output is to be scaled by is not known; fold the scale into its weights and drop the entry"
        )


def width_out(sae: SAE[Any]) -> int:
    """How many channels the SAE puts out."""
    return int(getattr(sae.cfg, "d_out", sae.cfg.d_in))


def refuse_what_no_map_fits(sae: SAE[Any], name: str, *, transcoders: bool = True) -> None:
    """Refuse what is no function of one position's channels to themselves, or not the function that was trained.

    Whatever of ours applies an SAE asks this first.

    Args:
        sae: the SAE.
        name: what it is for, for the message.
        transcoders: whether transcoders are refused.

    Raises:
        InputError: No SAE of SAELens; a transcoder, an SAE that reads positions together, one for attention heads, one
            of another layout than channels last, one whose input was scaled in training by numbers that are not in its
            weights, or is to be normalised in a way that is not known.
    """
    if not isinstance(sae, SAE):
        raise InputError(f"a {type(sae).__name__} is no SAE of SAELens; give a sae_lens.SAE, as load_vision_sae does")
    layout = sae.cfg.metadata.layout
    if layout not in (None, "channels_last"):
        raise InputError(f"the SAE for {name!r} wants the layout {layout!r}; hook points are channels_last")
    input_normalization(sae)
    out = sae.cfg.metadata.hook_name_out
    if transcoders and (hasattr(sae.cfg, "d_out") or out not in (None, sae.cfg.metadata.hook_name)):
        raise InputError(
            f"the SAE for {name!r} is a transcoder, from one layer to another, and does not give back what it reads; "
            "take an SAE of one layer (HookedVisionModel.add_sae attaches transcoders)"
        )
    if sae.cfg.reshape_activations != "none":
        raise InputError(
            f"the SAE for {name!r} reshapes its input ({sae.cfg.reshape_activations}), which is for attention heads; "
            "attach SAEs of whole channels only"
        )
    if reads_positions_together(sae):
        raise InputError(
            f"the SAE for {name!r} ({sae.cfg.architecture()}) reads positions together, as a text or a batch has them: "
            "one position's latents change with another's; attach an SAE of single positions (a training SAE as "
            "save_sae saves it)"
        )
    refuse_unfolded_scaling(sae, name)
