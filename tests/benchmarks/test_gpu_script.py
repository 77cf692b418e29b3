"""benchmarks/gpu.sh runs here in small on the CPU, so that a missing package is not found out on a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "AAFIT_COMPILE": "0"}
    return subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, env=environment, check=False)


def test_all_parts_run_on_a_cpu(tmp_path: Path) -> None:
    done = run("--device", "cpu", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [(part["part"], part["status"]) for part in summary["parts"]] == [
        ("activations", 0),
        ("identification", 0),
        ("tests", 0),
        ("epochs-one", 0),
    ]
    for name in ("activations", "epochs-one"):
        assert json.loads((tmp_path / f"{name}.json").read_text())["finished"]
    assert "silu-leaf-silu" in (tmp_path / "identification.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--outt", "x"], "Unknown option --outt; valid: --out, --data-dir, --device, --quick."),
        (["--out"], "--out needs a value."),
        ([], "Say where the results go: --out FOLDER."),
    ],
)
def test_wrong_arguments(arguments: list[str], sentence: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.strip() == sentence
