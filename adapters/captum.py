"""captum's layer attributions at hook points and on the latents of attached SAEs.

captum looks for channels in the second axis, and hook points have them last. Methods that treat every number alike take
a hook point as it is; for those that average over positions, `channels_first` stands one before it that captum reads.
Nothing here imports captum.
"""

__all__ = ["channels_first"]

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mammosae_plugin.adapters.hooked_vision_model import HookedVisionModel


@contextmanager
def channels_first(model: HookedVisionModel, hook_name: str) -> Iterator[nn.Module]:
    """For the length of the block, a layer through which the value of a hook point flows with its channels second.

    ```python
    model.add_sae(sae)
    with channels_first(model, "layer_39.hook_sae_acts_post") as layer:
        cam = LayerGradCam(model, layer).attribute(images, target=0)  # (B, 1, h, w)
    ```

    Args:
        model: the hooked model; it is left as it was.
        hook_name: any name of a hook point, or of one of an attached SAE.

    Yields:
        The layer: its input and output are (B, C, h, w) at maps, (B, C, n) at sequences, (B, C) at vectors. What a
        hook makes of its output flows on.

    Raises:
        InputError: no such hook point, or an SAE stands there (the message names the points before and behind it).
    """
    layer = nn.Identity()

    def turned(value: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001 (TransformerLens's signature)
        seen: torch.Tensor = layer(value.movedim(-1, 1))
        return seen.movedim(1, -1)

    with model.hooks(fwd_hooks=[(hook_name, turned)]):
        yield layer
