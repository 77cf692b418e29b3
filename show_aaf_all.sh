#!/usr/bin/env bash
# Pictures of the adaptive activations of all finished runs, before and after tuning.
exec "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/run_experiment.sh" -m aafit show "$@"
