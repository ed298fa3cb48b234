"""The texts that latents may be named after: the one for mammograms that ships, or one's own."""

__all__ = ["load_terms", "Terms"]

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from mammosae_plugin.arguments import text
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, parse_yaml

_SHIPPED = "mammography.yaml"
_KEYS = {"terms", "distractors"}


@dataclass(frozen=True)
class Terms:
    """A vocabulary.

    Attributes:
        terms: by name the text that is embedded for it.
        distractors: the same of what the images do not show. A latent whose best text is one of these has no name.

    Raises:
        InputError: no terms, a name that is both, or what is no text.
    """

    terms: Mapping[str, str]
    distractors: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check names and texts."""
        for name, one in [*self.terms.items(), *self.distractors.items()]:
            text(name, "the name of a term")
            text(one, f"the text of {name}")
        if not self.terms:
            raise InputError("there are no terms; give at least one name with its text")
        if twice := self.terms.keys() & self.distractors.keys():
            raise InputError(f"{sorted(twice)[0]!r} is both a term and a distractor; take it out of one of them")

    @property
    def names(self) -> list[str]:
        """All names, distractors last."""
        return [*self.terms, *self.distractors]

    @property
    def texts(self) -> list[str]:
        """All texts, in the order of the names."""
        return [*self.terms.values(), *self.distractors.values()]


def load_terms(file: str | Path | None = None) -> Terms:
    """Read a vocabulary.

    Args:
        file: a YAML file with `terms` and perhaps `distractors`, each a mapping from names to texts or a list of texts
            that are their own names; or a text file with a term in each line. None: what mammograms show, which ships.

    Raises:
        InputError: a file that cannot be read or is of another form.

    Example:
        >>> load_terms().terms["spiculated mass"]
        'a mammogram with a mass that has spiculated margins'
    """
    place = None if file is None else local_path(file)
    where = _SHIPPED if place is None else str(place)
    try:
        content = (package_files(__package__) / _SHIPPED if place is None else place).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is no UTF-8 text; save the vocabulary as UTF-8") from error
    except OSError as error:
        raise InputError(f"{where} cannot be read ({error.strerror}); name a file of terms, YAML or text") from error
    if place is not None and place.suffix.lower() not in (".yaml", ".yml"):
        return Terms(_named([line.strip() for line in content.splitlines() if line.strip()], where))
    found: Any = parse_yaml(content, where=where)
    if not isinstance(found, Mapping) or "terms" not in found or found.keys() - _KEYS:
        raise InputError(f"{where} is no vocabulary: it needs `terms` and may have `distractors`, and nothing else")
    return Terms(*(_named(found.get(key) or {}, where) for key in ("terms", "distractors")))


def _named(entries: Any, where: str) -> dict[str, str]:
    if isinstance(entries, Mapping):
        return dict(entries)
    if not isinstance(entries, list):
        raise InputError(f"{where} has terms that are neither names with texts nor a list of texts")
    if len({*map(str, entries)}) < len(entries):
        raise InputError(f"{where} has a term twice; give each once")
    return {one: one for one in entries}
