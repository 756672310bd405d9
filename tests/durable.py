"""A PostgreSQL that survives kill -9, and comes back where it was."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.rotation.conftest import until
from voiceassist_db.embedded import EmbeddedPostgres, postgres
from voiceassist_db.embedded.process import free_port
from voiceassist_db.errors import EmbeddedServerError


class DurableServer:
    """A server with PostgreSQL's own, durable settings, which can be killed and comes back on the same port."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._server = EmbeddedPostgres(directory)

    def start(self, *, synchronous_commit: str) -> None:
        """Start it; what it left of itself when it was killed may need a moment to end."""
        self._server = EmbeddedPostgres(self._directory, settings={"synchronous_commit": synchronous_commit})

        def is_up() -> bool:
            try:
                self._server.start()
            except EmbeddedServerError as error:
                if "shared memory block" not in str(error):
                    raise
                return False
            return True

        until(is_up, seconds=60)

    def kill(self) -> None:
        """Kill -9 the postmaster; its children end by themselves."""
        os.kill(self._server.pid, signal.SIGKILL)
        self._server.stop()

    def stop(self) -> None:
        """Stop it."""
        self._server.stop()

    def url(self) -> URL:
        """Return the address of its database."""
        return self._server.url()


@contextmanager
def durable_server() -> Iterator[DurableServer]:
    """Start a durable server, and remove it at the end."""
    parent = Path(tempfile.mkdtemp(prefix="durable-server-"))
    parent.chmod(0o711)
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgres, "free_port", lambda: port)
        server = DurableServer(parent / "kept")
        server.start(synchronous_commit="on")
        try:
            yield server
        finally:
            server.stop()
            shutil.rmtree(parent)
