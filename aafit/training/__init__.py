"""Measure and tune any network.

Begin with tune.py: gradient steps. evaluate.py tells loss and accuracy, compare.py what a replacement changed,
precision.py chooses the arithmetic, lockstep.py trains several networks that share their frozen part.
"""
