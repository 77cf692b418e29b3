"""Real images, and augmented batches of them.

Begin with datasets.py: it finds or downloads a data set (download.py), reads it (file_formats.py) and splits it.
batches.py makes batches that depend on the seed and the epoch alone. noise.py makes images to take times with. Nothing
here knows of networks or runs.
"""
