"""Many runs on this machine, and what they cost.

Begin with schedule.py: it decides which run is next, and where. worker.py is the process that does a run, progress.py
what a person sees meanwhile. plan.py tells beforehand what a suite will cost, from times measured before or taken by
timing.py. Nothing here decides a result: that is all in `runs`.
"""
