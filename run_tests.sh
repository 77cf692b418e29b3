#!/usr/bin/env bash
# All checks: style, types, tests. Arguments go to pytest.
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
export AAFIT_DEVELOP=1
python() { "$root/run_experiment.sh" "$@"; }
cd "$root"
python -m ruff check .
python -m ruff format --check .
python -m mypy
# Two processes of one thread each are faster than one of two.
OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile "$@"
