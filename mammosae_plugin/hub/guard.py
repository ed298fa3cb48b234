"""The public place of the guard in `privacy`, which knows the policies of our stagers by the kind of upload."""

import os
from collections.abc import Iterable, Mapping

from mammosae_plugin.hub.policies import POLICIES
from mammosae_plugin.privacy import guard
from mammosae_plugin.privacy.context import PrivacyContext, PrivacyError
from mammosae_plugin.privacy.guard import StagedFile

__all__ = ["PrivacyContext", "PrivacyError", "check_staged"]


def check_staged(
    folder: str | os.PathLike[str],
    kind: str,
    context: PrivacyContext,
    *,
    repo_id: str | None = None,
    said: Mapping[str, str] | None = None,
    related: Iterable[str] = (),
) -> tuple[StagedFile, ...]:
    """Hold every rule against a staged folder: `privacy.guard.check_staged` with the policy of a kind of upload.

    Args:
        folder: What would go out, whole: each file under the path that it would have.
        kind: sae, model, findings or space.
        context: What must not get out.
        repo_id: Where it would go; the name is public and is not taken for a user's name.
        said: What else would be said with it, by what it is: the commit's message, a tag.
        related: Other repositories that it names, which are public too.

    Returns:
        Every file, by path. What is sent must have these digests.

    Raises:
        PrivacyError: Something must not get out, or is not known to be harmless; or there is no such kind.
    """
    if kind not in POLICIES:
        raise PrivacyError(f"{kind!r} is no kind of upload; known are {', '.join(POLICIES)}")
    return guard.check_staged(folder, POLICIES[kind], context, repo_id=repo_id, said=said, related=related)
