"""The one-way flow of the package: a module imports only from those above it."""

import ast
from pathlib import Path

import pytest

import aafit

PACKAGE = Path(aafit.__file__).parent

# From what knows nothing of the rest to what knows it all: a module may import only from lines above its own, or from
# its own folder.
LAYERS = [
    "errors",
    "version",
    "files",
    "precision",
    "activations",
    "networks",
    "find",
    "surgery",
    "trainable",
    "authors",
    "download",
    "image_files",
    "data",
    "batches",
    "evaluate",
    "compare",
    "gradient",
    "identification",
    "runconfig",
    "suite",
    "job",
    "in_step",
    "checkpoint",
    "metrics",
    "start",
    "repeated",
    "runfolder",
    "epochs",
    "execute",
    "alone",
    "measure",
    "slots",
    "process",
    "plan",
    "live",
    "schedule",
    "report",
    "individual",
    "identified",
    "cli",
    "__main__",
]

# A report is made of run folders alone: of any program's, on any machine.
CLOSED_TO_REPORT = {"aafit." + name for name in ("execute", "schedule", "networks", "start", "runfolder", "job")}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(name: str, modules: dict[str, Path] = MODULES) -> set[str]:
    """The package's modules that a module imports anywhere in it, within functions too."""
    path = modules[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            # "from package import name" is of a module where there is one of that name.
            found |= {f"{source}.{a.name}" if f"{source}.{a.name}" in modules else source for a in node.names}
    return found & modules.keys()


IMPORTS = {name: imported(name) for name in MODULES}


def layer(name: str) -> str:
    """The layer of aafit.activations.leaf is activations."""
    return name.removeprefix("aafit.").split(".")[0]


def test_the_list_of_layers_is_complete() -> None:
    assert set(LAYERS) == {layer(name) for name in MODULES if name != "aafit"}
    assert len(set(LAYERS)) == len(LAYERS)


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"aafit"}))
def test_a_module_imports_only_from_those_above_it(name: str) -> None:
    above = LAYERS[: LAYERS.index(layer(name))]
    wrong = sorted(needed for needed in IMPORTS[name] if layer(needed) not in (*above, layer(name)))
    assert not wrong, f"{name} imports {wrong}"


def test_there_is_no_cycle() -> None:
    left = dict(IMPORTS)
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"these import one another: {sorted(left)}"


def test_a_report_knows_run_folders_only() -> None:
    reached, open_ends = set(), [name for name in MODULES if name.startswith("aafit.report")]
    assert open_ends
    while open_ends:
        name = open_ends.pop()
        reached.add(name)
        open_ends += IMPORTS[name] - reached
    assert not reached & CLOSED_TO_REPORT


def test_the_public_names_are_those_of_the_package() -> None:
    assert sorted(aafit.__all__) == sorted(set(aafit.__all__))
    assert all(hasattr(aafit, name) for name in aafit.__all__)
    users = [name for name, needs in IMPORTS.items() if "aafit" in needs]
    assert not users, f"{users} import from the package as a whole, which imports them"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("import aafit.b", {"aafit.b"}),
        ("from aafit.b import f", {"aafit.b"}),
        ("from aafit import b, VERSION", {"aafit.b", "aafit"}),
        ("from . import b", {"aafit.b"}),
        ("from .b import f", {"aafit.b"}),
        ("def f():\n    from aafit import b", {"aafit.b"}),
        ("if True:\n    import aafit.b as c", {"aafit.b"}),
        ("import torch\nfrom os import path", set()),
    ],
)
def test_no_import_goes_unseen(tmp_path: Path, content: str, expected: set[str]) -> None:
    modules = {name: tmp_path / f"{name}.py" for name in ("aafit", "aafit.a", "aafit.b")}
    modules["aafit.a"].write_text(content)
    assert imported("aafit.a", modules) == expected
