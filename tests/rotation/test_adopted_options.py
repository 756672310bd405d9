"""Whatever options of pgcrypto wrote a `direct` value, it is read, verified, and carried over byte for byte."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from typing import Any, Final

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from voiceassist_db import Database, Record, Repository, record
from voiceassist_db.errors import DecryptionError, ValueFormatError
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keys import Scheme
from voiceassist_db.models import EncryptedRow, Kind, encrypted_column
from voiceassist_db.models.packets import WEAK, described
from voiceassist_db.pgcrypto.codec import prefix
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import rotate
from voiceassist_db.schema import allow_direct_format
from voiceassist_db.verification import Failure, verify

CIPHERS: Final = ("aes128", "aes192", "aes256", "3des", "bf", "cast5")
STRETCHING: Final = (
    *("s2k-mode=0", "s2k-mode=1, s2k-digest-algo=sha512", "s2k-mode=3, s2k-count=1024, s2k-digest-algo=md5"),
    *("s2k-mode=3", "sess-key=1, s2k-cipher-algo=aes256"),
)
COMPRESSION: Final = ("compress-algo=0", "compress-algo=1, compress-level=9", "compress-algo=2")
TEXTS: Final = ("convert-crlf=0", "convert-crlf=1", "unicode-mode=1", "convert-crlf=1, unicode-mode=1")
VALUES: Final = ("", "plain", "a\rb\nc\r\nd\n", "\n", "Zoë 𝄞 ﷽\r\n", "papers.note:1:looks bound", "é\n" * 12_000)


class TeamBase(DeclarativeBase):
    """Another team's base."""


class PaperRow(EncryptedRow, TeamBase):
    __tablename__ = "papers"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    note_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)
    scan_encrypted: Mapped[bytes | None] = encrypted_column(Kind.BYTES)
    born_encrypted: Mapped[bytes | None] = encrypted_column(Kind.DATE)
    address_encrypted: Mapped[bytes | None] = encrypted_column(Kind.JSON)


@record
class Paper(Record):
    id: int
    note: str | None = None
    scan: bytes | None = None
    born: Any = None
    address: Any = None


class PaperRepository(Repository[Paper]):
    model = PaperRow
    record = Paper


@pytest.fixture
def adopted(engine: Engine, new_provider: Callable[..., VaultKeyProvider]) -> Database:
    """A database of scheme `direct` with an empty table."""
    provider = new_provider()
    with engine.begin() as connection:
        TeamBase.metadata.create_all(connection)
        initialise_keys(provider, connection, scheme=Scheme.DIRECT)
        allow_direct_format(connection)
    return Database(engine, provider)


def write(database: Database, column: str, function: str, values: list[tuple[int, Any]], options: str) -> None:
    """Insert rows as somebody did who called pgcrypto; the function is that of the text, or of the bytes."""
    type_ = "bytea" if function.endswith("bytea") else "text"
    insert = text(
        f"INSERT INTO papers (id, {column}_encrypted, key_version) "
        f"SELECT id, pgcrypto.{function}(value, :key, :options), 1 "
        f"FROM unnest(CAST(:ids AS integer[]), CAST(:values AS {type_}[])) AS given (id, value)"
    )
    key = database.keys.provider.fetch().key.expose().decode()
    ids, given = [list(each) for each in zip(*values, strict=True)]
    with database.engine.begin() as connection:
        connection.execute(insert, {"key": key, "options": options, "ids": ids, "values": given})


def fill(database: Database) -> list[str]:
    """Write every value with every combination of options, by both functions; return the options of each row."""
    used: list[str] = []
    for cipher, *rest in itertools.product(CIPHERS, STRETCHING, COMPRESSION, TEXTS):
        options = ", ".join([f"cipher-algo={cipher}", *rest])
        functions = ["pgp_sym_encrypt", *(["pgp_sym_encrypt_bytea"] if rest[-1] == TEXTS[0] else [])]
        for function in functions:
            first = len(used)
            values: list[Any] = [each.encode() if function.endswith("bytea") else each for each in VALUES]
            write(database, "note", function, list(enumerate(values, first)), options)
            used += [f"{function} {options}"] * len(values)
    return used


def plaintexts(database: Database) -> dict[int, bytes]:
    """Return a digest of each value that is stored under scheme `direct`, as pgcrypto itself gives its bytes."""
    key = database.keys.provider.fetch().key.expose().decode()
    query = text("SELECT id, pgcrypto.pgp_sym_decrypt_bytea(note_encrypted, :key) FROM papers WHERE key_version = 1")
    with database.engine.connect() as connection:
        rows = connection.execute(query, {"key": key})
        return {row[0]: hashlib.sha256(bytes(row[1])).digest() for row in rows}


def rotated_plaintexts(database: Database) -> dict[int, bytes]:
    """Return the same of the values that a rotation has bound, without what they are bound to."""
    key = database.keys.provider.fetch().key.derive("papers.note").expose().decode()
    query = text("SELECT id, pgcrypto.pgp_sym_decrypt_bytea(note_encrypted, :key) FROM papers WHERE key_version = 2")
    found = {}
    with database.engine.connect() as connection:
        for id_, value in connection.execute(query, {"key": key}):
            bound = prefix("papers.note", str(id_)).encode()
            assert bytes(value).startswith(bound)
            found[id_] = hashlib.sha256(bytes(value)[len(bound) :]).digest()
    return found


def notes(database: Database) -> dict[int, str | None]:
    """Read every row through its repository, in pages that are streamed."""
    found: dict[int, str | None] = {}
    last = None
    with database.transaction() as tx:
        while page := tx.repository(PaperRepository).page(after=last, limit=500):
            last = page[-1]
            found |= {each.id: each.note for each in page}
    return found


@pytest.mark.wide
@pytest.mark.usefixtures("old_ciphers")
def test_every_option_is_read_and_carried_over(adopted: Database) -> None:
    """Cipher, stretching, compression, line ends, Unicode, text or bytes: the bytes that are stored are those that are read."""
    used = fill(adopted)
    before = plaintexts(adopted)
    assert len(before) == len(used)
    read = notes(adopted)
    assert {id_: hashlib.sha256((note or "").encode()).digest() for id_, note in read.items()} == before
    (report,) = (each for each in verify(adopted.engine, adopted.keys) if each.table == "papers")
    others = {at for at, options in enumerate(used) if not options.split("cipher-algo=")[1].startswith("aes")}
    hidden = {at for at in others if "3des" in used[at] and "sess-key" in used[at]}  # its packet names AES
    assert {int(each.row_id) for each in report.failures} | others == others
    assert (report.rows, report.values, report.failed) == (len(used), len(used), len(others - hidden))
    done = rotate(adopted.engine, adopted.keys)
    assert (done.rows, done.done, done.quarantined) == (len(used), True, 0)
    assert rotated_plaintexts(adopted) == before
    assert notes(adopted) == read
    (report,) = (each for each in verify(adopted.engine, adopted.keys) if each.table == "papers")
    assert (report.values, report.failed) == (len(used), 0)


def test_values_of_a_session_in_the_midst(adopted: Database) -> None:
    """Bytes of text are read by key, in bulk, and after an update of another field, while they are `direct`."""
    write(adopted, "note", "pgp_sym_encrypt_bytea", [(1, "Zoë\r\n".encode()), (2, b"")], "")
    with adopted.transaction() as tx:
        papers = tx.repository(PaperRepository)
        assert papers.get(1).note == "Zoë\r\n"
        assert {key: each.note for key, each in papers.get_many([1, 2]).items()} == {1: "Zoë\r\n", 2: ""}
        papers.update(1, born=None)
        assert papers.get(1).note == "Zoë\r\n"


def test_bytes_that_are_no_text_are_named_and_left(adopted: Database) -> None:
    """In a field of text, bytes that are not UTF-8 are one failure with its row, and put down by a rotation as 22021."""
    write(adopted, "note", "pgp_sym_encrypt_bytea", [(1, b"\xff\x00"), (2, b"fine"), (3, b"nul\x00")], "")
    with pytest.raises(DecryptionError) as caught, adopted.transaction() as tx:
        tx.repository(PaperRepository).get(1)
    assert caught.value.sqlstate == "22021"
    (report,) = (each for each in verify(adopted.engine, adopted.keys) if each.table == "papers")
    problem = "opens, but is not text in the database's encoding"
    assert report.failures == [Failure("1", "note", problem), Failure("3", "note", problem)]
    stored = "SELECT id, md5(note_encrypted) FROM papers WHERE id IN (1, 3) ORDER BY 1"
    with adopted.engine.connect() as connection:
        before = connection.execute(text(stored)).all()
    done = rotate(adopted.engine, adopted.keys)
    assert (done.quarantined, done.remaining, done.done_but_quarantined) == (2, 2, True)
    with adopted.engine.connect() as connection:
        assert connection.execute(text(stored)).all() == before
        recorded = connection.execute(text("SELECT row_id, sqlstate FROM key_rotation_failures ORDER BY 1")).all()
    assert [tuple(each) for each in recorded] == [("1", "22021"), ("3", "22021")]


def test_values_without_the_format_of_their_field(adopted: Database) -> None:
    """An address as plain text and a day as 01/02/1970 are errors with a way out: other fields are read, and update() repairs."""
    write(adopted, "born", "pgp_sym_encrypt", [(1, "01/02/1970"), (2, "1970-02-01\r\n"), (3, "1970-02-01")], "")
    write(adopted, "address", "pgp_sym_encrypt", [(4, "1 Main Street"), (5, '"1 Main Street"'), (6, '{"a":\r\n1}')], "")
    odd = {1: "born", 2: "born", 4: "address"}
    with adopted.transaction() as tx:
        papers = tx.repository(PaperRepository)
        for row, field in odd.items():
            with pytest.raises(ValueFormatError, match=r"update\(\)") as caught:
                papers.get(row)
            assert (caught.value.row_id, caught.value.field) == (str(row), field)
            assert papers.get(row, fields=["note"]).note is None
        assert papers.get(5).address == "1 Main Street"
        assert papers.get(6).address == {"a": 1}

    def failed() -> set[tuple[str, str | None, str]]:
        (report,) = (each for each in verify(adopted.engine, adopted.keys) if each.table == "papers")
        return {(each.row_id, each.field, each.problem) for each in report.failures}

    kinds = {"born": "date", "address": "json"}
    expected = {(str(row), field, f"is not of type {kinds[field]}") for row, field in odd.items()}
    assert failed() == expected
    assert rotate(adopted.engine, adopted.keys).done
    assert failed() == expected
    with adopted.transaction() as tx:
        papers = tx.repository(PaperRepository)
        papers.update(1, born=None)
        papers.update(2, born=papers.get(3).born)
        papers.update(4, address={"street": "1 Main Street"})
    assert failed() == set()


@pytest.mark.wide
@pytest.mark.parametrize("cipher", [1, 2, 3, 4, 10, 11])
def test_a_cipher_that_this_server_does_not_open_is_named(adopted: Database, cipher: int) -> None:
    """As after an update of the server: not merely damaged, but under that cipher, so that the DBA knows where it opens."""
    write(adopted, "note", "pgp_sym_encrypt", [(1, "Secret"), (2, "fine")], "cipher-algo=aes128")
    rename = text("UPDATE papers SET note_encrypted = set_byte(note_encrypted, 3, :cipher) WHERE id = 1")
    with adopted.engine.begin() as connection:
        connection.execute(rename, {"cipher": cipher})
    (report,) = (each for each in verify(adopted.engine, adopted.keys) if each.table == "papers")
    names = {1: "IDEA", 2: "Triple-DES", 3: "CAST5", 4: "Blowfish", 10: "Twofish", 11: "an unknown cipher"}
    assert names[cipher] in WEAK
    assert report.failures == [Failure("1", "note", f"does not open, and {described(names[cipher])}")]
