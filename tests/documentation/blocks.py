"""The blocks of README and docs, and which of them no session runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = [
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/**/README.md")))
]
GENERATED: Final = "docs/api.md"
"""Written by a script, whose own test compares it."""


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Attributes:
        page: The page, from the root of the checkout.
        line: Number of its first line in the page.
        language: What stands behind its fence; may be empty.
        text: Its lines.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def lines(self) -> list[str]:
        """Its lines that hold anything."""
        return [line for line in self.text.splitlines() if line.strip()]

    def begins(self, start: str) -> bool:
        """Say whether its first line begins so."""
        return self.text.lstrip().startswith(start)


def blocks_of(page: str) -> list[Block]:
    """Return the blocks of a page in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(page, text[: found.start(2)].count("\n") + 1, found[1], found[2])
        for found in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]


CI: Final = ".ci/run reads this line from the README and runs it"
MINUTES: Final = "takes minutes; tests/test_benchmark_command.py runs it with few rows"
ENTRY_POINT: Final = (
    "of a package's pyproject.toml; tests/test_normalisers.py gives such an entry point in place of an installed one"
)
RATIOS: Final = "a benchmark of minutes, for a machine that does nothing else"

NOT_RUN: Final[dict[str, dict[str, str]]] = {
    "README.md": {
        "python3 -m venv .venv && ": CI,
        ".venv/bin/pip install -q -c constraints.txt -e '.[embedded,test]'": CI,
        ".venv/bin/pip install -q -c constraints.txt -e '.[embedded,benchmark]'": MINUTES,
    },
    "docs/benchmarks.md": {
        ".venv/bin/pip install": MINUTES,
        ".venv/bin/python scripts/benchmark.py": MINUTES,
        ".venv/bin/pytest tests/benchmarks": RATIOS,
    },
    "docs/querying.md": {
        '[project.entry-points."voiceassist_db.normalisers"]': ENTRY_POINT,
        "number_of_clinic = ": ENTRY_POINT,
    },
    "docs/quickstart.md": {
        "pip install": ".ci/install_matrix.py and .ci/clinic install the wheel",
        "voiceassist-db dev --dir": "opens the shell that a session of these tests is; tests/cli/test_local.py runs it",
    },
    "docs/rotation.md": {
        "0 2 1 * *": "a line of crontab; test_the_line_of_cron_runs_month_after_month runs it behind its five fields"
    },
    "examples/clinic/README.md": {
        "python3 -m venv": ".ci/clinic",
        "pip install": ".ci/clinic",
        "pytest": ".ci/clinic",
        "voiceassist-db dev --dir": "opens the shell that a session of these tests is; tests/cli/test_local.py runs it",
        "gunicorn": "serves until it is stopped; .ci/clinic starts it in tests/service.py",
    },
}
"""Lines, by their beginnings, that no session runs, and why. Every other line of every block is run."""

ELSEWHERE: Final = {"docs/testing.md": "tests/test_testing.py"}
"""Pages whose blocks are run by a test of their own."""


def reason(block: Block, line: str) -> str | None:
    """Return why a line is not run; None if it is."""
    known = NOT_RUN.get(block.page, {})
    return next((why for start, why in known.items() if line.strip().startswith(start)), None)
