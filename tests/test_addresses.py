"""Which addresses lead to this machine alone, and which texts are addresses at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceassist_db.addresses import ServerAddress, is_this_machine
from voiceassist_db.errors import ConfigurationError

HERE = ["localhost", "127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "0:0:0:0:0:0:0:1"]
ELSEWHERE = [
    "localhost.evil",
    "localhost.",
    "evil.localhost",
    "127.0.0.1.evil",
    "127.0.0.1.",
    "127.1",
    "2130706433",
    "0x7f.1",
    "0177.0.0.1",
    "0.0.0.0",  # noqa: S104  # nobody listens here
    "::",
    "::ffff:10.0.0.1",
    "::7f00:1",
    "10.0.0.1",
    "192.168.0.1",
    "169.254.169.254",
    "fe80::1",
    "vault",
    "",
]


@pytest.mark.parametrize("host", HERE)
def test_loopback_is_this_machine(host: str) -> None:
    """In each of its forms that means the same to every resolver."""
    assert is_this_machine(host)


@pytest.mark.parametrize("host", ELSEWHERE)
def test_all_else_may_be_another_machine(host: str) -> None:
    """Names that a resolver decides about, numbers that only some resolvers read, and addresses of networks."""
    assert not is_this_machine(host)


@pytest.mark.parametrize("host", [each for each in ELSEWHERE if each])
def test_http_to_them_is_in_clear(host: str) -> None:
    """A user name that looks like this machine changes nothing, and https makes it safe."""
    name = f"[{host}]" if ":" in host else host
    assert ServerAddress.parse(f"http://{name}:8200").is_in_clear
    assert ServerAddress.parse(f"http://localhost:1@{name}:8200/vault").is_in_clear
    assert ServerAddress.parse(f"http://127.0.0.1@{name}").is_in_clear
    assert not ServerAddress.parse(f"https://{name}:8200").is_in_clear
    assert not ServerAddress.parse(f"HTTPS://{name}:8200").is_in_clear


@pytest.mark.parametrize("host", HERE)
def test_http_to_this_machine_is_not(host: str) -> None:
    """Nothing leaves the machine."""
    name = f"[{host}]" if ":" in host else host
    assert not ServerAddress.parse(f"http://{name}:8200").is_in_clear
    assert not ServerAddress.parse(f"HTTP://user:pass@{name.upper()}:8200/").is_in_clear


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "vault",
        "vault:8200",
        "//vault:8200",
        "http:/vault",
        "http://",
        "https://:8200",
        "https://user@",
        "https://vault:port",
        "https://vault:99999",
        "https://vault:0",
        "https://[::1",
        "https://[vault]",
        "unix:/run/vault.sock",
        "unix:///run/vault.sock",
        "http+unix://%2Frun%2Fvault.sock",
        "ftp://vault",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "http://127.0.0.1\\@evil",
        "http://evil\\@127.0.0.1",
        "http://127.0.0.1#@evil",
        "http://evil#@127.0.0.1",
        "http://127.0.0.1?@evil",
        "http://evil?@127.0.0.1",
        "https://vault?token=x",
        "http://127.0.0.1\n.evil",
        "http://127.0.0.1\t.evil",
        "ht\ntp://127.0.0.1",
        " http://127.0.0.1",
        "http://127.0.0.1 ",
        "http://127.0.0.1\x00.evil",
        "http://１２７.0.0.1",
        "http://ⅼocalhost",
        "http://loc\u00adalhost",
        "http://{",
        "http://%6cocalhost",
        "http://[::1%lo]",
        "http://a,b",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """Texts of another form, and those that parsers read differently."""
    with pytest.raises(ConfigurationError, match="VAULT_ADDR"):
        ServerAddress.parse(text)


def test_credentials_are_not_shown() -> None:
    """Neither in the address that messages show, nor in the object's own form."""
    address = ServerAddress.parse("https://user:hunter2@vault.example:8200/base/")
    assert "https://vault.example:8200/base" == address.shown
    assert "https://user:hunter2@vault.example:8200/base" == address.url.value
    assert "hunter2" not in repr(address)


@given(st.text(max_size=30))
def test_an_address_means_the_same_to_requests(middle: str) -> None:
    """Whatever stands between scheme and port: the host that is judged is the host that is connected to."""
    import requests
    from urllib3.util import parse_url

    try:
        address = ServerAddress.parse(f"http://{middle}:8200/v1")
    except ConfigurationError:
        return
    try:
        prepared = requests.Request("GET", address.url.value).prepare()
    except requests.exceptions.RequestException:
        return  # nothing is sent
    assert prepared.url is not None
    assert (parse_url(prepared.url).host or "").strip("[]").lower() == address.host
