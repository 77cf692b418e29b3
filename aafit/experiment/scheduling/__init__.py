"""Many runs, on this machine or on a cluster, and what they cost.

Begin with schedule.py: it decides when a run starts; order.py which one is next, engines/ where. worker.py is the
process that does a run, progress.py what a person sees meanwhile. plan.py tells beforehand what a suite will cost, from
times measured before or taken by runs/timing.py. Nothing here decides a result: that is all in `runs`.
"""
