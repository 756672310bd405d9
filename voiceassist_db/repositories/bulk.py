"""Many records on their way into one table: in batches of one INSERT each, in groups of batches that are sent together.

Owns how large both are, and what is drawn or encoded ahead of its statement. Executes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Final, Generic, TypeVar

from voiceassist_db.keyring import Keyring
from voiceassist_db.masking import MaskedValues
from voiceassist_db.pgcrypto.binding import Array
from voiceassist_db.repositories.records import Record
from voiceassist_db.repositories.rows import Rows

R = TypeVar("R", bound=Record)
T = TypeVar("T")

BATCH_ROWS: Final = 300
"""Rows of one INSERT."""

FIRST_BATCH_ROWS: Final = 100
"""Few, because the server has nothing to do while they are encoded."""

GROUP_BATCHES: Final = 8
"""Batches that are sent one after the other, before the server's answer to the first is waited for."""

GROUP_CHARACTERS: Final = 4 << 20
"""Characters of text, or bytes, that end a batch and its group early: of long notes, a batch is a batch of few."""


MAX_STATEMENT_BYTES: Final = 256 << 20
"""Bytes of the parameters of one INSERT, 256 MiB: PostgreSQL takes messages of up to 1 GiB. JSON is counted here, once it is text."""


class Batch(Generic[R]):
    """Records that are encoded once, ahead of the statement that inserts them.

    Args:
        records: The records.
        rows: What encodes them.
    """

    def __init__(self, records: Sequence[R], rows: Rows[R]) -> None:
        self.records = records
        self._rows = rows
        self._encoded: MaskedValues | None = None
        self._keyring: Keyring | None = None
        self._is_large = False

    def encode(self, keyring: Keyring) -> bool:
        """Encode them under a keyring, unless they are already; say whether they could be."""
        if self._keyring is not keyring:
            self._encoded = None
            with contextlib.suppress(Exception):  # :meth:`values` raises it again
                encoded = self._rows.many(self.records, keyring)
                size = sum(len(each.data) for each in encoded.values() if isinstance(each, Array))
                self._is_large = size > MAX_STATEMENT_BYTES and len(self.records) > 1
                self._encoded = None if self._is_large else encoded
            self._keyring = keyring
        return self._encoded is not None

    def fitting(self, keyring: Keyring) -> Iterator[Batch[R]]:
        """Yield the same records in batches whose parameters fit into one statement."""
        if self.encode(keyring) or not self._is_large:
            yield self
            return
        middle = len(self.records) // 2
        for half in (self.records[:middle], self.records[middle:]):
            yield from Batch(half, self._rows).fitting(keyring)

    def values(self, keyring: Keyring) -> MaskedValues:
        """Return the parameters of the rows under a keyring, once: they are not kept.

        Raises:
            ValueError: A value is not of its field's type.
        """
        encoded, self._encoded = self._encoded, None
        if encoded is None or keyring is not self._keyring:
            return self._rows.many(self.records, keyring)
        return encoded


class Ahead(Generic[T]):
    """Lists that are drawn one ahead of the one that is being worked on.

    Args:
        lists: The lists.
    """

    def __init__(self, lists: Iterator[list[T]]) -> None:
        self._lists = lists
        self._ahead: list[T] | None = None
        self._error: Exception | None = None

    def draw(self) -> list[T]:
        """Draw the next list, unless it is drawn already, and return it. What fails here is raised by :meth:`take`."""
        if self._ahead is None:
            self._ahead = []
            try:
                self._ahead = next(self._lists, [])
            except Exception as error:  # noqa: BLE001  # of the caller's own code, and raised again
                self._error = error
        return self._ahead

    def take(self) -> list[T]:
        """Return the next list; an empty one at the end."""
        drawn = self.draw()
        if self._error is not None:
            raise self._error
        self._ahead = None
        return drawn


class Groups(Ahead[Batch[R]]):
    """Groups of batches of records.

    Args:
        records: The records.
        rows: What encodes them.
        names: Their fields that can be long; two at least.
    """

    def __init__(self, records: Iterable[R], rows: Rows[R], names: Sequence[str]) -> None:
        super().__init__(_grouped(records, rows, names))
        self.are_at_hand: Final = type(records) in (list, tuple)
        """Whether drawing runs no code of the caller's, which may use the very connection that the records are written by."""


def _grouped(records: Iterable[R], rows: Rows[R], names: Sequence[str]) -> Iterator[list[Batch[R]]]:
    group: list[Batch[R]] = []
    batch: list[R] = []
    size, most = 0, FIRST_BATCH_ROWS
    values = attrgetter(*names)
    for record in records:
        batch.append(record)
        try:
            sizes = values(record)
        except AttributeError:
            raise rows.foreign(record) from None
        for value in sizes:
            if isinstance(value, str | bytes):
                size += len(value)
        if len(batch) >= most or size >= GROUP_CHARACTERS:
            group.append(Batch(batch, rows))
            batch, most = [], BATCH_ROWS
            if len(group) >= GROUP_BATCHES or size >= GROUP_CHARACTERS:
                yield group
                group, size = [], 0
    if batch:
        group.append(Batch(batch, rows))
    if group:
        yield group
