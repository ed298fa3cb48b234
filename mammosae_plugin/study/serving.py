"""A web server for one person on one machine: loopback only, nothing without the token of this run, nothing elsewhere.

Other pages in the same browser cannot read or write here: they do not know the token, which is a part of every address;
a name of theirs that leads to this machine is refused by its Host header, and what they send by its Origin.
"""

__all__ = ["Answer", "LoopbackServer", "NotThere"]

import hmac
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from mammosae_plugin.errors import InputError

LOOPBACK = "127.0.0.1"
LARGEST = 256 * 2**20
"""Bytes of a request at most: an uncompressed mammogram of 16 bit has about 50 MB."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_SECONDS = 60  # that a connection may say nothing


class NotThere(InputError):
    """What was asked for is not there: one line."""


@dataclass(frozen=True)
class Answer:
    """What is sent back."""

    body: bytes
    kind: str = "application/json"

    @classmethod
    def of(cls, value: Any) -> "Answer":
        """A JSON value."""
        return cls(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode())


class Site(Protocol):
    """What is served; any thread may ask."""

    def get(self, path: str, query: Mapping[str, str]) -> Answer:
        """What lies at a path, such as "index.html"; InputError, or NotThere, with one line for people."""

    def post(self, path: str, query: Mapping[str, str], body: bytes) -> Answer:
        """What is done with what was sent; errors as `get`."""


class LoopbackServer(ThreadingHTTPServer):
    """Serves a site on 127.0.0.1 under the token of this run.

    Args:
        site: what is served.
        port: where; 0 lets the system choose.

    Attributes:
        token: the first part of every address.

    Raises:
        OSError: the port is in use.
    """

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # elsewhere it would share a port that is in use

    def __init__(self, site: Site, port: int) -> None:
        super().__init__((LOOPBACK, port), _Handler)
        self.site, self.token = site, secrets.token_urlsafe(24)

    @property
    def address(self) -> str:
        """The page."""
        return f"http://{LOOPBACK}:{self.server_port}/{self.token}/"

    @property
    def hosts(self) -> tuple[str, ...]:
        """What browsers of this machine call it."""
        return f"{LOOPBACK}:{self.server_port}", f"localhost:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's names
        """A browser that goes away in the middle of an answer is nothing to tell."""


class _Refused(Exception):
    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: LoopbackServer
    protocol_version = "HTTP/1.1"
    timeout = _SECONDS

    def do_GET(self) -> None:
        self._answer(lambda path, query: self.server.site.get(path, query))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(lambda path, query: self.server.site.post(path, query, self._body()))

    def version_string(self) -> str:
        return "mammosae"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: addresses hold the token."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """What the base class refuses, such as a method that there is not, in one line like all else."""
        self._send(code, Answer.of({"error": message or self.responses.get(code, ("refused",))[0]}))
        self.close_connection = True

    def _answer(self, do: Any) -> None:
        try:
            status, answer = 200, do(*self._asked())
        except _Refused as error:
            status, answer = error.status, _line(error)
            self.close_connection = True
        except NotThere as error:
            status, answer = 404, _line(error)
        except InputError as error:
            status, answer = 400, _line(error)
        except Exception as error:  # one page's failure must not end the others
            status, answer = (
                500,
                Answer.of({"error": f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"}),
            )
        self._send(status, answer)

    def _asked(self) -> tuple[str, dict[str, str]]:
        """The path behind the token, and what was asked; whoever may not ask is refused."""
        if self.headers.get("Host") not in self.server.hosts:
            raise _Refused(403, "this server answers to 127.0.0.1 and localhost alone")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in self.server.hosts}:
            raise _Refused(403, "this server answers its own pages alone")
        asked = urlsplit(self.path)
        _, _, rest = asked.path.partition("/")
        token, slash, path = rest.partition("/")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()) or not slash:
            raise _Refused(403, "open the address that `mammosae view` printed: it holds the token of this run")
        return unquote(path, errors="replace") or "index.html", dict(parse_qsl(asked.query, keep_blank_values=True))

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            raise _Refused(411, "say how long what is sent is (Content-Length)")
        if int(length) > LARGEST:
            raise _Refused(413, f"what is sent has {int(length) / 2**20:,.0f} MB; {LARGEST // 2**20} MB are the most")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise _Refused(400, "less was sent than was said")
        return body

    def _send(self, status: int, answer: Answer) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)


def _line(error: Exception) -> Answer:
    return Answer.of({"error": " ".join(str(error).split())})
