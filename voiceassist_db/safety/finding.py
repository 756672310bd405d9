"""What a rule says that finds something unsafe, and how names are quoted in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a connection that would let keys or patients' values be seen.

    Attributes:
        subject: The setting, schema or other thing that is unsafe.
        problem: What is wrong.
        remedy: The statement that fixes it, or what to do.
    """

    subject: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}. {self.remedy}"


def quoted(name: str) -> str:
    """Return a name as SQL writes it in quotes."""
    return '"' + name.replace('"', '""') + '"'


def described(findings: Iterable[Finding]) -> str:
    """Return findings as the lines of a message."""
    return "\n".join(f"  {finding}" for finding in findings)
