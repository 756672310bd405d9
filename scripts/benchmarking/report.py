"""The report as text: ratios first, and where something else is faster than ours, that as well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

Figures = Mapping[str, Any]


def lines(report: Figures) -> Iterator[str]:
    """Yield the lines of a report."""
    machine = report["machine"]
    yield (
        f"voiceassist-db {machine['voiceassist-db']}; {machine['cores']} cores ({machine['cpu']}), {machine['system']}; "
        f"PostgreSQL {machine['postgresql']} ({machine['server']}; fsync {machine['fsync']}, synchronous_commit "
        f"{machine['synchronous_commit']}); Python {machine['python']}, psycopg {machine['psycopg']}, SQLAlchemy "
        f"{machine['sqlalchemy']}"
    )
    yield f"Measured in {report['seconds'] // 60} min {report['seconds'] % 60} s."
    yield "Medians of rounds that were measured in turns in this one run; in brackets, how far they reach."
    for part, show in _PARTS.items():
        if part in report:
            yield ""
            yield from show(report[part])


def _rotation(figures: Figures) -> Iterator[str]:
    yield f"Rotation of {figures['rows']:,} rows with two encrypted columns"
    all_ = figures["with_workers"]
    workers = [
        [
            f"  {figures['workers']} workers",
            f"x{figures['scaling']:.2f} {_reach(figures['scaling_range'])}: {_rates(all_)}; {_left(all_)}; p99 {_p99(all_)}",
        ]
    ]
    yield from _table(
        [
            ["  rate", _rates(figures)],
            [
                "  of the ceiling",
                f"{figures['ratio']:.2f} {_reach(figures['ratio_range'])} of {figures['ceiling_rows_per_second']:,.0f} rows/s, "
                "the crypto alone on one core",
            ],
            ["  leaves", _left(figures)],
            [
                "  p99 beside it",
                f"{_p99(figures)}; alone read {_ms(figures['p99_read_ms_alone'])}, write {_ms(figures['p99_write_ms_alone'])} ms",
            ],
            *(workers if figures["workers"] > 1 else []),
        ]
    )


def _rates(figures: Figures) -> str:
    return f"{figures['rows_per_second']:,.0f} rows/s; {figures['rows_per_second_with_proof']:,.0f} with its proof"


def _p99(figures: Figures) -> str:
    return f"read {_ms(figures['p99_read_ms'])}, write {_ms(figures['p99_write_ms'])} ms"


def _left(figures: Figures) -> str:
    return (
        f"table x{figures['table_growth']:.3f}, indexes x{figures['index_growth']:.3f}, HOT {figures['hot_ratio']:.3f}, "
        f"{figures['wal_bytes_per_row']:,} bytes of WAL a row"
    )


def _peers(peers: Sequence[Figures]) -> Iterator[str]:
    yield "The same job by others: ours has as many workers as they have connections; then with all of them over one connection"
    rows = [["", "rows/s", "ours is", "", "all", "", "table", "indexes", "HOT", "WAL/row", "p99 read", "p99 write"]]
    for peer in peers:
        name = f"  {peer['name']} [{peer['version']}]"
        if peer.get("failure"):
            rows.append([name, peer["failure"]])
            continue
        rows.append(
            [
                name,
                f"{peer['rows_per_second']:,.0f}",
                *_times(peer, "ours"),
                *_times(peer, "with_workers"),
                f"x{peer['table_growth']:.2f}",
                f"x{peer['index_growth']:.2f}",
                f"{peer['hot_ratio']:.2f}",
                str(peer["wal_bytes_per_row"]),
                _ms(peer["p99_read_ms"]),
                _ms(peer["p99_write_ms"]),
            ]
        )
    yield from _table(rows)
    for peer in peers:
        if peer.get("better_at"):
            yield f"  {peer['name']}: better than ours at {', '.join(_NAMES[each] for each in peer['better_at'])}."
    for peer in peers:
        if peer["note"]:
            yield f"  {peer['name']}: {peer['note']}."


_NAMES: Final = {
    "rows_per_second": "rows/s",
    "table_growth": "the table's growth",
    "index_growth": "the indexes' growth",
    "wal_bytes_per_row": "WAL",
    "p99_read_ms": "p99 of reads",
    "p99_write_ms": "p99 of writes",
}


def _times(peer: Figures, ours: str) -> list[str]:
    times = peer.get(f"{ours}_over_theirs")
    if times is None:
        return ["", ""]
    return [f"x{times:.2f}{_faster(times < 1)}", _reach(peer[f"{ours}_over_theirs_range"])]


def _single_row(operations: Mapping[str, Figures]) -> Iterator[str]:
    yield "Single rows of five encrypted fields, in milliseconds"
    rows = [["", "", "p50", "p99", "our time over theirs"]]
    for name, figures in operations.items():
        rows.append([f"  {name}", "voiceassist-db", f"{figures['p50_ms']:.3f}", f"{figures['p99_ms']:.3f}"])
        rows += [["", *_other(each, ("p50_ms", "p99_ms"), 3)] for each in _with_range(figures)]
    yield from _table(rows)


def _with_range(figures: Figures) -> Iterable[Figures]:
    raw, *libraries = figures["others"]
    return [{**raw, "range": figures["ratio_range"]}, *libraries]


def _other(figures: Figures, names: Sequence[str], digits: int) -> list[str]:
    if "failure" in figures:
        return [figures["name"], figures["failure"]]
    over = figures["our_time_over_theirs"]
    reach = f" {_reach(figures['range'])}" if "range" in figures else ""
    values = [f"{figures[name]:,.{digits}f}" for name in names]
    return [figures["name"], *values, f"{over:.2f}{reach}{_faster(over > 1)}"]


def _bulk(figures: Figures) -> Iterator[str]:
    rows = figures["rows"]
    add, file, proof = figures["add_many"], figures["import"], figures["verify"]
    yield f"Many rows: {rows:,} patients of five encrypted fields"
    yield from _table(
        [
            [
                "  bulk add",
                f"{add['rows_per_second']:,.0f} rows/s",
                f"{add['ratio']:.2f} {_reach(add['ratio_range'])} of the server's own speed",
            ],
            [
                "  import of CSV",
                f"{file['rows_per_second']:,.0f} rows/s",
                f"{file['over_add_many']:.2f} {_reach(file['over_add_many_range'])} of bulk add",
            ],
            [
                "  verify",
                f"{proof['rows_per_second']:,.0f} rows/s",
                f"{proof['ratio']:.2f} {_reach(proof['ratio_range'])} of the server's own speed",
            ],
        ]
    )
    table = [["", "", "rows/s", "our time over theirs"]]
    for name, part in (("page of 1,000", "page"), ("500 new", "add_few")):
        table.append([f"  {name}", "voiceassist-db", f"{figures[part]['rows_per_second']:,.0f}"])
        table += [["", *_other(each, ("rows_per_second",), 0)] for each in _with_range(figures[part])]
    yield from _table(table)


def _growth(figures: Figures) -> Iterator[str]:
    yield "Rotation by number of rows"
    rows = [["  rows", "rows/s", "of the ceiling", "", "table", "indexes"]]
    rows += [
        [
            f"  {point['rows']:,}",
            f"{point['rows_per_second']:,.0f}",
            f"{point['ratio']:.2f}",
            _reach(point["ratio_range"]),
            f"x{point['table_growth']:.3f}",
            f"x{point['index_growth']:.3f}",
        ]
        for point in figures["points"]
    ]
    yield from _table(rows)
    yield f"  The lowest share of the ceiling is {figures['lowest_over_highest']:.2f} of the highest."


def _command_line(figures: Figures) -> Iterator[str]:
    yield "Command line"
    yield (
        f"  voiceassist-db --help: {figures['help_seconds']:.3f} s, x{figures['ratio']:.2f} "
        f"{_reach(figures['ratio_range'])} of python -c 'import click' ({figures['import_click_seconds']:.3f} s)"
    )


_PARTS: Final[dict[str, Callable[[Any], Iterator[str]]]] = {
    "rotation": _rotation,
    "peers": _peers,
    "single_row": _single_row,
    "bulk": _bulk,
    "growth": _growth,
    "command_line": _command_line,
}


def _reach(values: Sequence[float]) -> str:
    low, high = values
    return f"({low:.2f} to {high:.2f})"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _faster(is_faster: bool) -> str:
    return ", they are faster" if is_faster else ""


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows with their columns below each other; the last cell of a row takes no part in its column's width."""
    widths: dict[int, int] = {}
    for row in rows:
        for position, cell in enumerate(row[:-1]):
            widths[position] = max(widths.get(position, 0), len(cell))
    for row in rows:
        padded = [cell.ljust(widths.get(position, 0)) for position, cell in enumerate(row[:-1])]
        yield "  ".join([*padded, row[-1]]).rstrip()
