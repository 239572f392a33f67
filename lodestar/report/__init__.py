"""report.html: one page that shows a run and needs nothing but a browser."""

from lodestar.report.page import write_report
from lodestar.report.summary import write_summary

__all__ = ["write_report", "write_summary"]
