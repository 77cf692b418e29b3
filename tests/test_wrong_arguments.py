"""Arguments of a wrong type: each public function names what it was given, in one sentence."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import aafit
from aafit import UserError

X, Y = torch.randn(16, 4), torch.randint(3, (16,))
DATA = [(X, Y)]


def base() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def adaptive(replacement: Any = aafit.LEAF) -> nn.Module:
    return aafit.replace_activations(base(), {"ReLU": replacement}, sample=X)[0]


OF_A_NETWORK = {
    "adaptive_activations": (),
    "adaptive_parameters": (),
    "audit": (DATA,),
    "compare": (base(), DATA),
    "compare_families": (DATA,),
    "evaluate": (DATA,),
    "export_polynomials": ([X],),
    "find_activations": (X,),
    "fold_activations": (X,),
    "freeze_activations": ("table",),
    "identify": (DATA,),
    "importance": (DATA,),
    "load_activations": ("a.safetensors",),
    "plot_activations": (),
    "replace_activations": ({"ReLU": aafit.LEAF},),
    "save_activations": ("a.safetensors",),
    "smooth_start": (DATA,),
    "study": (DATA,),
    "train_only_activations": (),
    "tune": (DATA,),
}


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (DATA, "The network is a list: give a torch.nn.Module"),
        (None, "The network is a NoneType"),
        (nn.ReLU, r"The network is the class ReLU: give an object of it, ReLU\(\.\.\.\)"),
    ],
    ids=["the batches", "nothing", "a class"],
)
@pytest.mark.parametrize("name", OF_A_NETWORK)
def test_a_first_argument_that_is_no_network(name: str, first: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        getattr(aafit, name)(first, *OF_A_NETWORK[name])


@pytest.mark.parametrize("name", ["audit", "identify", "importance", "tune"])
def test_a_base_that_is_no_network(name: str) -> None:
    with pytest.raises(UserError, match="The network is a list"):
        getattr(aafit, name)(adaptive(), DATA, base=DATA)


@pytest.mark.parametrize("name", ["audit", "compare_families", "evaluate", "identify", "importance", "study", "tune"])
@pytest.mark.parametrize(
    ("batches", "says"),
    [
        ((X, Y), "one batch alone: put it in a list"),
        (X, "one batch alone"),
        (5, "The batches given are a int"),
        (base(), "The batches given are a Sequential|The batch is a Linear"),
    ],
    ids=["(x, y)", "x", "a number", "a network"],
)
def test_batches_that_are_none(name: str, batches: Any, says: str) -> None:
    net = base() if name in ("study", "compare_families") else adaptive()
    with pytest.raises(UserError, match=says):
        getattr(aafit, name)(net, batches)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: aafit.identify(adaptive(), DATA, base=nn.Linear(4, 3)), "The networks have different modules"),
        (lambda: aafit.identify(adaptive(), DATA, state=3), "is no state of an identification of 4 parameters"),
        (lambda: aafit.identify(adaptive(), DATA, prior=1e308), "The weight of the prior must be a number above 0"),
        (lambda: aafit.identify(adaptive(), DATA, prior=10**30), "The weight of the prior must be a number above 0"),
        (lambda: aafit.identify(adaptive(), DATA, prior=[1.0]), "The weight of the prior must be a number above 0"),
        (lambda: aafit.identify(adaptive(), DATA, memory=math.nan), "The memory is a number of bytes"),
        (lambda: aafit.identify(adaptive(), DATA, seed=0.5), "The seed must be an integer"),
        (lambda: aafit.importance(adaptive(), DATA, seed="0"), "The seed must be an integer"),
        (lambda: aafit.study(base(), DATA, seed=None), "The seed must be an integer"),
        (lambda: aafit.study(base(), DATA, memory="1 GiB"), "The memory is a number of bytes"),
        (lambda: aafit.tune(adaptive(), DATA, lr="fast"), "The learning rate must be a positive number"),
        (lambda: aafit.tune(adaptive(), DATA, epochs=10**30), "an integer of at least 0 and at most"),
        (lambda: aafit.evaluate(base(), DATA, loss=nn.MSELoss), "The loss is the class MSELoss: give an object of it"),
        (
            lambda: aafit.evaluate(base(), DATA, loss=lambda: 1),
            "The loss '<lambda>' failed on outputs of",
        ),
        (lambda: aafit.evaluate(base(), DATA, metric="accuracy"), "The metric is 'accuracy': give a function"),
        (lambda: aafit.evaluate(base(), DATA, metric=lambda y: y), "The metric failed on outputs .* TypeError"),
        (lambda: aafit.evaluate(base(), [aafit.Batch((X,), {}, Y, axis=0.5)]), "The axis of the samples"),
        (lambda: aafit.export_polynomials(adaptive(aafit.Polynomial), X), "The batches given are a Tensor"),
        (lambda: aafit.curve_errors(torch.relu, aafit.LEAF.like("ReLU")), "The activation is a builtin_function"),
        (lambda: aafit.curve_errors(aafit.LEAF.like("ReLU"), "ReLU"), "The function is a str"),
        (lambda: aafit.curve_errors(nn.ReLU(), torch.relu, (1, 0)), "needs finite ends with left < right"),
        (lambda: aafit.loss_with_hessian(torch.relu, "Huber"), "takes a name and functions of outputs and target"),
        (lambda: aafit.plot_study(DATA), "This is a list: give what aafit.study returned"),
        (lambda: aafit.plot_families(DATA), "This is a list: give what aafit.compare_families returned"),
        (lambda: aafit.Polynomial(None), "Polynomial's coefficients must be a number or a tensor"),
        (lambda: aafit.FNeuron("ReLU"), "F-Neuron's weight must be a number or a tensor"),
        (lambda: aafit.load_run(5), "The file is given as a int"),
        (lambda: aafit.load_authors_checkpoint([]), "The file is given as a list"),
        (lambda: aafit.study(base(), DATA, report=5), "The file is given as a int"),
        (lambda: aafit.save_activations(adaptive(), "a\0b"), "is no path"),
        (lambda: aafit.save_activations(adaptive(), ""), r"\. is a folder: give the name of a file in it"),
        (lambda: aafit.study(base(), DATA, report="a" * 300 + ".html", steps=0), "Cannot write .*File name too long"),
    ],
)
def test_other_arguments(call: Callable[[], Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        call()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No such file or directory\. Create the folder .*missing first"):
        aafit.save_activations(adaptive(), tmp_path / "missing" / "a.safetensors")
