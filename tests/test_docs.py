"""The README and the pages under docs/: the Python runs as it stands, links lead somewhere, commands exist.

A page is run as one script, so that later snippets may use what earlier ones made; in the README, each snippet alone.
"""

import ast
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
import yaml
from helpers_adapters import DATA
from helpers_hub import LoopbackHub
from helpers_study import random_sae

from mammosae_plugin.cli import app
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.training import SAETraining, save_sae

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?://)([^)\s]+)\)")


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The page's fenced blocks of a language: (number of their first line from 0, text)."""
    text = page.read_text()
    return [(text.count("\n", 0, found.start(2)), found[2]) for found in FENCE.finditer(text) if found[1] == language]


def scripts() -> list[tuple[str, str]]:
    """What is run: (name, source). Every line keeps its number on the page, for tracebacks and for nnsight."""
    found = []
    for page in PAGES:
        name, snippets = str(page.relative_to(ROOT)), blocks(page, "python")
        for group in [[each] for each in snippets] if page.name == "README.md" else [snippets]:
            lines: list[str] = []
            for first, text in group:
                lines += [""] * (first - len(lines)) + text.splitlines()
            if lines:
                found.append((f"{name}:{group[0][0]}", "\n".join(lines) + "\n"))
    return found


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def run_on_a_hub(script: Path) -> None:
    """Run a script in a process whose Hub has what the pages load from it."""
    folder = script.parent
    save_sae(random_sae(16), folder / "bn2")
    files = {f"bn2/{file.name}": file for file in (folder / "bn2").iterdir()}
    with LoopbackHub() as hub:
        hub.commit("your-name/mammo-saes", files, tag="v1")
        hub.commit("KKNakka/MammoSAE", {"sparse_autoencoder_final.pt": DATA / "vision_sae_tiny.pt"})
        hub.commit("pwesp/sail", {"dinov3_sae.ckpt": DATA / "sail" / "sae" / "last.ckpt"})
        environment = hub.environment(folder / "home")
        done = subprocess.run(
            [sys.executable, script], env=environment, cwd=folder, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr


OPTIONAL = ("captum", "nnsight", "open_clip", "visaebench")
ON_HUB = ('"your-name/', 'load_vision_sae("KKNakka/', 'load_vision_sae("pwesp/')
SCRIPTS = scripts()


@pytest.mark.parametrize("source", [source for _, source in SCRIPTS], ids=[name for name, _ in SCRIPTS])
def test_the_python_of_a_page_runs_in_an_empty_folder(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    for package in OPTIONAL:
        if package in source and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is absent")
    monkeypatch.chdir(tmp_path)
    if '"TABLE"' in source:
        table: LatentTable = request.getfixturevalue("encoded")
        os.symlink(table.folder, "TABLE")
    if '"STUDY"' in source:
        shutil.copytree(request.getfixturevalue("finished_study").output, "STUDY")
    script = tmp_path / "page.py"  # nnsight reads the source of a path once: each page has its own
    script.write_text(source)
    if any(name in source for name in ON_HUB):
        run_on_a_hub(script)
        return
    runpy.run_path(str(script), run_name="__main__")


def test_there_is_python_in_the_readme_and_on_the_page_of_every_adapter() -> None:
    names = {name.partition(":")[0] for name, _ in SCRIPTS}
    pages = {str(page.relative_to(ROOT)) for page in (ROOT / "docs" / "adapters").glob("*.md")}
    assert len(pages) >= 3
    assert names >= {"README.md", "docs/use-it-from.md", *pages}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for target in LINK.findall(page.read_text()):
            file = (page.parent / target.partition("#")[0]).resolve()
            if file.suffix == ".md" and file not in reached:
                waiting.append(file)
    assert set(PAGES) <= reached


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_options_exist(page: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for _, text in [*blocks(page, "bash"), *blocks(page, "text")]:
        for command, rest in re.findall(r"^(?:\$ )?mammosae (\w+)(.*)$", text, flags=re.MULTILINE):
            assert command in commands, command
            found = commands[command]
            if hasattr(found, "commands"):  # a group, such as publish
                name = rest.split()[0]
                assert name in found.commands, f"{command} {name}"
                found = found.commands[name]
            options = {option for parameter in found.params for option in parameter.opts}
            for option in re.findall(r"(?<=\s)--[\w-]+", rest.partition("#")[0]):
                assert option in {*options, "--help"}, f"{command} {option}"


def messages_of_the_code() -> list[str]:
    """Every string of the package; formatted parts are left out, which joins what stands around them by a zero."""
    found = []
    for file in (ROOT / "mammosae_plugin").resolve().rglob("*.py"):
        found += [text_of(node) for node in ast.walk(ast.parse(file.read_text()))]
    for file in (ROOT / "adapters").rglob("*.py"):
        found += [text_of(node) for node in ast.walk(ast.parse(file.read_text()))]
    return [text for text in found if text]


def text_of(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_the_errors_in_the_tables_are_those_of_the_code() -> None:
    known, seen = messages_of_the_code(), 0
    for page in PAGES:
        rows = re.findall(r"^\| message \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", page.read_text(), flags=re.MULTILINE)
        for row in "".join(rows).splitlines():
            cell = row.split("|")[1]
            if cell.strip().startswith("nnsight:"):
                continue
            for message in re.findall(r"`([^`]+ [^`]+)`", cell):
                pieces = [piece.strip(" '") for piece in message.split("...") if piece.strip(" '")]
                assert any(all(piece in text for piece in pieces) for text in known), f"{page.name}: {message}"
                seen += 1
    assert seen > 20


def test_the_recommended_sae_is_what_the_benchmark_holds_against_peers():
    ((_, text),) = blocks(ROOT / "docs" / "choosing-an-sae.md", "yaml")
    told = yaml.safe_load(text)["sae"]["train"]["training"]
    benchmark = runpy.run_path(str(ROOT / "benchmarks" / "peers.py"))
    size = benchmark["Size"](d_sae=told["d_sae"], k=told["k"])
    window = told["dead_feature_window"]
    measured = benchmark["recommended"](size, 10 * window, window)  # the window is a tenth of the steps
    assert told == {**measured, "lr": pytest.approx(measured["lr"], rel=0.01)}
    SAETraining(**told)
