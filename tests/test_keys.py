"""A key shows itself nowhere, and a key set refuses what could lose data."""

from __future__ import annotations

import base64
import copy
import json
import logging
import pickle
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceassist_db.errors import MalformedKeyError
from voiceassist_db.keyring import KeyringSource
from voiceassist_db.keys import KEY_BYTES, Key, KeySet

RAW = bytes(range(KEY_BYTES))
TEXT = base64.b64encode(RAW).decode()


def test_a_key_is_read_as_openssl_prints_it() -> None:
    """A trailing newline, as files and shells leave it, does not become part of the key."""
    assert Key.from_base64(TEXT, name="key") == Key(RAW) == Key.from_base64(f" {TEXT}\r\n", name="key")
    assert Key(RAW).expose() == TEXT.encode()


@pytest.mark.parametrize(
    "text",
    ["", "secret", TEXT[:-4], TEXT + TEXT, TEXT.replace("=", ""), TEXT[:20] + "*" + TEXT[21:], "é" * 44, RAW.hex()],
)
def test_anything_else_is_refused_without_being_shown(text: str) -> None:
    """A password, a short or long key, hex and broken base64 are refused, and the error does not repeat them."""
    with pytest.raises(MalformedKeyError, match="index_key is not a key") as caught:
        Key.from_base64(text, name="index_key")
    assert not text or text not in str(caught.value)
    assert caught.value.__cause__ is None


def test_derivation_is_hkdf_of_rfc_5869() -> None:
    """The derived key is what RFC 5869's two steps give, written out here with plain HMAC."""
    import hashlib
    import hmac

    extracted = hmac.digest(b"\0" * 32, RAW, hashlib.sha256)
    expanded = hmac.digest(extracted, b"patient_data.ssn" + b"\x01", hashlib.sha256)
    assert Key(RAW).derive("patient_data.ssn") == Key(expanded)


def test_derived_keys_and_check_values_differ_by_context_and_key() -> None:
    """No two columns, and no two keys, share a derived key or a check value."""
    key, other = Key(RAW), Key(RAW[::-1])
    derived = [each.derive(info).expose() for each in (key, other) for info in ("a.b", "a.c")]
    checks = [each.check_value(statement) for each in (key, other) for statement in ("1", "2")]
    assert len({*derived, *checks, key.expose(), other.expose()}) == len(derived) + len(checks) + 2


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        format,
        "{:>60}".format,
        "{!r}".format,
        lambda key: f"{key}",
        lambda key: "%s %r" % (key, key),  # noqa: UP031  # this very form is under test
        lambda key: repr([key, {"key": key}]),
        lambda key: json.dumps(key, default=str),
        lambda key: repr(KeySet(version=1, key=key, index_key=key)),
    ],
)
def test_no_way_of_printing_shows_a_key(show: Any) -> None:
    """Neither raw, base64 nor hex form of a key is in any of its printed forms."""
    shown = show(Key(RAW))
    assert TEXT not in shown
    assert RAW.hex() not in shown
    assert repr(RAW) not in shown
    assert "•••" in shown or "\\u2022" in shown


@pytest.mark.parametrize("leak", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps, "".join, bytes, hash, vars])
def test_a_key_cannot_be_taken_out_by_common_means(leak: Any) -> None:
    """Pickling, copying, joining, hashing and serialising a key fail."""
    with pytest.raises(TypeError):
        leak([Key(RAW)] if leak == "".join else Key(RAW))


def test_neither_logging_nor_a_traceback_with_locals_shows_a_key(caplog: pytest.LogCaptureFixture) -> None:
    """A log record and a traceback that prints local variables hold the mask."""
    key = Key(RAW)
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("test").error("key %s %r", key, key)
    try:
        raise RuntimeError
    except RuntimeError as error:
        shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "Key(•••)" in caplog.text
    assert "Key(•••)" in shown
    assert TEXT not in caplog.text + shown


@given(st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES), st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES))
def test_keys_are_equal_when_their_bytes_are(one: bytes, other: bytes) -> None:
    """Equality is that of the bytes, whichever way a key was made."""
    assert (Key(one) == Key(other)) == (one == other)
    assert Key.from_base64(base64.b64encode(one).decode(), name="key") == Key(one)
    assert Key(one) != one


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"version": 0}, "1 or more"),
        ({"version": 2, "previous_version": 1}, "belong together"),
        ({"version": 2, "previous_key": Key(RAW[::-1])}, "belong together"),
        ({"version": 2, "previous_version": 2, "previous_key": Key(RAW[::-1])}, "less than key_version"),
        ({"version": 2, "previous_version": 1, "previous_key": Key(RAW)}, "same key"),
    ],
)
def test_a_contradictory_key_set_is_refused(wrong: dict[str, Any], message: str) -> None:
    """Versions that are out of order, or a previous key without its number, never become a keyring."""
    with pytest.raises(MalformedKeyError, match=message):
        KeySet(key=Key(RAW), **wrong)


def test_what_is_no_key_store_is_refused_at_once() -> None:
    """Or the first read would fail, far from where it was given."""
    with pytest.raises(ValueError, match="NoneType is no key store: give what"):
        KeyringSource(None)  # type: ignore[arg-type]  # as an application without a type checker does
