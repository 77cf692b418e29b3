"""Find the activations of a network, replace them, restore them, freeze the rest, save the few numbers.

Begin with surgery.py: find.py finds what there is (observe.py watches one forward, kinds.py and own_classes.py know
activations, found.py has the rows), select.py tells which of it is meant, as_modules.py, call_sites.py and places.py
make every call a module, make.py makes what takes its place. adaptive.py freezes, saves and loads; frozen_prefix.py
splits off what tuning cannot change. inputs.py takes batches of any form, outputs.py what a network returns, padding.py
leaves padding out. hooks.py watches what modules receive and give, probe.py does one forward in a copy of a network,
modes.py puts networks into evaluation mode for a while. models.py has the paper's networks, authors_checkpoint.py the
authors' files.
"""
