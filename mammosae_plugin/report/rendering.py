"""From a template of this room and what it is to show to a page that holds everything itself."""

__all__ = ["figure_source", "render", "script"]

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup


def render(template: str, **content: Any) -> str:
    """The page of a template, with the room's style sheet as `style`; text is escaped, and nothing may be missing."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mammosae_plugin", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(style=_part("style.css"), **content)


def script(name: str) -> tuple[Markup, str]:
    """A script of this room, and its checksum as a content security policy names it."""
    text = _part(name)
    return text, f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _part(name: str) -> Markup:
    return Markup(resources.files("mammosae_plugin.report").joinpath(name).read_text(encoding="utf-8"))


def figure_source(file: Path) -> str | None:
    """A PNG as the source of an `img`; None where there is no such file."""
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}" if file.is_file() else None
