"""One upload to the Hub: staged, checked, described, and sent as one commit.

    publication = prepare(folder, "owner/name", kind="model", contents="sae", context=context, tag="v1")
    print(publication.describe())   # nothing has been sent
    publication.send()

The repository is before or after, never between: files go to the Hub's store first, and one commit, on the parent that
was looked at, makes all of them appear. What is there already is not overwritten, unless `replace` says so.
"""

__all__ = [
    "Change", "file_of_repo", "files_of_repo", "kept_until_staged", "look_at_head", "prepare", "Publication",
    "Published", "publishing", "recorder", "RepoKind",
]  # fmt: skip

import contextlib
import dataclasses
import functools
import inspect
import json
import logging
import os
import re
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Literal, ParamSpec, cast

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard, hf_hub_download
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from mammosae_plugin.adapters.sources import URLS
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, sha256_of_file, write_json, write_text
from mammosae_plugin.findings.about import RECORD, Part, published_places
from mammosae_plugin.hub.card_parts import join_cards
from mammosae_plugin.hub.scratch import Scratch
from mammosae_plugin.hub_cache import FileHash
from mammosae_plugin.hub_requests import REPOSITORY, HubError, ask
from mammosae_plugin.schema.pages import PICTURE_FILE

if TYPE_CHECKING:
    from mammosae_plugin.privacy.context import PrivacyContext
    from mammosae_plugin.privacy.guard import StagedFile

logger = logging.getLogger(__name__)

P = ParamSpec("P")

RepoKind = Literal["model", "dataset", "space"]
Change = Literal["new", "same", "replaced", "removed"]

_TAG = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
_REMOVED: Mapping[str, re.Pattern[str]] = {
    "sae": re.compile(r"(?!)"),  # a repository may hold SAEs of several uploads
    "model": re.compile(r"(?!)"),  # and classifiers
    "findings": re.compile(r"\w+/train-\d{5}-of-\d{5}\.parquet|figures/[^/]+\.png|" + PICTURE_FILE),
    "space": re.compile(r"data/[^/]+\.js|" + PICTURE_FILE),
}
"""Of the files that are there, those that went out with an earlier upload of the same kind."""
_CARD, _LONGEST_COMPLAINT = "README.md", 200
_LISTING = 1  # huggingface_hub asks for a page of a list again by itself


@dataclass(frozen=True)
class Published:
    """What is on the Hub now.

    Attributes:
        url: the page of the repository.
        commit: the commit that holds everything that was staged, 40 hexadecimal digits.
        tag: its tag, None if none was asked for.
        changed: whether a commit was made; False where all of it was there already.
        repo_id: owner/name.
    """

    url: str
    commit: str
    tag: str | None
    changed: bool = True
    repo_id: str = ""

    def as_text(self) -> str:
        """One line for people."""
        at = f" ({self.tag})" if self.tag else ""
        what = "published" if self.changed else "everything was there already"
        return f"{what}: {self.url} at commit {self.commit}{at}"


@dataclass(frozen=True)
class Publication:
    """One upload, staged and checked, not yet sent.

    Attributes:
        folder: the staged folder.
        repo_id: owner/name.
        kind: model, dataset or space.
        files: path, size and SHA-256 of every staged file.
        tag: the name to give to the published state, None for none.
        private: whether a repository that is made is private.
        message: the commit's message.
        replace: whether files that are there otherwise may be overwritten.
        parent: the commit that was there when it was prepared; None for a repository that does not exist.
        changes: path -> what becomes of it.
        visibility: of the repository as it is, or as it will be made.
        landed: the commit that holds all of it already, None if there is none.
        tagged: whether the tag is there already.
        space_sdk: the kind of a Space.
        card_changes: what becomes of the parts of a card that is there, a line each.
        on_sent: is told once it was sent.
        scratch: where it was staged, if that goes when the publication does.
    """

    folder: Path
    repo_id: str
    kind: RepoKind
    files: "tuple[StagedFile, ...]"
    tag: str | None
    private: bool
    message: str
    replace: bool
    parent: str | None
    changes: Mapping[str, Change] = field(default_factory=dict)
    visibility: str = "private"
    landed: str | None = None
    tagged: bool = False
    space_sdk: str | None = None
    card_changes: tuple[str, ...] = ()
    on_sent: Callable[[Published], None] | None = field(default=None, compare=False, repr=False)
    scratch: Scratch | None = field(default=None, compare=False, repr=False)

    def describe(self) -> str:
        """Exactly what would go out: repository, visibility, tag, every file with size and SHA-256, what is there."""
        state = "to be made" if self.parent is None else f"is there, at commit {self.parent}"
        tag = "none" if self.tag is None else f"{self.tag} ({'is there' if self.tagged else 'new'})"
        lines = [
            f"{self.kind} repository {self.repo_id}: {self.visibility}, {state}",
            f"tag: {tag}",
            f"commit message: {self.message}",
        ]
        width = max((len(path) for path in self.changes), default=0)
        by_path = {file.path: file for file in self.files}
        for path, change in sorted(self.changes.items()):
            facts = f"{by_path[path].size:>12,} bytes  sha256 {by_path[path].sha256}" if path in by_path else ""
            lines.append(f"  {change:<8}  {path:<{width}}  {facts}".rstrip())
        sent = [file for file in self.files if self.changes[file.path] != "same"]
        lines += self.card_changes
        if self.landed is not None:
            lines.append(f"All of it is there already, at commit {self.landed}.")
        else:
            lines.append(f"{len(sent)} of {len(self.files)} files to send, {sum(file.size for file in sent):,} bytes.")
        return "\n".join(lines)

    def send(self, *, token: str | None = None) -> Published:
        """Send it: one commit on the parent that was seen, then the tag.

        What was lost on the way is sent again where that can help. A run that ended between commit and tag is completed
        by preparing and sending the same again.

        Args:
            token: of the Hub; by default that of `hf auth login` or HF_TOKEN.

        Raises:
            HubError: the Hub refuses, or cannot be reached; nothing was written, unless the message says so.
            InputError: the staged files, or the repository, are no longer what was prepared.
        """
        self._check_files()
        api = HfApi(token=token)
        ask(api.whoami, about=self.repo_id, doing="publish", writing=True)
        commit = self.landed
        if commit is None:
            parent = self.parent if self.parent is not None else self._make_repo(api)
            commit = self._commit(api, parent)
        if self.tag is not None and not self.tagged:
            self._set_tag(api, commit)
        url = f"{api.endpoint}/{URLS[self.kind]}{self.repo_id}"
        published = Published(url, commit, self.tag, changed=self.landed is None, repo_id=self.repo_id)
        if self.on_sent is not None:
            self.on_sent(published)
        return published

    def _check_files(self) -> None:
        for file in self.files:
            path = self.folder / file.path
            if not path.is_file() or sha256_of_file(path) != file.sha256:
                raise InputError(f"{path} has changed since it was checked; prepare the publication again")

    def _make_repo(self, api: HfApi) -> str:
        """Make the repository; its first commit, which the Hub makes."""

        def create() -> None:
            try:
                api.create_repo(
                    self.repo_id, repo_type=self.kind, private=self.private, space_sdk=self.space_sdk, exist_ok=False
                )
            except Exception as error:
                if getattr(getattr(error, "response", None), "status_code", None) != 409:
                    raise  # 409: it was made by a request whose answer was lost, or by somebody else; see below

        ask(create, about=self.repo_id, doing="make", writing=True)
        made = _look(api, self.repo_id, self.kind, None)
        if made is None:
            raise HubError(f"{self.repo_id} was made, but the Hub does not show it; run the same command again")
        if not made.untouched:
            raise InputError(f"{self.repo_id} has been made by somebody else meanwhile; run again to see what is there")
        if self.private and not made.private:
            raise InputError(f"{self.repo_id} is public, though a private one was asked for; delete it or allow public")
        return made.commit

    def _commit(self, api: HfApi, parent: str) -> str:
        additions = [
            CommitOperationAdd(file.path, self.folder / file.path)
            for file in self.files
            if self.changes[file.path] != "same"
        ]
        removals = [CommitOperationDelete(path) for path, change in self.changes.items() if change == "removed"]

        def upload() -> None:
            api.preupload_lfs_files(self.repo_id, additions, repo_type=self.kind, free_memory=False)

        def commit() -> str:
            try:
                info = api.create_commit(
                    self.repo_id,
                    [*additions, *removals],
                    commit_message=self.message,
                    repo_type=self.kind,
                    parent_commit=parent,
                )
            except Exception:
                # A commit whose answer was lost is there, and the same request would be refused: look.
                landed = self._landed_since(api, parent)
                if landed is None:
                    raise
                return landed
            return str(info.oid)

        ask(upload, about=self.repo_id, doing="send files to", attempts=1, writing=True)
        return ask(commit, about=self.repo_id, doing="publish", writing=True)

    def _landed_since(self, api: HfApi, parent: str) -> str | None:
        try:
            there = _look(api, self.repo_id, self.kind, None, attempts=1)
        except HubError:
            return None
        if there is None or there.commit == parent:
            return None
        changes = _changes(self.folder, self.files, there.files)
        gone = all(path not in there.files for path, change in self.changes.items() if change == "removed")
        return there.commit if gone and set(changes.values()) <= {"same"} else None

    def _set_tag(self, api: HfApi, commit: str) -> None:
        assert self.tag is not None
        tag = self.tag
        try:
            ask(
                lambda: api.create_tag(self.repo_id, tag=tag, revision=commit, repo_type=self.kind, exist_ok=True),
                about=self.repo_id,
                doing="tag",
                writing=True,
            )
            target = _tags(api, self.repo_id, self.kind).get(tag)
        except HubError as error:
            raise HubError(
                f"published as commit {commit}, but without the tag {tag}: {error}; the same command adds it",
                status=error.status,
                passing=error.passing,
            ) from error
        if target != commit:
            raise InputError(
                f"published as commit {commit}, but {tag} names {target} of {self.repo_id}; name a new tag"
            )


def prepare(
    folder: Path,
    repo_id: str,
    *,
    kind: RepoKind,
    contents: str,
    context: "PrivacyContext",
    tag: str | None = None,
    private: bool = True,
    replace: bool = False,
    message: str = "Publish with mammosae",
    space_sdk: str | None = None,
    token: str | None = None,
    related: Collection[str] = (),
    functions: Collection[str] = (),
    on_sent: Callable[[Published], None] | None = None,
) -> Publication:
    """Check a staged folder, and look at what the repository holds. Nothing is sent.

    Args:
        folder: what to upload, as it is to lie in the repository.
        repo_id: owner/name.
        kind: of the repository.
        contents: what it is, by which the privacy guard knows its policy: sae, model, findings or space.
        context: what the guard must not let out.
        tag: a name for the published state; a tag that is there is never moved.
        private: make a new repository private. A repository that is public is refused then.
        replace: overwrite files that are there with another content; in a dataset or Space, also remove files of such
            an upload that are no longer part of it. What people wrote into its card stays (`hub.card_parts`).
        message: of the commit.
        space_sdk: of a new Space, such as "static".
        token: of the Hub; by default that of `hf auth login` or HF_TOKEN.
        related: names of other repositories that the card links to; like `repo_id` they are public.
        functions: those that may be called to make the classifiers' networks, as for `load_classifier`.
        on_sent: is told once it was sent.

    Raises:
        PrivacyError: something in the folder must not get out.
        HubError: the Hub refuses, or cannot be reached.
        InputError: a name that cannot be; a card that the Hub would not accept, for a licence that it does not know;
            content or a tag in the way; a public repository where private was asked for.
    """
    from mammosae_plugin.hub.guard import check_staged

    if not REPOSITORY.fullmatch(repo_id):
        raise InputError(f"{repo_id!r} is no name of a Hub repository; give it as owner/name")
    if tag is not None and not _TAG.fullmatch(tag):
        raise InputError(f"{tag!r} cannot be a tag; use letters, digits, dots, dashes, such as v1")
    folder = local_path(folder)
    api = HfApi(token=token)
    before, card_changes = _join_cards(api, folder / _CARD, repo_id, kind, token) if replace else (None, ())
    said = {"the commit message": message, "the tag": tag or ""}
    files = check_staged(folder, contents, context, repo_id=repo_id, said=said, related=related, functions=functions)
    there = _look(api, repo_id, kind, tag)
    if before is not None and (there is None or there.commit != before):
        raise InputError(f"{repo_id} was changed while its card was read; run again to see what is there now")
    _require_good_card(folder / _CARD, repo_id, kind)
    visibility = "private" if private else "public"
    if there is None:
        return Publication(
            folder, repo_id, kind, files, tag, private, message, replace, None,
            changes={file.path: "new" for file in files}, visibility=visibility, space_sdk=space_sdk, on_sent=on_sent,
        )  # fmt: skip
    if private and not there.private:
        raise InputError(f"{repo_id} is public; allow that (--public, private=False), or name another repository")
    changes = _changes(folder, files, there.files)
    tagged = there.tag_commit is not None
    if there.tag_commit is not None:
        landed: str | None = there.tag_commit
        if set(_changes(folder, files, there.tag_files).values()) != {"same"}:
            raise InputError(f"{repo_id} has a tag {tag} of something else already; tags are not moved, name a new one")
        changes = dict.fromkeys(changes, "same")
    else:
        if replace:
            changes |= dict.fromkeys(_no_longer_part(contents, files, there.files), "removed")
        landed = there.commit if set(changes.values()) == {"same"} else None
    in_the_way = sorted(path for path, change in changes.items() if change == "replaced")
    if in_the_way and not replace and not there.untouched:
        shown = ", ".join(in_the_way[:3]) + (f" and {len(in_the_way) - 3} more" if len(in_the_way) > 3 else "")
        raise InputError(f"{repo_id} holds another {shown}; overwrite with --replace, or name another repository")
    if ".gitignore" in there.files:
        raise InputError(
            f"{repo_id} has a .gitignore, by which the Hub leaves files out silently; delete it there first"
        )
    return Publication(
        folder, repo_id, kind, files, tag, private, message, replace, there.commit,
        changes=changes, visibility="private" if there.private else "public", landed=landed, tagged=tagged,
        space_sdk=space_sdk, card_changes=card_changes if changes.get(_CARD) == "replaced" else (), on_sent=on_sent,
    )  # fmt: skip


def _join_cards(
    api: HfApi, card: Path, repo_id: str, kind: RepoKind, token: str | None
) -> tuple[str | None, tuple[str, ...]]:
    """Take over what people wrote into the card that is there; gives its commit, and a line per change."""
    there = _look(api, repo_id, kind, None)
    if there is None or there.untouched or _CARD not in there.files or not card.is_file():
        return None, ()
    file = file_of_repo(repo_id, _CARD, kind, there.commit, token)
    joined = join_cards(file.read_text(encoding="utf-8", errors="replace"), card.read_text(encoding="utf-8"))
    write_text(card, joined.text)
    return there.commit, joined.changes


def _require_good_card(card: Path, repo_id: str, kind: RepoKind) -> None:
    """Let the Hub check the card as it does at a commit, which is too late: a new repository would stay empty."""
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8")
    try:
        ask(lambda: RepoCard(text).validate(repo_type=kind), about=repo_id, doing="check the card of")
    except HubError as error:
        if error.status != HTTPStatus.BAD_REQUEST:
            raise
        raise InputError(
            f"the Hub would not accept the card of {repo_id}: {_complaint(str(error.__cause__))}; a licence is named "
            "as the Hub lists them (such as mit or cc-by-nc-sa-4.0; other for any that it does not list)"
        ) from error


def _complaint(said: str) -> str:
    """What the Hub objects to, without the list of all that it knows."""
    with contextlib.suppress(ValueError, KeyError, TypeError):  # where it is plain text
        said = "; ".join(str(error["message"]) for error in json.loads(said)["errors"])
    words = " ".join(said.split())
    return words if len(words) <= _LONGEST_COMPLAINT else words[:_LONGEST_COMPLAINT] + "…"


@dataclass(frozen=True)
class _There:
    """A repository as it is.

    Attributes:
        commit: the head of its main branch.
        private: whether it is.
        files: path -> hash of every file at the head.
        untouched: whether the Hub made it and nobody has written to it.
        tag_commit: the commit of the tag that was asked for, None if there is none.
        tag_files: path -> hash of every file at that tag.
    """

    commit: str
    private: bool
    files: Mapping[str, "FileHash"]
    untouched: bool
    tag_commit: str | None
    tag_files: Mapping[str, "FileHash"]


def look_at_head(api: HfApi, repo_id: str, kind: RepoKind) -> str | None:
    """The commit of a repository's main branch; None if there is no such repository, or none that this login may see.

    Raises:
        HubError: it cannot be read.
    """
    seen = _head(api, repo_id, kind)
    return seen and seen[0]


def _head(api: HfApi, repo_id: str, kind: RepoKind, attempts: int | None = None) -> tuple[str, bool] | None:
    """The head of the main branch, and whether the repository is private."""

    def info() -> tuple[str, bool] | None:
        try:
            found = api.repo_info(repo_id, repo_type=kind)
        except RepositoryNotFoundError:
            return None
        return str(found.sha), bool(found.private)

    return ask(info, about=repo_id, doing="read", attempts=attempts)


def _look(api: HfApi, repo_id: str, kind: RepoKind, tag: str | None, *, attempts: int | None = None) -> _There | None:
    """The repository, None if there is none (or none that this login may see: the Hub does not tell which)."""
    seen = _head(api, repo_id, kind, attempts)
    if seen is None:
        return None
    commit, private = seen
    commits = ask(
        lambda: api.list_repo_commits(repo_id, repo_type=kind), about=repo_id, doing="read", attempts=_LISTING
    )
    tag_commit = _tags(api, repo_id, kind).get(tag) if tag is not None else None
    return _There(
        commit,
        private,
        files_of_repo(api, repo_id, kind, commit),
        untouched=len(commits) == 1 and commits[0].title == "initial commit",
        tag_commit=tag_commit,
        tag_files=files_of_repo(api, repo_id, kind, tag_commit) if tag_commit is not None else {},
    )


def file_of_repo(repo_id: str, path: str, kind: RepoKind, commit: str, token: str | None) -> Path:
    """A file of a repository at a commit, downloaded.

    Raises:
        HubError: it cannot be read.
    """
    download = functools.partial(hf_hub_download, repo_id, path, repo_type=kind, revision=commit, token=token)
    return local_path(ask(download, about=repo_id, doing="read"))


def files_of_repo(api: HfApi, repo_id: str, kind: RepoKind, commit: str) -> dict[str, FileHash]:
    """The hash of every file of a repository at a commit.

    Raises:
        HubError: it cannot be read.
    """
    entries = ask(
        lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=commit, repo_type=kind)),
        about=repo_id,
        doing="read",
        attempts=_LISTING,
    )
    return {
        entry.path: FileHash(entry.lfs.sha256 if entry.lfs is not None else None, entry.blob_id)
        for entry in entries
        if isinstance(entry, RepoFile)
    }


def _tags(api: HfApi, repo_id: str, kind: RepoKind) -> dict[str, str]:
    refs = ask(lambda: api.list_repo_refs(repo_id, repo_type=kind), about=repo_id, doing="read")
    return {ref.name: ref.target_commit for ref in refs.tags}


def _changes(folder: Path, files: "tuple[StagedFile, ...]", there: Mapping[str, FileHash]) -> dict[str, Change]:
    def change(file: "StagedFile") -> Change:
        if file.path not in there:
            return "new"
        return "same" if there[file.path].is_of(folder / file.path) else "replaced"

    return {file.path: change(file) for file in files}


def _no_longer_part(contents: str, files: "tuple[StagedFile, ...]", there: Mapping[str, FileHash]) -> tuple[str, ...]:
    staged = {file.path for file in files}
    return tuple(path for path in there if path not in staged and _REMOVED[contents].fullmatch(path))


def recorder(
    study_folder: str | os.PathLike[str], part: Part, weights: Mapping[str, str] | None = None
) -> Callable[[Published], None]:
    """What writes into a study's folder, once a part of it was sent, where it is.

    Args:
        study_folder: the study.
        part: what is sent.
        weights: the ids of SAEs or classifiers by what tells their weights from others.
    """

    def record(published: Published) -> None:
        own = {"repo": published.repo_id, "revision": published.tag or published.commit, "weights": dict(weights or {})}
        try:
            write_json(local_path(study_folder) / RECORD, {**published_places(study_folder), part: own})
        except OSError as error:  # it is published all the same
            logger.warning("%s cannot be written (%s): later cards will not link to this by themselves", RECORD, error)

    return record


@contextlib.contextmanager
def kept_until_staged(scratch: Scratch | None) -> Iterator[Callable[[Publication], Publication]]:
    """A block that stages in a temporary folder, and hands the folder to the publication that it ends with.

    The folder goes when `publish_*` has sent the publication, or else with the publication; at once, if the block
    fails. None stands for a folder that stays.
    """

    def hand_over(publication: Publication) -> Publication:
        if scratch is None:
            return publication
        own = dataclasses.replace(publication, scratch=scratch)
        weakref.finalize(own, scratch.remove)
        return own

    try:
        yield hand_over
    except BaseException:
        if scratch is not None:
            scratch.remove()
        raise


def publishing(prepare: Callable[P, Publication]) -> Callable[P, Published]:
    """What prepares an upload and sends it at once, as `publish_sae` does for `prepare_sae`.

    Args:
        prepare: one of the `prepare_*` functions. The other takes the same, and `dry_run`, with which it sends nothing
            and gives the publication.
    """

    def publish(*args: P.args, **kwargs: P.kwargs) -> Published | Publication:
        dry_run, token = kwargs.pop("dry_run", False), kwargs.get("token")
        publication = prepare(*args, **kwargs)
        if dry_run:
            return publication
        try:
            return publication.send(token=None if token is None else str(token))
        finally:
            if publication.scratch is not None:
                publication.scratch.remove()

    functools.update_wrapper(publish, prepare)
    publish.__name__ = publish.__qualname__ = prepare.__name__.replace("prepare", "publish")
    publish.__doc__ = (
        f"`{prepare.__name__}`, which says what the settings are, and `.send()` at once.\n\n"
        "    With `dry_run` nothing is sent, and the publication is what is given.\n    "
    )
    signature = inspect.signature(prepare)
    dry = inspect.Parameter("dry_run", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool)
    publish.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), dry], return_annotation="Publication | Published"
    )
    return cast("Callable[P, Published]", publish)
