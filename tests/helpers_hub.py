"""A Hugging Face Hub on this machine, with as much of the protocol as reading takes, and processes that talk to it.

huggingface_hub reads its endpoint when it is imported, so what uses this Hub runs in a process of its own:

    with LoopbackHub() as hub:
        commit = hub.commit("owner/name", {"sae.pt": path}, tag="v1")
        seen = run_on_hub(hub, tmp_path, PROGRAM)

Repos are plain data (`hub.repos`), a request is answered by the first route that matches its method and path
(`ROUTES`), and what was asked is kept (`hub.requests`): a test of writing adds routes.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit


@dataclass
class HubRepo:
    """A repo: commits (id -> path -> content) and names for them.

    Attributes:
        name: owner/name.
        kind: "model" or "dataset".
        commits: the files at every commit, oldest first.
        refs: branches and tags.
        gated: whether its files ask for terms to be accepted.
    """

    name: str
    kind: str = "model"
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit; None if there is none."""
        commit = self.refs.get(revision, revision)
        return commit if commit in self.commits else None


class Answer(NamedTuple):
    """What goes back: HTTP status, headers, body."""

    status: int = 200
    headers: Mapping[str, str] = {}
    body: bytes = b""

    @classmethod
    def of_json(cls, value: Any) -> "Answer":
        return cls(headers={"Content-Type": "application/json"}, body=json.dumps(value).encode())

    @classmethod
    def error(cls, status: int, code: str, message: str) -> "Answer":
        """An error in the Hub's form: the code and message are in headers."""
        body = json.dumps({"error": message}).encode()
        return cls(status, {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"}, body)


class LoopbackHub:
    """The server; use it as a context manager."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], HubRepo] = {}
        self.requests: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> "LoopbackHub":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def commit(
        self,
        name: str,
        files: Mapping[str, bytes | Path],
        *,
        kind: str = "model",
        branch: str = "main",
        tag: str | None = None,
        gated: bool = False,
    ) -> str:
        """Add or replace files on a branch, making the repo if need be; gives the commit's id."""
        repo = self.repos.setdefault((kind, name), HubRepo(name, kind, gated=gated))
        before = repo.commits.get(repo.refs.get(branch, ""), {})
        after = before | {path: v if isinstance(v, bytes) else v.read_bytes() for path, v in files.items()}
        commit = hashlib.sha1(f"{name} {branch} {len(repo.commits)}".encode()).hexdigest()
        repo.commits[commit] = after
        repo.refs[branch] = commit
        if tag is not None:
            repo.refs[tag] = commit
        return commit

    def environment(self, home: Path) -> dict[str, str]:
        """The environment of a process whose Hub this is and whose cache lies in `home`."""
        kept = {key: v for key, v in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        return kept | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",  # its client speaks to the real service only
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def answer(self, method: str, path: str) -> Answer:
        """The answer of the first route that matches."""
        self.requests.append((method, path))
        for methods, pattern, route in ROUTES:
            if method in methods.split() and (match := re.fullmatch(pattern, urlsplit(path).path)):
                return route(self, *(unquote(part) if part else "" for part in match.groups()))
        return Answer.error(404, "NotFound", f"this Hub has no {method} {path}")

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _respond(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answer = hub.answer(self.command, self.path)
                self.send_response(answer.status)
                for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body)

            do_GET = do_HEAD = do_POST = _respond

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing on stderr."""

        return Handler


def _find(hub: LoopbackHub, kind: str, name: str, revision: str) -> tuple[HubRepo, str] | Answer:
    repo = hub.repos.get(("dataset" if kind.startswith("datasets") else "model", name))
    if repo is None:  # the Hub does not tell a missing repo from a private one
        return Answer.error(401, "RepoNotFound", "Repository not found")
    commit = repo.resolve(revision or "main")
    if commit is None:
        return Answer.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return repo, commit


def _file(hub: LoopbackHub, kind: str, name: str, revision: str, path: str) -> Answer:
    found = _find(hub, kind, name, revision)
    if isinstance(found, Answer):
        return found
    repo, commit = found
    if repo.gated:
        return Answer.error(403, "GatedRepo", f"Access to {name} is restricted")
    if path not in repo.commits[commit]:
        missing = Answer.error(404, "EntryNotFound", "Entry not found")
        return missing._replace(headers={**missing.headers, "X-Repo-Commit": commit})
    body = repo.commits[commit][path]
    etag = hashlib.sha256(body).hexdigest()
    return Answer(headers={"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "none"}, body=body)


def _info(hub: LoopbackHub, kind: str, name: str, revision: str) -> Answer:
    found = _find(hub, kind, name, revision)
    if isinstance(found, Answer):
        return found
    repo, commit = found
    siblings = [{"rfilename": path} for path in repo.commits[commit]]
    facts = {"id": name, "modelId": name, "sha": commit, "private": False, "gated": repo.gated, "tags": []}
    return Answer.of_json({**facts, "downloads": 0, "likes": 0, "siblings": siblings})


def _tree(hub: LoopbackHub, kind: str, name: str, revision: str) -> Answer:
    found = _find(hub, kind, name, revision)
    if isinstance(found, Answer):
        return found
    repo, commit = found
    files = repo.commits[commit].items()
    oid = "0" * 40
    return Answer.of_json([{"type": "file", "path": path, "size": len(v), "oid": oid} for path, v in files])


_NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("GET HEAD", rf"/(datasets/)?{_NAME}/resolve/([^/]+)/(.+)", _file),
    ("GET", rf"/api/(models|datasets)/{_NAME}/tree/([^/]+)", _tree),
    ("GET", rf"/api/(models|datasets)/{_NAME}(?:/revision/([^/]+))?", _info),
]


def run_on_hub(hub: LoopbackHub, home: Path, program: str, *arguments: str | Path) -> Any:
    """Run a Python program on this Hub; what its variable `seen` holds at the end comes back.

    `attempt(function)` gives the function's value, or {"error": type, "message": text} when it raises.
    """
    prologue = """
def attempt(function):
    try:
        return function()
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}
"""
    target = home / "seen.json"
    epilogue = f"\nimport json\nwith open({str(target)!r}, 'w') as file:\n    json.dump(seen, file)\n"
    home.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", prologue + program + epilogue, *map(str, arguments)],
        env=hub.environment(home),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(target.read_text())
