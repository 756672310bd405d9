"""Calls of several stores of patients, measured in turns, block by block, each block in a transaction that is rolled back.

Beginning and ending a transaction is not measured. Of ours and psycopg's a failure ends the run; of a library it is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from benchmarking.failures import described
from benchmarking.peers.peer import Store
from benchmarking.timing import in_turns, percentile, ratio_of

Item = TypeVar("Item")


@dataclass
class Calls:
    """The seconds of every call of one store, block by block, or why there are none."""

    store: Store
    blocks: list[list[float]] = field(default_factory=list)
    failure: str | None = None

    def sums(self) -> list[float]:
        """Return the seconds of each block."""
        return [sum(block) for block in self.blocks]

    def percentiles(self) -> dict[str, float]:
        """Return the middle and the slowest of a hundred calls, in milliseconds."""
        every = [1000 * seconds for block in self.blocks for seconds in block]
        return {"p50_ms": round(percentile(every, 50), 3), "p99_ms": round(percentile(every, 99), 3)}


def measure(
    stores: Sequence[Store],
    call: Callable[[Store, Item], object],
    items: Callable[[int], Sequence[Item]],
    *,
    rounds: int,
    library_rounds: int | None = None,
) -> list[Calls]:
    """Call each store for each item of a round, in turns; a first round warms up and is not counted.

    Args:
        stores: Ours, psycopg's, and the libraries'.
        call: What to measure.
        items: A function of a round's number that gives the items of a block.
        rounds: How many blocks of each store.
        library_rounds: How many blocks of the libraries, for calls that take seconds; they are not warmed up then.
    """
    made = {each.name: Calls(each) for each in stores}
    for round_ in range(-1, rounds):
        for name in in_turns(list(made), round_):
            calls = made[name]
            is_library = calls.store not in stores[:2]
            if calls.failure or (is_library and library_rounds is not None and not 0 <= round_ < library_rounds):
                continue
            block = _block(calls, call, items(round_), is_library=is_library)
            if round_ >= 0:
                calls.blocks.append(block)
    return list(made.values())


def _block(
    calls: Calls, call: Callable[[Store, Item], object], items: Sequence[Item], *, is_library: bool
) -> list[float]:
    calls.store.begin()
    taken = []
    try:
        for item in items:
            started = time.perf_counter()
            call(calls.store, item)
            taken.append(time.perf_counter() - started)
    except Exception as error:
        if not is_library:
            raise
        calls.failure = described(error)
    finally:
        calls.store.rollback()
    return taken


def compared(measured: Sequence[Calls], figures: Callable[[Calls], dict[str, Any]]) -> dict[str, Any]:
    """Return ours, the ratio of its time to psycopg's, and under ``others`` psycopg and the libraries.

    Args:
        measured: As :func:`measure` gives them.
        figures: What to say of each.
    """
    ours, raw, *_ = measured
    ratio = ratio_of(ours.sums(), raw.sums()).rounded(3)
    others: list[dict[str, Any]] = []
    for each in measured[1:]:
        if each.failure is not None:
            others.append({"name": each.store.name, "failure": each.failure})
            continue
        times = ratio_of(ours.sums()[: len(each.blocks)], each.sums()).rounded(3)
        others.append({"name": each.store.name, **figures(each), "our_time_over_theirs": times.median})
    return {**figures(ours), "ratio": ratio.median, "ratio_range": ratio.reach, "others": others}
