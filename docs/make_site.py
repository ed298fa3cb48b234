"""The pages of the site that are made, not written: README, changelog, examples, commands, settings and the API.

mkdocs calls the `on_...` functions (`hooks` in mkdocs.yml). In the Markdown, links are written as GitHub reads them, to
files; here they become links to the pages of those files. When the site is built, every page is searched for whatever a
browser would load from elsewhere, which is an error.
"""

import ast
import inspect
import json
import posixpath
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "mammosae_plugin"
ROOMS = (
    *("datasets", "adapters", "activations", "training", "latents", "analysis", "interpretation", "findings"),
    *("hub", "study", "config", "privacy", "measures", "visualization", "report"),
)
"""In the order in which data pass through them."""
FENCE = re.compile(r"(^```.*?^```$)", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")


# Files outside docs/ as pages


def outside() -> dict[Path, tuple[str, str]]:
    """Files outside docs/ that have a page: (its address, its Markdown)."""
    found = {
        ROOT / "README.md": ("index.md", (ROOT / "README.md").read_text()),
        ROOT / "CHANGELOG.md": ("changelog.md", (ROOT / "CHANGELOG.md").read_text()),
        ROOT / "benchmarks" / "README.md": ("benchmarks/index.md", (ROOT / "benchmarks" / "README.md").read_text()),
    }
    for folder in ("examples", "benchmarks"):
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix in (".py", ".yaml", ".ipynb"):
                found[file] = (f"{file.relative_to(ROOT).as_posix()}.md", page_of(file))
    return found


def page_of(file: Path) -> str:
    """A script, a configuration or a notebook as Markdown."""
    if file.suffix == ".ipynb":
        cells = [("".join(cell["source"]), cell["cell_type"]) for cell in json.loads(file.read_text())["cells"]]
        return "\n\n".join(text if kind == "markdown" else f"```python\n{text}\n```" for text, kind in cells) + "\n"
    language = {".py": "python", ".yaml": "yaml"}[file.suffix]
    return f"# {file.name}\n\nThe file is `{file.relative_to(ROOT)}`.\n\n```{language}\n{file.read_text()}```\n"


def relinked(markdown: str, source: Path, address: str, pages: dict[Path, str]) -> str:
    """Markdown whose links to files lead to the pages of these files, as seen from the page at `address`."""

    def link(found: re.Match[str]) -> str:
        file = (source.parent / found[1]).resolve()
        target = pages.get(file) or (file.relative_to(DOCS).as_posix() if file.is_relative_to(DOCS) else None)
        if target is None:
            raise PluginError(f"{source.relative_to(ROOT)}: {found[1]} has no page on the site")
        return f"]({posixpath.relpath(target, posixpath.dirname(address) or '.')}{found[2] or ''})"

    parts = FENCE.split(markdown)
    return "".join(part if number % 2 else LINK.sub(link, part) for number, part in enumerate(parts))


# The reference


def public_names(room: str) -> dict[str, str]:
    """What a room offers: name -> the module that defines it, as its stub or else its `__init__.py` says."""
    stub, module = PACKAGE / room / "__init__.pyi", PACKAGE / room / "__init__.py"
    tree = ast.parse((stub if stub.exists() else module).read_text())
    full = f"{PACKAGE.name}.{room}".rstrip(".")
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            where = f"{full}.{node.module}" if node.level else node.module
            found |= {alias.asname or alias.name: where for alias in node.names if where.startswith(PACKAGE.name)}
    if not stub.exists():
        (offered,) = (
            ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and "__all__" in ast.dump(n)
        )
        found = {name: where for name, where in found.items() if name in offered}
    return dict(sorted(found.items(), key=lambda pair: pair[0].lower()))


def room_docstring(room: str) -> str:
    return inspect.cleandoc(ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or "")


def reference() -> Iterator[tuple[str, str]]:
    """The pages of the API, one for each room, and their index: (address, Markdown)."""
    lines = ["# API", "", "What each room offers, from the docstrings. Names are imported when they are asked for.", ""]
    lines += ["| room | what it is for |", "|---|---|"]
    where_is = {}
    for room in ROOMS:
        names = public_names(room)
        where_is |= {name: f"{module}.{name}" for name, module in names.items()}
        text = room_docstring(room)
        lines.append(f"| [`{room}`]({room}.md) | {text.splitlines()[0]} |")
        parts = [f"# {room}", text, f"```text\nfrom {PACKAGE.name}.{room} import ...\n```"]
        parts += [f"::: {module}.{name}" for name, module in names.items()]
        yield f"reference/{room}.md", "\n\n".join(parts) + "\n"
    top = [name for name in public_names("") if name in where_is]
    lines += ["", "## At the top", "", "`import mammosae_plugin as mp` has the main names:", ""]
    lines += [f"- [`mp.{name}`][{where_is[name]}]" for name in top]
    yield "reference/index.md", "\n".join(lines) + "\n"


class Examples(griffe.Extension):
    """Sections `Example:` of docstrings are shown as code, as those that are called `Examples:` are."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)


def commands() -> str:
    """The page of the command line: every command with its arguments and options."""
    import typer.main

    from mammosae_plugin.cli import app

    def told(command: Any, name: str) -> Iterator[str]:
        if hasattr(command, "commands"):
            for sub, one in sorted(command.commands.items()):
                yield from told(one, f"{name} {sub}")
            return
        yield f"## {name}\n"
        for part in inspect.cleandoc(command.help or "").split("\n\n"):
            yield f"```text\n{part}\n```\n" if part.startswith("mammosae ") else f"{part.replace('<', '&lt;')}\n"
        yield "| name | what it is |\n|---|---|"
        for part in command.params:
            names = [part.metavar or part.name.upper()] if part.param_type_name == "argument" else part.opts
            if not part.hidden:
                text = " ".join((part.help or "").split()).replace("|", r"\|").replace("<", "&lt;")
                yield f"| {', '.join(f'`{one}`' for one in names)} | {text} |"
        yield ""

    lines = told(typer.main.get_command(app), "mammosae")
    return "# Commands\n\nWhat `mammosae COMMAND --help` prints.\n\n" + "\n".join(lines)


def settings() -> str:
    """The page of a study's settings."""
    from mammosae_plugin.config.reading import describe_settings

    return f"# Settings of a study\n\nWhat `mammosae study --settings` prints.\n\n```text\n{describe_settings()}\n```\n"


# What mkdocs calls


def anchor(heading: str, separator: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Headings get GitHub's anchors, and the navigation the pages that are made."""
    config.mdx_configs["toc"]["slugify"] = anchor
    made = {
        "API": ["reference/index.md", *(f"reference/{room}.md" for room in ROOMS)],
        "EXAMPLES": [address for file, (address, _) in outside().items() if file.is_relative_to(ROOT / "examples")],
    }
    config.nav = filled(config.nav, made)
    return config


def filled(nav: Any, made: dict[str, list[str]]) -> Any:
    """The navigation with lists of pages in place of their names."""
    if isinstance(nav, list):
        return [filled(part, made) for part in nav]
    if isinstance(nav, dict):
        return {title: filled(part, made) for title, part in nav.items()}
    return made.get(nav, nav)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    global _pages
    _pages = {file: address for file, (address, _) in outside().items()}
    pages = {**dict(outside().values()), **dict(reference())}
    pages |= {"reference/commands.md": commands(), "reference/settings.md": settings()}
    for address, text in pages.items():
        files.append(File.generated(config, address, content=text))
    return files


_pages: dict[Path, str] = {}


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links as they are on the site."""
    address = page.file.src_uri
    source = {address: file for file, address in _pages.items()}.get(address, DOCS / address)
    return markdown if address.startswith("reference/") else relinked(markdown, source, address, _pages)


def on_post_build(config: MkDocsConfig) -> None:
    """No page may load anything from elsewhere."""
    for file in sorted(Path(config.site_dir).rglob("*")):
        if file.suffix in (".html", ".css", ".svg"):
            found = loaded_from_elsewhere(file.read_text(), css=file.suffix == ".css")
            if found:
                raise PluginError(f"{file}: a reader's browser would load {found[0]}")


class _Loads(HTMLParser):
    """What a page loads from another place: addresses in `found`."""

    ATTRIBUTES = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(self.ATTRIBUTES.get(tag, ""), "") or ""
        canonical = tag == "link" and dict(attrs).get("rel") in ("canonical", "next", "prev")
        if re.match(r"(https?:)?//", address) and not canonical:
            self.found.append(address)


def loaded_from_elsewhere(text: str, *, css: bool = False) -> list[str]:
    """Addresses elsewhere from which a page, or a style sheet, loads something; links that are clicked are none."""
    parser = _Loads()
    if not css:
        parser.feed(text)
    styles = text if css else " ".join(re.findall(r"<style.*?</style>", text, flags=re.DOTALL))
    return parser.found + re.findall(r"(?:url\(|@import )\s*[\"']?((?:https?:)?//[^)\"']+)", styles)
