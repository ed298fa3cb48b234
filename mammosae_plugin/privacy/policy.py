"""What an upload of one kind may hold; each stager declares its own, and hands it to the guard.

What is not in a policy is not known to be harmless, and stops the upload.
"""

__all__ = ["Entries", "Policy", "Tensors"]

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.abc import Traversable
from typing import Any

from mammosae_plugin.schema.columns import Column, leaves


@dataclass(frozen=True)
class Entries:
    """What may stand in a JSON value.

    Attributes:
        keys: the keys that may occur, at any depth.
        pattern: further keys, by their form.
        names: for how many levels from the top the keys are names that users gave (of layers, of models).
        named: keys below which the keys are such names, and for how many levels.
    """

    keys: frozenset[str] = frozenset()
    pattern: str = ""
    names: int = 0
    named: Mapping[str, int] = field(default_factory=dict)

    def unknown(self, value: Any, names: int | None = None) -> Iterator[str]:
        """The keys in a value that may not occur."""
        names = self.names if names is None else names
        if isinstance(value, Mapping):
            for key, item in value.items():
                text = key if isinstance(key, str) else ""  # YAML has other keys
                if not (_NAME.fullmatch(text) if names else self._knows(text)):
                    yield str(key)
                yield from self.unknown(item, max(names - 1, self.named.get(text, 0)))
        elif isinstance(value, list):
            for item in value:
                yield from self.unknown(item, names)

    def _knows(self, key: str) -> bool:
        return key in self.keys or bool(self.pattern and re.fullmatch(self.pattern, key))


_NAME = re.compile(r"[A-Za-z_][\w .+-]{0,79}(?:/[\w .+-]{1,80})?")


Tensors = Callable[..., Iterator[str]]
"""Gives, of an `Opened`, what a file of tensors holds that it may not, in clauses that name no secret."""


@dataclass(frozen=True)
class Policy:
    """What an upload of one kind may hold.

    Attributes:
        kind: What it is, in a word.
        files: The paths that may be in it.
        entries: By the name of a JSON file ("a card" for front matter and YAML), what gives the entries that it may
            have; by "<config> <column>" of a table the same of a column of JSON.
        columns: By config, the columns of its tables; those that are of single images make it `examples`.
        tensors: What looks at its tensors; None where it may have none.
        pages: The folder of the pages that it may have, byte for byte; None where it may have none.
    """

    kind: str
    files: re.Pattern[str]
    entries: Mapping[str, Callable[[], Entries]] = field(default_factory=dict)
    columns: Mapping[str, tuple[Column, ...]] = field(default_factory=dict)
    tensors: Tensors | None = None
    pages: Traversable | None = None

    def allows(self, path: str) -> bool:
        """Whether a file of this path belongs into such an upload."""
        return self.files.fullmatch(path) is not None

    @cached_property
    def leaves(self) -> Mapping[str, Mapping[str, Column]]:
        """By config the columns that hold values, fields of structs dotted."""
        return {config: leaves(columns) for config, columns in self.columns.items()}

    def names(self, config: str, privacy: str) -> list[str]:
        """The columns of a config of one class of privacy."""
        return [name for name, column in self.leaves.get(config, {}).items() if column.privacy == privacy]

    def entries_of(self, path: str, place: str) -> Entries | None:
        """What may stand in a file, or at a place of a table; None where it is code's own data (JavaScript).

        Args:
            path: The file's path in the upload.
            place: As `Opened.values` names it; "column config" is JSON in the column `config` of a table.
        """
        if path.endswith((".js", ".safetensors")):
            return None
        if path.endswith(".parquet"):
            name = f"{path.partition('/')[0]} {place.removeprefix('column ')}"
        else:
            name = path.rpartition("/")[2] if path.endswith((".json", ".jsonl")) else "a card"
        return self.entries.get(name, Entries)()
