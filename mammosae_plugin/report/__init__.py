"""The report: HTML pages that tell a study, for reading on screen and on paper; they open from their folder."""

from mammosae_plugin.report.page import write_report

__all__ = ["write_report"]
