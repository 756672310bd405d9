"""Who owns, or may create, what the role's statements could find by its name; and tables whose statements leave this server.

Qualified statements find nothing else. This is the second line of defence, and it names what was left behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from voiceassist_db.models import REGISTRY_ROWS, table_of
from voiceassist_db.safety.finding import Finding

_TRUSTED: Final = """(trusted.rolsuper OR trusted.rolname OPERATOR(pg_catalog.=) 'pg_database_owner'::pg_catalog.name
            OR pg_catalog.has_database_privilege(trusted.oid, pg_catalog.current_database()::pg_catalog.text, 'CREATE'))"""

NOT_TRUSTED: Final = f"""NOT EXISTS (
        SELECT FROM pg_catalog.pg_roles trusted WHERE trusted.oid OPERATOR(pg_catalog.=) {{role}} AND {_TRUSTED})"""
"""The condition that a role may not create schemas in this database. A role that may could put anything anywhere, and so must be
trusted; no other role may have something where this role's statements find it by its name."""

_TRUSTED_OR_OWN: Final = f"({_TRUSTED} OR trusted.rolname OPERATOR(pg_catalog.=) current_user)"

NOT_OWN: Final = NOT_TRUSTED.replace(_TRUSTED, _TRUSTED_OR_OWN)
"""The same, for whoever needs not be protected from itself: a migrator, whose objects may be there before it is provisioned."""

_FIRST_NORMAL_OID: Final = 16384
"""Of the first object that is not the system's own: FirstNormalObjectId in PostgreSQL's transam.h."""

_SHOWN: Final = 5
"""How many objects of one owner a message names."""

_UNTRUSTED: Final = f"""untrusted AS MATERIALIZED (
        SELECT r.oid, r.rolname FROM pg_catalog.pg_roles r WHERE {NOT_TRUSTED.format(role="r.oid")})"""  # noqa: S608

_IN_PATH: Final = """n.nspname OPERATOR(pg_catalog.<>) 'pg_catalog'::pg_catalog.name
          AND n.oid OPERATOR(pg_catalog.<>) pg_catalog.pg_my_temp_schema()
          AND n.nspname OPERATOR(pg_catalog.=) ANY (
            pg_catalog.array_append(pg_catalog.current_schemas(false), 'pgcrypto'::pg_catalog.name))"""

_PATH: Final = f"""path AS MATERIALIZED (
        SELECT n.oid, n.nspname, n.nspowner, n.nspacl FROM pg_catalog.pg_namespace n WHERE {_IN_PATH})"""  # noqa: S608

_ENCRYPTED: Final = """EXISTS (
        SELECT FROM pg_catalog.pg_attribute a
        WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
          AND (pg_catalog.right(a.attname::pg_catalog.text, 10) OPERATOR(pg_catalog.=) '_encrypted'
            OR pg_catalog.starts_with(pg_catalog.col_description(c.oid, a.attnum), 'encrypted ')))"""
"""The condition that a relation ``c`` has columns that are named or declared as encrypted."""

_NAMED: Final = {
    "pg_proc": "pro",
    "pg_operator": "opr",
    "pg_opclass": "opc",
    "pg_opfamily": "opf",
    "pg_collation": "coll",
    "pg_conversion": "con",
    "pg_type": "typ",
}
"""Catalogues of what a statement can find by name, and the prefixes of their columns; tables have a rule of their own."""

_ROW_TYPES: Final = """ AND x.typcategory OPERATOR(pg_catalog.<>) 'A'::pg_catalog."char"
          AND (x.typrelid OPERATOR(pg_catalog.=) 0::pg_catalog.oid OR EXISTS (
            SELECT FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) x.typrelid
              AND c.relkind OPERATOR(pg_catalog.=) 'c'::pg_catalog."char"))"""
"""Leaves out the types that come with a table or with another type."""


def _objects(catalogues: Mapping[str, str], where: str = "") -> str:
    return " UNION ALL ".join(
        f"""SELECT 'pg_catalog.{catalogue}'::pg_catalog.regclass::pg_catalog.oid AS kind, x.oid,
        x.{prefix}namespace AS schema, x.{prefix}owner AS owner FROM pg_catalog.{catalogue} x
        WHERE x.oid OPERATOR(pg_catalog.>=) {_FIRST_NORMAL_OID}::pg_catalog.oid{where if catalogue == "pg_type" else ""}
        """  # noqa: S608  # of constants
        for catalogue, prefix in catalogues.items()
    )


_REGISTRY: Final = ", ".join(f"'{table_of(row).name}'" for row in REGISTRY_ROWS)

SUSPECT: Final = f"""
    WITH trusted_roles AS MATERIALIZED (
        SELECT ARRAY(SELECT trusted.oid FROM pg_catalog.pg_roles trusted WHERE {_TRUSTED}) AS oids), {_PATH}
    SELECT pg_catalog.has_database_privilege('public', pg_catalog.current_database()::pg_catalog.text, 'CREATE')
        OR EXISTS (
            SELECT FROM path p WHERE p.nspowner OPERATOR(pg_catalog.<>) ALL ((SELECT t.oids FROM trusted_roles t)::pg_catalog.oid[])
                OR EXISTS (
                    SELECT FROM pg_catalog.aclexplode(p.nspacl) a WHERE a.privilege_type OPERATOR(pg_catalog.=) 'CREATE'
                    AND a.grantee OPERATOR(pg_catalog.<>) ALL ((SELECT t.oids FROM trusted_roles t)::pg_catalog.oid[])))
        OR EXISTS (
            SELECT FROM ({_objects({**_NAMED, "pg_class": "rel"})}) o
            WHERE o.schema OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT p.oid FROM path p))
              AND o.owner OPERATOR(pg_catalog.<>) ALL ((SELECT t.oids FROM trusted_roles t)::pg_catalog.oid[]))
        OR EXISTS (
            SELECT FROM pg_catalog.pg_cast c WHERE c.oid OPERATOR(pg_catalog.>=) {_FIRST_NORMAL_OID}::pg_catalog.oid
              AND c.castcontext OPERATOR(pg_catalog.<>) 'e'::pg_catalog."char")
        OR EXISTS (
            SELECT FROM pg_catalog.pg_trigger t
            WHERE NOT t.tgisinternal AND (SELECT f.proowner FROM pg_catalog.pg_proc f WHERE f.oid OPERATOR(pg_catalog.=) t.tgfoid)
              OPERATOR(pg_catalog.<>) ALL ((SELECT r.oids FROM trusted_roles r)::pg_catalog.oid[]))
        OR EXISTS (SELECT FROM pg_catalog.pg_foreign_table f)
"""  # noqa: S608  # of constants
"""Whether :data:`SCHEMAS` could find something: one row, in a third of its time. A new connection is asked this first."""

_OBJECTS: Final = f"""
    SELECT pg_catalog.format('schema %s', f.nspname) AS subject,
        pg_catalog.format('%s owns in it what statements could find by name: %s%s', f.rolname,
            pg_catalog.array_to_string(f.names[1:{_SHOWN}], ', '),
            CASE WHEN pg_catalog.cardinality(f.names) OPERATOR(pg_catalog.>) {_SHOWN} THEN ', and more' END) AS problem,
        'Drop each, or give it to an owner who may create schemas in this database.' AS remedy
    FROM (
        SELECT p.nspname, u.rolname, pg_catalog.array_agg(pg_catalog.pg_describe_object(o.kind, o.oid, 0)) AS names
        FROM ({_objects(_NAMED, _ROW_TYPES)}) o
        JOIN untrusted u ON u.oid OPERATOR(pg_catalog.=) o.owner
        JOIN path p ON p.oid OPERATOR(pg_catalog.=) o.schema
        GROUP BY p.nspname, u.rolname
    ) f
    UNION ALL
    SELECT DISTINCT pg_catalog.format('table %s.%s', p.nspname, c.relname),
        pg_catalog.format('%s owns it, and it has the name of another one in the search path', u.rolname),
        'Drop it, or take its schema out of the search path.'
    FROM path p JOIN pg_catalog.pg_class c ON c.relnamespace OPERATOR(pg_catalog.=) p.oid
    JOIN untrusted u ON u.oid OPERATOR(pg_catalog.=) c.relowner
    JOIN pg_catalog.pg_class other ON other.relname OPERATOR(pg_catalog.=) c.relname AND other.oid OPERATOR(pg_catalog.<>) c.oid
    JOIN path q ON q.oid OPERATOR(pg_catalog.=) other.relnamespace
    WHERE c.relkind::pg_catalog.text OPERATOR(pg_catalog.=) ANY ('{{r,v,m,p,f}}'::pg_catalog.text[])
    UNION ALL
    SELECT pg_catalog.format('cast from %s to %s', c.castsource::pg_catalog.regtype, c.casttarget::pg_catalog.regtype),
        pg_catalog.format('%s owns it, and PostgreSQL could apply it unasked', pg_catalog.string_agg(DISTINCT u.rolname::pg_catalog.text, ', ')),
        pg_catalog.format('DROP CAST (%s AS %s);', c.castsource::pg_catalog.regtype, c.casttarget::pg_catalog.regtype)
    FROM pg_catalog.pg_cast c
    JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) c.castsource
    JOIN pg_catalog.pg_type v ON v.oid OPERATOR(pg_catalog.=) c.casttarget
    LEFT JOIN pg_catalog.pg_proc f ON f.oid OPERATOR(pg_catalog.=) c.castfunc
    JOIN untrusted u ON u.oid OPERATOR(pg_catalog.=) ANY (ARRAY[t.typowner, v.typowner, f.proowner])
    WHERE c.oid OPERATOR(pg_catalog.>=) {_FIRST_NORMAL_OID}::pg_catalog.oid
      AND c.castcontext OPERATOR(pg_catalog.<>) 'e'::pg_catalog."char"
      AND (t.oid OPERATOR(pg_catalog.<) {_FIRST_NORMAL_OID}::pg_catalog.oid
        OR v.oid OPERATOR(pg_catalog.<) {_FIRST_NORMAL_OID}::pg_catalog.oid)
    GROUP BY c.castsource, c.casttarget
    UNION ALL
    SELECT pg_catalog.format('trigger %s of table %s.%s', t.tgname, n.nspname, c.relname),
        pg_catalog.format('%s owns its function, which runs as this role and could replace statements that the driver has prepared', u.rolname),
        pg_catalog.format('DROP TRIGGER %I ON %I.%I; and REVOKE TRIGGER where others have it.', t.tgname, n.nspname, c.relname)
    FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc f ON f.oid OPERATOR(pg_catalog.=) t.tgfoid
    JOIN untrusted u ON u.oid OPERATOR(pg_catalog.=) f.proowner
    JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.tgrelid
    JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
    WHERE NOT t.tgisinternal AND c.relpersistence OPERATOR(pg_catalog.<>) 't'::pg_catalog."char" AND {_ENCRYPTED}
"""  # noqa: S608  # of constants

LEFTOVERS: Final = f"WITH {_UNTRUSTED}, {_PATH} {_OBJECTS}"
"""Which objects of roles that are not trusted the search path leads to; casts and triggers need no path."""

SCHEMAS: Final = f"""
    WITH {_UNTRUSTED}, {_PATH}
    SELECT 'database'::pg_catalog.text AS subject, 'PUBLIC may create schemas in it'::pg_catalog.text AS problem,
        pg_catalog.format('REVOKE CREATE ON DATABASE %I FROM PUBLIC;', pg_catalog.current_database()) AS remedy
    WHERE pg_catalog.has_database_privilege('public', pg_catalog.current_database()::pg_catalog.text, 'CREATE')
    UNION ALL
    SELECT pg_catalog.format('schema %s', p.nspname), pg_catalog.format('%s owns it', pg_catalog.pg_get_userbyid(p.nspowner)),
        pg_catalog.format('ALTER SCHEMA %I OWNER TO CURRENT_USER;', p.nspname)
    FROM path p WHERE {NOT_TRUSTED.format(role="p.nspowner")}
    UNION ALL
    SELECT pg_catalog.format('schema %s', p.nspname),
        pg_catalog.format('%s may create in it what this role''s statements find by name', coalesce(r.rolname, 'PUBLIC')),
        pg_catalog.format('REVOKE CREATE ON SCHEMA %I FROM %s;', p.nspname, coalesce(pg_catalog.quote_ident(r.rolname), 'PUBLIC'))
    FROM path p CROSS JOIN LATERAL pg_catalog.aclexplode(p.nspacl) a
    LEFT JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) a.grantee
    WHERE a.privilege_type OPERATOR(pg_catalog.=) 'CREATE' AND a.grantee OPERATOR(pg_catalog.<>) p.nspowner
      AND {NOT_TRUSTED.format(role="a.grantee")}
    UNION ALL
    {_OBJECTS}
    UNION ALL
    SELECT pg_catalog.format('table %s.%s', n.nspname, c.relname),
        'is a foreign table with encrypted columns: parameters go on to a server that was not checked',
        'Keep encrypted tables in this database.'
    FROM pg_catalog.pg_foreign_table f JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) f.ftrelid
    JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
    WHERE {_ENCRYPTED}
"""  # noqa: S608  # of constants
"""What is wrong with the objects that this role's statements could find by name (as CVE-2018-1058 has it), and with foreign tables."""

NOT_OWN_SCHEMAS: Final = SCHEMAS.replace(_TRUSTED, _TRUSTED_OR_OWN)
"""The same without what belongs to the role itself, and what it may do."""

DISTRIBUTED: Final = f"""
    SELECT pg_catalog.format('table %s.%s', n.nspname, c.relname),
        'is distributed by Citus, which sends keys to other servers in the text of statements',
        pg_catalog.format('SELECT undistribute_table(%L);', pg_catalog.format('%I.%I', n.nspname, c.relname))
    FROM pg_catalog.pg_dist_partition d
    JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) d.logicalrelid::pg_catalog.oid
    JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
    WHERE c.relname OPERATOR(pg_catalog.=) ANY (ARRAY[{_REGISTRY}]::pg_catalog.name[]) OR {_ENCRYPTED}
    ORDER BY 1
"""  # noqa: S608  # of constants
"""Which tables of ours Citus distributes. Only for a database that has Citus: its catalogue table is missing elsewhere."""


def unsafe_schemas(rows: Iterable[tuple[Any, ...]]) -> list[Finding]:
    """Return the findings in rows of :data:`SCHEMAS` or :data:`DISTRIBUTED`."""
    return [Finding(*row) for row in rows]
