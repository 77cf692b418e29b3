"""Leave out the positions of sequences that are padding: no activation is fitted to what it receives there.

A batch of any form brought to one: inputs and target.

Call a network of any form, and take from what it returns the tensor that is meant.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from inspect import Parameter, signature
from math import prod
from typing import Any

import torch
from torch import Tensor

from aafit.errors import UserError

FORMS = (
    "give a tensor (inputs without a target), a tuple of the inputs and then the target (None: there is none), or a "
    'dictionary of keyword inputs, whose "labels" are the target'
)

INPUT_FORMS = "give a tensor, a tuple of the inputs, a dictionary of keyword inputs, or an aafit.Batch"


@dataclass(frozen=True)
class Batch:
    """What a network is called with, net(*args, **kwargs), and the target (None: there is none).

    Its rows are those of its first tensor; a tensor with another first dimension belongs to all rows.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any | None = None

    def __len__(self) -> int:
        return len(self.first)

    @property
    def first(self) -> Tensor:
        """The first tensor of the inputs."""
        return next(_tensors((self.args, self.kwargs)))

    @property
    def device(self) -> torch.device:
        """The device of the first tensor."""
        return self.first.device

    def to(self, device: torch.device | str) -> "Batch":
        """The same with all tensors on `device`."""
        return self._mapped(lambda tensor: tensor.to(device))

    def floating(self, dtype: torch.dtype) -> "Batch":
        """The same with its floating-point inputs in another type; the target stays."""
        args, kwargs = _mapped(
            (self.args, self.kwargs), lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor
        )
        return Batch(args, kwargs, self.target)

    def cloned(self) -> "Batch":
        """The same in memory of its own."""
        return self._mapped(Tensor.clone)

    def part(self, start: int, stop: int) -> "Batch":
        """The rows from `start` up to `stop`; tensors that belong to all rows stay whole."""
        rows = len(self)
        return self._mapped(lambda tensor: tensor[start:stop] if _has_rows(tensor, rows) else tensor)

    def at(self, rows_N: Tensor) -> "Batch":
        """The rows of these numbers; tensors that belong to all rows stay whole."""
        rows = len(self)
        return self._mapped(lambda tensor: tensor[rows_N] if _has_rows(tensor, rows) else tensor)

    def batches(self, size: int) -> "Iterator[Batch]":
        """The same in batches of `size` rows, the last of which may be smaller."""
        return (self.part(start, start + size) for start in range(0, len(self), size))

    def inputs(self) -> list[Tensor]:
        """All tensors of the inputs."""
        return list(_tensors((self.args, self.kwargs)))

    def tensors(self) -> list[Tensor]:
        """All tensors of the inputs, then those of the target."""
        return list(_tensors(self._all()))

    @classmethod
    def joined(cls, batches: "Sequence[Batch]") -> "Batch":
        """One batch with the rows of all of them, one after another.

        Raises:
            UserError: there is none; their inputs are not of one form; their tensors differ in more than rows.
        """
        if not batches:
            raise UserError("There is no batch to join.")
        if len(batches) == 1:
            return batches[0]
        tensors = [batch.tensors() for batch in batches]
        if len({len(own) for own in tensors}) > 1 or len({tuple(batch.kwargs) for batch in batches}) > 1:
            raise UserError("The batches cannot be joined: they have different inputs.")
        rows = [len(batch) for batch in batches]
        joined = iter([_joined(together, rows) for together in zip(*tensors, strict=True)])
        return batches[0]._mapped(lambda _: next(joined))

    def _all(self) -> tuple[Any, ...]:
        return self.args, self.kwargs, self.target

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(*_mapped(self._all(), function))


def as_batch(batch: Any) -> Batch:
    """The inputs and the target of a batch of any form.

    A tensor is one input without a target. Of a tuple or a list of two or more the last is the target, which may be
    None, and the rest are the inputs; of one element it is the input, as a DataLoader without labels gives. A mapping
    (a dictionary, or what a tokenizer gives) holds keyword inputs, and its "labels", where it has them, are the target;
    a mapping among the inputs of a tuple holds keyword inputs too. A `Batch` is taken as it is.

    Raises:
        UserError: the batch has another form, or no tensor among its inputs.
    """
    if isinstance(batch, Batch):
        return _with_tensors(batch, "The batch")
    if isinstance(batch, Mapping):
        given = as_inputs(batch, "The batch")
        target = given.kwargs.get("labels")
        return _with_tensors(
            Batch((), {name: value for name, value in given.kwargs.items() if name != "labels"}, target), "The batch"
        )
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        *inputs, target = batch
        given = as_inputs(tuple(inputs), "The batch")
        return Batch(given.args, given.kwargs, target)
    return as_inputs(batch, "The batch")


def each_batch(batches: Iterable[Any]) -> Iterator[Batch]:
    """Each of `batches` by `as_batch`, without those that have no row.

    Raises:
        UserError: `batches` is one batch, or cannot be gone through; or as `as_batch`.
    """
    one = isinstance(batches, (Tensor, Mapping, Batch)) or (
        isinstance(batches, tuple) and len(batches) > 0 and isinstance(batches[0], (Tensor, Mapping))
    )
    if one:
        raise UserError("The batches given are one batch alone: put it in a list, as [(inputs, target)].")
    if not isinstance(batches, Iterable):
        raise UserError(f"The batches given are a {type(batches).__name__}: give a list of batches or a DataLoader.")
    for batch in map(as_batch, batches):
        if len(batch):
            yield batch


def as_inputs(sample: Any, what: str = "The sample") -> Batch:
    """As `as_batch`, but everything is input: a tuple or a list holds the positional inputs, and there is no target.

    Raises:
        UserError: the sample, named `what` in the message, has another form, or no tensor in it.
    """
    if isinstance(sample, Batch):
        return _with_tensors(Batch(sample.args, sample.kwargs), what)
    if isinstance(sample, (Tensor, Mapping)):
        sample = (sample,)
    if not isinstance(sample, (tuple, list)):
        raise UserError(f"{what} is a {type(sample).__name__}: {_forms_of(what)}.")
    kwargs: dict[str, Any] = {}
    for value in sample:
        if isinstance(value, Mapping):
            wrong = next((name for name in value if not isinstance(name, str)), None)
            if wrong is not None:
                raise UserError(f"{what} has the key {wrong!r}: the keys are the names of the network's inputs.")
            kwargs |= value
    return _with_tensors(Batch(tuple(value for value in sample if not isinstance(value, Mapping)), kwargs), what)


def _forms_of(what: str) -> str:
    return FORMS if what == "The batch" else INPUT_FORMS


def _with_tensors(batch: Batch, what: str) -> Batch:
    if next(_tensors((batch.args, batch.kwargs)), None) is None:
        types = ", ".join(sorted({type(value).__name__ for value in (*batch.args, *batch.kwargs.values())}))
        raise UserError(f"{what} has no tensor among its inputs ({types or 'it is empty'}): {_forms_of(what)}.")
    if batch.first.dim() == 0:
        raise UserError(
            f"{what} begins with a tensor without axes ({batch.first}): the first axis is that of the rows."
        )
    return batch


def _has_rows(tensor: Tensor, rows: int) -> bool:
    return tensor.dim() > 0 and len(tensor) == rows


def _joined(together: tuple[Tensor, ...], rows: Sequence[int]) -> Tensor:
    first = together[0]
    if all(_has_rows(tensor, own) for tensor, own in zip(together, rows, strict=True)):
        if len({tensor.shape[1:] for tensor in together}) == 1:
            return torch.cat(together)
        shapes = " and ".join(str(tuple(shape)) for shape in dict.fromkeys(tensor.shape for tensor in together))
        raise UserError(
            f"The batches cannot be joined: they hold tensors of the shapes {shapes}. Bring them to one shape; "
            'of a tokenizer, with padding="max_length".'
        )
    if not all(torch.equal(first, tensor) for tensor in together[1:]):
        raise UserError(
            f"The batches cannot be joined: a tensor of shape {tuple(first.shape)} belongs to all rows of a batch, "
            "and differs from batch to batch."
        )
    return first


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from _tensors(inner)


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same with `function` of each tensor, in the order of `_tensors`."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _mapped(inner, function) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        mapped = [_mapped(inner, function) for inner in value]
        return type(value)(*mapped) if hasattr(value, "_fields") else type(value)(mapped)
    return value


Output = Callable[..., Tensor]
"""From what a network returns to the tensor that is meant, as `lambda out: out.last_hidden_state`. A function of two
parameters gets the `Batch` of inputs too: what it leaves out, as padding by the attention mask, does not count."""


def run(net: Callable[..., Any], batch: Batch, output: Output | None = None) -> Tensor:
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


def call(net: Callable[..., Any], batch: Batch) -> Any:
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


MASK = "attention_mask"


def without_padding(x: Tensor, batch: Batch, shape: tuple[int, ...] = (1,)) -> Tensor:
    """The positions of x that are no padding, where x is what an activation receives or gives for a batch.

    The batch tells them by a keyword input "attention_mask" of shape (B, T), of 1 and 0 as tokenizers give it: where it
    is 0, there is padding. Of x, (B, T, C), the N positions where it is 1 come back, (N, C).

    All of x comes back, as it is, where x has another shape; where there is no such mask, or it has other values (as
    one that is added to attention scores has) or is 0 everywhere; and where each position has parameters of its own,
    which need the inputs of that position.

    Args:
        shape: of the activation's sets of parameters, see `AdaptiveActivation`; (1,) is one set for all.
    """
    mask_BT = batch.kwargs.get(MASK)
    if not isinstance(mask_BT, Tensor) or x.dim() != 3 or x.shape[:2] != mask_BT.shape or prod(shape[:-1]) != 1:
        return x
    counts_BT = (mask_BT == 1).to(x.device)
    if not counts_BT.any() or not torch.equal(counts_BT, (mask_BT != 0).to(x.device)):
        return x
    return x[counts_BT]
