#!/usr/bin/env bash
# All checks: style, types, tests. Arguments go to pytest.
#
#   ./run_tests.sh --torch 2.9.1 [arguments of pytest]
#
# runs the library's tests with another version of torch, in ./venv-torch-2.9.1, which is kept (several GB with CUDA).
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
cd "$root"

if [ "${1-}" = --torch ]; then
    version=${2:?--torch needs a version, as 2.9.1}
    shift 2
    venv=$root/venv-torch-$version
    if [ ! -e "$venv/complete" ]; then
        rm -rf "$venv"
        "${PYTHON:-python3}" -m venv "$venv"
        # The pinned versions of what the library and its tests import; onnx has versions for one torch only.
        pins=$(grep -hE '^(numpy|safetensors|matplotlib|jinja2|pydantic|pooch|click|rich|filelock|tqdm|mlxtend|selenium|axe-core-python|pytest|pytest-timeout|hypothesis|scipy)==' requirements*.txt)
        # shellcheck disable=SC2086
        "$venv/bin/pip" install --quiet --disable-pip-version-check "torch==$version" setuptools $pins
        touch "$venv/complete"
    fi
    "$venv/bin/python" -c 'import torch; print("torch", torch.__version__)'
    [ $# -gt 0 ] || set -- tests/{activations,networks,training,identification,plots,studies} tests/test_files.py
    OMP_NUM_THREADS=1 PYTHONPATH=$root exec "$venv/bin/python" -m pytest "$@"
fi

export AAFIT_DEVELOP=1
python() { "$root/run_experiment.sh" "$@"; }
python -m ruff check .
python -m ruff format --check .
python -m mypy --num-workers 2
# Two processes of one thread each are faster than one of two. In the order of the files: sorted by number of tests, the long ones come last.
OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
