"""A rotation keeps to the pace that was asked for: rows per second, and seconds that a batch holds its rows."""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import replace

import pytest

from tests.rotation.shapes import Shape, rotated
from voiceassist_db import Database
from voiceassist_db.models.declaration import FILLFACTOR
from voiceassist_db.rotation import Pace, Progress
from voiceassist_db.rotation.batches import Batches
from voiceassist_db.rotation.schedule import GROUP_WINDOWS, first_passes
from voiceassist_db.rotation.statements import Part
from voiceassist_db.rotation.throttle import NEARLY

HEAVY = Shape(
    keys=[(n,) for n in range(800)],
    rows=[{"note": "x" * 20_000, "scan": None}],
    options=f"WITH (fillfactor = {FILLFACTOR})",
)
"""Rows of which a batch takes long enough itself to count in a rate."""

WIDE = Shape(
    keys=[(n,) for n in range(4000)],
    rows=[{"note": "x" * 500, "scan": b"x" * 500}],
    options=f"WITH (fillfactor = {FILLFACTOR})",
)
"""Rows of which many pages are full."""

TARGET_S = 0.012


@pytest.mark.parametrize(("workers", "shape", "limit"), [(1, HEAVY, 400.0), (3, WIDE, 1600.0)], ids=["1", "3"])
def test_rows_per_second_are_what_was_asked_for(database: Database, workers: int, shape: Shape, limit: float) -> None:
    """However many workers share it, the rate is neither exceeded nor missed, over the run and over each second of it."""
    seen: list[tuple[float, int]] = []
    verifying: list[float] = []

    def look(now: Progress) -> None:
        if now.phase == "rotating":
            seen.append((time.monotonic(), now.rows))
        elif now.phase == "verifying":
            verifying.append(time.monotonic())

    report = rotated(database, shape, pace=Pace(workers=workers, max_rows_per_second=limit), on_progress=look)
    assert report.rows_per_second == pytest.approx(limit, rel=0.15)
    batch = limit / 20
    for (at, rows), (later, more) in itertools.combinations([each for each in seen if each[0] > seen[0][0] + 1], 2):
        if later - at >= 1:
            assert more - rows <= 1.15 * limit * (later - at) + batch * workers
    # So is the proof: the last windows need not be waited for.
    assert verifying[-1] - verifying[0] > 0.5 * report.rows / limit


def test_a_batch_takes_as_long_as_was_asked_for(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins with batches that are far too short, and soon they hold their rows about so long, and not longer."""
    seconds: list[float] = []
    original = Batches.rotate

    def timed(self: Batches, part: Part, **options: float) -> tuple[int, int | None, bool]:
        started = time.perf_counter()
        done = original(self, part, **options)
        seconds.append(time.perf_counter() - started)
        return done

    monkeypatch.setattr(Batches, "rotate", timed)
    monkeypatch.setattr("voiceassist_db.rotation.schedule.FIRST_BYTES_PER_S", 1)
    rotated(database, WIDE, pace=Pace(target_batch_s=TARGET_S))
    of_group = GROUP_WINDOWS * first_passes(FILLFACTOR)
    groups = [statistics.median(seconds[at : at + of_group]) for at in range(0, len(seconds), of_group)]
    # No more than that it comes near: before it has learned much, a table of this size is at its end.
    assert 1.5 * groups[0] < max(groups)
    assert len(seconds) < 400, "of one page each, there would be 4000"
    assert TARGET_S / 4 < max(groups) < TARGET_S * 2


@pytest.mark.parametrize("limit", [None, 500.0])
def test_a_limited_batch_naps_instead_of_hurrying(
    database: Database, monkeypatch: pytest.MonkeyPatch, limit: float | None
) -> None:
    """Under a limit a batch goes on for most of the time that its rows may take; without one, none naps."""
    seconds: list[float] = []
    original = Batches.rotate

    def timed(self: Batches, part: Part, *, nap_share: float) -> tuple[int, int | None, bool]:
        started = time.perf_counter()
        done = original(self, part, nap_share=nap_share)
        if done[0]:
            seconds.append((time.perf_counter() - started) / done[0])
        assert limit or not nap_share
        return done

    monkeypatch.setattr(Batches, "rotate", timed)
    rotated(database, replace(WIDE, keys=WIDE.keys[:1000]), pace=Pace(max_rows_per_second=limit))
    if limit:
        assert statistics.median(seconds) > 0.7 * NEARLY / limit
