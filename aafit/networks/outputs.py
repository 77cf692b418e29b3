"""Call a network of any form, and take from what it returns the tensor that is meant."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from aafit.errors import UserError
from aafit.networks.inputs import Batch

Output = Callable[..., Tensor]
"""From what a network returns to the tensor that is meant, as `lambda out: out.last_hidden_state`. A function of two
parameters gets the `Batch` of inputs too: what it leaves out, as padding by the attention mask, does not count."""


def run(net: nn.Module, batch: Batch, output: Output | None = None) -> Tensor:
    """Call `net` with the inputs of `batch`, and take from what it returns the tensor that is meant.

    That is what the function `output` makes of it; without one the tensor itself, the field or key "logits", or the
    only element of a tuple.

    Raises:
        UserError: the network or `output` fails on the inputs (its own error is the cause of ours), `output` gives no
            tensor, no `output` is given and nothing says which tensor is meant, or it has no axis for the samples.
    """
    returned = call(net, batch)
    tensor = _meant(returned) if output is None else _given(output, returned, batch)
    if tensor.dim() == 0:
        of = "The function given as output" if output is not None else "The network"
        raise UserError(f"{of} gives one number for a whole batch: let output= give one or more for each sample.")
    return tensor


def call(net: nn.Module, batch: Batch) -> Any:
    """What `net` returns for the inputs of `batch`.

    Raises:
        UserError: its forward fails, with whatever error, which is the cause of ours.
    """
    try:
        return net(*batch.args, **batch.kwargs)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(_refusal(batch, error)) from error


def takes_inputs(output: Output | None) -> bool:
    """Whether an output function looks at the batch too: whether it must be given two arguments."""
    try:
        parameters = () if output is None else signature(output).parameters.values()
    except (TypeError, ValueError):  # of some builtin functions Python does not know the parameters
        return False
    places = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in places and one.default is Parameter.empty for one in parameters) == 2


def _given(output: Output, returned: Any, batch: Batch) -> Tensor:
    try:
        tensor = output(returned, batch) if takes_inputs(output) else output(returned)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"The function given as output failed ({_first_line(error)}) on what the network returns: "
            f"{_form(returned)}."
        ) from error
    if not isinstance(tensor, Tensor):
        raise UserError(
            f"The function given as output returned a {type(tensor).__name__}, not a tensor: the network returns "
            f"{_form(returned)}."
        )
    return tensor


def _meant(returned: Any) -> Tensor:
    if isinstance(returned, Tensor):
        return returned
    logits = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(returned, (tuple, list)) and len(returned) == 1 and isinstance(returned[0], Tensor):
        tensor: Tensor = returned[0]
        return tensor
    raise UserError(
        f"The network returns {_form(returned)}: say which tensor is meant, as output={_proposal(returned)}."
    )


def _form(returned: Any) -> str:
    """What a network returned, in words: its type, and what it holds."""
    name, names = type(returned).__name__, _names(returned)
    if names:
        return f"a {name} with {', '.join(names)}"
    return f"a {name} of {len(returned)} elements" if isinstance(returned, (tuple, list)) else f"a {name}"


def _names(returned: Any) -> list[str]:
    if isinstance(returned, Mapping):
        return [str(key) for key in returned]
    if is_dataclass(returned):
        return [field.name for field in fields(returned)]
    return list(getattr(returned, "_fields", ()))


def _proposal(returned: Any) -> str:
    names = _names(returned)
    if not names:
        return "lambda out: out[0]" if isinstance(returned, (tuple, list)) else "lambda out: ..., which returns it"
    name = "last_hidden_state" if "last_hidden_state" in names else names[0]
    # A mapping that has its keys as attributes too, as the data classes of transformers do, reads better so.
    return f"lambda out: out.{name}" if hasattr(returned, name) else f"lambda out: out[{name!r}]"


def _refusal(batch: Batch, error: Exception) -> str:
    named = [*((None, value) for value in batch.args), *batch.kwargs.items()]
    given = "; ".join(f"{name} {_described(value)}" if name else _described(value) for name, value in named)
    hint = ""
    if all(tensor.dtype == torch.uint8 for tensor in batch.inputs()):
        hint = " If these are images of bytes, make them floating-point first, as the network was trained (x / 255)."
    return f"The network's forward of the batch ({given}) failed: {_first_line(error)}.{hint}"


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}, on {value.device}"
    return f"a {type(value).__name__}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].removesuffix(".")
