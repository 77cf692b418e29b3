"""Batches of any form: the inputs and the target of a network, and the positions that are padding.

`as_batch` and `as_inputs` bring what a DataLoader or a user gives to a `Batch`; `call` calls a network with one;
`without_padding` selects the positions of sequences that are no padding.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass, replace
from math import prod
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset

from aafit.errors import UserError, check_count, short_message

INPUT_FORMS = "give a tensor, a tuple of the inputs, a dictionary of keyword inputs, or an aafit.Batch"
BATCH_FORMS = (
    "give a tensor (inputs without a target), a tuple of the inputs and then the target (None: there is none), or a "
    'dictionary of keyword inputs, whose "labels" are the target'
)
MASK = "attention_mask"
_NO_OBJECTS = (type, nn.Module, ModuleType, FunctionType, MethodType)


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in a nested value: in containers and in attributes of objects, each of those visited once."""
    tensors, visited, left = [], dict[int, Any](), [value]
    while left:
        item = left.pop()
        if isinstance(item, Tensor):
            tensors.append(item)
        elif id(item) not in visited:
            visited[id(item)] = item
            inner = item if isinstance(item, (list, tuple)) else _attributes(item).values()
            left += reversed([*inner])
    return tensors


def map_tensors(function: Callable[[Any], Any], value: Any, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """Apply `function` to each tensor of a nested value, and to whatever `is_leaf` marks; other objects are copied."""

    def mapped(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) or (is_leaf is not None and is_leaf(leaf)):
            return function(leaf)
        inner = {name: map_tensors(function, one, is_leaf) for name, one in _attributes(leaf).items()}
        if not inner or isinstance(leaf, Mapping):
            return inner or leaf
        made = copy(leaf)
        for name, one in inner.items():
            object.__setattr__(made, name, one)
        return made

    return tree_map(mapped, value, is_leaf=is_leaf)


def _attributes(item: Any) -> Mapping[str, Any]:
    """Return the parts of an object that may hold tensors, by name; empty for a module, a class or a function."""
    if isinstance(item, Mapping):
        return item
    if isinstance(item, _NO_OBJECTS):
        return {}
    if is_dataclass(item):
        return {one.name: getattr(item, one.name) for one in fields(item)}
    return vars(item) if hasattr(item, "__dict__") else {}


def _holds_samples(value: Any) -> bool:
    """Return whether a value is a list of objects that hold tensors, each a sample, or a batch of graphs."""
    if isinstance(value, list):
        plain = (Tensor, list, tuple, int, float, str, type(None))
        return bool(value) and not any(isinstance(item, plain) for item in value) and all(map(tensors_in, value))
    return isinstance(getattr(value, "num_graphs", None), int)


@dataclass(frozen=True)
class Batch:
    """The inputs of a network, net(*args, **kwargs), and the target.

    Inputs may be nested: containers, and objects that hold tensors. Each element of a list of objects is a sample, as
    is each graph of an object with `num_graphs` (a batch of PyTorch Geometric). Otherwise the samples lie along `axis`
    of the first tensor; a tensor with another length there belongs to all samples.

    Attributes:
        args: Positional inputs.
        kwargs: Keyword inputs.
        target: The target, with the samples along axis 0; None if there is none.
        axis: Axis of the samples in the inputs, as 1 for (T, B, C). Outputs have theirs at axis 0: let output= move it.
        shared: Positions, among the tensors of the inputs, of those that belong to all samples. They are found when the
            batch is divided or joined, and then hold for its parts, which may have as many samples as such a tensor has
            rows.

    Example:
        >>> batch = aafit.Batch((images,), {}, labels)
        >>> print(aafit.evaluate(base, [batch]))
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any | None = None
    axis: int = 0
    shared: frozenset[int] = field(default=frozenset(), repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.args, tuple) or not isinstance(self.kwargs, dict):
            raise UserError(
                f"An aafit.Batch has a {type(self.args).__name__} of positional inputs and a "
                f"{type(self.kwargs).__name__} of keyword inputs: give a tuple and a dictionary, as "
                "Batch((x,), {}, target)."
            )
        check_count("axis of the samples", self.axis, least=0)

    def __len__(self) -> int:
        for value in (*self.args, *self.kwargs.values()):
            if _holds_samples(value):
                return _count(value)
            if tensors := tensors_in(value):
                return tensors[0].shape[self.axis]
        if any(isinstance(value, list) and not value for value in (*self.args, *self.kwargs.values())):
            return 0  # a list of objects without any
        raise UserError("The batch has no tensor among its inputs.")

    @property
    def first(self) -> Tensor:
        """The first tensor of the inputs."""
        return self.inputs()[0]

    @property
    def device(self) -> torch.device:
        """The device of the first tensor."""
        return self.first.device

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on another device."""
        return self._mapped(lambda tensor: tensor.to(device))

    def floating(self, dtype: torch.dtype) -> "Batch":
        """Return the batch with its floating-point inputs in another dtype; the target is left."""
        inputs = self.without_target()._mapped(
            lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor
        )
        return replace(inputs, target=self.target)

    def without_target(self) -> "Batch":
        """Return the inputs alone."""
        return replace(self, target=None)

    def cloned(self) -> "Batch":
        """Return a copy that shares no memory."""
        return self._mapped(Tensor.clone)

    def part(self, start: int, stop: int) -> "Batch":
        """Return the samples from `start` up to, not including, `stop`, with their targets."""
        if start <= 0 and stop >= len(self):
            return self
        return self._selected(slice(start, stop))

    def at(self, rows_N: Tensor) -> "Batch":
        """Return the samples with these indices, (N,) integers, with their targets."""
        return self._selected(rows_N)

    def batches(self, size: int) -> "Iterator[Batch]":
        """Yield batches of `size` samples, the last of which may be smaller."""
        return (self.part(start, start + size) for start in range(0, len(self), size))

    def inputs(self) -> list[Tensor]:
        """Return all tensors of the inputs."""
        return tensors_in((self.args, self.kwargs))

    def tensors(self) -> list[Tensor]:
        """Return all tensors of the inputs, then those of the target."""
        return tensors_in((self.args, self.kwargs, self.target))

    @classmethod
    def joined(cls, batches: "Sequence[Batch]") -> "Batch":
        """Return one batch with the samples of all, one after another.

        Raises:
            UserError: there is none; their inputs have different forms; their tensors differ in shape apart from the
                number of samples; a tensor that belongs to all samples differs between them.
        """
        if not batches:
            raise UserError("There is no batch to join.")
        first = batches[0]
        if len(batches) == 1:
            return first
        inputs = [_leaves((batch.args, batch.kwargs)) for batch in batches]
        targets = [_leaves(batch.target) for batch in batches]
        forms = {(len(a), len(b), tuple(c.kwargs), c.axis) for a, b, c in zip(inputs, targets, batches, strict=True)}
        if len(forms) > 1:
            raise UserError("The batches cannot be joined: they have different inputs.")
        rows = [len(batch) for batch in batches]
        known = frozenset[int]().union(*(batch.shared for batch in batches))
        joined = [_joined(leaves, rows, first.axis, at in known) for at, leaves in enumerate(zip(*inputs, strict=True))]
        shared = {at for at, leaf in enumerate(inputs[0]) if joined[at] is leaf}
        joined += [_joined(leaves, rows, 0) for leaves in zip(*targets, strict=True)]
        left = iter(joined)
        return replace(first._mapped(lambda _: next(left), _holds_samples), shared=frozenset(shared))

    def _selected(self, rows: slice | Tensor) -> "Batch":
        count, shared, positions = len(self), set(self.shared), itertools.count()

        def selected(leaf: Any, axis: int) -> Any:
            if not isinstance(leaf, Tensor):
                samples = _samples(leaf, "divided into samples")
                return _like(leaf, samples[rows] if isinstance(rows, slice) else [samples[at] for at in rows.tolist()])
            return leaf[(*[slice(None)] * axis, rows)] if leaf.dim() > axis and leaf.shape[axis] == count else leaf

        def selected_input(leaf: Any) -> Any:
            position = next(positions)
            part = leaf if position in shared else selected(leaf, self.axis)
            if part is leaf:
                shared.add(position)
            return part

        args, kwargs = map_tensors(selected_input, (self.args, self.kwargs), _holds_samples)
        target = map_tensors(lambda leaf: selected(leaf, 0), self.target, _holds_samples)
        return Batch(args, kwargs, target, self.axis, frozenset(shared))

    def _mapped(self, function: Callable[[Any], Any], is_leaf: Callable[[Any], bool] | None = None) -> "Batch":
        args, kwargs, target = map_tensors(function, (self.args, self.kwargs, self.target), is_leaf)
        return replace(self, args=args, kwargs=kwargs, target=target)


def _leaves(value: Any) -> list[Any]:
    """Return the tensors, and the lists and batches of samples, in a nested value."""
    leaves: list[Any] = []
    map_tensors(leaves.append, value, _holds_samples)
    return leaves


def _count(samples: Any) -> int:
    """Return the number of samples in a list of objects or a batch of graphs."""
    return len(samples) if isinstance(samples, list) else samples.num_graphs


def _samples(value: Any, purpose: str) -> list[Any]:
    """Return the samples in a list of objects or a batch of graphs.

    Raises:
        UserError: a batch of graphs has no methods to take it apart.
    """
    if isinstance(value, list):
        return value
    if not (hasattr(value, "to_data_list") and hasattr(value, "from_data_list")):
        raise UserError(
            f"A {type(value).__name__} of {value.num_graphs} graph(s) cannot be {purpose}, as it has no to_data_list "
            "and from_data_list (PyTorch Geometric's batches have): give a list of graphs as the input of the network."
        )
    samples: list[Any] = value.to_data_list()
    return samples


def _like(value: Any, samples: list[Any]) -> Any:
    """Return samples in the form of `value`: as a list, or as a batch of graphs; no samples are always a list."""
    return samples if isinstance(value, list) or not samples else type(value).from_data_list(samples)


def as_batch(batch: Any) -> Batch:
    """Return the inputs and the target of a batch of any form.

    A tensor is one input without a target. The last element of a tuple or a list of two or more is the target, which
    may be None, and the rest are the inputs; a single element is the input, as a DataLoader without labels yields it. A
    mapping (a dictionary, or what a tokenizer returns) holds keyword inputs, and its "labels", if any, are the target;
    a mapping among the inputs of a tuple holds keyword inputs too. An object that holds tensors is one input. A `Batch`
    is returned as it is.

    Raises:
        UserError: the batch has another form, or no tensor among its inputs.
    """
    if isinstance(batch, Batch):
        return _checked(batch, "The batch")
    if isinstance(batch, Mapping):
        kwargs = as_inputs(batch, "The batch").kwargs
        inputs = {name: value for name, value in kwargs.items() if name != "labels"}
        return _checked(Batch((), inputs, kwargs.get("labels")), "The batch")
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        *given, target = batch
        first = as_inputs(tuple(given), "The batch")
        return Batch(first.args, first.kwargs, target)
    return as_inputs(batch, "The batch")


def each_batch(batches: Iterable[Any]) -> Iterator[Batch]:
    """Yield each of `batches` as a `Batch`, without empty ones.

    Raises:
        UserError: `batches` is one batch, or not iterable; or as `as_batch`.
    """
    one = isinstance(batches, (Tensor, Mapping, Batch)) or (
        isinstance(batches, tuple) and len(batches) > 0 and isinstance(batches[0], (Tensor, Mapping))
    )
    if one:
        raise UserError(
            "The batches given are one batch alone: put it in a list, as [(inputs, target)], and so batches without a "
            "target, as list(x.split(100))."
        )
    if not isinstance(batches, Iterable):
        raise UserError(f"The batches given are a {type(batches).__name__}: give a list of batches or a DataLoader.")
    for batch in map(as_batch, batches):
        if len(batch):
            yield batch


def as_inputs(sample: Any, what: str = "The sample") -> Batch:
    """Return a batch as `as_batch` does, without a target: a tuple or a list holds the positional inputs.

    Raises:
        UserError: the sample, named `what` in the message, has another form, or no tensor in it.
    """
    if isinstance(sample, Batch):
        return _checked(sample.without_target(), what)
    if isinstance(sample, (DataLoader, Dataset)):
        raise UserError(f"{what} is a {type(sample).__name__}: give one of its batches, as next(iter(loader)).")
    if isinstance(sample, (Tensor, Mapping)) or (not isinstance(sample, (tuple, list)) and tensors_in(sample)):
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
    return _checked(Batch(tuple(value for value in sample if not isinstance(value, Mapping)), kwargs), what)


def _forms_of(what: str) -> str:
    return BATCH_FORMS if what == "The batch" else INPUT_FORMS


def _checked(batch: Batch, what: str) -> Batch:
    inputs = (*batch.args, *batch.kwargs.values())
    if not tensors_in(inputs):
        types = ", ".join(sorted({type(value).__name__ for value in inputs}))
        raise UserError(f"{what} has no tensor among its inputs ({types or 'it is empty'}): {_forms_of(what)}.")
    if batch.first.dim() <= batch.axis and not any(map(_holds_samples, inputs)):
        if batch.axis:
            raise UserError(f"{what} has its samples along axis {batch.axis}, which its first tensor does not have.")
        raise UserError(
            f"{what} begins with a tensor without axes ({batch.first}): the first axis is that of the samples."
        )
    return batch


def _joined(leaves: tuple[Any, ...], rows: Sequence[int], axis: int, is_shared: bool = False) -> Any:
    first = leaves[0]
    if not isinstance(first, Tensor):
        return _like(first, [sample for leaf in leaves for sample in _samples(leaf, "joined with others")])
    each = zip(leaves, rows, strict=True)
    if not is_shared and all(leaf.dim() > axis and leaf.shape[axis] == own for leaf, own in each):
        if len({(*leaf.shape[:axis], *leaf.shape[axis + 1 :]) for leaf in leaves}) == 1:
            return torch.cat(leaves, axis)
        shapes = " and ".join(str(tuple(shape)) for shape in dict.fromkeys(leaf.shape for leaf in leaves))
        raise UserError(
            f"The batches cannot be joined: they hold tensors of the shapes {shapes}. Bring them to one shape; "
            'of a tokenizer, with padding="max_length".'
        )
    if not all(torch.equal(first, leaf) for leaf in leaves[1:]):
        raise UserError(
            f"The batches cannot be joined: a tensor of shape {tuple(first.shape)} belongs to all samples of a batch, "
            "and differs from batch to batch."
        )
    return first


def call(net: Callable[..., Any], batch: Batch, what: str = "batch") -> Any:
    """Return what `net` returns for the inputs of `batch`, which is named `what` in messages.

    Raises:
        UserError: its forward fails; the error is the cause.
    """
    try:
        return net(*batch.args, **batch.kwargs)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if getattr(type(net), "forward", None) is nn.Module.forward:
            raise UserError(
                f"The network is a {type(net).__name__}, which has no forward: give a module whose forward calls the "
                "method that you use, as forward(self, x): return self.net.encode(x)."
            ) from error
        hint = ""
        if what == "sample" and len(batch.args) > 1 and isinstance(error, TypeError) and "positional" in str(error):
            hint = " A tuple holds the inputs of the network: leave out a target."
        elif all(tensor.dtype == torch.uint8 for tensor in batch.inputs()):
            hint = " If these are images of bytes, make them floating-point, as the network was trained (x / 255)."
        raise UserError(
            f"The network's forward of the {what} ({_describe(batch)}) failed: {short_message(error)}.{hint}"
        ) from error


def _describe(batch: Batch) -> str:
    """Describe the inputs of a batch: the shape, dtype and device of tensors, the type of others."""
    named = [*((None, value) for value in batch.args), *batch.kwargs.items()]
    return "; ".join(f"{name} {_described(value)}" if name else _described(value) for name, value in named)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}, on {value.device}"
    return f"a {type(value).__name__}"


# --- padding --------------------------------------------------------------------------------------------------------


def without_padding(x: Tensor, batch: Batch, shape: tuple[int, ...] = (1,)) -> Tensor:
    """Return the positions that are no padding of an activation's input or output for a batch.

    A keyword input "attention_mask" of shape (B, T), of 1 and 0 as tokenizers give it, marks padding with 0. From x,
    (B, T, C), the N positions where it is 1 are returned, (N, C).

    All of x is returned, unchanged, if x has another shape; if there is no such mask, or it has other values (as a mask
    that is added to attention scores has) or is 0 everywhere; and if each position has parameters of its own, which
    need the inputs of that position.

    Args:
        x: an input or output of an activation.
        batch: the batch that the network was called with.
        shape: shape of a parameter of the activation, see `AdaptiveActivation`; (1,) is one set for all.
    """
    mask_BT = batch.kwargs.get(MASK)
    if not isinstance(mask_BT, Tensor) or x.dim() != 3 or x.shape[:2] != mask_BT.shape or prod(shape[:-1]) != 1:
        return x
    counts_BT = (mask_BT == 1).to(x.device)
    if not counts_BT.any() or not torch.equal(counts_BT, (mask_BT != 0).to(x.device)):
        return x
    return x[counts_BT]
