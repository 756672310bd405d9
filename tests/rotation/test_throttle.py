"""A rotation keeps to the pace that was asked for: rows per second, and seconds that a batch holds its rows.

Whether a rate is met depends on how fast the machine is. So here the rotation's clock shows what rows are said to cost; the rows
and the batches are real.
"""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import dataclass, replace
from random import Random

import pytest
from sqlalchemy import create_engine

from tests.clock import Clock
from tests.rotation.shapes import Shape, rotated
from voiceassist_db import Database
from voiceassist_db.models.declaration import FILLFACTOR
from voiceassist_db.rotation import Pace, Progress
from voiceassist_db.rotation.batches import Batches
from voiceassist_db.rotation.schedule import GROUP_WINDOWS, first_passes
from voiceassist_db.rotation.statements import NAP_S, Part
from voiceassist_db.rotation.throttle import Throttle

WIDE = Shape(
    keys=[(n,) for n in range(4000)],
    rows=[{"note": "x" * 500, "scan": b"x" * 500}],
    options=f"WITH (fillfactor = {FILLFACTOR})",
)
"""Rows of which many pages are full."""

FEW = replace(WIDE, keys=WIDE.keys[:1000])

TARGET_S = 0.012
MAX_BATCHES = 400


@dataclass(frozen=True)
class Batch:
    """A batch as it was done: how many rows, how long it took, and after how large a share of its rows it napped."""

    rows: int
    seconds: float
    nap_share: float


def costing(row_s: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Clock, list[Batch]]:
    """Let each row cost so many seconds of a clock, to re-encrypt and to prove; return the clock and the batches to come."""
    clock = Clock()
    done: list[Batch] = []
    rotate, prove = Batches.rotate, Batches.prove

    def rotate_at_cost(self: Batches, part: Part, *, nap_share: float = 0.0) -> tuple[int, int | None, bool]:
        result = rotate(self, part)
        seconds = result[0] * (row_s + nap_share * NAP_S)
        clock.sleep(seconds)
        done.append(Batch(result[0], seconds, nap_share))
        return result

    def prove_at_cost(self: Batches, part: Part) -> tuple[int, int]:
        result = prove(self, part)
        clock.sleep(result[0] * row_s)
        return result

    monkeypatch.setattr(Batches, "rotate", rotate_at_cost)
    monkeypatch.setattr(Batches, "prove", prove_at_cost)
    for module in ("run", "work", "throttle"):
        monkeypatch.setattr(f"voiceassist_db.rotation.{module}.time", clock)
    return clock, done


def require_rate(seen: list[tuple[float, int]], limit: float, *, slack: float) -> None:
    """Fail where, over a second or longer, more rows were done than a limit allows, or fewer; ``slack`` rows are one batch of each."""
    for (at, rows), (later, more) in itertools.combinations(seen, 2):
        if later - at >= 1:
            assert 0.85 * limit * (later - at) - slack <= more - rows <= 1.15 * limit * (later - at) + slack


@pytest.mark.parametrize("row_s", [0.00005, 0.0005, 0.002], ids=["cheap", "dear", "nearly too dear"])
def test_rows_per_second_are_what_was_asked_for(
    database: Database, monkeypatch: pytest.MonkeyPatch, row_s: float
) -> None:
    """Whatever a row costs, the rate is neither exceeded nor missed, over the run and over each second of it."""
    limit = 400.0
    clock, done = costing(row_s, monkeypatch)
    seen: list[tuple[float, int]] = []
    verifying: list[float] = []

    def look(now: Progress) -> None:
        if now.phase == "verifying":
            verifying.append(clock.now)

    rotate_batch = Batches.rotate

    def seen_after(self: Batches, part: Part, *, nap_share: float = 0.0) -> tuple[int, int | None, bool]:
        result = rotate_batch(self, part, nap_share=nap_share)
        seen.append((clock.now, sum(batch.rows for batch in done)))
        return result

    monkeypatch.setattr(Batches, "rotate", seen_after)
    report = rotated(database, FEW, pace=Pace(max_rows_per_second=limit), on_progress=look)
    assert report.rows == len(FEW.keys)
    assert report.rows_per_second == pytest.approx(limit, rel=0.15)
    require_rate([each for each in seen if each[0] > seen[0][0] + 0.5], limit, slack=limit / 20)
    # So is the proof: the last windows need not be waited for.
    assert verifying[-1] - verifying[0] > 0.5 * report.rows / limit


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("row_s", [0.0001, 0.0008], ids=["cheap", "dear"])
def test_workers_share_a_rate(monkeypatch: pytest.MonkeyPatch, workers: int, row_s: float) -> None:
    """However many there are, and though some batches take three times as long as others, it is neither exceeded nor missed."""
    limit = 900.0
    clock = Clock()
    monkeypatch.setattr("voiceassist_db.rotation.throttle.time", clock)
    pace = Pace(workers=workers, max_rows_per_second=limit)
    engine = create_engine("postgresql+psycopg://")  # which nobody asks: no lag is limited
    throttle = Throttle(engine, pace, is_stopping=lambda: False, on_hold=lambda _: None)
    free_at = dict.fromkeys(range(workers), clock.now)
    rows, at_least = max(1, int(limit / 20 / workers)), clock.now + 5
    random = Random(workers)  # noqa: S311  # to be repeated, not to be secret
    seen: list[tuple[float, int]] = []
    ends: list[tuple[float, int]] = []
    while min(free_at.values()) < at_least:
        # The worker whose batch ends first is the next to ask.
        worker = min(free_at, key=free_at.__getitem__)
        seconds = rows * (row_s * random.uniform(0.5, 1.5) + throttle.nap_share * NAP_S)
        clock.now = free_at[worker] + seconds
        ends.append((clock.now, rows))
        throttle.keep_rate(rows, seconds=seconds)
        free_at[worker] = clock.now
    total = 0
    for at, more in sorted(ends):
        total += more
        seen.append((at, total))
    require_rate([each for each in seen if each[0] > seen[0][0] + 1], limit, slack=rows * workers)


def test_a_batch_takes_as_long_as_was_asked_for(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins with batches that are far too short, and soon they hold their rows about so long, and not longer."""
    _, done = costing(0.0001, monkeypatch)
    monkeypatch.setattr("voiceassist_db.rotation.schedule.FIRST_BYTES_PER_S", 1)
    rotated(database, WIDE, pace=Pace(target_batch_s=TARGET_S))
    of_group = GROUP_WINDOWS * first_passes(FILLFACTOR)
    groups = [
        statistics.median(each.seconds for each in done[at : at + of_group]) for at in range(0, len(done), of_group)
    ]
    assert groups[0] < TARGET_S / 4
    assert len(done) < MAX_BATCHES, "of one page each, there would be 4000"
    assert TARGET_S / 2 < max(groups) < TARGET_S * 1.5


@pytest.mark.parametrize("limit", [None, 500.0])
def test_a_limited_batch_naps_instead_of_hurrying(
    database: Database, monkeypatch: pytest.MonkeyPatch, limit: float | None
) -> None:
    """Under a limit a batch goes on for most of the time that its rows may take; without one, none naps."""
    done: list[Batch] = []
    original = Batches.rotate

    def timed(self: Batches, part: Part, *, nap_share: float) -> tuple[int, int | None, bool]:
        started = time.perf_counter()
        result = original(self, part, nap_share=nap_share)
        done.append(Batch(result[0], time.perf_counter() - started, nap_share))
        return result

    monkeypatch.setattr(Batches, "rotate", timed)
    rotated(database, FEW, pace=Pace(max_rows_per_second=limit))
    napped_s = sum(each.rows * each.nap_share * NAP_S for each in done)
    if limit is None:
        assert napped_s == 0
    else:
        # Of the time that the rows may take, most is not their own cost. The server never naps for less than it was asked for.
        assert napped_s > 0
        assert sum(each.seconds for each in done) > 0.8 * napped_s
