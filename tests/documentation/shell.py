"""A shell for the documentation's commands, in which commands of Python need no second to start.

The words ``voiceassist-db`` and ``alembic`` are small programs in a directory of their own. Each hands its arguments, environment, folder and
streams to a process that has imported everything once. That process forks, and the child runs the command by its real entry point.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

ENTRIES: Final = {"voiceassist-db": ("voiceassist_db.cli", "main"), "alembic": ("alembic.config", "main")}
LOGINS: Final = "DOCUMENTED_LOGINS"
"""Variable with the address that each of our commands is documented to have, as JSON; ``""`` is the one that is no command's own."""

_CRASHED: Final = 70
_PROGRAM: Final = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    asked = json.dumps([{word!r}, sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
    socket.send_fds(server, [len(asked).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(asked)
    code = server.recv(1)
sys.exit(code[0] if code else {crashed})
"""


@contextlib.contextmanager
def quick_commands(directory: Path) -> Iterator[Path]:
    """Give a directory whose programs are the commands, for the front of PATH."""
    address, programs = directory / "socket", directory / "bin"
    programs.mkdir()
    for word in ENTRIES:
        program = programs / word
        program.write_text(_PROGRAM.format(python=sys.executable, address=str(address), word=word, crashed=_CRASHED))
        program.chmod(0o755)
    server = subprocess.Popen([sys.executable, "-m", __name__, str(address)], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield programs
    finally:
        server.terminate()
        server.communicate()


def _serve(address: str) -> None:
    """Run commands until this process is ended."""
    import voiceassist_db

    for module in pkgutil.walk_packages(voiceassist_db.__path__, "voiceassist_db."):
        if "_migrations" not in module.name and module.name != "voiceassist_db.testing":
            importlib.import_module(module.name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            client, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(client)
            client.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG) != (0, 0):
                    pass


def _answer(client: socket.socket) -> None:
    """Run what a client asks for, in this process, and tell it the exit code."""
    code = _CRASHED
    try:
        length, streams, *_ = socket.recv_fds(client, 8, 3)
        with client.makefile("rb") as given:
            word, arguments, environment, folder = json.loads(given.read(int.from_bytes(length, "big")))
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:0] = [each for each in environment.get("PYTHONPATH", "").split(os.pathsep) if each]
        _log_in(word, arguments)
        sys.argv = [word, *arguments]
        module, function = ENTRIES[word]
        code = _ended(getattr(importlib.import_module(module), function))
    finally:
        for written in (sys.stdout, sys.stderr):
            written.flush()
        client.sendall(bytes([code]))
        os._exit(code)


def _ended(command: Any) -> int:
    """Return the exit code of a command, as Python would end with it."""
    try:
        command()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
            return 1
        return int(ended.code or 0)
    except BaseException:  # noqa: BLE001  # what Python does with it: it is printed
        traceback.print_exc()
        return 1
    return 0


def _log_in(word: str, arguments: list[str]) -> None:
    """Let one of our commands run as the role that the README names, unless the line itself names another one."""
    logins = json.loads(os.environ.pop(LOGINS, "{}"))
    if word == "voiceassist-db" and arguments and os.environ.get("DATABASE_URL") == logins.get(""):
        os.environ["DATABASE_URL"] = logins.get(arguments[0], logins[""])


if __name__ == "__main__":
    _serve(sys.argv[1])
