"""The public place of `mammosae_plugin.analysis.probing`."""

from mammosae_plugin.analysis.probing import *  # noqa: F403
