"""Real images, and augmented batches of them. Read datasets.py first, which loads a data set and splits it."""
