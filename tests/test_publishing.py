"""A publication beside what a repository holds already: described, refused, replaced, tagged."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_hub import LoopbackHub, run_on_hub
from helpers_study import random_sae

from mammosae_plugin.hub_cache import git_hash
from mammosae_plugin.training import save_sae

PROGRAM = """
import shutil, sys
from pathlib import Path
from mammosae_plugin.privacy.guard import PrivacyContext
from mammosae_plugin.hub.publishing import prepare

staged, folder = Path(sys.argv[1]), Path(sys.argv[2])
shutil.copytree(staged, folder)
context = PrivacyContext()

def ready(name="a", kind="model", contents="sae", **options):
    return prepare(folder, f"someone/{name}", kind=kind, contents=contents, context=context, **options)

def state(name="a", kind="model"):
    return hub()["repos"].get(f"{kind} someone/{name}")

def card(text):
    (folder / "README.md").write_text("---\\nlicense: mit\\n---\\n" + text)

seen = {"new": ready(tag="v1").describe(), "nothing": state()}
publication = ready(tag="v1")
seen["first"] = publication.send().as_text()
seen["first state"] = state()
seen["sent twice"] = attempt(lambda: publication.send().as_text())
seen["same"] = ready(tag="v1").describe()
seen["same under another tag"] = ready(tag="again").send().as_text()
seen["state with two tags"] = state()

publication = ready("b")
card("changed after it was checked")
seen["changed staging"] = attempt(lambda: publication.send().as_text())
seen["in the way"] = attempt(lambda: ready().describe())
seen["tag in the way"] = attempt(lambda: ready(tag="v1", replace=True).describe())
seen["replacing"] = ready(tag="v2", replace=True).describe()
seen["replaced"] = ready(tag="v2", replace=True).send().as_text()
seen["replaced state"] = state()

publication = ready("race")
hub(commit={"name": "someone/race", "files": {"x.md": "first"}, "private": True})
seen["made by somebody else"] = attempt(lambda: publication.send().as_text())
seen["race state"] = state("race")
hub(commit={"name": "someone/open", "files": {"x.md": "first"}})
seen["public"] = attempt(lambda: ready("open").describe())
seen["public and allowed"] = ready("open", private=False).describe().splitlines()[0]
hub(commit={"name": "someone/ignoring", "files": {".gitignore": "README.md"}, "private": True})
seen["ignoring"] = attempt(lambda: ready("ignoring").describe())
seen["public and new"] = (ready("opened", private=False).send(), state("opened")["private"])[1]
(folder / "README.md").write_text("---\\nlicense: no-such-licence\\n---\\n")
seen["bad card"] = attempt(lambda: ready("bad").describe())
seen["bad state"] = state("bad")
(folder / "notes.txt").write_text("what is this?")
seen["unknown file"] = attempt(lambda: ready("unknown").describe())
(folder / "notes.txt").unlink()
card("good")
for name in ("a", "/a", "a/b/c", "a b/c", "../x"):
    seen[f"name {name}"] = attempt(lambda: prepare(
        folder, name, kind="model", contents="sae", context=context).describe())
seen["bad tag"] = attempt(lambda: ready(tag="v 1").describe())

shutil.rmtree(folder)
(folder / "data").mkdir(parents=True)
(folder / "README.md").write_text("---\\nsdk: static\\n---\\nA page")
(folder / "data" / "one.js").write_text("window.one = 1")
space = dict(name="page", kind="space", contents="space", space_sdk="static")
seen["space"] = attempt(lambda: ready(**space).send().as_text())
seen["space state"] = state("page", "space")
(folder / "data" / "one.js").rename(folder / "data" / "two.js")
seen["space again"] = ready(**space, replace=True).describe()
seen["space sent"] = ready(**space, replace=True).send().as_text()
seen["space after"] = state("page", "space")
"""

STRANGER = """
import sys
from pathlib import Path
from mammosae_plugin.privacy.guard import PrivacyContext
from mammosae_plugin.hub.publishing import prepare

def send(name):
    return prepare(Path(sys.argv[1]), name, kind="model", contents="sae", context=PrivacyContext()).send().as_text()

import huggingface_hub
seen = {name: attempt(lambda: send(name)) for name in ("someone/a", "else/a")}
huggingface_hub.constants.HF_HUB_OFFLINE = True
seen["offline"] = attempt(lambda: send("someone/a"))
"""


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("staged") / "repo"
    save_sae(random_sae(16), folder / "bn2")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# An SAE\n")
    return folder


@pytest.fixture(scope="module")
def seen(staged: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    home = tmp_path_factory.mktemp("home")
    with LoopbackHub() as hub:
        found = run_on_hub(hub, home, PROGRAM, staged, home / "work")
        hub.repos.clear()
        found["nobody"] = run_on_hub(hub, home / "nobody", STRANGER, staged, token=None)
        found["nobody's repos"] = len(hub.repos)
        yield found


def test_a_dry_run_makes_nothing_and_says_what_would_be_made(seen: dict[str, Any]) -> None:
    assert seen["nothing"] is None
    lines = seen["new"].splitlines()
    assert lines[:2] == ["model repository someone/a: private, to be made", "tag: v1 (new)"]
    assert [line.split()[:2] for line in lines[3:-1]] == [
        ["new", "README.md"],
        ["new", "bn2/cfg.json"],
        ["new", "bn2/sae_weights.safetensors"],
    ]
    assert lines[-1].startswith("3 of 3 files to send, ")


def test_what_is_there_already_is_not_sent_again_but_tagged(seen: dict[str, Any]) -> None:
    first = seen["first state"]
    assert f"All of it is there already, at commit {first['head']}." in seen["same"]
    assert "tag: v1 (is there)" in seen["same"]
    assert seen["same under another tag"].startswith("everything was there already")
    assert seen["state with two tags"]["n_commits"] == first["n_commits"] == 2
    assert seen["state with two tags"]["tags"] == {"again": first["head"], "v1": first["head"]}


def test_a_publication_that_was_sent_and_is_sent_again_changes_nothing(seen: dict[str, Any]) -> None:
    assert "someone/a has been made by somebody else meanwhile" in seen["sent twice"]["message"]


def test_what_has_changed_since_it_was_checked_is_not_sent(seen: dict[str, Any]) -> None:
    assert (
        "README.md has changed since it was checked; prepare the publication again"
        in (seen["changed staging"]["message"])
    )


def test_nothing_is_overwritten_unless_that_is_said(seen: dict[str, Any]) -> None:
    assert "someone/a holds another README.md; overwrite with --replace" in seen["in the way"]["message"]
    lines = [line.split()[:2] for line in seen["replacing"].splitlines()[3:-1]]
    assert lines == [["replaced", "README.md"], ["same", "bn2/cfg.json"], ["same", "bn2/sae_weights.safetensors"]]
    assert seen["replacing"].splitlines()[-1].startswith("1 of 3 files to send, ")
    before, after = seen["first state"], seen["replaced state"]
    assert before["files"]["README.md"] != after["files"]["README.md"]
    assert after["tags"] == {"again": before["head"], "v1": before["head"], "v2": after["head"]}
    assert after["n_commits"] == 3


def test_a_tag_is_never_moved_not_even_when_replacing(seen: dict[str, Any]) -> None:
    assert "someone/a has a tag v1 of something else already; tags are not moved" in seen["tag in the way"]["message"]


def test_a_repository_that_somebody_makes_meanwhile_is_left_alone(seen: dict[str, Any]) -> None:
    assert "someone/race has been made by somebody else meanwhile" in seen["made by somebody else"]["message"]
    assert set(seen["race state"]["files"]) == {"x.md"}


def test_nothing_goes_into_a_public_repository_unless_that_is_said(seen: dict[str, Any]) -> None:
    assert "someone/open is public; allow that (--public, private=False)" in seen["public"]["message"]
    assert seen["public and allowed"].startswith("model repository someone/open: public, is there, at commit ")
    assert seen["public and new"] is False


def test_a_gitignore_that_would_leave_files_out_is_refused(seen: dict[str, Any]) -> None:
    assert "someone/ignoring has a .gitignore" in seen["ignoring"]["message"]


def test_a_card_that_the_hub_does_not_take_is_refused_before_the_repository_is_made(seen: dict[str, Any]) -> None:
    assert "license" in seen["bad card"]["message"]
    assert seen["bad card"]["error"] == "InputError"
    assert seen["bad state"] is None


def test_an_unknown_file_stops_everything(seen: dict[str, Any]) -> None:
    assert seen["unknown file"]["error"] == "PrivacyError"
    assert "notes.txt" in seen["unknown file"]["message"]


@pytest.mark.parametrize("name", ["a", "/a", "a/b/c", "a b/c", "../x"])
def test_what_cannot_be_a_repository_is_refused(seen: dict[str, Any], name: str) -> None:
    assert seen[f"name {name}"]["message"].endswith("is no name of a Hub repository; give it as owner/name")


def test_what_cannot_be_a_tag_is_refused(seen: dict[str, Any]) -> None:
    assert "'v 1' cannot be a tag" in seen["bad tag"]["message"]


def test_the_template_of_a_new_space_is_overwritten_and_later_parts_of_an_upload_go_when_it_is_replaced(
    seen: dict[str, Any],
) -> None:
    assert seen["space"].startswith("published: ")
    assert set(seen["space state"]["files"]) == {
        *(".gitattributes", "README.md", "index.html", "style.css", "data/one.js"),
    }
    assert "  removed   data/one.js" in seen["space again"].splitlines()
    after = set(seen["space after"]["files"])
    assert (after - set(seen["space state"]["files"]), set(seen["space state"]["files"]) - after) == (
        {"data/two.js"},
        {"data/one.js"},
    )


def test_nobody_is_told_to_log_in_and_makes_nothing(seen: dict[str, Any]) -> None:
    for name in ("someone/a", "else/a"):
        assert seen["nobody"][name]["message"] == (
            f"cannot publish {name}: nobody is logged in; run `hf auth login`, or set HF_TOKEN"
        )
    assert seen["nobody"]["offline"]["message"] == (
        "cannot read someone/a: HF_HUB_OFFLINE is set; unset it to reach the Hub"
    )
    assert seen["nobody's repos"] == 0


def test_gits_hash_is_that_of_git(tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(b"hello\n")
    assert git_hash(tmp_path / "hello") == "ce013625030ba8dba906f756967f9e9ca394464a"
