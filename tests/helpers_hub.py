"""A Hugging Face Hub on this machine, with the part of the protocol that reading and publishing take, and programs.

huggingface_hub reads its endpoint when it is imported, so what uses this Hub runs in a process of its own:

    with LoopbackHub() as hub:
        commit = hub.commit("owner/name", {"sae.pt": path}, tag="v1")
        seen = run_on_hub(hub, tmp_path, PROGRAM)

Repos are plain data (`hub.repos`), a request is answered by the first route that matches its method and path
(`ROUTES`), and what was asked is kept (`hub.requests`). What the wire can do wrong is a `Fault` in `hub.faults`.
Processes are logged in as `WRITER`, who may write to the names of `OWNERS`, unless they are given another token.

As on the Hub, large files (`is_large`) are stored apart, under their SHA-256: they are uploaded by LFS before the
commit, and a download is sent on to another address. A commit is all or nothing.
"""

import base64
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
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

OWNERS = ("someone", "someones-lab", "your-name")
WRITER, STRANGER = "hf_loopbackwriter", "hf_loopbackstranger"
_USERS = {WRITER: ("someone", OWNERS), STRANGER: ("stranger", ("stranger",))}
_LARGE = {".bin", ".parquet", ".png", ".pt", ".pth", ".safetensors", ".tar"}
_LICENCES = {"apache-2.0", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "mit", "other"}


def is_large(path: str) -> bool:
    """Whether a file is stored apart, by LFS."""
    return PurePosixPath(path).suffix in _LARGE


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag_of(path: str, content: bytes) -> str:
    """The name under which the Hub stores a file: SHA-256 of a large one, git's hash of another."""
    return hashlib.sha256(content).hexdigest() if is_large(path) else git_hash(content)


@dataclass
class HubRepo:
    """A repo: commits (id -> path -> content) and names for them.

    Attributes:
        name: owner/name.
        kind: "model", "dataset" or "space".
        commits: the files at every commit, oldest first.
        refs: branches and tags.
        gated: whether its files ask for terms to be accepted.
        private: whether only its owner sees it.
        titles: the message of every commit that was made over the wire.
        tags: which of the refs are tags.
    """

    name: str
    kind: str = "model"
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    titles: dict[str, str] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit; None if there is none."""
        commit = self.refs.get(revision, revision)
        return commit if commit in self.commits else None

    @property
    def files(self) -> dict[str, bytes]:
        """What lies on the main branch."""
        return self.commits[self.refs["main"]]

    def state(self) -> dict[str, Any]:
        """What is on the main branch, as plain JSON."""
        head = self.refs["main"]
        return {
            "head": head,
            "title": self.titles[head],
            "n_commits": len(self.commits),
            "private": self.private,
            "tags": {tag: self.refs[tag] for tag in sorted(self.tags)},
            "files": {path: hashlib.sha256(content).hexdigest() for path, content in self.files.items()},
        }

    def add(self, files: dict[str, bytes], title: str, branch: str = "main") -> str:
        """A new commit of exactly these files."""
        commit = hashlib.sha1(f"{self.kind} {self.name} {branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[commit] = files
        self.titles[commit] = title
        self.refs[branch] = commit
        return commit


class Request(NamedTuple):
    """What was asked."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    @property
    def token(self) -> str | None:
        found = self.headers.get("authorization", "")
        return found.removeprefix("Bearer ") if found.startswith("Bearer ") else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Answer(NamedTuple):
    """What goes back: HTTP status, headers, body."""

    status: int = 200
    headers: Mapping[str, str] = {}
    body: bytes = b""

    @classmethod
    def of_json(cls, value: Any, status: int = 200) -> "Answer":
        return cls(status, headers={"Content-Type": "application/json"}, body=json.dumps(value).encode())

    @classmethod
    def error(cls, status: int, code: str, message: str) -> "Answer":
        """An error in the Hub's form: the code and message are in headers."""
        body = json.dumps({"error": message}).encode()
        return cls(status, {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"}, body)


@dataclass
class Fault:
    """What goes wrong with the requests whose "METHOD /path" matches a pattern.

    Attributes:
        pattern: searched for in "METHOD /path".
        times: how many requests it hits, None for all.
        status: answer so instead of doing what was asked.
        headers: of that answer.
        message: of that answer.
        cut_upload: close the connection after so many bytes of the request's body were read.
        cut_download: close the connection after so many bytes of the answer's body were sent.
        lose_answer: do what was asked, then close the connection without an answer.
        hang: say nothing for so many seconds, then close the connection.
        skip: how many matching requests pass unharmed first.
    """

    pattern: str
    times: int | None = 1
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "planned"
    cut_upload: int | None = None
    cut_download: int | None = None
    lose_answer: bool = False
    hang: float | None = None
    skip: int = 0


class LoopbackHub:
    """The server; use it as a context manager."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], HubRepo] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.stored: dict[str, bytes] = {}  # large files by SHA-256
        self.verified: set[str] = set()
        self.tampered: dict[str, str] = {}
        self.lock = threading.RLock()
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> "LoopbackHub":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def store_url(self) -> str:
        """Where large files are downloaded from: another host for the client, as on the Hub."""
        return f"http://localhost:{self._server.server_port}"

    def commit(
        self,
        name: str,
        files: Mapping[str, bytes | Path],
        *,
        kind: str = "model",
        branch: str = "main",
        tag: str | None = None,
        gated: bool = False,
        private: bool = False,
    ) -> str:
        """Add or replace files on a branch, making the repo if need be; gives the commit's id."""
        with self.lock:
            new = HubRepo(name, kind, gated=gated, private=private)
            repo = self.repos.setdefault((kind, name), new)
            before = repo.commits.get(repo.refs.get(branch, ""), {})
            after = before | {path: v if isinstance(v, bytes) else v.read_bytes() for path, v in files.items()}
            commit = repo.add(after, "by hand", branch)
            if tag is not None:
                repo.refs[tag] = commit
                repo.tags.add(tag)
            return commit

    def environment(self, home: Path, token: str | None = WRITER) -> dict[str, str]:
        """The environment of a process whose Hub this is and whose cache lies in `home`; no token: not logged in."""
        kept = {key: v for key, v in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        login = {} if token is None else {"HF_TOKEN": token}
        return kept | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",  # its client speaks to the real service only
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            **login,
        }

    def control(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What a program asks of the Hub beside the protocol (`POST /control`, see `HAND`).

        Args:
            asked: `faults` to have from now on; a `commit` by somebody else; `forget`: that the store no longer knows
                what was uploaded; `tamper`: SHA-256 of a large file -> what is wrong with it when it is downloaded, a
                "byte" or its "size"; nothing of these to look only.

        Returns:
            The state of every repo by "kind owner/name", and the requests since the last time.
        """
        with self.lock:
            if "faults" in asked:
                self.faults = [Fault(**fault) for fault in asked["faults"]]
            if "commit" in asked:
                by_hand = dict(asked["commit"])
                files = {path: text.encode() for path, text in by_hand.pop("files").items()}
                self.commit(by_hand.pop("name"), files, **by_hand)
            if asked.get("forget"):
                self.stored, self.verified = {}, set()
            if "tamper" in asked:
                self.tampered = dict(asked["tamper"])
            requests, self.requests = self.requests, []
            return {"requests": requests, "repos": {f"{k} {n}": repo.state() for (k, n), repo in self.repos.items()}}

    def answer(self, request: Request) -> Answer:
        """The answer of the first route that matches."""
        for methods, pattern, route in ROUTES:
            if request.method in methods.split() and (match := re.fullmatch(pattern, request.path)):
                with self.lock:
                    return route(self, request, *(unquote(part) if part else "" for part in match.groups()))
        return Answer.error(404, "NotFound", f"this Hub has no {request.method} {request.path}")

    def fault_of(self, method: str, path: str) -> Fault | None:
        """The fault that hits this request, counted."""
        with self.lock:
            for fault in self.faults:
                if fault.times == 0 or not re.search(fault.pattern, f"{method} {path}"):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times = None if fault.times is None else fault.times - 1
                return fault
        return None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _respond(self) -> None:
                parts = urlsplit(self.path)
                if parts.path == "/control":
                    return self._send(Answer.of_json(hub.control(json.loads(self._body()))))
                with hub.lock:
                    hub.requests.append((self.command, self.path))
                fault = hub.fault_of(self.command, self.path) or Fault("")
                if fault.cut_upload is not None:
                    self.rfile.read(fault.cut_upload)
                    return self._hang_up()
                body = self._body()
                if fault.hang is not None:
                    hub._closing.wait(fault.hang)
                    return self._hang_up()
                if fault.status is not None:
                    answer = Answer.error(fault.status, "", fault.message)
                    return self._send(answer._replace(headers={**answer.headers, **fault.headers}))
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = hub.answer(Request(self.command, parts.path, parse_qs(parts.query), headers, body))
                if fault.lose_answer:
                    return self._hang_up()
                return self._send(answer, fault.cut_download)

            def _body(self) -> bytes:
                if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
                    found = b""
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        found += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                    return found
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def _send(self, answer: Answer, cut: int | None = None) -> None:
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body if cut is None else answer.body[:cut])
                if cut is not None:
                    self._hang_up()

            def _hang_up(self) -> None:
                self.close_connection = True

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _respond

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing on stderr."""

        return Handler


# -- who asks ------------------------------------------------------------------------------------------------------


def _login(request: Request) -> tuple[str, tuple[str, ...]] | Answer:
    if request.token is None or request.token not in _USERS:
        return Answer.error(401, "", "Invalid credentials in Authorization header")
    return _USERS[request.token]


def _may_write(request: Request, name: str) -> Answer | None:
    user = _login(request)
    if isinstance(user, Answer):
        return user
    if name.split("/")[0] not in user[1]:
        return Answer.error(403, "", f"You don't have the rights to write under the namespace {name.split('/')[0]}")
    return None


def _whoami(hub: LoopbackHub, request: Request) -> Answer:
    user = _login(request)
    if isinstance(user, Answer):
        return user
    return Answer.of_json(
        {
            "type": "user",
            "name": user[0],
            "orgs": [{"name": name} for name in user[1] if name != user[0]],
            "auth": {"type": "access_token", "accessToken": {"displayName": "loopback", "role": "write"}},
        }
    )


# -- reading -------------------------------------------------------------------------------------------------------


def _kind(prefix: str) -> str:
    return {"datasets": "dataset", "spaces": "space"}.get(prefix.strip("/"), "model")


def _find(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> tuple[HubRepo, str] | Answer:
    repo = hub.repos.get((_kind(kind), name))
    if request.token is not None and request.token not in _USERS:
        return Answer.error(401, "", "Invalid credentials in Authorization header")
    owners = _USERS[request.token][1] if request.token in _USERS else ()
    if repo is None or (repo.private and name.split("/")[0] not in owners):
        # The Hub does not tell a missing repo from a private one.
        return Answer.error(404 if owners else 401, "RepoNotFound", "Repository not found")
    commit = repo.resolve(revision or "main")
    if commit is None:
        return Answer.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return repo, commit


def _file(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str, path: str) -> Answer:
    found = _find(hub, request, kind, name, revision)
    if isinstance(found, Answer):
        return found
    repo, commit = found
    if repo.gated:
        return Answer.error(403, "GatedRepo", f"Access to {name} is restricted")
    if path not in repo.commits[commit]:
        missing = Answer.error(404, "EntryNotFound", "Entry not found")
        return missing._replace(headers={**missing.headers, "X-Repo-Commit": commit})
    body = repo.commits[commit][path]
    etag = etag_of(path, body)
    if is_large(path):
        hub.stored[etag] = body
        place = f"{hub.store_url}/store/{etag}"
        linked = {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(len(body)), "Location": place}
        return Answer(302, {**linked, "X-Repo-Commit": commit})
    return _part(request, body, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})


def _stored(hub: LoopbackHub, request: Request, digest: str) -> Answer:
    if "authorization" in request.headers:
        return Answer.error(400, "", "the token must not be sent to the store")
    if digest not in hub.stored:
        return Answer.error(404, "", "no such object")
    body = hub.stored[digest]
    wrong = {"byte": body[:-1] + bytes([body[-1] ^ 1]), "size": body + b"?"}
    body = wrong.get(hub.tampered.get(digest, ""), body)
    return _part(request, body, {"ETag": f'"{digest}"'})


def _part(request: Request, body: bytes, headers: Mapping[str, str]) -> Answer:
    """The whole content, or the range that was asked for."""
    headers = {**headers, "Accept-Ranges": "bytes"}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if asked is None:
        return Answer(headers=headers, body=body)
    first, last = asked.groups()
    start = int(first) if first else len(body) - int(last)
    end = min(int(last) + 1 if first and last else len(body), len(body))
    if start >= len(body):
        return Answer(416, {**headers, "Content-Range": f"bytes */{len(body)}"})
    return Answer(206, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(body)}"}, body[start:end])


def _info(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Answer:
    found = _find(hub, request, kind, name, revision)
    if isinstance(found, Answer):
        return found
    repo, commit = found
    siblings = [{"rfilename": path} for path in repo.commits[commit]]
    facts = {"id": name, "modelId": name, "sha": commit, "private": repo.private, "gated": repo.gated, "tags": []}
    return Answer.of_json({**facts, "downloads": 0, "likes": 0, "siblings": siblings})


def _entry(path: str, content: bytes) -> dict[str, Any]:
    if not is_large(path):
        return {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
    digest = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()
    lfs = {"oid": digest, "size": len(content), "pointerSize": len(pointer)}
    return {"type": "file", "path": path, "size": len(content), "oid": git_hash(pointer), "lfs": lfs}


def _entries(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Every file and folder, by path."""
    found: dict[str, dict[str, Any]] = {}
    for path, content in sorted(files.items()):
        for parent in list(PurePosixPath(path).parents)[:-1]:
            found[str(parent)] = {"type": "directory", "path": str(parent), "size": 0, "oid": git_hash(b"")}
        found[path] = _entry(path, content)
    return found


def _tree(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str, folder: str) -> Answer:
    found = _find(hub, request, kind, name, revision)
    if isinstance(found, Answer):
        return found
    repo, commit = found
    entries = _entries(repo.commits[commit])
    inside = {path: entry for path, entry in entries.items() if not folder or path.startswith(f"{folder}/")}
    if folder and not inside:
        return Answer.error(404, "EntryNotFound", "Entry not found")
    if request.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
        start = len(folder) + 1 if folder else 0
        inside = {path: entry for path, entry in inside.items() if "/" not in path[start:]}
    return Answer.of_json(list(inside.values()))


def _paths_info(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Answer:
    found = _find(hub, request, kind, name, revision)
    if isinstance(found, Answer):
        return found
    entries = _entries(found[0].commits[found[1]])
    asked = request.json if request.headers.get("content-type", "").startswith("application/json") else None
    paths = asked["paths"] if asked is not None else parse_qs(request.body.decode()).get("paths", [])
    return Answer.of_json([entries[path] for path in paths if path in entries])


def _refs(hub: LoopbackHub, request: Request, kind: str, name: str) -> Answer:
    found = _find(hub, request, kind, name, "")
    if isinstance(found, Answer):
        return found
    repo = found[0]
    listed: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": []}
    for ref, commit in repo.refs.items():
        if ref.startswith("refs/"):
            continue
        group, full = ("tags", f"refs/tags/{ref}") if ref in repo.tags else ("branches", f"refs/heads/{ref}")
        listed[group].append({"name": ref, "ref": full, "targetCommit": commit})
    return Answer.of_json(listed)


def _commits(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Answer:
    found = _find(hub, request, kind, name, revision)
    if isinstance(found, Answer):
        return found
    repo, last = found
    order = list(repo.commits)
    listed = [
        {"id": c, "title": repo.titles.get(c, ""), "message": "", "date": "2026-01-01T00:00:00.000Z", "authors": []}
        for c in reversed(order[: order.index(last) + 1])
    ]
    return Answer.of_json(listed)


# -- writing -------------------------------------------------------------------------------------------------------


def _create(hub: LoopbackHub, request: Request) -> Answer:
    asked = request.json
    user = _login(request)
    if isinstance(user, Answer):
        return user
    name, kind = f"{asked.get('organization') or user[0]}/{asked['name']}", asked.get("type") or "model"
    if refusal := _may_write(request, name):
        return refusal
    if (kind, name) in hub.repos:
        return Answer.error(409, "", f"You already created this {kind} repo: {name}")
    if kind == "space" and asked.get("sdk") not in ("static", "gradio", "docker", "streamlit"):
        return Answer.error(400, "", "a Space needs an sdk")
    private = asked.get("private", False) or asked.get("visibility") == "private"
    repo = hub.repos[kind, name] = HubRepo(name, kind, private=private)
    files = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
    if kind == "space":  # the Hub fills a new Space with a template
        files |= {"README.md": b"---\nsdk: static\n---\n", "index.html": b"<p>Welcome</p>", "style.css": b"body {}"}
    repo.add(files, "initial commit")
    prefix = "" if kind == "model" else f"{kind}s/"
    return Answer.of_json({"url": f"{hub.url}/{prefix}{name}", "name": name, "id": "1", "private": private})


def _validate_yaml(hub: LoopbackHub, request: Request) -> Answer:
    """What the Hub checks of a card's front matter: that it is YAML, the licence, colours and sdk of a Space."""
    match = re.match(r"---\n(.*?)\n---(\n|$)", request.json["content"], flags=re.DOTALL)
    try:
        front = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        return Answer.of_json({"errors": [{"message": f"not YAML: {error}"}], "warnings": []}, 400)
    errors, warnings = [], []
    if not match:
        warnings.append({"message": "empty or missing yaml metadata in repo card"})
    if not isinstance(front, dict):
        errors.append({"message": "metadata is no mapping"})
        front = {}
    if "license" in front and front["license"] not in _LICENCES:
        errors.append({"message": f'"license" must be one of {sorted(_LICENCES)}'})
    if request.json["repoType"] == "space":
        colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
        errors += [
            {"message": f'"{key}" is no colour'}
            for key in ("colorFrom", "colorTo")
            if front.get(key, "red") not in colours
        ]
        if front.get("sdk") not in ("static", "gradio", "docker", "streamlit"):
            errors.append({"message": '"sdk" is missing'})
    return Answer.of_json({"errors": errors, "warnings": warnings}, 400 if errors else 200)


def _preupload(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Answer:
    if refusal := _may_write(request, name):
        return refusal
    found = _find(hub, request, kind, name, revision)
    if isinstance(found, Answer):
        return found
    there = found[0].commits[found[1]]
    ignored = there.get(".gitignore", b"").decode().split()

    def of(path: str) -> dict[str, Any]:
        oid = etag_of(path, there[path]) if path in there else None
        mode = "lfs" if is_large(path) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": path in ignored, "oid": oid}

    return Answer.of_json({"files": [of(file["path"]) for file in request.json["files"]]})


def _lfs_batch(hub: LoopbackHub, request: Request, kind: str, name: str) -> Answer:
    if refusal := _may_write(request, name):
        return refusal
    if ("dataset" if kind == "datasets/" else _kind(kind), name) not in hub.repos:
        return Answer.error(404, "RepoNotFound", "Repository not found")

    def of(oid: str, size: int) -> dict[str, Any]:
        if oid in hub.verified:
            return {"oid": oid, "size": size}
        upload = {"href": f"{hub.store_url}/store/{oid}", "header": {}}
        verify = {"href": f"{hub.url}/{kind}{name}.git/info/lfs/objects/verify", "header": {}}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    objects = [of(each["oid"], each["size"]) for each in request.json["objects"]]
    return Answer.of_json({"transfer": "basic", "objects": objects})


def _store(hub: LoopbackHub, request: Request, digest: str) -> Answer:
    if hashlib.sha256(request.body).hexdigest() != digest:
        return Answer.error(400, "", "the content does not have the SHA-256 that was announced")
    hub.stored[digest] = request.body
    return Answer()


def _lfs_verify(hub: LoopbackHub, request: Request, kind: str, name: str) -> Answer:
    if refusal := _may_write(request, name):
        return refusal
    asked = request.json
    if len(hub.stored.get(asked["oid"], b"")) != asked["size"]:
        return Answer.error(400, "", "the object is not in the store, or of another size")
    hub.verified.add(asked["oid"])
    return Answer()


def _commit(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Answer:
    if refusal := _may_write(request, name):
        return refusal
    found = _find(hub, request, kind, name, revision)
    if isinstance(found, Answer):
        return found
    repo, head = found
    lines = [json.loads(line) for line in request.body.splitlines()]
    header = lines[0]["value"]
    if header.get("parentCommit", head) != head:
        return Answer.error(412, "", "A commit has happened since. Please refresh and try again.")
    files = dict(repo.commits[head])
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            if value["oid"] not in hub.verified:
                return Answer.error(400, "", f"LFS object {value['oid']} is not there")
            files[value["path"]] = hub.stored[value["oid"]]
        elif line["key"] == "deletedFile":
            if files.pop(value["path"], None) is None:
                return Answer.error(404, "EntryNotFound", "A file with this name doesn't exist")
        else:
            return Answer.error(400, "", f"unknown operation {line['key']}")
    commit = repo.add(files, header["summary"], revision)
    return Answer.of_json({"success": True, "commitOid": commit, "commitUrl": f"{hub.url}/{name}/commit/{commit}"})


def _tag(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Answer:
    if refusal := _may_write(request, name):
        return refusal
    found = _find(hub, request, kind, name, revision)
    if isinstance(found, Answer):
        return found
    tag = request.json["tag"]
    if tag in found[0].refs:
        return Answer.error(409, "", "Tag reference exists already")
    found[0].refs[tag] = found[1]
    found[0].tags.add(tag)
    return Answer()


_NAME = r"([\w.-]+/[\w.-]+?)"
_API = rf"/api/(models|datasets|spaces)/{_NAME}"
ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("GET", r"/api/whoami-v2", _whoami),
    ("GET HEAD", rf"/(datasets/|spaces/)?{_NAME}/resolve/([^/]+)/(.+)", _file),
    ("GET HEAD", r"/store/([0-9a-f]{64})", _stored),
    ("PUT", r"/store/([0-9a-f]{64})", _store),
    ("GET", rf"{_API}/tree/([^/]+)(?:/(.+))?", _tree),
    ("POST", rf"{_API}/paths-info/([^/]+)", _paths_info),
    ("GET", rf"{_API}/refs", _refs),
    ("GET", rf"{_API}/commits/([^/]+)", _commits),
    ("GET", rf"{_API}(?:/revision/([^/]+))?", _info),
    ("POST", r"/api/repos/create", _create),
    ("POST", r"/api/validate-yaml", _validate_yaml),
    ("POST", rf"{_API}/preupload/([^/]+)", _preupload),
    ("POST", rf"/(datasets/|spaces/)?{_NAME}\.git/info/lfs/objects/batch", _lfs_batch),
    ("POST", rf"/(datasets/|spaces/)?{_NAME}\.git/info/lfs/objects/verify", _lfs_verify),
    ("POST", rf"{_API}/commit/([^/]+)", _commit),
    ("POST", rf"{_API}/tag/([^/]+)", _tag),
]


HAND = """
def hub(**asked):
    import json, os, urllib.request
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(os.environ["HF_ENDPOINT"] + "/control", json.dumps(asked).encode(), method="POST")
    return json.load(opener.open(request))
"""


def run_on_hub(
    hub: LoopbackHub, home: Path, program: str, *arguments: str | Path, token: str | None = WRITER, timeout: float = 300
) -> Any:
    """Run a Python program on this Hub; what its variable `seen` holds at the end comes back.

    `attempt(function)` gives the function's value, or {"error": type, "message": text} when it raises; `hub(...)` is
    `LoopbackHub.control`.
    """
    prologue = """
def attempt(function):
    try:
        return function()
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}
"""
    prologue += HAND
    target = home / "seen.json"
    epilogue = f"\nimport json\nwith open({str(target)!r}, 'w') as file:\n    json.dump(seen, file)\n"
    home.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", prologue + program + epilogue, *map(str, arguments)],
        env=hub.environment(home, token),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(target.read_text())


def mammosae_on_hub(
    hub: LoopbackHub, home: Path, *arguments: str | Path, token: str | None = WRITER, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command `mammosae` on this Hub."""
    return subprocess.run(
        [sys.executable, "-m", "mammosae_plugin", *map(str, arguments)],
        env=hub.environment(home, token),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=cwd,
    )
