"""Pulling a repository from the Hub into the cache, with every file checked against its checksum.

The hashes are the Hub's, and without the Hub those by which the cache names its files or that were noted at an earlier
pull (`hub_cache`).
"""

__all__ = ["CFG", "pull", "saes_in"]

import difflib
import shutil
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from mammosae_plugin.adapters.sources import parse_hub_name
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import TEMPORARY, atomic_path, local_path, read_json, sha256_of_file, write_json
from mammosae_plugin.hub.publishing import RepoKind, files_of_repo
from mammosae_plugin.hub_cache import FileHash, download_anew, named_by_cache
from mammosae_plugin.hub_requests import HubError, ask, explain

CFG = "cfg.json"
_DEFAULT_REVISION = constants.DEFAULT_REVISION
_KINDS: tuple[RepoKind, ...] = ("model", "dataset")


def pull(
    repo: str,
    *,
    revision: str | None = None,
    kind: RepoKind | None = None,
    folder: Path | None = None,
    offline: bool = False,
    token: str | None = None,
) -> Path:
    """Download SAEs or findings into huggingface_hub's cache, and check every file against its checksum.

    What is in the cache is not downloaded again. Where the Hub cannot be reached, the cache is used.

    Args:
        repo: `owner/name[@revision]`; or `hub://owner/name[@revision][/sae_id]`, of which one SAE is pulled.
        revision: branch, tag or commit.
        kind: "model" (SAEs) or "dataset" (findings); by default whichever exists under the name.
        folder: copy the files there too, laid out as in the repository.
        offline: use the cache alone, as with HF_HUB_OFFLINE=1.
        token: of the Hub; by default that of `hf auth login` or HF_TOKEN.

    Returns:
        The folder with the files: in the cache, or `folder`; of an SAE its own folder.

    Raises:
        HubError: the Hub refuses, or cannot be reached while the cache does not have it.
        InputError: a name that cannot be, two kinds of that name, no such SAE, a damaged file, or another file in the
            way in `folder`.
    """
    name, revision, sae_id = parse_hub_name(repo, revision=revision)
    offline = offline or constants.HF_HUB_OFFLINE
    snapshot, kind = _snapshot(name, revision, kind, sae_id, offline, token)
    hashes = _hashes(snapshot, name, kind, offline, token)
    if sae_id is not None:
        hashes = _of_sae(hashes, sae_id, name)
    for path, expected in hashes.items():
        _verify(snapshot, path, expected, name, kind, offline, token)
    if any(not (snapshot / path).is_symlink() for path in hashes) and not offline:
        _note_checked(snapshot, hashes)
    if folder is not None:
        for path in hashes:
            _copy(snapshot / path, local_path(folder) / path)
        snapshot = local_path(folder)
    return snapshot / sae_id if sae_id is not None else snapshot


def saes_in(folder: Path) -> tuple[str, ...]:
    """The ids of the SAEs in a folder that was pulled, "." for one that is itself an SAE's."""
    return tuple(sorted(path.parent.relative_to(folder).as_posix() for path in folder.rglob(CFG)))


def _snapshot(
    name: str, revision: str | None, kind: RepoKind | None, sae_id: str | None, offline: bool, token: str | None
) -> tuple[Path, RepoKind]:
    """The folder in the cache, and the kind of repository."""
    at = f"{name} at revision {revision}" if revision else name

    def download(one: RepoKind, cached: bool) -> Path:
        return Path(
            snapshot_download(
                name,
                repo_type=one,
                revision=revision,
                local_files_only=cached,
                allow_patterns=None if sae_id is None else [f"{sae_id}/*"],
                token=token,
            )
        )

    lost: Exception | None = None
    if not offline:
        try:
            one = kind or _kind_on_hub(name, token)
            if sae_id is not None:  # huggingface_hub would warn that it finds no file, and go on
                _of_sae(files_of_repo(HfApi(token=token), name, one, revision or _DEFAULT_REVISION), sae_id, name)
            return ask(lambda: download(one, cached=False), about=at, doing="pull"), one
        except HubError as error:
            if not error.passing:
                raise
            lost = error
    found: list[tuple[Path, RepoKind]] = []
    for one in _KINDS if kind is None else (kind,):
        try:
            found.append((download(one, cached=True), one))
        except LocalEntryNotFoundError:
            continue
        except Exception as error:
            raise explain(error, about=at, doing="pull") from error
    if len(found) > 1:
        raise _two_kinds(name)
    if not found:
        if lost is not None:
            raise lost
        raise InputError(f"{at} is not in the cache; pull it once with the Hub in reach")
    return found[0]


def _kind_on_hub(name: str, token: str | None) -> RepoKind:
    api = HfApi(token=token)

    def exists(kind: RepoKind) -> bool:
        try:
            api.repo_info(name, repo_type=kind)
        except RepositoryNotFoundError:
            return False
        return True

    kinds = [kind for kind in _KINDS if ask(lambda kind=kind: exists(kind), about=name, doing="read")]  # type: ignore[misc]
    if len(kinds) > 1:
        raise _two_kinds(name)
    if not kinds:
        raise HubError(
            f"the Hub has no model or dataset {name}, or it is private; check the name, or log in with `hf auth login`"
        )
    return kinds[0]


def _two_kinds(name: str) -> InputError:
    return InputError(f"{name} is both a model and a dataset; say which (--kind model, --kind dataset)")


def _hashes(snapshot: Path, name: str, kind: RepoKind, offline: bool, token: str | None) -> dict[str, FileHash | None]:
    """The hash of every file: the Hub's list, or without the Hub what the cache is named by; None where nothing is."""
    if not offline:
        try:
            return dict(files_of_repo(HfApi(token=token), name, kind, snapshot.name))
        except HubError as error:
            if not error.passing:
                raise
    files = (path for path in snapshot.rglob("*") if not path.is_dir() and not path.name.startswith(TEMPORARY))
    return {path.relative_to(snapshot).as_posix(): named_by_cache(path) for path in files} | _recorded(snapshot)


def _record_of(snapshot: Path) -> Path:
    """The hashes of a commit's files that were checked with the Hub: without links the cache does not know them."""
    return snapshot.parent.parent / "mammosae" / f"{snapshot.name}.json"


def _recorded(snapshot: Path) -> dict[str, FileHash]:
    record = _record_of(snapshot)
    found = read_json(record) if record.exists() else {}
    try:
        return {path: FileHash(*hashes) for path, hashes in found.items()}
    except (AttributeError, TypeError) as error:
        raise InputError(f"{record} is damaged; delete it, and pull again") from error


def _note_checked(snapshot: Path, hashes: Mapping[str, FileHash | None]) -> None:
    found = _recorded(snapshot) | {path: expected for path, expected in hashes.items() if expected is not None}
    write_json(_record_of(snapshot), {path: [one.sha256, one.git] for path, one in sorted(found.items())})


def _of_sae(hashes: Mapping[str, FileHash | None], sae_id: str, name: str) -> dict[str, FileHash | None]:
    found = {path: expected for path, expected in hashes.items() if path.startswith(f"{sae_id}/")}
    if f"{sae_id}/{CFG}" not in found:
        ids = [path.removesuffix(f"/{CFG}") for path in hashes if path.endswith(f"/{CFG}")]
        near = difflib.get_close_matches(sae_id, ids, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(ids[:5])}" if ids else ""
        raise InputError(f"{name} has no SAE {sae_id}{hint}")
    return found


def _verify(
    snapshot: Path, path: str, expected: FileHash | None, name: str, kind: RepoKind, offline: bool, token: str | None
) -> None:
    if expected is None or ((snapshot / path).is_file() and expected.is_of(snapshot / path)):
        return
    if offline:
        raise InputError(f"{path} of {name} is damaged in the cache; pull it again with the Hub in reach")

    def download() -> None:
        hf_hub_download(name, path, repo_type=kind, revision=snapshot.name, force_download=True, token=token)

    download_anew(snapshot / path, lambda: ask(download, about=name, doing="pull"))
    if not expected.is_of(snapshot / path):
        raise InputError(f"{path} of {name} does not have the checksum that the Hub states; pull it again later")


def _copy(source: Path, target: Path) -> None:
    if target.exists():
        if not target.is_file() or sha256_of_file(target) != sha256_of_file(source):
            raise InputError(f"{target} holds something else; name another folder, or delete it")
        return
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
