"""Whatever answers in Vault's place: each answer is read rightly, or is an error of ours that shows nothing of it.

The answers begin as a real server's own, and are changed at every place. A real server cannot be made to give the changed ones,
so a server of the test's own does.
"""

from __future__ import annotations

import copy
import gzip
import itertools
import json
import logging
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hvac
import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.providers.conftest import everything_in
from tests.providers.wire import Wire, http, slowly
from voiceassist_db.embedded import EmbeddedOpenBao
from voiceassist_db.errors import KeyStoreError, KeyStoreUnavailableError
from voiceassist_db.keys import KeySet
from voiceassist_db.masking import Masked
from voiceassist_db.providers.vault import AppRoleLogin, TokenLogin, VaultKeyProvider
from voiceassist_db.providers.vault.answers import LIMIT_DEPTH
from voiceassist_db.providers.vault.transport import LIMIT_BYTES

pytestmark = pytest.mark.wide

Json = Any
Place = tuple[Any, ...]

MISSING = object()

LEAK = "LEAK-9f27"
"""Stands in every changed answer; no error may show it."""

ODD: list[Json] = [
    MISSING,
    None,
    True,
    False,
    0,
    -1,
    1.5,
    2.0,
    1e300,
    float("nan"),
    float("inf"),
    1 << 63,
    10**300,
    "",
    LEAK,
    "1",
    f"{LEAK}\n\x00\x1b[31m",
    "\ud800",
    "é" * 10,
    [],
    [LEAK],
    [[]],
    {},
    {LEAK: LEAK},
    {"\udfff": 1},
]
"""In the place of each value."""

ROUTES = {
    "read": b"GET /v1/secret/data/",
    "write": b"POST /v1/secret/data/",
    "mount": b"GET /v1/sys/internal/ui/mounts/",
    "look up": b"GET /v1/auth/token/lookup-self",
    "renew": b"POST /v1/auth/token/renew-self",
    "log in": b"POST /v1/auth/approle/login",
}


@dataclass(frozen=True)
class Recorded:
    """What a real server answered to each kind of request.

    Attributes:
        bodies: The bodies by the names of :data:`ROUTES`.
        secrets: What no error may show.
        keys: What the secret holds.
    """

    bodies: dict[str, Json]
    secrets: frozenset[str]
    keys: KeySet


@pytest.fixture(scope="module")
def recorded(server: EmbeddedOpenBao, admin: hvac.Client) -> Recorded:
    """Ask a real server for one answer of each kind."""
    path, keys = "test/recorded", KeySet.generate()
    VaultKeyProvider(server.address, TokenLogin(server.root_token), path=path).create(keys)
    approle = admin.auth.approle
    approle.create_or_update_approle("recorded", token_ttl="60s", token_policies=["default"])
    role = approle.read_role_id("recorded")["data"]["role_id"]
    secret_id = approle.generate_secret_id("recorded")["data"]["secret_id"]
    log_in = approle.login(role, secret_id, use_token=False)
    token = log_in["auth"]["client_token"]
    own = hvac.Client(url=server.address, token=token, session=admin.session)
    bodies = {
        "read": admin.secrets.kv.v2.read_secret_version(path, raise_on_deleted_version=True),
        "write": admin.secrets.kv.v2.create_or_update_secret(f"{path}/other", {"x": "1"}),
        "mount": admin.adapter.get("/v1/sys/internal/ui/mounts/secret"),
        "look up": own.auth.token.lookup_self(),
        "renew": own.auth.token.renew_self(),
        "log in": log_in,
    }
    bodies["look up"]["data"]["ttl"] = 1  # of 60: so that it is renewed
    held = [keys.key, keys.index_key]
    return Recorded(bodies, frozenset({token, LEAK, *(each.expose().decode() for each in held if each)}), keys)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Signs the test's own server."""
    return trustme.CA()


@dataclass(frozen=True)
class Imposter:
    """A server of the test's own in Vault's place.

    Attributes:
        wire: The server.
        connect: Makes a provider for it.
        recorded: What it answers where a test says nothing else.
    """

    wire: Wire
    connect: Callable[..., VaultKeyProvider]
    recorded: Recorded

    def answers(self, name: str, *parts: bytes) -> None:
        """Answer one kind of request with these parts, and the others as the real server did."""
        others = {each: [http(json.dumps(body).encode())] for each, body in self.recorded.bodies.items()}
        if name == "mount":  # which is asked for only where nothing is stored
            others["read"] = [http(b'{"errors":[]}', status="404 Not Found")]
        answers = others | {name: list(parts)}
        self.wire.answer = lambda request: next(
            answers[each] for each, start in ROUTES.items() if request.startswith(start)
        )

    def attempt(self, name: str) -> KeySet | None:
        """Make a request of a kind, with those that come before it."""
        provider = self.connect(AppRoleLogin("role", "secret") if name == "log in" else TokenLogin("a-token"))
        match name:
            case "write":
                provider.replace(KeySet(version=1, key=self.recorded.keys.key, revision=1), self.recorded.keys)
            case "look up":  # of the client itself: the provider makes a warning of its errors
                provider._client.look_up(Masked("a-token"))
            case "renew":
                provider._client.renew(Masked("a-token"))
            case _:
                return provider.fetch()
        return None

    def fails(self, name: str, *, may_differ: bool = False) -> bool:
        """Make a request of a kind. It succeeds with the right keys, or fails with an error that shows nothing.

        Args:
            name: The kind.
            may_differ: Whether the answer holds other keys.

        Returns:
            Whether it failed.
        """
        failure: KeyStoreError | None = None
        fetched: KeySet | None = None
        try:
            fetched = self.attempt(name)
        except KeyStoreError as error:
            failure = error
        if failure is not None:
            assert (None, None) == (failure.__cause__, failure.__context__)
            shown = list(everything_in(failure))
            assert not [each for each in self.recorded.secrets if any(each in text for text in shown)]
            return True
        if fetched is not None and not may_differ:
            keys = self.recorded.keys
            assert (keys.key, keys.index_key, 1) == (fetched.key, fetched.index_key, fetched.revision)
        return False


@contextmanager
def imposter_of(recorded: Recorded, directory: Path, authority: trustme.CA | None) -> Iterator[Imposter]:
    """Run a server, with TLS where there is an authority."""
    ca_file = directory / "ca.pem"
    if authority is not None:
        authority.cert_pem.write_to_path(str(ca_file))

    with Wire(lambda _: [], authority=authority) as wire:

        def connect(login: TokenLogin | AppRoleLogin, *, timeout_s: float = 20) -> VaultKeyProvider:
            return VaultKeyProvider(wire.address, login, path="test/recorded", ca_file=ca_file, timeout_s=timeout_s)

        yield Imposter(wire, connect, recorded)


@pytest.fixture(scope="module")
def imposter(recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Imposter]:
    """A server that speaks plain HTTP."""
    with imposter_of(recorded, tmp_path_factory.mktemp("imposter"), None) as running:
        yield running


@pytest.fixture(scope="module", params=["http", "https"])
def either(request: pytest.FixtureRequest, recorded: Recorded, tmp_path_factory: Any) -> Iterator[Imposter]:
    """A server that speaks plain HTTP, and one that speaks TLS with a certificate that is trusted."""
    authority = trustme.CA() if request.param == "https" else None
    with imposter_of(recorded, tmp_path_factory.mktemp("imposter"), authority) as running:
        yield running


@pytest.fixture(autouse=True)
def quiet_logs(caplog: pytest.LogCaptureFixture) -> None:
    """Keep the logs of thousands of requests short: other tests look into them."""
    caplog.set_level(logging.ERROR)


def places(tree: Json, path: Place = ()) -> Iterator[Place]:
    """Yield the path of each value in a tree."""
    yield path
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, value in inner:
        yield from places(value, (*path, name))


def changed(tree: Json, path: Place, value: Json) -> Json:
    """Return a tree with another value at a path, or without one there."""
    if not path:
        return value
    copied = copy.deepcopy(tree)
    at = copied
    for name in path[:-1]:
        at = at[name]
    if value is MISSING:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return copied


def is_of_keys(name: str, path: Place) -> bool:
    return name == "read" and path[:2] in {("data", "data"), ("data", "metadata")}


@pytest.mark.parametrize("name", ROUTES)
def test_each_value_of_an_answer_may_be_anything(name: str, imposter: Imposter) -> None:
    """Every value of every kind of answer is replaced by every odd one, or is missing: right keys or a KeyStoreError."""
    body, results = imposter.recorded.bodies[name], []
    for path, odd in itertools.product(places(body), ODD):
        if path or odd is not MISSING:
            imposter.answers(name, http(json.dumps(changed(body, path, odd)).encode()))
            results.append(imposter.fails(name, may_differ=is_of_keys(name, path)))
    assert len(results) > 10 * len(ODD)
    assert name == "mount" or 0.05 < sum(results) / len(results) < 0.9  # of the mount, success is an error as well


MALFORMED = {
    "an object twice": b'{"data": {"data": {}, "metadata": {"version": 1}}, "data": {"data": {}, "metadata": {"version": 1}}}',
    "a field twice": b'{"data": {"data": {"key": "x", "key": "y"}, "metadata": {"version": 1}}}',
    "no JSON": b"<html>LEAK-9f27</html>",
    "nothing": b"",
    "another encoding": '{"data": "é"}'.encode("utf-16"),
    "no UTF-8": b'{"data": "\xff\xfe"}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "a list": b"[1]",
    "a string": b'"LEAK-9f27"',
    "null": b"null",
    "an empty object": b"{}",
    "deep lists": b'{"data":' + b"[" * 200_000,
    "deep objects": b'{"a":' * 100_000,
    "balanced lists": b'{"data":' + b"[" * 900 + b"]" * 900 + b"}",
    "a long number": b'{"data": ' + b"9" * 100_000 + b"}",
    "a number without end": b'{"data": 1e999999}',
}


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_not_an_answer_is_an_error(what: str, name: str, imposter: Imposter) -> None:
    """Whatever the body is, with each status: a KeyStoreError, and no RecursionError or OverflowError."""
    for status in (
        "200 OK",
        "201 Created",
        "204 No Content",
        "400 Bad Request",
        "403 Forbidden",
        "404 Not Found",
        "500 x",
    ):
        imposter.answers(name, http(MALFORMED[what], status=status))
        assert imposter.fails(name)


def test_a_secret_at_the_limit_of_depth_is_read_and_one_beyond_is_not(imposter: Imposter) -> None:
    """The field of somebody else may be nested, as deep as it can be written back for sure."""
    around = 3  # data, data, and the field
    for depth, is_refused in ((LIMIT_DEPTH - around - 1, False), (LIMIT_DEPTH - around + 1, True)):
        field: Json = "x"
        for _ in range(depth):
            field = [field]
        body = changed(imposter.recorded.bodies["read"], ("data", "data", "theirs"), field)
        imposter.answers("read", http(json.dumps(body).encode()))
        assert is_refused is imposter.fails("read")
        assert is_refused is imposter.fails("write")


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_of_an_answer_may_be_any(either: Imposter, data: st.DataObject) -> None:
    """An answer, its status line and its headers are cut, doubled and overwritten anywhere."""
    name = data.draw(st.sampled_from(list(ROUTES)))
    whole = http(json.dumps(either.recorded.bodies[name]).encode())
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 40)))
    instead = data.draw(
        st.one_of(st.binary(max_size=20), st.sampled_from([whole[start:end] * 2, b"\r\n", b"\r\n\r\n"]))
    )
    either.answers(name, whole[:start] + instead + whole[end:])
    either.fails(name, may_differ=True)


HEAD = b"HTTP/1.1 200 OK\r\n"
ENDLESS = {
    "status line": (b"HTTP/1.1 200 ", b"x" * 4096),
    "header": (HEAD, b"X: " + b"x" * 4096),
    "headers": (HEAD, b"X: " + b"x" * 4096 + b"\r\n"),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "body": (HEAD + b"\r\n", b" " * 4096),
    "body of a promised length": (HEAD + b"Content-Length: 99999999999\r\n\r\n", b" " * 4096),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b" " * 4096 + b"\r\n"),
    "size of a chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * 4096),
    "extension of a chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 4096),
    "trailer": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: x\r\n" * 512),
    "refusal": (b"HTTP/1.1 403 Forbidden\r\n\r\n", b" " * 4096),
    "redirect": (b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", b" " * 4096),
}
"""How an answer begins, and what of it never ends."""

ENOUGH_PARTS = 16_000
"""64 MiB: 32 times the limit."""


@pytest.mark.parametrize("what", ENDLESS)
def test_an_answer_without_end_is_cut_off(what: str, either: Imposter) -> None:
    """Whichever part of the answer does not end: little more than the limit is taken, and the memory it needs is small."""
    begin, more = ENDLESS[what]
    sent_before = either.wire.sent_bytes
    either.wire.answer = lambda _: itertools.chain([begin], itertools.repeat(more, ENOUGH_PARTS))
    tracemalloc.start()
    assert either.fails("read")
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 8 * LIMIT_BYTES
    assert either.wire.sent_bytes - sent_before < ENOUGH_PARTS * len(more) / 2


@pytest.mark.parametrize("what", [*ENDLESS, "answer"])
def test_an_answer_that_takes_its_time_is_cut_off(what: str, either: Imposter) -> None:
    """A byte now and then keeps a socket's own timeout from ever passing. In the end the right answer comes, too late."""
    begin, more = ENDLESS.get(what, (b"", b""))
    whole = http(json.dumps(either.recorded.bodies["read"]).encode())
    trickle = [bytes([each]) for each in (begin + more)[:400]] if what in ENDLESS else []
    parts = [*trickle, *(bytes([each]) for each in whole[:400]), whole[400:]]
    either.wire.answer = lambda _: slowly(parts)
    with pytest.raises(KeyStoreUnavailableError, match=r"did not answer within 1 s"):
        either.connect(TokenLogin("a-token"), timeout_s=1).fetch()


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "gzip, gzip", "deflate", "br", "zstd", "identity, gzip"])
def test_a_compressed_answer_is_refused(encoding: str, imposter: Imposter) -> None:
    """It was not asked for, and can be a thousand times larger than what was received."""
    body = changed(imposter.recorded.bodies["read"], ("data", "data", "theirs"), "x" * (20 << 20))
    packed = json.dumps(body).encode()
    for _ in range(encoding.lower().count("gzip")):
        packed = gzip.compress(packed)
    for status in ("200 OK", "302 Found\r\nLocation: /x", "403 Forbidden", "404 Not Found"):
        imposter.answers("read", http(packed[: LIMIT_BYTES // 2], f"Content-Encoding: {encoding}", status=status))
        tracemalloc.start()
        assert imposter.fails("read")
        _, most_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most_bytes < 8 * LIMIT_BYTES
    assert b"accept-encoding: identity" in imposter.wire.requests[-1].lower()


LENGTHS = {
    "too long": ["Content-Length: 5000"],
    "two": ["Content-Length: 5", "Content-Length: 6"],
    "negative": ["Content-Length: -1"],
    "no number": ["Content-Length: x"],
    "with a sign": ["Content-Length: +20"],
    "huge": ["Content-Length: " + "9" * 5000],
    "of chunks that are none": ["Transfer-Encoding: chunked"],
    "of chunks and a number": ["Content-Length: 5", "Transfer-Encoding: chunked"],
}


@pytest.mark.parametrize("what", LENGTHS)
@pytest.mark.parametrize("name", ROUTES)
def test_a_wrong_length_gives_no_wrong_answer(what: str, name: str, either: Imposter) -> None:
    """An answer is taken whole, or not at all."""
    body = json.dumps(either.recorded.bodies[name]).encode()
    either.answers(name, "\r\n".join(["HTTP/1.1 200 OK", *LENGTHS[what], "", ""]).encode() + body)
    either.fails(name)


REDIRECTS = ["300 x", "301 x", "302 x", "303 x", "304 x", "307 x", "308 x"]
TARGETS = ["{other}/v1/x", "//{other_host}/v1/x", "/v1/x", "x", "", "http://[", "\xff", "gopher://x"]


@pytest.mark.parametrize("name", ["read", "write", "log in", "look up", "renew"])
@pytest.mark.parametrize("target", TARGETS)
def test_no_redirect_is_followed(name: str, target: str, imposter: Imposter) -> None:
    """Not to another host, and not to the same one: whoever answers could name any host."""
    with Wire(lambda _: [http(b"{}")]) as other:
        location = target.format(other=other.address, other_host=f"127.0.0.1:{other.port}")
        for status in REDIRECTS if name == "read" else ["302 x", "307 x"]:
            imposter.wire.requests.clear()
            imposter.answers(name, http(b"", f"Location: {location}", status=status))
            with pytest.raises(KeyStoreError, match="redirects to another address"):
                imposter.attempt(name)
            assert imposter.wire.requests[-1].startswith(ROUTES[name])
        assert [] == other.requests


def test_a_redirect_from_https_to_http_is_not_followed(either: Imposter) -> None:
    """The token would go in clear where it went encrypted before."""
    with Wire(lambda _: [http(b"{}")]) as other:
        either.answers("read", http(b"", f"Location: {other.address}/v1/secret/data/test/recorded", status="307 x"))
        assert either.fails("read")
        assert [] == other.requests
