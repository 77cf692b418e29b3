"""The command line: `aafit run`, `train`, `identify`, `show`, `compare`, `report`.

Begin with main.py. A command reads its flags, calls one function of a folder below, and prints. train.py holds the
authors' flags, identify.py those of one identification; standalone.py does a run that belongs to no suite.
"""
