#!/usr/bin/env python3
"""Measure how fast this is, against what one would use instead and against the physical limit. See --help."""

from __future__ import annotations

import json
from pathlib import Path

import click

from benchmarking import plot, report
from benchmarking.parts import PARTS
from voiceassist_db.cli import run as run_command
from voiceassist_db.cli.output import progress


@click.command("benchmark", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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
@click.option("--only", "parts", type=click.Choice(PARTS), multiple=True, help="Only this part; may be repeated.")
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
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the report here as JSON."
)
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(dir_okay=False, path_type=Path),
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
    from benchmarking.run import run

    with progress("measuring", "steps") as show:
        measured = run(dsn, rows=rows, workers=workers, parts=chosen, is_long=is_long, on_step=show)
    for line in report.lines(measured):
        click.echo(line)
    if json_file:
        json_file.write_text(json.dumps(measured, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    if plot_file:
        plot_file.write_text(plot.svg(measured), encoding="utf-8")


if __name__ == "__main__":
    run_command(command)
