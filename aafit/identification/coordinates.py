"""The adaptive parameters of a network as one vector, in coordinates where a step of a given length means as much."""

import math

import torch
from torch import Tensor, nn

from aafit.errors import UserError
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.running import check_not_scripted


class Coordinates:
    """The vector t of P numbers, in float64, behind the adaptive parameters of a network.

    A steepness (AHAF's gamma, LEAF's p3) is p = sinh(t), so that a step in t changes a large one by a share of it and
    a small one, which may change its sign, by an amount. Every other parameter is p = t.

    Attributes:
        names: "act1.gamma", "act7.weight[3]", ..., one for each coordinate.
        layers: The path of the activation of each coordinate.

    Raises:
        UserError: the network is scripted, or has no adaptive activation, or one that holds a value that is not finite.
    """

    def __init__(self, net: nn.Module) -> None:
        check_not_scripted(net)
        self.parameters: dict[str, nn.Parameter] = {}
        self.names: list[str] = []
        self.layers: list[str] = []
        sharp: list[Tensor] = []
        for path, activation in adaptive_activations(net).items():
            for own_name, parameter in activation.named_parameters(recurse=False):
                name = f"{path}.{own_name}" if path else own_name
                if not parameter.isfinite().all():
                    raise UserError(f"{name} is not finite; start from finite values.")
                self.parameters[name] = parameter
                self.names += _element_names(name, parameter)
                self.layers += [path] * parameter.numel()
                sharp.append(torch.full((parameter.numel(),), own_name in activation.slope_parameters))
        if not self.parameters:
            raise UserError(
                "The network has no adaptive activation to identify: put some in with replace_activations first."
            )
        self.sharp_P = torch.cat(sharp)

    def __len__(self) -> int:
        return len(self.names)

    def read(self) -> Tensor:
        """The vector of the parameters as they are, on the CPU."""
        values_P = torch.cat([p.detach().double().cpu().flatten() for p in self.parameters.values()])
        return torch.where(self.sharp_P, values_P.asinh(), values_P)

    def values(self, vector_P: Tensor) -> Tensor:
        """The parameters of a vector, (P,) in float64."""
        return torch.where(self.sharp_P, vector_P.sinh(), vector_P)

    def slopes(self, vector_P: Tensor) -> Tensor:
        """dp/dt at a vector, (P,)."""
        return torch.where(self.sharp_P, vector_P.cosh(), torch.ones_like(vector_P))

    def tensors(self, vector_P: Tensor) -> dict[str, Tensor]:
        """The parameters of a vector by name, in the shapes, dtypes and on the devices they have in the network."""
        pieces = self.values(vector_P).split([p.numel() for p in self.parameters.values()])
        return {
            name: piece.reshape(p.shape).to(p.device, p.dtype)
            for (name, p), piece in zip(self.parameters.items(), pieces, strict=True)
        }

    def write(self, vector_P: Tensor) -> None:
        """Put a vector into the network."""
        with torch.no_grad():
            for name, tensor in self.tensors(vector_P).items():
                self.parameters[name].copy_(tensor)

    def names_in(self, module: nn.Module) -> dict[str, str]:
        """What each parameter is called in another module that shares it, by its name here."""
        known = {id(parameter): name for name, parameter in self.parameters.items()}
        return {known[id(p)]: name for name, p in module.named_parameters() if id(p) in known}


def _element_names(name: str, parameter: Tensor) -> list[str]:
    if parameter.numel() == 1:
        return [name]
    shape = parameter.shape[1:] if parameter.shape[0] == 1 and parameter.ndim > 1 else parameter.shape
    indices = torch.cartesian_prod(*(torch.arange(size) for size in shape)).reshape(math.prod(shape), -1).tolist()
    return [f"{name}[{','.join(map(str, index))}]" for index in indices]
