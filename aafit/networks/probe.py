"""A copy of a network to look at, and one forward of a sample in it."""

from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from aafit.errors import UserError
from aafit.networks.inputs import as_inputs
from aafit.networks.modes import random_numbers_from, step_by_step


def probe_of(net: nn.Module) -> nn.Module:
    """A copy of `net` in evaluation mode, to look at its forward; with the same parameters, which that only reads.

    Raises:
        UserError: as `copied`.
    """
    shared = {id(parameter): parameter for parameter in net.parameters() if not is_lazy(parameter)}
    return copied(net, shared).eval()


def copied(net: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A copy of `net`, `memo` as for deepcopy.

    Raises:
        UserError: it holds something that cannot be copied; the message says where.
    """
    try:
        return deepcopy(net, memo)
    # Of whatever kind: what a network holds is not ours.
    except Exception as error:
        what = next(filter(None, (_uncopyable(path, module) for path, module in net.named_modules())), "something")
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise UserError(
            f"The network cannot be copied, as it holds {what} ({reason}): take that away "
            "(torch.nn.utils.remove_weight_norm, remove_spectral_norm and prune.remove do; a kept tensor needs detach)."
        ) from error


def _uncopyable(path: str, module: nn.Module) -> str | None:
    for name, value in vars(module).items():
        if name != "_modules":
            try:
                deepcopy(value)
            except Exception:
                return repr(f"{path}.{name}" if path else name)
    return None


def forward_of_sample(net: nn.Module, sample: Any, watch: AbstractContextManager[Any] | None = None) -> Any:
    """What `net` returns for the sample, without gradients, within the block of `watch`.

    The random numbers it draws are the same each time, and torch's own go on afterwards as if it had drawn none. It
    computes step by step, see `step_by_step`.

    Raises:
        UserError: the sample has no form that a network takes, or the forward fails; the message says why.
    """
    inputs = as_inputs(sample)
    tensors = [value for value in (*inputs.args, *inputs.kwargs.values()) if isinstance(value, Tensor)]
    with random_numbers_from(0), torch.no_grad(), step_by_step(), watch or nullcontext():
        own = inputs.cloned()
        try:
            return net(*own.args, **own.kwargs)
        except UserError:
            raise
        # Of whatever kind: the network's program is not ours.
        except Exception as error:
            given = ", ".join(f"{tuple(tensor.shape)}, {tensor.dtype}, on {tensor.device}" for tensor in tensors)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"The network's forward of the sample ({given}) failed: {reason}") from error
