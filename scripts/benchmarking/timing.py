"""Ways that are measured in turns, and what is said of their times: medians and spread, never a single run.

Owns the interleaving. Knows no database.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROUNDS = 31


def nothing() -> None:
    """Do nothing: the default of what happens around a measurement."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of some measurements, and how far they reach.

    Attributes:
        median: Their median.
        low: The first quartile; of fewer than five measurements, the least.
        high: The third quartile; of fewer than five measurements, the greatest.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarise measurements, one at least."""
        ordered = sorted(values)
        if len(ordered) < 5:
            return cls(statistics.median(ordered), ordered[0], ordered[-1])
        low, median, high = statistics.quantiles(ordered, n=4)
        return cls(median, low, high)

    def rounded(self, digits: int) -> Spread:
        """Return it with fewer digits."""
        return Spread(round(self.median, digits), round(self.low, digits), round(self.high, digits))

    def described(self) -> dict[str, float]:
        """Return it as the ratio that a benchmark has for its result."""
        return {"ratio": self.median, "quartile_1": self.low, "quartile_3": self.high}

    @property
    def reach(self) -> list[float]:
        """How far they reach, as a report gives it."""
        return [self.low, self.high]


def in_turns(names: Sequence[str], round_: int) -> list[str]:
    """Return the order of a round: every other one is backwards, so that no way always follows the same one."""
    return list(names) if round_ % 2 else list(reversed(names))


def interleaved(
    ways: Mapping[str, Callable[[], Any]], *, rounds: int, before: Callable[[], Any] = nothing
) -> dict[str, list[float]]:
    """Run several ways in turns, and return each one's seconds, round by round.

    Each round measures all, in alternating order, so that whatever else the machine does meets all alike.

    Args:
        ways: What to run, by name; each is run once ahead of the first round, unmeasured.
        rounds: How often.
        before: Runs ahead of each measurement, unmeasured.
    """
    for way in ways.values():
        before()
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds):
        for name in in_turns(list(ways), round_):
            before()
            started = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return the ratio of measurements that were made in turns, round by round."""
    return Spread.of(one / other for one, other in zip(ours, theirs, strict=True))


def ratio(
    ours: Callable[[], Any], theirs: Callable[[], Any], *, rounds: int = ROUNDS, before: Callable[[], Any] = nothing
) -> Spread:
    """Run two ways in turns, and return the ratio of their times; the arguments are those of :func:`interleaved`."""
    seconds = interleaved({"ours": ours, "theirs": theirs}, rounds=rounds, before=before)
    return ratio_of(seconds["ours"], seconds["theirs"]).rounded(3)


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile, 1 to 99, of two values or more."""
    return statistics.quantiles(values, n=100)[percent - 1]
