"""Objects that log what they are given, of each kind that PostgreSQL finds by its name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

MARK: Final = "captured:"

_SEE: Final = f"""
    CREATE FUNCTION {{s}}.see(pg_catalog.text) RETURNS pg_catalog.bool LANGUAGE plpgsql AS
    $$ BEGIN RAISE LOG '{MARK} %', $1; RETURN true; END $$
"""
_FUNCTION: Final = f"""
    CREATE FUNCTION {{s}}.{{name}}({{arguments}}) RETURNS {{returns}} LANGUAGE plpgsql AS
    $$ BEGIN RAISE LOG '{MARK} % %', {{seen}}; RETURN NULL; END $$
"""

_TEXTS: Final = ("pg_catalog.text", "pg_catalog.varchar", "pg_catalog.bytea")
_OPERANDS: Final = (
    *((each, each) for each in ("text", "varchar", "bytea", "uuid", "int4", "bool", "timestamptz", "date")),
    *(("text", "varchar"), ("varchar", "text"), ("int4", "int8"), ("int8", "int4"), ("name", "text"), ("oid", "int4")),
)
_OPERATORS: Final = {"||": "text", "=": "bool", "<>": "bool", ">": "bool", ">=": "bool", "-": "int4"}
_CALLED: Final = (
    ("pgp_sym_encrypt", "bytea"),
    ("pgp_sym_decrypt", "text"),
    ("pgp_sym_encrypt_bytea", "bytea"),
    ("pgp_sym_decrypt_bytea", "bytea"),
    ("starts_with", "bool"),
    ("textcat", "text"),
    ("convert_to", "bytea"),
    ("to_char", "text"),
    ("octet_length", "int4"),
    ("get_byte", "int4"),
)


def _domains() -> Iterator[str]:
    yield _SEE
    for name in ("text", "varchar", "bytea", "uuid", "int4", "date"):
        yield f"CREATE DOMAIN {{s}}.{name} AS pg_catalog.{name} CHECK ({{s}}.see(CAST(VALUE AS pg_catalog.text)))"


def _functions() -> Iterator[str]:
    for name, returns in _CALLED:
        for count in (1, 2, 3):
            for types in itertools.product(_TEXTS, repeat=count):
                seen = "$1, " + ("$2" if count > 1 else "''")
                yield _FUNCTION.format(
                    s="{s}", name=name, arguments=", ".join(types), returns=f"pg_catalog.{returns}", seen=seen
                )
    for element in ("text", "bytea", "uuid"):
        arguments, returns = f"pg_catalog.{element}[]", f"SETOF pg_catalog.{element}"
        body = f"$$ BEGIN RAISE LOG '{MARK} %', $1; RETURN; END $$"
        yield f"CREATE FUNCTION {{s}}.unnest({arguments}) RETURNS {returns} LANGUAGE plpgsql AS {body}"


def _operators() -> Iterator[str]:
    for number, (left, right) in enumerate(_OPERANDS):
        arguments = f"pg_catalog.{left}, pg_catalog.{right}"
        for returns in sorted(set(_OPERATORS.values())):
            name = f"operand_{number}_{returns}"
            yield _FUNCTION.format(
                s="{s}", name=name, arguments=arguments, returns=f"pg_catalog.{returns}", seen="$1, $2"
            )
        for operator, returns in _OPERATORS.items():
            yield (
                f"CREATE OPERATOR {{s}}.{operator} (LEFTARG = pg_catalog.{left}, RIGHTARG = pg_catalog.{right}, "
                f"FUNCTION = {{s}}.operand_{number}_{returns})"
            )


def _aggregates() -> Iterator[str]:
    for number, kind in enumerate(("text", "varchar", "bytea", "int8")):
        arguments = f"pg_catalog.{kind}, pg_catalog.{kind}"
        yield _FUNCTION.format(
            s="{s}", name=f"step_{number}", arguments=arguments, returns=f"pg_catalog.{kind}", seen="$1, $2"
        )
        for name in ("max", "min", "sum", "count", "array_agg"):
            yield f"CREATE AGGREGATE {{s}}.{name}(pg_catalog.{kind}) (SFUNC = {{s}}.step_{number}, STYPE = pg_catalog.{kind})"


def _casts() -> Iterator[str]:
    yield _SEE
    yield "CREATE TYPE {s}.boxed AS (content pg_catalog.text)"
    for number, kind in enumerate(("text", "varchar", "bytea", "uuid")):
        body = f"$$ BEGIN RAISE LOG '{MARK} %', $1; RETURN ROW(CAST('' AS pg_catalog.text)); END $$"
        yield f"CREATE FUNCTION {{s}}.box_{number}(pg_catalog.{kind}) RETURNS {{s}}.boxed LANGUAGE plpgsql AS {body}"
        yield f"CREATE CAST (pg_catalog.{kind} AS {{s}}.boxed) WITH FUNCTION {{s}}.box_{number}(pg_catalog.{kind}) AS IMPLICIT"
    for name, returns in (("pgp_sym_encrypt", "bytea"), ("pgp_sym_decrypt", "text")):
        body = "$$ BEGIN RETURN NULL; END $$"
        yield f"CREATE FUNCTION {{s}}.{name}({{s}}.boxed, {{s}}.boxed) RETURNS pg_catalog.{returns} LANGUAGE plpgsql AS {body}"


def _tables() -> Iterator[str]:
    yield _SEE
    yield (
        "CREATE FUNCTION {s}.seen() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE LOG '{MARK} %', CAST(NEW AS pg_catalog.text); RETURN NEW; END $$"
    )
    for name in ("patient_data", "clinical_notes", "guide"):
        yield f"CREATE TABLE {{s}}.{name} AS SELECT * FROM public.{name} WITH NO DATA"
        yield f"CREATE TRIGGER seen BEFORE INSERT OR UPDATE ON {{s}}.{name} FOR EACH ROW EXECUTE FUNCTION {{s}}.seen()"


TRAPS: Final[dict[str, tuple[str, ...]]] = {
    "domain": tuple(_domains()),
    "enum": ("CREATE TYPE {s}.text AS ENUM ('a')",),  # whose error message shows the value
    "composite": ("CREATE TYPE {s}.text AS (a pg_catalog.int4)",),
    "range": ("CREATE TYPE {s}.text AS RANGE (SUBTYPE = pg_catalog.int4)",),
    "function": tuple(_functions()),
    "operator": tuple(_operators()),
    "aggregate": tuple(_aggregates()),
    "cast": tuple(_casts()),
    "collation": ("CREATE COLLATION {s}.\"C\" (PROVIDER = libc, LOCALE = 'C')",),
    "table": tuple(_tables()),
    "view": ("CREATE VIEW {s}.patient_data AS SELECT * FROM public.patient_data",),
}
"""The statements of each kind, for the schema ``{s}``."""


def traps(kind: str, schema: str) -> str:
    """Return the statements that set a kind of trap in a schema."""
    return "; ".join(each.replace("{s}", schema) for each in TRAPS[kind])


def every_trap(schema: str) -> str:
    """Return the statements that set every kind that can stand beside the others and takes no row from the real tables."""
    return "; ".join(traps(kind, schema) for kind in ("domain", "function", "operator", "aggregate", "collation")) + (
        "; " + "; ".join(each.replace("{s}", schema) for each in TRAPS["cast"] if each != _SEE)
    )
