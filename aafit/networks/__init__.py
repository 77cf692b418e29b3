"""Find the activations of a network, replace and restore them, train them alone, freeze, fold, save and load them.

Begin with surgery.py, which replaces activations and names the file of each step. adaptive.py trains the new ones,
saving.py saves and loads them, freeze.py turns them into fixed functions or tables, and fold.py folds the affine ones
into the layers around them. batches.py reads batches of any form, running.py runs a network without changing it.
frozen_prefix.py splits off the part of a network that does not change in tuning.
"""
