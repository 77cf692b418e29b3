"""`python -m aafit` is the command `aafit`."""

import sys

from aafit.errors import needs_extra


def main() -> None:
    """Run the command line, or exit with one sentence if its packages are not installed."""
    try:
        with needs_extra("The command aafit", "experiment"):
            from aafit.experiment.cli.main import main as command_line
    except ImportError as error:
        sys.exit(str(error))
    command_line(prog_name="aafit")


if __name__ == "__main__":
    main()
