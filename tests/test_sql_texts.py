"""What holds of the text of every statement of ours."""

from __future__ import annotations

import ast
from pathlib import Path

import voiceassist_db


def test_statements_are_ascii() -> None:
    """A database of another encoding than UTF8 refuses a statement with a character that it lacks."""
    found = [
        (path.name, node.lineno, node.value.isascii())
        for path in sorted(Path(voiceassist_db.__file__).parent.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "pg_catalog." in node.value
    ]
    assert len(found) > 50
    assert [each for each in found if not each[2]] == []
