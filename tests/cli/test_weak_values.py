"""What a stored message says of its own cipher is found without a key: by `check`, `verify` and `init-keys --scheme direct`."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from sqlalchemy import Connection, Engine, text

from tests.cli.conftest import Run
from tests.rotation.test_adopted_options import COMPRESSION, STRETCHING
from voiceassist_db import weak_values as module
from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.checking import Line, Verdict, check
from voiceassist_db.keys import KeySet
from voiceassist_db.models.declaration import any_format
from voiceassist_db.models.packets import CVE, NO_INTEGRITY, NO_MESSAGE, READABLE, WEAK, described, weakness
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import rotate
from voiceassist_db.weak_values import WeakValues, may_read, weak_values

pytestmark = pytest.mark.wide

GPG = {
    None: "8c0d04090302af35a39f7b1053adffd23b016fe32b4e10af328edda0b0b343a77881fc7273d462cb2a8001e301d2176645f8c6cd3f6d6159ddb9277b3d32"
    "afaa243b58ff1b752ad718657738",
    "Twofish": "8c0d040a030295da1560c40e6242ffd23b01a8e33ab503e3c069f26585c84db387c1303422c688929ba1acf1cab05dba823f7c89955bac73615ab9c5"
    "8b651c62e362c34dbac488747d51ade3",
    "Blowfish": "8c0d04040302f60748e456920f6dffd23301fabce9a37271f95c19e1d777ca923ee0bafb08570e6d02bc2c4e9d5e593689c4e2d0d92d6f6ff4aa17ff37"
    "a0c31d420b82ae",
    "CAST5": "8c0d04030302e045e79fc05b37d0ffd233017153d2201c649d4f2a84fe91686a5bbb7a80a142a93fa51f62fab7159c1ef2f5e2dc490a707707391d3934"
    "b8f75a032ab4ad",
    "Triple-DES": "8c0d040203029497ac7c5eca847cffd233019927058f6ce5232f8eeb690f3f558f95989f9d63b1eaee601782068287d6497aff35ab4b098fc09492"
    "53bb1fa5cd595e0b8d",
    "IDEA": "8c0d04010302f8ccaea3c93d1b54ffd23301bfd0cb2ae97c7b73af51665f9559b33954238552e711551473ef412c9c786565a035dfd7690f68734ac435ee"
    "e41999d170e1",
}
"""The text `Secret` under the passphrase `key`, by `gpg --symmetric --cipher-algo …` 2.2.40, with its older packet header."""

ROW = (
    "INSERT INTO patient_data (id, patient_id, name_encrypted, key_version) VALUES (gen_random_uuid(), :id, {value}, 1)"
)
ENCRYPTED = "pgcrypto.pgp_sym_encrypt(:text, :key, :options)"


@pytest.fixture
def unchecked(engine: Engine) -> Engine:
    """An engine on a database whose columns take anything, as a table that was made by the guide does."""
    with engine.begin() as connection:
        for field in ("ssn", "mrn", "name", "date_of_birth", "address"):
            connection.execute(text(f"ALTER TABLE patient_data DROP CONSTRAINT patient_data_{field}_encrypted_format"))
    return engine


def weakness_of(connection: Connection, expression: str, **parameters: object) -> str | None:
    """Return what is wrong with one value."""
    query = text(f"SELECT {weakness('c').replace(':', chr(92) + ':')} FROM (SELECT {expression}) AS given (c)")
    found: str | None = connection.execute(query, parameters).scalar_one()
    return found


def readable(connection: Connection, cipher: str) -> bool:
    """Say whether this server stores the data of a cipher as it is."""
    probe = text("SELECT position('Secret'::bytea IN pgcrypto.pgp_sym_encrypt('Secret', 'key', :options))")
    return bool(connection.execute(probe, {"options": f"cipher-algo={cipher}"}).scalar_one())


@pytest.mark.parametrize("cipher", ["aes128", "aes192", "aes256", "3des", "bf", "cast5"])
@pytest.mark.usefixtures("old_ciphers")
def test_each_cipher_is_known_by_its_packet(engine: Engine, cipher: str) -> None:
    """With all other options of pgcrypto, for data of no, one and many packets."""
    names = {"3des": "Triple-DES", "bf": "Blowfish", "cast5": "CAST5"}
    with engine.connect() as connection:
        expected = READABLE if readable(connection, cipher) else names.get(cipher)
        for stretching, compression, length in itertools.product(STRETCHING, COMPRESSION, (0, 5, 180, 8_000, 70_000)):
            options = f"cipher-algo={cipher}, {stretching}, {compression}"
            found = weakness_of(connection, ENCRYPTED, text="é" * length, key="key", options=options)
            # Data under Triple-DES in a packet that names AES, which holds the key of the data, is not told apart.
            assert found == (None if "sess-key" in stretching and expected != READABLE else expected), options
            bare = weakness_of(connection, ENCRYPTED, text="é", key="key", options=f"{options}, disable-mdc=1")
            assert bare == NO_INTEGRITY


@pytest.mark.usefixtures("old_ciphers")
def test_the_key_of_the_data_under_another_cipher_is_seen(engine: Engine) -> None:
    """Whoever reads the data's key reads the data."""
    with engine.connect() as connection:
        options = "cipher-algo=aes256, sess-key=1, s2k-cipher-algo=bf"
        assert weakness_of(connection, ENCRYPTED, text="x", key="key", options=options) == "Blowfish"


@pytest.mark.parametrize("name", list(GPG))
def test_messages_of_gpg_are_known(engine: Engine, name: str | None) -> None:
    """They have the older packet header; those that pgcrypto opens can be adopted."""
    message = bytes.fromhex(GPG[name])
    with engine.connect() as connection:
        assert weakness_of(connection, "CAST(:value AS bytea)", value=message) == name
        accepted = text(f"SELECT {any_format('c')} FROM (SELECT CAST(:value AS bytea)) AS given (c)")
        assert connection.execute(accepted, {"value": message}).scalar_one()
        if name in {None, "Triple-DES"}:
            opened = text("SELECT pgcrypto.pgp_sym_decrypt_bytea(:value, 'key')")
            assert bytes(connection.execute(opened, {"value": message}).scalar_one()) == b"Secret"


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"\xc3", b"\xc3\x0d", b"\xc3\x0d\x04", b"\xc3\x0d\x04\x09", b"plain text", bytes(300), b"\xff" * 300),
        *(b"\xc3\xff\x00\x00\x00\x0c\x04\x09" + bytes(200), b"\x8f\x04\x09" + bytes(200), b"\xc3\xbf\x04\x09\x00"),
    ],
)
def test_whatever_else_is_stored_is_no_message(engine: Engine, value: bytes) -> None:
    """Short, long, plain, with lengths that lead nowhere: never an error of the server."""
    with engine.connect() as connection:
        assert weakness_of(connection, "CAST(:value AS bytea)", value=value) == NO_MESSAGE
        assert weakness_of(connection, "CAST(NULL AS bytea)") is None


def test_no_byte_of_a_header_is_an_error(engine: Engine) -> None:
    """Every value of every byte of the header of a real message gets an answer."""
    query = text(
        f"SELECT {weakness('c').replace(':', chr(92) + ':')} FROM (SELECT set_byte(CAST(:value AS bytea), at, to_) "
        "FROM generate_series(0, 30) at, generate_series(0, 255) to_) AS given (c)"
    )
    with engine.connect() as connection:
        found = set(connection.execute(query, {"value": bytes.fromhex(GPG[None])}).scalars())
    assert {None, NO_MESSAGE, NO_INTEGRITY, "Blowfish"} <= found <= {None, NO_MESSAGE, NO_INTEGRITY, *WEAK}


# --- init-keys, check ------------------------------------------------------------------------------------------------------


def write(engine: Engine, key: str, options: dict[str, str]) -> None:
    """Insert a patient for each name, whose name is encrypted with options."""
    with engine.begin() as connection:
        for name, each in options.items():
            values = {"id": name, "text": f"Secret {name}", "key": key, "options": each}
            connection.execute(text(ROW.format(value=ENCRYPTED)), values)


@pytest.mark.usefixtures("old_ciphers")
def test_init_keys_names_values_to_rotate_first(
    run: Run, fresh_environment: dict[str, str], unchecked: Engine, new_provider: Callable[..., VaultKeyProvider]
) -> None:
    """On standard error, with how many and what to do; the rows are adopted, and gone once they are rotated."""
    provider = new_provider()
    provider.create(KeySet.generate())
    key = provider.fetch().key.expose().decode()
    write(unchecked, key, {"A": "", "B": "cipher-algo=3des", "C": "cipher-algo=3des", "D": "cipher-algo=bf"})
    with unchecked.connect() as connection:
        of_d = READABLE if readable(connection, "bf") else "Blowfish"
    done = run("init-keys", "--scheme", "direct", "--json", env=fresh_environment)
    assert (done.code, done.json["scheme"]) == (0, "direct")
    lines = sorted(done.stderr.splitlines())
    assert lines == sorted(
        [
            f"patient_data.name: 2 values, of which each {described('Triple-DES')}",
            f"patient_data.name: 1 value, of which each {described(of_d)}",
        ]
    )
    assert "rotate before you update the server" in done.stderr
    assert "Secret" not in done.stdout + done.stderr
    again = run("init-keys", env=fresh_environment)
    assert sorted(again.stderr.splitlines()) == lines
    verified = run("verify", "--json", env=fresh_environment)
    assert (verified.code, verified.json["tables"]["patient_data"]["failed"]) == (1, 3)
    assert "rotate before you update the server" in verified.stdout
    from voiceassist_db.keyring import KeyringSource

    assert rotate(unchecked, KeyringSource(provider)).done
    assert run("init-keys", env=fresh_environment).stderr == ""
    assert run("verify", "--json", env=fresh_environment).code == 0


@pytest.mark.parametrize("options", ["disable-mdc=1", None])
def test_init_keys_refuses_what_no_scheme_accepts(
    run: Run,
    fresh_environment: dict[str, str],
    unchecked: Engine,
    new_provider: Callable[..., VaultKeyProvider],
    options: str | None,
) -> None:
    """A message without integrity check, or plain text: one error with table, field and way out, and nothing registered."""
    provider = new_provider()
    provider.create(KeySet.generate())
    key = provider.fetch().key.expose().decode()
    if options is None:
        with unchecked.begin() as connection:
            connection.execute(text(ROW.format(value="CAST('Secret' AS bytea)")), {"id": "A"})
    else:
        write(unchecked, key, {"A": options})
    done = run("init-keys", "--scheme", "direct", env=fresh_environment)
    assert done.code == 1
    assert f"1 of patient_data.name ({NO_INTEGRITY if options else NO_MESSAGE})" in done.error
    assert "Secret" not in done.error
    with unchecked.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM encryption_keys")).scalar_one() == 0
        if options:  # the way out that the message names
            again = "pgcrypto.pgp_sym_encrypt(pgcrypto.pgp_sym_decrypt(name_encrypted, :key), :key)"
            connection.execute(text(f"UPDATE patient_data SET name_encrypted = {again}"), {"key": key})
        else:
            connection.execute(text("UPDATE patient_data SET name_encrypted = NULL"))
    assert run("init-keys", "--scheme", "direct", env=fresh_environment).code == 0


def line_of(engine: Engine) -> Line:
    """Return what `check` says of ciphers."""
    with engine.connect() as connection:
        (line,) = (each for each in check(connection) if each.subject == CVE)
    return line


def test_check_counts_values_by_cipher(unchecked: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsafe where there is one, with table and field and what to do first; without one, nothing is claimed to be unsafe."""
    assert line_of(unchecked).verdict in {Verdict.NOTE, Verdict.OK}
    assert "no stored value names another cipher than AES" in line_of(unchecked).detail
    write(unchecked, "key", {"A": "cipher-algo=aes256", "B": "cipher-algo=3des"})
    line = line_of(unchecked)
    assert line.verdict is Verdict.UNSAFE
    assert "patient_data.name has values of this kind: 1 (Triple-DES)" in line.detail
    assert "otate the key" in line.remedy
    monkeypatch.setattr("voiceassist_db.checking.CVES", ((CVE, Verdict.NOTE, {}, "it is bad"),))
    after = line_of(unchecked)
    assert after.verdict is Verdict.UNSAFE
    assert "before its update" in after.remedy


def test_check_says_what_it_may_not_read(unchecked: Engine) -> None:
    """Row-level security that hides rows, or a missing grant, is no proof that there are none."""
    with unchecked.begin() as connection:
        connection.execute(text("ALTER TABLE patient_data ENABLE ROW LEVEL SECURITY"))
        connection.execute(text("ALTER TABLE patient_data FORCE ROW LEVEL SECURITY"))
        (table,) = (each for each in encrypted_tables(connection) if each.name == "patient_data")
        assert not may_read(connection, table)
    line = line_of(unchecked)
    assert line.verdict is Verdict.NOTE
    assert "may not read every value of public.patient_data" in line.detail
    assert "no stored value" not in line.detail


def test_a_large_table_is_sampled(unchecked: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the page, and the line says so; partitions count for their table."""
    write(unchecked, "key", {f"P{n}": "cipher-algo=3des" for n in range(60)})
    monkeypatch.setattr(module, "SAMPLE_BYTES", 4096)
    with unchecked.connect() as connection:
        (table,) = (each for each in encrypted_tables(connection) if each.name == "patient_data")
        share = module.sampled_share(connection, table)
        assert 0 < share < 1
        assert [(each.field, each.weakness) for each in weak_values(connection, table)] == [("name", "Triple-DES")]
        counts = [sum(each.values for each in weak_values(connection, table, share=share)) for _ in range(40)]
    assert max(counts) <= 60
    assert min(counts) < 60
    assert f"patient_data was looked at in a sample of {share:.1%}" in line_of(unchecked).detail


def test_awkward_names_are_counted(engine: Engine) -> None:
    """Names with quotes, percent signs and colons, in another schema."""
    create = """
        CREATE SCHEMA "a%b:c";
        CREATE TABLE "a%b:c"."Odd 'table'" (id int PRIMARY KEY, "a%:b_encrypted" bytea, key_version integer NOT NULL);
        COMMENT ON COLUMN "a%b:c"."Odd 'table'"."a%:b_encrypted" IS 'encrypted odd.a as text';
        INSERT INTO "a%b:c"."Odd 'table'" VALUES (1, 'plain', 1), (2, NULL, 1);
    """
    with engine.begin() as connection:
        connection.connection.cursor().execute(create)
        (table,) = (each for each in encrypted_tables(connection) if "Odd" in each.name)
        assert may_read(connection, table)
        assert weak_values(connection, table) == [WeakValues(table.name, "a%:b", NO_MESSAGE, 1)]
