"""Language models that read texts and pictures: one protocol, and servers that speak OpenAI's chat completions in it.

Pictures go out as pixels alone: encoded anew, without a file's name or metadata. To a server on another machine they go
only with a `SendingPermission` for that host, which the privacy room gives (`privacy.sending.permit_sending`).
"""

__all__ = [
    "Answer", "is_loopback", "LanguageModel", "NoAnswer", "openai_model", "OpenAIModel", "png_of", "Question",
    "SendingPermission",
]  # fmt: skip

import base64
import io
import ipaddress
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import SplitResult, urlsplit

import numpy as np
from PIL import Image

from mammosae_plugin.arguments import between, text, whole
from mammosae_plugin.errors import InputError

KEY = "OPENAI_API_KEY"
"""The environment variable that holds a server's key unless another is named."""
_NO_KEY = "none"
_CONNECT_S = 20.0
_STRICT = "strict"
_ONCE_MORE = {"max_tokens": "max_completion_tokens"}
"""What newer servers call a setting that they refuse."""


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        parts: texts and pictures, in the order in which the model sees them.
        schema: JSON schema of the answer, an object.
        system: what the model is told before everything else.
    """

    parts: tuple[str | Image.Image, ...]
    schema: Mapping[str, Any]
    system: str = ""

    @property
    def instruction(self) -> str:
        """`system`, and that the answer is JSON of this schema: servers that force no schema are told it too."""
        wanted = f"Answer with one JSON object, and nothing else, that fits this schema: {json.dumps(self.schema)}"
        return f"{self.system}\n\n{wanted}" if self.system else wanted


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        text: as it came, whatever it is.
        seconds: from asking to the answer, tries included.
        n_input_tokens: tokens of the question; None where nobody counted.
        n_output_tokens: tokens of the answer.
    """

    text: str
    seconds: float = field(compare=False)
    n_input_tokens: int | None = None
    n_output_tokens: int | None = None


class NoAnswer(Exception):  # noqa: N818 - what happened, and nothing that is wrong here
    """There was no answer: the server hung, broke off or refused, every time; the reason in a clause.

    Attributes:
        final: whether the server refuses this question and may answer others.
    """

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


@runtime_checkable
class LanguageModel(Protocol):
    """What naming, judging and searching need of a model: any object with these is one.

    Attributes:
        name: as results say it.
        host: the other machine that questions go to; None where they stay on this one.
    """

    name: str
    host: str | None

    def answer(self, question: Question, *, seed: int) -> Answer:
        """Answer one question.

        Raises:
            NoAnswer: there was none.
            InputError: the user can put it right: a wrong key, a model that is not there.
        """
        ...


@dataclass(frozen=True)
class SendingPermission:
    """That a dataset's pictures may go to one host; `privacy.sending.permit_sending` decides and makes it.

    Attributes:
        dataset: the dataset's short name.
        licence: the licence under which the user says that they may go.
        host: the machine.
    """

    dataset: str
    licence: str
    host: str


def openai_model(
    model: str,
    base_url: str,
    *,
    key_from: str | None = None,
    permission: SendingPermission | None = None,
    timeout: float = 120.0,
    retries: int = 5,
    temperature: float = 0.0,
    max_tokens: int = 1024,
) -> "OpenAIModel":
    """A model behind a server that speaks OpenAI's chat completions: OpenAI, vLLM, llama.cpp, Ollama and others.

    A busy server (429, after the time that it asks for), one that fails (5xx), hangs or breaks off is asked again. JSON
    is asked for by `response_format`, strictly, loosely, or in words alone, as the server takes it; another setting
    that it refuses is left out.

    Args:
        model: its name on the server.
        base_url: where the server is, such as "http://127.0.0.1:8000/v1".
        key_from: the environment variable with the server's key; None is `KEY`, and no key on this machine.
        permission: needed to send pictures to another machine, which then takes https.
        timeout: seconds of silence after which a try is given up.
        retries: tries after the first.
        temperature: 0 for the likeliest answer.
        max_tokens: longest answer.

    Raises:
        InputError: no address of a server, no key where one is needed, openai not installed, or a permission for
            another host.

    Example:
        >>> model = openai_model("google/medgemma-4b-it", "http://127.0.0.1:8000/v1")
        >>> model.host is None
        True
    """
    text(model, "model")
    place = _address(base_url)
    host = None if is_loopback(str(place.hostname)) else str(place.hostname)
    key = "" if key_from is None and host is None else os.environ.get(key_from or KEY, "").strip()
    if not (key and key.isascii()) and (host is not None or key_from is not None):
        raise InputError(f"{base_url} wants a key: put it into the environment variable {key_from or KEY}")
    if permission is not None and permission.host != host:
        raise InputError(f"the permission is for {permission.host}, but {base_url} is on {host or 'this machine'}")
    try:
        import openai
    except ImportError as error:
        raise InputError("servers need openai: pip install 'mammosae-plugin[language]'") from error
    seconds = between(timeout, "timeout", 0, 86_400, with_low=False)
    # No redirect is followed, which would carry pictures on to another machine; nor is a proxy of the environment
    # asked for this one.
    client = openai.OpenAI(
        api_key=key or _NO_KEY,
        base_url=base_url,
        max_retries=whole(retries, "retries", least=0),
        timeout=openai.Timeout(seconds, connect=min(seconds, _CONNECT_S)),
        http_client=openai.DefaultHttpxClient(follow_redirects=False, trust_env=host is not None),
    )
    if client.base_url.host != place.hostname:  # what was checked must be where it goes
        raise InputError(f"{base_url} is no clear address of a server; write its host as it is")
    settings = {
        "temperature": between(temperature, "temperature", 0, 2),
        "max_tokens": whole(max_tokens, "max_tokens", least=1),
    }
    return OpenAIModel(model, place, host, client, permission, settings)


class OpenAIModel:
    """A `LanguageModel` behind a server; `openai_model` makes it.

    Attributes:
        name: the model's name on the server, without the folders of a path.
        host: the server's machine; None if it is this one.
        settings: temperature and longest answer, as asked for.
    """

    def __init__(
        self,
        name: str,
        place: SplitResult,
        host: str | None,
        client: Any,
        permission: SendingPermission | None,
        settings: Mapping[str, Any],
    ) -> None:
        self.name, self.host, self.settings = (
            Path(name).name if Path(name).is_absolute() else name,
            host,
            dict(settings),
        )
        self._name = name
        self._place, self._client, self._permission = place, client, permission
        self._refused: frozenset[str] = frozenset()

    def answer(self, question: Question, *, seed: int) -> Answer:
        """Answer one question.

        Raises:
            NoAnswer: there was none after all tries, or the server refuses this question.
            InputError: pictures without permission; a key, model or address that the server refuses.
        """
        import openai

        self._check_pictures(question)
        asked = self._request(question, seed)
        refused = self._refused
        started = time.monotonic()
        while True:
            try:
                found = self._client.chat.completions.create(**_without(asked, refused))
                break
            except openai.APIStatusError as error:
                refusal = _refused_setting(error, asked, refused)
                if refusal is None:
                    raise self._failure(error) from error
                refused |= {refusal}
            except openai.APIError as error:
                raise NoAnswer(_lost(error)) from error
        choices = getattr(found, "choices", None)
        if choices is None:
            raise NoAnswer("the server answered with something that is no chat completion")
        self._refused = refused
        message = choices[0].message if choices else None
        usage = getattr(found, "usage", None)
        return Answer(
            str(getattr(message, "content", None) or getattr(message, "refusal", None) or ""),
            time.monotonic() - started,
            getattr(usage, "prompt_tokens", None),
            getattr(usage, "completion_tokens", None),
        )

    def _check_pictures(self, question: Question) -> None:
        if self.host is None or not any(isinstance(part, Image.Image) for part in question.parts):
            return
        if self._permission is None:
            raise InputError(
                f"pictures stay on this machine unless the dataset's licence is named under which they may go to "
                f"{self.host}; ask a server on this machine, or permit_sending (mammosae name --send-images-under)"
            )
        if self._place.scheme != "https":
            raise InputError(
                f"pictures would go to {self.host} unencrypted; give an https address, or a tunnel's end on this "
                f"machine (ssh -L 8000:localhost:8000 {self.host}, then http://127.0.0.1:8000)"
            )

    def _request(self, question: Question, seed: int) -> dict[str, Any]:
        content = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {
                "type": "image_url",
                "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png_of(part)).decode()}"},
            }
            for part in question.parts
        ]
        schema = {"name": "answer", "strict": True, "schema": dict(question.schema)}
        return {
            "model": self._name,
            "messages": [
                {"role": "system", "content": question.instruction},
                {"role": "user", "content": content},
            ],
            "response_format": {"type": "json_schema", "json_schema": schema},
            "seed": seed,
            **self.settings,
        }

    def _failure(self, error: Any) -> Exception:
        """What an HTTP status means: something to put right, a question that is refused, or a server that fails."""
        status, where = error.status_code, self._place.geturl()
        said = _first_line(error.message)
        if status in (301, 302, 303, 307, 308):
            return InputError(f"{where} sends requests on to another address, which is not followed; name that one")
        if status == 401:
            return InputError(f"{where} refuses the key (401: {said}); look at the environment variable that holds it")
        if status == 404:
            return InputError(
                f"{where} has no {self._name} (404: {said}); look at the address, with its /v1, and the name"
            )
        passing = status in (408, 409, 429) or status >= 500
        return NoAnswer(f"the server {'fails' if passing else 'refuses'} ({status}: {said})", final=not passing)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, whatever a name server says: 127.0.0.0/8, ::1 or localhost.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("[::1]"), is_loopback("0.0.0.0"), is_loopback("127.0.0.1.example.org")
        (True, True, False, False)
    """
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def png_of(picture: Image.Image) -> bytes:
    """A picture as PNG, of its pixels alone: gray or RGB, without what else a file said."""
    pixels = np.asarray(picture.convert("L" if picture.mode in ("1", "L") else "RGB"))
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG")
    return held.getvalue()


def _address(base_url: str) -> SplitResult:
    text(base_url, "base_url")
    example = "give one such as http://127.0.0.1:8000/v1"
    if not base_url.isascii() or not base_url.isprintable() or " " in base_url:
        raise InputError(f"{base_url!r} has signs that no address has; {example}")
    try:
        place = urlsplit(base_url)
        _ = place.port  # read when asked for, and then refused
    except ValueError as error:
        raise InputError(f"{base_url} is no address of a server ({error}); {example}") from error
    if place.scheme not in ("http", "https") or not place.hostname:
        raise InputError(f"{base_url} is no address of a server; {example}")
    if place.username is not None or place.password is not None:
        raise InputError("the server's address holds a user or a password; put the key into an environment variable")
    if place.query or place.fragment:
        raise InputError(f"{base_url} has a part behind ? or #; {example}")
    return place


def _without(asked: Mapping[str, Any], refused: frozenset[str]) -> dict[str, Any]:
    """The request without the settings that the server refuses; `_STRICT` is that its schema be kept to the letter."""
    kept = {name: value for name, value in asked.items() if name not in refused}
    if _STRICT in refused and "response_format" in kept:
        kept["response_format"] = {
            "type": "json_schema",
            "json_schema": {**asked["response_format"]["json_schema"], "strict": False},
        }
    renamed = {_ONCE_MORE[name]: asked[name] for name in refused & _ONCE_MORE.keys()}
    return kept | {name: value for name, value in renamed.items() if name not in refused}


def _refused_setting(error: Any, asked: Mapping[str, Any], refused: frozenset[str]) -> str | None:
    """The setting to leave out of the next try; None where the refusal is not for one."""
    if error.status_code not in (400, 422):
        return None
    sent = _without(asked, refused).keys() - {"model", "messages"}
    said = f"{getattr(error, 'param', None)} {error.message}"
    # Servers that do not say what they refuse mostly mean the schema.
    named = [name for name in sorted(sent, key=len, reverse=True) if name in said]
    found = next(iter(named or sent & {"response_format"}), None)
    return _STRICT if found == "response_format" and _STRICT not in refused else found


def _lost(error: Exception) -> str:
    import openai

    if isinstance(error, openai.APITimeoutError):
        return "the server was silent for too long"
    if isinstance(error, openai.APIConnectionError):
        return f"the connection failed ({_first_line(str(error.__cause__ or error))})"
    return f"the server's answer cannot be read ({_first_line(str(error))})"


def _first_line(said: str) -> str:
    return next(iter(str(said).strip().splitlines()), "no reason given")[:200]
