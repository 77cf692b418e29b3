#!/usr/bin/env bash
# The whole experiment: every run of a suite, then tables, figures and a report.
#   ./run_experiment_all.sh                 the paper's experiment on CIFAR-10
#   ./run_experiment_all.sh --suite demo    the same seven stages in minutes, on digits that come with a package
#   ./run_experiment_all.sh --help          all options
exec "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/run_experiment.sh" -m aafit run "$@"
