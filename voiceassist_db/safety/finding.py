"""What a rule says that finds something unsafe, and how names are quoted in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from voiceassist_db.escaping import escaped, escaped_sql


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a connection that would let keys or patients' values be seen.

    Attributes:
        subject: The setting, schema or other thing that is unsafe.
        problem: What is wrong.
        remedy: The statement that fixes it, or what to do. A name in it is written so that it can be seen.
    """

    subject: str
    problem: str
    remedy: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "remedy", escaped_sql(self.remedy))

    def __str__(self) -> str:
        return escaped(f"{self.subject}: {self.problem}. {self.remedy}")


def quoted(name: str) -> str:
    """Return a name as SQL writes it in quotes."""
    return '"' + name.replace('"', '""') + '"'


def described(findings: Iterable[Finding]) -> str:
    """Return findings as the lines of a message."""
    return "\n".join(f"  {finding}" for finding in findings)
