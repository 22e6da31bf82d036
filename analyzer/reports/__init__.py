"""Reports of runs: a page that needs nothing beside it, and a row of a table."""

from analyzer.reports.files import BadReports, ReportFiles, prepare
from analyzer.reports.page import make_page
from analyzer.reports.rows import COLUMNS, header_line, row_line

__all__ = ["COLUMNS", "BadReports", "ReportFiles", "header_line", "make_page", "prepare", "row_line"]
