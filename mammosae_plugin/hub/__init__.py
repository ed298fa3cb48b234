"""What this package shares with the Hugging Face Hub: SAEs, findings, and pages to browse them.

Each name is imported from its module when it is asked for, since SAELens and datasets take seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mammosae_plugin.findings.about import About
    from mammosae_plugin.findings.published import Findings
    from mammosae_plugin.hub.comparison import Comparison, compare_findings
    from mammosae_plugin.hub.findings import load_findings, publish_findings, stage_findings
    from mammosae_plugin.hub.models import publish_model
    from mammosae_plugin.hub.pulling import pull
    from mammosae_plugin.hub.releases import RELEASES, Release, register_releases
    from mammosae_plugin.hub.saes import publish_sae
    from mammosae_plugin.hub.space import build_space, publish_space

__all__ = [
    "RELEASES",
    "Comparison",
    "Findings",
    "Release",
    "build_space",
    "compare_findings",
    "load_findings",
    "About",
    "publish_findings",
    "publish_model",
    "publish_sae",
    "publish_space",
    "pull",
    "register_releases",
    "stage_findings",
]

_MODULES = {
    "About": "mammosae_plugin.findings.about",
    "Comparison": "mammosae_plugin.hub.comparison",
    "Findings": "mammosae_plugin.findings.published",
    "compare_findings": "mammosae_plugin.hub.comparison",
    "load_findings": "mammosae_plugin.hub.findings",
    "publish_findings": "mammosae_plugin.hub.findings",
    "stage_findings": "mammosae_plugin.hub.findings",
    "RELEASES": "mammosae_plugin.hub.releases",
    "Release": "mammosae_plugin.hub.releases",
    "build_space": "mammosae_plugin.hub.space",
    "publish_model": "mammosae_plugin.hub.models",
    "publish_sae": "mammosae_plugin.hub.saes",
    "publish_space": "mammosae_plugin.hub.space",
    "pull": "mammosae_plugin.hub.pulling",
    "register_releases": "mammosae_plugin.hub.releases",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
