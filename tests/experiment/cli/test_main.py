"""The command line: a small suite from start to report, and what a user can do wrong."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from data_files import write_cifar10
from small_runs import ROOT

from aafit.experiment.cli.main import main

SUITE = """
name = "tiny"
[defaults]
network = "LeNet-5"
dataset = "MNIST-5k"
train_images = 200
[[runs]]
name = "base-relu"
stage = "1"
epochs = 1
[[runs]]
name = "relu-leaf-tanh"
stage = "4"
parent = "base-relu"
cnn = "LEAF as ReLU"
fc = "LEAF as Tanh"
epochs = 1
"""


@pytest.fixture
def suite_file(tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text(SUITE)
    return file


def aafit(*arguments):
    """The command line as a process, with compiled activations."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "160", "AAFIT_COMPILE": "1"}
    command = [sys.executable, "-m", "aafit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def call(tmp_path, monkeypatch):
    """The command line within this process, which saves its start; it times no epochs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AAFIT_DATA", raising=False)
    monkeypatch.delenv("AAFIT_RUNS", raising=False)
    monkeypatch.setattr("aafit.experiment.cli.run.seconds_an_epoch", lambda *_: 1.0)
    return lambda *arguments: CliRunner().invoke(main, list(map(str, arguments)))


def test_a_suite_from_start_to_report(call, tmp_path, suite_file):
    runs = tmp_path / "runs"
    plan = call("run", "--suite", suite_file, "--runs-dir", runs, "--dry-run")
    assert plan.exit_code == 0, plan.output
    assert "2 of 2 runs to do, 2 epochs" in plan.stdout
    assert not runs.exists()

    first = aafit("run", "--suite", suite_file, "--runs-dir", runs, "--tensorboard")
    assert first.returncode == 0, first.stdout + first.stderr
    done = {path.parent: path.read_bytes() for path in runs.glob("*/*/*/done.json")}
    assert {path.parent.name for path in done} == {"base-relu", "relu-leaf-tanh"}
    report = runs / "tiny" / "report"
    assert "LEAF as Tanh" in (report / "results.md").read_text()
    assert (report / "report.html").exists()
    assert str(report / "report.html") in first.stdout
    assert list((runs / "tiny" / "relu-leaf-tanh" / "seed42" / "tensorboard").iterdir())

    again = call("run", "--suite", suite_file, "--runs-dir", runs)
    assert again.exit_code == 0, again.output
    assert "already done" in again.stdout
    assert {path: (path / "done.json").read_bytes() for path in done} == done

    other = call("run", "--suite", suite_file, "--runs-dir", runs, "--precision", "float64")
    assert other.exit_code == 2
    assert "precision" in other.stderr
    assert {path: (path / "done.json").read_bytes() for path in done} == done

    child = runs / "tiny" / "relu-leaf-tanh" / "seed42"
    shown = call("show", child, "--out", tmp_path / "pictures")
    assert shown.exit_code == 0, shown.output
    assert {path.suffix for path in (tmp_path / "pictures/tiny/relu-leaf-tanh").iterdir()} == {".svg", ".png"}
    base = runs / "tiny" / "base-relu" / "seed42"
    accuracies = {
        folder: json.loads((folder / "done.json").read_text())["result"]["last_accuracy"] for folder in (base, child)
    }
    assert accuracies[base] != accuracies[child]
    for folders, (first, second) in (([child], (base, child)), ([child, base], (child, base))):
        compared = call("compare", *folders)
        assert compared.exit_code == 0, compared.output
        assert compared.stdout.startswith(f"{first}  compared with  {second}\n")
        assert f"accuracy {accuracies[first]:.2%} -> {accuracies[second]:.2%}" in compared.stdout
    assert "prediction agreement" in compared.stdout


def test_a_failed_run_fails_only_what_comes_from_it(call, tmp_path, suite_file):
    runs = tmp_path / "runs"
    other = '[[runs]]\nname = "broken"\ninit_from = "not-a-checkpoint.bin"\nepochs = 0\ntrain = "none"\n'
    child = '[[runs]]\nname = "of-broken"\nparent = "broken"\ncnn = "LEAF as ReLU"\nepochs = 1\n'
    suite_file.write_text(SUITE + other + child)
    (tmp_path / "not-a-checkpoint.bin").write_bytes(b"nothing")
    result = call("run", "--suite", suite_file, "--runs-dir", runs)
    assert result.exit_code == 1, result.output
    assert {path.parent.parent.name for path in runs.glob("*/*/*/done.json")} == {"base-relu", "relu-leaf-tanh"}
    output = " ".join(result.stdout.split())
    assert "not-a-checkpoint.bin" in output
    assert "broken failed" in output
    assert "log.txt" in output


def assert_user_error(result, message):
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum"], "No such command 'rum'"),
        (["run", "--sute", "demo"], "No such option '--sute'"),
        (["run", "--suite", "dmeo"], "No suite 'dmeo'"),
        (["run", "--suite", "dmeo"], "Did you mean 'demo'?"),
        (["run", "--suite", "demo", "--only", "stage9"], "has no run or stage 'stage9'. Did you mean 'stage7'?"),
        (["run", "--suite", "demo", "--only", ""], "has no run or stage ''"),
        (["run", "--suite", "demo", "--seeds", "42;7"], "'42;7' is not a list of integers"),
        (["run", "--suite", "demo", "--seeds", "42,42"], "must be different integers"),
        (["run", "--suite", "demo", "--epochs-scale", "0"], "cannot be scaled by 0"),
        (["run", "--suite", "demo", "--jobs", "0"], "0 is not in the range"),
        (["run", "--suite", "demo", "--device", "warp"], "warp"),
        (["run", "--suite", "demo", "--precision", "fp8"], "'fp8' is not a precision"),
        (["run", "--suite", "cpu", "--data-dir", "nowhere"], "nowhere"),
        (["run", "--suite", "cpu", "--data-dir", "empty"], "cifar-10-batches-bin"),
        (["run", "--suite", "cpu", "--data-dir", "cut"], "test_batch.bin"),
        (["run", "--suite", "demo", "--runs-dir", "a-file/runs"], "Cannot write"),
        (["run", "--suite", "demo", "--print-commands", "--runs-dir", "s3://b/runs"], "s3://b/runs is an address, but"),
        (["run", "--suite", "a-file"], "not a TOML file"),
        (["show"], "There is no finished run with adaptive activations in runs"),
        (["show", "nowhere"], "'nowhere' does not exist"),
        (["compare", "empty"], "config.json"),
        (["report", "empty"], "empty has no run folders"),
        (["report", "unstarted"], "unstarted has no run folders"),
    ],
)
def test_what_a_user_can_do_wrong(call, tmp_path, arguments, message):
    (tmp_path / "a-file").write_text("= no TOML")
    (tmp_path / "empty").mkdir()
    (tmp_path / "unstarted/base/seed42").mkdir(parents=True)
    cut = write_cifar10(tmp_path / "cut" / "cifar-10-batches-bin")
    (cut / "data_batch_1.bin").unlink()
    (cut / "test_batch.bin").write_bytes((cut / "test_batch.bin").read_bytes()[:-1])
    if message == "test_batch.bin":
        for k in range(1, 6):
            (cut / f"data_batch_{k}.bin").write_bytes(bytes(30_730_000))
    assert_user_error(call(*arguments), message)


def test_the_environment_names_a_folder_for_the_runs_not_an_address(call, tmp_path, monkeypatch):
    monkeypatch.setenv("AAFIT_RUNS", "gs://bucket/runs")
    assert_user_error(call("show"), "--own-disks if the others do not share it, and copy it to the store afterwards.")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [["run", "--suite", "cpu"], ["train", "base", "--net", "LeNet-5", "--ds", "CIFAR-10", "--acts", "ReLU"]],
)
def test_the_environment_names_the_data_folder_where_no_option_does(call, monkeypatch, command):
    monkeypatch.setenv("AAFIT_DATA", "from-environment")
    assert_user_error(call(*command), "from-environment does not exist")
    assert_user_error(call(*command, "--data-dir", "from-option"), "from-option does not exist")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('cnn = "LEAF as Tahn"', "Did you mean 'LEAF as Tanh'?"),
        ('cnn = "LEEF as Tanh"', "Did you mean 'LEAF'?"),
        ('fc = "F-Neuron as Tanh"\ninterval = [4, -4]', "interval"),
        ('fc = "F-Neuron as Tanh"\nknots = 0', "knots"),
        ("epoch = 3", "Did you mean 'epochs'?"),
        ('parent = "bass-relu"', "Did you mean 'base-relu'?"),
        ('parent = "base-relu"\ncnn = "LEAF as ReLU"\nnetwork = "KerasNet"', "its parent 'base-relu' has 'LeNet-5'"),
    ],
)
def test_mistakes_in_a_suite_file(call, suite_file, line, message):
    suite_file.write_text(f'{SUITE}[[runs]]\nname = "wrong"\nepochs = 1\n{line}\n')
    assert_user_error(call("run", "--suite", suite_file), message)


def test_labels_over_nine_are_refused(call, tmp_path):
    folder = write_cifar10(tmp_path / "data" / "cifar-10-batches-bin")
    for file in folder.iterdir():
        file.write_bytes(bytes(30_730_000))
    content = bytearray(30_730_000)
    content[0] = 10
    (folder / "test_batch.bin").write_bytes(content)
    assert_user_error(call("run", "--suite", "cpu", "--data-dir", tmp_path / "data"), "label")


def test_a_job_that_is_none_is_refused():
    process = subprocess.run(
        [sys.executable, "-m", "aafit.experiment.scheduling.worker"],
        input='[{"config": {}}]\n',
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert process.returncode == 2
    assert process.stderr.startswith("This is not a list of jobs")


def run_with(*command, path=(), **variables):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT)))} | variables
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)


def test_the_commands_are_listed_in_groups_without_importing_torch():
    program = "import sys; from aafit.__main__ import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    done = run_with("-c", program, "--help")
    assert done.returncode == 0, done.stderr
    listed = {name for name in main.list_commands(None) if f"\n  {name} " in done.stdout}
    assert listed == {"study", "run", "train", "identify", "report", "show", "compare"}
    assert "..." not in done.stdout.partition("Any network:")[2], "summaries are not cut"


@pytest.mark.parametrize("command", ["study", "run", "show"])
def test_only_a_study_needs_no_package_of_the_experiment(command):
    missing = ["filelock", "mlxtend", "pooch", "pydantic", "requests", "rich"]
    program = f"import sys; sys.modules.update(dict.fromkeys({missing}))\nfrom aafit.__main__ import main; main()"
    done = run_with("-c", program, command, "--help")
    if command == "study":
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 2
        assert done.stderr.startswith(f"Error: aafit {command} needs the package ")
        assert done.stderr.endswith(": pip install 'aafit[experiment]'.\n")


@pytest.mark.parametrize("command", [["-m", "aafit", "run"], [ROOT / "experiments/train_individual.py", "base"]])
def test_ctrl_c_during_imports_ends_in_one_line(command, tmp_path):
    """torch is replaced by a module that Ctrl-C reaches while it is imported."""
    # A shell's background job ignores the signal, and so do its children, unless they say otherwise.
    interrupt = "signal.signal(signal.SIGINT, signal.default_int_handler)\nos.kill(os.getpid(), signal.SIGINT)"
    (tmp_path / "torch.py").write_text(f"import os, signal, time\n{interrupt}\ntime.sleep(60)\n")
    done = run_with(*map(str, command), path=[tmp_path])
    assert (done.returncode, done.stderr) == (130, "Stopped.\n")


def test_the_shell_completes_commands_and_options():
    environment = {"_AAFIT_COMPLETE": "bash_complete", "COMP_WORDS": "aafit st", "COMP_CWORD": "1"}
    done = run_with("-m", "aafit", **environment)
    assert done.stdout == "plain,study\n", done.stderr


@pytest.mark.parametrize(("device", "torchs"), [("gpu", "cuda"), ("gpu:1", "cuda:1"), ("cpu", "cpu"), ("gpus", "gpus")])
def test_a_gpu_is_cuda_for_torch(device, torchs):
    for command in ("run", "compare", "train"):
        words = {"run": [], "compare": ["."], "train": ["base"]}[command]
        found = main.get_command(None, command).make_context(command, [*words, "--device", device])
        assert found.params["device"] == torchs
