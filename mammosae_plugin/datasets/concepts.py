"""What can be told of an image: a concept, its classes, and whether boxes or masks say where it is."""

__all__ = ["ABSENT", "Concept", "Kind", "nearest_names", "PRESENT", "Vocabulary"]

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mammosae_plugin.arguments import text
from mammosae_plugin.errors import InputError

Kind = Literal["binary", "graded", "multiclass"]
ABSENT, PRESENT = "absent", "present"


@dataclass(frozen=True)
class Concept:
    """One thing that every image is labelled with.

    Attributes:
        name: The column of its labels.
        kind: "binary" (two classes, such as absent and present: a finding), "graded" (more, in an order) or
            "multiclass" (more, without one).
        classes: The names of the classes, in the order of their numbers 0, 1, ...
        boxes: Whether boxes say where it is; only what is binary is somewhere.
        masks: The same of masks.

    Raises:
        InputError: Classes that do not fit the kind, or that bear one name.
    """

    name: str
    kind: Kind = "binary"
    classes: tuple[str, ...] = (ABSENT, PRESENT)
    boxes: bool = False
    masks: bool = False

    def __post_init__(self) -> None:
        """Check that the parts go together."""
        if not isinstance(self.name, str) or not self.name.strip():
            raise InputError(f"a concept's name is {self.name!r}; give the name of its column")
        if self.kind not in get_args(Kind):
            raise InputError(f"{self.name} is {self.kind!r}; a concept is {', '.join(get_args(Kind))}")
        if (self.kind == "binary") != (len(self.classes) == 2) or len(self.classes) < 2:
            needs = "two" if self.kind == "binary" else "three or more"
            raise InputError(f"{self.name} is {self.kind} and needs {needs} classes, not {len(self.classes)}")
        if len(set(self.classes)) < len(self.classes):
            raise InputError(f"two classes of {self.name} have the same name ({', '.join(self.classes)})")
        if self.kind != "binary" and (self.boxes or self.masks):
            raise InputError(f"{self.name} is {self.kind}; boxes and masks are of concepts with two classes")

    @property
    def n_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def is_binary(self) -> bool:
        """Whether it has two classes."""
        return self.kind == "binary"

    @property
    def n_outputs(self) -> int:
        """How many logits a classifier of it has: one where it is binary, else one per class."""
        return 1 if self.is_binary else self.n_classes

    def to_json(self) -> dict[str, Any]:
        """The concept as it stands in `table.json` and `results.json`."""
        return {**vars(self), "classes": list(self.classes)}

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> "Concept":
        """The concept that `to_json` wrote."""
        return cls(**{**value, "classes": tuple(value["classes"])})


class Vocabulary(Mapping[str, Concept]):
    """The concepts of a dataset or a table by name, in the order of their columns.

    Raises:
        InputError: Two have one name.
    """

    def __init__(self, concepts: Iterable[Concept]) -> None:
        """Take the concepts."""
        listed = list(concepts)
        self._by_name = {concept.name: concept for concept in listed}
        if len(self._by_name) < len(listed):
            raise InputError(f"two concepts have the same name ({', '.join(concept.name for concept in listed)})")

    def __getitem__(self, name: str) -> Concept:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __repr__(self) -> str:
        return f"Vocabulary({list(self._by_name.values())})"

    @property
    def binary(self) -> tuple[str, ...]:
        """The names of those with two classes."""
        return tuple(name for name, concept in self.items() if concept.is_binary)

    def named(self, name: str, where: str = "the dataset") -> Concept:
        """The concept of this name.

        Args:
            name: Its name.
            where: Whose concepts these are, for the message.

        Raises:
            InputError: There is none; the message names the nearest ones.
        """
        text(name, "the concept")
        if name not in self:
            hint = nearest_names(name, self) or f" (known: {', '.join(self) or 'none'})"
            raise InputError(f"{where} has no labels for {name!r}{hint}")
        return self[name]

    def to_json(self) -> list[dict[str, Any]]:
        """All concepts as JSON values."""
        return [concept.to_json() for concept in self.values()]

    @classmethod
    def of_json(cls, values: Iterable[Mapping[str, Any]]) -> "Vocabulary":
        """The concepts that `to_json` wrote."""
        return cls(map(Concept.of_json, values))


def nearest_names(name: str, known: Iterable[str]) -> str:
    """A clause such as " (nearest: Mass, Asymmetry)" for an error message; empty when nothing is similar."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower().replace(" ", "_"), by_lower, n=3, cutoff=0.5)
    return f" (nearest: {', '.join(by_lower[match] for match in close)})" if close else ""
