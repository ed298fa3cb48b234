"""Pulling from a Hub on this machine: checked, resumed, offline from the cache; a study that reads SAEs from there."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers_hub import LoopbackHub, run_on_hub
from helpers_study import layered_settings, write_study

from mammosae_plugin.errors import InputError
from mammosae_plugin.hub import pulling

REPO = "someone/saes"
PROGRAM = """
import json, logging, os, shutil, sys, time
from pathlib import Path
import huggingface_hub.constants
from typer.testing import CliRunner
from mammosae_plugin import hub_requests
from mammosae_plugin.cli import app
from mammosae_plugin.config import load_config
from mammosae_plugin.files import sha256_of_file
from mammosae_plugin.hub import pull
from mammosae_plugin.study import Study

slept = []
time.sleep = slept.append
hub_requests.TIMEOUT_S = huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT = 0.5
huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT = 0.5
home, config = Path(sys.argv[1]), Path(sys.argv[2])
REPO = "someone/saes"

def digests(folder):
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files}

def forget():
    shutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE, ignore_errors=True)

def case(*faults, place=REPO, **options):
    slept.clear()
    hub(faults=list(faults))
    first = attempt(lambda: digests(pull(place, **options)))
    requests = hub(faults=[])["requests"]
    waits = list(slept)
    return {"first": first, "again": attempt(lambda: digests(pull(place, **options))), "slept": waits,
            "requests": requests}

seen = {"whole": case()}
seen["cached"] = case()
folder = pull(REPO)
seen["commit"] = folder.name
seen["at tag"] = digests(pull(REPO, revision="v1"))
seen["by url"] = digests(pull(f"hub://{REPO}@v1"))
seen["by name"] = digests(pull(f"{REPO}@v1"))
seen["one sae"] = {"name": pull(f"hub://{REPO}@v1/layer_6").name, **digests(pull(f"hub://{REPO}@v1/layer_6"))}
seen["findings"] = digests(pull("someone/findings"))
seen["copied"] = digests(pull(REPO, folder=home / "copy"))
seen["copied again"] = digests(pull(REPO, folder=home / "copy"))
(home / "copy" / "README.md").write_text("mine")
seen["copied onto another"] = attempt(lambda: str(pull(REPO, folder=home / "copy")))
seen["mine"] = (home / "copy" / "README.md").read_text()
for name, call in {
    "no repo": lambda: pull("someone/nothing"),
    "no revision": lambda: pull(REPO, revision="v9"),
    "two revisions": lambda: pull(f"hub://{REPO}@v1", revision="v2"),
    "two revisions by name": lambda: pull(f"{REPO}@v1", revision="v2"),
    "no revision by name": lambda: pull(f"{REPO}@v9"),
    "no revision and a sae": lambda: pull(f"hub://{REPO}@v9/layer_6"),
    "both kinds": lambda: pull("someone/both"),
    "gated": lambda: pull("someone/gated"),
    "no name": lambda: pull("a b/c"),
}.items():
    seen[name] = attempt(lambda: str(call()))
said = []
class Keep(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())
logging.getLogger("huggingface_hub").addHandler(keep := Keep())
seen["no sae"] = attempt(lambda: str(pull(f"hub://{REPO}@v1/layer_7")))
logging.getLogger("huggingface_hub").removeHandler(keep)
seen["said of no sae"] = said
seen["one kind of both"] = digests(pull("someone/both", kind="dataset"))

weights = folder / "layer_6" / "sae_weights.safetensors"
damaged = Path(os.path.realpath(weights))
damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
seen["damaged offline"] = attempt(lambda: digests(pull(REPO, offline=True)))
seen["damaged online"] = attempt(lambda: digests(pull(REPO)))
seen["offline"] = digests(pull(REPO, offline=True))
seen["offline at tag"] = digests(pull(REPO, revision="v1", offline=True))
seen["offline one sae"] = digests(pull(f"hub://{REPO}@v1/layer_6", offline=True))
seen["offline findings"] = digests(pull("someone/findings", offline=True))
seen["offline and not cached"] = attempt(lambda: pull("someone/other", offline=True))
seen["hub down"] = case({"pattern": ".", "status": 503, "times": None})
seen["hub silent"] = case({"pattern": ".", "hang": 1.0, "times": 6})

runner = CliRunner()
def command(*arguments):
    done = runner.invoke(app, [str(part) for part in arguments])
    return {"code": done.exit_code, "out": done.stdout.splitlines(), "err": done.stderr}
seen["command"] = command("pull", REPO, "--revision", "v1")
seen["command of one"] = command("pull", f"hub://{REPO}@v1/layer_6")
seen["command that fails"] = command("pull", "someone/nothing")

wait = {"Retry-After": "3"}
for name, fault in {
    "large file cut": {"pattern": "GET /store", "cut_download": 5000},
    "small file cut": {"pattern": "GET .*/resolve/.*cfg.json", "cut_download": 10},
    "store 429": {"pattern": "GET /store", "status": 429, "headers": wait},
    "store 500": {"pattern": "GET /store", "status": 500},
    "store hangs": {"pattern": "GET /store", "hang": 1.0},
    "list 500": {"pattern": "GET .*/tree/", "status": 500},
    "list cut": {"pattern": "GET .*/tree/", "cut_download": 10},
    "info 429": {"pattern": "GET /api/models", "status": 429, "headers": wait},
    "store 403 for ever": {"pattern": "GET /store", "status": 403, "times": None},
    "file 404 for ever": {"pattern": "HEAD .*/resolve/.*cfg.json", "status": 404, "times": None},
    "info 401": {"pattern": "GET /api/models", "status": 401, "times": None},
    "store 500 for ever": {"pattern": "GET /store", "status": 500, "times": None},
}.items():
    forget()
    seen[name] = case(fault, kind="model")
forget()
large = sha256_of_file(pull(REPO) / "layer_6" / "sae_weights.safetensors")
forget()
for wrong in ("byte", "size"):
    hub(tamper={large: wrong})
    seen[f"wrong {wrong}"] = attempt(lambda: digests(pull(REPO)))
hub(tamper={})
seen["no longer tampered"] = digests(pull(REPO))

forget()
study = Study(load_config(config))
seen["study"] = {layer.name: {"d_in": layer.sae.cfg.d_in, "sum": float(layer.sae.W_dec.detach().double().sum())}
                 for layer in study.layers}
seen["portable"] = {layer: str(path) for layer, path in study.config.sae.paths.items()}
"""


@dataclass
class Visit:
    """What one process saw, and what was on the Hub: path -> SHA-256."""

    seen: dict[str, Any]
    files: dict[str, str]
    old: dict[str, str]
    commit: str


def digests(files: dict[str, bytes]) -> dict[str, str]:
    return {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory, phantom_root: Path) -> Iterator[Visit]:
    folder = tmp_path_factory.mktemp("pull")
    settings = layered_settings(folder, phantom_root)
    files: dict[str, bytes] = {"README.md": b"# SAEs"}
    for layer, path in settings["sae"]["paths"].items():
        for file in Path(path).iterdir():
            files[f"{layer}/{file.name}"] = file.read_bytes()
        settings["sae"]["paths"][layer] = f"hub://{REPO}@v1/{layer}"
    with LoopbackHub() as hub:
        hub.commit(REPO, files, tag="v1")
        old = dict(files)
        commit = hub.commit(REPO, {"README.md": b"# SAEs, with more words"}, private=True)
        hub.commit("someone/findings", {"README.md": b"# Findings", "latents/a.parquet": b"PAR1"}, kind="dataset")
        hub.commit("someone/both", {"README.md": b"model"})
        hub.commit("someone/both", {"README.md": b"dataset"}, kind="dataset")
        hub.commit("someone/gated", {"README.md": b"secret"}, gated=True)
        files["README.md"] = b"# SAEs, with more words"
        seen = run_on_hub(hub, folder / "home", PROGRAM, folder, write_study(folder, settings))
        yield Visit(seen, digests(files), digests(old), commit)


def test_what_is_pulled_is_what_is_there_and_is_not_downloaded_twice(visit: Visit) -> None:
    assert visit.seen["whole"]["first"] == visit.files
    assert visit.seen["commit"] == visit.commit
    assert any("/store/" in path for _, path in visit.seen["whole"]["requests"])
    assert visit.seen["cached"]["first"] == visit.files
    assert not any("/store/" in path or "/resolve/" in path for _, path in visit.seen["cached"]["requests"])


def test_a_revision_is_pulled_by_name_or_by_url(visit: Visit) -> None:
    assert visit.seen["at tag"] == visit.seen["by url"] == visit.seen["by name"] == visit.old != visit.files


def test_of_an_sae_that_is_not_there_nothing_is_said_but_the_error(visit: Visit) -> None:
    assert visit.seen["said of no sae"] == []


def test_one_sae_of_several_is_pulled_alone(visit: Visit) -> None:
    own = {path.removeprefix("layer_6/"): digest for path, digest in visit.old.items() if path.startswith("layer_6/")}
    assert visit.seen["one sae"] == {"name": "layer_6", **own}


def test_findings_are_found_under_their_name(visit: Visit) -> None:
    assert set(visit.seen["findings"]) == {"README.md", "latents/a.parquet"}
    assert visit.seen["one kind of both"] == digests({"README.md": b"dataset"})


def test_a_copy_is_made_where_it_is_wanted_and_overwrites_nothing(visit: Visit) -> None:
    assert visit.seen["copied"] == visit.seen["copied again"] == visit.files
    assert "README.md holds something else; name another folder" in visit.seen["copied onto another"]["message"]
    assert visit.seen["mine"] == "mine"


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("no repo", "the Hub has no model or dataset someone/nothing, or it is private"),
        ("no revision", f"{REPO} at revision v9 has no such revision"),
        ("two revisions", "names the revision v1, but revision v2 is given too; name one"),
        ("two revisions by name", f"{REPO}@v1 names the revision v1, but revision v2 is given too; name one"),
        ("no revision by name", f"{REPO} at revision v9 has no such revision"),
        ("no revision and a sae", "has no such revision"),
        ("no sae", f"{REPO} has no SAE layer_7; did you mean layer_6?"),
        ("both kinds", "someone/both is both a model and a dataset; say which"),
        ("gated", "someone/gated asks for its terms to be accepted"),
        ("no name", "cannot be the name of a Hub repository"),
        ("offline and not cached", "someone/other is not in the cache; pull it once with the Hub in reach"),
        ("damaged offline", f"layer_6/sae_weights.safetensors of {REPO} is damaged in the cache"),
        ("wrong byte", f"layer_6/sae_weights.safetensors of {REPO} does not have the checksum that the Hub states"),
        ("wrong size", "the connection to the Hub was lost"),
    ],
)
def test_what_cannot_be_pulled_is_said_in_one_line(visit: Visit, case: str, reason: str) -> None:
    assert visit.seen[case]["error"] in ("InputError", "HubError")
    assert reason in visit.seen[case]["message"]
    assert "\n" not in visit.seen[case]["message"]


def test_a_damaged_or_exchanged_file_is_downloaded_anew(visit: Visit) -> None:
    assert visit.seen["damaged online"] == visit.files
    assert visit.seen["no longer tampered"] == visit.files


def test_the_cache_serves_without_the_hub(visit: Visit) -> None:
    assert visit.seen["offline"] == visit.files
    assert visit.seen["offline at tag"] == visit.old
    assert visit.seen["offline one sae"].keys() == {"cfg.json", "sae_weights.safetensors"}
    assert visit.seen["offline findings"] == visit.seen["findings"]
    for case in ("hub down", "hub silent"):
        assert visit.seen[case]["first"] == visit.files, visit.seen[case]["first"]


@pytest.mark.parametrize(
    "case",
    ["large file cut", "small file cut", "store 429", "store 500", "store hangs", "list 500", "list cut", "info 429"],
)
def test_a_failure_that_passes_is_not_noticed(visit: Visit, case: str) -> None:
    found = visit.seen[case]
    assert found["first"] == visit.files, found["first"]
    assert found["slept"]
    if "429" in case:
        assert max(found["slept"]) in (3, 4)  # huggingface_hub adds a second to what it was asked to wait


def test_a_file_that_was_cut_is_continued_and_not_begun_again(visit: Visit) -> None:
    paths = [path for method, path in visit.seen["large file cut"]["requests"] if path.startswith("/store/")]
    assert len(paths) - len(set(paths)) == 1


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("store 403 for ever", "has no right to pull"),
        ("file 404 for ever", "the Hub has no repository"),
        ("info 401", "run `hf auth login` anew"),
        ("store 500 for ever", "run the same command again later"),
    ],
)
def test_a_failure_that_stays_is_one_line_and_pulling_again_completes(visit: Visit, case: str, reason: str) -> None:
    found = visit.seen[case]
    assert found["first"]["error"] == "HubError"
    assert reason in found["first"]["message"]
    assert "\n" not in found["first"]["message"]
    assert found["again"] == visit.files


def test_the_command_prints_the_folder_and_what_a_study_takes(visit: Visit) -> None:
    done = visit.seen["command"]
    assert done["code"] == 0, done
    folder = Path(done["out"][0])
    layers = sorted({path.partition("/")[0] for path in visit.files if "/" in path})
    assert done["out"][1:] == [f"sae.path: {folder / layer}" for layer in layers]
    assert visit.seen["command of one"]["out"][0] == str(folder / "layer_6")
    assert visit.seen["command that fails"]["code"] == 2
    assert visit.seen["command that fails"]["err"].startswith("mammosae: the Hub has no model or dataset")


def test_a_study_reads_its_saes_from_the_hub(visit: Visit) -> None:
    assert visit.seen["portable"] == {layer: f"hub://{REPO}@v1/{layer}" for layer in visit.seen["study"]}
    assert {layer: found["d_in"] for layer, found in visit.seen["study"].items()} == {"layer_6": 56, "layer_10": 1280}


@pytest.mark.parametrize("text", ["[]", '{"a": null}', '{"a": [1, 2, 3]}', "{"])
def test_a_damaged_record_of_checksums_is_one_line(tmp_path: Path, text: str) -> None:
    snapshot = tmp_path / "snapshots" / ("0" * 40)
    (tmp_path / "mammosae").mkdir()
    (tmp_path / "mammosae" / f"{snapshot.name}.json").write_text(text)
    with pytest.raises(InputError, match="damaged"):
        pulling._recorded(snapshot)
