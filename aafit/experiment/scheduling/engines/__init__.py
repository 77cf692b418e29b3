"""Where the worker processes of a schedule run: on this machine, on a Ray cluster, or through Slurm.

Begin with engine.py, which says what a schedule asks of an engine; choose.py opens one by its name. process.py is a
worker process on the machine that it runs on; node.py what a machine of a cluster is asked before anything starts;
resume.py starts a process again whose machine died; carried.py brings files to machines that do not see the runs
folder, and back. Another engine is another file like slurm.py, and its name in choose.py.
"""
