"""How commands speak: results to standard output, progress to standard error, one JSON object on the last line.

Owns the progress display and the JSON contract, and that no text which others chose reaches a terminal as it is: commands
print by :func:`say` and nothing else. Knows no database.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Protocol

import click

from voiceassist_db.errors import VoiceAssistDBError
from voiceassist_db.escaping import escaped

PLAIN_LINE_EVERY_S: Final = 5.0


class Report(Protocol):
    """Called with how many units are done, of how many (None while that is unknown), and what there is to say about it."""

    def __call__(self, done: int, total: int | None, note: str = "", /) -> None: ...  # noqa: D102


json_option: Final = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on the last line of standard output."
)


_about = ""
"""What every line on standard error is about now, in front of each. Threads print as well, so it is the process's."""


@contextmanager
def about(name: str) -> Iterator[None]:
    """Put a name before what the block prints to standard error: messages, progress and log records."""
    global _about  # noqa: PLW0603  # there is one standard error
    before, _about = _about, f"{name}: "
    try:
        yield
    finally:
        _about = before


def say(line: str, *, err: bool = False, bold: bool = False, dim: bool = False) -> None:
    """Print one line, in which names and ids may hold anything: what cannot be seen is escaped, line breaks included.

    Args:
        line: The line, without a line break at its end.
        err: Print to standard error.
        bold: Print it bold on a terminal.
        dim: Print it dim on a terminal.
    """
    shown = escaped(_about + line if err else line)
    # Not click.echo, which writes past Rich: a progress bar on a terminal gives way only to what sys.stderr receives.
    stream = sys.stderr if err else sys.stdout
    if stream.isatty() and (bold or dim):
        shown = click.style(shown, bold=bold or None, dim=dim or None)
    stream.write(f"{shown}\n")


def say_error(error: VoiceAssistDBError | str) -> None:
    """Print an error to standard error; one of several lines has them."""
    for line in f"error: {error}".split("\n"):
        say(line, err=True)


class VisibleFormatter(logging.Formatter):
    """Log records of several lines, in which every other character can be seen."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text."""
        return escaped(_about + super().format(record), keep="\n")


def say_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an error that nobody expected, as ``sys.excepthook``."""
    for line in "".join(traceback.format_exception(kind, error, trace)).rstrip("\n").split("\n"):
        say(line, err=True)


def emit_json(result: dict[str, Any]) -> None:
    """Print a result as one line: the last one on standard output, as ``--json`` promises.

    It is ASCII, with every other character as JSON's escape: the data is exact, and no terminal and no locale changes it.
    """
    sys.stdout.write(f"{json.dumps(result, default=_plain)}\n")


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


@contextmanager
def progress(what: str, unit: str = "rows") -> Iterator[Report]:
    """Show how far a piece of work is: a bar with rate and time left on a terminal, a plain line every few seconds elsewhere.

    Args:
        what: What is being done, such as ``verifying``.
        unit: What is counted.
    """
    with _bar(what, unit) if sys.stderr.isatty() else _lines(what, unit) as report:
        yield report


@contextmanager
def _bar(what: str, unit: str) -> Iterator[Report]:
    # Rich takes a tenth of a second to import, which only a terminal needs.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{{task.fields[rate]}} {unit}/s", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    started = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escaped(_about + what), total=None, rate="…", note="")

        def report(done: int, total: int | None, note: str = "", /) -> None:
            rate = f"{done / max(time.monotonic() - started, 1e-3):,.0f}"
            bar.update(task, completed=done, total=total, rate=rate, note=escaped(note))

        yield report


@contextmanager
def _lines(what: str, unit: str) -> Iterator[Report]:
    started = last = time.monotonic()

    def report(done: int, total: int | None, note: str = "", /) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PLAIN_LINE_EVERY_S:
            last = now
            of = f" of {total:,}" if total is not None else ""
            rate = done / (now - started)
            left = f", {(total - done) / rate:,.0f} s left" if total is not None and rate else ""
            say(f"{what}: {done:,}{of} {unit}, {rate:,.0f}/s{left}{f' ({note})' if note else ''}", err=True)

    yield report
