"""What a rotation is asked to do, what it tells on the way, and what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from voiceassist_db.constraints import Gap
from voiceassist_db.quantities import require_number

DEFAULT_TARGET_BATCH_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How hard a rotation may work.

    Attributes:
        workers: Connections that re-encrypt at the same time.
        target_batch_s: Seconds that one batch, a transaction, should take; its rows stay locked that long.
        max_rows_per_second: Rows per second of all workers together; None for as many as they can.
        max_replica_lag_s: Seconds of replay lag of any replica from which the rotation pauses; None not to look.
        patience_s: Seconds to wait for rows and tables that others hold, before they are reported as left over.
    """

    workers: int = 1
    target_batch_s: float = DEFAULT_TARGET_BATCH_S
    max_rows_per_second: float | None = None
    max_replica_lag_s: float | None = None
    patience_s: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what is out of range.

        Raises:
            ValueError: A number is not positive, or not finite.
        """
        for name in ("workers", "target_batch_s", "max_rows_per_second", "max_replica_lag_s"):
            if (value := getattr(self, name)) is not None:
                require_number(name, value, is_open=True)
        require_number("patience_s", self.patience_s)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a rotation stands.

    Attributes:
        phase: ``rotating``, ``sweeping`` or ``verifying``.
        rows: Rows done in this phase.
        total: How many there are, about.
        note: Who or what holds it back; empty where nothing does.
    """

    phase: str
    rows: int
    total: int
    note: str = ""


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rotation would do.

    Attributes:
        from_version: Key version that rows are under.
        to_version: Key version that they would be under.
        unfinished: Whether an earlier run began this rotation.
        rows: Rows to re-encrypt, by table.
        bytes: Size on disk with indexes, by table.
        gaps: What the tables lack; ``schema.complete_tables`` adds it.
    """

    from_version: int
    to_version: int
    unfinished: bool
    rows: Mapping[str, int]
    bytes: Mapping[str, int]
    gaps: Sequence[Gap]


@dataclass(frozen=True, slots=True)
class RotationReport:
    """The result of one run.

    Attributes:
        from_version: Key version that rows were under.
        to_version: Key version that they are under now.
        rows: Rows re-encrypted by this run, as far as the server acknowledged them.
        seconds: How long that took, without verification.
        quarantined: Rows that could not be read, or that the table refused, and were left as they are: ``key_rotation_failures`` names them.
        remaining: Rows that are still under another version than ``to_version``, the quarantined ones among them.
        open_writers: Transactions of others that may still add rows under the older version.
        verified: Whether every value under the new key was read back, inside the database, and found in its place.
        interrupted: Whether the run was asked to stop before its end.
        table_growth: Size of the tables afterwards over before; 1.0 where nothing grew.
        index_growth: The same of their indexes.
        hot_ratio: Share of row versions that stayed on their page (HOT); None where nothing was rotated.
        gaps: What the tables lack; ``schema.complete_tables`` adds it.
        reasons: Why rows were quarantined, and how many for each reason.
        waits_for: Who may still write under the older key, or has rows locked, where the run waited in vain.
    """

    from_version: int
    to_version: int
    rows: int
    seconds: float
    quarantined: int
    remaining: int
    open_writers: int
    verified: bool
    interrupted: bool
    table_growth: float
    index_growth: float
    hot_ratio: float | None
    gaps: Sequence[Gap]
    reasons: Mapping[str, int] = field(default_factory=dict)
    waits_for: Sequence[str] = ()

    @property
    def rows_per_second(self) -> float:
        """Rows re-encrypted per second."""
        return self.rows / self.seconds if self.seconds else 0.0

    @property
    def done(self) -> bool:
        """Whether nothing is left under an older key and everything was verified."""
        return self.remaining == 0 and self.verified and not self.open_writers and not self.interrupted

    @property
    def done_but_quarantined(self) -> bool:
        """Whether all is done but the rows that could not be read."""
        left = self.open_writers or self.interrupted or not self.verified
        return not left and 0 < self.quarantined == self.remaining
