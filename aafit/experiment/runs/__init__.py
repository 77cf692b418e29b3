"""One run, from its settings to its folder. Read execute.py first.

config.py has the settings of a run, suite.py the graph of runs in a file, job.py one run with one seed. documents.py
names the files of a run folder and folder.py writes them. gradient.py and gauss_newton.py are the training methods.
"""
