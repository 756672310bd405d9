"""What README and docs show is true of this version: Python runs or compiles, commands have these options, SQL parses, links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pglast
import pytest
from sqlalchemy import URL

from tests.conftest import plain
from voiceassist_db import Database
from voiceassist_db.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/**/README.md"))]


def blocks(language: str) -> list[object]:
    """Return the blocks of a language in all pages, as parameters of a test."""
    return [
        pytest.param(block, id=f"{page.relative_to(ROOT)}:{text[: match.start()].count(chr(10)) + 1}")
        for page in PAGES
        for text in [page.read_text()]
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for block in [match[1]]
    ]


@pytest.mark.parametrize("block", blocks("python"))
def test_python_is_valid_and_imports_what_there_is(block: str) -> None:
    """A block may be the inside of a function, with `await` and indentation; what it imports of the package is there."""
    lines = block.splitlines()
    if lines[0].startswith(" "):
        lines.insert(0, "if True:")
    tree = compile("\n".join(lines), "block", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("voiceassist_db"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("voiceassist_db"):
                    importlib.import_module(alias.name)


def commands() -> Iterator[object]:
    """Yield the words of each call of one of our commands, in shell blocks and in running text."""
    seen = set()
    for page in PAGES:
        text = page.read_text()
        shell = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
        for line in [*shell.splitlines(), *re.findall(r"`([^`\n]+)`", text)]:
            for call in re.split(r"&&|\|\||;|\||'", line.partition(" #")[0]):
                found = re.search(r"(?:^|\s|/)(?:voiceassist-db|rotate_keys\.py)(?=\s|$)", call)
                if found and (words := re.sub(r"\s+", " ", call.strip())) not in seen:
                    seen.add(words)
                    yield pytest.param(words, id=f"{page.name} {words[:60]}")


@pytest.mark.parametrize("call", list(commands()))
def test_commands_have_these_options(call: str) -> None:
    """A command that is named exists, and so does each of its options."""
    words = shlex.split(call.replace("…", "").replace("[", "").replace("]", ""))
    at = next(i for i, word in enumerate(words) if word.endswith(("voiceassist-db", "rotate_keys.py")))
    name, rest = ("rotate", words[at + 1 :]) if words[at].endswith(".py") else (None, words[at + 1 :])
    if name is None:
        if not rest or rest[0].startswith("-") or not re.fullmatch(r"[a-z-]+", rest[0]):
            return
        name, rest = rest[0], rest[1:]
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"there is no command {name}"
    if "--" in rest:
        rest = rest[: rest.index("--")]
    known = {each for option in command.params for each in (*option.opts, *option.secondary_opts)} | {"--help"}
    for word in rest:
        if word.startswith("--"):
            assert word.partition("=")[0] in known, f"{name} has no option {word}"


@pytest.mark.parametrize("block", blocks("sql"))
def test_sql_is_valid(block: str) -> None:
    """PostgreSQL's own parser takes it; a name in capitals and dots stands for the reader's own."""
    assert pglast.parse_sql(re.sub(r"…", "x", block))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link names a file of the repository, and each anchor a heading of its page."""
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} names {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
            assert anchor in anchors, f"{page.name} names {target}"


def test_the_readmes_application_code_runs(
    database: Database, database_url: URL, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block for block, in one process, as a reader types it: what its comments say is what comes out."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    text = (ROOT / "README.md").read_text().partition("## In application code")[2].partition("\n## ")[0]
    code = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    main = next(block for block in code if "Database.from_env()" in block and "with db.transaction" in block)
    assert plain(database_url) == environment["DATABASE_URL"]
    given: dict[str, object] = {}
    last = '    tx.patients.get("PT-001", fields=["name"]).ssn\n'
    assert last in main
    exec(compile(main.replace(last, ""), "README.md", "exec"), given)  # noqa: S102  # the README's own code
    with database.transaction() as tx:
        found = tx.patients.find_by_mrn("MRN-12345")
        assert found is not None
        assert (found.patient_id, found.ssn, found.name) == ("PT-001", "123-45-6789", "José Núñez García")
    given["db"].close()  # type: ignore[attr-defined]
