"""The experiment's networks, with the layer names of the authors' checkpoints.

Axes in names: B image of a batch, C channel, H row, W column, F feature, K class.
"""

import torch
from torch import Tensor, fx, nn

from aafit.activations import FIXED
from aafit.errors import UserError, check_count, check_name

Shape = tuple[int, int, int]


@fx.wrap
def flatten(x_BCHW: Tensor) -> Tensor:
    """Flatten (B, C, H, W) to (B, C*H*W), with a gradient in the memory format of x.

    The gradient of torch.flatten is always NCHW, and max pooling on a CPU then has to copy its own, larger gradient
    from one format to the other.
    """
    if x_BCHW.requires_grad and x_BCHW.is_contiguous(memory_format=torch.channels_last):
        x_BCHW.register_hook(lambda grad_BCHW: grad_BCHW.contiguous(memory_format=torch.channels_last))
    return torch.flatten(x_BCHW, start_dim=1)


class KerasNet(nn.Module):
    """VGG-like network of the Keras CIFAR-10 example: four convolutions, then two fully connected layers.

    1,250,858 parameters for 3x32x32 images and 10 classes, with fixed activations.

    Args:
        in_shape: channels, height and width of an image; height and width at least 10.
        classes: number of logits.
        cnn: name of the fixed activation after each convolution (act1, act2, act4, act5).
        fc: name of the fixed activation after the first fully connected layer (act7).
    """

    cnn_activations = ("act1", "act2", "act4", "act5")
    fc_activations = ("act7",)

    def __init__(self, in_shape: Shape = (3, 32, 32), classes: int = 10, cnn: str = "ReLU", fc: str = "ReLU") -> None:
        super().__init__()
        channels, height, width = _checked("KerasNet", in_shape, classes, smallest=10)
        features = 64 * _twice(height, crop=2) * _twice(width, crop=2)
        self.conv1 = nn.Conv2d(channels, 32, kernel_size=3, padding=1)
        self.act1 = _fixed(cnn)
        self.conv2 = nn.Conv2d(32, 32, kernel_size=3)
        self.act2 = _fixed(cnn)
        self.pool3 = nn.MaxPool2d(2)
        self.drop3 = nn.Dropout2d(0.25)
        self.conv4 = nn.Conv2d(32, 64, kernel_size=3, padding=1)
        self.act4 = _fixed(cnn)
        self.conv5 = nn.Conv2d(64, 64, kernel_size=3)
        self.act5 = _fixed(cnn)
        self.pool6 = nn.MaxPool2d(2)
        self.drop6 = nn.Dropout2d(0.25)
        self.fc7 = nn.Linear(features, 512)
        self.act7 = _fixed(fc)
        self.drop7 = nn.Dropout(0.2)
        self.fc8 = nn.Linear(512, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W), in any memory format."""
        x_BCHW = self.act1(self.conv1(x_BCHW))
        x_BCHW = self.act2(self.conv2(x_BCHW))
        x_BCHW = self.drop3(self.pool3(x_BCHW))
        x_BCHW = self.act4(self.conv4(x_BCHW))
        x_BCHW = self.act5(self.conv5(x_BCHW))
        x_BF = flatten(self.drop6(self.pool6(x_BCHW)))
        x_BF = self.drop7(self.act7(self.fc7(x_BF)))
        logits_BK: Tensor = self.fc8(x_BF)
        return logits_BK


class LeNet5(nn.Module):
    """LeNet-5 in the authors' variant: no biases but one, max pooling, 500 features before the logits.

    Args:
        in_shape: channels, height and width of an image; height and width at least 16.
        classes: number of logits.
        cnn: name of the fixed activation after each convolution (act1, act2).
        fc: name of the fixed activation after the first fully connected layer (act3).
    """

    cnn_activations = ("act1", "act2")
    fc_activations = ("act3",)

    def __init__(self, in_shape: Shape = (3, 32, 32), classes: int = 10, cnn: str = "ReLU", fc: str = "ReLU") -> None:
        super().__init__()
        channels, height, width = _checked("LeNet-5", in_shape, classes, smallest=16)
        features = 50 * _twice(height, crop=4) * _twice(width, crop=4)
        self.conv1 = nn.Conv2d(channels, 20, kernel_size=5, bias=False)
        self.act1 = _fixed(cnn)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 50, kernel_size=5, bias=False)
        self.act2 = _fixed(cnn)
        self.pool2 = nn.MaxPool2d(2)
        self.fc3 = nn.Linear(features, 500)
        self.act3 = _fixed(fc)
        self.fc4 = nn.Linear(500, classes, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W), in any memory format."""
        x_BCHW = self.pool1(self.act1(self.conv1(x_BCHW)))
        x_BF = flatten(self.pool2(self.act2(self.conv2(x_BCHW))))
        x_BF = self.act3(self.fc3(x_BF))
        logits_BK: Tensor = self.fc4(x_BF)
        return logits_BK


NETWORKS: dict[str, type[KerasNet] | type[LeNet5]] = {"KerasNet": KerasNet, "LeNet-5": LeNet5}


def build(name: str, in_shape: Shape, classes: int, cnn: str = "ReLU", fc: str = "ReLU") -> KerasNet | LeNet5:
    """Return the network of that name with fixed activations and PyTorch's default initial weights.

    The weights depend on the state of torch's random generator only, never on the activations.
    """
    return NETWORKS[check_name("network", name, NETWORKS)](in_shape, classes, cnn=cnn, fc=fc)


def _fixed(name: str) -> nn.Module:
    return FIXED[check_name("fixed activation", name, FIXED)]()


def _twice(side: int, crop: int) -> int:
    """Return the side of an image after two rounds of losing `crop` pixels to a convolution, and pooling by 2."""
    for _ in range(2):
        side = (side - crop) // 2
    return side


def _checked(name: str, in_shape: Shape, classes: int, smallest: int) -> Shape:
    shape = tuple(in_shape)
    if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < smallest:
        raise UserError(
            f"{name} cannot take images of shape {shape}: give (channels, height, width), "
            f"with at least 1 channel and sides of at least {smallest} pixels."
        )
    check_count(f"number of classes of {name}", classes)
    return shape
