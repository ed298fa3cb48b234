"""What people say of an upload, and the other repositories of the same study, so that each names the others.

A study's folder keeps in `published.json` where its parts were published last: what is published afterwards links to
them by itself, and what was published before once it is published again.
"""

__all__ = [
    "About", "hub_place", "parse_links", "Part", "PARTS", "places", "published_places", "RECORD", "repository_url",
    "TITLES",
]  # fmt: skip

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from mammosae_plugin.adapters.sources import HUB_SCHEME, URLS, parse_hub_name
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, read_json

logger = logging.getLogger(__name__)

RECORD = "published.json"

_NOT_IN_LINKS = frozenset(" \n<>()[]\"'`|\\")

Part = Literal["sae", "model", "findings", "space"]
PARTS: tuple[Part, ...] = get_args(Part)
_KINDS = {"sae": "model", "model": "model", "findings": "dataset", "space": "space"}
TITLES = {"sae": "SAEs", "model": "classifiers", "findings": "findings", "space": "pages to browse them"}
"""What links to the parts of a study are called on a card."""


@dataclass(frozen=True)
class About:
    """What a card says beside what was measured.

    Attributes:
        authors: names of people, as they want to be cited.
        description: a few sentences.
        links: further links by what they lead to, such as "paper".
        sae: owner/name[@revision] of the study's SAEs on the Hub.
        model: the same of its classifiers.
        findings: the same of its findings.
        space: the same of its Space.

    Raises:
        InputError: a link that is none, or a name that cannot be one of the Hub's.
    """

    authors: Sequence[str] = ()
    description: str | None = None
    links: Mapping[str, str] = field(default_factory=dict)
    sae: str | None = None
    model: str | None = None
    findings: str | None = None
    space: str | None = None

    def __post_init__(self) -> None:
        for name, url in self.links.items():
            try:
                address = urlsplit(url)
            except ValueError:  # brackets that hold no IPv6 address
                address = urlsplit("")
            is_web = address.scheme in ("http", "https") and address.netloc
            if not name or not is_web or set(url) & _NOT_IN_LINKS:
                raise InputError(f"{url!r} is no link; give it as NAME=https://...")
        for part in PARTS:
            if getattr(self, part) is not None:
                parse_hub_name(getattr(self, part))

    def with_record(self, study_folder: str | os.PathLike[str]) -> "About":
        """The same, with the repositories in which the study was published, where none are named."""
        known = published_places(study_folder)
        places: dict[str, Any] = {
            part: f"{place['repo']}@{place['revision']}"
            for part, place in known.items()
            if part in PARTS and getattr(self, part) is None
        }
        return dataclasses.replace(self, **places)

    def repositories(self, without: Part | None = None) -> dict[Part, tuple[str, str | None]]:
        """(owner/name, revision) of every repository that is named, by part."""
        named = {part: getattr(self, part) for part in PARTS if part != without}
        return {part: parse_hub_name(place)[:2] for part, place in named.items() if place is not None}

    @property
    def names(self) -> tuple[str, ...]:
        """owner/name of every repository that is named."""
        return tuple(repo for repo, _ in self.repositories().values())

    def facts(self, without: Part | None = None) -> dict[str, Any]:
        """Plain values for a card: authors, description, links as rows of name and url, repositories first.

        Args:
            without: the part that the card is of.
        """
        rows: list[dict[str, Any]] = [
            {"name": TITLES[part], "text": repo, "url": repository_url(part, repo), "part": part}
            for part, (repo, _) in self.repositories(without).items()
        ]
        rows += [{"name": name, "text": url, "url": url, "part": None} for name, url in self.links.items()]
        return {"authors": list(self.authors), "description": self.description, "links": rows}

    def texts(self) -> dict[str, str]:
        """What people wrote, by what it is, for a check before anything is staged."""
        found = {"the description": self.description or ""}
        found |= {f"author {number}": name for number, name in enumerate(self.authors, 1)}
        return found | {f"link {number}": f"{name} {url}" for number, (name, url) in enumerate(self.links.items(), 1)}


def parse_links(options: Sequence[str]) -> dict[str, str]:
    """Links from options of the form NAME=URL.

    Raises:
        InputError: another form.
    """
    found = {}
    for option in options:
        name, _, url = option.partition("=")
        if not name.strip() or not url.strip():
            raise InputError(f"--link {option!r} is not of the form NAME=https://...")
        found[name.strip()] = url.strip()
    return found


def repository_url(part: Part, repo: str) -> str:
    """The page of a repository."""
    return f"https://huggingface.co/{URLS[_KINDS[part]]}{repo}"


def hub_place(repo: str, revision: str | None, name: str) -> str:
    """hub://owner/name@revision/id, as `load_vision_sae` and `load_mammo_clip` read it."""
    at = f"@{revision.replace('/', '%2F')}" if revision else ""
    return f"{HUB_SCHEME}{repo}{at}/{name}"


def places(
    study_folder: str | os.PathLike[str],
    about: About,
    part: Literal["sae", "model"],
    known: Mapping[str, tuple[str, str]],
) -> dict[str, dict[str, str | None]]:
    """Where the SAEs or classifiers of a study lie on the Hub.

    Args:
        study_folder: the study.
        about: what names the repository where it is not the one that the study's folder knows.
        part: which of them.
        known: by layer, or by "model/concept", the id that publishing gives by itself, and what tells the weights from
            others. What was published with other weights than the study has now is not told.

    Returns:
        repo, revision and id of those that are known to be there.
    """
    record = published_places(study_folder).get(part)
    named = about.repositories().get(part)
    if named is None:
        return {}
    repo, revision = named
    if record is None or record["repo"] != repo:
        return {name: {"repo": repo, "revision": revision, "id": own} for name, (own, _) in known.items()}
    return {
        name: {"repo": repo, "revision": revision, "id": record["weights"][weights]}
        for name, (_, weights) in known.items()
        if weights in record["weights"]
    }


def published_places(study_folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The record of where a study's parts were published last, by part; empty where none was."""
    file = local_path(study_folder) / RECORD
    if not file.is_file():
        return {}
    found = read_json(file)
    needed = {"repo", "revision", "weights"}
    if not isinstance(found, dict) or not all(isinstance(one, dict) and needed <= one.keys() for one in found.values()):
        raise InputError(f"{file} is damaged; delete it, and publish again what should be linked")
    return found
