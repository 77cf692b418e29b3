"""Real images, and augmented batches of them.

Begin with datasets.py: find or download a data set (download.py, file_formats.py) and split it. batches.py makes
batches that depend on the seed and the epoch alone.
"""
