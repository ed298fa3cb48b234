"""What a judge's answer says: an order of labelled items, or nothing that can be counted."""

__all__ = ["parse_ranking"]

import re
from string import ascii_uppercase

from mammosae_plugin.arguments import whole
from mammosae_plugin.errors import InputError


def parse_ranking(answer: str, n: int = 5) -> list[str] | None:
    """The order in which an answer puts the labels A, B, ... of n items.

    Counted are capital labels that touch no other letter; without any, the words of an answer that are exactly n single
    small labels. An answer that does not name each of the n labels once is no ranking: it counts as a failure, and not
    as a random order, which would be right by chance.

    Args:
        answer: what was answered.
        n: how many items there were, 26 at the most.

    Returns:
        n capital letters, best first, or None.

    Raises:
        InputError: an answer that is no text, or another number of items.

    Example:
        >>> parse_ranking("B > A > E, then C and D"), parse_ranking("A or B")
        (['B', 'A', 'E', 'C', 'D'], None)
    """
    if not isinstance(answer, str):
        raise InputError(f"the answer is a {type(answer).__name__}: give text")
    labels = ascii_uppercase[: whole(n, "n", least=1, most=len(ascii_uppercase))]
    found = re.findall(rf"(?<![^\W\d_])[{labels}](?![^\W\d_])", answer)
    if not found:
        words = re.findall(r"[^\W_]+", answer)
        if len(words) == n and all(word in labels.lower() for word in words):
            found = [word.upper() for word in words]
    return found if sorted(found) == list(labels) else None
