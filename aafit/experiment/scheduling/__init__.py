"""Many runs: on this machine or on a cluster, and what they cost.

Begin with schedule.py, which decides when a run starts and in which process; engines/ start the processes, worker.py
is what they execute. plan.py estimates the time of a suite, progress.py shows its state. Nothing here affects a result.
"""
