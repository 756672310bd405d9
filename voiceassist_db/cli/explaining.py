"""How commands explain themselves: what ``--help`` shows beside click's own sections, and how it is wrapped.

Owns the sections of examples and of exit codes, which keep their lines at every width of a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import click

_UNBREAKABLE: Final = "\u2011"
"""A hyphen at which no line is broken; what is printed has a plain one."""


class _Formatter(click.HelpFormatter):
    """Never breaks a line within a word, such as the name of a command, and leaves descriptions room on a narrow terminal."""

    def write_text(self, text: str) -> None:
        """Write paragraphs."""
        super().write_text(text.replace("-", _UNBREAKABLE))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Write terms with their descriptions."""
        unbreakable = [(term, description.replace("-", _UNBREAKABLE)) for term, description in rows]
        super().write_dl(unbreakable, min(col_max, self.width // 3), col_spacing)

    def getvalue(self) -> str:
        """Return all that was written."""
        return super().getvalue().replace(_UNBREAKABLE, "-")


class _Context(click.Context):
    formatter_class = _Formatter


class Group(click.Group):
    """A group of commands."""

    context_class = _Context


class Command(click.Command):
    """A command that lists its examples and its exit codes.

    Args:
        *args: As click's.
        examples: Command lines, which are never broken.
        exit_codes: What each exit code means.
        **options: As click's.
    """

    context_class = _Context

    def __init__(
        self, *args: Any, examples: Sequence[str] = (), exit_codes: Mapping[int, str] | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.examples = tuple(examples)
        self.exit_codes = dict(exit_codes or {})

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the docstring, and after it the sections of examples and exit codes."""
        super().format_help_text(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{' ' * formatter.current_indent}{example}\n")
        if self.exit_codes:
            with formatter.section("Exit codes"):
                formatter.write_dl([(str(code), meaning) for code, meaning in self.exit_codes.items()])
