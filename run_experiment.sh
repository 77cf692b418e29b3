#!/usr/bin/env bash
# Python with the experiment's environment, from any directory:
#   ./run_experiment.sh experiments/train_individual.py base --net KerasNet --ds CIFAR-10 ...
# Makes ./venv from requirements.txt if there is none or requirements.txt has changed, with the command aafit in it
# (venv/bin/aafit). ./run_tests.sh also installs requirements-dev.txt.
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
venv=$root/venv
files=(requirements.txt ${AAFIT_DEVELOP:+requirements-dev.txt})

# A file is installed if the environment has an equal copy of it.
missing() {
    for file in "${files[@]}"; do
        cmp -s "$root/$file" "$venv/$file" || return 0
    done
    return 1
}

if missing; then
    python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "aafit needs Python 3.11 or newer; '$python' is not. Name one: PYTHON=python3.12 $0 ..." >&2
        exit 2
    fi
    mkdir -p "$venv"
    # Two scripts started at once must not install over each other.
    exec 9>"$venv/.lock"
    flock 9
    if missing; then
        echo "Installing ${files[*]} into $venv ..." >&2
        "$python" -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check "${files[@]/#/-r$root/}" >&2
        printf '#!/bin/sh\nexec "%s/run_experiment.sh" -m aafit "$@"\n' "$root" >"$venv/bin/aafit"
        chmod +x "$venv/bin/aafit"
        for file in "${files[@]}"; do cp "$root/$file" "$venv/$file"; done
    fi
    exec 9>&-
fi

export CUBLAS_WORKSPACE_CONFIG=:4096:8
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export AAFIT_RUNS="${AAFIT_RUNS:-${SRGK_RUNS_PATH:-$root/runs}}"

# A script is relative to the current directory, or else to this one.
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ] && [ ! -e "$1" ] && [ -e "$root/$1" ]; then
    script=$root/$1
    shift
    set -- "$script" "$@"
fi
exec "$venv/bin/python" "$@"
