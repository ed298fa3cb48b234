"""The formats that are read, in the order in which a place is asked what it holds."""

__all__ = ["FORMATS", "format_named", "LAYOUTS", "recognised"]

from collections.abc import Mapping

from mammosae_plugin.adapters.checkpoints import CheckpointFormatError
from mammosae_plugin.adapters.sae_formats.dictionary_learning import DictionaryLearning
from mammosae_plugin.adapters.sae_formats.mammo_sae import MammoSAE
from mammosae_plugin.adapters.sae_formats.msae import MSAE
from mammosae_plugin.adapters.sae_formats.openai import OpenAI
from mammosae_plugin.adapters.sae_formats.overcomplete import Overcomplete
from mammosae_plugin.adapters.sae_formats.parts import Opened, SAEFormat, refused
from mammosae_plugin.adapters.sae_formats.patchsae import PatchSAE
from mammosae_plugin.adapters.sae_formats.prisma import Prisma
from mammosae_plugin.adapters.sae_formats.saelens import SAELens, SAELensWeights
from mammosae_plugin.adapters.sae_formats.saev import Saev
from mammosae_plugin.adapters.sae_formats.sail import SAIL
from mammosae_plugin.adapters.sae_formats.sparsify import Sparsify
from mammosae_plugin.errors import InputError

FORMATS: tuple[SAEFormat, ...] = (
    SAELens(),
    MammoSAE(),
    SAIL(),
    Saev(),
    Prisma(),
    PatchSAE(),
    OpenAI(),
    MSAE(),
    DictionaryLearning(),
    Sparsify(),
    Overcomplete(),
    SAELensWeights(),
)
"""A form whose tensors could be taken for another's stands before it."""

LAYOUTS = tuple(layout for one in FORMATS for layout in one.layouts)


def format_named(name: str) -> SAEFormat:
    """A format by its name.

    Raises:
        InputError: There is none of this name.
    """
    found = next((one for one in FORMATS if one.name == name), None)
    if found is None:
        raise InputError(f"{name!r} is no format of SAEs; known are {', '.join(one.name for one in FORMATS)}")
    return found


def recognised(opened: Opened) -> SAEFormat:
    """The format of what lies at a place.

    Raises:
        CheckpointFormatError: It is of none, or not of the one that was asked for.
        UnsafeCheckpointError, InputError: As `Opened.content`.
    """
    if opened.asked is not None:
        wanted = format_named(opened.asked)
        if not wanted.recognises(opened):
            raise refused(opened, f"is not {wanted.title}: {_held(opened)}")
        if wanted.name == SAELensWeights.name and (own := _first(opened)) is not wanted:
            assert own is not None
            raise refused(opened, f"is {own.title}, which says how it is used, and no bare weights: leave format= out")
        return wanted
    found = _first(opened)
    if found is None:
        raise CheckpointFormatError(f"{opened.place} holds no SAE of a known form: {_held(opened)}")
    return found


def _first(opened: Opened) -> SAEFormat | None:
    return next((one for one in FORMATS if one.recognises(opened)), None)


def _held(opened: Opened) -> str:
    content = opened.content
    if isinstance(content, Mapping):
        return f"it holds {', '.join(map(str, list(content)[:4])) or 'nothing'}"
    return f"it holds a {type(content).__name__}"
