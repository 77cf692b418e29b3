"""One run by the authors' command line; `--help` lists its flags, `aafit train` is the same."""

import sys

from aafit.experiment.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]], prog_name="train_individual.py")
