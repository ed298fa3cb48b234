"""Requests to the Hugging Face Hub: which failures are worth another try, and one clear line for every other.

huggingface_hub tries again by itself where files are sent (preupload, LFS) and resumes a download that was cut off. It
does not where a repository is made, a commit or a tag is set, or a list is read, and it waits for an answer for ever.
Here each of these is bounded: `ask` for a request, `explain` for the error that ends it.
"""

__all__ = [
    "again", "ask", "ATTEMPTS", "explain", "first_line", "first_sentence", "HubError", "REFUSED_LOGIN", "refused_login",
    "REPOSITORY", "TIMEOUT_S",
]  # fmt: skip

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from huggingface_hub import constants, get_session
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

from mammosae_plugin.errors import InputError

logger = logging.getLogger(__name__)
T = TypeVar("T")

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""The name of a repository on the Hub: owner/name."""
TIMEOUT_S = 60.0
"""How long a connection may stay silent, in seconds."""
ATTEMPTS = 5
_FIRST_WAIT_S, _LONGEST_WAIT_S, _LONGEST_RETRY_AFTER_S = 1.0, 16.0, 120.0
_PASSING = {408, 425, 429, 500, 502, 503, 504}
# The HTTP library under huggingface_hub has changed twice; its errors are known by where they are from.
_HTTP_LIBRARIES = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}


class HubError(InputError):
    """The Hub did not do what was asked.

    Attributes:
        status: the HTTP status, None where there was no answer.
        passing: whether the same request may well succeed later.
    """

    def __init__(self, message: str, *, status: int | None = None, passing: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.passing = passing


@dataclass(frozen=True)
class _Failure:
    """What went wrong on the wire.

    Attributes:
        cause: the error that says most.
        status: the HTTP status, None where there was no answer.
        lost: the connection failed, or nothing came over it.
        retry_after: the seconds that the Hub asks to wait, None if it does not say.
    """

    cause: BaseException
    status: int | None = None
    lost: bool = False
    retry_after: float | None = None

    @property
    def passing(self) -> bool:
        return self.lost or self.status in _PASSING


def ask(call: Callable[[], T], *, about: str, doing: str, attempts: int | None = None, writing: bool = False) -> T:
    """`again`, with the error that ends it as one line that says what to do.

    Args:
        call: the request; it must be safe to be made twice.
        about: the repository, for the message.
        doing: what is being done, for the message: "read", "publish", ...
        attempts: how often at most (`ATTEMPTS`); 1 where huggingface_hub tries again by itself.
        writing: whether the request writes: what is missing is then a right to write.

    Raises:
        HubError: it failed for good.
    """
    try:
        return again(call, attempts=attempts)
    except Exception as error:
        raise explain(error, about=about, doing=doing, writing=writing) from error


def again(call: Callable[[], T], *, attempts: int | None = None, final: tuple[type[Exception], ...] = ()) -> T:
    """Run a request to the Hub, again where a failure may pass: 408, 425, 429, 5xx, a lost or silent connection.

    The waits double from one second; where the Hub says how long to wait (Retry-After), that long, but never more than
    two minutes. The last error is raised as it is; one of the types `final` is the last.
    """
    attempts = ATTEMPTS if attempts is None else attempts
    wait = _FIRST_WAIT_S
    while True:
        attempts -= 1
        try:
            with _silence_bounded():
                return call()
        except Exception as error:
            failure = _failure_of(error)
            asked = failure.retry_after or 0.0
            done = attempts <= 0 or isinstance(error, final)
            if done or not failure.passing or asked > _LONGEST_RETRY_AFTER_S:
                raise
            pause = max(wait, asked)
            logger.info("%s; trying again in %g s", first_line(failure.cause), pause)
        time.sleep(pause)
        wait = min(2 * wait, _LONGEST_WAIT_S)


def explain(error: BaseException, *, about: str, doing: str, writing: bool = False) -> Exception:
    """The error as one line that says what to do: a `HubError`, or the error itself where it is not of the Hub."""
    if isinstance(error, InputError):
        return error
    failure = _failure_of(error)
    cause, status = failure.cause, failure.status
    said = _said(cause)
    if isinstance(cause, OfflineModeIsEnabled):
        message = f"cannot {doing} {about}: HF_HUB_OFFLINE is set; unset it to reach the Hub"
    elif isinstance(cause, LocalTokenNotFoundError):
        message = f"cannot {doing} {about}: nobody is logged in; run `hf auth login`, or set HF_TOKEN"
    elif isinstance(cause, HFValidationError):
        message = f"{about} cannot be the name of a Hub repository; give it as owner/name"
    elif isinstance(cause, GatedRepoError):
        message = f"{about} asks for its terms to be accepted; do so on its page, then `hf auth login`"
    elif isinstance(cause, RevisionNotFoundError):
        message = f"{about} has no such revision; look at its page for branches, tags and commits"
    elif isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
        message = f"{about} has no such file; look at its page for what it holds"
    elif refused_login(cause) and not writing:
        message = REFUSED_LOGIN.format(about)
    elif status in (401, 404) and not writing:
        message = f"the Hub has no repository {about}, or it is private; check the name, or log in with `hf auth login`"
    elif status == 401:
        message = (
            f"the Hub does not accept the login (401) for {about}; run `hf auth login` with a token that may write"
        )
    elif status == 403:
        message = (
            f"the login has no right to {doing} {about} (403{said}); use a token that may write there, or another owner"
        )
    elif status == 404:
        message = f"the Hub has no {about} to write to (404), or the login may not see it; check owner and name"
    elif status == 409:
        message = f"{about} is being changed by somebody else (409{said}); run the same command again"
    elif status == 412:
        message = (
            f"{about} has changed since this was prepared (412); nothing was written; run again to see what is there"
        )
    elif status == 429:
        wait = f" for {failure.retry_after:g} s" if failure.retry_after else " for some minutes"
        message = f"the Hub asks to slow down (429) at {about}; wait{wait} and run the same command again"
    elif status is not None and status >= 500:
        message = f"the Hub failed ({status}{said}) to {doing} {about}; run the same command again later"
    elif status is not None:
        message = f"the Hub refused ({status}{said}) to {doing} {about}"
    elif failure.lost:
        message = (
            f"the connection to the Hub was lost, or silent too long, to {doing} {about}{_on_the_wire(cause)}; "
            "check the network and run the same command again"
        )
    else:
        return error if isinstance(error, Exception) else RuntimeError(first_line(error))
    return HubError(message, status=status, passing=failure.passing)


def refused_login(error: BaseException) -> bool:
    """Whether the Hub refused the token that was sent: it answers so (401) even where a repository is public."""
    response: Any = getattr(error, "response", None)
    sent = getattr(getattr(response, "request", None), "headers", {})
    return getattr(response, "status_code", None) == 401 and "authorization" in sent


REFUSED_LOGIN = (
    "the Hub does not accept this machine's login (401) to read {}: the token has expired or was revoked; run "
    "`hf auth login` anew or, for what is public, `hf auth logout`, and see whether HF_TOKEN is set"
)


def first_line(error: BaseException) -> str:
    """The error's type and the first line of its text."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no reason given')}"


def first_sentence(error: BaseException) -> str:
    """What a library says of a failure, without its advice: the first sentence, or the error's type."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    said = re.split(r"(?<=[^.])\.(?:\s|$)", line, maxsplit=1)[0]
    return said if len(said) <= _LONGEST_SENTENCE else f"{said[:_LONGEST_SENTENCE]} ..."


_LONGEST_SENTENCE = 200


def _failure_of(error: BaseException) -> _Failure:
    """What went wrong, from the error or from what caused it (an upload's error is wrapped in another)."""
    found: BaseException | None = error
    seen = 0
    while found is not None and seen < 10:
        failure = _wire_failure(found)
        if failure is not None:
            return failure
        found, seen = found.__cause__ or found.__context__, seen + 1
    return _Failure(error)


def _wire_failure(error: BaseException) -> _Failure | None:
    known = (OfflineModeIsEnabled, LocalTokenNotFoundError, HFValidationError)
    if isinstance(error, known):
        return _Failure(error)
    if isinstance(error, HfHubHTTPError):
        response: Any = getattr(error, "response", None)
        if response is None:
            return _Failure(error)
        after = str(response.headers.get("Retry-After") or "")
        return _Failure(error, int(response.status_code), retry_after=float(after) if after.isdecimal() else None)
    if isinstance(error, LocalEntryNotFoundError):
        return None  # its cause says more
    # An answer that is no JSON comes from something between here and the Hub.
    if isinstance(error, (ConnectionError, TimeoutError, json.JSONDecodeError)):
        return _Failure(error, lost=True)
    if isinstance(error, OSError) and str(error).startswith("Consistency check failed"):
        return _Failure(error, lost=True)  # huggingface_hub's word for a file of another size than was announced
    if type(error).__module__.partition(".")[0] in _HTTP_LIBRARIES:
        return _Failure(error, lost=True)
    return None


def _on_the_wire(error: BaseException) -> str:
    """What the system says of a connection that failed, to stand in brackets."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror and not str(cause).startswith("Consistency check"):
            return f" ({cause.strerror})"
        cause = cause.__cause__ or cause.__context__
    return ""


def _said(error: BaseException) -> str:
    """What the Hub itself said, to stand behind a status."""
    said = getattr(error, "server_message", None)
    return f": {' '.join(str(said).split())[:200]}" if said else ""


@contextmanager
def _silence_bounded() -> Iterator[None]:
    """Let huggingface_hub's connections fail when nothing comes for `TIMEOUT_S`; by itself it waits for ever."""
    if constants.HF_HUB_OFFLINE:
        yield
        return
    session: Any = get_session()
    before = getattr(session, "timeout", None)
    session.timeout = TIMEOUT_S
    try:
        yield
    finally:
        session.timeout = before
