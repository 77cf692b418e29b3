"""Times that are compared are measured in turns, and a ratio that the rounds disagree on is not given."""

import sys
from collections.abc import Callable, Iterator

import pytest

from aafit.errors import UserError
from benchmarks.harness import Ratio, measuring, take_turns


def clock(*seconds: float) -> Callable[[], float]:
    values = iter(seconds)
    return lambda: next(values)


def test_candidates_take_turns() -> None:
    order: list[str] = []

    def candidate(name: str) -> Callable[[], float]:
        def measure() -> float:
            order.append(name)
            return 1.0

        return measure

    take_turns({"a": candidate("a"), "b": candidate("b")}, 5)
    assert order == ["a", "b"] * 5


def test_a_slow_round_slows_both_and_leaves_the_ratio() -> None:
    turns = take_turns({"ours": clock(1, 1, 9, 1, 1), "theirs": clock(3, 3, 27, 3, 3)}, 5)
    ratio = turns.ratio("theirs", "ours")
    assert ratio.median == 3
    assert ratio.is_measured
    assert ratio.cells("times faster") == {"times faster": 3, "times faster, range": "3 to 3"}
    assert turns.median("ours") == 1


@pytest.mark.parametrize(
    ("rounds", "measured"),
    [
        ((1.0, 1.0, 1.0, 1.0, 1.0), True),
        ((0.9, 1.0, 1.0, 1.0, 1.19), True),
        ((0.9, 1.0, 1.0, 1.0, 1.21), False),
        ((0.9, 1.0, 5.0, 1.0, 13.0), False),
    ],
)
def test_a_range_above_30_percent_is_not_measured(rounds: tuple[float, ...], measured: bool) -> None:
    ratio = Ratio(rounds)
    assert ratio.is_measured is measured
    assert (ratio.cells("x")["x"] == "not measured") is not measured
    assert ratio.cells("x")["x, range"] == f"{min(rounds):.3g} to {max(rounds):.3g}"


@pytest.mark.parametrize(
    ("rounds", "target", "reached"),
    [((1.0, 1.1), None, "-"), ((1.0, 1.1), 1.2, "yes"), ((1.3, 1.4), 1.2, "no"), ((0.2, 1.4), 1.2, "not measured")],
)
def test_a_target_is_reached_only_by_what_was_measured(
    rounds: tuple[float, ...], target: float | None, reached: str
) -> None:
    assert Ratio(rounds).against(target)["reached"] == reached


def test_fewer_than_five_rounds_are_refused() -> None:
    with pytest.raises(UserError, match="4 rounds are too few to compare times: take at least 5"):
        take_turns({"a": lambda: 1.0}, 4)


@pytest.mark.skipif(sys.platform != "linux", reason="the load of other processes is read from /proc")
def test_the_load_of_other_processes_is_known() -> None:
    load = take_turns({"a": lambda: 1.0}, 5).other_load
    assert load is not None
    assert load >= 0


def counting(start: int, fails_at: int | None = None, sentence: str = "") -> Iterator[int]:
    """A generator for another process: from `start` on, until it fails."""
    value = start
    while True:
        if value == fails_at:
            raise UserError(sentence) if sentence else ValueError("what went wrong")
        yield value
        value += 1


def test_a_generator_in_another_process_goes_on_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(__file__).rpartition("/")[0])
    with measuring("test_turns:counting", start=3) as following:
        assert [following() for _ in range(3)] == [3, 4, 5]


@pytest.mark.parametrize(
    ("sentence", "error", "text"),
    [("One sentence.", UserError, "One sentence."), ("", RuntimeError, "what went wrong")],
)
def test_a_failure_of_the_other_process_is_reported(
    monkeypatch: pytest.MonkeyPatch, sentence: str, error: type[Exception], text: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(__file__).rpartition("/")[0])
    with measuring("test_turns:counting", start=0, fails_at=1, sentence=sentence) as following:
        assert following() == 0
        with pytest.raises(error, match=text):
            following()
