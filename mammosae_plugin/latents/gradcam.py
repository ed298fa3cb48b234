"""Grad-CAM at a layer: what a reader would draw without an SAE, as a map over the same positions."""

__all__ = ["GradCam", "require_captum"]

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mammosae_plugin.adapters.rest_of_network import RestOfNetwork
from mammosae_plugin.errors import InputError


def require_captum() -> None:
    """Raise `InputError` unless captum is installed, without importing it."""
    if find_spec("captum") is None:
        raise InputError("Grad-CAM needs captum: pip install 'mammosae-plugin[gradcam]', or leave Grad-CAM out")


class GradCam:
    """Grad-CAM (Selvaraju et al., ICCV 2017) of one logit at one layer, through captum's `LayerGradCam`.

    With A (h, w, C) the value of the layer and g (C,) the gradient of the logit with respect to it, averaged over
    positions, the map is ReLU(sum_c g_c A_c). Where the logit is linear in the mean over positions, with weight w (C,),
    that is ReLU(sum_c w_c A_c) / (h w).

    Raises:
        InputError: captum is not installed.
    """

    def __init__(self, rest: RestOfNetwork, head: nn.Linear, *, output: int = 0, device: str = "cpu") -> None:
        """Prepare the part of the network that is differentiated.

        Args:
            rest: the network behind the layer.
            head: the linear classifier; it reads `rest.head_input`.
            output: which of its logits; a binary finding has one, 0.
            device: where it runs.
        """
        require_captum()
        try:
            from captum.attr import LayerGradCam
        except ImportError as error:
            raise InputError(f"captum is installed but cannot be imported: {error}; install it again") from error

        behind = _BehindLayer(rest, head, device)
        self._method: Any = LayerGradCam(behind, behind.layer)
        self._output = output

    def __call__(self, raw: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Maps (B, h, w), not negative, for the module's output `raw` and the value (B, h, w, C) shown at its hook."""
        # The pass that read the layer may have run in inference mode, whose tensors know no gradients; copies do.
        with torch.inference_mode(mode=False), torch.enable_grad():
            start = value.clone().permute(0, 3, 1, 2).requires_grad_()
            maps: torch.Tensor = self._method.attribute(
                start, target=self._output, additional_forward_args=(raw.clone(),), relu_attributions=True
            )
        return maps.detach()[:, 0]


class _BehindLayer(nn.Module):
    """The network behind a layer as a module that starts with it, channels first, as captum wants it."""

    def __init__(self, rest: RestOfNetwork, head: nn.Linear, device: str) -> None:
        super().__init__()
        self.layer = nn.Identity()
        self._rest = rest
        self._weight = head.weight.detach().to(device)
        self._bias = None if head.bias is None else head.bias.detach().to(device)

    def forward(self, value: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) and the module's own output -> logits (B, n_out)."""
        shown = self.layer(value).permute(0, 2, 3, 1)
        read = self._rest.head_input(self._rest.replace(raw, shown))
        return functional.linear(read, self._weight, self._bias)
