"""The rates of rotation as a picture: bars on a logarithmic scale, in SVG, for light and for dark pages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from xml.sax.saxutils import escape

WIDTH: Final = 960
BARS_FROM, BARS_TO = 350, 760
TOP, ROW, BAR = 64, 26, 16
BELOW: Final = 34

STYLE: Final = """
    text { font: 13px system-ui, sans-serif; fill: #1f2328 }
    .title { font-size: 15px; font-weight: 600 }
    .quiet { fill: #59636e }
    .page { fill: #ffffff } .value { paint-order: stroke; stroke: #ffffff; stroke-width: 4px }
    .grid { stroke: #d1d9e0 }
    .ours { fill: #0969da } .limit { fill: #8250df } .theirs { fill: #818b98 }
    @media (prefers-color-scheme: dark) {
        text { fill: #f0f6fc } .quiet { fill: #9198a1 } .page { fill: #0d1117 } .value { stroke: #0d1117 } .grid { stroke: #3d444d }
        .ours { fill: #4493f8 } .limit { fill: #ab7df8 } .theirs { fill: #656c76 }
    }
"""


@dataclass(frozen=True, slots=True)
class _Bar:
    label: str
    rate: float
    remark: str
    kind: str


def svg(report: Mapping[str, Any]) -> str:
    """Draw a report that has the part ``rotation``."""
    bars = list(_bars(report))
    low = math.floor(math.log10(min(bar.rate for bar in bars)))
    high = max(math.ceil(math.log10(max(bar.rate for bar in bars))), low + 1)

    def across(rate: float) -> float:
        return BARS_FROM + (math.log10(rate) - low) / (high - low) * (BARS_TO - BARS_FROM)

    end = TOP + ROW * len(bars)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {end + BELOW}" role="img">',
            "<title>Rows per second of re-encryption</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="page" width="{WIDTH}" height="{end + BELOW}" rx="6"/>',
            '<text class="title" x="16" y="28">Re-encrypting two columns under a new key, rows per second</text>',
            f'<text class="quiet" x="16" y="48">{escape(_machine(report["machine"]))}</text>',
            *_grid(low, high, across, end),
            *(part for position, bar in enumerate(bars) for part in _drawn(bar, TOP + ROW * position, across)),
            "</svg>\n",
        ]
    )


def _bars(report: Mapping[str, Any]) -> Iterator[_Bar]:
    ours = report["rotation"]
    yield _Bar("the crypto alone, one core", ours["ceiling_rows_per_second"], "the ceiling", "limit")
    if ours["workers"] > 1:
        yield _Bar(
            f"voiceassist-db, {ours['workers']} workers",
            ours["with_workers"]["rows_per_second"],
            f"x{ours['scaling']:.2f} of one",
            "ours",
        )
    yield _Bar("voiceassist-db, 1 worker", ours["rows_per_second"], f"{ours['ratio']:.2f} of the ceiling", "ours")
    peers = [peer for peer in report.get("peers", ()) if peer["rows_per_second"]]
    for peer in sorted(peers, key=lambda peer: -float(peer["rows_per_second"])):
        yield _Bar(peer["name"], peer["rows_per_second"], _times(peer), "theirs")


def _times(peer: Mapping[str, Any]) -> str:
    alike, all_ = f"ours is x{peer['ours_over_theirs']:.1f}", peer.get("with_workers_over_theirs")
    return alike if all_ is None else f"{alike} and x{all_:.1f}"


def _machine(machine: Mapping[str, Any]) -> str:
    return f"{machine['cores']} cores ({machine['cpu']}), PostgreSQL {machine['postgresql']}, fsync {machine['fsync']}; logarithmic scale"


def _grid(low: int, high: int, across: Any, end: int) -> Iterator[str]:
    for power in range(low, high + 1):
        x = f"{across(10**power):.1f}"
        yield f'<line class="grid" x1="{x}" y1="{TOP - 4}" x2="{x}" y2="{end}"/>'
        yield f'<text class="quiet" x="{x}" y="{end + 18}" text-anchor="middle">{10**power:,}</text>'


def _drawn(bar: _Bar, y: int, across: Any) -> Iterator[str]:
    end = across(bar.rate)
    middle = y + BAR - 3
    yield f'<text x="{BARS_FROM - 10}" y="{middle}" text-anchor="end">{escape(bar.label)}</text>'
    yield f'<rect class="{bar.kind}" x="{BARS_FROM}" y="{y}" width="{end - BARS_FROM:.1f}" height="{BAR}" rx="2"/>'
    yield (
        f'<text class="value" x="{end + 8:.1f}" y="{middle}">{bar.rate:,.0f} <tspan class="quiet">{escape(bar.remark)}</tspan></text>'
    )
