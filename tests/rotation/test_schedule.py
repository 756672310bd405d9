"""The order of a rotation over pages: nothing is left out, nothing is taken twice, and windows fit the time asked for."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voiceassist_db.models.declaration import FILLFACTOR
from voiceassist_db.rotation.schedule import (
    CAREFUL,
    FIRST_BYTES_PER_S,
    GROUP_WINDOWS,
    HOT_ENOUGH,
    MAX_FIRST_PASSES,
    MAX_PASSES,
    MAX_WINDOW_PAGES,
    STEADY,
    Overlaps,
    Schedule,
    first_passes,
    turns,
)
from voiceassist_db.rotation.statements import Part

TARGET_S = 0.5
FIRST_WINDOW_PAGES = 64
"""That the schedules of these tests begin with."""


def schedule(
    pages: int = 1 << 20, *, passes: int = 4, workers: int = 1, max_rows: float | None = None, rows_per_page: int = 1
) -> Schedule:
    """Return a schedule, of a relation that is too large to come to its end in a test."""
    return Schedule(
        pages,
        rows=pages * rows_per_page,
        size=int(pages * FIRST_BYTES_PER_S * TARGET_S * passes / FIRST_WINDOW_PAGES),
        passes=passes,
        target_batch_s=TARGET_S,
        max_batch_rows=max_rows,
        workers=workers,
    )


def part(pages: int = FIRST_WINDOW_PAGES, *, passes: int = 4) -> Part:
    """Return a part of that many pages."""
    return Part(0, pages, passes, 0)


def learn(
    known: Schedule,
    done: Part,
    *,
    rows: int = 1000,
    hot: float | None = 1.0,
    seconds: float = TARGET_S,
    is_held: bool = False,
) -> None:
    """Tell a schedule of a finished part, of which that share of rows stayed on their page."""
    hot_rows = None if hot is None else int(hot * rows)
    known.learn(done, rows=rows, hot_rows=hot_rows, seconds=seconds, is_held=is_held)


def taken_by_turns(known: Schedule, workers: int, chance: random.Random) -> Iterator[Part]:
    """Yield a schedule's parts as workers take them, whoever's turn it is by chance."""
    groups = [known.groups() for _ in range(workers)]
    running: list[Iterator[Part]] = [iter(()) for _ in range(workers)]
    alive = list(range(workers))
    while alive:
        worker = chance.choice(alive)
        following = next(running[worker], None)
        if following is not None:
            yield following
        elif (group := next(groups[worker], None)) is not None:
            running[worker] = iter(group)
        else:
            alive.remove(worker)


@pytest.mark.wide
@settings(deadline=None)
@given(
    pages=st.integers(0, 700),
    passes=st.integers(1, 14),
    workers=st.integers(1, 4),
    lessons=st.lists(st.sampled_from(["nothing", "fast", "slow", "crowded", "held", "shrink"]), min_size=1),
    limited=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_row_is_in_one_part(
    pages: int, passes: int, workers: int, lessons: list[str], limited: bool, seed: int
) -> None:
    """Each row number of each page is taken once, whoever takes which part, and whatever was learned in between."""
    known = schedule(pages, passes=passes, workers=workers, max_rows=100.0 if limited else None)
    chance = random.Random(seed)  # noqa: S311  # chooses whose turn it is
    shares: dict[int, list[tuple[int, int | None]]] = {}
    for each in taken_by_turns(known, workers, chance):
        for page in range(each.first, each.end):
            shares.setdefault(page, []).append((each.passes, each.pass_))
        lesson = chance.choice(lessons)
        if lesson == "shrink":
            known.shrink()
        elif lesson != "nothing":
            seconds = {"fast": 0.0, "slow": 100.0}.get(lesson, TARGET_S)
            hot = 0.5 if lesson in {"crowded", "held"} else None
            learn(known, each, hot=hot, seconds=seconds, is_held=lesson == "held")
    assert set(range(pages)) == set(shares)
    for taken in shares.values():
        # One number of passes for all parts of a page, and each of them once: so every number's remainder is among them.
        (of,) = {each[0] for each in taken}
        assert list(range(of)) == sorted(each[1] for each in taken if each[1] is not None)
        assert len(taken) == of


@given(pages=st.integers(1, 5000), workers=st.integers(1, 8), passes=st.integers(1, MAX_PASSES))
def test_a_page_rests_between_its_passes(pages: int, workers: int, passes: int) -> None:
    """The passes of a group's windows are interleaved: between two over one page come those over the group's others."""
    for group in itertools.islice(schedule(pages, passes=passes, workers=workers).groups(), 3):
        windows = len({each.first for each in group})
        assert 1 <= windows <= GROUP_WINDOWS
        assert len(group) == windows * passes
        for at, each in enumerate(group):
            assert each.pass_ == at // windows
            assert each.first == group[at % windows].first


@given(st.integers(0, 3000), st.integers(1, 3000))
def test_halves_are_the_whole(first: int, pages: int) -> None:
    """A part that is halved loses no page and no pass."""
    whole = Part(first, first + pages, 5, 3)
    one, other = whole.halves()
    assert (one.first, one.end, other.end) == (first, other.first, whole.end)
    assert abs(one.pages - other.pages) <= 1
    assert {(one.passes, one.pass_), (other.passes, other.pass_)} == {(5, 3)}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("page_bytes", [1 << 13, 1 << 20, 1 << 30])
def test_first_parts_hold_what_fits_into_the_time_asked_for(page_bytes: int, workers: int) -> None:
    """With whatever values rows keep outside their pages, the first part has no more bytes than that, or is a single page."""
    pages = 1 << 20
    known = Schedule(
        pages,
        rows=pages,
        size=pages * page_bytes,
        passes=4,
        target_batch_s=TARGET_S,
        max_batch_rows=None,
        workers=workers,
    )
    first = next(known.groups())[0]
    fitting = FIRST_BYTES_PER_S * TARGET_S * 4 / page_bytes
    assert first.pages == max(1, min(MAX_WINDOW_PAGES, int(fitting)))


@pytest.mark.parametrize("seconds_per_page", [0.0005, 0.002, 0.03, 0.4])
def test_a_window_grows_or_shrinks_to_the_time_asked_for(seconds_per_page: float) -> None:
    """However long a page takes, after a few groups a part takes about the target; and again when pages become slower."""
    known = schedule()
    for pace in (seconds_per_page, seconds_per_page * 5, seconds_per_page):
        for group in itertools.islice(known.groups(), 6):
            learn(known, group[0], seconds=group[0].pages * pace)
        expected = max(1, min(MAX_WINDOW_PAGES, TARGET_S / pace))
        assert 0.5 * expected <= known.window_pages <= expected + 1


def test_a_limit_of_rows_makes_windows_smaller_than_time_does() -> None:
    """Under a limit, a part has no more rows than that, though there would be time for more."""
    known = schedule(max_rows=50)
    for group in itertools.islice(known.groups(), 4):
        learn(known, group[0], rows=10 * group[0].pages, seconds=1e-4 * group[0].pages)
    assert known.window_pages == 5


def test_passes_go_up_when_rows_leave_their_page() -> None:
    """Each group that finds too little room makes one more pass; one that finds enough leaves the number as it is."""
    known = schedule()
    learn(known, part(), hot=HOT_ENOUGH)
    assert known.passes == 4
    learn(known, part(), hot=HOT_ENOUGH - 0.01)
    assert known.passes == 5
    learn(known, part(passes=5), hot=0.0)
    assert known.passes == 6


def test_what_was_learned_of_earlier_passes_does_not_count_twice() -> None:
    """All parts of a crowded group speak of one and the same number of passes, which goes up by one for them all."""
    known = schedule()
    for _ in range(10):
        learn(known, part(), hot=0.5)
    assert known.passes == 5


@pytest.mark.parametrize(("hot", "is_held"), [(0.0, True), (None, False)])
def test_more_passes_are_not_tried_where_they_cannot_help(hot: float | None, is_held: bool) -> None:
    """While somebody's snapshot keeps dead rows, or where the server counts nothing, passes stay as they are."""
    known = schedule()
    learn(known, part(), hot=hot, is_held=is_held)
    assert known.passes == 4


def test_a_single_page_that_takes_too_long_is_taken_in_more_passes() -> None:
    """Where a window cannot be smaller, as of long notes, fewer of its rows at a time keep to the target."""
    known = schedule()
    while known.window_pages > 1:
        learn(known, part(int(known.window_pages)), rows=4, seconds=60.0)
    for expected in (8, 16, 32):
        learn(known, part(1, passes=known.passes), rows=4, seconds=60.0)
        assert expected == known.passes
    learn(known, part(1, passes=known.passes), rows=1, seconds=60.0)
    assert known.passes == 32


def test_pages_that_were_done_before_do_not_make_batches_large() -> None:
    """Under a limit, a window that grew where no row was left still has no more rows than the limit allows where all are."""
    known = schedule(max_rows=50, rows_per_page=13)
    for group in itertools.islice(known.groups(), 6):
        for each in group:
            assert each.pages * 13 / each.passes <= 50
            learn(known, each, rows=0, seconds=0.001)


def test_an_unreadable_row_makes_windows_small() -> None:
    """Where one is, there may be more, and each costs less in a small window; it grows slowly, whatever the time would allow."""
    known = schedule()
    for expected in (32, 16, 8):
        known.shrink()
        assert expected == known.window_pages
    for _ in range(6):
        learn(known, part(FIRST_WINDOW_PAGES), rows=1000, seconds=0.01)
    assert known.window_pages == pytest.approx(8 * CAREFUL**6)
    learn(known, part(16), rows=1000, seconds=50.0)
    assert known.window_pages == 16 / STEADY


@pytest.mark.parametrize("clean", [80, 2000])
def test_a_moment_in_which_rows_leave_their_page_adds_no_pass(clean: int) -> None:
    """In windows that unreadable rows keep small, a few rows are no verdict; as many as the first window has are one."""
    known = schedule(rows_per_page=25)
    for _ in range(50):
        learn(known, part(1), rows=20, hot=0.0)
        for _ in range(clean // 20):
            learn(known, part(1), rows=20, hot=1.0)
        if known.passes > 4:
            break
    assert (known.passes > 4) == (clean == 80)


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1e6), st.booleans(), st.booleans()), max_size=30
    )
)
def test_bounds_hold_whatever_is_learned(lessons: list[tuple[int, float, float, bool, bool]]) -> None:
    """Windows stay between one page and the most, change by a bounded factor, and passes stay within a row number's byte."""
    known = schedule()
    for rows, hot, seconds, is_held, shrinks in lessons:
        before = known.window_pages
        learn(known, part(int(before), passes=known.passes), rows=rows, hot=hot, seconds=seconds, is_held=is_held)
        assert before / STEADY - 1 <= known.window_pages <= before * STEADY
        if shrinks:
            known.shrink()
        assert 1 <= known.window_pages <= MAX_WINDOW_PAGES
        assert 4 <= known.passes <= MAX_PASSES


@given(st.integers(10, 100))
def test_the_first_passes_fit_into_the_room_of_a_page(fillfactor: int) -> None:
    """One pass's rows need no more room than the fillfactor left free, unless that would take too many passes."""
    passes = first_passes(fillfactor)
    assert 2 <= passes <= MAX_FIRST_PASSES
    assert fillfactor / passes <= 100 - fillfactor or passes == MAX_FIRST_PASSES


def test_the_shipped_fillfactor_needs_few_passes() -> None:
    """At the fillfactor of every table that our models declare, four passes are enough."""
    assert first_passes(FILLFACTOR) == 4


def test_a_pass_waits_for_batches_that_began_before_the_last_one_was_committed() -> None:
    """They could still see what it left dead; later ones, and a run that is to end, are not waited for."""
    overlaps = Overlaps()
    with ThreadPoolExecutor(1) as pool:
        with overlaps.batch():
            committed = time.monotonic()
            overlaps.wait_for_earlier(committed - 1, is_stopping=lambda: False)
            overlaps.wait_for_earlier(committed, is_stopping=lambda: True)
            waiting = pool.submit(overlaps.wait_for_earlier, committed, is_stopping=lambda: False)
            time.sleep(0.3)
            assert not waiting.done()
        waiting.result(10)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**6)), unique=True), st.integers(1, MAX_PASSES))
def test_given_rows_are_shared_out_over_passes(places: list[tuple[int, int]], passes: int) -> None:
    """Each row is in one pass, and no pass has more of a page than the others by more than one row."""
    rows = [(page, (page, number)) for page, number in places]
    shared = turns(rows, passes)
    assert sorted(places) == sorted(key for keys in shared for key in keys)
    assert all(shared)
    for page in {page for page, _ in places}:
        of_page = [sum(key[0] == page for key in keys) for keys in shared]
        assert max(of_page) <= -(-sum(of_page) // passes)
