"""The public place of `mammosae_plugin.analysis.localization`."""

from mammosae_plugin.analysis.localization import *  # noqa: F403
