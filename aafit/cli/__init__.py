"""The command line: `aafit run`, `train`, `identify`, `study`, `show`, `compare`, `report`.

Begin with main.py. A command reads its flags, calls one function of a folder below, and prints. train.py holds the
authors' flags, identify.py those of one identification, study.py those of a study, options.py those that several
commands share. standalone.py does a run that belongs to no suite. AAFIT_DATA and AAFIT_RUNS are read here, not below.
"""
