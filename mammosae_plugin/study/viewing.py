"""`mammosae view`: the pages of a Space on this machine alone, with the study's images; notes are written there.

The numbers that pages show are written once, into `work/viewer` of the study's folder under a digest of its findings;
everything else is made when it is asked for, so that the pages are there at once.
"""

__all__ = ["open_viewer", "PORT", "Viewer"]

import errno
import json
import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, parse_yaml, read_json, sha256_of_json, write_json
from mammosae_plugin.findings.embeddings import is_embedding_study
from mammosae_plugin.findings.notes import NOTES_FOLDER, Note, add_note, read_notes
from mammosae_plugin.findings.study_folder import RESULTS_FOLDER, StudyFolder, is_study_folder
from mammosae_plugin.schema.findings import NOTE
from mammosae_plugin.schema.names import FINDINGS_FOLDER
from mammosae_plugin.schema.results import role_evidence, stated_role
from mammosae_plugin.study.serving import Answer, LoopbackServer, NotThere
from mammosae_plugin.study.viewed_images import ViewedImages
from mammosae_plugin.version import __version__

if TYPE_CHECKING:
    from mammosae_plugin.config import StudyConfig

logger = logging.getLogger(__name__)

PORT = 8765
_TRIED = 20  # ports after the first, where nobody asked for one
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".webp": "image/webp",
    ".png": "image/png",
}
_ADDED = ("viewer.css", "viewer.js")  # to the pages of a Space
_INDEX, _BUILT = "data/index.js", "viewer.json"
_ASSIGNED = 'mammosae.data["index"] = '
_LONGEST_NOTE = 64 * 2**10  # bytes
_OF_NOTE = ("text", "author", "label", "concept", "confidence", "encoder", "layer", "latent")


class Viewer:
    """What the viewer's server answers; a `serving.Site`.

    Args:
        folder: the study's output folder.
        config: gives its settings, where a YAML file was named.
        named: what the study is called in messages.

    Raises:
        InputError: no finished study of maps is there.
    """

    def __init__(self, folder: Path, config: "Callable[[], StudyConfig] | None", named: str) -> None:
        self.folder = folder
        if is_study_folder(folder) and is_embedding_study(folder / RESULTS_FOLDER):
            raise InputError(
                f"{named} is a study of embeddings, whose rows have no places and no classifier to look at; open "
                f"{folder / RESULTS_FOLDER / 'report.html'}"
            )
        if not is_study_folder(folder):
            raise InputError(
                f"{folder} holds no finished study (no {RESULTS_FOLDER}/{FINDINGS_FOLDER}); run `mammosae study`, or "
                "name the folder that its configuration calls output"
            )
        self.images = ViewedImages(lambda: self.study, config, named)
        self._writing = threading.Lock()
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._pages = {
            one.name: one
            for one in (resources.files("mammosae_plugin.hub_cards") / "space").iterdir()
            if Path(one.name).suffix in _KINDS
        }

    @cached_property
    def study(self) -> StudyFolder:
        """The study's findings, read when they are needed."""
        return StudyFolder(self.folder)

    # The pages' numbers

    @property
    def _digest(self) -> str:
        """Changes with the findings, and with what writes them down for the pages."""
        here = self.folder / RESULTS_FOLDER / FINDINGS_FOLDER
        code = (Path(__file__).parents[1] / "hub").glob("space*.py")
        files = sorted(path for path in (*here.rglob("*"), *code) if path.is_file())
        return sha256_of_json([__version__, *_stamps(files, self.folder)])[:16]

    def prepare(self, told: Callable[[str], None]) -> Path:
        """The folder of the pages' numbers; made, which may take a minute, where the findings are new.

        Args:
            told: is told once when they have to be made.
        """
        room = self.folder / "work" / "viewer"
        folder = room / self._digest
        if not (folder / _BUILT).is_file():
            told(f"writing the numbers of {self.folder.name} for the pages; this is done once for these findings")
            from mammosae_plugin.findings.published import Findings
            from mammosae_plugin.hub.space import build_space

            stamp = self._notes_stamp
            # On this machine nothing is hidden: who has the study's folder has every number already.
            findings = Findings.of_study(self.folder, min_group=1)
            try:
                room.mkdir(parents=True, exist_ok=True)
                for old in room.iterdir():
                    shutil.rmtree(old, ignore_errors=True)
            except OSError:  # a folder that may only be read
                self._scratch = tempfile.TemporaryDirectory(prefix="mammosae-view-")
                folder = Path(self._scratch.name) / "pages"
            build_space(findings, folder)
            write_json(folder / _BUILT, {"notes": stamp})
        self._data = folder
        return folder

    @property
    def _notes_stamp(self) -> list[Any]:
        return _stamps(sorted((self.folder / NOTES_FOLDER).glob("*.jsonl")), self.folder)

    def _index(self) -> bytes:
        """The index of the pages, with the notes as they are now."""
        if not (self._data / _INDEX).is_file():
            raise NotThere("the study was run again since this viewer began: end it, and begin anew")
        written = (self._data / _INDEX).read_bytes()
        if self._notes_stamp == read_json(self._data / _BUILT)["notes"]:
            return written
        index = json.loads(written.decode().partition(_ASSIGNED)[2].rstrip().removesuffix(";"))
        (entry,) = index["studies"]
        entry["notes"], entry["roles"] = self._notes(), self._roles()
        return f"{_ASSIGNED}{_script(index)};\n".encode()

    def _notes(self) -> list[dict[str, Any]]:
        """The notes in force as the pages list them; one of all encoders stands at each."""
        return [
            {"layer": layer.name, "encoder": encoder, "latent": note.latent}
            | {field.name: getattr(note, field.name) for field in NOTE}
            for note in read_notes(self.folder)
            for layer in self.study.layers
            for encoder in layer.encoders
            if note.layer == layer.name and note.encoder in (None, encoder)
        ]

    def _roles(self) -> list[dict[str, Any]]:
        from mammosae_plugin.findings.notes import results_with_readers
        from mammosae_plugin.findings.tables import shared_role

        return [
            {"layer": layer.name, "model": model, "concept": concept, "latent": row["latent"]}
            | {"role": stated_role(told := shared_role(row, 1)), "evidence": role_evidence(told)}
            for layer in self.study.layers
            for pair, rows in results_with_readers(layer)["named_latents"].items()
            for model, _, concept in [pair.partition("/")]
            for row in rows
        ]

    # Answers

    def get(self, path: str, query: Mapping[str, str]) -> Answer:
        """A page, a file of numbers, a picture, or a JSON value under `api/`."""
        if path.startswith("api/"):
            return self._api(path.removeprefix("api/"), query)
        if path == "index.html":
            return Answer(self._page().encode(), _KINDS[".html"])
        if path == _INDEX:
            return Answer(self._index(), _KINDS[".js"])
        if path in self._pages:
            return Answer(self._pages[path].read_bytes(), _KINDS[Path(path).suffix])
        folder, _, name = path.partition("/")
        # A name that is listed is no way out of the folder.
        if folder in ("data", "pictures") and name and (self._data / folder).is_dir():
            found = next((one for one in (self._data / folder).iterdir() if one.name == name), None)
            if found is not None and found.suffix in _KINDS:
                return Answer(found.read_bytes(), _KINDS[found.suffix])
        raise NotThere(f"there is no {path[:200]}")

    def _page(self) -> str:
        """The first page of a Space with what the viewer adds; what it may load is said in the header."""
        html = self._pages["index.html"].read_text(encoding="utf-8")
        start = html.index('<meta http-equiv="Content-Security-Policy"')
        html = html[:start] + html[html.index(">", start) + 2 :]
        style, script = _ADDED
        html = html.replace("</title>", f'</title>\n<link rel="stylesheet" href="{style}">', 1)
        starts = '<script src="app.js">'  # what is added is there when the page starts
        return html.replace(starts, f'<script src="{script}"></script>\n{starts}', 1)

    def _api(self, name: str, query: Mapping[str, str]) -> Answer:
        images, place = self.images, {one: query.get(one, "") for one in ("layer", "encoder")}
        if name == "about":
            return Answer.of(images.about())
        if name == "images":
            given = {one: query[one] for one in ("split", "label", "text", "order") if one in query}
            return Answer.of(images.rows(**place, concept=_given(query, "concept"), **given))
        if name == "examples":
            return Answer.of(self._examples(place, _number(query, "latent")))
        if name == "drawn":
            latent, row = _number(query, "latent"), _number(query, "row")
            drawn = images.drawn(place["layer"], place["encoder"], latent, row, query.get("part", "whole"))
            return Answer(drawn, _KINDS[".webp"])
        key = _given(query, "key")
        if name == "picture":
            return Answer(images.picture(key, **place), _KINDS[".png"])
        asked = {"key": key, **place, "concept": _given(query, "concept")}
        if name == "image":
            return Answer.of(images.image(**asked, encode=query.get("encode") == "1"))
        if name == "place":
            return Answer.of(images.at_place(**asked, cell=_number(query, "cell")))
        if name == "map":
            return Answer.of(images.map_of(**asked, latent=_number(query, "latent")))
        if name == "network":
            off = [one for one in query.get("off", "").split(",") if one]
            return Answer.of(images.network(**asked, off=[_number({"off": one}, "off") for one in off]))
        raise NotThere(f"there is no api/{name[:200]}")

    def _examples(self, place: Mapping[str, str], latent: int) -> list[dict[str, Any]]:
        from urllib.parse import urlencode

        rows = self.images.examples(place["layer"], place["encoder"], latent)
        for row in rows:
            for part in ("whole", "crop"):
                asked = {**place, "latent": latent, "row": row["row"], "part": part}
                row[part] = f"api/drawn?{urlencode(asked)}"
        return rows

    def post(self, path: str, query: Mapping[str, str], body: bytes) -> Answer:
        """A file to look at (`api/open`), or a note to write (`api/note`)."""
        if path == "api/open":
            return Answer.of({"key": self.images.open(body, query.get("name", ""), query.get("preparation", ""))})
        if path == "api/note":
            if len(body) > _LONGEST_NOTE:
                raise InputError(f"the note has {len(body)} bytes; {_LONGEST_NOTE} are the most")
            self._write(body)
            return Answer.of({"notes": self._notes(), "roles": self._roles()})
        raise NotThere(f"there is no {path[:200]} to send something to")

    def _write(self, body: bytes) -> Note:
        try:
            said = json.loads(body)
        except ValueError as error:
            raise InputError("a note is a JSON object") from error
        if not isinstance(said, dict) or not set(said) <= set(_OF_NOTE):
            raise InputError(f"a note is a JSON object with {', '.join(_OF_NOTE)}")
        said = {name: value for name, value in said.items() if value not in (None, "")}
        wrong = [
            name
            for name, value in said.items()
            if not isinstance(value, int if name in ("latent", "confidence") else str) or isinstance(value, bool)
        ]
        if wrong or "latent" not in said:
            raise InputError(f"the note's {(wrong or ['latent'])[0]} is missing or of a wrong type")
        rest = {name: said[name] for name in ("layer", "encoder", "concept", "label", "confidence") if name in said}
        with self._writing:
            return add_note(self.folder, said["latent"], said.get("text", ""), author=said.get("author", ""), **rest)

    def close(self) -> None:
        """Remove what was only written for this run."""
        if self._scratch is not None:
            self._scratch.cleanup()


def open_viewer(
    study: str | Path | None,
    *,
    settings: Sequence[str] = (),
    port: int | None = None,
    layer: str | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> LoopbackServer:
    """A server of a study's pages on this machine; it answers once `serve_forever` runs, and ends with `server_close`.

    Args:
        study: the study's YAML file, or its output folder, which does not say where images lie; None when the settings
            say everything.
        settings: as for `load_config`.
        port: where; None takes the first free one from 8765 on.
        layer: one that must be there.
        told: is told what takes long.

    Raises:
        InputError: no finished study of maps, no such layer, a port that is in use.

    Example:
        >>> server = open_viewer("study.yaml")   # doctest: +SKIP
        >>> print(server.address); server.serve_forever()   # doctest: +SKIP
    """
    folder, config = _opened(study, settings)
    viewer = Viewer(folder, config, str(study or folder))
    if layer is not None:
        _ = viewer.study.layer(layer)
    viewer.prepare(told)
    try:
        return _bound(viewer, port)
    except BaseException:
        viewer.close()
        raise


def _bound(viewer: Viewer, port: int | None) -> LoopbackServer:
    tried = [port] if port is not None else [*range(PORT, PORT + _TRIED), 0]
    for one in tried:
        try:
            return LoopbackServer(viewer, one)
        except OverflowError as error:
            raise InputError(f"port {one} is none; give one from 1024 to 65535, or 0 for any that is free") from error
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    raise InputError(f"port {port} is in use, or not for you; name another, or leave --port out")


def _opened(study: str | Path | None, settings: Sequence[str]) -> "tuple[Path, Callable[[], StudyConfig] | None]":
    """The study's folder, and what reads its settings.

    Of a YAML file only `output` is read here: what the rest means is read with the first image, since it needs
    libraries that take seconds to load.
    """
    path = None if study is None else local_path(study)
    if path is not None and path.is_dir():
        if settings:
            raise InputError("--set replaces settings of a file; name the study's YAML file")
        return path, None

    def read() -> "StudyConfig":
        from mammosae_plugin.config import StudyConfig, load_config

        found = load_config(path, settings)
        if not isinstance(found, StudyConfig):
            raise InputError(f"{study} is a study of embeddings")
        return found

    if path is None or any(one.partition("=")[0].strip(" \"'") == "output" for one in settings):
        from mammosae_plugin.config import load_config

        return load_config(path, settings).output, read
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"), where=str(path))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; name a study's YAML file or its output folder") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text file in UTF-8, let alone YAML; name the study's configuration") from error
    output = raw.get("output") if isinstance(raw, dict) else None
    if not isinstance(output, str):
        raise InputError(f"{path} names no output; name a study's YAML file or its output folder")
    return path.resolve().parent / local_path(output), read


def _stamps(files: Sequence[Path], below: Path) -> list[list[Any]]:
    """What changes with the files."""
    found = []
    for path in files:
        stat = path.stat()
        name = path.relative_to(below).as_posix() if path.is_relative_to(below) else path.name
        found.append([name, stat.st_size, stat.st_mtime_ns])
    return found


def _script(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _given(query: Mapping[str, str], name: str) -> str:
    value = query.get(name, "")
    if not value:
        raise InputError(f"{name} is missing")
    return value


def _number(query: Mapping[str, str], name: str) -> int:
    text = query.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise InputError(f"{name} is {text[:40]!r}; give a whole number")
    return int(text)
