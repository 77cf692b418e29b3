"""Run, evaluate, compare and tune any network.

Begin with predictor.py, which runs networks, and losses.py, which scores their outputs; evaluate.py, compare.py and
tune.py are built on both.
"""
