"""nnsight over a hookable model: hook points and the latents of attached SAEs inside `trace`.

nnsight is the extra `mammosae-plugin[nnsight]`, and is imported at the first wrapping: importing it gives every Python
object a method `save` and changes `Tensor.backward`. Only its public names NNsight, trace and edit are used.
"""

__all__ = ["Hookable", "StaleWrappingError", "wrap_for_nnsight"]

import functools
from typing import Any, Protocol

from mammosae_plugin.errors import InputError


class Hookable(Protocol):
    """What wrapping needs of a `HookedVisionModel`, which is also an `nn.Module`."""

    @property
    def attachment_count(self) -> int:
        """How often SAEs have been attached or detached."""

    def require_open(self) -> None:
        """Raise `RuntimeError` once the model is closed."""


class StaleWrappingError(RuntimeError):
    """The model's modules are no longer those that nnsight wrapped: an SAE was attached or detached since."""


def wrap_for_nnsight(model: Hookable) -> Any:
    """Wrap a hookable model, with the SAEs that are attached now, for nnsight.

    ```python
    hooked.add_sae(sae, use_error_term=True)
    n = wrap_for_nnsight(hooked)  # or hooked.nnsight()
    with torch.no_grad(), n.trace(images):
        latents = n.bn2.hook_out.hook_sae_acts_post.output.save()  # (B, h, w, d_sae)
        n.bn2.hook_out.hook_sae_acts_post.output[..., 7] = 0
        logits = n.output.save()
    ```

    Values are those of TransformerLens's hooks: channels last at `<module path>.hook_out`, the network's own layout
    at `n.model.<module path>`, which is the value before an SAE. Ask for them in the order in which they are computed.

    Args:
        model: the hookable model; its mode, hooks and SAEs stay as they are.

    Returns:
        an `nnsight.NNsight`, whose `trace` and `edit` raise `StaleWrappingError` once an SAE has been attached or
        detached, and `RuntimeError` once the model is closed.

    Raises:
        InputError: nnsight is not installed.
        RuntimeError: the model is closed.
    """
    model.require_open()
    return _checked_wrapping()(model)


@functools.cache
def _checked_wrapping() -> type:
    try:
        from nnsight import NNsight
    except ImportError as error:
        raise InputError("nnsight is not installed; run: pip install 'mammosae-plugin[nnsight]'") from error

    class CheckedNNsight(NNsight):  # type: ignore[misc]
        """`NNsight` that refuses to trace a model whose modules are no longer those that it wrapped."""

        def __init__(self, hooked: Hookable):
            super().__init__(hooked)
            # Past nnsight's own __setattr__, which takes a module for a new part of the network.
            object.__setattr__(self, "_hooked", hooked)
            object.__setattr__(self, "_attachments", hooked.attachment_count)

        def trace(self, *args: Any, **kwargs: Any) -> Any:
            """`NNsight.trace`, unless the wrapping is stale."""
            self._check()
            return super().trace(*args, **kwargs)

        def edit(self, *args: Any, **kwargs: Any) -> Any:
            """`NNsight.edit`, unless the wrapping is stale."""
            self._check()
            return super().edit(*args, **kwargs)

        def _check(self) -> None:
            self._hooked.require_open()
            if self._hooked.attachment_count != self._attachments:
                raise StaleWrappingError(
                    "an SAE was attached or detached after the model was wrapped; wrap it again with model.nnsight()"
                )

    return CheckedNNsight
