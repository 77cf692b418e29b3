"""What was found of a network's activations: a row for each, which prints as a table."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from aafit.errors import UserError, nearest
from aafit.networks.observe import Seen
from aafit.networks.places import Site
from aafit.tables import table

NOT_SAMPLED = (
    "No sample was given: activations called as functions (F.relu), and modules called more than once, were not looked "
    "for."
)


@dataclass(frozen=True)
class FoundActivation:
    """An activation of a network, at the path that its replacement will have.

    What the sample shows of it is None where no sample was given, or its forward does not call it.

    Attributes:
        path: "act1", or "block.relu_1" for a call that has no module of its own yet.
        kind: Of the function, "ReLU".
        class_name: Of the module; of a function its name, "relu()".
        refused: Why it cannot be replaced; empty: it can.
        sampled: Whether a sample was given.
        seen: What the sample shows of it.
        site: What is to be given a module first.
        aliases: Other paths of the same module.
    """

    path: str
    kind: str
    class_name: str
    refused: str = ""
    sampled: bool = False
    seen: Seen | None = field(default=None, repr=False)
    site: Site | None = field(default=None, repr=False)
    aliases: tuple[str, ...] = field(default=(), repr=False)

    @property
    def line(self) -> str | None:
        """Where the program calls it, "net.py:12: x = F.relu(x)"."""
        return self.seen.line if self.seen else None

    @property
    def calls(self) -> int | None:
        """The number of calls in one forward of the sample; None: there was none."""
        return self.seen.calls if self.seen else 0 if self.sampled else None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of what it receives, the batch first."""
        return self.seen.shape if self.seen else None

    @property
    def range(self) -> tuple[float, float] | None:
        """The smallest and the largest value that it receives; None too where the values are not known."""
        return (self.seen.low, self.seen.high) if self.seen and self.seen.low <= self.seen.high else None

    @property
    def after(self) -> tuple[str, str] | None:
        """The layer before it, as ("Conv2d", "conv1")."""
        return self.seen.after if self.seen else None

    @property
    def gate(self) -> str:
        """Why only its own path, or a function as the key, replaces it (a gate); empty: it is as all others."""
        return self.seen.gate if self.seen else ""

    @property
    def channel_axis(self) -> int | None:
        """The axis of the channels in what it receives, None where the layer before does not tell."""
        if self.shape is None:
            return None
        return 1 if len(self.shape) == 2 else self.seen.channel_axis if self.seen else None

    @property
    def sets(self) -> dict[str, int | None]:
        """The number of parameter sets when it is shared by layer, channel or neuron; None where that is not known.

        A set has 2 parameters of an AHAF, 4 of a LEAF, pieces + 2 of an F-Neuron.
        """
        shape, axis = self.shape, self.channel_axis
        if shape is None or len(shape) < 2:
            return {"layer": 1, "channel": None, "neuron": None}
        channels = None if axis is None else shape[axis]
        return {"layer": 1, "channel": channels, "neuron": torch.Size(shape[1:]).numel()}


@dataclass(frozen=True)
class Found:
    """What `find_activations` found, in the order of the first calls; prints as a table.

    Attributes:
        rows: The activations.
        owners: Paths of the modules whose forwards make calls.
        sampled: Whether a sample was given.
    """

    rows: tuple[FoundActivation, ...]
    owners: tuple[str, ...] = field(default=(), repr=False)
    sampled: bool = True

    def __iter__(self) -> Iterator[FoundActivation]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, path: str) -> FoundActivation:
        for row in self.rows:
            if path == row.path or path in row.aliases:
                return row
        raise UserError(f"The network has no activation at {path!r}. {nearest(path, [row.path for row in self.rows])}")

    def __str__(self) -> str:
        header = ("path", "kind", "calls", "input", "range", "after", "sets: layer/channel/neuron", "what can be done")
        text = table(header, [_cells(row) for row in self.rows], numbers=False)
        lines = [(row.path, row.line) for row in self.rows if row.line is not None]
        if lines:
            text += "\n\n" + table(("path", "called in"), lines, numbers=False)
        return text if self.sampled else f"{text}\n\n{NOT_SAMPLED}"


def _cells(row: FoundActivation) -> tuple[str, ...]:
    sets = "/".join("?" if count is None else str(count) for count in row.sets.values())
    done = row.refused or (f"only by its path: {row.gate}" if row.gate else "can be replaced")
    return (
        row.path,
        row.kind,
        "" if row.calls is None else str(row.calls),
        "" if row.shape is None else "x".join(map(str, row.shape)),
        "" if row.range is None else f"{row.range[0]:.3g} to {row.range[1]:.3g}",
        "" if row.after is None else " ".join(row.after),
        sets,
        done + " (the sample does not reach it)" * (row.calls == 0),
    )
