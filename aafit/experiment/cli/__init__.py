"""The command line: `aafit run`, `train`, `identify`, `study`, `show`, `compare`, `report`.

Begin with main.py; a command reads its options, calls a function of another folder, and prints. train.py has the
authors' flags, and authors.py translates between their words and a run's settings. single_runs.py launches one run and
finds the finished ones that it resumes from. options.py has the options that several commands share.
"""
