"""The HTML report: one page with score statistics, the highest-scoring rows and the rows without a score."""

from larf_curate.report.page import write_report

__all__ = ["write_report"]
