"""Output never decides the result: a whole life of commands ends alike whatever becomes of what they print.

One process imports everything once, under the state of its streams that is tried, and forks each command: the child has Python's
own streams for that state, and ends as a process of its own does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from sqlalchemy import URL

from tests.cli.commands import SCRIPTS, every_command
from tests.conftest import VaultServer, leading_to
from voiceassist_db import create_engine
from voiceassist_db.cli.rotating import EXIT_REFUSED
from voiceassist_db.status import read_status

pytestmark = pytest.mark.wide

FORMS: Final = {
    "an encoding without the arrow": "",
    "a reader that leaves": "2>&1 | head -1",
    "a full disk": ">/dev/full 2>/dev/full",
    "no stream at all": "<&- >&- 2>&-",
}

WHOLE: Final = ("a reader that leaves", "no stream at all")
"""Forms under which every command is tried. A full disk fails in the same place, and few commands print what an encoding lacks."""

FORKING: Final = """
import gc, importlib, json, os, pkgutil, runpy, sys
import voiceassist_db
for module in pkgutil.walk_packages(voiceassist_db.__path__, "voiceassist_db."):
    if "_migrations" not in module.name:
        importlib.import_module(module.name)
from voiceassist_db.cli import main
gc.freeze()  # so that a child ends quickly
codes = []
for script, *arguments in json.loads(os.environ["LIFE"]):
    child = os.fork()
    if child == 0:
        sys.argv = [script, *arguments]
        sys.path.insert(0, os.path.dirname(script))
        break
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    with open(os.environ["CODES"], "w") as file:
        json.dump(codes, file)
    os._exit(0)
if script.endswith(".py"):
    runpy.run_path(script, run_name="__main__")
else:
    main()
"""

ROTATE: Final = "rotate_keys.py"
VDB: Final = "voiceassist-db"


def life(good: Path, broken: Path) -> list[tuple[int, list[str]]]:
    """Return the commands of a life, each with the exit code of its work."""
    return [
        (0, [VDB, "init-keys"]),
        (0, [VDB, "import", str(good)]),
        (3, [VDB, "import", str(broken)]),
        (0, [ROTATE]),
        (EXIT_REFUSED, [ROTATE, "--retire"]),
        (EXIT_REFUSED, [VDB, "retire"]),
        (0, [ROTATE, "--retire", "--grace-days", "0"]),
        (0, [VDB, "status"]),
    ]


def more() -> list[tuple[int, list[str]]]:
    """Return the other commands, which leave the key versions as they are."""
    return [
        (0, [ROTATE, "--dry-run"]),
        (0, [ROTATE, "--index-key"]),
        (0, [VDB, "rotate", "--dry-run"]),
        (0, [VDB, "migrate"]),
        (0, [VDB, "verify"]),
        (1, [VDB, "check"]),
        (0, [VDB, "provision", "--print"]),
        (0, [VDB, "status", "--json"]),
        (0, ["benchmark.py", "--help"]),
        (2, [VDB, "no-such-command"]),
        (2, [ROTATE, "--no-such-option"]),
    ]


def ended(form: str, steps: list[tuple[int, list[str]]], env: dict[str, str], directory: Path) -> dict[str, int]:
    """Run commands one after the other in this state of their streams; return their exit codes."""
    codes, scripts = directory / "codes", {each.name: str(each) for each in SCRIPTS}
    env |= {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "PYTHONIOENCODING": "latin-1" if form == "an encoding without the arrow" else "utf-8",
        "LIFE": json.dumps([[scripts.get(name, name), *arguments] for _, (name, *arguments) in steps]),
        "CODES": str(codes),
    }
    shell = f'"$@" {FORMS[form]}'
    done = subprocess.run(
        ["bash", "-c", shell, "bash", sys.executable, "-c", FORKING], env=env, capture_output=True, check=False
    )
    assert codes.exists(), done.stderr
    for trouble in (b"Traceback", b"Exception ignored"):
        assert trouble not in done.stdout + done.stderr
    return {" ".join(step): code for (_, step), code in zip(steps, json.loads(codes.read_text()), strict=True)}


@pytest.mark.parametrize("form", FORMS)
def test_a_life_ends_alike(
    form: str,
    new_database: Callable[[str | None], URL],
    template: str,
    vault: VaultServer,
    vault_path: str,
    tmp_path: Path,
) -> None:
    """Every command has the exit code of its work, and the database is as if all had been read."""
    good, broken, url = tmp_path / "good.csv", tmp_path / "broken.csv", new_database(template)
    good.write_text("patient_id,name\n" + "".join(f"PT-{number:03d},José {number}\n" for number in range(200)))
    never = "".join(f"PT-{number},never\n" for number in range(500, 700))
    broken.write_text(f"patient_id,date_of_birth\n{never}PT-X,\n")
    steps = life(good, broken)
    if form in WHOLE:
        steps += more()
    env = leading_to(url, vault, vault_path)
    assert ended(form, steps, env, tmp_path) == {" ".join(step): code for code, step in steps}
    engine = create_engine(url)
    with engine.connect() as connection:
        status = read_status(connection)
    engine.dispose()
    assert status.tables == {"clinical_notes": {}, "patient_data": {2: 200}}
    assert {key.version: key.state for key in status.keys} == {1: "retired", 2: "current"}
    assert not status.unfinished


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
def test_commands_with_servers_of_their_own_end_alike(form: str, tmp_path: Path) -> None:
    """The demo, a development shell and the benchmark, each of which takes seconds."""
    steps = [
        (0, [VDB, "demo"]),
        (9, [VDB, "dev", "--", "sh", "-c", f"{VDB} verify && exit 9"]),
        (0, ["benchmark.py", "--rows", "1000", "--only", "command_line"]),
    ]
    assert ended(form, steps, {}, tmp_path) == {" ".join(step): code for code, step in steps}


def test_every_command_is_tried(tmp_path: Path) -> None:
    """A command that is added is added here."""
    tried = {
        name if name != VDB else f"{VDB} {arguments[0]}"
        for _, (name, *arguments) in [*life(tmp_path, tmp_path), *more()]
        if arguments
    }
    assert set(every_command()) <= tried | {VDB, f"{VDB} demo", f"{VDB} dev"}
