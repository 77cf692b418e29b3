"""The examples of the public docstrings run as they stand."""

import doctest
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import aafit
from aafit.activations.compiled import compiled_loops


def documented() -> dict[str, Any]:
    """Return the public functions and classes, and the public methods of the classes, by name."""
    found = {}
    for name in aafit.__all__:
        one = getattr(aafit, name)
        found[name] = one
        if inspect.isclass(one):
            found |= {f"{name}.{key}": value for key, value in vars(one).items() if not key.startswith("_")}
    return found


EXAMPLES = {
    name: examples
    for name, one in documented().items()
    if (inspect.isroutine(one) or inspect.isclass(one) or isinstance(one, classmethod | staticmethod))
    and (examples := doctest.DocTestParser().get_examples(inspect.getdoc(one) or ""))
}


def given() -> dict[str, Any]:
    """Return the names that examples use: a trained network, the network after a replacement, samples, a saved file."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(64, 3)]
    base = nn.Sequential(*layers).eval()
    images, labels = torch.randn(64, 3, 8, 8), torch.randint(3, (64,))
    net, _ = aafit.replace_activations(base, {"SiLU": aafit.LEAF.like("SiLU")}, sample=images)
    aafit.save_activations(net, "leaf.safetensors")
    library = {"aafit": aafit, "torch": torch, "nn": nn, "F": nn.functional}
    return library | {"base": base, "net": net, "images": images, "labels": labels, "batches": [(images, labels)]}


def test_every_public_function_has_an_example() -> None:
    functions = {name for name in aafit.__all__ if inspect.isfunction(getattr(aafit, name))}
    assert functions - EXAMPLES.keys() == set()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = given()
    with compiled_loops(False):
        for example in EXAMPLES[name]:
            if not example.options.get(doctest.SKIP):
                exec(compile(example.source, name, "exec"), names)
