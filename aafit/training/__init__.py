"""Measure and tune any network.

Begin with tune.py: gradient steps. losses.py has the losses by name and of one's own, evaluate.py tells loss and
accuracy, compare.py what a replacement changed (comparison.py is what it found, watched.py what it measures by,
curve_errors.py one activation as a function), distance.py whether a network is far from its base. precision.py chooses
the arithmetic, after_prefix.py computes once what is frozen below the lowest adaptive activation, lockstep.py trains
several networks that share their frozen part.
"""
