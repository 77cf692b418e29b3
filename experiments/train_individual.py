"""One run, by the authors' command line; `--help` lists the flags, `aafit train` is the same."""

from aafit.__main__ import main

if __name__ == "__main__":
    main("train", "experiments/train_individual.py")
