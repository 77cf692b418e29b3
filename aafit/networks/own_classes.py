"""Activations of classes that are not torch's: told by what they compute."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from aafit.networks.kinds import is_activation, recognised

_PROBED = 4096  # elements


def each_its_own(net: nn.Module) -> nn.Module:
    """`net`, in which an activation that is one object under several names is an object for each, in place."""
    known: set[int] = set()
    for around in list(net.modules()):
        for name, child in list(around._modules.items()):
            if child is not None and (is_activation(child) or may_be_an_activation(child)):
                if id(child) in known:
                    around._modules[name] = deepcopy(child)
                known.add(id(child))
    return net


def may_be_an_activation(module: nn.Module) -> bool:
    """Whether a module of a class that is not torch's has nothing in it but activations, and classes like itself."""
    if is_activation(module) or any(True for _ in module.buffers()):
        return False
    return all(is_activation(inner) or not type(inner).__module__.startswith("torch.") for inner in module.modules())


def elementwise_kind(module: nn.Module, u: Tensor) -> str | None:
    """The kind of function that a module computes element by element; None where it does not, or only a straight line.

    Args:
        module: whose class is not known.
        u: what it receives.
    """
    if not u.is_floating_point() or u.numel() < 8 or u.is_meta:
        return None
    few = u.flatten()[:_PROBED].double()
    shuffled = torch.randperm(few.numel(), generator=torch.Generator().manual_seed(0)).to(u.device)
    # Dense near 0, where most functions bend, and as far out as one is compared with those that are known.
    line = 8 * torch.linspace(-1, 1, u.numel(), dtype=torch.float64, device=u.device).reshape(u.shape) ** 3
    try:
        with torch.no_grad():
            own = deepcopy(module).double()
            whole = own(u.double().clone())
            mixed = own(few[shuffled].clone())
            bent = own(line.clone())
    # Of whatever kind: what refuses such inputs is no elementwise function.
    except Exception:
        return None
    if (
        not all(isinstance(y, Tensor) for y in (whole, mixed, bent))
        or whole.shape != u.shape
        or mixed.shape != few.shape
    ):
        return None
    if not torch.allclose(whole.flatten()[: few.numel()][shuffled], mixed, rtol=1e-6, atol=1e-9):
        return None
    ends = bent.flatten()[0] + (bent.flatten()[-1] - bent.flatten()[0]) * (line.flatten() + 8) / 16
    if torch.allclose(bent.flatten(), ends, atol=1e-6):
        return None
    try:
        # Either form of GELU is called by that name, as it is where a function is called.
        return (recognised(own.cpu()) or type(module).__name__).removesuffix(" (tanh)")
    # It may take inputs of its own rank alone.
    except Exception:
        return type(module).__name__
