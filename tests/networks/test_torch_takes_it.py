"""A network whose calls became modules, wherever torch takes networks: copied, compiled, exported, parallel."""

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from written import Written, written

from aafit.activations import AHAF, LEAF, FNeuron
from aafit.errors import UserError
from aafit.networks.adaptive import adaptive_parameters, train_only_activations
from aafit.networks.surgery import replace_activations

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(5))


def between(net: Written, x: Tensor) -> Tensor:
    x = net.relu(F.relu(x))
    x = net.relu(net.fc2(x)) + net.own(x)
    return x.relu() * torch.sigmoid(net.fc1(x))


def replaced(new: nn.Module) -> nn.Module:
    return replace_activations(written(between), {"ReLU": new, "SiLU": LEAF.like("SiLU")}, sample=X)[0]


# A tracer takes every comparison of sizes for one of data.
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("new", [LEAF.like("ReLU"), FNeuron.like("ReLU")], ids=["LEAF", "F-Neuron"])
def test_the_result_is_an_ordinary_module(new: nn.Module) -> None:
    net = replaced(new)
    expected = net(X)
    assert torch.equal(copy.deepcopy(net)(X), expected)
    twin = written(between)
    twin.load_state_dict(net.state_dict(), strict=False)
    assert torch.equal(
        net.relu_1.state_dict()["p1" if isinstance(new, LEAF) else "weight"], next(net.relu_1.parameters())
    )
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(X), expected)
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(net, (X,), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(exported(X[:3]), expected[:3])
    torch.testing.assert_close(torch.jit.trace(net, (X,))(X[:3]), expected[:3])
    torch.testing.assert_close(nn.DataParallel(net)(X), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(X).dtype == torch.bfloat16
    for reentrant in (False, True):
        x = X.clone().requires_grad_()
        net.zero_grad()
        net(x).sum().backward()
        plain = [parameter.grad.clone() for parameter in net.relu_1.parameters()]
        net.zero_grad()
        checkpoint(net, x, use_reentrant=reentrant).sum().backward()
        assert all(torch.equal(one, other.grad) for one, other in zip(plain, net.relu_1.parameters(), strict=True))


class Branches(nn.Module):
    """Two programs, of which one has to be told from the other by more than what is called, in which order."""

    def __init__(self, a: str, b: str, turns: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2, self.a, self.b, self.turns = nn.Linear(6, 6), nn.Linear(6, 6), a, b, turns

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.turns if self.training else 1):
            if self.training:
                x = FUNCTIONS[self.b](self.fc2(FUNCTIONS[self.a](self.fc1(x))))
            else:
                x = FUNCTIONS[self.a](self.fc2(FUNCTIONS[self.b](self.fc1(x))))
        return F.leaky_relu(x, 0.2) + F.leaky_relu(x)


FUNCTIONS = {"relu": F.relu, "tanh": torch.tanh}


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
@pytest.mark.parametrize(("a", "b", "turns"), [("relu", "tanh", 1), ("relu", "relu", 1), ("relu", "tanh", 3)])
@pytest.mark.parametrize("trained", [False, True])
def test_compiled_or_exported_it_gives_the_same_in_every_branch(a: str, b: str, turns: int, trained: bool) -> None:
    base = Branches(a, b, turns)
    net, swap = replace_activations(base, {"*": AHAF(gamma=1.5, beta=1.0)}, sample=X)
    assert [row.path for row in swap.rows] == [
        f"{b}_1",
        "relu_2" if a == b else f"{a}_1",
        "leaky_relu_1",
        "leaky_relu_2",
    ]
    net.train(trained)
    expected = net(X)
    assert not torch.equal(expected, base.train(trained)(X))
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(X), expected)
    for strict in (False, True):
        torch.testing.assert_close(torch.export.export(net, (X,), strict=strict).module()(X), expected)


class Either(nn.Module):
    """Calls its activation at the one place or at the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor, first: bool = True) -> Tensor:
        if first:
            return F.relu(self.fc(x))
        return F.relu(self.fc(x) + 1)


def test_what_was_compiled_for_one_network_does_not_serve_another() -> None:
    new = AHAF(gamma=1.5, beta=1.0)
    # The same paths, of other calls.
    nets = [replace_activations(Either(), {"ReLU": new}, sample=(X, first))[0] for first in (True, False)]
    for net in nets:
        assert [*adaptive_parameters(net)] == ["relu_1.gamma", "relu_1.beta"]
        for first in (True, False):
            compiled = torch.compile(net, fullgraph=True, backend="eager")
            torch.testing.assert_close(compiled(X, first), net(X, first))


class Broken(nn.Module):
    """A program that the compiler breaks into parts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc(x))
        if x.mean() > 100:
            x = torch.tanh(x)
        torch._dynamo.graph_break()
        return F.relu(self.fc(x) - 0.1)


@pytest.mark.parametrize(
    "around", [lambda net: net, lambda net: nn.Sequential(net, nn.Tanh())], ids=["alone", "in a net"]
)
def test_compiled_in_parts_it_gives_the_same(around) -> None:
    net, _ = replace_activations(around(Broken()), {"ReLU": AHAF(gamma=1.5, beta=1.0)}, sample=X)
    with torch.no_grad():
        expected = net(X)
        assert torch.equal(torch.compile(net, backend="eager")(X), expected)
        assert torch.equal(net(X), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_call_that_is_recomputed_outside_of_its_forward_is_refused(reentrant: bool) -> None:
    def part(net: Written, x: Tensor) -> Tensor:
        return net.relu(F.relu(net.fc2(x)))

    def between(net: Written, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(part, net, x, use_reentrant=reentrant) if net.training else part(net, x)
        return out

    base = written(between)
    module_only, _ = replace_activations(base, {"relu": AHAF(gamma=1.5, beta=1.0)}, sample=X)
    module_only(X).sum().backward()
    assert module_only.relu.gamma.grad is not None
    net, _ = replace_activations(base, {"ReLU": AHAF(gamma=1.5, beta=1.0)}, sample=X)
    assert torch.isfinite(net.eval()(X)).all()
    with pytest.raises(UserError, match=r"'relu_1' in Net is recomputed .* by torch.utils.checkpoint"):
        net.train()(X)


class Pickled(Written):
    """A class that pickle can find."""

    def between(self, x: Tensor) -> Tensor:
        return F.relu(self.relu(self.relu(x)))


def test_it_pickles() -> None:
    net, _ = replace_activations(Pickled(), {"ReLU": LEAF.like("Tanh")}, sample=X)
    again = pickle.loads(pickle.dumps(net))
    assert torch.equal(again(X), net(X))
    assert isinstance(again, Pickled)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("new", [LEAF.like("ReLU"), AHAF.like("SiLU"), FNeuron.like("ReLU")], ids=type)
def test_onnx_gives_the_same_for_batches_of_any_size(new: nn.Module, tmp_path: Path) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    net, path = replaced(new).eval(), tmp_path / "net.onnx"
    rows = torch.export.Dim("rows", min=1, max=64)
    torch.onnx.export(net, (X,), path, dynamo=True, dynamic_shapes=({0: rows},), verbose=False)
    assert {node.domain for node in onnx.load(path).graph.node} <= {"", "ai.onnx"}
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (8, 3):
        (y,) = session.run(None, {session.get_inputs()[0].name: X[:count].numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(y), net(X[:count]), rtol=1e-4, atol=1e-5)


@pytest.fixture
def one_process() -> Iterator[None]:
    """A group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_distributed_data_parallel_gives_the_gradients_of_the_network_alone() -> None:
    net = replaced(LEAF.like("SiLU"))
    train_only_activations(net)
    # One of its ReLUs is never called.
    alone, wrapped = copy.deepcopy(net), DistributedDataParallel(net, find_unused_parameters=True)
    for own in (alone, wrapped):
        for _ in range(2):
            out = own(X)
            out.square().sum().backward()
    assert torch.equal(out, alone(X))
    expected = {name: parameter.grad for name, parameter in alone.named_parameters() if parameter.grad is not None}
    found = {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert found.keys() == expected.keys() == {name for name in adaptive_parameters(net) if "in_place" not in name}
    assert all(torch.equal(found[name], expected[name]) for name in found)
