"""The report: one self-contained HTML page that tells a study in order, for reading on screen and on paper."""

from mammosae_plugin.report.page import write_report

__all__ = ["write_report"]
