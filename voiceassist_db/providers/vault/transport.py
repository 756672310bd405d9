"""The only door to hvac: one HTTP connection for one request, limited in time and size.

Owns where a request may go and how much of an answer is read. Each request has a session of its own, so that no other thread,
forked child or connection that a firewall dropped can disturb it. Nothing comes from the environment.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import hvac
import requests
import requests.adapters
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util.ssl_ import create_urllib3_context

from voiceassist_db.addresses import is_this_machine
from voiceassist_db.forks import UNFORKED
from voiceassist_db.masking import Masked
from voiceassist_db.providers.vault.answers import Answer, RawSecret, parsed

LIMIT_BYTES: Final = 2 << 20
"""Size of an answer with its headers. A secret has at most 1 MiB (Vault's integrated storage, ``max_entry_size``)."""


class TooLongError(OSError):
    """An answer has more than :data:`LIMIT_BYTES`."""


class ElsewhereError(OSError):
    """A connection in clear leads to another machine."""


class ClientCertificateError(OSError):
    """The client certificate cannot be loaded."""


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """The certificate by which this client proves itself on a TLS connection.

    Attributes:
        cert_file: PEM file of the certificate, and of the intermediate ones after it.
        key_file: PEM file of its private key, without a pass phrase.
    """

    cert_file: Path
    key_file: Path


def send(
    request: Callable[[Any], Answer],
    *,
    address: Masked,
    token: Masked | None,
    verify: bool | str,
    certificate: ClientCertificate | None,
    timeout_s: float,
    namespace: str | None,
    allow_unsafe: bool,
) -> Answer:
    """Make one request with an hvac client.

    Args:
        request: The request, a function of the client.
        address: URL of the server.
        token: The token; None for none.
        verify: File of the authorities to trust; True for the public ones.
        certificate: Client certificate to show where the server asks for one; None for none.
        timeout_s: Seconds that connecting may take, and again the whole answer.
        namespace: Vault's namespace.
        allow_unsafe: Whether a connection in clear may lead to another machine.

    Raises:
        OSError: There was no answer. The exception and its frames can hold the token and what was sent.
    """
    with _Session() as session:
        session.trust_env = False  # no proxy and no .netrc of the environment may see a token
        session.verify = verify
        session.headers["Accept-Encoding"] = "identity"  # what is compressed is larger than the limit says
        transport = _Transport(allow_unsafe=allow_unsafe, certificate=certificate)
        for scheme in ("http://", "https://"):
            session.mount(scheme, transport)
        client = hvac.Client(
            url=address.value,
            token=token.value if token else "",  # for None, hvac would read VAULT_TOKEN and ~/.vault-token
            verify=verify,
            timeout=timeout_s,
            allow_redirects=False,  # requests would carry the token's header along to any host
            session=session,
            adapter=_Adapter,
            namespace=namespace,
        )
        return request(client)


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Find no redirect: requests would read the answer in order to prepare a request that is never sent."""


class _Adapter(hvac.adapters.RawAdapter):  # type: ignore[misc]  # hvac has no types
    """Gives each answer as it is, whatever its status."""

    def __init__(self, **options: Any) -> None:
        # For no certificate, hvac reads VAULT_CLIENT_CERT. The connection's own context has the certificate.
        super().__init__(**options | {"cert": None})

    def request(
        self, method: str, url: str, headers: Any = None, raise_exception: bool = True, **kwargs: Any
    ) -> Answer:
        with super().request(method, url, headers=headers, raise_exception=False, stream=True, **kwargs) as response:
            return Answer(response.status_code, _body(response))


def _body(response: requests.Response) -> RawSecret | None:
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        return None
    return parsed(response.content)


class _Transport(requests.adapters.HTTPAdapter):
    def __init__(self, *, allow_unsafe: bool, certificate: ClientCertificate | None) -> None:
        self._allow_unsafe = allow_unsafe
        self._certificate = certificate
        super().__init__(pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        with UNFORKED:
            context = create_urllib3_context()
            if self._certificate is not None:
                _load(context, self._certificate)
        context.keylog_filename = None  # type: ignore[assignment]  # SSLKEYLOGFILE: who reads that file reads the token
        super().init_poolmanager(*args, ssl_context=context, **kwargs)
        in_clear = _PoolInClear if self._allow_unsafe else _LocalPool
        self.poolmanager.pool_classes_by_scheme = {"http": in_clear, "https": _EncryptedPool}


def _load(context: ssl.SSLContext, certificate: ClientCertificate) -> None:
    try:
        # Without a pass phrase of ours, OpenSSL would ask for one on the terminal and wait.
        context.load_cert_chain(certificate.cert_file, certificate.key_file, password="")
    except (OSError, ValueError):
        raise ClientCertificateError from None


class _LimitedReads(io.RawIOBase):
    """What a socket receives, for as long as a timeout lasts and up to the limit of bytes.

    The timeout of a socket alone would begin anew with each byte.
    """

    def __init__(self, reads: io.RawIOBase, sock: socket.socket) -> None:
        self._reads = reads
        self._socket = sock
        self._deadline_s = time.monotonic() + (sock.gettimeout() or 0)
        self._left_bytes = LIMIT_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._socket.settimeout(left_s)
        count = self._reads.readinto(buffer)
        self._left_bytes -= count or 0
        if self._left_bytes < 0:
            raise TooLongError
        return count

    def close(self) -> None:
        self._reads.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_LimitedReads(self.fp.detach(), sock))


class _InClear(HTTPConnection):
    response_class = _Response


class _Local(_InClear):
    def connect(self) -> None:
        super().connect()
        # Of the socket itself: a name need not lead where it says, not even localhost.
        if not is_this_machine(self.sock.getpeername()[0]):
            self.close()
            raise ElsewhereError


class _Encrypted(HTTPSConnection):
    response_class = _Response

    def connect(self) -> None:
        with UNFORKED:
            super().connect()


class _PoolInClear(HTTPConnectionPool):
    ConnectionCls = _InClear


class _LocalPool(HTTPConnectionPool):
    ConnectionCls = _Local


class _EncryptedPool(HTTPSConnectionPool):
    ConnectionCls = _Encrypted
