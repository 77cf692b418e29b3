"""One run, from its settings to its folder.

Begin with execute.py, the map of the program; epochs.py are its epochs. config.py has the settings of a run, suite.py
the graph of runs that a file describes, job.py one run with one seed in one folder. start.py makes the network that a
run begins with; folder.py, checkpoint.py and metrics.py write what it leaves.
"""
