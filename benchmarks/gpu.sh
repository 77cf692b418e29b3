#!/usr/bin/env bash
# Everything that needs a GPU, in at most nine minutes: tests, activations, identification, epochs.
#   benchmarks/gpu.sh --out RESULTS --data-dir DATA         on a machine with a GPU
#   benchmarks/gpu.sh --out RESULTS --device cpu --quick    the same commands in small, to see that nothing is missing
# A part that fails does not stop the others. Each writes RESULTS/<part>.log and its JSON as soon as it ends;
# RESULTS/summary.json has the exit status and the seconds of each. Python is $PYTHON, else this folder's venv, else
# python3. Without --data-dir the epochs are timed on noise and the identification is left out.
set -uo pipefail
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
out="" data="" device=cuda quick=""
while [ $# -gt 0 ]; do
    case $1 in
        --out | --data-dir | --device)
            if [ $# -lt 2 ]; then echo "$1 needs a value." >&2; exit 2; fi
            case $1 in --out) out=$2 ;; --data-dir) data=$2 ;; --device) device=$2 ;; esac
            shift 2
            ;;
        --quick) quick=yes; shift ;;
        *) echo "Unknown option $1; valid: --out, --data-dir, --device, --quick." >&2; exit 2 ;;
    esac
done
if [ -z "$out" ]; then echo "Say where the results go: --out FOLDER." >&2; exit 2; fi
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
[ -z "$data" ] || data=$(cd "$data" && pwd) || exit 2
cd "$root" || exit 2

python=${PYTHON:-}
if [ -z "$python" ]; then python=$root/venv/bin/python; [ -x "$python" ] || python=python3; fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" CUBLAS_WORKSPACE_CONFIG=:4096:8 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1

# First of all: a missing package must not be found out by the last part.
"$python" - "$device" <<'PY' || exit 2
import importlib, sys
names = "click filelock hypothesis jinja2 matplotlib mlxtend numpy PIL pooch pydantic pytest pytest_timeout requests rich safetensors torch"
missing = []
for name in names.split():
    try:
        importlib.import_module(name)
    except ImportError as error:
        missing.append(f"{name} ({error})")
if missing:
    sys.exit("Missing packages: " + ", ".join(missing) + ". Install them, or name a Python that has them: PYTHON=...")
import torch
if sys.argv[1] != "cpu" and not torch.cuda.is_available():
    sys.exit("There is no CUDA device here. To try the commands without one: --device cpu --quick.")
print("torch", torch.__version__, torch.cuda.get_device_name() if sys.argv[1] != "cpu" else "CPU")
PY

summary=""
part() {  # name, seconds at most, command...
    local name=$1 limit=$2 began status seconds
    shift 2
    began=$(date +%s)
    timeout --kill-after=10 "$((limit * slower))" "$@" >"$out/$name.log" 2>&1
    status=$?
    seconds=$(($(date +%s) - began))
    echo "$name: exit status $status after $seconds s"
    [ $status = 0 ] || tail -n 3 "$out/$name.log"
    summary="$summary${summary:+, }{\"part\": \"$name\", \"status\": $status, \"seconds\": $seconds}"
    printf '{"device": "%s", "quick": %s, "parts": [%s]}\n' \
        "$device" "$([ -n "$quick" ] && echo true || echo false)" "$summary" >"$out/summary.json"
}

shapes=(--shape 128x512 --shape 128x32x32x32 --shape 8192x4096)
which=(--compiled)
epochs=(--steps 20 --compiled)
kinds=()
side_by_side=8
slower=1
if [ -n "$quick" ]; then
    shapes=(--shape 8x16)
    which=(--part forward)
    epochs=(--steps 1 --batch-size 16 --evaluated 20)
    kinds=(--kind "F-Neuron tuning")
    side_by_side=1
    slower=3  # a CPU that is busy with other work
fi
noise_or_data=(); [ -z "$data" ] || noise_or_data=(--data-dir "$data")

part activations 90 "$python" benchmarks/activations.py "${shapes[@]}" "${which[@]}" \
    --device "$device" --json "$out/activations.json"

identification() {
    local runs
    runs=$(mktemp -d) || return 1
    if [ -n "$quick" ]; then
        "$python" -m aafit run --suite tests/quick_identification.toml --runs-dir "$runs" --device "$device" --jobs 1 || return 1
        cp -r "$runs"/quick-identification/report/results.csv "$out/identification.csv"
    else
        tar xJf docs/results/full/runs.tar.xz -C "$runs" && mkdir -p "$runs/runs/full-identify" || return 1
        rm -rf "$runs"/runs/full-identify/*
        cp -r "$runs"/runs/full/base-* "$runs/runs/full-identify/"
        "$python" -m aafit run --suite docs/results/full-identify.toml --runs-dir "$runs/runs" --data-dir "$data" \
            --device "$device" --jobs $side_by_side || return 1
        cp "$runs"/runs/full-identify/report/results.csv "$out/identification.csv"
        (cd "$runs/runs/full-identify" && tar cJf "$out/identification.tar.xz" --exclude='*.safetensors' --exclude='*.pt' .)
    fi
    rm -rf "$runs"
}
if [ -n "$quick" ] || [ -n "$data" ]; then
    export -f identification
    export python quick data device out side_by_side
    part identification 80 bash -c identification
else
    echo "identification: left out, since no --data-dir was given"
fi

tests=(tests/test_any_device.py)
[ -n "$quick" ] || tests+=(tests -m gpu)
part tests 120 "$python" -m pytest -p pytest_timeout -q ${quick:+-k gradients_by_differences} "${tests[@]}"

part epochs-one 150 "$python" benchmarks/epochs.py "${epochs[@]}" "${kinds[@]}" "${noise_or_data[@]}" --jobs 1 \
    --device "$device" --json "$out/epochs-one.json"
if [ -z "$quick" ]; then
    part epochs-many 100 "$python" benchmarks/epochs.py --steps 20 --kind "base ReLU" --kind "AHAF tuning" \
        "${noise_or_data[@]}" --jobs $side_by_side --device "$device" --json "$out/epochs-many.json"
fi

grep -q '"status": [^0]' "$out/summary.json" && exit 1
exit 0
