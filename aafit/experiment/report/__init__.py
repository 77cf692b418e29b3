"""The report of a suite: tables, figures and a page, made from run folders alone.

Read page.py first. runs.py reads run folders, summary.py makes the tables, curves.py and figures.py the figures.
Nothing here trains or evaluates a network.
"""
