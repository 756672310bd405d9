"""How commands speak: results to standard output, progress to standard error, one JSON object on the last line.

Owns the progress display and the JSON contract; knows no database.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, Protocol

import click

PLAIN_LINE_EVERY_S: Final = 5.0


class Report(Protocol):
    """Called with how many units are done, of how many (None while that is unknown), and what there is to say about it."""

    def __call__(self, done: int, total: int | None, note: str = "", /) -> None: ...  # noqa: D102


json_option: Final = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on the last line of standard output."
)


def emit_json(result: dict[str, Any]) -> None:
    """Print a result as one line: the last one on standard output, as ``--json`` promises."""
    click.echo(json.dumps(result, ensure_ascii=False, default=_plain))


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
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{{task.fields[rate]}} {unit}/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    started = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, rate="…", note="")

        def report(done: int, total: int | None, note: str = "", /) -> None:
            rate = f"{done / max(time.monotonic() - started, 1e-3):,.0f}"
            bar.update(task, completed=done, total=total, rate=rate, note=note)

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
            click.echo(f"{what}: {done:,}{of} {unit}, {rate:,.0f}/s{left}{f' ({note})' if note else ''}", err=True)

    yield report
