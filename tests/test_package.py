"""The wheel: what it holds, and that it works and is typed in an environment with the declared dependencies alone."""

import shutil
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
USE = """
import sys
import torch
from torch import nn
import aafit
assert "site-packages" in aafit.__file__ and "matplotlib" not in sys.modules
base = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
net, report = aafit.replace_activations(base, {"ReLU": aafit.LEAF.like("ReLU")}, sample=torch.zeros(2, 4))
assert torch.allclose(net(torch.ones(2, 4)), base(torch.ones(2, 4)), atol=1e-5)
try:
    aafit.plot_activations(net)
except ImportError as error:
    print(error)
"""


def run(*words: object, **options: object) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return str(done.stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if Version(metadata.version("setuptools")) < Version("77"):
        pytest.skip("setuptools here is older than 77, which pyproject.toml needs")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT / "aafit", source / "aafit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return out / run(sys.executable, "-c", BUILD, out, cwd=source).split()[-1]


def installed(wheel: Path, folder: Path) -> tuple[Path, Path]:
    """Make an environment with the wheel alone; return its Python and its site-packages."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    (site,) = folder.glob("lib/python*/site-packages")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel)
    return folder / "bin" / "python", site


def test_the_wheel_works_with_its_declared_dependencies_alone(wheel: Path, tmp_path: Path) -> None:
    python, site = installed(wheel, tmp_path / "environment")
    (path,) = site.glob("aafit-*.dist-info")
    # Links to the dependencies, and to theirs, instead of a download.
    waiting, seen = list(metadata.PathDistribution(path).requires or []), {"aafit"}
    while waiting:
        requirement = Requirement(waiting.pop())
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if not needed or requirement.name in seen:
            continue
        seen.add(requirement.name)
        found = metadata.distribution(requirement.name)
        waiting += found.requires or []
        for top in {Path(file).parts[0] for file in found.files or () if ".." not in Path(file).parts}:
            if top != "__pycache__" and not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))
    (tmp_path / "use.py").write_text(USE)
    assert "aafit[plots]" in run(python, "-I", "use.py", cwd=tmp_path)


def test_the_wheel_holds_all_files_and_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
        (about,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        text = content.read(about).decode()
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "aafit").rglob("*") if path.is_file()}
    assert {name for name in files if "__pycache__" not in name} == {
        name for name in names if name.startswith("aafit/")
    }
    header = HeaderParser().parsestr(text)
    assert header["Author"] or header["Author-Email"]
    assert header["Keywords"]
    urls = dict(line.split(", ") for line in header.get_all("Project-URL", []))
    assert {"Repository", "Documentation", "Changelog"} <= set(urls)
    assert "Typing :: Typed" in header.get_all("Classifier", [])
    assert "](docs/" not in text
    assert f"]({urls['Repository']}/raw/main/docs/" in text
    assert f"repo_url: {urls['Repository']}\n" in (ROOT / "mkdocs.yml").read_text()


def test_the_types_are_seen_from_outside(wheel: Path, tmp_path: Path) -> None:
    python, _ = installed(wheel, tmp_path / "environment")
    (tmp_path / "use.py").write_text("import aafit\n\nnet: int = aafit.evaluate\n")
    options = ("--python-executable", str(python), "--ignore-missing-imports", "--follow-imports=silent")
    command = [sys.executable, "-m", "mypy", *options, "use.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=280)
    assert "py.typed" not in done.stdout
    assert "incompatible types in assignment" in done.stdout.lower(), done.stdout


def test_the_citation_has_the_version_and_every_reference_an_address() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == metadata_version()
    assert all(one.get("doi") or one.get("url") for one in citation["references"])
    assert f"version = {{{metadata_version()}}}" in (ROOT / "README.md").read_text(encoding="utf-8")


def metadata_version() -> str:
    names: dict[str, str] = {}
    exec((ROOT / "aafit" / "version.py").read_text(), names)
    return names["__version__"]
