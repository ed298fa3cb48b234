"""The public place of `mammosae_plugin.analysis.intervention`."""

from mammosae_plugin.analysis.intervention import *  # noqa: F403
