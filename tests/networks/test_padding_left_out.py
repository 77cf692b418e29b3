"""Encoders of torch.nn that leave padding out in evaluation mode, with some of their activations replaced."""

from typing import Any

import pytest
import torch
from torch import nn

from aafit.activations import LEAF
from aafit.networks.batches import Batch
from aafit.networks.surgery import replace_activations
from aafit.training.compare import compare

# torch says of its own encoder that nested tensors may change.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


@pytest.mark.parametrize("activation", ["relu", nn.ReLU()])
@pytest.mark.parametrize("with_mask", [True, False])
def test_an_encoder_that_leaves_padding_out(activation: Any, with_mask: bool) -> None:
    """Its layers get nested tensors then, which only those with a fused activation can take."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=activation, batch_first=True)
    base = nn.TransformerEncoder(layer, 2).eval()
    x, mask = torch.randn(3, 5, 8), torch.zeros(3, 5, dtype=torch.bool)
    mask[0, 3:] = True
    masked = {"src_key_padding_mask": mask}
    net, swap = replace_activations(base, {"layers.1.*": LEAF.like("ReLU")}, sample=(x, masked) if with_mask else x)
    with torch.no_grad():
        expected, y = base(x, **masked), net(x, **masked)
        torch.testing.assert_close(y[~mask], expected[~mask], rtol=0, atol=1e-4)
        # For padding the base gives 0 and the other does not: no difference that a comparison should count.
        assert not expected[mask].any()
        assert y[mask].all()
        assert compare(base, net, [Batch((x,), masked)]).logits.max_abs < 1e-4
        assert torch.equal(base(x, **masked), expected)
        assert torch.equal(swap.restore(net)(x, **masked), expected)
