"""What the tests of embedded servers share."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that does not exist yet, where PostgreSQL's user can go too; root's ``tmp_path`` is closed to it."""
    parent = Path(tempfile.mkdtemp(prefix="embedded-test-"))
    parent.chmod(0o711)
    yield parent / "kept"
    shutil.rmtree(parent)


@pytest.fixture
def command_lines() -> Callable[[], str]:
    """A function that returns the arguments of every process of the machine."""

    def read() -> str:
        if not Path("/proc/self/cmdline").exists():
            return subprocess.run(["ps", "axww"], check=True, capture_output=True, text=True).stdout
        lines = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # the process ended meanwhile
                lines.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        return "\n".join(lines)

    return read
