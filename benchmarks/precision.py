"""Seconds an epoch of each kind of run of the cpu suite, in float32 and in bf16: one process, one thread on a CPU.

./run_experiment.sh benchmarks/precision.py
"""

from rich.console import Console
from rich.table import Table

from aafit.measure import seconds_an_epoch
from aafit.suite import load_suite

KINDS = ("base-relu", "base-silu", "relu-ahaf-relu", "relu-leaf-silu", "relu-fneuron-tanh")


def main() -> None:
    table = Table("run", "float32, s", "bf16, s", "bf16 / float32")
    suite = load_suite("cpu")
    for name in KINDS:
        single, half = (
            seconds_an_epoch(suite.with_precision(precision).run(name)) for precision in ("float32", "bf16")
        )
        table.add_row(name, f"{single:.1f}", f"{half:.1f}", f"{half / single:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
