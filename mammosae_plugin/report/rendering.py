"""From a template of this room and what it is to show to a page."""

__all__ = ["config_text", "figure_source", "install_command", "render"]

import base64
import hashlib
import shlex
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup


def render(template: str, *, scripts: tuple[str, ...] = (), **content: Any) -> str:
    """The page of a template; text is escaped, and nothing may be missing.

    The template has the room's style sheet as `style`, the scripts as one `script`, and its checksum, as a content
    security policy names it, as `script_hash`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mammosae_plugin", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    script = Markup("\n").join(_part(name) for name in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    content = {**content, "script": script, "script_hash": f"sha256-{digest}" if scripts else ""}
    return environment.get_template(template).render(style=_part("style.css"), **content)


def _part(name: str) -> Markup:
    return Markup(resources.files("mammosae_plugin.report").joinpath(name).read_text(encoding="utf-8"))


def figure_source(file: Path) -> str | None:
    """A PNG as the source of an `img` inside the page; None where there is no such file."""
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}" if file.is_file() else None


def config_text(config: Mapping[str, Any]) -> str:
    """A configuration as YAML."""
    return yaml.safe_dump(dict(config), sort_keys=False, default_flow_style=None, allow_unicode=True, width=100)


def install_command(packages: Mapping[str, str]) -> str:
    """The command that installs the versions with which a study was made, as far as an index has them."""
    known = {name: version.partition("+")[0] for name, version in packages.items() if version[:1].isdigit()}
    return shlex.join(["pip", "install", *(f"{name}=={version}" for name, version in known.items())])
