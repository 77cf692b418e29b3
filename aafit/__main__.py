"""`python -m aafit` is the command `aafit`."""

from aafit.cli import main

main(prog_name="aafit")
