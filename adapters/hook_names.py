"""Names of hook points: of which module each is, and what else it may be called."""

__all__ = ["hook_name_of", "HOOK_SUFFIX", "HookNode", "meanings", "module_path", "Numbered", "PREFIX"]

import re
from collections.abc import Iterator, Mapping

from torch import nn
from transformer_lens import HookedRootModule

HOOK_SUFFIX = "hook_out"
PREFIX = "hooked"  # of hook points whose module's path begins with a name that the wrapper has itself

# What HookedVisionModel adds to its base; a test holds the list against the class.
_OWN_NAMES = """
    acts_to_saes add_sae attachment_count call_at close compiled context_level encoder_state final_hook grid head_input
    head_path hook_layouts hook_shapes image_size inputs is_caching is_closed look model n_channels n_views nnsight
    passed_by probe_size read readers require_head require_open reset_saes resolve_hook_name rest_from
    run_with_cache_with_saes run_with_hooks_with_saes run_with_saes saes wrapper_of
    _add_point _aliases _attached _checked_filter _detach _handles _hook_target _module_paths _order _passes _put _rests
    _said_layouts _unread
"""
_TAKEN = frozenset(
    {PREFIX, *_OWN_NAMES.split(), *dir(HookedRootModule), *HookedRootModule.__annotations__, *vars(nn.Module())}
)


def hook_name_of(path: str) -> str:
    """The full name of the hook point of a module: `bn2` gives `bn2.hook_out`, `model.layer.0` what has the prefix."""
    prefix = f"{PREFIX}." if path.partition(".")[0] in _TAKEN else ""
    return f"{prefix}{path}.{HOOK_SUFFIX}"


def module_path(hook_name: str) -> str:
    """The path of the module behind a full hook name."""
    return hook_name.removesuffix(f".{HOOK_SUFFIX}").removeprefix(f"{PREFIX}.")


def meanings(name: str, aliases: Mapping[str, str]) -> Iterator[str]:
    """Full names that a name may stand for, the likeliest first.

    Args:
        name: a full name, a module path or an alias, with [3] or .3: `blocks[3]`, `layer_39.hook_sae_acts_post`.
        aliases: other names of modules -> their paths.
    """
    spellings = [name, re.sub(r"\[(\d+)\]", r".\1", name)]
    for spelling in tuple(spellings):
        alias, dot, rest = spelling.partition(".")
        spellings += [aliases[alias] + dot + rest] if alias in aliases else []
    for path in dict.fromkeys(spellings):
        for full in (path, f"{PREFIX}.{path}"):
            head, _, leaf = full.rpartition(".")
            yield from (full, f"{full}.{HOOK_SUFFIX}", f"{head}.{HOOK_SUFFIX}.{leaf}")


class Numbered(nn.Module):
    """A module whose numbered parts are had by number, as upstream's are: `model.blocks[3].hook_out`."""

    def __getitem__(self, number: int) -> nn.Module:
        """The part of this number.

        Raises:
            IndexError: nothing is hooked in a part of that number; counting from the end is not known here, because
                parts without hook points are absent.
        """
        part = self._modules.get(str(number))
        if part is None:
            there = ", ".join(name for name in self._modules if name.isdigit())
            raise IndexError(f"nothing is hooked in part {number}; hook points are in {there or 'no numbered part'}")
        return part

    def __iter__(self) -> Iterator[nn.Module]:
        """The numbered parts that have hook points."""
        return iter([part for name, part in self._modules.items() if name.isdigit() and part is not None])


class HookNode(Numbered):
    """Only a name: gives a hook point its dotted path in the module tree."""
