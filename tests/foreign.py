"""Networks that are not the experiment's, for tests that replacement works on any."""

import torch
from torch import Tensor, nn

from aafit.activations import LEAF, AdaptiveActivation
from aafit.networks.surgery import replace_activations


class Block(nn.Module):
    """A residual block whose two activations work in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(y)) + x)


class ResNet(nn.Module):
    """Batch norms with and without weights of their own, nested names, dropout, and a softmax that is no activation."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width, affine=False), nn.SiLU())
        self.layers = nn.ModuleList([Block(width), Block(width)])
        self.head = nn.ModuleDict(
            {"fc": nn.Linear(width, 5), "act": nn.ReLU(), "drop": nn.Dropout(0.5), "logits": nn.Linear(5, 3)}
        )
        self.softmax = nn.Softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        x = self.head["drop"](self.head["act"](self.head["fc"](x.mean(dim=(2, 3)))))
        return self.softmax(self.head["logits"](x))


RELUS = ("layers.0.act1", "layers.0.act2", "layers.1.act1", "layers.1.act2", "head.act")


def resnet() -> ResNet:
    """A `ResNet` whose batch norms have seen something, so that no statistic has its first value."""
    torch.manual_seed(0)
    net = ResNet()
    net(torch.randn(8, 3, 6, 6))
    return net.eval()


def images(batch: int = 2) -> Tensor:
    """An input of `resnet`."""
    return torch.randn(batch, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def changed(net: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """The names of the tensors that are no longer the same, bit for bit."""
    now = net.state_dict()
    assert now.keys() == before.keys()
    return {name for name, tensor in now.items() if not torch.equal(tensor, before[name])}


def adaptive_resnet(sharing="layer", new: AdaptiveActivation | None = None) -> nn.Module:
    return replace_activations(resnet(), {"ReLU": new or LEAF.like("SiLU")}, sharing, images())[0]


def train(net: nn.Module, parameters: list[nn.Parameter], steps: int = 3) -> None:
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        net(images(8)).square().sum().backward()
        optimizer.step()
