"""Cards that programs and people write together: the marked parts are the program's, the rest is theirs.

A card goes out with each of its sections between `<!-- mammosae:begin NAME -->` and `<!-- mammosae:end NAME -->`. When
it is published again, these are written anew, and everything between and around them stays as people left it. A card
without marks is all theirs, and stays below ours.
"""

__all__ = ["ABOUT", "FRONT_MATTER", "join_cards", "Joined", "LINKS", "mark"]

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from mammosae_plugin.errors import InputError
from mammosae_plugin.findings.about import TITLES

FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
ABOUT, LINKS = "about", "links"
"""The parts with what people had said by options: authors, description, links. What no option says anew stays."""

_AUTHORS = "Authors: "

_PART = re.compile(
    r"<!-- mammosae:begin (?P<name>[\w-]+) -->\n?(?P<text>.*?)\n?<!-- mammosae:end (?P=name) -->", re.DOTALL
)
_OURS = frozenset(
    {
        *("license", "base_model", "datasets", "models", "tags", "model-index", "library_name", "pretty_name"),
        *("configs", "size_categories", "title", "sdk"),
    }
)
"""Entries of the front matter that are the program's; all others, and further tags, are theirs once they are there."""


@dataclass(frozen=True)
class Joined:
    """A card after it was joined with the one that was there.

    Attributes:
        text: the card.
        changes: what becomes of the card that was there, in lines for people.
    """

    text: str
    changes: tuple[str, ...]


def mark(text: str) -> str:
    """Markdown with marks around every section of the second level, and around what stands before the first."""
    parts: dict[str, str] = {}
    for name, part in _sections(text):
        parts[name if name not in parts else f"{name}-{len(parts)}"] = part
    return "\n\n".join(_marked(name, part) for name, part in parts.items())


def join_cards(there: str, new: str) -> Joined:
    """A new card, marked, with what people wrote into the one that is there.

    Args:
        there: the card that is there, front matter included.
        new: the card that was made now; without marks it is taken as it is.
    """
    front, text = _split(new)
    ours = {found["name"]: found["text"] for found in _PART.finditer(text)}
    if not ours:
        return Joined(new, ())
    their_front, their_text = _split(there)
    before = {found["name"]: found["text"] for found in _PART.finditer(their_text)}
    said = {
        ABOUT: _joined_about(before.get(ABOUT, ""), ours.get(ABOUT, "")),
        LINKS: _joined_links(before.get(LINKS, ""), ours.get(LINKS, "")),
    }
    first = next(iter(ours))
    added = {name: part for name, part in said.items() if part and name not in ours}
    ours = {first: ours[first]} | added | {name: said.get(name) or part for name, part in ours.items()}
    body, kept = _joined_text(their_text, ours)
    joined_front, front_changes = _joined_front(their_front, front)
    words = {
        "written anew": [
            name for name, part in ours.items() if name in before and before[name].strip() != part.strip()
        ],
        "new": [name for name in ours if name not in before],
        "taken out": [name for name in before if name not in ours],
    }
    changes = [f"  of the card, {what}: {', '.join(names)}" for what, names in words.items() if names]
    changes += [f"  of the card, kept as people wrote it: {_beginning(part)}" for part in kept]
    return Joined(f"---\n{joined_front.strip()}\n---\n\n{body.strip()}\n", tuple(changes + front_changes))


def _sections(text: str) -> Iterator[tuple[str, str]]:
    name, lines, fenced = "top", list[str](), False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith("```")
        if line.startswith("## ") and not fenced:
            yield name, "\n".join(lines).strip()
            name, lines = re.sub(r"[^a-z0-9]+", "-", line.lower()).strip("-"), []
        lines.append(line)
    yield name, "\n".join(lines).strip()


def _marked(name: str, part: str) -> str:
    return f"<!-- mammosae:begin {name} -->\n\n{part.strip()}\n\n<!-- mammosae:end {name} -->"


def _split(card: str) -> tuple[dict[str, Any], str]:
    """Front matter and text.

    Raises:
        InputError: the front matter is no YAML of entries: to write it anew would lose what people wrote there.
    """
    card = card.replace("\r\n", "\n")
    found = FRONT_MATTER.match(card)
    if found is None:
        return {}, card
    try:
        front = yaml.safe_load(found[1])
    except yaml.YAMLError:
        front = None
    if front is not None and not isinstance(front, dict) or front is None and found[1].strip():
        raise InputError("the front matter of the card on the Hub is no YAML of entries; mend it there first")
    return front or {}, card[found.end() :]


def _joined_text(there: str, ours: Mapping[str, str]) -> tuple[str, list[str]]:
    """Their text with our parts in the places where they were; new ones follow the part before them."""
    pieces: list[tuple[str | None, str]] = []  # (our part's name, or None, text)
    end = 0
    for found in _PART.finditer(there):
        pieces.append((None, there[end : found.start()]))
        if found["name"] in ours:
            pieces.append((found["name"], ours[found["name"]]))
        end = found.end()
    pieces.append((None, there[end:]))
    pieces = [piece for piece in pieces if piece[1].strip()]
    if not any(name for name, _ in pieces):  # nothing of ours is there
        pieces = [*ours.items(), *pieces]
    place = 0
    for name, part in ours.items():
        at = next((i for i, (own, _) in enumerate(pieces) if own == name), None)
        if at is None:
            pieces.insert(place, (name, part))
            at = place
        place = at + 1
    text = "\n\n".join(part.strip() if name is None else _marked(name, part) for name, part in pieces)
    return text, [part for name, part in pieces if name is None]


def _joined_about(there: str, new: str) -> str:
    """The section on authors and description; each of them that is not said anew as it was."""

    def parts(text: str) -> tuple[list[str], list[str]]:
        said = [part.strip() for part in text.strip().split("\n\n")[1:] if part.strip()]
        return [one for one in said if not one.startswith(_AUTHORS)], [one for one in said if one.startswith(_AUTHORS)]

    joined = [part for old, now in zip(parts(there), parts(new), strict=True) for part in now or old]
    return "\n\n".join(["## About", *joined]) if joined else ""


def _joined_links(there: str, new: str) -> str:
    """The section on links; those of people, which lead to no part of the study, stay unless other ones are given."""

    def lines(text: str, *, of_people: bool) -> list[str]:
        rows = [line for line in text.splitlines() if line.startswith("- ")]
        return [row for row in rows if (row[2:].partition(":")[0] not in TITLES.values()) == of_people]

    links = lines(new, of_people=False) + (lines(new, of_people=True) or lines(there, of_people=True))
    return "\n".join(["## Links", "", *links]) if links else ""


def _joined_front(there: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, list[str]]:
    theirs = {key: value for key, value in there.items() if key not in _OURS}
    joined = {**new, **theirs}
    if isinstance(there.get("tags"), list) and isinstance(new.get("tags"), list):
        joined["tags"] = list(dict.fromkeys([*new["tags"], *(tag for tag in there["tags"] if isinstance(tag, str))]))
    changed = sorted(key for key in {*joined, *there} if joined.get(key) != there.get(key))
    kept = sorted(key for key in theirs if key not in new)
    lines = [f"  of the card's front matter, changed: {', '.join(changed)}"] * bool(changed)
    lines += [f"  of the card's front matter, kept: {', '.join(map(str, kept))}"] * bool(kept)
    return yaml.safe_dump(joined, sort_keys=False, allow_unicode=True, width=10_000), lines


def _beginning(text: str) -> str:
    words = " ".join(text.split())
    return f'"{words if len(words) <= 60 else words[:59] + "…"}" ({len(text.strip()):,} characters)'
