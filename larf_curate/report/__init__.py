"""The HTML report: scores, the rows behind them, and what could not be scored, on one page."""

from larf_curate.report.page import write_report

__all__ = ["write_report"]
