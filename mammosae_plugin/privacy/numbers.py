"""How many numbers may stand together in JSON, YAML or a text: what settings and aggregates have, and no picture."""

__all__ = ["lists_numbers", "MOST_ENTRIES", "MOST_NUMBERS", "MOST_OBJECTS", "too_many_numbers"]

import json
import re
from collections.abc import Mapping
from typing import Any

MOST_NUMBERS = 64
"""How many numbers a list may hold, lists in it included, and a text."""
MOST_ENTRIES = 256
"""How many numbers an object may hold, those of its lists included; and how many entries it may have."""
MOST_OBJECTS = 1024
"""How many objects or texts a list may hold."""


def too_many_numbers(value: Any) -> str | None:
    """What in a JSON value holds more numbers, or more entries, than a setting or an aggregate does; None if nothing.

    A picture of 8 x 8 pixels is the largest that passes in a list, and one of 16 x 16 in an object.
    """
    if isinstance(value, Mapping):
        lists = sum(_numbers(item) for item in value.values())
        if len(value) > MOST_ENTRIES or lists > MOST_ENTRIES:
            return f"an object of more than {MOST_ENTRIES} numbers or entries"
    elif isinstance(value, list):
        if _numbers(value) > MOST_NUMBERS:
            return f"a list of more than {MOST_NUMBERS} numbers"
        if len(value) > MOST_OBJECTS:
            return f"a list of more than {MOST_OBJECTS} entries"
    elif isinstance(value, str) and lists_numbers(value):
        return f"a text of more than {MOST_NUMBERS} numbers"
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return next(filter(None, map(too_many_numbers, inner)), None)


def lists_numbers(text: str) -> bool:
    """Whether a text is a list of numbers: more than `MOST_NUMBERS`, or one with very many digits; JSON is not."""
    if len(_NUMBER.findall(text)) <= MOST_NUMBERS and not _DIGITS.search(text):
        return False
    try:
        return not isinstance(json.loads(text), (dict, list))  # which is held against the limits as such
    except ValueError:
        return True


_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_DIGITS = re.compile(r"\d{100,}")


def _numbers(value: Any) -> int:
    """The numbers in a value and in lists in it; objects in lists are looked at by themselves."""
    if isinstance(value, list):
        return sum(map(_numbers, value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)
