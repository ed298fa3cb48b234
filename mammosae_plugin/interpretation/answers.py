"""What a model's answer says: an order of labelled items, an object of JSON, or nothing that can be counted."""

__all__ = ["clean_name", "commonest_name", "misfit", "parse_object", "parse_ranking"]

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

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


_ADVERB, _VERB = r"(?:(?:consistently|predominantly)\s+)?", r"(?:show|demonstrate|depict|feature|present)\s+"
_OPENINGS = tuple(
    re.compile(rf"\s*{opening}", re.IGNORECASE)
    for opening in (
        rf"these\s+(?:(?:axial|coronal|sagittal)\s+)?(?:(?:CT|MRI|images?)\s+)?{_ADVERB}{_VERB}",
        rf"the\s+(?:(?:images?|scans?)\s+)?{_ADVERB}{_VERB}",
        rf"all\s+(?:(?:images?|scans?)\s+)?{_ADVERB}{_VERB}",
        r"(?:consistently|predominantly)\b,?\s*",
    )
)


def clean_name(said: str) -> str:
    """A name in one line, without the words that models put before one, each at most once, and with a capital letter.

    Example:
        >>> clean_name("These images consistently show a dark rim")
        'A dark rim'
    """
    said = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", said).split())
    for opening in _OPENINGS:
        said = opening.sub("", said, count=1) if opening.match(said) else said
    return said[:1].upper() + said[1:]


def commonest_name(said: Sequence[str]) -> str:
    """The name that most answers give, cleaned; of equally common ones the shortest, of these the first.

    Example:
        >>> commonest_name(["Liver", "Right lobe", "'liver'"])
        'Liver'
    """
    counts = Counter(clean_name(one.strip().strip("\"'")) for one in said)
    return min(counts, key=lambda name: (-counts[name], len(name)))


def parse_object(answer: str, schema: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The one object of JSON in an answer that fits a schema, with or without words or a fence around it.

    What a model thinks aloud (up to `</think>`) is no answer. Of an object that breaks off nothing counts, also what is
    whole inside it; nor do two objects that say different things. Names that the schema does not know are left out.

    Args:
        answer: what was answered.
        schema: as for `misfit`, of an object.

    Returns:
        The object and "", or None and why there is none, in a clause.

    Example:
        >>> wants = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
        >>> parse_object('Here it is: {"name": "a dark rim"}.', wants)
        ({'name': 'a dark rim'}, '')
        >>> parse_object('{"name": "a dark', wants)
        (None, 'no whole JSON object')
    """
    found, reasons = [], []
    for value in _objects(answer.rpartition("</think>")[2]):
        reason = misfit(value, schema)
        kept = {name: value[name] for name in schema.get("properties", {}) if name in value}
        if reason is not None:
            reasons.append(reason)
        elif kept not in found:
            found.append(kept)
    if len(found) == 1:
        return found[0], ""
    if found:
        return None, f"{len(found)} answers that differ"
    if reasons:
        return None, reasons[-1]
    return None, "no whole JSON object" if answer.strip() else "an empty answer"


def misfit(value: Any, schema: Mapping[str, Any]) -> str | None:
    """Why a value does not fit a JSON schema, in a clause; None where it does.

    Known are type, properties, required, enum, items, minItems, maxItems, minimum, maximum, minLength and maxLength;
    additionalProperties, title and description are for the model.

    Raises:
        InputError: the schema says something else, which nobody would check.
    """
    if unknown := schema.keys() - _SAID - _CHECKS.keys() - {"type", "properties", "items", "required"}:
        raise InputError(f"the schema says {sorted(unknown)[0]}, which is not checked here; say it otherwise")
    types = [schema["type"]] if isinstance(schema.get("type"), str) else list(schema.get("type", ()))
    if types and not any(_TYPES[one](value) for one in types):
        return f"a {_called(value)} in place of {' or '.join(types)}"
    for name, fits in _CHECKS.items():
        if name in schema and not fits(value, schema[name]):
            return f"{json.dumps(value, ensure_ascii=False)[:_LONGEST]} where {name} is {schema[name]}"
    if isinstance(value, dict):
        if missing := [name for name in schema.get("required", ()) if name not in value]:
            return f"no {missing[0]}"
        parts = [(value[name], one) for name, one in schema.get("properties", {}).items() if name in value]
    else:
        parts = [(one, schema["items"]) for one in value] if isinstance(value, list) and "items" in schema else []
    return next((reason for part, one in parts if (reason := misfit(part, one)) is not None), None)


_LONGEST = 60
_SAID = frozenset({"additionalProperties", "title", "description"})


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str) and not re.search("[\ud800-\udfff]", value),  # halves of signs
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": _is_number,
    "integer": lambda value: _is_number(value) and float(value).is_integer(),
}
_CHECKS: Mapping[str, Callable[[Any, Any], bool]] = {
    "enum": lambda value, among: any(value == one and type(value) is type(one) for one in among),
    "minItems": lambda value, n: not isinstance(value, list) or len(value) >= n,
    "maxItems": lambda value, n: not isinstance(value, list) or len(value) <= n,
    "minLength": lambda value, n: not isinstance(value, str) or len(value) >= n,
    "maxLength": lambda value, n: not isinstance(value, str) or len(value) <= n,
    "minimum": lambda value, n: not _is_number(value) or value >= n,
    "maximum": lambda value, n: not _is_number(value) or value <= n,
}


def _called(value: Any) -> str:
    other = "string with half a sign" if isinstance(value, str) else "number that is not finite"
    return next((name for name, fits in _TYPES.items() if fits(value)), other)


def _objects(said: str) -> Iterator[dict[str, Any]]:
    """The outermost objects of JSON in a text; behind one that breaks off there are none."""
    start = said.find("{")
    while start >= 0:
        try:
            value, end = _DECODER.raw_decode(said, start)
            yield value
        except (ValueError, RecursionError):
            behind = _behind_braces(said, start)
            if behind is None:
                return
            end = behind
        start = said.find("{", end)


def _behind_braces(said: str, start: int) -> int | None:
    """Where a bracketed part ends that is no JSON; None if nothing closes it."""
    depth = 0
    for match in re.finditer(r'"(?:[^"\\\n]|\\.)*"|[{}]', said[start:]):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return start + match.end()
    return None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice")
    return found


def _refused(said: str) -> Any:
    raise ValueError(f"{said} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_each_once, parse_constant=_refused)
