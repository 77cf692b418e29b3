"""Tables, figures and the page, made from run folders alone.

Begin with page.py, which puts all of it together. runs.py reads the folders, summary.py sums up seeds, tables.py shows
them as tables. curves.py, differences.py, shapes.py and trajectories.py draw, in the manner of pages/style.py. Nothing
here trains or evaluates a network.
"""
