"""Tables, figures and the page, made from run folders alone.

runs.py reads the folders, summary.py sums up seeds, tables.py and plots.py show them, page.py puts all of it together.
"""

from aafit.report.page import Report, write_report
from aafit.report.plots import draw_activations, draw_all
from aafit.report.runs import read_suite
from aafit.report.shapes import plot_activations
from aafit.report.tables import results_table

__all__ = ["Report", "draw_activations", "draw_all", "plot_activations", "read_suite", "results_table", "write_report"]
