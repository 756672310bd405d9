"""What is too long, too deep or in another encoding is refused before anything is sent; what is at the limit reads back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from voiceassist_db import AsyncDatabase, ClinicalNote, Database, Patient, create_async_engine
from voiceassist_db.errors import ConfigurationError
from voiceassist_db.importing.cells import address_json
from voiceassist_db.repositories import bulk
from voiceassist_db.values import MAX_DIGITS, MAX_JSON_DEPTH, MAX_ROW_BYTES


def nested(levels: int) -> dict[str, Any]:
    """Return an object with so many levels, of objects and lists in turn."""
    value: Any = 1
    for level in range(levels - 1):
        value = {"a": value} if level % 2 else [value]
    return {"a": value}


def deep(frames: int, work: Callable[[], Any]) -> Any:
    """Do something from so many calls deep."""
    return deep(frames - 1, work) if frames else work()


@pytest.mark.parametrize("frames", [0, 400, 600])
def test_json_is_as_deep_as_can_be_read(database: Database, frames: int) -> None:
    """50 levels are written and read on a deep stack; one more is refused by the API and by the importer, however deep it is."""
    patient = Patient(patient_id="PT-1", address=nested(MAX_JSON_DEPTH))
    with database.transaction() as tx:
        tx.patients.page()
        deep(frames, lambda: tx.patients.add(patient))
        assert deep(frames, lambda: tx.patients.get("PT-1").address) == patient.address
        for levels in (MAX_JSON_DEPTH + 1, 500, 100_000):
            for write in (
                lambda levels=levels: tx.patients.add(Patient(patient_id="PT-2", address=nested(levels))),
                lambda levels=levels: tx.patients.add_many([Patient(patient_id="PT-2", address=nested(levels))]),
                lambda levels=levels: tx.patients.update("PT-1", address=nested(levels)),
                lambda levels=levels: address_json(['{"a":' * levels + "1" + "}" * levels]),
            ):
                with pytest.raises(ValueError, match="levels"):
                    write()
        assert [patient.address] == [each.address for each in tx.patients.page()]


def test_a_stack_that_is_too_deep_does_not_condemn_the_value(database: Database) -> None:
    """Where the call stack has no room to decode a sound value, the error is the stack's, and not one that says to write it again."""
    from voiceassist_db.keys import Scheme
    from voiceassist_db.models import EncryptedField, Kind
    from voiceassist_db.pgcrypto import codec

    decode = codec.decoder(EncryptedField("f", "f_encrypted", "t.f", Kind.JSON), table="t")
    plaintext = "[" * MAX_JSON_DEPTH + "]" * MAX_JSON_DEPTH
    used = len(_frames())
    with pytest.raises(RecursionError):
        deep(sys.getrecursionlimit() - used - 25, lambda: decode(Scheme.DIRECT, "1", plaintext))


def _frames() -> list[Any]:
    frames, frame = [], sys._getframe()
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back  # type: ignore[assignment]  # None ends it
    return frames


def test_integers_have_as_many_digits_as_python_always_reads(database: Database) -> None:
    """An integer in JSON reads back under the smallest limit that Python can be set to; a longer one is refused."""
    most = 10**MAX_DIGITS - 1
    before = sys.get_int_max_str_digits()
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-1", address={"a": [-most], "b": "9" * 1000}))
        sys.set_int_max_str_digits(MAX_DIGITS)
        try:
            assert tx.patients.get("PT-1").address == {"a": [-most], "b": "9" * 1000}
        finally:
            sys.set_int_max_str_digits(before)
        with pytest.raises(ValueError, match="digits"):
            tx.patients.update("PT-1", address={"a": most + 1})
    with pytest.raises(ValueError, match="digits"):
        address_json([f'{{"a":{most + 1}}}'])


def test_values_beyond_their_share_of_a_row_are_refused(database: Database) -> None:
    """A note may have half of a row's bytes, counted in UTF-8; a longer one is refused, with nothing written."""
    most = MAX_ROW_BYTES // 2
    with database.transaction() as tx:
        tx.patients.add(patient := Patient(patient_id="PT-1"))
        for note in ("x" * (most + 1), "\u20ac" * (most // 3 + 1)):
            given = ClinicalNote(patient=patient.id, note=note)
            for write in (tx.clinical_notes.add, lambda each: tx.clinical_notes.add_many([each])):
                with pytest.raises(ValueError, match=f"note is longer than {most:,} bytes"):
                    write(given)
        with pytest.raises(ValueError, match="metadata is longer"):
            tx.clinical_notes.add(ClinicalNote(patient=patient.id, note="x", metadata={"a": "x" * most}))
        assert tx.clinical_notes.page() == []


@pytest.mark.long
def test_values_at_the_limit_read_back(database: Database) -> None:
    """The longest values of a row are written, changed and read."""
    most = MAX_ROW_BYTES // 2
    with database.transaction() as tx:
        tx.patients.add(patient := Patient(patient_id="PT-1"))
        one = ClinicalNote(patient=patient.id, note="x" * most, metadata={"a": "y" * (most - 8)})
        tx.clinical_notes.add(one)
        assert one == tx.clinical_notes.get(patient.id, one.id)
        tx.clinical_notes.update(patient.id, one.id, note="\u20ac" * (most // 3))
        assert tx.clinical_notes.get(patient.id, one.id, fields=["note"]).note == "\u20ac" * (most // 3)


def test_batches_of_long_json_are_divided(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records whose JSON is too long for one statement are written by several; all of them are there."""
    monkeypatch.setattr(bulk, "MAX_STATEMENT_BYTES", 5_000)
    given = [Patient(patient_id=f"PT-{n}", address={"a": ["x" * 1_000]}) for n in range(37)]
    with database.transaction() as tx:
        assert tx.patients.add_many(given) == 37
        assert given == tx.patients.page()


@pytest.mark.parametrize("setting", ["SET LOCAL client_encoding = 'LATIN1'", "SET client_encoding = 'SQL_ASCII'"])
def test_another_client_encoding_is_refused(database: Database, setting: str) -> None:
    """Nothing is written or read while text would be sent in another encoding; after it is set back, all works."""
    patient = Patient(patient_id="PT-1", name="Zoë €")
    with database.transaction() as tx:
        tx.patients.add(patient)
        tx.session.execute(text(setting))
        for act in (
            lambda: tx.patients.add(Patient(patient_id="PT-2", name="é")),
            lambda: tx.patients.add_many([Patient(patient_id="PT-2", name="é")]),
            lambda: tx.patients.update("PT-1", name="é"),
            lambda: tx.patients.get("PT-1"),
            lambda: tx.patients.get_many(["PT-1"]),
            lambda: tx.patients.find_by_name("é"),
            tx.patients.page,
            lambda: tx.patients.page(limit=1000),
            lambda: tx.patients.delete("PT-1"),
        ):
            with pytest.raises(ConfigurationError, match="client_encoding"):
                act()
        tx.session.execute(text("SET client_encoding = 'UTF8'"))
        assert [patient] == tx.patients.page()


async def test_another_client_encoding_is_refused_on_an_event_loop(database: Database) -> None:
    """The same holds for asyncio."""
    engine = create_async_engine(database.engine.url)
    async with AsyncDatabase(engine, database.keys.provider) as other, other.transaction() as tx:
        await tx.session.execute(text("SET LOCAL client_encoding = 'LATIN1'"))
        for work in (
            lambda each: each.patients.add(Patient(patient_id="PT-2", name="é")),
            lambda each: each.patients.add_many([Patient(patient_id="PT-2", name="é")]),
            lambda each: each.patients.page(),
        ):
            with pytest.raises(ConfigurationError, match="client_encoding"):
                await tx.run(work)


READS: list[Callable[[Any], Any]] = [
    lambda tx: tx.patients.get("PT-1"),
    lambda tx: tx.patients.get("PT-1", fields=[]),
    lambda tx: tx.patients.get_many(["PT-1"]),
    lambda tx: tx.patients.find_by_name("Zoë"),
    lambda tx: tx.patients.page(),
    lambda tx: tx.patients.page(limit=1000),
]


@pytest.mark.parametrize("style", ["German", "SQL, DMY", "Postgres, MDY"])
def test_another_date_style_is_an_error_of_a_read(database: Database, style: str) -> None:
    """It names the setting and no value; writes are exact, and the same transaction goes on once it is set back."""
    patient = Patient(patient_id="PT-1", name="Zoë", date_of_birth=date(1980, 1, 2))
    with database.transaction() as tx:
        tx.patients.page()
        tx.session.execute(text(f"SET LOCAL DateStyle = '{style}'"))
        tx.patients.add(patient)
        tx.patients.update("PT-1", date_of_birth=date(1980, 2, 1))
        for read in READS:
            with pytest.raises(
                ConfigurationError, match=f"patient_data: DateStyle of this session is {style}"
            ) as caught:
                read(tx)
            assert (caught.value.__cause__, caught.value.__context__) == (None, None)
        tx.session.execute(text("SET LOCAL DateStyle = ISO"))
        assert [replace(patient, date_of_birth=date(1980, 2, 1))] == tx.patients.page()


async def test_another_date_style_is_an_error_on_an_event_loop(database: Database) -> None:
    """The same holds for asyncio."""
    engine = create_async_engine(database.engine.url)
    async with AsyncDatabase(engine, database.keys.provider) as other, other.transaction() as tx:
        await tx.run(lambda each: each.patients.add(Patient(patient_id="PT-1", name="Zoë")))
        await tx.session.execute(text("SET LOCAL DateStyle = German"))
        for read in READS:
            with pytest.raises(ConfigurationError, match="DateStyle of this session is German"):
                await tx.run(read)


def test_a_key_that_no_index_can_hold_is_refused(database: Database) -> None:
    """The limit of a patient's id is its form's; a look-up by any text finds nothing, and is no error of the server."""
    with database.transaction() as tx:
        with pytest.raises(ValueError, match="patient_id"):
            tx.patients.add(Patient(patient_id="x" * 3_000))
        assert tx.patients.get_many(["x" * 3_000, str(uuid4())]) == {}
