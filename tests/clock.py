"""A clock that a test controls, in place of the module ``time`` of the module under test."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Clock:
    """Goes on when somebody sleeps, and when the test says so. Safe for one thread only.

    Attributes:
        now: What it shows, seconds.
        slept: How long each sleep was, seconds.
    """

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        """Return what it shows."""
        return self.now

    perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        """Let seconds pass."""
        self.now += seconds
        self.slept.append(seconds)
