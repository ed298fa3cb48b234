"""Language models that read texts and pictures: one protocol, and servers that speak OpenAI's chat completions in it.

Pictures go out as pixels alone: encoded anew, without a file's name or metadata. To a server on another machine they go
only with a `SendingPermission` for that host, which the privacy room gives (`privacy.sending.permit_sending`).
"""

__all__ = [
    "Answer", "host_of", "is_loopback", "LanguageModel", "NoAnswer", "openai_model", "OpenAIModel", "png_of",
    "Question", "SendingPermission",
]  # fmt: skip

import base64
import io
import ipaddress
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import SplitResult, urlsplit

import numpy as np
from PIL import Image

from mammosae_plugin.arguments import between, text, whole
from mammosae_plugin.errors import InputError

KEY = "OPENAI_API_KEY"
"""The environment variable that holds the key of OpenAI's own servers; of others the variable is named."""
_NO_KEY = "none"
_CONNECT_S = 20.0
_TOTAL = 5
"""Time-outs after which an answer that still drips in is given up."""
_SENT = frozenset(
    {"accept", "accept-encoding", "connection", "content-length", "content-type", "host", "transfer-encoding"}
    | {"authorization", "user-agent", "x-stainless-raw-response"}  # openai reads the last of its own request
)
"""The headers that go out: openai would add others of the environment, such as an organization's id."""
_GRAY, _COLOUR = ("1", "L"), ("RGB", "RGBA", "RGBX", "LA", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB")
_LONG_KEY = 8
"""Signs of a key that stands in no answer by chance."""
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

    Raises:
        InputError: a part that is neither a text nor a picture.
    """

    parts: tuple[str | Image.Image, ...]
    schema: Mapping[str, Any]
    system: str = ""

    def __post_init__(self) -> None:
        """Check the parts, which every model reads."""
        for number, part in enumerate(self.parts, start=1):
            if not isinstance(part, (str, Image.Image)):
                raise InputError(
                    f"part {number} of a question is a {type(part).__name__}; give a text or a picture of PIL "
                    f"(Image.fromarray)"
                )

    @property
    def instruction(self) -> str:
        """`system`, and that the answer is JSON of this schema: servers that force no schema are told it too."""
        wanted = f"Answer with one JSON object, and nothing else, that fits this schema: {json.dumps(self.schema)}"
        return f"{self.system}\n\n{wanted}" if self.system else wanted


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        text: as it came, whatever it is (but for the server's key, if that is in it).
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

    @property
    def host(self) -> str | None:
        """The other machine that questions go to."""
        ...

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

    A server that is busy (429), fails (5xx), hangs or breaks off is asked again, after the time that it asks for if
    that is a minute or two at most; where it is longer openai gives up at once, and the reason tells it. What cannot be
    read as a chat completion is no answer, and is asked for again only in the next run. JSON is asked for by
    `response_format`, strictly, loosely, or in words alone, as the server takes it; another setting that it refuses is
    left out. Of the environment no server gets anything but its key: no organization, project or headers.

    Args:
        model: its name on the server.
        base_url: where the server is, such as "http://127.0.0.1:8000/v1".
        key_from: the environment variable with the server's key; None is `KEY` for OpenAI's own servers
            (*.openai.com), and no key on this machine; for others it must be named.
        permission: needed to send pictures to another machine, which then takes https.
        timeout: seconds of silence after which a try is given up, as is an answer that comes in drips after five times
            as many.
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
    host = host_of(base_url)
    key = _key(base_url, host, key_from)
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
        http_client=openai.DefaultHttpxClient(
            follow_redirects=False,
            trust_env=host is not None,
            event_hooks={"request": [_bare(key or _NO_KEY)], "response": [_ends_within(_TOTAL * seconds)]},
        ),
    )
    if client.base_url.host != _address(base_url).hostname:  # what was checked must be where it goes
        raise InputError(f"{base_url} is no clear address of a server; write its host as it is")
    settings = {
        "temperature": between(temperature, "temperature", 0, 2),
        "max_tokens": whole(max_tokens, "max_tokens", least=1),
    }
    return OpenAIModel(model, client, permission, settings, key)


class OpenAIModel:
    """A `LanguageModel` behind a server; `openai_model` makes it.

    Attributes:
        name: the model's name on the server, without the folders of a path.
        settings: temperature and longest answer, as asked for.
    """

    def __init__(
        self,
        name: str,
        client: Any,
        permission: SendingPermission | None,
        settings: Mapping[str, Any],
        key: str = "",
    ) -> None:
        self.name, self.settings = Path(name).name if Path(name).is_absolute() else name, dict(settings)
        self._name, self._key = name, key
        self._client, self._permission = client, permission
        self._refused: frozenset[str] = frozenset()

    @property
    def host(self) -> str | None:
        """The machine that the client sends to; None if it is this one."""
        host = str(self._client.base_url.host)
        return None if is_loopback(host) else host

    def answer(self, question: Question, *, seed: int) -> Answer:
        """Answer one question.

        Raises:
            NoAnswer: there was none after all tries, it cannot be read, or the server refuses this question.
            InputError: pictures without permission; a key, model or address that the server refuses.
        """
        import openai

        self._check_pictures(question)
        asked = self._request(question, seed)
        refused = self._refused
        started = time.monotonic()
        while True:
            try:
                found = self._client.chat.completions.with_raw_response.create(**_without(asked, refused))
                break
            except openai.APIStatusError as error:
                refusal = _refused_setting(error, asked, refused)
                if refusal is None:
                    raise self._failure(error) from error
                refused |= {refusal}
            except openai.APIError as error:
                raise NoAnswer(_lost(error, self._key)) from error
        try:
            said, *n_tokens = _read(found.http_response.content)
        except ValueError as error:
            raise NoAnswer(
                f"the server answered with something that is no chat completion ({_first_line(str(error), self._key)})"
            ) from error
        self._refused = refused
        if len(self._key) >= _LONG_KEY:
            said = said.replace(self._key, _HIDDEN)
        return Answer(said, time.monotonic() - started, *n_tokens)

    def _check_pictures(self, question: Question) -> None:
        host = self.host
        if host is None or not any(isinstance(part, Image.Image) for part in question.parts):
            return
        if self._permission is None or self._permission.host != host:
            raise InputError(
                f"pictures stay on this machine unless the dataset's licence is named under which they may go to "
                f"{host}; ask a server on this machine, or permit_sending (mammosae name --send-images-under)"
            )
        if self._client.base_url.scheme != "https":
            raise InputError(
                f"pictures would go to {host} unencrypted; give an https address, or a tunnel's end on this "
                f"machine (ssh -L 8000:localhost:8000 {host}, then http://127.0.0.1:8000)"
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
        status, where = error.status_code, str(self._client.base_url).rstrip("/")
        said = _first_line(error.message, self._key)
        if status in (301, 302, 303, 307, 308):
            return InputError(f"{where} sends requests on to another address, which is not followed; name that one")
        if status == 401:
            return InputError(f"{where} refuses the key (401: {said}); look at the environment variable that holds it")
        if status == 404:
            return InputError(
                f"{where} has no {self._name} (404: {said}); look at the address, with its /v1, and the name"
            )
        passing = status in (408, 409, 429) or status >= 500
        wait = _first_line(error.response.headers.get("retry-after", ""), self._key, "")[:40] if passing else ""
        until = (
            f"; it asks to wait {f'{wait} s' if wait[:1].isdecimal() else f'until {wait}'}"
            if re.match(r"\d|[A-Z][a-z]{2},", wait)
            else ""
        )
        return NoAnswer(f"the server {'fails' if passing else 'refuses'} ({status}: {said}{until})", final=not passing)


def host_of(base_url: str) -> str | None:
    """The other machine that an address is on; None if it is this one.

    Raises:
        InputError: no address of a server.

    Example:
        >>> host_of("https://models.example.org/v1"), host_of("http://localhost:8000/v1")
        ('models.example.org', None)
    """
    host = str(_address(base_url).hostname)
    return None if is_loopback(host) else host


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
    """A picture as PNG, of its pixels alone: gray or RGB, without what else a file said.

    Raises:
        InputError: no picture of 8 bits, such as one of 16 bits, whose window nobody has chosen.
    """
    if not isinstance(picture, Image.Image):
        raise InputError(f"the picture is a {type(picture).__name__}; give one of PIL (Image.fromarray)")
    if picture.mode not in (*_GRAY, *_COLOUR):
        raise InputError(f"the picture has mode {picture.mode}; scale it to 8 bits first (mode L or RGB)")
    pixels = np.asarray(picture.convert("L" if picture.mode in _GRAY else "RGB"))
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG")
    return held.getvalue()


def _key(base_url: str, host: str | None, key_from: str | None) -> str:
    """The server's key; empty where none is asked for."""
    if key_from is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key_from):
        raise InputError("the key's place is no name of an environment variable; give the name, and not the key itself")
    if key_from is None and host is None:
        return ""
    if key_from is None and host != "openai.com" and not str(host).endswith(".openai.com"):
        raise InputError(
            f"{base_url} wants a key, and {KEY} goes to OpenAI alone; name the environment variable with the key for "
            f"{host} (--key-from VARIABLE, key_from=)"
        )
    key = os.environ.get(key_from or KEY, "").strip()
    if not key:
        raise InputError(f"{base_url} wants a key: put it into the environment variable {key_from or KEY}")
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"the key in {key_from or KEY} has signs that no request can carry; put it in anew")
    return key


def _bare(key: str) -> Callable[[Any], None]:
    def strip(request: Any) -> None:
        for name in [name for name in request.headers if name.lower() not in _SENT]:
            del request.headers[name]
        request.headers["Authorization"] = f"Bearer {key}"

    return strip


def _ends_within(seconds: float) -> Callable[[Any], None]:
    """A hook by which a response whose body takes longer is given up as one that is silent is."""

    def limit(response: Any) -> None:
        http = sys.modules[type(response).__module__.partition(".")[0]]  # httpx, or the one that openai brings
        held, end = response.stream, time.monotonic() + seconds

        class Limited(http.SyncByteStream):  # type: ignore[misc, name-defined]
            def __iter__(self) -> Iterator[bytes]:
                for part in held:
                    if time.monotonic() > end:
                        raise http.ReadTimeout("the answer comes in drips", request=response.request)
                    yield part

            def close(self) -> None:
                held.close()

        response.stream = Limited()

    return limit


def _read(body: bytes) -> tuple[str, int | None, int | None]:
    """What a chat completion says, and its tokens.

    Raises:
        ValueError: it is none; why, in a clause.
    """
    try:
        told = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError("no JSON" if body.strip() else "nothing at all") from error
    choices = told.get("choices") if isinstance(told, dict) else None
    if not isinstance(choices, list):
        raise ValueError(json.dumps(told["error"]) if isinstance(told, dict) and "error" in told else "no choices")
    usage = told.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    n_input, n_output = (count if type(count) is int and count >= 0 else None for count in counts)
    return _message(choices[0]) if choices else "", n_input, n_output


def _message(choice: Any) -> str:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise ValueError("no message")
    said = message.get("content")
    if isinstance(said, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in said]
        said = "".join(part for part in parts if isinstance(part, str)) if all(isinstance(p, str) for p in parts) else 0
    said = message.get("refusal") or "" if said is None else said
    if not isinstance(said, str):
        raise ValueError("a message that is no text")
    return said


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


def _lost(error: Exception, key: str) -> str:
    import openai

    if isinstance(error, openai.APITimeoutError):
        return "the server was silent, or its answer came in drips, for too long"
    if isinstance(error, openai.APIConnectionError):
        return f"the connection failed ({_first_line(str(error.__cause__ or error), key)})"
    return f"the server's answer cannot be read ({_first_line(str(error), key)})"


_HIDDEN = "[key]"
_KEYS = re.compile(r"\b(Bearer)\s+[^\s\"',;<>]+|\bsk-[\w*.-]{4,}", re.IGNORECASE)


def _first_line(said: str, key: str, nothing: str = "no reason given") -> str:
    """The first line of what a server says, without keys: its own, and what looks like one."""
    said = re.sub(re.escape(key), _HIDDEN, str(said), flags=re.IGNORECASE) if key else str(said)
    said = _KEYS.sub(lambda found: f"{found[1]} {_HIDDEN}" if found[1] else _HIDDEN, said)
    return next(iter(said.strip().splitlines()), nothing)[:200]
