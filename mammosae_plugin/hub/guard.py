"""The public place of the guard in `privacy`."""

from mammosae_plugin.privacy import (
    PrivacyContext,
    PrivacyError,
    check_staged,
)

__all__ = [
    "PrivacyContext",
    "PrivacyError",
    "check_staged",
]
