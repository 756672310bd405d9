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
_IDENTIFIER: Final = re.compile(r'"(?:[^"]|"")+"')
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
    r"""Return a statement that does the same, and whose quoted identifiers can be seen.

    An identifier that holds what :func:`escaped` would change is written with PostgreSQL's Unicode escapes:
    ``U&"\001b"``. Such a statement can be printed, copied and executed.

    Args:
        statement: SQL without string literals, or plain text.
    """
    return _IDENTIFIER.sub(lambda found: _unicode_identifier(found[0]), statement)


def _unicode_identifier(identifier: str) -> str:
    if escaped(identifier) == identifier:
        return identifier
    parts = (r"\\" if each == "\\" else each if escaped(each) == each else rf"\+{ord(each):06x}" for each in identifier)
    return f"U&{''.join(parts)}"


def _shown(character: str) -> str:
    if character.isprintable() and not _IS_INVISIBLE.match(character):
        return character
    return character.encode("unicode_escape").decode("ascii")
