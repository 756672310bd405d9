"""Which names in a statement PostgreSQL looks up in the search path, by the grammar of PostgreSQL itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pglast import ast, parse_sql
from pglast.enums import A_Expr_Kind, SubLinkType
from pglast.visitors import Visitor

_BY_OPERATOR = {A_Expr_Kind.AEXPR_OP, A_Expr_Kind.AEXPR_OP_ANY, A_Expr_Kind.AEXPR_OP_ALL}


def _text(names: Any) -> str:
    return ".".join(each.sval for each in names)


class _Names(Visitor):
    def __init__(self) -> None:
        self.found: list[str] = []
        self.tables: list[tuple[str, str]] = []

    def visit_FuncCall(self, _: Any, node: ast.FuncCall) -> None:
        if node.funcname is not None and len(node.funcname) < 2:
            self.found.append(f"function {_text(node.funcname)}")

    def visit_TypeName(self, _: Any, node: ast.TypeName) -> None:
        if node.names and len(node.names) < 2:
            self.found.append(f"type {_text(node.names)}")

    def visit_A_Expr(self, _: Any, node: ast.A_Expr) -> None:
        assert node.kind is not None
        if node.kind not in _BY_OPERATOR:
            self.found.append(f"operator of {node.kind.name}")
        elif node.name is None or len(node.name) < 2:
            self.found.append(f"operator {_text(node.name)}")

    def visit_SubLink(self, _: Any, node: ast.SubLink) -> None:
        compares = node.subLinkType in {SubLinkType.ANY_SUBLINK, SubLinkType.ALL_SUBLINK}
        if compares and (not node.operName or len(node.operName) < 2):
            self.found.append("operator of IN (SELECT …)")

    def visit_CaseExpr(self, _: Any, node: ast.CaseExpr) -> None:
        if node.arg is not None:
            self.found.append("operator of CASE with a value")

    def visit_JoinExpr(self, _: Any, node: ast.JoinExpr) -> None:
        if node.usingClause or node.isNatural:
            self.found.append("operator of JOIN USING")

    def visit_SortBy(self, _: Any, node: ast.SortBy) -> None:
        if node.useOp:
            self.found.append("operator of ORDER BY USING")

    def visit_CollateClause(self, _: Any, node: ast.CollateClause) -> None:
        if node.collname is None or len(node.collname) < 2:
            self.found.append(f"collation {_text(node.collname)}")

    def visit_RangeVar(self, _: Any, node: ast.RangeVar) -> None:
        self.tables.append((node.schemaname or "", node.relname or ""))

    def visit_CommonTableExpr(self, _: Any, node: ast.CommonTableExpr) -> None:
        self.tables.append(("with", node.ctename or ""))


def looked_up(sql: str, *, tables: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield what a statement names without a schema: functions, types, operators, collations, and tables but those given."""
    names = _Names()
    names(parse_sql(sql))
    yield from names.found
    own = tables | {name for schema, name in names.tables if schema == "with"}
    for schema, name in names.tables:
        if not schema and name not in own:
            yield f"table {name}"
