"""What the wire does wrong while publishing: tried again where that helps, else one line; never half published.

One process publishes a staged SAE into a repository per case; the Hub is told what goes wrong in which request.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_hub import LoopbackHub, run_on_hub
from helpers_study import random_sae

from mammosae_plugin.training import save_sae

PROGRAM = """
import sys, time
from pathlib import Path
from mammosae_plugin import hub_requests
from mammosae_plugin.privacy.guard import PrivacyContext
from mammosae_plugin.hub.publishing import prepare

slept = []
time.sleep = slept.append
hub_requests.TIMEOUT_S = 0.5
folder = Path(sys.argv[1])

def ready(name, **options):
    return prepare(folder, name, kind="model", contents="sae", context=PrivacyContext(), tag="v1", **options)

def case(name, *faults, meanwhile=None):
    name = f"someone/{name}"
    publication = ready(name)
    if meanwhile is not None:
        hub(commit={"name": name, "files": {"notes.md": "by somebody else"}})
    slept.clear()
    hub(faults=list(faults), forget=True)
    first = attempt(lambda: publication.send().as_text())
    told = hub(faults=[])
    waits = list(slept)
    second = attempt(lambda: ready(name).send().as_text())
    after = hub()
    key = f"model {name}"
    return {
        "first": first, "slept": waits, "requests": told["requests"], "between": told["repos"].get(key),
        "second": second, "after": after["repos"].get(key),
    }

def there(name):
    hub(commit={"name": f"someone/{name}", "files": {"notes.md": "there before"}, "private": True})

seen = {"clean": case("clean")}
n_requests = len(seen["clean"]["requests"])
for i in range(n_requests):
    seen[f"down from {i}"] = case(f"down-{i}", {"pattern": ".", "times": None, "status": 500, "skip": i})
    seen[f"answer {i} lost"] = case(f"lost-{i}", {"pattern": ".", "lose_answer": True, "skip": i})
for place, pattern in {"create": "repos/create", "store": "PUT /store", "commit": "/commit/"}.items():
    seen[f"{place} hangs"] = case(f"hang-{place}", {"pattern": pattern, "hang": 1.0})
seen["commit hangs for ever"] = case("hang", {"pattern": "/commit/", "hang": 1.0, "times": None})
seen["commit cut in the middle"] = case("middle-commit", {"pattern": "/commit/", "cut_upload": 100})
seen["file cut in the middle"] = case("middle", {"pattern": "PUT /store", "cut_upload": 4000})
wait = {"Retry-After": "7"}
seen["429 once"] = case("slow", {"pattern": "/commit/", "status": 429, "headers": wait})
seen["429 at the store"] = case("slow-store", {"pattern": "PUT /store", "status": 429, "headers": wait})
seen["429 for ever"] = case("slower", {"pattern": "/commit/", "status": 429, "headers": wait, "times": None})
seen["429 for hours"] = case("slowest", {"pattern": "/commit/", "status": 429, "headers": {"Retry-After": "7200"}})
seen["500 for ever at the commit"] = case("broken", {"pattern": "/commit/", "status": 500, "times": None})
seen["500 for ever at the tag"] = case("untagged", {"pattern": "/tag/", "status": 500, "times": None})
for status in (401, 403, 404, 409, 412):
    seen[f"{status} at the commit"] = case(f"status-{status}", {"pattern": "/commit/", "status": status, "times": None})
    seen[f"{status} at the store"] = case(f"store-{status}", {"pattern": "PUT /store", "status": status, "times": None})
seen["401 at the login"] = case("login", {"pattern": "whoami", "status": 401})
seen["no JSON"] = case("page", {"pattern": "validate-yaml", "cut_download": 3})
there("moved")
seen["somebody else writes meanwhile"] = case("moved", meanwhile=True)
"""


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("staged") / "repo"
    save_sae(random_sae(16), folder / "bn2")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# An SAE\n")
    return folder


@pytest.fixture(scope="module")
def seen(staged: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with LoopbackHub() as hub:
        yield run_on_hub(hub, tmp_path_factory.mktemp("home"), PROGRAM, staged)


@pytest.fixture(scope="module")
def files(staged: Path) -> dict[str, str]:
    """SHA-256 of every staged file."""
    found = [path for path in staged.rglob("*") if path.is_file()]
    return {str(path.relative_to(staged)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def holds_all(state: dict[str, Any], files: dict[str, str]) -> bool:
    return all(state["files"].get(path) == digest for path, digest in files.items())


def is_before(state: dict[str, Any] | None, files: dict[str, str]) -> bool:
    """No repository, or one without a single file of ours."""
    return state is None or not set(state["files"]) & set(files)


def completed(case: dict[str, Any], files: dict[str, str]) -> bool:
    """All of it is there, in one commit beside those of others, under its tag."""
    after = case["after"]
    n_others = sum(path == "notes.md" for path in after["files"])
    return (
        holds_all(after, files)
        and after["tags"] == {"v1": after["head"]}
        and after["n_commits"] == (2 + n_others if n_others else 2)
        and after["title"] == "Publish with mammosae"
    )


def test_a_publication_is_one_commit_and_a_tag(seen: dict[str, Any], files: dict[str, str]) -> None:
    case = seen["clean"]
    assert case["first"].startswith("published: ")
    assert case["first"].endswith(f"/someone/clean at commit {case['between']['head']} (v1)")
    assert completed({"after": case["between"]}, files)
    assert case["between"]["private"] is True
    asked = [f"{method} {path}" for method, path in case["requests"]]
    assert sum("/commit/" in line for line in asked) == 1
    assert sum("PUT /store" in line for line in asked) == 1
    assert sum("objects/verify" in line for line in asked) == 1


def test_doing_it_again_says_that_all_is_there_and_changes_nothing(seen: dict[str, Any]) -> None:
    case = seen["clean"]
    assert case["second"].startswith("everything was there already: ")
    assert case["after"] == case["between"]


def test_the_repository_is_before_or_after_wherever_the_hub_goes_down_and_a_rerun_completes(
    seen: dict[str, Any], files: dict[str, str]
) -> None:
    cases = {name: case for name, case in seen.items() if name.startswith("down from ")}
    assert len(cases) == len(seen["clean"]["requests"]) > 8
    states = set()
    for name, case in cases.items():
        assert case["first"]["error"] == "HubError", name
        assert "500" in case["first"]["message"], name
        assert "\n" not in case["first"]["message"]
        before = is_before(case["between"], files)
        assert before or holds_all(case["between"], files), name
        assert completed(case, files), name
        states.add(before)
    assert states == {True, False}


def test_an_answer_that_is_lost_at_any_request_is_no_failure_and_makes_no_second_commit(
    seen: dict[str, Any], files: dict[str, str]
) -> None:
    for number in range(len(seen["clean"]["requests"])):
        case = seen[f"answer {number} lost"]
        assert isinstance(case["first"], str), (number, case["first"])
        assert completed({"after": case["between"]}, files), number
        assert case["after"] == case["between"], number


@pytest.mark.parametrize(
    "name", ["create hangs", "store hangs", "commit hangs", "file cut in the middle", "commit cut in the middle"]
)
def test_a_silent_connection_and_one_cut_in_the_middle_of_a_file_are_tried_again(
    seen: dict[str, Any], files: dict[str, str], name: str
) -> None:
    assert isinstance(seen[name]["first"], str), seen[name]["first"]
    assert completed({"after": seen[name]["between"]}, files)
    assert seen[name]["slept"]


def test_a_connection_that_stays_silent_ends_in_one_line_and_writes_nothing(
    seen: dict[str, Any], files: dict[str, str]
) -> None:
    case = seen["commit hangs for ever"]
    assert case["first"]["error"] == "HubError"
    assert "was lost, or silent too long" in case["first"]["message"]
    assert case["slept"] == [1, 2, 4, 8]
    assert is_before(case["between"], files)
    assert completed(case, files)


def test_the_hub_is_given_the_time_that_it_asks_for(seen: dict[str, Any], files: dict[str, str]) -> None:
    assert seen["429 once"]["slept"] == [7]
    assert [wait for wait in seen["429 at the store"]["slept"] if wait >= 7]
    for name in ("429 once", "429 at the store"):
        assert completed({"after": seen[name]["between"]}, files)
    assert seen["429 for ever"]["slept"] == [7, 7, 7, 8]
    assert "asks to slow down (429)" in seen["429 for ever"]["first"]["message"]
    assert "wait for 7 s" in seen["429 for ever"]["first"]["message"]
    assert seen["429 for hours"]["slept"] == []
    assert "wait for 7200 s" in seen["429 for hours"]["first"]["message"]
    for name in ("429 for ever", "429 for hours"):
        assert is_before(seen[name]["between"], files)
        assert completed(seen[name], files)


def test_a_failing_hub_is_asked_five_times(seen: dict[str, Any]) -> None:
    case = seen["500 for ever at the commit"]
    assert sum("/commit/" in path for _, path in case["requests"]) == 5
    assert case["slept"] == [1, 2, 4, 8]
    assert "run the same command again later" in case["first"]["message"]


def test_a_missing_tag_is_said_and_added_by_the_rerun(seen: dict[str, Any], files: dict[str, str]) -> None:
    case = seen["500 for ever at the tag"]
    assert f"published as commit {case['between']['head']}, but without the tag v1" in case["first"]["message"]
    assert "the same command adds it" in case["first"]["message"]
    assert holds_all(case["between"], files)
    assert case["between"]["tags"] == {}
    assert case["second"].startswith("everything was there already")
    assert completed(case, files)


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "run `hf auth login` with a token that may write"),
        (403, "has no right to"),
        (404, "check owner and name"),
        (409, "is being changed by somebody else (409: planned); run the same command again"),
        (412, "has changed since this was prepared (412); nothing was written"),
    ],
)
@pytest.mark.parametrize("place", ["commit", "store"])
def test_what_no_second_try_can_change_is_said_at_once_in_one_line(
    seen: dict[str, Any], files: dict[str, str], status: int, advice: str, place: str
) -> None:
    case = seen[f"{status} at the {place}"]
    assert case["first"]["error"] == "HubError"
    assert advice in case["first"]["message"]
    assert "\n" not in case["first"]["message"]
    assert case["slept"] == []
    assert is_before(case["between"], files)
    assert completed(case, files)


def test_a_login_that_is_refused_stops_before_anything_is_made(seen: dict[str, Any], files: dict[str, str]) -> None:
    case = seen["401 at the login"]
    assert "run `hf auth login`" in case["first"]["message"]
    assert case["between"] is None
    assert completed(case, files)


def test_an_answer_that_breaks_off_is_asked_for_again(seen: dict[str, Any], files: dict[str, str]) -> None:
    assert completed({"after": seen["no JSON"]["between"]}, files)


def test_a_repository_that_changed_since_it_was_looked_at_is_left_alone(
    seen: dict[str, Any], files: dict[str, str]
) -> None:
    case = seen["somebody else writes meanwhile"]
    assert "has changed since this was prepared (412); nothing was written; run again" in case["first"]["message"]
    assert case["between"]["files"].keys() == {"notes.md"}
    assert holds_all(case["after"], files)
    assert "notes.md" in case["after"]["files"]
