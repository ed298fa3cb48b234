"""The privacy guard: every upload passes it, and it fails closed.

`check_staged` reads the staged files themselves and holds every rule of `RULES` against them; what it does not know (a
file, a column, a tensor, an entry of metadata) stops the upload. It never changes a file: whoever stages leaves out,
hashes and suppresses, with the functions here. docs/privacy.md says what each rule is for, and what none of them sees.
"""

import hashlib
import hmac
import io
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import atomic_path, local_path, read_json, sha256_of_file
from mammosae_plugin.privacy.context import PrivacyContext, PrivacyError
from mammosae_plugin.privacy.policy import Policy
from mammosae_plugin.privacy.reading import Opened
from mammosae_plugin.privacy.rules import DRAWN_HERE, HASH_DIGITS, RULES, Problem, Rule, Staged, shown
from mammosae_plugin.progress import progress
from mammosae_plugin.schema.names import FIGURES_RECORD

__all__ = [
    "RULES",
    "Policy",
    "PrivacyContext",
    "PrivacyError",
    "Rule",
    "StagedFile",
    "check_said",
    "check_staged",
    "copy_figure",
    "hash_ids",
    "let_out",
    "load_or_make_key",
]

_SAYING = Policy("text", re.compile(r"(?!)"))
"""Of what is said, without a file."""


@dataclass(frozen=True)
class StagedFile:
    """A file that may go out: path in the repository, size in bytes, SHA-256."""

    path: str
    size: int
    sha256: str


def check_staged(
    folder: str | os.PathLike[str],
    policy: Policy,
    context: PrivacyContext,
    *,
    repo_id: str | None = None,
    said: Mapping[str, str] | None = None,
    related: Iterable[str] = (),
) -> tuple[StagedFile, ...]:
    """Hold every rule against a staged folder.

    Args:
        folder: What would go out, whole: each file under the path that it would have.
        policy: What such an upload may hold.
        context: What must not get out.
        repo_id: Where it would go; the name is public and is not taken for a user's name.
        said: What else would be said with it, by what it is: the commit's message, a tag.
        related: Other repositories that it names, which are public too.

    Returns:
        Every file, by path. What is sent must have these digests.

    Raises:
        PrivacyError: Something must not get out, or is not known to be harmless. One line; it names the first file, the
            rule and what to do, and says how many more problems there are.
    """
    root = local_path(folder)
    if not root.is_dir():
        raise PrivacyError(f"there is no staged folder {root.name}; stage it first")
    found = sorted(path for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
    strange = [path for path in found if path.is_symlink() or not path.is_file()]
    if strange or not found:
        what = "a link or no ordinary file, which may change after it was looked at" if strange else "empty"
        raise PrivacyError(f"the staged folder is or holds {what}; stage plain files. Nothing was sent")
    opened = tuple(Opened(path.relative_to(root).as_posix(), path) for path in found)
    before = {file.path: sha256_of_file(file.file) for file in opened}
    staged = Staged(root, policy, context, opened, repo_id, said or {}, tuple(related))
    rules = progress(RULES, description="what goes out is checked", unit="rule", delay=2, leave=False)
    problems = [(rule, problem) for rule in rules for problem in rule.check(staged)]
    if problems:
        (rule, first), more = problems[0], len(problems) - 1
        others = sorted({other.name for other, _ in problems[1:]} - {rule.name})
        also = f" ({more} more problem{'s' if more > 1 else ''}{': ' + ', '.join(others) if others else ''})"
        raise PrivacyError(
            f"{shown(first.path, staged)}: privacy rule '{rule.name}': {first.message}{_to_decide(problems)}"
            f"{also if more else ''}. Nothing was sent"
        )
    return tuple(StagedFile(path, (root / path).stat().st_size, digest) for path, digest in before.items())


def check_said(said: Mapping[str, str], context: PrivacyContext) -> None:
    """Hold the rules about text against texts that will be part of an upload, before it is made.

    Args:
        said: texts, by what they are: "the text of the note".
        context: What must not get out.

    Raises:
        PrivacyError: One line, which says what holds what, and what to do; never the secret.
    """
    staged = Staged(Path(), _SAYING, context, (), None, said)
    problem = next(((rule, problem) for rule in RULES for problem in rule.check(staged)), None)
    if problem is not None:
        first = problem[1]
        raise PrivacyError(f"{first.path}: {first.message}{_to_decide([problem])}")


def _to_decide(problems: Sequence[tuple[Rule, Problem]]) -> str:
    """The texts that look private, for the person who publishes; where the first problem is none, nothing."""
    if problems[0][1].text is None:
        return ""
    found = {one.text: rule.name == "secrets" for rule, one in problems if one.text is not None}
    secret = [text for text, is_secret in found.items() if is_secret]
    texts = [_masked(text) if any(one in text or text in one for one in secret) else _short(text) for text in found]
    listed = ", ".join(f"'{text}'" for text in texts[:_MOST_SHOWN])
    more = f" and {len(texts) - _MOST_SHOWN} more" if len(texts) > _MOST_SHOWN else ""
    return f": {listed}{more}; where it names nobody and opens nothing, let it out by --allow with that text"


def _short(text: str) -> str:
    return " ".join(text.split())[:_LONGEST_SHOWN]


def _masked(text: str) -> str:
    """Of a token only the first letters, which say what it is."""
    return f"{text[:4]}… ({len(text)} characters)"


_MOST_SHOWN, _LONGEST_SHOWN = 8, 120


# -- what stagers use --------------------------------------------------------------------------------------------------


def copy_figure(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Write the pixels of a figure that a study drew anew, and nothing else of its file.

    Args:
        source: `figures/<name>.png` in a folder of a study's results, whose `figures.json` has the digest that it had
            when it was drawn.
        target: where it is staged.

    Raises:
        InputError: No study drew the file, or it is no longer as it was drawn.
    """
    path = local_path(source)
    data = path.read_bytes() if path.is_file() else b""
    record = path.parent.parent / FIGURES_RECORD
    drawn = read_json(record) if record.is_file() else {}
    if not isinstance(drawn, dict) or drawn.get(path.name) != hashlib.sha256(data).hexdigest():
        raise InputError(
            f"{path} is not a figure as a study drew it, and only these are published ({record.name} has no such "
            "digest); run `mammosae report` again, or leave it out"
        )
    with Image.open(io.BytesIO(data)) as image:
        pixels = image.convert("RGB")
    with atomic_path(target) as temporary:
        pixels.save(temporary, format="PNG", optimize=True)
    let_out(target)


def let_out(figure: str | os.PathLike[str]) -> None:
    """Say that this process drew an image of aggregates that lies where it is staged: the guard lets no other out."""
    DRAWN_HERE.add(sha256_of_file(figure))


def load_or_make_key(path: str | os.PathLike[str]) -> bytes:
    """The key under which ids are hashed: 32 random bytes in a file that only its owner reads.

    Whoever has the key and a list of ids can tell which row is whose: it stays on this machine.

    Raises:
        InputError: The file holds something else.
    """
    file = local_path(path)
    if not file.exists():
        with atomic_path(file) as temporary:
            temporary.touch(mode=0o600)
            temporary.chmod(0o600)
            temporary.write_bytes(secrets.token_bytes(32).hex().encode() + b"\n")
    try:
        key = bytes.fromhex(file.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise InputError(f"{file} holds no key for hashing ids; name another file") from error
    if len(key) < 16:
        raise InputError(f"{file} holds a key of {len(key)} bytes; 16 are the fewest that are safe")
    return key


def hash_ids(ids: Iterable[Any], key: bytes) -> list[str]:
    """Ids as 32 hexadecimal digits of HMAC-SHA256: the same id, the same digits, for holders of the key only.

    Without a key a hash hides nothing, because everybody who has the dataset can hash its ids.

    Raises:
        InputError: The key has fewer than 16 bytes.
    """
    if len(key) < 16:
        raise InputError(f"the key has {len(key)} bytes; 16 are the fewest that are safe (see load_or_make_key)")
    return [hmac.new(key, str(one).encode(), hashlib.sha256).hexdigest()[:HASH_DIGITS] for one in ids]
