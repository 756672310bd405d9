"""OpenBao's own binary with a configuration that the embedded server does not have: listeners for certificates, and the agent."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from voiceassist_db.embedded.binaries import find_openbao


@contextlib.contextmanager
def running(directory: Path, name: str, configuration: dict[str, Any], *arguments: str, until: str) -> Iterator[None]:
    """Run `bao NAME` with a configuration until the block ends; the block begins when its output has a text."""
    file = directory / f"{name}.json"
    file.write_text(json.dumps(configuration))
    command = [str(find_openbao()), name, *arguments, f"-config={file}"]
    # Not our own environment: its proxies, VAULT_* and BAO_* would change the program.
    environment = {"HOME": str(directory), "TMPDIR": str(directory)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as bao:
        try:
            assert bao.stdout is not None
            printed: list[str] = []
            for line in bao.stdout:
                printed.append(line)
                if until in line:
                    break
            else:
                raise AssertionError("".join(printed))
            # Nobody reads on: a full pipe would stop the program.
            threading.Thread(target=bao.stdout.read, daemon=True).start()
            yield
        finally:
            bao.kill()
