"""Map the adaptive parameters of a network to one vector, in coordinates in which equal steps are comparable."""

import math

import torch
from torch import Tensor, nn

from aafit.errors import UserError
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.running import check_not_scripted


class Coordinates:
    """Maps the adaptive parameters p of a network to a vector t of P coordinates in float64, and back.

    A slope parameter (`slope_parameters` of its class, as LEAF's p3) is p = sinh(t): a step in t changes a large slope
    by a factor, and a small one, which may change its sign, by an amount. Every other parameter is p = t.

    Attributes:
        parameters: The parameters by name, such as "act1.gamma".
        names: Name of each coordinate: "act1.gamma", "act7.weight[3]", ...
        layers: Path of the activation of each coordinate.
        is_slope_P: Whether a coordinate is that of a slope, (P,) bool.

    Raises:
        UserError: the network is scripted, has no adaptive activation, or has a parameter that is not finite.
    """

    def __init__(self, net: nn.Module) -> None:
        check_not_scripted(net)
        self.parameters: dict[str, nn.Parameter] = {}
        self.names: list[str] = []
        self.layers: list[str] = []
        is_slope: list[Tensor] = []
        for path, activation in adaptive_activations(net).items():
            for own_name, parameter in activation.named_parameters(recurse=False):
                name = f"{path}.{own_name}" if path else own_name
                if not parameter.isfinite().all():
                    raise UserError(f"{name} has values that are NaN or infinite: set finite ones.")
                self.parameters[name] = parameter
                self.names += _element_names(name, parameter)
                self.layers += [path] * parameter.numel()
                is_slope.append(torch.full((parameter.numel(),), own_name in activation.slope_parameters))
        if not self.parameters:
            raise UserError("The network has no adaptive activation: call replace_activations first.")
        self.is_slope_P = torch.cat(is_slope)

    def __len__(self) -> int:
        return len(self.names)

    def read(self) -> Tensor:
        """Return the coordinates of the network's current parameters, (P,) in float64 on the CPU."""
        values_P = torch.cat([p.detach().double().cpu().flatten() for p in self.parameters.values()])
        return torch.where(self.is_slope_P, values_P.asinh(), values_P)

    def values(self, vector_P: Tensor) -> Tensor:
        """Return the parameters p of a vector t, (P,) in float64."""
        return torch.where(self.is_slope_P, vector_P.sinh(), vector_P)

    def derivatives(self, vector_P: Tensor) -> Tensor:
        """Return the diagonal of dp/dt at a vector, (P,) in float64."""
        return torch.where(self.is_slope_P, vector_P.cosh(), torch.ones_like(vector_P))

    def tensors(self, vector_P: Tensor) -> dict[str, Tensor]:
        """Return the parameters of a vector by name, with their shapes, dtypes and devices in the network."""
        pieces = self.values(vector_P).split([p.numel() for p in self.parameters.values()])
        return {
            name: piece.reshape(p.shape).to(p.device, p.dtype)
            for (name, p), piece in zip(self.parameters.items(), pieces, strict=True)
        }

    def write(self, vector_P: Tensor) -> None:
        """Set the network's parameters to those of a vector, in place."""
        with torch.no_grad():
            for name, tensor in self.tensors(vector_P).items():
                self.parameters[name].copy_(tensor)

    def names_in(self, module: nn.Module) -> dict[str, str]:
        """Return the names that parameters have in another module that shares them, by their names here."""
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        return {names[id(p)]: name for name, p in module.named_parameters() if id(p) in names}


def _element_names(name: str, parameter: Tensor) -> list[str]:
    if parameter.numel() == 1:
        return [name]
    shape = parameter.shape[1:] if parameter.shape[0] == 1 and parameter.ndim > 1 else parameter.shape
    indices = torch.cartesian_prod(*(torch.arange(size) for size in shape)).reshape(math.prod(shape), -1).tolist()
    return [f"{name}[{','.join(map(str, index))}]" for index in indices]
