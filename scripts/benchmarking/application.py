"""A concurrent application: reads and writes single rows without a pause, in a process of its own, beside what is measured.

Its statements do no cryptography, so that all that changes is what the run beside it costs: waits for rows, and the cores.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final, Self

from benchmarking import client
from benchmarking.deployment import Deployment, plain
from benchmarking.timing import percentile

TIMEOUT_S: Final = 60.0
HUNDRED: Final = 100


@dataclass
class Latencies:
    """Milliseconds that each read and each write of the application took."""

    read_ms: list[float] = field(default_factory=list)
    write_ms: list[float] = field(default_factory=list)

    def p99(self) -> dict[str, float | None]:
        """Return the slowest read and write of a hundred; of fewer, which waited for long, the slowest; None of none."""
        return {"p99_read_ms": _p99(self.read_ms), "p99_write_ms": _p99(self.write_ms)}


def _p99(values: list[float]) -> float | None:
    if not values:
        return None
    return round(percentile(values, 99) if len(values) >= HUNDRED else max(values), 2)


class Application:
    """The application, as long as a ``with`` block lasts; it rests until :meth:`beside`."""

    def __init__(self, deployment: Deployment) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share the connections
        self._pipe: Connection[Any, Any]
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=client.serve, args=(plain(deployment.url), theirs), daemon=True)
        self._process.start()
        theirs.close()

    @contextmanager
    def beside(self, table: str) -> Iterator[Latencies]:
        """Let it work on a table while the block runs; what this gives is complete when the block has ended."""
        latencies = Latencies()
        self._ask(table)
        try:
            yield latencies
        except Exception:  # and no interrupt, after which nobody waits for an answer
            self._ask("stop")
            raise
        latencies.read_ms, latencies.write_ms = self._ask("stop")

    def _ask(self, message: str) -> Any:
        try:
            self._pipe.send(message)
            if self._pipe.poll(TIMEOUT_S):
                return self._pipe.recv()
        except (EOFError, OSError):
            pass
        raise ChildProcessError(
            "the concurrent application has ended, or does not answer: nothing can be measured beside it"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()
