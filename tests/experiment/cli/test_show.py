"""The command `aafit show`: which runs it draws, and where the figures go."""

import shutil

import pytest
from click.testing import CliRunner
from small_runs import base_job, child_job

from aafit.experiment.cli.main import main
from aafit.experiment.runs.execute import execute


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A runs folder with one suite: a base network and a child."""
    runs = tmp_path_factory.mktemp("finished") / "runs"
    base = base_job(runs / "first", epochs=1)
    execute(base)
    execute(child_job(base, epochs=1))
    return runs


@pytest.fixture
def runs(finished, tmp_path):
    """A copy of it, with a second suite that has runs of the same names."""
    runs = tmp_path / "runs"
    for suite in ("first", "second"):
        shutil.copytree(finished / "first", runs / suite)
    return runs


def show(*arguments):
    return CliRunner().invoke(main, ["show", *map(str, arguments)])


def figures(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("activations-*.svg"))


def test_each_figure_is_next_to_its_run(runs):
    done = show("--runs-dir", runs)
    assert done.exit_code == 0, done.output
    name = "child/seed42/figures/activations-child-seed42.svg"
    assert figures(runs) == [f"first/{name}", f"second/{name}"]
    assert str(runs / "first" / name) in done.output


@pytest.mark.parametrize("folder", ["first", "first/child", "first/child/seed42"])
def test_a_suite_or_a_run_alone(runs, folder):
    assert show(runs / folder).exit_code == 0
    assert figures(runs) == ["first/child/seed42/figures/activations-child-seed42.svg"]


def test_runs_of_the_same_name_have_folders_of_their_suites(runs, tmp_path):
    assert show("--runs-dir", runs, "--out", tmp_path / "out").exit_code == 0
    name = "child/activations-child-seed42.svg"
    assert figures(tmp_path) == [f"out/first/{name}", f"out/second/{name}"]


def test_folders_that_only_contain_a_runs_folder_are_not_searched(runs, tmp_path):
    done = show(tmp_path)
    assert done.exit_code == 2
    assert "There is no finished run with adaptive activations in" in " ".join(done.output.split())
    assert not figures(tmp_path)


def test_a_damaged_run_does_not_keep_the_others_from_being_drawn(runs):
    (runs / "first/child/seed42/activations.safetensors").write_bytes(b"")
    done = show("--runs-dir", runs)
    assert done.exit_code == 2
    output = " ".join(done.output.split())
    assert "1 of 2 runs could not be drawn" in output
    assert "first/child/seed42/activations.safetensors" in output
    assert "Traceback" not in output
    assert figures(runs) == ["second/child/seed42/figures/activations-child-seed42.svg"]


def test_a_command_for_each_run(runs, tmp_path):
    done = show("--runs-dir", runs, "--print-commands", "--out", tmp_path / "of all")
    first, second = done.output.splitlines()
    assert first == f"./show_aaf_all.sh {runs / 'first/child/seed42'} --out '{tmp_path / 'of all'}'"
    assert "second" in second
    assert not figures(tmp_path)
