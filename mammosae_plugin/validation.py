"""Settings that are checked when they are made, and what is wrong with them in one line of our own words."""

__all__ = ["explain", "names_in", "sections_in", "Settings"]

import difflib
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from typing_extensions import Self

from mammosae_plugin.errors import InputError


class Settings(BaseModel):
    """A section of settings: unknown names, values of a wrong type and values out of range are refused.

    Raises:
        InputError: Everything that is wrong, in one line, each with its place.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        """Check the values."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError(explain(error, values, type(self))) from None

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # sections within others are checked in place

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse: what was checked stays."""
        raise InputError(
            f"{name} cannot be changed once the settings are made; make others with model_copy(update=...)"
        )

    @classmethod
    def checked(cls, values: Mapping[Any, Any], *, where: str) -> Self:
        """The settings from plain values, such as those of a YAML file; `where` begins the message of an error.

        Raises:
            InputError: As for the class.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(f"{where}: {explain(error, values, cls)}") from None

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, values: Any) -> Any:
        """Take an empty section for one with its defaults, and no boolean for a number."""
        if not isinstance(values, Mapping):
            return values
        meant = dict(values)
        for name in cls.model_fields.keys() & meant.keys():
            annotation = cls.model_fields[name].annotation
            if meant[name] is None and isinstance(annotation, type) and issubclass(annotation, BaseModel):
                meant[name] = {}
            kinds = set(_kinds(annotation))
            if kinds & {int, float} and not kinds & {bool, str}:
                meant[name] = _without_booleans(meant[name])
        return meant


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types in an annotation, such as int and float in tuple[int, ...] | float."""
    if get_origin(annotation) is None:
        yield annotation
    for inner in get_args(annotation):
        yield from _kinds(inner)


def _without_booleans(value: Any) -> Any:
    if isinstance(value, bool):
        return _shown(value)
    return [_without_booleans(item) for item in value] if isinstance(value, list) else value


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation names."""
    return [kind for kind in _kinds(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]


def names_in(section: type[BaseModel]) -> set[str]:
    """The names of all settings in a section, in those below it and in the kinds of it."""
    below = [inner for field in section.model_fields.values() for inner in sections_in(field.annotation)]
    kinds = section.__subclasses__()  # of which one stands in its place
    return set(section.model_fields).union(*map(names_in, below + kinds))


def explain(error: ValidationError, values: Any, section: type[BaseModel] | None = None) -> str:
    """All problems in one line, each with its place.

    Args:
        error: What pydantic says.
        values: What was checked.
        section: What it was checked against, whose names are proposed for unknown ones.
    """
    found: dict[str, str] = {}
    for item in error.errors():
        place = ".".join(map(str, _place(item["loc"], values, item["type"] == "missing")))
        if item["type"] == "missing":
            found[place] = f"{place} is missing"
        elif item["type"] in ("extra_forbidden", "invalid_key"):
            near = difflib.get_close_matches(str(item["loc"][-1]), sorted(names_in(section)) if section else (), n=1)
            found[place] = f"unknown setting {place!r}" + (f" (did you mean {near[0]!r}?)" if near else "")
        elif place not in found or item["type"] == "path_type":  # of a choice of types, a path says most
            found[place] = f"{place}: {_words(item)}" if place else _words(item)
    # Of a list whose entries are wrong pydantic says that it has none.
    return "; ".join(
        text for place, text in found.items() if not place or not any(one.startswith(f"{place}.") for one in found)
    )


def _place(loc: Sequence[int | str], values: Any, is_missing: bool) -> Iterator[int | str]:
    """The parts of a place that the user wrote; between them pydantic names types that it tried."""
    for number, part in enumerate(loc):
        is_entry = isinstance(values, (list, tuple)) and isinstance(part, int) and part < len(values)
        if is_entry or (isinstance(values, Mapping) and part in values):
            values = values[part]
        elif not (is_missing and number == len(loc) - 1):
            continue
        yield part


def _words(item: Any) -> str:
    kind, context, value = item["type"], item.get("ctx", {}), item["input"]
    if kind == "value_error":
        return " ".join(str(context["error"]).split())
    shown = _shown(value)
    if kind in _LIMITS:
        name, words = _LIMITS[kind]
        return f"must be {words} {context[name]:g}, not {shown}"
    if kind in ("too_short", "string_too_short"):
        n = context.get("min_length", 1)
        return f"needs at least {n} entr{'y' if n == 1 else 'ies'}, but has {context.get('actual_length', 0)}"
    if kind in ("too_long", "string_too_long"):
        return f"takes at most {context.get('max_length')} entries, but has {context.get('actual_length', 'more')}"
    if kind == "literal_error":
        near = difflib.get_close_matches(str(value), [word.strip("'") for word in _choices(context)], n=1)
        return f"must be one of {', '.join(_choices(context))}, not {shown}" + (
            f" (did you mean {near[0]!r}?)" if near else ""
        )
    wanted = next((words for start, words in _WANTED.items() if kind.startswith(start)), "something else")
    if value is None:
        return f"is empty, but must be {wanted}; give a value, or leave the line out where the setting has a default"
    if kind == "string_type" and not isinstance(value, (list, tuple, Mapping)):
        return f"must be text, not {shown}, as which YAML reads it; write it in quotes"
    if wanted == "a list" and isinstance(value, str):
        return f"must be a list, not {shown}; write [{', '.join(_entries(value))}]"
    if wanted == "a whole number" and isinstance(value, str) and (number := _whole(value)) is not None:
        return f"must be a whole number, not {shown}; write {number}"
    return f"must be {wanted}, not {shown}"


def _entries(text: str) -> list[str]:
    """What a list written as "a, b" or 1520x912 holds."""
    numbers = re.fullmatch(r"(\d+)\s*[x*×\s]\s*(\d+)", text.strip())
    return list(numbers.groups()) if numbers else [part.strip() for part in text.split(",")]


def _whole(text: str) -> int | None:
    """The whole number that a text such as 1e3, which is no number to YAML, means."""
    try:
        number = float(text)
        return int(number) if number.is_integer() else None
    except ValueError:
        return None


def _choices(context: Mapping[str, Any]) -> Iterable[str]:
    return str(context["expected"]).replace(" or ", ", ").split(", ")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple, set)):
        return "a list"
    if isinstance(value, (Mapping, BaseModel)):
        return "a section of settings"
    if isinstance(value, (int, float)):
        return f"the number {str(value)[:40]}"
    if isinstance(value, (str, bytes)):
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:79]}…"
    words = " ".join(str(value).split())[:80]
    return f"a {type(value).__name__} ({words})" if value is not None else "nothing"


_LIMITS = types.MappingProxyType(
    {
        "greater_than": ("gt", "above"),
        "greater_than_equal": ("ge", "at least"),
        "less_than": ("lt", "below"),
        "less_than_equal": ("le", "at most"),
        "multiple_of": ("multiple_of", "a multiple of"),
    }
)
_WANTED = types.MappingProxyType(
    {
        "int": "a whole number",
        "float": "a number",
        "finite": "a finite number",
        "bool": "true or false",
        "string": "text",
        "path": "a path",
        "tuple": "a list",
        "list": "a list",
        "set": "a list",
        "frozen_set": "a list",
        "dict": "values by name (name: value)",
        "mapping": "values by name (name: value)",
        "model": "a section of settings (name: value)",
        "none": "left out",
    }
)
