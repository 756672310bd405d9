"""How our statements are compiled: so that PostgreSQL looks up no function, type or operator in the search path.

Whoever may put an object into a schema of the path, or into ``pg_temp``, decides what a name without a schema means. A domain
called ``text`` with a CHECK, for example, is handed every key and value that is cast to it. So every name carries its schema;
a construct that cannot carry one is refused when it is compiled. Names of tables and of an application's own types stay as
they are declared, and so do all names in an expression of the application's (:class:`AsWritten`). Owns the dialect; executes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from sqlalchemy import BindParameter, ClauseElement, ColumnElement, Executable, Select, Table
from sqlalchemy.dialects.postgresql import DOMAIN
from sqlalchemy.dialects.postgresql.base import PGTypeCompiler
from sqlalchemy.dialects.postgresql.psycopg import PGCompiler_psycopg, PGDialect_psycopg
from sqlalchemy.exc import CompileError
from sqlalchemy.sql import operators
from sqlalchemy.sql.compiler import COLLECT_CARTESIAN_PRODUCTS, OPERATORS, SQLCompiler
from sqlalchemy.sql.elements import BinaryExpression, Grouping
from sqlalchemy.types import Enum
from sqlalchemy.util import immutabledict

_NOT_LOOKED_UP: Final = frozenset({"any", "all", "array", "coalesce", "greatest", "least"})
"""Functions of SQLAlchemy's that are syntax to PostgreSQL, so that no name is looked up."""

_BY_NAME: Final = frozenset(
    (
        *(
            "bpchar",
            "bytea",
            "cidr",
            "date",
            "inet",
            "json",
            "jsonb",
            "jsonpath",
            "macaddr",
            "macaddr8",
            "money",
            "oid",
        ),
        *("name", "regclass", "regconfig", "text", "tid", "tsquery", "tsvector", "uuid"),
        *("int4range", "int8range", "numrange", "daterange", "tsrange", "tstzrange"),
        *("int4multirange", "int8multirange", "nummultirange", "datemultirange", "tsmultirange", "tstzmultirange"),
    )
)
"""PostgreSQL's types whose name is looked up. Others, such as INTEGER and VARCHAR, are words of its grammar."""

_FIRST_WORD: Final = re.compile(r"\w+")
_SYMBOL: Final = re.compile(r"[-+*/<>=~!@#%^&|`?]+")
_CONNECTIVES: Final = frozenset({operators.and_, operators.or_, operators.comma_op})


class _Types(PGTypeCompiler):
    def process(self, type_: Any, **kw: Any) -> str:
        text: str = super().process(type_, **kw)
        word = _FIRST_WORD.match(text)
        is_own = isinstance(type_, Enum | DOMAIN)
        if is_own or word is None or word[0].lower() not in _BY_NAME:
            return text
        return f"pg_catalog.{word[0].lower()}{text[word.end() :]}"


class AsWritten(Grouping[Any]):
    """An expression of the application's own, which is compiled as SQLAlchemy does: operators of its extensions have no place in ours.

    Args:
        expression: The expression. It sees no key: it holds no parameter but its own.
    """

    __visit_name__ = "as_written"
    inherit_cache = True

    def __init__(self, expression: ColumnElement[Any]) -> None:
        super().__init__(expression)
        self._propagate_attrs = immutabledict()  # else a mapped column would make our statement one of the ORM


class _Statements(PGCompiler_psycopg):
    _is_as_written = False

    def visit_as_written(self, expression: AsWritten, **kw: Any) -> str:
        outer, self._is_as_written = self._is_as_written, True
        try:
            return str(self.visit_grouping(expression, **kw))
        finally:
            self._is_as_written = outer

    def visit_function(self, func: Any, add_to_result_map: Any = None, **kwargs: Any) -> str:
        text: str = super().visit_function(func, add_to_result_map, **kwargs)
        is_named = self._is_as_written or bool(func.packagenames) or func.name.lower() in _NOT_LOOKED_UP
        return text if is_named else f"pg_catalog.{text}"

    def visit_insert(self, insert_stmt: Any, visited_bindparam: Any = None, visiting_cte: Any = None, **kw: Any) -> str:
        text = str(super().visit_insert(insert_stmt, visited_bindparam, visiting_cte, **kw))
        is_given = any(each.identity is not None and each.identity.always for each in insert_stmt.table.primary_key)
        # Of an identity that is generated always, the repository asks for the key first. SQLAlchemy has no words for it.
        return text.replace(") SELECT ", ") OVERRIDING SYSTEM VALUE SELECT ", 1) if is_given else text

    def _generate_generic_binary(
        self, binary: BinaryExpression[Any], opstring: str, eager_grouping: bool = True, **kw: Any
    ) -> str:
        if self._is_as_written:
            return super()._generate_generic_binary(binary, opstring, eager_grouping, **kw)
        # OPERATOR() binds as tightly whatever the operator is, so one within another needs parentheses.
        return super()._generate_generic_binary(binary, _qualified(opstring), eager_grouping=True, **kw)

    def visit_expression_clauselist(self, clauselist: Any, **kw: Any) -> str:
        if self._is_as_written or clauselist.operator in _CONNECTIVES:
            return str(super().visit_expression_clauselist(clauselist, **kw))
        operator = _qualified(OPERATORS[clauselist.operator])
        return f"({self._generate_delimited_list(clauselist.clauses, operator, **kw)})"

    def visit_in_op_binary(self, binary: Any, operator: Any, **kw: Any) -> str:
        if self._is_as_written:
            return super()._generate_generic_binary(binary, OPERATORS[operator], **kw)
        if not hasattr(binary.right, "element") or binary.right.element.__visit_name__ != "select":
            _refuse("IN with a list")
        left, right = (each._compiler_dispatch(self, **kw) for each in (binary.left, binary.right))
        return f"({left} OPERATOR(pg_catalog.=) ANY {right})"

    def visit_case(self, clause: Any, **kwargs: Any) -> str:
        if clause.value is not None and not self._is_as_written:
            _refuse("CASE with a value")
        return str(super().visit_case(clause, **kwargs))

    def _generate_generic_unary_operator(self, unary: Any, opstring: str, **kw: Any) -> str:
        symbol = opstring if self._is_as_written else _qualified(opstring)
        return str(super()._generate_generic_unary_operator(unary, symbol, **kw))

    def _get_operator_dispatch(self, operator_: Any, qualifier1: str, qualifier2: str | None) -> Any:
        if operator_ in _HIDDEN and not self._is_as_written:
            _refuse(operator_.__name__)
        return super()._get_operator_dispatch(operator_, qualifier1, qualifier2)


_HIDDEN: Final = frozenset(
    {
        *(operators.like_op, operators.not_like_op, operators.ilike_op, operators.not_ilike_op),
        *(operators.startswith_op, operators.not_startswith_op, operators.istartswith_op, operators.not_istartswith_op),
        *(operators.endswith_op, operators.not_endswith_op, operators.iendswith_op, operators.not_iendswith_op),
        *(operators.contains_op, operators.not_contains_op, operators.icontains_op, operators.not_icontains_op),
        *(operators.between_op, operators.not_between_op, operators.not_in_op),
        *(operators.is_distinct_from, operators.is_not_distinct_from),
        *(operators.regexp_match_op, operators.not_regexp_match_op, operators.regexp_replace_op),
    }
)
"""Operators of SQLAlchemy's whose syntax leaves no room for a schema."""


def _qualified(opstring: str) -> str:
    symbol = opstring.strip()
    return f" OPERATOR(pg_catalog.{symbol}) " if _SYMBOL.fullmatch(symbol) else opstring


def _refuse(what: str) -> NoReturn:
    raise CompileError(f"{what} names an operator that the search path decides about: write it with = and OR")


class QualifyingDialect(PGDialect_psycopg):
    """PostgreSQL through psycopg, with the schema of every function, type and operator."""

    supports_statement_cache = True
    statement_compiler = _Statements
    type_compiler_cls = _Types


DIALECT: Final = QualifyingDialect()


def compiled(statement: Executable, schemas: Mapping[str | None, str] | None = None) -> SQLCompiler:
    """Compile a statement.

    Args:
        statement: The statement.
        schemas: A ``schema_translate_map``.

    Raises:
        sqlalchemy.exc.CompileError: It has a construct that names an operator or a type without a schema.
    """
    assert isinstance(statement, ClauseElement)
    made = statement.compile(
        dialect=DIALECT, schema_translate_map=schemas or None, render_schema_translate=bool(schemas)
    )
    assert isinstance(made, SQLCompiler)
    return made


def names_tables_of(statement: Executable, schema: str | None) -> bool:
    """Say whether a statement names a table that is declared with this schema; with None, without one."""
    return str(compiled(statement, {schema: "elsewhere"})) != str(compiled(statement))


def others(statement: Select[Any], table: Table) -> tuple[set[str], set[str]]:
    """Return the names of the tables, beside one, whose rows a SELECT combines, and of those among them that no condition joins with it."""
    made: Any = statement.compile(dialect=DIALECT, linting=COLLECT_CARTESIAN_PRODUCTS)
    linter = made.from_linter
    loose, _ = linter.lint(start=table)
    return {name for each, name in linter.froms.items() if each != table}, {linter.froms[each] for each in loose or ()}


def binders(made: SQLCompiler) -> dict[str, Callable[[Any], Any]]:
    """Return, by parameter, what turns a value into what the driver takes; others are given as they are."""
    return {name: process for name, bind in made.binds.items() if (process := binder(bind))}


def binder(parameter: BindParameter[Any]) -> Callable[[Any], Any] | None:
    """Return what turns a parameter's value into what the driver takes; None where it is given as it is."""
    return parameter.type.dialect_impl(DIALECT).bind_processor(DIALECT)


def rendered(statement: Executable, parameters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a statement's text for the driver, and its parameters, the values in the statement included.

    Raises:
        sqlalchemy.exc.CompileError: As for :func:`compiled`.
    """
    made = compiled(statement)
    values: dict[str, Any] = dict(made.construct_params(dict(parameters)))
    for name, process in binders(made).items():
        values[name] = process(values[name])
    return str(made), values
