"""Which waiting run is next: of those whose parent is done, the one that the longest chain of runs waits for."""

import time
from collections.abc import Mapping

from aafit.experiment.runs.job import lockstep_groups
from aafit.experiment.scheduling.plan import START_SECONDS, Costs, Key, chains, children_of, parents_of
from aafit.experiment.scheduling.progress import RunState, Status

RANKING_SHARE = 0.02
"""The share of its time that a schedule may spend on ranking its runs anew as it learns what they cost."""


class Order:
    """The waiting runs in the order of the longest chain of runs before the end, so that none ends late.

    Attributes:
        ready: those that can start now.
    """

    def __init__(self, states: Mapping[Key, RunState], costs: Costs) -> None:
        self.states, self.costs = states, costs
        jobs = {key: state.job for key, state in states.items()}
        self.parents, self.groups = parents_of(jobs), lockstep_groups(jobs)
        self.children = children_of(self.parents)
        self.alone: set[Key] = set()
        done = {key for key, state in states.items() if state.status is not Status.WAITING} | {None}
        self.ready = {key: None for key in states if key not in done and self.parents[key] in done}
        self.longest: dict[Key, float] = {}
        self.ranked_next = 0.0

    def take(self) -> tuple[Key, ...]:
        """The run to start now, and those that can go in lockstep with it; they are ready no more."""
        began = time.monotonic()
        if began >= self.ranked_next:
            self.longest = self._rank()
            self.ranked_next = time.monotonic() + (time.monotonic() - began) / RANKING_SHARE
        keys = self._lockstep(max(self.ready, key=self.longest.__getitem__))
        for key in keys:
            del self.ready[key]
        return keys

    def done(self, key: Key) -> None:
        """What comes from a run can start once it is done."""
        self.ready |= dict.fromkeys(self._waiting_children(key))

    def again_alone(self, key: Key) -> None:
        """A run whose process failed starts again for itself: one of several must not take the others along."""
        self.alone.add(key)
        self.ready[key] = None

    def below(self, key: Key) -> list[Key]:
        """All waiting runs that come from a run."""
        found: list[Key] = []
        for child in self._waiting_children(key):
            found += [child, *self.below(child)]
        return found

    def _waiting_children(self, key: Key) -> list[Key]:
        return [child for child in self.children[key] if self.states[child].status is Status.WAITING]

    def _lockstep(self, key: Key) -> tuple[Key, ...]:
        """The ready runs, this one among them, that can go in one process: they have their parent in common."""
        if key in self.alone:
            return (key,)
        return tuple(other for other in self.groups[key] if other in self.ready and other not in self.alone)

    def _rank(self) -> dict[Key, float]:
        waiting = [key for key, state in self.states.items() if state.status is Status.WAITING]
        known = {key: self.states[key].seconds_left(self.costs) for key in waiting}
        cost = {key: START_SECONDS if left is None else left for key, left in known.items()}
        together = {key: self._waiting_lockstep(key, cost) for key in waiting}
        return chains(together, self.parents)

    def _waiting_lockstep(self, key: Key, cost: Mapping[Key, float]) -> float:
        """What the process costs that a run will be in."""
        if key in self.alone:
            return cost[key]
        return sum(cost[other] for other in self.groups[key] if other in cost and other not in self.alone)
