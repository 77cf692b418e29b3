#!/usr/bin/env bash
# All checks: style, types, tests. Arguments go to pytest.
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
python() { "$root/run_experiment.sh" "$@"; }
cd "$root"
python -m ruff check .
python -m ruff format --check .
python -m mypy
python -m pytest "$@"
