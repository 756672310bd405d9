"""How the server would execute the product's statements: whether anything that it may write to its disk is in the clear."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from tests.secrecy.server import LOGS, Server

_STORING: Final = frozenset(
    {"Sort", "Incremental Sort", "Hash", "Materialize", "Memoize", "WindowAgg", "SetOp", "CTE Scan", "Hashed", "Mixed"}
    | {"Function Scan", "Table Function Scan", "Recursive Union"}
)
"""Nodes, and strategies of aggregates, that gather rows before they pass them on, in temporary files where they need more than work_mem."""

_PLANNERS: Final = (
    (),
    ("enable_indexscan=off", "enable_indexonlyscan=off"),
    ("enable_indexscan=off", "enable_indexonlyscan=off", "enable_bitmapscan=off", "enable_nestloop=off"),
    ("enable_seqscan=off", "enable_sort=off", "enable_hashjoin=off"),
)
"""Ways to plan: which one is taken depends on the size of tables."""


def encrypting_statements(server: Server, user: str) -> set[str]:
    """Return the statements with a key that a role has executed with parameters, as the server logged them."""
    statements = set()
    for line in (server.data / "log" / LOGS["json log"]).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        executed = re.match(r"execute [^:]*: (.*)", record.get("message", ""), re.DOTALL)
        if executed and re.match(user, record.get("user", "")) and "pgcrypto.pgp_sym_" in executed[1]:
            statements.add(executed[1])
    return statements


def stored_in_the_clear(server: Server, statement: str) -> set[str]:
    """Return the nodes of a statement's plans that could write to the disk what it decrypts, or is to encrypt."""
    return {
        f"{node['Node Type']} of {node.get('Output')}"
        for plan in _plans(server, statement)
        for node in _nodes(plan)
        if (node["Node Type"] in _STORING or node.get("Strategy") in _STORING) and _is_clear(node, statement)
    }


def _is_clear(node: dict[str, Any], statement: str) -> bool:
    """Say whether a node's rows hold a decrypted value, or one that is given to be encrypted."""
    output = str(node.get("Output"))
    if node["Node Type"] == "Aggregate":
        # Of more groups than fit into its memory it writes the rows that it is given. What it counts of them stays there.
        output = str([node.get("Group Key"), *(each.get("Output") for each in node["Plans"])])
    return "pgp_sym_decrypt" in output or (statement.startswith("INSERT") and "given" in output)


def _plans(server: Server, statement: str) -> Iterator[dict[str, Any]]:
    count = max((int(number) for number in re.findall(r"\$(\d+)", statement)), default=0)
    execute = f"EXECUTE planned ({', '.join(['NULL'] * count)})"
    with server.naive("plan_cache_mode=force_generic_plan") as connection:
        connection.execute(f"PREPARE planned AS {statement}".encode())
        for planner in _PLANNERS:
            for setting in ("ALL", *planner):
                connection.execute(f"{'RESET' if setting == 'ALL' else 'SET'} {setting}".encode())
            connection.execute("DISCARD PLANS")
            row = connection.execute(f"EXPLAIN (VERBOSE, FORMAT JSON) {execute}".encode()).fetchone()
            assert row is not None
            yield row[0][0]["Plan"]


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for each in plan.get("Plans", ()):
        yield from _nodes(each)
