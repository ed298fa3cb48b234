"""What this package shares with the Hugging Face Hub."""

from mammosae_plugin.hub.releases import RELEASES, Release, register_releases

__all__ = ["RELEASES", "Release", "register_releases"]
