"""Where a checkpoint is read from: a local path, or a file of a Hugging Face repo.

Wherever this package takes a checkpoint, a string of the form `hub://owner/name[@revision]/path/in/repo` names a file
on the Hub, or an SAE in SAELens's format by its id; `hf://` means the same. A revision that holds a slash is written
with `%2F`, as in `hub://owner/name@refs%2Fpr%2F1/sae.pt`.
"""

__all__ = [
    "CLASSIFIER_FILES", "classifier_weights", "find_beside", "find_source", "HUB_SCHEME", "HUB_SCHEMES", "is_hub_name",
    "is_on_hub", "origin_of", "parse_hub_name", "Source", "URLS",
]  # fmt: skip

import difflib
import logging
import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from mammosae_plugin.errors import InputError
from mammosae_plugin.file_kinds import CHECKPOINT_SUFFIXES
from mammosae_plugin.files import local_path, sha256_of_file
from mammosae_plugin.hub_cache import FileHash, download_anew, named_by_cache
from mammosae_plugin.hub_requests import REFUSED_LOGIN, REPOSITORY, HubError, again, explain, refused_login

logger = logging.getLogger(__name__)

HUB_SCHEMES = ("hub://", "hf://")
HUB_SCHEME = HUB_SCHEMES[0]
URLS = {"model": "", "dataset": "datasets/", "space": "spaces/"}
"""What stands before a repository's name in its address, by its kind."""

_REPO = rf"(?P<repo>{REPOSITORY.pattern})"
_HUB_URL = re.compile(rf"(?:hub|hf)://{_REPO}(?:@(?P<revision>[^/\s]+))?(?:/(?P<path>\S.*?))?/?")
_HUB_NAME = re.compile(rf"{_REPO}(?:@(?P<revision>\S+))?(?P<path>)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine, and where it came from.

    Attributes:
        path: the local file, or the local folder where a folder was asked for.
        name: its path inside the repo; for a local one the last part of its path.
        repo: the Hub's repo, None for a local path.
        revision: the branch, tag or commit that was asked for, None for the default branch.
        commit: the commit that this was when it was read, 40 hexadecimal digits; None where it is not known.
    """

    path: Path
    name: str
    repo: str | None = None
    revision: str | None = None
    commit: str | None = None

    def hub_record(self) -> dict[str, str | None] | None:
        """Repo, revision as asked, and commit, as plain JSON; None for a local path."""
        if self.repo is None:
            return None
        return {"repo": self.repo, "revision": self.revision, "commit": self.commit}

    def published(self) -> dict[str, str | None] | None:
        """Repo, revision (the commit, where it is known) and id of what is on the Hub; None for a local path."""
        return (
            None
            if self.repo is None
            else {"repo": self.repo, "revision": self.commit or self.revision, "id": self.name}
        )


def is_on_hub(source: str | os.PathLike[str]) -> bool:
    """Whether a string names a Hub repo or a file in one: `hub://...`, or owner/name where no such path exists.

    A `Path` never does, nor does a name that ends like a checkpoint's: "runs/sae.pt" is a path, there or not.
    """
    if not isinstance(source, str):
        return False
    if source.startswith(HUB_SCHEMES):
        return True
    is_repo = REPOSITORY.fullmatch(source) is not None and PurePosixPath(source).suffix not in CHECKPOINT_SUFFIXES
    return is_repo and not local_path(source).exists()


def find_source(
    source: str | os.PathLike[str],
    filename: str | None = None,
    *,
    revision: str | None = None,
    default: str | None = None,
    layouts: Sequence[Sequence[str]] = (),
    force_download: bool = False,
) -> Source:
    """Find a checkpoint, downloading it into huggingface_hub's cache where it lies on the Hub.

    Args:
        source: a local path; a Hub repo ("owner/name", where no such path exists); or "hub://owner/name[@revision]/path".
        filename: the file inside a local folder or a repo.
        revision: branch, tag or commit; only for the Hub.
        default: the file that is meant where neither `source` nor `filename` names one.
        layouts: files that make up a folder, in one or more ways: where the name in a repo is not that of a checkpoint
            file (.pt, .pth, .tar, .bin, .ckpt, .safetensors), the first of them whose files are there are read from the
            folder of that name; a local folder with none of them and one checkpoint file is that file. Empty: a file
            is meant.
        force_download: download again even where the file is cached.

    Returns:
        The file, or the folder that holds the files of a layout. A local path is not looked at: its reader says what is
        wrong.

    Raises:
        InputError: the string is no path and no repo; the repo, revision or file does not exist or may not be read; the
            Hub cannot be reached and the file is not cached; or arguments that contradict each other.
    """
    if not is_on_hub(source):
        return _find_local(source, filename, revision, default, layouts)
    repo, revision, url_path = parse_hub_name(str(source), revision=revision)
    if filename is not None and url_path is not None and filename != url_path:
        raise InputError(f"{source} names the file {url_path}, but {filename!r} is given too; name one")
    name = url_path or filename or default
    if name is None:
        start = "does not exist" if str(source) == repo else "names a repo but no file in it"
        raise InputError(f"{source} {start}; name a file of a Hugging Face repo as hub://{repo}/path/in/repo")
    if layouts and PurePosixPath(name).suffix not in CHECKPOINT_SUFFIXES:
        paths = [
            _download(repo, f"{name}/{file}", revision=revision, force_download=force_download, asked=str(source))
            for file in _layout_there(repo, name, layouts, revision)
        ]
        path = paths[0].parent
    else:
        path = _download(repo, name, revision=revision, force_download=force_download, asked=str(source))
    return Source(path=path, name=name, repo=repo, revision=revision, commit=_commit_of(path, revision))


def _layout_there(repo: str, folder: str, layouts: Sequence[Sequence[str]], revision: str | None) -> Sequence[str]:
    """The files that make up a folder of a repo: told by its list of files or, offline, by the cache."""
    if len(layouts) == 1:
        return layouts[0]
    try:
        listed = set(HfApi().list_repo_files(repo, revision=revision))
    except Exception:  # the download says what is wrong, or finds it in the cache
        listed = {
            f"{folder}/{name}"
            for layout in layouts
            for name in layout
            if isinstance(try_to_load_from_cache(repo, f"{folder}/{name}", revision=revision), str)
        }
    return next((layout for layout in layouts if all(f"{folder}/{name}" in listed for name in layout)), layouts[0])


def find_beside(source: Source, name: str) -> Path | None:
    """A file beside one that was found on the Hub, such as "config.json" or "../config.json"; None where there is none.

    Raises:
        InputError: the file is there and cannot be had.
    """
    assert source.repo is not None
    at = PurePosixPath(source.name)
    wanted = posixpath.normpath((at if source.path.is_dir() else at.parent).joinpath(name).as_posix())
    if wanted.startswith(".."):
        return None
    revision = source.commit or source.revision
    try:
        return _download(source.repo, wanted, revision=revision, force_download=False, asked=HUB_SCHEME)
    except InputError as error:
        if isinstance(error.__cause__, EntryNotFoundError | LocalEntryNotFoundError):
            return None
        raise


def _find_local(
    source: str | os.PathLike[str],
    filename: str | None,
    revision: str | None,
    default: str | None,
    layouts: Sequence[Sequence[str]],
) -> Source:
    path = local_path(source)
    if isinstance(source, str) and not path.exists():
        raise InputError(f"{source} does not exist, and is no name of a Hugging Face repo (owner/name)")
    if revision is not None:
        raise InputError(f"revision {revision!r} means nothing for the local path {path}; leave it out")
    if filename is not None and path.is_file():
        raise InputError(f"{path} is a file, in which {filename!r} cannot lie; give its folder, or leave filename out")
    if filename is not None:
        path = path / filename
    elif default is not None and path.is_dir() and (path / default).exists():
        path = path / default
    elif layouts and path.is_dir() and not any(all((path / name).is_file() for name in files) for files in layouts):
        inside = [file for file in path.iterdir() if file.suffix in CHECKPOINT_SUFFIXES and file.is_file()]
        path = inside[0] if len(inside) == 1 else path
    return Source(path=path, name=path.name)


def is_hub_name(text: str) -> bool:
    """Whether a string is for `parse_hub_name`: `hub://...`, or of the form owner/name[@revision]."""
    return text.startswith(HUB_SCHEMES) or _HUB_NAME.fullmatch(text) is not None


def parse_hub_name(source: str, *, revision: str | None = None) -> tuple[str, str | None, str | None]:
    """(repo, revision, path in the repo) of `hub://owner/name[@revision][/path]` or of `owner/name[@revision]`.

    Args:
        source: the name.
        revision: the one that was given beside the name.

    Raises:
        InputError: neither form, or two revisions.
    """
    if source.startswith(HUB_SCHEMES):
        match = _HUB_URL.fullmatch(source)
        if match is None or match["repo"].split("/")[0] in ("datasets", "spaces", "models"):
            raise InputError(f"{source} is not of the form hub://owner/name[@revision]/path/in/repo, of a model repo")
    else:
        match = _HUB_NAME.fullmatch(source)
        if match is None:
            raise InputError(
                f"{source!r} cannot be the name of a Hub repository; give it as owner/name, or owner/name@revision"
            )
    named = match["revision"] and unquote(match["revision"])
    if revision is not None and named is not None and revision != named:
        raise InputError(f"{source} names the revision {named}, but revision {revision} is given too; name one")
    return match["repo"], revision if named is None else named, match["path"] or None


def _download(repo: str, name: str, *, revision: str | None, force_download: bool, asked: str) -> Path:
    at = f" at revision {revision}" if revision is not None else ""
    # What the user wrote may have been meant as a path, which is then the first thing to say.
    start = "" if asked.startswith(HUB_SCHEMES) else f"{asked} is no local path, and "

    if force_download and constants.HF_HUB_OFFLINE:
        raise InputError(f"{name} of {repo} cannot be downloaded again: HF_HUB_OFFLINE is set; unset it")

    def download(force: bool) -> Path:
        return Path(again(lambda: hf_hub_download(repo, name, revision=revision, force_download=force), final=_FINAL))

    def reason(error: Exception) -> str:
        return _reason(error, repo, name, at, revision)

    try:
        path = download(force_download)
    except Exception as error:
        raise InputError(start + reason(error)) from error
    if not _is_damaged(repo, name, path):
        return path
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"{name} of {repo} is damaged in the cache; read it once with the Hub in reach")
    logger.warning("%s of %s is damaged in the cache; it is downloaded again", name, repo)
    try:
        download_anew(path, lambda: download(True))
    except Exception as error:
        raise InputError(
            f"{name} of {repo} is damaged in the cache, and could not be had again: {reason(error)}"
        ) from error
    if _is_damaged(repo, name, path):
        raise InputError(f"{name} of {repo} does not have the checksum that the Hub states; try again later")
    return path


# Before it says that a file is not in the cache, huggingface_hub has tried several times to reach the Hub.
_FINAL = (LocalEntryNotFoundError,)


def _reason(error: Exception, repo: str, name: str, at: str, revision: str | None) -> str:
    """Why a file could not be had, and what to do."""
    if refused_login(error):
        return REFUSED_LOGIN.format(repo)
    if isinstance(error, GatedRepoError):
        return f"the Hub's repo {repo} asks for its terms to be accepted; do so on its page, then `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return f"the Hub has no repo {repo}, or it is private; check the name, or log in with `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"the Hub's repo {repo} has no revision {revision}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it to reach the Hub"
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"{name} of {repo}{at} is not in the cache and the Hub cannot be reached; go online, or give a local file"
        )
    if isinstance(error, EntryNotFoundError):
        return f"the Hub's repo {repo}{at} has no file {name}{_nearest(repo, name, revision)}"
    if isinstance(error, HFValidationError):
        return f"{repo} cannot be a Hub repo; give it as owner/name"
    told = explain(error, about=repo, doing="read")
    if isinstance(told, HubError):
        return str(told)
    what = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    return f"{name} could not be read from {repo}{at}: {what}"


_compared: set[tuple[Path, int, int]] = set()  # with their hash, once per process: path, size, time of change


def _is_damaged(repo: str, name: str, path: Path) -> bool:
    """Whether a file of the cache is not what the Hub has, as far as that can be known."""
    stat = path.stat()
    key = path, stat.st_size, stat.st_mtime_ns
    if key in _compared:
        return False
    expected = named_by_cache(path) or _stated(repo, name, path)
    if expected is None:
        return False
    if not expected.is_of(path):
        return True
    _compared.add(key)
    return False


def _stated(repo: str, name: str, path: Path) -> FileHash | None:
    """The hash that the Hub states, for a cache without links; None where nobody can be asked."""
    commit = _commit_of(path, None)
    if commit is None or constants.HF_HUB_OFFLINE:
        return None
    try:
        found = HfApi().get_paths_info(repo, [name], revision=commit)
    except Exception:  # the file is there, and whether it is whole its reader will say
        return None
    entry = next((entry for entry in found if isinstance(entry, RepoFile)), None)
    return None if entry is None else FileHash(entry.lfs.sha256 if entry.lfs is not None else None, entry.blob_id)


def _nearest(repo: str, name: str, revision: str | None) -> str:
    """ "; did you mean ...?", from the repo's list of files, or nothing where that cannot be had."""
    try:
        files = HfApi().list_repo_files(repo, revision=revision)
    except Exception:  # only an addition to an error that is reported anyway
        return ""
    by_last_part = [file for file in files if PurePosixPath(file).name == PurePosixPath(name).name]
    near = by_last_part or difflib.get_close_matches(name, files, n=3)
    return f"; did you mean {', '.join(near[:3])}?" if near else ""


def _commit_of(path: Path, revision: str | None) -> str | None:
    """The commit in huggingface_hub's documented cache layout, .../snapshots/<commit>/<path in the repo>."""
    parts = path.parts
    for before, part in zip(reversed(parts[:-1]), reversed(parts[1:]), strict=True):
        if before == "snapshots" and _COMMIT.fullmatch(part):
            return part
    return revision if revision is not None and _COMMIT.fullmatch(revision) else None


CLASSIFIER_FILES = ("config.json", "model.safetensors")
"""What makes up a classifier's folder, the form in which it lies on the Hub: the header as JSON, and the tensors."""


def classifier_weights(path: Path) -> Path:
    """The file that holds the weights of a classifier."""
    return path / CLASSIFIER_FILES[1] if path.is_dir() else path


def origin_of(sources: Sequence[Source]) -> dict[str, Any]:
    """The part of a classifier's `source` that says which files were read: plain JSON."""
    origin: dict[str, Any] = {
        "files": [source.name for source in sources],
        "sha256": [sha256_of_file(classifier_weights(source.path)) for source in sources],
    }
    if any(source.repo for source in sources):
        origin["hub"] = [source.hub_record() for source in sources]
    return origin
