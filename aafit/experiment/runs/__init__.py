"""One run, from its settings to its folder.

Begin with execute.py, the map of the program; epochs.py trains, active.py measures each epoch. config.py has the
settings of a run, suite.py the graph of runs that a file describes, job.py one run with one seed in one folder.
start.py makes the network that a run begins with. documents.py says what is in a run's folder, for those who write it
(folder.py, checkpoint.py, metrics.py, optimizer.py, log.py) and for those who read it. compare.py compares two finished
runs, timing.py measures how long an epoch takes, environment.py reads environment variables. What concerns many runs or
other processes is in `scheduling`, tables and figures are in `report`.
"""
