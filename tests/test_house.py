"""The rules of the house: folders import downwards only, and the library needs nothing of the experiment."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import aafit

PACKAGE = Path(aafit.__file__).parent

# From what knows nothing of the rest to what knows it all. A folder imports from itself and from those before it.
ROOT = ["errors", "version", "files", "tables", "progress"]
LIBRARY = ["activations", "networks", "training", "identification", "plots", "studies"]
EXPERIMENT = ["devices", "models", "authors_checkpoint", "data", "runs", "report", "scheduling", "cli"]
FLOORS = [*ROOT, *LIBRARY, *(f"experiment.{name}" for name in EXPERIMENT), "__main__"]

# A report is made of run folders alone, whoever wrote them: it knows their format, and nothing that trains.
NEEDED_TO_RUN = ("execute", "gradient", "gauss_newton", "start", "folder", "job")
CLOSED_TO_REPORT = {f"aafit.experiment.runs.{name}" for name in NEEDED_TO_RUN}
CLOSED_TO_REPORT_WHOLE = ("aafit.training", "aafit.identification")

# What the extras install; the library works without.
EXTRAS = ["click", "filelock", "jinja2", "matplotlib", "mlxtend", "PIL", "pooch", "pydantic", "requests", "rich"]


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(name: str) -> set[str]:
    """The package's modules that a module imports anywhere in it, within functions too."""
    found: set[str] = set()
    tree = ast.parse(MODULES[name].read_text())
    # What only a type checker imports makes no circle.
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports relatively: write the whole path"
            # "from package import name" is of a module where there is one of that name.
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= whole & MODULES.keys() or {str(node.module)}
    return found & MODULES.keys()


IMPORTS = {name: imported(name) for name in MODULES}


def floor(name: str) -> int:
    _, place, *inner = name.split(".")
    return FLOORS.index(f"{place}.{inner[0]}" if place == "experiment" else place)


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"aafit", "aafit.experiment"}))
def test_a_module_imports_downwards_only(name: str) -> None:
    wrong = sorted(needed for needed in IMPORTS[name] if needed == "aafit" or floor(needed) > floor(name))
    assert not wrong, f"{name} imports {wrong}"


def test_there_is_no_circle() -> None:
    left = dict(IMPORTS)
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"these import one another: {sorted(left)}"


def test_a_report_knows_run_folders_only() -> None:
    reached, open_ends = set(), [name for name in MODULES if name.startswith("aafit.experiment.report")]
    while open_ends:
        name = open_ends.pop()
        reached.add(name)
        open_ends += IMPORTS[name] - reached
    assert not reached & CLOSED_TO_REPORT
    assert not [name for name in reached if name.startswith(CLOSED_TO_REPORT_WHOLE)]


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
def test_each_folder_says_what_it_is_for_and_where_to_begin(folder: str) -> None:
    text = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text()))
    assert text
    assert "Begin with" in text


# At most so many of the package's modules are needed by each of these modules, its own one counted.
REACHED = {"aafit.networks.surgery": 30, "aafit.identification.identify": 54}


@pytest.mark.parametrize("name", REACHED)
def test_a_module_needs_few_others(name: str) -> None:
    reached, open_ends = set(), {name}
    while open_ends:
        needed = open_ends.pop()
        reached.add(needed)
        # A module needs the packages around it.
        around = {needed.rpartition(".")[0]} & MODULES.keys() - {"aafit"}
        open_ends |= (IMPORTS[needed] | around) - reached
    assert len(reached) <= REACHED[name], (
        f"{name} needs {len(reached)} modules: raise REACHED if each is needed, as a new family is: {sorted(reached)}"
    )


def test_the_public_names_are_there_once() -> None:
    assert sorted(aafit.__all__) == sorted(set(aafit.__all__))
    missing = [name for name in aafit.__all__ if not hasattr(aafit, name)]
    assert not missing, f"aafit.__all__ has names that are not in _MODULES: {missing}"


def without_extras(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program where no package of an extra can be imported."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))\n"
    command = [sys.executable, "-c", blocked + program]
    return subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)


def test_the_library_needs_no_extra() -> None:
    names = sorted(set(aafit.__all__) - {"load_run", "plot_activations", "plot_families", "plot_study"})
    done = without_extras(f"import aafit\nfor name in {names}: getattr(aafit, name)")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        (
            "import aafit; aafit.plot_activations",
            "aafit.plot_activations needs the package matplotlib: pip install 'aafit[plots]'.",
        ),
        (
            "import aafit; aafit.load_run",
            "aafit.load_run needs the package pooch: pip install 'aafit[experiment]'.",
        ),
        (
            "from aafit.__main__ import main; main()",
            "The command aafit needs the package click: pip install 'aafit[cli]'.",
        ),
    ],
)
def test_a_missing_extra_is_one_sentence(program: str, sentence: str) -> None:
    done = without_extras(program)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].removeprefix("ImportError: ") == sentence


MAY_NAME_PICKLE = {
    "from pickle import UnpicklingError": "the error of a checkpoint that asks to run code",
    "import cloudpickle": "what Slurm's jobs are made of",
    "cloudpickle.register_pickle_by_value(process)": "writes code of this package, reads none",
    "ray.cloudpickle.register_pickle_by_value(process)": "the same",
}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_that_a_stranger_wrote_is_unpickled(name: str) -> None:
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        text = ast.unparse(node) if isinstance(node, ast.Call | ast.Import | ast.ImportFrom) else ""
        if text.startswith("torch.load("):
            assert "weights_only=True" in text, f"{name}: {text}"
        names = text.partition("(")[0] if isinstance(node, ast.Call) else text
        assert "pickle" not in names or text in MAY_NAME_PICKLE, f"{name}: {text}"
