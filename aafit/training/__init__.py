"""Measure and tune any network.

Begin with tune.py: gradient steps. losses.py has the losses by name and of one's own, evaluate.py tells loss and
accuracy, compare.py what a replacement changed (comparison.py is what it found, watched.py what it measures by,
curve_errors.py one activation as a function), precision.py chooses the arithmetic, lockstep.py trains several networks
that share their frozen part.
"""
