"""What a pass with a cache gives: TransformerLens's `ActivationCache`, which is a dict as well and knows aliases."""

__all__ = ["HookCache"]

import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from transformer_lens import ActivationCache
from transformer_lens.utils import get_act_name  # type: ignore[attr-defined]  # which it has lazily

from mammosae_plugin.adapters.hook_names import PREFIX, meanings
from mammosae_plugin.errors import InputError


class HookCache(ActivationCache, MutableMapping[str, torch.Tensor]):
    """Activations by full hook name; a module path, an alias or `blocks[3]` finds them too.

    TransformerLens's shorthands find what has the name that its `get_act_name` gives: `cache["out", 0]` and
    `cache["out0"]` are `blocks.0.hook_out`, `cache["out", -1, "mlp"]` is that of the last block's `mlp`.

    `remove_batch_dim`, `to` and `apply_slice_to_batch_dim` are TransformerLens's. Its methods for the residual stream
    of a language model (`logit_attrs`, `decompose_resid`, ...) raise `InputError`.
    """

    def __init__(
        self, cache_dict: dict[str, torch.Tensor], model: Any, has_batch_dim: bool = True, *, aliases: Mapping[str, str]
    ):
        """As `ActivationCache`, and with other names.

        Args:
            cache_dict: activations by full hook name.
            model: the model that they are of.
            has_batch_dim: whether their first axis is the batch.
            aliases: other names of modules -> their paths.
        """
        super().__init__(cache_dict, model, has_batch_dim)
        self._aliases = dict(aliases)

    def _key(self, name: object) -> str | None:
        spellings = [name, self._from_shorthand(name)]
        found = (full for one in spellings if isinstance(one, str) for full in meanings(one, self._aliases))
        return next((full for full in found if full in self.cache_dict), None)

    def _from_shorthand(self, key: object) -> str | None:
        """What TransformerLens calls it: of `name`, or (name, block, part of the block); None of what is neither."""
        name, block, part = (*(key if isinstance(key, tuple) else (key,)), None, None, None)[:3]
        known = isinstance(name, str) and isinstance(block, int | None) and isinstance(part, str | None)
        if not known or (isinstance(key, tuple) and len(key) > 3):
            return None
        if block is not None and block < 0:
            block += self._n_blocks()
        return str(get_act_name(name, block, part)) if block is None or block >= 0 else None

    def _n_blocks(self) -> int:
        names = self.cache_dict if self.model is None else self.model.hook_dict
        path = re.escape(self._aliases.get("blocks", "blocks"))
        found = (re.match(rf"(?:{PREFIX}\.)?{path}\.(\d+)\.", name) for name in names)
        return max((int(one[1]) + 1 for one in found if one), default=0)

    def __getitem__(self, key: Any) -> torch.Tensor:
        """The activation of that name.

        Raises:
            KeyError: it is not in the cache.
        """
        full = self._key(key)
        if full is None:
            shorthand = self._from_shorthand(key) if isinstance(key, tuple) else None
            said = f"{key!r}, which TransformerLens calls {shorthand}," if shorthand else repr(key)
            raise KeyError(f"{said} is not in the cache; it holds {', '.join(self.cache_dict) or 'nothing'}")
        return self.cache_dict[full]

    def __setitem__(self, key: Any, value: torch.Tensor) -> None:
        """Put an activation in the place of the one that `key` finds, or add it under this name."""
        self.cache_dict[self._key(key) or (self._from_shorthand(key) if isinstance(key, tuple) else None) or key] = (
            value
        )

    def __delitem__(self, key: Any) -> None:
        """Drop the activation that `key` finds."""
        del self.cache_dict[self._key(key) or key]

    def __contains__(self, key: object) -> bool:
        """Whether a name finds an activation."""
        return self._key(key) is not None

    def __iter__(self) -> Iterator[str]:
        """The full names."""
        return iter(self.cache_dict)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: without the model, which would be copied along."""
        return {**self.__dict__, "model": None}


def _of_language_models(name: str) -> Callable[..., Any]:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise InputError(
            f"ActivationCache.{name} takes a language model's residual stream apart, which an image model has not; "
            "work on cache['<hook name>'] itself"
        )

    return refuse


_ANY_MODEL = ("remove_batch_dim", "to", "toggle_autodiff", "keys", "values", "items", "apply_slice_to_batch_dim")
for _name in vars(ActivationCache):
    if not _name.startswith("_") and _name not in _ANY_MODEL:
        setattr(HookCache, _name, _of_language_models(_name))
