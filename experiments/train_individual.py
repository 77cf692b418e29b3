"""One run, by the authors' command line; `--help` lists the flags, `aafit train` is the same."""

from aafit.experiment.cli.train import train

if __name__ == "__main__":
    train(prog_name="experiments/train_individual.py")
