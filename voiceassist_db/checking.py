"""Whether keys and patients' values are safe on a connection and in its database: every line that matters, with a verdict.

Owns the questions beyond those that the engine asks of each connection. Reads the catalogue and this process; changes nothing.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from psycopg import AsyncClientCursor, ClientCursor
from sqlalchemy import Connection, text

from voiceassist_db import safety
from voiceassist_db.catalogue import changers, encrypted_tables, foreign_tables, system_names
from voiceassist_db.commands import MIGRATE, ROTATE
from voiceassist_db.constraints import gaps
from voiceassist_db.errors import SchemaNotMigratedError
from voiceassist_db.escaping import escaped_sql
from voiceassist_db.execution import execute, regclass
from voiceassist_db.models import packets
from voiceassist_db.models.declaration import ENCRYPTED_SUFFIX
from voiceassist_db.models.requirements import MOVED, moved_keys
from voiceassist_db.weak_values import WeakValues, may_read, sampled_share, weak_values


class Verdict(StrEnum):
    """What a line says."""

    OK = "ok"
    NOTE = "note"
    """Nothing is seen by it today; somebody should know."""
    UNSAFE = "unsafe"


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at.

    Attributes:
        subject: What.
        verdict: How it is.
        detail: What was found.
        remedy: The statement that mends it, or what to do; empty where nothing is to be done. A name in it is written so that
            it can be seen.
    """

    subject: str
    verdict: Verdict
    detail: str
    remedy: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "remedy", escaped_sql(self.remedy))


CVES: Final = (
    # Whoever can have a message of their own decrypted runs code in the server.
    (
        "CVE-2026-2005",
        Verdict.UNSAFE,
        {15: 16, 16: 12, 17: 8, 18: 2},
        "a forged message can overwrite the server's memory",
    ),
    (
        packets.CVE,
        Verdict.NOTE,
        {15: 19, 16: 15, 17: 11, 18: 6},
        "it stores data under Blowfish or CAST5 as it is, readable by whoever reads the row",
    ),
)
"""What was mended in pgcrypto lately: by which minor release of each version, and what it means here."""

KNOWN_LIBRARIES: Final = frozenset(
    {"auto_explain", "pg_stat_statements", "pgaudit", "pg_cron", "pg_prewarm", "passwordcheck", "auth_delay"}
)
"""Libraries that are known to log no parameter under ``safety.SETTINGS``."""

KEYED: Final = (
    *("pgp_sym_decrypt", "pgp_sym_decrypt_bytea", "pgp_sym_encrypt", "pgp_sym_encrypt_bytea"),
    *("pgp_pub_decrypt", "pgp_pub_decrypt_bytea", "decrypt", "decrypt_iv", "encrypt", "encrypt_iv", "hmac"),
)
"""Functions of pgcrypto that are given a key."""

PREDEFINED: Final = ("pg_execute_server_program", "pg_read_server_files", "pg_write_server_files")
"""Roles of PostgreSQL's own that reach its files, and so are as good as a superuser."""


def check(connection: Connection, *, trust_local: bool = False) -> list[Line]:
    """Look at everything that this connection can see.

    Args:
        connection: A connection as the role whose safety is asked for, which need not be allowed to receive keys.
        trust_local: Whether any server on this machine is trusted.
    """
    session = safety.Session.of(tuple(_all(connection, safety.SESSION)[0]))
    lines = [*_connection(connection, session, trust_local=trust_local), *_names(connection, session)]
    lines += _tables(connection)
    with system_names(connection):
        role = list(_role(connection))
        lines += role
        lines += _temporary(connection, is_fit=all(each.verdict is not Verdict.UNSAFE for each in role))
        lines += _functions(connection, session)
        lines += _dependants(connection)
        lines += _server(connection)
    return [*lines, _core_dumps()]


def _all(connection: Connection, query: str, **parameters: Any) -> list[Any]:
    return list(execute(connection, text(query), parameters, table="pg_catalog"))


def _named(connection: Connection, query: str, **parameters: Any) -> str:
    """Return the first column of a query's rows, joined."""
    return ", ".join(str(row[0]) for row in _all(connection, query, **parameters))


def _connection(connection: Connection, session: safety.Session, *, trust_local: bool) -> Iterator[Line]:
    driver: Any = connection.connection.driver_connection
    wrong = {finding.subject: finding for finding in safety.unsafe_settings(session)}
    for name in safety.SETTINGS:
        if (finding := wrong.get(name)) is not None:
            yield Line(name, Verdict.UNSAFE, finding.problem, finding.remedy)
        elif name in session.settings:
            value, source = session.settings[name]
            yield Line(name, Verdict.OK, f"is {value}, set for this {source}")
        else:
            yield Line(name, Verdict.OK, "is not of this server: its module is not loaded")
    transport = safety.unsafe_transport(driver, trust_local=trust_local)
    if safety.is_pooled(driver, session):
        transport += safety.unsafe_hop(driver, session)
        yield Line("pooler", Verdict.NOTE, "stands before the server: settings are looked at in each transaction")
    for finding in transport:
        yield Line(finding.subject, Verdict.UNSAFE, finding.problem, finding.remedy)
    if not transport:
        how = safety.proof(driver, trust_local=trust_local)
        yield Line("connection", Verdict.OK, f"reaches {driver.info.host} {how}")
    if issubclass(driver.cursor_factory, ClientCursor | AsyncClientCursor):
        yield Line("cursors", Verdict.UNSAFE, "put parameters into the text of statements", "Leave out cursor_factory.")
    else:
        yield Line("cursors", Verdict.OK, "send parameters apart from the text of statements")


_GRANTED: Final = """
    SELECT pg_catalog.format('REVOKE %I FROM %I', g.rolname, m.rolname)
           || CASE WHEN a.grantor <> :bootstrap AND pg_catalog.current_setting('server_version_num')::int >= 160000
                   THEN pg_catalog.format(' GRANTED BY %I', pg_catalog.pg_get_userbyid(a.grantor)) ELSE '' END || ';'
    FROM pg_catalog.pg_auth_members a JOIN pg_catalog.pg_roles g ON g.oid = a.roleid
    JOIN pg_catalog.pg_roles m ON m.oid = a.member
    WHERE m.rolname = current_user AND EXISTS (
        SELECT FROM pg_catalog.pg_roles r
        WHERE (r.rolsuper OR r.rolname = ANY(:predefined)) AND pg_catalog.pg_has_role(g.oid, r.oid, 'MEMBER'))
    ORDER BY 1
"""
"""What takes back the grants by which this role may become, or act as, one that reaches past every right. From PostgreSQL 16 on each
grantor's grant is one of its own, and those of others than the bootstrap superuser must be named."""

BOOTSTRAP_SUPERUSER: Final = 10


def _role(connection: Connection) -> Iterator[Line]:
    name, is_super, bypasses, creates = _all(
        connection,
        "SELECT rolname, rolsuper, rolbypassrls, rolcreaterole FROM pg_catalog.pg_roles WHERE rolname = current_user",
    )[0]
    remedy = "Connect as a role that `voiceassist-db provision` made for this."
    if is_super:
        yield Line("role", Verdict.UNSAFE, f"{name} is a superuser, so its rights cannot be limited", remedy)
        return
    try:
        tables = encrypted_tables(connection)
    except SchemaNotMigratedError as error:
        tables = []
        yield Line("encrypted tables", Verdict.UNSAFE, str(error), "No rotation or verification runs before.")
    secured = (
        _secured(connection, [regclass(connection, each.table) for each in tables]) if _may_rotate(connection) else []
    )
    if secured and not bypasses:
        detail = f"of {', '.join(secured)} hides rows from {name}: no rotation, retirement or verification begins"
        yield Line("row-level security", Verdict.NOTE, detail, f"ALTER ROLE {safety.quoted(name)} BYPASSRLS;")
    elif secured:
        yield Line("row-level security", Verdict.OK, f"hides no row from {name}, which rotates keys")
    powers = [what for has, what in ((bypasses and not secured, "BYPASSRLS"), (creates, "CREATEROLE")) if has]
    owners = _all(
        connection,
        "SELECT r.rolname, r.rolname = ANY(:predefined) FROM pg_catalog.pg_roles r WHERE pg_catalog.pg_has_role(r.oid, 'MEMBER') "
        "AND r.rolname <> current_user AND (r.rolsuper OR r.rolname = ANY(:predefined))",
        predefined=list(PREDEFINED),
    )
    if owners:
        names = ", ".join(each[0] for each in owners)
        detail = f"{name} may become, or act as, {names}, which reach past every right"
        granted = _all(connection, _GRANTED, predefined=list(PREDEFINED), bootstrap=BOOTSTRAP_SUPERUSER)
        revoke = " ".join(each[0] for each in granted)
        yield Line("role", Verdict.UNSAFE, detail, revoke)
    owned = [
        each.name
        for each in tables
        if _all(
            connection,
            "SELECT pg_catalog.pg_has_role(c.relowner, 'MEMBER') FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n "
            "ON n.oid = c.relnamespace WHERE c.relname = :name AND n.nspname = :schema",
            name=each.table.name,
            schema=each.table.schema,
        )[0][0]
    ]
    if owned:
        detail = (
            f"{name} owns {', '.join(owned)}, or may become who does: fit for migrations, and not for an application"
        )
        yield Line("role", Verdict.UNSAFE, detail, remedy)
    if powers:
        yield Line(
            "role",
            Verdict.UNSAFE,
            f"{name} has {' and '.join(powers)}",
            f"ALTER ROLE {safety.quoted(name)} NO{' NO'.join(powers)};",
        )
    if not owned and not powers and not owners:
        yield Line("role", Verdict.OK, f"{name} is no superuser and owns no encrypted table")


def _may_rotate(connection: Connection) -> bool:
    """Say whether this role may write to the journal of rotations."""
    query = f"""
        SELECT 1 FROM pg_catalog.pg_class c WHERE c.relname = 'key_rotations' AND c.relkind = 'r'
        AND pg_catalog.has_table_privilege(c.oid, 'UPDATE') AND NOT {safety.NOT_TRUSTED.format(role="c.relowner")}
    """  # noqa: S608  # of constants
    return bool(_all(connection, query))


def _secured(connection: Connection, tables: list[str]) -> list[str]:
    """Return those of these tables whose row-level security applies to this role, or would without BYPASSRLS."""
    query = """
        SELECT named.name FROM pg_catalog.unnest(CAST(:names AS pg_catalog.text[])) named (name)
        WHERE EXISTS (
            SELECT FROM pg_catalog.pg_class c
            WHERE (c.oid = named.name::pg_catalog.regclass
                   OR c.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree(named.name::pg_catalog.regclass)))
              AND c.relrowsecurity AND (c.relforcerowsecurity OR NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')))
        ORDER BY 1
    """
    return [row[0] for row in _all(connection, query, names=tables)]


def _names(connection: Connection, session: safety.Session) -> Iterator[Line]:
    findings = safety.unsafe_schemas(tuple(row) for row in _all(connection, safety.SCHEMAS))
    if session.has_citus:
        findings += safety.unsafe_schemas(tuple(row) for row in _all(connection, safety.DISTRIBUTED))
    findings += safety.unsafe_names(session)
    for finding in findings:
        yield Line(finding.subject, Verdict.UNSAFE, finding.problem, finding.remedy)
    if not findings:
        detail = f"{', '.join(session.path)}: holds no object of an untrusted role that a statement could find by name"
        yield Line("search path", Verdict.OK, detail)


def _tables(connection: Connection) -> Iterator[Line]:
    """Look at what encrypted tables lack, and at what else could change or betray their values."""
    for each in foreign_tables(connection):
        yield Line(each.table, Verdict.NOTE, each.problem)
    try:
        tables = encrypted_tables(connection)
    except SchemaNotMigratedError:
        return  # which is a line about the role
    for table in tables:
        for gap in gaps(connection, table):
            verdict = Verdict.UNSAFE if gap.is_unsafe else Verdict.NOTE
            yield Line(table.name, verdict, gap.problem, f"{'; '.join(gap.statements)};")
        for changer in changers(connection, table):
            if changer.sets_key:
                detail = f"{changer.what} sets the primary key: values are bound to the key that the application gave, and could not be read"
                yield Line(table.name, Verdict.UNSAFE, detail, "Leave the key to the application.")
            else:
                yield Line(
                    table.name,
                    Verdict.NOTE,
                    f"{changer.what} can change rows while they are written: it must not change the key",
                )
        for name in moved_keys(table):
            yield Line(table.name, Verdict.UNSAFE, f"column {name} of the primary key {MOVED}", "Leave out ON UPDATE.")
        if table.version.nullable and not table.is_in_place:
            detail = f"{table.version.name} may be NULL: a value in a row without a version cannot be read"
            yield Line(table.name, Verdict.NOTE, detail, "Make it NOT NULL once each row has one.")
        plain = {column.name.casefold(): column.name for column in table.table.c}
        for name in sorted(plain[each.casefold()] for each in table.fields if each.casefold() in plain):
            detail = f"the column {name} stands beside {name}{ENCRYPTED_SUFFIX}: if it holds the same values, they are not encrypted"
            yield Line(table.name, Verdict.NOTE, detail, "Drop it when nothing needs it any more.")


def _temporary(connection: Connection, *, is_fit: bool) -> Iterator[Line]:
    # Of a role that is no application's the remedy is the role's; the owner may have them for migrations.
    name, database, may = _all(
        connection,
        "SELECT current_user, pg_catalog.current_database(), "
        "pg_catalog.has_database_privilege(pg_catalog.current_database()::pg_catalog.text, 'TEMPORARY')",
    )[0]
    if may:
        detail = f"{name} may create temporary tables and types, which PostgreSQL finds before all others"
        remedy = f"REVOKE TEMPORARY ON DATABASE {safety.quoted(database)} FROM PUBLIC, {safety.quoted(name)};"
        yield Line("temporary objects", Verdict.UNSAFE if is_fit else Verdict.NOTE, detail, remedy if is_fit else "")
    else:
        yield Line("temporary objects", Verdict.OK, f"{name} may create none")


def _functions(connection: Connection, session: safety.Session) -> Iterator[Line]:
    installed = _named(
        connection,
        "SELECT n.nspname FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace "
        "WHERE e.extname = 'pgcrypto'",
    )
    if installed != "pgcrypto":
        where = f"is in the schema {installed}" if installed else "is not installed"
        yield Line("pgcrypto", Verdict.UNSAFE, where, f"Run `{MIGRATE}`, which says what it needs.")
        return
    shadows = _named(
        connection,
        """
        SELECT p.oid::pg_catalog.regprocedure FROM pg_catalog.pg_proc p
        JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname::text = ANY(:path)
          AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
                          AND d.objid = p.oid AND d.deptype = 'e')
          AND p.proname IN (SELECT o.proname FROM pg_catalog.pg_proc o JOIN pg_catalog.pg_depend d ON d.objid = o.oid
                            AND d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.deptype = 'e'
                            JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid AND e.extname = 'pgcrypto')
        ORDER BY 1
        """,
        path=[*(name for name in session.path if name != "pg_catalog"), "pgcrypto"],
    )
    if shadows:
        yield Line(
            "pgcrypto",
            Verdict.UNSAFE,
            f"functions of the same name could be given keys: {shadows}",
            "DROP FUNCTION each of them.",
        )
    else:
        yield Line("pgcrypto", Verdict.OK, "is in its own schema; no other function shadows it")


def _dependants(connection: Connection) -> Iterator[Line]:
    # An index or a view over a decryption holds its key in the catalogue; statistics of one hold plaintext.
    wrappers = _all(
        connection,
        """
        SELECT p.oid::int8, p.oid::pg_catalog.regprocedure::text FROM pg_catalog.pg_proc p
        WHERE p.prosrc ~ :called AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_depend d
            WHERE d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.objid = p.oid AND d.deptype = 'e')
        ORDER BY 2
        """,
        called=rf"\m(pgcrypto\.\w+|{'|'.join(KEYED)})\s*\(",
    )
    found = _named(
        connection,
        """
        SELECT DISTINCT pg_catalog.pg_describe_object(d.classid, d.objid, 0)
        FROM pg_catalog.pg_depend d
        JOIN pg_catalog.pg_proc p ON d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND p.oid = d.refobjid
        JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname = 'pgcrypto' AND p.proname = ANY(:names) OR p.oid::int8 = ANY(:wrappers) ORDER BY 1
        """,
        names=list(KEYED),
        wrappers=[each[0] for each in wrappers],
    )
    if found:
        problem = f"depend on decrypted values, so that a key or plaintext lies in the catalogue: {found}"
        yield Line("views and indexes", Verdict.UNSAFE, problem, "Drop them, and rotate the key.")
    elif wrappers:
        names = ", ".join(each[1] for each in wrappers)
        yield Line(
            "views and indexes",
            Verdict.NOTE,
            f"none is over a decrypted value, but these functions call pgcrypto: {names}",
        )
    else:
        yield Line("views and indexes", Verdict.OK, "none is over a decrypted value")


def _server(connection: Connection) -> Iterator[Line]:
    number = int(_named(connection, "SELECT pg_catalog.current_setting('server_version_num')"))
    major, minor = divmod(number, 10000)
    for name, verdict, mended, what in CVES:
        if major in mended and minor < mended[major]:
            remedy = f"Update PostgreSQL to {major}.{mended[major]} or newer."
            line = Line(name, verdict, f"PostgreSQL {major}.{minor} has it: {what}", remedy)
        else:
            line = Line(name, Verdict.OK, f"is mended in PostgreSQL {major}.{minor}")
        yield _with_ciphers(connection, line) if name == packets.CVE else line
    yield _preloaded(connection)


def _with_ciphers(connection: Connection, line: Line) -> Line:
    """Return the line about ciphers other than AES, with what the stored values say of theirs."""
    try:
        tables = encrypted_tables(connection)
    except SchemaNotMigratedError:
        return line  # which another line says already
    found: list[WeakValues] = []
    said = [line.detail]
    unread = [each.name for each in tables if not may_read(connection, each)]
    for table in tables:
        if table.name in unread:
            continue
        share = sampled_share(connection, table)
        found += (each for each in weak_values(connection, table, share=share) if each.weakness in packets.WEAK)
        if share < 1:
            said.append(f"{table.name} was looked at in a sample of {share:.1%}")
    if unread:
        said.append(f"this role may not read every value of {', '.join(unread)}: run it as the auditor as well")
    if not found:
        said += [] if unread else ["no stored value names another cipher than AES"]
        verdict = Verdict.NOTE if unread and line.verdict is Verdict.OK else line.verdict
        return Line(line.subject, verdict, "; ".join(said), line.remedy)
    said += [f"{each.table}.{each.field} has values of this kind: {each.values:,} ({each.weakness})" for each in found]
    remedy = (
        f"Rotate the key first: `{ROTATE}`. {line.remedy}"
        if line.remedy
        else "This server may not open them: rotate the key on one before its update, such as a restored backup, and use that one's data."
    )
    return Line(line.subject, Verdict.UNSAFE, "; ".join(said), remedy)


def _preloaded(connection: Connection) -> Line:
    settings = _all(connection, "SELECT name, setting FROM pg_catalog.pg_settings WHERE name LIKE '%preload_libraries'")
    if "shared_preload_libraries" not in {name for name, _ in settings}:
        detail = "are not shown to this role: run it as a superuser, or as a member of pg_read_all_settings, as well"
        return Line("preloaded libraries", Verdict.NOTE, detail)
    listed = ",".join(setting for _, setting in settings)
    names = {each.strip().strip('"').rpartition("/")[2] for each in listed.split(",")} - {""}
    if unknown := sorted(names - KNOWN_LIBRARIES):
        detail = f"{', '.join(unknown)}: not known here, so make sure that it logs no parameter"
        return Line("preloaded libraries", Verdict.NOTE, detail)
    return Line("preloaded libraries", Verdict.OK, ", ".join(sorted(names)) or "none")


def _core_dumps() -> Line:
    limit = resource.getrlimit(resource.RLIMIT_CORE)[0]
    if limit == 0:
        return Line("core dumps", Verdict.OK, "of this process are switched off")
    how = "unlimited" if limit == resource.RLIM_INFINITY else f"up to {limit} bytes"
    return Line(
        "core dumps",
        Verdict.UNSAFE,
        f"of this process are {how}, and would hold keys",
        "ulimit -c 0, or LimitCORE=0 in its unit.",
    )
