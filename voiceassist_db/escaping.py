"""Text that others chose, made safe to show: names, ids, header cells and servers' messages in output, logs and exceptions.

Owns which characters are shown as they are, and how SQL writes a name that holds others.
"""

from __future__ import annotations

import re
from typing import Final

_INVISIBLE: Final = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"
"""Characters that Unicode counts as letters, marks or symbols, and that show nothing (Default_Ignorable_Code_Point, and the
blank braille pattern)."""

_NOT_ASCII: Final = re.compile(r"[^\x20-\x7e]")
_QUOTED: Final = re.compile(r"""\b[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|"(?:[^"]|"")+\"""", re.DOTALL)
"""A string literal with escapes, one without, or a quoted identifier."""

_IS_INVISIBLE: Final = re.compile(f"[{_INVISIBLE}]")


def escaped(text: str, *, keep: str = "") -> str:
    r"""Return a text on one line, in which every character can be seen.

    Control characters, line breaks, format characters such as bidirectional overrides, surrogates and unassigned characters
    become escapes as Python writes them: ``\x1b``, ``\n``, ``\u202e``. A backslash stays, so the result may be escaped again.

    Args:
        text: The text.
        keep: Characters to leave as they are, such as a line break.
    """
    return _NOT_ASCII.sub(lambda found: found[0] if found[0] in keep else _shown(found[0]), text)


def escaped_sql(statement: str) -> str:
    r"""Return a statement that does the same, and whose names and string literals can be seen.

    One that holds what :func:`escaped` would change is written with PostgreSQL's Unicode escapes: ``U&"\+00001b"``. Such a
    statement can be printed, copied and executed.

    Args:
        statement: SQL without dollar quotes, or plain text.
    """
    return _QUOTED.sub(lambda found: _with_unicode_escapes(found[0]), statement)


def _with_unicode_escapes(quoted: str) -> str:
    if escaped(quoted) == quoted:
        return quoted
    if quoted[0] in "eE":  # has escapes of its own, and doubles its backslashes already
        return "".join(each if escaped(each) == each else rf"\U{ord(each):08x}" for each in quoted)
    doubled = quoted.replace("\\", r"\\")
    return "U&" + "".join(each if escaped(each) == each else rf"\+{ord(each):06x}" for each in doubled)


def _shown(character: str) -> str:
    if character.isprintable() and not _IS_INVISIBLE.match(character):
        return character
    return character.encode("unicode_escape").decode("ascii")
