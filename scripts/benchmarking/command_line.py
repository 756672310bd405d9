"""How long the command line takes to say what it can do, in a process of its own each time."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any, Final

from benchmarking.timing import Spread, interleaved, ratio_of

HELP: Final = [
    sys.executable,
    "-c",
    "import sys; sys.argv = ['voiceassist-db', '--help']; from voiceassist_db.cli import main; main()",
]
"""What the installed script does."""

CLICK: Final = [sys.executable, "-c", "import click"]


def measure(*, rounds: int) -> dict[str, Any]:
    """Measure ``--help``, over Python that does no more than to import what the command line is made of."""
    ways = {name: partial(_run, command) for name, command in (("help", HELP), ("click", CLICK))}
    seconds = interleaved(ways, rounds=rounds)
    ratio = ratio_of(seconds["help"], seconds["click"]).rounded(2)
    return {
        "help_seconds": round(Spread.of(seconds["help"]).median, 3),
        "import_click_seconds": round(Spread.of(seconds["click"]).median, 3),
        "ratio": ratio.median,
        "ratio_range": ratio.reach,
    }


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
