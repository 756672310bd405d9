#!/usr/bin/env python3
"""Write docs/api.md: the public names of the package with their signatures, out of their docstrings.

Usage: .venv/bin/python .ci/api_reference.py
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "api.md"

PUBLIC: Final[dict[str, tuple[str, ...]]] = {
    "voiceassist_db": (),
    "voiceassist_db.models": (
        "EncryptedRow",
        "EncryptedInPlace",
        "Kind",
        "encrypted_column",
        "blind_index_column",
        "PatientRow",
        "ClinicalNoteRow",
    ),
    "voiceassist_db.config": ("key_provider",),
    "voiceassist_db.providers.vault": (),
    "voiceassist_db.providers.environment": ("EnvironmentKeyProvider",),
    "voiceassist_db.keys": ("KeyProvider",),
    "voiceassist_db.pools": ("WholePool",),
    "voiceassist_db.schema": ("migrate", "Migrated", "Revision", "migration_sql", "complete_tables"),
    "voiceassist_db.initialisation": ("initialise_keys", "Initialised"),
    "voiceassist_db.rotation": (
        "rotate",
        "RotationReport",
        "rotate_index_key",
        "IndexRotationReport",
        "retire",
        "Retirement",
        "Pace",
        "Progress",
    ),
    "voiceassist_db.status": ("read_status", "Status", "Rotation"),
    "voiceassist_db.verification": ("verify", "TableReport", "Failure"),
    "voiceassist_db.alembic": ("install",),
    "voiceassist_db.testing": ("MemoryKeyProvider", "Databases", "throwaway_server", "in_memory", "plain"),
    "voiceassist_db.errors": (),
}
"""The names of each module; none: those of its ``__all__``, and of ``errors`` all classes."""

HEAD: Final = """\
# API reference

Made of the docstrings by `.ci/api_reference.py`; a test compares it. The pages beside it explain: [tables](tables.md),
[querying](querying.md), [sessions](sessions.md), [migrations](migrations.md), [testing](testing.md). What is not listed here is internal, and
may change.
"""
LISTED: Final = frozenset({"Repository"})
"""Classes whose methods are told once, where they stand."""

INTERNAL: Final = ("voiceassist_db.providers", "voiceassist_db.pools", "voiceassist_db.verification")
"""Modules whose classes have methods for this package alone, or those of a listed interface."""

SECTIONS: Final = ("Args", "Attributes", "Returns", "Raises")
ITEM: Final = re.compile(r"    (\*{0,2}[\w.]+(?:, [\w.]+)*): (.*)")


def names_of(module: Any) -> list[str]:
    """Return the public names of a module."""
    if given := PUBLIC[module.__name__]:
        return list(given)
    if hasattr(module, "__all__"):
        return sorted(module.__all__, key=str.lower)
    return [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and name[0] != "_"
    ]


def members_of(kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the public methods of a class, with those that it inherits from a class that is not listed itself."""
    seen = set()
    for base in kind.__mro__:
        if not base.__module__.startswith("voiceassist_db") or (base is not kind and has_listed_base(kind)):
            continue
        for name, value in vars(base).items():
            method = getattr(value, "__func__", value)
            is_internal = base.__module__.startswith(INTERNAL)
            if (
                name.startswith("_")
                or name in seen
                or is_internal
                or not (inspect.isfunction(method) or is_property(value))
            ):
                continue
            seen.add(name)
            yield name, value


def has_listed_base(kind: type[Any]) -> str | None:
    """Return the base of a class that is listed itself."""
    return next((base.__name__ for base in kind.__mro__[1:] if base.__name__ in LISTED), None)


def is_property(value: Any) -> bool:
    """Say whether a member of a class is read like an attribute."""
    return isinstance(value, property) or type(value).__name__ in {"memoized_property", "cached_property"}


def signature_of(called: Callable[..., Any], *, is_bound: bool) -> str:
    """Return the parameters and the result of a function, as they are written."""
    signature = inspect.signature(called)
    parameters = list(signature.parameters.values())[is_bound:]
    shown = str(signature.replace(parameters=[shortened(each) for each in parameters]))
    return (
        shown.replace("'", "")
        if "'" in shown and '"' not in shown and "= '" not in shown
        else re.sub(r"(: |-> )'([^']*)'", r"\1\2", shown)
    )


def shortened(parameter: inspect.Parameter) -> inspect.Parameter:
    """Return a parameter whose default can be read."""
    default = parameter.default
    if default in (inspect.Parameter.empty, None, ()) or type(default) in {str, int, float, bool}:
        return parameter
    return parameter.replace(default=Dots())


class Dots:
    """Stands for a default that nobody would write."""

    def __repr__(self) -> str:
        return "…"


def told(doc: str | None) -> str:
    """Return a docstring in Markdown: its sections become lists, and its examples blocks."""
    out: list[str] = []
    section = ""
    for line in inspect.cleandoc(doc or "").splitlines():
        if line.removesuffix(":") in SECTIONS and line.endswith(":"):
            section = line.removesuffix(":")
            out.append(f"*{section}*\n")
        elif section and (found := ITEM.match(line)) and section != "Returns":
            out.append(f"- `{found[1]}`: {found[2]}")
        elif section and line.startswith("    "):
            out.append(f"- {line.strip()}" if out[-1].endswith("*\n") else f"  {line.strip()}")
        else:
            section = section if line.strip() else ""
            out.append(line)
    text = re.sub(r"^::\n\n((?:    .*\n|\n)+)(?=\S)", _example, "\n".join(out) + "\n", flags=re.MULTILINE)
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text).strip()


def _example(found: re.Match[str]) -> str:
    return f"```python\n{inspect.cleandoc(found[1])}\n```\n\n"


def doc_of(kind: type[Any]) -> str:
    """Return the docstring of a class, with that of its ``__init__`` if the arguments are there."""
    own = inspect.cleandoc(kind.__doc__ or "")
    init = vars(kind).get("__init__")
    more = inspect.cleandoc(getattr(init, "__doc__", None) or "")
    return own + "\n\n" + more.partition("\n\n")[2] if "Args:" in more and "Args:" not in own else own


def entry(name: str, value: Any) -> list[str]:
    """Return what is told of a class or a function."""
    if not value.__module__.startswith("voiceassist_db"):
        return [f"### {name}", f"Is `{value.__module__}.{value.__name__}`."]
    if not inspect.isclass(value):
        return [f"### {name}", f"```text\n{name}{signature_of(value, is_bound=False)}\n```", told(value.__doc__)]
    parts = [f"### {name}"]
    if base := has_listed_base(value):
        parts.append(f"Is a `{base}`, and has all of its methods.")
    if is_made_by_its_user(value):
        parts.append(f"```text\n{name}{signature_of(value, is_bound=False).removesuffix(' -> None')}\n```")
    parts.append(told(doc_of(value)))
    for method, member in members_of(value):
        parts.append(f"#### {name}.{method}")
        function = getattr(member, "__func__", member)
        if not is_property(member):
            is_bound = not isinstance(member, staticmethod)
            parts.append(f"```text\n{method}{signature_of(function, is_bound=is_bound)}\n```")
        parts.append(told(function.__doc__ if not is_property(member) else member.__doc__))
    return parts


def is_made_by_its_user(kind: type[Any]) -> bool:
    """Say whether the arguments of a class are of interest: it has a documented ``__init__``, or is a record of values."""
    return "Args:" in doc_of(kind) or dataclasses.is_dataclass(kind)


def errors(module: Any) -> list[str]:
    """Return a table of all errors."""
    rows = ["| error | is a | means |", "|---|---|---|"]
    for name in names_of(module):
        kind = getattr(module, name)
        text = told(kind.__doc__).replace("*Attributes*\n", "Attributes:").replace("|", "\\|")
        rows.append(f"| `{name}` | `{kind.__base__.__name__}` | {' '.join(text.split())} |")
    return ["\n".join(rows)]


def fixtures(module: Any) -> list[str]:
    """Return a list of the fixtures of pytest."""
    found = [
        (name, value) for name, value in vars(module).items() if type(value).__name__ == "FixtureFunctionDefinition"
    ]
    lines = [f"- `{name}`: {' '.join(told(value.__doc__).split())}" for name, value in found]
    return ["Fixtures of pytest:", "\n".join(lines)]


def operations() -> list[str]:
    """Return the operations of migrations."""
    from voiceassist_db.alembic.executing import OPERATIONS

    parts = []
    for name, kind in OPERATIONS:
        called = inspect.getattr_static(kind, name).__func__
        shown = signature_of(called, is_bound=True).replace("operations: Operations, ", "")
        # From the source: Alembic replaces the docstring when it registers the operation.
        doc = ast.get_docstring(ast.parse(textwrap.dedent(inspect.getsource(called))).body[0])  # type: ignore[arg-type]
        doc = re.sub(r"^ +operations: .*\n", "", doc or "", flags=re.MULTILINE)
        parts += [f"### op.{name}", f"```text\nop.{name}{shown}\n```", told(doc)]
    return parts


def page() -> str:
    """Return the whole page."""
    parts = [HEAD.rstrip()]
    for place in PUBLIC:
        module = importlib.import_module(place)
        first = inspect.cleandoc(module.__doc__ or "").partition("\n\n")[0]
        parts += [f"## {place}", told(first)]
        if place.endswith(".errors"):
            parts += errors(module)
            continue
        if place.endswith(".testing"):
            parts += fixtures(module)
        for name in names_of(module):
            parts += entry(name, getattr(module, name))
        if place.endswith(".alembic"):
            parts += operations()
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
