"""Any input as a dense array of one, two or three dimensions, so that few compiled loops serve every layer."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

from torch import Size, Tensor


@dataclass(frozen=True)
class Layout:
    """How an input and its parameters are read in the order of the input's memory, whatever its rank and format.

    Attributes:
        order: The input's dimensions, outermost in memory first.
        sizes: Their sizes, in that order.
        array: Shape the input is read as: (elements,) where one parameter set serves them all, (rows, sets), or
            (rows, sets, elements) where a set serves several elements that lie side by side.
        shape: Shape of one parameter.
        varying: `sizes` where the parameters vary, else 1, in that order; None where one set serves all.
    """

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    array: tuple[int, ...]
    shape: tuple[int, ...]
    varying: tuple[int, ...] | None

    @staticmethod
    def of(u: Tensor, shape: tuple[int, ...]) -> "Layout":
        """The layout of an input whose parameters have a shape that fits it."""
        return _layout(u.shape, u.stride(), tuple(shape))

    def read(self, x: Tensor) -> Tensor:
        """A tensor of the input's shape as a contiguous array; a view where it lies in memory as the input does."""
        ordered = x.permute(self.order) if self._permuted else x
        return ordered.reshape(self.array).contiguous()

    def restore(self, x: Tensor) -> Tensor:
        """An array as a tensor of the input's shape that lies in memory as the input does.

        It is no view to autograd, which would forbid what comes next to work in place on an output.
        """
        whole = x.view(self.sizes)
        return (whole.permute(self._inverse) if self._permuted else whole).data

    def read_parameter(self, parameter: Tensor) -> Tensor:
        """A parameter of shape (*shape, *own) as (*sets, *own), the sets so as to broadcast against the array.

        Where one set serves all, it is of shape `own`, or (1,).
        """
        if self.varying is None and parameter.ndim == 1:
            return parameter
        own = parameter.shape[len(self.shape) :]
        if self.varying is None:
            return parameter.reshape(own or (1,))
        permuted = parameter.reshape(self._full_shape + own).permute(*self.order, *self._axes(own))
        sets = permuted.expand(self.varying + own).reshape(-1, *own)
        return sets.unsqueeze(1) if len(self.array) == 3 else sets

    def restore_parameter(self, sums: Tensor, parameter: Tensor) -> Tensor:
        """Sums for each set, of shape (*sets, *own), in a parameter's own shape."""
        if self.varying is None:
            return sums.reshape(parameter.shape)
        own = parameter.shape[len(self.shape) :]
        restored = sums.reshape(self.varying + own).permute(*self._inverse, *self._axes(own))
        return restored.sum_to_size(self._full_shape + own).reshape(parameter.shape)

    @property
    def _full_shape(self) -> tuple[int, ...]:
        return (1,) * (len(self.order) - len(self.shape)) + self.shape

    @cached_property
    def _permuted(self) -> bool:
        return self.order != tuple(range(len(self.order)))

    @cached_property
    def _inverse(self) -> tuple[int, ...]:
        return tuple(sorted(range(len(self.order)), key=self.order.__getitem__))

    def _axes(self, own: Size) -> range:
        return range(len(self.order), len(self.order) + len(own))


@lru_cache(maxsize=1024)
def _layout(sizes: Size, strides: tuple[int, ...], shape: tuple[int, ...]) -> Layout:
    order = tuple(sorted(range(len(sizes)), key=lambda dim: -strides[dim]))
    ordered = tuple(sizes[dim] for dim in order)
    if prod(shape) == 1:
        return Layout(order, ordered, (prod(ordered),), shape, None)
    full = (1,) * (len(sizes) - len(shape)) + shape
    at = [place for place, dim in enumerate(order) if full[dim] > 1]
    # The sets must be one range of dimensions: a parameter is repeated over those in between.
    first, last = at[0], at[-1] + 1
    rows, sets, elements = prod(ordered[:first]), prod(ordered[first:last]), prod(ordered[last:])
    array = (rows, sets) if elements == 1 else (rows, sets, elements)
    varying = tuple(size if first <= place < last else 1 for place, size in enumerate(ordered))
    return Layout(order, ordered, array, shape, varying)
