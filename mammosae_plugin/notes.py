"""The public place of `findings.notes`."""

from mammosae_plugin.findings.notes import (
    add_note,
    agreement,
    read_notes,
    withdraw_notes,
)

__all__ = [
    "add_note",
    "agreement",
    "read_notes",
    "withdraw_notes",
]
