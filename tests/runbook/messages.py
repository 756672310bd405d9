"""Which messages a command can print, read from the code that it imports: errors, refusals, waits and results.

A message's text is followed through variables, functions and constants. A part of it that is known only when it is printed is ``…``.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import click

from voiceassist_db import errors

PACKAGE: Final = Path(errors.__file__).parent
HOLE: Final = "…"
MAX_VARIANTS: Final = 64
MAX_DEPTH: Final = 12

NOT_OF_A_RUN: Final = f"{PACKAGE.name}.repositories"
"""What ``Database`` has beside the keys. ``rotation`` may not import it, as the contracts of import-linter say."""


def _errors() -> Iterator[str]:
    """Yield the names of the errors that a command turns into a message."""
    for module, kind in ((errors, errors.VoiceAssistDBError), (click, click.ClickException)):
        for name, known in inspect.getmembers(module, inspect.isclass):
            if issubclass(known, kind):
                yield name


PRINTED: Final[dict[str, int]] = {
    **dict.fromkeys(_errors(), 0),
    "say": 0,
    "warning": 0,  # of a logger
    "_on_hold": 0,  # why a run waits
    "_held": 0,
    "_on_wait": 0,
    "quarantine": 2,  # why a row was left
    "Refusal": 1,  # of a decision
    "Condition": 1,  # of an SQLSTATE
    "Copy": 1,  # of an encrypted table
    "Gap": 1,  # of what a table lacks
}
"""The calls that print, or that make what is printed, by name: the position of their text."""


@dataclass(frozen=True, slots=True, order=True)
class Message:
    """A text that a command can print.

    Attributes:
        place: File and line.
        text: The text, without backticks, and with a hole for each part that is not known.
    """

    place: str
    text: str


@dataclass(slots=True)
class Scope:
    """A function, or the statements of a module, without the functions in it."""

    module: str
    node: ast.AST
    outer: Scope | None = None
    owner: ast.ClassDef | None = None
    nodes: list[ast.AST] = field(default_factory=list)

    @property
    def parameters(self) -> list[str]:
        """The names of the parameters, in their order."""
        if not isinstance(self.node, ast.FunctionDef | ast.AsyncFunctionDef):
            return []
        given = self.node.args
        return [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]

    @property
    def returned(self) -> list[ast.expr]:
        """What it returns."""
        return [each.value for each in self.nodes if isinstance(each, ast.Return) and each.value is not None]


class Code:
    """The modules that a command imports, and their messages.

    Args:
        roots: Names of the modules in which the command begins.
    """

    def __init__(self, *roots: str) -> None:
        self._modules: dict[str, Scope] = {}
        self._functions: dict[str, list[Scope]] = defaultdict(list)
        self._calls: dict[str, list[tuple[Scope, ast.Call]]] = defaultdict(list)
        todo = list(roots)
        assert all(map(_file_of, roots)), f"one of {', '.join(roots)} is no module of the package"
        while todo:
            name = todo.pop()
            if name not in self._modules and not name.startswith(NOT_OF_A_RUN) and (file := _file_of(name)):
                self._modules[name] = Scope(name, ast.parse(file.read_text(encoding="utf-8")))
                todo += self._read(self._modules[name].node, self._modules[name], None)

    def _read(self, node: ast.AST, scope: Scope, owner: ast.ClassDef | None) -> Iterator[str]:
        """Sort what a node has into scopes, and yield the names of the modules that it imports."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                inner = Scope(scope.module, child, scope, owner)
                self._functions[child.name].append(inner)
                yield from self._read(child, inner, owner)
            elif isinstance(child, ast.ClassDef):
                yield from self._read(child, scope, child)
            elif isinstance(child, ast.Import):
                yield from (each.name for each in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield str(child.module)
                yield from (f"{child.module}.{each.name}" for each in child.names)
            elif not _is_for_type_checkers(child):
                scope.nodes.append(child)
                if isinstance(child, ast.Call) and (name := _called(child)):
                    self._calls[name].append((scope, child))
                yield from self._read(child, scope, owner)

    def messages(self) -> list[Message]:
        """Return every message, in the order of the code."""
        found = set()
        for name, position in PRINTED.items():
            for scope, call in self._calls.get(name, []):
                place = f"{scope.module.replace('.', '/')}.py:{call.lineno}"
                given = _argument(call, position, "message")
                texts = {HOLE} if given is None else self._texts(given, scope, follows_parameters=True)
                found |= {Message(place, text.replace("`", "")) for text in texts}
        return sorted(found)

    def _texts(self, node: ast.AST, at: Scope, depth: int = 0, *, follows_parameters: bool = False) -> set[str]:
        """Return the texts that an expression can have."""
        if depth > MAX_DEPTH:
            return {HOLE}
        part = partial(self._texts, at=at, depth=depth + 1)
        match node:
            case ast.Constant(value=str(text)):
                return {re.sub(r"%(\.\d)?[sdrf]|\{[\w.:,]*\}", HOLE, text)}
            case ast.JoinedStr(values=parts):
                return _products(map(part, parts))
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return _products((part(left), part(right)))
            case ast.IfExp(body=one, orelse=other):
                alternatives = (part(each, follows_parameters=follows_parameters) for each in (one, other))
                return set().union(*alternatives)
            case ast.BoolOp(values=values) | ast.List(elts=values) | ast.Tuple(elts=values):
                return set().union(*map(part, values)) or {HOLE}
            case (
                ast.FormattedValue(value=inner)
                | ast.NamedExpr(value=inner)
                | ast.Starred(value=inner)
                | ast.ListComp(elt=inner)
                | ast.GeneratorExp(elt=inner)
                | ast.Call(func=ast.Attribute(value=inner, attr="format"))
                | ast.Call(func=ast.Attribute(attr="join"), args=[inner])
            ):
                return part(inner)
            case ast.Call() if (name := _called(node)) and not name.startswith("__"):
                functions = self._functions.get(name, [])
                if name.startswith("_"):  # several modules have a private function of this name
                    functions = [each for each in functions if each.module == at.module]
                returned = (
                    self._texts(each, to, depth + 1, follows_parameters=True)
                    for to in functions
                    for each in to.returned
                )
                return set().union(*returned) or {HOLE}
            case ast.Name(id=name):
                return self._named(name, at, depth, follows_parameters=follows_parameters)
            case ast.Attribute(value=ast.Name(id="self"), attr=name) if at.owner is not None:
                return self._attribute(name, at, at.owner, depth)
        return {HOLE}

    def _named(self, name: str, at: Scope, depth: int, *, follows_parameters: bool) -> set[str]:
        """Return the texts that a variable, a parameter or a constant can have."""
        scope: Scope | None = at
        while scope is not None:
            if values := list(_assigned(name, scope)):
                return set().union(
                    *(_products((before, self._texts(each, scope, depth + 1))) for before, each in values)
                )
            if name in scope.parameters:
                return self._given(name, scope, depth) if follows_parameters else {HOLE}
            scope = scope.outer
        if not name.strip("_").isupper():
            return {HOLE}
        constants = (
            self._texts(each, of, depth + 1) for of in self._modules.values() for _, each in _assigned(name, of)
        )
        return set().union(*constants) or {HOLE}

    def _attribute(self, name: str, at: Scope, owner: ast.ClassDef, depth: int) -> set[str]:
        """Return the texts that methods set an attribute to, or that callers give for the field of a dataclass."""
        assigned = (each.value for each in ast.walk(owner) if isinstance(each, ast.Assign) and _sets(each, name))
        texts = set().union(*(self._texts(each, at, depth + 1) for each in assigned))
        fields = [
            each.target.id
            for each in owner.body
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        ]
        if name in fields and owner.name not in PRINTED:
            for scope, call in self._calls.get(owner.name, []):
                if (given := _argument(call, fields.index(name), name)) is not None:
                    texts |= self._texts(given, scope, depth + 1)
        return texts - {""} or {HOLE}

    def _given(self, name: str, function: Scope, depth: int) -> set[str]:
        """Return the texts that callers give for a parameter."""
        assert isinstance(function.node, ast.FunctionDef | ast.AsyncFunctionDef)
        position = [each for each in function.parameters if each not in {"self", "cls"}].index(name)
        texts: set[str] = set()
        for scope, call in self._calls.get(function.node.name, []):
            if (given := _argument(call, position, name)) is not None:
                texts |= self._texts(given, scope, depth + 1, follows_parameters=True)
        return texts or {HOLE}


def _file_of(module: str) -> Path | None:
    package, *parts = module.split(".")
    if package != PACKAGE.name:
        return None
    place = PACKAGE.joinpath(*parts)
    return next((each for each in (place / "__init__.py", place.with_suffix(".py")) if each.is_file()), None)


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _called(call: ast.Call) -> str | None:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return None


def _argument(call: ast.Call, position: int, name: str) -> ast.expr | None:
    if len(call.args) > position:
        return call.args[position]
    return next((each.value for each in call.keywords if each.arg == name), None)


def _sets(node: ast.Assign, attribute: str) -> bool:
    return any(isinstance(each, ast.Attribute) and each.attr == attribute for each in node.targets)


def _assigned(name: str, scope: Scope) -> Iterator[tuple[set[str], ast.expr]]:
    """Yield what a variable is set to, each with the texts that stand before it."""
    for node in scope.nodes:
        match node:
            case ast.AugAssign(target=ast.Name(id=target), value=value) if target == name:
                yield {HOLE}, value
            case (
                ast.Assign(targets=[ast.Name(id=target)], value=value)
                | ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value)
                | ast.NamedExpr(target=ast.Name(id=target), value=value)
                | ast.For(target=ast.Name(id=target), iter=value)
                | ast.Call(func=ast.Attribute(value=ast.Name(id=target), attr="append"), args=[value])
            ) if target == name:
                yield {""}, value
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                for each, value in zip(targets, values, strict=False):
                    if isinstance(each, ast.Name) and each.id == name:
                        yield {""}, value


def _products(parts: Iterable[Iterable[str]]) -> set[str]:
    """Return every way to join one text of each part."""
    ways = itertools.islice(itertools.product(*parts), MAX_VARIANTS)
    return {re.sub(rf"{HOLE}+", HOLE, "".join(each)) for each in ways}
