"""Many runs on this machine, and what they cost.

Begin with schedule.py: which run is next and where; worker.py is the process that does it, progress.py what is seen of
it meanwhile. plan.py tells beforehand what a suite will cost, from the times that timing.py takes.
"""
