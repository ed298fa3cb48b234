"""What `mammosae publish` sends for a whole study, received by a Hub on this machine; and texts planted in it."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from helpers_hub import LoopbackHub, run_on_hub
from helpers_results import edit_study

from mammosae_plugin.findings.study_folder import StudyFolder
from mammosae_plugin.findings.tables import tellable
from mammosae_plugin.hub.findings import KEY_FILE

REPOS = {"sae": "someone/saes", "model": "someone/nets", "findings": "someone/findings", "space": "someone/space"}
"""Part of a study -> where it is published; in this order."""
FOLDER = "Klinik-Meier-2021"
"""What folders on the machine that publishes are called."""
KEY = "5e" * 32
"""What ids are hashed with: with another key each time the order would be another one too."""

_OPTIONS = ("--author", "--description", "--link", "--tag")
_IN_STUDY = (
    *("text of a note", "author of a note", "label of a note", "title of the study", "name of a network"),
    "name of a latent",
)
PLACES: Mapping[str, Sequence[str]] = {
    "sae": (*_OPTIONS, "--licence", "--id", "--base-model", "--dataset", "--evaluation"),
    "model": (*_OPTIONS, "--licence", "--id", "--base-model", "--dataset", "name of a network, as an id"),
    "findings": (*_OPTIONS, "--licence", *_IN_STUDY, "name of a classifier's file", "card that is there"),
    "space": (*_OPTIONS, "--title", *_IN_STUDY),
}
"""Where somebody's own words, or the names of their files, come into an upload, by part."""
FORMS = ("--tag", "--id", "name of a network, as an id")
"""Of these, places that take one word."""
_MANY = ("--author", "--dataset", "--link")


@dataclass(frozen=True)
class Upload:
    """One run of `mammosae publish`.

    Attributes:
        part: what is published of the study.
        texts: what stands where, by place (see `PLACES`).
        repo: where to.
    """

    part: str
    texts: Mapping[str, Sequence[str]]
    repo: str

    def command(self, study: Path, min_group: int) -> list[str]:
        """The arguments of `mammosae`, for a study in whose folder the texts are that are no options."""
        source, options = study, [f"--{part}-repo={repo}" for part, repo in REPOS.items() if part != self.part]
        if self.part in ("findings", "space"):
            options += [f"--min-group={min_group}"]
        if self.part != "space" and "--licence" not in self.texts:
            options += ["--licence=mit"]
        if self.part != "model":
            options += ["--force-poor"]
        if self.part == "findings":
            options += ["--examples"]
        if {"--id", "--evaluation"} & set(self.texts):  # a single file or folder, of which less is known
            files = {"sae": "sae/*/cfg.json", "model": "classifiers/*.safetensors"}[self.part]
            source = min(path.parent if self.part == "sae" else path for path in (study / "work").glob(files))
            options += [f"--study={study}"]
        for place, texts in self.texts.items():
            joined = "; ".join(texts)
            if place == "--link":
                options += [f"--link={text.replace('=', ':')}=https://example.org" for text in texts]
            elif place == "--evaluation":
                (study / "measured.json").write_text(json.dumps({"l0": 1.5, "measured_on": joined}))
                options += [f"--evaluation={study / 'measured.json'}"]
            elif place.startswith("--"):
                options += [f"{place}={text}" for text in (texts if place in _MANY else [joined])]
            elif place == "card that is there":
                options += ["--replace"]
        return ["publish", self.part, str(source), self.repo, "--confirm", *options]

    def write_into(self, study: Path) -> None:
        """Write the texts into the study that stand there."""
        for place, texts in self.texts.items():
            if place.endswith("of a note"):
                _write_notes(study, place.split()[0], texts)
            elif place == "name of a latent":
                _write_names(study, texts)
            elif place in _NAMES:
                ending = ".safetensors" if "file" in place else ""
                _rename(study, _NAMES[place](StudyFolder(study).results), "; ".join(texts) + ending)


_NAMES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "title of the study": lambda results: results["title"],
    "name of a network": lambda results: results["models"][0]["name"],
    "name of a network, as an id": lambda results: results["models"][0]["name"],
    "name of a classifier's file": lambda results: results["provenance"]["checkpoints"][0]["file"],
}


def _rename(study: Path, name: str, new: str) -> None:
    """Write another name wherever results have it, alone or before the concept."""

    def renamed(results: dict[str, Any]) -> None:
        text = json.dumps(results, ensure_ascii=False)
        for end in ('"', "/"):
            text = text.replace(f'"{name}{end}', json.dumps(new)[:-1] + end)
        results.update(json.loads(text))

    edit_study(study, renamed)


def _write_notes(study: Path, field: str, texts: Sequence[str]) -> None:
    """Notes of readers on the first latents, as other versions than this, which looks at them, may have kept them."""
    layer = StudyFolder(study).layers[-1]
    note = {"author": "reader A", "layer": layer.name, "text": "fires at the rim", "encoder": None, "concept": None}
    note |= {"label": None, "confidence": None, "created": "2026-01-31T10:00:00+00:00", "sae": layer.sae_tensors}
    (study / "notes").mkdir(exist_ok=True)
    with (study / "notes" / f"{field}.jsonl").open("a") as file:
        for n, text in enumerate(texts):
            file.write(json.dumps({**note, "latent": n % 32, field: text}) + "\n")  # there may be few latents


def _write_names(study: Path, texts: Sequence[str]) -> None:
    """Names of latents of the last layer, as a model may have written them; of latents of which nothing is hidden."""
    layer = StudyFolder(study).layers[-1]
    ((place, told),) = [(encoder, told) for (_, encoder), told in tellable([layer], min_group=5).items()][:1]
    shown = np.flatnonzero(~told.activity).tolist()
    row = {"method": "model", "model": "toy", "score": 0.9, "chance": 0.5, "n": 12, "q": 0.01, "encoder": place}
    names = [{**row, "latent": shown[n % len(shown)], "name": text} for n, text in enumerate(texts)]
    edit_study(study, lambda results: results.update({"names": names}))


def copy_of_study(study: Path, folder: Path) -> Path:
    """A study's folder that may be written to, but in `work`, which is the original's."""
    copy = folder / FOLDER / "out"
    shutil.copytree(study / "results", copy / "results", ignore=shutil.ignore_patterns("report.html", "tables"))
    (copy / "work").symlink_to(study.resolve() / "work")
    (copy / KEY_FILE).write_text(f"{KEY}\n")

    def came_from_that_folder(results: dict[str, Any]) -> None:
        results["sae"]["source"] = FOLDER
        results["provenance"]["checkpoints"][-1]["file"] = FOLDER
        results["config"]["data"]["annotations"] = f"{FOLDER}/annotations.csv"
        for model in results["config"]["models"]:
            model |= {"encoder": FOLDER, "classifiers": {"Mass": FOLDER}}

    edit_study(copy, came_from_that_folder)
    return copy


# -- publishing --------------------------------------------------------------------------------------------------------

_PROGRAM = """
import dataclasses, json, sys
from pathlib import Path
from typer.testing import CliRunner
from mammosae_plugin.cli import app
from mammosae_plugin.privacy import guard

found = []

def telling(rule):
    def check(staged):
        for problem in rule.check(staged):
            found.append([rule.name, problem.path, problem.text])
            yield problem
    return dataclasses.replace(rule, check=check)

guard.RULES = tuple(telling(rule) for rule in guard.RULES)
seen = []
for command in json.loads(Path(sys.argv[1]).read_text()):
    found.clear()
    done = CliRunner().invoke(app, command, prog_name="mammosae")
    seen.append({"code": done.exit_code, "said": done.stderr, "found": list(found)})
"""


@dataclass(frozen=True)
class Sent:
    """What came of an upload.

    Attributes:
        upload: the upload.
        code: the exit code of the command.
        said: what it said on stderr.
        found: what the guard objected to: rule, path, and the text where a person may let it out.
        files: what the Hub has received of it.
    """

    upload: Upload
    code: int
    said: str
    found: Sequence[tuple[str, str, str | None]]
    files: Mapping[str, bytes]


def send(study: Path, uploads: Sequence[Upload], folder: Path, *, min_group: int) -> Iterator[Sent]:
    """Run `mammosae publish --confirm` for each upload, in one process, on a Hub that is empty but for cards.

    Args:
        study: a study's folder, which is not written to.
        uploads: what is published.
        folder: an empty folder for copies.
        min_group: the fewest patients that may be told together.
    """
    commands = []
    with LoopbackHub() as hub:
        for number, upload in enumerate(uploads):
            copy = copy_of_study(study, folder / str(number))
            upload.write_into(copy)
            commands.append(upload.command(copy, min_group))
            if texts := upload.texts.get("card that is there"):
                written = "---\nlicense: mit\n---\n\n" + "\n\n".join(texts) + "\n"
                hub.commit(upload.repo, {"README.md": written.encode()}, kind="dataset", private=True)
        (folder / "commands.json").write_text(json.dumps(commands))
        before = {repo.name: repo.refs["main"] for repo in hub.repos.values()}
        seen = run_on_hub(hub, folder / "home", _PROGRAM, folder / "commands.json", timeout=3600)
        for upload, one in zip(uploads, seen, strict=True):
            repo = next((repo for (_, name), repo in hub.repos.items() if name == upload.repo), None)
            sent = repo is not None and repo.refs["main"] != before.get(upload.repo)
            yield Sent(upload, one["code"], one["said"], one["found"], repo.files if repo and sent else {})
