"""The report that every run leaves: pages of text, tables and figures in one HTML file that opens anywhere."""

from train.report.classification import classification_pages
from train.report.diagnosis import Verdict, diagnose
from train.report.html import add_page, write_html
from train.report.pages import Page, RunRecord, Section
from train.report.summary import summary_table
from train.report.training import training_page

__all__ = [
    "Page",
    "RunRecord",
    "Section",
    "Verdict",
    "add_page",
    "classification_pages",
    "diagnose",
    "summary_table",
    "training_page",
    "write_html",
]
