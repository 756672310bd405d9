"""The parts of a run, by the names that the command line and the report have for them."""

from __future__ import annotations

from typing import Final

PARTS: Final = ("rotation", "peers", "single_row", "bulk", "growth", "command_line")
WITH_LIBRARIES: Final = frozenset({"peers", "single_row", "bulk"})
"""Those that compare with libraries, which an extra brings."""
