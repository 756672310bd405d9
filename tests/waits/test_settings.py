"""The whole product works in a database whose settings, collation or encoding are unusual, or says exactly what does not fit."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.cli.conftest import Run
from tests.conftest import VaultServer, leading_to
from tests.waits.conftest import ROLES, Spoilt
from voiceassist_db import Database, Patient, config, create_engine
from voiceassist_db.cli.rotate_command import rotate_keys as rotate_command
from voiceassist_db.errors import DatabaseError
from voiceassist_db.provisioning import provision
from voiceassist_db.schema import migrate

pytestmark = pytest.mark.wide

SETTINGS = {
    "styles": {
        "DateStyle": "German",
        "IntervalStyle": "sql_standard",
        "TimeZone": "Asia/Kathmandu",
        "bytea_output": "escape",
    },
    "DateStyle SQL": {"DateStyle": "SQL, DMY", "TimeZone": "<+14>-14"},
    "DateStyle Postgres": {"DateStyle": "Postgres, MDY", "extra_float_digits": "-15"},
    "strings": {"standard_conforming_strings": "off", "escape_string_warning": "on", "backslash_quote": "on"},
    "names": {"quote_all_identifiers": "on", "search_path": '"$user", public, pg_temp'},
    "planner": {"track_counts": "off", "enable_tidscan": "off", "enable_seqscan": "off", "jit": "off"},
    "repeatable read": {"default_transaction_isolation": "repeatable read", "default_transaction_deferrable": "on"},
    "serializable": {"default_transaction_isolation": "serializable"},
}
ENCODINGS = {
    "LATIN1": "ENCODING 'LATIN1' LOCALE_PROVIDER libc LC_COLLATE 'C' LC_CTYPE 'C'",
    "SQL_ASCII": "ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LC_COLLATE 'C' LC_CTYPE 'C'",
    "ICU": "ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'de-u-ks-level2' LC_COLLATE 'C' LC_CTYPE 'C'",
    "C": "ENCODING 'UTF8' LOCALE_PROVIDER libc LC_COLLATE 'C' LC_CTYPE 'C'",
}
NewClinic = Callable[[str, dict[str, str]], str]


@pytest.fixture
def new_clinic(spoilt: Spoilt) -> Iterator[NewClinic]:
    """A function that makes a database of an encoding with settings of its own, and migrates it under them."""
    made: list[str] = []

    def make(options: str, settings: dict[str, str]) -> str:
        name = f"clinic_{secrets.token_hex(4)}"
        with spoilt.admin() as admin:
            try:
                admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy {options}".encode())
            except psycopg.errors.FeatureNotSupported:
                pytest.skip(
                    "this server was built without ICU: run the test with VOICEASSIST_DB_POSTGRES_BIN of Debian's"
                )
            made.append(name)
            for setting, value in settings.items():
                given = sql.SQL(value) if setting == "search_path" else sql.Literal(value)
                statement = sql.SQL("ALTER DATABASE {} SET {} = {}")
                admin.execute(statement.format(sql.Identifier(name), sql.Identifier(setting), given))
        for role in (None, ROLES.owner, None):
            engine = create_engine(spoilt.server.url(name) if role is None else spoilt.url(role, name))
            if role is None:
                with engine.begin() as connection:
                    provision(connection, ROLES)
            else:
                migrate(engine)
            engine.dispose()
        return name

    yield make
    for name in made:
        with spoilt.admin() as admin:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


TOGETHER = {
    "together": SETTINGS["styles"] | SETTINGS["names"] | SETTINGS["planner"] | SETTINGS["repeatable read"],
    "others together": SETTINGS["DateStyle SQL"] | SETTINGS["strings"] | SETTINGS["serializable"],
}
SHORT = ("LATIN1", "SQL_ASCII")
"""What the short form has; the long one has each setting and each collation alone."""

CASES = [
    *(pytest.param("ENCODING 'UTF8'", settings, id=name) for name, settings in TOGETHER.items()),
    *(
        pytest.param("ENCODING 'UTF8'", settings, id=name, marks=pytest.mark.long)
        for name, settings in SETTINGS.items()
    ),
    *(
        pytest.param(options, {}, id=name, marks=() if name in SHORT else pytest.mark.long)
        for name, options in ENCODINGS.items()
    ),
]


@pytest.mark.parametrize(("options", "settings"), CASES)
def test_every_command_under_it(
    spoilt: Spoilt,
    new_clinic: NewClinic,
    vault: VaultServer,
    vault_path: str,
    run: Run,
    tmp_path: Path,
    options: str,
    settings: dict[str, str],
) -> None:
    """From the first key over an import and two kinds of rotation to the end of the first key: each command does its work."""
    name = new_clinic(options, settings)
    file = tmp_path / "patients.csv"
    lines = [f"PT-{n},9{n:08d},MRN-{n},Zoë \\ '{n}',19{n:02d}-02-28" for n in range(10, 30)]
    file.write_text("patient_id,ssn,mrn,name,date_of_birth\n" + "\n".join(lines))

    def done(*arguments: str, role: str, rotates: bool = False) -> dict[str, object]:
        command = {"command": rotate_command} if rotates else {}
        outcome = run(*arguments, "--json", env=leading_to(spoilt.url(role, name), vault, vault_path), **command)
        assert outcome.code == 0, outcome
        return outcome.json

    assert done("init-keys", role=ROLES.owner)["version"] == 1
    assert done("import", str(file), role=ROLES.app)["imported"] == len(lines)
    assert done("import", str(file), role=ROLES.app)["unchanged"] == len(lines)
    assert done("--dry-run", role=ROLES.rotator, rotates=True)["to_version"] == 2
    report = done(role=ROLES.rotator, rotates=True)
    assert (report["rows"], report["remaining"], report["verified"]) == (len(lines), 0, True)
    assert done("--index-key", role=ROLES.rotator, rotates=True)["remaining"] == 0
    assert done("--retire", "--grace-days", "0", role=ROLES.owner, rotates=True)["version"] == 1
    assert done("verify", role=ROLES.rotator)["ok"] is True
    assert done("status", role=ROLES.auditor)["tables"] == {"clinical_notes": {}, "patient_data": {"2": len(lines)}}
    checked = run("check", "--json", env=leading_to(spoilt.url(ROLES.app, name), vault, vault_path)).json["checks"]
    assert [each for each in checked if each["verdict"] == "unsafe"] == []
    assert done("import", str(file), role=ROLES.app)["unchanged"] == len(lines)


def test_an_import_names_the_line_whose_characters_the_encoding_lacks(
    spoilt: Spoilt, new_clinic: NewClinic, vault: VaultServer, vault_path: str, run: Run, tmp_path: Path
) -> None:
    """22P05: the line and the field are named, no value is, and the other lines can be imported; a repository says it as well."""
    name = new_clinic(ENCODINGS["LATIN1"], {})
    env = leading_to(spoilt.url(ROLES.owner, name), vault, vault_path)
    file = tmp_path / "patients.csv"
    file.write_text("patient_id,name\nPT-1,Zoë\nPT-2,Łukasz\nPT-3,Ann\n")
    assert run("init-keys", env=env).code == 0
    refused = run("import", str(file), env=env)
    assert refused.code == 3
    assert "line 3: name has a character that the database's encoding LATIN1 lacks" in refused.stderr
    assert "ukasz" not in refused.stdout + refused.stderr
    assert run("import", "--skip-bad", "--json", str(file), env=env).json["imported"] == 2
    with Database(create_engine(env["DATABASE_URL"]), config.key_provider(env)) as database:
        with (
            pytest.raises(DatabaseError, match="encoding of the database lacks .SQLSTATE 22P05"),
            database.transaction() as tx,
        ):
            tx.patients.add(Patient(patient_id="PT-4", name="Łukasz"))
        with database.transaction() as tx:
            assert tx.patients.get("PT-1").name == "Zoë"
