"""A reader's session with a page: its blocks run in their order, in one folder, one environment and one Python."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import psycopg
import pytest
import requests
from sqlalchemy import make_url

from tests.conftest import plain
from tests.documentation.blocks import ROOT, Block, reason
from tests.documentation.shell import LOGINS
from voiceassist_db import AsyncDatabase, Database

SHELL_TIMEOUT_S: Final = 300
RAISES: Final = re.compile(r"\s*# (\w+Error): (.*)")
"""A comment below a statement: the error that it raises."""

SHOWS: Final = re.compile(r"#\s+('.*'|\[.*\]|[A-Z]\w*\(.*\))(?:: .*)?$")
"""A comment behind an expression: the value that it has."""

ROLES: Final = {
    "application": "DATABASE_URL",
    "owner": "OWNER_DATABASE_URL",
    "rotator": "ROTATOR_DATABASE_URL",
    "auditor": "AUDITOR_DATABASE_URL",
    "superuser": "SUPERUSER_DATABASE_URL",
}


def documented_roles() -> dict[str, str]:
    """Return which role the README's table lets run each command."""
    rows = re.findall(
        r"^\| `voiceassist-db ([a-z-]+)[^|]*\|[^|]*\| (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    return dict(rows)


@dataclass
class Session:
    """What a reader has: a folder, variables, names of Python, and a database.

    Attributes:
        folder: The folder where commands run.
        environment: The variables.
        words: What stands in the page for a thing of the reader's own, and what that is here.
        names: The names of the reader's Python.
        output: What the last block of shell wrote.
        application: Address of the application's role, which a page may replace in its variables.
        loop: The event loop of its Python.
    """

    folder: Path
    environment: dict[str, str]
    words: dict[str, str] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)
    output: str = ""
    application: str = field(init=False)
    loop: asyncio.Runner = field(init=False, default_factory=asyncio.Runner)

    def __post_init__(self) -> None:
        self.application = self.environment["DATABASE_URL"]

    def run(self, block: Block) -> None:
        """Run a block, but for the lines that are listed as not run."""
        text = "\n".join(line for line in block.text.splitlines() if reason(block, line) is None)
        for word, meant in self.words.items():
            text = text.replace(word, meant)
        if text.strip():
            getattr(self, f"run_{block.language}")(text, f"{block.page}:{block.line}")

    def run_sh(self, text: str, where: str) -> None:
        """Run each line in a shell of its own, which leaves its variables to the next."""
        self.output = ""
        for line in text.replace("\\\n", " ").splitlines():
            if "voiceassist-db retire" in line:
                self.pass_a_month()
            self._run_line(line, where)

    def _run_line(self, line: str, where: str) -> None:
        left = self.folder.parent / "variables"
        own = {name: self.environment[variable] for name, variable in ROLES.items()} | {"application": self.application}
        logins = {command: own[role] for command, role in documented_roles().items()} | {
            "": self.environment["DATABASE_URL"]
        }
        done = subprocess.run(
            ["sh", "-ec", f"{line}\nenv -0 > {left}"],
            cwd=self.folder,
            env=self.environment | {LOGINS: json.dumps(logins)},
            capture_output=True,
            text=True,
            check=False,
            timeout=SHELL_TIMEOUT_S,
        )
        assert done.returncode == 0, f"{where}: {line}\n{done.stdout}{done.stderr}"
        self.output += done.stdout
        pairs = (each.partition("=") for each in left.read_text().split("\0") if each)
        self.environment = {name: value for name, _, value in pairs if name not in {LOGINS, "PWD", "OLDPWD", "_"}}

    def run_sql(self, text: str, where: str) -> None:
        """Run SQL as an administrator."""
        self.as_superuser(text)

    def run_hcl(self, text: str, where: str) -> None:
        """Let Vault accept a policy."""
        answer = requests.put(
            f"{self.environment['VAULT_ADDR']}/v1/sys/policies/acl/documented",
            json={"policy": text},
            headers={"X-Vault-Token": self.environment["VAULT_TOKEN"]},
            timeout=SHELL_TIMEOUT_S,
        )
        assert answer.ok, f"{where}: {answer.text}"

    def run_python(self, text: str, where: str) -> None:
        """Run Python, and compare what its comments show."""
        lines = text.splitlines()
        if lines[0].startswith(" "):  # it goes on in the block that the page has opened before
            lines.insert(0, "with db.transaction() as tx:")
        source = "\n".join(lines)
        tree = _Shown(lines).visit(ast.parse(source))
        code = compile(
            ast.fix_missing_locations(tree), where, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
        )
        self.names |= {"_shown": _shown, "_raised": _raised}
        with patch.dict(os.environ, self.environment, clear=True):
            ran = eval(code, self.names)  # noqa: S307  # the page's own code
            if inspect.iscoroutine(ran):
                self.loop.run(ran)

    def python(self, text: str) -> None:
        """Run Python that the page presupposes."""
        with patch.dict(os.environ, self.environment, clear=True):
            exec(compile(text, "presupposed", "exec", dont_inherit=True), self.names)  # noqa: S102  # of a test's own

    def as_superuser(self, statement: str, database: str | None = None) -> None:
        """Run SQL in the session's database, or in another one."""
        url = make_url(self.environment["SUPERUSER_DATABASE_URL"])
        with psycopg.connect(plain(url.set(database=database or url.database)), autocommit=True) as connection:
            connection.execute(statement.encode())

    def pass_a_month(self) -> None:
        """Let what the database knows have happened a month earlier."""
        with psycopg.connect(self.environment["SUPERUSER_DATABASE_URL"]) as connection:
            names = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'clinic%'").fetchall()
        for (name,) in names:
            self.as_superuser(
                "UPDATE encryption_keys SET created_at = created_at - interval '31 days', replaced_at = replaced_at - interval '31 days';"
                "UPDATE key_rotations SET started_at = started_at - interval '31 days', finished_at = finished_at - interval '31 days'",
                name,
            )

    def write(self, name: str, text: str) -> None:
        """Add to a file of the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)

    def close(self) -> None:
        """Close what the page's Python has opened."""
        if "entered" in self.names:
            self.names["entered"].__exit__(None, None, None)
        for value in self.names.values():
            if isinstance(value, Database):
                value.close()
            elif isinstance(value, AsyncDatabase):
                self.loop.run(value.close())
        self.loop.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class _Shown(ast.NodeTransformer):
    """Compares an expression with the comment behind it, or below it, that says what it gives."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        assert node.end_lineno is not None
        own, below = self._lines[node.end_lineno - 1], "".join(self._lines[node.end_lineno : node.end_lineno + 1])
        code = ast.unparse(node.value)
        if found := RAISES.fullmatch(below):
            call = f"_raised(lambda: {code}, {found[1]!r}, {found[2]!r})"
        elif found := SHOWS.search(own):
            call = f"_shown({code}, {found[1]!r})"
        else:
            return node
        return ast.copy_location(ast.Expr(ast.parse(call, mode="eval").body), node)


def _pattern(shown: str) -> str:
    return ".*".join(map(re.escape, shown.split("…")))


def _shown(value: object, shown: str) -> None:
    assert re.fullmatch(_pattern(shown), repr(value)), (repr(value), shown)


def _raised(call: Callable[[], object], name: str, message: str) -> None:
    with pytest.raises(Exception, match=_pattern(message)) as raised:
        call()
    assert raised.type.__name__ == name
