"""What each replaced activation does by itself, what becomes of it downstream, and networks of any form."""

import math
from collections import UserDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aafit.activations import LEAF, FNeuron
from aafit.errors import UserError
from aafit.networks.surgery import replace_activations
from aafit.training.compare import compare
from aafit.training.distance import SAMPLED, InputRange


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)).double()


def changed_chain() -> tuple[nn.Sequential, nn.Module]:
    base = chain()
    return base, replace_activations(base, {"Tanh": LEAF.like("SiLU"), "GELU": LEAF.like("ReLU")})[0]


def inputs(rows: int = 12) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def relative(before: Tensor, after: Tensor) -> float:
    return ((after - before).norm() / before.norm()).item()


def test_each_activations_own_difference_and_what_becomes_of_it() -> None:
    base, net = changed_chain()
    x = inputs()
    with torch.no_grad():
        u1, v1 = base[0](x), net[0](x)
        y1, z1 = base[1](u1), net[1](v1)
        u2, v2 = base[2](y1), net[2](z1)
        y2, z2 = base[3](u2), net[3](v2)
        own = net[3](u2)
        results = base(x), net(x)
    found = compare(base, net, [x[:5], x[5:]])
    first, second = found.layers
    assert (first.input_relative, first.local_max_abs) == (0, first.max_abs)
    assert math.isnan(first.amplification)
    assert first.local_relative == first.relative == pytest.approx(relative(y1, z1), rel=1e-12)
    assert second.relative == pytest.approx(relative(y2, z2), rel=1e-12)
    assert second.local_relative == pytest.approx(relative(y2, own), rel=1e-9)
    assert second.local_max_abs == pytest.approx((own - y2).abs().max().item(), rel=1e-9)
    assert second.local_mean_abs == pytest.approx((own - y2).abs().mean().item(), rel=1e-9)
    assert second.input_relative == pytest.approx(relative(u2, v2), rel=1e-12)
    assert second.amplification == pytest.approx(relative(u2, v2) / relative(y1, z1), rel=1e-12)
    assert found.logits.amplification == pytest.approx(relative(*results) / relative(y2, z2), rel=1e-12)
    quantiles = u2.reshape(-1).quantile(torch.tensor([0.01, 0.99], dtype=torch.float64)).tolist()
    assert second.inputs == pytest.approx((u2.min().item(), *quantiles, u2.max().item()), rel=1e-12)
    cosines = F.cosine_similarity(*results)
    assert (found.cosine, found.least_cosine) == pytest.approx((cosines.mean().item(), cosines.min().item()), rel=1e-12)
    assert all(word in str(found) for word in ("local error", "input error", "amplification", "inputs"))


def test_without_labels_there_is_neither_accuracy_nor_loss() -> None:
    base, net = changed_chain()
    found = compare(base, net, [inputs()])
    for value in (found.agreement, found.base_accuracy, found.replaced_loss, found.base_metric):
        assert math.isnan(value)
    assert str(found).splitlines()[-1] == (
        f"cosine similarity of the outputs {found.cosine:.6f}, at least {found.least_cosine:.6f}; 12 samples"
    )
    classes = compare(base, net, [inputs()], loss="cross-entropy")
    with torch.no_grad():
        expected = (base(inputs()).argmax(1) == net(inputs()).argmax(1)).double().mean().item()
    assert classes.agreement == expected
    assert math.isnan(classes.base_accuracy)


def test_losses_and_metrics_of_ones_own() -> None:
    base, net = changed_chain()
    x, target = inputs(), torch.ones(12, 3, dtype=torch.float64)
    found = compare(
        base, net, [(x, target)], loss="mean squared error", metric=lambda out, y: (out > y).double().mean(1)
    )
    with torch.no_grad():
        results = base(x), net(x)
    assert found.base_loss == pytest.approx(F.mse_loss(results[0], target).item(), rel=1e-12)
    assert found.replaced_metric == (results[1] > 1).double().mean().item()
    assert math.isnan(found.agreement)
    assert f"metric {found.base_metric:.4g} -> {found.replaced_metric:.4g}" in str(found)


def test_a_reference_tells_rounding_from_what_the_function_does() -> None:
    base = chain().float()
    net, _ = replace_activations(base, {"Tanh": LEAF.like("Tanh"), "GELU": FNeuron.like("Tanh")})
    x = inputs().float()
    found = compare(base, net, [x], reference=torch.float64)
    exact = compare(base.double(), net.double(), [x.double()])
    for row, expected in zip((*found.layers, found.logits), (*exact.layers, exact.logits), strict=True):
        assert row.reference is not None
        assert row.reference.max_abs == pytest.approx(expected.max_abs, rel=1e-9, abs=1e-15)
        assert row.reference.mean_abs == pytest.approx(expected.mean_abs, rel=1e-9, abs=1e-15)
        assert 0 < row.reference.base_rounding < 1e-5
        assert 0 < row.reference.replaced_rounding < 1e-5
    first = found.layers[0]
    # LEAF as Tanh is Tanh: what is seen of it in float32 is rounding.
    assert first.reference is not None
    assert first.reference.max_abs < 1e-14 < first.max_abs < 1e-6
    assert "in reference" in str(found)
    assert "in reference" not in str(exact)


class Calls(nn.Module):
    """Token ids by name, activations called as functions, and an object returned."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.fc, self.out = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Any:
        x = F.gelu(self.fc(F.relu(self.fc(self.embed(ids)))))
        return UserDict(hidden=self.out(x), pooled=x.mean(1))


def test_calls_of_functions_in_a_network_of_any_form() -> None:
    base = Calls()
    batches = [{"ids": torch.arange(8).reshape(2, 4), "labels": torch.tensor([[0, 1, 2, -100]] * 2)}]
    sample = {"ids": batches[0]["ids"]}
    net, _ = replace_activations(base, {"ReLU": LEAF.like("SiLU"), "GELU": LEAF.like("ReLU")}, sample=sample)
    found = compare(base, net, batches, output=lambda out: out["hidden"])
    assert len(found.layers) == 2
    assert all(row.local_max_abs > 0.001 for row in found.layers)
    assert found.layers[0].input_relative == 0
    with torch.no_grad():
        results = [one(**sample)["hidden"][:, :3] for one in (base, net)]
    assert found.agreement == (results[0].argmax(2) == results[1].argmax(2)).double().mean().item()
    assert found.base_loss == pytest.approx(
        F.cross_entropy(results[0].reshape(-1, 3), torch.tensor([0, 1, 2, 0, 1, 2])).item(), rel=1e-6
    )
    with pytest.raises(UserError, match=r"with hidden, pooled: say which tensor is meant"):
        compare(base, net, batches)


def test_a_module_called_twice_counts_with_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self, act: nn.Module) -> None:
            super().__init__()
            self.act = act

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.act(self.act(x) * 3)
            return y

    base, net, x = Twice(nn.Tanh()), Twice(LEAF.like("ReLU")), torch.tensor([[0.5, -4.0]])
    (row,) = compare(base, net, [x]).layers
    assert row.inputs[0] == -4
    assert row.inputs[3] == pytest.approx(3 * math.tanh(0.5), rel=1e-6)
    assert row.max_abs == pytest.approx(1.0, abs=1e-3)  # at -4: -tanh(4) against 0


def test_a_sample_of_the_inputs_is_bounded_and_near() -> None:
    values, generator = InputRange(), torch.Generator().manual_seed(0)
    for _ in range(40):
        values.add(torch.rand(8192, generator=generator))
    assert sum(map(len, values._sample)) <= SAMPLED
    least, low, high, largest = values.quantiles()
    assert least < 1e-4
    assert largest > 1 - 1e-4
    assert (low, high) == pytest.approx((0.01, 0.99), abs=2e-3)


def test_what_cannot_be_compared() -> None:
    base, net = changed_chain()
    x = inputs()
    with pytest.raises(UserError, match="ScriptModule"):
        compare(torch.jit.trace(chain(), x), net, [x])
    with pytest.raises(UserError, match=r"outputs have shapes \(12, 3\) and \(12, 2\)"):
        compare(base, nn.Sequential(*net[:-1], nn.Linear(5, 2).double()), [x])
    with pytest.raises(UserError, match="1 of the labels are no class"):
        compare(base, net, [(x[:2], torch.tensor([0, 3]))])
    with pytest.raises(UserError, match=r"torch.int64 is no floating-point type"):
        compare(base, net, [x], reference=torch.int64)
    with pytest.raises(UserError, match=r"reference='float64' is no floating-point type: give torch.float64"):
        compare(base, net, [x], reference="float64")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="one batch alone"):
        compare(base, net, (x, x))


def test_an_input_that_is_changed_in_place_is_given_anew_to_the_second() -> None:
    base = nn.Sequential(nn.Hardtanh(-0.1, 0.1, inplace=True), nn.Tanh())
    net, x = nn.Sequential(nn.Hardtanh(-9, 9), nn.Tanh()), torch.ones(2, 3)
    found = compare(base, net, [x])
    assert found.logits.max_abs == pytest.approx(math.tanh(1) - math.tanh(0.1), rel=1e-6)
    assert torch.equal(x, torch.ones(2, 3))


def test_each_network_has_its_own_rounding() -> None:
    base = nn.Sequential(nn.ReLU())  # of integers exact in float32
    wrapped = nn.Sequential(base)
    net, _ = replace_activations(wrapped, {"ReLU": LEAF.like("Tanh")})
    x = torch.arange(-8.0, 8.0).reshape(4, 4)
    found = compare(wrapped, net, [x], reference=torch.float64)
    for row in (*found.layers, found.logits):
        assert row.reference is not None
        assert row.reference.base_rounding == 0
        assert 0 < row.reference.replaced_rounding < 1e-6


def test_quantiles_of_the_inputs_weigh_all_values_alike() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Linear(40, 2))
    net, _ = replace_activations(base, {"ReLU": LEAF.like("ReLU")})
    many, few = torch.randn(8000, 40), torch.randn(2, 40) * 100
    (row,) = compare(base, net, [many, few]).layers
    assert row.inputs[1:3] == pytest.approx((-2.35, 2.35), abs=0.1)


def test_layers_stand_in_the_order_of_their_calls() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first, self.fc = nn.SiLU(), nn.SiLU(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.fc(self.first(self.fc(x))))
            return y

    base = Net()
    net, _ = replace_activations(base, {"SiLU": LEAF.like("SiLU")})
    assert [row.path for row in compare(base, net, [torch.randn(5, 4)]).layers] == ["first", "last"]


def test_layers_in_groups_give_the_same_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    base, net = changed_chain()
    x = inputs()
    expected = compare(base, net, [x[:5], x[5:]], reference=torch.float64)
    monkeypatch.setattr("aafit.training.compare.RECORDED", 1)
    assert str(compare(base, net, [x[:5], x[5:]], reference=torch.float64)) == str(expected)


def test_networks_in_data_parallel_are_unwrapped() -> None:
    base, net = changed_chain()
    found = compare(nn.DataParallel(base), nn.DataParallel(net), [inputs()])
    assert [row.path for row in found.layers] == ["1", "3"]
