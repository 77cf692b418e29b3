"""The wheel: what it holds, and that it works and is typed in an environment with the declared dependencies alone."""

import os
import re
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

NETWORK = """
import torch
from torch import nn


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 3))


def batches():
    return [(torch.randn(50, 4), torch.randint(3, (50,))) for _ in range(2)]
"""


def run(*words: object, **options: object) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return str(done.stdout)


def built(source: Path, out: Path, repository: str = "") -> Path:
    """Build the wheel in a copy of the repository, with the address of the repository if it is given."""
    if Version(metadata.version("setuptools")) < Version("77"):
        pytest.skip("setuptools here is older than 77, which pyproject.toml needs")
    shutil.copytree(ROOT / "aafit", source / "aafit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    if repository:
        settings = (source / "pyproject.toml").read_text()
        urls = f'[project.urls]\nRepository = "{repository}"\n'
        (source / "pyproject.toml").write_text(settings.replace("[project.urls]\n", urls))
    return out / run(sys.executable, "-c", BUILD, out, cwd=source).split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that .ci/package has built from an sdist, or one built here."""
    if given := os.environ.get("AAFIT_WHEEL"):
        return Path(given)
    return built(tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist"))


def metadata_of(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as content:
        (about,) = [name for name in content.namelist() if name.endswith(".dist-info/METADATA")]
        return content.read(about).decode()


def installed(wheel: Path, folder: Path) -> tuple[Path, Path]:
    """Make an environment with the wheel alone; return its Python and its site-packages."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    (site,) = folder.glob("lib/python*/site-packages")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel)
    return folder / "bin" / "python", site


def with_dependencies(wheel: Path, folder: Path, extra: str = "") -> Path:
    """Make an environment with the wheel and its declared dependencies alone; return its Python."""
    python, site = installed(wheel, folder)
    (path,) = site.glob("aafit-*.dist-info")
    # Links to the dependencies, and to theirs, instead of a download.
    waiting, seen = [(text, extra) for text in metadata.PathDistribution(path).requires or []], {"aafit"}
    while waiting:
        text, chosen = waiting.pop()
        requirement = Requirement(text)
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": chosen})
        if not needed or requirement.name in seen:
            continue
        seen.add(requirement.name)
        found = metadata.distribution(requirement.name)
        waiting += [(text, "") for text in found.requires or []]
        for top in {Path(file).parts[0] for file in found.files or () if ".." not in Path(file).parts}:
            if top != "__pycache__" and not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))
    return python


def test_the_wheel_works_with_its_declared_dependencies_alone(wheel: Path, tmp_path: Path) -> None:
    python = with_dependencies(wheel, tmp_path / "environment")
    (tmp_path / "use.py").write_text(USE)
    assert "aafit[plots]" in run(python, "-I", "use.py", cwd=tmp_path)


def test_a_study_needs_the_extra_cli_alone(wheel: Path, tmp_path: Path) -> None:
    python = with_dependencies(wheel, tmp_path / "environment", "cli")
    (tmp_path / "mynet.py").write_text(NETWORK)
    absent = "import importlib.util as u; print([u.find_spec(name) for name in ('mlxtend', 'pooch', 'pydantic')])"
    assert run(python, "-I", "-c", absent) == "[None, None, None]\n"
    command = (python, "-m", "aafit", "study", "mynet.py:network", "mynet.py:batches", "--steps", "1")
    assert "learned shape" in run(*command, cwd=tmp_path)
    assert "Identification</h2>" in (tmp_path / "study.html").read_text(encoding="utf-8")
    done = subprocess.run([python, "-m", "aafit", "run", "--dry-run"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'aafit[experiment]'" in done.stderr


def test_the_wheel_holds_all_files_and_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "aafit").rglob("*") if path.is_file()}
    assert {name for name in files if "__pycache__" not in name} == {
        name for name in names if name.startswith("aafit/")
    }
    header = HeaderParser().parsestr(metadata_of(wheel))
    assert header["Author"] or header["Author-Email"]
    assert header["Keywords"]
    assert "Typing :: Typed" in header.get_all("Classifier", [])


def test_the_description_has_no_link_that_a_package_index_cannot_follow(wheel: Path, tmp_path: Path) -> None:
    relative = re.compile(r"\]\((?!https?:|#)")
    assert "error bars" in metadata_of(wheel)
    assert not relative.search(metadata_of(wheel))
    assert "example.org" not in metadata_of(wheel)
    (tmp_path / "source").mkdir()
    hosted = metadata_of(built(tmp_path / "source", tmp_path, "https://code.test/aafit"))
    assert not relative.search(hosted)
    assert "](https://code.test/aafit/raw/main/docs/figures/" in hosted
    assert "](https://code.test/aafit/blob/main/docs/quickstart.md)" in hosted


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


def metadata_version() -> str:
    names: dict[str, str] = {}
    exec((ROOT / "aafit" / "version.py").read_text(), names)
    return names["__version__"]
