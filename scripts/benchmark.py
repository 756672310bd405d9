#!/usr/bin/env python3
"""Measure how fast this is, against what one would use instead and against the physical limit. See --help."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from benchmarking import plot, report
from benchmarking.parts import PARTS
from voiceassist_db.cli import run as run_command
from voiceassist_db.cli.explaining import Command
from voiceassist_db.cli.output import progress, say


def _writable(_: click.Context, option: click.Parameter, file: Path | None) -> Path | None:
    """Refuse a file that cannot be written before anything is measured."""
    if file is None:
        return None
    try:
        is_new = not file.exists()
        file.open("a", encoding="utf-8").close()
        if is_new:
            file.unlink()
    except OSError as error:
        raise click.BadParameter(f"{file} cannot be written: {os.strerror(error.errno or 0)}", param=option) from None
    return file


@click.command(
    "benchmark", cls=Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--rows",
    type=click.IntRange(min=1000),
    default=200_000,
    show_default=True,
    help="Rows of the table that is rotated. Slow peers get a share of them.",
)
@click.option(
    "--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="The most workers of our own rotation."
)
@click.option(
    "--only",
    "parts",
    type=click.Choice(PARTS),
    metavar="PART",
    multiple=True,
    help=f"Only this part: {', '.join(PARTS)}. May be repeated.",
)
@click.option(
    "--long", "is_long", is_flag=True, help="Rotate 10,000,000 rows as well, which takes some 15 minutes more."
)
@click.option(
    "--dsn",
    envvar="VOICEASSIST_DB_BENCHMARK_DSN",
    metavar="URL",
    help="Another server than the embedded one, as a role that may create databases.  [env: VOICEASSIST_DB_BENCHMARK_DSN]",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_writable,
    help="Write the report here as JSON; of a run that is ended early, what it has measured.",
)
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_writable,
    help="Draw the rates of rotation here, as SVG.",
)
def command(  # noqa: PLR0917  # click passes them by name
    rows: int,
    workers: int,
    parts: tuple[str, ...],
    is_long: bool,
    dsn: str | None,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Measure how fast this is, against what one would use instead and against the physical limit.

    Everything is measured side by side, in turns, and reported as ratios with their spread. The servers are embedded ones, and
    gone afterwards; the default size takes less than ten minutes on two cores that have nothing else to do.
    """
    chosen = parts or PARTS
    if plot_file and "rotation" not in chosen:
        raise click.UsageError("--plot shows the rates of rotation: it needs the part rotation")
    if is_long and "growth" not in chosen:
        raise click.UsageError("--long is about the part growth")
    from benchmarking.run import run

    measured: dict[str, Any] = {}
    try:
        with progress("measuring", "steps") as show:
            run(dsn, measured, rows=rows, workers=workers, parts=chosen, is_long=is_long, on_step=show)
    finally:
        # Files first: standard output may be gone by now. And what was measured before something failed is worth having.
        failures = []
        if not set(measured) & set(PARTS):
            measured.clear()
        if json_file and measured:
            failures += _written(json_file, json.dumps(measured, ensure_ascii=False, indent=2) + "\n")
        if plot_file and "rotation" in measured:
            failures += _written(plot_file, plot.svg(measured))
        if measured:
            for line in report.lines(measured):
                say(line)
    if failures:
        raise click.ClickException("; ".join(failures))


def _written(file: Path, text: str) -> list[str]:
    """Write a file; return why it could not be written."""
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        return [f"{file} cannot be written: {os.strerror(error.errno or 0)}"]
    return []


if __name__ == "__main__":
    run_command(command)
