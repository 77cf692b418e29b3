"""Loading samples: what is refused, how many at once, and whether axis 0 is the sample axis."""

import pytest
import torch
from torch import Tensor, nn

from aafit.activations import LEAF
from aafit.errors import UserError
from aafit.identification import audit, identify, importance
from aafit.identification.samples import load_samples
from aafit.networks.batches import Batch
from aafit.networks.surgery import replace_activations
from aafit.training.predictor import Predictor


class Recurrent(nn.Module):
    """Axis 0 of its inputs (T, C) is time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gru, self.act, self.out = nn.GRU(4, 16), LEAF.like("SiLU"), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.act(self.gru(x)[0]))
        return y


@pytest.mark.parametrize("function", [identify, audit, importance])
def test_rows_that_depend_on_each_other_are_refused(function: object) -> None:
    torch.manual_seed(0)
    data = [(torch.randn(60, 4), torch.arange(60) % 2)]
    with pytest.raises(UserError, match=r"depend on the other samples of the batch.* Axis 0 .* sample axis"):
        function(Recurrent(), data)  # type: ignore[operator]


def test_outputs_that_are_not_one_for_each_sample_are_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Flatten(0, 1))
    with pytest.raises(UserError, match=r"outputs of shape \(40, 3\) for 8 samples"):
        load_samples(Predictor(net), [torch.randn(8, 5, 4)], "test")


def test_batch_norm_in_training_mode_and_random_networks_are_accepted() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(x + torch.randn_like(x))
            return y

    for net in (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), Noisy()):
        before = {name: value.clone() for name, value in net.state_dict().items()}
        assert len(load_samples(Predictor(net), [torch.randn(20, 4)], "test")) == 20
        assert net.training
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(("sizes", "chosen", "expected"), [((2, 2, 1), None, 2), ((300,), None, 128), ((2, 2), 64, 64)])
def test_batches_stay_as_small_as_they_are(sizes: tuple[int, ...], chosen: int | None, expected: int) -> None:
    predictor = Predictor(nn.Linear(4, 3), batch_size=chosen)
    load_samples(predictor, [torch.randn(size, 4) for size in sizes], "test")
    assert predictor.batch_size == expected


def test_minus_infinity_is_allowed_in_a_mask_and_nowhere_else() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    mask, x = nn.Transformer.generate_square_subsequent_mask(6), torch.randn(40, 6, 8)
    net, _ = replace_activations(layer, {"ReLU": LEAF.like("SiLU")}, sample=(x, mask))
    found = identify(net, [(x, mask, None)], base=layer, target="logits", errors=False, steps=1)
    assert found.steps[-1].loss <= found.steps[0].loss
    for broken in (torch.full((4, 6, 8), value) for value in (float("nan"), float("inf"), -float("inf"))):
        with pytest.raises(UserError, match="not finite"):
            load_samples(Predictor(net), [Batch((broken, mask), {})], "test")
    with pytest.raises(UserError, match="not finite"):
        load_samples(Predictor(net), [Batch((x, mask + torch.nan), {})], "test")


def test_a_shared_mask_with_as_many_rows_as_samples_are_compared() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    for length in (2, 4, 8):
        mask, x = nn.Transformer.generate_square_subsequent_mask(length), torch.randn(30, length, 8)
        net, _ = replace_activations(layer, {"ReLU": LEAF.like("SiLU")}, sample=(x, mask))
        identify(net, [(x, mask, None)], base=layer, target="logits", errors=False, steps=1, batch_size=16)


def test_samples_along_a_declared_axis() -> None:
    """The same network takes sequences (T, B, C) as a batch whose samples lie along axis 1."""

    class Last(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[-1]

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 60, 4, generator=generator), torch.arange(60) % 2
    found = identify(Last(), [Batch((x,), {}, y, axis=1)], steps=1)
    assert found.steps[-1].loss <= found.steps[0].loss
    with pytest.raises(UserError, match=r"declare another one of the inputs by aafit.Batch\(..., axis=1\)"):
        identify(Last(), [(x, torch.arange(7) % 2)])


class Trimmed(nn.Module):
    """Leaves out positions that are 0 in all samples of the batch; its outputs are those of each position or a mean."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act, self.out, self.mean = nn.Linear(3, 8), LEAF.like("SiLU"), nn.Linear(8, 2), mean

    def forward(self, x: Tensor) -> Tensor:
        length = int((x.abs().sum(2) > 0).any(0).sum())
        y: Tensor = self.out(self.act(self.first(x[:, :length]) + 1))
        return y.mean(1) if self.mean else y


def of_lengths() -> Tensor:
    torch.manual_seed(0)
    x = torch.randn(40, 6, 3)
    for row in range(40):
        x[row, 1 + row % 4 :] = 0
    x[0, :6] = 1
    return x


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act, self.out = LEAF.like("SiLU"), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.act(x).detach())
        return y


@pytest.mark.parametrize("function", [identify, audit, importance])
def test_outputs_without_a_gradient_are_refused(function: object) -> None:
    data = [(torch.randn(20, 4), torch.arange(20) % 2)]
    with pytest.raises(UserError, match="no gradient with respect to any adaptive parameter"):
        function(Detached(), data)  # type: ignore[operator]
    net = nn.Sequential(LEAF.like("SiLU"), nn.Linear(4, 2))
    with (
        torch.inference_mode(),
        pytest.raises(UserError, match=r"which torch\.inference_mode rules out"),
    ):
        function(net, data)  # type: ignore[operator]


@pytest.mark.parametrize("function", [identify, audit, importance])
def test_ragged_outputs_are_refused_with_a_sentence(function: object) -> None:
    x = of_lengths()
    with pytest.raises(UserError, match=r"ragged: .*\(8, 6, 2\), \(4, 6, 2\), \(4, 4, 2\)\. .*batch_size=1"):
        function(Trimmed(mean=False), [(x, torch.zeros(40, 6).long())])  # type: ignore[operator]


def test_samples_that_differ_with_their_batch_run_one_at_a_time() -> None:
    x, y = of_lengths(), torch.arange(40) % 2
    with pytest.raises(UserError, match="set batch_size=1"):
        identify(Trimmed(mean=True), [(x, y)])
    found = identify(Trimmed(mean=True), [(x, y)], batch_size=1, steps=2, errors=False)
    one_by_one = [nn.functional.cross_entropy(Trimmed(mean=True)(x[at : at + 1]), y[at : at + 1]) for at in range(40)]
    assert found.steps[0].loss == pytest.approx(torch.stack(one_by_one).mean().item(), rel=1e-5)
