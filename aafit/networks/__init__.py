"""Find the activations of a network, replace and restore them, train them alone, freeze, fold, save and load them.

Begin with surgery.py: it replaces activations, and names the files that each step is in. adaptive.py trains, saves and
loads the new ones, freeze.py turns them into fixed functions, fold.py into plain ones. batches.py and running.py are
the ground: batches of any form, and networks that are run without being changed. frozen_prefix.py splits off what
tuning cannot change.
"""
