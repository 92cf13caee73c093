"""The report of a run: one HTML file that needs no network."""

from acq_isl.report.report import headline, render, write_report

__all__ = ["headline", "render", "write_report"]
