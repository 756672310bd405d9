"""Development keys from ``ENCRYPTION_KEY``."""

from __future__ import annotations

import logging

import pytest

from voiceassist_db.errors import KeyStoreError, MalformedKeyError
from voiceassist_db.keys import Key, KeySet
from voiceassist_db.providers.environment import EnvironmentKeyProvider


@pytest.fixture
def value(secrets: set[str]) -> str:
    """A key as the variable holds it."""
    made = Key.generate().expose().decode()
    secrets.add(made)
    return made


def test_the_key_is_version_1_with_an_index_key_that_stays_the_same(value: str) -> None:
    """Two processes with one variable must find each other's rows by blind index."""
    first, second = EnvironmentKeyProvider(value).fetch(), EnvironmentKeyProvider(value).fetch()
    assert (1, Key.from_base64(value, name="")) == (first.version, first.key)
    assert first.index_key is not None
    assert first == second
    assert first.index_key != first.key


def test_a_trailing_newline_is_not_part_of_the_key(value: str) -> None:
    """A variable filled from a file may end in one, and is the same key."""
    assert EnvironmentKeyProvider(value).fetch() == EnvironmentKeyProvider(f"{value}\n").fetch()


def test_it_warns_whenever_it_is_made(value: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever runs production on it reads so in the log, and does not read the key."""
    EnvironmentKeyProvider(value)
    assert [logging.WARNING] == [record.levelno for record in caplog.records]
    assert "for development only" in caplog.text


def test_it_cannot_be_written(value: str, keys: KeySet) -> None:
    """Keys that were created or rotated would be lost with the process: refuse."""
    provider = EnvironmentKeyProvider(value)
    with pytest.raises(KeyStoreError, match="keep them in Vault"):
        provider.create(keys)
    with pytest.raises(KeyStoreError, match="keep them in Vault"):
        provider.replace(keys, keys)


def test_a_malformed_value_is_refused_without_showing_it(secrets: set[str]) -> None:
    """A passphrase instead of a key is an error that names the variable alone."""
    secrets.add("hunter2-hunter2-hunter2")
    with pytest.raises(MalformedKeyError, match="ENCRYPTION_KEY is not a key") as caught:
        EnvironmentKeyProvider("hunter2-hunter2-hunter2")
    assert "hunter2" not in str(caught.value)


def test_its_repr_shows_nothing(value: str) -> None:
    """A log line with the object does not hold the key."""
    assert "EnvironmentKeyProvider(•••)" == repr(EnvironmentKeyProvider(value))
