"""Start the worker processes of a schedule on this machine, on a Ray cluster, or through Slurm.

Begin with engine.py, the interface that local.py, ray.py and slurm.py implement. process.py is a worker process on the
machine that it runs on, node.py the check of a machine before anything starts, and remote.py a process that is
restarted when its machine dies. A new engine is a file like slurm.py, with its name in `ENGINES` and `open_engine` of
schedule.py.
"""
