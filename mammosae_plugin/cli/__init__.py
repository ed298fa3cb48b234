"""The `mammosae` command: one module per group of commands."""

from mammosae_plugin.cli.steps import app, main

__all__ = ["app", "main"]
