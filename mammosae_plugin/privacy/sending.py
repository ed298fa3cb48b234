"""Whether a dataset's pictures may go to a language model on another machine."""

__all__ = ["permit_sending"]

import re
import unicodedata

from mammosae_plugin.adapters.language_models import SendingPermission, is_loopback
from mammosae_plugin.arguments import text
from mammosae_plugin.datasets.about import DatasetAbout
from mammosae_plugin.errors import InputError

_FLAG = "--send-images-under"
NO_LICENCE = "none"
"""What is named in place of a licence where anybody may have the images and none is known."""


def permit_sending(about: DatasetAbout, licence: str | None, host: str) -> SendingPermission | None:
    """The permission to send a dataset's pictures to a host, which `openai_model` takes.

    Whoever sends names the licence of the images, and so says that its terms allow it; this guard only sees that it is
    the licence of these images, in the words in which the dataset states it; small and capital letters, spaces, hyphens
    and commas do not matter (cc-by-4.0 is CC BY 4.0). This machine is no other one and takes no permission.

    Args:
        about: what is known of the dataset.
        licence: the licence named; of images that anybody may have and that have none, "none".
        host: the machine, without port.

    Returns:
        The permission; None where none is needed.

    Raises:
        InputError: no licence named, another than the images', or theirs is not known.

    Example:
        >>> from mammosae_plugin.datasets.about import KNOWN
        >>> permit_sending(KNOWN["cmmd"], "CC BY 4.0", "models.example.org").licence
        'CC BY 4.0'
        >>> permit_sending(KNOWN["cmmd"], None, "127.0.0.1") is None
        True
    """
    text(host, "host")
    if is_loopback(host):
        return None
    wanted = about.licence or (None if about.restricted else NO_LICENCE)
    terms = f" ({about.url})" if about.url else ""
    if wanted is None:
        raise InputError(
            f"the licence of {about.title} is not known, so its images go to no other machine ({host}); state it where "
            f"the data are described (data.licence, DatasetAbout(licence=...)), or ask a model on this machine"
        )
    named = _plain(licence or "")
    if not named or named != _plain(wanted):
        what = f"{licence} is not the licence of {about.title}" if named else f"images of {about.title} stay here"
        why = f"; {about.why}" if about.why else ""
        raise InputError(
            f"{what}: its terms are {wanted}{terms}{why}. If they allow sending to {host}, name them: "
            f"{_FLAG} '{wanted}' (permit_sending(..., licence=...)); else ask a model on this machine"
        )
    return SendingPermission(about.name, str(licence), host)


def _plain(words: str) -> str:
    """In small letters, without spaces and signs; only the dots of a version stay."""
    return re.sub(r"[^\w.]|_|\.(?!\d)|(?<!\d)\.", "", unicodedata.normalize("NFKC", words).lower())
