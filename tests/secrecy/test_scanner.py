"""The scanner finds a secret in each of its spellings, wherever it stands, and nothing where there is none."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from urllib.parse import quote

import pytest

from tests.secrecy.scanner import Scanner

SECRETS: dict[str, str | bytes] = {
    "name": "Ælfþrÿð Žižková",
    "SSN": "917-54-3081",
    "digits": "917543081",
    "key": bytes(range(200, 232)),
}
WAYS: dict[str, Callable[[bytes], bytes]] = {
    "as it is": bytes,
    "hex": lambda raw: raw.hex().encode(),
    "upper-case hex": lambda raw: raw.hex().upper().encode(),
    "hex dump": lambda raw: raw.hex(" ").upper().encode(),
    "base64": base64.b64encode,
    "base64 after one byte": lambda raw: base64.b64encode(b"x" + raw),
    "base64 between others": lambda raw: base64.urlsafe_b64encode(b"xy" + raw + b"z"),
    "bytea's escape": lambda raw: b"".join(rb"\%03o" % each if each > 126 else bytes([each]) for each in raw),
    "repr of bytes": lambda raw: repr(raw).encode(),
    "a constant of a plan": lambda raw: " ".join(str(each - (each > 127) * 256) for each in raw).encode(),
    "a list": lambda raw: str(list(raw)).encode(),
    "URL": lambda raw: quote(raw).encode(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("secret", SECRETS)
def test_each_spelling_is_found_wherever_it_stands(secret: str, way: str) -> None:
    """At every distance from the beginning, for the data is looked at in words."""
    value = SECRETS[secret]
    spelt = WAYS[way](value.encode() if isinstance(value, str) else value)
    scanner = Scanner(SECRETS)
    for before in range(9):
        for after in (b"", b" after"):
            hits = scanner.hits(b"-" * before + spelt + after)
            assert {each.partition(",")[0] for each in hits} == {secret}
    assert scanner.hits(b"- " + spelt[:-6] + b"  " + spelt[6:]) == {}


def test_text_is_found_as_programs_print_it() -> None:
    """In JSON and Python's ascii() by escapes, and in UTF-16."""
    scanner, name = Scanner(SECRETS), str(SECRETS["name"])
    for spelt in (json.dumps({"name": name}).encode(), ascii(name).encode(), name.encode("utf-16")):
        assert len(scanner.hits(spelt)) == 1


def test_nothing_is_found_where_there_is_none() -> None:
    """Not in random bytes, their hex, or a longer number that holds the digits of another secret."""
    noise = os.urandom(1 << 20)
    assert Scanner(SECRETS).hits(noise + noise.hex().encode() + b" 9175430811 a917543081") == {}
