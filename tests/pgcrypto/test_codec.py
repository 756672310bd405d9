"""Values survive the codec exactly, and what cannot be stored is refused without being shown."""

from __future__ import annotations

import json
import traceback
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceassist_db.errors import BindingError, ValueFormatError, VoiceAssistDBError
from voiceassist_db.keys import Scheme
from voiceassist_db.models import EncryptedField, Kind
from voiceassist_db.pgcrypto import codec

ROW = "018f3f5e-7b1c-7cc2-9d5b-0a1b2c3d4e5f"

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)
VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.TEXT: TEXT,
    Kind.BYTES: st.binary(),
    Kind.DATE: st.dates(),
    Kind.DATETIME: st.datetimes(
        min_value=datetime(1, 1, 2),
        max_value=datetime(9999, 12, 30),
        timezones=st.just(UTC) | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23))),
    ),
    Kind.INTEGER: st.integers(),
    Kind.DECIMAL: st.decimals(allow_nan=False, allow_infinity=False),
    Kind.JSON: JSON,
}
VALUE_OF_ANY_KIND = st.one_of(*(st.tuples(st.just(kind), values) for kind, values in VALUES.items()))


def field(kind: Kind) -> EncryptedField:
    """Return a field of a kind."""
    return EncryptedField("ssn", "ssn_encrypted", "patient_data.ssn", kind)


@pytest.mark.parametrize("scheme", Scheme)
@given(given_value=VALUE_OF_ANY_KIND)
def test_every_value_survives(scheme: Scheme, given_value: tuple[Kind, Any]) -> None:
    """What is encoded decodes to an equal value of the same type, under both schemes."""
    kind, value = given_value
    plaintext = codec.encoder(field(kind))(scheme, ROW, value)
    decoded = codec.decoder(field(kind), table="patient_data")(scheme, ROW, plaintext)
    assert value == decoded
    if value is not None and kind is not Kind.JSON:
        assert type(value) is type(decoded)


@given(st.dictionaries(st.text(), st.text() | st.integers()))
def test_an_object_of_texts_is_written_as_by_the_standard_library(value: dict[str, Any]) -> None:
    """The short way for what most objects are changes no byte."""
    expected = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert codec.encoder(field(Kind.JSON))(Scheme.DIRECT, ROW, value) == expected


def test_the_layout_is_as_documented() -> None:
    """The plaintext of each scheme is fixed for ever: stored data depends on it."""
    value = datetime(2024, 2, 29, 23, 59, 59, 5, tzinfo=timezone(timedelta(hours=-5)))
    bound = f"patient_data.ssn:{ROW}:"
    assert bound + "123-45-6789" == codec.encoder(field(Kind.TEXT))(Scheme.BOUND, ROW, "123-45-6789")
    assert codec.encoder(field(Kind.TEXT))(Scheme.DIRECT, ROW, "123-45-6789") == "123-45-6789"
    assert bound.encode() + b"\x00\xff" == codec.encoder(field(Kind.BYTES))(Scheme.BOUND, ROW, b"\x00\xff")
    assert codec.encoder(field(Kind.DATE))(Scheme.DIRECT, ROW, date(1980, 1, 2)) == "1980-01-02"
    assert codec.encoder(field(Kind.DATETIME))(Scheme.DIRECT, ROW, value) == "2024-03-01T04:59:59.000005+00:00"
    assert codec.encoder(field(Kind.INTEGER))(Scheme.DIRECT, ROW, -7) == "-7"
    assert codec.encoder(field(Kind.DECIMAL))(Scheme.DIRECT, ROW, Decimal("1.50")) == "1.50"
    assert codec.encoder(field(Kind.JSON))(Scheme.DIRECT, ROW, {"é": [1, None]}) == '{"é":[1,null]}'


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("scheme", Scheme)
def test_none_stays_none(kind: Kind, scheme: Scheme) -> None:
    """NULL is not encrypted, and is not confused with an empty value."""
    assert codec.encoder(field(kind))(scheme, ROW, None) is None
    assert codec.decoder(field(kind), table="t")(scheme, ROW, None) is None


@pytest.mark.parametrize(
    ("kind", "value", "problem"),
    [
        (Kind.TEXT, 12, "must be a str"),
        (Kind.TEXT, "SECRET\x00", "NUL"),
        (Kind.TEXT, "SECRET\ud800", "surrogate"),
        (Kind.BYTES, "SECRET", "must be bytes"),
        (Kind.DATE, "1980-01-02", "must be a datetime.date"),
        (Kind.DATE, datetime(1980, 1, 2, tzinfo=UTC), "must be a datetime.date"),
        (Kind.DATETIME, datetime(1980, 1, 2), "time zone"),  # naive on purpose
        (Kind.DATETIME, datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=3))), "years 1 to 9999"),
        (Kind.INTEGER, True, "must be an int"),
        (Kind.INTEGER, 1.0, "must be an int"),
        pytest.param(Kind.INTEGER, 10**5000, "not a valid integer", id="integer-too-long"),
        (Kind.DECIMAL, Decimal("NaN"), "finite"),
        (Kind.DECIMAL, 1.5, "finite decimal"),
        (Kind.JSON, {"SECRET": float("nan")}, "not a valid json"),
        (Kind.JSON, {"SECRET": {1}}, "not a valid json"),
        (Kind.JSON, {"SECRET": "\ud800"}, "surrogate"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_not_shown(kind: Kind, value: Any, problem: str) -> None:
    """The error names the field and the rule; neither it nor anything chained to it holds the value."""
    with pytest.raises(ValueError, match=problem) as caught:
        codec.encoder(field(kind))(Scheme.BOUND, ROW, value)
    assert str(caught.value).startswith("ssn ")
    assert caught.value.__context__ is None
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


@given(st.tuples(TEXT, TEXT), st.tuples(TEXT, TEXT))
def test_different_keys_of_text_never_share_a_row_id(one: tuple[str, str], other: tuple[str, str]) -> None:
    """No choice of primary keys, however full of separators, makes one row's prefix the beginning of another's."""
    prefixes = [codec.prefix("t.f", codec.row_id(key)) for key in (one, other)]
    assert (one == other) == (prefixes[0] == prefixes[1])
    if one != other:
        assert not prefixes[0].startswith(prefixes[1])


def test_a_row_id_is_the_keys_text() -> None:
    """UUIDs, numbers and dates stand as PostgreSQL prints them; separators in text are escaped."""
    assert codec.row_id([UUID(ROW), 42, date(2024, 1, 2)]) == f"{ROW}/42/2024-01-02"
    assert codec.row_id(["a/b:c%2F"]) == "a%2Fb%3Ac%252F"


@pytest.mark.parametrize("kind", [Kind.TEXT, Kind.BYTES])
@pytest.mark.parametrize(
    ("context", "row"),
    [("patient_data.mrn", ROW), ("patient_data.ssn", ROW[:-1] + "0"), ("patient_data.ss", f"n:{ROW}")],
)
def test_a_value_of_another_row_or_column_is_refused(kind: Kind, context: str, row: str) -> None:
    """A plaintext that was bound elsewhere raises, and the error does not hold it."""
    moved = codec.prefix(context, row) + "SECRET"
    with pytest.raises(BindingError, match=rf"patient_data\.ssn of row {ROW}") as caught:
        codec.decoder(field(kind), table="patient_data")(
            Scheme.BOUND, ROW, moved.encode() if kind is Kind.BYTES else moved
        )
    assert (caught.value.table, caught.value.field, caught.value.row_id) == ("patient_data", "ssn", ROW)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "plaintext"),
    [
        (Kind.DATE, "SECRET"),
        (Kind.DATETIME, "2024-01-01T00:00:00"),
        (Kind.INTEGER, "SECRET"),
        (Kind.DECIMAL, "SECRET"),
        (Kind.DECIMAL, "Infinity"),
        (Kind.JSON, '{"SECRET'),
        pytest.param(Kind.JSON, "[" * 100_000, id="json-too-deep"),
    ],
)
def test_a_value_of_another_type_is_an_error_of_ours(kind: Kind, plaintext: str) -> None:
    """A plaintext that is not of its type raises our error, from which no library's message with the value hangs."""
    with pytest.raises(ValueFormatError, match=f"not of type {kind.value}") as caught:
        codec.decoder(field(kind), table="patient_data")(Scheme.DIRECT, ROW, plaintext)
    assert isinstance(caught.value, VoiceAssistDBError)
    assert caught.value.__context__ is None
    assert "SECRET" not in str(caught.value)
