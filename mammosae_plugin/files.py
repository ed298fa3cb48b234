"""Files that are whole or absent: every write goes to a temporary name first and is renamed when complete."""

__all__ = [
    "atomic_path", "differences", "is_sealed", "local_path", "parse_json", "parse_yaml", "read_json", "read_parquet",
    "remove_temporaries", "SEAL", "sealed", "sha256_of_file", "sha256_of_json", "TEMPORARY", "write_json",
    "write_parquet", "write_safetensors", "write_text",
]  # fmt: skip

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from safetensors import SafetensorError

from mammosae_plugin.arguments import shown
from mammosae_plugin.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import torch

TEMPORARY = ".tmp-mammosae-"
"""How the names of files and folders begin that nobody needs once their writer has ended."""


_LONGEST_NAME = 255  # bytes, in every file system in use


def local_path(path: str | os.PathLike[str]) -> Path:
    """The path, with a leading `~` or `~user` replaced by the home folder.

    Raises:
        InputError: There is no such user, or what was given is no path.
    """
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise InputError(f"a path is wanted, but {shown(path)} is none")
    if "\0" in str(path) or any(len(os.fsencode(part)) > _LONGEST_NAME for part in Path(path).parts):
        raise InputError(f"no file can be called {shown(str(path))}; give a shorter path, without control characters")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path} begins with a home folder that this machine does not have; write it out") from error


SEAL = "sha256"
_SHOWN, _LONGEST = 3, 40  # differences that a message names, characters of a value in it


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends without an error.

    A process killed inside the block leaves at most a hidden `.tmp-mammosae-*` file, never a half-written `path`.
    """
    target = local_path(path)
    make_folder(target.parent)
    # The suffix stays the same, because savers such as matplotlib choose the format by it.
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=TEMPORARY, suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner reads
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk does not say where it is
            error.filename = str(target)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        InputError: One of them is a file.
        OSError: It cannot be made.
    """
    for part in (path, *path.parents):
        if part.is_dir():
            break
        if part.exists():
            raise InputError(f"{part} is no folder; name another place for what is written")
    path.mkdir(parents=True, exist_ok=True)


def remove_temporaries(folder: Path, *, older_than: float = 0) -> None:
    """Remove the temporary files of killed writers that are so many seconds old: they would fill the disk."""
    for path in folder.glob(f"{TEMPORARY}*"):
        with suppress(FileNotFoundError):  # its writer has just renamed it
            if path.is_file() and time.time() - path.stat().st_mtime >= older_than:
                path.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write indented JSON, whole or not at all; NaN and infinity are refused because JSON has no name for them."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def parse_json(text: str) -> Any:
    """The value of a JSON text; a name that is given twice in one object is a `ValueError` too."""
    return json.loads(text, object_pairs_hook=_each_once)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read JSON; a missing or damaged file, or a name given twice, raises `InputError` that names it."""
    try:
        return parse_json(local_path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not valid JSON (it is no text file); delete it or restore it") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON ({error}); delete it or restore it") from error
    except _GivenTwice as error:
        raise InputError(f"{path} gives {error} twice, of which only one would count; remove one") from error


class _GivenTwice(ValueError):
    """A name that occurs twice in an object of JSON."""


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _GivenTwice(repr(name))
        found[name] = value
    return found


class _YamlRefused(yaml.MarkedYAMLError):
    """Valid YAML that means something else than it seems to."""


class _YamlLoader(yaml.SafeLoader):
    """YAML in which no name is given twice, and no whole number is octal or sexagesimal (010 is 8, 1:30 is 90)."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                raise _YamlRefused(
                    problem=f"{key.value!r} is given twice (first in line {lines[key.value]}), of which only one would "
                    "count; remove one",
                    problem_mark=key.start_mark,
                )
            lines[key.value] = key.start_mark.line + 1
        return node


def _whole_number(loader: _YamlLoader, node: yaml.ScalarNode) -> int:
    number = int(loader.construct_yaml_int(node))
    if re.fullmatch(r"[-+]?0[0-9_]+|.*:.*", node.value):
        raise _YamlRefused(
            problem=f"{node.value} is the number {number} to YAML; write that, or in quotes what is meant as text",
            problem_mark=node.start_mark,
        )
    return number


_YamlLoader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def parse_yaml(text: str, *, where: str) -> Any:
    """The value of a YAML text.

    Raises:
        InputError: It is no YAML, or a name is given twice; `where` begins the message.
    """
    try:
        return yaml.load(text, Loader=_YamlLoader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        reason = " ".join(part for part in (error.context, error.problem) if part)
        start = f"{where}{line}" if isinstance(error, _YamlRefused) else f"{where} is not valid YAML{line}"
        raise InputError(f"{start}: {' '.join(reason.split())}") from error
    except RecursionError as error:
        raise InputError(f"{where} is not valid YAML: it is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # such as a date that no calendar has
        raise InputError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error


def write_safetensors(
    path: str | os.PathLike[str], tensors: "Mapping[str, torch.Tensor]", metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors with string metadata as safetensors, whole or not at all."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, dict(metadata or {}))
        except SafetensorError as error:  # its own kind of error for a full disk
            raise OSError(f"cannot write {path}: {error}") from error


def write_parquet(path: str | os.PathLike[str], frame: "pd.DataFrame") -> None:
    """Write a data frame without its index, whole or not at all."""
    with atomic_path(path) as temporary:
        frame.to_parquet(temporary, index=False)


def read_parquet(path: str | os.PathLike[str]) -> "pd.DataFrame":
    """Read a data frame; a missing or damaged file raises `InputError` that names it."""
    import pandas as pd

    try:
        return pd.read_parquet(local_path(path))
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        raise InputError(f"{path} is missing or damaged; delete it and run again") from error


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """The file's SHA-256 as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with local_path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """The SHA-256 of a JSON value in canonical form (sorted keys, no spaces): the same value, the same digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object with a field `sha256` over all its other fields, so that an edit shows."""
    said = json.loads(json.dumps({key: field for key, field in value.items() if key != SEAL}))
    return {**said, SEAL: sha256_of_json(said)}


def is_sealed(value: Any) -> bool:
    """Whether a JSON value is an object whose field `sha256` is that of its other fields."""
    return isinstance(value, dict) and sealed(value) == value


def differences(there: Any, here: Any) -> str:
    """Which settings differ between two JSON values, and how: "seed is 0 there and 1 here"; empty where none does."""
    found = list(_differences("", there, json.loads(json.dumps(here))))
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


def _differences(name: str, there: Any, here: Any) -> Iterator[str]:
    if there == here:
        return
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            yield from _differences(f"{name}.{key}" if name else key, there.get(key), here.get(key))
        return
    yield f"{name or 'it'} is {_shortened(there)} there and {_shortened(here)} here"


def _shortened(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
