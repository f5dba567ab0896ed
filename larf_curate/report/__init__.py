"""The report: a page with score statistics, a table and plots of rows, and one that compares two scored datasets."""

from larf_curate.report.comparison import write_comparison
from larf_curate.report.page import write_report

__all__ = ["write_comparison", "write_report"]
