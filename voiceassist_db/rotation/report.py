"""What a rotation did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RotationReport:
    """The result of one run.

    Attributes:
        from_version: Key version that rows were under.
        to_version: Key version that they are under now.
        rows: Rows re-encrypted by this run.
        seconds: How long that took.
        remaining: Rows that are still under another version than ``to_version``.
        verified: Whether every value was read back under its key and found to be in its place.
    """

    from_version: int
    to_version: int
    rows: int
    seconds: float
    remaining: int
    verified: bool

    @property
    def rows_per_second(self) -> float:
        """Rows re-encrypted per second."""
        return self.rows / self.seconds if self.seconds else 0.0

    @property
    def done(self) -> bool:
        """Whether nothing is left under an older key and everything was verified."""
        return self.remaining == 0 and self.verified
