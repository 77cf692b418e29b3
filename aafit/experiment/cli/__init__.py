"""The command line: `aafit run`, `train`, `identify`, `study`, `show`, `compare`, `report`.

Begin with main.py. A command reads its flags, calls one function of a folder below, and prints. train.py holds the
authors' flags: flags.py says which there are, authors.py what their words mean, planned.py which runs they describe,
lookup.py which finished ones those go on from, standalone.py does them. identify.py has the flags of one
identification, study.py those of a study, commands.py writes a suite as such commands, options.py has the options that
several share. AAFIT_DATA and AAFIT_RUNS are read here, not below.
"""
