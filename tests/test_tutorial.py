"""The tutorial, from its first command to its last, on a Hub on this machine; its study has fewer images and epochs."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers_hub import LoopbackHub, run_on_hub

PAGE = Path(__file__).parent.parent / "docs" / "tutorial.md"
SMALLER = {"n_patients=150": "n_patients=40", "epochs: 15": "epochs: 3", "batch_size: 512": "batch_size: 64"} | {
    "epochs: 20": "epochs: 10",
    "dead_feature_window: 50": "dead_feature_window: 10",
}
pytestmark = pytest.mark.slow
RUN = """
import contextlib, io, json, os, re, shlex, sys
from pathlib import Path
from typer.testing import CliRunner

page, work, smaller = Path(sys.argv[1]).read_text(), sys.argv[2], json.loads(sys.argv[3])
os.chdir(work)
assert all(page.count(large) == 1 for large in smaller), "the page no longer says what is made smaller here"
for large, small in smaller.items():
    page = page.replace(large, small)
from mammosae_plugin.cli import app

seen, names = {"ran": []}, {}
for language, block in re.findall(r"^```(bash|py|yaml)\\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE):
    if language == "yaml":
        Path("study.yaml").write_text(block)
        continue
    for line in [block] if language == "py" else block.splitlines():
        code, said = 0, io.StringIO()
        words = [] if language == "py" else shlex.split(line)
        if words[:1] == ["pip"]:
            continue
        if words[:1] == ["mammosae"]:
            result = CliRunner().invoke(app, words[1:])
            code, text = result.exit_code, result.output
        else:
            with contextlib.redirect_stdout(said):
                exec(line if language == "py" else words[2], names)
            text = said.getvalue()
        seen["ran"].append([line, code, text[-3000:], sorted(hub()["repos"])])
"""


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Any:
    work = tmp_path_factory.mktemp("work")
    with LoopbackHub() as hub:
        seen = run_on_hub(hub, tmp_path_factory.mktemp("home"), RUN, PAGE, work, json.dumps(SMALLER))
        yield seen["ran"], work, hub


def test_every_command_of_the_tutorial_does_what_it_says(walk: Any) -> None:
    ran, work, _ = walk
    assert [line for line, code, _, _ in ran if code] == []
    assert len(ran) > 12
    said = {line: text for line, _, text, _ in ran}
    assert (work / "data_check" / "contact_sheet.png").is_file()
    assert "small/Mass: AUROC" in said["mammosae study study.yaml"]
    assert (work / "study" / "results" / "report.html").is_file()
    assert "running it again does nothing" in said["mammosae status study.yaml"]
    assert (work / "explained" / "explanation.html").is_file()
    assert "a bright round spot" in said["mammosae note --list --study study"]


def test_nothing_is_sent_before_it_is_confirmed_and_then_all_of_it(walk: Any) -> None:
    ran, _, hub = walk
    confirmed = next(number for number, (line, *_) in enumerate(ran) if "--confirm" in line)
    assert "Nothing was sent" in ran[confirmed - 1][2]
    assert ran[confirmed - 1][3] == []
    parts = {"model": "mammo-saes", "dataset": "mammo-findings", "space": "mammo-study"}
    for kind, name in parts.items():
        assert hub.repos[kind, f"your-name/{name}"].private
    assert "index.html" in hub.repos["space", "your-name/mammo-study"].files
    assert "v1" in hub.repos["model", "your-name/mammo-saes"].tags
    assert "a bright round spot" in ran[-1][2]  # read back from the Hub
