#!/usr/bin/env python3
"""Install the built wheel as users do, with old and new installers on every Python of this machine, and run the demo in each.

This finds failures of packaging: a marker, a tag or a metadata field that some installer cannot read. Every Python meets the oldest
and the newest pip that run on it; every other installer meets one Python. Wheels are downloaded once for each Python. Everything
is in one temporary directory, caches included, which is removed at the end.

Usage: .venv/bin/python .ci/install_matrix.py
Exit codes: 0 every environment works; 1 one does not, or there is nothing to run.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
OLDEST: Final = (3, 11)
"""The oldest Python of ``requires-python``."""

NEWEST: Final = "newest"
PIPS: Final = {"20.3.4": 11, "23.1.2": 13, "23.2": 13, "24.0": 13, "24.1": 13, "24.2": 13, "25.0.1": 14, "25.3": 14}
"""Releases of pip, each with the newest Python 3 that it is known to run on. 20.3 is the first that knows wheels for glibc 2.34
(PEP 600), 23.1.2 the first that runs on Python 3.12; 24.1 to 25.3 compare every value of a marker as a version."""

UVS: Final = ("0.4.0", NEWEST)
NEEDED: Final = (
    "voiceassist_db/py.typed",
    "voiceassist_db/_migrations/versions/0001",
    "voiceassist_db/_migrations/guide/0003",
    "voiceassist_db/_docs/migrations.md",
)
"""Files that only the build puts there, or that only tools look for."""

ENTRIES: Final = ("[alembic.plugins]", "voiceassist-db = ")
LINK: Final = re.compile(r"\]\((?!https?://|#|mailto:)([^)\s]+)\)")
TIMEOUT_S: Final = 600
LINES_OF_OUTPUT: Final = 30
LEADING_ELSEWHERE: Final = re.compile(r"PYTHON|VIRTUAL_ENV|DATABASE_URL|VAULT_|VOICEASSIST_DB_|ENCRYPTION_KEY|PG")
"""Variables that would lead an environment elsewhere than to itself."""


@dataclass(frozen=True, order=True)
class Python:
    """An interpreter of this machine."""

    version: tuple[int, int, int]
    executable: Path

    def __str__(self) -> str:
        return f"Python {'.'.join(map(str, self.version))}"


@dataclass(frozen=True)
class Environment:
    """One combination to try."""

    python: Python
    tool: str
    version: str

    def __str__(self) -> str:
        return f"{self.python}, {self.tool} {self.version}"


class FailedError(Exception):
    """A command failed; the message has the end of what it printed."""


def pythons() -> list[Python]:
    """Return the newest patch release of every CPython that is new enough: those on PATH and those of pyenv."""
    found: dict[tuple[int, int], Python] = {}
    for candidate in sorted({path.resolve() for path in _candidates()}):
        python = _asked(candidate)
        if python is not None and python.version[:2] >= OLDEST:
            minor = python.version[:2]
            found[minor] = max(found.get(minor, python), python)
    return sorted(found.values())


def _candidates() -> Iterator[Path]:
    directories = [Path(each) for each in os.get_exec_path()]
    if pyenv := shutil.which("pyenv"):
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True, check=True).stdout.strip()
        directories += Path(root).glob("versions/*/bin")
    for directory in directories:
        with contextlib.suppress(OSError):  # PATH may name what this user cannot look into
            yield from _pythons_in(directory)
    yield Path(sys.executable)


def _pythons_in(directory: Path) -> Iterator[Path]:
    for path in directory.glob("python3*"):
        if re.fullmatch(r"python3(\.\d+)?", path.name) and os.access(path, os.X_OK):
            yield path


def _asked(executable: Path) -> Python | None:
    """Ask an interpreter what it is; None where it does not run, as pyenv's placeholders, or is not a final CPython."""
    question = "import sys; v = sys.version_info; print(sys.implementation.name, *v, sys._base_executable)"
    asked = subprocess.run([executable, "-c", question], capture_output=True, text=True, check=False, env=_environ())
    if asked.returncode != 0:
        return None
    name, major, minor, patch, level, _, path = asked.stdout.strip().split(" ", 6)
    if (name, level) != ("cpython", "final"):
        return None
    return Python((int(major), int(minor), int(patch)), Path(path))


def plan(found: list[Python]) -> tuple[list[Environment], list[str]]:
    """Return the environments to try, and the installers that run on none of the Pythons."""
    chosen: dict[Environment, None] = {}
    unused = []
    for python in found:
        known = [version for version, newest in PIPS.items() if python.version[1] <= newest]
        for version in (*known[:1], NEWEST):
            chosen[Environment(python, "pip", version)] = None
    for at, (version, newest) in enumerate(PIPS.items()):
        able = [python for python in found if python.version[1] <= newest]
        if not able:
            unused.append(f"pip {version}")
        elif not any(each.version == version for each in chosen):
            chosen[Environment(able[at % len(able)], "pip", version)] = None
    for at, version in enumerate(UVS):
        chosen[Environment(found[-1 - at % len(found)], "uv", version)] = None
    return list(chosen), unused


def problems_of(wheel: Path) -> list[str]:
    """Return what a wheel lacks that an installed package needs, and the links of its description that lead nowhere on a package index."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
        (entries,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/entry_points.txt"))
    found = [f"it has no {name}" for name in NEEDED if not any(each.startswith(name) for each in names)]
    found += [f"its description has the link {target}" for target in LINK.findall(metadata)]
    return found + [f"it has no entry point {name}" for name in ENTRIES if name not in entries]


def _environ(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not LEADING_ELSEWHERE.match(name)} | more


class Matrix:
    """The environments of one run, in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._uv = Path(sys.executable).with_name("uv")
        self._wheel = Path()
        self._work = directory / "work"
        self._work.mkdir()
        (directory / "tmp").mkdir()
        self._environ = _environ(
            PIP_CACHE_DIR=str(directory / "pip"),
            PIP_DISABLE_PIP_VERSION_CHECK="1",
            UV_CACHE_DIR=str(directory / "uv"),
            TMPDIR=str(directory / "tmp"),
        )

    def build(self) -> str:
        """Build the source distribution, and from it the wheel, and return the wheel's name."""
        self._run(str(self._uv), "build", "--quiet", "--out-dir", str(self._directory / "dist"), str(ROOT))
        (self._wheel,) = (self._directory / "dist").glob("*.whl")
        if lacking := problems_of(self._wheel):
            raise FailedError("; ".join(lacking))
        return self._wheel.name

    def download(self, python: Python) -> None:
        """Download what a Python needs, so that the installers that follow read files only."""
        pip = self._venv(Environment(python, "pip", "download"), "pip")
        self._run(pip, "-m", "pip", "download", "-q", "-d", str(self._wheels(python)), *self._wanted())

    def install(self, environment: Environment) -> str:
        """Make a fresh environment, install the wheel into it by the environment's tool, and run the demo.

        Returns:
            The tool and its version, as it names them.
        """
        release = environment.tool if environment.version == NEWEST else f"{environment.tool}=={environment.version}"
        local = ("--no-index", "--find-links", str(self._wheels(environment.python)), *self._wanted())
        if environment.tool == "pip":
            python = self._venv(environment, release)
            tool = [python, "-m", "pip"]
            self._run(*tool, "--isolated", "install", "-q", *local)
        else:
            tool = [
                str(
                    Path(self._venv(Environment(environment.python, "tool", environment.version), release)).with_name(
                        "uv"
                    )
                )
            ]
            python = self._venv(environment)
            self._run(*tool, "pip", "install", "-q", "--python", python, *local)
        self._run(str(Path(python).with_name("voiceassist-db")), "demo")
        named = " ".join(self._run(*tool, "--version").split()[:2])
        shutil.rmtree(Path(python).parents[1])
        return named

    def _venv(self, environment: Environment, *packages: str) -> str:
        path = self._directory / re.sub(r"[^\w.]+", "-", str(environment))
        self._run(str(self._uv), "venv", "-q", "--python", str(environment.python.executable), str(path))
        python = str(path / "bin" / "python")
        if packages:
            self._run(str(self._uv), "pip", "install", "-q", "--python", python, *packages)
        return python

    def _wheels(self, python: Python) -> Path:
        return self._directory / f"wheels-{python.version[1]}"

    def _wanted(self) -> tuple[str, ...]:
        return "-c", str(ROOT / "constraints.txt"), f"{self._wheel}[embedded]"

    def _run(self, *command: str) -> str:
        """Run a command outside of the checkout, so that nothing is imported from there, and return what it prints."""
        done = subprocess.run(
            command,
            cwd=self._work,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        if done.returncode != 0:
            tail = "\n".join(done.stdout.splitlines()[-LINES_OF_OUTPUT:])
            raise FailedError(f"{' '.join(command)}: exit code {done.returncode}\n{tail}")
        return done.stdout


def _tried(what: str, action: Callable[[], object]) -> bool:
    """Do something, print how it went, and say whether it went well."""
    started = time.monotonic()
    try:
        found = action()
    except (FailedError, subprocess.TimeoutExpired) as error:
        print(f"FAILED {what}: {error}", flush=True)
        return False
    print(f"ok     {what}{f', which is {found}' if found else ''} ({time.monotonic() - started:.0f} s)", flush=True)
    return True


def main() -> int:
    """Run all, and return the exit code."""
    found = pythons()
    if not found:
        print(f"FAILED: no Python {'.'.join(map(str, OLDEST))} or newer on PATH or in pyenv")
        return 1
    environments, unused = plan(found)
    print(f"{len(environments)} environments on {len(found)} Pythons: {', '.join(map(str, found))}")
    if len(found) == 1:
        print("NOTE: this machine has one Python only, so no other was tried")
    if unused:
        print(f"NOTE: not tried, since no Python here is old enough: {', '.join(unused)}")
    with tempfile.TemporaryDirectory(prefix="voiceassist-db-matrix-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)  # so that the servers' own user, where root runs this, can read the binaries in it
        failed = run(Matrix(Path(name)), found, environments)
    if failed:
        print(f"FAILED in {len(failed)} of {len(environments)} environments: {'; '.join(map(str, failed))}")
        return 1
    print(f"all {len(environments)} environments work")
    return 0


def run(matrix: Matrix, found: list[Python], environments: list[Environment]) -> list[Environment]:
    """Try all environments, as many at a time as there are processors, and return those that failed."""
    if not _tried("wheel", matrix.build):
        return environments
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        fetched = pool.map(lambda each: _tried(f"wheels for {each}", lambda: matrix.download(each)), found)
        ready = {python for python, well in zip(found, fetched, strict=True) if well}
        able = [each for each in environments if each.python in ready]
        went = pool.map(lambda each: _tried(str(each), lambda: matrix.install(each)), able)
        worked = {each for each, well in zip(able, went, strict=True) if well}
    return [each for each in environments if each not in worked]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the directory is removed then, too
    sys.exit(main())
