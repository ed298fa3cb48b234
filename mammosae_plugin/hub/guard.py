"""The public place of the guard in `privacy`, which knows the policies of our stagers by the kind of upload."""

import dataclasses
import os
from collections.abc import Collection, Iterable, Mapping
from functools import partial

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
    functions: Collection[str] = (),
) -> tuple[StagedFile, ...]:
    """Hold every rule against a staged folder: `privacy.guard.check_staged` with the policy of a kind of upload.

    Args:
        folder: What would go out, whole: each file under the path that it would have.
        kind: sae, model, findings or space.
        context: What must not get out.
        repo_id: Where it would go; the name is public and is not taken for a user's name.
        said: What else would be said with it, by what it is: the commit's message, a tag.
        related: Other repositories that it names, which are public too.
        functions: "package.module:function" of those that may be called to see what tensors a classifier has.

    Returns:
        Every file, by path. What is sent must have these digests.

    Raises:
        PrivacyError: Something must not get out, or is not known to be harmless; or there is no such kind.
    """
    if kind not in POLICIES:
        raise PrivacyError(f"{kind!r} is no kind of upload; known are {', '.join(POLICIES)}")
    policy = POLICIES[kind]
    if functions and kind == "model" and policy.tensors is not None:
        policy = dataclasses.replace(policy, tensors=partial(policy.tensors, functions=functions))
    return guard.check_staged(folder, policy, context, repo_id=repo_id, said=said, related=related)
