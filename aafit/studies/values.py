"""Frozen dataclasses as JSON and a few tensors, and back with the same bits."""

import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from torch import Tensor

TENSOR = "tensor"


def encoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` fit for JSON. A tensor goes to `tensors`, and its name stands for it; "inf", "nan" stand for those."""
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {TENSOR: name}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encoded(getattr(value, field.name), tensors) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encoded(item, tensors) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encoded(item, tensors) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"A {type(value).__name__} cannot be kept.")


def decoded(kind: Any, value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value of the type `kind` that `encoded` made `value` of.

    Raises:
        LookupError, TypeError or ValueError: it was made of another type.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):
        if value is None:
            return None
        return decoded(next(one for one in inner if one is not type(None)), value, tensors)
    if kind is Tensor:
        return tensors[value[TENSOR]]
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        known = {field.name for field in fields(kind)}
        if set(value) != known:
            raise KeyError(f"{kind} has other fields.")
        values = {name: decoded(hints[name], item, tensors) for name, item in value.items()}
        return kind(**values)  # type: ignore[operator]
    if origin is tuple:
        kinds = [inner[0]] * len(value) if inner[1:] == (...,) else inner
        return tuple(decoded(one, item, tensors) for one, item in zip(kinds, value, strict=True))
    if origin is not None and issubclass(origin, Mapping):
        return {key: decoded(inner[1], item, tensors) for key, item in value.items()}
    return float(value) if kind is float else value
