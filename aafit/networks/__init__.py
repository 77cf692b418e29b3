"""Find the activations of a network, replace them, restore them, freeze the rest, save the few numbers.

Begin with surgery.py; find.py tells what there is to replace. adaptive.py freezes, saves and loads; frozen_prefix.py
splits off what tuning cannot change. models.py has the paper's networks, authors_checkpoint.py the authors' files.
"""
