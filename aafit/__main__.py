"""`python -m aafit` is the command `aafit`."""

import sys
from importlib import import_module

from aafit.errors import needs_extra


def main(command: str = "main", prog_name: str = "aafit") -> None:
    """Run a command of `aafit.experiment.cli`; exit with one sentence if a package is missing, or after Ctrl-C.

    Args:
        command: name of the command and of its module; "main" is the whole command line.
        prog_name: the program's name in its help.
    """
    try:
        try:
            with needs_extra("The command aafit", "cli"):
                run = getattr(import_module(f"aafit.experiment.cli.{command}"), command)
        except ImportError as error:
            sys.exit(str(error))
        run(prog_name=prog_name)
    except KeyboardInterrupt as stopped:
        print(str(stopped) or "Stopped.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
