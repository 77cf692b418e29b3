"""Inputs that are objects: dataclasses, lists of graphs, batches of graphs; and samples along another axis."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aafit
from aafit import Batch
from aafit.errors import UserError
from aafit.networks.batches import as_batch, tensors_in


class Graph:
    """A graph of some nodes."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.name = x, "graph"


class Graphs:
    """Several graphs as one, with a batch vector, as a batch of PyTorch Geometric without its methods."""

    def __init__(self, graphs: list[Graph]) -> None:
        self.x = torch.cat([graph.x for graph in graphs])
        self.batch = torch.cat([torch.full((len(graph.x),), at) for at, graph in enumerate(graphs)])
        self.num_graphs = len(graphs)


class DividableGraphs(Graphs):
    """The same with the methods of PyTorch Geometric."""

    @classmethod
    def from_data_list(cls, graphs: list[Graph]) -> "DividableGraphs":
        return cls(graphs)

    def to_data_list(self) -> list[Graph]:
        return [Graph(self.x[self.batch == at]) for at in range(self.num_graphs)]


@dataclass(frozen=True, slots=True)
class Inputs:
    x: Tensor
    scale: Tensor
    name: str = "inputs"


class Core(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.act, self.b = nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 3)

    def layers(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.act(self.a(x)))
        return y


class OfGraphs(Core):
    def forward(self, graphs: list[Graph]) -> Tensor:
        return torch.stack([self.layers(graph.x).sum(0) for graph in graphs])


class OfBatchedGraphs(Core):
    def forward(self, graphs: Graphs) -> Tensor:
        return torch.zeros(graphs.num_graphs, 3).index_add(0, graphs.batch, self.layers(graphs.x))


class OfInputs(Core):
    def forward(self, inputs: Inputs) -> Tensor:
        return self.layers(inputs.x) * inputs.scale


def graphs(count: int) -> list[Graph]:
    generator = torch.Generator().manual_seed(count)
    return [Graph(torch.randn(2 + at % 3, 3, generator=generator)) for at in range(count)]


def inputs(count: int) -> Inputs:
    return Inputs(torch.randn(count, 3, generator=torch.Generator().manual_seed(count)), torch.ones(count, 1))


FORMS = {
    "list of graphs": (OfGraphs, graphs),
    "batch of graphs": (OfBatchedGraphs, lambda count: DividableGraphs(graphs(count))),
    "dataclass": (OfInputs, inputs),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_library_works_on_objects(form: str) -> None:
    build, given = FORMS[form]
    base, data = build(), [(given(12), torch.arange(12) % 3), (given(7), torch.arange(7) % 3)]
    net, report = aafit.replace_activations(base, {"*": aafit.LEAF}, sample=(given(5),))
    assert [row.path for row in report.rows] == ["act"]
    assert aafit.compare(base, net, data).agreement == 1
    assert aafit.evaluate(net, data).samples == 19
    assert len(aafit.tune(net, data, epochs=1)) == 1
    found = aafit.identify(net, data, base=base, target="logits", errors=False, steps=1)
    assert found.steps[0].loss >= 0


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_objects_are_divided_and_joined(form: str) -> None:
    build, given = FORMS[form]
    net, batch = build(), Batch((given(7),), {}, torch.arange(7))
    outputs = net(*batch.args)
    assert len(batch) == 7
    for rows in (torch.tensor([5, 0, 3]), torch.tensor([6])):
        some = batch.at(rows)
        torch.testing.assert_close(net(*some.args), outputs[rows])
        assert torch.equal(some.target, rows)
    parts = list(batch.batches(3))
    assert [len(part) for part in parts] == [3, 3, 1]
    torch.testing.assert_close(torch.cat([net(*part.args) for part in parts]), outputs)
    torch.testing.assert_close(net(*Batch.joined(parts).args), outputs)
    copy = batch.cloned()
    for tensor in copy.inputs():
        tensor.fill_(7)
    torch.testing.assert_close(net(*batch.args), outputs)
    assert {tensor.dtype for tensor in batch.floating(torch.float64).inputs()} <= {torch.float64, torch.int64}


def test_objects_keep_what_is_no_tensor() -> None:
    (copy,) = Batch((inputs(3),), {}).to("cpu").args
    assert (type(copy), copy.name) == (Inputs, "inputs")
    (some,) = Batch((graphs(3),), {}).part(0, 2).args
    assert [graph.name for graph in some] == ["graph"] * 2


def test_a_batch_of_graphs_without_methods_is_called_as_a_whole() -> None:
    base, data = OfBatchedGraphs(), [(Graphs(graphs(4)), torch.arange(4) % 3)]
    net, _ = aafit.replace_activations(base, {"*": aafit.LEAF}, sample=(Graphs(graphs(4)),))
    assert aafit.compare(base, net, data).agreement == 1
    with pytest.raises(UserError, match=r"A Graphs of 4 graph\(s\) cannot be divided .*: give a list of graphs"):
        aafit.identify(net, data, base=base, target="logits", errors=False)
    with pytest.raises(UserError, match=r"A Graphs of 4 graph\(s\) cannot be joined with others"):
        aafit.identify(net, data * 2, errors=False)


def test_tensors_are_found_wherever_they_are() -> None:
    x, y, z = torch.ones(1), torch.ones(2), torch.ones(3)
    around: dict[str, Any] = {"a": [x, Graph(y)], "of": (inputs(3), "text", nn.Linear(2, 2))}
    around["itself"] = around
    assert [tensor.shape[0] for tensor in tensors_in([around, z])] == [1, 2, 3, 3, 3]


class TimeFirst(nn.Module):
    """A recurrent network of inputs (T, B, C)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gru, self.act, self.out = nn.GRU(4, 8), nn.SiLU(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.act(self.gru(x)[0]))
        return y


class BatchFirst(TimeFirst):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(0, 1)).transpose(0, 1)[:, -1]


def test_samples_along_another_axis() -> None:
    x, labels = torch.randn(5, 40, 4), torch.arange(40) % 3
    nets = [
        aafit.replace_activations(build(), {"*": aafit.LEAF.like("SiLU")}, sample=x)[0]
        for build in (TimeFirst, BatchFirst)
    ]
    aafit.identify(nets[0], [Batch((x,), {}, labels, axis=1)], output=lambda out: out[-1], steps=2)
    aafit.identify(nets[1], [(x.transpose(0, 1), labels)], steps=2)
    torch.testing.assert_close(nets[0].act.p1, nets[1].act.p1)
    batch, rows = Batch((x,), {}, labels, axis=1), torch.tensor([7, 0, 39])
    assert len(batch) == 40
    assert torch.equal(batch.at(rows).args[0], x[:, rows])
    assert torch.equal(batch.at(rows).target, labels[rows])
    wide = Batch((x,), {}, torch.randn(40, 40), axis=1)
    assert torch.equal(wide.at(rows).target, wide.target[rows])
    with pytest.raises(UserError, match="has its samples along axis 3, which its first tensor does not have"):
        as_batch(Batch((x,), {}, labels, axis=3))


def test_no_object_is_no_sample() -> None:
    batch = Batch(([Graph(torch.randn(2, 3))],), {}, torch.zeros(1))
    none = batch.part(0, 0)
    assert (len(none), list(none.batches(4))) == (0, [])
