"""A real OpenBao server, which speaks Vault's API, on loopback.

Owns its start, its unsealing and the file that keeps its unseal key. It uses the HTTP API for no more than that:
secrets are read and written elsewhere.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

from voiceassist_db.embedded.binaries import find_openbao
from voiceassist_db.embedded.process import (
    HOST,
    POLL_S,
    PORT_ATTEMPTS,
    GuardedProcess,
    free_port,
    log_tail,
    poll,
    temporary_home,
    write_private,
)
from voiceassist_db.errors import EmbeddedServerError
from voiceassist_db.masking import Credential, Opaque

START_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 10.0

_STARTED = "OpenBao server started!"
_PORT_TAKEN = "address already in use"


class EmbeddedOpenBao(Opaque):
    """An OpenBao server that lives as long as a ``with`` block, and never longer than this process.

    Its key-value store, version 2, is mounted at ``secret/``.

    Attributes:
        address: URL with the port, another one after each start.
        root_token: The root token.
        unseal_key: The only unseal key, in base64.
        ca_file: Certificate of its authority with ``tls``, else None.
        pid: Process id of the server.
    """

    root_token = Credential()
    unseal_key = Credential()

    def __init__(self, directory: Path | None = None, *, tls: bool = False) -> None:
        """Prepare a server; :meth:`start` starts it.

        Args:
            directory: Where to keep the secrets for next time, and beside them, in a file with mode 0600, the keys that
                open them; created if absent. It may be shared with an EmbeddedPostgres. None: development mode, in
                memory, and with it a random root token.
            tls: Speak TLS with a certificate of its own; only in memory.

        Raises:
            ValueError: ``tls`` with a directory.
        """
        if tls and directory is not None:
            raise ValueError("EmbeddedOpenBao has TLS only in memory: leave out the directory or tls")
        self._directory = directory
        self._tls = tls
        self._guard: GuardedProcess | None = None
        self._log = Path(os.devnull)
        self.address = ""
        self.root_token = ""
        self.unseal_key = ""
        self.ca_file: Path | None = None
        self.pid = 0

    def __repr__(self) -> str:
        return f"<EmbeddedOpenBao {f'on {self.address}' if self._guard is not None else 'stopped'}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server, and return when it is unsealed and its key-value store can be read.

        Raises:
            EmbeddedServerError: No binary; the directory is in use, or its keys are missing; or no start.
        """
        if self._guard is not None:
            raise EmbeddedServerError(f"{self!r} was started already")
        bao = find_openbao()
        self._guard = GuardedProcess()
        try:
            if self._directory is None:
                home = temporary_home("openbao", None)
                self._guard.claim(temporary=home)
            else:
                home = self._directory.resolve()
                home.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._guard.claim(lock=home / "openbao.lock")
            self._log = home / "openbao.log"
            self._launch(self._guard, bao, home)
            self._open(self._guard, home)
        except OSError as error:
            self.stop()
            raise EmbeddedServerError(f"Cannot prepare OpenBao's directory: {error}") from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server; a second call does nothing."""
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.close()

    def _launch(self, guard: GuardedProcess, bao: Path, home: Path) -> None:
        output = home / "openbao.out"
        for attempt in range(1, PORT_ATTEMPTS + 1):
            port = free_port()
            self.address = f"{'https' if self._tls else 'http'}://{HOST}:{port}"
            # Not our own environment: its proxies, VAULT_* and BAO_* would change the server.
            environment = {"HOME": str(home), "TMPDIR": str(home)}
            if self._directory is None:
                self.root_token = environment["BAO_DEV_ROOT_TOKEN_ID"] = secrets.token_urlsafe(24)
                arguments = self._development(home, port)
            else:
                arguments = self._raft(home, port)
            command = [str(bao), "server", *arguments]
            self.pid = guard.run(command, env=environment, stdout=output, stderr=self._log)
            problem = _wait_until_started(guard, output)
            if problem is None:
                if self._directory is None:
                    # This is the only place where development mode tells its unseal key.
                    self.unseal_key = _printed_unseal_key(guard, output)
                output.unlink()
                return
            # `output` says why a server could not listen; one that did start has printed its token there.
            tail = log_tail(self._log) if _started(output) else f"{log_tail(self._log)}\n{log_tail(output)}"
            if _PORT_TAKEN not in tail or attempt == PORT_ATTEMPTS:
                raise EmbeddedServerError(f"OpenBao {problem}; its log ends with:\n{tail}")

    def _development(self, home: Path, port: int) -> list[str]:
        arguments = ["-dev", "-dev-no-store-token", f"-dev-listen-address={HOST}:{port}"]
        if self._tls:
            certificates = home / "tls"
            certificates.mkdir(exist_ok=True)
            self.ca_file = certificates / "vault-ca.pem"
            arguments += ["-dev-tls", f"-dev-tls-cert-dir={certificates}"]
        return arguments

    def _raft(self, home: Path, port: int) -> list[str]:
        storage, file = home / "openbao-raft", home / "openbao-config.json"
        storage.mkdir(mode=0o700, exist_ok=True)
        cluster = f"{HOST}:{free_port()}"
        listener = {"address": f"{HOST}:{port}", "cluster_address": cluster, "tls_disable": True}
        configuration = {
            "storage": {"raft": {"path": str(storage), "node_id": "embedded", "performance_multiplier": 1}},
            "listener": {"tcp": listener},
            "api_addr": self.address,
            "cluster_addr": f"https://{cluster}",
        }
        write_private(file, json.dumps(configuration, indent=2))
        return [f"-config={file}"]

    def _open(self, guard: GuardedProcess, home: Path) -> None:
        """Initialise the server the first time, unseal it, and wait until ``secret/`` can be read."""
        with requests.Session() as session:
            session.trust_env = False  # a proxy of the environment would break loopback
            if self.ca_file is not None:
                session.verify = str(self.ca_file)
            if self._directory is not None:
                self._load_keys(session, home / "openbao.keys")
                self._call(session, "PUT", "sys/unseal", {"key": self.unseal_key})
            session.headers["X-Vault-Token"] = self.root_token
            for _ in poll(START_TIMEOUT_S):
                # health first, and then reads: right after unsealing they may still fail with 500.
                if self._status(session, "sys/health") == 200 and self._status(session, "sys/mounts") == 200:
                    mounted = self._status(session, "secret/config")
                    if mounted == 200:
                        return
                    if mounted == 404:
                        self._status(session, "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}})
                code = guard.exit_code(POLL_S)
                if code is not None:
                    raise EmbeddedServerError(f"OpenBao ended with {code}; its log ends with:\n{log_tail(self._log)}")
        raise EmbeddedServerError(f"OpenBao was not ready within {START_TIMEOUT_S:.0f} s:\n{log_tail(self._log)}")

    def _load_keys(self, session: requests.Session, file: Path) -> None:
        if not self._call(session, "GET", "sys/init")["initialized"]:
            keys = self._call(session, "PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
            kept = {"unseal_key": keys["keys_base64"][0], "root_token": keys["root_token"]}
            write_private(file, json.dumps(kept))
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            self.unseal_key, self.root_token = kept["unseal_key"], kept["root_token"]
        except (FileNotFoundError, ValueError, KeyError) as error:
            raise EmbeddedServerError(
                f"{file} is missing or damaged, and nothing else opens {file.parent / 'openbao-raft'}: restore the "
                "file, or give another directory"
            ) from error

    def _status(self, session: requests.Session, path: str, body: dict[str, Any] | None = None) -> int:
        """Return the status of a GET, or of a POST with a body; 0 where nobody answered."""
        method = "GET" if body is None else "POST"
        try:
            return session.request(
                method, f"{self.address}/v1/{path}", json=body, timeout=REQUEST_TIMEOUT_S
            ).status_code
        except requests.RequestException:
            return 0

    def _call(
        self, session: requests.Session, method: str, path: str, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        try:
            response = session.request(method, f"{self.address}/v1/{path}", json=body, timeout=REQUEST_TIMEOUT_S)
            response.raise_for_status()
            answer: dict[str, Any] = response.json() if response.content else {}
        except requests.RequestException as error:
            raise EmbeddedServerError(f"OpenBao did not answer {method} {path}: {error}") from error
        return answer


def _wait_until_started(guard: GuardedProcess, output: Path) -> str | None:
    """Return None when the server says that it listens, else what became of it.

    Its own words, and not an answer on the port, which another server may have taken.
    """
    for _ in poll(START_TIMEOUT_S):
        code = guard.exit_code(POLL_S)
        if code is not None:
            return f"ended with {code} instead of starting"
        if _started(output):
            return None
    return f"did not start within {START_TIMEOUT_S:.0f} s"


def _started(output: Path) -> bool:
    return _STARTED in output.read_text(encoding="utf-8", errors="replace")


def _printed_unseal_key(guard: GuardedProcess, output: Path) -> str:
    for _ in poll(START_TIMEOUT_S):
        match = re.search(r"^Unseal Key: (\S+)\n", output.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if match is not None:
            return match[1]
        if guard.exit_code(POLL_S) is not None:
            break
    raise EmbeddedServerError("OpenBao printed no unseal key in development mode")
