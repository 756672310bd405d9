"""Instances of subclasses become plain values, or are refused."""

from __future__ import annotations

from typing import Any

import pytest
from freezegun import freeze_time

from tests import handed_over
from tests.handed_over import REFUSED, is_same
from voiceassist_db.keys import Scheme
from voiceassist_db.models import EncryptedField, Kind
from voiceassist_db.pgcrypto import codec


@pytest.mark.parametrize("kind", Kind)
def test_the_codec_writes_the_data_of_a_subclass(kind: Kind) -> None:
    """A value of each library reads back equal and of the plain type, also while freezegun replaces the types; others are refused."""
    field = EncryptedField("f", "f_encrypted", "t.f", kind)
    encode, decode = codec.encoder(field), codec.decoder(field, table="t")
    given = handed_over.OF_KIND[kind]
    outcomes = [_outcome(encode, decode, value) for value, _ in given]
    with freeze_time("2024-01-01"):
        frozen = [_outcome(encode, decode, value) for value, _ in given]
    for (value, expected), *found in zip(given, outcomes, frozen, strict=True):
        assert all(each is expected or is_same(expected, each) for each in found), (type(value), found)


def _outcome(encode: codec.Encoder, decode: codec.Decoder, value: Any) -> Any:
    try:
        plaintext = encode(Scheme.BOUND, "row", value)
    except ValueError:
        return REFUSED
    assert type(plaintext) in {str, bytes}
    return decode(Scheme.BOUND, "row", plaintext)
