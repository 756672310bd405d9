#!/usr/bin/env python3
"""Make an environment with other versions of what this package needs, and run a part of the tests in it.

Usage: .venv/bin/python .ci/versions.py sqlalchemy20|oldest [PYTEST-ARGUMENT …]

``sqlalchemy20`` has the newest SQLAlchemy 2.0, and all else as the lock says. ``oldest`` has the lower bounds of pyproject.toml. The tools
of the tests are always those of the lock. The environment is in a temporary directory, which is removed at the end.

Exit codes: those of pytest; 2 for wrong usage.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
UV: Final = Path(sys.executable).with_name("uv")

PARTS: Final[dict[str, list[str]]] = {
    # Where SQLAlchemy's own behaviour shows: how statements are compiled, tables declared and reflected, engines and sessions used.
    "sqlalchemy20": [
        "tests/test_declarations.py",
        "tests/test_alembic_plugin.py",
        "tests/test_sessions.py",
        "tests/test_async.py",
        "tests/test_interrupts.py",
        "tests/test_listeners.py",
        "tests/test_catalogue.py",
        "tests/repositories/test_one_class.py",
        "tests/repositories/test_queries.py",
        "tests/repositories/test_repository.py",
        "tests/rotation/test_rotate.py",
    ],
    # One test of what each dependency does.
    "oldest": [
        "tests/test_alembic_plugin.py",
        "tests/test_histories.py",
        "tests/test_async.py",
        "tests/cli/test_migrate.py",
        "tests/cli/test_help_texts.py",
        "tests/providers/test_vault.py",
    ],
}


def project_requirements(text: str, table: str) -> list[str]:
    """Return the requirements of a list in pyproject.toml."""
    block = re.search(rf"^{table} = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    return re.findall(r'^    "([^"]+)",', block[1], re.MULTILINE)


def run(*command: str | Path) -> None:
    """Run a command, and end with its exit code where it fails."""
    print("$", *command, flush=True)
    done = subprocess.run([str(each) for each in command], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def make(environment: Path, kind: str) -> Path:
    """Make the environment and return its Python."""
    python = environment / "bin" / "python"
    install = (UV, "pip", "install", "-q", "--python", python)
    run(UV, "venv", "-q", "--python", sys.executable, environment)
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    tools = [each for each in project_requirements(text, "test") if not each.startswith("voiceassist-db")]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if kind == "sqlalchemy20":
        constraints = environment / "constraints.txt"
        constraints.write_text("\n".join(each for each in pins if not each.startswith("sqlalchemy==")))
        run(*install, "-c", constraints, "-e", ".[embedded]", "sqlalchemy<2.1", *tools)
    else:
        run(*install, "--resolution", "lowest-direct", "-e", ".[embedded]")
        frozen = subprocess.run(
            [str(UV), "pip", "freeze", "-q", "--exclude-editable", "--python", str(python)],
            capture_output=True,
            text=True,
            check=True,
        )
        constraints = environment / "constraints.txt"
        constraints.write_text(frozen.stdout)
        run(*install, "-c", constraints, *tools)
    run(UV, "pip", "freeze", "-q", "--exclude-editable", "--python", python)
    return python


def main(arguments: Sequence[str]) -> None:
    """Run the tests of one kind."""
    if not arguments or arguments[0] not in PARTS:
        print(__doc__)
        sys.exit(2)
    kind, *rest = arguments
    with tempfile.TemporaryDirectory(prefix="voiceassist-versions-") as directory:
        python = make(Path(directory) / "environment", kind)
        run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(rest or PARTS[kind]))


if __name__ == "__main__":
    main(sys.argv[1:])
