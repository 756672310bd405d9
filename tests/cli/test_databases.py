"""A list of databases: what is understood, what is refused, and that no password of it is shown. No server is needed."""

from __future__ import annotations

import os
import stat
import traceback
from pathlib import Path
from typing import Final

import click
import pytest

from voiceassist_db.cli.databases import Databases, Target
from voiceassist_db.errors import ConfigurationError

SECRET: Final = "hunter2"
BASE: Final = f"postgresql://rotator:{SECRET}@DB1.example.org/main?sslmode=verify-full"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The database of DATABASE_URL, with a password."""
    monkeypatch.setenv("DATABASE_URL", BASE)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that only its owner may read."""
    path = tmp_path / "clinic s"
    path.touch(mode=0o600)
    return path


def names(*named: str, file: Path | None = None) -> list[str]:
    """Return how a report calls the databases."""
    return [each.name for each in Databases(named, None if file is None else str(file)).targets()]


def refused(*named: str, file: Path | None = None) -> str:
    """Return the message of a refusal, after proving that nothing of it can show the password."""
    with pytest.raises(click.UsageError) as caught:
        names(*named, file=file)
    error = caught.value
    assert error.exit_code == 2
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(error.__context__) + error.format_message()
    assert SECRET not in shown
    return error.format_message()


def test_without_options_it_is_the_database_of_the_environment() -> None:
    """It has no name, so that nothing of the report changes."""
    (target,) = Databases().targets()
    assert (target.name, target.has_own_address, target.url.host) == ("", False, "DB1.example.org")


def test_a_name_is_that_of_a_database_on_the_same_server() -> None:
    """With its login and its parameters; and a name has no login."""
    targets = Databases(["clinic_a", "Clinic-ß.2"]).targets()
    assert [each.name for each in targets] == ["clinic_a on db1.example.org:5432", "Clinic-ß.2 on db1.example.org:5432"]
    for target, database in zip(targets, ("clinic_a", "Clinic-ß.2"), strict=True):
        assert (target.url.database, target.url.username, target.url.password) == (database, "rotator", SECRET)
        assert dict(target.url.query) == {"sslmode": "verify-full"}
        assert not target.has_own_address


def test_a_name_counts_more_than_a_parameter_of_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise libpq would prefer the parameter, and every name would be the same database."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://db1/?dbname=other")
    (target,) = Databases(["clinic"]).targets()
    assert (target.url.database, dict(target.url.query)) == ("clinic", {})


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("postgresql://a@db2/clinic", "clinic on db2:5432"),
        ("postgres://a@DB2:5433/Clinic", "Clinic on db2:5433"),
        ("postgresql+psycopg://db2/clinic?sslmode=verify-full", "clinic on db2:5432"),
        ("postgresql://[::1]:7/clinic", "clinic on [::1]:7"),
        ("postgresql:///clinic?host=/var/run/Postgres&port=5433", "clinic on /var/run/Postgres:5433"),
        ("postgresql:///clinic", "clinic on the default host:5432"),
        ("postgresql://a@/clinic?host=db1:1&host=db2:2", "clinic on db1:1,db2:2"),
        ("postgresql://a@/clinic?host=db1&host=db2", "clinic on db1:5432,db2:5432"),
        ("postgresql://a@db2?dbname=clinic", "clinic on db2:5432"),
        ("postgresql://a@db2/my%20clinic", "my clinic on db2:5432"),
    ],
)
def test_an_address_has_a_name_without_its_login(address: str, name: str) -> None:
    """A report can be shown to everybody, and tells servers apart."""
    (target,) = Databases([address]).targets()
    assert (target.name, target.has_own_address) == (name, True)
    assert target.url.drivername == "postgresql+psycopg"


@pytest.mark.parametrize(
    "password", [f"a@{SECRET}", f"{SECRET}@b", f"a@b/{SECRET}", f"a@{SECRET}/b?c", f"a?b@{SECRET}"]
)
def test_a_password_with_an_at_sign_is_no_host(password: str, file: Path) -> None:
    """Its end would be the host of a name that every report shows."""
    file.write_text(f"postgresql://me:{password}@db1/clinic")
    assert "more than one @: write %40" in refused(file=file)
    file.write_text(
        f"postgresql://me:{password.replace('@', '%40').replace('/', '%2F').replace('?', '%3F')}@db1/clinic"
    )
    assert names(file=file) == ["clinic on db1:5432"]


@pytest.mark.parametrize(
    "again",
    [
        "postgresql://rotator@db1.EXAMPLE.org:5432/main",
        "postgresql://other@db1.example.org/main?sslmode=require",
        "postgresql://db1.example.org/?dbname=main",
        "main",
    ],
)
def test_a_database_that_is_named_twice_is_refused(again: str) -> None:
    """In whichever spelling: its second turn would fail, or change the key once more."""
    message = refused("main", again)
    assert message == "value 2 of --database names main on db1.example.org:5432 for the second time"


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        f"me:{SECRET}@db1/clinic",
        f"db1/clinic?password={SECRET}",
        f"host=db1 dbname=clinic password={SECRET}",
        f"mysql://me:{SECRET}@db1/clinic",
        f"postgresql://me:{SECRET}@db1:port/clinic",
        f"postgresql://me:{SECRET}@db1/clinic?port={SECRET}&host=a:1&host=b",
        "db1:5432",
        "two words",
        "clinic # ours",
    ],
)
def test_what_is_no_address_is_refused_and_not_shown(value: str, file: Path) -> None:
    """It may be an address that was written wrongly, with its password."""
    form = "is neither the name of a database nor an address like postgresql://USER@HOST/DATABASE"
    assert refused("clinic_a", value) == f"value 2 of --database {form}"
    if value.strip():
        file.write_text(f"# clinics\n\nclinic_a\n{value}\n")
        assert refused(file=file) == f"line 4 of {file} {form}"


def test_an_address_without_a_database_is_refused() -> None:
    """Otherwise libpq would take the name of the user, which nobody meant."""
    assert refused("postgresql://rotator@db1") == (
        "the value of --database names no database: end the address with /DATABASE"
    )


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://me:{SECRET}@db1/clinic",
        f"postgresql://db1/clinic?user=me&password={SECRET}",
        f"postgresql://db1/clinic?sslkey=k&sslpassword={SECRET}",
    ],
)
def test_a_password_stands_in_no_argument(address: str, file: Path) -> None:
    """Every user of the machine sees arguments. In a file that only its owner can read it may stand, and nothing shows it."""
    message = refused("clinic", address)
    assert message.startswith("value 2 of --database holds a password, which every user of this machine can see")
    assert "PGPASSFILE" in message
    file.write_text(address)
    targets = Databases(file=str(file)).targets()
    assert [each.name for each in targets] == ["clinic on db1:5432"]
    assert SECRET not in repr(targets) + repr(Databases([address])) + str(targets[0])


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o666])
def test_a_file_with_a_password_is_its_owners_alone(mode: int, file: Path) -> None:
    """The message has the command that corrects it, which works. A file without a password may be open to all."""
    file.write_text("clinic_a\npostgresql://me@db1/clinic\n")
    file.chmod(mode)
    assert len(names(file=file)) == 2
    file.write_text(f"clinic_a\npostgresql://me:{SECRET}@db1/clinic\n")
    message = refused(file=file)
    assert message == f"{file} holds a password, and other users have permissions for it: run `chmod 600 '{file}'`"
    assert os.system(message.split("`")[1]) == 0  # noqa: S605  # what the message says
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(names(file=file)) == 2


def test_a_file_has_one_database_a_line(file: Path) -> None:
    """As editors of all systems write it, with comments; in its order, after those of the command line."""
    content = "\ufeff# clinics\r\n\r\n  clinic_b  \r\n#clinic_x\r\n\tpostgresql://db2/clinic_c\r\n"
    file.write_bytes(content.encode())
    assert names("clinic_a", file=file) == [
        "clinic_a on db1.example.org:5432",
        "clinic_b on db1.example.org:5432",
        "clinic_c on db2:5432",
    ]


@pytest.mark.parametrize("content", ["", "\n", "# clinic_a\n\n"])
def test_a_file_that_names_none_is_refused(content: str, file: Path) -> None:
    """A command that does nothing and ends well would be taken for one that did all."""
    file.write_text(content)
    assert refused(file=file) == f"{file} names no database"


def test_a_file_that_cannot_be_read_is_refused(file: Path, tmp_path: Path) -> None:
    """Absent, a directory, or in another encoding; its content is not shown."""
    assert refused(file=tmp_path / "absent") == f"{tmp_path / 'absent'} cannot be read: No such file or directory"
    assert refused(file=tmp_path) == f"{tmp_path} cannot be read: Is a directory"
    file.write_bytes(f"clinic_a\npostgresql://me:{SECRET}@db1/Zoë\n".encode("latin-1"))
    assert refused(file=file) == f"line 2 of {file} is not UTF-8"


def test_a_name_needs_the_server_that_it_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses alone do not."""
    monkeypatch.delenv("DATABASE_URL")
    assert names("postgresql://db1/clinic") == ["clinic on db1:5432"]
    with pytest.raises(ConfigurationError, match="DATABASE_URL is not set"):
        names("clinic")


def test_no_local_variable_of_a_refusal_holds_the_password(file: Path) -> None:
    """Tools that report errors send the variables of every frame."""
    file.write_bytes(f"postgresql://me:{SECRET}@db1/Zoë".encode("latin-1"))
    with pytest.raises(click.UsageError) as caught:
        names(file=file)
    frames = [frame for frame, _ in traceback.walk_tb(caught.tb)]
    shown = [
        repr(value)
        for frame in frames
        if "voiceassist_db" in frame.f_code.co_filename
        for value in frame.f_locals.values()
    ]
    assert shown
    assert SECRET not in "".join(shown)


def test_a_target_does_not_show_its_address() -> None:
    """A parameter may hold a password where SQLAlchemy shows it."""
    (target,) = Databases(["postgresql://db1/clinic"]).targets()
    assert repr(target) == "Target(name='clinic on db1:5432', has_own_address=True)"
    assert isinstance(target, Target)
