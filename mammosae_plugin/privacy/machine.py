"""What this machine is called, which secrets it holds, and which words are too common to be looked for."""

__all__ = ["live_secrets", "names_of_this_machine", "ordinary_words"]

import contextlib
import getpass
import logging
import os
import re
import socket
from functools import cache
from importlib.resources import files
from pathlib import Path

import huggingface_hub

from mammosae_plugin.datasets.about import KNOWN
from mammosae_plugin.schema.columns import leaves
from mammosae_plugin.schema.findings import COLUMNS

logger = logging.getLogger(__name__)


def names_of_this_machine(concepts: frozenset[str]) -> list[tuple[str, str]]:
    """(what, name) of the user and the host; names that are ordinary words are left out, with a warning.

    Args:
        concepts: As for `ordinary_words`.
    """
    names: dict[str, str] = {}
    with contextlib.suppress(OSError, KeyError, ImportError):
        names[getpass.getuser()] = "user"
    with contextlib.suppress(RuntimeError):
        names[Path.home().name] = "user"
    host = socket.gethostname()
    names |= {host: "host", host.partition(".")[0]: "host"}
    kept = []
    for name, what in names.items():
        if len(name) < 3:
            continue
        if name.lower() in _COMMON.split():
            continue
        if name.lower() in ordinary_words(concepts):
            logger.warning("the %s's name is an ordinary word here and is not looked for in what is published", what)
            continue
        kept.append((what, name))
    return kept


@cache
def ordinary_words(concepts: frozenset[str]) -> frozenset[str]:
    """The words that our own cards, pages and columns are made of.

    Args:
        concepts: The names of the concepts in the data, which stand in every table.
    """
    words: set[str] = set()
    columns = [column for of_config in COLUMNS.values() for column in leaves(of_config)]
    for text in [*_package_texts(), *columns, *concepts]:
        words |= set(re.findall(r"[a-z0-9]{3,}", text.lower()))
    return frozenset(words | set(KNOWN))


_COMMON = (
    "root user users admin administrator ubuntu debian centos fedora home local localhost localdomain jovyan runner "
    "app data test guest docker container node server host build work worker main nobody default vagrant ec2 student "
    "researcher python torch cuda linux windows macbook desktop laptop"
)


def _package_texts() -> list[str]:
    """The package's own templates and pages."""
    texts, folders = [], [files("mammosae_plugin.hub_cards")]
    while folders:
        for entry in folders.pop().iterdir():
            if entry.is_dir():
                folders.append(entry)
            elif entry.name.endswith((".j2", ".html", ".css", ".js")):
                texts.append(entry.read_text(encoding="utf-8"))
    return texts


def live_secrets() -> set[str]:
    """The tokens and passwords of this process: none of them may go out, whatever they look like."""
    pattern = re.compile(r"TOKEN$|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIAL")
    found = {value for name, value in os.environ.items() if pattern.search(name.upper()) and len(value) >= 8}
    token = huggingface_hub.get_token()
    return found | ({token} if token else set())
