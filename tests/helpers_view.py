"""The viewer of a study, running on this machine for a test, and what a browser would ask it."""

import http.client
import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import yaml

from mammosae_plugin.study import Study
from mammosae_plugin.study.serving import LoopbackServer
from mammosae_plugin.study.viewing import open_viewer


def copied_study(study: Study, folder: Path) -> Path:
    """The YAML file of a copy of a study, which may be written to."""
    shutil.copytree(study.output, folder / "study")
    settings = yaml.safe_load((study.output.parent / "study.yaml").read_text())
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump({**settings, "output": "study"}))
    return file


@contextmanager
def running(study: Path, **settings: Any) -> Iterator[LoopbackServer]:
    """The viewer's server, for as long as the block lasts."""
    server = open_viewer(study, port=0, **settings)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(
    server: LoopbackServer,
    path: str,
    query: Mapping[str, Any] = {},  # noqa: B006 - only read
    *,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] = {},  # noqa: B006 - only read
    token: str | None = None,
) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers and body of an answer; the path is behind the token, and sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    asked = f"/{server.token if token is None else token}/{path}" + (f"?{urlencode(query)}" if query else "")
    try:
        connection.request(method, asked, body=body, headers=dict(headers))
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()
    finally:
        connection.close()


def value(server: LoopbackServer, name: str, **query: Any) -> Any:
    """What `api/name` says."""
    status, _, body = ask(server, f"api/{name}", query)
    said = json.loads(body)
    assert status == 200, said
    return said


def address(server: LoopbackServer, page: str) -> str:
    """The address of a page."""
    return f"{urlsplit(server.address)._replace(fragment=page).geturl()}"
