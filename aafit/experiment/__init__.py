"""The experiment of the paper: KerasNet on CIFAR-10, seven stages, from run settings to the report.

Begin with runs/suite.py: what a suite of runs is.
"""
