"""Which part of a relation comes next: windows of pages, in groups whose passes are interleaved.

Owns the arithmetic, and learns from each batch how large a window fits the time asked for and how many passes the pages have
room for. Knows no database; safe for threads.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from voiceassist_db.rotation.statements import Key, Part

GROUP_WINDOWS: Final = 4
"""Windows whose passes are interleaved. Between two passes over a page others must have let go of what the first left dead:
with two workers and passes back to back, a third of the rows left their page (HOT 0.66); with four windows none did, and
:class:`Overlaps` hardly ever has to wait."""

SAMPLE_PAGES: Final = 32
"""Pages at the beginning of a group that are looked at, for how the rows of all of them are numbered."""

FIRST_BYTES_PER_S: Final = 4 << 20
"""Of a table with its TOAST, how much the first parts hold for each second that they may take. Two columns of 100 bytes take half of
that time, and large values less."""

LAST_WINDOW_PAGES: Final = 32
JUDGED_PAGES: Final = 64
"""Over at least so many pages' rows it is judged whether there is a pass too few."""

MAX_WINDOW_PAGES: Final = 4096
MAX_PASSES: Final = 128
"""A pass takes the rows of a page by the low byte of their number, so that there can be no more than 256."""

MAX_FIRST_PASSES: Final = 12
"""Where pages were filled to the brim, the first pass finds no room however many there are."""

OVERLAP_POLL_S: Final = 0.1
HOT_ENOUGH: Final = 0.98
STEADY: Final = 8.0
"""Factor by which a window grows or shrinks at most from one group to the next."""

CAREFUL: Final = 1.13
"""Factor by which it grows with each part, once a row could not be read, and until then a part with another such row halves it: that
settles where about every seventh part has one (0.13 ln 2 ≈ 0.87 ln 1.13), and costs least, for a part with one is done twice."""


class Schedule:
    """Hands out the parts of one relation.

    Args:
        pages: How many pages it has.
        rows: How many rows are on them, under whichever key.
        size: Bytes of the pages, and of what rows keep outside them (TOAST).
        passes: How many passes to begin with.
        target_batch_s: Seconds that one part should take.
        max_batch_rows: Rows that one part should have at most; None for any number.
        workers: How many take parts at the same time.
    """

    def __init__(
        self,
        pages: int,
        *,
        rows: int,
        size: int,
        passes: int,
        target_batch_s: float,
        max_batch_rows: float | None = None,
        workers: int = 1,
    ) -> None:
        self._pages = pages
        self._rows_per_page = rows / max(pages, 1)
        self._target_s = target_batch_s
        self._max_rows = max_batch_rows
        self._lock = threading.Lock()
        self._next = 0
        self._workers = workers
        self.passes = passes
        fitting = FIRST_BYTES_PER_S * target_batch_s * passes * pages / max(size, 1)
        self.window_pages: float = max(1.0, min(fitting, MAX_WINDOW_PAGES))
        self._is_careful = False
        self._rows = self._left = 0

    def groups(self) -> Iterator[list[Part]]:
        """Yield groups until the relation is covered; each is one worker's, to be taken in its order."""
        while True:
            with self._lock:
                if self._next >= self._pages:
                    return
                first, pages, passes = self._next, self._next_window(), self.passes
                end = min(first + pages * GROUP_WINDOWS, self._pages)
                self._next = end
            starts = range(first, end, pages)
            yield [Part(start, min(start + pages, end), passes, each) for each in range(passes) for start in starts]

    def _next_window(self) -> int:
        pages = min(int(self.window_pages), self._share())
        if self._max_rows is None:
            return pages
        # Windows grow over pages that were done before, where no row is left to tell how many there are on the next ones.
        fitting = self._max_rows * self.passes / max(self._rows_per_page, 1)
        return max(1, min(pages, int(fitting)))

    def _share(self) -> int:
        """Return how large a window may be for all workers to come to their end at about the same time."""
        left = self._pages - self._next
        if self._workers == 1:
            return max(1, -(-left // GROUP_WINDOWS))
        return max(LAST_WINDOW_PAGES, 2 * left // (GROUP_WINDOWS * self._workers * 3))

    def learn(self, part: Part, *, rows: int, hot_rows: int | None, seconds: float, is_held: bool) -> None:
        """Take a finished part's figures into account for the groups that come.

        Args:
            part: The part.
            rows: Rows that it re-encrypted.
            hot_rows: How many of them stayed on their page; None where the server does not count.
            seconds: How long it took.
            is_held: Whether a transaction of somebody else keeps pages from being cleaned, so that more passes would not help.
        """
        factor = self._target_s / max(seconds, 1e-6)
        if self._max_rows is not None:
            factor = min(factor, self._max_rows / max(rows, 1))
        with self._lock:
            wanted = part.pages * max(1 / STEADY, min(STEADY, factor))
            if self._is_careful:
                wanted = min(wanted, self.window_pages * CAREFUL)
            elif part.pages > self.window_pages:  # it was handed out before the window shrank
                wanted = min(wanted, self.window_pages)
            self.window_pages = max(1.0, min(wanted, MAX_WINDOW_PAGES))
            if part.passes != self.passes:  # of a group from before
                return
            crowded = self._is_crowded(rows, rows if hot_rows is None or is_held else hot_rows)
            # Where a single page takes too long, as of long notes it can, only fewer of its rows help.
            slow = part.pages == 1 and factor < 1 / 2 and rows > 1
            if crowded or slow:
                self.passes = min(MAX_PASSES, self.passes * 2 if slow else self.passes + 1)

    def _is_crowded(self, rows: int, hot_rows: int) -> bool:
        """Say whether too many rows left their page, of as many as :data:`JUDGED_PAGES` have.

        Judged by fewer, every moment in which something kept a page from being cleaned would add a pass. Where rows that cannot be
        read keep windows small, that came to 100 passes, and a run of 1,000,000 rows took an hour.
        """
        self._rows += rows
        self._left += rows - hot_rows
        if self._rows < JUDGED_PAGES * self._rows_per_page:
            return False
        crowded = self._left > (1 - HOT_ENOUGH) * self._rows
        self._rows = self._left = 0
        return crowded

    def shrink(self) -> None:
        """Begin small again, and grow slowly, after a row that could not be read: where one is, there may be more.

        Each costs about one batch, so that batches should not be larger than the distance between two of them.
        """
        with self._lock:
            self.window_pages = max(1.0, self.window_pages / 2)
            self._is_careful = True


class Overlaps:
    """Knows which batches of all workers overlap; safe for threads.

    What a pass leaves dead on its pages, the next one cleans up; unless a batch of another worker is still open that began before
    the pass was committed, for it could still see those rows.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open: dict[object, float] = {}

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Mark a batch of the calling worker as open."""
        token = object()
        with self._changed:
            self._open[token] = time.monotonic()
        try:
            yield
        finally:
            with self._changed:
                del self._open[token]
                self._changed.notify_all()

    def wait_for_earlier(self, moment: float, *, is_stopping: Callable[[], bool]) -> None:
        """Wait until no batch is open that began before a moment, of ``time.monotonic``; the caller has none open itself."""
        with self._changed:
            while not is_stopping() and any(began <= moment for began in self._open.values()):
                self._changed.wait(OVERLAP_POLL_S)


def spread(counts: Mapping[int, int], passes: int) -> bytes:
    """Assign the rows of pages to passes by their numbers, so that each pass has as many.

    The remainder alone does it on a fresh table only: a pass's new versions take the numbers that the pass before left free, so
    that from the third rotation on one remainder has 5/16 of the rows instead of 4/16, which no page has room for.

    Args:
        counts: Rows by the low byte of their number, of pages like those that are rotated.
        passes: How many passes there are, at most 256.

    Returns:
        The pass of each number, 256 bytes.
    """
    load = [0] * passes
    assigned = bytearray(number % passes for number in range(256))
    for number in sorted(counts):
        lightest = min(range(passes), key=load.__getitem__)
        assigned[number] = lightest
        load[lightest] += counts[number]
    return bytes(assigned)


def turns(rows: Sequence[tuple[int, Key]], passes: int) -> list[list[Key]]:
    """Share given rows out over passes, so that each pass has an equal share of every page's rows.

    Args:
        rows: Page and primary key of each row.
        passes: How many passes there are at most.

    Returns:
        The primary keys of each pass that has any.
    """
    shared: list[list[Key]] = [[] for _ in range(passes)]
    of_page: Counter[int] = Counter()
    for page, key in rows:
        shared[of_page[page] % passes].append(key)
        of_page[page] += 1
    return [keys for keys in shared if keys]


def first_passes(fillfactor: int) -> int:
    """Return how many passes fit one pass's rows into the room that a page has; one more than by division, for rows are whole.

    Args:
        fillfactor: Percent of a page that was filled when it was written.
    """
    room = max(100 - fillfactor, 1)
    return min(MAX_FIRST_PASSES, -(-fillfactor // room) + 1)
