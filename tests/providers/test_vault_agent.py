"""A real agent beside the application: its sink, and its listener, which adds the token."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hvac
import pytest

from tests.providers.running import running
from voiceassist_db import config
from voiceassist_db.embedded import EmbeddedOpenBao
from voiceassist_db.embedded.process import free_port
from voiceassist_db.errors import KeyStoreAuthenticationError, KeyStoreForbiddenError, KeyStoreUnavailableError
from voiceassist_db.keys import KeyProvider, KeySet

pytestmark = pytest.mark.wide

POLICY = "of-the-agent"


@dataclass(frozen=True)
class Agent:
    """A running agent.

    Attributes:
        address: Where it adds its token to each request.
        bare: Where it adds none.
        sink: Where it writes its token.
        wrapped: Where it writes it wrapped.
    """

    address: str
    bare: str
    sink: Path
    wrapped: Path


@pytest.fixture(scope="module", params=["agent", "proxy"])
def agent(
    request: pytest.FixtureRequest,
    server: EmbeddedOpenBao,
    admin: hvac.Client,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Agent]:
    """`bao agent` or `bao proxy`, which logs in by an AppRole; the same program without its own token listens elsewhere."""
    directory = tmp_path_factory.mktemp(request.param)
    admin.auth.approle.create_or_update_approle(POLICY, token_policies=[POLICY])
    identity = {
        "role_id_file_path": admin.auth.approle.read_role_id(POLICY)["data"]["role_id"],
        "secret_id_file_path": admin.auth.approle.generate_secret_id(POLICY)["data"]["secret_id"],
    }
    for name, value in identity.items():
        (directory / name).write_text(value)
    files = {name: str(directory / name) for name in identity}
    sink, wrapped = directory / "sink", directory / "wrapped"
    address, bare = (f"127.0.0.1:{free_port()}" for _ in range(2))
    sinks: list[dict[str, Any]] = [
        {"type": "file", "config": {"path": str(sink)}},
        {"type": "file", "wrap_ttl": "5m", "config": {"path": str(wrapped)}},
    ]
    method = {"type": "approle", "config": files | {"remove_secret_id_file_after_reading": False}}
    base = {"vault": {"address": server.address}}
    whole = base | {
        "auto_auth": {"method": [method], "sink": sinks},
        "api_proxy": {"use_auto_auth_token": True},
        "listener": {"tcp": {"address": address, "tls_disable": True, "require_request_header": True}},
    }
    plain = base | {"listener": {"tcp": {"address": bare, "tls_disable": True}}, "api_proxy": {}}
    other = directory / "bare"
    other.mkdir()
    until = "renewed auth token"
    with (
        running(directory, request.param, whole, until=until),
        running(other, request.param, plain, until="Log Level"),
    ):
        limit = time.monotonic() + 60
        while not (sink.exists() and wrapped.exists()):
            assert time.monotonic() < limit
            time.sleep(0.02)
        yield Agent(f"http://{address}", f"http://{bare}", sink, wrapped)


@pytest.fixture
def permitted(admin: hvac.Client, path: str, agent: Agent, secrets: set[str]) -> str:
    """The setting of a path that the agent's token may use."""
    rule = f'path "secret/data/{path}" {{ capabilities = ["create", "read", "update"] }}'
    admin.sys.create_or_update_policy(POLICY, rule)
    secrets.add(agent.sink.read_text())
    return f"secret/{path}"


def provider(path: str, **settings: str) -> KeyProvider:
    """Make a provider from settings."""
    return config.key_provider({"VOICEASSIST_DB_VAULT_PATH": path} | settings)


def test_the_token_of_a_sink_is_a_login(server: EmbeddedOpenBao, agent: Agent, permitted: str, keys: KeySet) -> None:
    """The agent writes the file, and the server is asked directly."""
    settings = {"VAULT_ADDR": server.address, "VAULT_TOKEN_FILE": str(agent.sink)}
    provider(permitted, **settings).create(keys)
    assert keys.key == provider(permitted, **settings).fetch().key


def test_a_wrapped_sink_is_told(server: EmbeddedOpenBao, agent: Agent, permitted: str, fails: Any) -> None:
    """Its content is no token, though it has no character that a token cannot have."""
    with fails(KeyStoreAuthenticationError) as caught:
        provider(permitted, VAULT_ADDR=server.address, VAULT_TOKEN_FILE=str(agent.wrapped)).fetch()
    assert "remove wrap_ttl and dh_type" in str(caught.value)


@pytest.mark.parametrize("others", [{}, {"VAULT_ADDR": "https://vault.example"}])
def test_an_agent_adds_its_token(
    others: dict[str, str], agent: Agent, permitted: str, keys: KeySet, caplog: pytest.LogCaptureFixture
) -> None:
    """No login is configured here, and no token is sent. As for Vault's tools, VAULT_AGENT_ADDR stands before VAULT_ADDR."""
    settings = others | {"VAULT_AGENT_ADDR": agent.address}
    provider(permitted, **settings).create(keys)
    used = provider(permitted, **settings)
    fetched = used.fetch()
    assert keys.key == fetched.key
    used.replace(fetched, KeySet(version=1, key=keys.key, index_key=keys.index_key))
    assert "/v1/auth/token/" not in caplog.text  # the agent keeps its token alive by itself


def test_an_agent_whose_token_lacks_the_policy_is_forbidden(
    agent: Agent, admin: hvac.Client, permitted: str, fails: Any
) -> None:
    """The agent's login is good, so the policy to paste is printed."""
    admin.sys.create_or_update_policy(POLICY, 'path "secret/data/other" { capabilities = ["read"] }')
    with fails(KeyStoreForbiddenError) as caught:
        provider(permitted, VAULT_AGENT_ADDR=agent.address).fetch()
    mount, _, rest = permitted.partition("/")
    assert f'path "{mount}/data/{rest}" {{ capabilities = ["read"] }}' in str(caught.value)


def test_an_agent_that_adds_no_token_is_told(agent: Agent, permitted: str, fails: Any) -> None:
    """Its own setting is missing, and VAULT_TOKEN is not what to set."""
    with fails(KeyStoreAuthenticationError) as caught:
        provider(permitted, VAULT_AGENT_ADDR=agent.bare).fetch()
    message = str(caught.value)
    assert "use_auto_auth_token = true" in message
    assert "VAULT_AGENT_ADDR" in message


def test_an_agent_may_be_used_with_a_token_of_our_own(
    server: EmbeddedOpenBao, agent: Agent, permitted: str, keys: KeySet
) -> None:
    """It forwards the request as it is."""
    settings = {"VAULT_AGENT_ADDR": agent.bare, "VAULT_TOKEN": server.root_token}
    provider(permitted, **settings).create(keys)
    assert keys.key == provider(permitted, **settings).fetch().key


def test_an_agent_that_is_down_is_unavailable(permitted: str, fails: Any) -> None:
    """The message has its address."""
    address = f"http://127.0.0.1:{free_port()}"
    with fails(KeyStoreUnavailableError) as caught:
        provider(permitted, VAULT_AGENT_ADDR=address).fetch()
    assert address in str(caught.value)
    assert "VAULT_AGENT_ADDR" in str(caught.value)
